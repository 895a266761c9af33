"""SupCon (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020), the L_out form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, register_pair_spec
from pml_fast.engine.views import View


@register_pair_spec
@dataclass(frozen=True)
class SupCon(PairSpec):
    """``logsumexp over all other rows of s/t  -  mean over positives of s/t``; 0 for a row without positives."""

    temperature: float = 0.1

    name: ClassVar[str] = "supcon"
    scales: ClassVar[tuple[str, ...]] = ("temperature",)
    gated: ClassVar[bool] = True

    def formula(self, view: View, score: Score) -> list[Tensor]:
        scale = score.sign / self.temperature
        log_pos = view.pos.logsumexp(view.pos.s * scale)
        log_neg = view.neg.logsumexp(view.neg.s * scale)
        count = view.pos.count()
        some = count > 0
        log_all = torch.logaddexp(torch.where(some, log_pos, 0.0), log_neg)
        mean = view.pos.sum(view.pos.s * scale) / count.clamp(min=1)
        return [torch.where(some, log_all - mean, 0.0)]
