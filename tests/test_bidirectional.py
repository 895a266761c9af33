"""Rows and columns as anchors of one matrix of scores: every backend against the dense oracle and two separate calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_fast import _extension, distances, explain, losses, reducers, use
from pml_fast.engine import dispatch, grad_sum
from pml_fast.engine.bidirectional import softmax_spec
from pml_fast.engine.cpu import pairwise as cpu_pairwise
from pml_fast.engine.cpu import rows as cpu_rows
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold
from pml_fast.engine.problem import NO_LIMITS, PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.spec import SoftmaxSpec
from pml_fast.engine.specs import LogSumExp, NTXent, SupCon

COMPILED = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")
BACKENDS = ["chunked", "reference", pytest.param("cpu", marks=COMPILED)]
SCORES = {
    "cosine": Score("dot"),
    "dot": Score("dot", normalize=False),
    "l2": Score("l2", normalize=False, inverted=False),
    "squared": Score("l2", power=2.0, normalize=False, inverted=False),
}
SPECS = (SupCon(0.4), LogSumExp(0.3))


@pytest.fixture
def strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips and tiles, also for small batches, which take no short cut."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 60)
    monkeypatch.setattr(cpu_rows, "TILE_COLUMNS", 13)
    monkeypatch.setattr(cpu_rows, "TILE_BYTES", 1)
    monkeypatch.setattr(small, "LARGEST", 0)


@pytest.fixture(params=["kept", "again"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of the first sweep that are kept for the second one, and that are taken again."""
    if request.param == "again":
        monkeypatch.setattr(cpu_pairwise, "KEPT_BYTES", 0)


