"""What the tests of the backends share: losses by name, batches, scores, and the oracle's answers with their error budget.

The oracle is the dense formulas of the `reference` backend in float64. Everything goes over the registry of specs, so a new
loss is tested by being registered. An error is judged against that of the plain dense formula in the same precision: at most
twice as large, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import pml_fast.engine.histogram
import pml_fast.engine.ops
import pml_fast.engine.triplet_ops  # noqa: F401  (defines the operators)
from pml_fast import use
from pml_fast.engine import dispatch
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.cpu.strip import COMPILED_ROWS
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PAIR_SPECS

INF = float("inf")
BACKENDS = ["cpu", "chunked"]
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
