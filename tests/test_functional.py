"""The stateless operations against the losses of the same name, and against the formulas where no loss says them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import distances, functional, losses, miners, reducers, use
from pml_fast.engine.score import Score

DISTANCES = {
    "cosine": distances.CosineSimilarity(),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "l2": distances.LpDistance(normalize_embeddings=False),
    "squared_l2": distances.LpDistance(normalize_embeddings=False, power=2),
}
REDUCERS = {
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "mean_nonzero": reducers.AvgNonZeroReducer,
}
# name -> the loss of that name, its arguments
PAIRS: dict[str, tuple[type, dict[str, float]]] = {
    "supcon": (losses.SupConLoss, {"temperature": 0.3}),
    "ntxent": (losses.NTXentLoss, {"temperature": 0.2}),
    "multi_similarity": (losses.MultiSimilarityLoss, {"alpha": 1.5, "beta": 20.0, "base": 0.4}),
    "contrastive": (losses.ContrastiveLoss, {"pos_margin": 0.2, "neg_margin": 1.5}),
    "triplet_margin": (losses.TripletMarginLoss, {"margin": 0.3}),
}


def sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, 6, generator=gen, dtype=torch.float64).to(dtype).requires_grad_() for n in (21, 15))
    return x, torch.randint(4, (21,), generator=gen), y, torch.randint(4, (15,), generator=gen)


def same(left: Tensor, right: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(left, right)
    for a, b in zip(torch.autograd.grad(left, leaves), torch.autograd.grad(right, leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", REDUCERS)
@pytest.mark.parametrize("itself", [True, False])
def test_equals_the_loss_of_the_same_name(name: str, distance: str, reduction: str, itself: bool) -> None:
    cls, arguments = PAIRS[name]
    x, labels, y, ref_labels = sets()
    loss = cls(**arguments, distance=DISTANCES[distance], reducer=REDUCERS[reduction]())
    function: Callable[..., Tensor] = getattr(functional, name)
    if itself:
        same(function(x, labels, **arguments, distance=distance, reduction=reduction), loss(x, labels), x)
    else:
        value = function(
            x, labels, **arguments, ref_embeddings=y, ref_labels=ref_labels, distance=distance, reduction=reduction
        )
        same(value, loss(x, labels, ref_emb=y, ref_labels=ref_labels), x, y)


def test_circle_equals_its_loss() -> None:
    x, labels, y, ref_labels = sets()
    same(functional.circle(x, labels, 0.3, 20.0), losses.CircleLoss(0.3, 20, reducer=reducers.MeanReducer())(x, labels), x)
    value = functional.circle(x, labels, ref_embeddings=y, ref_labels=ref_labels, reduction="mean_nonzero")
    same(value, losses.CircleLoss()(x, labels, ref_emb=y, ref_labels=ref_labels), x, y)


@pytest.mark.parametrize("name", ["supcon", "multi_similarity", "circle"])
@pytest.mark.parametrize("itself", [True, False])
def test_one_loss_a_row(name: str, itself: bool) -> None:
    function: Callable[..., Tensor] = getattr(functional, name)
    x, labels, y, ref_labels = sets()
    other: dict[str, Any] = {} if itself else {"ref_embeddings": y, "ref_labels": ref_labels}
    rows = function(x, labels, reduction="none", **other)
    assert rows.shape == (len(x),)
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(rows.sum(), function(x, labels, reduction="sum", **other))
    # Each row's loss has a gradient of its own: that of the loss of this row alone, against all others.
    expected = torch.zeros_like(x)
    for k in range(len(x)):
        (grad,) = torch.autograd.grad(rows[k], x, retain_graph=True)
        expected += weight[k] * grad
    torch.testing.assert_close(torch.autograd.grad((rows * weight).sum(), x)[0], expected)


def test_supcon_is_its_formula() -> None:
    x, labels, *_ = sets()
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T / 0.5
    own = torch.eye(len(x), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~own
    rows = torch.logsumexp(s.masked_fill(own, -torch.inf), 1) - torch.where(positive, s, 0).sum(1) / positive.sum(1).clamp(
        min=1
    )
    expected = torch.where(positive.any(1), rows, 0.0)
    torch.testing.assert_close(functional.supcon(x, labels, 0.5, reduction="none"), expected)


@pytest.mark.parametrize("select", ["all", "hard", "semihard", "easy"])
def test_selected_triplets_are_those_of_the_miner(select: str) -> None:
    x, labels, *_ = sets()
    miner = miners.TripletMarginMiner(0.4, select, distance=DISTANCES["l2"])
    loss = losses.TripletMarginLoss(0.5, distance=DISTANCES["l2"])
    value = functional.triplet_margin(x, labels, 0.5, select=select, select_margin=0.4, reduction="mean_nonzero")
    same(value, loss(x, labels, tuple(miner(x, labels))), x)


@pytest.mark.parametrize(("smooth", "swap"), [(True, False), (False, True), (True, True)])
def test_smooth_and_swapped_triplets(smooth: bool, swap: bool) -> None:
    x, labels, y, ref_labels = sets()
    loss = losses.TripletMarginLoss(0.5, swap, smooth, distance=DISTANCES["l2"], reducer=reducers.MeanReducer())
    value = functional.triplet_margin(x, labels, 0.5, smooth=smooth, swap=swap, ref_embeddings=y, ref_labels=ref_labels)
    same(value, loss(x, labels, ref_emb=y, ref_labels=ref_labels), x, y)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("itself", [True, False])
def test_row_extremes_and_hardest_triplets(distance: str, itself: bool) -> None:
    x, labels, y, ref_labels = sets()
    if itself:
        y, ref_labels = x, labels
    other: dict[str, Any] = {} if itself else {"ref_embeddings": y, "ref_labels": ref_labels}
    mat = DISTANCES[distance](x, y).detach()
    own = torch.eye(len(x), len(y), dtype=torch.bool) & itself
    equal = labels[:, None] == ref_labels
    for positive in (True, False):
        mask = equal & ~own if positive else ~equal
        for largest in (True, False):
            value, index = functional.row_extremes(x, labels, positive=positive, largest=largest, distance=distance, **other)
            worst = -torch.inf if largest else torch.inf
            masked = torch.where(mask, mat, worst)
            expected = masked.amax(1) if largest else masked.amin(1)
            torch.testing.assert_close(value, expected)
            assert not value.requires_grad
            assert torch.equal(index >= 0, mask.any(1))
            found = masked.gather(1, index.clamp(min=0)[:, None]).squeeze(1)
            torch.testing.assert_close(found[index >= 0], expected[index >= 0])
    hard = functional.hardest_triplets(x, labels, distance=distance, **other)
    inverted = DISTANCES[distance].is_inverted
    far, at = functional.row_extremes(x, labels, positive=True, largest=not inverted, distance=distance, **other)
    near, there = functional.row_extremes(x, labels, positive=False, largest=inverted, distance=distance, **other)
    for left, right in zip(hard, (at, there, far, near), strict=True):
        assert torch.equal(left, right)


def test_bounds_of_row_extremes() -> None:
    x, labels, *_ = sets()
    low, high = torch.full((len(x),), -0.5, dtype=x.dtype), torch.full((len(x),), 0.1, dtype=x.dtype)
    value, index = functional.row_extremes(x, labels, positive=False, largest=True, low=low, high=high)
    mat = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    allowed = (labels[:, None] != labels) & (mat >= -0.5) & (mat <= 0.1)
    torch.testing.assert_close(value, torch.where(allowed, mat, -torch.inf).amax(1).detach())
    assert torch.equal(index >= 0, allowed.any(1))


@pytest.mark.parametrize("distance", [*DISTANCES, Score("lp", p=1.0, normalize=False, inverted=False)])
def test_listed_scores(distance: str | Score) -> None:
    x, _, y, _ = sets()
    own = DISTANCES[distance] if isinstance(distance, str) else distances.LpDistance(p=1, normalize_embeddings=False)
    gen = torch.Generator().manual_seed(3)
    i, j = torch.randint(len(x), (40,), generator=gen), torch.randint(len(y), (40,), generator=gen, dtype=torch.int32)
    weight = torch.rand(40, generator=gen, dtype=torch.float64)
    value = functional.listed_scores(x, i, j, ref_embeddings=y, distance=distance)
    same((value * weight).sum(), (own(x, y)[i, j.long()] * weight).sum(), x, y)
    torch.testing.assert_close(functional.listed_scores(x, i, i.flip(0), distance=distance), own(x)[i, i.flip(0)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_and_gradients_have_the_documented_types(dtype: torch.dtype) -> None:
    x, labels, *_ = sets(dtype)
    for name in (*PAIRS, "circle"):
        loss = getattr(functional, name)(x, labels)
        assert loss.dtype == torch.float32 and loss.ndim == 0
        (grad,) = torch.autograd.grad(loss, x)
        assert grad.dtype == dtype and grad.shape == x.shape


def test_a_backend_asked_for_is_used() -> None:
    x, labels, *_ = sets()
    values = []
    for backend in ("chunked", "reference"):
        with use(backend=backend):
            values.append(functional.ntxent(x, labels))
    torch.testing.assert_close(*values)
    with use(backend="triton"), pytest.raises(ValueError, match="backend 'triton' cannot run this"):
        functional.ntxent(x, labels)


X, L = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: functional.supcon(X[0], L), ValueError, "embeddings must be a 2-D"),
        (lambda: functional.supcon(X.long(), L), TypeError, "embeddings must be floating point"),
        (lambda: functional.supcon(X, None), ValueError, "labels must be given"),
        (lambda: functional.supcon(X, L[:3]), ValueError, "labels must be a 1-D"),
        (lambda: functional.supcon(X, L, ref_embeddings=X[:, :1], ref_labels=L), ValueError, "ref_embeddings must have rows"),
        (lambda: functional.supcon(X, L, ref_embeddings=X.clone()), ValueError, "ref_labels must be given with ref_embeddings"),
        (lambda: functional.supcon(X, L, ref_labels=L), ValueError, "without ref_embeddings"),
        (lambda: functional.supcon(X, L, 0), ValueError, "temperature must be a finite number above 0, got 0"),
        (lambda: functional.supcon(X, L, "warm"), TypeError, "temperature must be a number"),
        (lambda: functional.supcon(X, L, distance="hamming"), ValueError, "distance must be one of cosine"),
        (lambda: functional.supcon(X, L, distance=2), TypeError, "distance must be one of cosine"),
        (lambda: functional.supcon(X, L, reduction="median"), ValueError, "reduction must be one of mean"),
        (lambda: functional.ntxent(X, L, reduction="none"), ValueError, "reduction must be 'mean'"),
        (lambda: functional.triplet_margin(X, L, reduction="none"), ValueError, "reduction must be 'mean'"),
        (lambda: functional.triplet_margin(X, L, select="odd"), ValueError, "select must be one of"),
        (lambda: functional.triplet_margin(X, L, swap=True, distance=Score(symmetric=False)), ValueError, "swap must be False"),
        (lambda: functional.circle(X, L, distance="l2"), ValueError, "distance must be 'cosine'"),
        (lambda: functional.row_extremes(X, L, positive=True, largest=True, low=torch.zeros(3)), ValueError, "low must have"),
        (lambda: functional.listed_scores(X, L.float(), L), TypeError, "i must be a tensor of integers"),
        (lambda: functional.listed_scores(X, L, L[:2]), ValueError, "i and j must be"),
        (lambda: functional.listed_scores(X, L, L + 4), (ValueError, IndexError), "0 to 3"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
