"""AccuracyCalculator gives PML's numbers, without its matrices."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance as PeerLpDistance
from pytorch_metric_learning.utils import accuracy_calculator as peer
from pytorch_metric_learning.utils import inference as peer_inference
from torch import Tensor

from pml_fast import distances, use
from pml_fast.utils import accuracy_calculator as ours
from pml_fast.utils import exact_search
from pml_fast.utils.inference import CustomKNN, ExactKNN, FaissKNN

RANKING = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
)
KINDS = ("itself", "separate", "begins with the queries")
LABELS: dict[str, Callable[[int], Tensor]] = {
    "several a class": lambda n: torch.randint(0, 12, (n,)),
    "with lone queries": lambda n: torch.where(torch.arange(n) % 5 == 0, torch.arange(n) + 1000, torch.randint(0, 6, (n,))),
    "two classes": lambda n: torch.randint(0, 2, (n,)),
    "one class": lambda n: torch.full((n,), 3),
    "all alone": lambda n: torch.arange(n),
    "unbalanced": lambda n: torch.randint(0, 400, (n,)).float().sqrt().long() // 4,
}


def assert_equal(got: dict[str, Any], want: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance, err_msg=name)


def both(settings: dict[str, Any], *arguments: Any, **call: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    calculators = [module.AccuracyCalculator(**settings) for module in (ours, peer)]
    mine, theirs = (calculator.get_accuracy(*arguments, **call) for calculator in calculators)
    return mine, theirs


def embeddings() -> tuple[Tensor, Tensor]:
    """50 queries and 30 references without distances that rounding could put in another order."""
    while True:
        x, y = torch.randn(50, 6), torch.randn(30, 6)
        both_sets = torch.cat([x, y]).double()
        near = torch.cat([torch.cdist(x.double(), both_sets), torch.cdist(x.double(), both_sets, p=1)])
        if near.sort(dim=1).values.diff(dim=1).min() > 1e-5:
            return x, y


def has_match(labels: Tensor) -> Tensor:
    return torch.bincount(labels)[labels] > 1


def sets(labels: str, kind: str) -> tuple[Any, ...]:
    """Queries, labels, references, their labels, and whether the references begin with the queries."""
    (x, y), x_labels = embeddings(), LABELS[labels](50)
    if kind == "itself":
        return x, x_labels
    y_labels = LABELS[labels](30)
    if kind == "separate":
        return x, x_labels, y, y_labels, False
    return x, x_labels, torch.cat([x, y]), torch.cat([x_labels, y_labels]), True


AVERAGES: list[dict[str, Any]] = [{}, {"avg_of_avgs": True}, {"return_per_class": True}]


@pytest.mark.parametrize("averages", AVERAGES, ids=["queries", "averages", "classes"])
@pytest.mark.parametrize("k", [None, 1, 7, "max_bin_count"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labels", LABELS)
def test_ranking_metrics_are_the_peers(labels: str, kind: str, k: Any, averages: dict[str, Any]) -> None:
    arguments = sets(labels, kind)
    if labels == "all alone" and k == "max_bin_count" and kind == "itself":
        k = None  # no neighbours at all
    assert_equal(*both({"include": RANKING, "k": k, **averages}, *arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_is_there_by_default(kind: str) -> None:
    arguments = sets("several a class", kind)
    mine, theirs = both({}, *arguments)
    assert_equal(mine, theirs)
    assert list(mine) == list(theirs)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_backends_agree(backend: str) -> None:
    arguments = sets("with lone queries", "itself")
    with use(backend=backend):
        got = ours.AccuracyCalculator(include=RANKING).get_accuracy(*arguments)
    assert_equal(got, peer.AccuracyCalculator(include=RANKING).get_accuracy(*arguments))


def close_numbers(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs() < 2


def same_first_column(x: Tensor, y: Tensor) -> Tensor:
    return x[..., 0] == y[..., 0]


def same_first_other_second(x: Tensor, y: Tensor) -> Tensor:
    return (x[..., 0] == y[..., 0]) & (x[..., 1] != y[..., 1])


@pytest.mark.parametrize("averages", AVERAGES, ids=["queries", "averages", "classes"])
@pytest.mark.parametrize("k", [None, 9])
@pytest.mark.parametrize(
    ("compare", "kind"),
    # The peer takes the query itself for a match of its own: the next test has a comparison of which that is not true.
    [*itertools.product([close_numbers, same_first_column], KINDS), (same_first_other_second, "separate")],
)
def test_a_comparison_of_labels_of_ones_own(compare: Any, kind: str, k: int | None, averages: dict[str, Any]) -> None:
    x, y = embeddings()
    if compare is close_numbers:
        a, b = torch.randint(0, 25, (50,)), torch.randint(0, 25, (30,))
    else:
        a, b = torch.randint(0, 5, (50, 2)), torch.randint(0, 5, (30, 2))
    arguments: tuple[Any, ...] = (x, a)
    if kind != "itself":
        includes = kind != "separate"
        references = (torch.cat([x, y]), torch.cat([a, b])) if includes else (y, b)
        arguments = (x, a, *references, includes)
    settings = {"include": RANKING, "label_comparison_fn": compare, "k": k, **averages}
    assert_equal(*both(settings, *arguments))


def test_a_label_that_does_not_match_itself_is_not_counted() -> None:
    """The peer takes one match away for the query itself, which is none: with one match left, R is 0 there."""
    x, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0, 0], [0, 1], [0, 2]])
    settings = {"include": RANKING, "label_comparison_fn": same_first_other_second}
    mine, theirs = both(settings, x, labels)
    assert mine == dict.fromkeys(RANKING, 1.0)
    assert theirs["mean_average_precision"] == 2.0


def test_clusters_know_no_comparison_of_ones_own() -> None:
    with pytest.raises(NotImplementedError, match="NMI"):
        ours.AccuracyCalculator(label_comparison_fn=close_numbers)


def test_a_call_chooses_among_the_metrics() -> None:
    arguments = sets("several a class", "itself")
    for call in (
        {"include": ("r_precision", "NMI")},
        {"exclude": ("NMI", "AMI")},
        {"include": RANKING, "exclude": RANKING[1:]},
    ):
        assert_equal(*both({}, *arguments, **call))
    assert list(both({"include": ("AMI",)}, *arguments, include=("AMI", "NMI"))[0]) == ["AMI"]
    calculator = ours.AccuracyCalculator(exclude=("AMI", "NMI", "mean_average_precision"))
    assert calculator.get_curr_metrics() == [name for name in sorted(RANKING) if name != "mean_average_precision"]


class WithMore(ours.AccuracyCalculator):
    def calculate_precision_at_2(self, knn_labels: Any, query_labels: Any, **kwargs: Any) -> Any:
        return ours.precision_at_k(
            knn_labels, query_labels[:, None], 2, self.avg_of_avgs, self.return_per_class, self.label_comparison_fn
        )

    def calculate_clusters(self, cluster_labels: Tensor, **kwargs: Any) -> int:
        return len(cluster_labels.unique())

    def calculate_mean_rank(self, retrieval: Any, not_lone_query_mask: Any, **kwargs: Any) -> float:
        return float(retrieval.first[not_lone_query_mask].double().mean())

    def requires_knn(self) -> list[str]:
        return super().requires_knn() + ["precision_at_2"]

    def requires_clustering(self) -> list[str]:
        return super().requires_clustering() + ["clusters"]


class PeerWithMore(peer.AccuracyCalculator):
    calculate_precision_at_2 = WithMore.calculate_precision_at_2

    def requires_knn(self) -> list[str]:
        return super().requires_knn() + ["precision_at_2"]


def test_metrics_of_a_subclass() -> None:
    x, labels = sets("several a class", "itself")
    mine = WithMore().get_accuracy(x, labels)
    assert_equal(
        {name: mine[name] for name in mine if name not in ("clusters", "mean_rank")}, PeerWithMore().get_accuracy(x, labels)
    )
    assert mine["clusters"] == len(labels.unique())
    near = torch.cdist(x, x).fill_diagonal_(float("inf")).argsort(dim=1)[:, :-1]
    hits = (labels[near] == labels[:, None])[has_match(labels)]
    first = hits.int().argmax(dim=1).double()
    assert mine["mean_rank"] == pytest.approx(float(first.mean()))


class Overriding(ours.AccuracyCalculator):
    def calculate_precision_at_1(self, **kwargs: Any) -> Any:
        shifted = kwargs["knn_labels"][:, 1:]
        return super().calculate_precision_at_1(**{**kwargs, "knn_labels": shifted})


def test_an_overridden_metric_may_change_its_inputs() -> None:
    x, labels = sets("two classes", "itself")
    got = Overriding(include=("precision_at_1", "r_precision")).get_accuracy(x, labels)
    near = torch.cdist(x, x).fill_diagonal_(float("inf")).argsort(dim=1)
    assert got["precision_at_1"] == pytest.approx(float((labels[near[:, 1]] == labels).double().mean()))
    assert got["r_precision"] == ours.AccuracyCalculator(include=("r_precision",)).get_accuracy(x, labels)["r_precision"]


def test_neighbors_are_found_only_where_a_metric_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Any:
        raise AssertionError("neighbours were asked for")

    monkeypatch.setattr(exact_search.Comparison, "nearest", refuse)
    x, labels = sets("several a class", "itself")
    names = (*RANKING, "recall_at_5", "precision_at_3", "mean_rank")
    assert list(WithMore(include=names).get_accuracy(x, labels, include=names))
    with pytest.raises(AssertionError, match="asked for"):
        WithMore(include=("precision_at_2",)).get_accuracy(x, labels)


@pytest.mark.parametrize("knn", [None, FaissKNN()], ids=["engine", "neighbours"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_metrics_at_k(k: int, knn: Any) -> None:
    x, labels = sets("with lone queries", "itself")
    near = torch.cdist(x, x).fill_diagonal_(float("inf")).argsort(dim=1)[:, :k]
    hits = (labels[near] == labels[:, None])[has_match(labels)]
    names = (f"recall_at_{k}", f"cmc_at_{k}", f"precision_at_{k}")
    got = ours.AccuracyCalculator(include=names, knn_func=knn).get_accuracy(x, labels)
    recall, precision = float(hits.any(dim=1).double().mean()), float(hits.double().mean())
    assert got == pytest.approx(dict(zip(names, (recall, recall, precision))))


@pytest.mark.parametrize("name", ["cosine", "l1", "subclass"])
def test_the_search_may_be_another(name: str) -> None:
    class Shifted(distances.LpDistance):
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return super().compute_mat(query_emb, ref_emb) + 1

    knn: Any = {
        "cosine": ExactKNN("cosine"),
        "l1": CustomKNN(distances.LpDistance(p=1, normalize_embeddings=False)),
        "subclass": CustomKNN(Shifted(normalize_embeddings=False), batch_size=16),
    }[name]
    theirs = PeerLpDistance(p=1 if name == "l1" else 2, normalize_embeddings=name == "cosine")
    arguments = sets("several a class", "begins with the queries")
    got = ours.AccuracyCalculator(include=RANKING, knn_func=knn).get_accuracy(*arguments)
    want = peer.AccuracyCalculator(include=RANKING, knn_func=peer_inference.CustomKNN(theirs)).get_accuracy(*arguments)
    assert_equal(got, want)


def test_arrays_and_other_types_of_labels() -> None:
    x, labels = sets("several a class", "itself")
    want = ours.AccuracyCalculator(include=RANKING).get_accuracy(x, labels)
    for query, own in [(x.numpy(), labels.numpy()), (x.double(), labels.int()), (x, labels.double() / 7)]:
        assert_equal(ours.AccuracyCalculator(include=RANKING).get_accuracy(query, own), want)


def test_large_labels_stay_apart() -> None:
    """float32 cannot tell these labels: the peer takes the two classes for one."""
    x, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), 2**25 + torch.tensor([0, 1, 0, 1])
    mine, theirs = both({"include": ("precision_at_1",)}, x, labels)
    assert (mine["precision_at_1"], theirs["precision_at_1"]) == (0.0, 1.0)


def test_mean_reciprocal_rank_alone() -> None:
    """The peer finds no neighbours for it, and fails."""
    got = ours.AccuracyCalculator(include=("mean_reciprocal_rank",)).get_accuracy(
        torch.eye(4)[[0, 0, 1, 1]], torch.arange(4) // 2
    )
    assert got == {"mean_reciprocal_rank": 1.0}


def test_more_neighbors_than_there_are() -> None:
    """Of the peer's missing neighbours each counts as the last reference."""
    arguments = sets("several a class", "itself")
    got, want = (ours.AccuracyCalculator(include=RANKING, k=k).get_accuracy(*arguments) for k in (5000, None))
    assert got == want


