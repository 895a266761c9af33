"""Speed and memory of one loss step, here and in pytorch-metric-learning (PML), each in a bounded child process."""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast import _bounded

OURS = "pml_fast"
PEER = "pytorch_metric_learning"
DIM = 128
_TIMING_SECONDS = 1.0
_MAX_REPEATS = 20
# Single-precision sums in a different order differ by about this much; a wrong loss differs by far more.
_SAME_LOSS = 1e-3


@dataclass(frozen=True)
class Step:
    """A loss step to time: its title, the loss, the miner if any, and how many items a class the batch has."""

    title: str
    loss: str
    miner: str | None
    per_class: int


STEPS = (
    Step("NTXentLoss, 2 a class", "NTXentLoss", None, 2),
    Step("MultiSimilarity miner + loss, 4 a class", "MultiSimilarityLoss", "MultiSimilarityMiner", 4),
)


@dataclass(frozen=True)
class Cost:
    """What one forward and backward pass took, and the loss it gave."""

    seconds: float
    peak_bytes: int | None
    loss: float


@dataclass(frozen=True)
class Comparison:
    """One row of the table: the outcomes here and in PML (None if PML is not installed)."""

    step: Step
    batch_size: int
    ours: _bounded.Outcome
    peer: _bounded.Outcome | None

    @property
    def speed_up(self) -> float | None:
        """How many times faster this library is, or None where they did not both finish."""
        if self.peer is None or not (self.ours.ok and self.peer.ok):
            return None
        return float(self.peer.value.seconds / self.ours.value.seconds)

    @property
    def same_loss(self) -> bool | None:
        """Whether both gave the same loss, or None where they did not both finish."""
        if self.peer is None or not (self.ours.ok and self.peer.ok):
            return None
        return math.isclose(self.ours.value.loss, self.peer.value.loss, rel_tol=_SAME_LOSS, abs_tol=1e-6)


def peer_installed() -> bool:
    return importlib.util.find_spec(PEER) is not None


def compare(
    batch_sizes: list[int], seed: int, memory_bytes: int, seconds: float, steps: tuple[Step, ...] = STEPS
) -> Iterator[Comparison]:
    """Runs every step at every batch size under the bounds, here and in PML if it is installed, on the CPU."""
    for step in steps:
        for batch_size in batch_sizes:
            ours = _run(OURS, step, batch_size, seed, memory_bytes, seconds)
            peer = _run(PEER, step, batch_size, seed, memory_bytes, seconds) if peer_installed() else None
            yield Comparison(step, batch_size, ours, peer)


def _run(library: str, step: Step, batch_size: int, seed: int, memory_bytes: int, seconds: float) -> _bounded.Outcome:
    return _bounded.run(
        measure_step,
        library,
        step,
        batch_size,
        seed,
        torch.get_num_threads(),
        memory_bytes=memory_bytes,
        seconds=seconds,
        preload=("torch",),
    )


def measure_step(library: str, step: Step, batch_size: int, seed: int, threads: int) -> Cost:
    """Peak extra memory of the first pass and median time of the next ones, in this process.

    A first pass of a second or more is the only one: its time counts.
    """
    torch.set_num_threads(threads)
    run_once = _make_step(library, step, batch_size, seed)
    run_once(min(16, batch_size))  # what loads on first use is not the step's own cost
    began = time.perf_counter()
    loss, peak_bytes = _peak(lambda: run_once(batch_size))
    first = time.perf_counter() - began
    times: list[float] = []
    while first + sum(times) < _TIMING_SECONDS and len(times) < _MAX_REPEATS:
        start = time.perf_counter()
        run_once(batch_size)
        times.append(time.perf_counter() - start)
    return Cost(statistics.median(times or [first]), peak_bytes, loss)


def _peak(run: Callable[[], float]) -> tuple[float, int | None]:
    try:
        return _bounded.measure_peak(run)
    except OSError:  # only Linux tells a process its own peak: elsewhere the table shows no memory
        return run(), None


def _make_step(library: str, step: Step, batch_size: int, seed: int) -> Callable[[int], float]:
    losses = importlib.import_module(f"{library}.losses")
    loss_function = getattr(losses, step.loss)()
    miner = None
    if step.miner is not None:
        miner = getattr(importlib.import_module(f"{library}.miners"), step.miner)()
    embeddings, labels = synthetic_batch(batch_size, DIM, step.per_class, seed)

    def run_once(size: int) -> float:
        leaf = embeddings[:size].clone().requires_grad_()
        pairs = None if miner is None else miner(leaf, labels[:size])
        loss = loss_function(leaf, labels[:size], pairs)
        loss.backward()
        return float(loss.detach())

    return run_once


def synthetic_batch(batch_size: int, dim: int, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random embeddings [batch_size, dim] in loose clusters and labels [batch_size], per_class items a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(batch_size) // per_class
    centres = torch.randn(int(labels[-1]) + 1, dim, generator=generator)
    return centres[labels] + torch.randn(batch_size, dim, generator=generator), labels
