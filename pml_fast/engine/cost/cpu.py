"""The compiled backend."""

from __future__ import annotations

import math

import torch

from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.cost.parts import Cost, Size, Spec, cost_of, half
from pml_fast.engine.cpu.columns import may_stream
from pml_fast.engine.cpu.histogram import histogram_tiles
from pml_fast.engine.cpu.levels import SWEEPS, fixed_level, one_sweep
from pml_fast.engine.cpu.pairwise import kept_bytes
from pml_fast.engine.cpu.rows import TILE_COLUMNS, Tile, tiles
from pml_fast.engine.cpu.strip import COMPILED_ROWS, strip_height
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec

# Tallies of a bin: of either side, in copies, for the tasks of a strip.
_TALLY_BYTES = 16 * 2 * (4 + 64)


def _sorted_bytes(size: Size) -> int:
    """The sorted copies of the rows, widened where they are halves, and the gradients; these end in the copies' place."""
    return size.item * ((1 + half(size)) * size.sets + size.results)


def _streamed_away(size: Size, score: Score) -> int:
    """The bytes of the columns' copy that a sweep spares which gathers them tile by tile, but for positives."""
    if size.shared or size.need_y or not may_stream(size.m * size.d, score):
        return 0
    return size.item * size.d * max(0, size.m - min(size.pairs, size.m) - min(size.m, TILE_COLUMNS))


def _area(tile: Tile) -> int:
    return (tile.i1 - tile.i0) * (tile.j1 - tile.j0)


def small_step(size: Size, _: Score) -> Cost:
    memory = size.item * (size.n * size.m + 4 * size.sets + size.pairs + 16 * size.n)
    sides = size.need_x + (0 if size.shared else size.need_y)
    return cost_of(size, size.gemm, (1 + sides) * size.gemm, 1, memory)


def pairwise(size: Size, spec: Spec, score: Score, uniform: bool) -> Cost:
    assert isinstance(spec, PairSpec)
    if spec.name in COMPILED_ROWS:
        return _rows(size)
    sweep = list(tiles(size.n, size.m, size.shared, size.item))
    first = sum(map(_area, sweep))
    # A sweep for the largest logits, which small enough norms spare.
    shifts = first * math.isnan(fixed_level(spec.name, spec.params(), score, compute_type(size.dtype)))
    room = kept_bytes(torch.empty(1, dtype=compute_type(size.dtype)).expand(size.n, size.d))
    at_once = one_sweep(spec.name, score, size.shared or size.need_y, uniform)
    kept = 0
    for tile in sweep:
        if not at_once and kept * size.item + _area(tile) * size.item <= room:
            kept += _area(tile)
    mirrored = sum((tile.i1 - tile.i0) * (tile.j1 - tile.mirror) for tile in sweep) if size.shared else 0
    products = size.need_x * (first + mirrored) + (0 if size.shared else size.need_y * first)
    sweeps = SWEEPS.get(spec.name, 1)
    forward = 2 * size.d * (shifts + sweeps * first + size.pairs)
    need = size.need_x or size.need_y
    # Kept scores serve every later sweep.
    again = 0 if at_once else first - sweeps * kept
    step = forward + 2 * size.d * ((again + products) * need + size.pairs * size.gradients)
    table = size.item * (size.pairs + 16 * size.n) + 8 * 7 * (size.n + size.m)
    buffers = size.item * (kept * need + max(map(_area, sweep), default=0))
    memory = _sorted_bytes(size) - _streamed_away(size, score) + table + buffers
    return cost_of(size, forward, step, sweeps + bool(shifts) + (need and not at_once), memory)


def _rows(size: Size) -> Cost:
    # One pass, unless the reduction weighs rows unevenly; a thread holds a few rows of numbers beside the strip.
    strip = min(size.n, strip_height(size.m, size.item)) * size.m
    table = size.item * (32 * size.n + 16 * size.m) + 8 * 7 * (size.n + size.m)
    memory = _sorted_bytes(size) + table + size.item * strip
    return cost_of(size, size.gemm, (1 + size.gradients) * size.gemm, 1, memory)


def triplet(size: Size, _: Spec, __: Score, uniform: bool) -> Cost:
    sweep = list(tiles(size.n, size.m, False, size.item))
    need = size.need_x or size.need_y
    again = need and not uniform
    forward = size.gemm + 2 * size.d * size.pairs
    step = forward * (1 + again) + size.gradients * size.gemm
    table = size.item * (6 * size.pairs + 16 * size.n) + 8 * 7 * (size.n + size.m)
    memory = _sorted_bytes(size) + table + size.item * max(map(_area, sweep), default=0)
    return cost_of(size, forward, step, 1 + again, memory)


def histogram(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
    assert isinstance(spec, HistogramSpec)
    # Pairs of a batch with itself are visited once.
    sweep = list(histogram_tiles(size.n, size.m, size.shared and not spec.triplets, size.item))
    area, need = sum(map(_area, sweep)), size.need_x or size.need_y
    room = kept_bytes(torch.empty(1, dtype=compute_type(size.dtype)).expand(size.n, size.d))
    kept = 0
    for tile in sweep:
        if need and (kept + _area(tile)) * size.item <= room:
            kept += _area(tile)
    forward = 2 * size.d * area
    step = forward + 2 * size.d * (need * (area - kept) + size.gradients * area)
    table = size.item * 16 * (size.n + size.m) + 8 * 7 * (size.n + size.m) + _TALLY_BYTES * spec.bins.count
    memory = _sorted_bytes(size) + table + size.item * (kept + max(map(_area, sweep), default=0))
    return cost_of(size, forward, step, 1 + (need and kept < area), memory)
