"""The Triton and CUDA backends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pml_fast.engine.cost.parts import Cost, Size, Spec, common_bytes, cost_of, half
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec

if TYPE_CHECKING:
    from pml_fast.engine.triton.configs import Config


def _tile(op: str, size: Size, score: Score) -> Config:
    """The configuration that a launch would take, of what the user tuned or of what is shipped."""
    from pml_fast.engine.triton.layout import score_kind
    from pml_fast.engine.triton.lookup import launch_config

    rows = torch.empty(1, dtype=size.dtype, device=size.device).expand(size.n, size.d)
    return launch_config(op, rows, score_kind(score))


def triton_pairwise(size: Size, spec: Spec, score: Score, _: bool) -> Cost:
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
    memory = common_bytes(size, 2 + half(size)) + size.item * (16 + 2 * nodes + 4 * positives) * size.n
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
    return cost_of(size, forward, step, sweeps + back + sides, memory, sum(turned))


def bidirectional_triton(size: Size, rows: Cost) -> Cost:
    """Given the cost of the rows as anchors: the columns have a sweep of their own, and share those of the gradients."""
    more = 2 * size.sets * size.dtype.itemsize
    return replace(
        rows,
        forward_flops=2 * rows.forward_flops,
        step_flops=rows.step_flops + rows.forward_flops,
        read_bytes=rows.read_bytes + more,
        memory_bytes=rows.memory_bytes + size.item * 16 * size.m,
    )


def triton_small(size: Size, score: Score) -> Cost:
    # Programs that write other slices of D take the scores again.
    slices = math.ceil(size.d / _tile("small", size, score).block_out) * size.need_x
    memory = size.sets * size.dtype.itemsize + 2 * size.item * size.results + size.item * 16 * size.n
    return cost_of(size, size.gemm, (1 + slices + size.need_x) * size.gemm, 2 + slices, memory)


def triton_triplet(size: Size, _: Spec, score: Score, __: bool) -> Cost:
    from pml_fast.engine.triton.layout import WORKSPACE_BYTES
    from pml_fast.engine.triton.triplet import HITS, slab_width

    width = slab_width(size.n, size.m, HITS)
    sides = size.need_x + (0 if size.shared else size.need_y)
    memory = common_bytes(size, 3 + half(size)) + 4 * (2 * width * size.n) + 40 * (size.n + size.m)
    block_out = _tile("triplet-grad", size, score).block_out
    if sides and not block_out:
        memory += min(4 * size.n * size.m, WORKSPACE_BYTES)
    # Programs that write other slices of D take the scores again.
    slices = math.ceil(size.d / block_out) if block_out else 1
    # The tiles are taken again for every HITS positives of an anchor.
    chunks = max(1, math.ceil(size.pairs / max(size.n, 1) / HITS))
    step = (chunks + (slices + 1) * sides) * size.gemm
    return cost_of(size, chunks * size.gemm, step, chunks + slices * sides, memory)


def cuda_triplet(size: Size, _: Spec, __: Score, ___: bool) -> Cost:
    from pml_fast.engine.cuda.strips import FEWEST_ROWS, STRIP_BYTES

    strip = min(4 * size.n * size.m, max(STRIP_BYTES, 4 * FEWEST_ROWS * size.m))
    sides = 2 if size.shared and size.need_x else size.need_x + size.need_y
    memory = common_bytes(size, 3 + half(size)) + strip + 64 * (size.n + size.m)
    return cost_of(size, size.gemm, (1 + sides) * size.gemm, 1, memory)
