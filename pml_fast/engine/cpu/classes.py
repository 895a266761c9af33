"""The class engine on the compiled backend: torch's products of a block, C++ folds and derivatives while it is in cache.

The weights are read where they lie: norms divide the products, and what a norm takes out of the gradient is one number a class.
The first blocks' products are kept for the backward as far as :data:`blocks.KEPT_BYTES` reach; others are computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.blocks import class_ranges, kept_classes, row_ranges
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores, add_norm_grads, own_norms
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.scratch import Room
from pml_fast.engine.score import NORM_EPS

INF = float("inf")


def refuse_classes(problem: ClassProblem) -> str | None:
    """Why the compiled engine cannot run this, or ``None``."""
    return refuse_spec(problem.spec)


def refuse_spec(spec: ClassSpec) -> str | None:
    """Why no compiled kernel has this maths, or ``None``."""
    if spec.score.kind != "dot" or spec.lift == "snr":
        return "blocks of classes have a compiled kernel for inner products and squared distances alone"
    if spec.score.power != 1:
        return f"power {spec.score.power:g} of an inner product has no compiled kernel for blocks of classes"
    if spec.unit and spec.p != 2:
        return f"weights divided by their L{spec.p:g} norm have no compiled kernel for blocks of classes"
    return None


def _address(tensor: Tensor | None, place: int = 0) -> int:
    return 0 if tensor is None else tensor.data_ptr() + place * tensor.element_size()


class Sweep:
    """One problem on the compiled kernels."""

    def __init__(self, problem: ClassProblem) -> None:
        spec = problem.spec
        self.problem, self.spec, self.d = problem, spec, problem.y.shape[1]
        self.x = problem.x
        # The compiled side reads these tensors through their addresses: they live as long as this object.
        self.target = problem.target.contiguous()
        self.bias = None if problem.bias is None else problem.bias.to(self.x.dtype).contiguous()
        self.lift = self.x[:, self.d].contiguous() if spec.lift == "square" else None
        self.maths = extension().class_maths(spec.pool, spec.fold, spec.centers, spec.scale, spec.sharpness)
        self.threads, self.is_double = torch.get_num_threads(), self.x.dtype == torch.float64
        self._room = Room(self.x.dtype)

    def by_class(self) -> bool:
        """Whether the fold is one of classes."""
        return self.spec.fold == "class_lse"

    def rows(self, a: int, b: int) -> Tensor:
        """The rows' features that meet the weights."""
        return self.x[a:b, : self.d]

    def buffer(self, rows: int, columns: int) -> Tensor:
        """Room for a block that the next one overwrites."""
        return self._room.of(rows, columns)


class WeightBlock:
    """The weights of the classes ``first .. last``, their norms, and where their gradient is summed."""

    def __init__(self, sweep: Sweep, first: int, last: int) -> None:
        spec, problem = sweep.spec, sweep.problem
        self.sweep, self.first, self.classes = sweep, first, last - first
        self.w = problem.weights(first, last)
        self.columns = self.w.shape[0]
        self.inverse: Tensor | None = None
        self.square: Tensor | None = None
        if not spec.unit and spec.lift != "square":
            return
        norm = self.w.new_empty(self.columns)
        extension().class_norms(
            self.w.data_ptr(), self.columns, sweep.d, self.w.stride(0), self.w.stride(1), norm.data_ptr(), sweep.threads,
            sweep.is_double,
        )  # fmt: skip
        if spec.unit:
            self.inverse = norm.clamp(min=NORM_EPS).reciprocal_()
            # A clamped norm is a constant: no component to project out.
            self.projects = norm > NORM_EPS
        if spec.lift == "square":
            self.square = (norm if self.inverse is None else norm * self.inverse).square_()

    def products(self, a: int, b: int, out: Tensor) -> Tensor:
        """Inner products of the rows ``a .. b``."""
        return torch.mm(self.sweep.rows(a, b), self.w.t(), out=out)

    def compiled(self, products: Tensor, a: int, b: int) -> Any:
        """The block as the kernels take it."""
        sweep = self.sweep
        return extension().class_block(
            products.data_ptr(), products.stride(0), b - a, self.first, self.classes, _address(self.inverse),
            _address(self.square), _address(sweep.lift, a), _address(sweep.target, a), _address(sweep.bias, a),
            sweep.threads,
        )  # fmt: skip


