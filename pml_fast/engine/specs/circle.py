"""Circle loss (Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class Circle(PairSpec):
    """``softplus(lse_p(-g relu(1+m-s)(s-1+m)) + lse_n(g relu(s+m)(s-m)))``; 0 for a row without both sides.

    The weights ``relu(...)`` are constants to the gradient, as in the paper.
    """

    m: float = 0.4
    gamma: float = 80.0

    name: ClassVar[str] = "circle"
    scales: ClassVar[tuple[str, ...]] = ("gamma",)

    def formula(self, view: View, score: Score) -> list[Tensor]:
        pos, neg = view.pos.s, view.neg.s
        weight_pos = torch.relu(1 + self.m - pos.detach())
        weight_neg = torch.relu(neg.detach() + self.m)
        log_pos = view.pos.logsumexp(-self.gamma * weight_pos * (pos - (1 - self.m)))
        log_neg = view.neg.logsumexp(self.gamma * weight_neg * (neg - self.m))
        both = (view.pos.count() > 0) & (view.neg.count() > 0)
        total = torch.where(both, log_pos, 0.0) + torch.where(both, log_neg, 0.0)
        return [torch.where(both, softplus(total), 0.0)]
