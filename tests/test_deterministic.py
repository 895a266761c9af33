"""`deterministic` decides how sums at listed places are taken where torch's own order is not fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import distances, explain, losses, reducers, use
from pml_fast.engine import explain as explaining
from pml_fast.engine import listed_sums

X, LABELS = torch.randn(8, 4), torch.arange(8) % 4
PAIRS = tuple(torch.tensor(part) for part in ([0, 0, 1], [4, 4, 5], [0, 2, 2], [1, 3, 5]))
TRIPLETS = tuple(torch.tensor(part) for part in ([0, 0, 1], [4, 4, 5], [1, 2, 3]))
CALLS: dict[str, tuple[Any, Any]] = {
    "listed pairs": (losses.SupConLoss(), PAIRS),
    "pairs by anchor": (losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer()), PAIRS),
    "listed triplets": (losses.TripletMarginLoss(), TRIPLETS),
    "swapped triplets": (losses.TripletMarginLoss(swap=True), None),
}


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Torch's mode during every index_add of floats, with the CPU standing in for a device without order."""
    seen: list[bool] = []
    real = Tensor.index_add_

    def spy(total: Tensor, *arguments: Any) -> Tensor:
        if total.is_floating_point():
            seen.append(torch.are_deterministic_algorithms_enabled())
        return real(total, *arguments)

    monkeypatch.setattr(Tensor, "index_add_", spy)
    monkeypatch.setattr(listed_sums, "UNORDERED", ("cpu",))
    monkeypatch.setattr(explaining, "UNORDERED", ("cpu",))
    return seen


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_sums_follow_the_setting(name: str, deterministic: bool, modes: list[bool]) -> None:
    loss, indices = CALLS[name]
    with use(backend="chunked", deterministic=deterministic):
        loss(X.clone().requires_grad_(), LABELS, indices).backward()
    assert modes and set(modes) == {deterministic}
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_process_keeps_its_own_mode(modes: list[bool]) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for deterministic in (True, False):
            with use(backend="chunked", deterministic=deterministic):
                losses.SupConLoss()(X, LABELS, PAIRS)
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert modes and all(modes)


def test_explain_says_which(modes: list[bool]) -> None:
    with use(deterministic=False):
        assert not explain(losses.SupConLoss(), X, LABELS, indices_tuple=PAIRS).deterministic
        assert explain(losses.SupConLoss(), X, LABELS).deterministic
    assert explain(losses.SupConLoss(), X, LABELS, indices_tuple=PAIRS).deterministic


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu() -> None:
    x = torch.randn(64, 32, device="cuda", dtype=torch.float64)
    i, j, k = (torch.randint(0, 64, (100_000,), device="cuda") for _ in range(3))
    loss = losses.TripletMarginLoss(distance=distances.LpDistance(p=3))
    found = []
    for _ in range(5):
        leaf = x.clone().requires_grad_()
        value = loss(leaf, None, (i, j, k))
        found.append((value, *torch.autograd.grad(value, leaf)))
    for value, grad in found[1:]:
        assert torch.equal(value, found[0][0]) and torch.equal(grad, found[0][1])
