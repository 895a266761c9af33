"""All triplets of a strip of anchors, from sorted positives: O(N M log P) work, whatever the number of positives."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cuda.strips import Side, Tiles, distance_name, extension, stream, strips
from pml_fast.engine.problem import TripletProblem
from pml_fast.engine.triplet_strips import by_class, places, unsorted

POSITIVE_ONLY, EVERY = (0.0, float("inf")), (float("-inf"), float("inf"))


def refuse_triplet(problem: TripletProblem) -> str | None:
    """Why the sorted-positives kernel cannot run this, or ``None``."""
    if problem.spec.swap or problem.spec.smooth:
        return "swap and smooth losses are no sums over ranges of sorted positives"
    if tuple(problem.limits) not in (POSITIVE_ONLY, EVERY):
        return f"losses between {problem.limits[0]:g} and {problem.limits[1]:g} are not ranges of the sorted positives"
    return None


def triplet_rows(
    problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``rows [2, N]`` (float64 sum and count) and, where ``uniform``, the float32 gradients of the plain sum."""
    sweep = _Sweep(problem, None, need_x and uniform, need_y and uniform)
    sweep.run()
    return sweep.results()


def triplet_grads(problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
    """Float32 gradients of ``sum(w * row value)``, ``w [N]``."""
    sweep = _Sweep(problem, w, need_x, need_y)
    sweep.run()
    _, dx, dy = sweep.results()
    return dx, dy


class _Sweep:
    """One problem: rows and columns by class, and what its strips add up to."""

    def __init__(self, problem: TripletProblem, w: Tensor | None, need_x: bool, need_y: bool) -> None:
        self.problem, self.order_x, self.order_y = by_class(problem)
        problem = self.problem
        self.x = Side.of(problem.x, problem.score)
        self.y = self.x if problem.shared else Side.of(problem.y, problem.score)
        self.begin = torch.searchsorted(problem.y_labels, problem.x_labels)
        self.end = torch.searchsorted(problem.y_labels, problem.x_labels, right=True)
        self.own = places(self.order_y)[self.order_x] if problem.itself else None
        n = len(self.x.rows)
        ones = self.x.rows.new_ones(n)
        self.weights = ones if w is None else w.to(torch.float32)[self.order_x].contiguous()
        self.intervals = None if problem.rule is None else problem.rule.to(torch.float32).contiguous()
        self.sums = torch.zeros(n, dtype=torch.float64, device=ones.device)
        self.counts = torch.zeros(n, dtype=torch.int64, device=ones.device)
        self.own_factors = torch.zeros_like(ones)
        self.dx = torch.zeros_like(self.x.rows) if need_x else None
        self.dy = torch.zeros_like(self.y.rows) if need_y and not problem.shared else None

    def run(self) -> None:
        """Every strip; nothing is read back."""
        tiles = Tiles(self.x, self.y)
        gradients = self.dx is not None or self.dy is not None
        workspace = self._workspace()
        for first, last in strips(len(self.x.rows), len(self.y.rows)):
            tile = tiles.products(first, last)
            self._fold(tile, first, last, gradients, workspace)
            if gradients:
                self._add_products(tile, slice(first, last))
        if self.dx is not None and self.problem.score.kind != "dot":
            self.dx.addcmul_(self.own_factors.unsqueeze(1), self.x.rows)

    def _workspace(self) -> Tensor | None:
        if not self.sums.is_cuda:
            return None
        return self.sums.new_empty(extension().cuda_triplet_workspace(len(self.y.rows)), dtype=torch.uint8)

    def _fold(self, tile: Tensor, first: int, last: int, gradients: bool, workspace: Tensor | None) -> None:
        problem, spec = self.problem, self.problem.spec
        tensors = (
            tile, self.x.rows, self.y.rows, self.x.norms, self.y.norms, self.begin, self.end, self.own, self.intervals,
            self.weights, self.sums, self.counts, self.own_factors,
        )  # fmt: skip
        strip = extension().TripletStrip(
            *(0 if tensor is None else tensor.data_ptr() for tensor in tensors), first, last - first, *self._sizes(),
            distance_name(problem.score), spec.margin, spec.select_margin, problem.score.sign, spec.select,
            tuple(problem.limits) == POSITIVE_ONLY, gradients,
        )  # fmt: skip
        if workspace is None:
            extension().host_triplets(strip)
        else:
            extension().cuda_triplets(strip, workspace.data_ptr(), stream(tile.device))

    def _sizes(self) -> tuple[int, int, int]:
        return len(self.x.rows), len(self.y.rows), self.x.rows.shape[1]

    def _add_products(self, factors: Tensor, rows: slice) -> None:
        x, y = self.x.rows, self.y.rows
        if self.dx is not None:
            self.dx[rows].addmm_(factors, y)
        other = self.dx if self.problem.shared else self.dy
        if other is not None:
            other.addmm_(factors.t(), x[rows])
            if self.problem.score.kind != "dot":
                other.addcmul_(factors.sum(dim=0).unsqueeze(1), y, value=-1.0)

    def results(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows and gradients in the problem's order."""
        rows = unsorted(torch.stack([self.sums, self.counts.double()]), self.order_x, 1)
        dx = None if self.dx is None else unsorted(self.dx, self.order_x, 0)
        dy = None if self.dy is None else unsorted(self.dy, self.order_y, 0)
        return rows, dx, dy
