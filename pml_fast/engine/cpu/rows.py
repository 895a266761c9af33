"""Sorted rows: what every engine of the compiled backend starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu.columns import Columns, StreamedColumns, sorted_rows
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.layout import Layout, class_layout, own_columns, positives_first
from pml_fast.engine.cpu.scratch import Room
from pml_fast.engine.score import Score

TILE_COLUMNS = 4096
TILE_BYTES = 8 << 20


@dataclass
class Tile:
    """Rows ``i0:i1`` against columns ``j0:j1``; columns from ``mirror`` on also serve their own rows."""

    i0: int
    i1: int
    j0: int
    j1: int
    mirror: int


def tiles(n: int, m: int, shared: bool, item: int, bidirectional: bool = False) -> Iterator[Tile]:
    """Every tile of the sweep; where ``shared`` only those on or above the diagonal. All columns of a ``bidirectional`` problem
    serve their own rows."""
    width = max(1, min(m, TILE_COLUMNS))
    height = max(16, min(512, TILE_BYTES // (item * width)))
    if shared and n <= 2048:
        # Smaller strips waste less of the diagonal.
        height = min(height, 256) if n > 512 else n
    for i0 in range(0, n, max(height, 1)):
        i1 = min(n, i0 + height)
        for j0 in range(i0 if shared else 0, m, width):
            j1 = min(m, j0 + width)
            yield Tile(i0, i1, j0, j1, max(i1, j0) if shared else j0 if bidirectional else j1)


def distance_name(score: Score) -> str:
    """The distance as the compiled engines name it."""
    return "dot" if score.kind == "dot" else ("l2" if score.power == 1 else "l2_squared")


class SortedRows:
    """Copies of a problem's rows and columns in the order of their class, and products of their tiles.

    ``columns`` says of another set than the rows which are copied: ``"all"``; the ``"positives"`` of any row, where no others
    are looked at; or these and, one tile at a time, the others (``"streamed"``).
    """

    def __init__(self, problem: Any, rule: Tensor | None, columns: str = "all") -> None:
        self.shared: bool = problem.shared
        # A set that begins with the batch may be larger than it: then it has an order of its own.
        one = problem.itself and len(problem.x) == len(problem.y)
        layout = class_layout(problem.x_labels, problem.y_labels, one)
        layout, positives = (layout, 0) if self.shared or columns == "all" else positives_first(layout)
        self.own = own_columns(layout) if problem.itself and not one else None
        self.layout = layout.of_columns(positives) if columns == "positives" and not self.shared else layout
        self.x = sorted_rows(problem.x, problem.x_norm, layout.row_order)
        self.columns = self._columns(problem, columns, positives)
        self.n, self.m = len(self.x), len(self.layout.col_order)
        self.rule = None if rule is None else rule.to(self.x.dtype).index_select(1, layout.row_order)
        self.itself, self.distance = problem.itself, distance_name(problem.score)
        self.compiled = self._compiled(self.x, self.y, self.layout, self.m)
        self.is_double = self.x.dtype == torch.float64
        self._room = Room(self.x.dtype)

    def _columns(self, problem: Any, kind: str, positives: int) -> Columns:
        if self.shared:
            return Columns(self.x)
        if kind == "streamed":
            return StreamedColumns(problem.y, problem.y_norm, self.layout, positives)
        return Columns(sorted_rows(problem.y, problem.y_norm, self.layout.col_order))

    @property
    def streamed(self) -> bool:
        """Whether columns are gathered anew for each range of them."""
        return isinstance(self.columns, StreamedColumns)

    @property
    def y(self) -> Tensor:
        """The columns that have a copy."""
        return self.columns.rows

    def _compiled(self, x: Tensor, y: Tensor, layout: Layout, m: int) -> Any:
        # The compiled side reads these tensors through their addresses: they live as long as this object.
        return extension().problem(
            x.data_ptr(), y.data_ptr(), layout.start.data_ptr(), layout.end.data_ptr(),
            layout.offset.data_ptr(), layout.col_start.data_ptr(), layout.col_end.data_ptr(),
            0 if self.rule is None else self.rule.data_ptr(), 0 if self.own is None else self.own.data_ptr(),
            len(x), m, x.shape[1], self.shared, self.itself, self.distance, torch.get_num_threads(),
        )  # fmt: skip

    def turned(self) -> Any:
        """The columns against the rows, in the same order."""
        self.back = self.layout.turned()
        return self._compiled(self.y, self.x, self.back, self.n)

    def products(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """Inner products of a tile, in ``out`` or in a buffer that the next tile overwrites."""
        shape = (tile.i1 - tile.i0, tile.j1 - tile.j0)
        if out is None:
            out = self._room.of(*shape)
        return torch.mm(self.x[tile.i0 : tile.i1], self.columns.block(tile.j0, tile.j1).t(), out=out)

    def unsorted(self, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients back in the caller's order. The sweep is over: they take the place of the sorted rows."""
        self._room = Room(self.x.dtype)
        return _scatter(dx, self.layout.row_order, self.x), _scatter(dy, self.layout.col_order, self.y)


def _scatter(sorted_rows: Tensor | None, order: Tensor, out: Tensor) -> Tensor | None:
    return None if sorted_rows is None else out.index_copy_(0, order, sorted_rows)
