"""The strips' exact triplets against full enumeration: the reference backend in float64, and PML's own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers

from pml_fast.engine import grad_sum
from pml_fast.engine.chunked import ChunkedBackend
from pml_fast.engine.problem import NO_LIMITS, TripletProblem
from pml_fast.engine.reference import ReferenceBackend
from pml_fast.engine.score import Score, unit_rows
from pml_fast.engine.spec import TripletSpec

INF = float("inf")
NON_ZERO = (0.0, INF)

DOT = Score("dot", normalize=False)
L2 = Score("l2", normalize=False, inverted=False)
SQUARED = Score("l2", power=2.0, normalize=False, inverted=False)
LP = Score("lp", p=1.0, normalize=False, inverted=False)
SCORES = [DOT, L2, SQUARED, LP]
FLAGS = list(itertools.product([False, True], repeat=2))


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ragged strips even for the small problems of these tests."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 200)


def make_problem(
    spec: TripletSpec,
    score: Score = DOT,
    limits: tuple[float, float] = NON_ZERO,
    itself: bool = True,
    ruled: bool = False,
    grid: float | None = None,
    n: int = 23,
    m: int = 17,
    classes: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> TripletProblem:
    """A problem with ragged classes; ``grid`` rounds the embeddings so that scores tie."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=gen, dtype=dtype)
    y = x if itself else torch.randn(m, 5, generator=gen, dtype=dtype)
    x, y = unit_rows(x)[0], unit_rows(y)[0]
    if grid is not None:
        x, y = (x / grid).round() * grid, (y / grid).round() * grid
    if itself:
        y = x
    # Squaring the draw makes class sizes unequal.
    x_labels = (torch.rand(n, generator=gen).square() * classes).long()
    y_labels = x_labels if itself else (torch.rand(m, generator=gen).square() * (classes + 1)).long()
    rule = None
    if ruled:
        low, width = torch.rand(2, 4, n, generator=gen, dtype=dtype)
        rule = torch.stack([low[0] - 1, low[0] + width[0], low[1] - 1, low[1] + width[1]])
    return TripletProblem(spec, score, x, y, x_labels, y_labels, itself, rule, limits)


def assert_same(problem: TripletProblem, rtol: float = 1e-10, atol: float = 1e-11) -> None:
    """Rows and gradients of the strips equal the enumeration's, plain and weighted by anchor."""
    chunked, reference = ChunkedBackend(), ReferenceBackend()
    rows, dx, dy = chunked.triplet_rows(problem, True, True, True)
    want_rows, want_dx, want_dy = reference.triplet_rows(problem, True, True, True)
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows[1], want_rows[1], rtol=0, atol=0)
    torch.testing.assert_close(rows[0], want_rows[0], rtol=rtol, atol=atol)
    w = torch.linspace(-1, 2, problem.x.shape[0], dtype=problem.x.dtype)
    w[::5] = 0
    pairs = [(dx, want_dx), (dy, want_dy)]
    pairs += zip(
        chunked.triplet_grads(problem, w, True, True),
        reference.triplet_grads(problem, w, True, True),
        strict=True,
    )
    for got, want in pairs:
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("smooth, swap", FLAGS)
@pytest.mark.parametrize("score", SCORES, ids=lambda s: f"{s.kind}{s.power:g}")
def test_equals_enumeration(select: str, smooth: bool, swap: bool, score: Score) -> None:
    for itself, ruled, grid, limits in itertools.product([True, False], [False, True], [None, 0.25], [NON_ZERO, NO_LIMITS]):
        spec = TripletSpec(0.125, smooth, swap, select, 0.25)
        if grid is not None and score == SQUARED:
            continue  # two routes to a root may differ by an ulp: squared, it no longer ties
        assert_same(make_problem(spec, score, limits, itself, ruled, grid))


