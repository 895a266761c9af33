"""Losses agree with pytorch-metric-learning 2.9 in value and in every gradient.

The cases are generated: loss x miner x the miner's distance x distance x reducer x reference set x regularizer x shape of the
batch. The default run takes a covering choice: every two options that can meet do so at least once. `PML_FAST_TEST_ALL=1` runs
the product. Where the two libraries differ on purpose a case is left out with the reason; `test_differences.py` has a test of
each reason.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning as pml
import torch
from torch import Tensor

import pml_fast
from pml_fast import distances, losses, miners, reducers, regularizers

ALL = os.environ.get("PML_FAST_TEST_ALL") == "1"
CLASSES = 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.5, 0.1])


def library(package: Any) -> SimpleNamespace:
    """The modules of one of the two libraries."""
    names = ("distances", "losses", "miners", "reducers", "regularizers")
    return SimpleNamespace(**{name: __import__(f"{package.__name__}.{name}", fromlist=[name]) for name in names})


PEER, OURS = library(pml), library(pml_fast)
assert OURS.losses is losses and OURS.miners is miners and OURS.distances is distances
assert OURS.reducers is reducers and OURS.regularizers is regularizers


def users_distance(m: SimpleNamespace) -> Any:
    """A distance as a user writes it: only its matrix is known."""

    class Bent(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb - ref_emb).square() + 0.01).sqrt().mean(dim=1)

    return Bent()


LOSSES: dict[str, Callable[..., Any]] = {
    "supcon": lambda m, **k: m.losses.SupConLoss(**k),
    "ntxent": lambda m, **k: m.losses.NTXentLoss(temperature=0.2, **k),
    "multi_similarity": lambda m, **k: m.losses.MultiSimilarityLoss(beta=6, **k),
    "circle": lambda m, **k: m.losses.CircleLoss(**k),
    "contrastive": lambda m, **k: m.losses.ContrastiveLoss(pos_margin=0.3, neg_margin=1.1, **k),
    "triplet": lambda m, **k: m.losses.TripletMarginLoss(margin=0.2, **k),
    "triplet_swap": lambda m, **k: m.losses.TripletMarginLoss(swap=True, **k),
    "triplet_smooth": lambda m, **k: m.losses.TripletMarginLoss(smooth_loss=True, **k),
    "triplet_swap_smooth": lambda m, **k: m.losses.TripletMarginLoss(swap=True, smooth_loss=True, **k),
}
MINERS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "pairs": None,
    "triplets": None,
    "batch_hard": lambda m, **k: m.miners.BatchHardMiner(**k),
    "easy_semihard": lambda m, **k: m.miners.BatchEasyHardMiner(**k),
    "semihard_hard": lambda m, **k: m.miners.BatchEasyHardMiner("semihard", "hard", **k),
    "ranged": lambda m, **k: m.miners.BatchEasyHardMiner(
        "hard", "easy", allowed_pos_range=(0.1, 1.2), allowed_neg_range=(-0.5, 1.4), **k
    ),
    "all_hard": lambda m, **k: m.miners.BatchEasyHardMiner("all", "hard", **k),
    "easy_all": lambda m, **k: m.miners.BatchEasyHardMiner("easy", "all", **k),
    "multi_similarity": lambda m, **k: m.miners.MultiSimilarityMiner(**k),
    "pair_margin": lambda m, **k: m.miners.PairMarginMiner(0.4, 1.2, **k),
    "triplet_all": lambda m, **k: m.miners.TripletMarginMiner(0.2, "all", **k),
    "triplet_hard": lambda m, **k: m.miners.TripletMarginMiner(0.2, "hard", **k),
    "triplet_semihard": lambda m, **k: m.miners.TripletMarginMiner(0.3, "semihard", **k),
    "triplet_easy": lambda m, **k: m.miners.TripletMarginMiner(0.1, "easy", **k),
}
DISTANCES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "cosine": lambda m: m.distances.CosineSimilarity(),
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared": lambda m: m.distances.LpDistance(power=2),
    "l2_raw": lambda m: m.distances.LpDistance(normalize_embeddings=False),
    "l1": lambda m: m.distances.LpDistance(p=1),
    "l3": lambda m: m.distances.LpDistance(p=3),
    "dot_raw": lambda m: m.distances.DotProductSimilarity(normalize_embeddings=False),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": users_distance,
}
REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "mean": lambda m: m.reducers.MeanReducer(),
    "sum": lambda m: m.reducers.SumReducer(),
    "avg_non_zero": lambda m: m.reducers.AvgNonZeroReducer(),
    "above": lambda m: m.reducers.ThresholdReducer(low=0.1),
    "between": lambda m: m.reducers.ThresholdReducer(low=0.02, high=0.8),
    "below": lambda m: m.reducers.ThresholdReducer(high=0.6),
    "per_anchor": lambda m: m.reducers.PerAnchorReducer(),
    "per_anchor_avg": lambda m: m.reducers.PerAnchorReducer(m.reducers.AvgNonZeroReducer()),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(WEIGHTS.double()),
    "multiple": lambda m: m.reducers.MultipleReducers(
        {
            "loss": m.reducers.ThresholdReducer(low=0.05),
            "pos_loss": m.reducers.MeanReducer(),
            "neg_loss": m.reducers.SumReducer(),
        },
        default_reducer=m.reducers.MeanReducer(),
    ),
    "do_nothing": lambda m: m.reducers.DoNothingReducer(),
}
REGULARIZERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "none": lambda m: None,
    "lp": lambda m: m.regularizers.LpRegularizer(p=2, power=2),
}
# Rows, rows of the reference set, features, pattern of the labels.
BATCHES: dict[str, tuple[int, int, int, str]] = {
    "even": (16, 12, 8, "even"),
    "ragged": (23, 17, 7, "random"),
    "two_rows": (2, 5, 9, "random"),
    "one_class": (7, 6, 6, "one"),
    "all_distinct": (5, 9, 8, "distinct"),
    "singletons": (13, 31, 11, "singletons"),
}
AXES: dict[str, list[str]] = {
    "loss": list(LOSSES),
    "miner": list(MINERS),
    "mined_with": ["same", "own"],
    "distance": list(DISTANCES),
    "reducer": list(REDUCERS),
    "reference": ["itself", "separate"],
    "regularizer": list(REGULARIZERS),
    "batch": list(BATCHES),
}
Case = tuple[str, ...]
AT = {axis: k for k, axis in enumerate(AXES)}


def difference(case: Case) -> str | None:
    """Why the two libraries differ here on purpose, or ``None``."""
    option = dict(zip(AXES, case, strict=True))
    loss, miner, reducer, separate = option["loss"], option["miner"], option["reducer"], option["reference"] == "separate"
    if loss in ("multi_similarity", "circle") and reducer == "class_weighted":
        return "the peer's losses have shape [N, 1], so that class weights form an outer product"
    pair_terms = loss in ("ntxent", "contrastive")
    if pair_terms and reducer.startswith("per_anchor"):
        if separate:
            return "the peer's PerAnchorReducer knows no reference set"
        if miner.startswith("triplet"):
            return "the peer's PerAnchorReducer counts the gradient of a pair that is named twice, twice"
    unbounded = option["distance"] in ("dot_raw", "l2_raw", "snr")
    counts_non_zero = reducer in ("avg_non_zero", "per_anchor_avg") or (loss == "supcon" and reducer == "default")
    if loss in ("multi_similarity", "supcon") and counts_non_zero and unbounded:
        return "a loss below the rounding of 1 is 0 in one library and not in the other, and only one of them counts it"
    if "swap" in loss and separate:
        return "the peer's swap indexes the matrix of the batch and the reference set with two reference indices"
    return None


def meaningless(case: Case) -> bool:
    """Combinations that say the same as another one: a miner's distance without a miner."""
    return case[AT["mined_with"]] == "own" and MINERS[case[AT["miner"]]] is None


