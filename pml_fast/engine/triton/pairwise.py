"""The pairwise kernels: each program owns a block of rows and streams over the columns, so nothing is added atomically.

``pair_state_kernel`` leaves each row's loss and levels, ``pair_grad_kernel`` recomputes the scores and applies
``c = dL/ds``, ``pair_pulls_kernel`` writes what the gradient multiplies the columns by, where D is too wide for a block,
and ``extreme_kernel`` keeps each row's largest or smallest score.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.epilogues import outside
from pml_fast.engine.triton.tiles import comparable, dot, load_rows, load_rule, products, round_tf32, ruled, scores


@triton.jit
def score_tile(
    x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, valid, stride_xm, stride_ym, N, M, D,
    KIND: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # x is the row block itself where RESIDENT (D fits one chunk)
    if RESIDENT:
        y = load_rows(y_ptr, offs_n, stride_ym, M, tl.arange(0, BLOCK_K), D)
        dots = dot(x, tl.trans(y), tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32), PRECISION)
    else:
        dots = products(x_ptr, y_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    return scores(
        dots, valid, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
        KIND, BLOCK_M, BLOCK_N,
    )  # fmt: skip


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
    stride_xm, stride_ym, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
    SHAPE: tl.constexpr, LOGIT: tl.constexpr, FINISH: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # rows [T, 2, N], saved [3, N] (not for a hinge), seen [2, N]: whether the row has a positive, a negative
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < N
    x = tl.zeros([BLOCK_M, BLOCK_K], dtype=x_ptr.dtype.element_ty)
    if RESIDENT:
        x = load_rows(x_ptr, offs_m, stride_xm, N, tl.arange(0, BLOCK_K), D)
    # Clamped, not masked: the padding then repeats a label of the block.
    x_label = tl.load(x_label_ptr + tl.minimum(offs_m, N - 1))
    if HAS_RULE:
        pos_low, pos_high, neg_low, neg_high = load_rule(rule_ptr, offs_m, N)

    top_pos = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    top_neg = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    total_neg = tl.zeros([BLOCK_M], dtype=tl.float32)
    sum_pos = tl.zeros([BLOCK_M], dtype=tl.float32)
    inner_pos = tl.zeros([BLOCK_M], dtype=tl.int32)
    inner_neg = tl.zeros([BLOCK_M], dtype=tl.int32)
    count_pos = tl.zeros([BLOCK_M], dtype=tl.int32)
    count_neg = tl.zeros([BLOCK_M], dtype=tl.int32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        kept = comparable(offs_m, offs_n, N, M, ITSELF)
        s = score_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, kept, stride_xm, stride_ym, N, M, D,
            KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        y_label = tl.load(y_label_ptr + tl.minimum(offs_n, M - 1))
        same = x_label[:, None] == y_label[None, :]
        if HAS_RULE:
            kept = ruled(s, same, kept, pos_low[:, None], pos_high[:, None], neg_low[:, None], neg_high[:, None])
        pos, neg = kept & same, kept & (same == 0)
        count_pos += tl.sum(pos.to(tl.int32), axis=1)
        count_neg += tl.sum(neg.to(tl.int32), axis=1)
        z = LOGIT(s, same, sign, p0, p1, p2)
        if SHAPE == 1:
            in_pos = pos & (outside(z, low_pos, high_pos) == 0)
            in_neg = neg & (outside(z, low_neg, high_neg) == 0)
            total_pos += tl.sum(tl.where(in_pos, z, 0.0), axis=1)
            total_neg += tl.sum(tl.where(in_neg, z, 0.0), axis=1)
            inner_pos += tl.sum(in_pos.to(tl.int32), axis=1)
            inner_neg += tl.sum(in_neg.to(tl.int32), axis=1)
        else:
            # One exponential a pair serves both sides: a pair is a positive or a negative, never both.
            top_pos, shift_pos, total_pos = grown(top_pos, total_pos, z, kept, same)
            top_neg, shift_neg, total_neg = grown(top_neg, total_neg, z, kept, same == 0)
            e = tl.exp(z - tl.where(same, shift_pos[:, None], shift_neg[:, None]))
            total_pos += tl.sum(tl.where(pos, e, 0.0), axis=1)
            total_neg += tl.sum(tl.where(neg, e, 0.0), axis=1)
            if SHAPE == 0:
                sum_pos += tl.sum(tl.where(pos, z, 0.0), axis=1)

    value, number = total_pos, inner_pos.to(tl.float32)
    if SHAPE == 1:
        size = tl.cast(N, tl.int64)
        tl.store(rows_ptr + 2 * size + offs_m, total_neg, mask=inside)
        tl.store(rows_ptr + 3 * size + offs_m, inner_neg.to(tl.float32), mask=inside)
    else:
        log_pos, log_neg = log_of(top_pos, total_pos), log_of(top_neg, total_neg)
        if SHAPE == 0:
            value, level_pos, level_neg, extra = FINISH(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2)
            number = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
        else:
            value, number, share = positives_against(
                x, log_neg, x_label, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, y_label_ptr, rule_ptr, offs_m,
                stride_xm, stride_ym, N, M, D, sign, low_pos, high_pos, p0, p1, p2,
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
    stride_xm, stride_ym, N, M, D, sign, low, high, p0, p1, p2,
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
    if HAS_RULE:
        pos_low, pos_high, neg_low, neg_high = load_rule(rule_ptr, offs_m, N)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        y_label = tl.load(y_label_ptr + tl.minimum(offs_n, M - 1))
        if (tl.min(y_label, axis=0) <= label_high) & (tl.max(y_label, axis=0) >= label_low):
            kept = comparable(offs_m, offs_n, N, M, ITSELF)
            s = score_tile(
                x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, kept, stride_xm, stride_ym, N, M, D,
                KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            same = x_label[:, None] == y_label[None, :]
            if HAS_RULE:
                kept = ruled(s, same, kept, pos_low[:, None], pos_high[:, None], neg_low[:, None], neg_high[:, None])
            loss, slope = PAIR(LOGIT(s, same, sign, p0, p1, p2), log_neg[:, None])
            kept = kept & same & (outside(loss, low, high) == 0)
            value += tl.sum(tl.where(kept, loss, 0.0), axis=1)
            share += tl.sum(tl.where(kept, slope, 0.0), axis=1)
            number += tl.sum(kept.to(tl.int32), axis=1)
    return value, number.to(tl.float32), share


@triton.jit
def load_anchor(
    rule_ptr, saved_ptr, w_ptr, offs, size,
    TERMS: tl.constexpr, SAVED: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # what an anchor brings to its derivative, [B] each: weights of its two sides, levels, intervals
    mask = offs < size
    w_pos = tl.load(w_ptr + offs, mask=mask, other=0.0)
    w_neg = w_pos
    if TERMS == 2:
        w_neg = tl.load(w_ptr + size + offs, mask=mask, other=0.0)
    level_pos, level_neg, extra = w_pos, w_pos, w_pos
    if SAVED:
        level_pos = tl.load(saved_ptr + offs, mask=mask, other=0.0)
        level_neg = tl.load(saved_ptr + size + offs, mask=mask, other=0.0)
        extra = tl.load(saved_ptr + 2 * tl.cast(size, tl.int64) + offs, mask=mask, other=0.0)
    pos_low, pos_high, neg_low, neg_high = w_pos, w_pos, w_pos, w_pos
    if HAS_RULE:
        pos_low, pos_high, neg_low, neg_high = load_rule(rule_ptr, offs, size)
    return w_pos, w_neg, level_pos, level_neg, extra, pos_low, pos_high, neg_low, neg_high


@triton.jit
def coefficients(
    s, z, same, valid, w_pos, w_neg, level_pos, level_neg, extra, pos_low, pos_high, neg_low, neg_high,
    sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
    DERIVATIVE: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # w * dL/ds of every pair [BLOCK_M, BLOCK_N]; the anchors' vectors come shaped [:, None] or [None, :]
    if HAS_RULE:
        valid = ruled(s, same, valid, pos_low, pos_high, neg_low, neg_high)
    w = tl.where(same, w_pos, w_neg)
    level = tl.where(same, level_pos, level_neg)
    c = DERIVATIVE(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2)
    # A row that weighs nothing must not turn an infinite value into NaN.
    return tl.where(valid & (w != 0), w * c, 0.0)


@triton.jit
def pulls(
    s, same, valid, rows, rule_ptr, saved_ptr, w_ptr, offs_n, M,
    sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
    TERMS: tl.constexpr, SAVED: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr, KIND: tl.constexpr,
    ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # H [BLOCK_M, BLOCK_N]: the gradient by row i is sum_j H_ij y_j, less H_ij x_i for a distance. `rows` is what load_anchor
    # gives for the rows. Anchors are the rows, the columns, or both (a batch against itself: H = W + W^T).
    z = LOGIT(s, same, sign, p0, p1, p2)
    h = tl.zeros(s.shape, dtype=tl.float32)
    if ROW_ANCHORS:
        h += coefficients(
            s, z, same, valid, rows[0][:, None], rows[1][:, None], rows[2][:, None], rows[3][:, None], rows[4][:, None],
            rows[5][:, None], rows[6][:, None], rows[7][:, None], rows[8][:, None],
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, DERIVATIVE, HAS_RULE,
        )  # fmt: skip
    if COL_ANCHORS:
        cols = load_anchor(rule_ptr, saved_ptr, w_ptr, offs_n, M, TERMS, SAVED, HAS_RULE)
        h += coefficients(
            s, z, same, valid, cols[0][None, :], cols[1][None, :], cols[2][None, :], cols[3][None, :], cols[4][None, :],
            cols[5][None, :], cols[6][None, :], cols[7][None, :], cols[8][None, :],
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, DERIVATIVE, HAS_RULE,
        )  # fmt: skip
    if KIND == 1:
        h = tl.where(s > 0, h / s, h * 0.0)
    elif KIND == 2:
        h = 2.0 * h
    return h


@triton.jit
def no_anchor(offs):
    # what load_anchor gives, for rows that are not anchors
    none = offs.to(tl.float32) * 0.0
    return none, none, none, none, none, none, none, none, none


@triton.jit
def pair_grad_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, saved_ptr, w_ptr, out_ptr,
    stride_xm, stride_ym, stride_om, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
    TERMS: tl.constexpr, SAVED: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr,
    KIND: tl.constexpr, ITSELF: tl.constexpr, ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # out [N, D], where one block holds D: the tile that gave the scores is the one the gradient multiplies.
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_K)
    x = load_rows(x_ptr, offs_m, stride_xm, N, offs_d, D)
    x_label = tl.load(x_label_ptr + tl.minimum(offs_m, N - 1))
    if ROW_ANCHORS:
        rows = load_anchor(rule_ptr, saved_ptr, w_ptr, offs_m, N, TERMS, SAVED, HAS_RULE)
    else:
        rows = no_anchor(offs_m)
    total = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.float32)
    h_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        valid = comparable(offs_m, offs_n, N, M, ITSELF)
        s = score_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, valid, stride_xm, stride_ym, N, M, D,
            KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        y_label = tl.load(y_label_ptr + tl.minimum(offs_n, M - 1))
        h = pulls(
            s, x_label[:, None] == y_label[None, :], valid, rows, rule_ptr, saved_ptr, w_ptr, offs_n, M,
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
            TERMS, SAVED, LOGIT, DERIVATIVE, KIND, ROW_ANCHORS, COL_ANCHORS, HAS_RULE,
        )  # fmt: skip
        y = load_rows(y_ptr, offs_n, stride_ym, M, offs_d, D)  # [BLOCK_N, BLOCK_K]
        if y.dtype == tl.bfloat16:
            h_dot = h.to(tl.bfloat16)
        elif y.dtype == tl.float16:
            # Coefficients such as 1/N^2 leave float16's range: tf32 holds float16 values exactly.
            h_dot = round_tf32(h)
            y = y.to(tl.float32)
        elif PRECISION == "tf32":
            h_dot = round_tf32(h)
        else:
            h_dot = h
        if KIND != 0:
            # The sum of what the tensor cores see: then a column equal to the row cancels.
            h_sum += tl.sum(h_dot.to(tl.float32), axis=1)
        total = dot(h_dot, y, total, PRECISION)
    if KIND != 0:
        total = h_sum[:, None] * x.to(tl.float32) - total
    where = offs_m[:, None].to(tl.int64) * stride_om + offs_d[None, :]
    tl.store(out_ptr + where, total, mask=(offs_m < N)[:, None] & (offs_d < D)[None, :])


@triton.jit
def pair_pulls_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, saved_ptr, w_ptr, h_ptr,
    first, last, stride_xm, stride_ym, stride_hm, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
    TERMS: tl.constexpr, SAVED: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr,
    KIND: tl.constexpr, ITSELF: tl.constexpr, ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # h [last - first, M]: these rows of H, where D is too wide for one block, for a product to follow. Blocks of rows
    # come first in the order of programs, so that those which run together share a tile of columns.
    offs_m = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = comparable(offs_m, offs_n, N, M, ITSELF)
    x = tl.zeros([BLOCK_M, BLOCK_K], dtype=x_ptr.dtype.element_ty)
    s = score_tile(
        x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, valid, stride_xm, stride_ym, N, M, D,
        KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip  # [BLOCK_M, BLOCK_N]
    x_label = tl.load(x_label_ptr + tl.minimum(offs_m, N - 1))
    y_label = tl.load(y_label_ptr + tl.minimum(offs_n, M - 1))
    if ROW_ANCHORS:
        rows = load_anchor(rule_ptr, saved_ptr, w_ptr, offs_m, N, TERMS, SAVED, HAS_RULE)
    else:
        rows = no_anchor(offs_m)
    h = pulls(
        s, x_label[:, None] == y_label[None, :], valid, rows, rule_ptr, saved_ptr, w_ptr, offs_n, M,
        sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2,
        TERMS, SAVED, LOGIT, DERIVATIVE, KIND, ROW_ANCHORS, COL_ANCHORS, HAS_RULE,
    )  # fmt: skip
    if PRECISION == "tf32" and h_ptr.dtype.element_ty == tl.float32:
        h = round_tf32(h)
    where = (offs_m - first)[:, None].to(tl.int64) * stride_hm + offs_n[None, :]
    inside = (offs_m < last)[:, None] & (offs_n < M)[None, :]
    tl.store(h_ptr + where, h.to(h_ptr.dtype.element_ty), mask=inside)


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
    x = tl.zeros([BLOCK_M, BLOCK_K], dtype=x_ptr.dtype.element_ty)
    if RESIDENT:
        x = load_rows(x_ptr, offs_m, stride_xm, N, tl.arange(0, BLOCK_K), D)
    x_label = tl.load(x_label_ptr + tl.minimum(offs_m, N - 1))
    best = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    index = tl.full([BLOCK_M], -1, dtype=tl.int64)
    broken = tl.zeros([BLOCK_M], dtype=tl.int32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        kept = comparable(offs_m, offs_n, N, M, ITSELF)
        s = score_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, kept, stride_xm, stride_ym, N, M, D,
            KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y_label = tl.load(y_label_ptr + tl.minimum(offs_n, M - 1))
        same = x_label[:, None] == y_label[None, :]
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
