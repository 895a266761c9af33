"""The gradients of the pairwise kernels, which take the scores anew and apply ``c = dL/ds``.

``pair_grad_kernel`` owns a block of rows of the result; ``pair_pulls_kernel`` writes what the gradient multiplies the columns
by, where D is too wide for a block.
"""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.tiles import compared_tile, dot, load_block, load_labels, load_rows, load_rule, round_tf32, ruled


@triton.jit
def load_weights(w_ptr, offs, size, TERMS: tl.constexpr):
    # weights of an anchor's two sides, [B] each
    w_pos = tl.load(w_ptr + offs, mask=offs < size, other=0.0)
    w_neg = w_pos
    if TERMS == 2:
        w_neg = tl.load(w_ptr + size + offs, mask=offs < size, other=0.0)
    return w_pos, w_neg


@triton.jit
def load_anchor(
    w_pos, w_neg, rule_ptr, saved_ptr, offs, size, SAVED: tl.constexpr, TABLE: tl.constexpr, HAS_RULE: tl.constexpr
):
    # what an anchor brings to its derivative, [B] each: weights of its two sides, levels, extras, intervals. SAVED is how many
    # numbers a row has saved: none, one extra for both sides (3), or one for each (4). Of a row's table [2, TABLE] it is the
    # address, for the derivative to look up
    mask = offs < size
    level_pos, level_neg, extra_pos, extra_neg = w_pos, w_pos, w_pos, w_pos
    if SAVED > 0:
        level_pos = tl.load(saved_ptr + offs, mask=mask, other=0.0)
        level_neg = tl.load(saved_ptr + size + offs, mask=mask, other=0.0)
        extra_pos = tl.load(saved_ptr + 2 * tl.cast(size, tl.int64) + offs, mask=mask, other=0.0)
        extra_neg = extra_pos
    if TABLE > 0:
        level_pos = saved_ptr + tl.minimum(offs, size - 1).to(tl.int64) * (2 * TABLE)
        level_neg = level_pos
    if SAVED == 4:
        extra_neg = tl.load(saved_ptr + 3 * tl.cast(size, tl.int64) + offs, mask=mask, other=0.0)
    pos_low, pos_high, neg_low, neg_high = load_rule(rule_ptr, offs, size, HAS_RULE)
    return w_pos, w_neg, level_pos, level_neg, extra_pos, extra_neg, pos_low, pos_high, neg_low, neg_high


