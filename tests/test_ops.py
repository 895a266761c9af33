"""The operators as torch sees them: schemas, fakes, autograd, torch.compile, and no waiting for the device."""

from __future__ import annotations

import copy
import io
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pml_fast.engine.knn.ops  # noqa: F401  (defines its operators)
from pml_fast import distances, losses, miners, reducers, use
from pml_fast.engine import hardest, ops
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score
from pml_fast.engine.search import Search
from pml_fast.engine.spec import PAIR_SPECS

COSINE = Score("dot")
L2 = Score("l2", normalize=False, inverted=False)
SNR_LIKE = Score("dot", normalize=False, inverted=False, symmetric=False)
MEAN = Fold().encode()

LOSSES: dict[str, Callable[[], torch.nn.Module]] = {
    "supcon": losses.SupConLoss,
    "ntxent": losses.NTXentLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "circle": losses.CircleLoss,
    "contrastive": losses.ContrastiveLoss,
    "triplet_margin": losses.TripletMarginLoss,
    "triplet_margin_swap": lambda: losses.TripletMarginLoss(margin=0.2, swap=True),
    "class_weighted": lambda: losses.NTXentLoss(reducer=reducers.ClassWeightedReducer(torch.rand(10))),
    "per_anchor": lambda: losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer()),
    "snr": lambda: losses.ContrastiveLoss(distance=distances.SNRDistance()),
    "nca": losses.NCALoss,
    "lifted": losses.LiftedStructureLoss,
    "generalized_lifted": losses.GeneralizedLiftedStructureLoss,
    "intra_pair_variance": losses.IntraPairVarianceLoss,
    "tuplet": losses.TupletMarginLoss,
    "threshold_consistent": lambda: losses.ThresholdConsistentMarginLoss(margin_minus=-0.2),
    "margin": lambda: losses.MarginLoss(beta=0.9),
    "siglip": lambda: losses.SigLIPLoss(learn_scale=False, learn_bias=False),
}
MINED: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], torch.nn.Module]]] = {
    "multi_similarity": (losses.MultiSimilarityLoss, miners.MultiSimilarityMiner),
    "pair_margin": (losses.ContrastiveLoss, miners.PairMarginMiner),
    "hardest": (losses.ContrastiveLoss, miners.HDCMiner),
    "triplet_margin": (losses.TripletMarginLoss, lambda: miners.TripletMarginMiner(type_of_triplets="semihard")),
    "batch_hard": (losses.TripletMarginLoss, miners.BatchHardMiner),
}


def sets(itself: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 5, generator=gen, dtype=dtype).requires_grad_() for n in (20, 14))
    labels, ref_labels = torch.randint(3, (20,), generator=gen), torch.randint(3, (14,), generator=gen)
    return (x, x, labels, labels) if itself else (x, y, labels, ref_labels)


def batch(n: int = 40, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(n)
    return torch.randn(n, 8, generator=gen).to(dtype).requires_grad_(), torch.arange(n) // 4


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


# ---- one tensor as both sets ----


@pytest.mark.parametrize("score", [COSINE, L2, SNR_LIKE, Score("l2", power=2.0, inverted=False)], ids=str)
@pytest.mark.parametrize("name", COMPILED)
def test_one_tensor_as_rows_and_columns_gets_the_gradient_of_both(name: str, score: Score) -> None:
    gen = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=gen, dtype=torch.float64) / 3
    labels, others = (torch.randint(7, (50,), generator=gen) for _ in range(2))
    spec = PAIR_SPECS[name]()
    grads = []
    for backend in ("auto", "reference"):
        leaf = x.clone().requires_grad_()
        with use(backend=backend):
            loss, *_ = torch.ops.pml_fast.pairwise_loss(
                leaf, leaf, labels, others, None, None, name, spec.params(), score.encode(), False, [MEAN] * len(spec.terms),
                True, True,
            )  # fmt: skip
        loss.backward()
        assert leaf.grad is not None
        grads.append((loss.detach(), leaf.grad))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


