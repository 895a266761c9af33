"""The benchmark harness: registry, oracle, refusal of wrong answers, bounds, and what it writes."""

from __future__ import annotations

import json
import math
import re
import time

import numpy as np
import pytest
import torch

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")

from benchmarks import __main__ as command
from benchmarks import bounded, dense, oracle, peers, results, runner
from benchmarks.cases import (
    FLOOR_RATIO,
    OPERATIONS,
    PAIR_OPERATIONS,
    PAIR_SIZES,
    Case,
    Target,
    quick_registry,
    registry,
)
from benchmarks.floor import floor
from benchmarks.machine import Machine, describe_machine, describe_revision, describe_versions
from benchmarks.plots import write_plots
from benchmarks.probe import Probe, Setup, compare, run_oracle, run_probe, run_timing
from benchmarks.report import write_markdown
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.runner import Limits, failures, run_cases
from benchmarks.targets import judge
from benchmarks.timing import CpuClock, Entrant, Plan, Quantiles, quantiles, time_in_turn

MEBIBYTE = 2**20
SETUP = Setup(device="cpu", threads=1, seed=3)
LIMITS = Limits(memory_bytes=2**31, seconds=60.0)
PLAN = Plan(seconds=0.01, min_rounds=2, max_rounds=3)
CASES = [Case(operation, 96, 8) for operation in OPERATIONS]

pml_losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the benchmarks need the bench extra")


# ---- registry ----


def test_registry_covers_what_the_targets_name() -> None:
    cases = registry()
    assert len({case.name for case in cases}) == len(cases)
    pairs = {(case.operation, case.size) for case in cases if case.per_class == 4}
    assert pairs >= {(operation, size) for operation in PAIR_OPERATIONS for size in PAIR_SIZES}
    assert {case.operation for case in cases} == set(OPERATIONS)
    assert any(case.size == 65_536 and case.only_ours for case in cases)
    huge = next(case for case in cases if case.operation == "triplet_all" and case.size == 8192)
    counts = torch.bincount(huge.inputs(0)[1])
    assert len(counts) == 10
    assert int((counts * (counts - 1) * (8192 - counts)).sum()) > 4.9e10


def test_quick_registry_has_every_operation() -> None:
    assert {case.operation for case in quick_registry()} == set(OPERATIONS)


def test_memory_bound_is_gradients_and_row_state_and_64_mebibytes() -> None:
    assert Case("supcon", 4096, 4).memory_bound == 4096 * 128 * 4 + 8 * 4096 * (3 + 8) + 64 * MEBIBYTE


def test_inputs_are_seeded_and_labels_have_the_classes_asked_for() -> None:
    case = Case("supcon", 64, 4)
    first, second, other = case.inputs(5), case.inputs(5), case.inputs(6)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])
    assert torch.bincount(first[1]).tolist() == [4] * 16


# ---- oracle and agreement ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_oracle_equals_float64_autograd_of_the_dense_formula(case: Case) -> None:
    embeddings, labels = case.inputs(1)
    leaf = embeddings.detach().double().requires_grad_()
    keywords = {"max_positives": case.positives} if case.operation == "triplet_all" else {}
    value, gradient = peers.forward_backward(
        lambda rows, classes: getattr(dense, case.operation)(rows, classes, **keywords), leaf, labels
    )
    answer = oracle.answer(case.operation, embeddings, labels)
    assert answer.value == pytest.approx(value.item(), rel=1e-12)
    np.testing.assert_allclose(answer.gradient, gradient.numpy(), rtol=1e-9, atol=1e-14)


def test_oracle_does_not_depend_on_its_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = Case("contrastive", 96, 8).inputs(1)
    whole = oracle.answer("contrastive", embeddings, labels)
    monkeypatch.setattr(oracle, "STRIP_ELEMENTS", 96 * 7)
    strips = oracle.answer("contrastive", embeddings, labels)
    assert strips.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(strips.gradient, whole.gradient, rtol=1e-10)


