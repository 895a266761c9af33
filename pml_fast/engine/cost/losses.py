"""Losses that no engine covers."""

from __future__ import annotations

from collections.abc import Callable

from pml_fast.engine import grad_sum
from pml_fast.engine.cost.parts import Cost, Size, common_bytes, cost_of, half
from pml_fast.engine.cost.torch_backends import DENSE_BUFFERS, STRIP_BUFFERS, dense_matrix, indexed, strip


def dense(size: Size) -> Cost:
    """A distance's own matrix, and what is computed of it in torch."""
    return dense_matrix(size)


def listed(size: Size) -> Cost:
    """Listed pairs, and what is computed of their scores in torch."""
    return indexed(size, "chunked")


def extremes(size: Size) -> Cost:
    """Each row's closest column and each column's closest row, then those pairs listed."""
    need, pairs = size.need_x or size.need_y, 3 * max(size.n, size.m)
    products = 2 * size.gemm + 2 * pairs * size.d
    gathered = 6 * min(pairs * size.d, grad_sum.STRIP_ELEMENTS)
    memory = common_bytes(size, 2 + half(size)) + size.item * (STRIP_BUFFERS * strip(size) + gathered + 16 * pairs)
    return cost_of(size, products, products + 4 * pairs * size.d * need, 2 + need, memory)


def vicreg(size: Size) -> Cost:
    """A covariance matrix of the features for each of two views."""
    need, sets = size.need_x or size.need_y, 1 if size.shared else 2
    product = 2 * size.n * size.d * size.d * sets
    memory = size.item * (6 * size.n * size.d + 4 * size.d * size.d) * sets + common_bytes(size, 1)
    return cost_of(size, product, (1 + need) * product, 1 + need, memory)


def manifold(proxies: int) -> Callable[[Size], Cost]:
    """The inverse of a matrix over the rows and ``proxies``; an LU decomposition and its inverse take two cubes."""

    def cost(size: Size) -> Cost:
        rows = size.n + proxies
        need = size.need_x or size.need_y
        products = 2 * rows * rows * size.d + 2 * size.n * proxies * rows
        forward = products + 2 * rows**3
        # The derivative of an inverse is two products with it.
        step = forward + need * (2 * products + 4 * rows**3)
        # The factors, the inverse and the matrices of its derivative are alive together.
        memory = size.item * 2 * DENSE_BUFFERS * rows * rows + common_bytes(size, 2)
        return cost_of(size, forward, step, 1 + need, memory)

    return cost
