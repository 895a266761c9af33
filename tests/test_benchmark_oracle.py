"""What the benchmarks hold an answer to: the oracle, whom it asks, and how far an answer may lie from it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmark_cases import CASES, SETUP, TINY, tiny

from benchmarks import library_oracle, oracle, peers
from benchmarks import probe as probe_module
from benchmarks.cases import Case
from benchmarks.operations import Tolerance
from benchmarks.peers import forward_backward
from benchmarks.probe import Probe, compare, run_oracle, run_probe


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_oracle_equals_float64_autograd_of_the_dense_formula(case: Case) -> None:
    inputs = case.inputs(1)
    value, (gradient,) = forward_backward(peers.PEERS["eager"].build(case, inputs.double()))
    answer = oracle.answer(case.operation, inputs.embeddings, inputs.labels)
    assert answer.value == pytest.approx(value.item(), rel=1e-12)
    np.testing.assert_allclose(answer.gradient, gradient.numpy(), rtol=1e-9, atol=1e-14)


def test_oracle_does_not_depend_on_its_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case("contrastive", 96, 8).inputs(1)
    whole = oracle.answer("contrastive", inputs.embeddings, inputs.labels)
    monkeypatch.setattr(oracle, "STRIP_ELEMENTS", 96 * 7)
    strips = oracle.answer("contrastive", inputs.embeddings, inputs.labels)
    assert strips.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(strips.gradient, whole.gradient, rtol=1e-10)


def test_sampled_oracle_equals_the_full_one() -> None:
    inputs = Case("supcon", 512, 4).inputs(1)
    rows = (inputs.embeddings, inputs.labels)
    full, sampled = oracle.answer("supcon", *rows), oracle.supcon_sampled(*rows)
    assert sampled.value == pytest.approx(full.value, rel=1e-6)
    assert len(sampled.rows) == oracle.SAMPLED_ROWS
    np.testing.assert_allclose(sampled.gradient, full.gradient[sampled.rows], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["pml_fast/auto", "pml", "eager"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.operation)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_peers_agree_with_the_oracle(case: Case, name: str) -> None:
    peer = peers.PEERS[name]
    if not peer.runs(case):
        assert not peer.is_ours
        return
    probe = run_probe(case, name, replace(SETUP, measure_memory=False))
    truth = oracle_of(case, probe)
    errors = compare(probe, truth)
    tolerance = case.tolerance().beyond(truth.moved_value, truth.moved_gradient)
    assert errors[0] <= tolerance.value
    assert errors[1] <= tolerance.gradient


def oracle_of(case: Case, probe: Probe) -> oracle.Answer:
    if library_oracle.has_formula(case):
        return run_oracle(case, SETUP)
    assert (probe.drawn is not None) == case.what.drawn
    return run_oracle(case, SETUP, library_oracle.sources(case)[0], probe.drawn)


@pytest.mark.parametrize("operation", ["nca", "arcface", "margin", "queue_contrastive", "vicreg"])
def test_both_libraries_give_the_same_float64_answer(operation: str) -> None:
    case = tiny(operation)
    theirs, mine = (run_oracle(case, SETUP, source) for source in (library_oracle.PML, library_oracle.OURS))
    assert theirs.source == "PML in float64"
    assert mine.source == "pml_fast's reference in float64"
    value, gradient = theirs.errors(mine.value, mine.gradient, mine.others)
    assert value < 1e-9
    assert gradient < 1e-7


@pytest.mark.parametrize("operation", ["angular_mined", "triplet_margin_mined"])
def test_formulas_of_mined_triplets_are_the_peers(operation: str) -> None:
    case = Case(operation, 48, 4)
    theirs, own = library_oracle.answer(case, case.inputs(1), library_oracle.PML), run_oracle(case, replace(SETUP, seed=1))
    value, gradient = theirs.errors(own.value, own.gradient)
    assert value < 1e-9
    assert gradient < 1e-7


def test_gradients_of_parameters_are_compared() -> None:
    case = tiny("arcface")
    truth, probe = run_oracle(case, SETUP, library_oracle.PML), run_probe(case, "pml_fast/auto", SETUP)
    assert [other.shape for other in probe.others] == [(128, 40)]
    assert compare(probe, truth)[1] < 1e-5
    wrong = replace(probe, others=(1.01 * probe.others[0],))
    assert compare(wrong, truth)[1] == pytest.approx(0.01, rel=0.01)


def test_a_sketch_keeps_the_length_of_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_oracle, "WHOLE_NUMBERS", 1000)
    monkeypatch.setattr(library_oracle, "SKETCH_ROWS", 64)
    gen = torch.Generator().manual_seed(1)
    rows, change = torch.randn(2000, 32, generator=gen), 1e-3 * torch.randn(2000, 32, generator=gen)
    for first, second in ((rows, rows + change), (rows.T, (rows + change).T)):
        found = library_oracle.digest(second) - library_oracle.digest(first)
        assert found.shape == (64, 32)
        assert np.linalg.norm(found) == pytest.approx(change.norm().item(), rel=0.1)


def test_sampled_rows_are_compared_with_the_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_oracle, "WHOLE_NUMBERS", 1000)
    monkeypatch.setattr(library_oracle, "SKETCH_ROWS", 16)
    monkeypatch.setattr(probe_module, "STREAMED_ORACLE_LIMIT", 64)
    case = Case("supcon", 512, 4)
    truth = run_oracle(case, SETUP)
    assert len(truth.rows) == oracle.SAMPLED_ROWS
    assert compare(run_probe(case, "pml_fast/auto", SETUP), truth)[1] < 1e-5


def test_who_answers_is_chosen_by_size_and_exactness() -> None:
    assert library_oracle.sources(Case("arcface", 512, 4, columns=100_000)) == [library_oracle.PML, library_oracle.OURS]
    assert library_oracle.sources(Case("arcface", 512, 4, columns=1_000_000)) == [library_oracle.OURS]
    assert library_oracle.sources(Case("smooth_ap", 64, 8)) == [library_oracle.OURS]
    assert library_oracle.sources(Case("clip", 64, 4)) == [library_oracle.OURS]


def test_a_term_at_the_edge_widens_the_tolerance() -> None:
    assert Tolerance(1e-4, 1e-3).beyond(0.0, 0.01) == Tolerance(1e-4, 0.02)


def test_compare_sees_wrong_values_wrong_gradients_and_nan() -> None:
    truth = oracle.Answer(2.0, np.array([[3.0, 4.0]]))
    assert compare(Probe(2.0, np.array([[3.0, 4.0]]), None, 0.0), truth) == (0.0, 0.0)
    assert compare(Probe(2.2, np.array([[3.0, 4.0]]), None, 0.0), truth)[0] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, 4.5]]), None, 0.0), truth)[1] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, math.nan]]), None, 0.0), truth) == (math.inf, math.inf)
