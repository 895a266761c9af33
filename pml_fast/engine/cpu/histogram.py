"""Histograms of all pairs or triplets on the compiled backend: torch's matrix products on strips, C++ in between.

A strip is rows against all columns, which a row's triplets need at once; of pairs of a batch with itself only against the
columns from its own first row on, so that each pair is visited once. Scores are kept for the gradients that follow, as many as
fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.pairwise import kept_bytes
from pml_fast.engine.cpu.rows import SortedRows, Tile
from pml_fast.engine.cpu.scratch import Scratch
from pml_fast.engine.cpu.strip import strip_height
from pml_fast.engine.problem import HistogramProblem, HistogramSums

Grads = tuple[Tensor | None, Tensor | None]
# Smaller strips waste less of the diagonal.
HALF_HEIGHT = 256


def refuse_histogram(problem: HistogramProblem) -> str | None:
    """Why the compiled histograms cannot run this, or ``None``."""
    if problem.itself and len(problem.x) != len(problem.y):
        return "the compiled histograms take a batch against itself or another set, not one that begins with the batch"
    return None


def histogram_tiles(n: int, m: int, halved: bool, item: int) -> Iterator[Tile]:
    """The strips of a sweep; where ``halved`` only the part from each strip's first row on."""
    height = strip_height(m, item)
    height = min(height, HALF_HEIGHT) if halved else height
    for i0 in range(0, n, height):
        yield Tile(i0, min(n, i0 + height), i0 if halved else 0, m, m)


class HistogramSweep:
    """One problem on the compiled engine: sorted copies of the rows, the engine that holds the sums, and the kept scores."""

    def __init__(self, problem: HistogramProblem) -> None:
        self.rows, spec = SortedRows(problem, None), problem.spec
        self.engine = extension().histogram_engine(
            self.rows.compiled, spec.bins.low, spec.bins.delta, spec.bins.count, spec.triplets, self.rows.is_double
        )
        self.distances = problem.score.kind != "dot"
        self.halved = problem.itself and not spec.triplets
        self.shape = (3, spec.bins.count) if spec.triplets else (2, 2, spec.bins.count)
        self.kept: dict[int, Scratch] = {}

    def _tiles(self) -> Iterator[Tile]:
        return histogram_tiles(self.rows.n, self.rows.m, self.halved, self.rows.x.element_size())

    def sums(self, keep: bool) -> HistogramSums:
        """The forward."""
        room = kept_bytes(self.rows.x) if keep else 0
        for tile in self._tiles():
            size = (tile.i1 - tile.i0) * (tile.j1 - tile.j0) * self.rows.x.element_size()
            out = None
            if size <= room:
                room -= size
                kept = self.kept[tile.i0] = Scratch((tile.i1 - tile.i0, tile.j1 - tile.j0), self.rows.x.dtype)
                out = kept.tensor
            s = self.rows.products(tile, out)
            self.engine.fold(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0)
        sums = torch.empty(self.shape, dtype=torch.float64)
        inside = self.engine.sums(sums.data_ptr())
        return HistogramSums(sums, torch.tensor(not inside), self if keep else None)

    def gradients(self, slopes: Tensor, need_x: bool, need_y: bool) -> Grads:
        """The second sweep."""
        rows, shared = self.rows, self.rows.shared
        slopes = slopes.contiguous()
        self.engine.set_slopes(slopes.data_ptr())
        dx = torch.zeros_like(rows.x) if need_x else None
        dy = dx if shared else (torch.zeros_like(rows.y) if need_y else None)
        own = rows.x.new_zeros(rows.n)
        columns = rows.x.new_zeros(rows.m) if self.distances and dy is not None else None
        for tile in self._tiles():
            kept = self.kept.pop(tile.i0, None)
            s = rows.products(tile) if kept is None else kept.tensor
            place = tile.i0, tile.i1, tile.j0
            if not self.engine.coefficients(s.data_ptr(), s.stride(0), *place, kept is not None, own.data_ptr()):
                continue
            if dx is not None:
                dx[tile.i0 : tile.i1].addmm_(s, rows.y[tile.j0 :])
            if dy is not None:
                dy[tile.j0 :].addmm_(s.t(), rows.x[tile.i0 : tile.i1])
            if columns is not None:
                columns[tile.j0 :] -= s.sum(dim=0)
        # Of distances a row's own part of its differences.
        if dx is not None and self.distances:
            dx.addcmul_(own.unsqueeze(1), rows.x)
        if dy is not None and columns is not None:
            dy.addcmul_(columns.unsqueeze(1), rows.y)
        return rows.unsorted(dx, None if shared else dy)


def histogram_sums(problem: HistogramProblem, keep: bool) -> HistogramSums:
    """The sums over the bins."""
    return HistogramSweep(problem).sums(keep)


def histogram_grads(problem: HistogramProblem, state: HistogramSums, slopes: Tensor, need_x: bool, need_y: bool) -> Grads:
    """Gradients of a loss with these slopes by the sums."""
    sweep = HistogramSweep(problem) if state.scratch is None else state.scratch
    grads: Grads = sweep.gradients(slopes, need_x, need_y)
    return grads
