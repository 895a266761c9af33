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
ROWS = 2048
# Scores that the compiled backend keeps for the backward. glibc's malloc hands blocks of 32 MiB and more
# (DEFAULT_MMAP_THRESHOLD_MAX) back to the kernel, which maps them anew at each step, page by page: a MiB less stays mapped.
KEPT_BYTES = (32 << 20) - (1 << 20)


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


def kept_classes(problem: ClassProblem) -> int:
    """How many classes' scores the compiled backend keeps: those of the first whole blocks."""
    (n, d), centers = (problem.x.shape[0], problem.y.shape[1]), problem.spec.centers
    fitting = KEPT_BYTES // max(problem.x.element_size() * n * centers, 1)
    if n == 0 or fitting >= problem.classes:
        return problem.classes
    step = classes_a_block(n, d, centers)
    return fitting // step * step


class Block:
    """Base: columns of the classes ``first .. last``; ``out`` is where the gradient by their weights goes, if it is wanted."""

    def __init__(self, problem: ClassProblem, first: int, last: int, out: Tensor | None) -> None:
        self.problem, self.out = problem, out
        self.w = problem.weights(first, last)

    def scores(self, x: Tensor) -> Tensor:
        """Unpowered scores of some rows ``[n, B]``."""
        raise NotImplementedError

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        """Add the gradients of ``sum(c * score)``: those by the rows into ``dx``."""
        raise NotImplementedError

    def write(self) -> None:
        """Finish the gradient by the weights, in its place."""
        raise NotImplementedError


class DotBlock(Block):
    """Inner products with weights or unit weights, and what their squares add: the weights are not copied."""

    def __init__(self, problem: ClassProblem, first: int, last: int, out: Tensor | None) -> None:
        super().__init__(problem, first, last, out)
        self.d = self.w.shape[1]
        norm = None
        if problem.spec.unit or problem.spec.lift == "square":
            norm = torch.linalg.vector_norm(self.w, dim=1)
        self.inverse: Tensor | None = None
        if problem.spec.unit and norm is not None:
            self.inverse = norm.clamp(min=NORM_EPS).reciprocal_()
            # A clamped norm is a constant: no component to project out.
            self.projects = norm > NORM_EPS
            norm = norm * self.inverse
        self.square = norm.square() if norm is not None and problem.spec.lift == "square" else None
        # Factors of the weights themselves in their gradient.
        self.along: Tensor | float = 0.0
        self.dw: Tensor | None = None

    def scores(self, x: Tensor) -> Tensor:
        base = x[:, : self.d] @ self.w.T
        if self.inverse is not None:
            base.mul_(self.inverse)
        return base if self.square is None else base.addr_(x[:, self.d], self.square)

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        power = self.problem.score.power
        if power != 1:
            c = torch.where(base != 0, c * power * base ** (power - 1), 0.0)
        if self.square is not None and dx is not None:
            dx[:, self.d] += c @ self.square
        if self.out is not None:
            self.along = self.along + self._along(x, base, c)
        if self.inverse is not None:
            c = c * self.inverse
        if dx is not None:
            dx[:, : self.d].addmm_(c, self.w)
        if self.out is not None:
            self._add_products(c, x[:, : self.d])

    def _along(self, x: Tensor, base: Tensor, c: Tensor) -> Tensor | float:
        """What multiplies each weight in its own gradient ``[B]``: projected out of a unit vector, or added by a square."""
        if self.inverse is not None:
            along = (c * base).sum(dim=0)
            if self.square is not None:
                along -= self.square * (x[:, self.d] @ c)
            return torch.where(self.projects, along * self.inverse.square(), 0.0).neg_()
        return 0.0 if self.square is None else 2 * (x[:, self.d] @ c)

    def _add_products(self, c: Tensor, x: Tensor) -> None:
        assert self.out is not None
        if self.dw is not None:
            self.dw.addmm_(c.T, x)
        elif self.out.dtype == x.dtype:
            self.dw = self.out.addmm_(c.T, x, beta=0)
        else:
            self.dw = c.T @ x

    def write(self) -> None:
        assert self.out is not None
        if self.dw is None:
            self.out.zero_()
            return
        if torch.is_tensor(self.along):
            self.dw.addcmul_(self.w, self.along.unsqueeze(1))
        if self.dw is not self.out:
            self.out.copy_(self.dw)


class PreparedBlock(Block):
    """Any other score: the block's columns are prepared in a copy, whose derivative is autograd's."""

    def __init__(self, problem: ClassProblem, first: int, last: int, out: Tensor | None) -> None:
        super().__init__(problem, first, last, out)
        if out is None:
            self.columns = problem.spec.columns(self.w)
        else:
            with autograd_enabled():
                self.leaf = self.w.detach().requires_grad_()
                self.graph = problem.spec.columns(self.leaf)
            self.columns = self.graph.detach()
        self.grad: Tensor | None = None

    def scores(self, x: Tensor) -> Tensor:
        return strip_base(self.problem.score, x, self.columns)

    def add(self, x: Tensor, dx: Tensor | None, base: Tensor, c: Tensor) -> None:
        need_x, need_y = dx is not None, self.out is not None
        rows, columns = strip_grads(self.problem.score, x, self.columns, base, c, need_x, need_y)
        if dx is not None and rows is not None:
            dx += rows
        if columns is not None:
            self.grad = columns if self.grad is None else self.grad.add_(columns)

    def write(self) -> None:
        assert self.out is not None
        if self.grad is None:
            self.out.zero_()
            return
        dw = self.grad
        # A spec without preparation hands the weights on as they are.
        if self.graph is not self.leaf:
            with autograd_enabled():
                (dw,) = torch.autograd.grad(self.graph, self.leaf, self.grad)
        self.out.copy_(dw)


def block_of(problem: ClassProblem, first: int, last: int, dy: Tensor | None = None) -> Block:
    """The block of the classes ``first .. last``; ``dy [M, D]`` takes the gradient by all weights, where it is wanted."""
    spec = problem.spec
    out = None if dy is None else dy[first * spec.centers : last * spec.centers]
    plain = spec.score.kind == "dot" and spec.lift in ("none", "square") and (spec.p == 2 or not spec.unit)
    return (DotBlock if plain else PreparedBlock)(problem, first, last, out)
