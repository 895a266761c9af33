"""Micro-benchmarks of small batches under pytest-benchmark, where overheads and not arithmetic decide.

Run by ``pytest benchmarks/test_micro.py --benchmark-only``. Each answer is held to the float64 oracle first.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import oracle
from benchmarks.cases import Case
from benchmarks.operations import CORE
from benchmarks.peers import PEERS, forward_backward
from benchmarks.probe import Probe, compare
from benchmarks.runner import why_unavailable

PEER_NAMES = ("pml_fast/cpu", "pml_fast/chunked", "pml", "eager")
SIZES = (32, 256)


@pytest.mark.parametrize("peer_name", PEER_NAMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", CORE)
def test_forward_backward(benchmark: BenchmarkFixture, operation: str, size: int, peer_name: str) -> None:
    peer = PEERS[peer_name]
    missing = why_unavailable(peer)
    if missing:
        pytest.skip(missing)
    case = Case(operation, size, 4)
    benchmark.group = f"{operation} N={size}"
    inputs = case.inputs(seed=0)
    with peer.context():
        step = peer.build(case, inputs)
        loss, (gradient,) = forward_backward(step)
        truth = oracle.answer(operation, inputs.embeddings, inputs.labels)
        errors = compare(Probe(float(loss), gradient.numpy(), None, 0.0), truth)
        assert errors[0] <= case.tolerance().value
        assert errors[1] <= case.tolerance().gradient
        # PML takes tens of milliseconds for NTXent: bounded rounds keep the whole file under a minute.
        benchmark.pedantic(forward_backward, (step,), rounds=20, iterations=1, warmup_rounds=3)