class GradBlock(WeightBlock):
    """The same on the way back; ``out`` is where the gradient by the weights goes, if it is wanted."""

    def __init__(self, sweep: Sweep, first: int, last: int, out: Tensor | None) -> None:
        super().__init__(sweep, first, last)
        self.out, self.dw = out, None if out is None or out.dtype != self.w.dtype else out
        self.started = False
        wanted = out is not None
        self.along = self.w.new_zeros(self.columns) if wanted and self.inverse is not None else None
        # The square of a unit weight is a constant.
        self.lifted = self.w.new_zeros(self.columns) if wanted and self.square is not None and self.inverse is None else None

    def coefficients(self, products: Tensor, out: Tensor, a: int, b: int, fold: int, weight: int, own: int) -> None:
        """The derivatives by the products, into ``out``."""
        extension().class_coefficients(
            self.sweep.maths, self.compiled(products, a, b), fold, weight, own, out.data_ptr(), out.stride(0),
            _address(self.along), _address(self.lifted), self.sweep.is_double,
        )  # fmt: skip

    def add(self, c: Tensor, a: int, b: int, dx: Tensor | None) -> None:
        """Add the products of the derivatives with weights and rows."""
        d = self.sweep.d
        if dx is not None:
            dx[a:b, :d].addmm_(c, self.w)
            if self.square is not None:
                # Derivatives by products are those by scores times the inverse norms.
                dx[a:b, d].addmv_(c, self.square if self.inverse is None else self.square / self.inverse)
        if self.out is None:
            return
        rows = self.sweep.rows(a, b)
        if self.dw is None:
            self.dw = c.t() @ rows
        else:
            self.dw.addmm_(c.t(), rows, beta=1 if self.started else 0)
        self.started = True

    def write(self) -> None:
        """Finish the gradient by the weights, in its place."""
        if self.out is None:
            return
        if not self.started or self.dw is None:
            self.out.zero_()
            return
        if self.along is not None and self.inverse is not None:
            factor = torch.where(self.projects, self.along * self.inverse.square(), 0.0).neg_()
            self.dw.addcmul_(self.w, factor.unsqueeze(1))
        elif self.lifted is not None:
            self.dw.addcmul_(self.w, self.lifted.mul_(2).unsqueeze(1))
        if self.dw is not self.out:
            self.out.copy_(self.dw)


def class_scores(problem: ClassProblem, keep: bool) -> ClassScores:
    """One sweep over the classes."""
    sweep, spec = Sweep(problem), problem.spec
    x, n = problem.x, problem.x.shape[0]
    top, total = x.new_full((problem.folded,), -INF), torch.zeros(problem.folded, dtype=torch.float64)
    own = x.new_zeros(n)
    kept_to = kept_classes(problem) if keep else 0
    kept, place = x.new_empty(n * kept_to * spec.centers), 0
    for first, last in class_ranges(problem):
        block = WeightBlock(sweep, first, last)
        for a, b in row_ranges(n):
            size = (b - a) * block.columns
            out = kept[place : place + size].view(b - a, -1) if last <= kept_to else sweep.buffer(b - a, block.columns)
            place += size if last <= kept_to else 0
            products = block.products(a, b, out)
            at = first if sweep.by_class() else a
            extension().fold_classes(
                sweep.maths, block.compiled(products, a, b), _address(top, at), _address(total, at), _address(own, a),
                sweep.is_double,
            )  # fmt: skip
    others = total.to(x.dtype) if spec.fold == "row_squares" else _log_sum_exp(top, total)
    norms = own_norms(problem)[1] if spec.norms else x.new_empty(0)
    return ClassScores(others, own, norms, kept)


def _log_sum_exp(top: Tensor, total: Tensor) -> Tensor:
    shift = torch.where(torch.isinf(top), 0.0, top)
    return total.log_().add_(shift).to(top.dtype)


def class_grads(
    problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the rows and by the weights of what ``grads`` are the derivatives of."""
    sweep = Sweep(problem)
    x, y, n, centers = problem.x, problem.y, problem.x.shape[0], problem.spec.centers
    dx = torch.zeros_like(x) if need_x else None
    # In the memory order of the weights: a parameter takes over such a gradient without a copy.
    dy = torch.empty_like(y) if need_y else None
    fold, weight, own = state.others.contiguous(), grads.others.contiguous(), grads.target.contiguous()
    kept_to, place = state.kept.numel() // max(n * centers, 1), 0
    for first, last in class_ranges(problem):
        block = GradBlock(sweep, first, last, None if dy is None else dy[first * centers : last * centers])
        for a, b in row_ranges(n):
            c = sweep.buffer(b - a, block.columns)
            if last <= kept_to:
                products = state.kept[place : place + c.numel()].view_as(c)
                place += c.numel()
            else:
                products = block.products(a, b, c)
            at = first if sweep.by_class() else a
            block.coefficients(products, c, a, b, _address(fold, at), _address(weight, at), _address(own, a))
            block.add(c, a, b, dx)
        block.write()
    if dy is not None and grads.norms is not None:
        add_norm_grads(problem, grads.norms, dy)
    return dx, dy
