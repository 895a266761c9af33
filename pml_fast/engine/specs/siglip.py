"""Sigmoid loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class SigLIP(PairSpec):
    """The sum over a row of ``-log sigmoid(z (scale s + bias))``, with ``z`` 1 for positives and -1 for negatives."""

    scale: float = 10.0
    bias: float = -10.0

    name: ClassVar[str] = "siglip"

    def formula(self, view: View, score: Score) -> list[Tensor]:
        scale = score.sign * self.scale
        pos = view.pos.sum(softplus(-(view.pos.s * scale + self.bias)))
        return [pos + view.neg.sum(softplus(view.neg.s * scale + self.bias))]
