"""Functions that the epilogues have in common."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def relu(x):
    # Not tl.maximum: it would lose a NaN.
    return tl.where(x < 0, 0.0, x)


@triton.jit
def softplus(x):
    # log1p by the series of 2 atanh(r): the hardware's logarithm has no relative accuracy near 1.
    t = tl.exp(-tl.abs(x))
    r = t / (2.0 + t)
    q = r * r
    tail = 1 / 9 + q * (1 / 11 + q * (1 / 13))
    log1p = 2.0 * r * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * tail))))
    return relu(x) + log1p


@triton.jit
def log1p(x):
    # for x of 0 and more; what rounding takes from 1 + x, the quotient gives back
    grown = 1.0 + x
    gained = grown - 1.0
    return tl.where(gained == 0, x, tl.log(grown) * (x / tl.where(gained == 0, 1.0, gained)))


@triton.jit
def outside(loss, low, high):
    # Written so that a NaN is inside, and seen.
    return (loss <= low) | (loss >= high)


@triton.jit
def log_add_exp(a, b):
    top = tl.maximum(a, b)
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    return shift + tl.log(tl.exp(a - shift) + tl.exp(b - shift))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def every_row(count):
    # 1 for each row: all of them have a loss
    return tl.where(count >= 0, 1.0, 0.0)
