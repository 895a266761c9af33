"""What keeps exponentials in range: the logits of each compiled spec, and the level that every row's are reduced by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.score import Score

# A float holds exp() over this range without overflow or underflow.
LOGIT_SPAN = {torch.float32: 150.0, torch.float64: 1200.0}


@dataclass(frozen=True)
class Affine:
    """A negative's logit ``a s + b``."""

    a: float
    b: float

    @property
    def rises(self) -> bool:
        """Whether the largest score has the largest logit."""
        return self.a >= 0

    def of(self, s: Tensor) -> Tensor:
        return self.a * s + self.b

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """The range over a bounded score."""
        first, last = self.a * low + self.b, self.a * high + self.b
        return min(first, last), max(first, last)


@dataclass(frozen=True)
class Curved:
    """Circle loss: ``gamma relu(s + m) (s - m)``."""

    m: float
    gamma: float
    rises = True

    def of(self, s: Tensor) -> Tensor:
        return self.gamma * torch.relu(s + self.m) * (s - self.m)

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """The range over a bounded score."""
        least, top = -self.gamma * self.m * self.m, self.gamma * max(high + self.m, 0.0) * (high - self.m)
        return min(least, top, 0.0), max(least, top, 0.0)


Logit = Affine | Curved
Maker = Callable[[list[float], float], Logit | None]

# The specs of csrc/engine/pair_specs.h: of each the logit of its negatives' exponentials, given its parameters and the score's
# sign; None where there are no exponentials to be kept in range.
LOGITS: dict[str, Maker] = {
    "supcon": lambda p, sign: Affine(sign / p[0], 0.0),
    "log_sum_exp": lambda p, sign: Affine(sign / p[0], 0.0),
    "ntxent": lambda p, sign: Affine(sign / p[0], 0.0),
    "multi_similarity": lambda p, sign: Affine(sign * p[1], -sign * p[1] * p[2]),
    "circle": lambda p, sign: Curved(*p),
    "tuplet_margin": lambda p, sign: Affine(p[1], 0.0),
    "nca": lambda p, sign: Affine(sign * p[0], 0.0),
    "generalized_lifted_structure": lambda p, sign: Affine(sign, -sign * p[0]),
    "lifted_structure": lambda p, sign: Affine(sign, -sign * p[0]),
    "contrastive": lambda p, sign: None,
    "margin": lambda p, sign: None,
    "threshold_consistent": lambda p, sign: None,
    "intra_pair_variance": lambda p, sign: None,
    "siglip": lambda p, sign: None,
    "ranked_list": lambda p, sign: None,
}
COMPILED = tuple(LOGITS)
# How often all tiles are folded: the others finish a row, and what it takes of its positives' rows, after one sweep.
SWEEPS = {"intra_pair_variance": 2}
# A negative's slope takes nothing of what its row has summed.
_OF_THE_PAIR = ("contrastive", "margin", "threshold_consistent", "siglip")
# It takes two numbers of its row, not one as a factor.
_OF_TWO_NUMBERS = ("intra_pair_variance", "ranked_list")


def one_sweep(spec: str, score: Score, columns_too: bool, uniform: bool) -> bool:
    """Whether the gradient's products can be taken in the first sweep, before the rows are finished.

    A row's own gradient is weighed afterwards, by one number a row. One that others have a part in (``columns_too``: the
    columns', or that of rows that are columns) is so only where all rows have the same number.
    """
    if columns_too:
        return uniform and spec in _OF_THE_PAIR
    # Rows of any length could carry exponentials that are not yet divided by their sum out of range.
    return spec in _OF_THE_PAIR or (score.bounded and spec not in _OF_TWO_NUMBERS)


def logit(spec: str, params: list[float], score: Score) -> Logit | None:
    """The logit that a compiled spec's negatives have."""
    return LOGITS[spec](params, score.sign)


def row_levels(own: Logit, score: Score, x_norms: Tensor, y_norms: Tensor) -> Tensor | float | None:
    """A level for each row ``[N]`` or for all, where the range that the norms ``[N]`` and ``[M]`` leave its scores fits the
    type's exponent. Inner products have one for all: what lies in the middle is 0."""
    if score.kind not in ("dot", "l2") or not isinstance(own, Affine) or y_norms.numel() == 0:
        return None
    top = y_norms.max()
    far = (x_norms * top if score.kind == "dot" else x_norms + top) ** score.power
    least = -far if score.kind == "dot" else torch.zeros_like(far)
    # Comparisons with NaN are False: such rows are asked for their largest logit.
    fits = abs(own.a) * (far - least) <= LOGIT_SPAN[far.dtype]
    if not bool(fits.all()):
        return None
    return own.b if score.kind == "dot" else own.of((far + least) / 2)


def fixed_level(spec: str, params: list[float], score: Score, dtype: torch.dtype) -> float:
    """One level for every logit where the whole range fits the type's exponent, else NaN: one a row."""
    own = logit(spec, params, score)
    if own is None:
        return 0.0
    low, high = own.ends(*score.range())
    return (low + high) / 2 if high - low <= LOGIT_SPAN[dtype] else math.nan
