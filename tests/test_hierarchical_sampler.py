"""HierarchicalSampler: the peer's lengths and composition; every class and every sample covered before any repeats."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import samplers as peer
from torch.utils.data import DataLoader, TensorDataset

from pml_fast.samplers import HierarchicalSampler


def hierarchy(super_classes: int = 4, classes: int = 6, samples: int = 5, seed: int = 0) -> np.ndarray:
    """[samples, 2]: the class, and its super class; rows shuffled."""
    inner = np.repeat(np.arange(super_classes * classes), samples)
    return np.random.default_rng(seed).permutation(np.stack([inner, inner // classes], axis=1))


LABELS = hierarchy()


@pytest.mark.parametrize("convert", [np.ndarray.tolist, np.asarray, torch.as_tensor])
def test_every_kind_of_labels_is_taken(convert: Any) -> None:
    assert list(HierarchicalSampler(convert(LABELS), 16, 4, seed=3)) == list(HierarchicalSampler(LABELS, 16, 4, seed=3))


@pytest.mark.parametrize(
    ("batch_size", "each", "repeats", "supers"), [(16, 4, 4, 2), (12, 2, 1, 3), (8, 1, 3, 4), (6, 3, 2, 1)]
)
def test_lengths_and_composition_equal_the_peer(batch_size: int, each: int, repeats: int, supers: int) -> None:
    arguments = (LABELS, batch_size, each, repeats, supers)
    ours, theirs = HierarchicalSampler(*arguments, seed=1), peer.HierarchicalSampler(*arguments)
    assert len(ours) == len(theirs) == len(list(ours))

    def composition(batch: list[int]) -> tuple[Any, ...]:
        classes = Counter(LABELS[batch, 0].tolist())
        return len(batch), len(set(batch)), tuple(sorted(set(LABELS[batch, 1].tolist()))), tuple(sorted(classes.values()))

    assert Counter(map(composition, ours)) == Counter(map(composition, theirs))


def test_every_combination_of_super_classes_has_its_batches() -> None:
    found = Counter(tuple(sorted(set(LABELS[batch, 1].tolist()))) for batch in HierarchicalSampler(LABELS, 16, 4, 3))
    assert found == dict.fromkeys(combinations(range(4), 2), 3)


def test_every_class_of_a_super_class_comes_before_any_comes_again() -> None:
    sampler = HierarchicalSampler(LABELS, 8, 2, batches_per_super_tuple=7, seed=5)
    drawn: dict[int, list[int]] = {k: [] for k in range(4)}
    for batch in sampler:
        for name in set(LABELS[batch, 1].tolist()):
            drawn[name].append({int(c) for c, s in LABELS[batch] if s == name})  # type: ignore[arg-type]
    for name, classes in drawn.items():
        for first in range(0, len(classes) - 2, 3):
            one_pass: list[int] = [c for part in classes[first : first + 3] for c in part]  # type: ignore[attr-defined]
            assert sorted(one_pass) == [name * 6 + k for k in range(6)]


def test_samples_of_a_class_are_covered_evenly() -> None:
    counts = Counter(i for batch in HierarchicalSampler(LABELS, 12, 3, batches_per_super_tuple=10) for i in batch)
    for label in range(24):
        own = [counts[i] for i in np.flatnonzero(LABELS[:, 0] == label)]
        assert max(own) - min(own) <= 1


def test_whole_classes_fill_a_batch_as_far_as_they_fit() -> None:
    sizes = [2, 3, 4, 5, 2, 3, 4, 5, 2, 2]
    inner = np.repeat(np.arange(10), sizes)
    labels = np.stack([inner, inner // 5], axis=1)
    sampler = HierarchicalSampler(labels, 16, "all", batches_per_super_tuple=200, seed=4)
    seen: Counter[int] = Counter()
    for batch in sampler:
        assert len(batch) == len(set(batch))
        for name in (0, 1):
            classes = Counter(labels[[i for i in batch if labels[i, 1] == name], 0].tolist())
            assert all(count == sizes[c] for c, count in classes.items())
            room = 8 - sum(classes.values())
            assert room >= 0 and all(sizes[c] > room for c in range(name * 5, name * 5 + 5) if c not in classes)
            seen.update(classes)
    assert set(seen) == set(range(10)) and max(seen.values()) <= 4 * min(seen.values())


def test_classes_too_large_for_a_batch_are_said() -> None:
    inner = np.repeat([0, 1, 2, 3], [2, 9, 2, 2])
    labels = np.stack([inner, inner // 2], axis=1)
    with pytest.warns(UserWarning, match="1 classes have more than 4 samples"):
        sampler = HierarchicalSampler(labels, 8, "all")
    assert all(1 not in labels[batch, 0] for batch in sampler)
    with pytest.raises(ValueError, match="every class of super class 0"):
        HierarchicalSampler(np.stack([np.repeat([0, 1], [9, 2]), np.repeat([0, 1], [9, 2])], axis=1), 8, "all")


def test_a_super_class_with_few_classes_gives_a_shorter_batch_as_the_peer() -> None:
    inner = np.repeat(np.arange(5), 4)
    labels = np.stack([inner, (inner > 0).astype(int)], axis=1)
    for sampler in (HierarchicalSampler(labels, 16, 4), peer.HierarchicalSampler(labels, 16, 4)):
        assert {len(batch) for batch in sampler} == {12}


def test_levels_are_chosen_by_column() -> None:
    turned = LABELS[:, ::-1].copy()
    assert list(HierarchicalSampler(turned, 16, 4, inner_label=1, outer_label=0, seed=2)) == list(
        HierarchicalSampler(LABELS, 16, 4, seed=2)
    )


def test_labels_may_be_strings() -> None:
    labels = [["ant", "insect"], ["bee", "insect"], ["cat", "mammal"], ["dog", "mammal"]]
    assert all(sorted(batch) == [0, 1, 2, 3] for batch in HierarchicalSampler(labels, 4, 1))


def test_batches_are_those_of_the_epoch_that_was_begun() -> None:
    sampler = HierarchicalSampler(LABELS, 16, 4, seed=2)
    first = sampler.batches
    assert list(sampler) == first == sampler.batches
    sampler.reshuffle()
    assert sampler.batches != first
    assert sampler.epoch == 2


def test_it_feeds_a_data_loader() -> None:
    data = TensorDataset(torch.arange(len(LABELS)), torch.as_tensor(LABELS))
    loader = DataLoader(data, batch_sampler=HierarchicalSampler(LABELS, 16, 4))
    batches = list(loader)
    assert len(batches) == len(loader) == 24
    assert all(len(set(y[:, 1].tolist())) == 2 for _, y in batches)


@pytest.mark.parametrize(
    ("arguments", "match", "peer_refuses"),
    [
        ({"batch_size": 15, "samples_per_class": 3}, "super_classes_per_batch", True),
        ({"batch_size": 16, "samples_per_class": 3}, "without remainder", True),
        ({"batch_size": 16, "samples_per_class": 0}, "samples_per_class", True),
        ({"batch_size": 16, "samples_per_class": "some"}, "samples_per_class", False),
        ({"batch_size": 0, "samples_per_class": 1}, "batch_size", False),
        ({"batch_size": 16, "samples_per_class": 4, "batches_per_super_tuple": 0}, "batches_per_super_tuple", False),
        ({"batch_size": 15, "samples_per_class": 3, "super_classes_per_batch": 5}, "super classes", False),
        ({"batch_size": 16, "samples_per_class": 4, "outer_label": 2}, "outer_label", False),
        ({"batch_size": 16, "samples_per_class": 4, "seed": -1}, "seed", False),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], match: str, peer_refuses: bool) -> None:
    with pytest.raises(ValueError, match=match):
        HierarchicalSampler(LABELS, **arguments)
    if peer_refuses:
        with pytest.raises(AssertionError):
            peer.HierarchicalSampler(LABELS, **arguments)


@pytest.mark.parametrize("labels", [[0, 1, 2], np.zeros((0, 2)), torch.zeros(2, 2, 2)])
def test_labels_of_another_shape_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="2D"):
        HierarchicalSampler(labels, 4, 1)
