"""Runs cases: every peer's probe under bounds, the oracle, then the timing in turn of those that agree."""

from __future__ import annotations

import gc
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import library_oracle, results
from benchmarks.bounded import OUT_OF_MEMORY, Outcome, run, run_here
from benchmarks.cases import Case
from benchmarks.oracle import Answer
from benchmarks.peers import INF_CL, OURS, PEERS, Peer, headline
from benchmarks.probe import FLOOR, Probe, Setup, Timing, compare, run_oracle, run_probe, run_timing
from benchmarks.results import CaseResult, PeerResult
from benchmarks.targets import judge
from benchmarks.timing import WARM_UP_CALLS, Plan

LOGGER = logging.getLogger(__name__)
# Imported once for all child processes; the first sets what the compiler reads when it is imported.
PRELOAD = (
    "benchmarks.peers",
    "benchmarks.probe",
    "benchmarks.workload_runner",
    "torch._inductor.compile_fx",
    "pytorch_metric_learning.losses",
    "pytorch_metric_learning.miners",
    "pml_fast.losses",
    "pml_fast.miners",
)
# How a backend that was asked for by name says that it has no kernel for an operation.
REFUSAL = "cannot run this"
ORACLE_SECONDS = 900.0
COMPILE_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """memory_bytes a process may allocate, seconds for one probe, budget in seconds for the whole run."""

    memory_bytes: int | None
    seconds: float
    budget: float | None = None


