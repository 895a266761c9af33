"""Sorted rows: what every engine of the compiled backend starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cpu.scratch import Scratch
from pml_fast.engine.score import Score
from pml_fast.engine.settings import current

TILE_COLUMNS = 4096
TILE_BYTES = 8 << 20


def extension() -> ModuleType:
    """The compiled module; the backend has said that it is there."""
    module = _extension.load()
    assert module is not None
    return module


def is_chosen(x: Tensor) -> bool:
    """Whether the compiled backend is there, and may run on this tensor under the settings in force."""
    return x.device.type == "cpu" and current().backend in ("auto", "cpu") and _extension.load() is not None


@dataclass(frozen=True)
class Layout:
    """Rows and columns by class (see csrc/runtime/layout.h); int64 on the CPU."""

    row_order: Tensor
    col_order: Tensor
    start: Tensor
    end: Tensor
    offset: Tensor
    col_start: Tensor
    col_end: Tensor

    def turned(self) -> Layout:
        """Columns as rows."""
        offset = self.offset.new_zeros(len(self.col_start) + 1)
        torch.cumsum(self.col_end - self.col_start, dim=0, out=offset[1:])
        return Layout(self.col_order, self.row_order, self.col_start, self.col_end, offset, self.start, self.end)


def class_ranks(labels: Tensor) -> Tensor:
    """The rank of each label (int64) among the different ones."""
    labels = labels.contiguous()
    ranks = torch.empty_like(labels)
    extension().class_ranks(labels.data_ptr(), len(labels), ranks.data_ptr())
    return ranks


def positive_pairs(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`pml_fast.engine.positives.positive_pairs`; labels are int64."""
    labels, ref_labels = labels.contiguous(), ref_labels.contiguous()
    found = extension().PositivePairs(labels.data_ptr(), len(labels), ref_labels.data_ptr(), len(ref_labels), itself)
    anchor, positive = torch.empty(2, len(found), dtype=torch.int64).unbind()
    different = torch.empty_like(labels)
    found.write(anchor.data_ptr(), positive.data_ptr(), different.data_ptr())
    return anchor, positive, different


def class_layout(x_labels: Tensor, y_labels: Tensor, itself: bool) -> Layout:
    """Sort rows and columns by class."""
    x_labels, y_labels = x_labels.contiguous(), y_labels.contiguous()
    n, m = len(x_labels), len(y_labels)
    parts = torch.empty(3 * n + (0 if itself else 3 * m) + n + 1, dtype=torch.int64)
    row_order, start, end, offset, *rest = parts.split([n, n, n, n + 1] + ([] if itself else [m, m, m]))
    col_order, col_start, col_end = rest if rest else (row_order, start, end)
    extension().layout(
        x_labels.data_ptr(), n, y_labels.data_ptr(), m, itself, row_order.data_ptr(), col_order.data_ptr(),
        start.data_ptr(), end.data_ptr(), offset.data_ptr(), col_start.data_ptr(), col_end.data_ptr(),
    )  # fmt: skip
    return Layout(row_order, col_order, start, end, offset, col_start, col_end)


def with_alike_columns(problem: Any) -> tuple[Any, Tensor]:
    """The problem with those columns alone that share their label with a row, and which these are: all that positives need."""
    layout = class_layout(problem.x_labels, problem.y_labels, False)
    alike = torch.empty(len(problem.y), dtype=torch.bool)
    alike[layout.col_order] = layout.col_start < layout.col_end
    # In their own order: a set that begins with the batch still does.
    place = torch.nonzero(alike).squeeze(1)
    norm = None if problem.y_norm is None else problem.y_norm[place]
    return replace(problem, y=problem.y[place], y_labels=problem.y_labels[place], y_norm=norm), place


def own_columns(layout: Layout) -> Tensor:
    """For each sorted row the sorted column that is its copy, the columns' set beginning with the rows'."""
    place = torch.empty_like(layout.col_order)
    place[layout.col_order] = torch.arange(len(place))
    return place[layout.row_order]


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
    """Copies of a problem's rows and columns in the order of their class, and products of their tiles."""

    def __init__(self, problem: Any, rule: Tensor | None) -> None:
        self.shared: bool = problem.shared
        # A set that begins with the batch may be larger than it: then it has an order of its own.
        one = problem.itself and len(problem.x) == len(problem.y)
        self.layout = class_layout(problem.x_labels, problem.y_labels, one)
        self.own = own_columns(self.layout) if problem.itself and not one else None
        self.x = _sorted(problem.x, problem.x_norm, self.layout.row_order)
        self.y = self.x if self.shared else _sorted(problem.y, problem.y_norm, self.layout.col_order)
        self.n, self.m = len(self.x), len(self.y)
        self.rule = None if rule is None else rule.to(self.x.dtype).index_select(1, self.layout.row_order)
        layout = self.layout
        self.itself, self.distance = problem.itself, distance_name(problem.score)
        self.compiled = self._compiled(self.x, self.y, layout)
        self.is_double = self.x.dtype == torch.float64
        self._buffer: Scratch | None = None

    def _compiled(self, x: Tensor, y: Tensor, layout: Layout) -> Any:
        # The compiled side reads these tensors through their addresses: they live as long as this object.
        return extension().problem(
            x.data_ptr(), y.data_ptr(), layout.start.data_ptr(), layout.end.data_ptr(),
            layout.offset.data_ptr(), layout.col_start.data_ptr(), layout.col_end.data_ptr(),
            0 if self.rule is None else self.rule.data_ptr(), 0 if self.own is None else self.own.data_ptr(),
            len(x), len(y), x.shape[1], self.shared, self.itself, self.distance, torch.get_num_threads(),
        )  # fmt: skip

    def turned(self) -> Any:
        """The columns against the rows, in the same order."""
        self.back = self.layout.turned()
        return self._compiled(self.y, self.x, self.back)

    def products(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """Inner products of a tile, in ``out`` or in a buffer that the next tile overwrites."""
        shape = (tile.i1 - tile.i0, tile.j1 - tile.j0)
        if out is None:
            size = shape[0] * shape[1]
            if self._buffer is None or self._buffer.tensor.numel() < size:
                self._buffer = Scratch((size,), self.x.dtype)
            out = self._buffer.tensor[:size].view(shape)
        return torch.mm(self.x[tile.i0 : tile.i1], self.y[tile.j0 : tile.j1].t(), out=out)

    def unsorted(self, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients back in the caller's order. The sweep is over: they take the place of the sorted rows."""
        self._buffer = None
        return _scatter(dx, self.layout.row_order, self.x), _scatter(dy, self.layout.col_order, self.y)


def _sorted(rows: Tensor, norm: Tensor | None, order: Tensor) -> Tensor:
    taken = rows.index_select(0, order)
    return taken if norm is None else taken.div_(norm.index_select(0, order))


def _scatter(sorted_rows: Tensor | None, order: Tensor, out: Tensor) -> Tensor | None:
    return None if sorted_rows is None else out.index_copy_(0, order, sorted_rows)
