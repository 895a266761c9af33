"""Contrastive loss."""

from __future__ import annotations

from typing import Any

from pml_fast.engine.specs import Contrastive
from pml_fast.losses.spec_pair_loss import SpecPairLoss
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer


class ContrastiveLoss(SpecPairLoss):
    """``relu(d - pos_margin)`` for positive pairs and ``relu(neg_margin - d)`` for negative ones.

    Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006 (without the squares, as
    PML). For a similarity the differences change sign: choose ``pos_margin=1, neg_margin=0``.

    Args:
        pos_margin: positives closer than this cost nothing.
        neg_margin: negatives further than this cost nothing.
    """

    def __init__(self, pos_margin: float = 0, neg_margin: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        Contrastive(pos_margin, neg_margin)  # refuses what it cannot take, as every call does
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"], is_stat=False)

    def spec(self) -> Contrastive:
        return Contrastive(self.pos_margin, self.neg_margin)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]
