"""Scores of listed pairs in Triton, and their gradients: O(pairs * D) work and reads, never the matrix.

The backward sorts the pairs by row (a stable sort), so one program owns each row of the gradient and adds its pairs in
the order of the list: no atomics, the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
import triton.language as tl
from pml_fast.engine.problem import IndexedProblem
from pml_fast.engine.score import Score
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.aot import Kernel
from pml_fast.engine.triton.launch import on

BLOCK_PAIRS, BLOCK_K, BLOCK_OUT, NUM_WARPS = 32, 64, 128, 4
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _power(x, p):
    # x**p of x >= 0 for p > 0
    return tl.where(x == 0.0, 0.0, tl.exp2(p * tl.log2(tl.where(x == 0.0, 1.0, x))))


@triton.jit
def _gather(ptr, index, inside, stride, offs_d, D):
    mask = inside[:, None] & (offs_d[None, :] < D)
    return tl.load(ptr + index[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def listed_base_kernel(
    x_ptr, y_ptr, i_ptr, j_ptr, base_ptr, stride_xm, stride_ym, K, D, p,
    MODE: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # base [K]: inner products (MODE 0), Euclidean distances (1), 1-norms (2) or p-norms (3) of the pairs
    offs = tl.program_id(0).to(tl.int64) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    inside = offs < K
    i = tl.load(i_ptr + offs, mask=inside, other=0)
    j = tl.load(j_ptr + offs, mask=inside, other=0)
    total = tl.zeros([BLOCK_PAIRS], dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        offs_d = k + tl.arange(0, BLOCK_K)
        x = _gather(x_ptr, i, inside, stride_xm, offs_d, D).to(tl.float32)
        y = _gather(y_ptr, j, inside, stride_ym, offs_d, D).to(tl.float32)
        if MODE == 0:
            total += tl.sum(x * y, axis=1)
        elif MODE == 1:
            total += tl.sum((x - y) * (x - y), axis=1)
        elif MODE == 2:
            total += tl.sum(tl.abs(x - y), axis=1)
        else:
            total += tl.sum(_power(tl.abs(x - y), p), axis=1)
    if MODE == 1:
        total = tl.sqrt(total)
    elif MODE == 3:
        total = _power(total, 1.0 / p)
    tl.store(base_ptr + offs, total, mask=inside)


@triton.jit
def listed_grad_kernel(
    own_ptr, other_ptr, partner_ptr, c_ptr, begin_ptr, out_ptr, stride_own, stride_other, stride_out, D, p,
    MODE: tl.constexpr, BLOCK_PAIRS: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    # out [N, D]: each row's sum over its pairs begin[row]..begin[row + 1] of c * (derivative by the row)
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_d = offs_d < D
    begin = tl.load(begin_ptr + row)
    end = tl.load(begin_ptr + row + 1)
    own = tl.load(own_ptr + row * stride_own + offs_d, mask=in_d, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_OUT], dtype=tl.float32)
    for k in range(begin, end, BLOCK_PAIRS):
        offs = k + tl.arange(0, BLOCK_PAIRS)
        inside = offs < end
        partner = tl.load(partner_ptr + offs, mask=inside, other=0)
        c = tl.load(c_ptr + offs, mask=inside, other=0.0)
        other = _gather(other_ptr, partner, inside, stride_other, offs_d, D).to(tl.float32)
        if MODE == 0:
            part = c[:, None] * other
        else:
            diff = own[None, :] - other
            if MODE == 1:
                part = c[:, None] * diff
            else:
                sign = tl.where(diff > 0.0, 1.0, 0.0) - tl.where(diff < 0.0, 1.0, 0.0)
                part = c[:, None] * sign
                if MODE == 3:
                    # |diff|**(p - 1) would be infinite at zero for p below 1, where the derivative is taken as 0.
                    size = tl.where(diff == 0.0, 1.0, tl.abs(diff))
                    part = part * tl.exp2((p - 1.0) * tl.log2(size))
        total += tl.sum(tl.where(inside[:, None], part, 0.0), axis=0)
    tl.store(out_ptr + row * stride_out + offs_d, total, mask=in_d)


def refuse_listed(problem: IndexedProblem) -> str | None:
    """``None`` where these kernels can run the problem, else the reason."""
    score, dtypes = problem.score, {problem.x.dtype, problem.y.dtype}
    if score.kind == "lp" and not 0 < score.p < float("inf"):
        return f"its kernel for listed pairs takes finite p above 0, not {score.p:g}"
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"its kernels for listed pairs take float32, float16 or bfloat16 rows of one dtype, not {dtypes}"
    return None


def listed_scores(score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Scores ``[K]`` of the pairs ``(i, j)`` of prepared rows, float32."""
    base = _base(score, x, y, i, j)
    return base if score.power == 1 else base**score.power


