"""What every sweep does: the loads that its programs begin with, and a tile of scores with what may pair with what.

Score kinds are constexprs: ``DOT``, ``L2`` (Euclidean) and ``L2_SQUARED``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.backend import interpreting

DOT, L2, L2_SQUARED = 0, 1, 2
# |x|^2 + |y|^2 - 2xy loses digits near zero: below this share of the norms a square is taken again by differences.
NEAR = tl.constexpr(1e-3)
INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    # The interpreter multiplies bfloat16 as if its bits were integers.
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def load_rows(ptr, offs, stride, size, offs_d, D):
    # [B, BLOCK_K]; rows and columns beyond the ends read as 0
    mask = (offs[:, None] < size) & (offs_d[None, :] < D)
    return tl.load(ptr + offs[:, None].to(tl.int64) * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    # the rows that a program keeps [BLOCK_M, BLOCK_K], where one block holds D; else nothing that is read
    x = tl.zeros([BLOCK_M, BLOCK_K], dtype=x_ptr.dtype.element_ty)
    if RESIDENT:
        x = load_rows(x_ptr, offs_m, stride_xm, N, tl.arange(0, BLOCK_K), D)
    return x


@triton.jit
def load_labels(label_ptr, offs, size):
    # Clamped, not masked: the padding then repeats a label of the block.
    return tl.load(label_ptr + tl.minimum(offs, size - 1))


@triton.jit
def load_range(start_ptr, stop_ptr, offs, size):
    # where the columns of each row's class begin and end; clamped as labels are
    offs = tl.minimum(offs, size - 1)
    return tl.load(start_ptr + offs), tl.load(stop_ptr + offs)


@triton.jit
def load_rule(rule_ptr, offs, size, HAS_RULE: tl.constexpr):
    # closed intervals of each anchor: positive low, high, negative low, high; without a rule nothing that is read
    none = offs.to(tl.float32)
    interval = (none, none, none, none)
    if HAS_RULE:
        mask = offs < size
        pos_low = tl.load(rule_ptr + offs, mask=mask, other=0.0)
        rule_ptr += size
        pos_high = tl.load(rule_ptr + offs, mask=mask, other=0.0)
        rule_ptr += size
        neg_low = tl.load(rule_ptr + offs, mask=mask, other=0.0)
        rule_ptr += size
        neg_high = tl.load(rule_ptr + offs, mask=mask, other=0.0)
        interval = (pos_low, pos_high, neg_low, neg_high)
    return interval


@triton.jit
def products(
    x_ptr, y_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # inner products of a tile of rows and a tile of columns, D in chunks: [BLOCK_M, BLOCK_N]
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for k in range(0, D, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        x = load_rows(x_ptr, offs_m, stride_xm, N, offs_k, D)  # [BLOCK_M, BLOCK_K]
        y = load_rows(y_ptr, offs_n, stride_ym, M, offs_k, D)  # [BLOCK_N, BLOCK_K]
        total = dot(x, tl.trans(y), total, PRECISION)
    return total


@triton.jit
def squares_by_differences(
    x_ptr, y_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = x_ptr + offs_m.to(tl.int64) * stride_xm
    cols = y_ptr + offs_n.to(tl.int64) * stride_ym
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    # Rare: not worth the registers of a pipeline.
    for k in tl.range(0, D, num_stages=1):
        x = tl.load(rows + k, mask=offs_m < N, other=0.0).to(tl.float32)
        y = tl.load(cols + k, mask=offs_n < M, other=0.0).to(tl.float32)
        gap = x[:, None] - y[None, :]
        total += gap * gap
    return total


@triton.jit
def scores(
    dots, valid, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # scores from inner products [BLOCK_M, BLOCK_N]; only those marked valid need be exact
    s = dots
    if KIND != 0:
        x_norm = tl.load(x_norm_ptr + offs_m, mask=offs_m < N, other=0.0)
        y_norm = tl.load(y_norm_ptr + offs_n, mask=offs_n < M, other=0.0)
        norms = x_norm[:, None] + y_norm[None, :]
        square = norms - 2.0 * dots
        near = valid & (square < norms * NEAR)
        if tl.max(tl.max(near.to(tl.int32), axis=1), axis=0) > 0:
            exact = squares_by_differences(x_ptr, y_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D, BLOCK_M, BLOCK_N)
            square = tl.where(near, exact, square)
        square = tl.where(square < 0, 0.0, square)
        s = tl.sqrt(square) if KIND == 1 else square
    return s


@triton.jit
def score_tile(
    x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, valid, stride_xm, stride_ym, N, M, D,
    KIND: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # [BLOCK_M, BLOCK_N]; only pairs marked valid need be exact near zero. x: what load_block gives, read where RESIDENT
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
def comparable(offs_m, offs_n, N, M, ITSELF: tl.constexpr):
    valid = (offs_m < N)[:, None] & (offs_n < M)[None, :]
    if ITSELF:
        valid = valid & (offs_m[:, None] != offs_n[None, :])
    return valid


@triton.jit
def ruled(s, same, valid, pos_low, pos_high, neg_low, neg_high):
    return valid & (s >= tl.where(same, pos_low, neg_low)) & (s <= tl.where(same, pos_high, neg_high))


@triton.jit
def compared_tile(
    x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
    KIND: tl.constexpr, ITSELF: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # the scores of a tile, and the pairs that may be compared: [BLOCK_M, BLOCK_N] each
    valid = comparable(offs_m, offs_n, N, M, ITSELF)
    s = score_tile(
        x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, valid, stride_xm, stride_ym, N, M, D,
        KIND, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    return s, valid


@triton.jit
def pairs_of(s, valid, x_label, y_label, interval, HAS_RULE: tl.constexpr):
    # of a tile whose rows are the anchors: the pairs of one class, and the pairs that a rule keeps. No part of compared_tile,
    # because labels that are loaded after the product take no registers from it.
    same = x_label[:, None] == y_label[None, :]
    if HAS_RULE:
        pos_low, pos_high, neg_low, neg_high = interval
        valid = ruled(s, same, valid, pos_low[:, None], pos_high[:, None], neg_low[:, None], neg_high[:, None])
    return same, valid


@triton.jit
def round_tf32(h):
    # Tensor cores cut a float32 operand to 11 bits; rounding first keeps the sum unbiased.
    # A NaN must not wrap into a number.
    bits = h.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(h != h, h, rounded)
