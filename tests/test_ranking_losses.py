"""Ranking, histogram and other losses: agreement with pytorch-metric-learning 2.9, dense float64 oracles, memory, edges."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning as pml
import torch
from torch import Tensor

import pml_fast
from pml_fast import _extension, distances, explain, losses, miners, reducers, use
from pml_fast._bounded import measure_peak
from pml_fast.engine import grad_sum, histogram_strips
from pml_fast.engine.specs import fast_ap

MODULES = ("distances", "losses", "reducers", "regularizers")


def library(package: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: __import__(f"{package.__name__}.{name}", fromlist=[name]) for name in MODULES})


PEER, OURS = library(pml), library(pml_fast)
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
REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "sum": lambda m: m.reducers.SumReducer(),
    "avg_non_zero": lambda m: m.reducers.AvgNonZeroReducer(),
    "between": lambda m: m.reducers.ThresholdReducer(low=0.3, high=0.9),
    "per_anchor": lambda m: m.reducers.PerAnchorReducer(),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(torch.linspace(0.1, 2, 20, dtype=torch.float64)),
    "do_nothing": lambda m: m.reducers.DoNothingReducer(),
    "multiple": lambda m: m.reducers.MultipleReducers({"loss": m.reducers.SumReducer()}),
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


def tuples(kind: str, labels: Tensor, gen: torch.Generator) -> Any:
    same = labels.unsqueeze(1) == labels
    pos = same & ~torch.eye(len(labels), dtype=torch.bool)
    if kind == "pairs":
        keep = torch.rand(same.shape, generator=gen) < 0.4
        return (*torch.where(pos & keep), *torch.where(~same & keep))
    index = torch.where(pos.unsqueeze(2) & ~same.unsqueeze(1))
    keep = torch.rand(len(index[0]), generator=gen) < 0.4
    return tuple(part[keep] for part in index)


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


def close(got: Tensor, want: Tensor, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got.to(want.dtype), want, rtol=rtol, atol=atol)


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


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_equal_rows_have_their_place_in_the_histogram() -> None:
    """A similarity of exactly 1 lies on the last node, one past which the peer writes."""
    x, labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    assert losses.HistogramLoss()(x, labels) == 0
    assert losses.HistogramLoss()(x, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1.0)
    with pytest.raises((RuntimeError, IndexError)):
        PEER.losses.HistogramLoss()(x, labels)


def loop_smooth_ap(s: Tensor, pos: Tensor, t: float) -> Tensor:
    rows = []
    for i in range(len(s)):
        mine = [j for j in range(s.shape[1]) if pos[i, j]]
        if not mine:
            continue
        total = s.new_zeros(())
        for j in mine:
            above = torch.sigmoid((s[i] - s[i, j]) / t)
            above = torch.cat([above[:j], above[j + 1 :].new_zeros(1), above[j + 1 :]])
            total = total + (1 + above[pos[i]].sum()) / (1 + above.sum())
        rows.append(1 - total / len(mine))
    return torch.stack(rows)


def loop_pnp(s: Tensor, pos: Tensor, neg: Tensor, t: float, needed: int) -> Tensor:
    rows = [
        torch.stack([torch.sigmoid((s[i][neg[i]] - s[i, j]) / t).sum() for j in range(s.shape[1]) if pos[i, j]]).mean()
        for i in range(len(s))
        if pos[i].sum() >= needed
    ]
    return torch.stack(rows)


def loop_fast_ap(d: Tensor, pos: Tensor, neg: Tensor, bins: int, top: float) -> Tensor:
    nodes = torch.linspace(0, top, bins + 1, dtype=d.dtype)
    pulses = torch.relu(1 - (d.unsqueeze(2) - nodes).abs() * bins / top)
    hits, misses = (torch.where(side.unsqueeze(2), pulses, 0).sum(dim=1) for side in (pos, neg))
    every = (hits + misses).cumsum(1)
    terms = torch.where(every > 0, hits * hits.cumsum(1) / every.clamp(min=1e-300), 0)
    there = pos.any(dim=1)
    return 1 - terms.sum(dim=1)[there] / pos.sum(dim=1)[there]


def loop_histogram(s: Tensor, pos: Tensor, neg: Tensor, bins: int) -> Tensor:
    nodes = torch.linspace(-1, 1, bins + 1, dtype=s.dtype)
    opened = (pos.any(dim=1) & neg.any(dim=1)).unsqueeze(1)
    densities = []
    for side in (pos, neg):
        values = s[side & opened]
        densities.append(torch.relu(1 - (values.unsqueeze(1) - nodes).abs() * bins / 2).mean(dim=0))
    return (densities[1] * densities[0].cumsum(0)).sum()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", ["smooth_ap", "pnp", "fast_ap", "histogram"])
def test_plain_loops_in_float64(monkeypatch: pytest.MonkeyPatch, name: str, separate: bool) -> None:
    """Any sizes and order of classes, a reference set, several strips and several blocks of positives."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 61)
    gen = torch.Generator().manual_seed(8)
    n, m = 17, (13 if separate else 17)
    x, y = (torch.randn(k, 4, generator=gen, dtype=torch.float64).requires_grad_() for k in (n, m))
    labels, ref_labels = torch.randint(0, 5, (n,), generator=gen), torch.randint(0, 4, (m,), generator=gen)
    labels[3] = 99
    if not separate:
        y, ref_labels = x, labels
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    s, same = u @ v.T, labels.unsqueeze(1) == ref_labels
    self_pairs = torch.eye(n, m, dtype=torch.bool) & (not separate)
    refs = (y, ref_labels) if separate else ()
    if name == "smooth_ap":
        got, want = losses.SmoothAPLoss(0.1)(x, labels, None, *refs), loop_smooth_ap(s, same, 0.1).mean()
    elif name == "pnp":
        got = losses.PNPLoss(anneal=0.1)(x, labels, None, *refs)
        want = loop_pnp(s, same, ~same, 0.1, 1 if separate else 2).mean()
    elif name == "fast_ap":
        d = (u.unsqueeze(1) - v).square().sum(dim=2)
        got, want = losses.FastAPLoss()(x, labels, None, *refs), loop_fast_ap(d, same & ~self_pairs, ~same, 10, 4.0).mean()
    else:
        got = losses.HistogramLoss(20)(x, labels, None, *refs)
        if separate:
            want = loop_histogram(s, same, ~same, 20)
        else:
            # Each pair once, where either of its rows has a positive and a negative.
            useful = (same & ~self_pairs).any(dim=1)
            above = torch.ones(n, n, dtype=torch.bool).triu(1) & (useful.unsqueeze(1) | useful)
            nodes = torch.linspace(-1, 1, 21, dtype=torch.float64)
            both = [torch.relu(1 - (s[above & side].unsqueeze(1) - nodes).abs() * 10).mean(dim=0) for side in (same, ~same)]
            want = (both[1] * both[0].cumsum(0)).sum()
    close(got, want, rtol=1e-10)
    leaves = (x, y) if separate else (x,)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        close(mine, theirs, rtol=1e-7, atol=1e-10)


