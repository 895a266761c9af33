"""NT-Xent (Sohn 2016; Chen et al., "SimCLR", ICML 2020), one loss for every anchor-positive pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, Term, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class NTXent(PairSpec):
    """``softplus(logsumexp over the anchor's negatives of s/t  -  s_ap/t)``: the other positives stay out of it."""

    temperature: float = 0.07

    name: ClassVar[str] = "ntxent"
    scales: ClassVar[tuple[str, ...]] = ("temperature",)
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "pos_pair"),)
    gated: ClassVar[bool] = True

    def formula(self, view: View, score: Score) -> list[Tensor]:
        scale = score.sign / self.temperature
        log_neg = view.neg.logsumexp(view.neg.s * scale)
        gap = view.pos.spread(log_neg) - view.pos.s * scale
        return [softplus(gap)]
