"""Soft ranks of a row's positives, and the derivative of what a loss makes of them.

Rows and columns are sorted by class: the positives of anchor ``i`` are among the columns ``start[i]..stop[i]``, and one at
place ``k`` of these has entry ``[k, i]`` of each table ``[width, N]``; of a batch against itself a row is a positive of its
own. A rank is a sum of ``sigmoid(z - z_k)`` over columns: over the positives, and over the negatives.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.pairwise_grad import store_pulls
from pml_fast.engine.triton.tiles import compared_tile, load_block, load_range, load_rule

NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def sides_of(s, anchor, column, begin, end, valid, interval, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr):
    # the positives and the negatives of a tile of scores; what is given of the anchors comes shaped for it
    same = valid & (column >= begin) & (column < end)
    pos, neg = same, valid & (same == 0)
    if HAS_RULE:
        pos = pos & (s >= interval[0]) & (s <= interval[1])
        neg = neg & (s >= interval[2]) & (s <= interval[3])
    if ITSELF:
        pos = pos | (valid & (anchor == column))
    return pos, neg


@triton.jit
def tile_sides(
    x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, start, stop, interval,
    stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr, PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # logits of a tile whose rows are the anchors, its positives and its negatives
    s, valid = compared_tile(
        x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
        KIND, False, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip  # [BLOCK_M, BLOCK_N]
    shaped = (interval[0][:, None], interval[1][:, None], interval[2][:, None], interval[3][:, None])
    pos, neg = sides_of(
        s, offs_m[:, None], offs_n[None, :], start[:, None], stop[:, None], valid, shaped, ITSELF, HAS_RULE
    )  # fmt: skip
    return LOGIT(s, pos, sign, p0, p1, p2, p3, p4), pos, neg


@triton.jit
def own_logits_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, rule_ptr, table_ptr,
    stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr, PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # table [width, N], full of -inf: the logits of the positives that are there
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    start, stop = load_range(start_ptr, stop_ptr, offs_m, N)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    for j in range(tl.min(start, axis=0) // BLOCK_N * BLOCK_N, tl.max(stop, axis=0), BLOCK_N):
        offs_n = j + tl.arange(0, BLOCK_N)
        z, pos, _neg = tile_sides(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, start, stop, interval,
            stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
            LOGIT, KIND, ITSELF, HAS_RULE, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        place = offs_n[None, :] - start[:, None]
        tl.store(table_ptr + place.to(tl.int64) * N + offs_m[:, None], z, mask=pos)


@triton.jit
def above(z, own):
    # how far columns rank above a positive, from 0 to 1; a masked logit of -inf does not
    return 1.0 / (1.0 + tl.exp(own - z))


@triton.jit
def ranked(z, side, table_ptr, offs_m, offs_h, first, size, N, rank, slope, HITS: tl.constexpr):
    # adds a tile's columns of one side to the ranks of the positives first.. and to the sums of their derivatives
    kept = tl.where(side, z, NEG_INF)
    for k in range(0, tl.minimum(HITS, tl.max(size, axis=0) - first)):
        own = tl.load(table_ptr + tl.cast(first + k, tl.int64) * N + offs_m, mask=first + k < size, other=0.0)
        share = above(kept, own[:, None])
        here = offs_h[None, :] == k
        rank += tl.where(here, tl.sum(share, axis=1)[:, None], 0.0)
        slope += tl.where(here, tl.sum(share * (1.0 - share), axis=1)[:, None], 0.0)
    return rank, slope


@triton.jit
def soft_ranks_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, rule_ptr, table_ptr, rows_ptr, seen_ptr,
    stride_xm, stride_ym, N, M, D, width, sign, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, FINISH: tl.constexpr, AMONG: tl.constexpr, ALONE: tl.constexpr, HITS: tl.constexpr,
    KIND: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr, PRECISION: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # rows [1, 2, N], seen [2, N]; behind the logits in table [4, width, N], of each positive: the slopes of the row's loss by
    # its ranks among positives and before by negatives, and the sum of all it has from other columns by its own logit.
    # AMONG: the loss has ranks among positives; ALONE: a row that is its only positive has a loss
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_h = tl.arange(0, HITS)
    inside = offs_m < N
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    start, stop = load_range(start_ptr, stop_ptr, offs_m, N)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    size = tl.where(inside, stop - start, 0)
    most = tl.max(size, axis=0)
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    for k in range(0, most):
        own = tl.load(table_ptr + tl.cast(k, tl.int64) * N + offs_m, mask=k < size, other=NEG_INF)
        count += (own != NEG_INF).to(tl.int32)
    positives = count - ITSELF
    there = (count if ALONE else positives) > 0
    share = tl.where(there, 1.0 / tl.where(there, count, 1).to(tl.float32), 0.0)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    negatives = tl.zeros([BLOCK_M], dtype=tl.int32)
    # At least once, to see whether there are negatives.
    for first in range(0, tl.maximum(most, 1), HITS):
        before = tl.zeros([BLOCK_M, HITS], dtype=tl.float32)
        by_own = tl.zeros([BLOCK_M, HITS], dtype=tl.float32)
        for j in range(0, M, BLOCK_N):
            offs_n = j + tl.arange(0, BLOCK_N)
            z, _pos, neg = tile_sides(
                x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, start, stop, interval,
                stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
                LOGIT, KIND, ITSELF, HAS_RULE, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
            negatives += tl.sum(neg.to(tl.int32), axis=1)
            before, by_own = ranked(z, neg, table_ptr, offs_m, offs_h, first, size, N, before, by_own, HITS)
        among = tl.zeros([BLOCK_M, HITS], dtype=tl.float32)
        by_among = tl.zeros([BLOCK_M, HITS], dtype=tl.float32)
        if AMONG:
            for j in range(tl.min(start, axis=0) // BLOCK_N * BLOCK_N, tl.max(stop, axis=0), BLOCK_N):
                offs_n = j + tl.arange(0, BLOCK_N)
                z, pos, _neg = tile_sides(
                    x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, start, stop, interval,
                    stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
                    LOGIT, KIND, ITSELF, HAS_RULE, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
                )  # fmt: skip
                among, by_among = ranked(z, pos, table_ptr, offs_m, offs_h, first, size, N, among, by_among, HITS)
        value, slope_among, slope_before = FINISH(among, before, p0, p1, p2, p3, p4)
        offs_k = first + offs_h
        places = table_ptr + offs_k[None, :].to(tl.int64) * N + offs_m[:, None]
        mask = inside[:, None] & (offs_k < width)[None, :]
        own = tl.load(places, mask=mask & (offs_k[None, :] < size[:, None]), other=NEG_INF)
        has = own != NEG_INF
        total += tl.sum(tl.where(has, value, 0.0), axis=1)
        slope_among = tl.where(has, slope_among * share[:, None], 0.0)
        slope_before = tl.where(has, slope_before * share[:, None], 0.0)
        table = tl.cast(width, tl.int64) * N
        tl.store(places + table, slope_among, mask=mask)
        tl.store(places + 2 * table, slope_before, mask=mask)
        tl.store(places + 3 * table, tl.where(has, slope_among * by_among + slope_before * by_own, 0.0), mask=mask)
    tl.store(rows_ptr + offs_m, tl.where(there, total * share, 0.0), mask=inside)
    tl.store(rows_ptr + N + offs_m, tl.where(there, 1.0, 0.0), mask=inside)
    tl.store(seen_ptr + offs_m, (positives > 0).to(tl.int8), mask=inside)
    tl.store(seen_ptr + N + offs_m, (negatives > 0).to(tl.int8), mask=inside)


@triton.jit
def anchor_slopes(
    s, z, valid, offs_a, offs_c, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, width, A,
    AXIS: tl.constexpr, ITSELF: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # w * dL/dz of a tile whose A anchors lie along AXIS and their partners along the other
    ACROSS: tl.constexpr = 1 - AXIS
    start, stop = load_range(start_ptr, stop_ptr, offs_a, A)
    size = tl.where(offs_a < A, stop - start, 0)
    low, high, neg_low, neg_high = load_rule(rule_ptr, offs_a, A, HAS_RULE)
    anchor, column, begin = tl.expand_dims(offs_a, ACROSS), tl.expand_dims(offs_c, AXIS), tl.expand_dims(start, ACROSS)
    interval = (
        tl.expand_dims(low, ACROSS), tl.expand_dims(high, ACROSS), tl.expand_dims(neg_low, ACROSS),
        tl.expand_dims(neg_high, ACROSS),
    )  # fmt: skip
    pos, neg = sides_of(s, anchor, column, begin, tl.expand_dims(stop, ACROSS), valid, interval, ITSELF, HAS_RULE)
    table = tl.cast(width, tl.int64) * A
    c = tl.zeros_like(s)
    for k in range(0, tl.max(size, axis=0)):
        places = table_ptr + tl.cast(k, tl.int64) * A + offs_a
        has = k < size
        own = tl.expand_dims(tl.load(places, mask=has, other=NEG_INF), ACROSS)
        among = tl.expand_dims(tl.load(places + table, mask=has, other=0.0), ACROSS)
        before = tl.expand_dims(tl.load(places + 2 * table, mask=has, other=0.0), ACROSS)
        share = above(z, own)
        c += tl.where(pos, among, before) * (share * (1.0 - share))
    place = (column - begin).to(tl.int64) * A + anchor
    c -= tl.load(table_ptr + 3 * table + place, mask=pos, other=0.0)
    w = tl.expand_dims(tl.load(w_ptr + offs_a, mask=offs_a < A, other=0.0), ACROSS)
    # An anchor that weighs nothing must not turn a NaN coefficient into NaN.
    return tl.where((pos | neg) & (w != 0), w * c, 0.0)


@triton.jit
def soft_rank_pulls_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, rule_ptr, table_ptr, w_ptr, h_ptr,
    first, last, stride_xm, stride_ym, stride_hm, N, M, D, width, sign, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # h [last - first, M]: as pair_pulls_kernel. Anchors are the rows, the columns, or both (a batch against itself).
    offs_m = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    s, valid = compared_tile(
        x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
        KIND, False, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip  # [BLOCK_M, BLOCK_N]
    z = LOGIT(s, valid, sign, p0, p1, p2, p3, p4)
    h = tl.zeros_like(s)
    if ROW_ANCHORS:
        h += anchor_slopes(
            s, z, valid, offs_m, offs_n, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, width, N, 0, ITSELF, HAS_RULE
        )  # fmt: skip
    if COL_ANCHORS:
        h += anchor_slopes(
            s, z, valid, offs_n, offs_m, start_ptr, stop_ptr, w_ptr, rule_ptr, table_ptr, width, M, 1, ITSELF, HAS_RULE
        )  # fmt: skip
    # The logit is a multiple of the score.
    h *= LOGIT(1.0, valid, sign, p0, p1, p2, p3, p4)
    if KIND == 1:
        h = tl.where(s > 0, h / tl.where(s > 0, s, 1.0), h * 0.0)
    elif KIND == 2:
        h = 2.0 * h
    store_pulls(h, h_ptr, offs_m, offs_n, first, last, stride_hm, M, PRECISION, SPLIT)