# ---- dynamic soft margin -----------------------------------------------------------------------------------------------------


def soft_margins(**options: Any) -> tuple[Any, Any]:
    return losses.DynamicSoftMarginLoss(**options), PEER.losses.DynamicSoftMarginLoss(**options)


def test_the_running_histogram_equals_the_peers() -> None:
    """Over batches with labels, with tuples, with reference sets, and without labels (sets of different sizes, too)."""
    mine, theirs = soft_margins(momentum=0.2, num_bins=25)
    gen = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (14,), generator=gen)
    for k in range(4):
        x, y = (torch.randn(size, 5, generator=gen, dtype=torch.float64) for size in (14, 12 + k))
        # The histogram's range ends where the peer fails.
        near = x[: len(y)] + 0.5 * y[: len(x)] if len(y) <= len(x) else torch.cat([x, y[len(x) :]])
        calls = [
            (x, labels),
            (x, labels, tuples("pairs", labels, gen)),
            (x, labels, None, y, torch.randint(0, 5, (len(y),), generator=gen)),
            (x, None, None, near),
        ]
        for call in calls:
            close(mine(*call), theirs(*call), rtol=1e-10)
            close(mine.hist_, theirs.hist_, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(9, 9), (9, 6), (6, 9)])
def test_without_labels_the_gradient_is_autograds_of_the_matrix(sizes: tuple[int, int]) -> None:
    """The peer's backward fails there: it writes into the matrix its distance needs."""
    gen = torch.Generator().manual_seed(3)
    x, y = (torch.randn(k, 4, generator=gen, dtype=torch.float64).requires_grad_() for k in sizes)
    with pytest.raises(RuntimeError, match="inplace"):
        PEER.losses.DynamicSoftMarginLoss()(x, ref_emb=y).backward()

    class Matrix(PEER.distances.LpDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt() * 1.0

    mine, theirs = (
        losses.DynamicSoftMarginLoss()(x, ref_emb=y),
        PEER.losses.DynamicSoftMarginLoss(distance=Matrix())(x, ref_emb=y),
    )
    close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        close(a, b)

    class Own(distances.LpDistance):
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt() * 1.0

    close(losses.DynamicSoftMarginLoss(distance=Own())(x, ref_emb=y), mine)


def test_a_second_step_has_its_gradient() -> None:
    """The histogram is a constant to later batches; the peer's second backward goes through the first batch and fails."""
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(12) // 3
    batches = [torch.randn(12, 4, generator=gen, dtype=torch.float64).requires_grad_() for _ in range(2)]
    mine, theirs = soft_margins(momentum=0.4)
    for module in (mine, theirs):
        module(batches[0], labels).backward()
    with pytest.raises(RuntimeError, match="second time"):
        theirs(batches[1].detach().clone().requires_grad_(), labels).backward()
    mine(batches[1], labels).backward()
    second, fresh = batches[1].grad, batches[1].detach().clone().requires_grad_()
    # The peer with its histogram cut off from the first batch.
    again = PEER.losses.DynamicSoftMarginLoss(momentum=0.4)
    again(batches[0].detach(), labels)
    again(fresh, labels).backward()
    close(second, fresh.grad)


def test_the_histogram_is_in_the_state_dict() -> None:
    x, labels = torch.randn(10, 4), torch.arange(10) // 2
    loss = losses.DynamicSoftMarginLoss(momentum=0.5)
    loss(x, labels)
    assert set(loss.state_dict()) == {"hist_"} and loss.hist_.sum() == pytest.approx(1)
    twin = losses.DynamicSoftMarginLoss(momentum=0.5)
    twin.load_state_dict(loss.state_dict())
    y = torch.randn(10, 4)
    assert torch.equal(twin(y, labels), loss(y, labels))
    assert torch.equal(twin.hist_, loss.hist_)


def test_batches_that_teach_nothing_leave_the_histogram() -> None:
    loss = losses.DynamicSoftMarginLoss()
    x, labels = torch.randn(8, 4), torch.arange(8) // 2
    loss(x, labels)
    before = loss.hist_.clone()
    assert loss(x, torch.arange(8)) == 0
    assert loss(x[:1], ref_emb=x[1:2]) == 0
    x[2, 1] = float("nan")
    assert loss(x, labels).isnan()
    assert torch.equal(loss.hist_, before)


def test_differences_beyond_the_histogram_count_in_its_last_bin() -> None:
    """Two pairs of equal rows at opposite ends: every difference is -2; with labels crossed it is 2, where the peer fails."""
    x = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    loss = losses.DynamicSoftMarginLoss()
    assert loss(x, torch.tensor([0, 0, 1, 1])) == -2
    assert loss.hist_.tolist() == [1.0] + [0.0] * 9
    with pytest.raises((IndexError, RuntimeError)):
        PEER.losses.DynamicSoftMarginLoss()(x, torch.tensor([0, 1, 0, 1]))
    loss = losses.DynamicSoftMarginLoss()
    # Each anchor has one positive at 2, one negative at 0 and one at 2.
    assert loss(x, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1.0)
    assert loss.hist_.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0.5])


