"""The data loaders of trainers and testers, and small steps over batches and layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

__all__ = [
    "EmbeddingDataset",
    "get_eval_dataloader",
    "get_train_dataloader",
    "set_layers_to_eval",
    "sqlite_obj_to_dict",
    "try_next_on_generator",
    "unslice_by_n",
]

T = TypeVar("T")


class EmbeddingDataset(Dataset[tuple[Any, Any]]):
    """Rows of embeddings with their labels."""

    def __init__(self, embeddings: Any, labels: Any) -> None:
        self.embeddings = embeddings
        self.labels = labels

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, idx: Any) -> tuple[Any, Any]:
        return self.embeddings[idx], self.labels[idx]


def yields_batches(sampler: Any) -> bool:
    """Whether a sampler yields lists of indices: torch's BatchSampler and this package's batch-yielding forms."""
    from pml_fast.samplers import Batches, DistributedBatchSampler, HierarchicalSampler

    return isinstance(sampler, (BatchSampler, Batches, DistributedBatchSampler, HierarchicalSampler))


def get_train_dataloader(dataset: Any, batch_size: int, sampler: Any, num_workers: int, collate_fn: Any) -> DataLoader[Any]:
    """Whole batches, in the sampler's order or shuffled; a sampler that yields batches decides their size."""
    if yields_batches(sampler):
        return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_fn)
    return DataLoader(
        dataset,
        batch_size=int(batch_size),
        sampler=sampler,
        shuffle=sampler is None,
        drop_last=True,
        num_workers=num_workers,
        collate_fn=collate_fn,
    )


def get_eval_dataloader(dataset: Any, batch_size: int, num_workers: int, collate_fn: Any) -> DataLoader[Any]:
    """Every item once, in order."""
    return DataLoader(dataset, batch_size=int(batch_size), num_workers=num_workers, collate_fn=collate_fn)


def try_next_on_generator(gen: Iterator[T], iterable: Iterable[T]) -> tuple[Iterator[T], T]:
    """The iterator and its next item; where it is at its end a new one of `iterable`. ValueError if that is empty."""
    for item in gen:
        return gen, item
    gen = iter(iterable)
    for item in gen:
        return gen, item
    raise ValueError("there is no batch to train on: the data set, or what the sampler chooses, is smaller than batch_size")


def unslice_by_n(input_tensors: Sequence[Tensor]) -> Tensor:
    """Tensors `[N, D]` interleaved to `[N * n, D]`: row k of each, then row k + 1 of each."""
    return torch.stack(list(input_tensors), dim=1).flatten(0, 1)


def set_layers_to_eval(layer_name: str) -> Callable[[torch.nn.Module], None]:
    """A function for `Module.apply` that puts layers with `layer_name` in their class's name into evaluation mode."""

    def set_to_eval(module: torch.nn.Module) -> None:
        if layer_name in type(module).__name__:
            module.eval()

    return set_to_eval


def sqlite_obj_to_dict(sqlite_obj: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows of SQLite as one list a column."""
    columns = sqlite_obj[0].keys() if sqlite_obj else []
    return {column: [row[column] for row in sqlite_obj] for column in columns}
