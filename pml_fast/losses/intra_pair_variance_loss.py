"""Intra-pair variance loss."""

from __future__ import annotations

from typing import Any, ClassVar

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import IntraPairVariance
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps


class IntraPairVarianceLoss(PairLossInSteps):
    """``relu((1 - pos_eps) mean - s)^2`` a positive pair and ``relu(s - (1 + neg_eps) mean)^2`` a negative one.

    Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019. The means are over all positive and over all negative
    pairs. For a distance the two expressions change places.

    Args:
        pos_eps: how far below the mean a positive may be, as a share of the mean.
        neg_eps: how far above the mean a negative may be, as a share of the mean.
    """

    joint_anchors: ClassVar[str] = "pairs are compared with the means over all pairs"

    _no_steps: ClassVar[tuple[str, ...]] = ("variance_with_eps",)

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps
        self.add_to_recordable_attributes(list_of_names=["pos_eps", "neg_eps"], is_stat=False)

    def spec(self) -> IntraPairVariance:
        return IntraPairVariance(self.pos_eps, self.neg_eps)

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