# ---- Manifold ----------------------------------------------------------------------------------------------------------------


def manifolds(**options: Any) -> list[Any]:
    made = []
    for m in (OURS, PEER):
        torch.manual_seed(7)
        made.append(m.losses.ManifoldLoss(6, **{"K": 5, **options}))
    assert torch.equal(made[0].proxies, made[1].proxies)
    return made


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("options", [{}, {"lambdaC": 0}, {"lambdaC": 2.5, "alpha": 0.5, "margin": 0.01}], ids=str)
def test_manifold_equals_the_peer(options: dict[str, Any], distance: str, given: bool) -> None:
    """Value and gradients by embeddings and proxies; both draw the same proxies from torch's generator."""
    make = {"cosine": "CosineSimilarity", "l2": "LpDistance", "dot": "DotProductSimilarity"}[distance]
    x = torch.randn(17, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    proxy = torch.arange(17) % 5 if given else None
    results = []
    for module, m in zip(manifolds(**options), (OURS, PEER), strict=True):
        module.distance = getattr(m.distances, make)()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(11)
        value = module(leaf, indices_tuple=proxy)
        value.backward()
        results.append((value.detach(), leaf.grad, module.proxies.grad))
    for mine, theirs in zip(*results, strict=True):
        # The peer inverts its matrix in float32.
        close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_manifold_in_float64_is_its_formula() -> None:
    (loss, _), gen = manifolds(lambdaC=0.7, alpha=0.6), torch.Generator().manual_seed(2)
    loss.double()
    x = torch.randn(9, 6, generator=gen, dtype=torch.float64)
    proxy = torch.tensor([0, 1, 2, 3, 4, 4, 2, 2, 0])
    nodes = torch.nn.functional.normalize(torch.cat([x, loss.proxies.detach()]))
    s = torch.exp(2 * (nodes @ nodes.T).clamp(min=0)) * (1 - torch.eye(14))
    root = s.sum(dim=1).rsqrt().diag()
    # The limit of the random walk is a geometric series.
    step, walk = 0.6 * root @ s @ root, torch.eye(14, dtype=torch.float64)
    power = walk
    for _ in range(200):
        power = power @ step
        walk = walk + power
    walk = 0.4 * walk
    want = 0.0
    for scores, weight in (
        (walk[:9, 9:], 1.0),
        (torch.nn.functional.cosine_similarity(walk[:9, None], walk[None, 9:], dim=2), 0.7),
    ):
        for i in range(9):
            gaps = [float(scores[i, k] - scores[i, proxy[i]]) + 5e-4 for k in range(5) if k != proxy[i]]
            want += weight * float(torch.tensor([0.0, *[g for g in gaps if g >= 0]]).exp().sum().log()) / 9
    # The zero stands for the 1 in log(1 + ...).
    assert loss(x, indices_tuple=proxy).item() == pytest.approx(want, rel=1e-6)


def test_an_infinite_weight_means_the_context_loss_alone() -> None:
    ours, peer = manifolds(lambdaC=float("inf"))
    x, proxy = torch.randn(8, 6), torch.arange(8) % 5
    assert peer(x, indices_tuple=proxy).isinf()
    (both, _), (one, _) = manifolds(lambdaC=1), manifolds(lambdaC=0)
    close(ours(x, indices_tuple=proxy), both(x, indices_tuple=proxy) - one(x, indices_tuple=proxy), rtol=1e-4, atol=1e-5)


def test_manifold_draws_from_its_own_generator() -> None:
    x = torch.randn(20, 6)

    def values(seed: int) -> list[float]:
        torch.manual_seed(0)
        loss = losses.ManifoldLoss(6, K=5, seed=seed)
        before = torch.get_rng_state()
        drawn = [loss(x).item() for _ in range(3)]
        assert torch.equal(before, torch.get_rng_state())
        return drawn

    first = values(3)
    assert first == values(3) != values(4) and len(set(first)) == 3
    torch.manual_seed(0)
    loss = losses.ManifoldLoss(6, K=5, seed=3)
    loss(x)
    resumed = losses.ManifoldLoss(6, K=5, seed=3)
    resumed.load_state_dict(loss.state_dict())
    assert [resumed(x).item(), copy.deepcopy(loss)(x).item()] == [first[1], first[1]]


# ---- VICReg ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", ["default", "sum", "avg_non_zero", "between", "do_nothing"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("options", [{}, {"invariance_lambda": 3, "variance_mu": 0.5, "covariance_v": 7, "eps": 0.01}], ids=str)
def test_vicreg_equals_the_peer(options: dict[str, Any], same: bool, reducer: str) -> None:
    gen = torch.Generator().manual_seed(2)
    x, y = (0.7 * torch.randn(11, 5, generator=gen, dtype=torch.float64) for _ in range(2))
    results = []
    for m in (OURS, PEER):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        answer = m.losses.VICRegLoss(reducer=REDUCERS[reducer](m), **options)(a, ref_emb=None if same else b)
        if isinstance(answer, dict):
            answer = torch.stack([(entry["losses"] ** 2).sum() for entry in answer.values()]).sum()
        answer.backward()
        results.append((answer.detach(), a.grad, torch.zeros_like(b) if b.grad is None else b.grad))
    for mine, theirs in zip(*results, strict=True):
        close(mine, theirs)


class HalvedInvariance(losses.VICRegLoss):
    def invariance_loss(self, emb: Tensor, ref_emb: Tensor) -> Tensor:
        return super().invariance_loss(emb, ref_emb) / 2


def test_vicreg_by_its_own_methods_and_by_trained_weights_equals_the_operator() -> None:
    gen = torch.Generator().manual_seed(3)
    x, y = (0.7 * torch.randn(11, 5, generator=gen, dtype=torch.float64) for _ in range(2))
    trained = losses.VICRegLoss(25)
    trained.covariance_v = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    results = []
    for loss in (losses.VICRegLoss(25), HalvedInvariance(50), trained):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(a, ref_emb=b)
        value.backward()
        assert a.grad is not None and b.grad is not None
        results.append(torch.cat([value.detach().view(1), a.grad.flatten(), b.grad.flatten()]))
    close(results[0], results[1])
    close(results[0], results[2])
    assert trained.covariance_v.grad is not None
    assert trained.covariance_v.grad > 0
    assert explain(trained, x, None, ref_emb=y).mode == "materialised"


def test_vicreg_gives_a_view_that_is_a_constant_no_gradient() -> None:
    gen = torch.Generator().manual_seed(3)
    x, y = (torch.randn(9, 4, generator=gen, dtype=torch.float64) for _ in range(2))
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    losses.VICRegLoss()(a, ref_emb=b).backward()
    alone = x.clone().requires_grad_()
    losses.VICRegLoss()(alone, ref_emb=y).backward()
    close(alone.grad, a.grad)


# ---- what all of them share --------------------------------------------------------------------------------------------------

WITH_LABELS: dict[str, Callable[[], torch.nn.Module]] = {
    "fast_ap": losses.FastAPLoss,
    "smooth_ap": lambda: losses.SmoothAPLoss(0.1),
    "pnp": lambda: losses.PNPLoss(anneal=0.1, variant="Ds"),
    "histogram": losses.HistogramLoss,
    "soft_margin": losses.DynamicSoftMarginLoss,
}
# Numbers that every type can hold.
VIEW = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).bfloat16().float()
WITHOUT: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "manifold": (lambda: losses.ManifoldLoss(6, K=4), {"indices_tuple": torch.arange(24) % 4}),
    "vicreg": (losses.VICRegLoss, {"ref_emb": VIEW}),
    "soft_margin_rows": (
        losses.DynamicSoftMarginLoss,
        {"ref_emb": VIEW},
    ),
}
EVERY = [*WITH_LABELS, *WITHOUT]


