"""What a CUDA block does for a row, run by one host thread: the same functions, against the float64 reference.

On a card the same problems run on the device (``gpu``)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine import dispatch, materialise
from pml_fast.engine.knn import reference as knn_reference
from pml_fast.engine.knn.problem import NearestProblem
from pml_fast.engine.problem import NO_LIMITS, TripletProblem
from pml_fast.engine.reference import ReferenceBackend
from pml_fast.engine.score import Score
from pml_fast.engine.spec import TripletSpec

if _extension.load() is None:
    pytest.skip("the row functions are compiled code", allow_module_level=True)

from pml_fast.engine.cuda import nearest, pairs, strips, triplet

WITH_CUDA = torch.cuda.is_available() and _extension.load().build_info()["cuda"]
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not WITH_CUDA, reason="needs a card")])]
SCORES = {
    "dot": Score("dot", normalize=False),
    "l2": Score("l2", normalize=False, inverted=False),
    "squared": Score("l2", power=2.0, normalize=False, inverted=False),
}
NON_ZERO = (0.0, float("inf"))


@pytest.fixture(autouse=True)
def several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    monkeypatch.setattr(strips, "FEWEST_ROWS", 9)


def make_problem(
    device: str, score: Score, spec: TripletSpec, itself: bool, ruled: bool = False, limits: tuple[float, float] = NON_ZERO
) -> TripletProblem:
    """Ragged classes, some alone, with equal rows and scores that tie."""
    n, m, d = 31, 44, 6
    # Whole halves: inner products and squares are exact, and ties are ties, in every type.
    x, y = ((torch.randn(size, d) * 2).round() / 2 for size in (n, m))
    x[4] = x[3]
    x_labels, y_labels = (torch.rand(size).square().mul(5).long() for size in (n, m))
    x_labels[3] = x_labels[4]
    rule = None
    if ruled:
        low, width = torch.rand(2, 4, n)
        rule = torch.stack([low[0] - 0.9, low[0] + 2 * width[0], low[1] - 0.9, low[1] + 2 * width[1]]).to(device)
    x, x_labels = x.to(device), x_labels.to(device)
    y, y_labels = (x, x_labels) if itself else (y.to(device), y_labels.to(device))
    return TripletProblem(spec, score, x, y, x_labels, y_labels, itself, rule, limits)


def widened(problem: TripletProblem) -> TripletProblem:
    """The same numbers in float64."""
    x = problem.x.double()
    y = x if problem.y is problem.x else problem.y.double()
    return replace(problem, x=x, y=y, rule=None if problem.rule is None else problem.rule.double())


def assert_equals_enumeration(problem: TripletProblem, w: Tensor | None = None) -> None:
    oracle, wide = ReferenceBackend(), widened(problem)
    rows, *grads = triplet.triplet_rows(problem, True, True, w is None)
    want_rows, *want = oracle.triplet_rows(wide, True, True, w is None)
    if w is not None:
        grads = list(triplet.triplet_grads(problem, w, True, True))
        want = list(oracle.triplet_grads(wide, w.double(), True, True))
    torch.testing.assert_close(rows[0], want_rows[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(rows[1], want_rows[1])
    for got, exact in zip(grads, want, strict=True):
        assert (got is None) == (exact is None)
        if got is not None:
            assert (got.double() - exact).norm() <= 1e-5 * exact.norm() + 1e-9


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "references"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("select", TripletSpec.SELECTIONS)
@pytest.mark.parametrize("device", DEVICES)
def test_triplets_equal_enumeration(device: str, select: str, score: str, itself: bool) -> None:
    # Margins that no difference of scores comes near.
    spec = TripletSpec(0.2371, select=select, select_margin=0.3137)
    assert_equals_enumeration(make_problem(device, SCORES[score], spec, itself))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("device", DEVICES)
def test_rules_weights_and_counts_of_all(device: str, score: str) -> None:
    spec = TripletSpec(0.2371, select="all", select_margin=0.3137)
    problem = make_problem(device, SCORES[score], spec, False, ruled=True, limits=NO_LIMITS)
    assert_equals_enumeration(problem, torch.linspace(0, 1, len(problem.x), device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_a_nan_row_is_seen_by_every_anchor(device: str) -> None:
    problem = make_problem(device, SCORES["dot"], TripletSpec(0.2), True)
    problem.x_labels[7] = problem.x_labels[3]
    problem.x[7, 2] = float("nan")
    rows, _, _ = triplet.triplet_rows(problem, False, False, True)
    same = problem.x_labels.unsqueeze(1) == problem.x_labels
    usable = (same.sum(dim=1) > 1) & (~same).any(dim=1)
    assert usable[7] and torch.equal(rows[0].isnan(), usable) and torch.equal(rows[1] > 0, usable)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_call_gives_the_same_bits(device: str) -> None:
    problem = make_problem(device, SCORES["l2"], TripletSpec(0.2), True)
    first, second = (triplet.triplet_rows(problem, True, True, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("score", SCORES)
def test_the_order_of_a_teams_threads_does_not_matter(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("cpu", SCORES[score], TripletSpec(0.2371, select="semihard", select_margin=0.5), True)
    forwards = triplet.triplet_rows(problem, True, True, True)
    run = strips.extension().host_triplets
    monkeypatch.setattr(strips.extension(), "host_triplets", lambda strip: run(strip, backwards=True))
    backwards = triplet.triplet_rows(problem, True, True, True)
    assert torch.equal(forwards[0][1], backwards[0][1])
    torch.testing.assert_close(forwards[0][0], backwards[0][0])
    torch.testing.assert_close(forwards[1], backwards[1])


@pytest.mark.parametrize("itself", [True, False], ids=["itself", "references"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("device", DEVICES)
def test_kept_pairs_are_those_of_the_miner(device: str, score: str, itself: bool) -> None:
    problem = make_problem(device, SCORES[score], TripletSpec(), itself, ruled=True)
    arguments = (problem.x_labels, problem.y_labels, (problem.x, problem.y), problem.score, problem.rule, itself)
    got, want = pairs.rule_pairs(*arguments), materialise.rule_pairs(*arguments)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, theirs)


def test_an_empty_batch_has_no_triplet() -> None:
    problem = make_problem("cpu", SCORES["dot"], TripletSpec(), False)
    empty = replace(problem, x=problem.x[:0], x_labels=problem.x_labels[:0])
    rows, dx, dy = triplet.triplet_rows(empty, True, True, True)
    assert rows.shape == (2, 0) and dx is not None and dx.shape == (0, 6)
    assert dy is not None and not dy.any()


# --- neighbours -------------------------------------------------------------------------------------------------------

CLOSE = {**SCORES, "inverted l2": Score("l2", normalize=False, inverted=True)}


def assert_nearest(problem: NearestProblem) -> None:
    """The columns are exactly the reference's, in its order; ties go to the first."""
    x = problem.x.double()
    wide = replace(problem, x=x, y=x if problem.y is problem.x else problem.y.double())
    got, columns = nearest.nearest(problem)
    want, where = knn_reference.nearest(wide)
    assert torch.equal(columns, where)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


