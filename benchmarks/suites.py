"""The suites: which cases are run, with which peers, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import evaluation, sampling
from benchmarks.cases import (
    FLOOR_RATIO,
    NOT_SLOWER,
    NOT_SLOWER_THAN_PML,
    RUNS,
    SPEEDUP,
    WITHIN_SECONDS,
    Case,
    Target,
)
from benchmarks.operations import (
    BATCH,
    CLASS_LOSSES,
    CLASSES,
    CORE,
    DIM,
    MINED,
    OPERATIONS,
    OTHER,
    PAIRS,
    QUEUE,
    QUEUED,
    RANKS,
    TWO_SETS,
)
from benchmarks.peers import DEFAULTS_ON_CPU, ON_CPU, ON_GPU, PEERS
from benchmarks.results import CaseResult
from benchmarks.runner import run_cases
from benchmarks.timing import Plan
from benchmarks.workload_runner import run_workloads
from benchmarks.workloads import Workload

PAIR_OPERATIONS = ("supcon", "ntxent", "multi_similarity", "circle", "contrastive")
PAIR_SIZES = (32, 64, 128, 256, 1024, 4096, 8192)
SMALL_SIZES = (32, 64, 128, 256)
LARGE_SIZES = (1024, 4096)
BATCH_CLASSES = 1000  # of a class loss in the suites that vary the batch
CLASS_COUNTS = (10_000, 100_000, 1_000_000)
CLASS_ROWS = 512
QUEUE_ROWS = 512
QUEUE_SIZES = (4096, 65_536)

# The share of the cuBLAS rate to reach, at D >= 256 and below.
GPU_FLOOR_SHARE, GPU_NARROW_FLOOR_SHARE = 0.7, 0.5

# The products of N M D that a forward and backward takes: three for a batch compared with itself or with a queue; five for two
# sets that both get a gradient, as scores are computed again where the matrix is not kept. The measured floor has three.
FLOOR_PRODUCTS = {BATCH: 3, QUEUE: 3, OTHER: 5, CLASSES: 5}
WITHIN_FLOOR = 1.6


@dataclass(frozen=True)
class Suite:
    """cases: all of them; budget: seconds after which none is started; limit: seconds of one step that is checked."""

    about: str
    cases: Callable[[], list[Any]]
    peers_on_cpu: tuple[str, ...]
    budget: float
    limit: float
    plan: Plan
    stem: str

    def registry(self, dtypes: tuple[str, ...] = ("float32",)) -> list[Any]:
        """Every case in every dtype."""
        return [replace(case, dtype=dtype) for case in self.cases() for dtype in dtypes]

    def peers(self, on_gpu: bool) -> list[str]:
        return list(ON_GPU if on_gpu else self.peers_on_cpu)

    def known_peers(self) -> list[str]:
        return list(PEERS)

    def run(self, *arguments: Any) -> Iterator[CaseResult]:
        return run_cases(*arguments)


@dataclass(frozen=True)
class WorkSuite(Suite):
    """Of what is no step of training: in float32, with the same peers everywhere."""

    def registry(self, dtypes: tuple[str, ...] = ("float32",)) -> list[Any]:
        return list(self.cases())

    def peers(self, on_gpu: bool) -> list[str]:
        return list(self.peers_on_cpu)

    def known_peers(self) -> list[str]:
        return list(self.peers_on_cpu)

    def run(self, *arguments: Any) -> Iterator[CaseResult]:
        return run_workloads(*arguments)


def _pair_targets(operation: str, size: int) -> tuple[Target, ...]:
    if size <= 256:
        return (Target(NOT_SLOWER),)
    if size >= 4096:
        bound, aim = (1.0, 0.6) if operation == "contrastive" else (1.15, 0.8)
        return (Target(FLOOR_RATIO, bound, aim),)
    return ()


def core_cases() -> list[Case]:
    """Single cases first, the longest last."""
    return [
        Case("ntxent", 1024, 2, (Target(SPEEDUP, 2000),)),
        Case("triplet_all", 1024, 32, (Target(SPEEDUP, 100),)),
        Case("triplet_all", 8192, 820, (Target(FLOOR_RATIO, 4.0),)),
        Case("batch_hard_triplet", 4096, 4, (Target(FLOOR_RATIO, 0.5, 0.25),)),
        Case("multi_similarity_mined", 4096, 4, (Target(FLOOR_RATIO, 1.3),)),
        *(Case(operation, size, 4, _pair_targets(operation, size)) for operation in PAIR_OPERATIONS for size in PAIR_SIZES),
        Case("supcon", 65_536, 4, (Target(RUNS),), only_ours=True),
    ]


def quick_cases() -> list[Case]:
    """Every operation of the core suite, and one of each other kind, at sizes that finish in about two minutes."""
    return [
        *(Case(operation, size, 4) for operation in PAIR_OPERATIONS for size in (64, 256, 2048)),
        Case("ntxent", 256, 2),
        Case("triplet_all", 256, 32),
        Case("batch_hard_triplet", 1024, 4),
        Case("multi_similarity_mined", 1024, 4),
        *(loss_case(operation, 256) for operation in ("nca", "fast_ap", "clip", "hdc_mined")),
        Case("arcface", CLASS_ROWS, 4, columns=10_000),
        Case("queue_contrastive", QUEUE_ROWS, 4, columns=4096),
    ]


def loss_case(operation: str, size: int) -> Case:
    """An operation at a batch size: never slower than PML, and near the floor of its products when large."""
    what = OPERATIONS[operation]
    targets = [Target(NOT_SLOWER_THAN_PML if what.in_peer else NOT_SLOWER)]
    if what.compared and size >= max(LARGE_SIZES):
        targets.append(Target(FLOOR_RATIO, WITHIN_FLOOR * FLOOR_PRODUCTS[what.against] / 3))
    per_class = round(size**0.5) if what.square else 4
    return Case(operation, size, per_class, tuple(targets), columns=BATCH_CLASSES if what.against == CLASSES else 0)


def _by_size(names: Iterable[str], sizes: Iterable[int]) -> list[Case]:
    """Small sizes first, so that a spent budget leaves out the largest; a square number of rows where classes need it."""
    return [loss_case(name, size) for size in sizes for name in names if not OPERATIONS[name].square or _is_square(size)]


def _is_square(size: int) -> bool:
    return round(size**0.5) ** 2 == size


BATCH_LOSSES = (*CORE, *PAIRS, *RANKS, *TWO_SETS, *CLASS_LOSSES)


def large_cases() -> list[Case]:
    return _by_size(BATCH_LOSSES, LARGE_SIZES)


def small_cases() -> list[Case]:
    return _by_size((*BATCH_LOSSES, *MINED), SMALL_SIZES)


def miner_cases() -> list[Case]:
    """Each miner with a loss for it; the core's two are part of all suites over losses."""
    return _by_size(("batch_hard_triplet", "multi_similarity_mined", *MINED), LARGE_SIZES)