def product(loss: str, miner: str) -> Iterator[Case]:
    """All cases of a loss and a miner; regularizers and batches, which no other option depends on, are taken in turn."""
    turn = itertools.cycle(itertools.product(AXES["regularizer"], AXES["batch"]))
    for options in itertools.product([loss], [miner], *list(AXES.values())[2:-2]):
        case = (*options, *next(turn))
        if not meaningless(case) and difference(case) is None:
            yield case


def pairs_of(case: Case) -> set[tuple[int, str, int, str]]:
    return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}


def possible_pairs() -> set[tuple[int, str, int, str]]:
    """Every two options that some case of the product holds."""
    found: set[tuple[int, str, int, str]] = set()
    for (i, left), (j, right) in itertools.combinations(enumerate(AXES.values()), 2):
        for a, b in itertools.product(left, right):
            others = [[o] if k == i and (o := a) else [b] if k == j else axis for k, axis in enumerate(AXES.values())]
            if any(not meaningless(case) and difference(case) is None for case in itertools.product(*others)):
                found.add((i, a, j, b))
    return found


def draw_case(rng: random.Random, fixed: dict[int, str]) -> Case:
    while True:
        case = tuple(fixed.get(k) or rng.choice(axis) for k, axis in enumerate(AXES.values()))
        if not meaningless(case) and difference(case) is None:
            return case


