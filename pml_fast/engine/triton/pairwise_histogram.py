"""Soft histograms of a row's positives and of its negatives, and the average precision they mean.

A pair at place ``x`` counts in full from the node above it on: the sums are those of ``clamp(k + 1 - x, 0, 1)`` for each node
``k``. Each program owns a block of rows and streams over the columns.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.tiles import compared_tile, load_block, load_labels, load_rule, pairs_of


@triton.jit
def histogram_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, table_ptr, count_ptr, seen_ptr,
    stride_xm, stride_ym, N, M, D, sign, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, TABLE: tl.constexpr, CHUNK: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # table [N, 2, TABLE]: soft counts of positives and of negatives up to each node, CHUNK nodes a sweep; count [N] of the
    # positives, seen [2, N]
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, CHUNK)
    inside = offs_m < N
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    x_label = load_labels(x_label_ptr, offs_m, N)
    interval = load_rule(rule_ptr, offs_m, N, HAS_RULE)
    places = table_ptr + offs_m[:, None].to(tl.int64) * (2 * TABLE) + offs_c[None, :]
    for first in range(0, TABLE, CHUNK):
        below_pos = tl.zeros([BLOCK_M, CHUNK], dtype=tl.float32)
        below_neg = tl.zeros([BLOCK_M, CHUNK], dtype=tl.float32)
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
            place = LOGIT(s, same, sign, p0, p1, p2, p3, p4)
            for k in range(0, tl.minimum(CHUNK, TABLE - first)):
                # Written so that a NaN stays.
                left = (first + k + 1) - place
                part = tl.where(left < 0, 0.0, tl.where(left > 1, 1.0, left))
                more_pos = tl.sum(tl.where(pos, part, 0.0), axis=1)
                more_neg = tl.sum(tl.where(neg, part, 0.0), axis=1)
                below_pos += tl.where(offs_c[None, :] == k, more_pos[:, None], 0.0)
                below_neg += tl.where(offs_c[None, :] == k, more_neg[:, None], 0.0)
        mask = inside[:, None] & (first + offs_c < TABLE)[None, :]
        tl.store(places + first, below_pos, mask=mask)
        tl.store(places + TABLE + first, below_neg, mask=mask)
        if first == 0:
            tl.store(count_ptr + offs_m, count_pos, mask=inside)
            tl.store(seen_ptr + offs_m, (count_pos > 0).to(tl.int8), mask=inside)
            tl.store(seen_ptr + N + offs_m, (count_neg > 0).to(tl.int8), mask=inside)


@triton.jit
def precision_kernel(table_ptr, count_ptr, rows_ptr, N, TABLE: tl.constexpr, BLOCK: tl.constexpr):
    # rows [1, 2, N]: 1 less the average precision, and whether there is one. In the place of the soft counts the slopes of
    # the loss by them
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offs < N
    count = tl.load(count_ptr + offs, mask=inside, other=0)
    share = 1.0 / tl.where(count > 0, count, 1).to(tl.float32)
    places = table_ptr + offs.to(tl.int64) * (2 * TABLE)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    before = tl.zeros([BLOCK], dtype=tl.float32)
    # by the positives' count at the node before; nothing of it is a difference that could be 0 but for its rounding
    slope = tl.zeros([BLOCK], dtype=tl.float32)
    for k in range(0, TABLE):
        pos = tl.load(places + k, mask=inside, other=0.0)
        neg = tl.load(places + TABLE + k, mask=inside, other=0.0)
        both, hits = pos + neg, pos - before
        # Written so that a NaN stays; nodes without a positive add nothing.
        none = (hits * pos <= 0) | (both <= 0)
        part = 1.0 / tl.where(none, 1.0, both)
        ratio = tl.where(none, 0.0, pos / tl.where(none, 1.0, both))
        total += tl.where(none, 0.0, hits * ratio)
        # The hits of this node fall by what the one before has more.
        tl.store(places + k - 1, (ratio - slope) * share, mask=inside & (k > 0))
        tl.store(places + TABLE + k, tl.where(none, 0.0, hits * ratio * part) * share, mask=inside)
        slope = ratio + tl.where(none, 0.0, hits * neg * part * part)
        before = pos
    tl.store(places + TABLE - 1, -slope * share, mask=inside)
    tl.store(rows_ptr + offs, tl.where(count > 0, 1.0 - total * share, 0.0), mask=inside)
    tl.store(rows_ptr + N + offs, tl.where(count > 0, 1.0, 0.0), mask=inside)
