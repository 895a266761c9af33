"""The batch-yielding form of a sampler of indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from .seeded_sampler import IndexSampler


class Batches(Sampler[list[int]]):
    """The indices of `sampler` in lists of `batch_size`; epochs and state are the sampler's.

    `drop_last` leaves out a last list that would be shorter. Made by the samplers' `batched()`.
    """

    def __init__(self, sampler: IndexSampler, batch_size: int | None = None, drop_last: bool = False) -> None:
        size = getattr(sampler, "batch_size", None) if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size must be a positive int, got {size!r}: {type(sampler).__name__} has none of its own")
        self.sampler = sampler
        self.batch_size = size
        self.drop_last = drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """As the sampler's."""
        self.sampler.set_epoch(epoch)

    def state_dict(self, position: int | None = None) -> dict[str, int]:
        """As the sampler's; `position` counts batches."""
        return self.sampler.state_dict(None if position is None else position * self.batch_size)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the sampler's."""
        self.sampler.load_state_dict(state_dict)

    def agree(self) -> None:
        """As the sampler's."""
        self.sampler.agree()
