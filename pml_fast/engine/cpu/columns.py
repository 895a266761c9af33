"""The columns of a sweep, in the order of their class: a copy of all of them, or one that follows the tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pml_fast.engine.cpu.scratch import Room

if TYPE_CHECKING:
    from pml_fast.engine.cpu.layout import Layout
    from pml_fast.engine.score import Score

# Numbers in the columns above which a second copy of them all takes longer, in fresh memory, than one tile's at a time.
MANY_NUMBERS = 1 << 20


def sorted_rows(rows: Tensor, norm: Tensor | None, order: Tensor) -> Tensor:
    """Rows in an order, divided by their norms where these are given."""
    taken = rows.index_select(0, order)
    return taken if norm is None else taken.div_(norm.index_select(0, order))


class Columns:
    """All columns in a copy. ``rows`` is what compiled kernels read: at least the columns that are any row's positives."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def block(self, first: int, last: int) -> Tensor:
        """The columns ``first .. last``; those of a further block may take their place."""
        return self.rows[first:last]

    def norms(self) -> Tensor:
        """Their Euclidean norms, in any order."""
        return torch.linalg.vector_norm(self.rows, dim=1)


class StreamedColumns(Columns):
    """Columns of which the first ``positives`` alone, in the order of ``layout``, have a copy; a block of any is gathered when
    a tile needs it."""

    def __init__(self, y: Tensor, norm: Tensor | None, layout: Layout, positives: int) -> None:
        super().__init__(sorted_rows(y, norm, layout.col_order[:positives]))
        self.y, self.norm, self.order = y, norm, layout.col_order
        self._place = (0, 0)
        self._room = Room(y.dtype)

    def block(self, first: int, last: int) -> Tensor:
        out = self._room.of(last - first, self.y.shape[1])
        if self._place != (first, last):
            order = self.order[first:last]
            torch.index_select(self.y, 0, order, out=out)
            if self.norm is not None:
                out.div_(self.norm.index_select(0, order))
            self._place = first, last
        return out

    def norms(self) -> Tensor:
        norms = torch.linalg.vector_norm(self.y, dim=1)
        return norms if self.norm is None else norms / self.norm.squeeze(1)


def may_stream(numbers: int, score: Score) -> bool:
    """Whether so many are worth it, and kernels read no other columns than positives: of distances they look at near ones
    again."""
    return numbers > MANY_NUMBERS and score.kind == "dot"
