"""Deep metric learning on fused, streaming, linear-memory kernels.

A drop-in for pytorch-metric-learning 2.9: ``from pml_fast import losses, miners, distances, reducers, regularizers, samplers``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pml_fast import (
        compat,
        datasets,
        distances,
        functional,
        losses,
        miners,
        reducers,
        regularizers,
        samplers,
        testers,
        trainers,
        utils,
    )
    from pml_fast.engine.explain import explain
    from pml_fast.engine.settings import use

_MODULES = (
    "compat",
    "datasets",
    "distances",
    "functional",
    "losses",
    "miners",
    "reducers",
    "regularizers",
    "samplers",
    "testers",
    "trainers",
    "utils",
)
_NAMES = {"explain": "pml_fast.engine.explain", "use": "pml_fast.engine.settings"}

__all__ = [
    "__version__",
    "compat",
    "datasets",
    "distances",
    "explain",
    "functional",
    "losses",
    "miners",
    "reducers",
    "regularizers",
    "samplers",
    "testers",
    "trainers",
    "use",
    "utils",
]


def __getattr__(name: str) -> Any:
    """Import a module when it is first used: ``import pml_fast`` alone stays quick."""
    if name in _MODULES:
        return importlib.import_module(f"pml_fast.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'pml_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
