"""Tuning in Triton's interpreter: candidates, the check of their answers, the choice by a clock of our own, the override."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interpreted import CUDA, interpreter, interpreting  # noqa: F401  (one is a fixture)

from pml_fast import cli

with interpreting():
    from triton.runtime.errors import OutOfResources

    from pml_fast.engine.triton import launch, sweeps, tune, tuned
    from pml_fast.engine.triton.configs import ARCHES, Config, config

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
    return launch.launch_config(kernel, torch.empty(n, d, dtype=dtype, device=DEVICE), 0)


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
@pytest.mark.parametrize("product", ["bf16", "fp16", "tf32", "tf32x3"])
@pytest.mark.parametrize("kernel", tune.KERNELS)
@pytest.mark.parametrize("d", [64, 200, 1024])
def test_candidates_begin_with_what_is_shipped_and_can_all_be_kept(arch: int, product: str, kernel: str, d: int) -> None:
    for distance in (False, True):
        found = tune.candidates(kernel, arch, product, distance, d, 4096)
        assert found[0] == config(kernel, arch, product, distance, d, 4096)
        assert 10 < len(found) == len(set(found)) <= 110
        width = tuned.power_of_two(d, tuned.LEAST_D)
        entries = {
            tuned.key("Card X", arch, "3", kernel, product, distance, d, 4096 << place): tuned.Entry(c, 1.0, 2.0)
            for place, c in enumerate(found)
        }
        tuned.write(tuned.path(), entries)
        assert tuned.read(tuned.path()) == entries
        assert all(c.block_k == width for c in found if c.resident)


def test_a_gradient_that_fits_a_block_is_tried_without_one_too() -> None:
    found = tune.candidates("grad", 90, "bf16", False, 128, 4096)
    assert {c.resident for c in found} == {True, False}


@pytest.mark.parametrize("kernel", tune.KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fastest_candidate_is_launched_from_then_on(kernel: str, dtype: torch.dtype) -> None:
    listed = tune.candidates(kernel, ARCHES[-1], "bf16" if dtype == torch.bfloat16 else "tf32x3", False, 20, 24)
    shipped, *others = listed
    few = [c for c in others if c.block_m <= 32 and c.block_n <= 64]
    few = few[:: len(few) // 5][:5]
    fastest = few[2]
    ran: list[Config] = []

    def clock(step: Callable[[], object]) -> float:
        step()
        ran.append(in_force(kernel, dtype=dtype))
        return {shipped: 2.0, fastest: 1.0}.get(ran[-1], 3.0)

    done = []
    found = tune.tune(task(kernel, dtype), clock, lambda: done.append(1), some(*few))
    assert set(ran) == {shipped, *few}
    assert (found.timed, found.refused, found.wrong) == (5, 0, [])
    assert found.best == fastest
    assert len(done) == 6
    assert in_force(kernel, dtype=dtype) == shipped
    tune.save(found)
    assert in_force(kernel, dtype=dtype) == fastest
    # Up to the next powers of two, and no further.
    assert in_force(kernel, d=64, n=256, dtype=dtype) == fastest
    assert in_force(kernel, d=65, dtype=dtype) != fastest
    assert in_force(kernel, n=257, dtype=dtype) == config(kernel, ARCHES[-1], found.key.product, False, 20, 257)


def test_what_is_hardly_faster_is_noise_and_what_is_kept_is_taken_out_again() -> None:
    quick = tune.tune(task("state"), Clock("state", lambda c: 1.0 if c == SMALL else 2.0), choose=some(SMALL))
    tune.save(quick)
    assert in_force("state") == SMALL
    slow = tune.tune(task("state"), Clock("state", lambda c: 0.99 if c == SMALL else 1.0), choose=some(SMALL))
    assert slow.best is None
    assert "stays" in tune.summary(slow)
    tune.save(slow)
    assert in_force("state") == config("state", ARCHES[-1], "tf32x3", False, 20, 24)


def test_entries_of_other_kernels_stay() -> None:
    for kernel in ("state", "grad"):
        tune.save(tune.tune(task(kernel), Clock(kernel, lambda c: 1.0 if c == SMALL else 2.0), choose=some(SMALL)))
    assert in_force("state") == in_force("grad") == SMALL


def test_a_wrong_answer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair_rows = sweeps.pair_rows

    def wrong(problem: object) -> object:
        found = pair_rows(problem)
        if in_force("state") == SMALL:
            found.rows[0, 0, 5] += 1.0
        return found

    monkeypatch.setattr(sweeps, "pair_rows", wrong)
    clock = Clock("state", lambda c: 1.0 if c == SMALL else 2.0)
    found = tune.tune(task("state"), clock, choose=some(SMALL))
    assert found.wrong == [SMALL]
    assert found.best is None
    assert SMALL not in clock.seen


def test_an_output_that_is_not_written_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = sweeps.extremes

    def lazy(problem: object) -> object:
        value, index = extremes(problem)
        return (
            (launch.layout.empty(value.shape, device=value.device), index) if in_force("extreme") == SMALL else (value, index)
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
    assert (found.refused, found.best) == (1, None)


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
        # Two losses at the shipped tile, then two at the other.
        seconds = iter([2.0, 2.0, 1.0, 1.0])
        return whole(task, lambda step: next(seconds), on_candidate, some(SMALL))

    monkeypatch.setattr(tune, "tune", quick)
    sizes = ["--dim", "16", "--n", "20", "24", "--kernel", "state", "--device", str(DEVICE)]
    assert cli.main(["tune", *sizes, "--dtype", "float32", "float16", "--score", "dot", "l2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("becomes 16 x 16 x 64, 4 warps, 2 stages, 4000.000 to 2000.000 ms, 2.00 x") == 8
    assert str(tuned.path()) in printed
    wanted = {("tf32x3", False), ("tf32x3", True), ("fp16", False), ("fp16", True)}
    assert {(k.product, k.distance) for k in tuned.read(tuned.path())} == wanted


def test_the_command_refuses_to_write_over_a_damaged_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_cannot_tune", lambda device: None)
    tuned.path().parent.mkdir(parents=True)
    tuned.path().write_text("{")
    assert cli.main(["tune"]) == 2
    assert "delete the file" in capsys.readouterr().err
    assert tuned.path().read_text() == "{"
