"""The oracle itself, against plain loops; and the strips' pair engine against the oracle, for every
registered spec.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

import pml_fast.engine.specs  # noqa: F401  (fills the registry)
from pml_fast.engine import grad_sum
from pml_fast.engine.chunked import ChunkedBackend
from pml_fast.engine.problem import (
    NO_LIMITS,
    ExtremeProblem,
    IndexedProblem,
    Limits,
    PairProblem,
    PairRows,
    TripletProblem,
)
from pml_fast.engine.reference import MOST_ELEMENTS, ReferenceBackend
from pml_fast.engine.score import Score, unit_rows
from pml_fast.engine.spec import PAIR_SPECS, PairSpec, TripletSpec

INF = float("inf")
DOT = Score("dot", normalize=False)
L2 = Score("l2", normalize=False, inverted=False)
SQUARED = Score("l2", power=2.0, normalize=False, inverted=False)
LP = Score("lp", p=3.0, normalize=False, inverted=False)
SCORES = [DOT, L2, SQUARED, LP]


def draw(n: int, m: int | None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows and columns with labels; ``m`` of ``None`` is a batch against itself. The last class has one
    row.
    """
    gen = torch.Generator().manual_seed(seed)
    x = unit_rows(torch.randn(n, 6, generator=gen, dtype=torch.float64))[0]
    x_labels = torch.randint(0, 3, (n,), generator=gen)
    x_labels[-1] = 9
    if m is None:
        return x, x, x_labels, x_labels
    y = unit_rows(torch.randn(m, 6, generator=gen, dtype=torch.float64))[0]
    return x, y, x_labels, torch.randint(0, 4, (m,), generator=gen)


def pair_problem(
    spec: PairSpec,
    score: Score,
    itself: bool = True,
    ruled: bool = False,
    limits: Limits = NO_LIMITS,
) -> PairProblem:
    x, y, x_labels, y_labels = draw(19, None if itself else 14)
    rule = None
    if ruled:
        gen = torch.Generator().manual_seed(3)
        low = torch.rand(2, len(x), generator=gen, dtype=torch.float64) - 0.8
        high = low + 1.2
        rule = torch.stack([low[0], high[0], low[1], high[1]])
    return PairProblem(spec, score, x, y, x_labels, y_labels, itself, rule, [limits] * len(spec.terms))


