"""Class losses: equal to pytorch-metric-learning's in value and gradients, streamed, and honest about it."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning as pml
import torch
from allocations import allocations
from torch import Tensor

import pml_fast
from pml_fast import explain, use
from pml_fast.engine import grad_sum
from pml_fast.engine.classes import blocks
from pml_fast.losses.base_metric_loss_function import prepare_call


def library(package: Any) -> SimpleNamespace:
    names = ("distances", "losses", "miners", "reducers", "regularizers")
    return SimpleNamespace(**{name: __import__(f"{package.__name__}.{name}", fromlist=[name]) for name in names})


PEER, OURS = library(pml), library(pml_fast)
N, C, D = 23, 9, 7
SIZES = {"num_classes": C, "embedding_size": D}
# Small scales: a loss below the rounding of 1 is 0 there and not here, and some reducers count it.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "arcface": ("ArcFaceLoss", {**SIZES, "scale": 6}),
    "arcface_wide": ("ArcFaceLoss", {**SIZES, "margin": 100.0, "scale": 4}),
    "cosface": ("CosFaceLoss", {**SIZES, "scale": 8}),
    "sphereface": ("SphereFaceLoss", SIZES),
    "sphereface_3": ("SphereFaceLoss", {**SIZES, "margin": 3, "scale": 0.7}),
    "large_margin": ("LargeMarginSoftmaxLoss", {**SIZES, "scale": 0.5}),
    "large_margin_1": ("LargeMarginSoftmaxLoss", {**SIZES, "margin": 1}),
    "subcenter": ("SubCenterArcFaceLoss", {**SIZES, "scale": 6}),
    "normalized": ("NormalizedSoftmaxLoss", {**SIZES, "temperature": 0.3}),
    "proxy_nca": ("ProxyNCALoss", {**SIZES, "softmax_scale": 2}),
    "proxy_anchor": ("ProxyAnchorLoss", {**SIZES, "alpha": 8}),
    "soft_triple": ("SoftTripleLoss", {**SIZES, "centers_per_class": 4, "la": 6}),
    "p2s_grad": ("P2SGradLoss", {"descriptors_dim": D, "num_classes": C}),
    "instance": ("InstanceLoss", {"gamma": 6}),
}
WITHOUT_INDICES = ("p2s_grad", "instance")
ANY_DISTANCE = ("normalized", "proxy_nca", "proxy_anchor")
COSINE_ONLY = ("arcface", "cosface", "sphereface", "large_margin", "subcenter", "instance")


def users_distance(m: SimpleNamespace) -> Any:
    class Bent(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb - ref_emb).square() + 0.01).sqrt().mean(dim=1)

    return Bent()


def users_cosine(m: SimpleNamespace) -> Any:
    class Own(m.distances.CosineSimilarity):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return 0.9 * query_emb @ ref_emb.t()

    return Own()


DISTANCES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared": lambda m: m.distances.LpDistance(power=2),
    "l2_raw": lambda m: m.distances.LpDistance(normalize_embeddings=False),
    "l2_squared_raw": lambda m: m.distances.LpDistance(normalize_embeddings=False, power=2),
    "l1": lambda m: m.distances.LpDistance(p=1),
    "l3": lambda m: m.distances.LpDistance(p=3, normalize_embeddings=False),
    "dot_raw": lambda m: m.distances.DotProductSimilarity(normalize_embeddings=False),
    "dot_p1": lambda m: m.distances.DotProductSimilarity(p=1),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": users_distance,
}
COSINES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "cosine": lambda m: m.distances.CosineSimilarity(),
    "cosine_p1": lambda m: m.distances.CosineSimilarity(p=1),
    "cosine_cubed": lambda m: m.distances.CosineSimilarity(power=3),
    "users": users_cosine,
}
REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "mean": lambda m: m.reducers.MeanReducer(),
    "sum": lambda m: m.reducers.SumReducer(),
    "avg_non_zero": lambda m: m.reducers.AvgNonZeroReducer(),
    "between": lambda m: m.reducers.ThresholdReducer(low=0.3, high=2.5),
    "per_anchor": lambda m: m.reducers.PerAnchorReducer(),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(torch.linspace(0.2, 3, C, dtype=torch.float64)),
    "do_nothing": lambda m: m.reducers.DoNothingReducer(),
}
INDICES: dict[str, Any] = {
    "none": None,
    "empty": tuple(torch.empty(0, dtype=torch.int64) for _ in range(3)),
    "triplets": (torch.tensor([0, 1, 2, 2, 19]), torch.tensor([3, 4, 5, 5, 20]), torch.tensor([7, 8, 9, 10, 0])),
    "pairs": tuple(torch.tensor(x) for x in ([0, 1, 2], [3, 3, 5], [0, 22, 7, 8], [9, 9, 11, 12])),
}


def batch(seed: int = 0, n: int = N, d: int = D, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C - 1, (n,), generator=gen)
    return torch.randn(n, d, generator=gen, dtype=dtype), labels


def make(m: SimpleNamespace, name: str, weights: list[Tensor] | None = None, **options: Any) -> torch.nn.Module:
    """A loss in float64, with given weights."""
    cls, own = LOSSES[name]
    loss: torch.nn.Module = getattr(m.losses, cls)(**{**own, **options}).double()
    if weights is not None:
        for parameter, values in zip(loss.parameters(), weights, strict=True):
            parameter.data.copy_(values)
    return loss


def weights_of(name: str, seed: int = 0) -> list[Tensor]:
    gen = torch.Generator().manual_seed(100 + seed)
    return [torch.randn(p.shape, generator=gen, dtype=torch.float64) for p in make(OURS, name).parameters()]


def as_number(answer: Any) -> Tensor:
    if torch.is_tensor(answer):
        return answer
    parts = [(k + 1) * x["losses"].square().sum() for k, x in enumerate(answer.values()) if torch.is_tensor(x["losses"])]
    return torch.stack(parts).sum()


def run(loss: torch.nn.Module, x: Tensor, labels: Tensor, indices: Any = None) -> list[Tensor]:
    """Value and gradients by the embeddings and by every parameter."""
    x = x.detach().clone().requires_grad_()
    value = as_number(loss(x, labels, indices))
    grads = torch.autograd.grad(value, [x, *loss.parameters()], allow_unused=True)
    return [value.detach(), *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, [x, *loss.parameters()]))]


def close(got: list[Tensor], want: list[Tensor], rtol: float = 1e-8, atol: float = 1e-9) -> None:
    for mine, expected in zip(got, want, strict=True):
        torch.testing.assert_close(mine, expected, rtol=rtol, atol=atol)


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one or two classes and of five rows."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 15)
    monkeypatch.setattr(blocks, "ROWS", 5)


def agree(name: str, seed: int, indices: str = "none", **options: Callable[[SimpleNamespace], Any]) -> None:
    """Ours on every backend and in blocks against the peer's."""
    x, labels = batch(seed)
    weights = weights_of(name, seed)
    # The peer's unit vectors have norms of 1 - 1e-7.
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "p2s_grad" else {}
    kept = {key: option for key, option in options.items() if option is not None}

    def built(m: SimpleNamespace) -> torch.nn.Module:
        return make(m, name, weights, **{key: option(m) for key, option in kept.items()})

    want = run(built(PEER), x, labels, INDICES[indices])
    close(run(built(OURS), x, labels, INDICES[indices]), want, **tolerance)
    with use(backend="reference"):
        close(run(built(OURS), x, labels, INDICES[indices]), want, **tolerance)


