"""The compiled pairwise engine takes gradients in its first sweep where it can: they are the oracle's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_fast import _extension, explain, losses, reducers
from pml_fast.engine import dispatch
from pml_fast.engine.cpu import columns, small
from pml_fast.engine.cpu import pairwise as cpu_pairwise
from pml_fast.engine.cpu import rows as cpu_rows
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.fold import Fold, evenly
from pml_fast.engine.problem import NO_LIMITS, PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PAIR_SPECS, Term

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")
SCORES = {
    "cosine": Score("dot"),
    "l2": Score("l2", inverted=False),
    "l2_squared": Score("l2", power=2.0, inverted=False),
    "asymmetric": Score("dot", normalize=False, inverted=False, symmetric=False),
}
OF_THE_PAIR = ("contrastive", "margin", "threshold_consistent", "siglip")
OF_TWO_NUMBERS = ("intra_pair_variance", "ranked_list")


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_rows, "TILE_COLUMNS", 13)
    monkeypatch.setattr(cpu_rows, "TILE_BYTES", 1)
    monkeypatch.setattr(small, "LARGEST", 0)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The losses whose gradients a first sweep has taken."""
    names: list[str] = []
    collect = cpu_pairwise.Sweep._collect

    def noted(sweep: Any, need_x: bool, need_y: bool) -> None:
        names.append(sweep.problem.spec.name)
        collect(sweep, need_x, need_y)

    monkeypatch.setattr(cpu_pairwise.Sweep, "_collect", noted)
    return names


def problem_of(spec: str, score: str, itself: bool, ruled: bool, n: int = 37, m: int = 50) -> PairProblem:
    gen = torch.Generator().manual_seed(5)
    x, y = (torch.randn(count, 6, generator=gen, dtype=torch.float64) for count in (n, m))
    if SCORES[score].normalize:
        x, y = F.normalize(x), F.normalize(y)
    else:
        x, y = 0.4 * x, 0.4 * y
    y[3] = x[0]
    labels = torch.arange(n) % 6, torch.arange(m) % 7
    if itself:
        y, labels = x, (labels[0], labels[0])
    if itself and not SCORES[score].symmetric:
        y = x.flip(1)
    rule = None
    if ruled:
        low, high = torch.full((n,), -0.6, dtype=torch.float64), torch.full((n,), 1.3, dtype=torch.float64)
        rule = torch.stack([low, high, low + 0.2 * torch.rand(n, generator=gen, dtype=torch.float64), high])
    made = PAIR_SPECS[spec]()
    limits = [NO_LIMITS] * len(made.terms)
    return PairProblem(made, SCORES[score], x, y, *labels, itself, rule, limits, uniform=True)


def weights(problem: PairProblem, even: bool) -> Tensor:
    shape = len(problem.spec.terms), len(problem.x)
    w = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if even:
        return w[:, :1].expand(shape).contiguous()
    w[0, 0] = w[-1, 1] = 0
    return w


def both_ways(problem: PairProblem, w: Tensor, need_x: bool, need_y: bool) -> None:
    """The compiled backend's gradients against the oracle's."""
    mine, oracle = dispatch.backend("cpu"), dispatch.backend("reference")
    got, want = mine.pair_rows(problem, need_x, need_y), oracle.pair_rows(problem, need_x, need_y)
    torch.testing.assert_close(got.rows, want.rows, rtol=1e-9, atol=1e-11)
    found = mine.pair_grads(problem, got, w, need_x, need_y)
    expected = oracle.pair_grads(problem, want, w, need_x, need_y)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("streamed", [False, True], ids=["copied", "streamed"])
