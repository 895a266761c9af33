"""Lifted structure losses."""

from __future__ import annotations

from typing import Any, ClassVar

from pml_fast.engine.specs import GeneralizedLiftedStructure, LiftedStructure
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps


class LiftedStructureLoss(PairLossInSteps):
    """``relu(log(sum of exp(neg_margin - d) over the negatives of both ends) + d_ap - pos_margin)^2 / 2`` a positive pair.

    Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016. With a reference set only the
    anchor's negatives are there to be counted.

    Args:
        neg_margin: how far negatives should be.
        pos_margin: how close positives should be.
    """

    joint_anchors: ClassVar[str] = "a pair counts the negatives of both of its ends"

    compares_margins: ClassVar[bool] = True

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"], is_stat=False)

    def spec(self) -> LiftedStructure:
        return LiftedStructure(self.neg_margin, self.pos_margin)


class GeneralizedLiftedStructureLoss(PairLossInSteps):
    """``relu(log(sum_p exp(d_ap - pos_margin)) + log(sum_n exp(neg_margin - d_an)))``, one loss an anchor.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017. A side without pairs adds 0.

    Args:
        neg_margin: how far negatives should be.
        pos_margin: how close positives should be.
    """

    over_matrix: ClassVar[bool] = True
    compares_margins: ClassVar[bool] = True

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"], is_stat=False)

    def spec(self) -> GeneralizedLiftedStructure:
        return GeneralizedLiftedStructure(self.neg_margin, self.pos_margin)
