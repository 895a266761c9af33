"""The base of all samplers: an order that depends on a seed and an epoch alone, and that can be taken up again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .batches import Batches

T = TypeVar("T")


@dataclass
class _Run:
    """The newest iterator: its epoch, and how many items it has handed out."""

    epoch: int
    position: int


class SeededSampler(Sampler[T]):
    """Subclasses say what an epoch holds (:meth:`_items`) and how many items these are (``len``).

    The order depends on (`seed`, epoch) alone; the epoch goes up by one with each new iterator, or is set by
    :meth:`set_epoch`. The default seed is `torch.initial_seed()`, so `torch.manual_seed` governs it; the global
    generators are never advanced. :meth:`state_dict` holds the position within the epoch too.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = torch.initial_seed() if seed is None else int(seed)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        self.epoch = 0
        self._resume_at = 0
        self._run: _Run | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _items(self, generator: np.random.Generator, epoch: int) -> Iterator[T]:
        """The items of an epoch, drawn from its generator."""

    def __iter__(self) -> Iterator[T]:
        self._run = run = _Run(self.epoch, self._resume_at)
        self.epoch, self._resume_at = self.epoch + 1, 0
        return self._running(run)

    def _running(self, run: _Run) -> Iterator[T]:
        generator = np.random.default_rng([self.seed, run.epoch])
        for item in islice(self._items(generator, run.epoch), run.position, None):
            run.position += 1
            yield item

    def set_epoch(self, epoch: int) -> None:
        """Make the next iterator that of `epoch`, from its start or, after :meth:`load_state_dict`, from where it was."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        if epoch != self.epoch:
            self._resume_at = 0
        self.epoch, self._run = int(epoch), None

    def state_dict(self, position: int | None = None) -> dict[str, int]:
        """Seed, epoch, and how many items of the epoch the newest iterator has handed out.

        A DataLoader with workers draws ahead: pass as `position` how many items have really been used.
        """
        run = self._run
        if run is None or (run.position if position is None else position) >= len(self):
            return {"seed": self.seed, "epoch": self.epoch, "position": self._resume_at}
        return {"seed": self.seed, "epoch": run.epoch, "position": run.position if position is None else int(position)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make the next iterator go on where `state_dict` was taken; ValueError for a state of another kind."""
        missing = [name for name in ("seed", "epoch", "position") if not isinstance(state_dict.get(name), int)]
        if missing:
            raise ValueError(f"state_dict must be what state_dict() returned, without int {', '.join(missing)}: {state_dict}")
        position, length = state_dict["position"], len(self)
        if state_dict["epoch"] < 0 or state_dict["seed"] < 0 or not 0 <= position <= length:
            raise ValueError(
                f"state_dict must have a seed and an epoch from 0 and a position from 0 to {length}, got {dict(state_dict)}: "
                "make the sampler with the settings of the one that was saved"
            )
        self.seed, self.epoch, self._resume_at = state_dict["seed"], state_dict["epoch"], position
        self._run = None

    def agree(self) -> None:
        """Take the seed of rank 0, so that every rank of the process group draws the same. A collective call."""
        told = [self.seed]
        torch.distributed.broadcast_object_list(told, src=0)
        self.seed = told[0]


class IndexSampler(SeededSampler[int]):
    """A sampler of single indices."""

    def batched(self, batch_size: int | None = None, drop_last: bool = False) -> Batches:
        """The same indices in lists of `batch_size`, for the `batch_sampler` of a DataLoader.

        The default is the `batch_size` that the sampler itself was made with, where it has one.
        """
        from .batches import Batches

        return Batches(self, batch_size, drop_last)