# ---- torch.library.opcheck ----


def op_calls(itself: bool, score: Score) -> Iterator[tuple[str, tuple[Any, ...]]]:
    x, y, labels, ref_labels = sets(itself)
    a, b, s = x.detach(), y.detach(), score.encode()
    low = torch.full((20,), -0.5)
    rule = torch.stack([low, low + 2, low, low + 2])
    for name, spec in PAIR_SPECS.items():
        folds, params = [MEAN] * len(spec.terms), spec().params()
        args = (x, y, labels, ref_labels)
        yield "pairwise_loss", (*args, rule, None, name, params, s, itself, folds, True, True)
        yield "pairwise_loss", (*args, None, torch.rand(len(folds), 20), name, params, s, itself, folds, True, False)
        yield "pairwise_loss", (a, b, labels, ref_labels, None, None, name, params, s, itself, folds, False, False)
        searched = (*args, None, None, name, params, s, itself, folds, True, True, Search(0.1).encode())
        yield "pairwise_loss", searched
        yield "pairwise_rows", (*args, rule, name, params, s, itself)
        w = torch.rand(len(folds), 20)
        yield "pairwise_rows_grad", (a, b, labels, ref_labels, None, name, params, s, itself, w, True, True)
        unlimited = [-math.inf, math.inf] * len(folds)
        levels = torch.rand(20) if spec.level else None
        yield "anchor_pairs", (*args, rule, name, params, s, itself, unlimited, levels)
        yield "anchor_pairs_grad", (a, b, labels, ref_labels, None, name, params, s, itself, unlimited, levels, w, True, True)
    logits = None, None, "supcon", [0.4], s, itself
    yield "logit_loss", (x, y, labels, ref_labels, None, None, 1.0, *logits, [MEAN], False, True, True, False, False)
    if score.kind == "dot":
        numbers = torch.tensor(1.5).requires_grad_(), torch.tensor(-2.0).requires_grad_(), 20.0
        yield "logit_loss", (x, y, labels, ref_labels, *numbers, *logits, [MEAN], False, True, True, True, True)
        yield "logit_loss", (x, b, labels, ref_labels, *numbers, *logits, [MEAN], False, False, False, True, False)
    if not itself:
        weights = torch.rand(1, 20), torch.rand(1, 14), "log_sum_exp", [0.4], s, itself
        folds = [Fold("per_anchor", inner=Fold("mean")).encode(), MEAN]
        yield "logit_loss", (x, y, labels, ref_labels, None, None, 1.0, *weights, folds, True, True, True, False, False)
        yield "logit_loss", (a, b, labels, ref_labels, None, None, 1.0, *logits, folds, True, False, False, False, False)
    yield "row_extremes", (a, b, labels, ref_labels, low, None, s, itself, True, False)
    yield "hardest_rule", (a, b, labels, ref_labels, s, itself, 0.4)
    for options, select in (([0.1, 0.0, 0.0, 0.0], "every"), ([0.1, 1.0, 0.0, 0.2], "semihard")):
        yield "triplet_loss", (x, y, labels, ref_labels, None, None, options, select, s, itself, MEAN, True, True)
    yield "triplet_loss", (a, b, labels, ref_labels, rule, None, options, select, s, itself, MEAN, False, False)
    own_anchors = (labels, ref_labels, rule, options, select, s, itself, [-1.0, 1.0])
    yield "anchor_triplets", (x, y, *own_anchors)
    yield "anchor_triplets_grad", (a, b, *own_anchors, torch.rand(20, dtype=torch.float64), True, True)
    for before in (None, torch.zeros(7), torch.rand(7)):
        bins = (before, -20.0, 6.0, 7, s, itself, 0.3)
        yield "histogram_loss", (x, y, labels, ref_labels, *bins, True, True)
        yield "histogram_loss", (a, b, labels, ref_labels, *bins, False, False)
    yield "vicreg_terms", (x, (a + 0.3).requires_grad_(), 25.0, 25.0, 1.0, 1e-4)
    i, j = torch.arange(14).flip(0), torch.arange(14)
    kept, weights = torch.arange(14) % 3 > 0, torch.rand(20)
    for keep, own, smooth in ((None, None, 0.0), (kept, weights, 1.0)):
        listed = (i, j, j.roll(1), keep, own, [0.1, smooth], s, itself, MEAN)
        yield "listed_triplet_loss", (x, y, *listed, True, True)
        yield "listed_triplet_loss", (a, b, *listed, False, False)
    for reduced, need in ((Fold("threshold", low=0.0), True), (Fold("per_anchor", inner=Fold()), False)):
        targets = (j, i, torch.rand(14), 0.5, s, itself, itself and need, reduced.encode())
        yield "soft_target_loss", (x, y, *targets, need, True) if need else (a, b, *targets, False, False)
    yield "listed_scores", (x, y, i, j, s)
    yield "listed_grads", (a, b, i, j, s, torch.rand(14), True, False)
    yield "strip_base", (x, y, s)
    yield "strip_base_grad", (a, b, torch.rand(len(a), len(b)), torch.rand(len(a), len(b)), s, True, False)
    yield "nearest", (a, b, 3, s, itself)
    yield "retrieval", (a, b, labels, ref_labels, s, itself, None, [1, 2])
    yield from class_calls(score, x, y)


