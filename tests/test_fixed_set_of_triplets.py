"""FixedSetOfTriplets: true triplets, drawn once, that cover classes and samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import samplers as peer

from pml_fast import losses, miners
from pml_fast.samplers import FixedSetOfTriplets

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), np.arange(1, 11)))


def triples(indices: list[int]) -> list[tuple[int, ...]]:
    return [tuple(indices[i : i + 3]) for i in range(0, len(indices), 3)]


def test_every_triplet_is_one() -> None:
    for a, p, n in triples(list(FixedSetOfTriplets(LABELS, 500))):
        assert a != p and LABELS[a] == LABELS[p] != LABELS[n]


def test_the_length_and_the_array_are_the_peers() -> None:
    ours, theirs = FixedSetOfTriplets(LABELS, 50), peer.FixedSetOfTriplets(LABELS[LABELS > 0], 50)
    assert len(ours) == len(theirs) == len(list(ours)) == 150
    assert ours.fixed_set_of_triplets.shape == theirs.fixed_set_of_triplets.shape == (50, 3)
    assert ours.fixed_set_of_triplets.dtype == np.int64
    assert ours.num_triplets == 50


def test_an_epoch_is_the_set_in_another_order() -> None:
    sampler = FixedSetOfTriplets(LABELS, 50)
    kept = sampler.fixed_set_of_triplets.copy()
    epochs = [triples(list(sampler)) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(Counter(epoch) == Counter(map(tuple, kept.tolist())) for epoch in epochs)
    assert np.array_equal(sampler.fixed_set_of_triplets, kept)


def test_classes_and_samples_are_covered_evenly() -> None:
    a, p, n = FixedSetOfTriplets(LABELS, 900, seed=1).fixed_set_of_triplets.T
    assert set(Counter(LABELS[a].tolist()).values()) == {100}  # 9 classes have a positive
    negatives = Counter(LABELS[n].tolist())
    assert max(negatives.values()) - min(negatives.values()) <= 6 and len(negatives) == 10
    for label in range(1, 10):
        members = np.flatnonzero(label == LABELS)
        named = Counter(np.concatenate([a, p]).tolist())
        counts = [named[i] for i in members]
        assert max(counts) - min(counts) <= 1
    for label in range(10):
        counts = [Counter(n.tolist())[i] for i in np.flatnonzero(label == LABELS)]
        assert max(counts) - min(counts) <= 1


def test_two_classes_suffice() -> None:
    labels = [0, 0, 1]
    assert {tuple(sorted(t[:2])) + t[2:] for t in triples(list(FixedSetOfTriplets(labels, 20)))} == {(0, 1, 2)}


def test_the_set_depends_on_the_seed_alone() -> None:
    first, second, other = (FixedSetOfTriplets(LABELS, 50, seed=s) for s in (4, 4, 5))
    assert np.array_equal(first.fixed_set_of_triplets, second.fixed_set_of_triplets)
    assert not np.array_equal(first.fixed_set_of_triplets, other.fixed_set_of_triplets)
    other.load_state_dict(first.state_dict())
    assert np.array_equal(first.fixed_set_of_triplets, other.fixed_set_of_triplets)
    assert list(first) == list(other)


def test_a_miner_reads_its_batches_as_triplets() -> None:
    sampler = FixedSetOfTriplets(LABELS, 20)
    x = torch.randn(len(LABELS), 8)
    miner, loss = miners.EmbeddingsAlreadyPackagedAsTriplets(), losses.TripletMarginLoss(margin=10.0)
    for batch in sampler.batched(12):
        rows = x[batch]
        labels = torch.arange(len(batch))  # unknown
        a, p, n = miner(rows, labels)
        assert torch.equal(torch.stack([a, p, n], 1).ravel(), labels)
        assert loss(rows, labels, (a, p, n)) > 0


@pytest.mark.parametrize(
    ("labels", "number", "match"),
    [(LABELS, 0, "num_triplets"), ([1, 1, 1], 3, "2 classes"), ([1, 2, 3], 3, "at least 2 samples"), ([[1], [2]], 3, "1D")],
)
def test_bad_settings_are_refused(labels: Any, number: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FixedSetOfTriplets(labels, number)
