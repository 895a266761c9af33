"""Operators called past PyTorch's dispatcher, and through it where something has to see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from loss_table import CLASSES, DIMENSION, NAMES, call_loss, make_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pml_fast import losses, miners
from pml_fast.engine import operator
from pml_fast.engine.score import Score


class Seen(TorchDispatchMode):
    """Notes the operators of pml_fast that come by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pml_fast":
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The operators that are called past the dispatcher."""
    names: set[str] = set()
    before = dict(operator._DIRECT)

    def noting(name: str) -> Any:
        return lambda *inputs: names.add(name) or before[name](*inputs)

    with monkeypatch.context() as patch:
        for name in before:
            patch.setitem(operator._DIRECT, name, noting(name))
        yield names


def step(name: str, n: int) -> list[Tensor]:
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(n, DIMENSION, generator=gen).requires_grad_()
    loss = make_loss(losses, name)
    value = call_loss(loss, x, torch.arange(n) % CLASSES)
    value.backward()
    grads = [x.grad, *(parameter.grad for parameter in loss.parameters())]
    return [value.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_give_the_same(name: str) -> None:
    """Value and gradients. What only plain tensors may take (compiled calls without an operator) rounds in its own way."""
    for n in (20,) if name == "ManifoldLoss" else (20, 0):  # which draws its proxies from the batch
        direct = step(name, n)
        with Seen():
            dispatched = step(name, n)
        assert len(direct) == len(dispatched)
        for a, b in zip(direct, dispatched, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_dispatch_mode_sees_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    with noted(monkeypatch) as direct, Seen() as mode:
        step("SupConLoss", 20)
    assert "pairwise_loss" in mode.names
    assert not direct
    with noted(monkeypatch) as direct:
        step("SupConLoss", 20)
    assert direct == {"pairwise_loss"}


def test_a_subclass_and_meta_tensors_go_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.Tensor):
        pass

    loss, labels = losses.SupConLoss(), torch.arange(20) % CLASSES
    with noted(monkeypatch) as direct:
        loss(torch.randn(20, DIMENSION).as_subclass(Own), labels)
        loss(torch.randn(20, DIMENSION, device="meta"), labels.to("meta"))
    assert not direct


def test_a_search_leaves_no_graph() -> None:
    """Operators without a formula give no gradient, although what they compute with could."""
    x = torch.randn(2000, DIMENSION, requires_grad=True)
    value, _ = operator.call(
        "row_extremes", x, x, *[torch.arange(2000) % CLASSES] * 2, None, None, _cosine(), True, False, True
    )  # fmt: skip
    assert not value.requires_grad
    mined = miners.BatchHardMiner()(x, torch.arange(2000) % CLASSES)
    assert not any(part.requires_grad for part in mined)


def _cosine() -> str:
    score = losses.SupConLoss().distance.engine_score()
    assert score is not None
    return score.encode()


def test_a_result_of_one_tensor_can_be_changed_in_place() -> None:
    """It is the formula's own output and no view of it, which autograd would refuse to change."""
    i = torch.tensor([0, 1])
    score = Score("l2", normalize=False, inverted=False).encode()
    for name, listed in (("strip_base", ()), ("listed_scores", (i, i + 2))):
        x = torch.randn(8, 4, requires_grad=True)
        found = operator.call(name, x, x.detach()[2:], *listed, score)
        want = found.detach() + 1
        torch.testing.assert_close(found.add_(1).detach(), want)
