"""The base of every module that can report numbers about itself."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch

from . import common_functions as c_f


class ModuleWithRecords(torch.nn.Module):
    """A module that lists the attributes a logger should record.

    `_record_these` names settings, `_record_these_stats` names statistics of the last call. Statistics are
    kept only when `collect_stats` is true; left as None it takes `common_functions.COLLECT_STATS` (False) at
    construction. An argument that no class in line knows ends here: TypeError.
    """

    # Arguments of the bases that a class gives itself.
    _given: ClassVar[tuple[str, ...]] = ()
    # Steps of the class of this name in pytorch-metric-learning that a subclass may override there, and that are none here.
    _no_steps: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("pml_fast."):
            return
        ignored = [name for name in cls._no_steps if name in vars(cls)]
        if ignored:
            base = next(base for base in cls.__mro__ if "_no_steps" in vars(base))
            whole = "mine" if hasattr(cls, "mine") else "compute_loss"
            raise TypeError(
                f"{cls.__name__} defines {', '.join(ignored)}, which {base.__name__} would never call: its kernels do not take "
                f"that step of pytorch-metric-learning's {base.__name__} apart; override {whole} instead"
            )

    def __init__(self, collect_stats: bool | None = None, **unknown: Any) -> None:
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise TypeError(f"{type(self).__name__} got unknown arguments: {names}; known are {', '.join(self._arguments())}")
        super().__init__()
        self.collect_stats: bool = c_f.COLLECT_STATS if collect_stats is None else collect_stats

    @classmethod
    def _arguments(cls) -> list[str]:
        """The names of the constructor's arguments, those of the bases included."""
        known: dict[str, None] = {}
        for base in cls.__mro__[: cls.__mro__.index(ModuleWithRecords) + 1]:
            parameters = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
            named = (p.name for p in list(parameters.values())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
            known |= dict.fromkeys(name for name in named if name not in cls._given)
        return list(known)

    def add_to_recordable_attributes(
        self, name: str | None = None, list_of_names: list[str] | None = None, is_stat: bool = False
    ) -> None:
        """List attributes for recording (missing ones start at 0); statistics only if they are collected."""
        if self.collect_stats or not is_stat:
            c_f.add_to_recordable_attributes(self, name=name, list_of_names=list_of_names, is_stat=is_stat)

    def reset_stats(self) -> None:
        """Set every listed statistic back to 0."""
        c_f.reset_stats(self)
