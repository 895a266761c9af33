"""Losses of whole rows: torch's matrix products on strips of rows, C++ in between while a strip is in cache.

A spec whose row needs all of its scores at once (ranks, histograms) declares its compiled form by a struct of
``csrc/engine/row_specs.h`` and its name in :data:`COMPILED_ROWS`. One pass over the strips gives the losses and, where a gradient
will follow, the gradients of the plain sum of all losses inside the limits: as a rule that is what the reduction wants, up to
one factor. Where it weighs the rows otherwise the strips are passed once more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cpu.rows import TILE_BYTES, SortedRows, Tile, extension
from pml_fast.engine.problem import PairProblem, PairRows

# The specs of csrc/engine/row_specs.h.
COMPILED_ROWS = ("fast_ap", "smooth_ap", "pnp")


def refuse_rows(problem: PairProblem) -> str | None:
    """Why the compiled rows cannot run this, or ``None``."""
    return None if problem.rule is None else f"the compiled rows of {problem.spec.name!r} take no bounds of a miner's rule"


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
        self.value, self.there, self.kept, self.own = self.rows.x.new_empty(4, self.rows.n).unbind()

    def run(self, w: Tensor | None, need_x: bool, need_y: bool) -> Grads:
        """One pass: the losses of the sorted rows, and the gradients that are asked for (in their order); ``w [N]`` or 1."""
        rows, shared = self.rows, self.rows.shared
        dx = torch.zeros_like(rows.x) if need_x else None
        dy = dx if shared else (torch.zeros_like(rows.y) if need_y else None)
        gradients = dx is not None or dy is not None
        distances = self.problem.score.kind != "dot"
        columns = rows.x.new_zeros(rows.m) if distances and dy is not None else None
        height = strip_height(rows.m, rows.x.element_size())
        for i0 in range(0, rows.n, height):
            tile = Tile(i0, min(rows.n, i0 + height), 0, rows.m, rows.m)
            s = rows.products(tile)
            live = self.engine.run(
                s.data_ptr(), s.stride(0), tile.i0, tile.i1, self.value.data_ptr(), self.there.data_ptr(),
                self.kept.data_ptr(), self.own.data_ptr(), 0 if w is None else w.data_ptr(), gradients,
            )  # fmt: skip
            if not live:
                continue
            if dx is not None:
                dx[tile.i0 : tile.i1].addmm_(s, rows.y)
            if dy is not None:
                dy.addmm_(s.t(), rows.x[tile.i0 : tile.i1])
            if columns is not None:
                columns -= s.sum(dim=0)
        if dx is not None and distances:
            dx.addcmul_(self.own.unsqueeze(1), rows.x)
        if dy is not None and columns is not None:
            dy.addcmul_(columns.unsqueeze(1), rows.y)
        return dx, None if shared else dy

    def state(self) -> PairRows:
        """The rows ``[1, 2, N]`` in the caller's order."""
        rows = self.value.new_empty(1, 2, self.rows.n)
        rows[0, :, self.rows.layout.row_order] = torch.stack([self.value, self.there])
        # No spec of rows is gated: whether there are pairs of either kind is nobody's question.
        return PairRows(rows, torch.ones(2, dtype=torch.bool), rows.new_zeros(0))


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
    own = torch.where(sweep.there > 0, own, 0.0)
    factor = own.sum() / sweep.kept.sum().clamp(min=1)
    if bool(((own - factor * sweep.kept).abs() <= 1e-6 * factor.abs()).all()):
        for grad in grads:
            if grad is not None:
                grad *= factor
    else:
        grads = sweep.run(own, need_x, need_y)
    return sweep.rows.unsorted(*grads)