# ---- agreement ----


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_reducers_agree(name: str, reducer: str) -> None:
    if name == "proxy_anchor" and reducer == "class_weighted":
        pytest.skip("the peer weighs proxies by the labels of rows: test_class_weights_of_proxies_are_their_own")
    agree(name, 1, reducer=REDUCERS[reducer])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ANY_DISTANCE)
def test_distances_agree(name: str, distance: str) -> None:
    agree(name, 2, distance=DISTANCES[distance])


@pytest.mark.parametrize("distance", COSINES)
@pytest.mark.parametrize("name", [*COSINE_ONLY, "soft_triple"])
def test_cosines_agree(name: str, distance: str) -> None:
    agree(name, 3, distance=COSINES[distance])


def test_soft_triple_takes_inner_products() -> None:
    agree("soft_triple", 3, distance=DISTANCES["dot_raw"])


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_INDICES])
def test_index_tuples_agree(name: str, indices: str) -> None:
    agree(name, 4, indices)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", LOSSES)
def test_random_combinations_agree_in_blocks(name: str, seed: int, many_blocks: None) -> None:
    rng = random.Random(f"{name} {seed}")
    options: dict[str, Any] = {"reducer": REDUCERS[rng.choice(["default", "mean", "sum", "between", "do_nothing"])]}
    if name in ANY_DISTANCE:
        options["distance"] = DISTANCES[rng.choice(list(DISTANCES))]
    elif name in COSINE_ONLY:
        options["distance"] = COSINES[rng.choice(list(COSINES))]
    if name not in WITHOUT_INDICES and rng.random() < 0.5:
        options["weight_regularizer"] = lambda m: m.regularizers.LpRegularizer(power=2)
        options["weight_reg_weight"] = lambda m: 0.3
    if rng.random() < 0.5:
        options["embedding_regularizer"] = lambda m: m.regularizers.LpRegularizer()
        options["embedding_reg_weight"] = lambda m: 0.2
    agree(name, 10 + seed, "none" if name in WITHOUT_INDICES else rng.choice(list(INDICES)), **options)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in WITHOUT_INDICES])
