"""Each rank's share of the batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import Sampler

from .seeded_sampler import IndexSampler


class DistributedBatchSampler(Sampler[list[int]]):
    """The part of every batch that belongs to one rank: the ranks' parts, in order of rank, are the batch.

    With `utils.distributed.DistributedLossWrapper` a step is then that of one process on the whole batch. Parts are
    consecutive, and differ by at most one index: with MPerClassSampler groups stay whole where `batch_size` is a
    multiple of `m * num_replicas`, triplets of FixedSetOfTriplets where it is one of `3 * num_replicas`.

    `batches` is a sampler that yields lists (`HierarchicalSampler`, what `batched()` of the others returns, or
    torch's BatchSampler), or one of this package with a `batch_size` of its own. `num_replicas` and `rank` default to
    those of the process group; then all ranks also take the seed of rank 0. Where they are given, give the
    sampler the same `seed` on all ranks.
    """

    def __init__(
        self, batches: Sampler[list[int]] | IndexSampler, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        of_group = num_replicas is None and rank is None
        if of_group:
            if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
                raise RuntimeError(
                    "there is no process group to take num_replicas and rank from: "
                    "call torch.distributed.init_process_group first, or pass both"
                )
            num_replicas, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        if num_replicas is None or rank is None:
            raise ValueError(f"num_replicas and rank belong together, got {num_replicas} and {rank}: pass both or neither")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be from 0 to num_replicas - 1 = {num_replicas - 1}, got {rank}")
        self.batches: Any = batches.batched() if isinstance(batches, IndexSampler) else batches
        self.num_replicas = num_replicas
        self.rank = rank
        if of_group and hasattr(self.batches, "agree"):
            self.batches.agree()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            size = len(batch)
            if size < self.num_replicas:
                raise ValueError(
                    f"a batch of {size} indices cannot be shared by {self.num_replicas} ranks: "
                    "use larger batches, or batched(drop_last=True) where it is the last one"
                )
            yield batch[self.rank * size // self.num_replicas : (self.rank + 1) * size // self.num_replicas]

    def set_epoch(self, epoch: int) -> None:
        """As the sampler's."""
        self.batches.set_epoch(epoch)

    def state_dict(self, position: int | None = None) -> dict[str, int]:
        """As the sampler's: the same on every rank. `position` counts batches."""
        state: dict[str, int] = self.batches.state_dict(position)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As the sampler's."""
        self.batches.load_state_dict(state_dict)
