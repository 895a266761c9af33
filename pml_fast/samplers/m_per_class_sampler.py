"""Batches of m samples from each of several classes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ..utils import common_functions as c_f
from .deck import Deck
from .seeded_sampler import IndexSampler


class MPerClassSampler(IndexSampler):
    """Yields `m` samples of a class, then `m` of another, and so on.

    An iterator holds `length_before_new_iter` indices, rounded down to whole batches, or without `batch_size`
    to whole passes over the classes.

    Every class is drawn once before any is drawn again, and so is every sample within its class; a group of
    `m` repeats a sample only if the class has fewer than `m`. With `batch_size`, each run of that many
    indices holds `batch_size // m` different classes.

    `labels` is a 1D tensor, array or list with one label a sample; `seed`, epochs and state as in `SeededSampler`.
    """

    def __init__(
        self,
        labels: Any,
        m: int,
        batch_size: int | None = None,
        length_before_new_iter: int = 100000,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        self.m_per_class = int(m)
        self.batch_size = None if batch_size is None else int(batch_size)
        self.labels_to_indices = c_f.get_labels_to_indices(labels)
        self.labels = list(self.labels_to_indices)
        self.length_of_single_pass = self.m_per_class * len(self.labels)
        self.list_size = int(length_before_new_iter)
        self._check()
        if self.batch_size is not None:
            self.list_size -= self.list_size % self.batch_size
        elif self.length_of_single_pass < self.list_size:
            self.list_size -= self.list_size % self.length_of_single_pass

    def _check(self) -> None:
        if self.m_per_class < 1:
            raise ValueError(f"m must be at least 1, got {self.m_per_class}")
        if not self.labels:
            raise ValueError("labels must not be empty: pass one label for each sample of the data set")
        if self.list_size < 1:
            raise ValueError(f"length_before_new_iter must be at least 1, got {self.list_size}")
        if self.batch_size is None:
            return
        if self.batch_size < 1 or self.batch_size % self.m_per_class != 0:
            raise ValueError(
                f"m must divide batch_size without remainder, got m={self.m_per_class} and "
                f"batch_size={self.batch_size}: pass a multiple of m as batch_size"
            )
        if self.list_size < self.batch_size:
            raise ValueError(f"length_before_new_iter must be at least batch_size, got {self.list_size} and {self.batch_size}")
        if self.length_of_single_pass < self.batch_size:
            raise ValueError(
                f"m * (number of unique labels) must be at least batch_size, got {self.m_per_class} * "
                f"{len(self.labels)} < {self.batch_size}: pass a smaller batch_size or a larger m"
            )

    def __len__(self) -> int:
        return self.list_size

    def calculate_num_iters(self) -> int:
        """How many batches an iterator holds; without batch_size, how many passes over the classes."""
        divisor = self.length_of_single_pass if self.batch_size is None else self.batch_size
        return max(1, self.list_size // divisor)

    def _items(self, generator: np.random.Generator, epoch: int) -> Iterator[int]:
        return islice(self._indices(generator), self.list_size)

    def _indices(self, generator: np.random.Generator) -> Iterator[int]:
        """Indices without end."""
        samples = [Deck(indices, generator) for indices in self.labels_to_indices.values()]
        classes = Deck(np.arange(len(self.labels)), generator)
        in_a_batch = len(self.labels) if self.batch_size is None else self.batch_size // self.m_per_class
        while True:
            for i in classes.draw(in_a_batch):
                yield from samples[i].draw(self.m_per_class)
