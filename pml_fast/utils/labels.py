"""Labels: where each occurs, their numbers, and the levels of their hierarchy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .conversions import is_list_or_tuple, numpy_to_torch, to_numpy


def get_labels_to_indices(labels: Any) -> dict[Any, np.ndarray]:
    """For each label, in order of first appearance, the ascending positions (int array) where it occurs."""
    array = np.asarray(to_numpy(labels))
    if array.ndim != 1:
        raise ValueError(f"labels must be 1D, got shape {array.shape}: pass one label for each sample")
    if not len(array):
        return {}
    order = np.argsort(array, kind="stable")
    by_label = array[order]
    starts = np.flatnonzero(np.concatenate(([True], by_label[1:] != by_label[:-1])))
    ends = np.append(starts[1:], len(array)).tolist()
    # A stable order begins each label's positions with its first one.
    appearance = np.argsort(order[starts])
    labels, firsts = by_label[starts], starts.tolist()
    return {labels[i]: order[firsts[i] : ends[i]] for i in appearance.tolist()}


def make_label_to_rank_dict(label_set: Sequence[Any]) -> dict[Any, int]:
    """Each label of a sequence without duplicates mapped to its rank, counted from 0."""
    unique = set(label_set)
    if len(unique) != len(label_set):
        raise ValueError(f"label_set must not have duplicates, got {len(label_set)} labels of which {len(unique)} differ")
    return {label: rank for rank, label in enumerate(sorted(unique))}


def get_label_map(labels: Any) -> dict[int, dict[Any, int]]:
    """For each level of the label hierarchy (a column of 2D labels; level 0 of 1D ones), label to rank."""
    array = np.asarray(labels)
    levels = array.T if array.ndim == 2 else array[None]
    return {i: make_label_to_rank_dict(list(np.unique(level))) for i, level in enumerate(levels)}


class LabelMapper:
    """Maps labels to 0, 1, ... within each level of the hierarchy if asked to, else leaves them alone."""

    def __init__(self, set_min_label_to_zero: bool = False, dataset_labels: Any = None) -> None:
        self.set_min_label_to_zero = set_min_label_to_zero
        if dataset_labels is not None:
            self.label_map: Mapping[int, Mapping[Any, int]] = get_label_map(dataset_labels)
        elif set_min_label_to_zero:
            raise ValueError("set_min_label_to_zero=True needs dataset_labels: pass all labels of the data set")

    def map(self, labels: Any, hierarchy_level: int) -> Any:
        """The mapped labels of one level, as an int array."""
        if not self.set_min_label_to_zero:
            return labels
        return np.array([self.label_map[hierarchy_level][x] for x in labels], dtype=int)


def map_labels(label_map: Callable[[Any, int], Any], labels: Any) -> Any:
    """`label_map(labels, level)` of 1D labels (level 0), or of each column of 2D ones or of a list."""
    if is_list_or_tuple(labels):
        array = np.stack([to_numpy(sub) for sub in labels], axis=1)
    else:
        array = to_numpy(labels)
    if array.ndim != 2:
        return label_map(array, 0)
    return np.stack([np.asarray(label_map(array[:, level], level)) for level in range(array.shape[1])], axis=1)


def get_hierarchy_label(batch_labels: Any, hierarchy_level: int | Sequence[int] | str) -> Any:
    """The columns of 2D labels that `hierarchy_level` names ("all" for every one); 1D labels are level 0."""
    if isinstance(hierarchy_level, str):
        if hierarchy_level == "all":
            return batch_labels
        raise ValueError(f'hierarchy_level must be an int, a list of ints or "all", got {hierarchy_level!r}')
    highest = hierarchy_level if isinstance(hierarchy_level, int) else max(hierarchy_level)
    levels = batch_labels.shape[1] if batch_labels.ndim == 2 else 1
    if highest >= levels:
        raise ValueError(
            f"hierarchy_level must be below {levels} for labels of shape {tuple(batch_labels.shape)}, got {highest}"
        )
    return batch_labels[:, hierarchy_level] if batch_labels.ndim == 2 else batch_labels


def process_label(labels: Any, hierarchy_level: int | Sequence[int] | str, label_map: Callable[[Any, int], Any]) -> Any:
    """Labels mapped by `label_map`, cut to `hierarchy_level`, as a tensor."""
    return numpy_to_torch(get_hierarchy_label(map_labels(label_map, labels), hierarchy_level))
