"""Regularizers agree with pytorch-metric-learning in value and gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import reducers as peer_reducers
from pytorch_metric_learning import regularizers as peer
from torch import Tensor

from pml_fast import distances, losses, reducers, regularizers
from pml_fast._bounded import measure_peak

OURS = SimpleNamespace(distances=distances, reducers=reducers, regularizers=regularizers)
PEER = SimpleNamespace(distances=peer_distances, reducers=peer_reducers, regularizers=peer)

# Of weights with 12 rows.
REGULARIZERS: dict[str, Callable[..., Any]] = {
    "center_invariant": lambda m, **k: m.regularizers.CenterInvariantRegularizer(**k),
    "center_invariant_l1": lambda m, **k: m.regularizers.CenterInvariantRegularizer(
        distance=m.distances.LpDistance(p=1, normalize_embeddings=False), **k
    ),
    "lp": lambda m, **k: m.regularizers.LpRegularizer(p=3, power=2, **k),
    "regular_face": lambda m, **k: m.regularizers.RegularFaceRegularizer(**k),
    "regular_face_dot": lambda m, **k: m.regularizers.RegularFaceRegularizer(
        distance=m.distances.DotProductSimilarity(normalize_embeddings=False), **k
    ),
    "regular_face_users": lambda m, **k: m.regularizers.RegularFaceRegularizer(distance=users_similarity(m), **k),
    "sparse_centers": lambda m, **k: m.regularizers.SparseCentersRegularizer(4, 3, **k),
    "sparse_centers_of_two": lambda m, **k: m.regularizers.SparseCentersRegularizer(6, 2, **k),
    "sparse_centers_of_one_class": lambda m, **k: m.regularizers.SparseCentersRegularizer(1, 12, **k),
    "zero_mean": lambda m, **k: m.regularizers.ZeroMeanRegularizer(**k),
}
REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "sum": lambda m: m.reducers.SumReducer(),
    "above": lambda m: m.reducers.ThresholdReducer(low=0.1),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(torch.linspace(0.2, 3, 66, dtype=torch.float64)),
}


def users_similarity(m: SimpleNamespace) -> Any:
    """A similarity as a user writes it: only its matrix is known."""

    class Bent(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(is_inverted=True)

        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return torch.tanh(query_emb @ ref_emb.T)

    return Bent()


def value_and_gradient(regularizer: Any, weights: Tensor) -> tuple[Tensor, Tensor]:
    weights = weights.detach().requires_grad_()
    value = regularizer(weights)
    return value.detach(), torch.autograd.grad(value, weights)[0]


# Of one class there are more pairs of centers than rows, which alone have a class weight.
AGREEMENTS = [
    (name, reducer)
    for name in REGULARIZERS
    for reducer in REDUCERS
    if (name, reducer) != ("sparse_centers_of_one_class", "class_weighted")
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("name", "reducer"), AGREEMENTS)
def test_values_and_gradients_equal_the_peer(name: str, reducer: str, seed: int) -> None:
    weights = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got, want = (value_and_gradient(REGULARIZERS[name](m, reducer=REDUCERS[reducer](m)), weights) for m in (OURS, PEER))
    torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(got[1], want[1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_defaults_and_records_equal_the_peer(name: str) -> None:
    ours, theirs = (REGULARIZERS[name](m, collect_stats=True) for m in (OURS, PEER))
    assert type(ours.reducer).__name__ == type(theirs.reducer).__name__
    assert type(ours.distance).__name__ == type(theirs.distance).__name__
    for records in ("_record_these", "_record_these_stats"):
        assert getattr(ours, records, []) == getattr(theirs, records, [])


def test_statistics_of_centers_equal_the_peer() -> None:
    weights = torch.randn(12, 5, dtype=torch.float64)
    ours, theirs = (REGULARIZERS["sparse_centers"](m, collect_stats=True) for m in (OURS, PEER))
    torch.testing.assert_close(ours(weights), theirs(weights))
    for name in ours._record_these_stats:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-12)
    ours.set_stats(theirs.distance(weights))
    assert ours.same_class_center_sim == pytest.approx(theirs.same_class_center_sim)
    assert torch.equal(ours.same_class_mask, theirs.same_class_mask)
    assert torch.equal(ours.diff_class_mask, theirs.diff_class_mask)


def test_a_single_class_weight_is_its_own_closest() -> None:
    weights = torch.randn(1, 5, dtype=torch.float64)
    for got, want in zip(*(value_and_gradient(m.regularizers.RegularFaceRegularizer(), weights) for m in (OURS, PEER))):
        torch.testing.assert_close(got, want)


def test_centers_that_have_met_pull_no_more() -> None:
    """The peer's gradient is NaN there."""
    weights = torch.eye(3)[[0, 0, 1, 2]].clone()
    value, grad = value_and_gradient(regularizers.SparseCentersRegularizer(2, 2), weights)
    torch.testing.assert_close(value, torch.tensor(2**0.5 / 4))
    assert grad.isfinite().all() and not grad[:2].any() and grad[2:].any()
    assert value_and_gradient(peer.SparseCentersRegularizer(2, 2), weights)[1].isnan().any()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_half_precision_is_close_and_nan_is_seen(name: str) -> None:
    weights = torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = REGULARIZERS[name](OURS)(weights)
    assert REGULARIZERS[name](OURS)(weights.bfloat16()).item() == pytest.approx(exact.item(), rel=0.05, abs=0.05)
    weights[4, 1] = float("nan")
    assert REGULARIZERS[name](OURS)(weights).isnan()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers_copy_pickle_and_compile(name: str) -> None:
    weights = torch.randn(12, 5)
    regularizer = REGULARIZERS[name](OURS)
    want = regularizer(weights)
    assert copy.deepcopy(regularizer)(weights) == want
    if "users" not in name:
        assert pickle.loads(pickle.dumps(regularizer))(weights) == want
    assert list(regularizer.state_dict()) == []
    torch.testing.assert_close(torch.compile(regularizer, backend="eager")(weights), want)


