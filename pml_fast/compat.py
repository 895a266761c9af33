"""Lets code that imports `pytorch_metric_learning` run on pml_fast, unchanged.

    import pml_fast.compat
    pml_fast.compat.install()
    from pytorch_metric_learning.losses import ContrastiveLoss  # pml_fast's

Every module of pml_fast is reachable under the other name, lazily; classes and functions are the same
objects, and setting an attribute of a module sets it in pml_fast. A name that pml_fast does not have raises
ImportError (in an import) or AttributeError (on a module) saying so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PEER = "pytorch_metric_learning"
PEER_VERSION = "2.9.0"
OURS = "pml_fast"


def install() -> None:
    """Make `pytorch_metric_learning` and its modules resolve to pml_fast; calling it again does nothing.

    RuntimeError if the real pytorch_metric_learning has been imported already: two libraries under one name
    would mix classes.
    """
    if is_installed():
        return
    if any(_is_peer(name) for name in sys.modules):
        raise RuntimeError(
            f"{PEER} has been imported already: call pml_fast.compat.install() before the first import "
            "of it, for instance as the first lines of the program"
        )
    sys.meta_path.insert(0, _Finder())


def uninstall() -> None:
    """Undo `install`: later imports of `pytorch_metric_learning` find the real one, if there is one."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Alias)]:
        del sys.modules[name]


def is_installed() -> bool:
    """Whether `pytorch_metric_learning` resolves to pml_fast."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def _is_peer(name: str) -> bool:
    return name == PEER or name.startswith(f"{PEER}.")


def _our_name(peer_name: str) -> str:
    return OURS + peer_name[len(PEER) :]


def _missing(peer_name: str) -> str:
    name = peer_name[len(PEER) + 1 :]
    return f"pml_fast has no {name} yet: pml_fast.compat.uninstall() gives the real {PEER} back"


class _Alias(ModuleType):
    """A module under the peer's name that reads from, and writes to, the module that it stands for."""

    _target: ModuleType

    def __getattr__(self, name: str) -> Any:
        target = self._target
        if name == "__all__" and not hasattr(target, name):
            return [public for public in vars(target) if not public.startswith("_")]
        try:
            value = getattr(target, name)
        except AttributeError:
            if not name.startswith("__") and _exists(f"{target.__name__}.{name}"):
                return importlib.import_module(f"{self.__name__}.{name}")
            raise AttributeError(_missing(f"{self.__name__}.{name}"), name=name, obj=self) from None
        if isinstance(value, ModuleType) and value.__name__ == f"{target.__name__}.{name}":
            return importlib.import_module(f"{self.__name__}.{name}")
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets dunders and submodules on the alias itself; all else is the target's.
        if isinstance(value, _Alias) or (name.startswith("__") and name.endswith("__")):
            super().__setattr__(name, value)
        else:
            setattr(self._target, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            delattr(self._target, name)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self._target), *vars(self)})


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        alias = _Alias(spec.name)
        vars(alias)["_target"] = importlib.import_module(_our_name(spec.name))
        return alias

    def exec_module(self, module: ModuleType) -> None:
        # A path, though an empty one, makes the import system ask the finder for names that the module lacks.
        vars(module)["__path__"] = []
        vars(module)["__doc__"] = vars(module)["_target"].__doc__
        if module.__name__ == PEER:
            vars(module)["__version__"] = PEER_VERSION


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not _is_peer(fullname):
            return None
        if not _exists(_our_name(fullname)):
            # Named after our module: under the peer's own name `from package import name` would drop the
            # message.
            raise ModuleNotFoundError(_missing(fullname), name=_our_name(fullname))
        return ModuleSpec(fullname, _Loader(), is_package=True)


def _exists(our_name: str) -> bool:
    """Whether pml_fast has a module of that name."""
    try:
        return importlib.util.find_spec(our_name) is not None
    except ModuleNotFoundError as error:
        # A parent that is missing, or is no package, is of ours; a missing dependency of it is the user's to
        # know.
        if error.name is not None and (our_name == error.name or our_name.startswith(f"{error.name}.")):
            return False
        raise
