"""Times candidate configurations of the Triton kernels on the card found: what ``pml-fast tune`` does.

A candidate is timed as it would run: as the table in force (:mod:`tuned`), through the launchers (:mod:`workloads`). One whose
answers are not those of the shipped configuration is not timed. All kernels go the same way: :data:`configs.TUNABLE` says which
numbers a tile of theirs has.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

import triton
from pml_fast.engine.settings import math_precision, use
from pml_fast.engine.triton import layout, lookup, tuned, workloads
from pml_fast.engine.triton.configs import MOST_REGISTERS, TUNABLE, Config, config
from pml_fast.engine.triton.workloads import SCORES, Step, Task, refuse
from triton.errors import TritonError

__all__ = ["Found", "Task", "candidates", "count", "key", "report", "save", "tasks", "title", "tune"]

LEAST_BLOCK = 16
# More scores, or sums of a gradient, than this do not fit the registers of a thread beside what is computed of them.
MOST_NUMBERS = 64
# A candidate differs from a shipped configuration in no more numbers than this: of all combinations there are too many.
MOST_CHANGES = 3
# Relative difference of two answers that sum the same products in different orders, and round what they multiply by.
SAME = {"tf32x3": 1e-4, "fp32": 1e-4, "bf16x3": 1e-4, "tf32": 1e-3, "fp16": 1e-3, "bf16": 1e-2}
# A candidate has to be faster by more than the noise of the clock.
GAIN = 0.03

Timer = Callable[[Callable[[], object]], float]


@dataclass
class Found:
    """What came of a task: ``best`` is ``None`` where nothing was faster than what is shipped; seconds of one call.

    ``wrong`` are the candidates whose answers differed, ``refused`` those that did not compile or did not fit, and why.
    """

    key: tuned.Key
    shipped: Config
    shipped_seconds: float
    best: Config | None = None
    best_seconds: float = math.inf
    timed: int = 0
    refused: dict[Config, str] = field(default_factory=dict)
    wrong: list[Config] = field(default_factory=list)


def seconds_of(step: Callable[[], object]) -> float:
    """The median of a call's seconds on the card, the second-level cache emptied before each."""
    return 1e-3 * float(triton.testing.do_bench(step, return_mode="median"))


def candidates(kernel: str, arch: int, product: str, distance: bool, d: int, n: int) -> list[Config]:
    """The shipped configuration, then its neighbours: blocks of half and twice the size, other warps and stages.

    Of a gradient that a block holds, also those that write out coefficients instead.
    """
    has = TUNABLE[kernel]
    shipped = config(kernel, arch, product, distance, d, n)
    bases = [shipped]
    if has.writes_out:
        # What serves any D: the table has it as the gradient of a D that no block holds.
        bases.append(config(kernel, arch, product, distance, 1 << 20, n))
    found = [shipped]
    for base in bases:
        turns = (False, True) if has.turns and product == "tf32" and base.resident else (base.turned,)
        found += _neighbours(base, max(LEAST_BLOCK, tuned.power_of_two(d, 1)), turns)
    return list(dict.fromkeys(found))


def _neighbours(base: Config, width: int, turns: tuple[bool, ...]) -> Iterator[Config]:
    """Tiles near ``base`` that a thread's registers may hold, no program of which writes more than ``width`` numbers of D."""
    own = (base.block_m, base.block_n, base.block_k, base.num_warps, base.num_stages, base.block_out, base.turned)
    near = itertools.product(
        _around(base.block_m),
        _around(base.block_n),
        (base.block_k,) if base.resident or not base.block_k else (base.block_k, 2 * base.block_k),
        (4, 8),
        (2, 3),
        _around(base.block_out),
        turns,
    )
    for other in near:
        block_m, block_n, block_k, num_warps, num_stages, block_out, turned = other
        changes = sum(map(operator.ne, own, other))
        numbers_a_thread = block_m * max(block_n, block_out) // (32 * num_warps)
        if changes <= MOST_CHANGES and block_out <= width and numbers_a_thread <= MOST_NUMBERS:
            registers = MOST_REGISTERS if base.maxnreg is not None else None
            yield Config(block_m, block_n, block_k, num_warps, num_stages, base.resident, registers, block_out, turned)


