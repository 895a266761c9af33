"""Mined triplets a block at a time: the loss and the gradient of a list of all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import distances, explain, losses, miners, reducers
from pml_fast.engine import angles, grad_sum
from pml_fast.engine.lazy import LazyIndices

REDUCERS = {
    "above zero": reducers.AvgNonZeroReducer,
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "between": lambda: reducers.ThresholdReducer(low=0.25, high=0.95),
}
DISTANCES = {
    "l2": distances.LpDistance,
    "cosine": distances.CosineSimilarity,
    "squared": lambda: distances.LpDistance(power=2),
    "l1": lambda: distances.LpDistance(p=1),
    "snr": distances.SNRDistance,
}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 700)
    monkeypatch.setattr(angles, "STRIP_ELEMENTS", 700)


def drawn(two_sets: bool, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(4)
    x, y = (torch.randn(n, 6, generator=gen).to(dtype) for n in (31, 22))
    call = {"embeddings": x, "labels": torch.arange(31) % 5}
    if two_sets:
        call |= {"ref_emb": y, "ref_labels": torch.arange(22) % 6}
    return call


def loss_and_gradients(loss: Any, call: dict[str, Tensor], listed: bool) -> tuple[Tensor, ...]:
    leaves = {name: part.clone().requires_grad_() for name, part in call.items() if part.is_floating_point()}
    given = call | leaves
    mined = miners.AngularMiner(30)(*given.values())
    assert isinstance(mined, LazyIndices)
    if listed:
        mined.materialise()
    assert (mined.blocks() is None) == listed
    value = loss(given["embeddings"], given["labels"], mined, given.get("ref_emb"), given.get("ref_labels"))
    (2 * value).backward()
    assert mined._made is not None or not listed
    return value.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_blocks_have_the_loss_of_the_list(reducer: str, distance: str, smooth: bool, two_sets: bool) -> None:
    loss = losses.TripletMarginLoss(0.2, smooth_loss=smooth, distance=DISTANCES[distance](), reducer=REDUCERS[reducer]())
    call = drawn(two_sets)
    got, want = (loss_and_gradients(loss, call, listed) for listed in (False, True))
    assert want[0] > 0 and len(got) == len(want) == 2 + two_sets
    for mine, reference in zip(got, want, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reducer", ["by_class", "nothing"])
def test_other_reductions_take_the_list(reducer: str) -> None:
    made = {
        "by_class": reducers.ClassWeightedReducer(torch.rand(5)),
        "nothing": reducers.DoNothingReducer(),
    }
    call = drawn(False)
    mined = miners.AngularMiner(30)(**call)
    losses.TripletMarginLoss(reducer=made[reducer])(call["embeddings"], call["labels"], mined)
    assert mined.blocks() is None


def test_few_triplets_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(angles, "STRIP_ELEMENTS", 1 << 20)
    assert miners.AngularMiner(30)(**drawn(False)).blocks() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types(dtype: torch.dtype) -> None:
    loss, call = losses.TripletMarginLoss(), drawn(False, dtype)
    got, want = (loss_and_gradients(loss, call, listed) for listed in (False, True))
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], want[1], rtol=2e-2, atol=1e-4)


def test_no_triplet_is_no_loss() -> None:
    call = drawn(False)
    x = call["embeddings"].requires_grad_()
    mined = miners.AngularMiner(179)(x, call["labels"])
    loss = losses.TripletMarginLoss()(x, call["labels"], mined)
    loss.backward()
    assert loss == 0 and x.grad is not None and x.grad.eq(0).all()


def test_a_change_after_mining_is_seen() -> None:
    call = drawn(False)
    mined = miners.AngularMiner(30)(**call)
    call["embeddings"].add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        losses.TripletMarginLoss()(call["embeddings"], call["labels"], mined)


def test_a_second_derivative_is_refused() -> None:
    call = drawn(False)
    x = call["embeddings"].requires_grad_()
    loss = losses.TripletMarginLoss()(x, call["labels"], miners.AngularMiner(30)(x, call["labels"]))
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_explain_says_so() -> None:
    call = drawn(False)
    said = explain(losses.TripletMarginLoss(), **call, miner=miners.AngularMiner(30))
    assert any("a block at a time" in note for note in said.notes)
    assert said.mode == "partly fused"
