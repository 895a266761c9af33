"""Batch hard miner."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pml_fast.engine.lazy import RowChoice
from pml_fast.miners.batch_easy_hard_miner import BatchEasyHardMiner


class BatchHardMiner(BatchEasyHardMiner):
    """For every anchor the triplet of its furthest positive and its closest negative.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """

    _given = ("pos_strategy", "neg_strategy")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(pos_strategy=self.HARD, neg_strategy=self.HARD, **kwargs)

    def _row_choice(self, pos: Tensor, neg: Tensor, both: Tensor) -> RowChoice:
        return RowChoice(pos, both, neg, both, True, "hardest positive and hardest negative")
