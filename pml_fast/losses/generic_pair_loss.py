"""The base of pair losses that a user writes over a matrix or over lists of pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.plan import MATERIALISED, Call, Plan
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class GenericPairLoss(BaseMetricLossFunction):
    """Hands a subclass the comparisons of a batch; it returns a loss dictionary from ``_compute_loss``.

    With ``mat_based_loss`` that is ``_compute_loss(mat, pos_mask, neg_mask)``, all ``[N, M]``, the masks 0 or 1 in the type of
    ``mat``; else ``_compute_loss(pos_pairs, neg_pairs, indices_tuple)``, with the distances of the positive and of the negative
    pairs (an empty list where there is none) and their indices ``(a1, p, a2, n)``. Both hold the whole ``[N, M]`` matrix: the
    losses of this package do so only where a subclass has replaced one of these steps
    (:class:`pml_fast.losses.pair_loss_in_steps.PairLossInSteps`).
    """

    def __init__(self, mat_based_loss: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_method = self.mat_based_loss if mat_based_loss else self.pair_based_loss

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss dictionary of ``_compute_loss``; the zero loss for a batch without any pair."""
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        pairs = lmu.convert_to_pairs(indices_tuple, labels, ref_labels)  # type: ignore[arg-type]
        if all(len(part) == 0 for part in pairs):
            return self.zero_losses()
        return self.loss_method(self.distance(embeddings, ref_emb), pairs)

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        note = f"{type(self).__name__} computes its losses from the whole matrix and its index tensors"
        return Plan(MATERIALISED, "dense", notes=[note])

    def _compute_loss(self, *args: Any) -> LossDict:
        raise NotImplementedError(f"{type(self).__name__} must define _compute_loss")

    def mat_based_loss(self, mat: Tensor, indices_tuple: Any) -> LossDict:
        """``_compute_loss`` of the matrix and a mask for each side."""
        a1, p, a2, n = indices_tuple
        pos_mask, neg_mask = torch.zeros_like(mat), torch.zeros_like(mat)
        pos_mask[a1, p] = 1
        neg_mask[a2, n] = 1
        self._assert_either_pos_or_neg(pos_mask, neg_mask)
        return self._compute_loss(mat, pos_mask, neg_mask)

    def pair_based_loss(self, mat: Tensor, indices_tuple: Any) -> LossDict:
        """``_compute_loss`` of the distances of the listed pairs."""
        a1, p, a2, n = indices_tuple
        pos_pairs: Any = mat[a1, p] if len(a1) > 0 else []
        neg_pairs: Any = mat[a2, n] if len(a2) > 0 else []
        return self._compute_loss(pos_pairs, neg_pairs, indices_tuple)

    @staticmethod
    def _assert_either_pos_or_neg(pos_mask: Tensor, neg_mask: Tensor) -> None:
        if bool(((pos_mask != 0) & (neg_mask != 0)).any()):
            raise ValueError("indices_tuple must name each pair as positive or as negative, got a pair that is named as both")
