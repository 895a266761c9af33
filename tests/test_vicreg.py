"""VICRegLoss: agreement with pytorch-metric-learning 2.9, and with its own methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement_options import OURS, PEER
from ranking_cases import REDUCERS, close
from torch import Tensor

from pml_fast import explain, losses


@pytest.mark.parametrize("reducer", ["default", "sum", "avg_non_zero", "between", "do_nothing"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("options", [{}, {"invariance_lambda": 3, "variance_mu": 0.5, "covariance_v": 7, "eps": 0.01}], ids=str)
def test_vicreg_equals_the_peer(options: dict[str, Any], same: bool, reducer: str) -> None:
    gen = torch.Generator().manual_seed(2)
    x, y = (0.7 * torch.randn(11, 5, generator=gen, dtype=torch.float64) for _ in range(2))
    results = []
    for m in (OURS, PEER):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        answer = m.losses.VICRegLoss(reducer=REDUCERS[reducer](m), **options)(a, ref_emb=None if same else b)
        if isinstance(answer, dict):
            answer = torch.stack([(entry["losses"] ** 2).sum() for entry in answer.values()]).sum()
        answer.backward()
        results.append((answer.detach(), a.grad, torch.zeros_like(b) if b.grad is None else b.grad))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs)


class HalvedInvariance(losses.VICRegLoss):
    def invariance_loss(self, emb: Tensor, ref_emb: Tensor) -> Tensor:
        return super().invariance_loss(emb, ref_emb) / 2


def test_vicreg_by_its_own_methods_and_by_trained_weights_equals_the_operator() -> None:
    gen = torch.Generator().manual_seed(3)
    x, y = (0.7 * torch.randn(11, 5, generator=gen, dtype=torch.float64) for _ in range(2))
    trained = losses.VICRegLoss(25)
    trained.covariance_v = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    results = []
    for loss in (losses.VICRegLoss(25), HalvedInvariance(50), trained):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(a, ref_emb=b)
        value.backward()
        assert a.grad is not None and b.grad is not None
        results.append(torch.cat([value.detach().view(1), a.grad.flatten(), b.grad.flatten()]))
    close(results[0], results[1])
    close(results[0], results[2])
    assert trained.covariance_v.grad is not None
    assert trained.covariance_v.grad > 0
    assert explain(trained, x, None, ref_emb=y).mode == "materialised"


def test_vicreg_gives_a_view_that_is_a_constant_no_gradient() -> None:
    gen = torch.Generator().manual_seed(3)
    x, y = (torch.randn(9, 4, generator=gen, dtype=torch.float64) for _ in range(2))
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    losses.VICRegLoss()(a, ref_emb=b).backward()
    alone = x.clone().requires_grad_()
    losses.VICRegLoss()(alone, ref_emb=y).backward()
    close(alone.grad, a.grad)
