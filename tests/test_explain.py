"""explain() against what really happens: the mode against the largest allocation, the backend against the one that runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from allocations import allocations
from torch import Tensor

from pml_fast import distances, explain, losses, miners, reducers, use
from pml_fast.engine import dispatch
from pml_fast.engine.explanation import scaled

N, D = 3000, 8


class Manhattan(distances.BaseDistance):
    """A user's own distance."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.cdist(query_emb, ref_emb, p=1.0)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return (query_emb - ref_emb).abs().sum(dim=1)


class OwnLoss(losses.BaseMetricLossFunction):
    """A user's own loss."""

    def compute_loss(self, embeddings: Tensor, *_: Any) -> dict[str, dict[str, Any]]:
        each = embeddings.square().sum(dim=1)
        return {"loss": {"losses": each, "indices": torch.arange(len(each)), "reduction_type": "element"}}


def batch(n: int = N, classes: int = 50) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=gen).requires_grad_(), torch.randint(classes, (n,), generator=gen)


def memory_events(run: Callable[[], Any]) -> list[int]:
    """The allocations of a second run: the first one warms up."""
    run()
    return allocations(run)


def step(loss: torch.nn.Module, x: Tensor, labels: Tensor, miner: Any, indices: Any = None) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        out = loss(x, labels, indices if miner is None else miner(x, labels))
        (out if torch.is_tensor(out) else out["loss"]["losses"].sum()).backward()

    return run


FUSED = [
    (losses.SupConLoss(), None),
    (losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer()), None),
    (losses.TripletMarginLoss(margin=0.1), None),
    (
        losses.TripletMarginLoss(distance=distances.LpDistance(p=1)),
        miners.TripletMarginMiner(distance=distances.LpDistance(p=1)),
    ),
    (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
]
PARTLY = [
    (losses.TripletMarginLoss(), miners.BatchHardMiner()),
    (losses.SupConLoss(reducer=reducers.DoNothingReducer()), None),
]
MATERIALISED = [
    (losses.NTXentLoss(distance=Manhattan()), None),
    (losses.NTXentLoss(reducer=reducers.DoNothingReducer()), None),
]


@pytest.mark.parametrize(
    ("mode", "loss", "miner"),
    [(mode, *case) for mode, cases in (("fused", FUSED), ("partly fused", PARTLY)) for case in cases],
)
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_what_is_said_to_be_fused_never_holds_the_matrix(mode: str, loss: Any, miner: Any, backend: str) -> None:
    x, labels = batch()
    with use(backend=backend):
        assert explain(loss, x, labels, miner).mode == mode
        assert max(memory_events(step(loss, x, labels, miner))) < N * N * x.element_size() // 2


@pytest.mark.parametrize(("loss", "miner"), MATERIALISED)
def test_what_is_said_to_be_materialised_holds_every_pair(loss: Any, miner: Any) -> None:
    x, labels = batch(300)
    assert explain(loss, x, labels, miner).mode == "materialised"
    assert max(memory_events(step(loss, x, labels, miner))) >= 300 * 300 * x.element_size() * 0.9


@pytest.mark.parametrize(("loss", "miner"), [(c[0], None) for c in FUSED[:4]] + [PARTLY[0]] + MATERIALISED)
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_the_peak_memory_is_a_bound_and_no_wild_one(loss: Any, miner: Any, backend: str) -> None:
    x, labels = batch(1500)
    indices = None if miner is None else miner(x, labels)

    with use(backend=backend):
        costs = explain(loss, x, labels, indices_tuple=indices).costs
        assert costs is not None
        measured = max(accumulate(memory_events(step(loss, x, labels, None, indices))))
    # The compiled kernels' own tables are counted by explain, not by torch's allocator.
    assert 0.9 * measured <= costs.memory_bytes <= 8 * measured + (2 << 20)


def test_the_backend_named_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(64)
    ran: list[str] = []
    select = dispatch.select

    def spy(problem: Any) -> Any:
        chosen = select(problem)
        ran.append(chosen.name)
        return chosen

    for backend in ("auto", "chunked", "reference"):
        for loss in (
            losses.CircleLoss(),
            losses.TripletMarginLoss(swap=True),
            losses.ContrastiveLoss(distance=distances.LpDistance(p=3)),
        ):
            with use(backend=backend):
                said = explain(loss, x, labels)
                monkeypatch.setattr(dispatch, "select", spy)
                ran.clear()
                loss(x, labels)
                monkeypatch.setattr(dispatch, "select", select)
            # The one-call step of the compiled backend asks nobody.
            assert set(ran) <= {said.backend}
            assert {c.name for c in said.candidates} == {"cpu", "triton", "cuda", "chunked", "reference"}
            assert [c.name for c in said.candidates if c.status == "chosen"] == [said.backend]
            assert all(c.reason for c in said.candidates)


def test_every_refusal_is_given() -> None:
    x, labels = batch(64)
    said = explain(losses.TripletMarginLoss(swap=True), x, labels)
    reasons = {c.name: (c.status, c.reason) for c in said.candidates}
    assert said.backend == "chunked"
    assert reasons["cpu"][0] == "refused"
    assert "swap" in reasons["cpu"][1] or "extension" in reasons["cpu"][1]
    assert reasons["reference"] == ("not asked", "can run, on request only")
    text = str(said)
    assert all(f"{c.name} {c.status}: {c.reason}" in text for c in said.candidates if c.status != "chosen")


