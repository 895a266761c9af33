"""Launcher of a small batch's step: its rows, the sweep that all batches have, its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.epilogues import EPILOGUES, Epilogue
from pml_fast.engine.triton.launch import rule_of, scalars, sweep
from pml_fast.engine.triton.lookup import launch_config, on
from pml_fast.engine.triton.small import Recipe
from pml_fast.engine.triton.small_kernels import small_grad_kernel, small_rows_kernel

ROWS_TILE = {"BLOCK_M": 16, "BLOCK_K": 64, "num_warps": 4}


def small_step(x: Tensor, labels: Tensor, rule: Tensor | None, how: Recipe, need: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss ``[]``, terms ``[T]``, and the gradient by ``x`` where there is ``need`` of it, else an empty tensor."""
    (n, d), device = x.shape, x.device
    x = x if x.stride(1) == 1 or d == 1 else x.contiguous()
    rows = prepared_rows(x, labels.contiguous(), how.score.normalize)
    epilogue, kind = EPILOGUES[how.spec.name], layout.score_kind(how.score)
    numbers = scalars(how.spec, how.score, how.limits)
    values, saved, seen = sweep(rows.operand, rows.operand, epilogue, kind, True, rule, numbers, len(how.limits))
    total = layout.empty((), dtype=torch.float32, device=device)
    terms = layout.empty((len(how.limits),), dtype=torch.float32, device=device)
    dx = layout.empty((n, d), dtype=x.dtype, device=device) if need else x.new_empty(0)
    parts = chosen(epilogue, how.spec.gated, how.elements, len(how.limits))
    tile = launch_config("small", rows.operand.rows, kind)
    grid = (triton.cdiv(n, tile.block_m), triton.cdiv(d, tile.block_out)) if need else (1, 1)
    with on(x):
        small_grad_kernel[grid](
            x, rows.operand.rows, rows.operand.norms, rows.size, rows.operand.labels, rule_of(rule, x), saved, values, seen,
            total, terms, dx, x.stride(0), n, d, *numbers, **parts, SUM_POS=how.summed[0], SUM_NEG=how.summed[-1], NEED=need,
            NORMALIZE=how.score.normalize, KIND=kind, HAS_RULE=rule is not None, PRECISION=layout.dot_precision(x.dtype),
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, BLOCK_OUT=tile.block_out,
            num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.maxnreg,
        )  # fmt: skip
    return total, terms, dx


@dataclass
class PreparedRows:
    """The rows as the products read them, and what they were divided by."""

    operand: layout.Operand
    size: Tensor


def prepared_rows(x: Tensor, labels: Tensor, normalize: bool) -> PreparedRows:
    """Normalised, rounded where products round, with squared norms: one launch."""
    n, d = x.shape
    unit = layout.empty((n, d), dtype=x.dtype, device=x.device)
    square, size = (layout.empty((n,), dtype=torch.float32, device=x.device) for _ in range(2))
    rounds = layout.product_type(x.dtype) == "tf32"
    with on(x):
        small_rows_kernel[(triton.cdiv(n, ROWS_TILE["BLOCK_M"]),)](
            x, unit, square, size, x.stride(0), n, d, NORMALIZE=normalize, ROUND=rounds, **ROWS_TILE
        )
    return PreparedRows(layout.Operand(unit, square, labels), size)


def chosen(epilogue: Epilogue, gated: bool, elements: bool, terms: int) -> dict[str, Any]:
    """What of a launch follows from the loss."""
    return {
        "TERMS": terms, "SAVED": epilogue.levels, "ELEMENT": elements, "GATED": gated, "LOGIT": epilogue.logit,
        "DERIVATIVE": epilogue.derivative,
    }  # fmt: skip
