"""The maths of the losses whose pairs need what a first sweep has found; :mod:`epilogues` says what the functions are given."""

from __future__ import annotations

import torch
from torch import Tensor

import triton
import triton.language as tl
from pml_fast.engine.triton.epilogue_maths import log_add_exp, outside, relu

# ---- lifted structure: p0 = neg_margin, p1 = pos_margin; the level of both sides is the log-sum-exp of a row's negatives


@triton.jit
def negatives_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4):
    return log_neg, 0.0 * log_neg, log_neg, log_neg, 0.0 * log_neg


def lifted_shared(rows: Tensor, saved: Tensor) -> Tensor:
    return saved[:2]


def lifted_back(slopes: Tensor, shared: Tensor) -> Tensor:
    """The level of a row's positives is a fold of its negatives."""
    return torch.stack([torch.zeros_like(slopes[0]), slopes[0]])


@triton.jit
def lifted_beyond(z, level, other):
    negatives = log_add_exp(level, other)
    return relu(tl.where(negatives == float("-inf"), 0.0, negatives) + z)


@triton.jit
def lifted_pair(z, same, level, other, sign, p0, p1, p2, p3, p4):
    beyond = lifted_beyond(z, level, other)
    # An end without negatives has no level to move.
    own = tl.where(level == float("-inf"), 0.0, tl.exp(level - log_add_exp(level, other)))
    across = tl.where(other == float("-inf"), 0.0, tl.exp(other - log_add_exp(level, other)))
    return 0.5 * beyond * beyond, beyond * own, beyond * across


@triton.jit
def lifted_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    beyond = lifted_beyond(z, level, other)
    off = outside(0.5 * beyond * beyond, low_pos, high_pos)
    return tl.where(same, tl.where(off, 0.0, -sign * beyond), 0.0)


@triton.jit
def lifted_state(z, same, level, sign):
    return tl.where(same, 0.0, sign * tl.exp(z - level))


# ---- intra-pair variance: p0 = pos_eps, p1 = neg_eps; the levels are the means of all positive and of all negative pairs


@triton.jit
def plain_logit(s, same, sign, p0, p1, p2, p3, p4):
    return s


def variance_shared(rows: Tensor, saved: Tensor) -> Tensor:
    """The means, and by how much each pair moves them."""
    totals = rows.sum(dim=2)
    share = 1 / totals[:, 1].clamp(min=1)
    return torch.cat([totals[:, 0] * share, share]).unsqueeze(1).expand(4, rows.shape[2]).contiguous()


def variance_back(slopes: Tensor, shared: Tensor) -> Tensor:
    return slopes.sum(dim=1, keepdim=True) * shared[2:]


@triton.jit
def variance_side(same, sign, p0, p1):
    # 1 where a pair should have more than the mean, -1 where less, and the share of the mean that it may not pass
    turn = tl.where(same, sign, -sign)
    return turn, 1 - turn * tl.where(same, p0, p1)


@triton.jit
def variance_pair(z, same, level, other, sign, p0, p1, p2, p3, p4):
    turn, share = variance_side(same, sign, p0, p1)
    gap = relu(turn * (share * level - z))
    return gap * gap, 2 * gap * turn * share, 0.0 * gap


@triton.jit
def variance_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    turn, share = variance_side(same, sign, p0, p1)
    gap = relu(turn * (share * level - s))
    loss = gap * gap
    off = tl.where(same, outside(loss, low_pos, high_pos), outside(loss, low_neg, high_neg))
    return tl.where(off, 0.0, -2 * turn * gap)


@triton.jit
def variance_state(z, same, level, sign):
    return 1.0 + 0.0 * z
