"""Modules that own a reducer, a distance, or both: what losses, miners and regularizers inherit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from ..reducers import DoNothingReducer, MeanReducer, MultipleReducers
from .module_with_records import ModuleWithRecords

if TYPE_CHECKING:
    from ..distances import BaseDistance


class ModuleWithRecordsAndReducer(ModuleWithRecords):
    """A module whose named losses are reduced by `reducer` (None: `get_default_reducer()`).

    A module with several sub-losses gets its own copy of the reducer for each, held in a MultipleReducers. A
    MultipleReducers or a DoNothingReducer is taken as it is.
    """

    def __init__(self, reducer: torch.nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_reducer(reducer)

    def get_default_reducer(self) -> torch.nn.Module:
        """The reducer used when none is given."""
        return MeanReducer()

    def set_reducer(self, reducer: torch.nn.Module | None) -> None:
        """Install `reducer`, copied once for each sub-loss."""
        if reducer is not None and not isinstance(reducer, torch.nn.Module):
            raise TypeError(f"reducer must be a reducer object or None, got {reducer!r}; pass for example MeanReducer()")
        if isinstance(reducer, (MultipleReducers, DoNothingReducer)):
            self.reducer: torch.nn.Module = reducer
            return
        names = self.sub_loss_names()
        if len(names) == 1:
            self.reducer = self._own_reducer(reducer)
        else:
            self.reducer = MultipleReducers({name: self._own_reducer(reducer) for name in names})

    def _own_reducer(self, reducer: torch.nn.Module | None) -> torch.nn.Module:
        return self.get_default_reducer() if reducer is None else copy.deepcopy(reducer)

    def sub_loss_names(self) -> list[str]:
        """The names of the losses that this module computes."""
        return ["loss"]


class ModuleWithRecordsAndDistance(ModuleWithRecords):
    """A module that compares embeddings with `distance` (None: `get_default_distance()`)."""

    def __init__(self, distance: BaseDistance | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if distance is not None and not isinstance(distance, torch.nn.Module):
            raise TypeError(f"distance must be a distance object or None, got {distance!r}; pass for example LpDistance()")
        self.distance = self.get_default_distance() if distance is None else distance

    def get_default_distance(self) -> BaseDistance:
        """The distance used when none is given."""
        # Imported here: distances are built on this package's ModuleWithRecords.
        from ..distances import LpDistance

        return LpDistance(p=2)


class ModuleWithRecordsReducerAndDistance(ModuleWithRecordsAndReducer, ModuleWithRecordsAndDistance):
    """A module with both a reducer and a distance: the base of the metric losses and regularizers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
