"""Ranking and histogram losses equal pytorch-metric-learning 2.9, over every distance, reducer, batch and kind of tuple."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from agreement_options import OURS, PEER
from ranking_cases import REDUCERS, close, tuples
from torch import Tensor

from pml_fast import losses

VARIANTS = ("Ds", "Dq", "Iu", "Ib", "O")
LOSSES: dict[str, Callable[..., Any]] = {
    "fast_ap": lambda m, **k: m.losses.FastAPLoss(**k),
    "fast_ap_bins": lambda m, **k: m.losses.FastAPLoss(num_bins=7, **k),
    **{
        f"pnp_{v}": lambda m, v=v, **k: m.losses.PNPLoss(b=3, alpha=1.5, anneal=0.05, variant=v, **k)  # type: ignore[misc]
        for v in VARIANTS
    },
    "histogram": lambda m, **k: m.losses.HistogramLoss(**k),
    "histogram_delta": lambda m, **k: m.losses.HistogramLoss(delta=0.3, **k),
    "histogram_bins": lambda m, **k: m.losses.HistogramLoss(n_bins=16, **k),
    "soft_margin": lambda m, **k: m.losses.DynamicSoftMarginLoss(**k),
    "soft_margin_bins": lambda m, **k: m.losses.DynamicSoftMarginLoss(-3.0, 23, 0.3, **k),
}
EUCLIDEAN = ("fast_ap", "soft_margin")
L2: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared": lambda m: m.distances.LpDistance(power=2),
}
COSINE: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "cosine": lambda m: m.distances.CosineSimilarity(),
}
ANY: dict[str, Callable[[SimpleNamespace], Any]] = {
    **COSINE,
    "dot": lambda m: m.distances.DotProductSimilarity(),
    "cubed": lambda m: m.distances.CosineSimilarity(power=3),
    "small": lambda m: m.distances.LpDistance(normalize_embeddings=False, p=1),
}
BATCHES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "even": lambda gen: torch.arange(16) // 4,
    "ragged": lambda gen: torch.randint(0, 6, (19,), generator=gen),
    "singletons": lambda gen: torch.cat([torch.arange(7), torch.tensor([1, 1, 4])]),
    "one_class": lambda gen: torch.ones(6, dtype=torch.int64),
    "distinct": lambda gen: torch.arange(6),
}


def distances_of(loss: str) -> dict[str, Callable[[SimpleNamespace], Any]]:
    if loss.startswith("soft_margin"):
        # Differences of squares go beyond the peer's histogram.
        return {name: make for name, make in L2.items() if name != "l2_squared"}
    return L2 if loss.startswith(EUCLIDEAN) else COSINE if loss.startswith("pnp") else ANY


def run(
    m: SimpleNamespace, loss: str, distance: str, reducer: str, batch: str, mined: str, regularized: bool, small: bool
) -> Any:
    gen = torch.Generator().manual_seed(sum(map(ord, loss + distance + reducer + batch + mined)))
    labels = BATCHES[batch](gen)
    scale = 0.01 if small else 1.0
    x = (scale * torch.randn(len(labels), 5, generator=gen, dtype=torch.float64)).requires_grad_()
    options = {"embedding_regularizer": m.regularizers.LpRegularizer(), "embedding_reg_weight": 0.3} if regularized else {}
    module = LOSSES[loss](m, distance=distances_of(loss)[distance](m), reducer=REDUCERS[reducer](m), **options)
    answer = module(x, labels, None if mined == "none" else tuples(mined, labels, gen))
    scalar = answer
    if isinstance(answer, dict):
        scalar = sum(entry["losses"].square().sum() for entry in answer.values() if torch.is_tensor(entry["losses"]))
    if torch.is_tensor(scalar) and scalar.requires_grad:
        scalar.backward()
    return answer, torch.zeros_like(x) if x.grad is None else x.grad


def cases() -> list[tuple[Any, ...]]:
    """Every loss with every distance, reducer, batch and kind of tuple it takes; the rest in turn."""
    found = []
    turn = itertools.count()
    for loss in LOSSES:
        mined = ["none"] if loss.startswith("pnp") else ["none", "pairs", "triplets"]
        for distance, reducer, kind in itertools.product(distances_of(loss), REDUCERS, mined):
            k = next(turn)
            for batch in itertools.islice(itertools.cycle(BATCHES), k % 5, k % 5 + 2):
                found.append((loss, distance, reducer, batch, kind, k % 3 == 0 and reducer != "do_nothing"))
    return found


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_value_and_gradient_equal_the_peer(case: tuple[Any, ...]) -> None:
    small = case[1] == "small"
    want, want_grad = run(PEER, *case, small)
    got, grad = run(OURS, *case, small)
    # The peer's histogram has its nodes in float32.
    near = {"rtol": 1e-5, "atol": 1e-5} if case[0].startswith("histogram") else {}
    if isinstance(want, dict):
        assert set(got) == set(want)
        for name, entry in want.items():
            losses_ = torch.as_tensor(got[name]["losses"], dtype=torch.float64)
            if not torch.is_tensor(entry["losses"]):
                assert entry["losses"] == 0 and not losses_.any()
                continue
            assert got[name]["reduction_type"] == entry["reduction_type"]
            close(losses_, entry["losses"], **near)
            if entry["reduction_type"] == "element":
                assert torch.equal(got[name]["indices"], entry["indices"])
    else:
        close(got, torch.as_tensor(want), **near)
    scale = max(1.0, want_grad.abs().max().item())
    grad_near = {"rtol": 1e-4, "atol": 1e-4 * scale} if near else {"rtol": 1e-6, "atol": 1e-8 * scale}
    close(grad, want_grad, **grad_near)


# ---- Smooth-AP: the peer groups rows in as many as there are classes ---------------------------------------------------------


@pytest.mark.parametrize("mined", ["none", "triplets"])
@pytest.mark.parametrize(
    ("classes", "size", "reducer"),
    [
        *itertools.product([4], [4], ["default", "sum", "between", "class_weighted", "do_nothing"]),
        *itertools.product([3], [5], ["default", "between"]),
        *itertools.product([6], [2], ["default", "do_nothing"]),
        *itertools.product([1], [5], ["default", "sum"]),
        *itertools.product([5], [1], ["default"]),
    ],
)
@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_smooth_ap_equals_the_peer_with_its_grouping(
    temperature: float, classes: int, size: int, reducer: str, mined: str
) -> None:
    """The peer takes blocks of as many rows as there are classes for a class, right where there are as many of either."""
    gen = torch.Generator().manual_seed(classes)
    x = torch.randn(classes * size, 6, generator=gen, dtype=torch.float64)
    theirs, ours = torch.arange(classes * size) // size, torch.arange(classes * size) // classes
    index = None if mined == "none" else tuples("triplets", theirs, gen)
    results = []
    for m, labels in ((PEER, theirs), (OURS, ours)):
        leaf = x.clone().requires_grad_()
        answer = m.losses.SmoothAPLoss(temperature=temperature, reducer=REDUCERS[reducer](m))(leaf, labels, index)
        if isinstance(answer, dict):
            answer = (answer["ap_loss"]["losses"] ** 2).sum()
        answer.backward()
        results.append((answer.detach(), leaf.grad))
    # The peer keeps the precisions in float32.
    close(results[1][0].double(), results[0][0].double(), rtol=1e-6, atol=1e-6)
    close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)


def test_classes_may_have_any_sizes_and_order() -> None:
    """The peer refuses classes of different sizes, and takes consecutive rows for a class whatever their labels."""
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with pytest.raises(ValueError, match="same number"):
        PEER.losses.SmoothAPLoss()(x[:7], torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    assert losses.SmoothAPLoss()(x[:7], torch.tensor([0, 0, 0, 0, 1, 1, 1])).isfinite()
    mixed = torch.randperm(16, generator=torch.Generator().manual_seed(6))
    labels = torch.arange(16) // 4
    close(losses.SmoothAPLoss()(x[mixed], labels[mixed]), losses.SmoothAPLoss()(x, labels), rtol=1e-9)
    peer = PEER.losses.SmoothAPLoss()
    assert abs(peer(x[mixed], labels[mixed]) - peer(x, labels)) > 1e-3


# ---- where the peer fails ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_equal_rows_have_their_place_in_the_histogram() -> None:
    """A similarity of exactly 1 lies on the last node, one past which the peer writes."""
    x, labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    assert losses.HistogramLoss()(x, labels) == 0
    assert losses.HistogramLoss()(x, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1.0)
    with pytest.raises((RuntimeError, IndexError)):
        PEER.losses.HistogramLoss()(x, labels)
