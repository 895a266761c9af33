"""Tuning in Triton's interpreter: candidates, the check of their answers, the choice by a clock of our own, the override."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import CUDA, interpreter, interpreting  # noqa: F401  (one is a fixture)

from pml_fast import cli, use
from pml_fast.engine.settings import float32_precision

with interpreting():
    from triton.runtime.errors import OutOfResources, PTXASError

    from pml_fast.engine.triton import (
        given,
        histograms,
        indexed,
        knn,
        launch,
        lookup,
        small_step,
        soft_ranks,
        sweeps,
        triplet,
        tune,
        tuned,
        workloads,
    )
    from pml_fast.engine.triton.configs import ARCHES, TUNABLE, Config, config

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter")]

DEVICE = torch.device("cuda:0" if CUDA else "cpu")
SMALL = Config(16, 16, 64, 4, 2, True, None)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "_table", None)


def task(kernel: str, dtype: torch.dtype = torch.float32, d: int = 20, n: int = 24, score: str = "dot") -> tune.Task:
    return tune.Task(kernel, score, dtype, "highest", d, n, DEVICE)


def in_force(kernel: str, d: int = 20, n: int = 24, dtype: torch.dtype = torch.float32) -> Config:
    """What a launch on such rows would take."""
    return lookup.launch_config(kernel, torch.empty(n, d, dtype=dtype, device=DEVICE), 0)


class Clock:
    """Gives the configuration in force the seconds that it is told."""

    def __init__(self, kernel: str, seconds: Callable[[Config], float]) -> None:
        self.kernel, self.seconds = kernel, seconds
        self.seen: list[Config] = []

    def __call__(self, step: Callable[[], object]) -> float:
        step()
        self.seen.append(in_force(self.kernel))
        return self.seconds(self.seen[-1])


def some(*wanted: Config) -> Callable[[list[Config]], list[Config]]:
    return lambda listed: list(wanted)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("kernel", TUNABLE)
@pytest.mark.parametrize("d", [64, 200, 1024])
def test_candidates_begin_with_what_is_shipped_and_can_all_be_kept(arch: int, kernel: str, d: int) -> None:
    entries: dict[tuned.Key, tuned.Entry] = {}
    for product, distance in itertools.product(["bf16", "bf16x3", "fp16", "tf32", "tf32x3"], (False, True)):
        found = tune.candidates(kernel, arch, product, distance, d, 4096)
        assert found[0] == config(kernel, arch, product, distance, d, 4096)
        assert 10 < len(found) == len(set(found)) <= 140
        width = tuned.power_of_two(d, tuned.LEAST_D)
        assert all(c.block_k == width for c in found if c.resident)
        for place, c in enumerate(found):
            kept = tuned.key(f"Card {place}", arch, "3", kernel, product, distance, d, 4096)
            entries[kept] = tuned.Entry(c, 1.0, 2.0)
    tuned.write(tuned.path(), entries)
    assert tuned.read(tuned.path()) == entries


def test_a_gradient_that_fits_a_block_is_tried_without_one_too() -> None:
    found = tune.candidates("grad", 90, "bf16", False, 128, 4096)
    assert {c.resident for c in found} == {True, False}
    found = tune.candidates("triplet-grad", 90, "bf16", False, 128, 4096)
    assert {c.block_out for c in found} == {0, 64, 128}


def test_transposed_columns_are_a_choice_of_tf32_gradients_alone() -> None:
    assert {c.turned for c in tune.candidates("grad", 90, "tf32", False, 128, 4096) if c.resident} == {True, False}
    assert not any(c.turned for c in tune.candidates("grad", 90, "bf16", False, 128, 4096))


def stand_in(
    monkeypatch: pytest.MonkeyPatch, kernel: str, spoiled: Config | None = None, error: Exception | None = None
) -> None:
    """Have a kernel's call take no time: its answer is wrong, or an error, where the configuration in force is ``spoiled``."""

    def step() -> list[torch.Tensor]:
        bad = spoiled is not None and in_force(kernel) == spoiled
        if bad and error is not None:
            raise error
        return [torch.ones(3) + float(bad)]

    monkeypatch.setitem(workloads.STEPS, kernel, lambda batch: [step, step])


