"""What each loss does to a tile of scores: its logit, what a row keeps, and its derivative, side by side.

Four shapes cover the losses. ``EXP``: a row keeps the log-sum-exp of a logit over its positives and over its
negatives, then ``finish`` turns them into the row's loss and the *levels* its derivative needs. ``HINGE``: every pair
has a loss of its own that is summed and counted. ``SUM``: the row's loss is the sum of its pairs'. ``EXP_THEN_PAIRS`` is
``EXP`` over the negatives, then a loss for each positive against that level.

A loss is one group of functions and one line of :data:`EPILOGUES`:

``logit(s, same, sign, p0, p1, p2, p3)``
    the logit (``EXP``) or the pair's loss (``HINGE``, where ``-inf`` is none at all, and ``SUM``); ``same`` marks positives,
    ``sign`` is the score's.
``finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3)`` (``EXP``)
    the row's loss, whether it has one (1 or 0), and the levels ``(level_pos, level_neg, extra)``; a level of ``inf`` means no
    gradient.
``finish(z, log_neg)`` (``EXP_THEN_PAIRS``)
    a positive's loss and its derivative by ``log_neg``.
``derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3)``
    dL/ds of a pair of an anchor of weight 1, with ``level`` that of the pair's side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.triton.epilogue_maths import every_row, log_add_exp, outside, relu, sigmoid, softplus

EXP, HINGE, EXP_THEN_PAIRS, SUM = 0, 1, 2, 3


@triton.jit
def temperature_logit(s, same, sign, p0, p1, p2, p3):
    return s * (sign / p0)


# ---- contrastive: p0 = pos_margin, p1 = neg_margin


@triton.jit
def contrastive_logit(s, same, sign, p0, p1, p2, p3):
    return relu(tl.where(same, sign * (p0 - s), sign * (s - p1)))


@triton.jit
def contrastive_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    off = tl.where(same, outside(z, low_pos, high_pos), outside(z, low_neg, high_neg)) | (z <= 0)
    return tl.where(off, 0.0, tl.where(same, -sign, sign))


# ---- NT-Xent: p0 = temperature; level_pos = log_neg, and level_neg = log_neg - log(sum over the positives of the
# derivative of their losses by log_neg)


@triton.jit
def ntxent_finish(z, log_neg):
    gap = log_neg - z
    return softplus(gap), sigmoid(gap)


@triton.jit
def ntxent_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    share = tl.exp(z - level)
    off = outside(softplus(level - z), low_pos, high_pos)
    return tl.where(same, tl.where(off, 0.0, -1.0 / (1.0 + share)), share) * (sign / p0)


# ---- SupCon: p0 = temperature; level = log of the sum over all others, extra = -1 / number of positives


@triton.jit
def supcon_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    some = count_pos > 0
    share = 1.0 / tl.where(some, count_pos, 1).to(tl.float32)
    level = tl.where(some, log_add_exp(log_pos, log_neg), float("inf"))
    loss = tl.where(some, level - sum_pos * share, 0.0)
    return loss, every_row(count_pos), level, level, tl.where(some, -share, 0.0)


@triton.jit
def supcon_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return (tl.exp(z - level) + tl.where(same, extra, 0.0)) * (sign / p0)


# ---- log-sum-exp: p0 = temperature; level = the value


@triton.jit
def log_sum_exp_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    some = count_pos + count_neg > 0
    value = tl.where(some, log_add_exp(log_pos, log_neg), 0.0)
    level = tl.where(some, value, float("inf"))
    return value, tl.where(some, 1.0, 0.0), level, level, 0.0 * count_pos


@triton.jit
def log_sum_exp_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return tl.exp(z - level) * (sign / p0)


# ---- multi-similarity: p0 = alpha, p1 = beta, p2 = base; levels fold the sigmoid of softplus's derivative in


@triton.jit
def multi_similarity_logit(s, same, sign, p0, p1, p2, p3):
    return (s - p2) * tl.where(same, -sign * p0, sign * p1)


@triton.jit
def multi_similarity_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    # sigmoid(lse) * exp(z - lse) = exp(z - softplus(lse))
    level_pos, level_neg = softplus(log_pos), softplus(log_neg)
    return level_pos / p0 + level_neg / p1, every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def multi_similarity_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return tl.exp(z - level) * tl.where(same, -sign, sign)


# ---- circle: p0 = m, p1 = gamma; the weights relu(...) are constants to the derivative


@triton.jit
def circle_logit(s, same, sign, p0, p1, p2, p3):
    pos = -relu(1 + p0 - s) * (s - (1 - p0))
    return p1 * tl.where(same, pos, relu(s + p0) * (s - p0))


@triton.jit
def circle_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    both = (count_pos > 0) & (count_neg > 0)
    total = log_pos + log_neg
    fade = softplus(-total)
    level_pos = tl.where(both, log_pos + fade, float("inf"))
    level_neg = tl.where(both, log_neg + fade, float("inf"))
    return tl.where(both, softplus(total), 0.0), every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def circle_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return tl.exp(z - level) * p1 * tl.where(same, -relu(1 + p0 - s), relu(s + p0))


# ---- margin: p0 = margin, p1 = beta


@triton.jit
def margin_logit(s, same, sign, p0, p1, p2, p3):
    beyond = sign * (p1 - s)
    return relu(tl.where(same, beyond, -beyond) + p0)


# ---- threshold consistent: p0 = margin_plus, p1 = margin_minus, p2 = lambda_plus, p3 = lambda_minus


@triton.jit
def threshold_consistent_logit(s, same, sign, p0, p1, p2, p3):
    beyond = tl.where(same, sign * (p0 - s), sign * (s - p1))
    return tl.where(beyond < 0, float("-inf"), beyond * tl.where(same, p2, p3))


@triton.jit
def threshold_consistent_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    off = tl.where(same, outside(z, low_pos, high_pos), outside(z, low_neg, high_neg))
    return tl.where(off, 0.0, tl.where(same, -sign * p2, sign * p3))


# ---- SigLIP: p0 = scale, p1 = bias


@triton.jit
def siglip_gap(s, same, sign, p0, p1):
    # what the loss is the softplus of: how far the pair's sigmoid is from its side
    gap = s * (sign * p0) + p1
    return tl.where(same, -gap, gap)


@triton.jit
def siglip_logit(s, same, sign, p0, p1, p2, p3):
    return softplus(siglip_gap(s, same, sign, p0, p1))


@triton.jit
def siglip_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return sigmoid(siglip_gap(s, same, sign, p0, p1)) * tl.where(same, -sign * p0, sign * p0)


# ---- NCA: p0 = softmax_scale; levels fold the sigmoid of softplus's derivative in


@triton.jit
def nca_logit(s, same, sign, p0, p1, p2, p3):
    return s * (sign * p0)


@triton.jit
def nca_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    some = count_pos > 0
    log_pos = tl.where(some, log_pos, 0.0)
    # sigmoid(log_neg - log_pos) * exp(z - log) = exp(z - (log + softplus(log_pos - log_neg)))
    fade = tl.where(some & (count_neg > 0), softplus(log_pos - log_neg), float("inf"))
    loss = tl.where(some, softplus(log_neg - log_pos), 0.0)
    return loss, tl.where(some, 1.0, 0.0), log_pos + fade, tl.where(count_neg > 0, log_neg, 0.0) + fade, 0.0 * count_pos


@triton.jit
def nca_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return tl.exp(z - level) * tl.where(same, -sign * p0, sign * p0)


# ---- generalized lifted structure: p0 = neg_margin, p1 = pos_margin; a side without pairs adds 0


@triton.jit
def generalized_lifted_logit(s, same, sign, p0, p1, p2, p3):
    return tl.where(same, sign * (p1 - s), sign * (s - p0))


@triton.jit
def generalized_lifted_finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3):
    loss = relu(tl.where(count_pos > 0, log_pos, 0.0) + tl.where(count_neg > 0, log_neg, 0.0))
    # Written so that a NaN is inside, and seen.
    off = loss <= 0
    level_pos, level_neg = tl.where(off, float("inf"), log_pos), tl.where(off, float("inf"), log_neg)
    return loss, every_row(count_pos), level_pos, level_neg, 0.0 * count_pos


@triton.jit
def generalized_lifted_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    return tl.exp(z - level) * tl.where(same, -sign, sign)


# ---- tuplet margin: p0 = scale, p1 and p2 = cosine and sine of the margin; levels as NT-Xent's


@triton.jit
def sine_of(cosine):
    # 0 where the angle is 0, with a slope of 0
    square = 1.0 - cosine * cosine
    return tl.sqrt(tl.where(square < 0, 0.0, square))


@triton.jit
def tuplet_margin_logit(s, same, sign, p0, p1, p2, p3):
    return p0 * tl.where(same, s * p1 + sine_of(s) * p2, s)


@triton.jit
def tuplet_margin_derivative(s, z, same, level, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3):
    share = tl.exp(z - level)
    sine = sine_of(s)
    turn = p1 - tl.where(sine > 0, s / tl.where(sine > 0, sine, 1.0), 0.0) * p2
    off = outside(softplus(level - z), low_pos, high_pos)
    return p0 * tl.where(same, tl.where(off, 0.0, -turn / (1.0 + share)), share)


@dataclass(frozen=True)
class Epilogue:
    """The functions of one loss, as the kernels take them.

    ``params`` gives the numbers ``p0 ..`` of a spec, at most :data:`PARAMS`: its own parameters, or what follows from them.
    ``cosines`` says that the maths is that of cosines: of distances there is no kernel. The derivative of a ``heavy`` one
    leaves no registers for a block of the gradient, whose coefficients are written out instead.
    """

    shape: int
    logit: Any
    finish: Any
    derivative: Any
    params: Callable[[Any], list[float]] = PairSpec.params
    cosines: bool = False
    heavy: bool = False

    @property
    def levels(self) -> int:
        """Numbers a row saves for the derivative: level_pos, level_neg, extra; none where a pair's loss is its own."""
        return 0 if self.shape in (HINGE, SUM) else 3


