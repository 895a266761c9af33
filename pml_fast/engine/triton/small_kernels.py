"""The kernels of a small batch against itself, beside ``pair_state_kernel``.

A launch costs about what the arithmetic of a few hundred rows does. So norms, the reduction of the rows' losses and what
normalising takes out of a gradient are no launches of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.score import NORM_EPS
from pml_fast.engine.triton.pairwise_grad import factors, load_anchor, pulls
from pml_fast.engine.triton.tiles import compared_tile, dot, load_labels, load_rows, round_tf32

EPS = tl.constexpr(NORM_EPS)
# Rows that a program folds at a time.
FOLDED = tl.constexpr(256)


@triton.jit
def small_rows_kernel(
    x_ptr, unit_ptr, square_ptr, size_ptr, stride_xm, N, D,
    NORMALIZE: tl.constexpr, ROUND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # unit [N, D]: the rows as products read them, square [N]: their squared norms, size [N]: what they were divided by
    offs = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs < N
    size = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    if NORMALIZE:
        total = tl.zeros([BLOCK_M], dtype=tl.float32)
        for k in range(0, D, BLOCK_K):
            x = load_rows(x_ptr, offs, stride_xm, N, k + tl.arange(0, BLOCK_K), D).to(tl.float32)
            total += tl.sum(x * x, axis=1)
        size = tl.sqrt(total)
        # Not tl.maximum: it would lose a NaN.
        size = tl.where(size < EPS, EPS, size)
    square = tl.zeros([BLOCK_M], dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        unit = load_rows(x_ptr, offs, stride_xm, N, offs_k, D).to(tl.float32) / size[:, None]
        if ROUND:
            unit = round_tf32(unit)
        unit = unit.to(unit_ptr.dtype.element_ty)
        seen = unit.to(tl.float32)
        square += tl.sum(seen * seen, axis=1)
        where = offs[:, None].to(tl.int64) * D + offs_k[None, :]
        tl.store(unit_ptr + where, unit, mask=inside[:, None] & (offs_k < D)[None, :])
    tl.store(square_ptr + offs, square, mask=inside)
    tl.store(size_ptr + offs, size, mask=inside)


@triton.jit
def beyond(value, low, high):
    # Of a row's loss, an infinite limit is none.
    return ((value <= low) & (low != float("-inf"))) | ((value >= high) & (high != float("inf")))


@triton.jit
def folded(rows_ptr, N, low, high, ELEMENT: tl.constexpr, SUMMED: tl.constexpr):
    # a term's loss and what each row's value counts in it, from the values [N] and the numbers [N] behind them
    total = tl.zeros([FOLDED], dtype=tl.float32)
    number = tl.zeros([FOLDED], dtype=tl.float32)
    for start in range(0, N, FOLDED):
        offs = start + tl.arange(0, FOLDED)
        value = tl.load(rows_ptr + offs, mask=offs < N, other=0.0)
        many = tl.load(rows_ptr + N + offs, mask=offs < N, other=0.0)
        if ELEMENT:
            many = tl.where(beyond(value, low, high), 0.0, many)
            value = tl.where(many > 0, value, 0.0)
        total += value
        number += many
    scale = tl.full((), 1.0, dtype=tl.float32)
    if not SUMMED:
        count = tl.sum(number, axis=0)
        scale = tl.where(count > 0, 1.0 / tl.where(count > 0, count, 1.0), 0.0)
    return tl.sum(total, axis=0) * scale, scale


@triton.jit
def both_seen(seen_ptr, N):
    # whether any row has a positive, and any a negative
    pos = tl.zeros([FOLDED], dtype=tl.int32)
    neg = tl.zeros([FOLDED], dtype=tl.int32)
    for start in range(0, N, FOLDED):
        offs = start + tl.arange(0, FOLDED)
        pos += tl.load(seen_ptr + offs, mask=offs < N, other=0).to(tl.int32)
        neg += tl.load(seen_ptr + N + offs, mask=offs < N, other=0).to(tl.int32)
    return (tl.sum(pos, axis=0) > 0) & (tl.sum(neg, axis=0) > 0)


@triton.jit
def anchors(
    rows_ptr, rule_ptr, saved_ptr, offs, N, w_pos, w_neg, low, high,
    SAVED: tl.constexpr, ELEMENT: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # load_anchor, for the weights that the fold of a term gives its rows
    pos = tl.where(offs < N, w_pos, 0.0)
    neg = tl.where(offs < N, w_neg, 0.0)
    if ELEMENT:
        value = tl.load(rows_ptr + offs, mask=offs < N, other=0.0)
        many = tl.load(rows_ptr + N + offs, mask=offs < N, other=0.0)
        pos = tl.where((many > 0) & (beyond(value, low, high) == 0), pos, 0.0)
        neg = pos
    return load_anchor(pos, neg, rule_ptr, saved_ptr, offs, N, SAVED, 0, HAS_RULE)


@triton.jit
def small_grad_kernel(
    x_ptr, unit_ptr, square_ptr, size_ptr, label_ptr, rule_ptr, saved_ptr, rows_ptr, seen_ptr, loss_ptr, terms_ptr, out_ptr,
    stride_xm, N, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    TERMS: tl.constexpr, SAVED: tl.constexpr, ELEMENT: tl.constexpr, SUM_POS: tl.constexpr, SUM_NEG: tl.constexpr,
    GATED: tl.constexpr, NEED: tl.constexpr, NORMALIZE: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr,
    KIND: tl.constexpr, HAS_RULE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    # loss [] and terms [T]; out [N, D] by the embeddings x, where NEED. A program has some rows of it and a slice of D; all
    # fold the losses for themselves, which are a few kilobytes in the cache.
    loss_pos, w_pos = folded(rows_ptr, N, low_pos, high_pos, ELEMENT, SUM_POS)
    loss_neg, w_neg = tl.full((), 0.0, dtype=tl.float32), w_pos
    if TERMS == 2:
        loss_neg, w_neg = folded(rows_ptr + 2 * N, N, low_neg, high_neg, ELEMENT, SUM_NEG)
    if GATED:
        gate = both_seen(seen_ptr, N)
        loss_pos, w_pos = tl.where(gate, loss_pos, 0.0), tl.where(gate, w_pos, 0.0)
        loss_neg, w_neg = tl.where(gate, loss_neg, 0.0), tl.where(gate, w_neg, 0.0)
    if tl.program_id(0) + tl.program_id(1) == 0:
        tl.store(loss_ptr, loss_pos + loss_neg)
        tl.store(terms_ptr, loss_pos)
        if TERMS == 2:
            tl.store(terms_ptr + 1, loss_neg)
    if NEED:
        offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_d = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        label_m = load_labels(label_ptr, offs_m, N)
        square_m = tl.load(square_ptr + offs_m, mask=offs_m < N, other=0.0)
        rows = anchors(rows_ptr, rule_ptr, saved_ptr, offs_m, N, w_pos, w_neg, low_pos, high_pos, SAVED, ELEMENT, HAS_RULE)
        total = tl.zeros([BLOCK_M, BLOCK_OUT], dtype=tl.float32)
        h_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        along = tl.zeros([BLOCK_M], dtype=tl.float32)
        for start in range(0, N, BLOCK_N):
            offs_n = start + tl.arange(0, BLOCK_N)
            s, valid = compared_tile(
                None, unit_ptr, unit_ptr, square_ptr, square_ptr, offs_m, offs_n, D, D, N, N, D,
                KIND, True, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip  # [BLOCK_M, BLOCK_N]
            label_n = load_labels(label_ptr, offs_n, N)
            cols = anchors(rows_ptr, rule_ptr, saved_ptr, offs_n, N, w_pos, w_neg, low_pos, high_pos, SAVED, ELEMENT, HAS_RULE)
            h = pulls(
                s, label_m[:, None] == label_n[None, :], valid, rows, cols,
                sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
                LOGIT, DERIVATIVE, None, KIND, True, True, HAS_RULE,
            )  # fmt: skip
            h, y = factors(h, load_rows(unit_ptr, offs_n, D, N, offs_d, D), PRECISION)
            seen = h.to(tl.float32)
            if KIND != 0:
                h_sum += tl.sum(seen, axis=1)
            if NORMALIZE:
                # The component of the gradient along the row itself needs no more than the scores.
                if KIND == 0:
                    own = s
                else:
                    square_n = tl.load(square_ptr + offs_n, mask=offs_n < N, other=0.0)
                    own = 0.5 * (square_m[:, None] - square_n[None, :] + (s * s if KIND == 1 else s))
                along += tl.sum(seen * own, axis=1)
            total = dot(h, y, total, PRECISION)
        if KIND != 0:
            total = h_sum[:, None] * load_rows(unit_ptr, offs_m, D, N, offs_d, D).to(tl.float32) - total
        if NORMALIZE:
            size = tl.load(size_ptr + offs_m, mask=offs_m < N, other=1.0)
            unit = load_rows(x_ptr, offs_m, stride_xm, N, offs_d, D).to(tl.float32) / size[:, None]
            # A clamped norm is a constant: its rows have no component to project out.
            along = tl.where(size <= EPS, 0.0, along)
            total = (total - along[:, None] * unit) / size[:, None]
        # Where nothing was compared, or nothing is violated, 0 times a NaN row is no gradient.
        if (loss_pos == 0.0) & (loss_neg == 0.0):
            total = tl.where(tl.abs(total) < float("inf"), total, 0.0)
        where = offs_m[:, None].to(tl.int64) * D + offs_d[None, :]
        mask = (offs_m < N)[:, None] & (offs_d < D)[None, :]
        tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty), mask=mask)
