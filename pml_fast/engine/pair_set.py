"""All pairs of a batch as strips of scores, which miners sweep over several times; nothing as large as all pairs is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.materialise import prepared_rows
from pml_fast.engine.problem import same_labels
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.strips import powered, strip_base

# The share of a strip that folds in torch take at a time: they make a dozen temporaries, some of twice as many bytes.
PART = 8


@dataclass
class ScoreStrip:
    """Scores ``[n, m]`` of the rows ``first ..`` and the columns ``column ..``."""

    first: int
    column: int
    scores: Tensor

    def parts(self) -> Iterator[ScoreStrip]:
        """The strip in some shorter ones."""
        return self.split(max(1, grad_sum.STRIP_ELEMENTS // PART // max(self.scores.shape[1], 1)))

    def split(self, step: int) -> Iterator[ScoreStrip]:
        """The strip in shorter ones of ``step`` rows."""
        for start in range(0, self.scores.shape[0], step):
            yield replace(self, first=self.first + start, scores=self.scores[start : start + step])


@dataclass
class PairSet:
    """All pairs of a batch, in strips.

    A batch against itself under a symmetric score is seen from one side of the diagonal only: a pair and its mirror image
    then tie exactly, however a product rounds.
    """

    x: Tensor
    y: Tensor
    labels: Tensor
    ref_labels: Tensor
    score: Score
    itself: bool

    @property
    def mirrored(self) -> bool:
        """Whether a strip holds one of each two pairs that mirror each other."""
        return self.itself and self.score.symmetric

    @property
    def wide(self) -> torch.dtype:
        """The type of scores."""
        return compute_type(self.x.dtype)

    def strips(self) -> Iterator[ScoreStrip]:
        """The strips, computed as they are asked for."""
        x, y = prepared_rows((self.x, self.y), self.score)
        for first, last in grad_sum.strips(x.shape[0], y.shape[0]):
            column = first if self.mirrored else 0
            yield ScoreStrip(first, column, powered(self.score, strip_base(self.score, x[first:last], y[column:])))

    def repeatable(self) -> Iterable[ScoreStrip]:
        """The strips for several sweeps: a single one is kept, more are computed again."""
        ranges = grad_sum.strips(self.x.shape[0], self.y.shape[0])
        single = next(ranges, None) is None or next(ranges, None) is None
        return list(self.strips()) if single else _Again(self)

    def sides(self, strip: ScoreStrip) -> Tensor:
        """Masks of the positive and of the negative pairs of a strip, ``[2, n, m]``."""
        n, m = strip.scores.shape
        rows, columns = slice(strip.first, strip.first + n), slice(strip.column, strip.column + m)
        same = same_labels(self.labels[rows], self.ref_labels[columns])
        there = torch.stack([same, ~same])
        if self.itself:
            device = strip.scores.device
            row = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
            column = torch.arange(columns.start, columns.stop, device=device)
            there &= column > row if self.mirrored else column != row
        return there


@dataclass
class _Again:
    pairs: PairSet

    def __iter__(self) -> Iterator[ScoreStrip]:
        return self.pairs.strips()
