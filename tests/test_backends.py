"""Every backend that runs on a CPU gives the oracle's numbers: the dense formulas of the `reference` backend in float64.

Everything here goes over the registry of specs, so a new loss is tested by being registered. An error is judged against that of
the plain dense formula in the same precision: at most twice as large, up to rounding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import pml_fast.engine.ops
import pml_fast.engine.triplet_ops  # noqa: F401  (defines the operators)
from pml_fast import _extension, losses, use
from pml_fast.distances import LpDistance
from pml_fast.engine import dispatch, ops
from pml_fast.engine.cpu import small
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.cpu.pairwise import Sweep
from pml_fast.engine.cpu.strip import COMPILED_ROWS
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PAIR_SPECS
from pml_fast.reducers import MeanReducer

INF = float("inf")
BACKENDS = ["cpu", "chunked"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SCORES = {
    "cosine": Score(),
    "dot": Score(normalize=False),
    "l2": Score("l2", inverted=False),
    "l2_squared": Score("l2", power=2.0, inverted=False),
    "l2_raw": Score("l2", normalize=False, inverted=False),
    "asymmetric": Score(normalize=False, inverted=False, symmetric=False),
    "l3": Score("lp", p=3.0, normalize=False, inverted=False),
    "cosine_cubed": Score(power=3.0),
}
NOT_COMPILED = {"l3", "cosine_cubed"}
TRIPLETS = {
    "hinge": (0.1, 0, 0, "every", 0.0),
    "smooth": (0.1, 1, 0, "every", 0.0),
    "hard": (0.2, 0, 0, "hard", 0.1),
    "semihard": (0.2, 0, 0, "semihard", 0.15),
    "easy": (0.4, 0, 0, "easy", 0.05),
    "mined": (0.2, 1, 0, "all", 0.1),
    "swap": (0.1, 0, 1, "every", 0.0),
    "swap_smooth": (0.1, 1, 1, "every", 0.0),
}
# Losses of histograms: the first and the last end of the bins, their number, and the running histogram (of triplets only).
HISTOGRAMS = {
    "pair_histogram": (-16.0, 40.0, 350, None),
    "few_bins": (-16.0, 40.0, 25, None),
    "triplet_histogram": (-4.0, 4.0, 20, [0.0] * 20),
    "narrow_histogram": (-0.5, 0.25, 9, [0.1, 0.2, 0.0, 0.1, 0.3, 0.1, 0.1, 0.0, 0.1]),
}
FOLD = {"threshold": Fold("threshold", 0.0), "mean": Fold()}


@dataclass
class Batch:
    """What an operator is called with; ``y`` of ``None`` is the batch itself."""

    x: Tensor
    labels: Tensor
    y: Tensor | None = None
    y_labels: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Batch:
        return replace(self, x=self.x.to(dtype), y=None if self.y is None else self.y.to(dtype))

    def nudged(self, by: float) -> Batch:
        """In float64, every number moved by about that part of itself."""
        wide = self.to(torch.float64)
        y = None if wide.y is None else wide.y * (1 + by * torch.randn_like(wide.y))
        return replace(wide, x=wide.x * (1 + by * torch.randn_like(wide.x)), y=y)


@dataclass
class Answer:
    value: Tensor
    dx: Tensor
    dy: Tensor | None


def draw(n: int, m: int | None, d: int = 17, classes: int = 9, seed: int | None = None) -> Batch:
    """Fresh random rows; the scale keeps inner products of raw rows small enough for half precision."""
    gen = torch.Generator()
    gen.manual_seed(int(torch.randint(1 << 31, ())) if seed is None else seed)
    x = torch.randn(n, d, generator=gen, dtype=torch.float64) / d**0.5
    labels = torch.randint(0, classes, (n,), generator=gen)
    if m is None:
        return Batch(x, labels)
    y = torch.randn(m, d, generator=gen, dtype=torch.float64) / d**0.5
    return Batch(x, labels, y, torch.randint(0, classes + 1, (m,), generator=gen))


def loss_of(
    name: str, sides: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], score: Score, itself: bool,
    fold: Fold = FOLD["mean"], params: list[float] | None = None,
) -> Tensor:  # fmt: skip
    """The loss of rows and columns, by the operator that has it."""
    loss: Tensor
    if name in TRIPLETS:
        *numbers, select, select_margin = TRIPLETS[name]
        loss = torch.ops.pml_fast.triplet_loss(
            *sides, *labels, None, None, [*map(float, numbers), select_margin], select,
            score.encode(), itself, fold.encode(), True, True,
        )[0]  # fmt: skip
    elif name in HISTOGRAMS:
        low, high, count, before = HISTOGRAMS[name]
        running = None if before is None else torch.tensor(before)
        loss = torch.ops.pml_fast.histogram_loss(
            *sides, *labels, running, low, (high - low) / count, count, score.encode(), itself, 0.3, True, True
        )[0]
    else:
        spec = PAIR_SPECS[name]() if params is None else PAIR_SPECS[name](*params)
        loss = torch.ops.pml_fast.pairwise_loss(
            *sides, *labels, None, None, name, spec.params(), score.encode(), itself,
            [fold.encode()] * len(spec.terms), True, True,
        )[0]  # fmt: skip
    return loss


def call(name: str, batch: Batch, score: Score, fold: Fold = FOLD["mean"], params: list[float] | None = None) -> Answer:
    """Value and gradients of a pair spec or of triplets through the operators, under the backend in force."""
    itself = batch.y is None
    x = batch.x.detach().clone().requires_grad_()
    y = x if batch.y is None else batch.y.detach().clone().requires_grad_()
    y_labels = batch.labels if batch.y_labels is None else batch.y_labels
    value = loss_of(name, (x, y), (batch.labels, y_labels), score, itself, fold, params)
    value.backward()
    assert x.grad is not None
    return Answer(value.detach(), x.grad, None if itself else y.grad)


def on(backend: str, name: str, batch: Batch, score: Score, fold: Fold = FOLD["mean"]) -> Answer:
    with use(backend=backend):
        return call(name, batch, score, fold)


def distance(got: Tensor, want: Tensor) -> float:
    return (got.double() - want.double()).norm().item()


def assert_within_budget(got: Answer, plain: Answer, exact: Answer, name: str) -> None:
    """At most twice the error of the plain formula in the same precision, and some rounding of the result."""
    wide = torch.float64 if got.dx.dtype == torch.float64 else torch.float32
    assert got.value.dtype == wide and got.dx.dtype == plain.dx.dtype
    # Logits are up to a hundred times a score: so is their rounding.
    slack = 400 * torch.finfo(wide).eps
    budget = 2 * distance(plain.value, exact.value) + slack * (1 + exact.value.abs().item())
    assert distance(got.value, exact.value) <= budget, name
    for mine, theirs, right in ((got.dx, plain.dx, exact.dx), (got.dy, plain.dy, exact.dy)):
        assert (mine is None) == (theirs is None) == (right is None)
        if mine is None or theirs is None or right is None:
            continue
        rounding = slack + torch.finfo(mine.dtype).eps
        assert distance(mine, right) <= 2 * distance(theirs, right) + rounding * (right.norm().item() + 1e-3), name


# By how much of itself a row is moved to find those on an edge, and what that changes of a smooth loss at most.
NUDGE = 1e-6
JUMP = 500 * torch.finfo(torch.float32).eps


def settled(name: str, make: Callable[[], Batch], score: Score, fold: Fold = FOLD["mean"]) -> tuple[Batch, Answer]:
    """A batch and its exact answer, which rounding does not change: no loss of it lies on the edge of a hinge or of a choice.

    Rows are moved a little, several times; those whose gradient jumps are drawn anew.
    """
    batch = make()
    for _ in range(50):
        exact = on("reference", name, batch.to(torch.float64), score, fold)
        moved = [on("reference", name, batch.nudged(NUDGE), score, fold) for _ in range(4)]
        if all(_is_near(answer, exact) for answer in moved):
            return batch, exact
        jumped = torch.stack([_jumps(answer.dx, exact.dx) for answer in moved]).any(0)
        fresh = make()
        batch = replace(batch, x=torch.where(jumped[:, None], fresh.x, batch.x)) if jumped.any() else fresh
    raise AssertionError(f"{name}: some of 50 batches in a row lie on an edge")


def _jumps(moved: Tensor, exact: Tensor) -> Tensor:
    """Which rows' gradients changed by more than a smooth loss's would."""
    size = exact.norm(dim=1)
    return (moved - exact).norm(dim=1) > JUMP * (size + size.square().mean().sqrt() + 1e-3)


def _is_near(moved: Answer, exact: Answer) -> bool:
    pairs = [(moved.value, exact.value), (moved.dx, exact.dx)]
    if moved.dy is not None and exact.dy is not None:
        pairs.append((moved.dy, exact.dy))
    smooth = all(distance(a, b) <= JUMP * (b.norm().item() + 1e-3) for a, b in pairs)
    return smooth and not bool(_jumps(moved.dx, exact.dx).any())


def skip_unless(backend: str) -> None:
    reason = dispatch.backend(backend).available()
    if reason is not None:
        pytest.skip(reason)


NAMES = [*sorted(PAIR_SPECS), *TRIPLETS, *HISTOGRAMS]
# Losses whose scores must be cosines.
ONLY_COSINE = {"circle", "tuplet_margin"}
# Losses of which none may be above 0.
BELOW_ZERO = {"log_sum_exp"}


def has_kernel(backend: str, name: str) -> bool:
    """Pure torch runs every spec; swap and some specs have no compiled kernel."""
    return (
        backend != "cpu"
        or name in (*COMPILED, *COMPILED_ROWS)
        or name in HISTOGRAMS
        or (name in TRIPLETS and "swap" not in name)
    )


WITH_KERNEL = [(backend, name) for backend in BACKENDS for name in NAMES if has_kernel(backend, name)]


def cases() -> Iterator[tuple[str, str, str]]:
    """Backend, spec or triplets, and score: all but those a backend is known to refuse."""
    for backend in BACKENDS:
        for name in NAMES:
            for score in SCORES:
                if (name in ONLY_COSINE and score != "cosine") or not has_kernel(backend, name):
                    continue
                # Swap has no kernel where the distance is not symmetric.
                if "swap" in name and score == "asymmetric":
                    continue
                if backend == "cpu" and score in NOT_COMPILED:
                    continue
                yield backend, name, score


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize(("backend", "name", "score"), list(cases()))
def test_value_and_gradients_are_within_the_error_budget(backend: str, name: str, score: str, dtype: torch.dtype) -> None:
    """A batch against itself and against a second set, ragged, with a fold that counts and one that does not."""
    skip_unless(backend)
    for m in (None, 45):
        of_all = dtype is torch.bfloat16 or "smooth" in name or name in BELOW_ZERO
        fold = FOLD["mean"] if of_all else FOLD["threshold"]
        batch, exact = settled(name, lambda m=m: draw(61, m).to(dtype), SCORES[score], fold)
        plain = on("reference", name, batch, SCORES[score], fold)
        assert exact.value.isfinite() and exact.dx.norm() > 0
        assert_within_budget(on(backend, name, batch, SCORES[score], fold), plain, exact, name)


@pytest.mark.parametrize(
    ("backend", "name", "score"),
    [case for case in cases() if case[1] in PAIR_SPECS and case[2] in ("cosine", "l2")],
)
def test_shapes_beyond_one_tile(backend: str, name: str, score: str) -> None:
    """Several strips of rows, and columns that fill no whole vector."""
    skip_unless(backend)
    if not has_kernel(backend, name):
        pytest.skip("no compiled kernel")
    # The compiled backend cuts batches of more than 2048 rows otherwise.
    beyond = [(2100, None)] if (backend, score) == ("cpu", "cosine") else []
    for n, m in ((1203, None), (611, 907), *beyond):
        batch, exact = settled(name, lambda n=n, m=m: draw(n, m, d=7, classes=90).to(torch.float32), SCORES[score])
        plain = on("reference", name, batch, SCORES[score])
        assert_within_budget(on(backend, name, batch, SCORES[score]), plain, exact, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in TRIPLETS if "swap" not in name])
def test_triplets_of_large_classes(backend: str, name: str) -> None:
    """More positives than any small-class path holds: 40 rows a class, over several strips."""
    skip_unless(backend)
    fold = FOLD["threshold"]
    batch, exact = settled(name, lambda: draw(50, 230, d=7, classes=3).to(torch.float32), SCORES["l2"], fold)
    plain = on("reference", name, batch, SCORES["l2"], fold)
    assert_within_budget(on(backend, name, batch, SCORES["l2"], fold), plain, exact, name)


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize(("n", "m", "classes"), [(60, None, 2), (50, 1300, 3), (530, None, 4), (1100, None, 300)])
def test_histograms_of_small_and_of_large_classes(name: str, n: int, m: int | None, classes: int) -> None:
    """Few positives compare, many search among sorted negatives; one call, one strip and several give the same."""
    skip_unless("cpu")
    batch = draw(n, m, d=7, classes=classes, seed=n)
    got, want = (on(backend, name, batch, SCORES["l2"]) for backend in ("cpu", "chunked"))
    torch.testing.assert_close(got.value, want.value, rtol=1e-11, atol=0)
    torch.testing.assert_close(got.dx, want.dx, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.dy, want.dy, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_running_histogram_takes_a_batch_in(backend: str) -> None:
    """In one call and in strips; a batch that is not finite, or has no triplet, leaves it."""
    skip_unless(backend)
    x, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(20) % 5
    before, score = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), SCORES["l2"]

    def step(x: Tensor, labels: Tensor, itself: bool) -> Tensor:
        after: Tensor = torch.ops.pml_fast.histogram_loss(
            x, x, labels, labels, before, -2.0, 4 / 3, 3, score.encode(), itself, 0.25, False, False
        )[1]
        return after

    for itself in (True, False):
        s = torch.cdist(x / x.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True))
        same = labels[:, None] == labels
        pos = same & ~torch.eye(20, dtype=torch.bool) if itself else same
        differences = (s[:, :, None] - s[:, None, :])[pos[:, :, None] & ~same[:, None, :]]
        # Each difference is shared by the nodes below and above it; the last node takes what lies beyond.
        place = (differences + 2) / (4 / 3)
        shares = torch.relu(1 - (place[:, None] - torch.arange(3)).abs()).sum(dim=0)
        shares[2] += torch.relu(place - 2).clamp(max=1).sum()
        mixed = 0.75 * before + 0.25 * shares
        with use(backend=backend):
            torch.testing.assert_close(step(x, labels, itself), mixed / mixed.sum(), rtol=1e-6, atol=1e-9)
            assert torch.equal(step(x, torch.zeros_like(labels), itself), before)
            spoilt = x.clone()
            spoilt[3, 1] = float("nan")
            assert torch.equal(step(spoilt, labels, itself), before)


def isas() -> list[str]:
    extension = _extension.load()
    return [] if extension is None else list(extension.build_info()["isas"])


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    extension = _extension.load()
    assert extension is not None
    before = extension.isa()
    try:
        extension.set_isa(request.param)
    except ValueError as error:
        pytest.skip(f"this processor cannot run it: {error}")
    yield request.param
    extension.set_isa(before)


@pytest.mark.skipif(not isas(), reason="the compiled extension is not built")
@pytest.mark.parametrize("instruction_set", isas(), indirect=True)
@pytest.mark.parametrize("name", [name for backend, name in WITH_KERNEL if backend == "cpu"])
def test_every_instruction_set_computes_the_same(name: str, instruction_set: str) -> None:
    """Baseline, AVX2 and AVX-512 are compiled from one source; each is held to the oracle."""
    for score in ("cosine", "dot", "l2", "l2_squared") if name != "circle" else ("cosine",):
        for dtype in (torch.float32, torch.float64):
            m = None if score != "dot" else 53
            batch, exact = settled(name, lambda m=m, dtype=dtype: draw(77, m).to(dtype), SCORES[score])
            plain = on("reference", name, batch, SCORES[score])
            assert_within_budget(on("cpu", name, batch, SCORES[score]), plain, exact, f"{name} {score}")


@pytest.mark.parametrize(("backend", "name"), WITH_KERNEL)
def test_bits_repeat_whatever_the_number_of_threads(backend: str, name: str) -> None:
    """The same call twice gives the same bits; on the compiled backend 1, 2 and 4 threads do, too.

    The chunked backend is torch's own products, which may split their sums by threads.
    """
    skip_unless(backend)
    before = torch.get_num_threads()
    try:
        for n, m in ((300, None), (130, 210)):
            batch = draw(n, m, d=12, classes=30).to(torch.float32)
            answers = []
            for threads in (1, 1, 2, 4) if backend == "cpu" else (2, 2):
                torch.set_num_threads(threads)
                answers.append(on(backend, name, batch, SCORES["cosine"], FOLD["threshold"]))
            for answer in answers[1:]:
                assert torch.equal(answer.value, answers[0].value)
                assert torch.equal(answer.dx, answers[0].dx)
                assert answer.dy is None or torch.equal(answer.dy, answers[0].dy)
    finally:
        torch.set_num_threads(before)


# ---- what batches can hold ---------------------------------------------------------------------------------------------------

SEEDED = torch.Generator().manual_seed(0)
EDGES = {
    "empty": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
    "one_row": (torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)),
    "one_class": (torch.randn(9, 3, generator=SEEDED), torch.full((9,), -4)),
    "all_distinct": (torch.randn(9, 3, generator=SEEDED), torch.arange(9) * (1 << 40)),
    "one_feature": (torch.randn(9, 1, generator=SEEDED), torch.arange(9) % 3),
    "duplicates": (torch.randn(3, 5, generator=SEEDED).repeat(4, 1), torch.arange(12) % 2),
    "all_equal": (torch.ones(8, 5), torch.arange(8) % 2),
    "zero_rows": (torch.cat([torch.zeros(4, 3), torch.randn(5, 3, generator=SEEDED)]), torch.arange(9) % 2),
    "signs": (torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(3, 1), torch.arange(12) % 5),
    "huge": (torch.randn(9, 4, generator=SEEDED) * 1e15, torch.arange(9) % 3),
    "tiny": (torch.randn(9, 4, generator=SEEDED) * 1e-15, torch.arange(9) % 3),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_equal_the_oracle(backend: str, edge: str) -> None:
    """Empty, single, one-class, all-distinct, duplicate, zero, huge and tiny rows, for every spec and distance."""
    skip_unless(backend)
    x, labels = EDGES[edge]
    batch = Batch(x, labels).to(torch.float64)
    for other, name, score in cases():
        if other != backend or (edge in ("huge", "tiny") and not SCORES[score].normalize):
            continue
        # FastAP of positives alone is 0 up to rounding, which decides what is above a threshold of 0.
        fold = FOLD["mean" if name == "fast_ap" and edge == "one_class" else "threshold"]
        want = on("reference", name, batch, SCORES[score], fold)
        got = on(backend, name, batch, SCORES[score], fold)
        smooth = ("supcon", "ntxent", "multi_similarity", "circle", "smooth", "smooth_ap", "pnp")
        at_a_node = name in ("fast_ap", "triplet_histogram", "narrow_histogram") and edge in (
            "signs",
            "one_feature",
            "all_equal",
            "duplicates",
        )
        # The sine of the angle between equal rows has an infinite slope.
        at_no_angle = name == "tuplet_margin" and edge == "all_equal"
        if at_a_node or at_no_angle or (edge == "zero_rows" and name not in smooth):
            # At a distance of 1 from everything, rounding decides what is beyond a margin or a node of a histogram.
            assert got.value.isfinite() and got.dx.isfinite().all()
            continue
        what = f"{name} {score}"
        assert want.value.isfinite(), what
        torch.testing.assert_close(got.value, want.value, rtol=1e-8, atol=1e-9, msg=lambda m, w=what: f"{w}: {m}")
        # A row's gradient grows as its norm shrinks.
        scale = max(1.0, want.dx.abs().max().item() if len(want.dx) else 0.0)
        near = {"rtol": 1e-6, "atol": 1e-8 * scale}
        torch.testing.assert_close(got.dx, want.dx, **near, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_gradients_at_equal_rows_are_zero(backend: str) -> None:
    """The distance of a vector to itself has no direction: the gradient is 0, never NaN, for every power and order."""
    x = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 2
    pairs = (torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0]), torch.tensor([1]))
    for options in ({}, {"power": 2}, {"p": 1}, {"p": 3}, {"power": 0.5}, {"normalize_embeddings": False}):
        for mined in (None, pairs):
            loss = losses.ContrastiveLoss(distance=LpDistance(**options), reducer=MeanReducer())
            with use(backend=backend):
                (grad,) = torch.autograd.grad(loss(x, labels, mined), x)
            assert not grad.any(), options


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m"), [(5, 0), (0, 5), (0, 0)])
def test_empty_sets_give_a_differentiable_zero(backend: str, n: int, m: int) -> None:
    skip_unless(backend)
    batch = draw(n, m, seed=1)
    for other, name, score in cases():
        if other == backend:
            got = on(backend, name, batch, SCORES[score])
            assert got.value == 0 or (n > 0 and name == "multi_similarity" and got.value.isfinite()), f"{name} {score}"
            assert got.dy is not None and not got.dx.any() and not got.dy.any(), f"{name} {score}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_is_not_finite_is_seen(backend: str, bad: float, dtype: torch.dtype) -> None:
    """A NaN in a row makes every loss NaN, an infinity makes it what the formula says: nothing is swallowed."""
    skip_unless(backend)
    for other, name, score in cases():
        if other != backend or score in NOT_COMPILED:
            continue
        if name in TRIPLETS and TRIPLETS[name][3] != "every":
            # A comparison with NaN is false, so a miner leaves such triplets out, as the peer's does.
            continue
        if name in ("fast_ap", *HISTOGRAMS) and not SCORES[score].normalize:
            # An infinite distance lies beyond its histogram, which is one of unit vectors.
            continue
        for m in (None, 15):
            batch = draw(12, m, d=4, classes=2, seed=5).to(dtype)
            batch.x[3, 1] = bad
            value = on(backend, name, batch, SCORES[score]).value
            want = on("reference", name, batch, SCORES[score]).value
            what = f"{name} {score} {m}: {value} for {want}"
            if want.isfinite():
                assert bad not in (value, float("nan")) and value.item() == pytest.approx(want.item(), rel=1e-5), what
            else:
                assert not value.isfinite(), what
            assert value.isnan() or bad == bad, what


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cold_temperature_of_raw_inner_products_does_not_overflow(backend: str) -> None:
    """Logits of thousands, as raw embeddings and a temperature of 0.01 give, in float32."""
    skip_unless(backend)
    for m in (None, 40):
        batch = draw(50, m, d=16, classes=6, seed=2).to(torch.float32)
        batch.x.mul_(20)
        for name in ("supcon", "ntxent"):
            with use(backend=backend):
                got = call(name, batch, SCORES["dot"], params=[0.01])
            with use(backend="reference"):
                want = call(name, batch.to(torch.float64), SCORES["dot"], params=[0.01])
            assert want.value > 100
            torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=0)
            assert distance(got.dx, want.dx) <= 1e-3 * want.dx.norm().item()


@pytest.mark.parametrize("score", ["cosine", "dot", "l2", "asymmetric"])
@pytest.mark.parametrize("name", COMPILED)
def test_two_small_sets_take_one_call(name: str, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a small batch against other columns, which the tiles of the general way must agree with."""
    skip_unless("cpu")
    if name in ONLY_COSINE and score != "cosine":
        pytest.skip("scores must be cosines")
    batch = draw(61, 45).to(torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(small, "LARGEST", 0)
        want = on("cpu", name, batch, SCORES[score])
    # Circle's logits are not affine, and squares of raw rows leave its range.
    if name != "circle" or score == "cosine":
        monkeypatch.setattr(ops, "both", None)
    got = on("cpu", name, batch, SCORES[score])
    torch.testing.assert_close(got.value, want.value)
    torch.testing.assert_close(got.dx, want.dx)
    torch.testing.assert_close(got.dy, want.dy)


@pytest.mark.parametrize("score", ["dot", "l2_raw"])
def test_norms_that_bound_the_logits_spare_a_sweep(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of raw rows have no bound of their own; only rows that are too long are asked for their largest logit."""
    skip_unless("cpu")
    asked = []
    extremes = Sweep._extremes
    monkeypatch.setattr(Sweep, "_extremes", lambda sweep, largest: (asked.append(1), extremes(sweep, largest))[1])
    monkeypatch.setattr(small, "LARGEST", 0)
    for stretch, sweeps in ((1, 0), (100, 1)):
        for m in (None, 45):
            batch = draw(61, m).to(torch.float32)
            batch.x.mul_(stretch)
            assert_close_to_reference("supcon", batch, SCORES[score])
            assert len(asked) == sweeps
            asked.clear()


def assert_close_to_reference(name: str, batch: Batch, score: Score) -> None:
    got, want = on("cpu", name, batch, score), on("reference", name, batch.to(torch.float64), score)
    torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=0)
    assert distance(got.dx, want.dx) <= 1e-2 * want.dx.norm().item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    """Transposed, sliced and expanded inputs give what their contiguous copies give."""
    skip_unless(backend)
    wide = draw(40, None, d=24, classes=5, seed=3).to(torch.float32)
    views = [wide.x.t().contiguous().t(), torch.cat([wide.x, wide.x], dim=1)[:, ::2], wide.x[::2], wide.x[:1].expand(9, 24)]
    labels = torch.stack([wide.labels, wide.labels], dim=1)[:, 0]
    for name in NAMES:
        if (backend, name) not in WITH_KERNEL:
            continue
        for x in views:
            own = labels[: len(x)]
            assert not x.is_contiguous()
            got = on_view(backend, name, x, own)
            want = on_view(backend, name, x.contiguous(), own.contiguous())
            torch.testing.assert_close(got.value, want.value, rtol=1e-6, atol=0)
            assert distance(got.dx, want.dx) <= 1e-5 * want.dx.norm().item(), name


def on_view(backend: str, name: str, x: Tensor, labels: Tensor) -> Answer:
    """As `on`, keeping the strides."""
    x = x.detach().requires_grad_()
    with use(backend=backend):
        value = loss_of(name, (x, x), (labels, labels), SCORES["l2" if name in TRIPLETS else "cosine"], True)
    return Answer(value.detach(), torch.autograd.grad(value, x)[0], None)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uninitialised tensor holds NaN (or a wild index): what a kernel forgets to write is seen."""

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(1 << 50))

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, _make=make, **options: fill(_make(*args, **options)))


