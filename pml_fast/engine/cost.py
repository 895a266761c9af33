"""What a plan costs: arithmetic, traffic and memory, from the very tiles and buffers that the backends use.

``G`` is one product of all rows with all columns, ``2 N M D`` floating-point operations; elementwise work is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pml_fast.engine import grad_sum
from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.cpu import small, small_histogram
from pml_fast.engine.cpu.histogram import histogram_tiles
from pml_fast.engine.cpu.levels import SWEEPS, fixed_level
from pml_fast.engine.cpu.pairwise import kept_bytes
from pml_fast.engine.cpu.rows import Tile, tiles
from pml_fast.engine.cpu.strip import COMPILED_ROWS, strip_height
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec, TripletSpec
from pml_fast.engine.triton import small as triton_small

if TYPE_CHECKING:
    from pml_fast.engine.triton.configs import Config

# Tallies of a bin: of either side, in copies, for the tasks of a strip.
_TALLY_BYTES = 16 * 2 * (4 + 64)
# Buffers of a strip that are alive together in the pure-torch backend: scores, masks, losses and autograd's saved tensors.
STRIP_BUFFERS = 12
# The same for the dense path over all pairs.
DENSE_BUFFERS = 12


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """The numbers a cost depends on. ``pairs`` are the positive pairs, ``listed`` the listed scores (0 where nothing is
    listed). The ``device`` decides the tiles of a GPU kernel."""

    n: int
    m: int
    d: int
    pairs: int
    listed: int
    triplets: int
    dtype: torch.dtype
    shared: bool
    need_x: bool
    need_y: bool
    device: torch.device = CPU

    @property
    def item(self) -> int:
        """Bytes of a number the engine computes in."""
        return compute_type(self.dtype).itemsize

    @property
    def gemm(self) -> int:
        """Operations of one product of all rows with all columns."""
        return 2 * self.n * self.m * self.d

    @property
    def gradients(self) -> int:
        """Products that the gradients take: one for each role of the pair that needs one."""
        return 2 * self.need_x if self.shared else self.need_x + self.need_y

    @property
    def sets(self) -> int:
        """Numbers of the rows and, where they are others, of the columns."""
        return self.d * (self.n if self.shared else self.n + self.m)

    @property
    def results(self) -> int:
        """Numbers of the gradients."""
        return self.d * (self.n * self.need_x + (0 if self.shared else self.m * self.need_y))


@dataclass(frozen=True)
class Cost:
    """Operations, bytes moved and bytes held; ``backward`` includes the forward. ``memory`` is a bound from the buffers."""

    forward_flops: int
    step_flops: int
    read_bytes: int
    written_bytes: int
    memory_bytes: int


Spec = PairSpec | TripletSpec | HistogramSpec
Estimate = Callable[[Size, Spec, Score, bool], Cost]


def estimate(
    engine: str,
    backend: str,
    size: Size,
    spec: Spec,
    score: Score,
    *,
    uniform: bool = True,
    small_step: bool = False,
    bidirectional: bool = False,
) -> Cost:
    """The cost of an engine on a backend.

    ``uniform`` says that every anchor of a triplet loss weighs the same, ``small_step`` that the one-call step runs,
    ``bidirectional`` that columns are anchors as well, most of which a score that is there for its row does not cost.
    """
    if engine == "dense":
        return _dense(size)
    if engine == "indexed":
        return _indexed(size, backend)
    if small_step:
        return _SMALL[backend](size, score)
    found = _ENGINES[engine, backend](size, spec, score, uniform)
    return _bidirectional_triton(size, found) if bidirectional and backend == "triton" else found


def _cost(size: Size, forward: float, step: float, sweeps: int, memory: float, extra: int = 0) -> Cost:
    """``extra`` numbers are written and read once more beyond the inputs (once a sweep) and the gradients."""
    rows = size.sets * size.dtype.itemsize + 8 * (size.n + (0 if size.shared else size.m))
    moved = extra * size.item
    return Cost(
        int(forward), int(step), sweeps * rows + moved, size.results * size.dtype.itemsize + 2 * size.item + moved, int(memory)
    )


def _common_bytes(size: Size, rows: int) -> int:
    """``rows`` copies of the inputs, widened or normalised, and the gradients before and after they are put in order."""
    return size.item * (rows * size.sets + 2 * size.results)


def _half(size: Size) -> int:
    return int(size.dtype.itemsize < size.item)


# ---- the compiled backend
# --------------------------------------------------------------------------------------------------------


def _sorted_bytes(size: Size) -> int:
    """The sorted copies of the rows, widened where they are halves, and the gradients; these end in the copies' place."""
    return size.item * ((1 + _half(size)) * size.sets + size.results)


