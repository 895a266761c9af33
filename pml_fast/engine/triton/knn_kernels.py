"""The nearest-neighbour kernels; :mod:`pml_fast.engine.triton.knn` says how they work together.

A column is a key to its row: the bits of its score as an integer that orders as closeness does, then its index. Keys of a row
all differ, so that ties are settled by the comparison itself.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.tiles import compared_tile, load_range

LAST = tl.constexpr(2**63 - 1)


@triton.jit
def keys_of(s, index, turn):
    # [BLOCK_M, BLOCK_N] int64; what is not a number is infinitely far
    z = s * turn
    z = tl.where(z != z, float("inf"), z)
    z = tl.where(z == 0, 0.0, z)  # -0 is 0
    bits = z.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | index[None, :].to(tl.int64)


@triton.jit
def positive_keys_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, own_ptr, index_ptr, table_ptr,
    stride_xm, stride_ym, N, M, D, WIDTH, turn,
    KIND: tl.constexpr, ITSELF: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # table [N, WIDTH], filled with LAST before: the keys of a row's class, its own sample left out
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.minimum(offs_m, N - 1)
    start, stop = load_range(start_ptr, stop_ptr, offs_m, N)
    # The tiles are those of the counting sweep, so that equal columns have equal scores in both.
    first = tl.min(start, axis=0) // BLOCK_N * BLOCK_N
    for n0 in range(first, tl.max(stop, axis=0), BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        index = tl.load(index_ptr + tl.minimum(offs_n, M - 1))
        s, valid = compared_tile(
            None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, False, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        kept = valid & (offs_n[None, :] >= start[:, None]) & (offs_n[None, :] < stop[:, None])
        if ITSELF:
            kept = kept & (index[None, :] != tl.load(own_ptr + at)[:, None])
        where = offs_m[:, None].to(tl.int64) * WIDTH + (offs_n[None, :] - start[:, None])
        tl.store(table_ptr + where, keys_of(s, index, turn), mask=kept)


@triton.jit
def rank_counts_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, start_ptr, stop_ptr, index_ptr, table_ptr, seen_ptr,
    stride_xm, stride_ym, N, M, D, WIDTH, TILES, turn,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # seen [N, WIDTH], 0 before: how many columns of other classes come just before each sorted positive. WIDTH is a power of 2
    # above the number of positives. Integers are added atomically: in any order the sum is the same.
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.minimum(offs_m, N - 1)
    start, stop = load_range(start_ptr, stop_ptr, offs_m, N)
    row = at[:, None].to(tl.int64) * WIDTH
    begin = tl.program_id(1) * TILES * BLOCK_N
    for n0 in range(begin, tl.minimum(begin + TILES * BLOCK_N, M), BLOCK_N):
        offs_n = n0 + tl.arange(0, BLOCK_N)
        index = tl.load(index_ptr + tl.minimum(offs_n, M - 1))
        s, valid = compared_tile(
            None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, False, PRECISION, False, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        key = keys_of(s, index, turn)
        before = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.int32)
        half = WIDTH // 2
        while half > 0:
            positive = tl.load(table_ptr + row + (before + half - 1))
            before += tl.where(positive < key, half, 0)
            half = half // 2
        kept = valid & ((offs_n[None, :] < start[:, None]) | (offs_n[None, :] >= stop[:, None]))
        tl.atomic_add(seen_ptr + row + before, 1, mask=kept)


@triton.jit
def nearest_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, out_ptr, stride_xm, stride_ym, N, M, D, turn,
    KIND: tl.constexpr, ITSELF: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # out [N, KEEP]: the lowest keys of each row, ascending; a tile has KEEP columns
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    best = tl.full([BLOCK_M, KEEP], LAST, dtype=tl.int64)
    for n0 in range(0, M, KEEP):
        offs_n = n0 + tl.arange(0, KEEP)
        s, valid = compared_tile(
            None, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, ITSELF, PRECISION, False, BLOCK_M, KEEP, BLOCK_K,
        )  # fmt: skip
        key = tl.where(valid, keys_of(s, offs_n, turn), LAST)
        closer = key < tl.max(best, axis=1)[:, None]
        if tl.max(tl.max(closer.to(tl.int32), axis=1), axis=0) > 0:
            both = tl.reshape(tl.join(best, key), [BLOCK_M, 2 * KEEP])
            halves = tl.reshape(tl.sort(both, dim=1), [BLOCK_M, 2, KEEP])
            best, _ = tl.split(tl.permute(halves, (0, 2, 1)))
    where = offs_m[:, None].to(tl.int64) * KEEP + tl.arange(0, KEEP)[None, :]
    tl.store(out_ptr + where, best, mask=(offs_m < N)[:, None])
