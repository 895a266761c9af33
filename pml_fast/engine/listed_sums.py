"""Sums at listed places, in a fixed order where deterministic results are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.settings import current

# Where torch's index_add adds atomically, in any order, unless it is told not to.
UNORDERED = ("cuda",)


def add_at(total: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """``total.index_add_(0, index, source)``; under ``use(deterministic=True)`` the same bits every time.

    A graph that torch.compile traces follows torch.use_deterministic_algorithms alone, which it cannot switch.
    """
    if torch.compiler.is_compiling() or total.device.type not in UNORDERED or not current().deterministic:
        return total.index_add_(0, index, source)
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return total.index_add_(0, index, source)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
