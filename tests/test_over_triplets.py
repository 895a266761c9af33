"""Pairs counted as often as triplets hold them: the margin loss in one operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, distances, explain, losses, use
from pml_fast.engine.plan import FUSED

COMPILED = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")
LABELS = {
    "ragged": [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4],
    "one class": [5] * 6,
    "no positives": list(range(7)),
    "one pair": [1, 1],
}


def batch(name: str, m: int | None, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor(LABELS[name])
    x = torch.randn(len(labels), 8, generator=generator, dtype=torch.float64).to(dtype)
    if m is None:
        return x, labels, None, None
    return x, labels, torch.randn(m, 8, generator=generator, dtype=torch.float64).to(dtype), torch.arange(m) % 5


def results(loss: losses.MarginLoss, data: tuple[Any, ...], listed: bool) -> list[Tensor]:
    """Value and gradients by rows, columns and boundary, of one operator or of every single triplet."""
    x, labels, y, ref_labels = data
    leaves = [part.clone().requires_grad_() for part in (x, y) if part is not None]
    ref = leaves[1] if y is not None else None
    if listed:
        call = loss.read_call(leaves[0], labels, None, ref, ref_labels)
        entries = loss.compute_loss(call.embeddings, call.labels, None, call.ref_emb, call.ref_labels)
        value: Any = loss.reducer(entries, call.embeddings, call.labels)
    else:
        value = loss(leaves[0], labels, None, ref, ref_labels)
    wanted = [*leaves, *loss.parameters()]
    grads = torch.autograd.grad(value, wanted, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted, strict=True))]


@pytest.mark.parametrize("backend", ["auto", pytest.param("cpu", marks=COMPILED), "chunked", "reference"])
@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("m", [None, 9])
def test_the_fused_loss_is_that_of_all_triplets(name: str, m: int | None, backend: Any) -> None:
    for make in (distances.LpDistance, distances.CosineSimilarity):
        for options in ({}, {"learn_beta": True}, {"learn_beta": True, "nu": 0.4}):
            beta = 0.3 if make is distances.CosineSimilarity else 1.1
            loss = losses.MarginLoss(beta=beta, distance=make(), **options)
            data = batch(name, m, torch.float64)
            with use(backend=backend):
                got = results(loss, data, False)
            for mine, expected in zip(got, results(loss, data, True), strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)


def test_it_is_fused_where_the_boundary_is_one_number() -> None:
    x, labels, *_ = batch("ragged", None, torch.float32)
    one = explain(losses.MarginLoss(learn_beta=True), x, labels)
    assert one.mode == FUSED and any("as often as triplets hold it" in note for note in one.notes)
    assert explain(losses.MarginLoss(num_classes=5), x, labels).mode != FUSED


def test_many_rows_take_tiles() -> None:
    """More rows than the one-call step takes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, 16, generator=generator)
    labels = torch.arange(700) % 90
    loss = losses.MarginLoss(learn_beta=True)
    got = results(loss, (x, labels, None, None), False)
    with use(backend="chunked"):
        want = results(loss, (x.double(), labels, None, None), False)
    for mine, expected in zip(got, want, strict=True):
        torch.testing.assert_close(mine.double(), expected.double(), rtol=1e-3, atol=1e-6)


def test_a_row_without_triplets_adds_nothing() -> None:
    """Its class has one row here, and none of its pairs is a number."""
    x, labels, *_ = batch("ragged", None, torch.float64)
    x[5] = torch.nan
    keep = labels != 2
    # Other anchors meet it as a negative, and show it.
    assert losses.MarginLoss()(x, labels).isnan()
    assert losses.MarginLoss()(x[keep], labels[keep]).isfinite()
