"""Small batches whose norms allow logits beyond one level: each row takes its largest logit for its own, in the one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, distances, losses, miners, use
from pml_fast.engine.cpu import pairwise

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="the extension is not compiled")


def raw() -> distances.DotProductSimilarity:
    return distances.DotProductSimilarity(normalize_embeddings=False)


LOSSES: dict[str, Any] = {
    "ntxent": lambda: losses.NTXentLoss(distance=raw()),
    "supcon": lambda: losses.SupConLoss(distance=raw()),
    "multi_similarity": lambda: losses.MultiSimilarityLoss(distance=raw()),
    "nca": lambda: losses.NCALoss(distance=distances.LpDistance(normalize_embeddings=False, power=2)),
    "angular": losses.AngularLoss,
    "clip": lambda: losses.CLIPLoss(distance=raw()),
}


# CLIPLoss compares two sets.
CASES = [(name, refs) for name in LOSSES for refs in (False, True) if refs or name != "clip"]


@pytest.mark.parametrize(("name", "refs"), CASES, ids=[f"{name}-{'refs' if refs else 'itself'}" for name, refs in CASES])
def test_long_rows_take_the_one_call(name: str, refs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gen = torch.Generator().manual_seed(2)
    x, labels = 6 * torch.randn(37, 12, generator=gen), torch.randint(8, (37,), generator=gen)
    y, others = 6 * torch.randn(37, 12, generator=gen), torch.randint(8, (37,), generator=gen)

    def outcome(dtype: torch.dtype) -> list[Tensor]:
        leaf, other = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
        loss = LOSSES[name]().to(dtype)
        more = {"ref_emb": other, "ref_labels": others} if refs else {}
        mined = None
        if name == "multi_similarity":
            mined = miners.MultiSimilarityMiner(epsilon=5.0, distance=raw())(leaf, labels, *more.values())
        value = loss(leaf, labels, mined, **more)
        grads = torch.autograd.grad(value, [leaf, other] if refs else [leaf])
        return [part.double() for part in (value.detach(), *grads)]

    with use(backend="chunked"):
        want = outcome(torch.float64)
    monkeypatch.setattr(pairwise.Sweep, "forward", lambda *_: pytest.fail("tiles were taken"))
    for got, wanted in zip(outcome(torch.float32), want, strict=True):
        assert wanted.isfinite().all()
        assert (got - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6
