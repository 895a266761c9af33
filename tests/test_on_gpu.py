"""The public modules on a card, end to end: every loss against float64 on the CPU, and what only a card can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_table import CLASSES, DIMENSION, LOSS_ARGUMENTS, NOT_A_LOSS, WRAPPERS, call_loss, make_loss
from torch import Tensor

from pml_fast import distances, losses, miners, reducers, use
from pml_fast.utils.accuracy_calculator import AccuracyCalculator

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
NAMES = sorted(name for name in {*losses.__all__, *LOSS_ARGUMENTS, *WRAPPERS} if name not in NOT_A_LOSS)
# Draws on the device, whose numbers are not the CPU's.
DRAWN = {"ManifoldLoss"}
# How a step is computed -> type of its rows, torch's precision of float32 products, largest relative error of value and
# gradient. A hinge near zero flips by the rounding of a score, which moves a mean by about one part in its number of pairs.
ARITHMETIC: dict[str, tuple[torch.dtype, str, float, float]] = {
    "float32": (torch.float32, "highest", 1e-4, 1e-4),
    "tf32": (torch.float32, "high", 1e-2, 2e-2),
    "bfloat16": (torch.bfloat16, "highest", 1e-2, 2e-2),
    "float16": (torch.float16, "highest", 2e-3, 5e-3),
    "float64": (torch.float64, "highest", 1e-9, 1e-8),
}
FUSED: dict[str, Callable[[], Any]] = {
    "supcon": losses.SupConLoss,
    "ntxent": losses.NTXentLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "circle": losses.CircleLoss,
    "contrastive": losses.ContrastiveLoss,
    "triplet_margin": losses.TripletMarginLoss,
    "smooth_triplet": lambda: losses.TripletMarginLoss(smooth_loss=True),
    "ranked_list": lambda: losses.RankedListLoss(margin=0.4, Tn=4),
    "lifted_structure": losses.LiftedStructureLoss,
    "intra_pair_variance": losses.IntraPairVarianceLoss,
    "fast_ap": losses.FastAPLoss,
}
# Read a number on the host, but where a CUDA graph is captured.
WAITING: dict[str, Callable[[], Any]] = {"smooth_ap": losses.SmoothAPLoss, "pnp": losses.PNPLoss}
MINED: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "multi_similarity": (losses.MultiSimilarityLoss, miners.MultiSimilarityMiner),
    "pair_margin": (losses.ContrastiveLoss, miners.PairMarginMiner),
    "batch_hard": (losses.TripletMarginLoss, miners.BatchHardMiner),
    "semihard": (losses.TripletMarginLoss, lambda: miners.TripletMarginMiner(type_of_triplets="semihard")),
}


def batch(n: int = 41, d: int = DIMENSION, dtype: torch.dtype = torch.float32, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Rows as numbers that every type holds, so that what differs is the arithmetic alone."""
    gen = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=gen).bfloat16()
    return x.to(device=DEVICE, dtype=dtype), (torch.arange(n) % classes).to(DEVICE)


def step(loss: Any, x: Tensor, labels: Tensor, name: str | None = None) -> list[Tensor]:
    """Value, gradient by the embeddings and by each parameter."""
    x = x.detach().requires_grad_()
    value = call_loss(loss, x, labels, name)
    leaves = [x, *(p for p in loss.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves))]


def assert_near(got: list[Tensor], want: list[Tensor], value: float, gradient: float) -> None:
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = a.cpu().double(), b.cpu().double()
        assert torch.isfinite(a).all()
        error = (a - b).norm().item() / max(b.norm().item(), 1e-4)
        assert error <= (gradient if place else value), f"output {place} is off by {error:.1e}"


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN])
def test_every_loss_equals_float64_on_the_cpu(name: str, arithmetic: str) -> None:
    dtype, precision, value, gradient = ARITHMETIC[arithmetic]
    x, labels = batch(dtype=dtype)
    with use(precision=precision):
        got = step(make_loss(losses, name).to(device=DEVICE, dtype=dtype), x, labels)
    exact = make_loss(losses, name).to(dtype)  # its parameters, as this type rounds them
    want = step(exact.double(), x.cpu().double(), labels.cpu())
    assert_near(got, want, value, gradient)


@pytest.mark.parametrize("dimension", [8, 64, 100, 128, 256, 300, 512, 1024])
@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("name", [*FUSED, *WAITING])
def test_every_width_of_the_kernels(name: str, arithmetic: str, dimension: int) -> None:
    dtype, precision, value, gradient = ARITHMETIC[arithmetic]
    make = {**FUSED, **WAITING}[name]
    x, labels = batch(507, dimension, dtype, 123)
    with use(precision=precision):
        got = step(make(), x, labels)
    assert_near(got, step(make(), x.cpu().double(), labels.cpu()), value, gradient)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    "distance", ["CosineSimilarity", "DotProductSimilarity", "SNRDistance", "l1", "l2", "l2_squared", "l3"]
)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "NTXentLoss"])
def test_every_distance_with_and_without_a_reference_set(name: str, distance: str, reference: bool) -> None:
    made = {"l1": {"p": 1}, "l2": {}, "l2_squared": {"power": 2}, "l3": {"p": 3}}
    x, labels = batch(70)
    y, y_labels = batch(33)

    def run(rows: Tensor, others: Tensor, device: str) -> list[Tensor]:
        of = distances.LpDistance(**made[distance]) if distance in made else getattr(distances, distance)()
        a, b = rows.detach().requires_grad_(), others.detach().requires_grad_()
        beside = {"ref_emb": b, "ref_labels": y_labels.to(device)} if reference else {}
        value = getattr(losses, name)(distance=of)(a, labels.to(device), **beside)
        return [value.detach(), *torch.autograd.grad(value, [a, b] if reference else [a])]

    assert_near(run(x, y, DEVICE), run(x.cpu().double(), y.cpu().double(), "cpu"), 1e-4, 1e-3)


