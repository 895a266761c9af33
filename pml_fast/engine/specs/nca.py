"""NCA (Goldberger et al., "Neighbourhood Components Analysis", NIPS 2004)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pml_fast.engine.score import Score
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View, softplus


@register_pair_spec
@dataclass(frozen=True)
class NCA(PairSpec):
    """``-log`` of the share of the positives in the softmax of ``softmax_scale * s`` over all other rows.

    A row without positives has no loss.
    """

    softmax_scale: float = 1.0

    name: ClassVar[str] = "nca"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element", partial=True),)

    def formula(self, view: View, score: Score) -> Losses:
        scale = score.sign * self.softmax_scale
        some = view.pos.count() > 0
        log_pos = torch.where(some, view.pos.logsumexp(view.pos.s * scale), 0.0)
        return [Some(softplus(view.neg.logsumexp(view.neg.s * scale) - log_pos), some)]
