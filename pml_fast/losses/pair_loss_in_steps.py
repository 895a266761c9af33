"""Pair losses of this package that a subclass may change in the middle."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine import listed
from pml_fast.engine.plan import overridden
from pml_fast.engine.score import Score
from pml_fast.engine.views import ListedSide, View
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.generic_pair_loss import GenericPairLoss
from pml_fast.losses.spec_pair_loss import SpecPairLoss


class PairLossInSteps(SpecPairLoss, GenericPairLoss):
    """A loss whose maths is a spec, and which is a :class:`GenericPairLoss` to subclasses that override one of its ``steps``.

    Only then do the steps run, on the whole matrix and lists of pairs; :meth:`_compute_loss` is the spec's formula over those.
    """

    over_matrix: ClassVar[bool] = False
    steps: ClassVar[tuple[str, ...]] = ("_compute_loss", "mat_based_loss", "pair_based_loss")
    _given: ClassVar[tuple[str, ...]] = ("mat_based_loss",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mat_based_loss=self.over_matrix, **kwargs)
        self._of_itself = True

    def in_steps(self) -> bool:
        """Whether a subclass has replaced a step."""
        return not set(self.steps).isdisjoint(overridden(self))

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """Every single loss: of the spec, or step by step."""
        call = embeddings, labels, indices_tuple, ref_emb, ref_labels
        if not self.in_steps():
            return SpecPairLoss.compute_loss(self, *call)
        self._of_itself = ref_emb is embeddings and ref_labels is labels
        return GenericPairLoss.compute_loss(self, *call)

    def _compute_loss(self, *args: Any) -> LossDict:
        lists, view = self._of_matrix(*args) if self.over_matrix else self._of_pairs(*args)
        return listed.loss_dict(self.spec(), Score(inverted=self.distance.is_inverted), view, lists)

    def _of_matrix(self, mat: Tensor, pos_mask: Tensor, neg_mask: Tensor) -> tuple[listed.PairLists, View]:
        (a1, p), (a2, n) = pos_mask.nonzero(as_tuple=True), neg_mask.nonzero(as_tuple=True)
        lists = listed.PairLists(a1, p, None, a2, n, None)
        return lists, listed.listed_view(lists, listed.matrix_scorer(mat), mat.shape[0], self._of_itself)

    def _of_pairs(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: Any) -> tuple[listed.PairLists, View]:
        a1, p, a2, n = indices_tuple
        # An empty side is a list.
        some = pos_pairs if torch.is_tensor(pos_pairs) else neg_pairs
        pos, neg = (side if torch.is_tensor(side) else some.new_zeros(0) for side in (pos_pairs, neg_pairs))
        rows = 1 + max(int(part.max()) for part in indices_tuple if len(part) > 0)
        view = View(ListedSide(pos, a1, rows, None, p), ListedSide(neg, a2, rows, None, n), self._of_itself)
        return listed.PairLists(a1, p, None, a2, n, None), view