def whole(n: int, d: int = 3) -> Tensor:
    """Whole numbers: products are exact, and many tie."""
    return torch.randint(-2, 3, (n, d)).float()


@pytest.mark.parametrize("kind", ["itself", "separate", "begins with it"])
@pytest.mark.parametrize("score", CLOSE)
@pytest.mark.parametrize("k", [1, 7, 40, "all"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_closest_columns_in_order(device: str, k: int | str, score: str, kind: str) -> None:
    x = whole(60).to(device)
    y = {"itself": x, "separate": whole(75).to(device), "begins with it": torch.cat([x, whole(20).to(device)])}[kind]
    itself = kind != "separate"
    count = len(y) - itself if k == "all" else k
    assert_nearest(NearestProblem(CLOSE[score], x, y, count, itself))


@pytest.mark.parametrize("device", DEVICES)
def test_the_furthest_neighbour_is_found_among_many_different_scores(device: str) -> None:
    """Scores that differ in every digit of the selection, tiny and huge, of both signs, with ties at many places."""
    # Powers of two: the products are exact.
    x, y = torch.tensor([[1.0], [-1.0], [0.5], [-4.0]]), torch.randn(3000, 1) * 10.0 ** torch.randint(-12, 12, (3000, 1))
    y[::7] = y[0]
    for k in (1, 3, 700, 2999):
        assert_nearest(NearestProblem(CLOSE["dot"], x.to(device), y.to(device), k, False))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_a_number_is_the_last_neighbour(device: str) -> None:
    y = torch.tensor([[1.0], [float("nan")], [2.0], [-0.0], [float("inf")], [0.0]], device=device)
    x = torch.tensor([[1.0], [-1.0]], device=device)
    for score in ("dot", "l2"):
        for k in (1, 3, 5, 6):
            _, columns = nearest.nearest(NearestProblem(CLOSE[score], x, y, k, False))
            _, where = knn_reference.nearest(NearestProblem(CLOSE[score], x.double(), y.double(), k, False))
            assert torch.equal(columns, where)


@pytest.mark.parametrize("device", DEVICES)
def test_no_rows_and_no_neighbours(device: str) -> None:
    x, y = whole(4).to(device), whole(9).to(device)
    assert nearest.nearest(NearestProblem(CLOSE["l2"], x[:0], y, 3, False))[1].shape == (0, 3)
    assert nearest.nearest(NearestProblem(CLOSE["l2"], x, y, 0, False))[1].shape == (4, 0)
    assert nearest.nearest(NearestProblem(CLOSE["l2"], x, y[:0], 0, False))[0].shape == (4, 0)


@pytest.mark.parametrize("k", [5, 30])
def test_the_order_of_threads_shows_nowhere_in_neighbours(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = whole(50)
    problem = NearestProblem(CLOSE["dot"], x, x, k, True)
    forwards = nearest.nearest(problem)
    module = nearest.extension()

    class Backwards:
        NearestStrip = module.NearestStrip

        @staticmethod
        def host_nearest(strip: object, keys: int) -> None:
            module.host_nearest(strip, keys, backwards=True)

    monkeypatch.setattr(nearest, "extension", lambda: Backwards)
    for got, want in zip(nearest.nearest(problem), forwards, strict=True):
        assert torch.equal(got, want)


def test_neighbours_of_tensors_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = dispatch.backend("cuda")
    x = whole(80)
    monkeypatch.setattr(backend, "available", lambda: None)
    assert "not on a CUDA device" in (backend.refuse(NearestProblem(CLOSE["dot"], x, x, 70, True)) or "")
