"""Small batches on Triton: a step in three launches, against the chunked backend in float64."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from interpreted import CUDA, DEVICE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast import losses, miners, reducers, use
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score, row_norms, unit_rows_backward
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import PAIR_SPECS, PairSpec

with interpreting():
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    from pml_fast.engine.triton import epilogues, lookup, small, small_step

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

EVERYTHING = os.environ.get("PML_FAST_TEST_ALL") == "1"
SCORES = {
    "cosine": Score(),
    "dot": Score(normalize=False),
    "l2": Score("l2", inverted=False),
    "squared_l2": Score("l2", power=2.0, normalize=False, inverted=False),
}
RULES = {
    "cosine": (-0.3, 0.4, -0.2, 0.6),
    "dot": (-0.3, 0.4, -0.2, 0.6),
    "l2": (0.9, 1.6, 1.0, 1.5),
    "squared_l2": (0.9, 2.6, 1.0, 2.4),
}
FOLDS = {
    "mean": Fold(),
    "sum": Fold("sum"),
    "threshold": Fold("threshold", 0.0, float("inf")),
    "band": Fold("threshold", 0.1, 3.0),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Ragged in rows and in D, the latter beyond a slice.
SHAPES = ((37, 19), (21, 130))
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}

SPECS = sorted(name for name, epilogue in epilogues.EPILOGUES.items() if epilogue.small)

Outputs = tuple[Tensor, Tensor, Tensor]


def step(
    backend: str, x: Tensor, labels: Tensor, rule: Tensor | None, spec: PairSpec, score: Score, folds: Sequence[Fold]
) -> Outputs:
    with use(backend=backend):
        loss, terms, dx, _ = torch.ops.pml_fast.pairwise_loss(
            x, x, labels, labels, rule, None, spec.name, spec.params(), score.encode(), True,
            [fold.encode() for fold in folds], True, True,
        )  # fmt: skip
    return loss, terms, dx


def assert_equal(got: Outputs, want: Outputs, tolerance: float) -> None:
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)
    assert got[2].isfinite().all()
    assert (got[2].double() - want[2]).norm() <= tolerance * want[2].norm() + 1e-9


def batch(n: int, d: int, dtype: torch.dtype, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(n, d).to(dtype).to(DEVICE), (torch.randint(0, classes, (n,)) * 2**40).to(DEVICE)


def exact_step(x: Tensor, labels: Tensor, rule: Tensor | None, spec: PairSpec, score: Score, folds: Sequence[Fold]) -> Outputs:
    """In float64 on the rows that the products read: half rows are rounded once more when they are divided.

    The interpreter cuts a bfloat16 where a card rounds it, so that the rows are asked for.
    """
    exact = x.double()
    rule = None if rule is None else rule.double()
    if not score.normalize or x.dtype == torch.float32 or epilogues.EPILOGUES[spec.name].steep:
        return step("chunked", exact, labels, rule, spec, score, folds)
    unit, norm = small_step.prepared_rows(x, labels, True).operand.rows.double(), row_norms(x.float())
    torch.testing.assert_close(unit, exact / norm, rtol=ULP[x.dtype], atol=1e-7)
    loss, terms, grad = step("chunked", unit, labels, rule, spec, replace(score, normalize=False), folds)
    return loss, terms, unit_rows_backward(grad, exact, norm.double())


def cases() -> list[tuple[object, ...]]:
    every = itertools.product(SPECS, SCORES)
    main = [case for case in every if SCORES[case[1]].kind == "dot" or not epilogues.EPILOGUES[case[0]].cosines]
    rest = list(itertools.product(FOLDS, (False, True), DTYPES, SHAPES))
    if EVERYTHING:
        return [(*a, *b) for a, b in itertools.product(main, rest)]
    # 7 and 48 have no common factor: the choices are taken in turn.
    return [(*a, *rest[(7 * k) % len(rest)]) for k, a in enumerate(main)]


@pytest.mark.parametrize("spec,score,fold,ruled,dtype,shape", cases())
def test_matches_the_oracle(spec: str, score: str, fold: str, ruled: bool, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, labels = batch(*shape, dtype)
    if not SCORES[score].normalize:
        # Logits such as 64 s would be nothing but the rounding of the scores.
        x = torch.nn.functional.normalize(x.float()).to(dtype)
    rule = torch.tensor(RULES[score], device=DEVICE).unsqueeze(1).repeat(1, len(x)) if ruled else None
    made = PAIR_SPECS[spec]()
    folds = [FOLDS[fold]] * len(made.terms)
    with use(backend="triton"):
        assert small.applies(x)
    half = dtype != torch.float32
    plan = small.recipe(spec, tuple(made.params()), SCORES[score].encode(), tuple(f.encode() for f in folds), half)
    # Half rows of a steep loss are widened, which is the general way.
    assert (plan is None) == (half and epilogues.EPILOGUES[spec].steep)
    got = step("triton", x, labels, rule, made, SCORES[score], folds)
    want = exact_step(x, labels, rule, made, SCORES[score], folds)
    assert got[2].dtype == dtype
    assert_equal(got, want, TOLERANCE[dtype])
    again = step("triton", x, labels, rule, made, SCORES[score], folds)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("classes", [1, 10**6])
@pytest.mark.parametrize("n", [1, 2, 18])
def test_one_class_and_no_positives(spec: str, classes: int, n: int) -> None:
    x, labels = batch(n, 7, torch.float32, classes)
    made = PAIR_SPECS[spec]()
    folds = [FOLDS["threshold"]] * len(made.terms)
    got = step("triton", x, labels, None, made, SCORES["cosine"], folds)
    assert_equal(got, step("chunked", x.double(), labels, None, made, SCORES["cosine"], folds), 3e-5)


def test_a_row_of_zeros_keeps_a_finite_gradient() -> None:
    x, labels = batch(20, 16, torch.float32)
    x[3] = 0
    made, folds = PAIR_SPECS["supcon"](), [FOLDS["mean"]]
    got, want = (
        step(backend, rows, labels, None, made, SCORES["cosine"], folds)
        for backend, rows in (("triton", x), ("chunked", x.double()))
    )
    others = torch.arange(20, device=DEVICE) != 3
    torch.testing.assert_close(got[2][others].double(), want[2][others], rtol=1e-4, atol=1e-6)
    # Divided by the guard of the norm, it is as large as it is.
    torch.testing.assert_close(got[2][3].double(), want[2][3], rtol=1e-4, atol=0)


def test_nothing_violated_leaves_no_gradient_even_beside_a_nan() -> None:
    x = torch.eye(4, 8).to(DEVICE)
    x[3] = float("nan")
    labels = torch.arange(4, device=DEVICE)
    rule = torch.tensor([[2.0], [3.0], [2.0], [3.0]], device=DEVICE).repeat(1, 4)
    made = PAIR_SPECS["contrastive"]()
    loss, _, dx = step("triton", x, labels, rule, made, SCORES["cosine"], [FOLDS["threshold"]] * 2)
    assert loss == 0
    assert (dx == 0).all()


@pytest.mark.parametrize("score", SCORES)
def test_a_nan_is_seen(score: str) -> None:
    x, labels = batch(12, 8, torch.float32, 2)
    x[3] = float("nan")
    loss, _, dx = step("triton", x, labels, None, PAIR_SPECS["ntxent"](), SCORES[score], [FOLDS["mean"]])
    assert loss.isnan()
    assert dx.isnan().any()


def test_strided_rows() -> None:
    x, labels = batch(24, 20, torch.float32)
    made, folds = PAIR_SPECS["circle"](), [FOLDS["mean"]]
    want = step("triton", x, labels, None, made, SCORES["cosine"], folds)
    for strided in (x.T.contiguous().T, torch.cat([x, x], dim=1)[:, :20]):
        got = step("triton", strided, labels, None, made, SCORES["cosine"], folds)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert got[2].is_contiguous()


def test_without_a_gradient_the_loss_is_the_same() -> None:
    x, labels = batch(24, 20, torch.float32)
    with use(backend="triton"):
        loss_func = losses.NTXentLoss()
        with torch.no_grad():
            quiet = loss_func(x, labels)
        assert torch.equal(quiet, loss_func(x.requires_grad_(), labels))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_tf32_rounds_its_rows(precision: str) -> None:
    x, labels = batch(24, 20, torch.float32)
    made, folds = PAIR_SPECS["supcon"](), [FOLDS["mean"]]
    with use(precision=precision):
        got = step("triton", x, labels, None, made, SCORES["cosine"], folds)
        with math_precision():
            rows = small_step.prepared_rows(x, labels, True).operand.rows
    assert ((rows.view(torch.int32) & 0x1FFF) == 0).all()
    want = step("chunked", x.double(), labels, None, made, SCORES["cosine"], folds)
    assert_equal(got, want, 2e-3)


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched from here on."""
    seen: list[str] = []
    kind = JITFunction if CUDA else InterpretedFunction
    run = kind.run

    def counted(self: object, *args: object, **options: object) -> object:
        seen.append(self.fn.__name__)  # type: ignore[attr-defined]
        return run(self, *args, **options)

    monkeypatch.setattr(kind, "run", counted)
    return seen


