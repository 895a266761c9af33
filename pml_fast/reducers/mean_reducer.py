"""The mean of the losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base_reducer import BaseReducer
from .fold import Fold


class MeanReducer(BaseReducer):
    """The mean of the losses; a differentiable zero where there are none."""

    def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
        return losses.mean() if losses.numel() > 0 else losses.sum()

    def pos_pair_reduction(self, losses: Tensor, *args: Any) -> Tensor:
        return self.element_reduction(losses, *args)

    def neg_pair_reduction(self, losses: Tensor, *args: Any) -> Tensor:
        return self.element_reduction(losses, *args)

    def triplet_reduction(self, losses: Tensor, *args: Any) -> Tensor:
        return self.element_reduction(losses, *args)

    def _fold_rule(self) -> Fold:
        return Fold("mean")
