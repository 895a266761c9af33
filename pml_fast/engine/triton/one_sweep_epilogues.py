"""The maths of the losses that one sweep folds, a group of functions each; :mod:`epilogues` says what they are given."""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.specs.ranked_list import FLOOR
from pml_fast.engine.triton.epilogue_maths import every_row, log_add_exp, outside, relu, sigmoid, softplus

RANKED_LIST_FLOOR = tl.constexpr(FLOOR)


@triton.jit
def temperature_logit(s, same, sign, p0, p1, p2, p3, p4):
    return s * (sign / p0)


# ---- contrastive: p0 = pos_margin, p1 = neg_margin


@triton.jit
def contrastive_logit(s, same, sign, p0, p1, p2, p3, p4):
    return relu(tl.where(same, sign * (p0 - s), sign * (s - p1)))


@triton.jit
def contrastive_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    off = tl.where(same, outside(z, low_pos, high_pos), outside(z, low_neg, high_neg)) | (z <= 0)
    return tl.where(off, 0.0, tl.where(same, -sign, sign))


# ---- NT-Xent: p0 = temperature; level_pos = log_neg, and level_neg = log_neg - log(sum over the positives of the
# derivative of their losses by log_neg)


@triton.jit
def ntxent_finish(z, log_neg):
    gap = log_neg - z
    return softplus(gap), sigmoid(gap)


@triton.jit
def ntxent_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    share = tl.exp(z - level)
    off = outside(softplus(level - z), low_pos, high_pos)
    return tl.where(same, tl.where(off, 0.0, -1.0 / (1.0 + share)), share) * (sign / p0)


# ---- SupCon: p0 = temperature; level = log of the sum over all others, extra = -1 / number of positives


@triton.jit
def supcon_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    some = count_pos > 0
    share = 1.0 / tl.where(some, count_pos, 1).to(tl.float32)
    level = tl.where(some, log_add_exp(log_pos, log_neg), float("inf"))
    loss = tl.where(some, level - sum_pos * share, 0.0)
    return loss, every_row(count_pos), level, level, tl.where(some, -share, 0.0)


@triton.jit
def supcon_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    return (tl.exp(z - level) + tl.where(same, extra, 0.0)) * (sign / p0)


# ---- log-sum-exp: p0 = temperature; level = the value


@triton.jit
def log_sum_exp_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    some = count_pos + count_neg > 0
    value = tl.where(some, log_add_exp(log_pos, log_neg), 0.0)
    level = tl.where(some, value, float("inf"))
    return value, tl.where(some, 1.0, 0.0), level, level, 0.0 * count_pos


@triton.jit
def log_sum_exp_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    return tl.exp(z - level) * (sign / p0)


# ---- multi-similarity: p0 = alpha, p1 = beta, p2 = base; levels fold the sigmoid of softplus's derivative in


@triton.jit
def multi_similarity_logit(s, same, sign, p0, p1, p2, p3, p4):
    return (s - p2) * tl.where(same, -sign * p0, sign * p1)


@triton.jit
def multi_similarity_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    # sigmoid(lse) * exp(z - lse) = exp(z - softplus(lse))
    level_pos, level_neg = softplus(log_pos), softplus(log_neg)
    return level_pos / p0 + level_neg / p1, every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def multi_similarity_derivative(
    s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4
):  # fmt: skip
    return tl.exp(z - level) * tl.where(same, -sign, sign)


# ---- circle: p0 = m, p1 = gamma; the weights relu(...) are constants to the derivative


@triton.jit
def circle_logit(s, same, sign, p0, p1, p2, p3, p4):
    pos = -relu(1 + p0 - s) * (s - (1 - p0))
    return p1 * tl.where(same, pos, relu(s + p0) * (s - p0))


@triton.jit
def circle_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    both = (count_pos > 0) & (count_neg > 0)
    total = log_pos + log_neg
    fade = softplus(-total)
    level_pos = tl.where(both, log_pos + fade, float("inf"))
    level_neg = tl.where(both, log_neg + fade, float("inf"))
    return tl.where(both, softplus(total), 0.0), every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def circle_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    return tl.exp(z - level) * p1 * tl.where(same, -relu(1 + p0 - s), relu(s + p0))


# ---- margin: p0 = margin, p1 = beta


@triton.jit
def margin_logit(s, same, sign, p0, p1, p2, p3, p4):
    beyond = sign * (p1 - s)
    return relu(tl.where(same, beyond, -beyond) + p0)


# ---- threshold consistent: p0 = margin_plus, p1 = margin_minus, p2 = lambda_plus, p3 = lambda_minus


@triton.jit
def threshold_consistent_logit(s, same, sign, p0, p1, p2, p3, p4):
    beyond = tl.where(same, sign * (p0 - s), sign * (s - p1))
    return tl.where(beyond < 0, float("-inf"), beyond * tl.where(same, p2, p3))


@triton.jit
def threshold_consistent_derivative(
    s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4
):  # fmt: skip
    off = tl.where(same, outside(z, low_pos, high_pos), outside(z, low_neg, high_neg))
    return tl.where(off, 0.0, tl.where(same, -sign * p2, sign * p3))