def made(name: str) -> tuple[torch.nn.Module, Callable[[torch.nn.Module, Tensor], Tensor], Tensor]:
    """A loss, how to call it, and embeddings."""
    torch.manual_seed(4)
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    if name in WITH_LABELS:
        labels = torch.arange(24) // 4
        return WITH_LABELS[name](), lambda loss, x: loss(x, labels), x
    make, options = WITHOUT[name]

    def call(loss: torch.nn.Module, x: Tensor) -> Tensor:
        like = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in options.items()}
        return loss(x, **like)  # type: ignore[no-any-return]

    return make(), call, x


@pytest.mark.parametrize("name", EVERY)
def test_copies_pickles_and_state_dicts(name: str) -> None:
    loss, call, x = made(name)
    call(loss, x)
    other = made(name)[0]
    other.load_state_dict(loss.state_dict())
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), other]
    expected = call(loss, x)
    for twin in twins:
        assert torch.equal(call(twin, x), expected)


@pytest.mark.parametrize("name", EVERY)
def test_types(name: str) -> None:
    """Half precision is summed and returned in float32; gradients have the type of the embeddings."""
    for dtype, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        loss, call, x = made(name)
        x = x.to(dtype).requires_grad_()
        value = call(loss, x)
        (grad,) = torch.autograd.grad(value, x)
        assert (value.dtype, grad.dtype) == (kept, dtype) and grad.isfinite().all()
        loss, call, _ = made(name)
        wide = call(loss, x.detach().double())
        close(value.double(), wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_stays_outside(name: str) -> None:
    values = []
    for on in (False, True):
        loss, call, x = made(name)
        x.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            value = call(loss, x)
        values.append((value, torch.autograd.grad(value, x)[0]))
    close(values[1][0], values[0][0], rtol=1e-5, atol=1e-6)
    close(values[1][1], values[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_losses_compile_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        loss, call, x = made(name)
        x.requires_grad_()
        step = lambda x, loss=loss, call=call: call(loss, x)  # noqa: E731
        value = torch.compile(step, fullgraph=True, backend="aot_eager")(x) if compiled else step(x)
        results.append((value.detach(), torch.autograd.grad(value, x)[0]))
    for mine, eager in zip(*results, strict=True):
        close(mine, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*WITH_LABELS, "soft_margin_rows"])
def test_a_second_derivative_is_refused(name: str) -> None:
    loss, call, x = made(name)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(call(loss, x), x, create_graph=True)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_batches_without_anything_to_rank(name: str) -> None:
    """Empty, one row, one class, all distinct, all equal: finite, differentiable, zero where no pair counts."""
    for n, labels in ((0, []), (1, [3]), (4, [1] * 4), (4, [0, 1, 2, 3]), (6, [0, 0, 1, 1, 2, 2])):
        loss = WITH_LABELS[name]()
        x = torch.ones(n, 3, dtype=torch.float64, requires_grad=True)
        value = loss(x, torch.tensor(labels, dtype=torch.int64))
        value.backward()
        assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()
        no_pairs = n == 0 or len(set(labels)) in (1, n)
        if name in ("histogram", "soft_margin") and no_pairs:
            assert value == 0 and not x.grad.any()
        if name in ("pnp", "fast_ap") and len(set(labels)) == n:
            assert value == 0


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_nan_is_not_swallowed(name: str) -> None:
    loss, call, x = made(name)
    x[5, 2] = float("nan")
    assert call(loss, x).isnan()


@pytest.mark.parametrize("name", WITH_LABELS)
def test_many_strips_equal_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    results = []
    for elements in (1 << 20, 100):
        monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", elements)
        loss, call, x = made(name)
        x = x.double().requires_grad_()
        value = call(loss, x)
        results.append((value.detach(), torch.autograd.grad(value, x)[0]))
    for one, many in zip(*results, strict=True):
        close(many, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["fast_ap", "smooth_ap"])
@pytest.mark.parametrize("separate", [False, True])
def test_a_miner_weighs_rows(name: str, separate: bool) -> None:
    """A lazy tuple and the index tensors it stands for give the same weights."""
    loss, _, x = made(name)
    labels = torch.arange(24) // 4
    refs = (x[:16].clone(), labels[:16]) if separate else ()
    mined = miners.MultiSimilarityMiner()(x, labels, *refs)
    rows = type(loss)(reducer=reducers.DoNothingReducer())(x, labels, None, *refs)
    (entry,) = rows.values()
    counts = torch.bincount(torch.cat(list(mined)[::2] if separate else list(mined)), minlength=24).float()
    want = (entry["losses"] * (counts / counts.max())[entry["indices"]]).mean()
    close(type(loss)()(x, labels, mined, *refs), want, rtol=1e-5)
    close(type(loss)()(x, labels, tuple(mined), *refs), want, rtol=1e-5)


def test_a_trained_temperature_has_its_gradient() -> None:
    x, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) // 3
    loss = losses.SmoothAPLoss()
    loss.temperature = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    assert "temperature is trained" in str(explain(loss, x, labels))
    value = loss(x, labels)
    close(value.detach(), losses.SmoothAPLoss(0.2)(x, labels))
    (slope,) = torch.autograd.grad(value, loss.temperature)
    step = 1e-6
    numeric = (losses.SmoothAPLoss(0.2 + step)(x, labels) - losses.SmoothAPLoss(0.2 - step)(x, labels)) / (2 * step)
    assert slope.item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.parametrize("name", [*WITH_LABELS])
def test_a_distance_of_ones_own_takes_its_matrix(name: str) -> None:
    """A subclass whose maths is overridden is materialised, with the same numbers, and the plan says so."""
    loss, call, x = made(name)
    base = type(loss.distance)

    class Own(base):  # type: ignore[misc, valid-type]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            if self.is_inverted:
                return query_emb @ ref_emb.T
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt()

    x = x.double().requires_grad_()
    other = made(name)[0]
    other.distance = Own(power=loss.distance.power)
    plan = explain(other, x, torch.arange(24) // 4)
    assert plan.mode == "materialised" and "Own" in plan.notes[0]
    want, got = call(loss, x), call(other, x)
    close(got, want)
    # The derivative of a root at 0 is not finite on the diagonal.
    if loss.distance.is_inverted:
        close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])


