"""Lifted structure (Oh Song et al., CVPR 2016), and its generalisation (Hermans et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, Term, TwoSweepSpec, register_pair_spec
from pml_fast.engine.views import NEG_INF, View, log_add


def _distance_beyond(score: Score, s: Tensor, margin: float) -> Tensor:
    """How much further than the margin a score is."""
    return score.sign * (margin - s)


@register_pair_spec
@dataclass(frozen=True)
class GeneralizedLiftedStructure(PairSpec):
    """``relu(lse_p(d_ap - pos_margin) + lse_n(neg_margin - d_an))`` a row; a side without pairs adds 0."""

    neg_margin: float = 1.0
    pos_margin: float = 0.0

    name: ClassVar[str] = "generalized_lifted_structure"

    def formula(self, view: View, score: Score) -> list[Tensor]:
        log_pos = view.pos.logsumexp(_distance_beyond(score, view.pos.s, self.pos_margin))
        log_neg = view.neg.logsumexp(-_distance_beyond(score, view.neg.s, self.neg_margin))
        total = torch.where(view.pos.count() > 0, log_pos, 0.0) + torch.where(view.neg.count() > 0, log_neg, 0.0)
        return [torch.relu(total)]


@register_pair_spec
@dataclass(frozen=True)
class LiftedStructure(TwoSweepSpec):
    """``relu(log(sum_n exp(neg_margin - d_an) + sum_n exp(neg_margin - d_pn)) + d_ap - pos_margin)^2 / 2`` a positive pair.

    The first sweep leaves the log-sum-exp of each row's negatives. In a reference set the positive's negatives are no pairs of
    the batch, and only the anchor's count.
    """

    neg_margin: float = 1.0
    pos_margin: float = 0.0

    name: ClassVar[str] = "lifted_structure"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "pos_pair"),)
    gated: ClassVar[bool] = True

    def row_state(self, view: View, score: Score) -> Tensor:
        return view.neg.logsumexp(-_distance_beyond(score, view.neg.s, self.neg_margin)).unsqueeze(0)

    def losses(self, view: View, score: Score, own: Tensor, every: Tensor) -> list[Tensor]:
        negatives = view.pos.spread(own[0])
        if view.itself:
            negatives = log_add(negatives, view.pos.across(every[0]))
        negatives = negatives.masked_fill(negatives == NEG_INF, 0.0)
        return [torch.relu(negatives + _distance_beyond(score, view.pos.s, self.pos_margin)).square() / 2]
