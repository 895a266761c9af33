"""Bad input is refused with what was expected, what came and what to do about it; nothing falls back in silence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pml_fast import distances, losses, miners, reducers, regularizers, use
from pml_fast.engine import dispatch

NAN, INF = float("nan"), float("inf")
X = torch.randn(6, 4)
LABELS = torch.arange(6) % 3
LOSSES = [losses.ContrastiveLoss(), losses.SupConLoss(), losses.TripletMarginLoss()]


def index(*values: int) -> torch.Tensor:
    return torch.tensor(values)


# What is called with, the error, and what its message must name: the argument, what came, and the remedy or expectation.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "short labels": ((X, LABELS[:5]), {}, ValueError, r"labels must be .*one label an embedding.*\(6,\).*got shape \(5,\)"),
    "labels of two dimensions": ((X, LABELS.unsqueeze(1)), {}, ValueError, r"labels must be a 1-D tensor.*got shape \(6, 1\)"),
    "labels as a list": ((X, LABELS.tolist()), {}, TypeError, "labels must be a tensor.*got list"),
    "one embedding": ((X[0], LABELS), {}, ValueError, r"embeddings must be a 2-D tensor.*got shape \(4,\)"),
    "integer embeddings": ((X.int(), LABELS), {}, TypeError, r"embeddings must be floating.*torch.int32; call .float\("),
    "an array": ((X.numpy(), LABELS), {}, TypeError, "embeddings must be a tensor.*got ndarray"),
    "no labels": ((X,), {}, ValueError, "labels and indices_tuple cannot both be None: pass"),
    "no ref_labels": ((X, LABELS), {"ref_emb": X.clone()}, ValueError, "ref_labels must be given.*pass the labels"),
    "ref_labels alone": ((X, LABELS), {"ref_labels": LABELS}, ValueError, "ref_labels were given without ref_emb; pass both"),
    "short ref_labels": (
        (X, LABELS), {"ref_emb": X.clone(), "ref_labels": LABELS[:2]}, ValueError, r"ref_labels must be .*got shape \(2,\)"
    ),
    "narrow ref_emb": (
        (X, LABELS), {"ref_emb": X[:, :3], "ref_labels": LABELS}, ValueError, "ref_emb must have rows of the length.*4, got 3"
    ),
    "ref_emb of another type": (
        (X, LABELS), {"ref_emb": X.double(), "ref_labels": LABELS}, TypeError, r"ref_emb must be torch.float32.*ref_emb.to\("
    ),
    "two index tensors": ((X, LABELS, (index(0), index(3))), {}, ValueError, "indices_tuple must hold 3 tensors.*or 4.*got 2"),
    "an index beyond": (
        (X, LABELS, (index(0), index(9), index(1))), {}, ValueError, "positives of indices_tuple must be from 0 to 5.*got 9"
    ),
    "a negative index": (
        (X, LABELS, (index(0), index(3), index(0), index(-1))), {}, ValueError, "negatives of indices_tuple.*0 to 5.*got -1"
    ),
    "a negative beyond a small reference set": (
        (X, LABELS, (index(5), index(0), index(3))), {"ref_emb": X[:3].clone(), "ref_labels": LABELS[:3]},
        ValueError, "negatives of indices_tuple must be from 0 to 2",
    ),
    "uneven indices": ((X, LABELS, (index(0), index(3, 3), index(1))), {}, ValueError, r"matching lengths, got \[1, 2, 1\]"),
    "real indices": (
        (X, LABELS, (index(0).float(), index(3), index(1))), {}, TypeError, r"anchors of indices_tuple must be integers.*\.long"
    ),
    "indices as lists": ((X, LABELS, ([0], [3], [1])), {}, TypeError, "anchors of indices_tuple must be a tensor, got list"),
    "indices as one tensor": (
        (X, LABELS, index(0, 3, 1)), {}, TypeError, "indices_tuple must be a tuple of 3 or 4 index tensors, got Tensor"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_losses_refuse_bad_calls(name: str) -> None:
    arguments, options, error, message = CALLS[name]
    for loss in LOSSES:
        with pytest.raises(error, match=message):
            loss(*arguments, **options)


@pytest.mark.parametrize("name", [name for name, (args, *_) in CALLS.items() if len(args) == 2])
def test_miners_refuse_bad_calls(name: str) -> None:
    arguments, options, error, message = CALLS[name]
    for miner in (miners.MultiSimilarityMiner(), miners.BatchHardMiner(), miners.TripletMarginMiner()):
        with pytest.raises(error, match=message):
            miner(*arguments, **options)


def test_a_miner_needs_labels() -> None:
    with pytest.raises(ValueError, match="labels must be given to a miner, got None; pass"):
        miners.MultiSimilarityMiner()(X, None)


SETTINGS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "strategy": (lambda: miners.BatchEasyHardMiner("hardest"), ValueError, "pos_strategy must be one of hard.*got 'hardest'"),
    "neg_strategy": (lambda: miners.BatchEasyHardMiner("hard", "x"), ValueError, "neg_strategy must be one of hard.*got 'x'"),
    "two semihards": (lambda: miners.BatchEasyHardMiner("semihard", "semihard"), ValueError, "cannot both be 'semihard'"),
    "semihard of all": (lambda: miners.BatchEasyHardMiner("all", "semihard"), ValueError, "'semihard' cannot be combined"),
    "type_of_triplets": (
        lambda: miners.TripletMarginMiner(type_of_triplets="x"), ValueError, "type_of_triplets must be one of all.*got 'x'"
    ),
    "triplets_per_anchor": (
        lambda: losses.TripletMarginLoss(triplets_per_anchor=0), ValueError, "triplets_per_anchor must be 'all' or a positive"
    ),
    "one triplet, as a bool": (
        lambda: losses.TripletMarginLoss(triplets_per_anchor=True), ValueError, "'all' or a positive int, got True"
    ),
    "triplet margin": (lambda: losses.TripletMarginLoss(margin=NAN), ValueError, "margin must be a number, got nan"),
    "a margin in words": (lambda: losses.ContrastiveLoss(pos_margin="0"), TypeError, "pos_margin must be a number, got '0'"),
    "contrastive margin": (lambda: losses.ContrastiveLoss(neg_margin=NAN), ValueError, "neg_margin must be a number, got nan"),
    "cold ntxent": (lambda: losses.NTXentLoss(0), ValueError, "temperature must be a finite number above 0, got 0"),
    "cold supcon": (lambda: losses.SupConLoss(-0.1), ValueError, "temperature must be a finite number above 0, got -0.1"),
    "hot supcon": (lambda: losses.SupConLoss(INF), ValueError, "temperature must be a finite number above 0, got inf"),
    "alpha": (lambda: losses.MultiSimilarityLoss(alpha=0), ValueError, "alpha must be a finite number above 0, got 0"),
    "beta": (lambda: losses.MultiSimilarityLoss(beta=-50), ValueError, "beta must be a finite number above 0, got -50"),
    "base": (lambda: losses.MultiSimilarityLoss(base=NAN), ValueError, "base must be a number, got nan"),
    "gamma": (lambda: losses.CircleLoss(gamma=0), ValueError, "gamma must be a finite number above 0, got 0"),
    "m": (lambda: losses.CircleLoss(m=NAN), ValueError, "m must be a number, got nan"),
    "regularizer's weight": (
        lambda: losses.SupConLoss(embedding_reg_weight=NAN), ValueError, "embedding_reg_weight must be a number, got nan"
    ),
    "reversed positives": (
        lambda: miners.BatchEasyHardMiner(allowed_pos_range=(1, 0)), ValueError, r"allowed_pos_range must be \(low.*swap"
    ),
    "reversed negatives": (
        lambda: miners.BatchHardMiner(allowed_neg_range=(1, 0)), ValueError, r"allowed_neg_range must be \(low, high\).*swap"
    ),
    "half a range": (
        lambda: miners.BatchHardMiner(allowed_neg_range=0.5), ValueError, r"allowed_neg_range must be None or two .*got 0.5"
    ),
    "a range from nan": (
        lambda: miners.BatchHardMiner(allowed_pos_range=(NAN, 1)), ValueError, "allowed_pos_range must be a number, got nan"
    ),
    "epsilon": (lambda: miners.MultiSimilarityMiner(NAN), ValueError, "epsilon must be a number, got nan"),
    "miner's margin": (lambda: miners.TripletMarginMiner(NAN), ValueError, "margin must be a number, got nan"),
    "pair miner's margin": (lambda: miners.PairMarginMiner(0, NAN), ValueError, "neg_margin must be a number, got nan"),
    "p of 0": (lambda: distances.LpDistance(p=0), ValueError, "p must be a number above 0, got 0"),
    "p of nan": (lambda: distances.CosineSimilarity(p=NAN), ValueError, "p must be a number above 0, got nan"),
    "power": (lambda: distances.LpDistance(power=-1), ValueError, "power must be a finite number above 0, got -1"),
    "power of dot": (lambda: distances.DotProductSimilarity(power=0), ValueError, "power must be .* above 0, got 0"),
    "power of snr": (lambda: distances.SNRDistance(power=INF), ValueError, "power must be a finite number above 0, got inf"),
    "regularizer's p": (lambda: regularizers.LpRegularizer(p=NAN), ValueError, "p must be a number, got nan"),
    "threshold": (lambda: reducers.ThresholdReducer(high=NAN), ValueError, "high must be a number, got nan"),
    "thresholds": (lambda: reducers.ThresholdReducer(1, 0), ValueError, "low must be below high, got low=1 and high=0"),
    "a strange argument": (
        lambda: losses.SupConLoss(a=1), TypeError,
        "^SupConLoss got unknown arguments: 'a'; known are temperature, embedding_regularizer, embedding_reg_weight, reducer, "
        "distance, collect_stats$",
    ),
    "a miner's strange argument": (
        lambda: miners.BatchHardMiner(hard=1), TypeError,
        "^BatchHardMiner got unknown arguments: 'hard'; known are allowed_pos_range, allowed_neg_range, distance, "
        "collect_stats$",
    ),
    "a reducer's strange argument": (
        lambda: reducers.AvgNonZeroReducer(middle=1), TypeError,
        "^AvgNonZeroReducer got unknown arguments: 'middle'; known are high, collect_stats$",
    ),
    "circle's distance": (
        lambda: losses.CircleLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity, got LpDistance: pass"
    ),
    "distance": (lambda: losses.SupConLoss(distance="l2"), TypeError, r"distance must be .*'l2'; pass for example LpDistance"),
    "miner's distance": (lambda: miners.BatchHardMiner(distance=2), TypeError, "distance must be .*got 2; pass"),
    "reducer": (lambda: losses.SupConLoss(reducer="mean"), TypeError, r"reducer must be .*got 'mean'; pass for example Mean"),
    "inverted l2": (lambda: distances.LpDistance(is_inverted=True), ValueError, "is_inverted must be False for LpDistance"),
    "upright dot": (
        lambda: distances.DotProductSimilarity(is_inverted=False), ValueError, "is_inverted must be True for DotProduct"
    ),
    "inverted snr": (lambda: distances.SNRDistance(is_inverted=True), ValueError, "is_inverted must be False for SNRDistance"),
    "raw cosine": (
        lambda: distances.CosineSimilarity(normalize_embeddings=False), ValueError, "use DotProductSimilarity instead"
    ),
    "backend": (lambda: use(backend="gpu"), ValueError, "backend must be one of auto, cpu, .*got 'gpu'"),
    "precision": (lambda: use(precision="x"), ValueError, "precision must be None or one of highest.*got 'x'"),
    "deterministic": (lambda: use(deterministic=1), TypeError, "deterministic must be True or False, got 1"),  # type: ignore[arg-type]
    "distance of one row": (lambda: distances.LpDistance()(X[0]), ValueError, r"query_emb must be a 2-D tensor.*\(4,\)"),
    "distance of widths": (
        lambda: distances.LpDistance()(X, X[:, :2]), ValueError, "ref_emb must have rows of the length of query_emb's, 4, got 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings_are_refused(name: str) -> None:
    make, error, message = SETTINGS[name]
    with pytest.raises(error, match=message):
        make()


LATER: dict[str, tuple[Any, str, Any, str]] = {
    "temperature": (losses.NTXentLoss(), "temperature", 0, "temperature must be a finite number above 0, got 0"),
    "trained temperature": (losses.SupConLoss(), "temperature", torch.nn.Parameter(torch.tensor(-1.0)), "temperature must be"),
    "gamma": (losses.CircleLoss(), "gamma", torch.tensor(0.0), "gamma must be a finite number above 0, got 0"),
    "margin": (losses.TripletMarginLoss(), "margin", NAN, "margin must be a number, got nan"),
    "triplets_per_anchor": (losses.TripletMarginLoss(), "triplets_per_anchor", True, "triplets_per_anchor must be 'all' or"),
    "range": (miners.BatchHardMiner(), "allowed_pos_range", (1, 0), "allowed_pos_range must be"),
    "epsilon": (miners.MultiSimilarityMiner(), "epsilon", NAN, "epsilon must be a number"),
    "mined margin": (miners.TripletMarginMiner(), "margin", NAN, "margin must be a number"),
    "pos_margin": (miners.PairMarginMiner(), "pos_margin", NAN, "pos_margin must be a number"),
}


@pytest.mark.parametrize("name", LATER)
def test_settings_that_turn_bad_are_refused_by_the_call(name: str) -> None:
    module, setting, value, message = LATER[name]
    module = copy.deepcopy(module)
    assert module(X, LABELS) is not None
    setattr(module, setting, value)
    with pytest.raises(ValueError, match=message):
        module(X, LABELS)


@pytest.mark.parametrize(("setting", "value"), [("p", -1), ("power", 0)])
def test_distances_that_turn_bad_are_refused_by_the_call(setting: str, value: float) -> None:
    for loss in (losses.ContrastiveLoss(), losses.TripletMarginLoss(distance=distances.LpDistance(p=1))):
        setattr(loss.distance, setting, value)
        with pytest.raises(ValueError, match=f"{setting} must be a .*number above 0"):
            loss(X, LABELS)
    loss = losses.SupConLoss(reducer=reducers.ThresholdReducer(0, 1))
    loss.reducer.low = 2
    with pytest.raises(ValueError, match="low must be below high"):
        loss(X, LABELS)


def test_settings_that_are_no_plain_floats_are_taken() -> None:
    for temperature in (1, np.float32(0.5), torch.tensor(0.5), torch.nn.Parameter(torch.tensor([0.5]))):
        assert losses.SupConLoss(temperature)(X, LABELS).isfinite()
    assert losses.ContrastiveLoss(neg_margin=-INF)(X, LABELS).isfinite()
    assert distances.LpDistance(p=INF)(X).isfinite().all()
    assert losses.TripletMarginLoss(triplets_per_anchor=2)(X, LABELS).isfinite()


@pytest.mark.parametrize("loss", [losses.ContrastiveLoss, losses.SupConLoss, losses.TripletMarginLoss])
@pytest.mark.parametrize("shift", [-1, 1])
def test_labels_without_a_class_weight_are_refused(loss: type, shift: int) -> None:
    """On the fused path, where a wrong index would otherwise wrap around."""
    weighted = loss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))
    with pytest.raises(ValueError, match="labels must be from 0 to 2, as ClassWeightedReducer has 3 weights, got labels from"):
        weighted(X, LABELS + shift)


def test_class_weights_need_labels() -> None:
    weighted = losses.ContrastiveLoss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))
    with pytest.raises(ValueError, match="labels must be given where losses are weighted by class, got None"):
        weighted(X, None, (index(0), index(3), index(1)))


REFUSED: dict[str, tuple[str, Any, str]] = {
    "cpu, power": ("cpu", losses.ContrastiveLoss(distance=distances.LpDistance(power=3)), "power 3 of a distance has no"),
    "cpu, l3": ("cpu", losses.ContrastiveLoss(distance=distances.LpDistance(p=3)), "L3 distance is not an inner product"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_chosen_backend_never_falls_back(name: str) -> None:
    """A backend that is asked for by name and cannot run says why; `auto` finds another."""
    backend, loss, reason = REFUSED[name]
    if dispatch.backend(backend).available() is not None:
        reason = "extension"
    with (
        use(backend=backend),
        pytest.raises(ValueError, match=f"backend '{backend}' cannot run this: .*{reason}.*choose another"),
    ):
        loss(X, LABELS)
    assert loss(X, LABELS).isfinite()


def test_a_backend_of_another_device_says_so() -> None:
    reasons = dispatch.backends()
    for name, reason in reasons.items():
        if reason is not None:
            with use(backend=name), pytest.raises(ValueError, match=f"backend '{name}' cannot run this"):
                losses.SupConLoss()(X, LABELS)
    assert reasons["chunked"] is None and reasons["reference"] is None


def test_a_failed_choice_changes_nothing() -> None:
    with use(backend="chunked"):
        with pytest.raises(ValueError, match="backend must be one of"):
            use(backend="gpu")
        assert losses.SupConLoss()(X, LABELS).isfinite()


def test_second_derivatives_are_refused() -> None:
    x = X.clone().requires_grad_()
    loss = losses.SupConLoss()(x, LABELS)
    with pytest.raises(RuntimeError, match=r"cannot be differentiated again.*create_graph=False"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_users_miners_and_distances_are_checked() -> None:
    class Odd(miners.BaseMiner):
        def mine(self, *_: Any) -> Any:
            return index(0), index(1)

    class Uneven(miners.BaseMiner):
        def mine(self, *_: Any) -> Any:
            return index(0, 1), index(1), index(2)

    class Flat(distances.BaseDistance):
        def compute_mat(self, query_emb: torch.Tensor, ref_emb: torch.Tensor) -> torch.Tensor:
            return query_emb.sum(dim=1)

    with pytest.raises(TypeError, match=r"mine\(\) of Odd must return 3 index tensors.*or 4.*got 2"):
        Odd()(X, LABELS)
    with pytest.raises(ValueError, match=r"mine\(\) of Uneven must return index tensors of matching lengths, got \[2, 1, 1\]"):
        Uneven()(X, LABELS)
    with pytest.raises(ValueError, match=r"compute_mat of Flat must return a matrix of shape \(6, 6\), got \(6,\)"):
        losses.SupConLoss(distance=Flat())(X, LABELS)
