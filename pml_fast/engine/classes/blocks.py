"""A block of class weights: its scores, and the way back from their derivative to rows and weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.classes.problem import ClassProblem
from pml_fast.engine.score import NORM_EPS
from pml_fast.engine.strips import strip_base, strip_grads

# Rows scored at a time: with more of them a strip would hold too few classes for a product to be fast.
ROWS = 4096


def class_ranges(problem: ClassProblem) -> Iterator[tuple[int, int]]:
    """Ranges of classes whose scores and whose weights have about ``STRIP_ELEMENTS`` numbers."""
    step = classes_a_block(problem.x.shape[0], problem.y.shape[1], problem.spec.centers)
    for first in range(0, problem.classes, step):
        yield first, min(problem.classes, first + step)


def classes_a_block(n: int, d: int, centers: int) -> int:
    """How many classes are scored at a time."""
    return max(1, grad_sum.STRIP_ELEMENTS // max(min(n, ROWS), d, 1) // centers)


def row_ranges(n: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows."""
    for first in range(0, n, ROWS):
        yield first, min(n, first + ROWS)


def is_one_block(n: int, m: int, d: int, centers: int) -> bool:
    """Whether all scores are one block, which is then kept for the backward."""
    return 0 < n <= ROWS and m <= centers * classes_a_block(n, d, centers)


class Block:
    """Base: columns of the classes ``first .. last`` and what their gradient adds up to."""

    def __init__(self, problem: ClassProblem, first: int, last: int, need_y: bool) -> None:
        self.problem, self.need_y = problem, need_y
        self.w = problem.weights(first, last)

    def scores(self, x: Tensor) -> Tensor:
        """Unpowered scores of some rows ``[n, B]``."""
        raise NotImplementedError

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        """Add the gradients of ``sum(c * score)``: those by the rows into ``dx``."""
        raise NotImplementedError

    def add_norms(self, grad: Tensor) -> None:
        """Add the gradient of ``sum(grad * |w|)``."""
        raise NotImplementedError

    def write(self, dy: Tensor) -> None:
        """Write the gradient by the weights into its place."""
        raise NotImplementedError

    def norms(self) -> Tensor:
        """The norms of the weights ``[B]``."""
        return torch.linalg.vector_norm(self.w, ord=self.problem.spec.p, dim=1)


class DotBlock(Block):
    """Inner products with weights or unit weights: the products are scaled, the weights are not copied."""

    def __init__(self, problem: ClassProblem, first: int, last: int, need_y: bool) -> None:
        super().__init__(problem, first, last, need_y)
        self.inverse: Tensor | None = None
        if problem.spec.unit:
            norm = self.norms()
            self.inverse = norm.clamp(min=NORM_EPS).reciprocal_()
            # A clamped norm is a constant: no component to project out.
            self.projects = norm > NORM_EPS
        self.dw: Tensor | None = None
        self.along: Tensor | None = None

    def scores(self, x: Tensor) -> Tensor:
        base = x @ self.w.T
        return base if self.inverse is None else base.mul_(self.inverse)

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        power = self.problem.score.power
        if power != 1:
            c = torch.where(base != 0, c * power * base ** (power - 1), 0.0)
        if self.inverse is not None:
            if self.need_y:
                along = (c * base).sum(dim=0)
                self.along = along if self.along is None else self.along + along
            c = c * self.inverse
        if dx is not None:
            dx.addmm_(c, self.w)
        if self.need_y:
            self.dw = _columns_by_rows(c, x, self.w) if self.dw is None else self.dw.addmm_(c.T, x)

    def add_norms(self, grad: Tensor) -> None:
        norm = self.norms()
        factor = torch.where(norm > 0, grad / norm, 0.0).unsqueeze(1)
        self.dw = self.w * factor if self.dw is None else self.dw.addcmul_(self.w, factor)

    def write(self, dy: Tensor) -> None:
        if self.dw is None:
            dy.zero_()
            return
        if self.inverse is not None and self.along is not None:
            # d(w/|w|): what points along the weight changes no unit vector.
            factor = torch.where(self.projects, self.along * self.inverse.square(), 0.0)
            self.dw.addcmul_(self.w, factor.unsqueeze(1), value=-1.0)
        dy.copy_(self.dw)


def _columns_by_rows(c: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``c.T @ x`` in the memory order of ``w``: weights may be stored a column a class."""
    return (x.T @ c).T if w.stride(0) == 1 else c.T @ x


class PreparedBlock(Block):
    """Any other score: the block's columns are prepared in a copy, whose derivative is autograd's."""

    def __init__(self, problem: ClassProblem, first: int, last: int, need_y: bool) -> None:
        super().__init__(problem, first, last, need_y)
        if need_y:
            with autograd_enabled():
                self.leaf = self.w.detach().requires_grad_()
                self.graph = problem.spec.columns(self.leaf)
            self.columns = self.graph.detach()
        else:
            self.columns = problem.spec.columns(self.w)
        self.grad: Tensor | None = None

    def scores(self, x: Tensor) -> Tensor:
        return strip_base(self.problem.score, x, self.columns)

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        rows, columns = strip_grads(self.problem.score, x, self.columns, base, c, dx is not None, self.need_y)
        if dx is not None and rows is not None:
            dx += rows
        if columns is not None:
            self.grad = columns if self.grad is None else self.grad.add_(columns)

    def write(self, dy: Tensor) -> None:
        if self.grad is None:
            dy.zero_()
            return
        with autograd_enabled():
            # A spec without preparation hands the weights on as they are.
            (dw,) = (self.grad,) if self.graph is self.leaf else torch.autograd.grad(self.graph, self.leaf, self.grad)
        dy.copy_(dw)


def block_of(problem: ClassProblem, first: int, last: int, need_y: bool = False) -> Block:
    """The block of the classes ``first .. last``; ``need_y`` where its gradient is wanted."""
    spec = problem.spec
    plain = spec.score.kind == "dot" and spec.lift == "none" and (spec.p == 2 or not spec.unit)
    return (DotBlock if plain else PreparedBlock)(problem, first, last, need_y)
