"""The registry of what is benchmarked: operation x batch size x labels x dtype, with each case's targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

DIM = 128
PAIR_OPERATIONS = ("supcon", "ntxent", "multi_similarity", "circle", "contrastive")
PAIR_SIZES = (32, 64, 128, 256, 1024, 4096, 8192)
MEBIBYTE = 2**20

FLOOR_RATIO = "floor ratio"
SPEEDUP_OVER_PML = "speed-up over pml"
NOT_SLOWER = "not slower than pml or eager"
RUNS = "runs"


@dataclass(frozen=True)
class Tolerance:
    """Largest relative error of the value and relative L2 error of the gradient, against float64."""

    value: float
    gradient: float

    def beyond(self, moved_value: float, moved_gradient: float) -> Tolerance:
        """This tolerance, or twice what rounding itself moves the exact answer by, where that is more."""
        return Tolerance(max(self.value, 2 * moved_value), max(self.gradient, 2 * moved_gradient))


# A smooth loss carries the rounding of its scores. Where the loss is averaged over the non-zero terms, a term
# within rounding of zero may be counted or not, and each such flip moves value and gradient by a step. At large
# sizes there are always such terms: the oracle measures by how much they move its own answer.
SMOOTH = Tolerance(1e-5, 1e-4)
COUNTED = Tolerance(1e-4, 1e-3)
LOW_PRECISION = Tolerance(3e-2, 1e-1)


@dataclass(frozen=True)
class Operation:
    """How a library with PyTorch Metric Learning's API runs an operation: its loss class and miner class."""

    loss: str
    miner: str | None = None
    tolerance: Tolerance = SMOOTH

    def build(self, losses: Any, miners: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The step (embeddings, labels) -> loss, from a library's modules of losses and miners."""
        loss = getattr(losses, self.loss)()
        if self.miner is None:
            return loss  # type: ignore[no-any-return]
        miner = getattr(miners, self.miner)()
        return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


OPERATIONS = {
    "supcon": Operation("SupConLoss"),
    "ntxent": Operation("NTXentLoss"),
    "multi_similarity": Operation("MultiSimilarityLoss"),
    "circle": Operation("CircleLoss"),
    "contrastive": Operation("ContrastiveLoss", tolerance=COUNTED),
    "triplet_all": Operation("TripletMarginLoss", tolerance=COUNTED),
    "batch_hard_triplet": Operation("TripletMarginLoss", "BatchHardMiner", COUNTED),
    "multi_similarity_mined": Operation("MultiSimilarityLoss", "MultiSimilarityMiner"),
}


@dataclass(frozen=True)
class Target:
    """What pml_fast must reach on a case: a kind, its bound, and the better figure aimed at."""

    kind: str
    bound: float | None = None
    aim: float | None = None

    def __str__(self) -> str:
        if self.kind == FLOOR_RATIO:
            return f"<= {self.bound:g} x floor" + (f", aim {self.aim:g}" if self.aim else "")
        if self.kind == SPEEDUP_OVER_PML:
            return f">= {self.bound:g} x faster than pml"
        return self.kind


@dataclass(frozen=True)
class Case:
    """One operation at one batch size: size rows in classes of per_class (the last may be smaller)."""

    operation: str
    size: int
    per_class: int
    targets: tuple[Target, ...] = ()
    dtype: str = "float32"
    only_ours: bool = False

    @property
    def name(self) -> str:
        return f"{self.operation}/n{self.size}/k{self.per_class}/{self.dtype}"

    @property
    def positives(self) -> int:
        """The most positives any anchor has: P."""
        return min(self.per_class, self.size) - 1

    def tolerance(self, matmul_precision: str = "highest") -> Tolerance:
        """How far an answer may be off; more for a narrow dtype or a matmul_precision below "highest"."""
        wide = torch_dtype(self.dtype) in (torch.float32, torch.float64)
        exact = wide and matmul_precision == "highest"
        return OPERATIONS[self.operation].tolerance if exact else LOW_PRECISION

    @property
    def counts(self) -> bool:
        """Whether the loss counts its terms above zero, so that rounding decides on those at the edge."""
        return OPERATIONS[self.operation].tolerance is COUNTED

    @property
    def gradient_bytes(self) -> int:
        return self.size * DIM * torch_dtype(self.dtype).itemsize

    @property
    def memory_bound(self) -> int:
        """Peak extra memory allowed: the gradient + 8 N (P + 8) bytes + 64 MiB."""
        return self.gradient_bytes + 8 * self.size * (self.positives + 8) + 64 * MEBIBYTE

    def inputs(self, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Embeddings [N, DIM] that require a gradient, and shuffled labels [N].

        Rows share a common part, a class part and noise, as those of a half-trained network do: positives
        have cosine about 0.5 and negatives about 0.3, so that margins, miners and hinges all have work to do.
        """
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.arange(self.size) // self.per_class)[torch.randperm(self.size, generator=generator)]
        classes = torch.randn(int(labels.max()) + 1, DIM, generator=generator)
        common = torch.randn(1, DIM, generator=generator)
        noise = torch.randn(self.size, DIM, generator=generator)
        rows = 0.3**0.5 * common + 0.2**0.5 * classes[labels] + 0.5**0.5 * noise
        embeddings = rows.to(device=device, dtype=torch_dtype(self.dtype)).requires_grad_()
        return embeddings, labels.to(device)

    def smaller(self, size: int) -> Case:
        """The same operation on a small batch, to load what a first call loads."""
        return replace(self, size=size, per_class=min(self.per_class, size // 4))


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must name a torch dtype such as float32 or bfloat16, got {name!r}")
    return dtype


def _pair_targets(operation: str, size: int) -> tuple[Target, ...]:
    if size <= 256:
        return (Target(NOT_SLOWER),)
    if size >= 4096:
        bound, aim = (1.0, 0.6) if operation == "contrastive" else (1.15, 0.8)
        return (Target(FLOOR_RATIO, bound, aim),)
    return ()


def registry(dtypes: tuple[str, ...] = ("float32",)) -> list[Case]:
    """Every case: single ones first, the longest last; targets are those of the CPU backend in float32."""
    cases = [
        Case("ntxent", 1024, 2, (Target(SPEEDUP_OVER_PML, 2000),)),
        Case("triplet_all", 1024, 32, (Target(SPEEDUP_OVER_PML, 100),)),
        Case("triplet_all", 8192, 820, (Target(FLOOR_RATIO, 4.0),)),
        Case("batch_hard_triplet", 4096, 4, (Target(FLOOR_RATIO, 0.5, 0.25),)),
        Case("multi_similarity_mined", 4096, 4, (Target(FLOOR_RATIO, 1.3),)),
        *(Case(operation, size, 4, _pair_targets(operation, size)) for operation in PAIR_OPERATIONS for size in PAIR_SIZES),
        Case("supcon", 65_536, 4, (Target(RUNS),), only_ours=True),
    ]
    return [replace(case, dtype=dtype) for dtype in dtypes for case in cases]


def quick_registry(dtypes: tuple[str, ...] = ("float32",)) -> list[Case]:
    """The cases of --quick: every operation at sizes that finish in about two minutes."""
    cases = [Case(operation, size, 4) for operation in PAIR_OPERATIONS for size in (64, 256, 2048)]
    cases += [
        Case("ntxent", 256, 2),
        Case("triplet_all", 256, 32),
        Case("batch_hard_triplet", 1024, 4),
        Case("multi_similarity_mined", 1024, 4),
    ]
    return [replace(case, dtype=dtype) for dtype in dtypes for case in cases]
