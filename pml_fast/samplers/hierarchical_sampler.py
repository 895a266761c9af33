"""Batches of a few super classes, and of several classes of each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

from ..utils import common_functions as c_f
from .deck import Deck
from .seeded_sampler import SeededSampler


class HierarchicalSampler(SeededSampler[list[int]]):
    """Yields batches: `batches_per_super_tuple` for every combination of `super_classes_per_batch` super classes.

    A batch holds `batch_size // super_classes_per_batch` samples of each of its super classes, `samples_per_class` of
    a class; it is shorter where a super class has too few classes, for a class comes once in a batch. Of a super class
    every class comes before any comes again, and so does every sample of a class; a class smaller than
    `samples_per_class` repeats samples. With `samples_per_class="all"` classes are whole, and as many as fit.

    `labels` is 2D, `[samples, levels]`: `inner_label` is the column of classes, `outer_label` that of super classes.
    It is a batch sampler: pass it as the `batch_sampler` of a DataLoader. `seed`, epochs and state as in `SeededSampler`.
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        samples_per_class: int | str,
        batches_per_super_tuple: int = 4,
        super_classes_per_batch: int = 2,
        inner_label: int = 0,
        outer_label: int = 1,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        self.batch_size = batch_size
        self.samples_per_class = samples_per_class
        self.batches_per_super_tuple = batches_per_super_tuple
        self.super_classes_per_batch = super_classes_per_batch
        self._check()
        self.sub_batch_len = batch_size // super_classes_per_batch
        self.super_image_lists = _by_super_class(labels, inner_label, outer_label)
        self.super_pairs = list(combinations(self.super_image_lists, super_classes_per_batch))
        if not self.super_pairs:
            raise ValueError(
                f"labels must have at least super_classes_per_batch = {super_classes_per_batch} super classes, "
                f"got {len(self.super_image_lists)}"
            )
        if samples_per_class == "all":
            self._check_sizes()
        self._begun: int | None = None

    def _check(self) -> None:
        for name in ("batch_size", "batches_per_super_tuple", "super_classes_per_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if self.batch_size % self.super_classes_per_batch != 0:
            raise ValueError(
                f"batch_size must be a multiple of super_classes_per_batch, got {self.batch_size} and "
                f"{self.super_classes_per_batch}"
            )
        size, each = self.batch_size // self.super_classes_per_batch, self.samples_per_class
        if each == "all":
            return
        if isinstance(each, bool) or not isinstance(each, int) or each < 1:
            raise ValueError(f'samples_per_class must be a positive int or "all", got {each!r}')
        if size % each != 0:
            raise ValueError(
                f"samples_per_class must divide batch_size // super_classes_per_batch = {size} without remainder, got {each}"
            )

    def _check_sizes(self) -> None:
        """Classes that no batch can hold are said, and a super class of nothing else is refused."""
        left_out = 0
        for name, classes in self.super_image_lists.items():
            too_large = sum(len(members) > self.sub_batch_len for members in classes.values())
            if too_large == len(classes):
                raise ValueError(
                    f"every class of super class {name} has more than batch_size // super_classes_per_batch = "
                    f"{self.sub_batch_len} samples: pass a larger batch_size, or a number as samples_per_class"
                )
            left_out += too_large
        if left_out:
            warnings.warn(
                f"{left_out} classes have more than {self.sub_batch_len} samples and are left out: "
                "pass a larger batch_size, or a number as samples_per_class",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self.super_pairs) * self.batches_per_super_tuple

    def __iter__(self) -> Iterator[list[int]]:
        self._begun = self.epoch
        return super().__iter__()

    @property
    def batches(self) -> list[list[int]]:
        """All batches of the epoch that was begun last, or of the first one."""
        epoch = self.epoch if self._begun is None else self._begun
        return list(self._items(np.random.default_rng([self.seed, epoch]), epoch))

    def reshuffle(self) -> None:
        """Begin a new epoch."""
        iter(self)

    def _items(self, generator: np.random.Generator, epoch: int) -> Iterator[list[int]]:
        supers = {
            name: _SuperClass(classes, self.samples_per_class, generator) for name, classes in self.super_image_lists.items()
        }
        for k in generator.permutation(len(self)):
            names = self.super_pairs[k // self.batches_per_super_tuple]
            batch = [i for name in names for i in supers[name].draw(self.sub_batch_len)]
            yield [batch[i] for i in generator.permutation(len(batch))]


class _SuperClass:
    """Deals the samples of one super class, class by class."""

    def __init__(self, classes: dict[Any, np.ndarray], each: int | str, generator: np.random.Generator) -> None:
        self._decks = [Deck(members, generator) for members in classes.values()]
        self._sizes = [len(members) if each == "all" else int(each) for members in classes.values()]
        self._generator = generator
        self._waiting = generator.permutation(len(self._decks)).tolist()

    def draw(self, size: int) -> list[int]:
        """Samples of different classes, as many as fit into `size`: of those that wait first, then of the others."""
        taken, left, passed, skipped = [], size, 0, []
        for k in self._waiting:
            if left == 0:
                break
            passed += 1
            if self._sizes[k] <= left:
                taken.append(k)
                left -= self._sizes[k]
            else:
                skipped.append(k)
        again = self._others(left) if left else []
        self._waiting = skipped + self._waiting[passed:]
        # Classes that no draw can hold wait for ever.
        if all(self._sizes[k] > size for k in self._waiting):
            drawn = set(again)
            self._waiting = self._shuffled(k for k in range(len(self._decks)) if k not in drawn)
        taken += again
        return [i for k in taken for i in self._decks[k].draw(self._sizes[k])]

    def _others(self, left: int) -> list[int]:
        """Classes that do not wait, as many as fit."""
        waiting, taken = set(self._waiting), []
        for k in self._shuffled(k for k in range(len(self._decks)) if k not in waiting):
            if self._sizes[k] <= left:
                taken.append(k)
                left -= self._sizes[k]
            if left == 0:
                break
        return taken

    def _shuffled(self, members: Iterator[int]) -> list[int]:
        shuffled: list[int] = self._generator.permutation(np.fromiter(members, dtype=np.int64)).tolist()
        return shuffled


def _by_super_class(labels: Any, inner: int, outer: int) -> dict[Any, dict[Any, np.ndarray]]:
    """Of each super class its classes, of each class the positions of its samples, ascending."""
    array = np.asarray(c_f.to_numpy(labels))
    if array.ndim != 2 or len(array) == 0:
        raise ValueError(f"labels must be 2D, one row a sample and one column a level, got shape {array.shape}")
    for name, column in (("inner_label", inner), ("outer_label", outer)):
        if isinstance(column, bool) or not isinstance(column, int) or not -array.shape[1] <= column < array.shape[1]:
            raise ValueError(f"{name} must be a column of labels, below {array.shape[1]}, got {column!r}")
    found = {}
    for name, members in c_f.get_labels_to_indices(array[:, outer]).items():
        classes = c_f.get_labels_to_indices(array[members, inner])
        found[name] = {label: members[positions] for label, positions in classes.items()}
    return found
