"""Process-wide choices: which backend, which precision, deterministic or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

BACKENDS = ("auto", "cpu", "triton", "cuda", "chunked", "reference")
PRECISIONS = ("highest", "bf16x3", "high", "medium")


@dataclass(frozen=True)
class Settings:
    """``precision`` of ``None`` means torch.get_float32_matmul_precision().

    ``bf16x3`` lies between ``highest`` and ``high``: the Triton kernels of pair losses and miners take an inner product of
    float32 rows as three products of bfloat16 parts, wrong by up to 6e-6 between unit vectors; all else is ``highest``.

    ``deterministic`` keeps sums at listed places on a GPU in one order; without it they are atomic, and faster.
    """

    backend: str = "auto"
    precision: str | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"precision must be None or one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not isinstance(self.deterministic, bool):
            raise TypeError(f"deterministic must be True or False, got {self.deterministic!r}")


def _from_environment() -> Settings:
    flag = os.environ.get("PML_FAST_DETERMINISTIC", "1")
    if flag not in ("0", "1"):
        raise ValueError(f"PML_FAST_DETERMINISTIC must be 0 or 1, got {flag!r}")
    return Settings(os.environ.get("PML_FAST_BACKEND", "auto"), os.environ.get("PML_FAST_PRECISION") or None, flag == "1")


_current: Settings | None = None


def current() -> Settings:
    """The settings in force; the first call reads ``PML_FAST_BACKEND``, ``_PRECISION`` and ``_DETERMINISTIC``."""
    global _current
    if _current is None:
        _current = _from_environment()
    return _current


def float32_precision() -> str:
    """``highest``, ``high`` or ``medium``, as :func:`torch.set_float32_matmul_precision` understands them, or ``bf16x3``."""
    return current().precision or torch.get_float32_matmul_precision()


class use:
    """Choose the backend, the float32 precision and determinism; at once, and as a context manager for a block.

    ``use(backend="chunked")`` sets the choice for the process; ``with use(backend="chunked"): ...`` restores the previous one
    at the end. What is not given stays as it is. Raises ``ValueError`` for an unknown name.
    """

    def __init__(self, backend: str | None = None, precision: str | None = None, deterministic: bool | None = None) -> None:
        global _current
        self._before = current()
        before = self._before
        _current = Settings(
            before.backend if backend is None else backend,
            before.precision if precision is None else precision,
            before.deterministic if deterministic is None else deterministic,
        )

    def __enter__(self) -> use:
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self._before


@contextmanager
def math_precision() -> Iterator[None]:
    """torch's own float32 products at the precision in force, for the length of a block."""
    wanted, before = float32_precision(), torch.get_float32_matmul_precision()
    wanted = "highest" if wanted == "bf16x3" else wanted
    if wanted == before:
        yield
        return
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
