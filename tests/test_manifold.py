"""ManifoldLoss: agreement with pytorch-metric-learning 2.9, its formula in float64, and what it draws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from agreement_options import OURS, PEER
from ranking_cases import close

from pml_fast import losses


def manifolds(**options: Any) -> list[Any]:
    made = []
    for m in (OURS, PEER):
        torch.manual_seed(7)
        made.append(m.losses.ManifoldLoss(6, **{"K": 5, **options}))
    assert torch.equal(made[0].proxies, made[1].proxies)
    return made


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("options", [{}, {"lambdaC": 0}, {"lambdaC": 2.5, "alpha": 0.5, "margin": 0.01}], ids=str)
def test_manifold_equals_the_peer(options: dict[str, Any], distance: str, given: bool) -> None:
    """Value and gradients by embeddings and proxies; both draw the same proxies from torch's generator."""
    make = {"cosine": "CosineSimilarity", "l2": "LpDistance", "dot": "DotProductSimilarity"}[distance]
    x = torch.randn(17, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    proxy = torch.arange(17) % 5 if given else None
    results = []
    for module, m in zip(manifolds(**options), (OURS, PEER), strict=True):
        module.distance = getattr(m.distances, make)()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(11)
        value = module(leaf, indices_tuple=proxy)
        value.backward()
        results.append((value.detach(), leaf.grad, module.proxies.grad))
    for mine, theirs in zip(*results, strict=True):
        # The peer inverts its matrix in float32.
        close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_manifold_in_float64_is_its_formula() -> None:
    (loss, _), gen = manifolds(lambdaC=0.7, alpha=0.6), torch.Generator().manual_seed(2)
    loss.double()
    x = torch.randn(9, 6, generator=gen, dtype=torch.float64)
    proxy = torch.tensor([0, 1, 2, 3, 4, 4, 2, 2, 0])
    nodes = torch.nn.functional.normalize(torch.cat([x, loss.proxies.detach()]))
    s = torch.exp(2 * (nodes @ nodes.T).clamp(min=0)) * (1 - torch.eye(14))
    root = s.sum(dim=1).rsqrt().diag()
    # The limit of the random walk is a geometric series.
    step, walk = 0.6 * root @ s @ root, torch.eye(14, dtype=torch.float64)
    power = walk
    for _ in range(200):
        power = power @ step
        walk = walk + power
    walk = 0.4 * walk
    want = 0.0
    for scores, weight in (
        (walk[:9, 9:], 1.0),
        (torch.nn.functional.cosine_similarity(walk[:9, None], walk[None, 9:], dim=2), 0.7),
    ):
        for i in range(9):
            gaps = [float(scores[i, k] - scores[i, proxy[i]]) + 5e-4 for k in range(5) if k != proxy[i]]
            want += weight * float(torch.tensor([0.0, *[g for g in gaps if g >= 0]]).exp().sum().log()) / 9
    # The zero stands for the 1 in log(1 + ...).
    assert loss(x, indices_tuple=proxy).item() == pytest.approx(want, rel=1e-6)


def test_an_infinite_weight_means_the_context_loss_alone() -> None:
    ours, peer = manifolds(lambdaC=float("inf"))
    x, proxy = torch.randn(8, 6), torch.arange(8) % 5
    assert peer(x, indices_tuple=proxy).isinf()
    (both, _), (one, _) = manifolds(lambdaC=1), manifolds(lambdaC=0)
    close(ours(x, indices_tuple=proxy), both(x, indices_tuple=proxy) - one(x, indices_tuple=proxy), rtol=1e-4, atol=1e-5)


def test_manifold_draws_from_its_own_generator() -> None:
    x = torch.randn(20, 6)

    def values(seed: int) -> list[float]:
        torch.manual_seed(0)
        loss = losses.ManifoldLoss(6, K=5, seed=seed)
        before = torch.get_rng_state()
        drawn = [loss(x).item() for _ in range(3)]
        assert torch.equal(before, torch.get_rng_state())
        return drawn

    first = values(3)
    assert first == values(3) != values(4) and len(set(first)) == 3
    torch.manual_seed(0)
    loss = losses.ManifoldLoss(6, K=5, seed=3)
    loss(x)
    resumed = losses.ManifoldLoss(6, K=5, seed=3)
    resumed.load_state_dict(loss.state_dict())
    assert [resumed(x).item(), copy.deepcopy(loss)(x).item()] == [first[1], first[1]]
