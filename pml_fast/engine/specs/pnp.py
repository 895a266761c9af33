"""PNP (Li et al., "Rethinking the Optimization of Average Precision: Only Penalizing Negative Instances before Positive
Ones is Enough", AAAI 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.soft_rank import dense_mask, slots, soft_rank, with_self
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View

VARIANTS = ("Ds", "Dq", "Iu", "Ib", "O")


@register_pair_spec
@dataclass(frozen=True)
class PNP(PairSpec):
    """Mean over an anchor's positives ``j`` (and itself) of a penalty of ``R_j``, the negatives before ``j``.

    ``R_j = sum over negatives k of sigmoid((s_k - s_j) / anneal)``; ``variant`` is a number of :data:`VARIANTS`. An anchor
    without positives has no loss.
    """

    b: float = 2.0
    alpha: float = 1.0
    anneal: float = 0.01
    variant: float = 4.0

    name: ClassVar[str] = "pnp"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element", partial=True),)
    scales: ClassVar[tuple[str, ...]] = ("anneal",)
    waits: ClassVar[bool] = True
    width: ClassVar[int] = 3

    def formula(self, view: View, score: Score) -> Losses:
        z = view.pos.s * (score.sign / self.anneal)
        at, has = slots(with_self(view))
        before = soft_rank(z, at, has, dense_mask(view.neg))
        count = has.sum(dim=1).clamp(min=1)
        mean = torch.where(has, self._penalty(before), 0.0).sum(dim=1) / count
        loss = 1 - mean if VARIANTS[int(self.variant)] == "Dq" else mean
        return [Some(loss, view.pos.count() > 0)]

    def _penalty(self, before: Tensor) -> Tensor:
        variant = VARIANTS[int(self.variant)]
        if variant == "Ds":
            return torch.log1p(before)
        if variant == "Dq":
            return (1 + before) ** -self.alpha
        if variant == "Iu":
            return (1 + before) * torch.log1p(before)
        if variant == "Ib":
            return (self.b * before - torch.log1p(self.b * before)) / self.b**2
        return before
