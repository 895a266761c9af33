"""What is benchmarked: an operation at one size, with the targets it is judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from benchmarks.inputs import Clusters, Inputs
from benchmarks.operations import (
    CLASSES,
    COUNTED,
    DIM,
    FEATURES,
    LOW_PRECISION,
    OPERATIONS,
    OTHER,
    QUEUE,
    Operation,
    Tolerance,
)

MEBIBYTE = 2**20

FLOOR_RATIO = "floor ratio"
SPEEDUP = "speed-up"
NOT_SLOWER = "not slower than pml or eager"
NOT_SLOWER_THAN_PML = "not slower than pml"
RUNS = "runs"
WITHIN_SECONDS = "within seconds"

QUEUE_ROWS_A_CLASS = 16
TF32 = "tf32"


@dataclass(frozen=True)
class Target:
    """What pml_fast must reach on a case: a kind, its bound, the better figure aimed at, the peer of a speed-up."""

    kind: str
    bound: float | None = None
    aim: float | None = None
    over: str = "pml"

    def __str__(self) -> str:
        if self.kind == FLOOR_RATIO:
            return f"<= {self.bound:.3g} x floor" + (f", aim {self.aim:g}" if self.aim else "")
        if self.kind == SPEEDUP:
            return f">= {self.bound:g} x faster than {self.over}"
        if self.kind == WITHIN_SECONDS:
            return f"<= {self.bound:g} s"
        return self.kind


@dataclass(frozen=True)
class Case:
    """One operation at one size: rows in classes of per_class (the last may be smaller).

    columns: classes of a class loss, rows of a queue; 0 where the batch or its other view is what the rows meet. dtype: of the
    rows; "tf32" is float32 whose products are rounded to tf32. device: where its targets are to be reached. dim: features, 128
    but for the core's operations. compiled: whether the compiled peer takes part.
    """

    operation: str
    size: int
    per_class: int
    targets: tuple[Target, ...] = ()
    dtype: str = "float32"
    only_ours: bool = False
    columns: int = 0
    dim: int = DIM
    device: str = "cpu"
    compiled: bool = True

    @property
    def name(self) -> str:
        width = {CLASSES: f"/c{self.columns}", QUEUE: f"/m{self.columns}"}.get(self.what.against, f"/k{self.per_class}")
        features = "" if self.dim == DIM else f"/d{self.dim}"
        return f"{self.operation}/n{self.size}{width}{features}/{self.dtype}"

    @property
    def what(self) -> Operation:
        return OPERATIONS[self.operation]

    @property
    def streams(self) -> bool:
        return self.what.streams

    @property
    def positives(self) -> int:
        """The most positives any anchor has: P."""
        if self.what.against == CLASSES:
            return 1
        if self.what.against == QUEUE:
            return QUEUE_ROWS_A_CLASS + self.per_class
        return min(self.per_class, self.size) - 1

    @property
    def width(self) -> int:
        """How many columns the rows are compared with: M."""
        if self.what.against == FEATURES:
            return self.dim
        return self.columns * self.what.centres if self.columns else self.size

    def tolerance(self, matmul_precision: str = "highest") -> Tolerance:
        """How far an answer may be off; more for a narrow dtype or a matmul_precision below "highest"."""
        wide = torch_dtype(self.dtype) in (torch.float32, torch.float64)
        exact = wide and self.matmul_precision(matmul_precision) == "highest"
        return self.what.tolerance if exact else LOW_PRECISION

    def matmul_precision(self, of_the_run: str) -> str:
        """torch's precision of float32 products."""
        return "high" if self.dtype == TF32 else of_the_run

    @property
    def counts(self) -> bool:
        """Whether rounding decides which terms at the edge take part."""
        return self.what.tolerance is COUNTED

    @property
    def gradient_bytes(self) -> int:
        """Of the embeddings, of a second set of them, and of class weights."""
        rows = self.size * (2 if self.what.against in (OTHER, FEATURES) else 1)
        rows += self.width if self.what.against == CLASSES else 0
        return rows * self.dim * torch_dtype(self.dtype).itemsize

    @property
    def memory_bound(self) -> int:
        """Peak extra memory allowed: the gradients + 8 N (P + 8) bytes (for each of both axes, where they differ) + 64 MiB.

        On a GPU half of that constant.
        A queue may be copied once: it is turned, so that what is new comes first.
        """
        room = (64 if self.device == "cpu" else 32) * MEBIBYTE
        bound = self.gradient_bytes + 8 * self.size * (self.positives + 8) + room
        if self.columns:
            bound += 8 * self.width * 8
        if self.what.against == QUEUE:
            bound += self.columns * (self.dim * torch_dtype(self.dtype).itemsize + 8)
        return bound

    def inputs(self, seed: int, device: str = "cpu") -> Inputs:
        """Embeddings [N, D] that require a gradient, shuffled labels [N], and what the operation takes besides."""
        generator = torch.Generator().manual_seed(seed)
        labels = self._labels(generator)
        queued = self.what.against == QUEUE
        classes = self.columns // QUEUE_ROWS_A_CLASS + self.size if queued else int(labels.max()) + 1
        # A million classes have no centres of their own: few rows meet each, and its weight is drawn.
        numbers = labels.unique(return_inverse=True)[1] if self.what.against == CLASSES else labels
        clusters = Clusters(min(classes, self.size) if not queued else classes, self.dim, generator)
        dtype = torch_dtype(self.dtype)

        def given(rows: torch.Tensor) -> torch.Tensor:
            return rows.to(device=device, dtype=dtype)

        embeddings = given(clusters.rows(numbers)).requires_grad_()
        inputs = Inputs(embeddings, labels.to(device))
        if self.what.against in (OTHER, FEATURES):
            return replace(inputs, other=given(clusters.rows(numbers)).requires_grad_())
        if queued:
            past = torch.randint(0, classes, (self.columns,), generator=generator)
            return replace(inputs, queue=given(clusters.rows(past)), queue_labels=past.to(device))
        return inputs

    def _labels(self, generator: torch.Generator) -> torch.Tensor:
        if self.what.square:
            return torch.arange(self.size) // self.per_class
        order = torch.randperm(self.size, generator=generator)
        group = (torch.arange(self.size) // self.per_class)[order]
        if self.what.against == CLASSES:
            return torch.linspace(0, self.columns - 1, int(group.max()) + 1, dtype=torch.float64).long()[group]
        return group

    def smaller(self, size: int) -> Case:
        """The same operation on a small batch, to load what a first call loads."""
        if self.what.square:
            return replace(self, size=16, per_class=4)
        return replace(self, size=size, per_class=min(self.per_class, size // 4), columns=min(self.columns, 16 * size))


def torch_dtype(name: str) -> torch.dtype:
    dtype = torch.float32 if name == TF32 else getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must name a torch dtype such as float32 or bfloat16, or be {TF32}, got {name!r}")
    return dtype
