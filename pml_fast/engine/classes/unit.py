"""Weights that are made unit vectors where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.score import NORM_EPS

# Weights that plain torch divides at a time.
_PART = 4096


def make_unit(weights: Tensor) -> None:
    """Divide rows ``[M, D]`` by their Euclidean norms, in place.

    What is of unit norm already, up to rounding, stays as it is, so that the same call gives the same bits again.
    """
    rounding = 8 * torch.finfo(weights.dtype).eps
    if _is_compiled(weights):
        from pml_fast.engine.cpu.small_classes import make_unit_weights

        make_unit_weights(weights, NORM_EPS, rounding)
        return
    for part in weights.split(_PART):
        norm = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=torch.promote_types(part.dtype, torch.float32))
        part.copy_(part / torch.where((norm - 1).abs() <= rounding, 1.0, norm.clamp(min=NORM_EPS)))


def _is_compiled(weights: Tensor) -> bool:
    if torch.compiler.is_compiling() or type(weights) is not Tensor or weights.device.type != "cpu":
        return False
    return weights.dtype in (torch.float32, torch.float64) and _extension.load() is not None
