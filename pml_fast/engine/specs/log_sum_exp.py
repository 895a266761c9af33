"""What a row's softmax is divided by, for losses whose positives are chosen otherwise than by equal labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pml_fast.engine.score import Score
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View, log_add


@register_pair_spec
@dataclass(frozen=True)
class LogSumExp(PairSpec):
    """``logsumexp over all other rows of s/t``; a row without any has none."""

    temperature: float = 0.1

    name: ClassVar[str] = "log_sum_exp"
    scales: ClassVar[tuple[str, ...]] = ("temperature",)
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element", partial=True),)

    def formula(self, view: View, score: Score) -> Losses:
        scale = score.sign / self.temperature
        total = log_add(view.pos.logsumexp(view.pos.s * scale), view.neg.logsumexp(view.neg.s * scale))
        some = view.pos.count() + view.neg.count() > 0
        return [Some(torch.where(some, total, 0.0), some)]
