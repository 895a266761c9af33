"""Times candidate configurations of the Triton kernels on the card found: what ``pml-fast tune`` does.

A candidate is timed as it would run: as the table in force (:mod:`tuned`), through the launchers. One whose answers are not
those of the shipped configuration is not timed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

import triton
from pml_fast.engine import specs  # noqa: F401  (registers the losses)
from pml_fast.engine.problem import NO_LIMITS, ExtremeProblem, PairProblem
from pml_fast.engine.score import Score, unit_rows
from pml_fast.engine.spec import PAIR_SPECS
from pml_fast.engine.triton import launch, layout, sweeps, tuned
from pml_fast.engine.triton.configs import MOST_REGISTERS, Config, config
from triton.errors import TritonError

KERNELS = ("state", "grad", "extreme")
SCORES = {"dot": Score(), "l2": Score("l2", inverted=False)}
# A kernel's one entry serves all losses: an exponential one and a hinge, which have different sums, stand for them.
LOSSES = ("supcon", "contrastive")
PER_CLASS = 4
LEAST_BLOCK = 16
# More scores than this do not fit the registers of a thread beside what is computed of them.
MOST_SCORES = 64
# Relative difference of two answers that sum the same products in different orders, and round what they multiply by.
SAME = {"tf32x3": 1e-4, "tf32": 1e-3, "fp16": 1e-3, "bf16": 1e-2}
# A candidate has to be faster by more than the noise of the clock.
GAIN = 0.03

Timer = Callable[[Callable[[], object]], float]
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


@dataclass
class Found:
    """What came of a task: ``best`` is ``None`` where nothing was faster than what is shipped; seconds of one call."""

    key: tuned.Key
    shipped: Config
    shipped_seconds: float
    best: Config | None = None
    best_seconds: float = math.inf
    timed: int = 0
    refused: int = 0
    wrong: list[Config] = field(default_factory=list)


def seconds_of(step: Callable[[], object]) -> float:
    """The median of a call's seconds on the card, the second-level cache emptied before each."""
    return 1e-3 * float(triton.testing.do_bench(step, return_mode="median"))


def candidates(kernel: str, arch: int, product: str, distance: bool, d: int, n: int) -> list[Config]:
    """The shipped configuration, then its neighbours: blocks of half and twice the size, other warps and stages.

    Of a gradient whose D fits a block, also those that write out coefficients instead.
    """
    shipped = config(kernel, arch, product, distance, d, n)
    found = [shipped, *_neighbours(shipped)]
    if kernel == "grad" and shipped.resident:
        # What serves any D: the table has it as the gradient of a D that no block holds.
        found += _neighbours(config(kernel, arch, product, distance, 1 << 20, n))
    return list(dict.fromkeys(found))


