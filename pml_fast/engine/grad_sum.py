"""Strips of rows, and the sum of the gradients that the strips give."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.strips import strip_grads

# Elements of one strip: a handful of buffers of this size live at a time.
STRIP_ELEMENTS = 1 << 20


def strips(n: int, m: int) -> Iterator[tuple[int, int]]:
    """Row ranges whose strip of ``m`` columns has about :data:`STRIP_ELEMENTS` elements."""
    step = max(1, min(n, STRIP_ELEMENTS // max(m, 1)))
    for first in range(0, n, step):
        yield first, min(n, first + step)


class GradSum:
    """Adds up the gradients of strips; for a batch against itself both roles go to ``x``."""

    def __init__(self, x: Tensor, y: Tensor, itself: bool, need_x: bool, need_y: bool) -> None:
        self.x, self.y, self.itself = x, y, itself
        self.need_rows = need_x
        self.need_cols = need_x if itself else need_y
        self.dx = torch.zeros_like(x) if need_x else None
        self.dy = self.dx if itself else (torch.zeros_like(y) if need_y else None)

    def add(self, score: Score, first: int, last: int, base: Tensor, c: Tensor, start: int = 0) -> None:
        """Add the strip ``first:last`` with ``c = dL/dscore``, of all columns or of those from ``start`` on."""
        dx, dy = strip_grads(score, self.x[first:last], self.y[start:], base, c, self.need_rows, self.need_cols)
        if dx is not None and self.dx is not None:
            self.dx[first:last] += dx
        if dy is not None and self.dy is not None:
            self.dy[start:] += dy

    def add_among_columns(self, score: Score, first: int, last: int, base: Tensor, c: Tensor) -> None:
        """Add a strip of the columns ``first:last`` against all columns."""
        if self.dy is None:
            return
        rows, cols = strip_grads(score, self.y[first:last], self.y, base, c, True, True)
        assert rows is not None
        assert cols is not None
        self.dy[first:last] += rows
        self.dy += cols

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        """The sums by ``x`` and by ``y``."""
        return self.dx, (None if self.itself else self.dy)