def test_both_regularizers_are_sub_losses(name: str) -> None:
    parts: dict[str, Callable[[SimpleNamespace], Any]] = {
        "weight_regularizer": lambda m: m.regularizers.LpRegularizer(),
        "embedding_regularizer": lambda m: m.regularizers.LpRegularizer(),
        "weight_reg_weight": lambda m: 0.5,
    }
    mine, peers = (make(m, name, **{k: part(m) for k, part in parts.items()}) for m in (OURS, PEER))
    assert mine.sub_loss_names() == peers.sub_loss_names()
    assert set(mine.reducer.reducers) == set(peers.reducer.reducers)
    agree(name, 5, "triplets", **parts)


@pytest.mark.parametrize("name", ["arcface", "normalized", "proxy_anchor", "proxy_nca"])
def test_miners_agree(name: str) -> None:
    x, labels = batch(6)
    weights = weights_of(name)
    for miner in ("MultiSimilarityMiner", "BatchHardMiner", "TripletMarginMiner", "PairMarginMiner"):
        found = [run(make(m, name, weights), x, labels, getattr(m.miners, miner)()(x.detach(), labels)) for m in (OURS, PEER)]
        close(*found)


@pytest.mark.parametrize("name", LOSSES)
def test_signature_defaults_and_parameters_are_the_peers(name: str) -> None:
    cls, own = LOSSES[name]
    mine, peers = getattr(OURS.losses, cls), getattr(PEER.losses, cls)

    def arguments(loss: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(loss.__init__).parameters.values()]

    if cls == "ProxyNCALoss":
        # The peer takes softmax_scale among its keywords.
        assert arguments(mine)[:3] == arguments(peers)[:3]
    else:
        assert arguments(mine) == arguments(peers)
    ours, theirs = mine(**own), peers(**own)
    assert [type(x).__name__ for x in (ours.distance, ours.reducer)] == [
        type(x).__name__ for x in (theirs.distance, theirs.reducer)
    ]
    assert ours.sub_loss_names() == theirs.sub_loss_names()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    methods = {k for k, v in vars(peers).items() if callable(v) and not k.startswith("__")}
    assert all(hasattr(mine, method) for method in methods)


@pytest.mark.parametrize("name", LOSSES)
def test_initial_weights_are_the_peers(name: str) -> None:
    cls, own = LOSSES[name]
    found = []
    for m in (OURS, PEER):
        torch.manual_seed(3)
        found.append([p.detach() for p in getattr(m.losses, cls)(**own).parameters()])
    close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if hasattr(getattr(OURS.losses, LOSSES[name][0]), "get_logits")])
def test_logits_are_the_peers(name: str) -> None:
    x, _ = batch(7)
    weights = weights_of(name)
    close(*([make(m, name, weights).get_logits(x)] for m in (OURS, PEER)))


