"""Runs workloads: the truth, every peer's probe under bounds, then the timing in turn of those that agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import evaluation, results, sampling
from benchmarks.bounded import Outcome
from benchmarks.peers import headline
from benchmarks.probe import Setup, Timing, measure, timings_of
from benchmarks.results import CaseResult, PeerResult, TargetResult
from benchmarks.runner import Limits, compare_times, first_line, record, run_apart
from benchmarks.targets import judge
from benchmarks.timing import LONG_STEP_SECONDS, WARM_UP_CALLS, Entrant, Plan, Quantiles
from benchmarks.workloads import Numbers, Work, Workload, largest_difference

WORKS: dict[str, Work] = {**sampling.WORKS, **evaluation.WORKS}
SMALL_SIZE = 2560
TRUTH_SECONDS = 300.0


@dataclass(frozen=True)
class Done:
    """A peer's work, done once: its numbers, peak extra bytes and seconds."""

    numbers: Numbers
    peak_bytes: int | None
    seconds: float


def run_workloads(
    cases: Sequence[Workload],
    peers: Sequence[str],
    setup: Setup,
    plan: Plan,
    limits: Limits,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Iterator[CaseResult]:
    """Run every case with the peers named that can do it; one that the budget has no time for is marked not run."""
    began = time.monotonic()
    truths: dict[object, Outcome] = {}
    for case in cases:
        work = WORKS[case.operation]
        entered = [name for name in peers if name in work.peers]
        result = CaseResult(
            case.name, case.operation, case.size, case.dim, case.per_class, case.dtype, case.memory_bound, oracle=work.about
        )
        if limits.budget is not None and time.monotonic() - began > limits.budget:
            reason = f"the budget of {limits.budget:g} s was spent"
            result.peers = [PeerResult(name, results.NOT_RUN, reason) for name in entered]
        else:
            key = (work.truth, case.size, case.per_class)
            if key not in truths:
                on_progress(f"{case.name}: truth")
                truths[key] = run_apart(setup, None, TRUTH_SECONDS, truth_of, case, setup)
            _run_case(case, work, result, entered, truths[key], setup, plan, limits, on_progress)
        judge(case, result, on_gpu=setup.on_gpu)
        yield result


def _run_case(
    case: Workload,
    work: Work,
    result: CaseResult,
    entered: list[str],
    truth: Outcome,
    setup: Setup,
    plan: Plan,
    limits: Limits,
    on_progress: Callable[[str], None],
) -> None:
    if not truth.ok:
        reason = f"no answer to compare with: {truth.status}, {first_line(truth, case.name)}"
        result.peers = [PeerResult(name, results.NOT_RUN, reason) for name in entered]
        return
    good: dict[str, Done] = {}
    for name in entered:
        on_progress(f"{case.name}: {name}")
        outcome = run_apart(setup, limits.memory_bytes, limits.seconds, do_once, case, name, setup)
        if not outcome.ok:
            result.peers.append(PeerResult(name, outcome.status, first_line(outcome, f"{case.name}, {name}")))
            continue
        done: Done = outcome.value
        error = largest_difference(done.numbers, truth.value)
        entry = PeerResult(name, results.OK, value_error=error)
        if error > work.tolerance:
            entry.status, entry.detail = results.WRONG, f"off by {error:.1e} (allowed {work.tolerance:.0e})"
        else:
            good[name] = done
            entry.peak_extra_bytes = done.peak_bytes
            if case.streams and done.peak_bytes is not None:
                entry.within_memory_bound = done.peak_bytes <= case.memory_bound
        result.peers.append(entry)
    if work.equal_to_pml is not None:
        result.targets += _same_as_pml(good, work.equal_to_pml)
    on_progress(f"{case.name}: timing")
    _time(case, result, {name: done.seconds for name, done in good.items()}, setup, plan, limits)


def _same_as_pml(good: dict[str, Done], allowed: float) -> list[TargetResult]:
    ours = headline(list(good))
    if ours is None or "pml" not in good:
        return []
    difference = largest_difference(good[ours].numbers, good["pml"].numbers)
    return [TargetResult(f"metrics within {allowed:.0e} of PML's", f"{difference:.1e} ({ours})", difference <= allowed)]


def _time(case: Workload, result: CaseResult, spent: dict[str, float], setup: Setup, plan: Plan, limits: Limits) -> None:
    """One sample of what takes long is the probe's; the others are sampled in turn in one process."""
    short = {name: seconds for name, seconds in spent.items() if seconds <= LONG_STEP_SECONDS}
    found = {name: Timing(Quantiles(*[seconds] * 4, 1, 1)) for name, seconds in spent.items() if name not in short}
    if short:
        longest = 2 * sum(plan.seconds + (plan.min_rounds + WARM_UP_CALLS) * seconds for seconds in short.values())
        outcome = run_apart(setup, limits.memory_bytes, longest + limits.seconds, time_all, case, short, plan, setup)
        if outcome.ok:
            found |= outcome.value
        else:
            found |= {name: Timing(None, first_line(outcome, f"{case.name}, timing")) for name in short}
    for entry in result.peers:
        if entry.peer in found:
            record(entry, found[entry.peer])
    compare_times(result)


# ---- what runs inside the bounded children -----------------------------------------------------------------------------------


def truth_of(case: Workload, setup: Setup) -> Numbers:
    setup.enter()
    return WORKS[case.operation].truth(case, setup)


def do_once(case: Workload, peer: str, setup: Setup) -> Done:
    """One measured call of a peer, after one on few rows has loaded what a first call loads."""
    setup.enter()
    work = WORKS[case.operation]
    work.prepare(peer, case.smaller(SMALL_SIZE), setup)()
    call = work.prepare(peer, case, setup)
    began = time.perf_counter()
    found, peak = measure(call, setup)
    seconds = time.perf_counter() - began
    return Done(work.numbers(found, case, setup), peak, seconds)


def time_all(case: Workload, spent: dict[str, float], plan: Plan, setup: Setup) -> dict[str, Timing]:
    """The peers named in spent (with their probe's seconds), in turn."""
    setup.enter()
    prepare = WORKS[case.operation].prepare
    return timings_of([Entrant(name, prepare(name, case, setup), expected_seconds=spent[name]) for name in spent], plan, setup)