def rows(n: int, d: int = 6, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(100 * n + seed)
    return torch.randn(n, d, generator=gen, dtype=torch.float64)


def problem_of(spec: SoftmaxSpec, score: str, n: int, m: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> Any:
    x, y = rows(n).to(dtype), rows(m, seed=1).to(dtype)
    # Two rows and two columns are the same, and a row is a column.
    if n > 3 and m > 3:
        x[1], y[2], y[3] = x[0], x[0], y[0]
    if SCORES[score].normalize:
        x, y = F.normalize(x), F.normalize(y)
    labels = torch.arange(n) % classes, torch.arange(m) % (classes + 1)
    return PairProblem(spec, SCORES[score], x, y, *labels, False, None, [NO_LIMITS], bidirectional=True)


def close(got: Tensor | None, want: Tensor | None, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    assert got is not None and want is not None
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", [(17, 23), (40, 9), (1, 7), (6, 1)])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("backend", ["chunked", pytest.param("cpu", marks=COMPILED)])
@pytest.mark.usefixtures("strips", "memory")
def test_values_and_gradients_are_the_oracles(backend: str, spec: SoftmaxSpec, score: str, shape: tuple[int, int]) -> None:
    problem = problem_of(spec, score, *shape)
    mine, oracle = dispatch.backend(backend), dispatch.backend("reference")
    assert mine.refuse(problem) is None
    got, want = mine.pair_rows(problem, True, True), oracle.pair_rows(problem, True, True)
    close(got.rows, want.rows)
    close(got.columns, want.columns)
    assert torch.equal(got.exists, want.exists)
    gen = torch.Generator().manual_seed(3)
    w, w_columns = (torch.rand(1, count, generator=gen, dtype=torch.float64) for count in shape)
    w[0, 0] = 0
    for need in ((True, True), (True, False), (False, True)):
        state = mine.pair_rows(problem, *need)
        found = mine.pair_grads(problem, state, w, *need, w_columns)
        expected = oracle.pair_grads(problem, want, w, *need, w_columns)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                close(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("strips")
def test_both_directions_are_those_of_two_problems(backend: str) -> None:
    problem = problem_of(SupCon(0.2), "dot", 19, 26)
    mine = dispatch.backend(backend)
    both = mine.pair_rows(problem, False, False)
    close(both.rows, mine.pair_rows(problem.forth, False, False).rows)
    close(both.columns, mine.pair_rows(problem.back, False, False).rows)


@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", ["dot", "squared"])
@pytest.mark.usefixtures("strips")
def test_logits_beyond_the_types_range_are_reduced_by_their_largest(score: str, dtype: torch.dtype) -> None:
    """Norms that allow more than exp() holds: every row and every column has a level of its own."""
    problem = problem_of(SupCon(0.002), score, 21, 30, dtype=dtype)
    exact = replace(problem, x=problem.x.double(), y=problem.y.double())
    mine, oracle = dispatch.backend("cpu"), dispatch.backend("reference")
    got, want = mine.pair_rows(problem, True, True), oracle.pair_rows(exact, True, True)
    tight = dtype == torch.float64
    close(got.rows, want.rows, rtol=1e-9 if tight else 1e-5)
    close(got.columns, want.columns, rtol=1e-9 if tight else 1e-5)
    w, w_columns = torch.full((1, 21), 0.05, dtype=dtype), torch.full((1, 30), 0.03, dtype=dtype)
    found = mine.pair_grads(problem, got, w, True, True, w_columns)
    expected = oracle.pair_grads(exact, want, w.double(), True, True, w_columns.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None and theirs is not None
        assert (ours.double() - theirs).norm() <= (1e-9 if tight else 2e-3) * theirs.norm()


def test_only_softmaxes_of_two_sets_have_columns_as_anchors() -> None:
    problem = problem_of(SupCon(0.2), "dot", 8, 8)
    with pytest.raises(ValueError, match="SoftmaxSpec"):
        softmax_spec(replace(problem, spec=NTXent(0.1)))
    with pytest.raises(ValueError, match="two sets"):
        softmax_spec(replace(problem, itself=True))


# ---- the operator: logit_loss ----


def dense_direction(logits: Tensor, pos: Tensor) -> Tensor:
    share = pos / pos.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share * F.log_softmax(logits, dim=1)).sum(dim=1)


REDUCERS: dict[str, Any] = {
    "mean": lambda: reducers.MeanReducer(),
    "sum": lambda: reducers.SumReducer(),
    "threshold": lambda: reducers.ThresholdReducer(low=2.5, high=4.5),
    "class_weighted": lambda: reducers.ClassWeightedReducer(torch.arange(1, 8).double()),
    "per_anchor": lambda: reducers.PerAnchorReducer(),
    "two": lambda: reducers.MultipleReducers(
        {"loss": reducers.MeanReducer(), "reverse_loss": reducers.ClassWeightedReducer(torch.arange(1, 8).double())}
    ),
}


def reduced(name: str, forth: Tensor, back: Tensor, labels: Tensor, ref_labels: Tensor) -> Tensor:
    def inside(values: Tensor) -> Tensor:
        return values[(values > 2.5) & (values < 4.5)].mean()

    if name == "sum":
        return forth.sum() + back.sum()
    if name == "class_weighted":
        return (forth * (1 + labels)).mean() + (back * (1 + ref_labels)).mean()
    if name == "two":
        return forth.mean() + (back * (1 + ref_labels)).mean()
    return inside(forth) + inside(back) if name == "threshold" else forth.mean() + back.mean()


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_with_every_reducer_is_the_dense_formula(
    backend: str, learned: bool, reducer: str, tiled: bool, request: pytest.FixtureRequest
) -> None:
    if tiled:
        request.getfixturevalue("strips")
    n, m = 17, 23
    x, y = (part.requires_grad_() for part in (rows(n), rows(m, seed=1)))
    labels, ref_labels = torch.arange(n) % 7, torch.arange(m) % 6
    loss = losses.CLIPLoss(0.3, learn_temperature=learned, reducer=REDUCERS[reducer]()).double()
    scale = loss.logit_scale.exp() if learned else torch.tensor(1 / 0.3, dtype=torch.float64)
    logits = F.normalize(x) @ F.normalize(y).T * scale
    pos = (labels.unsqueeze(1) == ref_labels).double()
    # The thresholds are those of the losses of a direction.
    forth, back = dense_direction(logits, pos), dense_direction(logits.T, pos.T)
    want = reduced(reducer, forth, back, labels, ref_labels) / 2
    with use(backend=backend):
        got = loss(x, labels, ref_emb=y, ref_labels=ref_labels)
    close(got, want)
    leaves = (x, y, *loss.parameters())
    for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        close(ours, theirs, rtol=1e-7)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("frozen", ["x", "y", "numbers", "sets"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_frozen_has_no_gradient_and_changes_none(
    backend: str, frozen: str, kind: str, tiled: bool, request: pytest.FixtureRequest
) -> None:
    if tiled:
        request.getfixturevalue("strips")
    make = losses.CLIPLoss if kind == "clip" else losses.SigLIPLoss
    loss, x, y = make().double(), rows(14).requires_grad_(), rows(14, seed=1).requires_grad_()
    leaves = [x, y, *loss.parameters()]
    with use(backend=backend):
        whole = torch.autograd.grad(loss(x, ref_emb=y), leaves)
        off = {"x": [0], "y": [1], "numbers": range(2, len(leaves)), "sets": [0, 1]}[frozen]
        for place in off:
            leaves[place].requires_grad_(False)
        loss(x, ref_emb=y).backward()
    for place, (leaf, grad) in enumerate(zip(leaves, whole, strict=True)):
        if place in off:
            assert leaf.grad is None
        else:
            close(leaf.grad, grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [30, 700])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("backend", ["chunked", pytest.param("cpu", marks=COMPILED)])
def test_the_same_call_gives_the_same_bits(backend: str, kind: str, n: int) -> None:
    make = losses.CLIPLoss if kind == "clip" else losses.SigLIPLoss
    loss, x, y = make(), rows(n).float().requires_grad_(), rows(n, seed=1).float().requires_grad_()
    with use(backend=backend):
        first, second = (torch.autograd.grad(loss(x, ref_emb=y), (x, y, *loss.parameters())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_pair_of_either_kind_the_loss_and_its_gradients_are_zero(backend: str) -> None:
    loss, x, y = losses.CLIPLoss().double(), rows(5).requires_grad_(), rows(4, seed=1).requires_grad_()
    for labels, ref_labels in ((torch.zeros(5), torch.zeros(4)), (torch.zeros(5), torch.ones(4))):
        with use(backend=backend):
            value = loss(x, labels.long(), ref_emb=y, ref_labels=ref_labels.long())
            grads = torch.autograd.grad(value, (x, y, loss.logit_scale))
        assert value == 0 and all((grad == 0).all() for grad in grads)


@COMPILED
def test_explain_counts_one_sweep_for_both_directions() -> None:
    x, y = rows(4096, 8).float().requires_grad_(), rows(4096, 8, seed=1).float().requires_grad_()
    one, both = (explain(losses.CLIPLoss(symmetric=way), x, None, ref_emb=y) for way in (False, True))
    assert one.costs is not None and both.costs is not None
    assert both.backend == "cpu" and both.costs.step_flops == one.costs.step_flops
    assert any("reverse_loss: reduced by" in note for note in both.notes)
    assert any("each score in both directions" in note for note in both.notes)
    itself = explain(losses.CLIPLoss(), x, torch.arange(4096) // 2)
    assert any("two comparisons" in note for note in itself.notes)


def test_folds_of_columns_follow_those_of_rows() -> None:
    x, y, labels = rows(9), rows(9, seed=1), torch.arange(9)
    folds = [Fold("sum").encode(), Fold("mean").encode()]
    args = (None, None, 1.0, None, None, "supcon", [0.5], Score("dot").encode(), False)
    loss, terms, *_ = torch.ops.pml_fast.logit_loss(x, y, labels, labels, *args, folds, True, False, False, False, False)
    logits = F.normalize(x) @ F.normalize(y).T / 0.5
    forth, back = (F.cross_entropy(s, labels, reduction="none") for s in (logits, logits.T))
    close(terms, torch.stack([forth.sum() / 2, back.mean() / 2]))
    close(loss, terms.sum())


def test_a_trained_scale_is_one_of_inner_products() -> None:
    x, labels, folds = rows(6), torch.arange(6), [Fold().encode()]
    args = (torch.zeros(()), None, 1.0, None, None, "supcon", [0.5], SCORES["l2"].encode(), False)
    with pytest.raises(ValueError, match="score must be an inner product"):
        torch.ops.pml_fast.logit_loss(x, x.clone(), labels, labels, *args, folds, False, False, False, False, False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_tower_learns(backend: str) -> None:
    """With what is trained held: the columns' gradient alone, of rows that have a further feature."""
    loss, x, y = losses.SigLIPLoss().double().requires_grad_(False), rows(7), rows(7, seed=1).requires_grad_()
    for n, tiled in ((7, False), (7, True)):
        with use(backend=backend), pytest.MonkeyPatch.context() as patch:
            if tiled:
                patch.setattr(small, "LARGEST", 0)
            (grad,) = torch.autograd.grad(loss(x[:n], ref_emb=y), y)
        logits = F.normalize(x) @ F.normalize(y).T * loss.logit_scale.exp() - 10.0
        want = -F.logsigmoid(torch.where(torch.eye(7, dtype=torch.bool), logits, -logits)).sum() / 7
        close(grad, torch.autograd.grad(want, y)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [20, 600])
def test_half_precision_and_autocast(dtype: torch.dtype, n: int) -> None:
    loss, exact = losses.CLIPLoss(), losses.CLIPLoss().double()
    x, y = rows(n).to(dtype).requires_grad_(), rows(n, seed=1).to(dtype).requires_grad_()
    wide = [part.detach().double().requires_grad_() for part in (x, y)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, ref_emb=y)
    want = exact(wide[0], ref_emb=wide[1])
    assert value.dtype == torch.float32
    close(value, want, rtol=1e-5)
    leaves = [*wide, exact.logit_scale]
    for ours, theirs in zip(torch.autograd.grad(value, (x, y, loss.logit_scale)), torch.autograd.grad(want, leaves)):
        assert (ours.double() - theirs).norm() <= 1e-2 * theirs.norm()


def test_rows_that_are_not_contiguous() -> None:
    x, y = rows(12, 14).T[:6].T.requires_grad_(), rows(24, 6, seed=1)[::2].requires_grad_()
    loss = losses.CLIPLoss().double()
    value, same = loss(x, ref_emb=y), loss(x.contiguous(), ref_emb=y.contiguous())
    close(value, same, rtol=0, atol=0)
    for ours, theirs in zip(torch.autograd.grad(value, (x, y)), torch.autograd.grad(same, (x, y)), strict=True):
        close(ours, theirs, rtol=0, atol=0)


def test_a_distance_of_ones_own_and_a_set_against_itself_run_as_before() -> None:
    x = rows(12).requires_grad_()
    labels = torch.arange(12) // 3
    both, one = losses.CLIPLoss(0.2).double(), losses.CLIPLoss(0.2, symmetric=False).double()
    close(both(x, labels), one(x, labels))
    plain = losses.CLIPLoss(0.2, distance=distances.DotProductSimilarity(normalize_embeddings=False)).double()
    assert plain(x, labels).isfinite()
