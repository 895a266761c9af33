"""What the tests of the benchmarks share: how little they run, a tiny case of every operation, and a result made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")
pytest.importorskip("pytorch_metric_learning", reason="the benchmarks need the bench extra")

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.operations import CLASSES, CORE, OPERATIONS, QUEUE
from benchmarks.probe import Setup
from benchmarks.results import CaseResult, PeerResult
from benchmarks.runner import Limits
from benchmarks.suites import loss_case
from benchmarks.timing import Plan, Quantiles

MEBIBYTE = 2**20
SETUP = Setup(device="cpu", threads=1, seed=3)
LIMITS = Limits(memory_bytes=2**31, seconds=60.0)
PLAN = Plan(seconds=0.01, min_rounds=2, max_rounds=3)
CASES = [Case(operation, 96, 8) for operation in CORE]


def tiny(operation: str) -> Case:
    """A case of an operation that takes milliseconds."""
    case = loss_case(operation, 64)
    return replace(case, columns={CLASSES: 40, QUEUE: 256}.get(case.what.against, 0))


TINY = [tiny(operation) for operation in OPERATIONS]


def result_of(case: Case, ours: float, floor_seconds: float, **peer_seconds: float) -> CaseResult:
    def figures(seconds: float) -> Quantiles:
        return Quantiles(seconds, seconds, seconds, seconds, 3, 1)

    result = CaseResult(
        case.name,
        case.operation,
        case.size,
        128,
        case.per_class,
        case.dtype,
        case.memory_bound,
        figures(floor_seconds),
    )
    for name, seconds in {"pml_fast/cpu": ours, **peer_seconds}.items():
        result.peers.append(
            PeerResult(
                name,
                results.OK,
                None,
                figures(seconds),
                seconds / floor_seconds,
                seconds / ours,
                MEBIBYTE,
                True,
                1e-7,
                1e-6,
            )
        )
    return result
