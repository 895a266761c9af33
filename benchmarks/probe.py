"""What runs inside the bounded children: one step of one peer, the oracle, the timing of a whole case.

Results are plain numbers and NumPy arrays, so that they cross the process boundary by value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks import library_oracle, oracle
from benchmarks.cases import Case
from benchmarks.floor import floor
from benchmarks.inputs import Inputs
from benchmarks.operations import CLASSES, FEATURES
from benchmarks.peers import PEERS, forward_backward
from benchmarks.timing import Entrant, Plan, Quantiles, clock, time_in_turn
from pml_fast._bounded import is_out_of_memory, measure_peak

Outputs = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
FLOOR = "floor"
SMALL_SIZE = 32
STREAMED_ORACLE_LIMIT = 16_384


@dataclass(frozen=True)
class Setup:
    """What every process of a run shares."""

    device: str
    threads: int
    seed: int
    memory_bytes: int | None = None
    matmul_precision: str = "highest"
    measure_memory: bool = True

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def of(self, case: Case) -> Setup:
        """The setup with the precision that the case asks for."""
        return replace(self, matmul_precision=case.matmul_precision(self.matmul_precision))

    def enter(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul_precision)
        if self.on_gpu and self.memory_bytes is not None:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.memory_bytes / total))


@dataclass(frozen=True)
class Probe:
    """One step of a peer: its loss, gradients (others: all but the embeddings'), peak extra bytes and seconds."""

    value: float
    gradient: np.ndarray
    peak_bytes: int | None
    seconds: float
    others: tuple[np.ndarray, ...] = ()
    drawn: tuple[np.ndarray, ...] | None = None


def run_probe(case: Case, peer_name: str, setup: Setup) -> Probe:
    """One measured step of a peer, after a small batch has loaded what a first call loads."""
    setup.enter()
    peer = PEERS[peer_name]
    small = case.smaller(min(SMALL_SIZE, case.size))
    with peer.context():
        step = peer.build(case, case.inputs(setup.seed, setup.device))
        if peer.compiles:  # only the step itself loads and compiles what it needs, and that memory is not the step's
            forward_backward(step)
        else:
            warm_step = peer.build(small, small.inputs(setup.seed, setup.device))
            for _ in range(2):
                forward_backward(warm_step)
        began = time.perf_counter()
        (loss, gradients), peak = measure(lambda: forward_backward(step), setup)
        seconds = time.perf_counter() - began
    # A sketch only beside an oracle that gives one: the oracle by strips gives rows.
    kept = oracle.numbers if library_oracle.has_formula(case) else library_oracle.digest
    first, *others = (kept(gradient) for gradient in gradients)
    # A second draw would round its scores otherwise, and now and then choose another pair.
    drawn = step.drawn()
    indices = None if drawn is None else tuple(part.cpu().numpy() for part in drawn)
    return Probe(float(loss), first, peak, seconds, tuple(others), indices)


def measure(call: Callable[[], Outputs], setup: Setup) -> tuple[Outputs, int | None]:
    """Outputs of a call and its peak extra bytes: of the process on the CPU, of the allocator on a GPU."""
    if not setup.measure_memory:
        return call(), None
    if not setup.on_gpu:
        return measure_peak(call)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = call()
    torch.cuda.synchronize()
    return outputs, torch.cuda.max_memory_allocated() - before


def run_oracle(case: Case, setup: Setup, source: str | None = None, drawn: Sequence[np.ndarray] | None = None) -> oracle.Answer:
    """The float64 answer of a case: by strips on its device, or by the package ``source`` on the CPU."""
    torch.set_num_threads(setup.threads)
    if source is not None:
        return library_oracle.answer(case, case.inputs(setup.seed), source, drawn)
    inputs = case.inputs(setup.seed, setup.device)
    embeddings, labels = inputs.embeddings, inputs.labels
    if case.size <= STREAMED_ORACLE_LIMIT:
        compute = oracle.answer_with_movement if case.counts else oracle.answer
        return compute(case.operation, embeddings, labels)
    if case.operation == "supcon":
        return oracle.supcon_sampled(embeddings, labels)
    raise ValueError(
        f"case {case.name} has {case.size} rows, above the {STREAMED_ORACLE_LIMIT} that the oracle covers "
        f"for {case.operation}; use a smaller size, or add a sampled oracle as SupCon has"
    )


def compare(probe: Probe, answer: oracle.Answer) -> tuple[float, float]:
    """Relative error of the value and relative L2 error of the gradient; infinity for anything not finite."""
    return answer.errors(probe.value, probe.gradient, probe.others)


def _columns(case: Case, inputs: Inputs) -> torch.Tensor | None:
    """What the rows are multiplied with in the floor; None for the rows themselves."""
    if case.what.against in (CLASSES, FEATURES):
        return torch.randn(case.width, inputs.embeddings.shape[1]).to(inputs.embeddings)
    return inputs.other if inputs.queue is None else inputs.queue


@dataclass(frozen=True)
class Timing:
    """Outcome of timing one entrant: quantiles, or the error that stopped it."""

    quantiles: Quantiles | None
    error: str | None = None
    out_of_memory: bool = False


def run_timing(case: Case, expected: dict[str, float], plan: Plan, setup: Setup) -> dict[str, Timing]:
    """Time the peers named in expected (with their probe's seconds) and the floor of a case, in turn."""
    setup.enter()
    inputs = case.inputs(setup.seed, setup.device)

    def entrant(name: str) -> Entrant:
        peer = PEERS[name]
        with peer.context():
            step = peer.build(case, inputs)
        return Entrant(
            name,
            lambda: forward_backward(step),
            peer.context,
            expected[name],
            peer.compiles,
        )

    entrants = [Entrant(FLOOR, floor(inputs.embeddings, _columns(case, inputs))), *(entrant(name) for name in expected)]
    return timings_of(entrants, plan, setup)


def timings_of(entrants: list[Entrant], plan: Plan, setup: Setup) -> dict[str, Timing]:
    """Each entrant's quantiles, or what stopped it."""
    results: dict[str, Timing] = {}
    for name, result in time_in_turn(entrants, plan, clock(setup.device)).items():
        if isinstance(result, Quantiles):
            results[name] = Timing(result)
        else:
            results[name] = Timing(None, f"{type(result).__name__}: {result}", is_out_of_memory(result))
    return results
