"""What each loss does to a tile of scores: its logit, what a row keeps, and its derivative, side by side.

Two shapes cover the losses. ``EXP``: a row keeps the log-sum-exp of a logit over its positives and over its
negatives, then ``finish`` turns them into the row's loss and the *levels* its derivative needs. ``HINGE``: every pair
has a loss of its own that is summed and counted. ``EXP_THEN_PAIRS`` is ``EXP`` over the negatives, then a loss for
each positive against that level.

A loss is one group of functions and one line of :data:`EPILOGUES`:

``logit(s, same, sign, p0, p1, p2)``
    the logit (``EXP``) or the pair's loss (``HINGE``); ``same`` marks positives, ``sign`` is the score's.
``finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2)`` (``EXP``)
    the row's loss and the levels ``(level_pos, level_neg, extra)``; a level of ``inf`` means no gradient.
``finish(z, log_neg)`` (``EXP_THEN_PAIRS``)
    a positive's loss and its derivative by ``log_neg``.
``derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2)``
    dL/ds of a pair of an anchor of weight 1, with ``level`` that of the pair's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

EXP, HINGE, EXP_THEN_PAIRS = 0, 1, 2


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
def outside(loss, low, high):
    # Written so that a NaN is inside, and seen.
    return (loss <= low) | (loss >= high)


@triton.jit
def log_add_exp(a, b):
    top = tl.maximum(a, b)
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    return shift + tl.log(tl.exp(a - shift) + tl.exp(b - shift))


@triton.jit
def temperature_logit(s, same, sign, p0, p1, p2):
    return s * (sign / p0)


# ---- contrastive: p0 = pos_margin, p1 = neg_margin


@triton.jit
def contrastive_logit(s, same, sign, p0, p1, p2):
    return relu(tl.where(same, sign * (p0 - s), sign * (s - p1)))


@triton.jit
def contrastive_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2):
    off = tl.where(same, outside(z, low_pos, high_pos), outside(z, low_neg, high_neg)) | (z <= 0)
    return tl.where(off, 0.0, tl.where(same, -sign, sign))


# ---- NT-Xent: p0 = temperature; level_pos = log_neg, and level_neg = log_neg - log(sum over the positives of the
# derivative of their losses by log_neg)


@triton.jit
def ntxent_finish(z, log_neg):
    gap = log_neg - z
    return softplus(gap), 1.0 / (1.0 + tl.exp(-gap))


@triton.jit
def ntxent_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2):
    share = tl.exp(z - level)
    off = outside(softplus(level - z), low_pos, high_pos)
    return tl.where(same, tl.where(off, 0.0, -1.0 / (1.0 + share)), share) * (sign / p0)


# ---- SupCon: p0 = temperature; level = log of the sum over all others, extra = -1 / number of positives


@triton.jit
def supcon_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2):
    some = count_pos > 0
    share = 1.0 / tl.where(some, count_pos, 1).to(tl.float32)
    level = tl.where(some, log_add_exp(log_pos, log_neg), float("inf"))
    return tl.where(some, level - sum_pos * share, 0.0), level, level, tl.where(some, -share, 0.0)


@triton.jit
def supcon_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2):
    return (tl.exp(z - level) + tl.where(same, extra, 0.0)) * (sign / p0)


# ---- multi-similarity: p0 = alpha, p1 = beta, p2 = base; levels fold the sigmoid of softplus's derivative in


@triton.jit
def multi_similarity_logit(s, same, sign, p0, p1, p2):
    return (s - p2) * tl.where(same, -sign * p0, sign * p1)


@triton.jit
def multi_similarity_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2):
    # sigmoid(lse) * exp(z - lse) = exp(z - softplus(lse))
    level_pos, level_neg = softplus(log_pos), softplus(log_neg)
    return level_pos / p0 + level_neg / p1, level_pos, level_neg, 0.0 * count_pos


@triton.jit
def multi_similarity_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2):
    return tl.exp(z - level) * tl.where(same, -sign, sign)


# ---- circle: p0 = m, p1 = gamma; the weights relu(...) are constants to the derivative


@triton.jit
def circle_logit(s, same, sign, p0, p1, p2):
    pos = -relu(1 + p0 - s) * (s - (1 - p0))
    return p1 * tl.where(same, pos, relu(s + p0) * (s - p0))


@triton.jit
def circle_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2):
    both = (count_pos > 0) & (count_neg > 0)
    total = log_pos + log_neg
    fade = softplus(-total)
    level_pos = tl.where(both, log_pos + fade, float("inf"))
    level_neg = tl.where(both, log_neg + fade, float("inf"))
    return tl.where(both, softplus(total), 0.0), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def circle_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2):
    return tl.exp(z - level) * p1 * tl.where(same, -relu(1 + p0 - s), relu(s + p0))


@dataclass(frozen=True)
class Epilogue:
    """The functions of one loss, as the kernels take them."""

    shape: int
    logit: Any
    finish: Any
    derivative: Any

    @property
    def levels(self) -> int:
        """Numbers a row saves for the derivative: level_pos, level_neg, extra; none for a hinge."""
        return 0 if self.shape == HINGE else 3


EPILOGUES: dict[str, Epilogue] = {
    "contrastive": Epilogue(HINGE, contrastive_logit, None, contrastive_derivative),
    "ntxent": Epilogue(EXP_THEN_PAIRS, temperature_logit, ntxent_finish, ntxent_derivative),
    "supcon": Epilogue(EXP, temperature_logit, supcon_finish, supcon_derivative),
    "multi_similarity": Epilogue(EXP, multi_similarity_logit, multi_similarity_finish, multi_similarity_derivative),
    "circle": Epilogue(EXP, circle_logit, circle_finish, circle_derivative),
}
