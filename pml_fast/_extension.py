"""The compiled extension ``pml_fast._C``: loaded on first use, and never a reason for pml_fast to fail."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

_NAME = "pml_fast._C"
_REMEDY = "install a C++ compiler and Python's headers (on Debian: g++ python3-dev), then run `pip install .`"


@functools.lru_cache(maxsize=1)
def _try_load() -> tuple[ModuleType | None, str]:
    """The module, or None, and one line that says how it went."""
    if importlib.util.find_spec(_NAME) is None:
        return None, f"not built: this is a pure-Python install; to have the compiled kernels, {_REMEDY}"
    try:
        module = importlib.import_module(_NAME)
    except Exception as error:
        # A broken binary can fail in many ways, each of which leaves the other backends as they are.
        reason = f"{type(error).__name__}: {error}"
        return None, f"built, but its import failed ({reason}); to build it for this Python, {_REMEDY}"
    return module, "loaded"


def load() -> ModuleType | None:
    """The extension module, or None where it is not built or cannot be imported (`status` says why)."""
    return _try_load()[0]


def status() -> str:
    """One line: loaded (and with which instruction set), not built, or failed to import, with the remedy."""
    module, message = _try_load()
    if module is None:
        return message
    info = module.build_info()
    isas = ", ".join(info["isas"])
    try:
        active = f"running {module.isa()}"
    except ValueError as error:
        active = f"refused: {error}"
    return f"{message}: {active} (compiled for {isas}; {info['compiler']}; version {info['version']})"