@pytest.mark.parametrize("name", sorted(PAIR_SPECS))
@pytest.mark.parametrize("score", SCORES, ids=lambda s: f"{s.kind}{s.power:g}")
def test_strips_equal_the_dense_formula(monkeypatch: pytest.MonkeyPatch, name: str, score: Score) -> None:
    """Rows, counts, what exists and gradients, for a batch against itself and a reference set, with and
    without a rule.
    """
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 5 * 19)
    chunked, reference = ChunkedBackend(), ReferenceBackend()
    for itself, ruled, limits in itertools.product([True, False], [False, True], [NO_LIMITS, (0.0, INF), (0.1, 0.9)]):
        problem = pair_problem(PAIR_SPECS[name](), score, itself, ruled, limits)
        got, want = chunked.pair_rows(problem, False, False), reference.pair_rows(problem, False, False)
        torch.testing.assert_close(got.rows, want.rows, rtol=1e-9, atol=1e-10, equal_nan=True)
        assert got.exists.tolist() == want.exists.tolist()
        w = torch.linspace(-1, 2, want.rows[:, 0].numel(), dtype=torch.float64).view_as(want.rows[:, 0]).clone()
        w[:, ::4] = 0
        got_grads = chunked.pair_grads(problem, got, w, True, True)
        want_grads = reference.pair_grads(problem, want, w, True, True)
        assert (got_grads[1] is None) == (want_grads[1] is None) == itself
        for got_grad, want_grad in zip(got_grads, want_grads, strict=True):
            if want_grad is not None:
                torch.testing.assert_close(got_grad, want_grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", sorted(PAIR_SPECS))
@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches_are_finite(name: str, n: int) -> None:
    """No row, no pair, or one pair: every backend's numbers are finite and equal."""
    x = unit_rows(torch.ones(n, 3, dtype=torch.float64).cumsum(dim=0).square() + torch.eye(3, dtype=torch.float64)[:n])[0]
    labels = torch.zeros(n, dtype=torch.int64)
    spec = PAIR_SPECS[name]()
    problem = PairProblem(spec, DOT, x, x, labels, labels, True, None, [NO_LIMITS] * len(spec.terms))
    for backend in (ChunkedBackend(), ReferenceBackend()):
        state = backend.pair_rows(problem, False, False)
        assert state.rows.shape == (len(spec.terms), 2, n)
        assert torch.isfinite(state.rows).all()
        dx, dy = backend.pair_grads(problem, state, torch.ones(len(spec.terms), n, dtype=x.dtype), True, False)
        assert dy is None
        assert dx is not None
        assert torch.isfinite(dx).all()


def test_contrastive_by_hand() -> None:
    """Three points on a line, distances 1, 2 and 3: the sums can be done in the head."""
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    spec = PAIR_SPECS["contrastive"](0.5, 2.5)
    assert [f.name for f in fields(spec)] == ["pos_margin", "neg_margin"]
    problem = PairProblem(spec, L2, x, x, labels, labels, True, None, [(0.0, INF), (0.0, INF)])
    state = ReferenceBackend().pair_rows(problem, False, False)
    assert state.rows[0].tolist() == [[0.5, 0.5, 0.0], [1.0, 1.0, 0.0]]
    assert state.rows[1].tolist() == [[0.0, 0.5, 0.5], [0.0, 1.0, 1.0]]
    assert state.exists.tolist() == [True, True]
    dx, _ = ReferenceBackend().pair_grads(problem, state, torch.ones(2, 3, dtype=torch.float64), True, False)
    assert dx is not None
    assert dx.flatten().tolist() == [-2.0, 2.0 + 2.0, -2.0]


def loop_triplets(problem: TripletProblem) -> tuple[list[float], list[float]]:
    """Sum and count of each anchor's losses, one triplet at a time."""
    spec, x, y = problem.spec, problem.x.tolist(), problem.y.tolist()

    def distance(u: list[float], v: list[float]) -> float:
        return math.dist(u, v)

    sums, counts = [0.0] * len(x), [0.0] * len(x)
    for a, p, n in itertools.product(range(len(x)), range(len(y)), range(len(y))):
        same_p = problem.x_labels[a] == problem.y_labels[p]
        same_n = problem.x_labels[a] == problem.y_labels[n]
        if not same_p or same_n or (problem.itself and a == p):
            continue
        ap, an = distance(x[a], y[p]), distance(x[a], y[n])
        gap = an - ap
        keep = {
            "every": True,
            "all": gap <= spec.select_margin,
            "easy": gap > spec.select_margin,
            "hard": gap <= min(spec.select_margin, 0.0),
            "semihard": 0 < gap <= spec.select_margin,
        }[spec.select]
        if spec.swap:
            an = min(an, distance(y[p], y[n]))
        violation = ap - an + spec.margin
        loss = math.log1p(math.exp(violation)) if spec.smooth else max(violation, 0.0)
        if keep and problem.limits[0] < loss < problem.limits[1]:
            sums[a] += loss
            counts[a] += 1
    return sums, counts


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("itself", [False, True])
def test_triplets_equal_plain_loops(select: str, smooth: bool, swap: bool, itself: bool) -> None:
    x, y, x_labels, y_labels = draw(9, None if itself else 11)
    for limits in [NO_LIMITS, (0.0, INF), (0.1, 0.6)]:
        spec = TripletSpec(0.2, smooth, swap, select, 0.3)
        problem = TripletProblem(spec, L2, x, y, x_labels, y_labels, itself, None, limits)
        rows, dx, dy = ReferenceBackend().triplet_rows(problem, True, True, False)
        sums, counts = loop_triplets(problem)
        assert dx is None
        assert dy is None
        assert rows[1].tolist() == counts
        torch.testing.assert_close(rows[0], torch.tensor(sums, dtype=torch.float64))


def test_triplet_gradient_is_the_numerical_one() -> None:
    x, y, x_labels, y_labels = draw(8, 9)
    problem = TripletProblem(TripletSpec(0.2, True, True), L2, x, y, x_labels, y_labels, False, None, NO_LIMITS)
    w = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    backend = ReferenceBackend()
    dx, dy = backend.triplet_grads(problem, w, True, True)
    gen = torch.Generator().manual_seed(5)
    step_x, step_y = torch.randn(8, 6, generator=gen).double(), torch.randn(9, 6, generator=gen).double()

    def value(t: float) -> float:
        moved = replace(problem, x=x + t * step_x, y=y + t * step_y)
        return float((backend.triplet_rows(moved, False, False, False)[0][0] * w).sum())

    assert dx is not None
    assert dy is not None
    slope = float((dx * step_x).sum() + (dy * step_y).sum())
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("positive, largest, itself", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("backend", [ReferenceBackend(), ChunkedBackend()], ids=lambda b: b.name)
def test_extremes_equal_a_scan(backend: ReferenceBackend | ChunkedBackend, positive: bool, largest: bool, itself: bool) -> None:
    x, y, x_labels, y_labels = draw(13, None if itself else 10)
    low, high = torch.full((13,), 0.4).double(), torch.linspace(0.9, 1.8, 13).double()
    for bounds in [(None, None), (low, high)]:
        problem = ExtremeProblem(L2, x, y, x_labels, y_labels, itself, positive, largest, *bounds)
        value, index = backend.extremes(problem)
        for i in range(13):
            candidates = {
                j: math.dist(x[i].tolist(), y[j].tolist())
                for j in range(len(y))
                if bool(x_labels[i] == y_labels[j]) == positive and not (itself and i == j)
            }
            if bounds[0] is not None:
                candidates = {j: d for j, d in candidates.items() if low[i] <= d <= high[i]}
            if not candidates:
                assert index[i] == -1
                assert value[i] == (-INF if largest else INF)
                continue
            best = (max if largest else min)(candidates, key=candidates.__getitem__)
            assert index[i] == best
            assert float(value[i]) == pytest.approx(candidates[best], rel=1e-12)


@pytest.mark.parametrize("score", SCORES, ids=lambda s: f"{s.kind}{s.power:g}")
@pytest.mark.parametrize("backend", [ReferenceBackend(), ChunkedBackend()], ids=lambda b: b.name)
def test_listed_pairs_equal_the_matrix(backend: ReferenceBackend | ChunkedBackend, score: Score) -> None:
    from pml_fast.engine.score import dense_scores

    x, y, _, _ = draw(7, 5)
    i, j = torch.tensor([0, 6, 6, 2, 0, 2]), torch.tensor([4, 0, 0, 1, 4, 3])
    grad = torch.linspace(-1, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(backend.listed_scores(score, x, y, i, j), dense_scores(score, x, y)[i, j])
    x_leaf, y_leaf = x.clone().requires_grad_(), y.clone().requires_grad_()
    (dense_scores(score, x_leaf, y_leaf)[i, j] * grad).sum().backward()
    dx, dy = backend.listed_grads(score, x, y, i, j, grad, True, True)
    torch.testing.assert_close(dx, x_leaf.grad)
    torch.testing.assert_close(dy, y_leaf.grad)
    assert backend.listed_grads(score, x, y, i, j, grad, False, True)[0] is None
    none = torch.zeros(0, dtype=torch.int64)
    assert backend.listed_scores(score, x, y, none, none).shape == (0,)
    dx, _ = backend.listed_grads(score, x, y, none, none, grad[:0], True, False)
    assert dx is not None
    assert not dx.any()


def test_refuses_what_does_not_fit() -> None:
    n = 1 + round(MOST_ELEMENTS ** (1 / 3))
    x, labels = torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64)
    triplets = TripletProblem(TripletSpec(), DOT, x, x, labels, labels, True, None, NO_LIMITS)
    spec = PAIR_SPECS["contrastive"]()
    pairs = PairProblem(spec, DOT, x, x, labels, labels, True, None, [NO_LIMITS] * 2)
    backend = ReferenceBackend()
    assert backend.available() is None
    assert "triplets" in (backend.refuse(triplets) or "")
    assert backend.refuse(pairs) is None
    assert backend.refuse(IndexedProblem(DOT, x, x, labels[:1], labels[:1])) is None
    assert isinstance(backend.pair_rows(pair_problem(spec, DOT), False, False), PairRows)
