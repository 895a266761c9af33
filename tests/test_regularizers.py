"""Regularizers agree with pytorch-metric-learning in value and gradient."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import reducers as peer_reducers
from pytorch_metric_learning import regularizers as peer

from pml_fast import distances, reducers, regularizers


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