# ---- plans -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "engine", "compiled"),
    [
        ("fast_ap", "pairwise", True),
        ("smooth_ap", "pairwise", True),
        ("pnp", "pairwise", True),
        ("histogram", "histogram", True),
        ("soft_margin", "histogram", True),
    ],
)
def test_the_plan_of_a_call_with_labels(name: str, engine: str, compiled: bool) -> None:
    loss, _, x = made(name)
    labels = torch.arange(24) // 4
    plan = explain(loss, x, labels)
    backend = "cpu" if compiled and _extension.load() is not None else "chunked"
    assert (plan.mode, plan.engine, plan.backend) == ("fused", engine, backend)
    assert plan.costs is not None and plan.costs.memory_bytes > 0
    assert {c.name: c.status for c in plan.candidates}["triton"] == "refused"
    with use(backend="triton"):
        assert explain(loss, x, labels).error is not None
        with pytest.raises(ValueError, match="triton"):
            loss(x, labels)


def test_the_plans_of_other_calls() -> None:
    x, labels = torch.randn(24, 6), torch.arange(24) // 4
    pairs = miners.MultiSimilarityMiner()(x, labels)
    plans = [
        explain(losses.FastAPLoss(), x, labels, indices_tuple=pairs),
        explain(losses.FastAPLoss(reducer=reducers.DoNothingReducer()), x, labels),
        explain(losses.HistogramLoss(), x, labels, indices_tuple=pairs),
        explain(losses.DynamicSoftMarginLoss(), x, labels, indices_tuple=pairs),
        explain(losses.DynamicSoftMarginLoss(), x, None, ref_emb=x.clone()),
        explain(losses.VICRegLoss(), x, None, ref_emb=x.clone()),
        explain(losses.ManifoldLoss(6, K=5), x, None),
    ]
    assert [(plan.mode, plan.engine) for plan in plans] == [
        ("partly fused", "pairwise"),
        ("partly fused", "pairwise"),
        ("partly fused", "indexed"),
        ("partly fused", "indexed"),
        ("partly fused", "extremes"),
        ("fused", "covariance"),
        ("materialised", "dense"),
    ]
    assert "weighs each row" in str(plans[0]) and "29 x 29" in str(plans[-1])
    for plan in plans:
        assert str(plan)


