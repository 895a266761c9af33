"""Pairs by a comparison of labels other than equality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.miners.base_miner import BaseMiner
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.index_types import PairIndices

Comparison = Callable[[Tensor, Tensor], Tensor]


class LabelComparisonMiner(BaseMiner):
    """All positive and all negative pairs of a batch, as a comparison of labels has them: overlapping boxes, close ratings, a
    common ancestor.

    The pairs are index tensors, for which every loss that takes a tuple has a kernel; labels are not needed by the loss then:
    ``loss(embeddings, indices_tuple=miner(embeddings, labels))``. Where a function of the labels says which are alike (an
    ancestor, a bucket), equality of what it gives is the same comparison, and the streamed one: pass that as labels.

    Args:
        positive: called with labels ``[n, 1, ...]`` and ``[1, m, ...]``, says in a bool tensor ``[n, m]`` which pairs are
            positives. No sample is a pair with itself.
        negative: says the same of negatives; by default they are all other pairs. A pair may be neither.
    """

    def __init__(self, positive: Comparison = torch.eq, negative: Comparison | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, function in (("positive", positive), ("negative", negative)):
            if not callable(function) and not (name == "negative" and function is None):
                raise TypeError(f"{name} must be a function of two tensors of labels, got {type(function).__name__}")
        self.positive, self.negative = positive, negative

    def read_call(
        self, embeddings: Tensor, labels: Any, ref_emb: Tensor | None, ref_labels: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The checked inputs of a call: labels ``[N, ...]`` of any shape and type, which stay where they are."""
        # Labels of a reference set are not read there, but refused where there is no such set.
        call = prepare_call(embeddings, None, None, ref_emb, ref_labels if ref_emb is None else None)
        _check("labels", labels, embeddings)
        if call.itself and (ref_labels is None or ref_labels is labels):
            return call.embeddings, labels, call.ref_emb, labels
        _check("ref_labels", ref_labels, call.ref_emb)
        return call.embeddings, labels, call.ref_emb, ref_labels

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> PairIndices:
        found = lmu.get_compared_pairs_indices(labels, ref_labels, self.positive, self.negative)
        return PairIndices(*(part.to(embeddings.device) for part in found))


def _check(name: str, labels: Any, rows: Tensor) -> None:
    if not isinstance(labels, Tensor) or labels.ndim == 0:
        raise TypeError(f"{name} must be a tensor with a label for each row, got {type(labels).__name__}")
    if len(labels) != len(rows):
        raise ValueError(f"{name} must have a label for each of the {len(rows)} rows, got shape {tuple(labels.shape)}")
