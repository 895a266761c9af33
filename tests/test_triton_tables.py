"""Triton's losses of two sweeps and of tables, where they differ from other pair losses: many nodes, many positives, ties,
variants, and the public losses on top of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from interpreted import DEVICE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast import explain, losses, miners, reducers, use
from pml_fast.engine import specs
from pml_fast.engine.chunked import ChunkedBackend
from pml_fast.engine.problem import NO_LIMITS, PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec

with interpreting():
    from pml_fast.engine.triton import histograms, layout, soft_ranks
    from pml_fast.engine.triton.backend import TritonBackend

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

DOT, L2 = Score(), Score("l2", inverted=False)
triton_backend, oracle = TritonBackend(), ChunkedBackend()


def batch(n: int, d: int, classes: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, d, generator=gen))
    return x.to(DEVICE), torch.randint(0, classes, (n,), generator=gen).to(DEVICE)


def check(spec: PairSpec, score: Score, x: Tensor, labels: Tensor, y: Tensor | None = None, y_labels: Any = None) -> None:
    """Values and gradients, weighed unevenly, are those of float64."""
    results = []
    for backend, wide in ((triton_backend, False), (oracle, True)):
        rows = x.double() if wide else x
        columns = rows if y is None else y.double() if wide else y
        problem = PairProblem(
            spec,
            score,
            rows,
            columns,
            labels,
            labels if y is None else y_labels,
            y is None,
            None,
            [NO_LIMITS] * len(spec.terms),
        )
        w = torch.linspace(0, 2, len(x) * len(spec.terms), dtype=rows.dtype, device=DEVICE).view(len(spec.terms), len(x))
        state = backend.pair_rows(problem, False, False)
        results.append((state.rows, *backend.pair_grads(problem, state, w, True, True)))
    (rows, *grads), (want_rows, *want_grads) = results
    torch.testing.assert_close(rows.double(), want_rows, rtol=1e-5, atol=1e-5)
    for got, want in zip(grads, want_grads, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert (got.double() - want).norm() <= 5e-5 * want.norm() + 1e-9


@pytest.mark.parametrize("bins", [1, histograms.CHUNK - 1, 2 * histograms.CHUNK + 3])
def test_a_histogram_of_many_nodes_takes_more_sweeps(bins: int) -> None:
    check(specs.FastAP(bins), L2, *batch(21, 6, 3))


@pytest.mark.parametrize("variant", range(5))
def test_every_variant_of_pnp(variant: int) -> None:
    check(specs.PNP(b=3.0, alpha=1.5, anneal=0.05, variant=variant), DOT, *batch(18, 6, 3))


@pytest.mark.parametrize("itself", [True, False])
def test_more_positives_than_a_program_holds(monkeypatch: pytest.MonkeyPatch, itself: bool) -> None:
    monkeypatch.setattr(soft_ranks, "HITS", 4)
    others = () if itself else batch(19, 6, 2, seed=2)
    check(specs.SmoothAP(0.1), DOT, *batch(22, 6, 2), *others)


@pytest.mark.parametrize("spec", [specs.FastAP(), specs.SmoothAP(0.1), specs.LiftedStructure(), specs.IntraPairVariance()])
def test_ties_and_duplicates(spec: PairSpec) -> None:
    """On a coarse grid inner products are exact, and places of FastAP lie on the nodes themselves."""
    x, labels = batch(24, 3, 4)
    x = (x * 4).round() / 4
    check(spec, Score(normalize=False), torch.cat([x[:12], x[:12]]), labels)


def test_a_gradient_comes_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "WORKSPACE_BYTES", 4 * 30 * 7)
    check(specs.SmoothAP(0.1), L2, *batch(30, 6, 5))


def test_the_tables_of_a_batch_are_as_wide_as_its_largest_class() -> None:
    x, labels = batch(40, 6, 10)
    problem = PairProblem(specs.SmoothAP(), DOT, x, x, labels, labels, True, None, [NO_LIMITS])
    saved = triton_backend.pair_rows(problem, False, False).saved
    assert saved.shape == (4, labels.bincount().max(), 40)


@pytest.mark.parametrize("spec", [specs.SmoothAP(0.1), specs.PNP()])
@pytest.mark.parametrize("itself", [True, False])
def test_a_captured_step_reads_no_class_size_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, spec: PairSpec, itself: bool
) -> None:
    (x, labels), (y, y_labels) = batch(22, 6, 3), batch(19, 6, 3, seed=2)
    columns = (x, labels) if itself else (y, y_labels)
    problem = PairProblem(spec, DOT, x, columns[0], labels, columns[1], itself, None, [NO_LIMITS])
    w = torch.linspace(0, 2, 22, device=DEVICE).view(1, 22)

    def step() -> tuple[int, list[Tensor]]:
        state = triton_backend.pair_rows(problem, False, False)
        grads = triton_backend.pair_grads(problem, state, w, True, True)
        return state.saved.shape[1], [state.rows, *(grad for grad in grads if grad is not None)]

    width, want = step()
    monkeypatch.setattr(layout, "capturing", lambda x: True)
    captured_width, got = step()
    assert (width, captured_width) == (columns[1].bincount().max(), len(columns[1]))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_captured_step_whose_tables_are_too_large_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "capturing", lambda x: True)
    monkeypatch.setattr(soft_ranks, "CAPTURED_BYTES", 4 * 4 * 20 * 20 - 1)
    x, labels = batch(20, 6, 3)
    problem = PairProblem(specs.SmoothAP(), DOT, x, x, labels, labels, True, None, [NO_LIMITS])
    with pytest.raises(RuntimeError, match=r"'smooth_ap' cannot be captured .* 20 rows and 20 columns.*leave the loss out"):
        triton_backend.pair_rows(problem, False, False)


def test_a_graph_is_captured_on_a_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not layout.capturing(torch.zeros(1))
    assert layout.capturing(SimpleNamespace(is_cuda=True))


# Each with another reducer, and a miner where the loss takes a rule.
LOSSES: dict[str, tuple[Callable[[], torch.nn.Module], bool]] = {
    "lifted_structure": (lambda: losses.LiftedStructureLoss(reducer=reducers.PerAnchorReducer()), True),
    "intra_pair_variance": (lambda: losses.IntraPairVarianceLoss(reducer=reducers.AvgNonZeroReducer()), False),
    "ranked_list": (lambda: losses.RankedListLoss(margin=0.4, Tn=4, Tp=2, reducer=reducers.SumReducer()), False),
    "fast_ap": (lambda: losses.FastAPLoss(reducer=reducers.ThresholdReducer(low=0.3)), False),
    "smooth_ap": (lambda: losses.SmoothAPLoss(0.1), False),
    "pnp": (lambda: losses.PNPLoss(anneal=0.1), False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_public_losses_say_and_give_what_runs(name: str) -> None:
    make, mined = LOSSES[name]
    x, labels = batch(26, 6, 6)
    results = []
    for backend, rows in (("triton", x.clone()), ("chunked", x.double())):
        with use(backend=backend):
            rows.requires_grad_()
            said = explain(make(), rows, labels, miners.PairMarginMiner(0.8, 0.2) if mined else None)
            assert (said.backend, said.deterministic) == (backend, True)
            assert said.costs is not None
            assert said.costs.memory_bytes > 0
            loss = make()(rows, labels, miners.PairMarginMiner(0.8, 0.2)(rows, labels) if mined else None)
            loss.backward()
        results.append((loss.detach(), rows.grad))
    (loss, grad), (want, want_grad) = results
    torch.testing.assert_close(loss.double(), want.double(), rtol=1e-5, atol=1e-5)
    assert (grad.double() - want_grad).norm() <= 5e-5 * want_grad.norm()