REDUCERS: dict[str, Callable[[], Any]] = {
    "avg_non_zero": reducers.AvgNonZeroReducer,
    "class_weighted": lambda: reducers.ClassWeightedReducer(torch.linspace(0.5, 2, CLASSES)),
    "mean": reducers.MeanReducer,
    "per_anchor": reducers.PerAnchorReducer,
    "sum": reducers.SumReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.1),
}


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "SupConLoss"])
def test_every_reducer(name: str, reducer: str) -> None:
    if (name, reducer) == ("TripletMarginLoss", "per_anchor"):
        pytest.skip("triplets have no anchor to be averaged by")

    def run(rows: Tensor, labels: Tensor) -> list[Tensor]:
        return step(getattr(losses, name)(reducer=REDUCERS[reducer]()), rows, labels)

    x, labels = batch(70)
    assert_near(run(x, labels), run(x.cpu().double(), labels.cpu()), 1e-4, 1e-3)


# ---- what only a card can show -----------------------------------------------------------------------------------------------


def every_fused_step() -> list[Any]:
    alone = [pytest.param(make, None, id=name) for name, make in FUSED.items()]
    return alone + [pytest.param(loss, miner, id=f"{name}_mined") for name, (loss, miner) in MINED.items()]


def fused_step(make_loss: Callable[[], Any], make_miner: Callable[[], Any] | None) -> Callable[[Tensor, Tensor], list[Tensor]]:
    loss, miner = make_loss(), None if make_miner is None else make_miner()

    def run(x: Tensor, labels: Tensor) -> list[Tensor]:
        value = loss(x, labels) if miner is None else loss(x, labels, miner(x, labels))
        return [value, *torch.autograd.grad(value, x)]

    return run


@pytest.mark.parametrize("make_loss,make_miner", every_fused_step())
def test_a_step_never_waits_for_the_host(make_loss: Any, make_miner: Any) -> None:
    run, (x, labels) = fused_step(make_loss, make_miner), batch(300, 64)
    x.requires_grad_()
    want = run(x, labels)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = run(x, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize(
    "make_loss,make_miner", [*every_fused_step(), *(pytest.param(make, None, id=name) for name, make in WAITING.items())]
)
def test_a_cuda_graph_replays_a_step(make_loss: Any, make_miner: Any) -> None:
    run, (x, labels) = fused_step(make_loss, make_miner), batch(300, 64)
    x.requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run(x, labels)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(x, labels)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    replayed = [t.detach().clone() for t in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, run(x, labels)))


@pytest.mark.parametrize("name", FUSED)
def test_compiled_as_one_graph(name: str) -> None:
    loss, (x, labels) = FUSED[name](), batch(300, 64)
    x.requires_grad_()
    want = loss(x, labels)
    got = torch.compile(loss, fullgraph=True)(x, labels)
    assert_near([got.detach(), *torch.autograd.grad(got, x)], [want.detach(), *torch.autograd.grad(want, x)], 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUSED)
def test_autocast_does_not_round_a_loss(name: str, dtype: torch.dtype) -> None:
    loss, (x, labels) = FUSED[name](), batch(70, 64)
    with torch.autocast(DEVICE, dtype=dtype):
        inside = step(loss, x, labels)
    assert inside[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(inside, step(loss, x, labels)))


@pytest.mark.parametrize("name", [*FUSED, *WAITING, *MINED])
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    alone = {**FUSED, **WAITING}
    make = (alone[name], None) if name in alone else MINED[name]
    run, (x, labels) = fused_step(*make), batch(5000, 128, torch.bfloat16, 300)
    x.requires_grad_()
    first = run(x, labels)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(x, labels)))


@pytest.mark.parametrize("name", ["supcon", "contrastive", "triplet_margin"])
def test_more_than_two_to_the_31_numbers(name: str) -> None:
    """A reference set whose last rows lie beyond what 32 bits address."""
    d, rows = 512, 64
    columns = 2**31 // d + 1000
    if torch.cuda.mem_get_info()[0] < 4 * columns * d:
        pytest.skip("needs 9 GB of the card's memory")
    x, labels = batch(rows, d, torch.bfloat16, 8)
    y = torch.zeros(columns, d, dtype=torch.bfloat16, device=DEVICE)
    y_labels = torch.full((columns,), 1000, device=DEVICE)
    # All that the rows have in common with the set lies at its end.
    last, last_labels = batch(500, d, torch.bfloat16, 8)
    y[-500:], y_labels[-500:] = last, last_labels
    y[:-500] = -last[0]
    x.requires_grad_()
    loss = FUSED[name]()
    loss.distance = distances.CosineSimilarity() if name != "contrastive" else loss.distance
    found = []
    for backend in ("triton", "chunked"):
        with use(backend=backend):
            value = loss(x, labels, ref_emb=y, ref_labels=y_labels)
            found.append([value.detach(), *torch.autograd.grad(value, x)])
    assert_near(*found, 2e-3, 2e-2)


def test_evaluation_equals_the_cpu() -> None:
    x, labels = batch(900, 64, classes=30)
    calculator = AccuracyCalculator(exclude=("AMI", "NMI"))
    got = calculator.get_accuracy(x, labels, x, labels, ref_includes_query=True)
    x, labels = x.cpu().double(), labels.cpu()
    assert got == pytest.approx(calculator.get_accuracy(x, labels, x, labels, ref_includes_query=True), abs=1e-6)
