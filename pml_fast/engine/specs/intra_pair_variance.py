"""Intra-pair variance (Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import Term, TwoSweepSpec, register_pair_spec
from pml_fast.engine.views import Side, View


@register_pair_spec
@dataclass(frozen=True)
class IntraPairVariance(TwoSweepSpec):
    """``relu(d - (1 + eps) mean)^2`` a positive pair, ``relu((1 - eps) mean - d)^2`` a negative one; mirrored for similarities.

    The means are over all positive pairs and over all negative pairs, and have a gradient.
    """

    pos_eps: float = 0.01
    neg_eps: float = 0.01

    name: ClassVar[str] = "intra_pair_variance"
    terms: ClassVar[tuple[Term, ...]] = (Term("pos_loss", "pos_pair"), Term("neg_loss", "neg_pair"))

    def row_state(self, view: View, score: Score) -> Tensor:
        sums = [side.sum(side.s) for side in (view.pos, view.neg)]
        return torch.stack([*sums, *(side.count().to(sums[0].dtype) for side in (view.pos, view.neg))])

    def share(self, state: Tensor) -> Tensor:
        totals = state.sum(dim=1, keepdim=True)
        return (totals[:2] / totals[2:].clamp(min=1)).expand(2, state.shape[1])

    def losses(self, view: View, score: Score, own: Tensor, every: Tensor) -> list[Tensor]:
        sides = (view.pos, self.pos_eps, score.inverted), (view.neg, self.neg_eps, not score.inverted)
        return [_shortfall(side, mean, eps, larger).square() for (side, eps, larger), mean in zip(sides, own, strict=True)]


def _shortfall(side: Side, mean: Tensor, eps: float, larger: bool) -> Tensor:
    """How far pairs that should be ``larger`` (or smaller) stay behind the mean."""
    level = side.spread(mean) * (1 - eps if larger else 1 + eps)
    return torch.relu(level - side.s if larger else side.s - level)
