"""A setting that is a parameter to be trained gets its gradient, as in PML."""

from __future__ import annotations

import pytest
import pytorch_metric_learning.losses as peer
import torch
from torch import Tensor

from pml_fast import losses
from pml_fast.losses.base_metric_loss_function import prepare_call

CASES = {
    "NTXentLoss": ("temperature", 0.2),
    "SupConLoss": ("temperature", 0.2),
    "MultiSimilarityLoss": ("base", 0.4),
    "ContrastiveLoss": ("neg_margin", 1.1),
    "TripletMarginLoss": ("margin", 0.3),
    "NCALoss": ("softmax_scale", 1.5),
    "LiftedStructureLoss": ("neg_margin", 1.2),
    "GeneralizedLiftedStructureLoss": ("pos_margin", 0.1),
    "IntraPairVarianceLoss": ("neg_eps", 0.02),
    "TupletMarginLoss": ("scale", 9.0),
    "ThresholdConsistentMarginLoss": ("margin_minus", 0.1),
    "InstanceLoss": ("gamma", 7.0),
    "MarginLoss": ("margin", 0.3),
    "AngularLoss": ("alpha", 0.6),
}


def gradient(loss: torch.nn.Module, name: str, value: float, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    parameter = torch.nn.Parameter(torch.tensor(value, dtype=x.dtype))
    if torch.is_tensor(getattr(loss, name)):
        delattr(loss, name)
    setattr(loss, name, parameter)
    embeddings = x.clone().requires_grad_()
    result = loss(embeddings, labels)
    result.backward()
    assert parameter.grad is not None and embeddings.grad is not None
    return result.detach(), parameter.grad, embeddings.grad


@pytest.mark.parametrize("name", CASES)
def test_a_trained_setting_gets_its_gradient(name: str) -> None:
    x = torch.randn(24, 6, dtype=torch.float64)
    labels = torch.arange(24) // 4
    setting, value = CASES[name]
    ours = gradient(getattr(losses, name)(), setting, value, x, labels)
    theirs = gradient(getattr(peer, name)(), setting, value, x, labels)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_trained_temperature_over_label_sets() -> None:
    x, sets = torch.randn(12, 5, dtype=torch.float64), torch.rand(12, 4) < 0.5
    loss = losses.MultiSupConLoss()
    loss.temperature = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def value(temperature: Tensor) -> Tensor:
        loss.temperature = torch.nn.Parameter(temperature)
        return loss(x, sets)

    loss(x, sets).backward()
    slope = loss.temperature.grad.item()
    step = torch.tensor(1e-5, dtype=torch.float64)
    ahead, behind = value(0.3 + step), value(0.3 - step)
    assert slope == pytest.approx((ahead - behind).item() / 2e-5, rel=1e-6)


def test_trained_weights_of_a_ranked_list() -> None:
    x, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) // 3
    ours, theirs = (m.RankedListLoss(margin=0.4, Tn=2, Tp=1) for m in (losses, peer))
    for loss in (ours, theirs):
        loss.Tn = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        loss(x, labels).backward()
    torch.testing.assert_close(ours.Tn.grad, theirs.Tn.grad)


def test_the_plan_says_so() -> None:
    loss = losses.NTXentLoss()
    loss.temperature = torch.nn.Parameter(torch.tensor(0.1))
    plan = loss.plan(prepare_call(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), None, None, None))
    assert plan.mode == "materialised"
    assert any("temperature is trained" in note for note in plan.notes)
