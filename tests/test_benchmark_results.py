"""What the benchmarks make of their figures: targets judged, JSON, plots and Markdown."""

from __future__ import annotations

import json
import re

import pytest
from benchmark_cases import result_of

from benchmarks import bounded, results
from benchmarks.cases import FLOOR_RATIO, Case, Target
from benchmarks.machine import Machine, describe_machine, describe_revision, describe_versions
from benchmarks.plots import write_plots
from benchmarks.report import write_markdown
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.suites import SUITES
from benchmarks.targets import judge


def test_targets_are_met_and_missed() -> None:
    case = Case("supcon", 4096, 4, (Target(FLOOR_RATIO, 1.15, 0.8),))
    for ours, met in ((1.1, True), (1.2, False)):
        result = result_of(case, ours, 1.0)
        judge(case, result, on_gpu=False)
        assert [target.met for target in result.targets] == [met, True]
        assert result.targets[0].reached == f"{ours:.2f} x floor (pml_fast/cpu)"


def test_small_batches_must_beat_every_rival_that_was_timed() -> None:
    case = next(case for case in SUITES["core"].cases() if case.size == 32)
    result = result_of(case, 1.0, 0.5, pml=3.0, eager=0.9)
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is False
    alone = result_of(case, 1.0, 0.5)
    judge(case, alone, on_gpu=False)
    assert alone.targets[0].met is None


@pytest.mark.parametrize(("status", "met"), [("timed out", True), ("out of memory", True), ("wrong", None), ("failed", None)])
def test_a_rival_that_did_not_finish_within_the_bounds_is_slower(status: str, met: bool | None) -> None:
    case = next(case for case in SUITES["losses"].cases() if case.operation == "ntxent")
    result = result_of(case, 1.0, 0.5)
    result.peers.append(PeerResult("pml", status, "stopped after 12 s"))
    judge(case, result, on_gpu=False)
    assert result.targets[0].target == "not slower than pml"
    assert result.targets[0].met is met
    assert met is None or f"pml {status} (stopped after 12 s)" in result.targets[0].reached


def test_speed_up_over_a_peer_that_did_not_finish_is_not_judged() -> None:
    case = SUITES["core"].cases()[0]
    assert case.operation == "ntxent"
    result = result_of(case, 1.0, 1.0)
    result.peers.append(PeerResult("pml", bounded.OUT_OF_MEMORY, "18 GiB"))
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is None
    assert result.targets[0].reached == "pml: out of memory"


def test_the_suite_of_a_gpu_is_judged_there_alone() -> None:
    case = next(case for case in SUITES["gpu"].cases() if case.size == 8192 and case.dim == 512)
    assert "/d512/" in case.name and case.inputs(0).embeddings.shape == (8192, 512)
    result = result_of(case, 0.8, 1.0, eager=2.0)
    judge(case, result, on_gpu=True)
    reached = {target.target: target.met for target in result.targets}
    assert reached[">= 3 x faster than eager"] is False and reached["<= 1.43 x floor"] is True
    assert reached[">= 1.7 x faster than compile"] is None
    judge(case, elsewhere := result_of(case, 0.8, 1.0), on_gpu=False)
    assert [target.target.split()[0] for target in elsewhere.targets] == ["peak"]


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
    report = _report(result_of(Case("supcon", 64, 4), 1.0, 0.5, pml=3.0))
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
    report = _report(*(result_of(Case("supcon", size, 4), 1.0, 0.5, pml=3.0) for size in (64, 128)))
    for path in write_plots(report, tmp_path, "full"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"full-time.png", "full-memory.png"}
    write_markdown(report, tmp_path / "full.md")
    text = (tmp_path / "full.md").read_text()
    assert "supcon/n64/k4/float32" in text
    assert "3.00 x" in text
