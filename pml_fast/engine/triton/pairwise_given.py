"""The second sweep of a loss whose pairs need what a first sweep has found of the rows: their *levels*.

Each program owns a block of rows and streams over the columns. ``given_state_kernel`` leaves each row's losses, and their
slopes by the row's own levels; ``given_back_kernel`` the slopes by a row's level of all pairs at either of whose ends it is.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.epilogue_maths import outside
from pml_fast.engine.triton.tiles import compared_tile, load_block, load_labels, load_rule, pairs_of


@triton.jit
def load_levels(levels_ptr, offs, size):
    level_pos = tl.load(levels_ptr + offs, mask=offs < size, other=0.0)
    return level_pos, tl.load(levels_ptr + size + offs, mask=offs < size, other=0.0)


@triton.jit
def load_anchors(levels_ptr, w_ptr, offs, size):
    # level and weight of anchors of positive pairs
    return tl.load(levels_ptr + offs, mask=offs < size, other=0.0), tl.load(w_ptr + offs, mask=offs < size, other=0.0)


@triton.jit
def meets(x_label, y_label, BOTH_SIDES: tl.constexpr):
    # Whether a tile has a pair of the loss: where positives alone have one, labels that lie beside the rows' have none.
    found = tl.full((), True, dtype=tl.int1)
    if not BOTH_SIDES:
        after = tl.max(y_label, axis=0) >= tl.min(x_label, axis=0)
        found = after & (tl.min(y_label, axis=0) <= tl.max(x_label, axis=0))
    return found


@triton.jit
def within(loss, same, low_pos, high_pos, low_neg, high_neg, BOTH_SIDES: tl.constexpr):
    # the pairs that have a loss and whose loss lies inside the limits of its side
    off = outside(loss, low_pos, high_pos)
    if BOTH_SIDES:
        off = tl.where(same, off, outside(loss, low_neg, high_neg))
    else:
        off = off | (same == 0)
    return off == 0


@triton.jit
def given_state_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, levels_ptr, rows_ptr, slopes_ptr,
    stride_xm, stride_ym, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, PAIR: tl.constexpr, BOTH_SIDES: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # rows [T, 2, N], slopes [2, N]
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < N
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    x_label = load_labels(x_label_ptr, offs_m, N)
    level_pos, level_neg = load_levels(levels_ptr, offs_m, N)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    value_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    value_neg = tl.zeros([BLOCK_M], dtype=tl.float32)
    slope_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    slope_neg = tl.zeros([BLOCK_M], dtype=tl.float32)
    number_pos = tl.zeros([BLOCK_M], dtype=tl.int32)
    number_neg = tl.zeros([BLOCK_M], dtype=tl.int32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        y_label = load_labels(y_label_ptr, offs_n, M)
        if meets(x_label, y_label, BOTH_SIDES):
            s, kept = compared_tile(
                x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
                KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip  # [BLOCK_M, BLOCK_N]
            same, kept = pairs_of(s, kept, x_label, y_label, interval, HAS_RULE)
            level = level_pos[:, None]
            if BOTH_SIDES:
                level = tl.where(same, level, level_neg[:, None])
            other = tl.full([1, BLOCK_N], float("-inf"), dtype=tl.float32)
            if ITSELF:
                other = tl.load(levels_ptr + offs_n, mask=offs_n < M, other=0.0)[None, :]
            z = LOGIT(s, same, sign, p0, p1, p2, p3, p4)
            loss, slope, _across = PAIR(z, same, level, other, sign, p0, p1, p2, p3, p4)
            kept = kept & within(loss, same, low_pos, high_pos, low_neg, high_neg, BOTH_SIDES)
            pos = kept & same
            value_pos += tl.sum(tl.where(pos, loss, 0.0), axis=1)
            slope_pos += tl.sum(tl.where(pos, slope, 0.0), axis=1)
            number_pos += tl.sum(pos.to(tl.int32), axis=1)
            if BOTH_SIDES:
                neg = kept & (same == 0)
                value_neg += tl.sum(tl.where(neg, loss, 0.0), axis=1)
                slope_neg += tl.sum(tl.where(neg, slope, 0.0), axis=1)
                number_neg += tl.sum(neg.to(tl.int32), axis=1)
    tl.store(rows_ptr + offs_m, value_pos, mask=inside)
    tl.store(rows_ptr + N + offs_m, number_pos.to(tl.float32), mask=inside)
    if BOTH_SIDES:
        tl.store(rows_ptr + 2 * tl.cast(N, tl.int64) + offs_m, value_neg, mask=inside)
        tl.store(rows_ptr + 3 * tl.cast(N, tl.int64) + offs_m, number_neg.to(tl.float32), mask=inside)
    tl.store(slopes_ptr + offs_m, slope_pos, mask=inside)
    tl.store(slopes_ptr + N + offs_m, slope_neg, mask=inside)


@triton.jit
def given_back_kernel(
    x_ptr, y_ptr, norm_ptr, label_ptr, rule_ptr, levels_ptr, w_ptr, back_ptr,
    stride_xm, stride_ym, N, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, PAIR: tl.constexpr, KIND: tl.constexpr, HAS_RULE: tl.constexpr, PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # back [N]: of the weighed losses of the positive pairs of a batch with itself, the slope by each row's level
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    x_label = load_labels(label_ptr, offs_m, N)
    level_m, w_m = load_anchors(levels_ptr, w_ptr, offs_m, N)
    interval_m = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        y_label = load_labels(label_ptr, offs_n, N)
        if meets(x_label, y_label, False):
            same = x_label[:, None] == y_label[None, :]
            s, kept = compared_tile(
                x, x_ptr, y_ptr, norm_ptr, norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, N, D,
                KIND, True, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip  # [BLOCK_M, BLOCK_N]
            level_n, w_n = load_anchors(levels_ptr, w_ptr, offs_n, N)
            by_row, by_col = w_m[:, None], w_n[None, :]
            if HAS_RULE:
                interval_n = load_rule(rule_ptr, offs_n, N, HAS_RULE)
                by_row = tl.where((s >= interval_m[0][:, None]) & (s <= interval_m[1][:, None]), by_row, 0.0)
                by_col = tl.where((s >= interval_n[0][None, :]) & (s <= interval_n[1][None, :]), by_col, 0.0)
            z = LOGIT(s, same, sign, p0, p1, p2, p3, p4)
            # As an anchor, and as the other end.
            anchor = PAIR(z, same, level_m[:, None], level_n[None, :], sign, p0, p1, p2, p3, p4)
            end = PAIR(z, same, level_n[None, :], level_m[:, None], sign, p0, p1, p2, p3, p4)
            kept = kept & within(anchor[0], same, low_pos, high_pos, low_neg, high_neg, False)
            # What weighs nothing must not turn an infinite slope into NaN.
            slope = tl.where(by_row != 0, by_row * anchor[1], 0.0) + tl.where(by_col != 0, by_col * end[2], 0.0)
            total += tl.sum(tl.where(kept, slope, 0.0), axis=1)
    tl.store(back_ptr + offs_m, total, mask=offs_m < N)
