"""Rooflines: bounds follow from card and work, predictions say what they are, measured points come from a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")

from benchmarks import results, roofline
from benchmarks.cases import TF32, Case
from benchmarks.machine import describe_machine, describe_revision, describe_versions
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.suites import SUITES
from benchmarks.timing import Quantiles

H100 = roofline.CARDS["H100 SXM"]
CASE = Case("supcon", 8192, 4, dtype="bfloat16")


def report_of(case: Case, seconds: float) -> Report:
    entry = CaseResult(case.name, case.operation, case.size, case.dim, case.per_class, case.dtype, 0)
    entry.peers = [PeerResult(roofline.OURS, results.OK, "", seconds=Quantiles(*[seconds] * 4, rounds=5, calls=1))]
    described = describe_machine("cpu"), describe_versions(), describe_revision()
    return Report("2026", "command", "cuda:0", 1, 0, *described, "highest", None, 1.0, cases=[entry])


def test_the_bound_is_the_slower_of_arithmetic_and_memory() -> None:
    (point,) = roofline.points([CASE], H100)
    # forward, recomputed scores and gradient: three products of N x N x D
    assert point.flops == pytest.approx(3 * 2 * 8192 * 8192 * 128, rel=0.01)
    assert point.bound == pytest.approx(point.flops / 989e12)
    assert point.bound > point.memory_seconds
    assert point.measured_seconds is None
    narrow = roofline.Card("narrow", "made up", H100.bfloat16, H100.tf32, 1e9)
    (slow,) = roofline.points([CASE], narrow)
    assert slow.bound == pytest.approx(slow.bytes / 1e9)
    assert slow.bound > slow.arithmetic_seconds


def test_float32_takes_three_products_for_one() -> None:
    assert H100.rate("float32") == pytest.approx(H100.rate(TF32) / 3)


def test_every_pair_case_of_the_gpu_suite_has_a_point() -> None:
    cases = [case for case in SUITES["gpu"].registry(("bfloat16",)) if case.operation in ("supcon", "triplet_all")]
    assert {point.case for point in roofline.points(cases, H100)} == {case.name for case in cases}


def test_a_report_places_what_it_measured() -> None:
    cases = SUITES["gpu"].registry(("bfloat16",))
    case = next(case for case in cases if case.operation == "supcon" and case.size == 8192)
    (point,) = roofline.points(cases, H100, report_of(case, 1e-3))
    assert (point.case, point.measured_seconds) == (case.name, 1e-3)
    (row,) = roofline.rows([point])
    assert row[-1] == f"{point.bound / 1e-3:.0%}"


def test_predictions_are_written_as_such(tmp_path: Path) -> None:
    assert roofline.main(["--card", "A100 SXM 80 GB", "--out", str(tmp_path)]) == 0
    stem = tmp_path / "a100-sxm-80-gb-prediction"
    assert "nothing measured" in stem.with_suffix(".md").read_text()
    assert json.loads(stem.with_suffix(".json").read_text())["kind"] == "prediction"
    assert stem.with_suffix(".png").stat().st_size > 0


def test_a_report_of_other_cases_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "full.json"
    results.write(report_of(Case("supcon", 77, 7), 1.0), path)
    assert roofline.main(["--report", str(path)]) == 2
    assert "no case of the suite gpu" in capsys.readouterr().err
