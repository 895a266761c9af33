"""The pairwise engine's sweeps: torch's matrix products on tiles, C++ epilogues on the tiles while they are in cache.

Rows are put in the order of their class, so that the positives of a row are one run of columns: they are scored apart (exactly,
``N x P`` numbers), and everything a tile is streamed for is negatives. A batch against itself visits only the tiles on or above
the diagonal: a score serves both of its rows, and ``H = W + W^T`` gives the gradient of both roles in one sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.levels import fixed_level, logit, one_sweep, row_levels
from pml_fast.engine.cpu.rows import TILE_BYTES, SortedRows, Tile, tiles
from pml_fast.engine.cpu.scratch import Scratch
from pml_fast.engine.problem import ExtremeProblem, PairProblem, PairRows

# Tiles of scores kept from the forward sweep for the gradient sweep that follows at once; together with the sorted rows and
# the tile in work they stay within the step's allowance.
KEPT_BYTES = 40 << 20
ALLOWANCE = 64 << 20
# What torch's matrix products pack their operands into, and the tables of a row (its order, ranges and sums), about.
LIBRARY_BYTES = 16 << 20
TABLE_BYTES = 64


class Sweep:
    """One problem on the compiled engine: sorted copies of the rows, the engine that holds the state, and the kept tiles."""

    def __init__(
        self, problem: PairProblem | ExtremeProblem, spec: str, params: list[float], rule: Tensor | None, columns: str = "all"
    ) -> None:
        score = problem.score
        self.problem, self.rows = problem, SortedRows(problem, rule, columns)
        self.x, self.layout = self.rows.x, self.rows.layout
        self.n, self.m, self.shared = self.rows.n, self.rows.m, self.rows.shared
        self.level = fixed_level(spec, params, score, self.x.dtype) if spec else 0.0
        limits = problem.limits if isinstance(problem, PairProblem) else []

        def engine(compiled: Any) -> Any:
            return extension().pair_engine(compiled, spec, params, score.sign, limits, self.level, self.rows.is_double)

        self.engine = engine(self.rows.compiled)
        # The columns' own engine, where they are anchors as well.
        self.columns = engine(self.rows.turned()) if isinstance(problem, PairProblem) and problem.bidirectional else None
        if self.columns is not None:
            self.engine.mirror_into(self.columns)
        if isinstance(problem, PairProblem) and problem.search is not None:
            self.engine.search(problem.search.epsilon, score.sign, problem.search.counts_copies)
        self.kept: dict[tuple[int, int], Scratch] = {}
        # The gradients of sorted rows and columns, where the first sweep collects them.
        self.collected: tuple[Tensor | None, Tensor | None] | None = None

    @property
    def both_roles(self) -> bool:
        """Whether a score serves its row and its column."""
        return self.shared or self.columns is not None

    def tiles(self) -> Iterator[Tile]:
        """The tiles of this problem; those of the same columns one after the other, where columns are streamed."""
        found = tiles(self.n, self.m, self.shared, self.x.element_size(), self.columns is not None)
        return iter(sorted(found, key=lambda tile: tile.j0)) if self.rows.streamed else found

    def forward(self, need_x: bool = False, need_y: bool = False) -> None:
        """Fold every tile into the engine's state. Where gradients will follow, take their products at once or, if these need
        the finished rows, keep what fits of the scores."""
        problem = self.problem
        self.engine.score_positives()
        if self.columns is not None:
            self.columns.score_positives()
        if isinstance(problem, PairProblem) and problem.levels is not None:
            given = problem.levels.to(self.x.dtype).index_select(0, self.rows.layout.row_order)
            self._set_levels([self.engine], [given])
        elif math.isnan(self.level):
            self._take_levels()
        if (need_x or need_y) and self._in_one_sweep(need_y):
            self._collect(need_x, need_y)
        else:
            self._fold(keep=need_x or need_y)

    def _in_one_sweep(self, need_y: bool) -> bool:
        problem = self.problem
        assert isinstance(problem, PairProblem)
        return one_sweep(problem.spec.name, problem.score, self.both_roles or need_y, problem.uniform)

    def _collect(self, need_x: bool, need_y: bool) -> None:
        """Fold the tiles and take the gradients' products of each while it is in cache, with rows that weigh 1."""
        self.collected = self._zeros(need_x, need_y)
        self.engine.begin_collecting()
        for tile in self.tiles():
            s = self.rows.products(tile)
            live = self.engine.collect(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, self.both_roles
            )  # fmt: skip
            if live:
                self._add_products(tile, s, *self.collected)
        self.engine.end_sweep()

    def _fold(self, keep: bool) -> None:
        problem = self.problem
        beside = problem.beside if isinstance(problem, PairProblem) else 0
        room = kept_bytes(self.x, beside) if keep else 0
        for _ in range(self.engine.sweeps):
            for tile in self.tiles():
                kept = self.kept.get((tile.i0, tile.j0))
                s, room = self._scores_of(tile, room) if kept is None else (kept.tensor, room)
                self._fold_tile(tile, s, kept is not None)
            self.engine.end_sweep()

    def _fold_tile(self, tile: Tile, s: Tensor, scored: bool) -> None:
        self.engine.fold(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, scored)

    def _scores_of(self, tile: Tile, room: int) -> tuple[Tensor, int]:
        """Inner products of a tile, kept where there is room, and the room that is left."""
        shape = tile.i1 - tile.i0, tile.j1 - tile.j0
        size = shape[0] * shape[1] * self.x.element_size()
        if size > room:
            return self.rows.products(tile), room
        kept = self.kept[tile.i0, tile.j0] = Scratch(shape, self.x.dtype)
        return self.rows.products(tile, kept.tensor), room - size

    def _take_levels(self) -> None:
        """Give every row a level that its norm allows, or else its largest logit: the range is not known beforehand."""
        problem = self.problem
        assert isinstance(problem, PairProblem)
        own = logit(problem.spec.name, problem.spec.params(), problem.score)
        assert own is not None
        x_norms = torch.linalg.vector_norm(self.x, dim=1)
        y_norms = x_norms if self.shared else self.rows.columns.norms()
        ways = [(self.engine, x_norms, y_norms)]
        if self.columns is not None:
            ways.append((self.columns, y_norms, x_norms))
        levels = [row_levels(own, problem.score, norms, others) for _, norms, others in ways]
        if any(level is None for level in levels):
            levels = [own.of(torch.where(index >= 0, value, 0.0)) for value, index in self._extremes(own.rises)]
        self._set_levels([engine for engine, *_ in ways], levels)

    def _set_levels(self, engines: Sequence[Any], levels: Sequence[Tensor | float | None]) -> None:
        # The compiled side reads tensors through their addresses.
        self.levels = levels
        for engine, level in zip(engines, levels, strict=True):
            if isinstance(level, Tensor):
                engine.set_levels(level.data_ptr())
            else:
                engine.set_level(level)

    def extreme(self, largest: bool) -> tuple[Tensor, Tensor]:
        """Value and sorted column of each sorted row's extreme negative."""
        return self._extremes(largest)[0]

    def _extremes(self, largest: bool) -> list[tuple[Tensor, Tensor]]:
        """Those of the rows and, of a bidirectional problem, those of the columns."""
        counts = [self.n] if self.columns is None else [self.n, self.m]
        worst = float("-inf") if largest else float("inf")
        found = [(self.x.new_full((count,), worst), torch.full((count,), -1, dtype=torch.int64)) for count in counts]
        (value, index), (mirror_value, mirror_index) = found[0], found[-1]
        for tile in self.tiles():
            s = self.rows.products(tile)
            self.engine.fold_extreme(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, largest,
                value.data_ptr(), index.data_ptr(), mirror_value.data_ptr(), mirror_index.data_ptr(),
            )  # fmt: skip
        return found

    def finish(self, keep: bool) -> PairRows:
        """The rows' values and counts in the caller's order; ``keep`` hands on this sweep to the gradients."""
        rows, exists = self._finish(self.engine, self.layout.row_order)
        columns = None if self.columns is None else self._finish(self.columns, self.layout.col_order)[0]
        return PairRows(rows, torch.tensor(exists), rows.new_zeros(0), self if keep else None, columns)

    def _finish(self, engine: Any, order: Tensor) -> tuple[Tensor, tuple[bool, bool]]:
        rows = self.x.new_empty(engine.terms, 2, len(order))
        exists = engine.finish(rows.data_ptr())
        ordered = torch.empty_like(rows)
        ordered[:, :, order] = rows
        return ordered, exists

    def gradients(
        self, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The second sweep, or what the first one collected, weighed."""
        self._weigh(self.engine, w, self.layout.row_order)
        if w_columns is not None:
            self._weigh(self.columns, w_columns, self.layout.col_order)
        dx, dy = self._swept(need_x, need_y) if self.collected is None else self.collected
        by_x, by_y = (0 if grad is None else grad.data_ptr() for grad in (dx, dy))
        self.engine.finish_gradients(by_x, by_y)
        if self.columns is not None:
            self.columns.finish_gradients(by_y, by_x)
        return self.rows.unsorted(dx, dy)

    def _swept(self, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        dx, dy = self._zeros(need_x, need_y)
        for tile in self.tiles():
            kept = self.kept.pop((tile.i0, tile.j0), None)
            s = self.rows.products(tile) if kept is None else kept.tensor
            self._add_gradients(tile, s, kept is not None, dx, dy)
        return dx, dy

    def _zeros(self, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        return (
            torch.zeros_like(self.x) if need_x else None,
            torch.zeros_like(self.rows.y) if need_y and not self.shared else None,
        )

    def _weigh(self, engine: Any, w: Tensor, order: Tensor) -> None:
        own = w.to(self.x.dtype).index_select(1, order)
        engine.set_weights(own.data_ptr())

    def _add_gradients(self, tile: Tile, s: Tensor, scored: bool, dx: Tensor | None, dy: Tensor | None) -> None:
        """Turn a tile into dL/d(inner product), and add its products."""
        live = self.engine.coefficients(
            s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, scored, self.both_roles
        )
        if live:
            self._add_products(tile, s, dx, dy)

    def _add_products(self, tile: Tile, h: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
        rows, cols = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
        if dx is not None:
            dx[rows].addmm_(h, self.rows.columns.block(tile.j0, tile.j1))
        if self.shared and dx is not None and tile.mirror < tile.j1:
            dx[tile.mirror : tile.j1].addmm_(h[:, tile.mirror - tile.j0 :].t(), self.x[rows])
        if dy is not None:
            dy[cols].addmm_(h.t(), self.x[rows])


def kept_bytes(x: Tensor, beside: int = 0) -> int:
    """How many bytes of scores a step over the sorted rows ``x`` may keep where its caller holds some bytes ``beside``."""
    held = TILE_BYTES + LIBRARY_BYTES + TABLE_BYTES * len(x) + x.numel() * x.element_size() + beside
    return max(0, min(KEPT_BYTES, ALLOWANCE - held))
