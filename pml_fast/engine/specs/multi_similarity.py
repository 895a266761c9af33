"""Multi-similarity (Wang et al., "Multi-Similarity Loss with General Pair Weighting", CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class MultiSimilarity(PairSpec):
    """``softplus(lse of -alpha (s-base) over positives)/alpha + softplus(lse of beta (s-base) over negatives)/beta``."""

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5

    name: ClassVar[str] = "multi_similarity"
    scales: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def formula(self, view: View, score: Score) -> list[Tensor]:
        log_pos = view.pos.logsumexp(-score.sign * self.alpha * (view.pos.s - self.base))
        log_neg = view.neg.logsumexp(score.sign * self.beta * (view.neg.s - self.base))
        return [softplus(log_pos) / self.alpha + softplus(log_neg) / self.beta]
