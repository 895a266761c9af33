"""Random inputs are fresh in every run, and can be drawn again: `PML_FAST_TEST_SEED` is the number that the header prints."""

from __future__ import annotations

import os
import random
import zlib

import pytest
import torch

SEED = "PML_FAST_TEST_SEED"


def pytest_configure(config: pytest.Config) -> None:
    # Set in the process that starts the workers, so that all of them draw from the same number.
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(1 << 31)))


def pytest_report_header(config: pytest.Config) -> str:
    return f"random inputs: {SEED}={os.environ[SEED]}"


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Every test draws the same whatever ran before it."""
    torch.manual_seed(zlib.crc32(f"{os.environ[SEED]} {request.node.nodeid}".encode()))