def test_no_query_has_a_match(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        got = ours.AccuracyCalculator(include=RANKING).get_accuracy(torch.randn(4, 2), torch.arange(4))
    assert all(np.isnan(value) for value in got.values())
    assert "None of the query labels" in caplog.text


def test_a_k_below_r_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ours.AccuracyCalculator(include=("r_precision",), k=2).get_accuracy(torch.randn(8, 2), torch.zeros(8))
    assert "max_bin_count" in caplog.text


X, Y = torch.randn(6, 3), torch.randint(0, 2, (6,))
CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: ours.AccuracyCalculator(include="AMI"), TypeError, "include must be a tuple"),
    (lambda: ours.AccuracyCalculator(exclude=("nothing",)), ValueError, "exclude must name metrics.*nothing"),
    (lambda: ours.AccuracyCalculator(include=("recall_at_0",)), ValueError, "recall_at_0"),
    (lambda: ours.AccuracyCalculator(avg_of_avgs=True, return_per_class=True), ValueError, "mutually exclusive"),
    *[(lambda k=k: ours.AccuracyCalculator(k=k), ValueError, "k must be") for k in (0, -1, 2.0, "all", True)],
    (lambda: ours.AccuracyCalculator().get_accuracy(X, Y[:5]), ValueError, "same length"),
    (lambda: ours.AccuracyCalculator().get_accuracy(X, Y, X[:, :2], Y), ValueError, "query's length"),
    (lambda: ours.AccuracyCalculator().get_accuracy(X, Y, X + 1, Y, True), ValueError, "must be equal to query"),
    (lambda: ours.AccuracyCalculator().get_accuracy(X, Y, X[:3], Y[:3], True), ValueError, "must be equal to query"),
    (lambda: ours.AccuracyCalculator().get_accuracy(X / 0, Y), ValueError, "query must be finite"),
    (lambda: ours.AccuracyCalculator().get_accuracy(X, Y, include=("nothing",)), ValueError, "nothing"),
    (lambda: ours.AccuracyCalculator(k=3, include=("recall_at_5",)).get_accuracy(X, Y), ValueError, "needs 5 neighbors"),
    (
        lambda: ours.AccuracyCalculator(include=RANKING, label_comparison_fn=lambda x, y: x).get_accuracy(X, Y),
        (ValueError, RuntimeError),
        "shape|must",
    ),
]  # type: ignore[list-item]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
