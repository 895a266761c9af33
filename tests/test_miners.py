"""Miners choose what pytorch-metric-learning's choose, and what they return stays lazy until somebody looks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning.distances
import pytorch_metric_learning.losses
import pytorch_metric_learning.miners
import pytorch_metric_learning.utils.loss_and_miner_utils as peer_lmu
import torch
from torch import Tensor

from pml_fast import distances, losses, miners
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import FUSED, PARTLY
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.utils.index_types import PairIndices, TripletIndices

PEER = SimpleNamespace(distances=pytorch_metric_learning.distances, miners=pytorch_metric_learning.miners)
OURS = SimpleNamespace(distances=distances, miners=miners)
Make = Callable[..., Any]

STRATEGIES = ["hard", "semihard", "easy", "all"]
REFUSED = {("semihard", "semihard"), ("semihard", "all"), ("all", "semihard")}


def easy_hard(pos: str, neg: str, **options: Any) -> Make:
    return lambda m, **k: m.miners.BatchEasyHardMiner(pos, neg, **options, **k)


def triplet_margin(margin: float, kind: str) -> Make:
    return lambda m, **k: m.miners.TripletMarginMiner(margin, kind, **k)


MINERS: dict[str, Make] = {
    "batch_hard": lambda m, **k: m.miners.BatchHardMiner(**k),
    "batch_hard_ranged": lambda m, **k: m.miners.BatchHardMiner(
        allowed_pos_range=(0.2, 1.1), allowed_neg_range=(-0.3, 1.2), **k
    ),
    "default_easy_hard": lambda m, **k: m.miners.BatchEasyHardMiner(**k),
    **{f"{p}_{n}": easy_hard(p, n) for p in STRATEGIES for n in STRATEGIES if (p, n) not in REFUSED},
    **{
        f"{p}_{n}_ranged": easy_hard(p, n, allowed_pos_range=(0.2, 1.1), allowed_neg_range=(-0.3, 1.2))
        for p, n in [("easy", "semihard"), ("semihard", "hard"), ("all", "easy"), ("hard", "all")]
    },
    "multi_similarity": lambda m, **k: m.miners.MultiSimilarityMiner(**k),
    "multi_similarity_0": lambda m, **k: m.miners.MultiSimilarityMiner(epsilon=0, **k),
    "multi_similarity_negative": lambda m, **k: m.miners.MultiSimilarityMiner(epsilon=-0.2, **k),
    "multi_similarity_wide": lambda m, **k: m.miners.MultiSimilarityMiner(epsilon=0.9, **k),
    "pair_margin": lambda m, **k: m.miners.PairMarginMiner(**k),
    "pair_margin_wide": lambda m, **k: m.miners.PairMarginMiner(pos_margin=0.6, neg_margin=0.1, **k),
    **{
        f"triplet_{t}_{margin:g}": triplet_margin(margin, t)
        for t in ("all", "hard", "semihard", "easy")
        for margin in (0.2, 0.0, -0.1)
    },
}


class Bent:
    """A distance as a user writes it, in either library: only its matrix is known."""

    @staticmethod
    def of(m: SimpleNamespace) -> Any:
        class UsersDistance(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
            def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
                return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

        return UsersDistance()


DISTANCES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "cosine": lambda m: m.distances.CosineSimilarity(),
    "dot_raw": lambda m: m.distances.DotProductSimilarity(normalize_embeddings=False),
    "l1": lambda m: m.distances.LpDistance(p=1),
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared_raw": lambda m: m.distances.LpDistance(power=2, normalize_embeddings=False),
    "l3": lambda m: m.distances.LpDistance(p=3),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": Bent.of,
}
LABELS: dict[str, Callable[[int], Tensor]] = {
    "four_a_class": lambda n: torch.arange(n) // 4,
    "ragged": lambda n: torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 0, 7, 1])[torch.arange(n) % 14],
    "one_class": lambda n: torch.full((n,), 3),
    "all_distinct": lambda n: torch.arange(n),
}


def batch(n: int, m: int | None, labels: str, dtype: torch.dtype = torch.float64, d: int = 6) -> tuple[Tensor, ...]:
    """Embeddings and labels, and those of a reference set where ``m`` is given."""
    gen = torch.Generator().manual_seed(n + 7 * (m or 0))
    x = torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype) * 0.7
    if m is None:
        return x, LABELS[labels](n)
    return x, LABELS[labels](n), torch.randn(m, d, generator=gen, dtype=torch.float64).to(dtype) * 0.7, LABELS[labels](m)


def as_sets(indices: Sequence[Tensor]) -> list[list[tuple[int, ...]]]:
    """Triplets, or positive and negative pairs, sorted: equal lists are equal multisets."""
    parts = [indices] if len(indices) == 3 else [indices[:2], indices[2:]]
    return [sorted(zip(*(index.tolist() for index in part), strict=True)) for part in parts]


def with_distance(make: Callable[[SimpleNamespace], Any], m: SimpleNamespace) -> dict[str, Any]:
    distance = make(m)
    return {} if distance is None else {"distance": distance}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", MINERS)
def test_materialised_tuples_equal_the_peers_as_sets(name: str, distance: str) -> None:
    """For every option and distance, with and without a reference set, over patterns of labels."""
    for labels in LABELS:
        for n, m in ((14, None), (2, None), (11, 17), (9, 1)):
            data = batch(n, m, labels)
            got = MINERS[name](OURS, **with_distance(DISTANCES[distance], OURS))(*data)
            want = MINERS[name](PEER, **with_distance(DISTANCES[distance], PEER))(*data)
            assert len(got) == len(want)
            assert as_sets(tuple(got)) == as_sets(want), (labels, n, m)


@pytest.mark.parametrize("name", [name for name in MINERS if not name.startswith("triplet_all")])
def test_random_float32_batches_of_300(name: str) -> None:
    data = batch(300, None, "four_a_class", torch.float32, d=32)
    assert as_sets(tuple(MINERS[name](OURS)(*data))) == as_sets(MINERS[name](PEER)(*data))


@pytest.mark.parametrize("distance", ["default", "cosine", "l2_squared_raw", "users"])
@pytest.mark.parametrize("name", MINERS)
def test_statistics_equal_the_peers(name: str, distance: str) -> None:
    """Every recordable attribute, where `collect_stats` is on."""
    for m, labels in itertools.product((None, 17), LABELS):
        data = batch(14, m, labels)
        ours = MINERS[name](OURS, collect_stats=True, **with_distance(DISTANCES[distance], OURS))
        peers = MINERS[name](PEER, collect_stats=True, **with_distance(DISTANCES[distance], PEER))
        ours(*data), peers(*data)
        for recordable in ("_record_these", "_record_these_stats"):
            assert getattr(ours, recordable, []) == getattr(peers, recordable, [])
        for attribute in peers._record_these_stats:
            want = pytest.approx(getattr(peers, attribute), rel=1e-9, abs=1e-12, nan_ok=True)
            assert getattr(ours, attribute) == want, attribute


def test_statistics_are_off_by_default() -> None:
    miner = miners.PairMarginMiner()
    miner(*batch(14, None, "ragged"))
    assert not hasattr(miner, "pos_pair_dist")


# ---- laziness ----------------------------------------------------------------------------------------------------------------

LAZY = ["batch_hard", "hard_easy", "all_hard", "multi_similarity", "pair_margin", "triplet_all_0.2", "triplet_semihard_0.2"]


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_tuple_is_the_tuple_it_stands_for(name: str) -> None:
    """It measures without being made, and unpacks, indexes, slices and iterates like the tuple."""
    data = batch(14, None, "ragged")
    lazy, want = MINERS[name](OURS)(*data), MINERS[name](PEER)(*data)
    assert isinstance(lazy, LazyIndices)
    assert len(lazy) == len(want)
    assert "not materialised" in repr(lazy)
    first, *rest = lazy
    assert "not materialised" not in repr(lazy)
    assert first.dtype == torch.int64 and len(rest) == len(want) - 1
    made = tuple(lazy)
    assert isinstance(lazy.materialise(), TripletIndices if len(want) == 3 else PairIndices)
    assert all(part is lazy[k] for k, part in enumerate(made))
    assert lazy[-1] is made[-1]
    assert lazy[:2] == made[:2]
    with pytest.raises(IndexError):
        lazy[len(want)]
    # The peer's own code takes it where it takes a tuple.
    converted = peer_lmu.convert_to_pairs(lazy, data[1])
    assert as_sets(converted) == as_sets(peer_lmu.convert_to_pairs(want, data[1]))


FUSES = [
    ("multi_similarity", losses.MultiSimilarityLoss(), FUSED),
    ("multi_similarity", losses.TripletMarginLoss(), FUSED),
    ("multi_similarity", losses.ContrastiveLoss(), FUSED),
    ("pair_margin", losses.SupConLoss(), FUSED),
    ("pair_margin", losses.NTXentLoss(distance=distances.LpDistance()), FUSED),
    ("triplet_semihard_0.2", losses.TripletMarginLoss(), FUSED),
    ("batch_hard", losses.TripletMarginLoss(), PARTLY),
]


@pytest.mark.parametrize(("name", "loss", "mode"), FUSES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_a_loss_on_the_same_embeddings_makes_no_tuple(name: str, loss: Any, mode: str) -> None:
    """The rule is folded into the kernel, and gives what the made tuple gives."""
    data = batch(30, None, "ragged")
    lazy = MINERS[name](OURS)(*data)
    x = data[0].requires_grad_()
    value = loss(x, data[1], lazy)
    assert "not materialised" in repr(lazy)
    assert loss.plan(prepare_call(x, data[1], lazy, None, None)).mode == mode
    (grad,) = torch.autograd.grad(value, x)
    made = tuple(lazy)
    want = loss(x, data[1], made)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(grad, torch.autograd.grad(want, x)[0])
    assert value > 0


def test_a_reference_set_fuses_too() -> None:
    x, labels, y, ref_labels = batch(20, 33, "ragged")
    lazy = miners.MultiSimilarityMiner()(x, labels, y, ref_labels)
    loss = losses.MultiSimilarityLoss()
    value = loss(x, labels, lazy, y, ref_labels)
    assert "not materialised" in repr(lazy)
    torch.testing.assert_close(value, loss(x, labels, tuple(lazy), y, ref_labels))


@pytest.mark.parametrize("change", ["embeddings", "labels", "distance", "reference"])
def test_a_loss_on_other_data_makes_the_tuple(change: str) -> None:
    """What was mined with other embeddings, labels or distances is taken as the index tensors that it is."""
    x, labels = batch(30, None, "ragged")
    lazy = miners.MultiSimilarityMiner()(x, labels)
    loss, peer_loss = losses.MultiSimilarityLoss(), pytorch_metric_learning.losses.MultiSimilarityLoss()
    refs: tuple[Tensor, ...] = ()
    if change == "embeddings":
        x = x.flip(1) + 0.1
    elif change == "labels":
        labels = labels.clone()
    elif change == "reference":
        refs = (x.clone(), labels.clone())
    else:
        raw = {"normalize_embeddings": False}
        loss = losses.MultiSimilarityLoss(distance=distances.DotProductSimilarity(**raw))
        peer_loss = pytorch_metric_learning.losses.MultiSimilarityLoss(
            distance=pytorch_metric_learning.distances.DotProductSimilarity(**raw)
        )
    value = loss(x, labels, lazy, *refs)
    assert "not materialised" not in repr(lazy)
    torch.testing.assert_close(value, peer_loss(x, labels, tuple(lazy), *refs))


def test_a_rule_moves_from_one_distance_to_another() -> None:
    """A cosine's interval is a distance's, ends swapped; duplicates stay on their side."""
    gen = torch.Generator().manual_seed(4)
    x = torch.randn(24, 5, generator=gen)
    x[12:] = x[:12] * 3
    labels = torch.arange(24) % 4
    cosine, l2, squared = distances.CosineSimilarity(), distances.LpDistance(), distances.LpDistance(power=2)
    for mined, used in ((cosine, l2), (l2, cosine), (squared, l2), (l2, squared), (cosine, squared), (squared, cosine)):
        for miner in (miners.MultiSimilarityMiner(distance=mined), miners.PairMarginMiner(0.3, 0.7, distance=mined)):
            lazy = miner(x, labels)
            loss = losses.ContrastiveLoss(distance=used, pos_margin=0.1, neg_margin=0.4)
            value = loss(x, labels, lazy)
            assert "not materialised" in repr(lazy)
            torch.testing.assert_close(value, loss(x, labels, tuple(lazy)), rtol=1e-4, atol=1e-5)


class OwnMatrix(distances.BaseDistance):
    """A distance that an engine does not know."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.cdist(query_emb, ref_emb) ** 1.5


