"""The Triton triplet kernels (interpreted where there is no GPU) against the reference backend in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from interpreted import DEVICE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast.engine.problem import NO_LIMITS, TripletProblem
from pml_fast.engine.reference import ReferenceBackend
from pml_fast.engine.score import Score, unit_rows
from pml_fast.engine.spec import TripletSpec

with interpreting():
    from pml_fast.engine.triton import configs, layout, triplet

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

INF = float("inf")
NON_ZERO = (0.0, INF)
DOT = Score("dot", normalize=False)
L2 = Score("l2", normalize=False, inverted=False)
SQUARED = Score("l2", power=2.0, normalize=False, inverted=False)
SIMILAR_L2 = Score("l2", normalize=False, inverted=True)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ragged tiles and slabs even for small problems."""
    monkeypatch.setattr(triplet, "HITS", 4)
    monkeypatch.setattr(triplet, "MIN_WIDTH", 8)
    monkeypatch.setattr(triplet, "MAX_WIDTH", 8)
    monkeypatch.setattr(configs, "WIDEST_TRIPLETS", 16)
    small = configs.Config(16, 16, 16, 4, 2)
    for op in ("triplet", "triplet-pulls"):
        monkeypatch.setitem(configs.TILES, op, {"": small})
    for op in ("triplet-grad", "triplet-slabs"):
        monkeypatch.setitem(configs.TILES, op, {"": replace(small, block_out=16)})


def make_problem(
    spec: TripletSpec,
    score: Score = DOT,
    limits: tuple[float, float] = NON_ZERO,
    itself: bool = True,
    ruled: bool = False,
    n: int = 22,
    m: int = 18,
    d: int = 12,
    grid: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> TripletProblem:
    """Unit rows in ragged classes, the largest with more positives than one slab holds."""
    gen = torch.Generator().manual_seed(n + m)
    x, y = (unit_rows(torch.randn(size, d, generator=gen))[0] for size in (n, m))
    if grid is not None:
        x, y = (x / grid).round() * grid, (y / grid).round() * grid
    x, y = x.to(dtype).to(DEVICE), y.to(dtype).to(DEVICE)
    x_labels, y_labels = ((torch.rand(size, generator=gen).square() * 4).long().to(DEVICE) for size in (n, m))
    rule = None
    if ruled:
        low, width = torch.rand(2, 4, n, generator=gen).to(DEVICE)
        rule = torch.stack([low[0] - 0.8, low[0] + width[0], low[1] - 0.8, low[1] + width[1]])
    if itself:
        y, y_labels = x, x_labels
    return TripletProblem(spec, score, x, y, x_labels, y_labels, itself, rule, limits)


def widened(problem: TripletProblem) -> TripletProblem:
    rule = problem.rule.double() if problem.rule is not None else None
    x = problem.x.double()
    return replace(problem, x=x, y=x if problem.itself else problem.y.double(), rule=rule)


def assert_same(problem: TripletProblem, rtol: float = 2e-5, weighted: bool = False) -> None:
    """Counts are equal, sums and gradients (plain, or weighted by anchor) as near as float32 scores allow."""
    assert triplet.refuse_triplet(problem) is None
    oracle, wide = ReferenceBackend(), widened(problem)
    rows, *got = triplet.triplet_rows(problem, True, True, not weighted)
    want_rows, *want = oracle.triplet_rows(wide, True, True, not weighted)
    assert rows.dtype == torch.float64
    assert rows[1].tolist() == want_rows[1].tolist()
    torch.testing.assert_close(rows[0], want_rows[0], rtol=rtol, atol=1e-5)
    if weighted:
        w = torch.linspace(-1, 2, problem.x.shape[0], device=DEVICE)
        w[::5] = 0
        got, want = triplet.triplet_grads(problem, w, True, True), oracle.triplet_grads(wide, w, True, True)
    for got_grad, want_grad in zip(got, want, strict=True):
        assert (got_grad is None) == (want_grad is None)
        if got_grad is None or want_grad is None or want_grad.numel() == 0:
            continue
        assert got_grad.dtype == torch.float32
        scale = max(float(want_grad.abs().max()), 1.0)
        torch.testing.assert_close(got_grad.double(), want_grad, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "references"])
