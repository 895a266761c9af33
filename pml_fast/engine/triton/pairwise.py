"""The pairwise kernels: each program owns a block of rows and streams over the columns, so nothing is added atomically.

``pair_state_kernel`` leaves each row's loss and levels, and ``extreme_kernel`` keeps each row's largest or smallest score.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.epilogue_maths import outside
from pml_fast.engine.triton.tiles import compared_tile, load_block, load_labels, load_rule, pairs_of


@triton.jit
def grown(top, total, z, kept, side):
    # the new running maximum of one side, the shift it means, and the old sum under that shift
    here = tl.max(tl.where(kept & side, z, float("-inf")), axis=1)
    grown_top = tl.maximum(top, here)
    shift = tl.where(tl.abs(grown_top) == float("inf"), 0.0, grown_top)
    return grown_top, shift, total * tl.exp(top - shift)


@triton.jit
def log_of(top, total):
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    return tl.where(total == 0, float("-inf"), shift + tl.log(total))


@triton.jit
def pair_state_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, rows_ptr, saved_ptr, seen_ptr,
    stride_xm, stride_ym, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    SHAPE: tl.constexpr, LOGIT: tl.constexpr, FINISH: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # rows [T, 2, N], saved [3 or 4, N] (not for a hinge), seen [2, N]: whether the row has a positive, a negative
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < N
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    x_label = load_labels(x_label_ptr, offs_m, N)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)

    top_pos = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    top_neg = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    total_neg = tl.zeros([BLOCK_M], dtype=tl.float32)
    sum_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    sum_neg = tl.zeros([BLOCK_M], dtype=tl.float32)
    inner_pos = tl.zeros([BLOCK_M], dtype=tl.int32)
    inner_neg = tl.zeros([BLOCK_M], dtype=tl.int32)
    count_pos = tl.zeros([BLOCK_M], dtype=tl.int32)
    count_neg = tl.zeros([BLOCK_M], dtype=tl.int32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        s, kept = compared_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        y_label = load_labels(y_label_ptr, offs_n, M)
        same, kept = pairs_of(s, kept, x_label, y_label, interval, HAS_RULE)
        pos, neg = kept & same, kept & (same == 0)
        count_pos += tl.sum(pos.to(tl.int32), axis=1)
        count_neg += tl.sum(neg.to(tl.int32), axis=1)
        z = LOGIT(s, same, sign, p0, p1, p2, p3, p4)
        if SHAPE == 3:
            total_pos += tl.sum(tl.where(kept, z, 0.0), axis=1)
        elif SHAPE == 1:
            in_pos = pos & (outside(z, low_pos, high_pos) == 0)
            in_neg = neg & (outside(z, low_neg, high_neg) == 0)
            total_pos += tl.sum(tl.where(in_pos, z, 0.0), axis=1)
            total_neg += tl.sum(tl.where(in_neg, z, 0.0), axis=1)
            inner_pos += tl.sum(in_pos.to(tl.int32), axis=1)
            inner_neg += tl.sum(in_neg.to(tl.int32), axis=1)
        else:
            # One exponential a pair serves both sides: a pair is a positive or a negative, never both.
            old_pos, old_neg = top_pos, top_neg
            top_pos, shift_pos, total_pos = grown(top_pos, total_pos, z, kept, same)
            top_neg, shift_neg, total_neg = grown(top_neg, total_neg, z, kept, same == 0)
            e = tl.exp(z - tl.where(same, shift_pos[:, None], shift_neg[:, None]))
            total_pos += tl.sum(tl.where(pos, e, 0.0), axis=1)
            total_neg += tl.sum(tl.where(neg, e, 0.0), axis=1)
            if SHAPE == 0:
                sum_pos += tl.sum(tl.where(pos, z, 0.0), axis=1)
            elif SHAPE == 4:
                sum_pos = sum_pos * tl.exp(old_pos - shift_pos) + tl.sum(tl.where(pos, e * s, 0.0), axis=1)
                sum_neg = sum_neg * tl.exp(old_neg - shift_neg) + tl.sum(tl.where(neg, e * s, 0.0), axis=1)

    value, number = total_pos, inner_pos.to(tl.float32)
    if SHAPE == 3:
        number = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    elif SHAPE == 1:
        size = tl.cast(N, tl.int64)
        tl.store(rows_ptr + 2 * size + offs_m, total_neg, mask=inside)
        tl.store(rows_ptr + 3 * size + offs_m, inner_neg.to(tl.float32), mask=inside)
    else:
        log_pos, log_neg = log_of(top_pos, total_pos), log_of(top_neg, total_neg)
        if SHAPE == 0:
            value, number, level_pos, level_neg, extra = FINISH(
                log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4
            )
        elif SHAPE == 4:
            mean_pos = sum_pos / tl.where(total_pos == 0, 1.0, total_pos)
            mean_neg = sum_neg / tl.where(total_neg == 0, 1.0, total_neg)
            value, number, level_pos, level_neg, extra, extra_neg = FINISH(
                log_pos, log_neg, mean_pos, mean_neg, count_pos + count_neg + ITSELF, p0, p1, p2, p3, p4
            )
            tl.store(saved_ptr + 3 * tl.cast(N, tl.int64) + offs_m, extra_neg, mask=inside)
        else:
            value, number, share = positives_against(
                x, log_neg, x_label, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, y_label_ptr, rule_ptr, offs_m,
                stride_xm, stride_ym, N, M, D, sign, low_pos, high_pos, p0, p1, p2, p3, p4,
                LOGIT, FINISH, KIND, ITSELF, HAS_RULE, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            level_pos, level_neg, extra = log_neg, log_neg - tl.log(share), share * 0.0
        tl.store(saved_ptr + offs_m, level_pos, mask=inside)
        tl.store(saved_ptr + N + offs_m, level_neg, mask=inside)
        tl.store(saved_ptr + 2 * tl.cast(N, tl.int64) + offs_m, extra, mask=inside)
    tl.store(rows_ptr + offs_m, value, mask=inside)
    tl.store(rows_ptr + N + offs_m, number, mask=inside)
    tl.store(seen_ptr + offs_m, (count_pos > 0).to(tl.int8), mask=inside)
    tl.store(seen_ptr + N + offs_m, (count_neg > 0).to(tl.int8), mask=inside)


@triton.jit
def positives_against(
    x, log_neg, x_label, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, y_label_ptr, rule_ptr, offs_m,
    stride_xm, stride_ym, N, M, D, sign, low, high, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, PAIR: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr,
    PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Second sweep, over the positives. A tile whose labels lie beside the rows' is skipped unread: the launcher
    # sorts large problems by class, which leaves a few tiles a row block; a small one is swept whole, because the
    # launches of a sort would cost more.
    value = tl.zeros([BLOCK_M], dtype=tl.float32)
    number = tl.zeros([BLOCK_M], dtype=tl.int32)
    share = tl.zeros([BLOCK_M], dtype=tl.float32)
    label_low, label_high = tl.min(x_label, axis=0), tl.max(x_label, axis=0)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        y_label = load_labels(y_label_ptr, offs_n, M)
        if (tl.min(y_label, axis=0) <= label_high) & (tl.max(y_label, axis=0) >= label_low):
            s, kept = compared_tile(
                x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
                KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip  # [BLOCK_M, BLOCK_N]
            same, kept = pairs_of(s, kept, x_label, y_label, interval, HAS_RULE)
            loss, slope = PAIR(LOGIT(s, same, sign, p0, p1, p2, p3, p4), log_neg[:, None])
            kept = kept & same & (outside(loss, low, high) == 0)
            value += tl.sum(tl.where(kept, loss, 0.0), axis=1)
            share += tl.sum(tl.where(kept, slope, 0.0), axis=1)
            number += tl.sum(kept.to(tl.int32), axis=1)
    return value, number.to(tl.float32), share


@triton.jit
def extreme_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, low_ptr, high_ptr, value_ptr, index_ptr,
    stride_xm, stride_ym, N, M, D,
    POSITIVE: tl.constexpr, LARGEST: tl.constexpr, HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr,
    KIND: tl.constexpr, ITSELF: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # value [N], index [N]; the lowest index wins ties, the first NaN wins over all
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < N
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    x_label = load_labels(x_label_ptr, offs_m, N)
    best = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    index = tl.full([BLOCK_M], -1, dtype=tl.int64)
    broken = tl.zeros([BLOCK_M], dtype=tl.int32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        s, kept = compared_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        y_label = load_labels(y_label_ptr, offs_n, M)
        same, kept = pairs_of(s, kept, x_label, y_label, None, False)
        kept = kept & (same if POSITIVE else (same == 0))
        if HAS_LOW:
            kept = kept & (s >= tl.load(low_ptr + offs_m, mask=inside, other=0.0)[:, None])
        if HAS_HIGH:
            kept = kept & (s <= tl.load(high_ptr + offs_m, mask=inside, other=0.0)[:, None])
        key = s if LARGEST else -s
        is_nan = kept & (s != s)
        key = tl.where(kept, tl.where(is_nan, float("inf"), key), float("-inf"))
        top, at = tl.max(key, axis=1, return_indices=True, return_indices_tie_break_left=True)
        some = tl.max(kept.to(tl.int32), axis=1) > 0
        better = (top > best) | (some & (index < 0))
        index = tl.where(better, start + at.to(tl.int64), index)
        best = tl.where(better, top, best)
        broken = tl.maximum(broken, tl.max(is_nan.to(tl.int32), axis=1))
    value = tl.where(broken > 0, float("nan"), best if LARGEST else -best)
    tl.store(value_ptr + offs_m, value, mask=inside)
    tl.store(index_ptr + offs_m, index, mask=inside)