@pytest.mark.parametrize("select_margin", [-0.25, 0.0, 0.25])
@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
def test_margins_of_either_sign(select: str, margin: float, select_margin: float) -> None:
    for limits, seed in itertools.product([NON_ZERO, NO_LIMITS], range(3)):
        spec = TripletSpec(margin, select=select, select_margin=select_margin)
        assert_same(make_problem(spec, limits=limits, grid=0.25, seed=seed))


@pytest.mark.parametrize("limits", [(0.1, 0.5), (-1.0, 0.3), (0.2, INF)])
@pytest.mark.parametrize("smooth", [False, True])
def test_threshold_intervals(limits: tuple[float, float], smooth: bool) -> None:
    assert_same(make_problem(TripletSpec(0.3, smooth=smooth), L2, limits))


@pytest.mark.parametrize("swap", [False, True])
def test_rows_without_weight_or_gradient(swap: bool) -> None:
    problem = make_problem(TripletSpec(swap=swap), itself=False)
    rows, dx, dy = ChunkedBackend().triplet_rows(problem, True, True, False)
    assert dx is None
    assert dy is None
    torch.testing.assert_close(rows, ReferenceBackend().triplet_rows(problem, False, False, False)[0])
    only_y = ChunkedBackend().triplet_rows(problem, False, True, True)
    both = ChunkedBackend().triplet_rows(problem, True, True, True)
    assert only_y[1] is None
    torch.testing.assert_close(only_y[2], both[2])


