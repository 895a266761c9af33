"""A data loader whose iterators can be taken up where they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from pml_fast.samplers import Batches, DistributedBatchSampler
from pml_fast.samplers.seeded_sampler import SeededSampler
from pml_fast.utils.loaders import yields_batches
from pml_fast.utils.progress import Progress
from pml_fast.utils.random_state import get_random_state, set_random_state

# More than any epoch holds: the state of a sampler whose epoch has ended.
_BEYOND = 1 << 40


def sampler_state(sampler: Any, ended: bool) -> Any:
    """What the next iterator of a sampler depends on, if its newest one has `ended`; None for one without a state."""
    inner = sampler.batches if isinstance(sampler, DistributedBatchSampler) else sampler
    if not (hasattr(inner, "state_dict") and hasattr(inner, "load_state_dict")):
        return None
    if isinstance(inner, (SeededSampler, Batches)):
        return inner.state_dict(position=_BEYOND if ended else None)
    return inner.state_dict()


def _begun(sampler: Any, state: Any) -> Any:
    """`state`, from which an iterator began, with what a sampler has found out since for that epoch."""
    inner = sampler.batches if isinstance(sampler, DistributedBatchSampler) else sampler
    if not isinstance(inner, (SeededSampler, Batches)):
        return state
    now = inner.state_dict(position=0)
    return now if now["epoch"] == state["epoch"] else state


class ResumableLoader:
    """`loader`, with iterators that count; every other attribute is the loader's."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.passes = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    @property
    def order(self) -> Any:
        """The sampler that the order of the data comes from."""
        by_batch = self.loader.batch_sampler
        return by_batch if yields_batches(by_batch) and self.loader.batch_size is None else self.loader.sampler

    def __iter__(self) -> CountingIterator:
        if isinstance(self.order, DistributedSampler):
            self.order.set_epoch(self.passes)
        self.passes += 1
        return CountingIterator(self)

    def resumed(self, state: Mapping[str, Any]) -> Iterator[Any]:
        """An iterator that goes on where one was when its `state_dict` was taken; sets the random states as a side effect.

        Batches that had been used are drawn again, for their order and their augmentation to come out the same.
        """
        self.passes = state["passes"] - 1
        if state["exhausted"]:
            self.passes += 1
            if state["sampler"] is not None:
                self.order.load_state_dict(state["sampler"])
            return iter(())
        if state["sampler"] is not None:
            self.order.load_state_dict(state["sampler"])
        set_random_state(state["random_state"])
        iterator = iter(self)
        if state["position"]:
            set_random_state(state["first_random_state"])
            for _ in Progress(range(state["position"]), "to where the run was"):
                next(iterator)
        return iterator


class CountingIterator(Iterator[Any]):
    """Counts its batches, and keeps the random states that it began with."""

    def __init__(self, loader: ResumableLoader) -> None:
        self._loader = loader
        self._sampler_state = sampler_state(loader.order, ended=True)
        self._random_state = get_random_state()
        self._first_random_state: dict[str, Any] | None = None
        self.position = 0
        self._batches = iter(loader.loader)

    def __next__(self) -> Any:
        if self._first_random_state is None:
            self._first_random_state = get_random_state()
        batch = next(self._batches)
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What `ResumableLoader.resumed` goes on from."""
        order = self._loader.order
        try:
            exhausted = self.position >= len(self._loader)
        except TypeError:  # an iterable data set has no length
            exhausted = False
        return {
            "position": self.position,
            "passes": self._loader.passes,
            "exhausted": exhausted,
            "sampler": sampler_state(order, ended=True) if exhausted else _begun(order, self._sampler_state),
            "random_state": self._random_state,
            "first_random_state": self._first_random_state,
        }
