"""Strips of rows for the row functions of ``csrc/engine``: torch's products, then a CUDA block for each row.

On CPU tensors one host thread runs the same functions: that is how they are tested where there is no card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.score import Score

# A strip of scores stays in the second-level cache of a large card between the product and the row functions.
STRIP_BYTES = 32 << 20
FEWEST_ROWS = 64


def extension() -> ModuleType:
    """The compiled module; the backend has said that it is there."""
    module = _extension.load()
    assert module is not None
    return module


def stream(device: torch.device) -> int:
    """The current stream of a device, as an address."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def distance_name(score: Score) -> str:
    """The distance as the compiled code names it."""
    return "dot" if score.kind == "dot" else ("l2" if score.power == 1 else "l2_squared")


@dataclass
class Side:
    """Rows ``[N, D]`` in float32 and their squared norms ``[N]`` (the rows again where the score needs none)."""

    rows: Tensor
    norms: Tensor

    @staticmethod
    def of(rows: Tensor, score: Score) -> Side:
        rows = rows.to(torch.float32).contiguous()
        return Side(rows, rows if score.kind == "dot" else rows.square().sum(dim=1))


def strips(n: int, m: int) -> Iterator[tuple[int, int]]:
    """First and last row of each strip of ``n`` rows against ``m`` columns."""
    height = max(FEWEST_ROWS, STRIP_BYTES // (4 * max(m, 1)))
    for first in range(0, n, height):
        yield first, min(n, first + height)


class Tiles:
    """Products of strips, in a buffer that the next strip overwrites."""

    def __init__(self, x: Side, y: Side) -> None:
        self.x, self.y = x, y
        rows = max((last - first for first, last in strips(len(x.rows), len(y.rows))), default=0)
        self._buffer = x.rows.new_empty(rows, len(y.rows))

    def products(self, first: int, last: int) -> Tensor:
        return torch.mm(self.x.rows[first:last], self.y.rows.t(), out=self._buffer[: last - first])