def covering(most: int, tries: int = 12) -> list[Case]:
    """A deterministic choice that holds all possible pairs of options, filled up with random cases."""
    rng = random.Random(20)
    open_pairs = possible_pairs()
    chosen: dict[Case, None] = {}
    while open_pairs:
        i, a, j, b = min(open_pairs)
        case = max((draw_case(rng, {i: a, j: b}) for _ in range(tries)), key=lambda c: len(pairs_of(c) & open_pairs))
        open_pairs -= pairs_of(case)
        chosen[case] = None
    assert len(chosen) <= most, f"{len(chosen)} cases are more than {most}"
    while len(chosen) < most:
        chosen[draw_case(rng, {})] = None
    return list(chosen)


def labels_of(pattern: str, n: int, gen: torch.Generator) -> Tensor:
    if pattern == "one":
        return torch.ones(n, dtype=torch.int64)
    if pattern == "even":
        return torch.arange(n) % 4
    if pattern == "distinct":
        return torch.arange(n) % CLASSES
    labels = torch.randint(0, CLASSES - 1, (n,), generator=gen)
    if pattern == "singletons":
        labels[labels == 2] = 3
        labels[n // 2] = 2
        labels[-1] = 4
    return labels


def explicit(kind: str, labels: Tensor, ref_labels: Tensor, itself: bool, gen: torch.Generator) -> tuple[Tensor, ...]:
    """A user's own tuple: about half of all pairs, or of all triplets."""
    same = labels.unsqueeze(1) == ref_labels
    pos, neg = same.clone(), ~same
    if itself:
        pos.fill_diagonal_(False)
    if kind == "pairs":
        keep = torch.rand(same.shape, generator=gen) < 0.5
        return (*torch.where(pos & keep), *torch.where(neg & keep))
    triplets = torch.where(pos.unsqueeze(2) & neg.unsqueeze(1))
    keep = torch.rand(len(triplets[0]), generator=gen) < 0.5
    return tuple(index[keep] for index in triplets)


class Run:
    """One library's answer to a case."""

    def __init__(self, m: SimpleNamespace, case: Case) -> None:
        option = dict(zip(AXES, case, strict=True))
        n, n_ref, d, pattern = BATCHES[option["batch"]]
        gen = torch.Generator().manual_seed(sum(map(ord, "".join(case))))
        self.itself = option["reference"] == "itself"
        self.x = (0.6 * torch.randn(n, d, generator=gen, dtype=torch.float64)).requires_grad_()
        self.y = (0.6 * torch.randn(n_ref, d, generator=gen, dtype=torch.float64)).requires_grad_()
        labels, ref_labels = labels_of(pattern, n, gen), labels_of(pattern, n_ref, gen)
        refs = () if self.itself else (self.y, ref_labels)
        distance = {"distance": DISTANCES[option["distance"]](m)}
        make = MINERS[option["miner"]]
        if make is not None:
            self.tuple: Any = make(m, **(distance if option["mined_with"] == "same" else {}))(self.x, labels, *refs)
        elif option["miner"] == "none":
            self.tuple = None
        else:
            self.tuple = explicit(option["miner"], labels, labels if self.itself else ref_labels, self.itself, gen)
        regularizer = REGULARIZERS[option["regularizer"]](m)
        weight = {} if regularizer is None else {"embedding_regularizer": regularizer, "embedding_reg_weight": 0.3}
        loss = LOSSES[option["loss"]](m, reducer=REDUCERS[option["reducer"]](m), **distance, **weight)
        self.answer = loss(self.x, labels, self.tuple, *refs)

    def gradients(self) -> tuple[Tensor, Tensor]:
        scalar = self.answer if torch.is_tensor(self.answer) else squares(self.answer)
        if torch.is_tensor(scalar) and scalar.requires_grad:
            scalar.backward()
        return tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in (self.x, self.y))  # type: ignore[return-value]