def _neighbours(base: Config) -> Iterator[Config]:
    depths = [base.block_k] if base.resident else [base.block_k, 2 * base.block_k]
    registers = MOST_REGISTERS if base.maxnreg is not None else None
    for block_m, block_n, block_k, num_warps, num_stages in itertools.product(
        (base.block_m // 2, base.block_m, 2 * base.block_m),
        (base.block_n // 2, base.block_n, 2 * base.block_n),
        depths,
        (4, 8),
        (2, 3),
    ):
        scores_a_thread = block_m * block_n // (32 * num_warps)
        if min(block_m, block_n) >= LEAST_BLOCK and scores_a_thread <= MOST_SCORES:
            yield Config(block_m, block_n, block_k, num_warps, num_stages, base.resident, registers)


def tune(task: Task, timer: Timer = seconds_of, on_candidate: Callable[[], None] = lambda: None,
         choose: Callable[[list[Config]], list[Config]] = lambda listed: listed) -> Found:  # fmt: skip
    """Time a task's candidates; ``choose`` may leave some out, ``on_candidate`` is called after each.

    ``timer`` gives the seconds of a call.
    """
    with _precision(task.precision):
        steps = _steps(task)
        product = layout.product_type(task.dtype)
        kind = layout.score_kind(SCORES[task.score])
        row = torch.empty(1, dtype=task.dtype, device=task.device).expand(task.n, task.d)
        key = launch.tuning_key(task.kernel, row, kind)
        shipped, *others = candidates(task.kernel, key.arch, product, kind != 0, task.d, task.n)
        with tuned.using({}):
            answers = [_answer(step) for step in steps]
            found = Found(key, shipped, sum(timer(step) for step in steps))
        on_candidate()
        for candidate in choose(others):
            with tuned.using({key: tuned.Entry(candidate, 0.0, 0.0)}):
                _try(candidate, steps, answers, SAME[product], timer, found)
            on_candidate()
    if found.best_seconds > (1 - GAIN) * found.shipped_seconds:
        found.best, found.best_seconds = None, math.inf
    return found


def _try(
    candidate: Config, steps: list[Step], answers: list[list[Tensor]], tolerance: float, timer: Timer, found: Found
) -> None:
    try:
        got = [_answer(step) for step in steps]
        if not all(same(a, b, tolerance) for a, b in zip(got, answers, strict=True)):
            found.wrong.append(candidate)
            return
        seconds = sum(timer(step) for step in steps)
    except TritonError:
        # It takes more of a multiprocessor than there is, or does not compile.
        found.refused += 1
        return
    except RuntimeError as error:
        if "PassManager" not in str(error):  # as Triton's compiler says that it failed
            raise
        found.refused += 1
        return
    found.timed += 1
    if seconds < found.best_seconds:
        found.best, found.best_seconds = candidate, seconds


def count(task: Task) -> int:
    """How many configurations a task has, the shipped one among them."""
    with _precision(task.precision):
        product = layout.product_type(task.dtype)
    return len(candidates(task.kernel, launch.card_of(task.device)[1], product, task.score != "dot", task.d, task.n))


def title(task: Task) -> str:
    """A task in a few words."""
    name = str(task.dtype).removeprefix("torch.")
    shown = "tf32" if (name, task.precision) == ("float32", "high") else name
    return f"{task.kernel} {shown} {task.score} D={task.d} N={task.n}"


def summary(found: Found) -> str:
    """What came of a task, in a line."""
    tried = f"{found.timed} timed, {found.refused} do not fit, {len(found.wrong)} wrong"
    if found.best is None:
        return f"the shipped {_tile(found.shipped)} stays, {1e3 * found.shipped_seconds:.3f} ms ({tried})"
    gain = found.shipped_seconds / found.best_seconds
    times = f"{1e3 * found.shipped_seconds:.3f} to {1e3 * found.best_seconds:.3f} ms, {gain:.2f} x"
    return f"{_tile(found.shipped)} becomes {_tile(found.best)}, {times} ({tried})"


def _tile(c: Config) -> str:
    return f"{c.block_m} x {c.block_n} x {c.block_k}, {c.num_warps} warps, {c.num_stages} stages"


def save(found: Found) -> None:
    """Put what was found into the user's table, or take out what is there where the shipped configuration is best."""
    entries = tuned.read(tuned.path())
    if found.best is None:
        if entries.pop(found.key, None) is None:
            return
    else:
        entries[found.key] = tuned.Entry(found.best, 1e3 * found.best_seconds, 1e3 * found.shipped_seconds)
    tuned.write(tuned.path(), entries)
    tuned.forget()


def same(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> bool:
    """Whether two answers differ by rounding alone: the relative L2 distance of each tensor."""
    return all(_close(a.double(), b.double(), tolerance) for a, b in zip(got, want, strict=True))


def _close(got: Tensor, want: Tensor, tolerance: float) -> bool:
    finite = want.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(got[~finite], want[~finite]):
        return False
    return bool((got[finite] - want[finite]).norm() <= tolerance * want[finite].norm() + 1e-12)


def _answer(step: Step) -> list[Tensor]:
    """A step's results, from outputs full of what must not survive: freed memory may hold the right answer."""
    before = layout.empty
    layout.empty = _poisoned
    try:
        return [part.clone() for part in step()]
    finally:
        layout.empty = before


def _poisoned(*arguments: object, **options: object) -> Tensor:
    made = torch.empty(*arguments, **options)
    return made.fill_(float("nan") if made.is_floating_point() else -77)


@contextmanager
def _precision(wanted: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _steps(task: Task) -> list[Step]:
    """The calls whose seconds are added up."""
    generator = torch.Generator().manual_seed(0)
    x = unit_rows(torch.randn(task.n, task.d, generator=generator))[0].to(task.device, task.dtype)
    labels = (torch.arange(task.n) // PER_CLASS)[torch.randperm(task.n, generator=generator)].to(task.device)
    score = SCORES[task.score]
    if task.kernel == "extreme":
        problem = ExtremeProblem(score, x, x, labels, labels, True, False, score.inverted, None, None)
        return [lambda: sweeps.extremes(problem)[:1]]
    made = [PAIR_SPECS[loss]() for loss in LOSSES]
    problems = [PairProblem(s, score, x, x, labels, labels, True, None, [NO_LIMITS] * len(s.terms)) for s in made]
    return [_state_step(p) if task.kernel == "state" else _grad_step(p) for p in problems]


def _state_step(problem: PairProblem) -> Step:
    def step() -> list[Tensor]:
        found = sweeps.pair_rows(problem)
        return [found.rows, found.saved, found.exists]

    return step


def _grad_step(problem: PairProblem) -> Step:
    with tuned.using({}):
        saved = sweeps.pair_rows(problem).saved
    w = torch.ones(len(problem.spec.terms), len(problem.x), device=problem.x.device)
    return lambda: [part for part in sweeps.pair_grads(problem, saved, w, True, False) if part is not None]
