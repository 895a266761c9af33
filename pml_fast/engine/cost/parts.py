"""Sizes, costs, and what every estimate is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec, TripletSpec

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


def cost_of(size: Size, forward: float, step: float, sweeps: int, memory: float, extra: int = 0) -> Cost:
    """``extra`` numbers are written and read once more beyond the inputs (once a sweep) and the gradients."""
    rows = size.sets * size.dtype.itemsize + 8 * (size.n + (0 if size.shared else size.m))
    moved = extra * size.item
    return Cost(
        int(forward), int(step), sweeps * rows + moved, size.results * size.dtype.itemsize + 2 * size.item + moved, int(memory)
    )


def common_bytes(size: Size, rows: int) -> int:
    """``rows`` copies of the inputs, widened or normalised, and the gradients before and after they are put in order."""
    return size.item * (rows * size.sets + 2 * size.results)


def half(size: Size) -> int:
    return int(size.dtype.itemsize < size.item)