def squares(loss_dict: dict[str, dict[str, Any]]) -> Any:
    """A number that does not depend on the order of the losses."""
    return sum(entry["losses"].square().sum() for entry in loss_dict.values() if torch.is_tensor(entry["losses"]))


def listed(entry: dict[str, Any]) -> list[tuple[tuple[int, ...], float]]:
    """Every single loss with its indices, in order."""
    values = entry["losses"].detach().flatten().tolist()
    index = entry["indices"]
    if index is None:
        return [((), value) for value in values]
    parts = (index,) if torch.is_tensor(index) else tuple(index)
    return sorted(zip(zip(*(part.tolist() for part in parts), strict=True), values, strict=True))


def assert_same_losses(ours: dict[str, dict[str, Any]], peers: dict[str, dict[str, Any]]) -> None:
    assert set(ours) == set(peers)
    for name, want in peers.items():
        got = ours[name]
        if not torch.is_tensor(want["losses"]):
            # A loss a row without a pair may also be written out, row by row.
            assert want["losses"] == 0 and not torch.as_tensor(got["losses"]).any()
            continue
        assert got["reduction_type"] == want["reduction_type"]
        got_list, want_list = listed(got), listed(want)
        assert [k for k, _ in got_list] == [k for k, _ in want_list]
        assert [v for _, v in got_list] == pytest.approx([v for _, v in want_list], rel=1e-7, abs=1e-8)


def agree(case: Case) -> None:
    """Run both libraries; where the peer refuses, so must we."""
    try:
        want = Run(PEER, case)
    except (AssertionError, NotImplementedError) as refusal:
        with pytest.raises((ValueError, TypeError, NotImplementedError)):
            Run(OURS, case)
        if case[AT["loss"]] != "circle" and not case[AT["reducer"]].startswith("per_anchor"):
            raise AssertionError("the peer refuses what it should take") from refusal
        return
    sizes = [] if want.tuple is None else [len(part) for part in want.tuple]
    if any(sizes) and max(sizes) == 1 and not case[AT["loss"]].startswith("triplet"):
        pytest.skip("the peer's loss of at most one pair a side is zero")
    got = Run(OURS, case)
    if torch.is_tensor(want.answer):
        torch.testing.assert_close(got.answer, want.answer, rtol=1e-7, atol=1e-8)
    else:
        assert_same_losses(got.answer, want.answer)
    for mine, theirs in zip(got.gradients(), want.gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7 * max(1.0, theirs.abs().max().item()))


COVERING = covering(400)


@pytest.mark.parametrize("case", COVERING, ids="-".join)
def test_value_and_gradients_equal_the_peer(case: Case) -> None:
    agree(case)


def test_every_two_options_meet() -> None:
    """The choice covers every pair of options that may meet at all; those that may not are few and known."""
    covered = set().union(*map(pairs_of, COVERING))
    every = {
        (i, a, j, b)
        for (i, left), (j, right) in itertools.combinations(enumerate(AXES.values()), 2)
        for a, b in itertools.product(left, right)
    }
    names = list(AXES)
    missing = {tuple(sorted((f"{names[i]}={a}", f"{names[j]}={b}"))) for i, a, j, b in every - covered}
    assert missing == {
        *(("mined_with=own", f"miner={miner}") for miner in ("none", "pairs", "triplets")),
        *((f"loss={loss}", "reducer=class_weighted") for loss in ("circle", "multi_similarity")),
        *((f"loss={loss}", "reference=separate") for loss in ("triplet_swap", "triplet_swap_smooth")),
    }


if ALL:

    @pytest.mark.parametrize("miner", MINERS)
    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_whole_product_equals_the_peer(loss: str, miner: str) -> None:
        failed = []
        for case in product(loss, miner):
            try:
                agree(case)
            except pytest.skip.Exception:
                continue
            except (AssertionError, pytest.fail.Exception) as error:
                failed.append(f"{'-'.join(case)}: {error}")
        assert not failed, f"{len(failed)} cases differ, the first is {failed[0]}"