# What an engine computes alike, of rows that were prepared otherwise.
PREPARED = {
    "signal to noise, normalised or not": (distances.SNRDistance(normalize_embeddings=False), distances.SNRDistance()),
    "a matrix and signal to noise": (OwnMatrix(is_inverted=False), distances.SNRDistance()),
    "1-norms or raw": (distances.LpDistance(p=1), distances.LpDistance(p=1, normalize_embeddings=False)),
    "inner products by other norms": (distances.DotProductSimilarity(p=1), distances.DotProductSimilarity(p=3)),
}
SELECTING = {
    "multi_similarity": lambda d: miners.MultiSimilarityMiner(0.05, distance=d),
    "pair_margin": lambda d: miners.PairMarginMiner(0.3, 0.9, distance=d),
    "triplet_margin": lambda d: miners.TripletMarginMiner(0.1, distance=d),
    "hdc": lambda d: miners.HDCMiner(0.3, distance=d),
}


@pytest.mark.parametrize("miner", SELECTING)
@pytest.mark.parametrize("kind", PREPARED)
def test_a_rule_holds_for_rows_that_are_prepared_alike(kind: str, miner: str) -> None:
    """A bound of one distance is none of another that an engine computes in the same way."""
    x, labels = batch(40, None, "ragged")
    for mined, used in (PREPARED[kind], PREPARED[kind][::-1]):
        lazy = SELECTING[miner](mined)(x, labels)
        for loss in (losses.ContrastiveLoss(distance=used), losses.TripletMarginLoss(distance=used)):
            torch.testing.assert_close(loss(x, labels, lazy), loss(x, labels, tuple(SELECTING[miner](mined)(x, labels))))
        assert "not materialised" not in repr(lazy)