def some_of(kernel: str, dtype: torch.dtype = torch.float32) -> list[Config]:
    """The shipped configuration and five of its neighbours."""
    shipped, *others = tune.candidates(kernel, ARCHES[-1], lookup.product_of(kernel, dtype), False, 20, 24)
    return [shipped, *others[:: len(others) // 5][:5]]


@pytest.mark.parametrize("kernel", TUNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fastest_candidate_is_in_force_from_then_on(
    monkeypatch: pytest.MonkeyPatch, kernel: str, dtype: torch.dtype
) -> None:
    stand_in(monkeypatch, kernel)
    shipped, *few = some_of(kernel, dtype)
    fastest = few[2]
    ran: list[Config] = []

    def clock(step: Callable[[], object]) -> float:
        step()
        ran.append(in_force(kernel, dtype=dtype))
        return {shipped: 2.0, fastest: 1.0}.get(ran[-1], 3.0)

    done = []
    found = tune.tune(task(kernel, dtype), clock, lambda: done.append(1), some(*few))
    assert set(ran) == {shipped, *few}
    assert (found.timed, found.refused, found.wrong) == (5, {}, [])
    assert found.best == fastest
    assert len(done) == 6
    assert in_force(kernel, dtype=dtype) == shipped
    tune.save(found)
    assert in_force(kernel, dtype=dtype) == fastest
    # Up to the next powers of two, and no further.
    assert in_force(kernel, d=64, n=256, dtype=dtype) == fastest
    assert in_force(kernel, d=65, dtype=dtype) != fastest
    assert in_force(kernel, n=257, dtype=dtype) == config(kernel, ARCHES[-1], found.key.product, False, 20, 257)


# Where each kernel is launched, and two tiles near the shipped one that the interpreter runs quickly.
LAUNCHED = {
    "state": (launch, "pair_state_kernel", Config(16, 16, 64, 4, 2, True)),
    "grad": (sweeps, "pair_grad_kernel", Config(16, 16, 64, 4, 2, True)),
    "pulls": (sweeps, "pair_pulls_kernel", Config(16, 16, 32, 4, 2)),
    "two-sweeps": (given, "given_state_kernel", Config(16, 16, 32, 4, 2)),
    "histogram": (histograms, "histogram_kernel", Config(16, 16, 32, 4, 2)),
    "soft-ranks": (soft_ranks, "soft_ranks_kernel", Config(16, 16, 32, 4, 2)),
    "soft-ranks-grad": (soft_ranks, "soft_rank_pulls_kernel", Config(16, 16, 32, 4, 2)),
    "extreme": (sweeps, "extreme_kernel", Config(16, 16, 64, 4, 2, True)),
    "small": (small_step, "small_grad_kernel", Config(16, 16, 16, 4, 2, block_out=16)),
    "triplet": (triplet, "triplet_counts_kernel", Config(16, 16, 16, 4, 2)),
    "triplet-grad": (triplet, "triplet_pulls_kernel", Config(16, 16, 16, 4, 2)),
    "nearest": (knn, "nearest_kernel", Config(16, 0, 16, 8, 2)),
    "ranks": (knn, "rank_counts_kernel", Config(16, 16, 16, 4, 2)),
    "listed": (indexed, "listed_base_kernel", Config(64, 0, 16, 4, 2)),
    "listed-grad": (indexed, "listed_grad_kernel", Config(64, 0, 0, 4, 2, block_out=16)),
}


@dataclass
class Spy:
    """A kernel that notes the tiles of its launches."""

    kernel: Any
    tiles: list[dict[str, Any]]

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.tiles.append(options)
            return self.kernel[grid](*arguments, **options)

        return launch


@pytest.mark.parametrize("kernel", TUNABLE)
def test_a_launch_follows_the_table_and_gives_the_shipped_answer(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    module, name, other = LAUNCHED[kernel]
    spy = Spy(getattr(module, name), [])
    monkeypatch.setattr(module, name, spy)
    steps: list[Any] = []

    def clock(step: Callable[[], object]) -> float:
        steps.append(step)
        return 1.0 if len(steps) <= of_the_shipped else 0.5

    monkeypatch.setattr(workloads, "NEIGHBORS", (3,))
    asked = task(kernel, n=14)
    of_the_shipped = len(workloads.steps(asked))
    found = tune.tune(asked, clock, choose=some(other))
    assert (found.wrong, found.refused, found.best) == ([], {}, other)
    taken = [size for size in (other.block_m, other.block_n, other.block_k, other.block_out) if size]
    last = spy.tiles[-1]
    assert [size for block, size in last.items() if block.startswith("BLOCK_")] == taken
    assert last["num_warps"] == other.num_warps


@pytest.mark.parametrize("kernel, name", [("two-sweeps", "pair_state_kernel"), ("two-sweeps", "given_back_kernel"),
                                          ("soft-ranks", "own_logits_kernel")])  # fmt: skip
def test_every_launch_of_a_kernel_of_several_follows_the_table(monkeypatch: pytest.MonkeyPatch, kernel: str, name: str) -> None:
    module = {"pair_state_kernel": launch, "given_back_kernel": given, "own_logits_kernel": soft_ranks}[name]
    spy = Spy(getattr(module, name), [])
    monkeypatch.setattr(module, name, spy)
    asked, other = task(kernel, n=14), Config(16, 16, 32, 4, 2)
    with tuned.using({tune.key(asked): tuned.Entry(other, 1.0, 2.0)}):
        for step in workloads.steps(asked):
            step()
    # What a step is told of a forward was found by the shipped tile.
    assert {(t["BLOCK_M"], t["BLOCK_N"], t["BLOCK_K"]) for t in spy.tiles[-1:]} == {(16, 16, 32)}


@pytest.mark.parametrize("kernel", workloads.SPLIT)
def test_rows_in_parts_have_entries_of_their_own(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    asked = replace(task(kernel, n=14, d=30), precision="bf16x3")
    other = Config(16, 16, 32, 4, 2)
    found = tune.tune(asked, lambda step: float(len(tuned.table()) == 0 or 0.5), choose=some(other))
    assert (found.wrong, found.refused, found.best) == ([], {}, other)
    # As the kernel sees them: three times as wide.
    assert (found.key.product, found.key.d) == ("bf16x3", 128)
    tune.save(found)
    rows = torch.empty(14, 90, dtype=torch.bfloat16, device=DEVICE)
    assert lookup.launch_config(kernel, rows, 0, split=True) == other
    assert lookup.launch_config(kernel, rows, 0) == config(kernel, ARCHES[-1], "bf16", False, 90, 14)
    assert tune.title(asked) == f"{kernel} bf16x3 dot D=30 N=14"


@pytest.mark.parametrize(
    "kernel, dtype, precision, score, option",
    [
        ("grad", torch.float32, "bf16x3", "dot", "--dtype bf16x3"),
        ("triplet", torch.float32, "bf16x3", "dot", "--dtype bf16x3"),
        ("state", torch.float32, "bf16x3", "l2", "--score l2"),
        ("histogram", torch.bfloat16, "highest", "dot", "--dtype bfloat16"),
        ("soft-ranks-grad", torch.float16, "highest", "l2", "--dtype float16"),
        ("two-sweeps", torch.float16, "highest", "l2", None),
        ("histogram", torch.float32, "bf16x3", "dot", None),
    ],
)
def test_what_no_launch_would_look_up_is_refused_by_its_option(
    kernel: str, dtype: torch.dtype, precision: str, score: str, option: str | None
) -> None:
    reason = workloads.refuse(tune.Task(kernel, score, dtype, precision, 20, 24, DEVICE))
    assert reason is None if option is None else reason is not None and reason.startswith(f"{option}: ")


def test_the_precision_of_a_task_goes_before_that_of_the_user() -> None:
    with use(precision="bf16x3"):
        assert tune.key(task("state")).product == "tf32x3"
        steps: list[str] = []
        tune.tune(task("state", n=14), lambda step: float(steps.append(float32_precision()) or 1.0), choose=some())
        assert float32_precision() == "bf16x3"
    assert set(steps) == {"highest"}


def test_what_is_hardly_faster_is_noise_and_what_is_kept_is_taken_out_again() -> None:
    quick = tune.tune(task("state"), Clock("state", lambda c: 1.0 if c == SMALL else 2.0), choose=some(SMALL))
    tune.save(quick)
    assert in_force("state") == SMALL
    slow = tune.tune(task("state"), Clock("state", lambda c: 0.99 if c == SMALL else 1.0), choose=some(SMALL))
    assert slow.best is None
    assert "stays" in tune.report(slow)[0]
    tune.save(slow)
    assert in_force("state") == config("state", ARCHES[-1], "tf32x3", False, 20, 24)


def test_entries_of_other_kernels_stay() -> None:
    for kernel in ("state", "grad"):
        tune.save(tune.tune(task(kernel), Clock(kernel, lambda c: 1.0 if c == SMALL else 2.0), choose=some(SMALL)))
    assert in_force("state") == in_force("grad") == SMALL


@pytest.mark.parametrize("kernel", TUNABLE)
def test_a_wrong_answer_is_never_timed_and_reported(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    other = some_of(kernel)[3]
    stand_in(monkeypatch, kernel, other)
    clock = Clock(kernel, lambda c: 1.0 if c == other else 2.0)
    found = tune.tune(task(kernel), clock, choose=some(other))
    assert (found.wrong, found.best) == ([other], None)
    assert other not in clock.seen
    said, wrong = tune.report(found)
    assert "stays" in said and "1 wrong" in said
    assert "wrong answer, not timed" in wrong and f"{other.num_warps} warps" in wrong


@pytest.mark.parametrize("kernel", TUNABLE)
def test_a_candidate_that_does_not_compile_is_refused_and_reported(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    other = some_of(kernel)[3]
    stand_in(monkeypatch, kernel, other, PTXASError("line 1\nout of registers"))
    found = tune.tune(task(kernel), Clock(kernel, lambda c: 1.0), choose=some(other))
    assert (list(found.refused), found.best) == ([other], None)
    assert tune.report(found)[1].startswith("  refused, 1 of them: PTXASError: ")


def test_a_wrong_answer_of_a_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pair_rows = sweeps.pair_rows

    def wrong(problem: object) -> object:
        found = pair_rows(problem)
        if in_force("state") == SMALL:
            found.rows[0, 0, 5] += 1.0
        return found

    monkeypatch.setattr(sweeps, "pair_rows", wrong)
    assert tune.tune(task("state"), Clock("state", lambda c: 1.0), choose=some(SMALL)).wrong == [SMALL]


def test_an_output_that_is_not_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = sweeps.extremes

    def lazy(problem: object) -> object:
        value, index = extremes(problem)
        return (
            (sweeps.layout.empty(value.shape, device=value.device), index) if in_force("extreme") == SMALL else (value, index)
        )

    monkeypatch.setattr(sweeps, "extremes", lazy)
    assert tune.tune(task("extreme"), Clock("extreme", lambda c: 1.0), choose=some(SMALL)).wrong == [SMALL]


def test_a_candidate_that_does_not_fit_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = sweeps.extremes

    def refusing(problem: object) -> object:
        if in_force("extreme") == SMALL:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return extremes(problem)

    monkeypatch.setattr(sweeps, "extremes", refusing)
    found = tune.tune(task("extreme"), Clock("extreme", lambda c: 1.0), choose=some(SMALL))
    assert (list(found.refused), found.best) == ([SMALL], None)
    assert "shared memory" in found.refused[SMALL]


def test_an_error_of_the_device_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = sweeps.extremes

    def failing(problem: object) -> object:
        if in_force("extreme") == SMALL:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return extremes(problem)

    monkeypatch.setattr(sweeps, "extremes", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune.tune(task("extreme"), Clock("extreme", lambda c: 1.0), choose=some(SMALL))
    assert in_force("extreme") != SMALL


def test_the_command_tunes_every_combination_and_writes_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_cannot_tune", lambda device: None)
    whole = tune.tune

    def quick(task: tune.Task, on_candidate: Callable[[], None]) -> tune.Found:
        # One task for both sizes, which share an entry. Two losses at the shipped tile, then two at the other.
        seconds = iter([2.0, 2.0, 1.0, 1.0])
        return whole(task, lambda step: next(seconds), on_candidate, some(SMALL))

    monkeypatch.setattr(tune, "tune", quick)
    sizes = ["--dim", "16", "--n", "20", "24", "--kernel", "state", "--device", str(DEVICE)]
    assert cli.main(["tune", *sizes, "--dtype", "float32", "float16", "--score", "dot", "l2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("becomes 16 x 16 x 64, 4 warps, 2 stages, 4000.000 to 2000.000 ms, 2.00 x") == 4
    assert str(tuned.path()) in printed
    wanted = {("tf32x3", False), ("tf32x3", True), ("fp16", False), ("fp16", True)}
    assert {(k.product, k.distance) for k in tuned.read(tuned.path())} == wanted


def test_listed_pairs_have_one_entry_for_every_precision_of_products() -> None:
    types = [(torch.float32, "highest"), (torch.float32, "high"), (torch.float16, "highest")]
    found = tune.tasks(["listed", "state"], types, ["dot"], [16], [20], DEVICE, skip=False)
    assert [t.kernel for t in found] == ["listed", "state", "state", "listed", "state"]


def test_a_kernel_that_no_launch_would_take_names_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_cannot_tune", lambda device: None)
    device = ["--device", str(DEVICE)]
    assert cli.main(["tune", "--kernel", "small", "--n", "4096", *device]) == 2
    assert "--n 4096: the kernel 'small' runs for up to 1024 rows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["tune", "--kernel", "triplets", *device])
    assert "--kernel" in capsys.readouterr().err


def test_all_kernels_leave_out_what_no_launch_would_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_cannot_tune", lambda device: None)
    done: list[str] = []

    def nothing(task: tune.Task, on_candidate: Callable[[], None]) -> tune.Found:
        done.append(task.kernel)
        return tune.Found(tune.key(task), SMALL, 1.0)

    monkeypatch.setattr(tune, "tune", nothing)
    assert cli.main(["tune", "--kernel", "all", "--n", "4096", "--dtype", "float16", "--device", str(DEVICE)]) == 0
    # The losses of tables widen rows of half precision.
    assert done == [kernel for kernel in TUNABLE if kernel not in ("small", "histogram", "soft-ranks", "soft-ranks-grad")]
    assert capsys.readouterr().out.count("stays") == len(done)
    done.clear()
    # Nor do those that nobody named: the gradient in registers multiplies no bfloat16 parts.
    assert cli.main(["tune", "--dtype", "bf16x3", "--device", str(DEVICE)]) == 0
    assert done == ["state", "extreme"]


def test_the_help_names_every_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tune", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}, {has.title}" in said for name, has in TUNABLE.items())


def test_every_kernel_has_its_calls() -> None:
    assert list(workloads.STEPS) == list(TUNABLE)


def test_the_command_refuses_to_write_over_a_damaged_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_cannot_tune", lambda device: None)
    tuned.path().parent.mkdir(parents=True)
    tuned.path().write_text("{")
    assert cli.main(["tune"]) == 2
    assert "delete the file" in capsys.readouterr().err
    assert tuned.path().read_text() == "{"