def test_sampled_oracle_equals_the_full_one() -> None:
    embeddings, labels = Case("supcon", 512, 4).inputs(1)
    full, sampled = oracle.answer("supcon", embeddings, labels), oracle.supcon_sampled(embeddings, labels)
    assert sampled.value == pytest.approx(full.value, rel=1e-6)
    assert len(sampled.rows) == oracle.SAMPLED_ROWS
    np.testing.assert_allclose(sampled.gradient, full.gradient[sampled.rows], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["pml", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_peers_agree_with_the_oracle(case: Case, name: str) -> None:
    embeddings, labels = case.inputs(2)
    loss, gradient = peers.forward_backward(peers.PEERS[name].build(case), embeddings, labels)
    errors = compare(Probe(loss.item(), gradient.numpy(), None, 0.0), oracle.answer(case.operation, embeddings, labels))
    tolerance = case.tolerance()
    assert errors[0] <= tolerance.value
    assert errors[1] <= tolerance.gradient


def test_compare_sees_wrong_values_wrong_gradients_and_nan() -> None:
    truth = oracle.Answer(2.0, np.array([[3.0, 4.0]]))
    assert compare(Probe(2.0, np.array([[3.0, 4.0]]), None, 0.0), truth) == (0.0, 0.0)
    assert compare(Probe(2.2, np.array([[3.0, 4.0]]), None, 0.0), truth)[0] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, 4.5]]), None, 0.0), truth)[1] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, math.nan]]), None, 0.0), truth) == (math.inf, math.inf)


def wrong_gradient(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = dense.supcon(embeddings, labels)
    return loss.detach() + 1.01 * (loss - loss.detach())


def test_a_wrong_answer_is_reported_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", _in_this_process)
    monkeypatch.setitem(peers.PEERS, "pml_fast/cpu", peers.Peer("pml_fast/cpu", lambda case: wrong_gradient))
    monkeypatch.setattr(runner, "why_unavailable", lambda peer: None)
    (result,) = run_cases([Case("supcon", 64, 4)], ["pml_fast/cpu", "eager"], SETUP, PLAN, LIMITS)
    wrong, right = result.peer("pml_fast/cpu"), result.peer("eager")
    assert wrong.status == results.WRONG
    assert wrong.gradient_error == pytest.approx(0.01, rel=0.01)
    assert "gradient" in wrong.detail
    assert wrong.seconds is None
    assert wrong.peak_extra_bytes is None
    assert right.seconds is not None
    assert right.ours_is_faster_by is None
    assert len(failures([result])) == 1
    assert all(target.met is False for target in result.targets)


def _in_this_process(function, *args, **bounds) -> bounded.Outcome:
    return bounded.Outcome(bounded.OK, function(*args), None, 0.0, None)


def test_a_case_without_an_oracle_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_oracle(function, *args, **bounds) -> bounded.Outcome:
        assert function is run_oracle
        return bounded.Outcome(bounded.TIMED_OUT, None, "stopped", 1.0, None)

    monkeypatch.setattr(runner, "run", no_oracle)
    (result,) = run_cases([Case("supcon", 64, 4)], ["eager"], SETUP, PLAN, LIMITS)
    assert result.peer("eager").status == results.NOT_RUN
    assert "timed out" in result.peer("eager").detail


def test_a_backend_that_has_no_kernel_is_unavailable_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case) -> None:
        raise ValueError("backend 'cpu' cannot run this: no kernel; choose another, or backend='auto'")

    monkeypatch.setitem(peers.PEERS, "pml_fast/cpu", peers.Peer("pml_fast/cpu", refuse))
    monkeypatch.setattr(runner, "why_unavailable", lambda peer: None)
    monkeypatch.setattr(runner, "run", _in_this_process_with_errors)
    (result,) = run_cases([Case("supcon", 64, 4)], ["pml_fast/cpu", "eager"], SETUP, PLAN, LIMITS)
    assert result.peer("pml_fast/cpu").status == results.UNAVAILABLE
    assert result.peer("pml_fast/cpu").detail.endswith("choose another, or backend='auto'")
    assert result.peer("eager").seconds is not None
    assert failures([result]) == []


def _in_this_process_with_errors(function, *args, **bounds) -> bounded.Outcome:
    try:
        return _in_this_process(function, *args)
    except ValueError as error:
        return bounded.Outcome(bounded.FAILED, None, f"ValueError: {error}\nTraceback: ...", 0.0, None)