def test_a_backend_asked_for_that_cannot_run_shows_what_the_call_raises() -> None:
    x, labels = batch(32)
    loss = losses.SupConLoss(distance=distances.LpDistance(p=1))
    with use(backend="triton"):
        said = explain(loss, x, labels)
        with pytest.raises(ValueError) as raised:
            loss(x, labels)
    assert said.backend is None and said.costs is None
    assert said.error == str(raised.value)
    assert said.error in str(said)


@pytest.mark.parametrize("name", ["chunked", "reference"])
def test_the_environment_chooses_the_backend(name: str) -> None:
    program = (
        "import torch; from pml_fast import explain, losses\n"
        "print(explain(losses.SupConLoss(), torch.randn(8, 4), torch.arange(8) // 2).backend)"
    )
    env = {**os.environ, "PML_FAST_BACKEND": name}
    out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == name


def test_a_batch_against_itself_takes_about_half_the_products_on_the_compiled_backend() -> None:
    if dispatch.backend("cpu").available() is not None:
        pytest.skip("the extension is not built")
    x, labels = batch(8192)
    costs = explain(losses.SupConLoss(), x, labels).costs
    both = explain(losses.SupConLoss(), x, labels, ref_emb=x.detach().clone(), ref_labels=labels.clone()).costs
    assert costs is not None and both is not None
    g = 2 * 8192 * 8192 * D
    assert 0.5 * g < costs.forward_flops < 0.6 * g
    assert 1.5 * g < costs.step_flops < 2.2 * g
    assert g <= both.forward_flops < 1.1 * g


def test_the_chunked_backend_takes_four_products() -> None:
    x, labels = batch(512)
    with use(backend="chunked"):
        said = explain(losses.SupConLoss(), x, labels)
    assert said.costs is not None
    assert (said.costs.forward_flops, said.costs.step_flops) == (said.gemm_flops, 4 * said.gemm_flops)


def test_listed_pairs_are_counted() -> None:
    x, labels = batch(100)
    triplets = (torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8]))
    said = explain(losses.TripletMarginLoss(), x, labels, indices_tuple=triplets)
    assert said.mode == "partly fused" and said.engine == "indexed" and not said.at_most
    assert said.costs is not None and said.costs.forward_flops == 2 * 6 * D
    swapped = explain(losses.TripletMarginLoss(swap=True), x, labels, indices_tuple=triplets).costs
    assert swapped is not None and swapped.forward_flops == 2 * 9 * D
    pairs = explain(losses.ContrastiveLoss(), x, None, indices_tuple=triplets).costs
    assert pairs is not None and pairs.forward_flops == 2 * 6 * D
    drawn = explain(losses.TripletMarginLoss(triplets_per_anchor=2), x, labels)
    assert drawn.at_most and "at most" in str(drawn)


def test_a_miner_of_another_distance_is_explained() -> None:
    x, labels = batch(64)
    fused = explain(losses.TripletMarginLoss(), x, labels, miners.TripletMarginMiner())
    listed = explain(losses.TripletMarginLoss(), x, labels, miners.TripletMarginMiner(distance=distances.LpDistance(p=1)))
    assert fused.mode == "fused" and any("in the kernel" in note for note in fused.notes)
    assert listed.mode == "partly fused" and any("differs" in note for note in listed.notes)


def test_nothing_of_the_loss_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(32)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("explain ran the loss")

    loss = losses.SupConLoss()
    monkeypatch.setattr(losses.SupConLoss, "forward", fail)
    monkeypatch.setattr(losses.SupConLoss, "run_plan", fail)
    assert explain(loss, x, labels).mode == "fused"


def test_a_loss_of_ones_own_has_no_costs() -> None:
    x, labels = batch(32)
    said = explain(OwnLoss(), x, labels)
    assert (said.mode, said.engine, said.backend, said.costs) == ("materialised", "dense", None, None)
    assert "not known" in str(said)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.float32, "everything in float32, products at precision 'high'"),
        (torch.float64, "everything in float64"),
        (torch.bfloat16, "bfloat16 embeddings, sums and loss in float32, products at precision 'high'"),
    ],
)
def test_precision_is_that_of_the_settings(dtype: torch.dtype, words: str) -> None:
    x, labels = batch(32)
    with use(precision="high"):
        said = explain(losses.SupConLoss(), x.detach().to(dtype), labels)
    assert said.dtype == dtype
    assert said.precision.endswith(words)
    assert any("no input requires a gradient" in note for note in said.notes)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(n: int) -> None:
    for loss, miner in [*FUSED, *PARTLY, *MATERIALISED]:
        assert "mode" in str(explain(loss, torch.randn(n, 3), torch.zeros(n, dtype=torch.int64), miner))


def test_bad_arguments() -> None:
    x, labels = batch(32)
    with pytest.raises(TypeError, match="loss must be a loss of pml_fast"):
        explain(torch.nn.MSELoss(), x, labels)  # type: ignore[arg-type]
    miner = miners.BatchHardMiner()
    with pytest.raises(ValueError, match="miner and indices_tuple"):
        explain(losses.TripletMarginLoss(), x, labels, miner, indices_tuple=miner(x, labels))
    with pytest.raises(ValueError, match="labels must be"):
        explain(losses.SupConLoss(), x, labels[:-1])


@pytest.mark.parametrize(
    ("value", "base", "words"),
    [
        (0, 1000, "0 FLOP"),
        (999, 1000, "999 FLOP"),
        (1_070_000_000, 1000, "1.07 GFLOP"),
        (3 << 20, 1024, "3 MiFLOP"),
        (1023, 1024, "1023 FLOP"),
    ],
)
def test_numbers_are_readable(value: int, base: int, words: str) -> None:
    assert scaled(value, base, "FLOP") == words
