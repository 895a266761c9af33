"""Triton's kernels where there is no card: in its interpreter.

Kernels, triton's own among them, are interpreted or compiled as decided when their module is imported: a test module imports
them under :func:`interpreting`. Its tests take the fixture :func:`interpreter`; what else runs in this process must not find
the backend available.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

VARIABLE = "TRITON_INTERPRET"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@contextmanager
def interpreting() -> Iterator[None]:
    """Interpret for the length of a block, where there is no card; skips the module where there is no triton."""
    with pytest.MonkeyPatch.context() as patch:
        if not CUDA:
            patch.setenv(VARIABLE, "1")
        pytest.importorskip("triton", reason="triton is published for Linux alone")
        yield


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for one test."""
    if not CUDA:
        monkeypatch.setenv(VARIABLE, "1")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hands the launchers outputs full of what must not survive."""
    from pml_fast.engine.triton import layout

    def poison(*args: Any, **options: Any) -> Tensor:
        made = torch.empty(*args, **options)
        return made.fill_(float("nan") if made.is_floating_point() else -77)

    monkeypatch.setattr(layout, "empty", poison)
