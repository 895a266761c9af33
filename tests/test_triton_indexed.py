"""The Triton kernels for listed pairs (interpreted where there is no GPU) against the reference backend in float64."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast import distances, losses, reducers, use
from pml_fast.engine import dispatch
from pml_fast.engine.problem import IndexedProblem
from pml_fast.engine.reference import ReferenceBackend
from pml_fast.engine.score import Score, unit_rows

with interpreting():
    from pml_fast.engine.triton import indexed

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

SCORES = [
    Score("dot", normalize=False),
    Score("dot", power=3.0, normalize=False),
    Score("l2", normalize=False, inverted=False),
    Score("l2", power=2.0, normalize=False, inverted=False),
    Score("lp", p=1.0, normalize=False, inverted=False),
    Score("lp", p=2.0, power=3.0, normalize=False, inverted=False),
    Score("lp", p=3.0, normalize=False, inverted=False),
    Score("lp", p=0.5, power=2.0, normalize=False, inverted=False),
]


def draw(n: int, m: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Rows, columns, and a list of pairs in no order, with repeats, one crowded row and rows that are never named."""
    gen = torch.Generator().manual_seed(n * 31 + k)
    x, y = (unit_rows(torch.randn(size, d, generator=gen))[0].to(dtype) for size in (n, m))
    i, j = (torch.randint(0, max(size - 1, 1), (k,), generator=gen) for size in (n, m))
    i[: k // 2] = 0
    grad = torch.randn(k, generator=gen)
    return tuple(t.to(DEVICE) for t in (x, y, i, j, grad))


def assert_same(score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, rtol: float = 2e-5) -> None:
    oracle = ReferenceBackend()
    want = oracle.listed_scores(score, x.double(), y.double(), i, j)
    got = indexed.listed_scores(score, x, y, i, j)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=1e-6)
    want_grads = oracle.listed_grads(score, x.double(), y.double(), i, j, grad.double(), True, True)
    got_grads = indexed.listed_grads(score, x, y, i, j, grad, True, True)
    for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
        assert got_grad is not None
        assert want_grad is not None
        scale = float(want_grad.abs().max()) if want_grad.numel() else 0.0
        torch.testing.assert_close(got_grad.double(), want_grad, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("score", SCORES, ids=lambda s: f"{s.kind}{s.p:g}^{s.power:g}")
def test_equals_the_reference(score: Score) -> None:
    assert_same(score, *draw(11, 7, 75, 20))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 33, 1), (5, 4, 2, 130), (40, 3, 64, 16)])
def test_ragged_sizes(shape: tuple[int, int, int, int]) -> None:
    for score in (SCORES[0], SCORES[2]):
        assert_same(score, *draw(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_computed_in_float32(dtype: torch.dtype) -> None:
    assert_same(SCORES[2], *draw(9, 6, 40, 24, dtype))


def test_a_set_against_itself_keeps_both_roles_apart() -> None:
    x, _, i, j, grad = draw(8, 8, 30, 12)
    assert_same(SCORES[2], x, x, i, j, grad)
    dx, dy = indexed.listed_grads(SCORES[2], x, x, i, j, grad, False, True)
    assert dx is None
    assert dy is not None


@pytest.mark.parametrize("score", SCORES[2:], ids=lambda s: f"{s.kind}{s.p:g}^{s.power:g}")
def test_equal_rows_have_distance_and_gradient_zero(score: Score) -> None:
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pairs = torch.tensor([0, 1, 2, 1], device=DEVICE)
    assert not indexed.listed_scores(score, x, x, pairs, pairs).any()
    dx, dy = indexed.listed_grads(score, x, x, pairs, pairs, torch.ones(4, device=DEVICE), True, True)
    assert dx is not None
    assert dy is not None
    assert not dx.any()
    assert not dy.any()


def test_no_pairs() -> None:
    x, y, _, _, _ = draw(4, 5, 1, 8)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert indexed.listed_scores(SCORES[0], x, y, none, none).shape == (0,)
    dx, dy = indexed.listed_grads(SCORES[0], x, y, none, none, none.float(), True, True)
    assert dx is not None
    assert dy is not None
    assert not dx.any()
    assert not dy.any()
    assert dy.shape == y.shape
    assert_same(SCORES[0], x[:0], y[:0], none, none, none.float())


def test_a_nan_row_stays_where_it_is_named() -> None:
    x, y, _, _, _ = draw(4, 5, 1, 8)
    x[2] = float("nan")
    i, j = torch.tensor([0, 2, 3], device=DEVICE), torch.tensor([1, 1, 4], device=DEVICE)
    for score in (SCORES[0], SCORES[2]):
        assert indexed.listed_scores(score, x, y, i, j).isnan().tolist() == [False, True, False]
        _, dy = indexed.listed_grads(score, x, y, i, j, torch.ones(3, device=DEVICE), True, True)
        assert dy is not None
        assert dy.isnan().any(dim=1).tolist() == [False, True, False, False, False]


def test_strided_rows_and_lists() -> None:
    x, y, i, j, grad = draw(6, 6, 20, 10)
    wide = torch.zeros(6, 20, device=DEVICE)
    wide[:, ::2] = x
    twice = torch.stack([i, j], dim=1)
    assert_same(SCORES[2], wide[:, ::2], y.T.contiguous().T, twice[:, 0], twice[:, 1], grad)


def test_the_same_bits_every_time() -> None:
    x, y, i, j, grad = draw(6, 6, 200, 16)
    first = indexed.listed_grads(SCORES[2], x, y, i, j, grad, True, True)
    for got, want in zip(indexed.listed_grads(SCORES[2], x, y, i, j, grad, True, True), first, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_the_backend_takes_listed_pairs_of_p_norms(p: float) -> None:
    x, y, i, j, _ = draw(9, 6, 40, 12)
    loss = losses.TripletMarginLoss(distance=distances.LpDistance(p=p, power=3), reducer=reducers.MeanReducer())
    triplets = i, j, (j + 1) % len(y)
    outcomes = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        sets = [t.to(dtype).requires_grad_() for t in (x, y)]
        with use(backend=backend):
            value = loss(sets[0], None, triplets, sets[1])
            outcomes.append((value, *torch.autograd.grad(value, sets)))
    for got, want in zip(*outcomes, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_refuses_with_a_reason() -> None:
    lists = [torch.zeros(1, dtype=torch.int64, device=DEVICE)] * 2
    rows = torch.ones(2, 3, device=DEVICE)
    refuse = dispatch.backend("triton").refuse
    assert refuse(IndexedProblem(Score("lp", p=1.0, power=3.0), rows, rows, *lists)) is None
    assert "finite p above 0" in (refuse(IndexedProblem(Score("lp", p=float("inf")), rows, rows, *lists)) or "")
    x, y, i, j, _ = draw(3, 3, 4, 5)
    assert indexed.refuse_listed(IndexedProblem(SCORES[0], x, y, i, j)) is None
    assert "p above 0" in (indexed.refuse_listed(IndexedProblem(Score("lp", p=float("inf")), x, y, i, j)) or "")
    assert "float32" in (indexed.refuse_listed(IndexedProblem(SCORES[0], x.double(), y, i, j)) or "")
