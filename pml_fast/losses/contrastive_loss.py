"""Contrastive loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances.base_distance import own_margin
from pml_fast.engine.specs import Contrastive
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer


class ContrastiveLoss(PairLossInSteps):
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

    steps: ClassVar[tuple[str, ...]] = (*PairLossInSteps.steps, "get_per_pair_loss", "pos_calc", "neg_calc")

    def in_steps(self) -> bool:
        """Whether a subclass has replaced a step, or the margin that a step takes from the distance."""
        return super().in_steps() or own_margin(self.distance)

    def _compute_loss(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: Any) -> LossDict:
        a1, p, a2, n = indices_tuple
        losses = self.zero_losses()
        for side, pairs, indices in (("pos", pos_pairs, (a1, p)), ("neg", neg_pairs, (a2, n))):
            if len(pairs) > 0:
                each = self.get_per_pair_loss(pairs, side)
                losses[f"{side}_loss"] = {"losses": each, "indices": indices, "reduction_type": f"{side}_pair"}
        return losses

    def get_per_pair_loss(self, pair_dists: Tensor, pos_or_neg: str) -> Tensor:
        """:meth:`pos_calc` or :meth:`neg_calc`, with the margin of that side."""
        if pos_or_neg == "pos":
            return self.pos_calc(pair_dists, self.pos_margin)
        return self.neg_calc(pair_dists, self.neg_margin)

    def pos_calc(self, pos_pair_dist: Tensor, margin: float) -> Tensor:
        """Losses ``[K]`` of positive pairs."""
        return torch.relu(self.distance.margin(pos_pair_dist, margin))

    def neg_calc(self, neg_pair_dist: Tensor, margin: float) -> Tensor:
        """Losses ``[K]`` of negative pairs."""
        return torch.relu(self.distance.margin(margin, neg_pair_dist))

    def spec(self) -> Contrastive:
        return Contrastive(self.pos_margin, self.neg_margin)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]