def test_cases_beyond_the_budget_are_not_run() -> None:
    limits = Limits(memory_bytes=None, seconds=60.0, budget=-1.0)
    (result,) = run_cases([Case("supcon", 64, 4)], ["eager"], SETUP, PLAN, limits)
    assert result.peer("eager").status == results.NOT_RUN
    assert result.floor_seconds is None


# ---- timing ----


def test_probe_and_timing_give_figures() -> None:
    case = Case("supcon", 64, 4)
    probe = run_probe(case, "eager", SETUP)
    assert probe.gradient.shape == (64, 128)
    assert probe.seconds > 0
    timings = run_timing(case, {"eager": probe.seconds}, PLAN, SETUP)
    assert set(timings) == {"floor", "eager"}
    for timing in timings.values():
        assert timing.quantiles.least <= timing.quantiles.p20 <= timing.quantiles.p50 <= timing.quantiles.p80
        assert 2 <= timing.quantiles.rounds <= 3


def test_entrants_take_turns_and_slow_ones_have_fewer() -> None:
    calls: list[str] = []

    def entrant(name: str, seconds: float) -> Entrant:
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return Entrant(name, call)

    plan = Plan(seconds=0.05, min_rounds=2, max_rounds=8)
    timed = time_in_turn([entrant("fast", 0.002), entrant("slow", 0.03)], plan, CpuClock())
    assert timed["fast"].rounds == 8
    assert timed["slow"].rounds == 2
    measured = calls[6:]  # after three warm-up calls each
    assert measured[:2] == ["fast", "slow"]
    assert measured[2] == measured[3] == "fast"
    assert measured.count("slow") == 2


def test_an_entrant_that_raises_leaves_the_others_timed() -> None:
    def broken() -> None:
        raise RuntimeError("no memory left")

    timed = time_in_turn([Entrant("broken", broken), Entrant("fine", lambda: None)], PLAN, CpuClock())
    assert isinstance(timed["broken"], RuntimeError)
    assert isinstance(timed["fine"], Quantiles)


def test_quantiles_interpolate() -> None:
    found = quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], calls=2)
    assert (found.p20, found.p50, found.p80, found.least) == pytest.approx((2.0, 3.5, 5.0, 1.0))
    assert (found.rounds, found.calls) == (6, 2)
    with pytest.raises(ValueError, match="samples"):
        quantiles([], calls=1)


