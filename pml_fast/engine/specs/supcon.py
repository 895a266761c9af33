"""SupCon (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020), the L_out form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pml_fast.engine.spec import SoftmaxSpec, SoftmaxSums, register_pair_spec


@register_pair_spec
@dataclass(frozen=True)
class SupCon(SoftmaxSpec):
    """``logsumexp over all other rows of s/t  -  mean over positives of s/t``; 0 for a row without positives."""

    name: ClassVar[str] = "supcon"
    gated: ClassVar[bool] = True

    def row_losses(self, sums: SoftmaxSums) -> list[Tensor]:
        some = sums.positives > 0
        log_all = torch.logaddexp(torch.where(some, sums.log_pos, 0.0), sums.log_neg)
        mean = sums.total_pos / sums.positives.clamp(min=1)
        return [torch.where(some, log_all - mean, 0.0)]