@pytest.mark.parametrize(
    "loss_func",
    [
        losses.SupConLoss(), losses.NTXentLoss(), losses.CircleLoss(), losses.MultiSimilarityLoss(), losses.ContrastiveLoss(),
        losses.ContrastiveLoss(reducer=reducers.MeanReducer()), losses.NCALoss(), losses.TupletMarginLoss(),
        losses.GeneralizedLiftedStructureLoss(), losses.ThresholdConsistentMarginLoss(), losses.RankedListLoss(0.4, 4),
    ],
    ids=lambda f: type(f).__name__,
)  # fmt: skip
def test_a_step_is_three_launches_and_no_torch_kernel(loss_func: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides them autograd's: the seed, and the product with what came from above."""
    x, labels = batch(24, 20, torch.float32)
    x.requires_grad_()
    with use(backend="triton"):
        seen = launches(monkeypatch)
        monkeypatch.setattr("pml_fast.engine.ops.both", None)
        loss = loss_func(x, labels)
        assert seen == ["small_rows_kernel", "pair_state_kernel", "small_grad_kernel"]
        loss.backward()
    assert len(seen) == 3
    assert x.grad is not None


@pytest.mark.parametrize("d", [20, 130])
def test_a_miners_rule_and_class_weights(d: int) -> None:
    """The rule stays in the kernels; weights of classes take the general way."""
    x, labels = batch(30, d, torch.float32)
    labels = labels >> 40
    weighed = reducers.ClassWeightedReducer(torch.rand(5, device=DEVICE))
    for loss_func, mined in (
        (losses.MultiSimilarityLoss(), True), (losses.ContrastiveLoss(reducer=weighed), False),
        (losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer()), False),
    ):  # fmt: skip
        results = []
        for backend, rows in (("triton", x.clone()), ("chunked", x.double())):
            with use(backend=backend):
                rows.requires_grad_()
                tuples = miners.MultiSimilarityMiner()(rows, labels) if mined else None
                loss = loss_func(rows, labels, tuples)
                loss.backward()
            results.append((loss.detach(), rows.grad))
        (loss, grad), (want_loss, want_grad) = results
        torch.testing.assert_close(loss.double(), want_loss.double(), rtol=1e-5, atol=1e-5)
        assert (grad.double() - want_grad).norm() <= 3e-5 * want_grad.norm()


