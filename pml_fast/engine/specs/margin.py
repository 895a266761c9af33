"""Margin loss (Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, Term, register_pair_spec
from pml_fast.engine.views import Side, View


@register_pair_spec
@dataclass(frozen=True)
class Margin(PairSpec):
    """``relu(d - beta + margin)`` a positive pair and ``relu(beta - d + margin)`` a negative one; mirrored for similarities.

    ``beta`` may also be a tensor ``[N]``, with the boundary of each row.
    """

    margin: float = 0.2
    beta: float | Tensor = 1.2

    name: ClassVar[str] = "margin"
    level: ClassVar[str] = "beta"
    terms: ClassVar[tuple[Term, ...]] = (Term("pos_loss", "pos_pair"), Term("neg_loss", "neg_pair"))

    def formula(self, view: View, score: Score) -> list[Tensor]:
        beyond = (score.sign * (_level(side, self.beta) - side.s) for side in (view.pos, view.neg))
        return [torch.relu(sign * part + self.margin) for sign, part in zip((1, -1), beyond, strict=True)]


def _level(side: Side, beta: float | Tensor) -> float | Tensor:
    return side.spread(beta) if isinstance(beta, Tensor) else beta
