"""Bounded runs: the memory bound, the time bound, what they report, and the measured peak."""

from __future__ import annotations

import os
import time

import pytest
import torch

from pml_fast import _bounded as bounded

MEBIBYTE = 2**20
PRELOAD = ("torch",)

# ---- what runs in the bounded children: importable by name ----


def allocate(mebibytes: int) -> int:
    return int(torch.ones(mebibytes * MEBIBYTE // 4).sum())


def sleep_with_child(seconds: float, marker: str) -> None:
    import subprocess

    child = subprocess.Popen(["sleep", str(seconds)])
    with open(marker, "w") as file:
        file.write(str(child.pid))
    time.sleep(seconds)


def fail(text: str) -> None:
    raise ValueError(text)


def die() -> None:
    os._exit(7)


def peak_of(mebibytes: int) -> int:
    _, peak = bounded.measure_peak(lambda: allocate(mebibytes))
    return peak


def twice(number: int) -> int:
    return 2 * number


def _bounded(function, *args, **bounds) -> bounded.Outcome:
    return bounded.run(function, *args, preload=PRELOAD, **bounds)


# ---- bounded runs ----


def test_bounded_run_returns_the_value() -> None:
    outcome = _bounded(twice, 21, seconds=60)
    assert (outcome.status, outcome.value, outcome.error) == (bounded.OK, 42, None)
    assert outcome.ok


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is bounded on Linux only")
def test_bounded_run_stops_at_the_memory_bound_and_not_below() -> None:
    above = _bounded(allocate, 600, memory_bytes=300 * MEBIBYTE, seconds=60)
    assert above.status == bounded.OUT_OF_MEMORY
    assert "allocate" in above.error
    below = _bounded(allocate, 100, memory_bytes=300 * MEBIBYTE, seconds=60)
    assert below.value == 100 * MEBIBYTE // 4


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
def test_bounded_run_stops_at_the_time_bound_with_all_that_it_started(tmp_path) -> None:
    marker = tmp_path / "pid"
    outcome = _bounded(sleep_with_child, 60.0, str(marker), seconds=8)
    assert outcome.status == bounded.TIMED_OUT
    assert outcome.seconds < 30
    grandchild = int(marker.read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(grandchild):
        time.sleep(0.05)
    assert not _runs(grandchild)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_bounded_run_reports_errors_and_silent_deaths() -> None:
    raised = _bounded(fail, "no such luck", seconds=60)
    assert raised.status == bounded.FAILED
    assert "ValueError: no such luck" in raised.error
    died = _bounded(die, seconds=60)
    assert died.status == bounded.FAILED
    assert "exit code 7" in died.error


def test_a_run_in_this_process_reports_the_same() -> None:
    assert bounded.run_here(twice, 21).value == 42
    raised = bounded.run_here(fail, "no such luck")
    assert raised.status == bounded.FAILED and "ValueError: no such luck" in raised.error
    assert bounded.run_here(fail, "CUDA out of memory").status == bounded.FAILED


@pytest.mark.parametrize("bound", ["memory_bytes", "seconds"])
def test_bounded_run_refuses_a_bound_of_zero(bound: str) -> None:
    with pytest.raises(ValueError, match=bound):
        _bounded(twice, 1, **{bound: 0})


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is measured on Linux only")
@pytest.mark.parametrize("mebibytes", [32, 200])
def test_peak_memory_is_what_was_allocated(mebibytes: int) -> None:
    peak = _bounded(peak_of, mebibytes, seconds=60).value
    assert mebibytes * MEBIBYTE <= peak <= (mebibytes + 12) * MEBIBYTE
