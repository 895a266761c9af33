"""Ranked list (Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, register_pair_spec
from pml_fast.engine.views import Side, View

# Keeps the mean over no pair of a side at 0; added once for each column of the comparison, as PML does.
FLOOR = 1e-5


@register_pair_spec
@dataclass(frozen=True)
class RankedList(PairSpec):
    """Weighted means of ``d - (alpha - margin)`` over positives beyond that and of ``alpha - d`` over negatives within alpha.

    The weights are ``exp(Tp (d - (alpha - margin)))`` and ``exp(Tn (alpha - d))``; pairs at a distance of 0 weigh nothing.
    """

    margin: float = 0.4
    Tn: float = 10.0
    imbalance: float = 0.5
    alpha: float = 1.2
    Tp: float = 0.0

    name: ClassVar[str] = "ranked_list"

    def formula(self, view: View, score: Score) -> list[Tensor]:
        columns = view.pos.count() + view.neg.count() + int(view.itself)
        floor = FLOOR * columns.to(view.pos.s.dtype)
        pos = _weighted_mean(view.pos, view.pos.s - (self.alpha - self.margin), self.Tp, floor)
        neg = _weighted_mean(view.neg, self.alpha - view.neg.s, self.Tn, floor)
        return [(1 - self.imbalance) * pos + self.imbalance * neg]


def _weighted_mean(side: Side, beyond: Tensor, temperature: float, floor: Tensor) -> Tensor:
    # The exponential of what is no pair of this side may overflow, whose gradient would be 0 times infinity.
    beyond = side.only(beyond, 0.0)
    # Written so that a NaN is inside, and seen.
    inside = ~((beyond <= 0) | (side.s <= 0))
    weight = torch.where(inside, torch.exp(temperature * torch.where(inside, beyond, 0.0)), 0.0)
    total = side.sum(weight) + floor
    share = side.sum(weight * torch.where(inside, beyond, 0.0))
    return torch.where(total > 0, share / total.masked_fill(total == 0, 1.0), share)
