"""Smooth-AP (Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pml_fast.engine.score import Score
from pml_fast.engine.soft_rank import dense_mask, slots, soft_rank, with_self
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View


@register_pair_spec
@dataclass(frozen=True)
class SmoothAP(PairSpec):
    """``1 - mean over positives j of rank among positives / rank among all``, a rank being ``1 + sum of sigmoid((s_k-s_j)/t)``.

    Of a batch against itself a row is a positive of its own, as in PML. A row without positives has no loss.
    """

    temperature: float = 0.01

    name: ClassVar[str] = "smooth_ap"
    terms: ClassVar[tuple[Term, ...]] = (Term("ap_loss", "element", partial=True),)
    scales: ClassVar[tuple[str, ...]] = ("temperature",)
    waits: ClassVar[bool] = True
    width: ClassVar[int] = 3

    def formula(self, view: View, score: Score) -> Losses:
        z = view.pos.s * (score.sign / self.temperature)
        at, has = slots(with_self(view))
        own = z.gather(1, at)
        every = torch.arange(at.shape[1], device=at.device).expand_as(at)
        # Each positive is compared with itself as well, which gives 1/2.
        among_positives = 0.5 + soft_rank(own, every, has, has)
        among_all = among_positives + soft_rank(z, at, has, dense_mask(view.neg))
        count = has.sum(dim=1)
        precision = torch.where(has, among_positives / among_all, 0.0).sum(dim=1) / count.clamp(min=1)
        return [Some(1 - precision, count > 0)]
