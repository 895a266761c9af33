"""The sum of the losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fold import Fold
from .mean_reducer import MeanReducer


class SumReducer(MeanReducer):
    """The sum of the losses."""

    def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
        return losses.sum()

    def _fold_rule(self) -> Fold:
        return Fold("sum")
