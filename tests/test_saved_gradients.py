"""What a fused loss computes ahead in its forward: the backward hands it on, scaled, as often as it is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pml_fast import losses

SIZES = (24, 1056)  # in one compiled call, and in tiles


def _classes(n: int) -> Tensor:
    return torch.arange(n) // 4


def _bound(loss: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: loss(x, _classes(len(x)))


def _two_sets(loss: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: loss(x, _classes(len(x)), ref_emb=y, ref_labels=_classes(len(y)))


def _listed(x: Tensor, y: Tensor) -> Tensor:
    triplets = torch.tensor([[0, 1, 4], [4, 5, 0], [5, 4, 9]]).T
    return losses.TripletMarginLoss(margin=2.0)(x, _classes(len(x)), tuple(triplets))


def _label_sets(x: Tensor, y: Tensor) -> Tensor:
    sets = torch.nn.functional.one_hot(_classes(len(x)) % 3, 3)
    return losses.MultiSupConLoss()(x, sets)


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pairs": _bound(losses.NTXentLoss()),
    "pairs of two sets": _two_sets(losses.ContrastiveLoss(neg_margin=2.0)),
    "triplets": _bound(losses.TripletMarginLoss(margin=2.0)),
    "listed triplets": _listed,
    "histogram": _bound(losses.HistogramLoss(n_bins=20)),
    "logits": lambda x, y: losses.SigLIPLoss()(x, ref_emb=y),
    "label sets": _label_sets,
}


Step = tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]


@pytest.fixture(params=[(name, n) for name in STEPS for n in SIZES], ids=lambda p: f"{p[0]}-{p[1]}")
def step(request: pytest.FixtureRequest) -> Step:
    name, n = request.param
    x, y = (torch.randn(n, 16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return STEPS[name], x, y


def gradients(loss: Tensor, x: Tensor, y: Tensor, **kwargs: bool) -> list[Tensor]:
    found = torch.autograd.grad(loss, (x, y), allow_unused=True, **kwargs)
    return [grad for grad in found if grad is not None]


def test_each_backward_of_a_kept_graph_gives_the_same_gradient(step: Step) -> None:
    run, x, y = step
    want = [grad.clone() for grad in gradients(run(x, y), x, y)]
    loss = run(x, y)
    for times in (1, 2, 3):
        loss.backward(retain_graph=times < 3)
        got = [leaf.grad for leaf in (x, y) if leaf.grad is not None]
        for grad, once in zip(got, want, strict=True):
            torch.testing.assert_close(grad, times * once)
    assert want[0].abs().max() > 0


def test_a_gradient_that_is_changed_in_place_leaves_a_kept_graph_alone(step: Step) -> None:
    run, x, y = step
    loss = run(x, y)
    want = [grad.clone() for grad in gradients(loss, x, y, retain_graph=True)]
    for grad in gradients(loss, x, y, retain_graph=True):
        grad.fill_(7.0)
    for grad, once in zip(gradients(loss, x, y), want, strict=True):
        assert torch.equal(grad, once)


def test_a_factor_scales_the_gradient(step: Step) -> None:
    run, x, y = step
    want = [grad.clone() for grad in gradients(run(x, y), x, y)]
    for factor in (1.0, -3.0, 0.0):
        for grad, once in zip(gradients(factor * run(x, y), x, y), want, strict=True):
            torch.testing.assert_close(grad, factor * once)


def test_losses_of_one_tensor_add_up(step: Step) -> None:
    run, x, y = step
    want = [2 * grad for grad in gradients(run(x, y), x, y)]
    for grad, twice in zip(gradients(run(x, y) + run(x, y), x, y), want, strict=True):
        torch.testing.assert_close(grad, twice)


@pytest.mark.parametrize("n", SIZES)
def test_a_last_backward_by_1_takes_no_copy(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handing on what the forward has costs no pass over the rows; a graph that is kept keeps its own."""
    x = torch.randn(n, 16, requires_grad=True)
    loss, real = losses.NTXentLoss(), Tensor.__mul__
    products: list[torch.Size] = []

    def watched(self: Tensor, other: object) -> Tensor:
        products.append(self.shape)
        return real(self, other)

    for kept in (False, True):
        value = loss(x, _classes(n))
        with monkeypatch.context() as patched:
            patched.setattr(Tensor, "__mul__", watched)
            value.backward(retain_graph=kept)
        assert products == [x.shape] * kept