def test_weight_init_func_is_called() -> None:
    init = pml_fast.utils.common_functions.TorchInitWrapper(torch.nn.init.constant_, val=0.25)
    loss = OURS.losses.CosFaceLoss(C, D, weight_init_func=init)
    assert loss.weight_init_func is init and (loss.W == 0.25).all()


# ---- losses of a user's own ----


def shifted(m: SimpleNamespace) -> Any:
    class Shifted(m.losses.ArcFaceLoss):  # type: ignore[misc, name-defined]
        def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
            return cosine_of_target_classes - 0.2 * cosine_of_target_classes.square()

    return Shifted(**SIZES)


def rescaled(m: SimpleNamespace) -> Any:
    class Rescaled(m.losses.CosFaceLoss):  # type: ignore[misc, name-defined]
        def scale_logits(self, logits: Tensor, *_: Any) -> Tensor:
            return 3 * torch.tanh(logits)

    return Rescaled(**SIZES)


def relogit(m: SimpleNamespace) -> Any:
    class Relogit(m.losses.NormalizedSoftmaxLoss):  # type: ignore[misc, name-defined]
        def get_logits(self, embeddings: Tensor) -> Tensor:
            return 0.5 * super().get_logits(embeddings) + 1

    return Relogit(**SIZES)


@pytest.mark.parametrize(("build", "mode"), [(shifted, "fused"), (rescaled, "materialised"), (relogit, "materialised")])
def test_subclasses_are_heard(build: Callable[[SimpleNamespace], Any], mode: str) -> None:
    x, labels = batch(9)
    mine, peers = build(OURS).double(), build(PEER).double()
    mine.load_state_dict(peers.state_dict())
    close(run(mine, x, labels, INDICES["triplets"]), run(peers, x, labels, INDICES["triplets"]))
    assert mine.plan(prepare_call(x, labels, None, None, None)).mode == mode


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("arcface", "scale", 5.0),
        ("large_margin", "scale", 0.4),
        ("normalized", "temperature", 0.4),
        ("proxy_nca", "softmax_scale", 1.5),
        ("soft_triple", "la", 7.0),
        ("soft_triple", "gamma", 5.0),
        ("proxy_anchor", "alpha", 6.0),
        ("proxy_anchor", "margin", 0.2),
        ("instance", "gamma", 5.0),
    ],
)
def test_a_trained_setting_gets_its_gradient(name: str, setting: str, value: float) -> None:
    x, labels = batch(9)
    weights, found = weights_of(name), []
    for m in (OURS, PEER):
        loss = make(m, name, weights)
        own = list(loss.parameters())
        delattr(loss, setting)
        setattr(loss, setting, torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        if m is OURS:
            plan = loss.plan(prepare_call(x, labels, None, None, None))
            assert plan.mode == "materialised" and f"{setting} is trained" in plan.notes[0]
        result = loss(x, labels)
        found.append([result.detach(), *torch.autograd.grad(result, [*own, getattr(loss, setting)])])
    close(*found)


@pytest.mark.parametrize("name", ["arcface", "cosface", "sphereface"])
def test_the_mean_angle_is_recorded(name: str) -> None:
    x, labels = batch(9)
    weights, found = weights_of(name), []
    for m in (OURS, PEER):
        loss = make(m, name, weights, collect_stats=True)
        # Statistics of the distance need its matrix, those of the loss do not.
        loss.distance.collect_stats = False
        loss(x, labels)
        found.append(loss.avg_angle)
        assert "avg_angle" in loss._record_these_stats
    assert found[0] == pytest.approx(found[1]) and found[0] > 0


# ---- what explain says ----


def test_explain_prints_every_loss() -> None:
    x, labels = batch(dtype=torch.float32)
    for name in LOSSES:
        text = str(explain(make(OURS, name).float(), x, labels))
        if name == "instance":
            # The rows of the batch are its classes: the pairwise engine runs it.
            assert "fused" in text and "pairwise" in text
            continue
        assert "fused" in text and "classes" in text and "smaller than a block" in text and f"against {C} classes" in text
    centres = str(explain(make(OURS, "subcenter").float(), x, labels))
    assert "9 classes of 3 centres" in centres and "one score (max)" in centres
    with use(backend="triton"):
        said = explain(make(OURS, "arcface").float(), x, labels)
        with pytest.raises(ValueError, match="backend 'triton' cannot run this"):
            make(OURS, "arcface").float()(x, labels)
    assert said.error is not None and said.backend is None


def test_what_is_materialised_is_said_and_is() -> None:
    x, labels = torch.randn(300, D, requires_grad=True), torch.arange(300) % C
    cases = [
        (OURS.losses.ProxyNCALoss(3000, D, distance=users_distance(OURS)), "compute_mat"),
        (OURS.losses.ArcFaceLoss(3000, D, distance=users_cosine(OURS)), "compute_mat"),
        (OURS.losses.LargeMarginSoftmaxLoss(3000, D, distance=OURS.distances.CosineSimilarity(p=1)), "Euclidean"),
    ]
    for loss, words in cases:
        said = explain(loss, x, labels)
        assert said.mode == "materialised" and words in str(said) and "against 3000 classes" in str(said)
        assert max(allocations(lambda: loss(x, labels).backward())) >= 300 * 3000 * 4  # noqa: B023


# ---- types, devices, copies ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_embeddings_meet_weights_of_full_precision(name: str, dtype: torch.dtype) -> None:
    x, labels = batch(11)
    half = x.to(dtype)
    loss = make(OURS, name, weights_of(name)).float()
    got = run(loss, half, labels)
    with use(backend="chunked"):
        close(run(loss, half, labels), got, rtol=1e-2, atol=1e-3)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    want = run(make(OURS, name, [p.double() for p in loss.parameters()]), half.double(), labels)
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1].double(), want[1], rtol=2e-2, atol=2e-2)
    close([g.double() for g in got[2:]], want[2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "instance"])