@pytest.mark.parametrize(
    "x_labels",
    [[], [0], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1], [-5, 7, -5, 7, 7]],
    ids=["empty", "one row", "one class", "no positives", "one pair", "odd labels"],
)
@pytest.mark.parametrize("smooth, swap", [(False, False), (True, True)])
def test_degenerate_batches(x_labels: list[int], smooth: bool, swap: bool) -> None:
    labels = torch.tensor(x_labels, dtype=torch.int64)
    x = torch.randn(len(labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = TripletProblem(TripletSpec(2.0, smooth, swap), DOT, x, x, labels, labels, True, None, NO_LIMITS)
    assert_same(problem)


@pytest.mark.parametrize("swap", [False, True])
def test_empty_reference_set(swap: bool) -> None:
    problem = make_problem(TripletSpec(swap=swap), itself=False, m=0)
    rows, dx, dy = ChunkedBackend().triplet_rows(problem, True, True, True)
    assert rows.abs().sum() == 0
    assert dx is not None
    assert dx.abs().sum() == 0
    assert dy is not None
    assert dy.shape == (0, 5)


@pytest.mark.parametrize("score", [DOT, L2], ids=lambda s: s.kind)
@pytest.mark.parametrize("smooth, swap", FLAGS)
def test_duplicate_rows(score: Score, smooth: bool, swap: bool) -> None:
    # Equal rows tie s_an with s_pn: on a grid both are exact, so both sides see the tie.
    problem = make_problem(TripletSpec(0.5, smooth, swap), score, grid=0.25)
    x = problem.x.clone()
    x[8:12] = x[8]
    assert_same(replace(problem, x=x, y=x))


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("smooth", [False, True])
def test_nan_rows_are_kept_and_seen(select: str, smooth: bool) -> None:
    for itself, ruled, limits in itertools.product([True, False], [False, True], [NON_ZERO, NO_LIMITS]):
        problem = make_problem(TripletSpec(0.5, smooth, False, select, 0.1), L2, limits, itself, ruled)
        problem.y[4] = float("nan")
        got = ChunkedBackend().triplet_rows(problem, False, False, False)[0]
        want = ReferenceBackend().triplet_rows(problem, False, False, False)[0]
        torch.testing.assert_close(got, want, equal_nan=True)
        if select == "every" and not ruled:
            assert got[0].isnan().any()


def test_float32_stays_near_float64() -> None:
    problem = make_problem(TripletSpec(0.2), L2, NO_LIMITS, n=90)
    single = replace(problem, x=problem.x.float(), y=problem.x.float())
    rows, dx, _ = ChunkedBackend().triplet_rows(single, True, True, True)
    want, want_dx, _ = ReferenceBackend().triplet_rows(problem, True, True, True)
    torch.testing.assert_close(rows[0], want[0], rtol=2e-6, atol=1e-6)
    assert dx is not None
    torch.testing.assert_close(dx.double(), want_dx, rtol=1e-5, atol=1e-4)


def pml_count_and_sum(problem: TripletProblem) -> tuple[int, float]:
    """What PML enumerates on the same embeddings: the number of positive losses, and the plain sum of the
    losses.
    """
    spec, score = problem.spec, problem.score
    if score.kind == "dot":
        distance = distances.DotProductSimilarity(normalize_embeddings=False)
    else:
        distance = distances.LpDistance(normalize_embeddings=False, p=2, power=score.power)
    x, labels = problem.x, problem.x_labels
    triplets = None
    if spec.select != "every":
        triplets = miners.TripletMarginMiner(spec.select_margin, spec.select, distance=distance)(x, labels)
    loss = losses.TripletMarginLoss(spec.margin, spec.swap, spec.smooth, distance=distance, reducer=reducers.DoNothingReducer())
    each = loss(x, labels, triplets)["loss"]["losses"]
    if isinstance(each, int):
        return 0, 0.0
    return int((each > 0).sum()), float(each.sum(dtype=torch.float64))


@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("smooth, swap", FLAGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_count_has_the_very_bits_of_pml(
    monkeypatch: pytest.MonkeyPatch, select: str, smooth: bool, swap: bool, dtype: torch.dtype
) -> None:
    """On a coarse grid every inner product is exact, so scores are equal and thousands of them tie with the
    margins.
    """
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 1000)
    batch = make_problem(TripletSpec(), grid=0.125, n=60, classes=5, dtype=dtype)
    for margin, select_margin in [(0.0625, 0.0625), (0.1, 0.0), (0.25, 0.1)]:
        problem = replace(batch, spec=TripletSpec(margin, smooth, swap, select, select_margin))
        rows, _, _ = ChunkedBackend().triplet_rows(problem, False, False, False)
        count, total = pml_count_and_sum(problem)
        assert int(rows[1].sum()) == count
        assert count > 0 or select != "every"
        torch.testing.assert_close(float(rows[0].sum()), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("select", ["every", "all", "hard", "semihard", "easy"])
def test_count_is_exact_where_the_margin_itself_rounds(margin: float, select: str) -> None:
    """Differences of float32 distances land on both sides of a rounded margin: the predicate decides, not
    ``v - margin``.
    """
    # Points on a line: |a - b| is one subtraction, the same in every route, and full of near-ties with the
    # margin.
    labels = torch.arange(48) % 6
    x = (torch.randint(0, 12, (48, 1), generator=torch.Generator().manual_seed(1)) * 0.1).float()
    problem = TripletProblem(
        TripletSpec(margin, select=select, select_margin=0.2), LP, x, x, labels, labels, True, None, NON_ZERO
    )
    s = (x - x.T).abs()
    rows, _, _ = ChunkedBackend().triplet_rows(problem, False, False, False)
    same = labels[:, None] == labels
    pos, neg = same & ~torch.eye(48, dtype=torch.bool), ~same
    gap = s[:, None, :] - s[:, :, None]
    kept = pos[:, :, None] & neg[:, None, :] & ((s[:, :, None] - s[:, None, :]) + margin > 0)
    rules = {"every": gap == gap, "all": gap <= 0.2, "easy": gap > 0.2, "hard": (gap <= 0.2) & (gap <= 0)}
    rules["semihard"] = (gap <= 0.2) & (gap > 0)
    assert rows[1].tolist() == (kept & rules[select]).sum(dim=(1, 2)).double().tolist()
