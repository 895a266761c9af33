"""The pairwise Triton kernels (interpreted where there is no card) against the chunked backend in float64."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace

import pytest
import torch
from interpreted import CUDA, DEVICE, VARIABLE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast import use
from pml_fast.engine import specs  # noqa: F401  (registers the losses)
from pml_fast.engine.chunked import ChunkedBackend
from pml_fast.engine.problem import NO_LIMITS, ExtremeProblem, PairProblem, PairRows
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PAIR_SPECS

with interpreting():
    from pml_fast.engine.triton import layout, lookup, tuned
    from pml_fast.engine.triton.backend import TritonBackend
    from pml_fast.engine.triton.epilogues import EPILOGUES, PARAMS

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

EVERYTHING = os.environ.get("PML_FAST_TEST_ALL") == "1"
SCORES = {
    "dot": Score(),
    "l2": Score("l2", inverted=False),
    "l2_squared": Score("l2", power=2.0, inverted=False),
}
# Intervals of the score (positive low, high, negative low, high) that leave out some pairs of each side.
RULES = {"dot": (-0.3, 0.4, -0.2, 0.6), "l2": (0.9, 1.6, 1.0, 1.5), "l2_squared": (0.9, 2.6, 1.0, 2.4)}
LIMITS = {"all": NO_LIMITS, "positive": (0.0, float("inf"))}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((37, 53, 19), (70, 33, 130))
# Relative to the vector of gradients: the rounding of the operand that multiplies the inputs.
GRAD_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-3, torch.float16: 6e-4}
VALUE_TOLERANCE = 1e-5
# A logit of circle's is 80 times a product of two scores, tuplet margin's 64 times a score, one of soft ranks 100 times, and
# their exponentials have the rounding of these so many times.
CONDITION = {"circle": 2e-5, "tuplet_margin": 2e-5, "smooth_ap": 2e-5, "pnp": 2e-5}


@dataclass(frozen=True)
class Unknown(PAIR_SPECS["contrastive"]):  # type: ignore[misc]
    """A loss that the kernels have never heard of."""

    name = "unknown"


# Where a mean is that of one pair, its own score and the mean take from each other all but a hundredth of a small gradient.
SLACK = {"intra_pair_variance": 1e-8}

triton_backend, oracle = TritonBackend(), ChunkedBackend()


def rows_of(n: int, d: int, dtype: torch.dtype, seed: int) -> Tensor:
    made = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made).to(dtype).to(DEVICE)


def labels_of(n: int, classes: int, seed: int) -> Tensor:
    # Any int64 is a label.
    made = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    return (made * (2**40) - 2**41).to(DEVICE)


def problem_of(
    spec: str, score: str, itself: bool, rule: bool = False, limits: str = "all",
    dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = SHAPES[0], classes: int = 5,
) -> PairProblem:  # fmt: skip
    n, m, d = shape
    x, x_labels = rows_of(n, d, dtype, 1), labels_of(n, classes, 2)
    y, y_labels = (x, x_labels) if itself else (rows_of(m, d, dtype, 3), labels_of(m, classes, 4))
    ruled = torch.tensor(RULES[score], device=DEVICE).unsqueeze(1).repeat(1, n) if rule else None
    made = PAIR_SPECS[spec]()
    return PairProblem(made, SCORES[score], x, y, x_labels, y_labels, itself, ruled, [LIMITS[limits]] * len(made.terms))


def comparing(spec: str) -> str:
    """A distance, where the loss has one."""
    return "dot" if EPILOGUES[spec].cosines else "l2"


def exact(problem: PairProblem) -> PairProblem:
    """The same problem on float64 copies of the same numbers."""
    x = problem.x.double()
    rule = None if problem.rule is None else problem.rule.double()
    return replace(problem, x=x, y=x if problem.itself else problem.y.double(), rule=rule)


def assert_rows(got: PairRows, want: PairRows) -> None:
    assert torch.equal(got.rows[:, 1].double(), want.rows[:, 1].double())
    assert torch.equal(got.exists, want.exists)
    slack = VALUE_TOLERANCE * (1 + want.rows[:, 0].abs().max().item() if want.rows.numel() else 0)
    torch.testing.assert_close(got.rows[:, 0].double(), want.rows[:, 0].double(), rtol=0, atol=slack)


def assert_gradient(got: Tensor | None, want: Tensor | None, tolerance: float, slack: float = 1e-9) -> None:
    assert (got is None) == (want is None)
    if got is not None and want is not None:
        assert got.dtype == torch.float32
        assert torch.isfinite(got).all()
        assert (got.double() - want).norm() <= tolerance * want.norm() + slack


def check(problem: PairProblem, weight: Tensor | None = None) -> PairRows:
    """Values, counts, existence and gradients of the kernels are those of the oracle."""
    assert triton_backend.refuse(problem) is None
    n = problem.x.shape[0]
    w = torch.rand(len(problem.spec.terms), n, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    w = w if weight is None else weight
    got, want = triton_backend.pair_rows(problem, False, False), oracle.pair_rows(exact(problem), False, False)
    assert_rows(got, want)
    # The backward works from what is saved alone.
    state = PairRows(got.rows, got.exists, got.saved)
    grads = triton_backend.pair_grads(problem, state, w, True, True)
    expected = oracle.pair_grads(exact(problem), want, w.double(), True, True)
    for mine, theirs in zip(grads, expected):
        name = problem.spec.name
        assert_gradient(mine, theirs, GRAD_TOLERANCE[problem.x.dtype] + CONDITION.get(name, 0), SLACK.get(name, 1e-9))
    return got


@pytest.mark.parametrize("d", [5, 200])
@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("spec", ["supcon", "log_sum_exp"])
def test_columns_are_anchors_as_well(spec: str, score: str, d: int) -> None:
    """A sweep of either side, then gradients whose coefficients are the share of the row and that of the column."""
    problem = replace(problem_of(spec, score, False, shape=(37, 51, d)), bidirectional=True)
    got, want = triton_backend.pair_rows(problem, True, True), oracle.pair_rows(exact(problem), True, True)
    assert got.columns is not None and want.columns is not None
    assert_rows(got, want)
    assert_rows(replace(got, rows=got.columns), replace(want, rows=want.columns))
    gen = torch.Generator().manual_seed(6)
    w, w_columns = (torch.rand(1, count, generator=gen).to(DEVICE) for count in (37, 51))
    state = PairRows(got.rows, got.exists, got.saved)
    for need in ((True, True), (True, False), (False, True)):
        found = triton_backend.pair_grads(problem, state, w, *need, w_columns)
        expected = oracle.pair_grads(exact(problem), want, w.double(), *need, w_columns.double())
        for ours, theirs in zip(found, expected, strict=True):
            assert_gradient(ours, theirs, GRAD_TOLERANCE[torch.float32])


def sets_in_turn() -> list[tuple[str, bool]]:
    """Every loss against itself and against another set. What takes several sweeps takes long here: one of the two, in turn."""
    found = enumerate(sorted(EPILOGUES))
    return [(s, itself) for k, s in found for itself in (True, False) if EPILOGUES[s].small or itself == (k % 2 == 0)]


def cases() -> list[tuple[object, ...]]:
    """The full product, or one case for each loss, score and number of sets with the other choices taken in turn."""
    every = itertools.product(sorted(EPILOGUES), SCORES, (True, False))
    main = [case for case in every if case[1] == "dot" or not EPILOGUES[case[0]].cosines]
    if not EVERYTHING:
        turn = {score: k % 2 == 0 for k, score in enumerate(SCORES)}
        main = [case for case in main if EPILOGUES[case[0]].small or case[2] == turn[case[1]]]
    rest = list(itertools.product((False, True), LIMITS, DTYPES, SHAPES))
    if EVERYTHING:
        return [(*a, *b) for a, b in itertools.product(main, rest)]
    # 5 and 24 have no common factor: thirty cases in a row meet every choice.
    return [(*a, *rest[(5 * k) % len(rest)]) for k, a in enumerate(main)]


@pytest.mark.parametrize("spec,score,itself,rule,limits,dtype,shape", cases())
def test_matches_the_oracle(spec, score, itself, rule, limits, dtype, shape) -> None:
    check(problem_of(spec, score, itself, rule, limits, dtype, shape))


@pytest.mark.parametrize("spec", sorted(EPILOGUES))
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("n,m,classes", [(1, 1, 1), (2, 3, 1), (17, 18, 1), (17, 18, 10**6)])
def test_few_rows_one_class_and_no_positives(spec: str, itself: bool, n: int, m: int, classes: int) -> None:
    check(problem_of(spec, "dot", itself, shape=(n, m, 7), classes=classes))


@pytest.mark.parametrize("spec", sorted(EPILOGUES))
@pytest.mark.parametrize("n,m", [(0, 5), (5, 0)])
def test_an_empty_side(spec: str, n: int, m: int) -> None:
    got = check(problem_of(spec, comparing(spec), False, shape=(n, m, 7)))
    assert got.exists.tolist() == [False, False]


@pytest.mark.parametrize("spec", sorted(EPILOGUES))
def test_strided_inputs(spec: str) -> None:
    problem = problem_of(spec, comparing(spec), True, shape=(30, 30, 24))
    x = problem.x.T.contiguous().T
    assert not x.is_contiguous()
    check(replace(problem, x=x, y=x))
    if not EPILOGUES[spec].small:
        # Strides are the operands', which all sweeps have in common.
        return
    wide = torch.cat([problem.x, problem.x], dim=1)[:, :24]
    check(replace(problem, x=wide, y=wide, x_labels=problem.x_labels.repeat_interleave(2)[::2]))


@pytest.mark.parametrize("spec", sorted(EPILOGUES))
def test_duplicate_rows_have_distance_zero_and_no_gradient_between_them(spec: str) -> None:
    problem = problem_of(spec, comparing(spec), True, shape=(24, 24, 16), classes=3)
    x = problem.x[:12].repeat(2, 1)
    check(replace(problem, x=x, y=x, x_labels=problem.x_labels[:12].repeat(2), y_labels=problem.x_labels[:12].repeat(2)))


def test_near_rows_keep_the_digits_of_their_distance() -> None:
    x = rows_of(20, 32, torch.float32, 1)
    x = torch.cat([x, x + 1e-4 * rows_of(20, 32, torch.float32, 2)])
    labels = torch.arange(20, device=DEVICE).repeat(2)
    problem = ExtremeProblem(SCORES["l2"], x, x, labels, labels, True, True, False, None, None)
    value, _ = triton_backend.extremes(problem)
    want = (x[:20].double() - x[20:].double()).norm(dim=1).repeat(2)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec,scale", [("ntxent", 1e3), ("supcon", 1e3), ("multi_similarity", 1e3), ("circle", 30.0)])
def test_huge_scores_do_not_overflow(spec: str, scale: float) -> None:
    problem = problem_of(spec, "dot", True, shape=(24, 24, 16))
    x = problem.x * scale**0.5
    problem = replace(problem, x=x, y=x, score=Score(normalize=False))
    got = triton_backend.pair_rows(problem, False, False)
    want = oracle.pair_rows(exact(problem), False, False)
    assert want.rows.abs().max() > 500
    torch.testing.assert_close(got.rows.double(), want.rows, rtol=1e-5, atol=1e-2)
    w = torch.ones(1, 24, device=DEVICE)
    (dx, _), (want_dx, _) = (
        triton_backend.pair_grads(problem, got, w, True, False),
        oracle.pair_grads(exact(problem), want, w.double(), True, False),
    )
    assert_gradient(dx, want_dx, 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("itself", [True, False])
def test_a_wide_gradient_comes_in_strips(monkeypatch: pytest.MonkeyPatch, itself: bool, score: str, dtype: torch.dtype) -> None:
    """Beyond what a block holds, the coefficients are written to a workspace that holds a few rows of them."""
    problem = problem_of("contrastive", score, itself, True, "positive", dtype, shape=(45, 33, 520))
    assert not lookup.launch_config("grad", problem.x, layout.score_kind(problem.score)).resident
    whole = check(problem)
    monkeypatch.setattr(layout, "WORKSPACE_BYTES", 4 * 45 * 7)
    assert torch.equal(check(problem).rows, whole.rows)


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("spec,rule", [("ntxent", True), ("ntxent", False), ("lifted_structure", True)])
def test_sorting_by_class_changes_nothing(monkeypatch: pytest.MonkeyPatch, itself: bool, spec: str, rule: bool) -> None:
    problem = problem_of(spec, "dot", itself, rule, shape=(70, 90, 12), classes=9)
    plain = check(problem)
    monkeypatch.setattr(layout, "SORT_FROM", 0)
    by_class = check(problem)
    torch.testing.assert_close(by_class.saved, plain.saved, rtol=1e-5, atol=1e-5)


def test_a_row_that_weighs_nothing_has_no_say() -> None:
    problem = problem_of("supcon", "dot", False, shape=(20, 25, 8))
    w = torch.rand(1, 20, device=DEVICE)
    w[0, ::2] = 0
    check(problem, w)
    state = triton_backend.pair_rows(problem, False, False)
    state.saved[:, ::2] = float("nan")
    dx, dy = triton_backend.pair_grads(problem, state, w, True, True)
    assert dx is not None
    assert dy is not None
    assert torch.isfinite(dy).all()
    assert (dx[::2] == 0).all()


@pytest.mark.parametrize("spec", sorted(EPILOGUES))
@pytest.mark.parametrize("score", SCORES)
def test_a_nan_is_seen(spec: str, score: str) -> None:
    problem = problem_of(spec, score, True, shape=(20, 20, 8), classes=2)
    problem.x[3] = float("nan")
    value = triton_backend.pair_rows(problem, False, False).rows[:, 0]
    assert value[:, 3].isnan().any()


@pytest.mark.parametrize("need_x,need_y", [(True, False), (False, True), (False, False)])
def test_only_what_is_needed_is_computed(need_x: bool, need_y: bool) -> None:
    problem = problem_of("circle", "dot", False)
    state = triton_backend.pair_rows(problem, False, False)
    w = torch.ones(1, problem.x.shape[0], device=DEVICE)
    dx, dy = triton_backend.pair_grads(problem, state, w, need_x, need_y)
    assert (dx is not None, dy is not None) == (need_x, need_y)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("score", SCORES)
def test_tf32_rounds_its_operands(precision: str, score: str) -> None:
    problem = problem_of("supcon", score, True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        got = triton_backend.pair_rows(problem, False, False)
        rounded = layout.rounded_tf32(problem.x)
        w = torch.ones(1, problem.x.shape[0], device=DEVICE)
        dx, _ = triton_backend.pair_grads(problem, got, w, True, False)
    finally:
        torch.set_float32_matmul_precision(before)
    assert ((rounded - problem.x).abs() <= 2.0**-11 * problem.x.abs()).all()
    assert ((rounded.view(torch.int32) & 0x1FFF) == 0).all()
    same = replace(problem, x=rounded, y=rounded)
    want = oracle.pair_rows(exact(same), False, False)
    assert_rows(got, want)
    want_dx, _ = oracle.pair_grads(exact(same), want, w.double(), True, False)
    assert_gradient(dx, want_dx, 6e-4)


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("itself", [True, False])
def test_columns_transposed_beforehand_give_the_same_gradient(itself: bool, score: str) -> None:
    problem = problem_of("supcon", score, itself, True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        state = triton_backend.pair_rows(problem, False, False)
        kind, w = layout.score_kind(problem.score), torch.ones(1, len(problem.x), device=DEVICE)
        keys = [lookup.tuning_key("grad", side, kind) for side in (problem.x, problem.y)]
        found = []
        for turned in (True, False):
            tile = replace(lookup.launch_config("grad", problem.x, kind), turned=turned)
            with tuned.using({key: tuned.Entry(tile, 0.0, 0.0) for key in keys}):
                found.append(triton_backend.pair_grads(problem, state, w, True, True))
    finally:
        torch.set_float32_matmul_precision(before)
    for got, want in zip(*found, strict=True):
        assert_gradient(got, None if want is None else want.double(), 1e-6)


def test_transposed_columns_end_in_zeros() -> None:
    rows = rows_of(37, 19, torch.float32, 1)
    turned = layout.turned(rows, 16)
    assert turned.shape == (19, 48)
    assert torch.equal(turned[:, :37], rows.T)
    assert not turned[:, 37:].any()


@pytest.mark.parametrize("spec,itself", sets_in_turn())
def test_three_products_of_bfloat16_parts_keep_five_digits(spec: str, itself: bool) -> None:
    problem = problem_of(spec, "dot", itself, True, "positive", shape=(37, 53, 70))
    w = torch.rand(len(problem.spec.terms), 37, device=DEVICE)
    with use(precision="bf16x3"):
        got = triton_backend.pair_rows(problem, False, False)
        grads = triton_backend.pair_grads(problem, got, w, True, True)
    want = oracle.pair_rows(exact(problem), False, False)
    expected = oracle.pair_grads(exact(problem), want, w.double(), True, True)
    assert torch.equal(got.rows[:, 1].double(), want.rows[:, 1])
    # A score is wrong by 6e-6, and a logit of these by up to 80 times that.
    torch.testing.assert_close(got.rows[:, 0].double(), want.rows[:, 0], rtol=5e-4, atol=5e-4)
    for mine, theirs in zip(grads, expected):
        assert_gradient(mine, theirs, 1e-3 if spec in CONDITION else 1e-4)


def test_the_scores_of_bfloat16_parts_are_wrong_by_no_more_than_is_said() -> None:
    x, labels = rows_of(200, 128, torch.float32, 1), torch.arange(200, device=DEVICE)
    problem = ExtremeProblem(SCORES["dot"], x, x, labels, labels, True, False, True, None, None)
    with use(precision="bf16x3"):
        value, _ = triton_backend.extremes(problem)
    one_product, _ = triton_backend.extremes(replace(problem, x=x.bfloat16(), y=x.bfloat16()))
    want = (x.double() @ x.double().T).fill_diagonal_(-2).amax(dim=1)
    assert (value - want).abs().max() < 8e-6
    assert (one_product - want).abs().max() > 5e-4


def test_distances_and_half_rows_have_no_parts() -> None:
    with use(precision="bf16x3"):
        assert layout.splits(torch.float32, 0)
        assert not layout.splits(torch.float32, 1)
        assert not layout.splits(torch.bfloat16, 0)
        check(problem_of("contrastive", "l2", True))
    assert not layout.splits(torch.float32, 0)


def test_rounding_to_tf32_keeps_what_is_not_finite() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    odd = torch.cat([odd, torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)])
    got = layout.rounded_tf32(odd)
    assert got[[0, 4]].isnan().all()
    assert torch.equal(got[1:4], odd[1:4])


# ---- extremes


def extreme_cases() -> list[tuple[object, ...]]:
    every = list(itertools.product(SCORES, (True, False), (True, False), (True, False), ("none", "low", "high", "both")))
    return every if EVERYTHING else every[::3]


@pytest.mark.parametrize("score,itself,positive,largest,bounds", extreme_cases())
def test_extremes(score: str, itself: bool, positive: bool, largest: bool, bounds: str) -> None:
    base = problem_of("supcon", score, itself, classes=8)
    n = base.x.shape[0]
    low = torch.full((n,), RULES[score][2], device=DEVICE) if bounds in ("low", "both") else None
    high = torch.full((n,), RULES[score][3], device=DEVICE) if bounds in ("high", "both") else None
    problem = ExtremeProblem(base.score, base.x, base.y, base.x_labels, base.y_labels, itself, positive, largest, low, high)
    value, index = triton_backend.extremes(problem)
    x = base.x.double()
    want_value, want_index = oracle.extremes(
        replace(problem, x=x, y=x if itself else base.y.double(), low=None if low is None else low.double(),
                high=None if high is None else high.double())
    )  # fmt: skip
    assert torch.equal(index, want_index)
    torch.testing.assert_close(value.double(), want_value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("largest", [True, False])
def test_the_lowest_of_equal_columns_wins(largest: bool) -> None:
    # Whole numbers: whatever the order of its sums, a matrix product gives equal columns equal scores.
    x, y = rows_of(9, 12, torch.float32, 1).mul(8).round(), rows_of(1, 12, torch.float32, 2).mul(8).round().repeat(150, 1)
    x_labels, y_labels = labels_of(9, 2, 3), labels_of(150, 2, 4)
    problem = ExtremeProblem(SCORES["dot"], x, y, x_labels, y_labels, False, True, largest, None, None)
    _, index = triton_backend.extremes(problem)
    want = (x_labels.unsqueeze(1) == y_labels).int().argmax(dim=1)
    assert torch.equal(index, want)


def test_extremes_without_candidates_and_with_nan() -> None:
    x, labels = rows_of(20, 6, torch.float32, 1), torch.arange(20, device=DEVICE)
    problem = ExtremeProblem(SCORES["dot"], x, x, labels, labels, True, True, True, None, None)
    value, index = triton_backend.extremes(problem)
    assert (index == -1).all()
    assert (value == float("-inf")).all()
    x[7] = float("nan")
    value, index = triton_backend.extremes(replace(problem, positive=False))
    assert value.isnan().all()
    assert (index[8:] == 7).all()
    value, index = triton_backend.extremes(replace(problem, x=x[:0], x_labels=labels[:0], itself=False))
    assert value.shape == index.shape == (0,)


# ---- what it refuses


@pytest.mark.parametrize(
    "change,reason",
    [
        ({"spec": PAIR_SPECS["tuplet_margin"](), "score": SCORES["l2"]}, "takes scores for cosines"),
        ({"spec": Unknown()}, "no kernel epilogue for the loss"),
        ({"spec": PAIR_SPECS["margin"](), "levels": torch.zeros(37)}, "a parameter of each row's own"),
        ({"score": Score("lp", p=1.0)}, "p-norm"),
        ({"score": Score("l2", power=3.0)}, "power 1 or 2"),
        ({"score": Score("dot", power=2.0)}, "power 1"),
        ({"x": torch.zeros(37, 19, dtype=torch.float64, device=DEVICE)}, "float64"),
        ({"y": torch.zeros(53, 19, dtype=torch.float16, device=DEVICE)}, "one dtype"),
    ],
)
def test_refusals_give_the_reason(change: dict[str, object], reason: str) -> None:
    assert reason in (triton_backend.refuse(replace(problem_of("supcon", "dot", False), **change)) or "")


@pytest.mark.skipif(CUDA, reason="only a machine without a card has nothing to run the kernels on")
def test_without_a_card_the_reason_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert f"{VARIABLE}=1" in (triton_backend.available() or "")
    assert triton_backend.refuse(problem_of("supcon", "dot", True)) is not None


def test_every_epilogue_belongs_to_a_spec() -> None:
    for name, epilogue in EPILOGUES.items():
        made = PAIR_SPECS[name]()
        assert len(epilogue.params(made, SCORES["dot"])) <= PARAMS
        assert epilogue.levels in (0, 3, 4)


# ---- on the card alone


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("spec", sorted(name for name in EPILOGUES if not PAIR_SPECS[name].waits))
@pytest.mark.parametrize("itself", [True, False])
def test_the_same_call_twice_is_bit_identical_and_never_waits_for_the_host(spec: str, itself: bool) -> None:
    problem = problem_of(spec, comparing(spec), itself, True, dtype=torch.bfloat16, shape=(5000, 4500, 128), classes=300)
    w = torch.rand(len(problem.spec.terms), 5000, device=DEVICE)

    def both() -> list[Tensor]:
        state = triton_backend.pair_rows(problem, False, False)
        grads = triton_backend.pair_grads(problem, state, w, True, True)
        return [state.rows, state.saved, *(g for g in grads if g is not None)]

    first = both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("spec", sorted(EPILOGUES))
def test_a_cuda_graph_replays_it(spec: str) -> None:
    problem = problem_of(spec, "dot", True, shape=(300, 300, 64))
    w = torch.rand(len(problem.spec.terms), 300, device=DEVICE)

    def both() -> tuple[Tensor, Tensor]:
        state = triton_backend.pair_rows(problem, False, False)
        dx, _ = triton_backend.pair_grads(problem, state, w, True, False)
        assert dx is not None
        return state.rows, dx

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows, dx = both()
    problem.x.copy_(rows_of(300, 64, torch.float32, 9))
    graph.replay()
    want_rows, want_dx = both()
    assert torch.equal(rows, want_rows)
    assert torch.equal(dx, want_dx)
