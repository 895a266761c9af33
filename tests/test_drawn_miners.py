"""Miners that draw: the distribution of what they draw, and where their random numbers come from.

The seeds are fixed, so the tests are deterministic; bounds are six standard deviations of the statistic.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_metric_learning.miners
import torch
from torch import Tensor

from pml_fast import distances, miners
from pml_fast.engine import grad_sum
from pml_fast.utils.index_types import PairIndices, TripletIndices

PEER = pytorch_metric_learning.miners


def batch(n: int, m: int | None = None, d: int = 8, classes: int = 3, spread: float = 1.0) -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(n + 10 * (m or 0) + d)
    center = torch.randn(d, generator=gen, dtype=torch.float64)
    data: list[Tensor] = []
    for size in (n, *([] if m is None else [m])):
        data += [center + spread * torch.randn(size, d, generator=gen, dtype=torch.float64)]
        data += [torch.randint(classes, (size,), generator=gen)]
    return tuple(data)


def assert_counts(counts: Tensor, expected: Tensor) -> None:
    """Pearson's chi-square against expected counts; what is expected never must not occur, what is rare is taken together."""
    assert (counts[expected == 0] == 0).all()
    likely = expected >= 5
    chi = ((counts - expected)[likely].square() / expected[likely]).sum()
    degrees = likely.sum()
    assert chi < degrees + 6 * (2 * degrees) ** 0.5 + 6, (chi, degrees)
    rare, wanted = (values[~likely].sum() for values in (counts, expected))
    assert (rare - wanted).abs() < 6 * wanted.sqrt() + 6, (rare, wanted)


def assert_same_source(ours: Tensor, theirs: Tensor) -> None:
    """Two draws of equal size, by the chi-square of their difference."""
    total = ours + theirs
    seen = total > 0
    chi = ((ours - theirs)[seen].square() / total[seen]).sum()
    degrees = seen.sum()
    assert chi < degrees + 6 * (2 * degrees) ** 0.5 + 6, (chi, degrees)


def exact_weights(x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, cutoff: float, nonzero: float) -> Tensor:
    """Each anchor's probabilities, dense, in float64; rows without a positive or a possible negative are 0."""
    dim = x.shape[1]
    d = distances.LpDistance()(x, y).clamp(min=cutoff)
    log_weight = (2 - dim) * d.log() - (dim - 3) / 2 * (1 - d.square() / 4).log()
    same = labels.unsqueeze(1) == ref_labels
    log_weight = log_weight.masked_fill(same | (d >= nonzero) | ~log_weight.isfinite(), -torch.inf)
    weights = torch.softmax(log_weight, dim=1).nan_to_num(0.0)
    positives = same.sum(dim=1) - int(y is x)
    return weights * (positives > 0).unsqueeze(1)


def drawn(miner: Any, data: tuple[Tensor, ...], calls: int) -> tuple[Tensor, Tensor]:
    """How often each anchor met each positive and each negative, ``[N, M]``."""
    n, m = len(data[0]), len(data[-1])
    counts = torch.zeros(2, n * m, dtype=torch.float64)
    for _ in range(calls):
        a, p, q = miner(*data)
        for k, other in enumerate((p, q)):
            counts[k] += torch.bincount(a * m + other, minlength=n * m)
    return counts[0].view(n, m), counts[1].view(n, m)