MEMORY = """
import torch
from pml_fast import losses
from pml_fast._bounded import measure_peak
def step(n):
    x = torch.randn(n, 32, requires_grad=True)
    losses.{loss}(x, torch.arange(n) // 4).backward()
step(256)
_, peak = measure_peak(lambda: step({n}))
print(peak)
"""


@pytest.mark.parametrize("loss", ["FastAPLoss()", "SmoothAPLoss()", "PNPLoss()", "HistogramLoss()", "DynamicSoftMarginLoss()"])
def test_no_matrix_is_held(loss: str) -> None:
    """At N = 5000 one matrix is 100 MB (one table of pairs 200 MB, one of triplets 300 MB for each index)."""
    run_ = subprocess.run(
        [sys.executable, "-c", MEMORY.format(loss=loss, n=5000)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run_.returncode == 0, run_.stderr
    assert int(run_.stdout) < 64 << 20


# ---- errors ------------------------------------------------------------------------------------------------------------------

# Any two rows of X are more than 1 apart.
X, Y = torch.cat([torch.eye(3, 4), -torch.eye(3, 4)]), torch.eye(4).repeat(2, 1)[:6]
LABELS = torch.arange(6) // 2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: losses.FastAPLoss(distance=distances.CosineSimilarity()), TypeError, "LpDistance"),
        (lambda: losses.FastAPLoss(distance=distances.LpDistance(p=1)), ValueError, "distance.p"),
        (
            lambda: losses.FastAPLoss(distance=distances.LpDistance(normalize_embeddings=False)),
            ValueError,
            "normalize_embeddings",
        ),
        (lambda: losses.FastAPLoss(num_bins=0), ValueError, "num_bins"),
        (lambda: losses.SmoothAPLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity"),
        (lambda: losses.PNPLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity"),
        (lambda: losses.PNPLoss(variant="X"), ValueError, "variant must be one of"),
        (lambda: losses.PNPLoss(variant="Ib", b=0), ValueError, "b must be"),
        (lambda: losses.HistogramLoss(n_bins=10, delta=0.1), ValueError, "2 / n_bins"),
        (lambda: losses.HistogramLoss(n_bins=0), ValueError, "n_bins"),
        (lambda: losses.HistogramLoss(delta=3), ValueError, "delta"),
        (lambda: losses.DynamicSoftMarginLoss(distance=distances.LpDistance(p=1)), ValueError, "distance.p"),
        (lambda: losses.DynamicSoftMarginLoss(min_val=0), ValueError, "min_val"),
        (lambda: losses.DynamicSoftMarginLoss(num_bins=0), ValueError, "num_bins"),
        (lambda: losses.ManifoldLoss(4, lambdaC=-1), ValueError, "lambdaC"),
        (lambda: losses.ManifoldLoss(0), ValueError, "l and K"),
        (lambda: losses.VICRegLoss(distance=distances.LpDistance()), ValueError, "distance"),
        (lambda: losses.VICRegLoss(embedding_regularizer=None), ValueError, "embedding_regularizer"),
        (lambda: losses.FastAPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.SmoothAPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.PNPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.PNPLoss()(X, LABELS, (LABELS, LABELS, LABELS)), ValueError, "indices_tuple is not supported"),
        (lambda: losses.FastAPLoss()(X, LABELS, (LABELS, LABELS, LABELS), Y), ValueError, "ref_labels must be given"),
        (lambda: losses.HistogramLoss()(X), ValueError, "cannot both be None"),
        (lambda: losses.HistogramLoss(distance=distances.LpDistance())(X, LABELS), ValueError, "from -1 to 1"),
        (
            lambda: losses.HistogramLoss(distance=distances.LpDistance())(
                X, LABELS, (LABELS[:1], LABELS[1:2], LABELS[2:3] + 2)
            ),
            ValueError,
            "from -1 to 1",
        ),
        (lambda: losses.ManifoldLoss(4, K=3)(X, LABELS), ValueError, "labels"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, ref_emb=Y), ValueError, "ref_emb"),
        (lambda: losses.ManifoldLoss(5, K=3)(X), ValueError, "l=5"),
        (lambda: losses.ManifoldLoss(4, K=7)(X), ValueError, "at least K=7"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, indices_tuple=(LABELS, LABELS, LABELS)), TypeError, "indices_tuple"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, indices_tuple=LABELS[:5]), ValueError, "one proxy for each"),
        (lambda: losses.ManifoldLoss(4, K=2)(X, indices_tuple=LABELS), ValueError, "from 0 to 1"),
        (lambda: losses.VICRegLoss()(X, LABELS), ValueError, "labels"),
        (lambda: losses.VICRegLoss()(X, ref_emb=Y[:3]), ValueError, "shape of the embeddings"),
        (lambda: losses.VICRegLoss()(X, indices_tuple=(LABELS, LABELS, LABELS), ref_emb=Y), ValueError, "indices_tuple"),
    ],
)
def test_errors_name_the_argument(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("name", EVERY)
def test_the_memory_of_a_plan_is_a_bound(name: str) -> None:
    torch.manual_seed(0)
    n = 600 if name == "manifold" else 3000
    x, y = torch.randn(n, 24, requires_grad=True), torch.randn(n, 24)
    loss = losses.ManifoldLoss(24, K=20) if name == "manifold" else made(name)[0]
    labels = torch.arange(n) // 4 if name in WITH_LABELS else None
    ref_emb = y if name in ("vicreg", "soft_margin_rows") else None
    loss(x, labels, ref_emb=ref_emb).backward()
    _, peak = measure_peak(lambda: loss(x, labels, ref_emb=ref_emb).backward())
    costs = explain(loss, x, labels, ref_emb=ref_emb).costs
    assert costs is not None
    # What the allocator keeps for itself varies by a little.
    assert peak <= costs.memory_bytes + (4 << 20)


# ---- what accelerators run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator runs in the place of bincount."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("bincount waits for an accelerator")

    monkeypatch.setattr(histogram_strips, "keyed_sums", histogram_strips.scattered_sums)
    monkeypatch.setattr(fast_ap._Below, "forward", staticmethod(forward_elsewhere))
    monkeypatch.setattr(torch, "bincount", refuse)


def forward_elsewhere(ctx: Any, x: Tensor, pos: Tensor, neg: Tensor, nodes: int) -> Tensor:
    """The forward as it is, with the sums that a device other than the CPU takes."""
    by_keys = fast_ap.by_keys
    fast_ap.by_keys = lambda *_: fast_ap.by_passes(x, pos, neg, nodes)
    try:
        return BELOW_FORWARD(ctx, x, pos, neg, nodes)
    finally:
        fast_ap.by_keys = by_keys


BELOW_FORWARD = fast_ap._Below.forward


@pytest.mark.parametrize("name", ["fast_ap", "histogram", "soft_margin"])
def test_sums_without_bincount_are_the_same(name: str, request: pytest.FixtureRequest) -> None:
    results = []
    for _ in range(2):
        loss, call, x = made(name)
        x = x.double().requires_grad_()
        with use(backend="chunked"):
            value = call(loss, x)
            results.append((value.detach(), torch.autograd.grad(value, x)[0]))
        if len(results) == 1:
            request.getfixturevalue("elsewhere")
    for one, other in zip(*results, strict=True):
        close(other, one, rtol=1e-10)