def test_floor_by_strips_computes_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import floor as module

    rows = torch.randn(50, 16)
    buffers: list[dict[str, torch.Tensor]] = []
    for limit in (2**30, 1):
        monkeypatch.setattr(module, "DENSE_LIMIT_BYTES", limit)
        monkeypatch.setattr(module, "STRIP_ROWS", 16)
        run = floor(rows)
        run()
        cells = zip(run.__code__.co_freevars, run.__closure__)
        buffers.append({name: cell.cell_contents for name, cell in cells})
    for name in ("left", "right"):
        torch.testing.assert_close(buffers[0][name], buffers[1][name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(buffers[0][name], rows @ rows.T @ rows, rtol=1e-4, atol=1e-4)


# ---- targets, JSON, plots, command line ----


def _result(case: Case, ours: float, floor_seconds: float, **peer_seconds: float) -> CaseResult:
    def figures(seconds: float) -> Quantiles:
        return Quantiles(seconds, seconds, seconds, seconds, 3, 1)

    result = CaseResult(
        case.name,
        case.operation,
        case.size,
        128,
        case.per_class,
        case.dtype,
        case.memory_bound,
        figures(floor_seconds),
    )
    for name, seconds in {"pml_fast/cpu": ours, **peer_seconds}.items():
        result.peers.append(
            PeerResult(
                name,
                results.OK,
                None,
                figures(seconds),
                seconds / floor_seconds,
                seconds / ours,
                MEBIBYTE,
                True,
                1e-7,
                1e-6,
            )
        )
    return result


def test_targets_are_met_and_missed() -> None:
    case = Case("supcon", 4096, 4, (Target(FLOOR_RATIO, 1.15, 0.8),))
    for ours, met in ((1.1, True), (1.2, False)):
        result = _result(case, ours, 1.0)
        judge(case, result, on_gpu=False)
        assert [target.met for target in result.targets] == [met, True]
        assert result.targets[0].reached == f"{ours:.2f} x floor (pml_fast/cpu)"


def test_small_batches_must_beat_every_rival_that_was_timed() -> None:
    case = next(case for case in registry() if case.size == 32)
    result = _result(case, 1.0, 0.5, pml=3.0, eager=0.9)
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is False
    alone = _result(case, 1.0, 0.5)
    judge(case, alone, on_gpu=False)
    assert alone.targets[0].met is None


def test_speed_up_over_a_peer_that_did_not_finish_is_not_judged() -> None:
    case = next(case for case in registry() if case.operation == "ntxent" and case.per_class == 2)
    result = _result(case, 1.0, 1.0)
    result.peers.append(PeerResult("pml", bounded.OUT_OF_MEMORY, "18 GiB"))
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is None
    assert result.targets[0].reached == "pml: out of memory"


def _report(*cases: CaseResult) -> Report:
    return Report(
        date="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks",
        device="cpu",
        threads=2,
        seed=0,
        machine=describe_machine("cpu"),
        versions=describe_versions(),
        revision=describe_revision(),
        matmul_precision="highest",
        memory_limit_bytes=None,
        seconds_limit=1.0,
        cases=list(cases),
    )


def test_json_round_trip_and_schema(tmp_path) -> None:
    report = _report(_result(Case("supcon", 64, 4), 1.0, 0.5, pml=3.0))
    path = tmp_path / "full.json"
    results.write(report, path)
    assert results.read(path) == report
    data = json.loads(path.read_text())
    assert data["schema_version"] == results.SCHEMA_VERSION
    assert set(data["machine"]) == {"cpu", "cores", "memory_bytes", "system", "gpu"}
    assert {"torch", "triton", "pml_fast", "pytorch-metric-learning"} <= set(data["versions"]["packages"])
    assert set(data["revision"]) == {"commit", "dirty"}
    assert set(data["cases"][0]["peers"][0]["seconds"]) == {"p20", "p50", "p80", "least", "rounds", "calls"}
    path.write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99"):
        results.read(path)


def test_machine_slug_is_the_hardware() -> None:
    assert Machine("AMD EPYC", 2, None, "Linux x86_64").slug == "amd-epyc-2c"
    intel = Machine("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", 16, None, "Linux x86_64")
    assert intel.slug == "intel-xeon-platinum-8480c-16c"
    assert Machine("AMD EPYC", 2, None, "Linux x86_64", "NVIDIA H100 80GB HBM3").slug == "nvidia-h100-80gb-hbm3"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", describe_machine("cpu").slug)


def test_plots_and_markdown_are_written(tmp_path) -> None:
    report = _report(*(_result(Case("supcon", size, 4), 1.0, 0.5, pml=3.0) for size in (64, 128)))
    for path in write_plots(report, tmp_path, "full"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"full-time.png", "full-memory.png"}
    write_markdown(report, tmp_path / "full.md")
    text = (tmp_path / "full.md").read_text()
    assert "supcon/n64/k4/float32" in text
    assert "3.00 x" in text


def test_command_line_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert "supcon/n65536/k4/float32" in capsys.readouterr().out
    assert command.main(["--cases", "no such case"]) == 2
    assert "--list" in capsys.readouterr().out
    assert command.main(["--peers", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().out
    assert command.main(["--cases", "["]) == 2
    if not torch.cuda.is_available():
        assert command.main(["--gpu"]) == 2
        assert "CUDA" in capsys.readouterr().out


def test_command_runs_a_case_end_to_end(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cases", "supcon/n64/", "--peers", "pml", "eager", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main([*arguments, "--threads", "1", "--limit", "120"]) == 0
    report = results.read(tmp_path / "partial.json")
    (case,) = report.cases
    assert case.floor_seconds.rounds == 2
    for name in ("pml", "eager"):
        assert case.peer(name).status == results.OK
        assert case.peer(name).seconds.p50 > 0
        assert case.peer(name).gradient_error < 1e-4
    assert "supcon/n64/k4/float32" in capsys.readouterr().out
