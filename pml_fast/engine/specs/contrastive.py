"""Contrastive loss (Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, Term, register_pair_spec
from pml_fast.engine.views import View


@register_pair_spec
@dataclass(frozen=True)
class Contrastive(PairSpec):
    """``relu(d - pos_margin)`` a positive pair, ``relu(neg_margin - d)`` a negative one; mirrored for similarities."""

    pos_margin: float = 0.0
    neg_margin: float = 1.0

    name: ClassVar[str] = "contrastive"
    terms: ClassVar[tuple[Term, ...]] = (Term("pos_loss", "pos_pair"), Term("neg_loss", "neg_pair"))

    def formula(self, view: View, score: Score) -> list[Tensor]:
        pos = torch.relu(score.sign * (self.pos_margin - view.pos.s))
        neg = torch.relu(score.sign * (view.neg.s - self.neg_margin))
        return [pos, neg]
