"""utils.distributed: one, two and four processes give the loss and the gradients of one process on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import distributed_steps as steps
import numpy as np
import pytest
import torch
from loss_table import LOSS_ARGUMENTS, NOT_A_LOSS, WRAPPERS, loss_inputs
from process_group import Group

from pml_fast import losses, miners, reducers, regularizers
from pml_fast.utils import distributed as d

NAMES = sorted(name for name in {*losses.__all__, *LOSS_ARGUMENTS, *WRAPPERS} if name not in NOT_A_LOSS)
# Sizes differ between ranks; the one process has 20 rows.
SIZES = {1: [20], 2: [13, 7], 4: [6, 3, 7, 4]}
# Why the anchors cannot be shared is said by each.
JOINT = {
    "CLIPLoss", "CrossBatchMemory", "DynamicSoftMarginLoss", "HistogramLoss", "InstanceLoss", "IntraPairVarianceLoss",
    "LiftedStructureLoss", "ManifoldLoss", "MultiSupConLoss", "MultipleLosses", "NPairsLoss", "ProxyAnchorLoss",
    "RankedListLoss", "SigLIPLoss", "VICRegLoss",
}  # fmt: skip
SHARED = [name for name in NAMES if name not in JOINT]


@pytest.fixture(scope="session")
def processes() -> Iterator[Group]:
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    group = Group()
    yield group
    group.close()


@pytest.fixture(params=[2, 4, 1])
def group(request: pytest.FixtureRequest, processes: Group) -> Group:
    return processes.of(request.param)


def one_process(
    name: str, options: dict[str, Any] | None = None, mined: str | None = None, references: int | None = None, calls: int = 1
) -> tuple[Any, ...]:
    loss = steps.made(name, options)
    for call in range(calls):
        whole, labels = steps.batch(20, seed=5 + call)
        x = whole.requires_grad_()
        given = loss_inputs(name, whole.detach(), labels)
        if references is not None:
            ref, given["ref_labels"] = steps.batch(references, seed=77)
            given["ref_emb"] = ref.requires_grad_()
        if mined is not None:
            tuple_ = getattr(miners, mined)()(x, labels, given.get("ref_emb"), given.get("ref_labels"))
            given["indices_tuple"] = tuple_
        value = loss(x, **given)
        value.backward()
    grad_ref = given["ref_emb"].grad if references is not None else None
    state = {key: steps.numpy(value) for key, value in loss.state_dict().items()}
    return steps.numpy(value), steps.numpy(x.grad), steps.numpy(grad_ref), steps.parameter_grads(loss), state


def assert_one_process(answers: list[Any], want: tuple[Any, ...]) -> None:
    """Every rank has the value; its gradients are as many times the one process's as there are ranks; means are right."""
    value, grad, grad_ref, by_parameters, state = want
    world = len(answers)
    for answer in answers:
        np.testing.assert_allclose(answer[0], value, rtol=1e-9, atol=1e-12)
        for key, kept in state.items():
            np.testing.assert_allclose(answer[4][key], kept, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(answer[4][key], answers[0][4][key])
    np.testing.assert_allclose(np.concatenate([a[1] for a in answers]), world * grad, rtol=1e-8, atol=1e-10)
    if grad_ref is not None:
        np.testing.assert_allclose(np.concatenate([a[2] for a in answers]), world * grad_ref, rtol=1e-8, atol=1e-10)
    for k, expected in enumerate(by_parameters):
        np.testing.assert_allclose(sum(a[3][k] for a in answers) / world, expected, rtol=1e-8, atol=1e-10)


# ---- the whole loss on every rank --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ManifoldLoss"])
def test_every_loss_is_that_of_one_process(name: str, group: Group) -> None:
    answers = group.run(steps.loss_step, name, "global", SIZES[group.world_size])
    assert_one_process(answers, one_process(name))


@pytest.mark.parametrize("name", ["ManifoldLoss", "TripletMarginLoss"])
def test_what_a_loss_draws_is_the_same_on_every_rank(name: str, group: Group) -> None:
    options = {"triplets_per_anchor": 3} if name == "TripletMarginLoss" else None
    answers = group.run(steps.loss_step, name, "global", SIZES[group.world_size], options)
    assert len({float(answer[0]) for answer in answers}) == 1


@pytest.mark.parametrize("name", ["CrossBatchMemory", "DynamicSoftMarginLoss"])
def test_what_a_loss_keeps_is_the_same_on_every_rank(name: str, group: Group) -> None:
    answers = group.run(steps.loss_step, name, "global", SIZES[group.world_size], None, None, None, 4)
    assert_one_process(answers, one_process(name, calls=4))


# ---- own anchors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_own_anchors_have_the_loss_of_one_process(name: str, group: Group) -> None:
    answers = group.run(steps.loss_step, name, "local_anchor", SIZES[group.world_size])
    assert_one_process(answers, one_process(name))


@pytest.mark.parametrize("name", sorted(JOINT))
def test_losses_whose_anchors_belong_together_say_so(name: str) -> None:
    assert "objective='global'" in steps.refused(name)


def test_every_other_loss_is_shared() -> None:
    assert [name for name in SHARED if steps.refused(name)] == []


@pytest.mark.parametrize("objective", d.OBJECTIVES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ContrastiveLoss", {"reducer": reducers.AvgNonZeroReducer()}),
        ("ContrastiveLoss", {"reducer": reducers.PerAnchorReducer()}),
        ("ContrastiveLoss", {"reducer": reducers.ThresholdReducer(low=0.1, high=0.9)}),
        ("NTXentLoss", {"reducer": reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]))}),
        ("TripletMarginLoss", {"margin": 0.3, "reducer": reducers.MeanReducer()}),
        ("TripletMarginLoss", {"margin": 0.3, "swap": True}),
        ("TripletMarginLoss", {"margin": 0.3, "reducer": reducers.ThresholdReducer(low=0.05, high=0.2)}),
        ("SupConLoss", {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}),
        ("ArcFaceLoss", {"weight_regularizer": regularizers.RegularFaceRegularizer(), "weight_reg_weight": 0.3}),
    ],
    ids=str,
)
def test_reducers_and_regularizers_go_over_all_ranks(name: str, options: dict[str, Any], objective: str, group: Group) -> None:
    if group.world_size == 1:
        pytest.skip("one rank is the one process")
    answers = group.run(steps.loss_step, name, objective, SIZES[group.world_size], options)
    assert_one_process(answers, one_process(name, options))