def run_cases(
    cases: Sequence[Case],
    peers: Sequence[str],
    setup: Setup,
    plan: Plan,
    limits: Limits,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Iterator[CaseResult]:
    """Run every case against the peers named; a case that the budget has no time for is marked not run."""
    began = time.monotonic()
    missing = {name: reason for name in peers if (reason := why_unavailable(PEERS[name]))}
    for case in cases:
        result = CaseResult(case.name, case.operation, case.size, case.dim, case.per_class, case.dtype, case.memory_bound)
        result.columns = case.columns
        entered = [name for name in peers if PEERS[name].runs(case)]
        spent = time.monotonic() - began
        if limits.budget is not None and spent > limits.budget:
            reason = f"the budget of {limits.budget:g} s was spent"
            result.peers = [PeerResult(name, results.NOT_RUN, reason) for name in entered]
        else:
            _run_case(case, result, entered, missing, setup.of(case), plan, limits, on_progress)
        judge(case, result, on_gpu=setup.on_gpu)
        yield result


def failures(cases: Sequence[CaseResult]) -> list[str]:
    """A line for each result of pml_fast that is wrong or did not finish; empty when all is well."""
    fine = (results.OK, results.UNAVAILABLE, results.NOT_RUN)
    return [
        f"{case.case}: {peer.peer} {peer.status}: {peer.detail}"
        for case in cases
        for peer in case.peers
        if peer.peer.startswith(OURS) and peer.status not in fine
    ]


def why_unavailable(peer: Peer) -> str | None:
    """Why a peer cannot be used here at all, or None when it can."""
    try:
        if peer.name == "pml":
            importlib.import_module("pytorch_metric_learning.losses")
        if peer.name == INF_CL:
            importlib.import_module(INF_CL)
            return None if torch.cuda.is_available() else "its kernels need a CUDA device"
        if peer.is_ours:
            importlib.import_module("pml_fast.losses")
            if peer.name == OURS + "auto":
                return None
            backend = importlib.import_module("pml_fast.engine.dispatch").backend(peer.name.removeprefix(OURS))
            reason: str | None = backend.available()
            return reason
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return None


def _run_case(
    case: Case,
    result: CaseResult,
    entered: list[str],
    missing: dict[str, str],
    setup: Setup,
    plan: Plan,
    limits: Limits,
    on_progress: Callable[[str], None],
) -> None:
    result.peers = [PeerResult(name, results.UNAVAILABLE, missing[name]) for name in entered if name in missing]
    present = [name for name in entered if name not in missing]
    if present:
        expected = {}
        truth: Outcome | None = None
        for name in present:
            on_progress(f"{case.name}: checking {name}")
            probed = _probe(PEERS[name], case, setup, limits)
            if probed.ok and (truth is None or case.what.drawn):
                # What is drawn differs from peer to peer, and so does its loss.
                on_progress(f"{case.name}: oracle")
                truth = _truth(case, probed.value.drawn, setup, limits)
                result.oracle = truth.value.source if truth.ok else result.oracle
            entry, seconds = _judged(case, PEERS[name], probed, truth, setup)
            result.peers.append(entry)
            if entry.status == results.OK:
                expected[name] = seconds
        on_progress(f"{case.name}: timing")
        _time(case, result, expected, setup, plan, limits)
    result.peers.sort(key=lambda entry: entered.index(entry.peer))


def _truth(case: Case, drawn: tuple[np.ndarray, ...] | None, setup: Setup, limits: Limits) -> Outcome:
    """The float64 answer: by strips, or of the first library that gives one within the bounds; for the tuple that was drawn."""
    if library_oracle.has_formula(case):
        return run_apart(setup, None, ORACLE_SECONDS, run_oracle, case, setup)
    *bounded, last = library_oracle.sources(case)
    for source in bounded:
        outcome = run_apart(setup, limits.memory_bytes, limits.seconds, run_oracle, case, setup, source, drawn)
        if outcome.ok:
            return outcome
        LOGGER.info("%s: %s gives no float64 answer: %s", case.name, source, outcome.error)
    return run_apart(setup, limits.memory_bytes, ORACLE_SECONDS, run_oracle, case, setup, last, drawn)


def run_apart(
    setup: Setup, memory_bytes: int | None, seconds: float, function: Callable[..., object], *args: object
) -> Outcome:
    """In a bounded child process; on a GPU in this one, for every new one would take seconds to start CUDA.

    The GPU's own memory is bounded by its allocator (:meth:`Setup.enter`).
    """
    if not setup.on_gpu:
        return run(function, *args, memory_bytes=memory_bytes, seconds=seconds, preload=PRELOAD)
    try:
        return run_here(function, *args)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _probe(peer: Peer, case: Case, setup: Setup, limits: Limits) -> Outcome:
    """One step of a peer under the bounds."""
    seconds = limits.seconds + (COMPILE_SECONDS if peer.compiles else 0)
    return run_apart(setup, limits.memory_bytes, seconds, run_probe, case, peer.name, setup)


def _judged(case: Case, peer: Peer, outcome: Outcome, answered: Outcome | None, setup: Setup) -> tuple[PeerResult, float]:
    """A peer's answer held to the oracle's; also the seconds its step took."""
    if not outcome.ok:
        refused = peer.is_ours and REFUSAL in (outcome.error or "")
        status = results.UNAVAILABLE if refused else outcome.status
        return PeerResult(peer.name, status, first_line(outcome, f"{case.name}, {peer.name}")), outcome.seconds
    assert answered is not None
    if not answered.ok:
        reason = f"no answer to compare with: {answered.status}, {first_line(answered, case.name)}"
        return PeerResult(peer.name, results.NOT_RUN, reason), outcome.seconds
    probe: Probe = outcome.value
    truth: Answer = answered.value
    value_error, gradient_error = compare(probe, truth)
    entry = PeerResult(peer.name, results.OK, value_error=value_error, gradient_error=gradient_error)
    tolerance = case.tolerance(setup.matmul_precision).beyond(truth.moved_value, truth.moved_gradient)
    if value_error <= tolerance.value and gradient_error <= tolerance.gradient:
        entry.peak_extra_bytes = probe.peak_bytes
        entry.within_memory_bound = None if probe.peak_bytes is None else probe.peak_bytes <= case.memory_bound
    else:
        entry.status = results.WRONG
        entry.detail = (
            f"value off by {value_error:.1e} (allowed {tolerance.value:.0e}), "
            f"gradient by {gradient_error:.1e} (allowed {tolerance.gradient:.0e})"
        )
    return entry, probe.seconds


def _time(case: Case, result: CaseResult, expected: dict[str, float], setup: Setup, plan: Plan, limits: Limits) -> None:
    """Time the peers in expected and the floor in one process and write the figures into result."""
    if not expected:
        return
    calls = plan.min_rounds + WARM_UP_CALLS
    longest = 2 * sum(plan.seconds + calls * seconds for seconds in expected.values())
    longest += COMPILE_SECONDS * sum(PEERS[name].compiles for name in expected) + limits.seconds
    outcome = run_apart(setup, limits.memory_bytes, longest, run_timing, case, expected, plan, setup)
    timings: dict[str, Timing] = outcome.value if outcome.ok else {}
    floor = timings.get(FLOOR)
    result.floor_seconds = floor.quantiles if floor else None
    reason = first_line(outcome, f"{case.name}, timing")
    for name in expected:
        entry = result.peer(name)
        assert entry is not None
        if not outcome.ok:
            entry.status, entry.detail = outcome.status, f"while timing: {reason}"
        else:
            record(entry, timings[name])
    compare_times(result)


def first_line(outcome: Outcome, what: str) -> str | None:
    """What went wrong in a line, for the results; a traceback, which names this machine's folders, is only logged."""
    if outcome.error is None:
        return None
    summary, _, traceback = outcome.error.partition("\n")
    if traceback:
        LOGGER.warning("%s: %s", what, outcome.error)
    return summary


def record(entry: PeerResult, timing: Timing) -> None:
    """Write a timing, or what stopped it, into a peer's entry."""
    if timing.quantiles is not None:
        entry.seconds = timing.quantiles
        return
    entry.status = OUT_OF_MEMORY if timing.out_of_memory else "failed"
    entry.detail = f"while timing: {timing.error}"


def compare_times(result: CaseResult) -> None:
    """Fill in each peer's ratio to the floor and by how much pml_fast is faster than it."""
    timed = [entry for entry in result.peers if entry.seconds is not None]
    ours = result.peer(headline([entry.peer for entry in timed]) or "")
    for entry in timed:
        assert entry.seconds is not None
        if result.floor_seconds is not None:
            entry.ratio_to_floor = entry.seconds.p50 / result.floor_seconds.p50
        if ours is not None and ours.seconds is not None:
            entry.ours_is_faster_by = entry.seconds.p50 / ours.seconds.p50
