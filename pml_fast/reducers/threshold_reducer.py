"""The mean of the losses within bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..utils.checks import check_number
from .base_reducer import BaseReducer, sum_of
from .fold import Fold


class ThresholdReducer(BaseReducer):
    """The mean of the losses with `low` < loss < `high`; a differentiable zero where there are none.

    A bound left as None is not tested; at least one must be given.

    Statistics: `num_past_filter` losses within both bounds, `num_above_low` above `low`, and `num_below_high`
    (also under the name `num_above_high`) below `high` among those above `low`.
    """

    num_past_filter: int
    num_above_low: int
    num_below_high: int

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if low is None and high is None:
            raise ValueError("at least one of low and high must be given: use MeanReducer for the mean of all losses")
        self.low = low
        self.high = high
        self._check_bounds()
        self.add_to_recordable_attributes(list_of_names=["low", "high"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["num_past_filter", "num_above_low", "num_below_high"], is_stat=True)

    def _check_bounds(self) -> None:
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low} and high={self.high}: no loss lies between them")

    @property
    def num_above_high(self) -> int:
        """Another name of `num_below_high`, kept for code that reads it."""
        return self.num_below_high

    @num_above_high.setter
    def num_above_high(self, value: int) -> None:
        self.num_below_high = value

    def element_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, embeddings)

    def pos_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, embeddings)

    def neg_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, embeddings)

    def triplet_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, embeddings)

    def element_reduction_helper(self, losses: Tensor, embeddings: Tensor) -> Tensor:
        """The mean within bounds, by masks alone: no shape depends on the losses."""
        low_condition = None if self.low is None else losses > self.low
        high_condition = None if self.high is None else losses < self.high
        if low_condition is not None and high_condition is not None:
            high_condition = high_condition & low_condition
        kept = high_condition if high_condition is not None else low_condition
        assert kept is not None  # one bound is always set
        count = kept.sum()
        mean = sum_of(torch.where(kept, losses, 0)) / count.clamp(min=1)
        zero = self.zero_loss(embeddings)
        self.set_stats(low_condition, high_condition, count)
        return torch.where(count > 0, mean.to(losses.dtype), zero.to(losses.dtype))

    def set_stats(self, low_condition: Tensor | None, high_condition: Tensor | None, num_past_filter: int | Tensor) -> None:
        """Record how many losses passed the bounds."""
        if not self.collect_stats:
            return
        self.num_past_filter = int(num_past_filter)
        if low_condition is not None:
            self.num_above_low = int(low_condition.sum())
        if high_condition is not None:
            self.num_below_high = int(high_condition.sum())

    def _fold_rule(self) -> Fold:
        return _threshold_fold(self)


def _threshold_fold(reducer: ThresholdReducer) -> Fold:
    reducer._check_bounds()
    low = -math.inf if reducer.low is None else float(reducer.low)
    high = math.inf if reducer.high is None else float(reducer.high)
    return Fold("threshold", low=low, high=high)