@pytest.mark.parametrize("what", ["embeddings", "labels", "reference"])
@pytest.mark.parametrize("name", ["multi_similarity", "pair_margin", "triplet_hard_0.2"])
def test_indices_of_changed_data_are_refused(name: str, what: str) -> None:
    """After a change in place nobody can tell any more what was mined, unless the tuple was made before."""
    x, labels, y, ref_labels = batch(14, 9, "ragged")
    make = MINERS[name](OURS)
    lazy, made = make(x, labels, y, ref_labels), make(x, labels, y, ref_labels)
    before = as_sets(tuple(made))
    {"embeddings": x, "labels": labels, "reference": y}[what].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        tuple(lazy)
    with pytest.raises(RuntimeError, match="changed in place"):
        losses.TripletMarginLoss()(x, labels, lazy, y, ref_labels)
    assert as_sets(tuple(made)) == before


@pytest.mark.parametrize("name", MINERS)
def test_no_gradient_is_kept(name: str) -> None:
    x, labels = batch(14, None, "ragged")
    lazy = MINERS[name](OURS)(x.requires_grad_(), labels)
    assert not any(part.requires_grad for part in lazy)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("name", MINERS)
def test_tiny_batches_give_empty_tuples(name: str, n: int) -> None:
    lazy = MINERS[name](OURS)(torch.randn(n, 4), torch.zeros(n, dtype=torch.int64))
    assert all(part.dtype == torch.int64 and len(part) == 0 for part in lazy)


@pytest.mark.parametrize("name", MINERS)
def test_an_empty_reference_set_gives_empty_tuples(name: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    lazy = MINERS[name](OURS)(torch.randn(5, 4), torch.arange(5), torch.randn(0, 4), none)
    assert all(len(part) == 0 for part in lazy)


def test_labels_may_be_of_any_kind() -> None:
    """Integers of every width, negative ones, booleans, and floats."""
    x, labels = batch(14, None, "ragged")
    want = as_sets(tuple(miners.MultiSimilarityMiner()(x, labels)))
    for other in (labels.int(), labels.short(), labels - 5, labels.float() / 3, labels * (1 << 40)):
        assert as_sets(tuple(miners.MultiSimilarityMiner()(x, other))) == want


def test_a_users_miner_works_as_in_the_peer() -> None:
    class FirstPair(miners.BaseMiner):
        def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
            assert not torch.is_grad_enabled()
            return torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2])

    x, labels = batch(14, None, "ragged")
    miner = FirstPair(collect_stats=True)
    assert [part.tolist() for part in miner(x, labels)] == [[0], [1], [0], [2]]
    assert (miner.num_pos_pairs, miner.num_neg_pairs) == (1, 1)