def _around(block: int) -> list[int]:
    """Half the block, the block, and twice; of a block that the kernel does not have, 0."""
    return [size for size in (block // 2, block, 2 * block) if size >= LEAST_BLOCK] or [block]


def key(task: Task) -> tuned.Key:
    """Where the table has what is found."""
    with _precision(task.precision):
        dtype = torch.bfloat16 if task.split else task.dtype
        row = torch.empty(1, dtype=dtype, device=task.device).expand(task.n, task.width)
        return lookup.tuning_key(task.kernel, row, layout.score_kind(SCORES[task.score]), task.split)


def tasks(
    kernels: Sequence[str], types: Sequence[tuple[torch.dtype, str]], scores: Sequence[str], dims: Sequence[int],
    sizes: Sequence[int], device: torch.device, skip: bool,
) -> list[Task]:  # fmt: skip
    """One task an entry of the table, for every combination; ``types`` are a dtype and a precision of float32 products.

    What no launch would look up is left out where ``skip`` allows that, and else raises ValueError.
    """
    found: dict[tuned.Key, Task] = {}
    for (dtype, precision), score, d, n, kernel in itertools.product(types, scores, dims, sizes, kernels):
        task = Task(kernel, score, dtype, precision, d, n, device)
        reason = refuse(task)
        if reason is None:
            found.setdefault(key(task), task)
        elif not skip:
            raise ValueError(f"{reason}; change that option, or leave {kernel!r} out of --kernel")
    return list(found.values())


def _candidates(task: Task, wanted: tuned.Key) -> list[Config]:
    return candidates(task.kernel, wanted.arch, wanted.product, wanted.distance, task.width, task.n)


def tune(task: Task, timer: Timer = seconds_of, on_candidate: Callable[[], None] = lambda: None,
         choose: Callable[[list[Config]], list[Config]] = lambda listed: listed) -> Found:  # fmt: skip
    """Time a task's candidates; ``choose`` may leave some out, ``on_candidate`` is called after each.

    ``timer`` gives the seconds of a call.
    """
    wanted = key(task)
    shipped, *others = _candidates(task, wanted)
    with _precision(task.precision):
        steps = workloads.steps(task)
        with tuned.using({}):
            answers = [_answer(step) for step in steps]
            found = Found(wanted, shipped, sum(timer(step) for step in steps))
        on_candidate()
        for candidate in choose(others):
            with tuned.using({wanted: tuned.Entry(candidate, 0.0, 0.0)}):
                _try(candidate, steps, answers, SAME[wanted.product], timer, found)
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
    except TritonError as error:
        # It takes more of a multiprocessor than there is, or does not compile.
        found.refused[candidate] = _reason(error)
        return
    except RuntimeError as error:
        if "PassManager" not in str(error):  # as Triton's compiler says that it failed
            raise
        found.refused[candidate] = _reason(error)
        return
    found.timed += 1
    if seconds < found.best_seconds:
        found.best, found.best_seconds = candidate, seconds


def _reason(error: Exception) -> str:
    """An error in a line: its message may hold the kernel's source."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


def count(task: Task) -> int:
    """How many configurations a task has, the shipped one among them."""
    return len(_candidates(task, key(task)))


def title(task: Task) -> str:
    """A task in a few words."""
    name = str(task.dtype).removeprefix("torch.")
    shown = {("float32", "high"): "tf32", ("float32", "bf16x3"): "bf16x3"}.get((name, task.precision), name)
    return f"{task.kernel} {shown} {task.score} D={task.d} N={task.n}"


def report(found: Found) -> list[str]:
    """What came of a task, in a line; then each candidate that was wrong, and why others were refused."""
    lines = [_summary(found)]
    lines += [f"  wrong answer, not timed: {_tile(c)}" for c in found.wrong]
    lines += [f"  refused, {number} of them: {reason}" for reason, number in Counter(found.refused.values()).items()]
    return lines


def _summary(found: Found) -> str:
    tried = f"{found.timed} timed, {len(found.refused)} refused, {len(found.wrong)} wrong"
    if found.best is None:
        return f"the shipped {_tile(found.shipped)} stays, {1e3 * found.shipped_seconds:.3f} ms ({tried})"
    gain = found.shipped_seconds / found.best_seconds
    times = f"{1e3 * found.shipped_seconds:.3f} to {1e3 * found.best_seconds:.3f} ms, {gain:.2f} x"
    return f"{_tile(found.shipped)} becomes {_tile(found.best)}, {times} ({tried})"


def _tile(c: Config) -> str:
    blocks = " x ".join(str(size) for size in (c.block_m, c.block_n, c.block_k, c.block_out) if size)
    turned = ", transposed columns" if c.turned else ""
    return f"{blocks}, {c.num_warps} warps, {c.num_stages} stages{turned}"


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
    # As an engine's calls have it: pml_fast's own setting, and torch's that follows from it.
    with use(precision=wanted), math_precision():
        yield