def class_cases() -> list[Case]:
    def case(operation: str, classes: int) -> Case:
        targets = [Target(NOT_SLOWER_THAN_PML)]
        if classes >= 100_000:
            targets.append(Target(FLOOR_RATIO, WITHIN_FLOOR * FLOOR_PRODUCTS[CLASSES] / 3))
        return Case(operation, CLASS_ROWS, 4, tuple(targets), columns=classes)

    return [case(name, classes) for classes in CLASS_COUNTS for name in CLASS_LOSSES]


def queue_cases() -> list[Case]:
    targets = (Target(NOT_SLOWER_THAN_PML), Target(FLOOR_RATIO, WITHIN_FLOOR * FLOOR_PRODUCTS[QUEUE] / 3))
    return [Case(name, QUEUE_ROWS, 4, targets, columns=rows) for rows in QUEUE_SIZES for name in QUEUED]


def gpu_cases() -> list[Case]:
    """What the reach of a GPU is judged by comes first, for the budget may end. Few are compiled, which takes long."""

    def case(
        operation: str, size: int, per_class: int = 4, dim: int = DIM, over: tuple[Target, ...] = (), **more: bool
    ) -> Case:
        targets = over
        if size >= 4096:
            products = FLOOR_PRODUCTS[OPERATIONS[operation].against] / 3
            share = GPU_FLOOR_SHARE if dim >= 256 else GPU_NARROW_FLOOR_SHARE
            targets = (*over, Target(FLOOR_RATIO, products / share))
        elif size <= 256:
            targets = (Target(NOT_SLOWER),)
        return Case(operation, size, per_class, targets, dim=dim, device="cuda", **{"compiled": False, **more})

    def speed_ups(eager: float, compiled: float) -> tuple[Target, ...]:
        return Target(SPEEDUP, eager, over="eager"), Target(SPEEDUP, compiled, over="compile")

    return [
        case("supcon", 8192, over=speed_ups(8, 4), compiled=True),
        case("supcon", 8192, dim=512, over=speed_ups(3, 1.7), compiled=True),
        case("ntxent", 1024, 2, over=(Target(SPEEDUP, 300),)),
        case("triplet_all", 4096, over=(Target(SPEEDUP, 500),)),
        case("supcon", 256),
        *(case("supcon", 8192, dim=dim) for dim in (256, 1024, 64)),
        *(case(operation, 8192) for operation in ("multi_similarity", "circle", "contrastive", "ntxent")),
        *(case("clip", 8192, dim=dim) for dim in (DIM, 512)),
        case("multi_similarity_mined", 4096),
        case("batch_hard_triplet", 4096),
        case("triplet_all", 8192, 820),
        *(case("supcon", size) for size in (1024, 32_768)),
        case("supcon", 262_144, only_ours=True),
        *(case(operation, 256) for operation in PAIR_OPERATIONS if operation != "supcon"),
    ]


