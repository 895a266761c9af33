"""Random numbers for pairs that are drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """``[size]`` numbers in [0, 1), float64."""
    return torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).to(device)
