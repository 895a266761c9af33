"""Embeddings and reference set of two floating types: refused, except inside of autocast, where models hand them out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import losses, miners, reducers

LOSSES: dict[str, Any] = {
    "supcon": losses.SupConLoss(),
    "triplet": losses.TripletMarginLoss(),
    "every loss": losses.ContrastiveLoss(reducer=reducers.DoNothingReducer()),
}
TYPES = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16)]


def batch(own: torch.dtype, ref: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = torch.randn(12, 6), torch.randn(9, 6)
    return x.to(own).requires_grad_(), torch.arange(12) % 4, y.to(ref).requires_grad_(), torch.arange(9) % 4


def total(result: Any) -> Tensor:
    if isinstance(result, dict):
        return sum(total(part) for part in result.values() if not isinstance(part, (str, tuple)))  # type: ignore[return-value]
    return torch.as_tensor(result).sum()


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_autocast_promotes_to_the_wider_type(name: str, types: tuple[torch.dtype, torch.dtype]) -> None:
    x, labels, y, ref_labels = batch(*types)
    wide = [t.detach().to(torch.promote_types(*types)).requires_grad_() for t in (x, y)]
    want = total(LOSSES[name](wide[0], labels, None, wide[1], ref_labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = total(LOSSES[name](x, labels, None, y, ref_labels))
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    for mine, theirs, dtype in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, wide), types, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs.to(dtype))


def test_a_miner_takes_them_too() -> None:
    x, labels, y, ref_labels = batch(torch.bfloat16, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mined = miners.MultiSimilarityMiner()(x, labels, y, ref_labels)
        got = losses.MultiSimilarityLoss()(x, labels, mined, y, ref_labels)
    wide = x.detach().float()
    want = losses.MultiSimilarityLoss()(wide, labels, miners.MultiSimilarityMiner()(wide, labels, y, ref_labels), y, ref_labels)
    torch.testing.assert_close(got, want)


def test_elsewhere_they_are_refused() -> None:
    x, labels, y, ref_labels = batch(torch.bfloat16, torch.float32)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=False),
        pytest.raises(TypeError, match=r"ref_emb must be torch.bfloat16 on cpu .*got torch.float32 on cpu; call ref_emb.to"),
    ):
        losses.SupConLoss()(x, labels, None, y, ref_labels)