# ---- SigLIP: p0 = scale, p1 = bias


@triton.jit
def siglip_gap(s, same, sign, p0, p1):
    # what the loss is the softplus of: how far the pair's sigmoid is from its side
    gap = s * (sign * p0) + p1
    return tl.where(same, -gap, gap)


@triton.jit
def siglip_logit(s, same, sign, p0, p1, p2, p3, p4):
    return softplus(siglip_gap(s, same, sign, p0, p1))


@triton.jit
def siglip_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    return sigmoid(siglip_gap(s, same, sign, p0, p1)) * tl.where(same, -sign * p0, sign * p0)


# ---- NCA: p0 = softmax_scale; levels fold the sigmoid of softplus's derivative in


@triton.jit
def nca_logit(s, same, sign, p0, p1, p2, p3, p4):
    return s * (sign * p0)


@triton.jit
def nca_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    some = count_pos > 0
    log_pos = tl.where(some, log_pos, 0.0)
    # sigmoid(log_neg - log_pos) * exp(z - log) = exp(z - (log + softplus(log_pos - log_neg)))
    fade = tl.where(some & (count_neg > 0), softplus(log_pos - log_neg), float("inf"))
    loss = tl.where(some, softplus(log_neg - log_pos), 0.0)
    return loss, tl.where(some, 1.0, 0.0), log_pos + fade, tl.where(count_neg > 0, log_neg, 0.0) + fade, 0.0 * count_pos


@triton.jit
def nca_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    return tl.exp(z - level) * tl.where(same, -sign * p0, sign * p0)


# ---- generalized lifted structure: p0 = neg_margin, p1 = pos_margin; a side without pairs adds 0


@triton.jit
def generalized_lifted_logit(s, same, sign, p0, p1, p2, p3, p4):
    return tl.where(same, sign * (p1 - s), sign * (s - p0))


@triton.jit
def generalized_lifted_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    loss = relu(tl.where(count_pos > 0, log_pos, 0.0) + tl.where(count_neg > 0, log_neg, 0.0))
    # Written so that a NaN is inside, and seen.
    off = loss <= 0
    level_pos, level_neg = tl.where(off, float("inf"), log_pos), tl.where(off, float("inf"), log_neg)
    return loss, every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def generalized_lifted_derivative(
    s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4
):  # fmt: skip
    return tl.exp(z - level) * tl.where(same, -sign, sign)


# ---- tuplet margin: p0 = scale, p1 and p2 = cosine and sine of the margin; levels as NT-Xent's


@triton.jit
def sine_of(cosine):
    # 0 where the angle is 0, with a slope of 0
    square = 1.0 - cosine * cosine
    return tl.sqrt(tl.where(square < 0, 0.0, square))


@triton.jit
def tuplet_margin_logit(s, same, sign, p0, p1, p2, p3, p4):
    return p0 * tl.where(same, s * p1 + sine_of(s) * p2, s)


@triton.jit
def tuplet_margin_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    share = tl.exp(z - level)
    sine = sine_of(s)
    turn = p1 - tl.where(sine > 0, s / tl.where(sine > 0, sine, 1.0), 0.0) * p2
    off = outside(softplus(level - z), low_pos, high_pos)
    return p0 * tl.where(same, tl.where(off, 0.0, -turn / (1.0 + share)), share)


# ---- ranked list: p0 = where positives begin, p1 = where negatives end, p2 and p3 = temperatures of the sides, p4 = share of
# the negatives; level = log of the sum of the weights, extra = the weighted mean of what is beyond


@triton.jit
def ranked_list_beyond(s, same, p0, p1):
    return tl.where(same, s - p0, p1 - s)


@triton.jit
def ranked_list_logit(s, same, sign, p0, p1, p2, p3, p4):
    beyond = ranked_list_beyond(s, same, p0, p1)
    # Written so that a NaN is inside, and seen.
    return tl.where((beyond <= 0) | (s <= 0), float("-inf"), beyond * tl.where(same, p2, p3))


@triton.jit
def ranked_list_finish(log_pos, log_neg, mean_pos, mean_neg, columns, p0, p1, p2, p3, p4):
    # Added for each column of the comparison, as PML does; what is a mean over none is 0 whatever is added.
    floor = tl.log(tl.where(columns > 0, columns, 1).to(tl.float32) * RANKED_LIST_FLOOR)
    level_pos, level_neg = log_add_exp(log_pos, floor), log_add_exp(log_neg, floor)
    extra_pos = tl.exp(log_pos - level_pos) * (mean_pos - p0)
    extra_neg = tl.exp(log_neg - level_neg) * (p1 - mean_neg)
    loss = (1 - p4) * extra_pos + p4 * extra_neg
    return loss, every_row(columns), level_pos, level_neg, extra_pos, extra_neg


@triton.jit
def ranked_list_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    away = (ranked_list_beyond(s, same, p0, p1) - extra) * tl.where(same, p2, p3)
    return tl.exp(z - level) * (1 + away) * tl.where(same, 1 - p4, -p4)
