"""What ``pml-fast tune`` times of each kernel: calls of its launcher, on random unit rows in classes of four.

One entry of the table serves every call of a kernel: the calls that differ most in what they sum or keep stand for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine import specs  # noqa: F401  (registers the losses)
from pml_fast.engine.fold import Fold
from pml_fast.engine.knn.problem import NearestProblem, RankProblem
from pml_fast.engine.problem import NO_LIMITS, ExtremeProblem, PairProblem, TripletProblem
from pml_fast.engine.score import Score, unit_rows
from pml_fast.engine.spec import PAIR_SPECS, TripletSpec
from pml_fast.engine.triton import given, indexed, knn, small, small_step, sweeps, triplet, tuned
from pml_fast.engine.triton.epilogues import EPILOGUES

SCORES = {"dot": Score(), "l2": Score("l2", inverted=False)}
# The losses that stand for all of a kernel's: an exponential loss and a hinge, then all that there are.
LOSSES = {
    "state": ("supcon", "contrastive"),
    "two-sweeps": ("lifted_structure", "intra_pair_variance"),
    "histogram": ("fast_ap",),
    "soft-ranks": ("smooth_ap", "pnp"),
    "soft-ranks-grad": ("smooth_ap", "pnp"),
}
# Kernels that take rows in bfloat16 parts: the gradient of these is always written out.
SPLIT = ("state", "pulls", "two-sweeps", "histogram", "soft-ranks", "soft-ranks-grad", "extreme")
PER_CLASS = 4
# The fewest neighbours that a program keeps, and the most.
NEIGHBORS = (16, knn.MOST_NEIGHBORS)
# Listed pairs of a row.
PARTNERS = 16
# Plain and smooth, of which the losses that are not 0 count.
NON_ZERO = (0.0, float("inf"))
TRIPLETS = (TripletSpec(0.05), TripletSpec(0.05, smooth=True))

Step = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Task:
    """One entry to find: a kernel for ``n`` rows of ``d`` numbers of a torch dtype, at a float32 precision."""

    kernel: str
    score: str
    dtype: torch.dtype
    precision: str
    d: int
    n: int
    device: torch.device

    @property
    def split(self) -> bool:
        """Whether the kernel reads rows in three bfloat16 parts."""
        return self.precision == "bf16x3"

    @property
    def width(self) -> int:
        """Numbers of a row as the kernel reads it."""
        return 3 * self.d if self.split else self.d


@dataclass(frozen=True)
class Batch:
    """Rows, labels, and the generator that goes on from them."""

    score: Score
    x: Tensor
    labels: Tensor
    generator: torch.Generator


def steps(task: Task) -> list[Step]:
    """The calls whose seconds are added up."""
    generator = torch.Generator().manual_seed(0)
    x = unit_rows(torch.randn(task.n, task.d, generator=generator))[0].to(task.device, task.dtype)
    labels = (torch.arange(task.n) // PER_CLASS)[torch.randperm(task.n, generator=generator)].to(task.device)
    return STEPS[task.kernel](Batch(SCORES[task.score], x, labels, generator))


def refuse(task: Task) -> str | None:
    """Why no launch would ever look this entry up, after the name of the option that is to blame; else ``None``."""
    if task.kernel == "small" and task.n > small.LARGEST:
        return f"--n {task.n}: the kernel 'small' runs for up to {small.LARGEST} rows"
    if task.split and task.kernel not in SPLIT:
        return f"--dtype bf16x3: the kernel {task.kernel!r} multiplies no bfloat16 parts, and runs as with float32"
    if task.split and SCORES[task.score].kind != "dot":
        return f"--score {task.score}: distances have no products of bfloat16 parts, and run as with float32"
    losses = LOSSES.get(task.kernel, ())
    if task.dtype != torch.float32 and losses and all(EPILOGUES[loss].steep for loss in losses):
        name = str(task.dtype).removeprefix("torch.")
        return f"--dtype {name}: the losses of the kernel {task.kernel!r} widen rows of half precision to float32"
    return None


def _pair_problem(batch: Batch, loss: str) -> PairProblem:
    spec = PAIR_SPECS[loss]()
    limits = [NO_LIMITS] * len(spec.terms)
    return PairProblem(spec, batch.score, batch.x, batch.x, batch.labels, batch.labels, True, None, limits)


def _pair_problems(batch: Batch, kernel: str) -> list[PairProblem]:
    return [_pair_problem(batch, loss) for loss in LOSSES[kernel]]


def _forward(batch: Batch, kernel: str) -> list[Step]:
    def step(problem: PairProblem) -> list[Tensor]:
        found = sweeps.pair_rows(problem)
        return [found.rows, found.saved, found.exists]

    return [lambda p=p: step(p) for p in _pair_problems(batch, kernel)]  # type: ignore[misc]


def _state(batch: Batch) -> list[Step]:
    return _forward(batch, "state")


def _grad(batch: Batch) -> list[Step]:
    return [_grad_step(p) for p in _pair_problems(batch, "state")]


def _two_sweeps(batch: Batch) -> list[Step]:
    """The forward of both losses, and the sweep of lifted structure's backward."""
    forward, back = _forward(batch, "two-sweeps"), _pair_problem(batch, "lifted_structure")
    with tuned.using({}):
        saved = sweeps.pair_rows(back).saved
    w = torch.ones(1, len(batch.x), device=batch.x.device)
    return [*forward, lambda: [given.weighed(back, EPILOGUES["lifted_structure"], saved, w)]]


