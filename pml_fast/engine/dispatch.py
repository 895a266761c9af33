"""Which backend runs a problem: in order of preference, the first that does not refuse."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch

from pml_fast.engine.problem import Backend
from pml_fast.engine.settings import current

_CLASSES = {
    "cpu": ("pml_fast.engine.cpu.backend", "CpuBackend"),
    "triton": ("pml_fast.engine.triton.backend", "TritonBackend"),
    "cuda": ("pml_fast.engine.cuda.backend", "CudaBackend"),
    "chunked": ("pml_fast.engine.chunked", "ChunkedBackend"),
    "reference": ("pml_fast.engine.reference", "ReferenceBackend"),
}
_ORDER = {"cpu": ("cpu", "chunked"), "cuda": ("triton", "cuda", "chunked")}


@cache
def backend(name: str) -> Backend:
    """The backend of a name."""
    module, cls = _CLASSES[name]
    found: Backend = getattr(import_module(module), cls)()
    return found


def preference(device: torch.device) -> tuple[str, ...]:
    """Backends that ``auto`` tries on a device, best first."""
    return _ORDER.get(device.type, ("chunked",))


def select(problem: Any) -> Backend:
    """The backend that runs the problem under the settings in force.

    An explicitly chosen backend never falls back: it raises ``ValueError`` with its reason.
    """
    wanted = current().backend
    if wanted != "auto":
        chosen = backend(wanted)
        reason = chosen.available() or chosen.refuse(problem)
        if reason is not None:
            raise ValueError(f"backend {wanted!r} cannot run this: {reason}; choose another, or backend='auto'")
        return chosen
    for name in preference(problem.x.device):
        chosen = backend(name)
        if chosen.available() is None and chosen.refuse(problem) is None:
            return chosen
    return backend("chunked")


def verdicts(problem: Any) -> dict[str, str | None]:
    """For every backend, ``None`` where it can run the problem, else why not."""
    return {name: backend(name).available() or backend(name).refuse(problem) for name in _CLASSES}


def backends() -> dict[str, str | None]:
    """For every backend, ``None`` where this machine can use it, else why not and the remedy."""
    return {name: backend(name).available() for name in _CLASSES}
