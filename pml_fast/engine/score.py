"""The score: how the comparison of two rows becomes the number a loss sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils.checks import check_positive

KINDS = ("dot", "l2", "lp")

# F.normalize's own guard against a zero norm.
NORM_EPS = 1e-12


@dataclass(frozen=True)
class Score:
    """What an engine computes for a row ``x`` and a column ``y``.

    ``kind`` is ``"dot"`` (inner product), ``"l2"`` (Euclidean distance) or ``"lp"`` (p-norm of the difference).
    ``normalize`` divides rows and columns by their Euclidean norm first. ``power`` is applied to the value last.
    ``inverted`` says that a larger value means closer. ``symmetric`` says that rows and columns are prepared alike, so
    that a set against itself has a symmetric matrix. ``prepared`` names what is done to embeddings before an engine gets them
    as rows: of embeddings that are prepared otherwise the same score is another number. ``bounded`` says that the value is
    known to stay in [-1, 1] (dot) or [0, 2**power] (l2), which holds when both sides are unit vectors.
    Raises ``ValueError`` unless ``p`` and ``power`` are above 0 (``p`` may be infinite).
    """

    kind: str = "dot"
    p: float = 2.0
    power: float = 1.0
    normalize: bool = True
    inverted: bool = True
    symmetric: bool = True
    prepared: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        # Scores are made with every call of a loss: what is plainly right is not handed on.
        if not (isinstance(self.p, float) and self.p > 0):
            check_positive("p", self.p, infinite=True)
        if not (isinstance(self.power, float) and 0 < self.power < math.inf):
            check_positive("power", self.power)

    @property
    def sign(self) -> float:
        """+1 where larger is closer, -1 where smaller is closer."""
        return 1.0 if self.inverted else -1.0

    @property
    def bounded(self) -> bool:
        """Whether the value's range is known before any data is seen."""
        return self.normalize and self.kind in ("dot", "l2")

    def range(self) -> tuple[float, float]:
        """The smallest and largest value a bounded score can take (with a margin for rounding)."""
        slack = 1e-3
        if not self.bounded:
            return (float("-inf"), float("inf"))
        if self.kind == "dot":
            ends = ((-1.0 - slack) ** self.power, (1.0 + slack) ** self.power) if self.power != 1 else (-1.0, 1.0)
            return (min(0.0, *ends) if self.power % 2 == 0 else ends[0], ends[1])
        return (0.0, (2.0 + slack) ** self.power)

    def encode(self) -> str:
        """The score of prepared rows as the string an operator's schema carries."""
        return f"{self.kind}|{self.p!r}|{self.power!r}|{int(self.normalize)}|{int(self.inverted)}|{int(self.symmetric)}"

    @staticmethod
    @lru_cache(maxsize=256)
    def decode(text: str) -> Score:
        """The inverse of :meth:`encode`, but for how rows were prepared."""
        kind, p, power, normalize, inverted, symmetric = text.split("|")
        return Score(kind, float(p), float(power), normalize == "1", inverted == "1", symmetric == "1")


NAMED_SCORES = {
    "cosine": Score("dot"),
    "dot": Score("dot", normalize=False),
    "l2": Score("l2", normalize=False, inverted=False),
    "squared_l2": Score("l2", power=2.0, normalize=False, inverted=False),
}


def named_score(distance: Any) -> Score:
    """A ``Score`` as it is, or the one of a name; raises ``TypeError`` or ``ValueError``."""
    if isinstance(distance, Score):
        return distance
    if not isinstance(distance, str):
        raise TypeError(f"distance must be one of {', '.join(NAMED_SCORES)} or a Score, got {type(distance).__name__}")
    if distance not in NAMED_SCORES:
        raise ValueError(f"distance must be one of {', '.join(NAMED_SCORES)} or a Score, got {distance!r}")
    return NAMED_SCORES[distance]


# Rows handled at a time where a temporary of the whole matrix would show in the peak memory.
ROWS_AT_ONCE = 8192


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norms ``[N, 1]`` as rows are divided by them: never zero."""
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(NORM_EPS)


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``x`` divided by their Euclidean norm, and the norms ``[N, 1]`` as they were used."""
    norm = row_norms(x)
    return x / norm, norm


def unit_rows_backward(grad: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    """Gradient by ``x`` given the gradient by its unit rows, which it overwrites."""
    for part, rows, size in zip(grad.split(ROWS_AT_ONCE), x.split(ROWS_AT_ONCE), norm.split(ROWS_AT_ONCE), strict=True):
        unit = rows / size
        along = (part * unit).sum(dim=1, keepdim=True)
        # A clamped norm is a constant: its rows have no component to project out.
        along = along.masked_fill_(size <= NORM_EPS, 0.0)
        part.addcmul_(unit, along, value=-1.0).div_(size)
    return grad


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type that sums and gradients of an input type are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_scores(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """The whole ``[N, M]`` score matrix of *prepared* rows, differentiable; zero distances get zero gradient."""
    if score.kind == "dot":
        value = x @ y.T
    elif score.kind == "l2":
        # Differences, not the expanded square: exact near zero.
        value = torch.cdist(x, y, p=2.0, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        value = torch.cdist(x, y, p=score.p)
    return _powered(score, value)


def paired_scores(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """Scores of prepared rows taken two by two, ``[K, D]`` against ``[K, D]``; differentiable."""
    if score.kind == "dot":
        value = (x * y).sum(dim=1)
    else:
        value = _safe_norm(x - y, score.p)
    return _powered(score, value)


def _powered(score: Score, value: Tensor) -> Tensor:
    if score.power == 1:
        return value
    if score.power > 1:
        return value**score.power
    # The derivative is infinite at 0, where the value itself has none to pass on.
    zero = value == 0
    return torch.where(zero, value.detach() ** score.power, value.masked_fill(zero, 1.0) ** score.power)


def _safe_norm(diff: Tensor, p: float) -> Tensor:
    # vector_norm's gradient at zero is already zero for p = 2, but not for every p below 1.
    return torch.linalg.vector_norm(diff, ord=p, dim=1)