def _area(tile: Tile) -> int:
    return (tile.i1 - tile.i0) * (tile.j1 - tile.j0)


def _small(size: Size, _: Score) -> Cost:
    memory = size.item * (size.n * size.m + 4 * size.sets + size.pairs + 16 * size.n)
    sides = size.need_x + (0 if size.shared else size.need_y)
    return _cost(size, size.gemm, (1 + sides) * size.gemm, 1, memory)


def _cpu_pairwise(size: Size, spec: Spec, score: Score, _: bool) -> Cost:
    assert isinstance(spec, PairSpec)
    if spec.name in COMPILED_ROWS:
        return _cpu_rows(size)
    sweep = list(tiles(size.n, size.m, size.shared, size.item))
    first = sum(map(_area, sweep))
    # A sweep for the largest logits, which small enough norms spare.
    shifts = first * math.isnan(fixed_level(spec.name, spec.params(), score, compute_type(size.dtype)))
    room = kept_bytes(torch.empty(1, dtype=compute_type(size.dtype)).expand(size.n, size.d))
    kept = 0
    for tile in sweep:
        if kept * size.item + _area(tile) * size.item <= room:
            kept += _area(tile)
    mirrored = sum((tile.i1 - tile.i0) * (tile.j1 - tile.mirror) for tile in sweep) if size.shared else 0
    products = size.need_x * (first + mirrored) + (0 if size.shared else size.need_y * first)
    sweeps = SWEEPS.get(spec.name, 1)
    forward = 2 * size.d * (shifts + sweeps * first + size.pairs)
    need = size.need_x or size.need_y
    # Kept scores serve every later sweep.
    again = first - sweeps * kept + products
    step = forward + 2 * size.d * (again * need + size.pairs * size.gradients)
    table = size.item * (size.pairs + 16 * size.n) + 8 * 7 * (size.n + size.m)
    buffers = size.item * (kept * need + max(map(_area, sweep), default=0))
    memory = _sorted_bytes(size) + table + buffers
    return _cost(size, forward, step, sweeps + bool(shifts) + need, memory)


def _cpu_rows(size: Size) -> Cost:
    # One pass, unless the reduction weighs rows unevenly; a thread holds a few rows of numbers beside the strip.
    strip = min(size.n, strip_height(size.m, size.item)) * size.m
    table = size.item * (32 * size.n + 16 * size.m) + 8 * 7 * (size.n + size.m)
    memory = _sorted_bytes(size) + table + size.item * strip
    return _cost(size, size.gemm, (1 + size.gradients) * size.gemm, 1, memory)


def _cpu_triplet(size: Size, _: Spec, __: Score, uniform: bool) -> Cost:
    sweep = list(tiles(size.n, size.m, False, size.item))
    need = size.need_x or size.need_y
    again = need and not uniform
    forward = size.gemm + 2 * size.d * size.pairs
    step = forward * (1 + again) + size.gradients * size.gemm
    table = size.item * (6 * size.pairs + 16 * size.n) + 8 * 7 * (size.n + size.m)
    memory = _sorted_bytes(size) + table + size.item * max(map(_area, sweep), default=0)
    return _cost(size, forward, step, 1 + again, memory)