def listed_grads(
    score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``sum(grad * score)`` by ``x`` and by ``y``, float32."""
    c = _coefficients(score, _base(score, x, y, i, j), grad)
    dx = _row_sums(score, x, y, i, j, c) if need_x else None
    dy = _row_sums(score, y, x, j, i, c) if need_y else None
    return dx, dy


def _mode(score: Score) -> int:
    if score.kind == "dot":
        return 0
    if score.kind == "l2" or score.p == 2:
        return 1
    return 2 if score.p == 1 else 3


def _along_rows(x: Tensor) -> Tensor:
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else x.contiguous()


def _base(score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    base = layout.empty((len(i),), dtype=torch.float32, device=x.device)
    if len(i) == 0:
        return base
    x, y = _along_rows(x), _along_rows(y)
    with on(x):
        listed_base_kernel[(triton.cdiv(len(i), BLOCK_PAIRS),)](
            x, y, i.contiguous(), j.contiguous(), base, x.stride(0), y.stride(0), len(i), x.shape[1],
            float(score.p), MODE=_mode(score), BLOCK_PAIRS=BLOCK_PAIRS, BLOCK_K=BLOCK_K, num_warps=NUM_WARPS,
        )  # fmt: skip
    return base


def _coefficients(score: Score, base: Tensor, grad: Tensor) -> Tensor:
    """What multiplies the difference (or the partner, for inner products) of each pair."""
    c = grad.to(torch.float32)
    if score.power != 1:
        c = torch.where(base != 0, c * score.power * base ** (score.power - 1), 0.0)
    mode = _mode(score)
    if mode == 1:
        # A zero distance has a zero gradient.
        return torch.where(base != 0, c / base, 0.0)
    if mode == 3:
        return torch.where(base != 0, c * base ** (1 - score.p), 0.0)
    return c


def _row_sums(score: Score, own: Tensor, other: Tensor, row: Tensor, partner: Tensor, c: Tensor) -> Tensor:
    """The gradient by the rows of ``own``."""
    n, d = own.shape
    out = layout.empty((n, d), dtype=torch.float32, device=own.device)
    if out.numel() == 0:
        return out
    ordered, order = torch.sort(row, stable=True)
    begin = torch.searchsorted(ordered, torch.arange(n + 1, device=row.device))
    own, other = _along_rows(own), _along_rows(other)
    block_out = min(BLOCK_OUT, max(16, triton.next_power_of_2(d)))
    with on(own):
        listed_grad_kernel[(n, triton.cdiv(d, block_out))](
            own, other, partner[order], c[order], begin, out, own.stride(0), other.stride(0), out.stride(0), d,
            float(score.p), MODE=_mode(score), BLOCK_PAIRS=BLOCK_PAIRS, BLOCK_OUT=block_out, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


# ---- ahead-of-time compilation ----


def _kernel(label: str, fn: Any, rows: str, mode: int, quick: bool) -> Kernel:
    types = {"base_ptr": "*fp32", "c_ptr": "*fp32", "out_ptr": "*fp32", "p": "fp32"}
    types |= dict.fromkeys(("x_ptr", "y_ptr", "own_ptr", "other_ptr"), f"*{rows}")
    types |= dict.fromkeys(("i_ptr", "j_ptr", "partner_ptr", "begin_ptr"), "*i64")
    blocks = {"BLOCK_PAIRS": BLOCK_PAIRS, "BLOCK_K": BLOCK_K, "BLOCK_OUT": BLOCK_OUT, "MODE": mode}
    constexprs = {a: blocks[a] for a in fn.arg_names if a in blocks}
    signature = {a: "constexpr" if a in constexprs else types.get(a, "i32") for a in fn.arg_names}
    aligned = tuple(a for a in fn.arg_names if a.endswith("_ptr") or a.startswith("stride_") or a == "D")
    return Kernel(label, fn, signature, constexprs, NUM_WARPS, 2, aligned, quick=quick)


KERNELS = [
    _kernel(f"listed_{what}_{rows}_{('dot', 'l2', 'l1', 'lp')[mode]}", fn, rows, mode, (rows, mode) == ("fp32", 1))
    for rows, mode in [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("fp16", 0)]
    for what, fn in [("base", listed_base_kernel), ("grad", listed_grad_kernel)]
]
