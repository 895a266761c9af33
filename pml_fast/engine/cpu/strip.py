"""Losses of whole rows: torch's matrix products on strips of rows, C++ in between while a strip is in cache.

A spec whose row needs all of its scores at once (ranks, histograms) declares its compiled form by a struct of
``csrc/engine/row_specs.h`` and its name in :data:`COMPILED_ROWS`. One pass over the strips gives the losses and, where a
gradient will follow, the gradients of the plain sum of all losses inside the limits: as a rule that is what the reduction
wants, up to one factor. Where it weighs the rows otherwise the strips are passed once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.rows import TILE_BYTES, SortedRows, Tile
from pml_fast.engine.problem import PairProblem, PairRows

# The specs of csrc/engine/row_specs.h.
COMPILED_ROWS = ("fast_ap", "smooth_ap", "pnp")


def refuse_rows(problem: PairProblem) -> str | None:
    """Why the compiled rows cannot run this, or ``None``."""
    if problem.rule is None and problem.search is None:
        return None
    return f"the compiled rows of {problem.spec.name!r} take no bounds of a miner's rule"


Grads = tuple[Tensor | None, Tensor | None]


def strip_height(m: int, item: int) -> int:
    """Rows of a strip of ``m`` columns."""
    return max(8, min(512, TILE_BYTES // (item * max(m, 1))))


class StripSweep:
    """One problem on the compiled engine."""

    def __init__(self, problem: PairProblem) -> None:
        self.problem, self.rows = problem, SortedRows(problem, None)
        spec = problem.spec
        self.engine = extension().strip_engine(
            self.rows.compiled, spec.name, spec.params(), problem.score.sign, problem.limits[0], self.rows.is_double
        )
        # Losses, which exist, which lie inside the limits, what each row is multiplied by in its own gradient.
        self.table = self.rows.x.new_empty(4, self.rows.n)
        self.value, self.there, self.kept, self.own = self.table.unbind()

    def run(self, w: Tensor | None, need_x: bool, need_y: bool) -> Grads:
        """One pass: the losses of the sorted rows, and the gradients that are asked for (in their order); ``w [N]`` or 1."""
        height = strip_height(self.rows.m, self.rows.x.element_size())
        if self.rows.shared and self.rows.n <= height:
            return self._whole(w, need_x), None
        return self._strips(w, need_x, need_y, height)

    def _fold(self, i0: int, i1: int, w: Tensor | None, gradients: bool) -> tuple[Tensor, bool]:
        """The products of a strip, turned into coefficients where gradients are wanted, and whether any is not 0."""
        s = self.rows.products(Tile(i0, i1, 0, self.rows.m, self.rows.m))
        live = self.engine.run(
            s.data_ptr(), s.stride(0), i0, i1, self.value.data_ptr(), self.there.data_ptr(), self.kept.data_ptr(),
            self.own.data_ptr(), 0 if w is None else w.data_ptr(), gradients,
        )  # fmt: skip
        return s, live

    @property
    def _distances(self) -> bool:
        return self.problem.score.kind != "dot"

    def _whole(self, w: Tensor | None, need: bool) -> Tensor | None:
        """A batch against itself in one strip: its two roles are one product with a symmetric matrix."""
        s, live = self._fold(0, self.rows.n, w, need)
        if not need:
            return None
        if not live:
            return torch.zeros_like(self.rows.x)
        if self._distances:
            s.diagonal().add_(self.own - s.sum(dim=0), alpha=0.5)
        return torch.mm(s + s.t(), self.rows.x)

    def _strips(self, w: Tensor | None, need_x: bool, need_y: bool, height: int) -> Grads:
        rows, shared = self.rows, self.rows.shared
        dx = torch.zeros_like(rows.x) if need_x else None
        dy = dx if shared else (torch.zeros_like(rows.y) if need_y else None)
        columns = rows.x.new_zeros(rows.m) if self._distances and dy is not None else None
        for i0 in range(0, rows.n, height):
            i1 = min(rows.n, i0 + height)
            s, live = self._fold(i0, i1, w, dx is not None or dy is not None)
            if not live:
                continue
            if dx is not None:
                dx[i0:i1].addmm_(s, rows.y)
            if dy is not None:
                dy.addmm_(s.t(), rows.x[i0:i1])
            if columns is not None:
                columns -= s.sum(dim=0)
        if dx is not None and self._distances:
            dx.addcmul_(self.own.unsqueeze(1), rows.x)
        if dy is not None and columns is not None:
            dy.addcmul_(columns.unsqueeze(1), rows.y)
        return dx, None if shared else dy

    def factor(self, w: Tensor) -> float | None:
        """What the weights of the sorted rows multiply the plain sum's gradients by, where that is one number."""
        factor: float | None = self.engine.common_factor(self.there.data_ptr(), self.kept.data_ptr(), w.data_ptr())
        return factor

    def state(self) -> PairRows:
        """The rows ``[1, 2, N]`` in the caller's order."""
        rows = self.value.new_empty(2, self.rows.n).index_copy_(1, self.rows.layout.row_order, self.table[:2])
        # No spec of rows is gated: whether there are pairs of either kind is nobody's question.
        return PairRows(rows.unsqueeze(0), torch.ones(2, dtype=torch.bool), rows.new_zeros(0))


def pair_rows(problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
    """The forward, and with it the gradients of the plain sum."""
    sweep = StripSweep(problem)
    grads = sweep.run(None, need_x, need_y)
    state = sweep.state()
    if need_x or need_y:
        state.scratch = sweep, grads
    return state


def pair_grads(problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool) -> Grads:
    """Gradients of ``sum(w[0] * value)``."""
    if state.scratch is None:
        state = pair_rows(problem, need_x, need_y)
    sweep, grads = state.scratch
    own = w[0].to(sweep.value.dtype).index_select(0, sweep.rows.layout.row_order)
    factor = sweep.factor(own)
    if factor is None:
        grads = sweep.run(own, need_x, need_y)
    else:
        for grad in grads:
            if grad is not None:
                grad *= factor
    return sweep.rows.unsorted(*grads)