@triton.jit
def coefficients(
    s, z, same, valid, other, w_pos, w_neg, level_pos, level_neg, extra_pos, extra_neg, pos_low, pos_high, neg_low, neg_high,
    sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    DERIVATIVE: tl.constexpr, STATE: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # w * dL/ds of every pair [BLOCK_M, BLOCK_N]; the anchors' vectors come shaped [:, None] or [None, :]. other: the level of
    # the pair's other end. STATE: what the state of a first sweep has of a pair, whose weights are then the extras
    if HAS_RULE:
        valid = ruled(s, same, valid, pos_low, pos_high, neg_low, neg_high)
    w = tl.where(same, w_pos, w_neg)
    level = tl.where(same, level_pos, level_neg)
    extra = tl.where(same, extra_pos, extra_neg)
    c = DERIVATIVE(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4)
    # A row that weighs nothing must not turn an infinite value into NaN.
    c = tl.where(valid & (w != 0), w * c, 0.0)
    if STATE is not None:
        c += tl.where(valid & (extra != 0), extra * STATE(z, same, level, sign), 0.0)
    return c


@triton.jit
def pulls(
    s, same, valid, rows, cols,
    sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr, STATE: tl.constexpr, KIND: tl.constexpr,
    ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # H [BLOCK_M, BLOCK_N]: the gradient by row i is sum_j H_ij y_j, less H_ij x_i for a distance. `rows` and `cols` are what
    # load_anchor gives for them. Anchors are the rows, the columns, or both (of a batch against itself H = W + W^T).
    z = LOGIT(s, same, sign, p0, p1, p2, p3, p4)
    h = tl.zeros(s.shape, dtype=tl.float32)
    if ROW_ANCHORS:
        h += coefficients(
            s, z, same, valid, cols[2][None, :], rows[0][:, None], rows[1][:, None], rows[2][:, None], rows[3][:, None],
            rows[4][:, None], rows[5][:, None], rows[6][:, None], rows[7][:, None], rows[8][:, None], rows[9][:, None],
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4, DERIVATIVE, STATE, HAS_RULE,
        )  # fmt: skip
    if COL_ANCHORS:
        h += coefficients(
            s, z, same, valid, rows[2][:, None], cols[0][None, :], cols[1][None, :], cols[2][None, :], cols[3][None, :],
            cols[4][None, :], cols[5][None, :], cols[6][None, :], cols[7][None, :], cols[8][None, :], cols[9][None, :],
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4, DERIVATIVE, STATE, HAS_RULE,
        )  # fmt: skip
    if KIND == 1:
        h = tl.where(s > 0, h / s, h * 0.0)
    elif KIND == 2:
        h = 2.0 * h
    return h


@triton.jit
def factors(h, y, PRECISION: tl.constexpr):
    # coefficients and columns as the tensor cores multiply them
    if y.dtype == tl.bfloat16:
        h = h.to(tl.bfloat16)
    elif y.dtype == tl.float16:
        # Coefficients such as 1/N^2 leave float16's range: tf32 holds float16 values exactly.
        h = round_tf32(h)
        y = y.to(tl.float32)
    elif PRECISION == "tf32":
        h = round_tf32(h)
    return h, y


@triton.jit
def load_side(
    w_ptr, rule_ptr, saved_ptr, offs, size,
    ANCHORS: tl.constexpr, TERMS: tl.constexpr, SAVED: tl.constexpr, TABLE: tl.constexpr, HAS_RULE: tl.constexpr,
):  # fmt: skip
    # what rows or columns bring to the derivative; those that are not ANCHORS have no level
    if ANCHORS:
        w_pos, w_neg = load_weights(w_ptr, offs, size, TERMS)
        side = load_anchor(w_pos, w_neg, rule_ptr, saved_ptr, offs, size, SAVED, TABLE, HAS_RULE)
    else:
        none = offs.to(tl.float32) * 0.0
        side = (none, none, none + float("-inf"), none, none, none, none, none, none, none)
    return side


@triton.jit
def load_turned(turned_ptr, offs_d, offs_n, stride, D):
    # [BLOCK_N, BLOCK_K] of columns stored as [D, M]. M is padded to whole tiles with zeros: a mask along it would break up the
    # copies of 16 bytes.
    where = offs_d[:, None].to(tl.int64) * stride + offs_n[None, :]
    return tl.trans(tl.load(turned_ptr + where, mask=(offs_d < D)[:, None], other=0.0))


@triton.jit
def pair_grad_kernel(
    x_ptr, y_ptr, turned_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, saved_ptr, w_ptr, col_saved_ptr,
    col_w_ptr, out_ptr,
    stride_xm, stride_ym, stride_td, stride_om, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    TERMS: tl.constexpr, SAVED: tl.constexpr, TABLE: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr,
    STATE: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr, TURNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # out [N, D], where one block holds D: the tile that gave the scores is the one the gradient multiplies. Where TURNED it is
    # read again, from a transposed copy: tensor cores take 32-bit numbers from shared memory in one order alone, and a tile
    # that is needed in both is not copied there asynchronously.
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_K)
    x = load_rows(x_ptr, offs_m, stride_xm, N, offs_d, D)
    x_label = load_labels(x_label_ptr, offs_m, N)
    rows = load_side(w_ptr, rule_ptr, saved_ptr, offs_m, N, ROW_ANCHORS, TERMS, SAVED, TABLE, HAS_RULE)
    total = tl.zeros([BLOCK_M, BLOCK_K], dtype=tl.float32)
    h_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    for start in range(0, M, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        s, valid = compared_tile(
            x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
            KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip  # [BLOCK_M, BLOCK_N]
        y_label = load_labels(y_label_ptr, offs_n, M)
        cols = load_side(col_w_ptr, rule_ptr, col_saved_ptr, offs_n, M, COL_ANCHORS, TERMS, SAVED, TABLE, HAS_RULE)
        h = pulls(
            s, x_label[:, None] == y_label[None, :], valid, rows, cols,
            sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
            LOGIT, DERIVATIVE, STATE, KIND, ROW_ANCHORS, COL_ANCHORS, HAS_RULE,
        )  # fmt: skip
        if TURNED:
            y = load_turned(turned_ptr, offs_d, offs_n, stride_td, D)  # [BLOCK_N, BLOCK_K]
        else:
            y = load_rows(y_ptr, offs_n, stride_ym, M, offs_d, D)
        h_dot, y = factors(h, y, PRECISION)
        if KIND != 0:
            # The sum of what the tensor cores see: then a column equal to the row cancels.
            h_sum += tl.sum(h_dot.to(tl.float32), axis=1)
        total = dot(h_dot, y, total, PRECISION)
    if KIND != 0:
        total = h_sum[:, None] * x.to(tl.float32) - total
    where = offs_m[:, None].to(tl.int64) * stride_om + offs_d[None, :]
    tl.store(out_ptr + where, total, mask=(offs_m < N)[:, None] & (offs_d < D)[None, :])


@triton.jit
def store_pulls(
    h, h_ptr, offs_m, offs_n, first, last, stride_hm, M, PRECISION: tl.constexpr, SPLIT: tl.constexpr
):  # fmt: skip
    # rows of coefficients of a strip first..last, as a product will read them; where SPLIT their parts [high | low | high]
    where = (offs_m - first)[:, None].to(tl.int64) * stride_hm + offs_n[None, :]
    inside = (offs_m < last)[:, None] & (offs_n < M)[None, :]
    if SPLIT:
        high = h.to(tl.bfloat16)
        low = (h - high.to(tl.float32)).to(tl.bfloat16).to(h_ptr.dtype.element_ty)
        high = high.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + where, high, mask=inside)
        tl.store(h_ptr + where + M, low, mask=inside)
        tl.store(h_ptr + where + 2 * tl.cast(M, tl.int64), high, mask=inside)
    else:
        if PRECISION == "tf32" and h_ptr.dtype.element_ty == tl.float32:
            h = round_tf32(h)
        tl.store(h_ptr + where, h.to(h_ptr.dtype.element_ty), mask=inside)


@triton.jit
def pair_pulls_kernel(
    x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, x_label_ptr, y_label_ptr, rule_ptr, saved_ptr, w_ptr, col_saved_ptr, col_w_ptr,
    h_ptr,
    first, last, stride_xm, stride_ym, stride_hm, N, M, D, sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
    TERMS: tl.constexpr, SAVED: tl.constexpr, TABLE: tl.constexpr, LOGIT: tl.constexpr, DERIVATIVE: tl.constexpr,
    STATE: tl.constexpr, KIND: tl.constexpr, ITSELF: tl.constexpr, ROW_ANCHORS: tl.constexpr, COL_ANCHORS: tl.constexpr,
    HAS_RULE: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # h [last - first, M]: these rows of H, where D is too wide for one block, for a product to follow; where SPLIT their
    # bfloat16 parts [high | low | high], 3 M wide. Blocks of rows come first in the order of programs, so that those which
    # run together share a tile of columns.
    offs_m = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x = load_block(x_ptr, offs_m, stride_xm, N, D, RESIDENT, BLOCK_M, BLOCK_K)
    s, valid = compared_tile(
        x, x_ptr, y_ptr, x_norm_ptr, y_norm_ptr, offs_m, offs_n, stride_xm, stride_ym, N, M, D,
        KIND, ITSELF, PRECISION, RESIDENT, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip  # [BLOCK_M, BLOCK_N]
    x_label = load_labels(x_label_ptr, offs_m, N)
    y_label = load_labels(y_label_ptr, offs_n, M)
    rows = load_side(w_ptr, rule_ptr, saved_ptr, offs_m, N, ROW_ANCHORS, TERMS, SAVED, TABLE, HAS_RULE)
    cols = load_side(col_w_ptr, rule_ptr, col_saved_ptr, offs_n, M, COL_ANCHORS, TERMS, SAVED, TABLE, HAS_RULE)
    h = pulls(
        s, x_label[:, None] == y_label[None, :], valid, rows, cols,
        sign, low_pos, high_pos, low_neg, high_neg, p0, p1, p2, p3, p4,
        LOGIT, DERIVATIVE, STATE, KIND, ROW_ANCHORS, COL_ANCHORS, HAS_RULE,
    )  # fmt: skip
    store_pulls(h, h_ptr, offs_m, offs_n, first, last, stride_hm, M, PRECISION, SPLIT)
