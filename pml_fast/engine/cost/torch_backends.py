"""Strips, dense tensors and listed pairs in torch; listed pairs on compiled backends as well."""

from __future__ import annotations

from collections.abc import Callable

from pml_fast.engine import grad_sum
from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.cost.parts import Cost, Estimate, Size, Spec, common_bytes, cost_of, half
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec, TripletSpec

# Buffers of a strip that are alive together in the pure-torch backend: scores, masks, losses and autograd's saved tensors.
STRIP_BUFFERS = 12
# The same for the dense path over all pairs.
DENSE_BUFFERS = 12


def strip(size: Size) -> int:
    return max(size.m, min(grad_sum.STRIP_ELEMENTS, size.n * size.m))


def chunked_pairwise(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
    assert isinstance(spec, PairSpec)
    need = size.need_x or size.need_y
    memory = common_bytes(size, 2 + half(size)) + size.item * STRIP_BUFFERS * strip(size)
    # Two sweeps forward take two backward, the last of which multiplies into the gradients.
    sweeps = spec.sweeps * (1 + need)
    return cost_of(size, spec.sweeps * size.gemm, (sweeps + size.gradients) * size.gemm, sweeps, memory)


def chunked_triplet(size: Size, spec: Spec, _: Score, uniform: bool) -> Cost:
    assert isinstance(spec, TripletSpec)
    need = size.need_x or size.need_y
    sweeps = 1 + (need and not uniform)
    # With swap the positives are compared with all columns as well.
    products = 1 + spec.swap
    step = (sweeps * products + size.gradients + 2 * (spec.swap and size.gradients > 0)) * size.gemm
    # Indices of ranges are int64, twice a float32.
    memory = common_bytes(size, 3 + half(size)) + (2 * size.item + 8) * STRIP_BUFFERS // 2 * strip(size)
    return cost_of(size, products * size.gemm, step, sweeps, memory)


def chunked_histogram(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
    assert isinstance(spec, HistogramSpec)
    need = size.need_x or size.need_y
    memory = common_bytes(size, 2 + half(size)) + size.item * STRIP_BUFFERS * strip(size)
    # Pairs of a batch with itself are visited once.
    share = 0.5 if size.shared and not spec.triplets else 1.0
    step = (1 + need + size.gradients) * size.gemm
    return cost_of(size, share * size.gemm, share * step, 1 + need, memory)


def reference(elements: Callable[[Size], int]) -> Estimate:
    def cost(size: Size, _: Spec, __: Score, ___: bool) -> Cost:
        need, all_elements = size.need_x or size.need_y, elements(size)
        memory = common_bytes(size, 2 + half(size)) + size.item * DENSE_BUFFERS * all_elements
        # Autograd takes both sides' products whichever is wanted.
        return cost_of(size, size.gemm, (1 + 3 * need) * size.gemm, 1 + need, memory, DENSE_BUFFERS * all_elements)

    return cost


def reference_histogram(size: Size, spec: Spec, score: Score, uniform: bool) -> Cost:
    assert isinstance(spec, HistogramSpec)
    elements = size.n * size.m * (size.m if spec.triplets else 1)
    return reference(lambda _: 2 * elements)(size, spec, score, uniform)


def dense_matrix(size: Size) -> Cost:
    """The user's matrix (its own maths counted as one product), then lists of indices into it."""
    need = size.need_x or size.need_y
    pairs = size.n * size.m
    lists = 16 * size.listed + 24 * size.triplets
    memory = size.item * (2 * pairs + 8 * size.listed + 8 * size.triplets) + lists + common_bytes(size, 2)
    moved = pairs + 4 * size.listed + 4 * size.triplets
    return cost_of(size, size.gemm, (1 + 2 * need) * size.gemm, 1 + need, memory, moved)


def indexed(size: Size, backend: str) -> Cost:
    need, sides = size.need_x or size.need_y, size.need_x + (size.need_x if size.shared else size.need_y)
    once = 2 * size.listed * size.d
    # Both sides' products, and the scores again.
    step = once * (1 + need + sides)
    # Chunks of gathered rows for the pure-torch backends; the compiled ones read the rows in place.
    gathered = 0 if backend in ("cpu", "triton") else 6 * min(size.listed * size.d, grad_sum.STRIP_ELEMENTS)
    lists = 16 * size.listed + 24 * size.triplets
    memory = lists + size.item * (8 * size.listed + 8 * size.triplets + gathered) + common_bytes(size, 2 + half(size))
    return cost_of(size, once, step, 1 + need, memory, 4 * (size.listed + size.triplets))
