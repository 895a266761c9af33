"""What a class loss folds: the maths of a batch against class weights, free of any device or block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pml_fast.engine.score import Score

POOLS = ("single", "max", "soft")
FOLDS = ("row_lse", "class_lse", "row_squares")
LIFTS = ("none", "square", "snr")


@dataclass(frozen=True)
class ClassSpec:
    """From scores ``s`` of rows against class weights to what is left of a sweep.

    Columns: the weights, divided by their ``p``-norm where ``unit``, then lifted (:func:`lifted_columns`), are compared by
    ``score`` with rows prepared likewise (:func:`prepared_rows`, ``unit_rows``). ``centers`` weights in a row belong to a
    class; ``pool`` makes one score of theirs: the ``max``, or the mean under softmax weights of ``sharpness * s`` (``soft``).
    The logit is ``scale * pooled``.

    ``fold`` says what is summed over all pairs of different classes: ``row_lse``, each row's log-sum-exp of logits over the
    other classes; ``class_lse``, each class's over the rows of other classes; ``row_squares``, each row's sum of squares of
    the scores clamped to [-1, 1]. ``norms`` asks for the Euclidean norm of each row's own class weight as well.
    """

    score: Score
    unit: bool = False
    p: float = 2.0
    lift: str = "none"
    centers: int = 1
    pool: str = "single"
    sharpness: float = 1.0
    scale: float = 1.0
    fold: str = "row_lse"
    norms: bool = False
    unit_rows: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("pool", POOLS), ("fold", FOLDS), ("lift", LIFTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.centers < 1 or (self.pool == "single" and self.centers != 1):
            raise ValueError(f"centers must be 1 for pool 'single' and positive for the others, got {self.centers}")
        if self.norms and (self.centers != 1 or self.p != 2):
            raise ValueError(f"norms are Euclidean, of one centre a class, got p={self.p} and centers={self.centers}")

    def encode(self) -> str:
        """The spec as the string that the operator's schema carries: its rows are prepared before."""
        own = (
            int(self.unit), repr(self.p), self.lift, self.centers, self.pool, repr(self.sharpness), repr(self.scale), self.fold,
            int(self.norms),
        )  # fmt: skip
        return ";".join([self.score.encode(), *map(str, own)])

    @staticmethod
    @lru_cache(maxsize=256)
    def decode(text: str) -> ClassSpec:
        """The inverse of :meth:`encode`, for prepared rows."""
        score, unit, p, lift, centers, pool, sharpness, scale, fold, norms = text.split(";")
        return ClassSpec(
            Score.decode(score), unit == "1", float(p), lift, int(centers), pool, float(sharpness), float(scale), fold,
            norms == "1",
        )  # fmt: skip

    def columns(self, weights: Tensor) -> Tensor:
        """Weights ``[M, D]`` as the score takes them, differentiable."""
        if self.unit:
            weights = torch.nn.functional.normalize(weights, p=self.p, dim=1)
        return lifted_columns(self.lift, weights)

    def pooled(self, s: Tensor) -> Tensor:
        """One score a class ``[n, C]`` from scores ``[n, C * centers]``."""
        if self.pool == "single":
            return s
        grouped = s.view(s.shape[0], s.shape[1] // self.centers, self.centers)
        if self.pool == "max":
            return grouped.amax(dim=2)
        return (torch.softmax(grouped * self.sharpness, dim=2) * grouped).sum(dim=2)

    def unpooled(self, grad: Tensor, s: Tensor) -> Tensor:
        """The derivative by the scores ``[n, C * centers]``, given that by the pooled ones."""
        if self.pool == "single":
            return grad
        grouped, grad = s.view(s.shape[0], s.shape[1] // self.centers, self.centers), grad.unsqueeze(2)
        if self.pool == "max":
            # Of equal maxima the first has the gradient.
            first = grouped.argmax(dim=2, keepdim=True)
            return torch.zeros_like(grouped).scatter_(2, first, grad).view_as(s)
        share = torch.softmax(grouped * self.sharpness, dim=2)
        mean = (share * grouped).sum(dim=2, keepdim=True)
        return (share * (1 + self.sharpness * (grouped - mean)) * grad).view_as(s)


def lifted_columns(lift: str, y: Tensor) -> Tensor:
    """Columns with the features that make a distance an inner product with :func:`lifted_rows`."""
    if lift == "none":
        return y
    if lift == "square":
        return torch.cat([y, y.square().sum(dim=1, keepdim=True)], dim=1)
    y = y - y.mean(dim=1, keepdim=True)
    square = y.square().sum(dim=1, keepdim=True)
    return torch.cat([y, square, torch.ones_like(square)], dim=1)


def lifted_rows(lift: str, x: Tensor) -> Tensor:
    """Rows for :func:`lifted_columns`: ``square`` gives ``|x|^2 - |x - y|^2``, ``snr`` gives ``var(x - y) / var(x)``."""
    if lift == "none":
        return x
    if lift == "square":
        return torch.cat([2 * x, -torch.ones_like(x[:, :1])], dim=1)
    x = x - x.mean(dim=1, keepdim=True)
    inverse = x.square().sum(dim=1, keepdim=True).reciprocal()
    return torch.cat([x * (-2 * inverse), inverse, torch.ones_like(inverse)], dim=1)


def prepared_rows(x: Tensor, spec: ClassSpec) -> Tensor:
    """Rows as the score of a spec takes them, differentiable."""
    if spec.unit_rows:
        x = torch.nn.functional.normalize(x, p=spec.p, dim=1)
    return lifted_rows(spec.lift, x)