def test_weights_follow_the_embeddings_type_as_the_peers(name: str) -> None:
    x, labels = batch(11)
    loss = make(OURS, name).float()
    assert loss(x, labels).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in loss.parameters())
    assert loss(x.float(), labels).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    loss.half()
    for backend in ("auto", "chunked"):
        with use(backend=backend):
            value, *grads = run(loss, x.half(), labels)
        assert value.dtype == torch.float32 and all(g.dtype == torch.float16 and g.isfinite().all() for g in grads)
    assert all(p.dtype == torch.float16 for p in loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    x, labels = batch(12, dtype=torch.float32)
    loss = make(OURS, name).float()
    want = run(loss, x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        # Here the operator runs, which autocast does not reach.
        got = run(loss, x, labels)
    close(got, want, rtol=1e-5, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in loss.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    x, labels = batch(13)
    loss = make(OURS, name)
    want = run(loss, x, labels)
    stored = io.BytesIO()
    torch.save(loss.state_dict(), stored)
    stored.seek(0)
    restored = make(OURS, name)
    restored.load_state_dict(torch.load(stored))
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), restored):
        close(run(other, x, labels), want)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_compile_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    x, labels = batch(14)
    loss = make(OURS, name)
    close(run(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, labels), run(loss, x, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_meta_tensors_have_a_meta_loss(name: str) -> None:
    x, labels = batch(14)
    loss = make(OURS, name).to("meta")
    y = x.to("meta").requires_grad_()
    value = loss(y, labels.to("meta"))
    value.backward()
    assert value.device.type == "meta" and value.shape == () and y.grad is not None and y.grad.shape == y.shape


@pytest.mark.parametrize("name", ["arcface", "proxy_anchor", "soft_triple"])
def test_checkpointing_computes_the_same(name: str) -> None:
    x, labels = batch(15)
    loss = make(OURS, name)
    want = run(loss, x, labels)
    y = x.clone().requires_grad_()
    value = torch.utils.checkpoint.checkpoint(loss, y, labels, use_reentrant=False)
    close([value.detach(), *torch.autograd.grad(value, [y, *loss.parameters()])], want)


def test_the_same_call_gives_the_same_bits() -> None:
    x, labels = batch(15, dtype=torch.float32)
    for name in LOSSES:
        loss = make(OURS, name).float()
        loss(x, labels)
        first, second = run(loss, x, labels), run(loss, x, labels)
        assert all(torch.equal(a, b) for a, b in zip(first, second))


# ---- edges ----


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_is_a_zero_with_zero_gradients(name: str) -> None:
    loss = make(OURS, name)
    value, *grads = run(loss, torch.empty(0, D, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    assert value == 0 and all(not grad.any() for grad in grads)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "instance"])
def test_one_class_and_one_row(name: str, many_blocks: None) -> None:
    x, _ = batch(16, n=1)
    labels = torch.zeros(1, dtype=torch.int64)
    alone = make(OURS, name, num_classes=1)
    value, *grads = run(alone, x, labels)
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)
    if name not in ("p2s_grad", "proxy_anchor"):
        assert value == 0 and all(not grad.any() for grad in grads)
    agree(name, 16)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_and_equal_rows_have_finite_gradients(name: str) -> None:
    x, labels = batch(17)
    x[3] = 0
    x[4] = x[5]
    weights = weights_of(name)
    if weights and name != "p2s_grad":
        rows = weights[0] if name.startswith("proxy") else weights[0].T
        rows[2] = 0
        rows[1] = rows[0]
    value, *grads = run(make(OURS, name, weights), x, labels)
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_is_seen(name: str) -> None:
    x, labels = batch(18)
    x[2, 1] = float("nan")
    assert run(make(OURS, name), x, labels)[0].isnan()


def test_large_scales_do_not_overflow() -> None:
    x, labels = batch(18, dtype=torch.float32)
    for loss in (
        OURS.losses.ArcFaceLoss(C, D, scale=1e4),
        OURS.losses.NormalizedSoftmaxLoss(C, D, temperature=1e-5),
        OURS.losses.ProxyAnchorLoss(C, D, alpha=1e4),
        OURS.losses.LargeMarginSoftmaxLoss(C, D, scale=1e4),
    ):
        value, *grads = run(loss, x, labels)
        assert value.isfinite() and all(grad.isfinite().all() for grad in grads)


# ---- sub-centres ----


@pytest.mark.parametrize("threshold", [60, 75, 110])
def test_outliers_and_dominant_centers_are_the_peers(threshold: float) -> None:
    x, labels = batch(19, n=60)
    mine, peers = (make(m, "subcenter", weights_of("subcenter")) for m in (OURS, PEER))
    outliers, centers = mine.get_outliers(x, labels, threshold)
    want, want_centers = peers.get_outliers(x, labels, threshold)
    assert outliers.dtype == torch.int64 and outliers.tolist() == want.long().tolist()
    present = labels.unique()
    torch.testing.assert_close(centers[:, present], want_centers[:, present])
    # Class C - 1 has no embeddings: the peer leaves memory as it finds it.
    assert not centers[:, C - 1].any()


def test_outliers_alone_are_alone() -> None:
    """The peer returns the pair whatever return_dominant_centers says."""
    x, labels = batch(19)
    mine, peers = (make(m, "subcenter", weights_of("subcenter")) for m in (OURS, PEER))
    assert torch.is_tensor(mine.get_outliers(x, labels, return_dominant_centers=False))
    assert isinstance(peers.get_outliers(x, labels, return_dominant_centers=False), tuple)
    none = mine.get_outliers(x[:0], labels[:0], return_dominant_centers=False)
    assert none.shape == (0,) and none.dtype == torch.int64


# ---- where the peer is wrong ----


def test_class_weights_of_proxies_are_their_own() -> None:
    """The peer looks a proxy's weight up under the label of the row of that number."""
    x, labels = batch(20)
    weights, each = weights_of("proxy_anchor"), torch.linspace(0.2, 3, C, dtype=torch.float64)
    entry = make(OURS, "proxy_anchor", weights, reducer=OURS.reducers.DoNothingReducer())(x, labels)
    want = sum((entry[name]["losses"] * each).mean() for name in ("pos_loss", "neg_loss"))
    got = make(OURS, "proxy_anchor", weights, reducer=OURS.reducers.ClassWeightedReducer(each))(x, labels)
    torch.testing.assert_close(got, want)
    wrong = make(PEER, "proxy_anchor", weights, reducer=PEER.reducers.ClassWeightedReducer(each))(x, labels)
    assert abs(got - wrong) > 1e-3


def test_far_proxies_keep_their_rows() -> None:
    """The peer drops a row whose probability underflows, the hardest of all."""
    x, labels = batch(20)
    options = {"softmax_scale": 3000.0}
    mine, peers = (
        make(m, "proxy_nca", weights_of("proxy_nca"), reducer=m.reducers.DoNothingReducer(), **options) for m in (OURS, PEER)
    )
    got, theirs = mine(x, labels)["loss"], peers(x, labels)["loss"]
    assert len(got["losses"]) == N > len(theirs["losses"])
    torch.testing.assert_close(got["losses"][theirs["indices"]], theirs["losses"], rtol=1e-8, atol=1e-9)
    assert got["losses"].max() > theirs["losses"].max()


def test_losses_below_the_rounding_of_one_are_kept() -> None:
    x, labels = torch.eye(3, dtype=torch.float64), torch.arange(3)
    found = []
    for m in (OURS, PEER):
        loss = m.losses.CosFaceLoss(num_classes=3, embedding_size=3, reducer=m.reducers.DoNothingReducer()).double()
        loss.W.data.copy_(torch.eye(3))
        found.append(loss(x, labels)["loss"]["losses"])
    torch.testing.assert_close(found[0], torch.full((3,), 2 * math.exp(-64 * 0.65), dtype=torch.float64))
    assert not found[1].any()


# ---- errors ----


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "instance"])
def test_labels_must_number_the_classes(name: str) -> None:
    x, labels = batch(21)
    loss = make(OURS, name)
    for value in (-1, C):
        wrong = labels.clone()
        wrong[3] = value
        with pytest.raises(ValueError, match=f"labels must be from 0 to {C - 1}.*map them"):
            loss(x, wrong)
    with pytest.raises(TypeError, match="labels must be integers"):
        loss(x, labels.double())
    with pytest.raises(ValueError, match="the loss's embedding_size"):
        loss(x[:, :-1], labels)