@pytest.mark.parametrize("objective", d.OBJECTIVES)
@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss", "TripletMarginLoss", "ContrastiveLoss", "FastAPLoss"])
def test_reference_sets_are_joined(name: str, objective: str, group: Group) -> None:
    sizes = {1: [11], 2: [5, 6], 4: [2, 4, 1, 4]}[group.world_size]
    answers = group.run(steps.loss_step, name, objective, SIZES[group.world_size], None, None, sizes)
    assert_one_process(answers, one_process(name, references=11))


@pytest.mark.parametrize("objective", d.OBJECTIVES)
@pytest.mark.parametrize(
    ("name", "miner"),
    [
        ("ContrastiveLoss", "MultiSimilarityMiner"),
        ("MultiSimilarityLoss", "PairMarginMiner"),
        ("SupConLoss", "MultiSimilarityMiner"),
        ("TripletMarginLoss", "TripletMarginMiner"),
        ("TripletMarginLoss", "BatchHardMiner"),
        ("ContrastiveLoss", "BatchHardMiner"),
    ],
)
def test_miners_and_losses_go_together(name: str, miner: str, objective: str, group: Group) -> None:
    answers = group.run(steps.loss_step, name, objective, SIZES[group.world_size], None, miner)
    assert_one_process(answers, one_process(name, mined=miner))


def test_a_rule_that_was_mined_for_own_anchors_reaches_the_kernel(processes: Group) -> None:
    group = processes.of(2)
    for loss, miner, engine in (
        ("MultiSimilarityLoss", "MultiSimilarityMiner", "fused: pairwise"),
        ("TripletMarginLoss", "TripletMarginMiner", "fused: triplet"),
    ):
        assert set(group.run(steps.plan_after_mining, SIZES[2], loss, miner)) == {engine}


def test_ranks_without_pairs_take_part(processes: Group) -> None:
    """A rank with an empty batch, and one whose anchors have no positives anywhere."""
    for name in ("TripletMarginLoss", "NTXentLoss", "AngularLoss", "MarginLoss"):
        answers = processes.of(4).run(steps.loss_step, name, "local_anchor", [0, 1, 0, 19])
        assert_one_process(answers, one_process(name))


# ---- miners ------------------------------------------------------------------------------------------------------------------


def as_sets(parts: Any) -> list[set[tuple[int, ...]]]:
    groups = [parts] if len(parts) == 3 else [parts[:2], parts[2:]]
    return [set(zip(*(np.asarray(part).tolist() for part in group))) for group in groups]


ANCHORWISE = ["MultiSimilarityMiner", "PairMarginMiner", "TripletMarginMiner", "BatchHardMiner", "AngularMiner"]


@pytest.mark.parametrize("name", [*ANCHORWISE, "HDCMiner", "BatchEasyHardMiner"])
def test_every_rank_mines_the_tuple_of_one_process(name: str, group: Group) -> None:
    whole, labels = steps.batch(20)
    want = getattr(miners, name)()(whole, labels)
    for answer in group.run(steps.mined_tuple, name, False, SIZES[group.world_size]):
        for got, expected in zip(answer, want, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["DistanceWeightedMiner", "UniformHistogramMiner"])