def _cpu_histogram(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
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
    return _cost(size, forward, step, 1 + (need and kept < area), memory)


# ---- pure torch
# ------------------------------------------------------------------------------------------------------------------


def _strip(size: Size) -> int:
    return max(size.m, min(grad_sum.STRIP_ELEMENTS, size.n * size.m))


def _chunked_pairwise(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
    assert isinstance(spec, PairSpec)
    need = size.need_x or size.need_y
    memory = _common_bytes(size, 2 + _half(size)) + size.item * STRIP_BUFFERS * _strip(size)
    # Two sweeps forward take two backward, the last of which multiplies into the gradients.
    sweeps = spec.sweeps * (1 + need)
    return _cost(size, spec.sweeps * size.gemm, (sweeps + size.gradients) * size.gemm, sweeps, memory)


def _chunked_triplet(size: Size, spec: Spec, _: Score, uniform: bool) -> Cost:
    assert isinstance(spec, TripletSpec)
    need = size.need_x or size.need_y
    sweeps = 1 + (need and not uniform)
    # With swap the positives are compared with all columns as well.
    products = 1 + spec.swap
    step = (sweeps * products + size.gradients + 2 * (spec.swap and size.gradients > 0)) * size.gemm
    # Indices of ranges are int64, twice a float32.
    memory = _common_bytes(size, 3 + _half(size)) + (2 * size.item + 8) * STRIP_BUFFERS // 2 * _strip(size)
    return _cost(size, products * size.gemm, step, sweeps, memory)


def _chunked_histogram(size: Size, spec: Spec, _: Score, __: bool) -> Cost:
    assert isinstance(spec, HistogramSpec)
    need = size.need_x or size.need_y
    memory = _common_bytes(size, 2 + _half(size)) + size.item * STRIP_BUFFERS * _strip(size)
    # Pairs of a batch with itself are visited once.
    share = 0.5 if size.shared and not spec.triplets else 1.0
    step = (1 + need + size.gradients) * size.gemm
    return _cost(size, share * size.gemm, share * step, 1 + need, memory)


# ---- dense tensors
# ---------------------------------------------------------------------------------------------------------------


def _reference(elements: Callable[[Size], int]) -> Estimate:
    def cost(size: Size, _: Spec, __: Score, ___: bool) -> Cost:
        need, all_elements = size.need_x or size.need_y, elements(size)
        memory = _common_bytes(size, 2 + _half(size)) + size.item * DENSE_BUFFERS * all_elements
        # Autograd takes both sides' products whichever is wanted.
        return _cost(size, size.gemm, (1 + 3 * need) * size.gemm, 1 + need, memory, DENSE_BUFFERS * all_elements)

    return cost


def _reference_histogram(size: Size, spec: Spec, score: Score, uniform: bool) -> Cost:
    assert isinstance(spec, HistogramSpec)
    elements = size.n * size.m * (size.m if spec.triplets else 1)
    return _reference(lambda _: 2 * elements)(size, spec, score, uniform)


def _dense(size: Size) -> Cost:
    """The user's matrix (its own maths counted as one product), then lists of indices into it."""
    need = size.need_x or size.need_y
    pairs = size.n * size.m
    lists = 16 * size.listed + 24 * size.triplets
    memory = size.item * (2 * pairs + 8 * size.listed + 8 * size.triplets) + lists + _common_bytes(size, 2)
    moved = pairs + 4 * size.listed + 4 * size.triplets
    return _cost(size, size.gemm, (1 + 2 * need) * size.gemm, 1 + need, memory, moved)


# ---- listed pairs
# ----------------------------------------------------------------------------------------------------------------


def _indexed(size: Size, backend: str) -> Cost:
    need, sides = size.need_x or size.need_y, size.need_x + (size.need_x if size.shared else size.need_y)
    once = 2 * size.listed * size.d
    # Both sides' products, and the scores again.
    step = once * (1 + need + sides)
    # Chunks of gathered rows for the pure-torch backends; the compiled ones read the rows in place.
    gathered = 0 if backend in ("cpu", "triton") else 6 * min(size.listed * size.d, grad_sum.STRIP_ELEMENTS)
    lists = 16 * size.listed + 24 * size.triplets
    memory = lists + size.item * (8 * size.listed + 8 * size.triplets + gathered) + _common_bytes(size, 2 + _half(size))
    return _cost(size, once, step, 1 + need, memory, 4 * (size.listed + size.triplets))


# ---- Triton
# ----------------------------------------------------------------------------------------------------------------------


def _tile(op: str, size: Size, score: Score) -> Config:
    """The configuration that a launch would take, of what the user tuned or of what is shipped."""
    from pml_fast.engine.triton.layout import score_kind
    from pml_fast.engine.triton.lookup import launch_config

    rows = torch.empty(1, dtype=size.dtype, device=size.device).expand(size.n, size.d)
    return launch_config(op, rows, score_kind(score))


def _triton_pairwise(size: Size, spec: Spec, score: Score, _: bool) -> Cost:
    assert isinstance(spec, PairSpec)
    from pml_fast.engine.triton.epilogues import EPILOGUES, RANKS
    from pml_fast.engine.triton.histograms import CHUNK
    from pml_fast.engine.triton.layout import SORT_FROM, WORKSPACE_BYTES, score_kind, splits
    from pml_fast.engine.triton.soft_ranks import HITS

    split, epilogue = splits(size.dtype, score_kind(score)), EPILOGUES[spec.name]
    positives = size.pairs / max(size.n, 1) + size.shared if epilogue.shape == RANKS else 0
    # From SORT_FROM columns on the positives are one run of sorted columns, and a sweep over them takes next to nothing.
    again = size.m < SORT_FROM if epilogue.positives_again else epilogue.first is not None
    back = again and size.shared and epilogue.first is not None and epilogue.first.across
    # Tables take a sweep for every CHUNK nodes of a histogram, for every HITS positives of a row.
    nodes = epilogue.nodes(spec)
    sweeps = again + max(1, math.ceil(nodes / CHUNK), math.ceil(positives / HITS))
    forward = sweeps * size.gemm
    # Each side that has a gradient recomputes the tiles; a batch against itself is one side.
    sides = size.need_x + (0 if size.shared else size.need_y)
    memory = _common_bytes(size, 2 + _half(size)) + size.item * (16 + 2 * nodes + 4 * positives) * size.n
    tile, turned = _tile("grad", size, score), [0]
    if sides and (split or epilogue.heavy or not tile.resident):
        memory += min((6 if split else 4) * size.n * size.m, WORKSPACE_BYTES)
    elif sides and tile.turned:
        # One side's columns at a time, transposed.
        turned = [size.d * size.m * size.need_x, 0 if size.shared else size.d * size.n * size.need_y]
        memory += size.item * max(turned)
    if split:
        # Rows and columns in three bfloat16 parts each, and the parts that coefficients multiply.
        memory += 18 * max(size.sets, size.m * size.d)
    # Three products of parts are counted as the one that they stand for.
    step = forward + (back + 2 * sides) * size.gemm
    return _cost(size, forward, step, sweeps + back + sides, memory, sum(turned))


def _bidirectional_triton(size: Size, rows: Cost) -> Cost:
    """Given the cost of the rows as anchors: the columns have a sweep of their own, and share those of the gradients."""
    more = 2 * size.sets * size.dtype.itemsize
    return replace(
        rows,
        forward_flops=2 * rows.forward_flops,
        step_flops=rows.step_flops + rows.forward_flops,
        read_bytes=rows.read_bytes + more,
        memory_bytes=rows.memory_bytes + size.item * 16 * size.m,
    )


def _triton_small(size: Size, score: Score) -> Cost:
    # Programs that write other slices of D take the scores again.
    slices = math.ceil(size.d / _tile("small", size, score).block_out) * size.need_x
    memory = size.sets * size.dtype.itemsize + 2 * size.item * size.results + size.item * 16 * size.n
    return _cost(size, size.gemm, (1 + slices + size.need_x) * size.gemm, 2 + slices, memory)


def _triton_triplet(size: Size, _: Spec, score: Score, __: bool) -> Cost:
    from pml_fast.engine.triton.layout import WORKSPACE_BYTES
    from pml_fast.engine.triton.triplet import HITS, slab_width

    width = slab_width(size.n, size.m, HITS)
    sides = size.need_x + (0 if size.shared else size.need_y)
    memory = _common_bytes(size, 3 + _half(size)) + 4 * (2 * width * size.n) + 40 * (size.n + size.m)
    block_out = _tile("triplet-grad", size, score).block_out
    if sides and not block_out:
        memory += min(4 * size.n * size.m, WORKSPACE_BYTES)
    # Programs that write other slices of D take the scores again.
    slices = math.ceil(size.d / block_out) if block_out else 1
    # The tiles are taken again for every HITS positives of an anchor.
    chunks = max(1, math.ceil(size.pairs / max(size.n, 1) / HITS))
    step = (chunks + (slices + 1) * sides) * size.gemm
    return _cost(size, chunks * size.gemm, step, chunks + slices * sides, memory)


def _cuda_triplet(size: Size, _: Spec, __: Score, ___: bool) -> Cost:
    from pml_fast.engine.cuda.strips import FEWEST_ROWS, STRIP_BYTES

    strip = min(4 * size.n * size.m, max(STRIP_BYTES, 4 * FEWEST_ROWS * size.m))
    sides = 2 if size.shared and size.need_x else size.need_x + size.need_y
    memory = _common_bytes(size, 3 + _half(size)) + strip + 64 * (size.n + size.m)
    return _cost(size, size.gemm, (1 + sides) * size.gemm, 1, memory)


# ---- what no engine covers
# -----------------------------------------------------------------------------------------------------------


def dense(size: Size) -> Cost:
    """A distance's own matrix, and what is computed of it in torch."""
    return _dense(size)


def listed(size: Size) -> Cost:
    """Listed pairs, and what is computed of their scores in torch."""
    return _indexed(size, "chunked")


def extremes(size: Size) -> Cost:
    """Each row's closest column and each column's closest row, then those pairs listed."""
    need, pairs = size.need_x or size.need_y, 3 * max(size.n, size.m)
    products = 2 * size.gemm + 2 * pairs * size.d
    gathered = 6 * min(pairs * size.d, grad_sum.STRIP_ELEMENTS)
    memory = _common_bytes(size, 2 + _half(size)) + size.item * (STRIP_BUFFERS * _strip(size) + gathered + 16 * pairs)
    return _cost(size, products, products + 4 * pairs * size.d * need, 2 + need, memory)


def vicreg(size: Size) -> Cost:
    """A covariance matrix of the features for each of two views."""
    need, sets = size.need_x or size.need_y, 1 if size.shared else 2
    product = 2 * size.n * size.d * size.d * sets
    memory = size.item * (6 * size.n * size.d + 4 * size.d * size.d) * sets + _common_bytes(size, 1)
    return _cost(size, product, (1 + need) * product, 1 + need, memory)


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
        memory = size.item * 2 * DENSE_BUFFERS * rows * rows + _common_bytes(size, 2)
        return _cost(size, forward, step, 1 + need, memory)

    return cost


_ENGINES: dict[tuple[str, str], Estimate] = {
    ("pairwise", "cpu"): _cpu_pairwise,
    ("pairwise", "chunked"): _chunked_pairwise,
    ("pairwise", "reference"): _reference(lambda size: size.n * size.m),
    ("pairwise", "triton"): _triton_pairwise,
    ("triplet", "cpu"): _cpu_triplet,
    ("histogram", "cpu"): _cpu_histogram,
    ("histogram", "chunked"): _chunked_histogram,
    ("histogram", "reference"): _reference_histogram,
    ("triplet", "chunked"): _chunked_triplet,
    ("triplet", "reference"): _reference(lambda size: size.n * size.m * size.m),
    ("triplet", "triton"): _triton_triplet,
    ("triplet", "cuda"): _cuda_triplet,
}


_SMALL: dict[str, Callable[[Size, Score], Cost]] = {"cpu": _small, "triton": _triton_small}


def one_call(
    backend: str, size: Size, spec: Spec, score: Score, folds: list[str], device: torch.device,
    weighted: bool, itself: bool, bidirectional: bool = False,
) -> bool:  # fmt: skip
    """Whether the backend has a short cut for a batch as small as this pair loss's (its module ``small``)."""
    if not isinstance(spec, PairSpec) or weighted:
        return False
    key = spec.name, tuple(spec.params()), score.encode(), tuple(folds)
    batch = torch.empty(1, device=device, dtype=size.dtype).expand(size.n, size.d)
    if backend == "cpu":
        both = small.applies(batch) and small.applies(batch[:1].expand(size.m, size.d))
        return both and (size.shared or not itself) and small.recipe(*key, size.shared, bidirectional) is not None
    half = size.dtype != torch.float32
    return backend == "triton" and size.shared and triton_small.applies(batch) and triton_small.recipe(*key, half) is not None


def one_histogram_call(backend: str, size: Size, score: Score, device: torch.device) -> bool:
    """As :func:`one_call`, of a loss of histograms."""
    batch = torch.empty(1, device=device, dtype=size.dtype).expand(size.n, size.d)
    return backend == "cpu" and size.shared and small_histogram.applies(batch, score)