PARAMS = 4


def _threshold_consistent_params(spec: Any) -> list[float]:
    return [spec.margin_plus, spec.margin_minus, spec.lambda_plus, spec.lambda_minus]


def _tuplet_margin_params(spec: Any) -> list[float]:
    return [spec.scale, math.cos(spec.margin), math.sin(spec.margin)]


EPILOGUES: dict[str, Epilogue] = {
    "contrastive": Epilogue(HINGE, contrastive_logit, None, contrastive_derivative),
    "ntxent": Epilogue(EXP_THEN_PAIRS, temperature_logit, ntxent_finish, ntxent_derivative),
    "supcon": Epilogue(EXP, temperature_logit, supcon_finish, supcon_derivative),
    "log_sum_exp": Epilogue(EXP, temperature_logit, log_sum_exp_finish, log_sum_exp_derivative),
    "multi_similarity": Epilogue(EXP, multi_similarity_logit, multi_similarity_finish, multi_similarity_derivative),
    "circle": Epilogue(EXP, circle_logit, circle_finish, circle_derivative, cosines=True),
    # The slope of a hinge does not depend on where it begins.
    "margin": Epilogue(HINGE, margin_logit, None, contrastive_derivative),
    "threshold_consistent": Epilogue(
        HINGE, threshold_consistent_logit, None, threshold_consistent_derivative, _threshold_consistent_params
    ),
    "siglip": Epilogue(SUM, siglip_logit, None, siglip_derivative),
    "nca": Epilogue(EXP, nca_logit, nca_finish, nca_derivative),
    "generalized_lifted_structure": Epilogue(
        EXP, generalized_lifted_logit, generalized_lifted_finish, generalized_lifted_derivative
    ),
    "tuplet_margin": Epilogue(
        EXP_THEN_PAIRS,
        tuplet_margin_logit,
        ntxent_finish,
        tuplet_margin_derivative,
        _tuplet_margin_params,
        cosines=True,
        heavy=True,
    ),
}