@pytest.mark.parametrize(("backend", "name"), WITH_KERNEL)
def test_every_output_is_written(poisoned: None, backend: str, name: str) -> None:
    skip_unless(backend)
    assert torch.empty(2).isnan().all()
    for m in (None, 29):
        answer = on(backend, name, draw(37, m, seed=6), SCORES["cosine"])
        assert answer.value.isfinite() and answer.dx.isfinite().all()
        assert answer.dy is None or answer.dy.isfinite().all()


# ---- memory ------------------------------------------------------------------------------------------------------------------

MEMORY = """
import torch
from pml_fast import losses, miners, use
from pml_fast._bounded import measure_peak
N, P, D = 8192, 3, 64
use(backend={backend!r})
def step(n):
    x = torch.randn(n, D, requires_grad=True)
    labels = torch.arange(n) // (P + 1)
    loss = losses.{loss}
    {call}.backward()
    return x.grad
step(256)
x = torch.empty(0)
_, peak = measure_peak(lambda: step(N))
print(peak - 4 * N * D)
"""
# Class losses: about as many classes as labels, so that the batch times the classes is N x N / 4.
SIZES = {
    **dict.fromkeys(
        ("ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss"),
        "N // (P + 1), D",
    ),
    "P2SGradLoss": "D, N // (P + 1)",
    "SphereFaceLoss": "N // (P + 1), D",
    "SoftTripleLoss": "N // (P + 1), D, centers_per_class=2",
    "SubCenterArcFaceLoss": "N // (P + 1), D",
}
STEPS = {
    **{
        name: (f"{name}({SIZES.get(name, '')})", "loss(x, labels)")
        for name in losses.__all__
        # These two take no labels.
        if name.endswith("Loss") and name not in ("ManifoldLoss", "VICRegLoss")
    },
    "RankedListLoss": ("RankedListLoss(0.4, 5)", "loss(x, labels)"),
    "CLIPLoss": ("CLIPLoss()", "loss(x, ref_emb=x.detach().clone())"),
    # Strips of label similarities, and positives listed by the labels that they share.
    "MultiSupConLoss": ("MultiSupConLoss(threshold=0)", "loss(x, torch.nn.functional.one_hot(labels % 16))"),
    "listed_positives": ("MultiSupConLoss()", "loss(x, torch.nn.functional.one_hot(labels % 256))"),
    "two_sets": ("SigLIPLoss()", "loss(x, ref_emb=x.detach().clone())"),
    "mined": ("MultiSimilarityLoss()", "loss(x, labels, miners.MultiSimilarityMiner()(x, labels))"),
    "batch_hard": ("TripletMarginLoss()", "loss(x, labels, miners.BatchHardMiner()(x, labels))"),
}
# The base of losses that users write over the matrix.
del STEPS["GenericPairLoss"]
# It takes another loss, and is that loss of two views.
del STEPS["SelfSupervisedLoss"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("backend", ["cpu"])
def test_a_step_takes_linear_memory(backend: str, step: str) -> None:
    """At N = 8192 the peak over the start stays below the gradients + 8 N (P + 8) bytes + 64 MiB (N x N alone is 256 MiB)."""
    skip_unless(backend)
    loss, made = STEPS[step]
    script = MEMORY.format(backend="auto", loss=loss, call=made)
    # Buffers of a strip go back to the system at once: what is measured is what is held, not the holes of the allocator's heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    n, p, d = 8192, 3, 64
    # Columns that are not the rows: they and their gradients as well, prepared for each direction.
    more = 32 * n * d if "ref_emb" in made or loss.startswith("SignalToNoise") else 0
    assert int(run.stdout) < 4 * n * d + 8 * n * (p + 8) + (64 << 20) + more
