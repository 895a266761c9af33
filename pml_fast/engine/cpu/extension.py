"""The compiled module, and whether it is what runs."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.settings import current


def extension() -> ModuleType:
    """The compiled module; the backend has said that it is there."""
    module = _extension.load()
    assert module is not None
    return module


def is_chosen(x: Tensor) -> bool:
    """Whether the compiled backend is there, and may run on this tensor under the settings in force."""
    return x.device.type == "cpu" and current().backend in ("auto", "cpu") and _extension.load() is not None