def test_beyond_the_largest_batch_the_general_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(40, 16, torch.float32)
    made, folds = PAIR_SPECS["supcon"](), [FOLDS["mean"]]
    by_launches = step("triton", x, labels, None, made, SCORES["cosine"], folds)
    monkeypatch.setattr(small, "LARGEST", 39)
    seen = launches(monkeypatch)
    general = step("triton", x, labels, None, made, SCORES["cosine"], folds)
    assert "small_grad_kernel" not in seen
    assert_equal(by_launches, tuple(part.double() for part in general), 1e-5)  # type: ignore[arg-type]
    assert lookup.launch_config("state", x, 0).block_m == 16


# ---- on the card alone


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("spec", SPECS)
def test_a_step_never_waits_for_the_host_and_a_cuda_graph_replays_it(spec: str) -> None:
    x, labels = batch(256, 128, torch.float32, 64)
    made = PAIR_SPECS[spec]()
    folds = [FOLDS["threshold"]] * len(made.terms)

    def run() -> Outputs:
        return step("triton", x, labels, None, made, SCORES["cosine"], folds)

    first = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(replayed, run(), strict=True))


@pytest.mark.parametrize("columns", [0, 45])
def test_a_miners_bounds_are_searched_for_in_the_operator(columns: int) -> None:
    """The rule of a multi-similarity miner that nobody has asked for: of a batch against itself, and of two sets."""
    gen = torch.Generator().manual_seed(columns)
    x, labels = torch.randn(37, 19, generator=gen).to(DEVICE), torch.randint(6, (37,), generator=gen).to(DEVICE)
    more = ()
    if columns:
        more = torch.randn(columns, 19, generator=gen).to(DEVICE), torch.randint(6, (columns,), generator=gen).to(DEVICE)
    found = []
    for backend, dtype in (("triton", torch.float32), ("chunked", torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        refs = (more[0].to(dtype), more[1]) if more else ()
        with use(backend=backend):
            mined = miners.MultiSimilarityMiner()(leaf, labels, *refs)
            loss = losses.MultiSimilarityLoss()(leaf, labels, mined, *refs)
        assert "not materialised" in repr(mined)
        found.append((loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
