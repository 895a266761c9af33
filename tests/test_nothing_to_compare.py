"""A loss without a usable pair or triplet is a differentiable zero, whatever the rows hold; with one, NaN is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import distances, losses, miners, reducers, use
from pml_fast.engine import dispatch

BACKENDS = [name for name in ("cpu", "chunked", "reference") if dispatch.backend(name).available() is None]
BAD = [float("nan"), float("inf"), float("-inf")]
ONE_CLASS, DISTINCT, ALONE = torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.zeros(1, dtype=torch.int64)
RAW = distances.LpDistance(normalize_embeddings=False)
BOTH_SIDES: dict[str, Any] = {
    "triplet": losses.TripletMarginLoss(),
    "triplet, raw": losses.TripletMarginLoss(distance=RAW, reducer=reducers.SumReducer()),
    "triplet, weighted": losses.TripletMarginLoss(reducer=reducers.ClassWeightedReducer(torch.ones(5))),
    "triplet, smooth": losses.TripletMarginLoss(smooth_loss=True, reducer=reducers.MeanReducer()),
    "ntxent": losses.NTXentLoss(),
    "supcon": losses.SupConLoss(reducer=reducers.MeanReducer()),
    "supcon, by anchor": losses.SupConLoss(reducer=reducers.PerAnchorReducer()),
    "circle": losses.CircleLoss(reducer=reducers.MeanReducer()),
}
ONE_SIDE: dict[str, Any] = {
    "contrastive": losses.ContrastiveLoss(),
    "contrastive, raw": losses.ContrastiveLoss(distance=RAW, reducer=reducers.MeanReducer()),
    "multi similarity": losses.MultiSimilarityLoss(),
}


def rows(n: int, bad: float) -> Tensor:
    x = torch.randn(n, 4)
    x[0, 1] = bad
    return x.requires_grad_()


def assert_zero(loss: Tensor, x: Tensor) -> None:
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert not grad.any() and not grad.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [ONE_CLASS, DISTINCT, ALONE], ids=["one class", "distinct", "alone"])
@pytest.mark.parametrize("name", BOTH_SIDES)
def test_a_batch_without_both_sides(name: str, labels: Tensor, backend: str) -> None:
    for bad in BAD:
        x = rows(len(labels), bad)
        with use(backend=backend):
            assert_zero(BOTH_SIDES[name](x, labels), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ONE_SIDE)
def test_a_batch_without_any_pair(name: str, backend: str) -> None:
    for bad in BAD:
        x = rows(1, bad)
        with use(backend=backend):
            assert_zero(ONE_SIDE[name](x, ALONE), x)


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_a_reference_set_of_the_same_class(name: str) -> None:
    x = rows(5, float("nan"))
    y = rows(3, float("inf"))
    loss = BOTH_SIDES[name](x, ONE_CLASS, None, y, ONE_CLASS[:3])
    for grad in torch.autograd.grad(loss, (x, y)):
        assert not grad.any() and not grad.isnan().any()
    assert loss.item() == 0


def test_batches_that_no_longer_fit_one_call() -> None:
    x, labels = rows(600, float("nan")), torch.zeros(600, dtype=torch.int64)
    for loss in (losses.SupConLoss(), losses.TripletMarginLoss(), losses.CircleLoss()):
        assert_zero(loss(x, labels), x)


def test_losses_of_rows_that_are_not_reduced() -> None:
    x = rows(5, float("nan"))
    for loss in (
        losses.SupConLoss(reducer=reducers.DoNothingReducer()),
        losses.CircleLoss(reducer=reducers.DoNothingReducer()),
    ):
        assert_zero(loss(x, ONE_CLASS)["loss"]["losses"].sum(), x)


def test_a_miner_that_finds_no_triplet() -> None:
    x = rows(5, float("nan"))
    for loss in (losses.TripletMarginLoss(), losses.ContrastiveLoss()):
        assert_zero(loss(x, ONE_CLASS, miners.BatchHardMiner()(x, ONE_CLASS)), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [*BOTH_SIDES, *ONE_SIDE])
def test_a_nan_with_usable_tuples_is_seen(name: str, backend: str) -> None:
    x, labels = rows(5, float("nan")), torch.tensor([0, 0, 1, 1, 2])
    with use(backend=backend):
        loss = (BOTH_SIDES | ONE_SIDE)[name](x, labels)
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and grad.isnan().any()