def _histogram(batch: Batch) -> list[Step]:
    # The slopes that are left in the table's place jump where a count is 0 but for its rounding.
    return [lambda p=p: [sweeps.pair_rows(p).rows] for p in _pair_problems(batch, "histogram")]  # type: ignore[misc]


def _soft_ranks(batch: Batch) -> list[Step]:
    return _forward(batch, "soft-ranks")


def _soft_ranks_grad(batch: Batch) -> list[Step]:
    return [_grad_step(p) for p in _pair_problems(batch, "soft-ranks-grad")]


def _heavy(score: Score) -> list[str]:
    """Losses of one sweep whose gradient asks for ``pulls`` whatever their D."""
    return [name for name, e in EPILOGUES.items() if e.heavy and e.small and not (e.cosines and score.kind != "dot")]


def _pulls(batch: Batch) -> list[Step]:
    return [_grad_step(_pair_problem(batch, _heavy(batch.score)[0]))]


def _grad_step(problem: PairProblem) -> Step:
    with tuned.using({}):
        saved = sweeps.pair_rows(problem).saved
    w = torch.ones(len(problem.spec.terms), len(problem.x), device=problem.x.device)
    return lambda: [part for part in sweeps.pair_grads(problem, saved, w, True, False) if part is not None]


def _extreme(batch: Batch) -> list[Step]:
    score = batch.score
    problem = ExtremeProblem(
        score, batch.x, batch.x, batch.labels, batch.labels, True, False, score.inverted, None, None
    )  # fmt: skip
    return [lambda: sweeps.extremes(problem)[:1]]


def _small(batch: Batch) -> list[Step]:
    def step(loss: str) -> Step:
        spec = PAIR_SPECS[loss]()
        how = small.recipe(loss, tuple(spec.params()), batch.score.encode(), (Fold().encode(),) * len(spec.terms))
        assert how is not None
        return lambda: small_step.small_step(batch.x, batch.labels, None, how, True)

    return [step(loss) for loss in LOSSES["state"]]


def _triplet_problems(batch: Batch) -> list[TripletProblem]:
    sides = (batch.x, batch.x, batch.labels, batch.labels)
    return [TripletProblem(spec, batch.score, *sides, True, None, NON_ZERO) for spec in TRIPLETS]


def _triplet(batch: Batch) -> list[Step]:
    return [lambda p=p: triplet.triplet_rows(p, False, False, True)[:1] for p in _triplet_problems(batch)]  # type: ignore[misc]


def _triplet_grad(batch: Batch) -> list[Step]:
    w = torch.ones(len(batch.x), device=batch.x.device)

    def step(problem: TripletProblem) -> list[Tensor]:
        return [part for part in triplet.triplet_grads(problem, w, True, False) if part is not None]

    return [lambda p=p: step(p) for p in _triplet_problems(batch)]  # type: ignore[misc]


def _nearest(batch: Batch) -> list[Step]:
    most = len(batch.x) - 1
    problems = [NearestProblem(batch.score, batch.x, batch.x, min(k, most), True) for k in NEIGHBORS]
    # Which of two columns that are equally close comes first is a matter of rounding.
    return [lambda p=p: knn.nearest(p)[:1] for p in problems]  # type: ignore[misc]


def _ranks(batch: Batch) -> list[Step]:
    problem = RankProblem(batch.score, batch.x, batch.x, batch.labels, batch.labels, True)
    return [lambda: [strip.ranks for strip in knn.rank_strips(problem)]]


def _partners(batch: Batch) -> tuple[Tensor, Tensor]:
    n = len(batch.x)
    row = torch.arange(n).repeat_interleave(PARTNERS)
    column = torch.randint(n, (n * PARTNERS,), generator=batch.generator)
    return row.to(batch.x.device), column.to(batch.x.device)


def _listed(batch: Batch) -> list[Step]:
    row, column = _partners(batch)
    return [lambda: [indexed.listed_scores(batch.score, batch.x, batch.x, row, column)]]


def _listed_grad(batch: Batch) -> list[Step]:
    row, column = _partners(batch)
    ones = torch.ones(len(row), device=batch.x.device)

    def step() -> list[Tensor]:
        found = indexed.listed_grads(batch.score, batch.x, batch.x, row, column, ones, True, False)
        return [part for part in found if part is not None]

    return [step]


STEPS: dict[str, Callable[[Batch], list[Step]]] = {
    "state": _state,
    "grad": _grad,
    "pulls": _pulls,
    "two-sweeps": _two_sweeps,
    "histogram": _histogram,
    "soft-ranks": _soft_ranks,
    "soft-ranks-grad": _soft_ranks_grad,
    "extreme": _extreme,
    "small": _small,
    "triplet": _triplet,
    "triplet-grad": _triplet_grad,
    "nearest": _nearest,
    "ranks": _ranks,
    "listed": _listed,
    "listed-grad": _listed_grad,
}
