"""Reducers agree with the peer in value, gradient and statistics, and are right where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import reducers as peer

from pml_fast import explain, losses, reducers
from pml_fast.reducers import Fold

N, D, CLASSES = 12, 5, 4
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.5])

MAKE = {
    "mean": lambda m: m.MeanReducer(),
    "sum": lambda m: m.SumReducer(),
    "avg_non_zero": lambda m: m.AvgNonZeroReducer(),
    "threshold_low": lambda m: m.ThresholdReducer(low=0.3),
    "threshold_high": lambda m: m.ThresholdReducer(high=0.4),
    "threshold_both": lambda m: m.ThresholdReducer(low=-0.5, high=0.6),
    "class_weighted": lambda m: m.ClassWeightedReducer(WEIGHTS.clone()),
    "divisor": lambda m: m.DivisorReducer(),
    "per_anchor": lambda m: m.PerAnchorReducer(),
    "per_anchor_threshold": lambda m: m.PerAnchorReducer(m.AvgNonZeroReducer()),
    "per_anchor_custom": lambda m: m.PerAnchorReducer(aggregation_func=lambda x, k: x.max(1).values + x.sum(1) - k),
}
KINDS = ["element", "pos_pair", "neg_pair", "triplet", "already_reduced"]


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(N, D, dtype=dtype, requires_grad=True), torch.randint(CLASSES, (N,))


def spread(losses: torch.Tensor) -> torch.Tensor:
    """Shift the losses apart in a random order, so that some lie on either side of every threshold."""
    return losses + torch.linspace(-1, 1.2, len(losses), dtype=losses.dtype)[torch.randperm(len(losses))]


def loss_dict(embeddings: torch.Tensor, kind: str) -> dict[str, dict[str, object]]:
    """Losses that depend on the embeddings; every pair is listed at most once."""
    values = 0.1 * (embeddings @ embeddings.T.detach()).tanh()
    rows, cols = torch.randint(N, (2, 30))
    rows, cols = torch.unique(torch.stack([rows, cols]), dim=1)
    pair_losses, element_losses = values[rows, cols], values.mean(1)
    losses, indices = {
        "element": (spread(element_losses), torch.arange(N)),
        "pos_pair": (spread(pair_losses), (rows, cols)),
        "neg_pair": (spread(pair_losses), (rows, cols)),
        "triplet": (spread(pair_losses), (rows, cols, cols.flip(0))),
        "already_reduced": (values.mean(), None),
    }[kind]
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": kind, "divisor": 7}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKE)
def test_value_and_gradient_equal_the_peer(name: str, kind: str) -> None:
    embeddings, labels = batch()
    ours, theirs = MAKE[name](reducers), MAKE[name](peer)
    losses = loss_dict(embeddings, kind)
    if name.startswith("per_anchor") and kind == "triplet":
        for reducer in (ours, theirs):
            with pytest.raises(NotImplementedError):
                reducer(losses, embeddings, labels)
        return
    got, expected = ours(losses, embeddings, labels), theirs(losses, embeddings, labels)
    torch.testing.assert_close(got, expected)
    got_grad, expected_grad = (torch.autograd.grad(x, embeddings, retain_graph=True)[0] for x in (got, expected))
    torch.testing.assert_close(got_grad, expected_grad)
    assert expected != 0


@pytest.mark.parametrize("kind", ["element", "pos_pair"])
@pytest.mark.parametrize("name", MAKE)
def test_statistics_equal_the_peer(name: str, kind: str) -> None:
    embeddings, labels = batch()
    losses = loss_dict(embeddings, kind)
    ours, theirs = MAKE[name](reducers), MAKE[name](peer)
    for reducer, module in ((ours, reducers), (theirs, peer)):
        reducer.__init__(**{**init_arguments(reducer, module), "collect_stats": True})
        reducer(losses, embeddings, labels)
    assert ours._record_these_stats == theirs._record_these_stats
    assert getattr(ours, "_record_these", None) == getattr(theirs, "_record_these", None)
    for stat in {*ours._record_these_stats, "num_above_high"} - {"num_below_high"}:
        if hasattr(theirs, stat):
            assert getattr(ours, stat) == getattr(theirs, stat), stat


def init_arguments(reducer: torch.nn.Module, module: object) -> dict[str, object]:
    if isinstance(reducer, module.AvgNonZeroReducer):
        return {}
    names = ("low", "high", "weights", "reducer", "aggregation_func")
    return {name: getattr(reducer, name) for name in names if hasattr(reducer, name)}


def test_threshold_counts_below_high_under_both_names() -> None:
    embeddings, labels = batch()
    reducer = reducers.ThresholdReducer(low=0, high=2, collect_stats=True)
    info = {
        "losses": torch.tensor([-1.0, 0.5, 1.0, 3.0]),
        "indices": torch.arange(4),
        "reduction_type": "element",
    }
    assert reducer({"loss": info}, embeddings, labels) == 0.75
    assert (reducer.num_above_low, reducer.num_below_high, reducer.num_above_high) == (3, 2, 2)
    assert (reducer.num_past_filter, reducer.losses_size) == (2, 4)


def test_no_statistics_unless_asked_for() -> None:
    reducer = reducers.ThresholdReducer(low=0)
    assert not hasattr(reducer, "num_past_filter")
    assert not hasattr(reducer, "_record_these_stats")


@pytest.mark.parametrize("name", MAKE)
def test_the_zero_loss_is_connected_and_spreads_no_nan(name: str) -> None:
    embeddings = torch.tensor([[1.0, math.nan], [math.inf, 2.0]], requires_grad=True)
    zero = {"loss": {"losses": 0, "indices": None, "reduction_type": "already_reduced"}}
    loss = MAKE[name](reducers)(zero, embeddings, torch.tensor([0, 1]))
    assert loss == 0
    loss.backward()
    assert torch.equal(embeddings.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0), (3, 4)])
def test_the_zero_loss_of_any_shape(shape: tuple[int, int]) -> None:
    embeddings = torch.randn(shape, requires_grad=True)
    loss = reducers.MeanReducer().zero_loss(embeddings)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros(shape))


@pytest.mark.parametrize("name", ["avg_non_zero", "threshold_both"])
def test_a_threshold_that_nothing_passes_is_a_zero(name: str) -> None:
    embeddings, labels = batch()
    info = {"losses": embeddings.sum(1) * 0 - 9, "indices": torch.arange(N), "reduction_type": "element"}
    loss = MAKE[name](reducers)({"loss": info}, embeddings, labels)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("name", ["mean", "sum", "avg_non_zero", "class_weighted", "divisor", "per_anchor"])
def test_no_losses_reduce_to_zero(name: str) -> None:
    embeddings, labels = batch()
    none = torch.empty(0, dtype=torch.long)
    info = {
        "losses": embeddings.sum(1)[none],
        "indices": (none, none),
        "reduction_type": "pos_pair",
        "divisor": 3,
    }
    loss = MAKE[name](reducers)({"loss": info}, embeddings, labels)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("divisor", [0, torch.tensor(0)])
def test_a_zero_divisor_is_a_zero_loss(divisor: object) -> None:
    embeddings, labels = batch()
    info = {
        "losses": embeddings.sum(1),
        "indices": torch.arange(N),
        "reduction_type": "element",
        "divisor": divisor,
    }
    loss = reducers.DivisorReducer()({"loss": info}, embeddings, labels)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_a_tensor_divisor_divides() -> None:
    embeddings, labels = batch()
    info = {"losses": embeddings.sum(1), "indices": torch.arange(N), "reduction_type": "element"}
    loss = reducers.DivisorReducer()({"loss": {**info, "divisor": torch.tensor(4)}}, embeddings, labels)
    torch.testing.assert_close(loss, embeddings.sum() / 4)


def test_a_missing_divisor_is_named() -> None:
    embeddings, labels = batch()
    info = {"losses": embeddings.sum(1), "indices": torch.arange(N), "reduction_type": "element"}
    with pytest.raises(ValueError, match="divisor"):
        reducers.DivisorReducer()({"loss": info}, embeddings, labels)


@pytest.mark.parametrize("name", ["avg_non_zero", "class_weighted", "per_anchor", "divisor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(name: str, dtype: torch.dtype) -> None:
    # 5000 losses of 30 sum to 150,000: beyond float16, and beyond what bfloat16 can count.
    embeddings = torch.randn(4, 2, dtype=dtype)
    labels, anchors = torch.zeros(4, dtype=torch.long), torch.arange(5000) % 4
    info = {
        "losses": torch.full((5000,), 30.0, dtype=dtype),
        "indices": (anchors, torch.arange(5000)),
        "reduction_type": "pos_pair",
        "divisor": 5000,
    }
    reducer = MAKE[name](reducers)
    if name == "class_weighted":
        reducer = reducers.ClassWeightedReducer(torch.ones(1))
    loss = reducer({"loss": info}, embeddings, labels)
    assert loss.dtype == dtype
    assert loss == 30


def test_class_weights_keep_their_dtype() -> None:
    embeddings, labels = batch(torch.float32)
    reducer = reducers.ClassWeightedReducer(WEIGHTS.double())
    info = {"losses": embeddings.sum(1).half(), "indices": torch.arange(N), "reduction_type": "element"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reducer({"loss": info}, embeddings, labels)
    assert reducer.weights.dtype == torch.float64


@pytest.mark.parametrize("bad", [-1, CLASSES])
def test_a_label_without_a_weight_is_named(bad: int) -> None:
    embeddings, labels = batch()
    labels[3] = bad
    with pytest.raises(ValueError, match=f"0 to {CLASSES - 1}.*{bad}"):
        reducers.ClassWeightedReducer(WEIGHTS)(loss_dict(embeddings, "element"), embeddings, labels)


def test_per_anchor_takes_a_reference_set_of_another_size() -> None:
    embeddings = torch.randn(3, 2, requires_grad=True)
    anchors, others = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 90, 4, 5, 77])
    losses = torch.tensor([1.0, 3.0, 4.0, 5.0, 9.0], requires_grad=True)
    info = {"losses": losses, "indices": (anchors, others), "reduction_type": "neg_pair"}
    for make in (
        reducers.PerAnchorReducer,
        lambda: reducers.PerAnchorReducer(aggregation_func=lambda x, k: x.sum(1) / k.clamp(min=1)),
    ):
        loss = make()({"loss": info}, embeddings, None)
        torch.testing.assert_close(loss, torch.tensor((2.0 + 0.0 + 6.0) / 3))
        (grad,) = torch.autograd.grad(loss, losses)
        torch.testing.assert_close(grad, torch.tensor([1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9]))


def test_per_anchor_counts_a_repeated_pair_once() -> None:
    embeddings = torch.randn(3, 2)
    anchors, others = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2, 1, 0])
    losses = torch.tensor([1.0, 5.0, 1.0, 2.0], requires_grad=True)
    info = {"losses": losses, "indices": (anchors, others), "reduction_type": "pos_pair"}
    loss = reducers.PerAnchorReducer()({"loss": info}, embeddings, None)
    torch.testing.assert_close(loss, peer.PerAnchorReducer()({"loss": info}, embeddings, None))
    (grad,) = torch.autograd.grad(loss, losses)
    torch.testing.assert_close(grad, torch.tensor([0.0, 1 / 6, 1 / 6, 1 / 3]))


def test_multiple_reducers_equal_the_peer() -> None:
    embeddings, labels = batch()
    losses = {name: loss_dict(embeddings, "pos_pair")["loss"] for name in ("a", "b", "c")}
    totals = [
        m.MultipleReducers({"a": m.SumReducer(), "b": m.AvgNonZeroReducer()})(losses, embeddings, labels)
        for m in (reducers, peer)
    ]
    torch.testing.assert_close(*totals)
    torch.testing.assert_close(*(torch.autograd.grad(t, embeddings, retain_graph=True)[0] for t in totals))


def test_multiple_reducers_keep_float32_terms_of_half_embeddings() -> None:
    embeddings = torch.randn(2, 2, dtype=torch.float16)
    info = {"losses": torch.tensor([1e6, 3e6]), "indices": torch.arange(2), "reduction_type": "element"}
    assert reducers.MultipleReducers({})({"a": info, "b": info}, embeddings, None) == 4e6


def test_do_nothing_returns_what_it_was_given() -> None:
    embeddings, labels = batch()
    losses = loss_dict(embeddings, "triplet")
    assert reducers.DoNothingReducer()(losses, embeddings, labels) is losses


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"losses": [1.0]}, TypeError, "losses"),
        ({"indices": None}, TypeError, "indices"),
        ({"indices": torch.arange(3)}, ValueError, "12 element"),
        ({"reduction_type": "quadruplet"}, ValueError, "quadruplet"),
        ({"reduction_type": "triplet"}, TypeError, "tuple of 3"),
        ({"reduction_type": "triplet", "indices": (torch.arange(N),) * 2}, ValueError, "tuple of 3"),
        ({"reduction_type": "pos_pair", "indices": (torch.arange(N), torch.arange(3))}, ValueError, "12, 3"),
        ({"reduction_type": "already_reduced"}, ValueError, "one number"),
        ({"reduction_type": "already_reduced", "losses": 3.0}, TypeError, "float"),
    ],
)
def test_bad_losses_are_refused(change: dict[str, object], error: type[Exception], match: str) -> None:
    embeddings, labels = batch()
    info = {**loss_dict(embeddings, "element")["loss"], **change}
    with pytest.raises(error, match=match):
        reducers.MeanReducer()({"loss": info}, embeddings, labels)


def test_bad_settings_are_refused() -> None:
    embeddings, labels = batch()
    info = loss_dict(embeddings, "element")["loss"]
    with pytest.raises(ValueError, match="low and high"):
        reducers.ThresholdReducer()
    with pytest.raises(ValueError, match="1D"):
        reducers.ClassWeightedReducer(torch.ones(2, 2))
    with pytest.raises(TypeError, match="list"):
        reducers.ClassWeightedReducer([1.0])
    with pytest.raises(ValueError, match="exactly one"):
        reducers.MeanReducer()({"a": info, "b": info}, embeddings, labels)
    with pytest.raises(ValueError, match="labels"):
        reducers.ClassWeightedReducer(WEIGHTS)({"a": info}, embeddings, None)
    with pytest.raises(ValueError, match="indices"):
        reducers.MeanReducer()({"a": {"losses": 1, "reduction_type": "element"}}, embeddings, labels)
    with pytest.raises(TypeError, match="dict"):
        reducers.MultipleReducers({"a": reducers.DoNothingReducer()})({"a": info}, embeddings, labels)


def test_a_users_reducer_works_as_in_the_peer() -> None:
    def make(base: type) -> torch.nn.Module:
        class Largest(base):
            def element_reduction(self, losses, loss_indices, embeddings, labels):
                return losses.max()

        return Largest()

    embeddings, labels = batch()
    losses = loss_dict(embeddings, "element")
    ours = make(reducers.BaseReducer)
    torch.testing.assert_close(ours(losses, embeddings, labels), make(peer.BaseReducer)(losses, embeddings, labels))
    with pytest.raises(NotImplementedError, match="Largest"):
        ours(loss_dict(embeddings, "triplet"), embeddings, labels)
    assert ours.fold() is None
    assert "Largest" in ours.fold_refusal()


@pytest.mark.parametrize("name", [x for x in MAKE if x != "per_anchor_custom"])
def test_reducers_compile_in_one_graph(name: str) -> None:
    torch.compiler.reset()  # else the cases share one limit of recompilations
    embeddings, labels = batch(torch.float32)
    losses, reducer = loss_dict(embeddings, "pos_pair"), MAKE[name](reducers)
    compiled = torch.compile(reducer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(losses, embeddings, labels), reducer(losses, embeddings, labels))


@pytest.mark.parametrize(
    ("reducer", "expected"),
    [
        (reducers.MeanReducer(), Fold("mean")),
        (reducers.SumReducer(), Fold("sum")),
        (reducers.AvgNonZeroReducer(), Fold("threshold", low=0)),
        (reducers.ThresholdReducer(high=2), Fold("threshold", high=2)),
        (reducers.ThresholdReducer(low=-1, high=2), Fold("threshold", low=-1, high=2)),
        (reducers.ClassWeightedReducer(WEIGHTS), Fold("class_weighted", weights=WEIGHTS)),
        (reducers.PerAnchorReducer(), Fold("per_anchor", inner=Fold("mean"))),
        (
            reducers.PerAnchorReducer(reducers.PerAnchorReducer(reducers.SumReducer())),
            Fold("per_anchor", inner=Fold("sum")),
        ),
    ],
)
def test_the_fold_says_what_the_reducer_does(reducer: reducers.BaseReducer, expected: Fold) -> None:
    assert reducer.fold() == expected
    assert reducer.fold_for("loss") == expected
    assert reducer.fold_refusal() == ""


class UsersMean(reducers.MeanReducer):
    pass


def hooked() -> reducers.BaseReducer:
    reducer = reducers.MeanReducer()
    reducer.register_forward_hook(lambda *args: None)
    return reducer


@pytest.mark.parametrize(
    ("reducer", "reason"),
    [
        (reducers.DoNothingReducer(), "DoNothingReducer"),
        (reducers.DivisorReducer(), "divides"),
        (reducers.PerAnchorReducer(aggregation_func=lambda x, k: x.sum(1)), "aggregation_func"),
        (reducers.PerAnchorReducer(reducers.DivisorReducer()), "DivisorReducer"),
        (reducers.PerAnchorReducer(torch.nn.Identity()), "Identity"),
        (UsersMean(), "UsersMean"),
        (reducers.PerAnchorReducer(UsersMean()), "UsersMean"),
        (reducers.MeanReducer(collect_stats=True), "statistics"),
        (reducers.ClassWeightedReducer(torch.ones(3, requires_grad=True)), "gradient"),
        (hooked(), "hooks"),
        (reducers.MultipleReducers({}), "by name"),
    ],
)
def test_a_refused_fold_says_why(reducer: reducers.BaseReducer, reason: str) -> None:
    assert reducer.fold() is None
    assert reason in reducer.fold_refusal()


def test_multiple_reducers_fold_by_name() -> None:
    many = reducers.MultipleReducers({"a": reducers.SumReducer(), "b": reducers.DivisorReducer()})
    assert many.fold_for("a") == Fold("sum")
    assert many.fold_for("other") == Fold("mean")
    assert many.fold_for("b") is None
    assert "divides" in many.fold_refusal_for("b")

    class UsersMultiple(reducers.MultipleReducers):
        pass

    users = UsersMultiple({})
    assert users.fold_for("a") is None
    assert "UsersMultiple" in users.fold_refusal_for("a")


def test_folds_with_equal_settings_are_equal() -> None:
    assert Fold("class_weighted", weights=WEIGHTS) != Fold("class_weighted", weights=WEIGHTS.clone())
    assert hash(Fold("threshold", low=0)) == hash(Fold("threshold", low=0))
    assert Fold("threshold", low=0) != Fold("threshold", low=1)
    for arguments in ({"kind": "median"}, {"kind": "class_weighted"}, {"kind": "per_anchor"}):
        with pytest.raises(ValueError):
            Fold(**arguments)


def test_a_loss_with_a_reducer_for_each_name_stays_fused() -> None:
    x, labels = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 3
    parts = {"pos_loss": reducers.SumReducer(), "neg_loss": reducers.ThresholdReducer(low=0.1)}
    loss = losses.ContrastiveLoss(reducer=reducers.MultipleReducers(parts))
    assert explain(loss, x, labels).mode == "fused"
    every = losses.ContrastiveLoss(reducer=reducers.DoNothingReducer())(x, labels)
    want = every["pos_loss"]["losses"].sum() + parts["neg_loss"]({"neg_loss": every["neg_loss"]}, x, labels)
    torch.testing.assert_close(loss(x, labels), want)
    users = losses.ContrastiveLoss(reducer=reducers.MultipleReducers({"pos_loss": UsersMean()}))
    plan = explain(users, x, labels)
    assert plan.mode == "materialised" and any("UsersMean" in note for note in plan.notes)
    assert users(x, labels).isfinite()