def class_calls(score: Score, x: Tensor, y: Tensor) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The class engine's operators: 20 rows against the classes whose weights are the columns."""
    target, bias, plain = torch.arange(20) % 7, torch.rand(20), replace(score, normalize=False)
    a, b = x.detach(), y.detach()
    for spec in (
        ClassSpec(plain, unit=score.normalize, scale=2.0),
        ClassSpec(plain, norms=plain.kind == "dot"),
        ClassSpec(plain, centers=2, pool="soft"),
        ClassSpec(plain, fold="class_lse"),
    ):
        text, classes = spec.encode(), len(y) // spec.centers
        yield "class_scores", (x, y, target, bias, text, True)
        yield "class_scores", (a, b, target, None, text, False)
        others, kept = torch.rand(classes if spec.fold == "class_lse" else 20), a.new_empty(0)
        grads = torch.rand(len(others)), torch.rand(20), torch.rand(20) if spec.norms else None
        yield "class_scores_grad", (a, b, target, bias, text, others, kept, *grads, True, True)


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("score", [COSINE, L2, SNR_LIKE], ids=["cosine", "l2", "asymmetric"])
@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_schema_fake_and_autograd_of_every_operator(itself: bool, score: Score, backend: str) -> None:
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    seen = set()
    with use(backend=backend):
        for name, args in op_calls(itself, score):
            torch.library.opcheck(getattr(torch.ops.pml_fast, name).default, args, test_utils=utilities)
            seen.add(name)
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("pml_fast::")}
    assert seen == registered


DYNAMIC = ["pairwise_loss", "logit_loss", "pairwise_rows", "triplet_loss", "listed_scores", "histogram_loss", "class_scores"]


@pytest.mark.parametrize("name", [*DYNAMIC, "soft_target_loss"])
@pytest.mark.parametrize("itself", [True, False])
def test_operators_under_aot_autograd_with_dynamic_shapes(name: str, itself: bool) -> None:
    args = next(args for found, args in op_calls(itself, COSINE) if found == name)
    torch.library.opcheck(getattr(torch.ops.pml_fast, name).default, args, test_utils=("test_aot_dispatch_dynamic",))


# ---- torch.compile ----


