"""Threshold-consistent margins (Zhang et al., "Threshold-Consistent Margin Loss", ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pml_fast.engine.score import Score
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View


@register_pair_spec
@dataclass(frozen=True)
class ThresholdConsistent(PairSpec):
    """``lambda_plus (margin_plus - s)`` for positives with ``s <= margin_plus``, and for negatives with ``s >= margin_minus``
    ``lambda_minus (s - margin_minus)``; other pairs have no loss.
    """

    lambda_plus: float = 1.0
    lambda_minus: float = 1.0
    margin_plus: float = 0.9
    margin_minus: float = 0.5

    name: ClassVar[str] = "threshold_consistent"
    terms: ClassVar[tuple[Term, ...]] = (Term("pos_loss", "pos_pair"), Term("neg_loss", "neg_pair"))

    def formula(self, view: View, score: Score) -> Losses:
        pos = score.sign * (self.margin_plus - view.pos.s)
        neg = score.sign * (view.neg.s - self.margin_minus)
        # Written so that a NaN is inside, and seen.
        return [Some(self.lambda_plus * pos, ~(pos < 0)), Some(self.lambda_minus * neg, ~(neg < 0))]
