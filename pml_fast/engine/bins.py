"""The bins of a histogram, and what a loss counts in them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# By how much rounding may carry a score out of the bins.
SLACK = 1e-3


@dataclass(frozen=True)
class Bins:
    """``count`` bins of width ``delta`` from ``low`` on; what lies outside belongs to the bin at that end."""

    low: float
    delta: float
    count: int

    @property
    def high(self) -> float:
        """The end of the last bin."""
        return self.low + self.count * self.delta

    def place(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each value, int64, and how far it is through it, from 0 to 1; a NaN stays one."""
        x = (value - self.low) / self.delta
        inside = x.floor().nan_to_num_().clamp_(0, self.count - 1)
        return inside.long(), (x - inside).clamp_(0, 1)

    def outside(self, value: Tensor) -> Tensor:
        """Which values rounding cannot have carried out of the bins; a NaN is none of them."""
        return (value < self.low - SLACK) | (value > self.high + SLACK)

    def sums(self, value: Tensor, keep: Tensor) -> Tensor:
        """``[3, count]`` float64 of the kept values of each bin: how many, the sum of their parts, the sum of the values.

        The values are a vector; differentiable.
        """
        inside, part = self.place(value)
        wide = torch.stack([torch.ones_like(value), part, value]).double()
        zeros = torch.zeros(3, self.count, dtype=torch.float64, device=value.device)
        return zeros.scatter_add(1, inside.expand(3, -1), torch.where(keep, wide, 0.0))


@dataclass(frozen=True)
class HistogramSpec:
    """Histograms of all pairs, positive and negative ones apart, or the one of all ``triplets``: positive less negative score.

    Of pairs the sums are ``[2, 2, count]``: of the positive and of the negative pairs, how many are in each bin and the sum of
    their parts. Of triplets they are ``[3, count]``: how many, the sum of their parts, the sum of their values.
    """

    bins: Bins
    triplets: bool
