"""How the benchmarks time: turns, quantiles, and the floor they compare with."""

from __future__ import annotations

import time

import pytest
import torch
from benchmark_cases import PLAN, SETUP

from benchmarks.cases import Case
from benchmarks.floor import floor
from benchmarks.probe import run_probe, run_timing
from benchmarks.timing import WARM_UP_CALLS, CpuClock, Entrant, Plan, Quantiles, quantiles, time_in_turn


def test_probe_and_timing_give_figures() -> None:
    case = Case("supcon", 64, 4)
    probe = run_probe(case, "eager", SETUP)
    assert probe.gradient.shape == (64, 128)
    assert probe.seconds > 0
    timings = run_timing(case, {"eager": probe.seconds}, PLAN, SETUP)
    assert set(timings) == {"floor", "eager"}
    for timing in timings.values():
        assert timing.quantiles.least <= timing.quantiles.p20 <= timing.quantiles.p50 <= timing.quantiles.p80
        assert 2 <= timing.quantiles.rounds <= 3


def test_entrants_take_turns_and_slow_ones_have_fewer() -> None:
    calls: list[str] = []

    def entrant(name: str, seconds: float) -> Entrant:
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return Entrant(name, call)

    plan = Plan(seconds=0.05, min_rounds=2, max_rounds=8)
    timed = time_in_turn([entrant("fast", 0.002), entrant("slow", 0.03)], plan, CpuClock())
    assert timed["fast"].rounds == 8
    assert timed["slow"].rounds == 2
    measured = calls[6:]  # after three warm-up calls each
    assert measured[:2] == ["fast", "slow"]
    assert measured[2] == measured[3] == "fast"
    assert measured.count("slow") == 2


def test_a_warm_up_call_that_is_held_up_costs_no_samples() -> None:
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.05 if len(calls) == 3 else 0.001)

    timed = time_in_turn([Entrant("held up", call)], Plan(seconds=0.1, min_rounds=2, max_rounds=8), CpuClock())
    assert isinstance(timed["held up"], Quantiles)
    assert timed["held up"].rounds == 8


@pytest.mark.parametrize("calls", [0, WARM_UP_CALLS], ids=["warming up", "in a sample"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError, AssertionError, ValueError])
def test_an_entrant_that_raises_leaves_the_others_timed(error: type[Exception], calls: int) -> None:
    made: list[int] = []

    def broken() -> None:
        made.append(1)
        if len(made) > calls:
            raise error("a peer's own check")

    timed = time_in_turn([Entrant("broken", broken), Entrant("fine", lambda: None)], PLAN, CpuClock())
    assert isinstance(timed["broken"], error)
    assert isinstance(timed["fine"], Quantiles)


def test_quantiles_interpolate() -> None:
    found = quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], calls=2)
    assert (found.p20, found.p50, found.p80, found.least) == pytest.approx((2.0, 3.5, 5.0, 1.0))
    assert (found.rounds, found.calls) == (6, 2)
    with pytest.raises(ValueError, match="samples"):
        quantiles([], calls=1)


def test_floor_by_strips_computes_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import floor as module

    rows = torch.randn(50, 16)
    buffers: list[dict[str, torch.Tensor]] = []
    for limit in (2**30, 1):
        monkeypatch.setattr(module, "DENSE_LIMIT_BYTES", limit)
        monkeypatch.setattr(module, "STRIP_ROWS", 16)
        run = floor(rows)
        run()
        cells = zip(run.__code__.co_freevars, run.__closure__)
        buffers.append({name: cell.cell_contents for name, cell in cells})
    for name in ("left", "right"):
        torch.testing.assert_close(buffers[0][name], buffers[1][name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(buffers[0][name], rows @ rows.T @ rows, rtol=1e-4, atol=1e-4)