@pytest.mark.parametrize("ruled", [False, True], ids=["all", "ruled"])
@pytest.mark.parametrize("score", ["cosine", "l2", "l2_squared", "asymmetric"])
@pytest.mark.parametrize("spec", COMPILED)
def test_rows_against_columns_without_a_gradient(
    spec: str, score: str, ruled: bool, streamed: bool, collected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row may weigh something else, and nothing."""
    problem = problem_of(spec, score, False, ruled)
    if streamed:
        monkeypatch.setattr(columns, "MANY_NUMBERS", 0)
    if dispatch.backend("cpu").refuse(problem) is not None:
        pytest.skip("no compiled epilogue for this score")
    both_ways(problem, weights(problem, even=False), True, False)
    expected = spec not in OF_TWO_NUMBERS and (problem.score.bounded or spec in OF_THE_PAIR)
    assert bool(collected) == expected


@pytest.mark.parametrize("sets", ["itself", "two"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("spec", OF_THE_PAIR)
def test_both_sides_of_rows_that_weigh_alike(spec: str, score: str, sets: str, collected: list[str]) -> None:
    problem = problem_of(spec, score, sets == "itself", True)
    need_y = not problem.shared
    both_ways(problem, weights(problem, even=True), True, need_y)
    if need_y:
        both_ways(problem, weights(problem, even=True), False, True)
    assert len(collected) == 1 + need_y


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("spec", OF_THE_PAIR)
def test_rows_that_weigh_unlike_take_a_second_sweep(spec: str, itself: bool, collected: list[str]) -> None:
    problem = replace(problem_of(spec, "l2", itself, False), uniform=False)
    both_ways(problem, weights(problem, even=False), True, not itself)
    assert not collected


def test_levels_of_rows_are_their_own(collected: list[str]) -> None:
    """Margin loss with a boundary a row, of which both rows of a pair see their own."""
    problem = problem_of("margin", "l2", True, False)
    levels = 0.3 * torch.rand(len(problem.x), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    both_ways(replace(problem, levels=levels), weights(problem, even=True), True, False)
    assert collected == ["margin"]


@pytest.mark.parametrize("spec", OF_TWO_NUMBERS)
def test_the_engine_refuses_what_has_no_common_weight(spec: str) -> None:
    sweep = cpu_pairwise.Sweep(problem_of(spec, "cosine", False, False), spec, PAIR_SPECS[spec]().params(), None)
    with pytest.raises(RuntimeError, match="common weight"):
        sweep.engine.begin_collecting()


# ---- which reductions weigh rows alike ----

EVEN = {
    "mean": (reducers.MeanReducer(), True),
    "sum": (reducers.SumReducer(), True),
    "above_zero": (reducers.AvgNonZeroReducer(), True),
    "per_anchor": (reducers.PerAnchorReducer(), False),
    "by_class": (reducers.ClassWeightedReducer(torch.rand(10, generator=torch.Generator().manual_seed(0))), False),
}


@pytest.mark.parametrize("reducer", EVEN)
def test_losses_over_pairs(reducer: str, collected: list[str]) -> None:
    gen = torch.Generator().manual_seed(3)
    x, labels = torch.randn(40, 8, generator=gen, dtype=torch.float64, requires_grad=True), torch.arange(40) % 10
    loss = losses.ContrastiveLoss(reducer=EVEN[reducer][0])
    loss(x, labels).backward()
    assert bool(collected) == EVEN[reducer][1]
    got = x.grad
    assert got is not None
    x.grad = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_pairwise, "one_sweep", lambda *_: False)
        loss(x, labels).backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["element", "pos_pair"])
def test_a_threshold_is_even_over_pairs_only(kind: str) -> None:
    """Pairs that it leaves out are not summed at all, but a row that it leaves out weighs nothing."""
    term = Term("loss", kind)
    assert evenly([Fold("threshold", 0.0)], [term]) == (kind == "pos_pair")
    assert evenly([Fold("mean"), Fold("sum")], [term, term])
    assert not evenly([Fold("mean"), Fold("per_anchor", inner=Fold())], [term, term])


def test_what_explain_says_of_operations() -> None:
    """Against columns without a gradient the step is two products of all pairs."""
    n, m, d = 600, 3000, 16
    x = torch.randn(n, d, requires_grad=True)
    labels, ref_labels = torch.arange(n) % 500, torch.arange(m) % 500
    ref = torch.randn(m, d)
    found = explain(losses.NTXentLoss(), x, labels, ref_emb=ref, ref_labels=ref_labels)
    assert found.backend == "cpu"
    assert found.costs is not None
    assert 2 * found.gemm_flops <= found.costs.step_flops < 2.2 * found.gemm_flops