def test_what_a_miner_draws_is_the_same_on_every_rank(name: str, group: Group) -> None:
    first, *others = group.run(steps.mined_tuple, name, False, SIZES[group.world_size])
    assert len(first[0]) > 0
    for other in others:
        for got, expected in zip(other, first, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ANCHORWISE)
def test_tuples_of_own_anchors_are_together_those_of_one_process(name: str, group: Group) -> None:
    sizes = SIZES[group.world_size]
    whole, labels = steps.batch(20)
    want = as_sets(tuple(getattr(miners, name)()(whole, labels)))
    found: list[set[tuple[int, ...]]] = [set() for _ in want]
    for first, answer in zip(np.cumsum([0, *sizes]), group.run(steps.mined_tuple, name, True, sizes)):
        parts = list(answer)
        for k in (0,) if len(parts) == 3 else (0, 2):
            parts[k] = parts[k] + first
        for all_, own in zip(found, as_sets(parts)):
            all_ |= own
    assert found == want


# ---- around ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", d.OBJECTIVES)
@pytest.mark.parametrize("name", ["SupConLoss", "ArcFaceLoss", "SoftTripleLoss"])
def test_under_ddp_a_model_and_a_loss_have_the_gradients_of_one_process(name: str, objective: str, group: Group) -> None:
    torch.manual_seed(3)
    model = torch.nn.Linear(steps.DIMENSION, steps.DIMENSION).double()
    loss = steps.made(name, None)
    whole, labels = steps.batch(20)
    loss(model(whole), labels).backward()
    for of_model, of_loss in group.run(steps.ddp_step, name, objective, SIZES[group.world_size]):
        for got, want in zip(of_model, steps.parameter_grads(model), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
        for got, want in zip(of_loss, steps.parameter_grads(loss), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)


def test_rows_of_all_ranks_stand_in_order_of_rank(group: Group) -> None:
    sizes = SIZES[group.world_size]
    whole, labels = (x.numpy() for x in steps.batch(20))
    first = 0
    for size, told in zip(sizes, group.run(steps.helpers, sizes)):
        own = slice(first, first + size)
        if group.world_size == 1:
            assert told["others"] is None
        else:
            np.testing.assert_array_equal(told["others"], np.delete(whole, own, axis=0))
        assert told["none"] is None
        np.testing.assert_array_equal(told["embeddings"], whole)
        np.testing.assert_array_equal(told["labels"], labels)
        np.testing.assert_array_equal(told["mask"], labels == 0)
        np.testing.assert_allclose(told["grad"], group.world_size * 2 * whole[own])
        a, p, b, n = told["pairs"]
        assert np.all(labels[own][a] == labels[p]) and np.all(a + first != p)
        assert np.all(labels[own][b] != labels[n])
        same = labels[own][:, None] == labels[None]
        assert len(a) == same.sum() - size and len(b) == (~same).sum()
        first += size


def test_ranks_share_the_batches_of_the_sampler_of_rank_0(group: Group) -> None:
    from pml_fast.samplers import MPerClassSampler

    whole = list(MPerClassSampler(torch.arange(60) % 12, 2, 8, 80, seed=4).batched())
    shares = group.run(steps.sampled, 4)
    assert [[i for part in parts for i in part] for parts in zip(*shares)] == whole


def test_without_a_group_the_loss_is_this_processs_own() -> None:
    whole, labels = steps.batch(20)
    with pytest.warns(UserWarning, match="no process group"):
        got = d.DistributedLossWrapper(losses.SupConLoss(), efficient=True)(whole, labels)
    torch.testing.assert_close(got, losses.SupConLoss()(whole, labels))
    with pytest.warns(UserWarning, match="no process group"):
        mined = d.DistributedMinerWrapper(miners.BatchHardMiner())(whole, labels)
    assert as_sets(tuple(mined)) == as_sets(tuple(miners.BatchHardMiner()(whole, labels)))
    assert d.all_gather_embeddings_and_labels(whole, labels) == (None, None)
    assert not d.is_distributed()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="loss must be"):
        d.DistributedLossWrapper(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="miner must be"):
        d.DistributedMinerWrapper(losses.SupConLoss())
    with pytest.raises(ValueError, match="objective"):
        d.DistributedLossWrapper(losses.SupConLoss(), objective="local")
    whole, labels = steps.batch(20)
    memory = d.DistributedLossWrapper(losses.CrossBatchMemory(losses.SupConLoss(), 16))
    alone = "no process group"
    with pytest.warns(UserWarning, match=alone), pytest.raises(ValueError, match="ref_emb"):
        memory(whole, labels, ref_emb=whole.clone())
    with pytest.warns(UserWarning, match=alone), pytest.raises(ValueError, match="enqueue_mask"):
        d.DistributedLossWrapper(losses.SupConLoss())(whole, labels, enqueue_mask=labels == 0)