def compare_compiled(step: Callable[..., Tensor], *batches: tuple[Tensor, Tensor], **options: Any) -> None:
    """Loss and gradient of a step compiled as one graph against the step itself."""
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, **{"backend": "aot_eager", **options})
    for x, labels in batches:
        expected, value = step(x, labels), compiled(x, labels)
        close(value, expected)
        close(*(torch.autograd.grad(loss, x)[0] for loss in (value, expected)))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_compile_into_one_graph(name: str) -> None:
    compare_compiled(LOSSES[name](), batch())


@pytest.mark.parametrize("against", ["positions", "labels", "itself"])
@pytest.mark.parametrize("make", [losses.CLIPLoss, losses.SigLIPLoss])
def test_losses_of_two_towers_compile_into_one_graph(make: Callable[[], torch.nn.Module], against: str) -> None:
    loss, (x, labels), (y, ref_labels) = make(), batch(), batch(40 if against == "positions" else 24)

    def step() -> Tensor:
        if against == "itself":
            return loss(x, labels)
        return loss(x, ref_emb=y) if against == "positions" else loss(x, labels, ref_emb=y, ref_labels=ref_labels)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    leaves = [x, *([] if against == "itself" or y is x else [y]), *loss.parameters()]
    expected, value = step(), compiled()
    close(value, expected)
    for ours, theirs in zip(*(torch.autograd.grad(part, leaves) for part in (value, expected)), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("name", ["supcon", "contrastive", "triplet_margin"])
def test_one_graph_serves_every_batch_size(name: str) -> None:
    loss = LOSSES[name]()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for n in (40, 24, 88):
        x, labels = batch(n)
        close(compiled(x, labels), loss(x, labels))
    assert len(graphs) == 1
    compare_compiled(loss, batch(40), batch(24), batch(88), dynamic=True)


@pytest.mark.parametrize("name", MINED)
def test_miner_and_loss_compile_into_one_graph(name: str) -> None:
    make_loss, make_miner = MINED[name]
    loss, miner = make_loss(), make_miner()
    compare_compiled(lambda x, labels: loss(x, labels, miner(x, labels)), batch())


@pytest.mark.parametrize(("name", "operator"), [("multi_similarity", "pairwise_loss"), ("triplet_margin", "triplet_loss")])
def test_a_rule_is_fused_in_the_compiled_graph_too(name: str, operator: str) -> None:
    make_loss, make_miner = MINED[name]
    loss, miner = make_loss(), make_miner()
    targets: list[str] = []

    def collect(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    x, labels = batch()
    torch.compile(lambda x, labels: loss(x, labels, miner(x, labels)), fullgraph=True, backend=collect)(x, labels)
    assert f"pml_fast.{operator}" in targets
    assert not any("nonzero" in target or "listed" in target for target in targets)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_the_loss_within_a_model() -> None:
    layer, loss = torch.nn.Linear(8, 6), losses.SupConLoss()
    compare_compiled(lambda x, labels: loss(torch.tanh(layer(x)), labels), batch(), backend="inductor")


# ---- no waiting for the device ----


class NoWaiting(TorchDispatchMode):
    """Raises where an operation reads a value or a data-dependent size on the host."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.FORBIDDEN:
            raise AssertionError(f"{func} waits for the device")
        # A mask in the place of indices is turned into them by a hidden nonzero.
        masks = args[1] if func.overloadpacket.__name__ in ("index", "index_put", "index_put_") else ()
        if any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            raise AssertionError(f"{func} waits for the device")
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") not in (None, args[0].device):
            raise AssertionError("a copy to another device waits for it")
        return func(*args, **(kwargs or {}))


def test_the_watch_notices_waiting() -> None:
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: bool((x > 0).all()), lambda: x[x > 0]):
        with NoWaiting(), pytest.raises(AssertionError, match="waits"):
            wait()


# On the CPU, where reading a value costs nothing, class weights are checked against the labels at once, on CUDA by an assertion
# in the queue; and a margin loss reads its boundary there alone.
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("class_weighted", "margin")])
def test_no_layer_above_the_backends_waits(name: str) -> None:
    loss, (x, labels) = LOSSES[name](), batch()
    with NoWaiting():
        loss(x, labels).backward()
        loss(x, labels, ref_emb=x.detach().clone(), ref_labels=labels.clone())


# A loss asks the hardest share whether ties of one anchor are cut.
@pytest.mark.parametrize("name", [name for name in MINED if name != "hardest"])
def test_no_miner_waits(name: str) -> None:
    make_loss, make_miner = MINED[name]
    loss, miner, (x, labels) = make_loss(), make_miner(), batch()
    with NoWaiting():
        loss(x, labels, miner(x, labels)).backward()


@pytest.mark.parametrize("itself", [True, False])
def test_the_search_for_the_hardest_share_does_not_wait(itself: bool) -> None:
    x, y, labels, ref_labels = (t.detach() for t in sets(itself))
    with NoWaiting():
        hardest._hardest_rule(x, x if itself else y, labels, ref_labels, COSINE.encode(), itself, 0.3)
        miners.HDCMiner()(x, labels)


@pytest.mark.parametrize("spec", [name for name, spec in PAIR_SPECS.items() if not spec.waits])
@pytest.mark.parametrize("itself", [True, False])
def test_the_pairwise_operators_wait_for_nothing_inside(spec: str, itself: bool) -> None:
    # Called as plain functions, so that the watch sees what happens inside; the chunked backend stands for any device's.
    x, y, labels, ref_labels = (t.detach() for t in sets(itself))
    y = x if itself else y
    terms, params, score = len(PAIR_SPECS[spec].terms), PAIR_SPECS[spec]().params(), COSINE.encode()
    rest = (spec, params, score, itself)
    folds = [Fold("threshold", low=0.0).encode()] * terms
    with use(backend="chunked"), NoWaiting():
        ops._pairwise_loss(x, y, labels, ref_labels, None, None, *rest, folds, True, True)
        ops._pairwise_rows(x, y, labels, ref_labels, None, *rest)
        ops._pairwise_rows_grad(x, y, labels, ref_labels, None, *rest, torch.ones(terms, 20), True, True)
        ops._row_extremes(x, y, labels, ref_labels, None, None, score, itself, False, True)


# ---- autograd ----


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_derivative_is_refused(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()(x, labels)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_second_derivative_of_rows_and_lists_is_refused() -> None:
    x, labels = batch()
    rows = losses.SupConLoss(reducer=reducers.DoNothingReducer())(x, labels)["loss"]["losses"]
    listed = losses.TripletMarginLoss()(x, labels, miners.BatchHardMiner()(x, labels))
    for loss in (rows.sum(), listed):
        with pytest.raises(RuntimeError, match="create_graph"):
            torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_scale_and_add_up(name: str) -> None:
    x, labels = batch()
    loss, other = LOSSES[name](), losses.CircleLoss()
    (plain,), (more,) = torch.autograd.grad(loss(x, labels), x), torch.autograd.grad(other(x, labels), x)
    assert plain.abs().sum() > 0
    (loss(x, labels) * 3).backward()
    close(x.grad, 3 * plain)
    (loss(x, labels) + 2 * other(x, labels)).backward()
    close(x.grad, 4 * plain + 2 * more)
    kept = loss(x, labels)
    for _ in range(2):
        close(torch.autograd.grad(kept, x, retain_graph=True)[0], plain)


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_reference_set_needs_a_gradient(name: str) -> None:
    x, labels = batch()
    y = torch.randn(30, 8, generator=torch.Generator().manual_seed(5), requires_grad=True)
    ref_labels = torch.arange(30) % 10
    loss = LOSSES[name]()
    both = torch.autograd.grad(loss(x, labels, ref_emb=y, ref_labels=ref_labels), (x, y))
    assert all(grad.abs().sum() > 0 for grad in both)
    close(torch.autograd.grad(loss(x.detach(), labels, ref_emb=y, ref_labels=ref_labels), y)[0], both[1])
    close(torch.autograd.grad(loss(x, labels, ref_emb=y.detach(), ref_labels=ref_labels), x)[0], both[0])


@pytest.mark.parametrize("name", LOSSES)
def test_without_gradients(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()
    expected = loss(x, labels).detach()
    with torch.no_grad():
        value = loss(x, labels)
    assert not value.requires_grad
    close(value, expected)
    with torch.inference_mode():
        value = loss(x, labels)
        inside = loss(x * 1, labels)
    assert value.is_inference() and inside.is_inference()
    close(value.clone(), expected)
    close(inside.clone(), expected)
    assert not loss(x.detach(), labels).requires_grad


def test_mining_in_inference_mode() -> None:
    x, labels = batch()
    for make_loss, make_miner in MINED.values():
        loss, miner = make_loss(), make_miner()
        expected = loss(x, labels, miner(x, labels)).detach()
        with torch.inference_mode():
            value = loss(x, labels, miner(x, labels))
        close(value.clone(), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_memory_layout_does_not_matter(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()
    expected = loss(x, labels)
    (grad,) = torch.autograd.grad(expected, x)
    wide = torch.zeros(40, 24)
    wide[:, 1::3] = x.detach()
    for strided in (wide[:, 1::3], x.detach().T.contiguous().T):
        strided = strided.requires_grad_()
        value = loss(strided, labels.repeat_interleave(2)[::2])
        close(value, expected)
        close(torch.autograd.grad(value, strided)[0], grad)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_autocast_stays_outside(name: str, backend: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()
    with use(backend=backend):
        expected = loss(x, labels)
        (grad,) = torch.autograd.grad(expected, x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(x, labels)
        close(value, expected)
        close(torch.autograd.grad(value, x)[0], grad)


def test_autocast_around_a_model() -> None:
    layer, (x, labels) = torch.nn.Linear(8, 6), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        loss = losses.SupConLoss()(out, labels)
    assert (out.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("dtype", "kept", "tolerance"),
    [(torch.float64, torch.float64, 1e-6), (torch.bfloat16, torch.float32, 1e-5), (torch.float16, torch.float32, 1e-5)],
)
def test_types_of_losses_and_gradients(name: str, dtype: torch.dtype, kept: torch.dtype, tolerance: float) -> None:
    x, labels = batch(dtype=dtype)
    loss = LOSSES[name]()
    value = loss(x, labels)
    (grad,) = torch.autograd.grad(value, x)
    assert (value.dtype, grad.dtype, grad.shape) == (kept, dtype, x.shape)
    # Sums are those of the same numbers in float64; a gradient is rounded once, to its own type.
    wide = x.detach().double().requires_grad_()
    expected = loss(wide, labels)
    # SNR's rows are taken in the type of the embeddings before the engine widens them.
    if name != "snr" or dtype == torch.float64:
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
        (wanted,) = torch.autograd.grad(expected, wide)
        error = (grad.double() - wanted).norm() / wanted.norm()
        assert error < 4 * torch.finfo(dtype).eps + tolerance


@pytest.mark.parametrize("name", LOSSES)
def test_copies_and_pickles(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()
    expected = loss(x, labels)
    saved = io.BytesIO()
    torch.save(loss, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(saved, weights_only=False)):
        assert twin is not loss
        assert torch.equal(twin(x, labels), expected)


@pytest.mark.parametrize("name", MINED)
def test_copies_and_pickles_of_miners(name: str) -> None:
    x, labels = batch()
    make_loss, make_miner = MINED[name]
    loss, miner = make_loss(), make_miner()
    for twin in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):
        assert torch.equal(loss(x, labels, twin(x, labels)), loss(x, labels, miner(x, labels)))