@pytest.mark.parametrize("score", [DOT, L2, SQUARED, SIMILAR_L2], ids=["dot", "l2", "squared", "inverted l2"])
@pytest.mark.parametrize("smooth", [False, True], ids=["hinge", "smooth"])
def test_equals_enumeration(score: Score, itself: bool, smooth: bool) -> None:
    # The weighted sweep is the plain one with other weights: one of the two a case.
    assert_same(make_problem(TripletSpec(0.2, smooth), score, NON_ZERO, itself), weighted=itself != smooth)


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("limits", [NON_ZERO, NO_LIMITS, (0.1, 0.5)], ids=str)
def test_selections_and_intervals(select: str, limits: tuple[float, float]) -> None:
    assert_same(make_problem(TripletSpec(0.25, False, False, select, 0.3), L2, limits))


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "references"])
@pytest.mark.parametrize("score", [DOT, L2], ids=["dot", "l2"])
def test_a_rule_filters_both_sides(score: Score, itself: bool) -> None:
    spec = TripletSpec(0.25, False, False, "semihard" if itself else "every", 0.3)
    assert_same(make_problem(spec, score, NO_LIMITS, itself, ruled=True))


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
def test_ties_with_the_margin_are_counted_exactly(select: str) -> None:
    """On a coarse grid inner products are exact in float32: thousands of triplets sit on the margin itself."""
    for margin, select_margin in [(0.125, 0.125), (-0.25, 0.25)]:
        spec = TripletSpec(margin, False, False, select, select_margin)
        assert_same(make_problem(spec, DOT, NON_ZERO, d=3, grid=0.25))


@pytest.mark.parametrize("n, d", [(1, 4), (2, 1), (16, 16), (19, 24)])
def test_ragged_sizes(n: int, d: int) -> None:
    assert_same(make_problem(TripletSpec(0.3), L2, NON_ZERO, n=n, d=d))


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "references"])
@pytest.mark.parametrize(
    "score, dtype",
    [
        (DOT, torch.float32), (L2, torch.float32), (SQUARED, torch.float32), (SIMILAR_L2, torch.float32),
        (L2, torch.bfloat16), (DOT, torch.float16),
    ],
    ids=["dot", "l2", "squared", "inverted l2", "l2 bf16", "dot fp16"],
)  # fmt: skip
def test_a_wide_gradient_comes_in_strips(
    monkeypatch: pytest.MonkeyPatch, score: Score, dtype: torch.dtype, itself: bool
) -> None:
    """Rows wider than a block, in a workspace of a few rows; the largest class has more positives than a slab holds."""
    launched: list[int] = []
    strips = triplet.strips

    def counted(n: int, m: int, pulled: Tensor) -> Iterator[tuple[int, Tensor]]:
        for begin, h in strips(n, m, pulled):
            launched.append(len(h))
            yield begin, h

    monkeypatch.setattr(triplet, "strips", counted)
    monkeypatch.setattr(layout, "WORKSPACE_BYTES", 4 * 30 * 5)
    problem = make_problem(TripletSpec(0.3), score, NON_ZERO, itself, d=40, n=22, m=30, dtype=dtype)
    assert problem.y_labels.bincount().max() > triplet.MAX_WIDTH
    assert_same(problem, 2e-5 if dtype == torch.float32 else 2e-3, weighted=True)
    assert len(launched) > 3 and max(launched) <= 6


def test_a_wide_gradient_is_the_narrow_ones() -> None:
    """Columns of nothing change no score: the first columns of the gradient are those without them."""
    narrow = make_problem(TripletSpec(0.3), L2)
    x = torch.nn.functional.pad(narrow.x, (0, 40))
    _, wide, _ = triplet.triplet_rows(replace(narrow, x=x, y=x), True, False, True)
    _, want, _ = triplet.triplet_rows(narrow, True, False, True)
    assert wide is not None
    torch.testing.assert_close(wide[:, :12], want, rtol=1e-5, atol=1e-5)
    assert not wide[:, 12:].any()


