"""Softmax cross-entropy with several targets a row, against whole matrices in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, use
from pml_fast.engine import soft_targets
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score
from pml_fast.engine.soft_targets import soft_target_loss

SCORES = {
    "cosine": Score("dot"),
    "dot": Score("dot", normalize=False),
    "l2": Score("l2", normalize=False, inverted=False),
    "unit l2": Score("l2", inverted=False),
    "l2 squared": Score("l2", power=2.0, inverted=False),
    "l1": Score("lp", p=1.0, normalize=False, inverted=False),
    "asymmetric": Score("dot", normalize=False, inverted=False, symmetric=False),
}
FOLDS = {
    "mean": Fold(),
    "sum": Fold("sum"),
    "above 0": Fold("threshold", low=0.0),
    "a row": Fold("per_anchor", inner=Fold("sum")),
}
TEMPERATURE = 0.4


# What the columns are to the rows: a row of theirs is a column of its own, is none, or they are others.
SETS = {"with itself": (True, True), "others": (True, False), "two sets": (False, False)}


def drawn(n: int, m: int, itself: bool, own: bool = False, d: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows, columns, and targets of most rows."""
    x = torch.randn(n, d, dtype=torch.float64).requires_grad_()
    y = x if itself else torch.randn(m, d, dtype=torch.float64).requires_grad_()
    mask = torch.rand(n, len(y)) < 0.2
    mask[n // 2] = False
    if itself and not own:
        mask.fill_diagonal_(False)
    row, column = mask.nonzero(as_tuple=True)
    return x, y, row, column, torch.rand(len(row), dtype=torch.float64)


def scores_of(score: Score, x: Tensor, y: Tensor) -> Tensor:
    if score.normalize:
        x, y = (torch.nn.functional.normalize(part, dim=1) for part in (x, y))
    if score.kind == "dot":
        return x @ y.T
    # The root of 0 has no gradient, nor has a row's distance from itself.
    difference = (x[:, None] - y[None]).abs()
    same = (difference == 0).all(dim=2)
    distance = ((difference + same.unsqueeze(2)) ** score.p).sum(dim=2) ** (score.power / score.p)
    return distance.masked_fill(same, 0.0)


def row_losses(
    x: Tensor, y: Tensor, row: Tensor, column: Tensor, target: Tensor, score: Score, itself: bool, own: bool
) -> Tensor:
    logits = score.sign / TEMPERATURE * scores_of(score, x, y)
    seen = logits.masked_fill(torch.eye(len(x), dtype=torch.bool), float("-inf")) if itself and not own else logits
    log_all = torch.logsumexp(seen, dim=1)
    return torch.zeros(len(x), dtype=x.dtype).index_add(0, row, target * (log_all[row] - logits[row, column]))


def plain(
    x: Tensor, y: Tensor, row: Tensor, column: Tensor, target: Tensor, score: Score, itself: bool, fold: Fold, own: bool = False
) -> Tensor:
    losses = row_losses(x, y, row, column, target, score, itself, own)
    if fold.kind == "threshold":
        losses = losses[(losses > fold.low) & (losses < fold.high)]
    return losses.sum() if fold.kind == "sum" or (fold.inner and fold.inner.kind == "sum") else losses.mean()


def agree(got: Tensor, want: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    assert want.abs() > 1e-3
    mine, theirs = (torch.autograd.grad(value, leaves) for value in (got, want))
    for ours, reference in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("way", ["auto", "tiles", "chunked"])
@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("fold", [*FOLDS, "between"])
@pytest.mark.parametrize("score", SCORES)
def test_it_is_its_definition(score: str, fold: str, sets: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call, or a sweep of either backend."""
    if way == "tiles":
        monkeypatch.setattr(small, "LARGEST", 0)
    itself, own = SETS[sets]
    inputs = drawn(37, 26, itself, own)
    # Limits that leave out some of the losses at either end.
    losses = row_losses(*inputs, SCORES[score], itself, own).detach()
    ends = losses.quantile(torch.tensor([0.3, 0.8], dtype=torch.float64)).tolist()
    given = SCORES[score], itself, Fold("threshold", *ends) if fold == "between" else FOLDS[fold], own
    with use(backend="chunked" if way == "chunked" else "auto"):
        got = soft_target_loss(*inputs, TEMPERATURE, *given)
    agree(got, plain(*inputs, *given), *inputs[: 1 if itself else 2])


@pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")
@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("score", ["cosine", "dot", "l2", "unit l2", "l2 squared"])
def test_a_small_batch_takes_one_call(score: str, sets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On more than one thread, and with columns in several blocks."""
    monkeypatch.setattr(soft_targets, "both", None)
    itself, own = SETS[sets]
    inputs = drawn(300, 270, itself, own, 110)
    given = SCORES[score], itself, Fold(), own
    agree(soft_target_loss(*inputs, TEMPERATURE, *given), plain(*inputs, *given), *inputs[: 1 if itself else 2])


@pytest.mark.parametrize("one", ["x", "y"])
def test_the_gradient_of_one_side_alone(one: str) -> None:
    x, y, *targets = drawn(20, 15, False)
    leaf = x if one == "x" else y
    (y if one == "x" else x).requires_grad_(False)
    given = SCORES["cosine"], False, Fold()
    agree(soft_target_loss(x, y, *targets, TEMPERATURE, *given), plain(x, y, *targets, *given), leaf)


@pytest.mark.parametrize("small_step", [True, False])
@pytest.mark.parametrize("score", ["cosine", "l2"])
def test_rows_without_targets_are_not_looked_at(score: str, small_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss and no gradient, whatever the rows hold."""
    if not small_step:
        monkeypatch.setattr(small, "LARGEST", 0)
    x = torch.randn(9, 4)
    x[2, 1] = float("nan")
    x.requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    loss = soft_target_loss(x, x, none, none, torch.zeros(0), TEMPERATURE, SCORES[score], True, Fold())
    loss.backward()
    assert loss == 0 and x.grad is not None and x.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("small_step", [True, False])
def test_sums_are_in_float32_at_least(dtype: torch.dtype, small_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of which a sum of exponentials would overflow, too."""
    if not small_step:
        monkeypatch.setattr(small, "LARGEST", 0)
    x, _, row, column, target = drawn(60, 60, True)
    x = x.detach().to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    given = SCORES["cosine"], True, Fold()
    for temperature in (0.3, 0.005):
        got = soft_target_loss(x, x, row, column, target.float(), temperature, *given)
        want = soft_target_loss(wide, wide, row, column, target, temperature, *given)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
        mine, theirs = torch.autograd.grad(got, x)[0], torch.autograd.grad(want, wide)[0]
        assert mine.dtype == dtype
        rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        assert (mine.double() - theirs).norm() < rounding * theirs.norm()


@pytest.mark.skipif(_extension.load() is None, reason="torch's own indexing counts negative ones from the end")
@pytest.mark.parametrize("listed", [([3], [0]), ([-1], [0]), ([0], [4]), ([0], [-1])])
def test_targets_outside_are_refused(listed: Any) -> None:
    x, y = torch.randn(3, 2), torch.randn(4, 2)
    row, column = (torch.tensor(part) for part in listed)
    with pytest.raises(IndexError):
        soft_target_loss(x, y, row, column, torch.ones(1), TEMPERATURE, SCORES["cosine"], False, Fold())


def test_rows_in_any_order_take_a_sweep() -> None:
    x, y, row, column, target = drawn(20, 15, False)
    order = torch.randperm(len(row))
    given = TEMPERATURE, SCORES["cosine"], False, Fold()
    want = soft_target_loss(x, y, row, column, target, *given)
    got = soft_target_loss(x, y, row[order], column[order], target[order], *given)
    agree(got, want, x, y)
