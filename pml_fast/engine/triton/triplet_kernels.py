"""The triplet kernels; :mod:`pml_fast.engine.triton.triplet` says how they work together.

Rows and columns are sorted by class: the positives of anchor ``i`` are the columns ``start[i]..stop[i]``. Scores are
turned so that larger is farther (``v = -sign * s``): a triplet's violation is ``(a - v) + margin`` for every score.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.tiles import compared_tile, load_rows, round_tf32, score_tile

NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def chosen(a, v, valid, select_margin, SELECT: tl.constexpr):
    # the triplets of turned positives a and negatives v (broadcast) that are there and that a miner's rule leaves
    kept = valid & (a != NEG_INF)
    gap = v - a
    if SELECT == "easy":
        kept = kept & (gap > select_margin)
    elif SELECT != "every":
        kept = kept & (gap <= select_margin)
    if SELECT == "hard":
        kept = kept & (gap <= 0.0)
    if SELECT == "semihard":
        kept = kept & (gap > 0.0)
    return kept


@triton.jit
def loss_of(violation, SMOOTH: tl.constexpr):
    # A NaN is neither below nor above: it stays, and is seen.
    loss = tl.where(violation <= 0.0, 0.0, violation)
    if SMOOTH:
        small = tl.exp(-tl.abs(violation))
        # log(1 + small) loses its digits where small is far below 1.
        series = small * (1.0 - small * (0.5 - small * (1.0 / 3.0 - small * 0.25)))
        loss += tl.where(small < 0.01, series, tl.log(1.0 + small))
    return loss


@triton.jit
def slope_of(violation, SMOOTH: tl.constexpr):
    return tl.sigmoid(violation) if SMOOTH else tl.where(violation <= 0.0, 0.0, 1.0)


@triton.jit
def within(loss, low, high):
    outside = (loss <= low) | (loss >= high)
    return outside == 0


@triton.jit
def in_rule(s, rule_ptr, offs, mask, size):
    # closed interval of each anchor: the low ends, then the high ends
    low = tl.load(rule_ptr + offs, mask=mask, other=0.0)
    high = tl.load(rule_ptr + size + offs, mask=mask, other=0.0)
    return (s >= low) & (s <= high)


@triton.jit
def triplet_positives_kernel(
    x_ptr, y_ptr, start_ptr, stop_ptr, rule_ptr, table_ptr,
    stride_xm, stride_ym, N, D, sign, first, width,
    KIND: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, HITS: tl.constexpr,
):  # fmt: skip
    # table [width, N]: turned scores of the positives first.. of each anchor, -inf where there is none
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < N
    start = tl.load(start_ptr + offs_m, mask=inside, other=0)
    size = tl.load(stop_ptr + offs_m, mask=inside, other=0) - start
    from_k = tl.program_id(1) * HITS
    to_k = tl.minimum(tl.minimum(from_k + HITS, width), tl.max(size, axis=0) - first)
    for k in range(from_k, to_k):
        column = start + first + k
        has = inside & (first + k < size)
        s = tl.zeros([BLOCK_M], dtype=tl.float32)
        for i in range(0, D, BLOCK_K):
            offs_k = i + tl.arange(0, BLOCK_K)
            x = load_rows(x_ptr, offs_m, stride_xm, N, offs_k, D).to(tl.float32)
            mask = has[:, None] & (offs_k[None, :] < D)
            y = tl.load(y_ptr + column[:, None].to(tl.int64) * stride_ym + offs_k[None, :], mask=mask, other=0.0).to(tl.float32)
            if KIND == 0:
                s += tl.sum(x * y, axis=1)
            else:
                s += tl.sum((x - y) * (x - y), axis=1)
        if KIND == 1:
            s = tl.sqrt(s)
        if ITSELF:
            has = has & (column != offs_m)
        if HAS_RULE:
            has = has & in_rule(s, rule_ptr, offs_m, inside, N)
        a = tl.where(has, -sign * s, NEG_INF)
        tl.store(table_ptr + tl.cast(k, tl.int64) * N + offs_m, a, mask=inside)


@triton.jit
def triplet_counts_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, rule_ptr, table_ptr, hits_ptr, value_ptr, count_ptr,
    stride_xm, stride_ym, N, M, D, sign, first, width, margin, select_margin, low, high,
    KIND: tl.constexpr, HAS_RULE: tl.constexpr, SELECT: tl.constexpr, SMOOTH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HITS: tl.constexpr,
):  # fmt: skip
    # adds to value [N] (float64) and count [N] (int64), and writes the hits [width, N] of the positives
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_h = tl.arange(0, HITS)
    inside = offs_m < N
    start = tl.load(start_ptr + offs_m, mask=inside, other=0)
    stop = tl.load(stop_ptr + offs_m, mask=inside, other=0)
    size = stop - start
    most = tl.minimum(width, tl.max(size, axis=0) - first)
    value = tl.load(value_ptr + offs_m, mask=inside, other=0.0)
    count = tl.load(count_ptr + offs_m, mask=inside, other=0)
    for k0 in range(0, most, HITS):
        hits = tl.zeros([BLOCK_M, HITS], dtype=tl.float32)
        for j in range(0, M, BLOCK_N):
            offs_n = j + tl.arange(0, BLOCK_N)
            neg = (offs_n[None, :] < start[:, None]) | (offs_n[None, :] >= stop[:, None])
            neg = neg & inside[:, None] & (offs_n < M)[None, :]
            s = score_tile(
                None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, neg, stride_xm, stride_ym, N, M, D,
                KIND, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            if HAS_RULE:
                neg = neg & in_rule(s, rule_ptr + 2 * N, offs_m[:, None], inside[:, None], N)
            v = -sign * s
            total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
            number = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.int32)
            for k in range(0, tl.minimum(HITS, most - k0)):
                has = inside & (first + k0 + k < size)
                a = tl.load(table_ptr + tl.cast(k0 + k, tl.int64) * N + offs_m, mask=has, other=NEG_INF)
                violation = (a[:, None] - v) + margin
                loss = loss_of(violation, SMOOTH)
                kept = chosen(a[:, None], v, neg, select_margin, SELECT) & within(loss, low, high)
                total += tl.where(kept, loss, 0.0)
                number += kept.to(tl.int32)
                slope = tl.sum(tl.where(kept, slope_of(violation, SMOOTH), 0.0), axis=1)
                hits += tl.where(offs_h[None, :] == k, slope[:, None], 0.0)
            # A tile's sum is small: float32 does; the sum of tiles is not.
            value += tl.sum(total, axis=1).to(tl.float64)
            count += tl.sum(number, axis=1).to(tl.int64)
        offs_k = k0 + offs_h
        places = hits_ptr + offs_k.to(tl.int64)[None, :] * N + offs_m[:, None]
        tl.store(places, hits, mask=inside[:, None] & (offs_k < width)[None, :])
    tl.store(value_ptr + offs_m, value, mask=inside)
    tl.store(count_ptr + offs_m, count, mask=inside)


@triton.jit
def anchor_coefficients(
    s, valid, offs_a, inside, offs_c, start, stop, w, rule_ptr, table_ptr, hits_ptr,
    sign, first, width, A, margin, select_margin, low, high,
    AXIS: tl.constexpr, HAS_RULE: tl.constexpr, SELECT: tl.constexpr, SMOOTH: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    # w * dL/ds of a tile whose A anchors lie along AXIS and their partners along the other. Unless BOUNDED every loss
    # with a slope lies inside the limits.
    ACROSS: tl.constexpr = 1 - AXIS
    anchor = tl.expand_dims(offs_a, ACROSS)
    column = tl.expand_dims(offs_c, AXIS)
    begin = tl.expand_dims(start, ACROSS)
    same = (column >= begin) & (column < tl.expand_dims(stop, ACROSS))
    neg = valid & (same == 0)
    if HAS_RULE:
        neg = neg & in_rule(s, rule_ptr + 2 * A, anchor, tl.expand_dims(inside, ACROSS), A)
    v = -sign * s
    size = stop - start
    c = tl.zeros_like(s)
    for k in range(0, tl.minimum(width, tl.max(size, axis=0) - first)):
        has = inside & (first + k < size)
        a = tl.load(table_ptr + tl.cast(k, tl.int64) * A + offs_a, mask=has, other=NEG_INF)
        a = tl.expand_dims(a, ACROSS)
        violation = (a - v) + margin
        kept = chosen(a, v, neg, select_margin, SELECT)
        if BOUNDED:
            kept = kept & within(loss_of(violation, SMOOTH), low, high)
        c += tl.where(kept, slope_of(violation, SMOOTH), 0.0)
    place = column - begin - first
    listed = valid & same & (place >= 0) & (place < width)
    c -= tl.load(hits_ptr + place.to(tl.int64) * A + anchor, mask=listed, other=0.0)
    weight = tl.expand_dims(w, ACROSS) * sign
    # An anchor that weighs nothing must not turn a NaN coefficient into NaN.
    return tl.where(weight != 0, weight * c, 0.0)


@triton.jit
def pulls(
    s, valid, offs_m, in_m, offs_n, rows, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, hits_ptr,
    sign, first, width, N, M, margin, select_margin, low, high,
    ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    KIND: tl.constexpr, HAS_RULE: tl.constexpr, SELECT: tl.constexpr, SMOOTH: tl.constexpr,
    BOUNDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # what the gradient multiplies the columns of a tile by; rows: start, stop and weight of the rows where they are anchors
    h = tl.zeros_like(s)
    if ROW_ANCHORS:
        row_start, row_stop, row_w = rows
        h += anchor_coefficients(
            s, valid, offs_m, in_m, offs_n, row_start, row_stop, row_w, rule_ptr, table_ptr, hits_ptr,
            sign, first, width, N, margin, select_margin, low, high, 0, HAS_RULE, SELECT, SMOOTH, BOUNDED,
        )  # fmt: skip
    if COL_ANCHORS:
        in_n = offs_n < M
        start, stop, w = load_anchors(start_ptr, stop_ptr, w_ptr, offs_n, in_n)
        h += anchor_coefficients(
            s, valid, offs_n, in_n, offs_m, start, stop, w, rule_ptr, table_ptr, hits_ptr,
            sign, first, width, M, margin, select_margin, low, high, 1, HAS_RULE, SELECT, SMOOTH, BOUNDED,
        )  # fmt: skip
    if KIND == 1:
        # Two equal rows pull nowhere.
        h = tl.where(s == 0.0, 0.0, h / tl.where(s == 0.0, 1.0, s))
    elif KIND == 2:
        h = 2.0 * h
    return round_tf32(h) if PRECISION == "tf32" else h


@triton.jit
def load_anchors(start_ptr, stop_ptr, w_ptr, offs, inside):
    start = tl.load(start_ptr + offs, mask=inside, other=0)
    stop = tl.load(stop_ptr + offs, mask=inside, other=0)
    return start, stop, tl.load(w_ptr + offs, mask=inside, other=0.0)


@triton.jit
def no_anchors(offs):
    return offs, offs, offs


@triton.jit
def triplet_grads_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, hits_ptr, most_ptr, out_ptr,
    stride_xm, stride_ym, stride_om, N, M, D, sign, first, width, margin, select_margin, low, high,
    ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    KIND: tl.constexpr, HAS_RULE: tl.constexpr, SELECT: tl.constexpr, SMOOTH: tl.constexpr,
    BOUNDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    # adds to out [N, D]. Anchors are the rows, the columns (the launch for y), or both (a batch against itself). most: the
    # size of the largest class, past which there is nothing to add.
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_o = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_m = offs_m < N
    if ROW_ANCHORS:
        rows = load_anchors(start_ptr, stop_ptr, w_ptr, offs_m, in_m)
    else:
        rows = no_anchors(offs_m)
    total = tl.zeros([BLOCK_M, BLOCK_OUT], dtype=tl.float32)
    h_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for j in range(0, tl.where(first < tl.load(most_ptr), M, 0), BLOCK_N):
        offs_n = j + tl.arange(0, BLOCK_N)
        s, valid = compared_tile(
            None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, ROW_ANCHORS and COL_ANCHORS, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        h = pulls(
            s, valid, offs_m, in_m, offs_n, rows, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, hits_ptr,
            sign, first, width, N, M, margin, select_margin, low, high,
            ROW_ANCHORS, COL_ANCHORS, KIND, HAS_RULE, SELECT, SMOOTH, BOUNDED, PRECISION,
        )  # fmt: skip
        if KIND != 0:
            # The sum of what the tensor cores see: then a column equal to the row cancels.
            h_sum += tl.sum(h, axis=1)
        # Counts need more digits than the half types have: the product is float32's.
        y = load_rows(y_ptr, offs_n, stride_ym, M, offs_o, D).to(tl.float32)
        total = tl.dot(h, y, total, input_precision=PRECISION)
    if KIND != 0:
        total = h_sum[:, None] * load_rows(x_ptr, offs_m, stride_xm, N, offs_o, D).to(tl.float32) - total
    places = out_ptr + offs_m[:, None].to(tl.int64) * stride_om + offs_o[None, :]
    mask = in_m[:, None] & (offs_o < D)[None, :]
    tl.store(places, total + tl.load(places, mask=mask, other=0.0), mask=mask)


@triton.jit
def triplet_pulls_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, hits_ptr, h_ptr,
    begin, end, stride_xm, stride_ym, stride_hm, N, M, D, sign, first, width, margin, select_margin, low, high,
    ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    KIND: tl.constexpr, HAS_RULE: tl.constexpr, SELECT: tl.constexpr, SMOOTH: tl.constexpr,
    BOUNDED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # h [end - begin, M]: what the gradient of the rows begin..end multiplies the columns by, where D is too wide for a block
    offs_m = begin + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m = offs_m < N
    if ROW_ANCHORS:
        rows = load_anchors(start_ptr, stop_ptr, w_ptr, offs_m, in_m)
    else:
        rows = no_anchors(offs_m)
    s, valid = compared_tile(
        None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
        KIND, ROW_ANCHORS and COL_ANCHORS, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    h = pulls(
        s, valid, offs_m, in_m, offs_n, rows, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, hits_ptr,
        sign, first, width, N, M, margin, select_margin, low, high,
        ROW_ANCHORS, COL_ANCHORS, KIND, HAS_RULE, SELECT, SMOOTH, BOUNDED, PRECISION,
    )  # fmt: skip
    where = (offs_m - begin)[:, None].to(tl.int64) * stride_hm + offs_n[None, :]
    tl.store(h_ptr + where, h, mask=(offs_m < end)[:, None] & (offs_n < M)[None, :])
