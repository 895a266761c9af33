"""MPerClassSampler: the peer's lengths and checks, and every class covered before any repeats."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from pytorch_metric_learning import samplers as peer
from torch.utils.data import DataLoader, TensorDataset

from pml_fast.samplers import MPerClassSampler

# 10 classes of 5 to 14 samples, shuffled.
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(100, 110), np.arange(5, 15)))


def groups(indices: list[int], m: int) -> list[list[int]]:
    return [indices[i : i + m] for i in range(0, len(indices), m)]


@pytest.mark.parametrize("convert", [list, np.asarray, torch.as_tensor])
def test_every_kind_of_labels_is_taken(convert: type) -> None:
    assert list(MPerClassSampler(convert(LABELS), 4, 8, 80, seed=3)) == list(MPerClassSampler(LABELS, 4, 8, 80, seed=3))


def test_labels_may_be_strings() -> None:
    sampler = MPerClassSampler(["cat", "dog", "cat", "dog"], 2, length_before_new_iter=4)
    assert sampler.labels == ["cat", "dog"]
    assert {frozenset(g) for g in groups(list(sampler), 2)} == {frozenset({0, 2}), frozenset({1, 3})}


@pytest.mark.parametrize("length", [40, 100, 777, 100000])
@pytest.mark.parametrize(("m", "batch_size"), [(4, None), (4, 40), (4, 12), (1, 10), (5, 5), (3, 30)])
def test_lengths_equal_the_peer(m: int, batch_size: int | None, length: int) -> None:
    ours, theirs = (cls(LABELS, m, batch_size, length) for cls in (MPerClassSampler, peer.MPerClassSampler))
    assert len(ours) == len(theirs) == len(list(ours)) == len(list(theirs))
    for name in ("m_per_class", "batch_size", "length_of_single_pass", "list_size", "labels"):
        assert np.array_equal(getattr(ours, name), peer.MPerClassSampler(LABELS, m, batch_size, length).__dict__[name])
    assert ours.calculate_num_iters() == theirs.calculate_num_iters()


def test_an_iterator_is_never_longer_than_its_length() -> None:
    sampler = MPerClassSampler(LABELS, 4, length_before_new_iter=10)
    assert len(sampler) == len(list(sampler)) == 10


@pytest.mark.parametrize(("m", "batch_size"), [(4, 12), (4, 40), (3, 9), (5, 45), (1, 7)])
def test_a_batch_holds_m_samples_of_different_classes(m: int, batch_size: int) -> None:
    indices = list(MPerClassSampler(LABELS, m, batch_size, 2000))
    for batch in groups(indices, batch_size):
        assert len(set(batch)) == batch_size
        counts = Counter(LABELS[batch].tolist())
        assert len(counts) == batch_size // m
        assert set(counts.values()) == {m}


@pytest.mark.parametrize("batch_size", [None, 12, 28])
def test_every_class_comes_before_any_comes_again(batch_size: int | None) -> None:
    indices = list(MPerClassSampler(LABELS, 4, batch_size, 840))
    classes = [LABELS[g[0]] for g in groups(indices, 4)]
    for one_pass in groups(classes, 10):
        assert len(set(one_pass)) == len(one_pass)


def test_every_sample_comes_before_any_of_its_class_comes_again() -> None:
    indices = list(MPerClassSampler(LABELS, 3, 9, 5000))
    for label in range(100, 110):
        members = set(np.flatnonzero(label == LABELS).tolist())
        for deck in groups([i for i in indices if LABELS[i] == label], len(members))[:-1]:
            assert set(deck) == members


def test_a_class_smaller_than_m_repeats_evenly() -> None:
    for group in groups(list(MPerClassSampler([0, 0, 1, 1, 1, 1, 1], 5, 10, 100)), 5):
        counts = Counter(group)
        assert len(counts) == 5 or sorted(counts.values()) == [2, 3]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, second = (MPerClassSampler(LABELS, 4, 8, 800, seed=7) for _ in range(2))
    epochs = [list(first) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    second.set_epoch(2)
    assert list(second) == epochs[2]
    second.set_epoch(0)
    assert list(second) == epochs[0]
    assert list(MPerClassSampler(LABELS, 4, 8, 800, seed=8)) != epochs[0]


def test_two_iterators_at_once_do_not_disturb_each_other() -> None:
    alone = MPerClassSampler(LABELS, 4, 8, 800, seed=7)
    expected = [list(alone), list(alone)]
    sampler = MPerClassSampler(LABELS, 4, 8, 800, seed=7)
    together = list(zip(iter(sampler), iter(sampler)))
    assert [list(x) for x in zip(*together)] == expected


def test_global_generators_are_left_alone() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    list(MPerClassSampler(LABELS, 4, 8, 800))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_the_default_seed_follows_torch() -> None:
    state = torch.get_rng_state()
    try:
        orders = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            np.random.seed(len(orders))
            orders.append(list(MPerClassSampler(LABELS, 4, 8, 800)))
    finally:
        torch.set_rng_state(state)
    assert orders[0] == orders[2] != orders[1]


def test_it_feeds_a_data_loader() -> None:
    data = TensorDataset(torch.arange(len(LABELS)), torch.as_tensor(LABELS))
    loader = DataLoader(data, batch_size=12, sampler=MPerClassSampler(LABELS, 4, 12, 120))
    batches = list(islice(loader, 20))
    assert len(batches) == 10
    assert all(set(Counter(y.tolist()).values()) == {4} for _, y in batches)


@pytest.mark.parametrize(
    ("arguments", "match", "peer_refuses"),
    [
        ({"m": 4, "batch_size": 44}, "unique labels", True),
        ({"m": 4, "batch_size": 10}, "without remainder", True),
        ({"m": 4, "batch_size": 12, "length_before_new_iter": 8}, "length_before_new_iter", True),
        ({"m": 0}, "m must be", False),
        ({"m": 4, "length_before_new_iter": 0}, "length_before_new_iter", False),
        ({"m": 4, "seed": -1}, "seed", False),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, int], match: str, peer_refuses: bool) -> None:
    with pytest.raises(ValueError, match=match):
        MPerClassSampler(LABELS, **arguments)
    if peer_refuses:
        with pytest.raises(AssertionError):
            peer.MPerClassSampler(LABELS, **arguments)


def test_bad_labels_and_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        MPerClassSampler([], 4)
    with pytest.raises(ValueError, match="1D"):
        MPerClassSampler(torch.zeros(3, 2), 4)
    with pytest.raises(ValueError, match="epoch"):
        MPerClassSampler(LABELS, 4).set_epoch(-1)