CASES = [
    {"n": 24, "d": 8},
    {"n": 24, "d": 8, "spread": 0.4, "cutoff": 0.3, "nonzero": 0.9},
    {"n": 17, "m": 25, "d": 5, "cutoff": 0.0, "nonzero": 3.0},
    {"n": 20, "d": 2, "cutoff": 0.1, "nonzero": 1.9},
    {"n": 20, "d": 128, "spread": 0.7},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_negatives_follow_the_exact_weights_and_the_peers_draws(case: dict[str, Any]) -> None:
    data = batch(case["n"], case.get("m"), case["d"], spread=case.get("spread", 1.0))
    cutoff, nonzero = case.get("cutoff", 0.5), case.get("nonzero", 1.4)
    ref = data[2:] or data
    weights = exact_weights(*data[:2], *ref, cutoff, nonzero)
    assert (weights.sum(dim=1) > 0).any()
    pos, neg = drawn(miners.DistanceWeightedMiner(cutoff, nonzero, seed=1), data, 300)
    same = data[1].unsqueeze(1) == ref[1]
    class_size = same.sum(dim=1, keepdim=True)
    total = 300 * class_size * (weights.sum(dim=1, keepdim=True) > 0)
    assert torch.equal(neg.sum(dim=1, keepdim=True), total.double())
    assert_counts(neg, weights * total)
    partners = same.double()
    if not data[2:]:
        partners.fill_diagonal_(0)
    assert_counts(pos, partners / partners.sum(dim=1, keepdim=True).clamp(min=1) * total)
    torch.manual_seed(2)
    peers = drawn(PEER.DistanceWeightedMiner(cutoff, nonzero), data, 300)
    assert_same_source(pos, peers[0])
    assert_same_source(neg, peers[1])


def test_no_anchor_is_lost_to_underflow() -> None:
    """Far and near rows in 512 dimensions: weights against the whole batch's largest vanish, against the row's own not."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(40, 512, generator=gen)
    x[:8] = x[0] + 0.3 * torch.randn(8, 512, generator=gen)
    labels = torch.arange(40) % 4
    data = x, labels
    miner = miners.DistanceWeightedMiner(nonzero_loss_cutoff=1.6, seed=0)
    assert len(miner(*data)[0].unique()) == 40
    assert len(PEER.DistanceWeightedMiner(nonzero_loss_cutoff=1.6)(*data)[0].unique()) < 40
    weights = exact_weights(x.double(), labels, x.double(), labels, 0.5, 1.6)
    counts = drawn(miner, data, 200)[1]
    assert_counts(counts, weights * 2000)


def test_cutoffs_that_leave_nothing() -> None:
    data = batch(12)
    for miner in (miners.DistanceWeightedMiner(nonzero_loss_cutoff=1e-6), miners.DistanceWeightedMiner(cutoff=1.5)):
        got = miner(*data)
        assert isinstance(got, TripletIndices)
        assert all(len(part) == 0 and part.dtype == torch.int64 for part in got)


def exact_bins(mat: Tensor, mask: Tensor, num_bins: int) -> list[Tensor]:
    """Flat indices of the pairs of each bin."""
    values = mat[mask]
    edges = torch.linspace(values.min().item(), values.max().item(), num_bins + 1, dtype=mat.dtype)
    index = torch.nonzero(mask.flatten()).squeeze(1)
    where = torch.bucketize(values, edges, right=True).sub(1).clamp(0, num_bins - 1)
    return [index[where == k] for k in range(num_bins)]


@pytest.mark.parametrize("m", [None, 19])
@pytest.mark.parametrize("name", ["LpDistance", "CosineSimilarity", "SNRDistance"])
@pytest.mark.parametrize("num_bins", [1, 7, 100])
def test_every_bin_gives_as_many_pairs_each_alike(name: str, m: int | None, num_bins: int) -> None:
    data = batch(15, m)
    ref = data[2:] or data
    distance = getattr(distances, name)()
    mat = distance(data[0], ref[0])
    same = data[1].unsqueeze(1) == ref[1]
    other = torch.ones_like(same) if m else ~torch.eye(15, dtype=torch.bool)
    miner = miners.UniformHistogramMiner(num_bins, 4, 6, distance=distance, seed=5)
    counts = torch.zeros(2, mat.numel(), dtype=torch.float64)
    calls = 300
    for _ in range(calls):
        got = miner(*data)
        assert isinstance(got, PairIndices)
        for k in (0, 1):
            counts[k] += torch.bincount(got[2 * k] * mat.shape[1] + got[2 * k + 1], minlength=mat.numel())
    for k, (mask, per_bin) in enumerate(((same & other, 4), (~same, 6))):
        expected = torch.zeros(num_bins, mat.numel(), dtype=torch.float64)
        for row, members in zip(expected, exact_bins(mat, mask, num_bins), strict=True):
            row[members] = calls * per_bin / max(len(members), 1)
        assert torch.equal((counts[k] * (expected > 0)).sum(dim=1), expected.sum(dim=1).round())
        assert_counts(counts[k] * (expected > 0), expected)
        assert (counts[k][(expected == 0).all(dim=0)] == 0).all()


def test_histogram_draws_are_the_peers_in_number_and_bin() -> None:
    for m in (None, 19):
        data = batch(15, m)
        ref = data[2:] or data
        mat = distances.LpDistance()(data[0], ref[0])
        same = data[1].unsqueeze(1) == ref[1]
        other = torch.ones_like(same) if m else ~torch.eye(15, dtype=torch.bool)
        got, want = miners.UniformHistogramMiner(20, 3, 5)(*data), PEER.UniformHistogramMiner(20, 3, 5)(*data)
        for k, mask in ((0, same & other), (2, ~same)):
            bins = exact_bins(mat, mask, 20)
            flat = [t[k] * mat.shape[1] + t[k + 1] for t in (got, want)]
            assert [[int(torch.isin(f, b).sum()) for b in bins] for f in flat[:1]] == [
                [int(torch.isin(f, b).sum()) for b in bins] for f in flat[1:]
            ]


def test_equal_distances_are_one_bin() -> None:
    x, labels = torch.eye(6), torch.arange(6) // 2
    a1, p, a2, n = miners.UniformHistogramMiner(10, 3, 4)(x, labels)
    peers = PEER.UniformHistogramMiner(10, 3, 4)(x, labels)
    assert (len(a1), len(a2)) == (len(peers[0]), len(peers[2])) == (3, 4)
    assert ((labels[a1] == labels[p]) & (a1 != p)).all() and (labels[a2] != labels[n]).all()


# ---- random numbers ----------------------------------------------------------------------------------------------------------

DRAWN = ["DistanceWeightedMiner", "UniformHistogramMiner"]


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", DRAWN)
def test_torchs_seed_repeats_a_run(name: str) -> None:
    data, miner = batch(24), getattr(miners, name)()
    torch.manual_seed(3)
    first, second = miner(*data), miner(*data)
    torch.manual_seed(3)
    assert same(miner(*data), first) and same(getattr(miners, name)()(*data), second)
    assert not same(first, second)


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_or_a_generator_is_the_miners_own(name: str) -> None:
    """torch's default generator is neither read nor moved."""
    data, cls = batch(24), getattr(miners, name)
    state = torch.get_rng_state()
    first, second = cls(seed=4), cls(seed=4)
    runs = [[miner(*data) for _ in range(2)] for miner in (first, second)]
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1]) and not same(runs[0][0], runs[0][1])
    assert not same(cls(seed=5)(*data), runs[0][0])
    given = torch.Generator().manual_seed(4)
    assert same(cls(generator=given)(*data), runs[0][0])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("m", [None, 31])
def test_the_draw_does_not_depend_on_the_strips(name: str, m: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(24, m)
    want = getattr(miners, name)(seed=1)(*data)
    for size in (1, 100, 200):
        monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", size)
        assert same(getattr(miners, name)(seed=1)(*data), want)
