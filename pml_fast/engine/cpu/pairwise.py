"""The pairwise engine's sweeps: torch's matrix products on tiles, C++ epilogues on the tiles while they are in cache.

Rows are put in the order of their class, so that the positives of a row are one run of columns: they are scored apart (exactly,
``N x P`` numbers), and everything a tile is streamed for is negatives. A batch against itself visits only the tiles on or above
the diagonal: a score serves both of its rows, and ``H = W + W^T`` gives the gradient of both roles in one sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.cpu.levels import fixed_level, logit, row_levels
from pml_fast.engine.cpu.rows import TILE_BYTES, SortedRows, Tile, extension, tiles
from pml_fast.engine.problem import ExtremeProblem, PairProblem

# Tiles of scores kept from the forward sweep for the gradient sweep that follows at once; together with the sorted rows and
# the tile in work they stay within the step's allowance.
KEPT_BYTES = 40 << 20
ALLOWANCE = 64 << 20
# What torch's matrix products pack their operands into, and the tables of a row (its order, ranges and sums), about.
LIBRARY_BYTES = 16 << 20
TABLE_BYTES = 64


class Sweep:
    """One problem on the compiled engine: sorted copies of the rows, the engine that holds the state, and the kept tiles."""

    def __init__(self, problem: PairProblem | ExtremeProblem, spec: str, params: list[float], rule: Tensor | None) -> None:
        score = problem.score
        self.problem, self.rows = problem, SortedRows(problem, rule)
        self.x, self.y, self.layout = self.rows.x, self.rows.y, self.rows.layout
        self.n, self.m, self.shared = self.rows.n, self.rows.m, self.rows.shared
        self.level = fixed_level(spec, params, score, self.x.dtype) if spec else 0.0
        limits = problem.limits if isinstance(problem, PairProblem) else []
        self.engine = extension().pair_engine(
            self.rows.compiled, spec, params, score.sign, limits, self.level, self.rows.is_double
        )
        self.kept: dict[tuple[int, int], Tensor] = {}

    def tiles(self) -> Iterator[Tile]:
        """The tiles of this problem."""
        return tiles(self.n, self.m, self.shared, self.x.element_size())

    def forward(self, keep: bool) -> None:
        """Fold every tile into the engine's state; keep what fits of the scores when a gradient will follow."""
        problem = self.problem
        if isinstance(problem, PairProblem) and problem.levels is not None:
            self._set_levels(problem.levels.to(self.x.dtype).index_select(0, self.rows.layout.row_order))
        elif math.isnan(self.level):
            self._take_levels()
        self.engine.score_positives()
        room = kept_bytes(self.x) if keep else 0
        for _ in range(self.engine.sweeps):
            for tile in self.tiles():
                s = self.kept.get((tile.i0, tile.j0))
                scored = s is not None
                if s is None:
                    s, room = self._scores_of(tile, room)
                self.engine.fold(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, scored)
            self.engine.end_sweep()

    def _scores_of(self, tile: Tile, room: int) -> tuple[Tensor, int]:
        """Inner products of a tile, kept where there is room, and the room that is left."""
        shape = tile.i1 - tile.i0, tile.j1 - tile.j0
        size = shape[0] * shape[1] * self.x.element_size()
        if size > room:
            return self.rows.products(tile), room
        self.kept[tile.i0, tile.j0] = self.x.new_empty(shape)
        return self.rows.products(tile, self.kept[tile.i0, tile.j0]), room - size

    def _take_levels(self) -> None:
        """Give every row a level that its norm allows, or else its largest logit: the range is not known beforehand."""
        problem = self.problem
        assert isinstance(problem, PairProblem)
        own = logit(problem.spec.name, problem.spec.params(), problem.score)
        assert own is not None
        x_norms = torch.linalg.vector_norm(self.x, dim=1)
        y_norms = x_norms if self.shared else torch.linalg.vector_norm(self.y, dim=1)
        levels = row_levels(own, problem.score, x_norms, y_norms)
        if levels is not None:
            self._set_levels(levels)
            return
        value, index = self.extreme(own.rises)
        self._set_levels(own.of(torch.where(index >= 0, value, 0.0)))

    def _set_levels(self, levels: Tensor) -> None:
        # The compiled side reads them through their address.
        self.levels = levels
        self.engine.set_levels(levels.data_ptr())

    def extreme(self, largest: bool) -> tuple[Tensor, Tensor]:
        """Value and sorted column of each sorted row's extreme negative."""
        value = self.x.new_full((self.n,), float("-inf") if largest else float("inf"))
        index = torch.full((self.n,), -1, dtype=torch.int64)
        for tile in self.tiles():
            s = self.rows.products(tile)
            self.engine.fold_extreme(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, largest,
                value.data_ptr(), index.data_ptr(),
            )  # fmt: skip
        return value, index

    def finish(self) -> tuple[Tensor, Tensor]:
        """Rows ``[T, 2, N]`` in the caller's order, and whether positives and negatives exist."""
        rows = self.x.new_empty(self.engine.terms, 2, self.n)
        exists = self.engine.finish(rows.data_ptr())
        ordered = torch.empty_like(rows)
        ordered[:, :, self.layout.row_order] = rows
        return ordered, torch.tensor(exists)

    def gradients(self, w: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        """The second sweep."""
        w = w.to(self.x.dtype).index_select(1, self.layout.row_order)
        self.engine.set_weights(w.data_ptr())
        dx = torch.zeros_like(self.x) if need_x else None
        dy = torch.zeros_like(self.y) if need_y and not self.shared else None
        for tile in self.tiles():
            s = self.kept.pop((tile.i0, tile.j0), None)
            scored = s is not None
            s = self.rows.products(tile) if s is None else s
            live = self.engine.coefficients(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, scored, self.shared
            )
            if live:
                self._add_products(tile, s, dx, dy)
        self.engine.finish_gradients(0 if dx is None else dx.data_ptr(), 0 if dy is None else dy.data_ptr())
        return self.rows.unsorted(dx, dy)

    def _add_products(self, tile: Tile, h: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
        rows, cols = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
        if dx is not None:
            dx[rows].addmm_(h, self.y[cols])
        if self.shared and dx is not None and tile.mirror < tile.j1:
            dx[tile.mirror : tile.j1].addmm_(h[:, tile.mirror - tile.j0 :].t(), self.x[rows])
        if dy is not None:
            dy[cols].addmm_(h.t(), self.x[rows])


def kept_bytes(x: Tensor) -> int:
    """How many bytes of scores a step over the sorted rows ``x`` may keep."""
    return max(0, min(KEPT_BYTES, ALLOWANCE - TILE_BYTES - LIBRARY_BYTES - TABLE_BYTES * len(x) - x.numel() * x.element_size()))
