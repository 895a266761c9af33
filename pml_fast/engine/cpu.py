"""The compiled backend: torch's matrix products on tiles, C++ epilogues on the tiles while they are in cache.

Rows are put in the order of their class, so that the positives of a row are one run of columns: they are scored apart (exactly,
``N x P`` numbers), and everything a tile is streamed for is negatives. A batch against itself visits only the tiles on or above
the diagonal: a score serves both of its rows, and ``H = W + W^T`` gives the gradient of both roles in one sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.chunked import ChunkedBackend
from pml_fast.engine.problem import ExtremeProblem, PairProblem, PairRows, TripletProblem
from pml_fast.engine.score import Score

TILE_COLUMNS = 8192
TILE_BYTES = 16 << 20
# Tiles of scores kept from the forward sweep for the gradient sweep that follows at once.
KEPT_BYTES = 40 << 20
# A float holds exp() over this range without overflow or underflow.
LOGIT_SPAN = {torch.float32: 150.0, torch.float64: 1200.0}


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


def class_layout(x_labels: Tensor, y_labels: Tensor, itself: bool) -> Layout:
    """Sort rows and columns by class."""
    extension = _extension.load()
    assert extension is not None
    x_labels, y_labels = x_labels.contiguous(), y_labels.contiguous()
    n, m = len(x_labels), len(y_labels)
    parts = torch.empty(3 * n + (0 if itself else 3 * m) + n + 1, dtype=torch.int64)
    row_order, start, end, offset, *rest = parts.split([n, n, n, n + 1] + ([] if itself else [m, m, m]))
    col_order, col_start, col_end = rest if rest else (row_order, start, end)
    extension.layout(
        x_labels.data_ptr(), n, y_labels.data_ptr(), m, itself, row_order.data_ptr(), col_order.data_ptr(),
        start.data_ptr(), end.data_ptr(), offset.data_ptr(), col_start.data_ptr(), col_end.data_ptr(),
    )  # fmt: skip
    return Layout(row_order, col_order, start, end, offset, col_start, col_end)


@dataclass
class Tile:
    """Rows ``i0:i1`` against columns ``j0:j1``; columns from ``mirror`` on also serve their own rows."""

    i0: int
    i1: int
    j0: int
    j1: int
    mirror: int


def tiles(n: int, m: int, shared: bool, item: int) -> Iterator[Tile]:
    """Every tile of the sweep; where ``shared`` only those on or above the diagonal."""
    width = min(m, TILE_COLUMNS)
    height = max(16, min(512, TILE_BYTES // (item * max(width, 1))))
    if shared and n <= 2048:
        # Smaller strips waste less of the diagonal.
        height = min(height, 256) if n > 512 else n
    for i0 in range(0, n, max(height, 1)):
        i1 = min(n, i0 + height)
        for j0 in range(i0 if shared else 0, m, width):
            j1 = min(m, j0 + width)
            yield Tile(i0, i1, j0, j1, max(i1, j0) if shared else j1)


class Sweep:
    """One problem on the compiled engine: sorted copies of the rows, the engine that holds the state, and the kept tiles."""

    def __init__(self, problem: PairProblem | ExtremeProblem, spec: str, params: list[float], rule: Tensor | None) -> None:
        extension = _extension.load()
        assert extension is not None
        score = problem.score
        self.problem, self.shared = problem, problem.shared
        self.layout = class_layout(problem.x_labels, problem.y_labels, problem.itself)
        self.x = problem.x.index_select(0, self.layout.row_order)
        self.y = self.x if self.shared else problem.y.index_select(0, self.layout.col_order)
        self.n, self.m = len(self.x), len(self.y)
        self.rule = None if rule is None else rule.to(self.x.dtype).index_select(1, self.layout.row_order)
        self.shift = fixed_shift(spec, params, score, self.x.dtype) if spec else 0.0
        limits = problem.limits if isinstance(problem, PairProblem) else []
        layout = self.layout
        self.engine = extension.pair_engine(
            spec, params, score.sign, limits, self.x.data_ptr(), self.y.data_ptr(), layout.start.data_ptr(),
            layout.end.data_ptr(), layout.offset.data_ptr(), layout.col_start.data_ptr(), layout.col_end.data_ptr(),
            0 if self.rule is None else self.rule.data_ptr(), self.n, self.m, self.x.shape[1], self.shared,
            problem.itself, _distance(score), self.shift, self.x.dtype == torch.float64, torch.get_num_threads(),
        )  # fmt: skip
        self.kept: dict[tuple[int, int], Tensor] = {}
        self._buffer: Tensor | None = None

    def tiles(self) -> Iterator[Tile]:
        """The tiles of this problem."""
        return tiles(self.n, self.m, self.shared, self.x.element_size())

    def products(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """Inner products of a tile, in ``out`` or in a buffer that the next tile overwrites."""
        shape = (tile.i1 - tile.i0, tile.j1 - tile.j0)
        if out is None:
            size = shape[0] * shape[1]
            if self._buffer is None or self._buffer.numel() < size:
                self._buffer = self.x.new_empty(size)
            out = self._buffer[:size].view(shape)
        return torch.mm(self.x[tile.i0 : tile.i1], self.y[tile.j0 : tile.j1].t(), out=out)

    def forward(self, keep: bool) -> None:
        """Fold every tile into the engine's state; keep what fits of the scores when a gradient will follow."""
        if math.isnan(self.shift):
            self._take_shifts()
        self.engine.score_positives()
        room = KEPT_BYTES if keep else 0
        for tile in self.tiles():
            size = (tile.i1 - tile.i0) * (tile.j1 - tile.j0)
            out = None
            if size * self.x.element_size() <= room:
                room -= size * self.x.element_size()
                out = self.x.new_empty(tile.i1 - tile.i0, tile.j1 - tile.j0)
                self.kept[tile.i0, tile.j0] = out
            s = self.products(tile, out)
            self.engine.fold(s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror)

    def _take_shifts(self) -> None:
        """Give every row its largest logit, for scores whose range is not known beforehand."""
        problem = self.problem
        assert isinstance(problem, PairProblem)
        value, index = self.extreme(largest=problem.score.inverted)
        closest = torch.where(index >= 0, value, 0.0)
        self.row_shift = largest_logit(problem.spec.name, problem.spec.params(), problem.score, closest)
        self.engine.set_shift(self.row_shift.data_ptr())

    def extreme(self, largest: bool) -> tuple[Tensor, Tensor]:
        """Value and sorted column of each sorted row's extreme negative."""
        value = self.x.new_full((self.n,), float("-inf") if largest else float("inf"))
        index = torch.full((self.n,), -1, dtype=torch.int64)
        for tile in self.tiles():
            s = self.products(tile)
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
            s = self.kept.get((tile.i0, tile.j0))
            scored = s is not None
            s = self.products(tile) if s is None else s
            live = self.engine.coefficients(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, tile.j0, tile.j1, tile.mirror, scored, self.shared
            )
            if live:
                self._add_products(tile, s, dx, dy)
        self.engine.finish_gradients(0 if dx is None else dx.data_ptr(), 0 if dy is None else dy.data_ptr())
        return _scatter(dx, self.layout.row_order), _scatter(dy, self.layout.col_order)

    def _add_products(self, tile: Tile, h: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
        rows, cols = slice(tile.i0, tile.i1), slice(tile.j0, tile.j1)
        if dx is not None:
            dx[rows].addmm_(h, self.y[cols])
        if self.shared and dx is not None and tile.mirror < tile.j1:
            dx[tile.mirror : tile.j1].addmm_(h[:, tile.mirror - tile.j0 :].t(), self.x[rows])
        if dy is not None:
            dy[cols].addmm_(h.t(), self.x[rows])


def _scatter(sorted_rows: Tensor | None, order: Tensor) -> Tensor | None:
    if sorted_rows is None:
        return None
    return torch.empty_like(sorted_rows).index_copy_(0, order, sorted_rows)


def _distance(score: Score) -> str:
    return "dot" if score.kind == "dot" else ("l2" if score.power == 1 else "l2_squared")


def logit_ends(spec: str, params: list[float], score: Score) -> tuple[float, float]:
    """The range of a loss's negative logit over the range of a bounded score."""
    low, high = score.range()
    if spec in ("supcon", "ntxent"):
        ends = [score.sign * low / params[0], score.sign * high / params[0]]
    elif spec == "multi_similarity":
        ends = [score.sign * params[1] * (low - params[2]), score.sign * params[1] * (high - params[2])]
    elif spec == "circle":
        m, gamma = params
        ends = [-gamma * m * m, gamma * max(high + m, 0.0) * (high - m), 0.0]
    else:
        ends = [0.0]
    return min(ends), max(ends)


def largest_logit(spec: str, params: list[float], score: Score, closest: Tensor) -> Tensor:
    """Each row's largest negative logit (up to a constant that cannot overflow) from its closest negative's score."""
    if spec in ("supcon", "ntxent"):
        return closest * (score.sign / params[0])
    if spec == "multi_similarity":
        return score.sign * params[1] * (closest - params[2])
    m, gamma = params
    return gamma * torch.relu(closest + m) * (closest - m)


def fixed_shift(spec: str, params: list[float], score: Score, dtype: torch.dtype) -> float:
    """One shift for every logit where the whole range fits the type's exponent, else NaN: one a row."""
    if spec == "contrastive":
        return 0.0
    low, high = logit_ends(spec, params, score)
    return (low + high) / 2 if high - low <= LOGIT_SPAN[dtype] else math.nan


class CpuBackend:
    """The compiled C++ kernels."""

    name = "cpu"

    def __init__(self) -> None:
        self._torch = ChunkedBackend()

    def available(self) -> str | None:
        return None if _extension.load() is not None else f"the compiled extension is {_extension.status()}"

    def refuse(self, problem: Any) -> str | None:
        reason = self.available()
        if reason is not None:
            return reason
        if problem.x.device.type != "cpu":
            return f"the embeddings are on {problem.x.device.type}, the compiled kernels run on the cpu"
        score: Score = problem.score
        if score.kind == "lp":
            return f"an L{score.p:g} distance is not an inner product; its tiles come from torch.cdist (backend chunked)"
        if score.kind == "dot" and score.power != 1:
            return f"power {score.power:g} of an inner product has no compiled epilogue"
        if score.kind == "l2" and score.power not in (1, 2):
            return f"power {score.power:g} of a distance has no compiled epilogue (1 and 2 have)"
        if isinstance(problem, TripletProblem):
            return "triplets have no compiled epilogue yet"
        return None

    def pair_rows(self, problem: PairProblem, keep_scratch: bool) -> PairRows:
        sweep = Sweep(problem, problem.spec.name, problem.spec.params(), problem.rule)
        sweep.forward(keep_scratch)
        rows, exists = sweep.finish()
        return PairRows(rows, exists, rows.new_zeros(0), sweep if keep_scratch else None)

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        sweep = state.scratch
        if sweep is None:
            sweep = self.pair_rows(problem, True).scratch
        return sweep.gradients(w, need_x, need_y)

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._torch.triplet_rows(problem, need_x, need_y, uniform)

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return self._torch.triplet_grads(problem, w, need_x, need_y)

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        sweep = Sweep(problem, "", [], _extreme_rule(problem))
        order = sweep.layout.row_order
        if problem.positive:
            value = sweep.x.new_full((sweep.n,), float("-inf") if problem.largest else float("inf"))
            index = torch.full((sweep.n,), -1, dtype=torch.int64)
            sweep.engine.score_positives()
            sweep.engine.positive_extreme(problem.largest, value.data_ptr(), index.data_ptr())
        else:
            value, index = sweep.extreme(problem.largest)
        columns = torch.cat([sweep.layout.col_order, index.new_tensor([-1])])
        out_value, out_index = torch.empty_like(value), torch.empty_like(index)
        out_value[order], out_index[order] = value, columns[index]
        return out_value, out_index

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self._torch.listed_scores(score, x, y, i, j)

    def listed_grads(
        self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return self._torch.listed_grads(score, x, y, i, j, grad, need_x, need_y)


def _extreme_rule(problem: ExtremeProblem) -> Tensor | None:
    if problem.low is None and problem.high is None:
        return None
    n, inf = problem.x.shape[0], float("inf")
    low = problem.x.new_full((n,), -inf) if problem.low is None else problem.low
    high = problem.x.new_full((n,), inf) if problem.high is None else problem.high
    return torch.stack([low, high, low, high])
