"""What a row's softmax is divided by, for losses whose positives are chosen otherwise than by equal labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from pml_fast.engine.spec import Losses, SoftmaxSpec, SoftmaxSums, Some, Term, register_pair_spec
from pml_fast.engine.views import log_add


@register_pair_spec
@dataclass(frozen=True)
class LogSumExp(SoftmaxSpec):
    """``logsumexp over all other rows of s/t``; a row without any has none."""

    name: ClassVar[str] = "log_sum_exp"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element", partial=True),)

    def row_losses(self, sums: SoftmaxSums) -> Losses:
        some = sums.positives + sums.negatives > 0
        return [Some(torch.where(some, log_add(sums.log_pos, sums.log_neg), 0.0), some)]