@pytest.mark.parametrize(
    "labels", [[], [0], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1], [-5, 7, -5, 7, 7]],
    ids=["empty", "one row", "one class", "no positives", "one pair", "odd labels"],
)  # fmt: skip
def test_degenerate_batches(labels: list[int]) -> None:
    y = torch.tensor(labels, dtype=torch.int64, device=DEVICE)
    x = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert_same(TripletProblem(TripletSpec(2.0), L2, x, x, y, y, True, None, NO_LIMITS))


def test_an_empty_reference_set() -> None:
    problem = make_problem(TripletSpec(), itself=False, m=0)
    rows, dx, dy = triplet.triplet_rows(problem, True, True, True)
    assert not rows.any()
    assert dx is not None
    assert not dx.any()
    assert dy is not None
    assert dy.shape == (0, 12)


@pytest.mark.parametrize("smooth", [False, True], ids=["hinge", "smooth"])
def test_equal_rows_within_and_across_classes(smooth: bool) -> None:
    """Zero distances: exact although the product of matrices loses their digits, and without gradient."""
    problem = make_problem(TripletSpec(0.5, smooth), L2)
    x = problem.x.clone()
    x[5:9] = x[5]
    assert_same(replace(problem, x=x, y=x))


@pytest.mark.parametrize("smooth", [False, True], ids=["hinge", "smooth"])
def test_nan_rows_are_kept_and_seen(smooth: bool) -> None:
    for score, itself, limits in [(DOT, True, NON_ZERO), (L2, True, NO_LIMITS), (L2, False, NON_ZERO)]:
        problem = make_problem(TripletSpec(0.5, smooth), score, limits, itself)
        problem.y[4] = float("nan")
        got, _, _ = triplet.triplet_rows(problem, False, False, False)
        want, _, _ = ReferenceBackend().triplet_rows(widened(problem), False, False, False)
        assert want[0].isnan().any()
        torch.testing.assert_close(got, want, equal_nan=True, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_give_float32_results(dtype: torch.dtype) -> None:
    """On a coarse grid the half types hold the rows, and float32 their products, exactly; tf32 holds small counts."""
    assert_same(make_problem(TripletSpec(0.3), DOT, NON_ZERO, d=5, grid=0.25, dtype=dtype))
    assert_same(make_problem(TripletSpec(0.3), DOT, NON_ZERO, d=5, grid=0.25, dtype=dtype), 1e-3, weighted=True)


def test_only_what_is_asked_for() -> None:
    problem = make_problem(TripletSpec(0.3), itself=False)
    rows, dx, dy = triplet.triplet_rows(problem, True, True, False)
    assert rows[1].sum() > 0
    assert dx is None
    assert dy is None
    both = triplet.triplet_rows(problem, True, True, True)
    only_y = triplet.triplet_rows(problem, False, True, True)
    assert only_y[1] is None
    assert only_y[2] is not None
    assert both[2] is not None
    assert torch.equal(only_y[2], both[2])
    assert torch.equal(only_y[0], rows)


def test_the_same_bits_every_time() -> None:
    problem = make_problem(TripletSpec(0.3, smooth=True), L2)
    first, second = (triplet.triplet_rows(problem, True, False, True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] is not None
    assert second[1] is not None
    assert torch.equal(first[1], second[1])


def test_slabs_cover_the_largest_class_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triplet, "MIN_WIDTH", 128)
    monkeypatch.setattr(triplet, "MAX_WIDTH", 2048)
    assert triplet.slab_width(1000, 1000, 16) == 1008
    assert triplet.slab_width(8192, 8192, 16) == 1024
    assert triplet.slab_width(1 << 20, 1 << 20, 16) == 128
    assert triplet.slab_width(0, 0, 16) == 16


def test_refuses_with_a_reason() -> None:
    problem = make_problem(TripletSpec())
    assert triplet.refuse_triplet(problem) is None
    assert "swap" in (triplet.refuse_triplet(replace(problem, spec=TripletSpec(swap=True))) or "")
    lp = Score("lp", p=1.0, normalize=False, inverted=False)
    assert "'lp'" in (triplet.refuse_triplet(replace(problem, score=lp)) or "")
    assert "power=3" in (triplet.refuse_triplet(replace(problem, score=replace(L2, power=3.0))) or "")
    assert "float32" in (triplet.refuse_triplet(widened(problem)) or "")