@pytest.mark.parametrize("name", LOSSES)
def test_what_no_class_loss_takes(name: str) -> None:
    x, labels = batch(21)
    loss = make(OURS, name)
    with pytest.raises(ValueError, match="labels are required"):
        loss(x)
    with pytest.raises(ValueError, match=r"ref_emb is not supported.*leave ref_emb"):
        loss(x, labels, ref_emb=x.clone(), ref_labels=labels)
    with pytest.raises(ValueError, match="ref_emb is not supported"):
        explain(loss, x, labels, ref_emb=x.clone(), ref_labels=labels)
    loss(x, labels, ref_emb=x, ref_labels=labels)
    if name in WITHOUT_INDICES:
        for call in (
            lambda: loss(x, labels, INDICES["pairs"]),
            lambda: explain(loss, x, labels, indices_tuple=INDICES["pairs"]),
        ):
            with pytest.raises(ValueError, match="indices_tuple is not supported"):
                call()


def test_bad_constructions() -> None:
    for name, (cls, own) in LOSSES.items():
        if name == "instance":
            continue
        with pytest.raises(ValueError, match="num_classes must be a positive integer"):
            getattr(OURS.losses, cls)(**{**own, "num_classes": 0})
    for name in COSINE_ONLY:
        with pytest.raises(TypeError, match="CosineSimilarity"):
            make(OURS, name, distance=OURS.distances.LpDistance())
    with pytest.raises(ValueError, match="distance must be a similarity"):
        make(OURS, "soft_triple", distance=OURS.distances.LpDistance())
    with pytest.raises(ValueError, match="margin must be a positive integer"):
        make(OURS, "large_margin", margin=0.5)
    with pytest.raises(TypeError, match="embedding_size must be given"):
        OURS.losses.SubCenterArcFaceLoss(5)
    with pytest.raises(TypeError, match="by position and by name"):
        OURS.losses.SubCenterArcFaceLoss(5, 4, num_classes=3)
    assert OURS.losses.SubCenterArcFaceLoss(5, 4).W.shape == (4, 15)
