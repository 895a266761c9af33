"""Random inputs are fresh in every run, and can be drawn again: `PML_FAST_TEST_SEED` is the number that the header prints, and
the end of a report of failures."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import zlib
from collections.abc import Iterator

import pytest
import torch

SEED = "PML_FAST_TEST_SEED"
M_MMAP_THRESHOLD = -3  # of mallopt in <malloc.h>
MAPPED_FROM_BYTES = 1 << 17


def pytest_configure(config: pytest.Config) -> None:
    # Set in the process that starts the workers, so that all of them draw from the same number.
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(1 << 31)))
    measure_live_memory()


def measure_live_memory() -> None:
    """Give large blocks back to the system as they are freed, here and in every process started from here.

    glibc raises its threshold as a process goes on, after which freed tensors leave holes in the heap: peaks of resident
    memory would depend on the tests that ran before.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MAPPED_FROM_BYTES))
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)


def pytest_report_header(config: pytest.Config) -> str:
    return f"random inputs: {SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # The header is left out of short reports, in which a failure needs the number as much.
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"random inputs: {SEED}={os.environ[SEED]}")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws the same whatever ran before it."""
    torch.manual_seed(zlib.crc32(f"{os.environ[SEED]} {request.node.nodeid}".encode()))


@pytest.fixture(autouse=True)
def x87_registers_are_free() -> Iterator[None]:
    """Code with MMX instructions takes all eight and must give them back: the next long double, or fmod, would be NaN."""
    yield
    assert ctypes.c_longdouble(1.5).value == 1.5