LABEL_COUNTS = (10_000, 1_000_000)
EVALUATED = {"map_at_r": (2000, 10_000, 50_000), "retrieval_metrics": (2000, 10_000, 50_000), "all_metrics": (2000, 10_000)}
EVALUATION_BYTES = 2**30
EVALUATION_SECONDS = 60


def sampler_cases(sizes: Iterable[int] = LABEL_COUNTS) -> list[Workload]:
    return [Workload(name, size, 10, (Target(NOT_SLOWER_THAN_PML),), dim=DIM) for size in sizes for name in sampling.WORKS]


def evaluation_cases(largest: int = 50_000) -> list[Workload]:
    """Small ones first, so that a spent budget leaves out the largest."""

    def case(name: str, size: int) -> Workload:
        targets = [Target(NOT_SLOWER_THAN_PML)]
        if size == max(EVALUATED["map_at_r"]):
            targets.append(Target(WITHIN_SECONDS, EVALUATION_SECONDS))
        return Workload(name, size, 10, tuple(targets), EVALUATION_BYTES, DIM)

    pairs = [(size, name) for name in evaluation.WORKS for size in EVALUATED[name] if size <= largest]
    return [case(name, size) for size, name in sorted(pairs, key=lambda pair: pair[0])]


# One step of a peer that takes seconds says enough after two samples.
BOUNDED = Plan(seconds=0.5, min_rounds=2, max_rounds=15)
BRIEF = Plan(seconds=0.25, min_rounds=5, max_rounds=25)

STEP_SUITES = {
    "core": Suite("the pair and triplet losses with compiled kernels", core_cases, ON_CPU, 24 * 60, 90, Plan(), "full"),
    "losses": Suite("every loss at N = 1024 and 4096", large_cases, DEFAULTS_ON_CPU, 25 * 60, 12, BOUNDED, "losses"),
    "small": Suite("every loss and miner at N = 32 to 256", small_cases, DEFAULTS_ON_CPU, 18 * 60, 20, BRIEF, "small"),
    "miners": Suite("each miner with a loss", miner_cases, DEFAULTS_ON_CPU, 10 * 60, 20, BOUNDED, "miners"),
    "classes": Suite("512 rows against 10^4 to 10^6 classes", class_cases, DEFAULTS_ON_CPU, 25 * 60, 60, BOUNDED, "classes"),
    "gpu": Suite("what a GPU is judged by", gpu_cases, ON_CPU, 270, 30, Plan(seconds=0.3, min_rounds=5, max_rounds=30), "full"),
    "queues": Suite("512 rows against a queue of up to 65,536", queue_cases, DEFAULTS_ON_CPU, 6 * 60, 30, BOUNDED, "queues"),
}
# Those with a row for each peer, by device: a run of all of one stands for the hardware.
MAIN_SUITES = ("core", "gpu")
WORK_SUITES = {
    "samplers": WorkSuite(
        "the samplers, made of 10^4 and 10^6 labels and drawn from for an epoch",
        sampler_cases, tuple(sampling.PEERS), 5 * 60, 20, BOUNDED, "samplers",
    ),
    "evaluation": WorkSuite(
        "the AccuracyCalculator on 2000 to 50,000 embeddings",
        evaluation_cases, (*evaluation.PEERS, "sklearn"), 6 * 60, 120, BOUNDED, "evaluation",
    ),
}  # fmt: skip
SUITES: dict[str, Suite] = {**STEP_SUITES, **WORK_SUITES}
QUICK = Suite(
    about="a choice of two minutes",
    cases=quick_cases,
    peers_on_cpu=tuple(name for name in ON_CPU if name != "compile"),  # compiling alone would take longer than all the rest
    budget=150,
    limit=15,
    plan=Plan(seconds=0.7, max_rounds=25),
    stem="quick",
)
# What --quick runs of a suite: of each suite of steps the same choice.
QUICK_SUITES: dict[str, Suite] = {
    **dict.fromkeys(STEP_SUITES, QUICK),
    "samplers": replace(WORK_SUITES["samplers"], cases=partial(sampler_cases, LABEL_COUNTS[:1]), stem="samplers-quick"),
    "evaluation": replace(WORK_SUITES["evaluation"], cases=partial(evaluation_cases, 2000), stem="evaluation-quick"),
}
