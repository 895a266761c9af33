"""Tuplet margin (Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, Term, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class TupletMargin(PairSpec):
    """``log(1 + sum_n exp(scale (s_an - cos(theta_ap - margin))))`` a positive pair, with ``cos(theta) = s``.

    ``margin`` is in radians.
    """

    margin: float = 0.1
    scale: float = 64.0

    name: ClassVar[str] = "tuplet_margin"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "pos_pair"),)
    gated: ClassVar[bool] = True

    def formula(self, view: View, score: Score) -> list[Tensor]:
        log_neg = view.neg.logsumexp(self.scale * view.neg.s)
        return [softplus(view.pos.spread(log_neg) - self.scale * self._closer(view.pos.s))]

    def _closer(self, s: Tensor) -> Tensor:
        """``cos(acos(s) - margin)``; a pair at an angle of 0 has a sine without a slope, not an infinite one."""
        square = 1 - s * s
        apart = square > 0
        sine = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
        return s * math.cos(self.margin) + sine * math.sin(self.margin)
