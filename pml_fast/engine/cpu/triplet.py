"""All triplets on the compiled backend: one sweep of tiles gives sums, counts and the negatives' coefficients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.rows import TILE_BYTES, SortedRows, Tile, tiles
from pml_fast.engine.problem import TripletProblem

POSITIVE_ONLY, EVERY = (0.0, float("inf")), (float("-inf"), float("inf"))
# About what the compiled tables of a strip take for each positive pair.
PAIR_BYTES = 40


def refuse_triplet(problem: TripletProblem) -> str | None:
    """Why the compiled triplet engine cannot run this, or ``None``."""
    if problem.spec.swap:
        return "swap compares positives with negatives, which the compiled triplet engine does not"
    if tuple(problem.limits) not in (POSITIVE_ONLY, EVERY):
        return f"losses between {problem.limits[0]:g} and {problem.limits[1]:g} are not ranges of the sorted positives"
    return None


class TripletSweep:
    """One problem on the compiled engine."""

    def __init__(self, problem: TripletProblem) -> None:
        spec = problem.spec
        self.problem, self.rows = problem, SortedRows(problem, problem.rule)
        self.engine = extension().triplet_engine(
            self.rows.compiled, spec.margin, spec.smooth, spec.select, spec.select_margin,
            tuple(problem.limits) == POSITIVE_ONLY, problem.score.sign, self.rows.is_double,
        )  # fmt: skip
        # Both roles of such a batch share one product.
        self.whole = self._fits_one_tile()

    def _tiles(self) -> Iterator[Tile]:
        n, m = self.rows.n, self.rows.m
        return iter([Tile(0, n, 0, m, m)]) if self.whole else tiles(n, m, False, self.rows.x.element_size())

    def _fits_one_tile(self) -> bool:
        """Whether all scores of a batch with itself, and the tables of its positives, are no more than a tile."""
        n, pairs = self.rows.n, int(self.rows.layout.offset[-1])
        return self.rows.shared and 0 < n * n * self.rows.x.element_size() <= TILE_BYTES and pairs * PAIR_BYTES <= TILE_BYTES

    def _prepare(self, i0: int, i1: int) -> None:
        """Score and sort the positives of some rows of a strip: their columns are one run."""
        rows = self.rows
        j0, j1 = int(rows.layout.start[i0]), int(rows.layout.end[i1 - 1])
        if (i1 - i0) * (j1 - j0) * rows.x.element_size() > TILE_BYTES and i1 - i0 > 1:
            # A few rows of many classes: most of the run belongs to other rows, or to none.
            middle = (i0 + i1) // 2
            self._prepare(i0, middle)
            self._prepare(middle, i1)
        elif j1 > j0:
            s = rows.products(Tile(i0, i1, j0, j1, j1))
            self.engine.prepare(s.data_ptr(), s.stride(0), i0, i1, j0)

    def run(self, w: Tensor | None, need_x: bool, need_y: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sums and counts ``[2, N]``, and the gradients that are asked for, of the losses weighted by ``w`` (``None``: 1)."""
        rows, shared = self.rows, self.rows.shared
        if w is not None:
            w = w.to(rows.x.dtype).index_select(0, rows.layout.row_order)
        weights = 0 if w is None else w.data_ptr()
        dx = torch.zeros_like(rows.x) if need_x else None
        dy = dx if shared else (torch.zeros_like(rows.y) if need_y else None)
        gradients = dx is not None or dy is not None
        own = rows.x.new_zeros(rows.m) if dy is not None and self.problem.score.kind != "dot" else None
        for tile in self._tiles():
            first = tile.j0 == 0
            if first:
                self.engine.begin_strip(tile.i0, tile.i1)
            inside = first and int(rows.layout.end[tile.i1 - 1]) <= tile.j1
            if first and not inside:
                self._prepare(tile.i0, tile.i1)
            s = rows.products(tile)
            if inside:
                # The strip's positives are all in its first tile.
                self.engine.prepare(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0)
            live = self.engine.fold(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, gradients, weights)
            if gradients and tile.j1 == rows.m:
                self.engine.finish_strip(tile.i0, tile.i1, weights)
            if not (gradients and live):
                continue
            if own is not None:
                own[tile.j0 : tile.j1] -= s.sum(dim=0)
            if self.whole:
                self.engine.symmetrise(s.data_ptr(), rows.n)
            if dx is not None:
                dx[tile.i0 : tile.i1].addmm_(s, rows.y[tile.j0 : tile.j1])
            if dy is not None and not self.whole:
                dy[tile.j0 : tile.j1].addmm_(s.t(), rows.x[tile.i0 : tile.i1])
        if gradients:
            if own is not None and dy is not None:
                dy.addcmul_(own.unsqueeze(1), rows.y)
            second = 0 if dy is None or shared else dy.data_ptr()
            self.engine.finish_gradients(0 if dx is None else dx.data_ptr(), second)
        dx, dy = rows.unsorted(dx, None if shared else dy)
        return self._sums(), dx, dy

    def _sums(self) -> Tensor:
        out = torch.empty(2, self.rows.n, dtype=torch.float64)
        self.engine.rows(out.data_ptr())
        ordered = torch.empty_like(out)
        ordered[:, self.rows.layout.row_order] = out
        return ordered


def triplet_rows(
    problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums and counts, and where ``uniform`` the gradients of the plain sum of all losses."""
    return TripletSweep(problem).run(None, need_x and uniform, need_y and uniform)


def triplet_grads(problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weighted sum."""
    _, dx, dy = TripletSweep(problem).run(w, need_x, need_y)
    return dx, dy