@pytest.mark.parametrize("name", ["regular_face", "sparse_centers"])
def test_as_an_embedding_regularizer(name: str) -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    labels = torch.arange(12) % 4
    found = []
    for m, package in ((OURS, losses), (PEER, peer_losses)):
        loss = package.ContrastiveLoss(embedding_regularizer=REGULARIZERS[name](m), embedding_reg_weight=0.3)
        value = loss(x, labels)
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(*found)


def test_no_matrix_of_all_classes_is_built() -> None:
    """16,384 classes: the matrix alone is 1 GiB."""
    weights = torch.randn(16384, 8)

    def step(regularizer: Any) -> Tensor:
        own = weights.detach().requires_grad_()
        regularizer(own).backward()
        return own.grad

    for regularizer in (regularizers.RegularFaceRegularizer(), regularizers.SparseCentersRegularizer(8192, 2)):
        step(regularizer)
        grad, peak = measure_peak(lambda r=regularizer: step(r))
        assert grad.any()
        assert peak < 128 << 20


@pytest.mark.parametrize("reducer", ["MeanReducer", "SumReducer", "AvgNonZeroReducer"])
@pytest.mark.parametrize("power", [1, 2, 0.5])
@pytest.mark.parametrize("p", [1, 2, 3.5, float("inf")])
def test_lp_equals_the_peer(p: float, power: float, reducer: str) -> None:
    embeddings = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    got = regularizers.LpRegularizer(p=p, power=power, reducer=getattr(reducers, reducer)())(embeddings)
    expected = peer.LpRegularizer(p=p, power=power, reducer=getattr(peer_reducers, reducer)())(embeddings)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, embeddings)[0] for x in (got, expected)))


def test_the_default_is_the_mean_euclidean_norm() -> None:
    regularizer = regularizers.LpRegularizer()
    assert regularizer(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == 3
    assert type(regularizer.reducer) is reducers.MeanReducer
    assert type(regularizer.distance) is distances.LpDistance
    assert regularizer._record_these == peer.LpRegularizer()._record_these == ["p", "power"]


def test_a_zero_row_has_a_zero_gradient() -> None:
    embeddings = torch.zeros(2, 3, requires_grad=True)
    regularizers.LpRegularizer()(embeddings).backward()
    assert torch.equal(embeddings.grad, torch.zeros(2, 3))


def test_do_nothing_gives_the_losses_of_each_row() -> None:
    embeddings = torch.randn(5, 3)
    info = regularizers.LpRegularizer(reducer=reducers.DoNothingReducer())(embeddings)["loss"]
    torch.testing.assert_close(info["losses"], embeddings.norm(dim=1))
    assert info["indices"].tolist() == list(range(5))
    assert info["reduction_type"] == "element"


def test_a_users_regularizer_is_reduced_with_row_numbers_as_labels() -> None:
    class Centered(regularizers.BaseRegularizer):
        def compute_loss(self, x):
            return {"loss": {"losses": x.sum(1), "indices": torch.arange(len(x)), "reduction_type": "element"}}

    x, weights = torch.randn(3, 2), torch.tensor([1.0, 2.0, 3.0])
    loss = Centered(reducer=reducers.ClassWeightedReducer(weights))(x)
    torch.testing.assert_close(loss, (x.sum(1) * weights).mean())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2D"):
        regularizers.LpRegularizer()(torch.ones(3))
    with pytest.raises(NotImplementedError, match="BaseRegularizer"):
        regularizers.BaseRegularizer()(torch.ones(3, 2))
    with pytest.raises(ValueError, match="is_inverted"):
        regularizers.RegularFaceRegularizer(distance=distances.LpDistance())
    with pytest.raises(ValueError, match="normalize_embeddings"):
        regularizers.CenterInvariantRegularizer(distance=distances.LpDistance())
    with pytest.raises(TypeError, match="LpDistance"):
        regularizers.CenterInvariantRegularizer(distance=distances.CosineSimilarity())
    with pytest.raises(TypeError, match="CosineSimilarity"):
        regularizers.SparseCentersRegularizer(2, 2, distance=distances.LpDistance())
    with pytest.raises(ValueError, match="centers_per_class"):
        regularizers.SparseCentersRegularizer(2, 1)
    with pytest.raises(ValueError, match="4 rows, got 3"):
        regularizers.SparseCentersRegularizer(2, 2)(torch.ones(3, 2))
