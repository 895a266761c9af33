"""Losses around losses: CrossBatchMemory, MultipleLosses, SelfSupervisedLoss."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning as pml
import torch
from torch import Tensor

import pml_fast
from pml_fast import distances, explain, losses, miners, reducers, use
from pml_fast._bounded import measure_peak
from pml_fast.engine.copies import AllPairs, WithoutCopies
from pml_fast.engine.lazy import RowChoice
from pml_fast.utils import loss_and_miner_utils as lmu

D, MEMORY = 6, 23


def library(package: Any) -> SimpleNamespace:
    names = ("distances", "losses", "miners", "reducers")
    return SimpleNamespace(**{name: __import__(f"{package.__name__}.{name}", fromlist=[name]) for name in names})


PEER, OURS = library(pml), library(pml_fast)

LOSSES: dict[str, Callable[..., Any]] = {
    "contrastive": lambda m, **k: m.losses.ContrastiveLoss(pos_margin=0.2, neg_margin=1.2, **k),
    "ntxent": lambda m, **k: m.losses.NTXentLoss(0.3, **k),
    "supcon": lambda m, **k: m.losses.SupConLoss(0.3, **k),
    "multi_similarity": lambda m, **k: m.losses.MultiSimilarityLoss(beta=6, **k),
    "circle": lambda m, **k: m.losses.CircleLoss(**k),
    "triplet": lambda m, **k: m.losses.TripletMarginLoss(0.3, **k),
    "triplet_smooth": lambda m, **k: m.losses.TripletMarginLoss(0.3, smooth_loss=True, **k),
}
MINERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "none": lambda m: None,
    "multi_similarity": lambda m: m.miners.MultiSimilarityMiner(),
    "batch_hard": lambda m: m.miners.BatchHardMiner(),
    "easy_semihard": lambda m: m.miners.BatchEasyHardMiner(),
    "all_hard": lambda m: m.miners.BatchEasyHardMiner("all", "hard"),
    "pair_margin": lambda m: m.miners.PairMarginMiner(0.3, 1.1),
    "semihard": lambda m: m.miners.TripletMarginMiner(0.3, "semihard"),
    "users": lambda m: every_other(m),
}
DISTANCES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "l1": lambda m: m.distances.LpDistance(p=1),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": lambda m: users_distance(m),
}
REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "sum": lambda m: m.reducers.SumReducer(),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(torch.tensor([0.5, 1.0, 2.0, 3.5], dtype=torch.float64)),
    "users": lambda m: users_reducer(m),
}


def every_other(m: SimpleNamespace) -> Any:
    """A miner as a user writes it: every second pair."""

    class EveryOther(m.miners.BaseMiner):  # type: ignore[misc, name-defined]
        def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Any:
            mat = self.distance(embeddings, ref_emb)
            same = labels.unsqueeze(1) == ref_labels
            return (*torch.where(same & (mat < 1.2)), *torch.where(~same & (mat < 1.3)))

    return EveryOther()


def users_distance(m: SimpleNamespace) -> Any:
    class Bent(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

    return Bent()


def users_reducer(m: SimpleNamespace) -> Any:
    class Root(m.reducers.MeanReducer):  # type: ignore[misc, name-defined]
        def element_reduction(self, losses: Tensor, *_: Any) -> Tensor:
            return (losses + 1).sqrt().mean()

    return Root()


def draw(n: int, seed: int, classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=gen, dtype=dtype), torch.randint(0, classes, (n,), generator=gen)


def step(loss: Any, x: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    value = loss(x, labels, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, x)[0]


def assert_same_step(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-9)


def queue_of(memory: Any) -> tuple[Tensor, Tensor, int, bool]:
    return memory.embedding_memory.clone(), memory.label_memory.clone(), memory.queue_idx, memory.has_been_filled


def assert_same_queue(ours: Any, other: tuple[Tensor, Tensor, int, bool]) -> None:
    got = queue_of(ours)
    assert torch.equal(got[0], other[0]) and torch.equal(got[1], other[1]) and got[2:] == other[2:]


def degenerate(indices: Any) -> bool:
    """Whether no list of a tuple holds more than one index: the peer then gives 0 (docs/differences.md)."""
    return all(len(part) <= 1 for part in indices)


# ---- CrossBatchMemory: agreement ---------------------------------------------------------------------------------------------


def agree(loss: str, miner: str, distance: str = "default", reducer: str = "default", masked: bool = False) -> None:
    """Seven batches through a queue of 23 rows, which is filled on the way and written over."""
    ours, theirs = (
        m.losses.CrossBatchMemory(
            LOSSES[loss](m, distance=DISTANCES[distance](m), reducer=REDUCERS[reducer](m)), D, MEMORY, miner=MINERS[miner](m)
        )
        for m in (OURS, PEER)
    )
    for k in range(7):
        x, labels = draw(7 if k != 5 else 4, seed=100 + k)
        mask = None
        if masked:
            mask = torch.arange(len(x)) % 3 != k % 3
        indices = ours.queue_call(x, labels, None, mask).indices
        got, want = (step(memory, x, labels, enqueue_mask=mask) for memory in (ours, theirs))
        assert_same_queue(ours, queue_of(theirs))
        if not degenerate(indices):
            assert_same_step(got, want)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("loss", "miner"), list(itertools.product(LOSSES, MINERS)))
def test_every_loss_with_every_miner_equals_the_peer(loss: str, miner: str, masked: bool) -> None:
    agree(loss, miner, masked=masked)


@pytest.mark.parametrize("miner", ["none", "multi_similarity", "batch_hard"])
@pytest.mark.parametrize(("loss", "distance"), list(itertools.product([x for x in LOSSES if x != "circle"], DISTANCES)))
def test_every_distance_equals_the_peer(loss: str, distance: str, miner: str) -> None:
    agree(loss, miner, distance=distance)


@pytest.mark.parametrize("miner", ["none", "pair_margin"])
@pytest.mark.parametrize(("loss", "reducer"), list(itertools.product(LOSSES, REDUCERS)))
def test_every_reducer_equals_the_peer(loss: str, reducer: str, miner: str) -> None:
    if loss in ("multi_similarity", "circle") and reducer == "class_weighted":
        pytest.skip("the peer's losses have shape [N, 1], so that class weights form an outer product")
    agree(loss, miner, reducer=reducer)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
@pytest.mark.parametrize("miner", ["none", "semihard"])
@pytest.mark.parametrize("loss", ["contrastive", "supcon", "triplet"])
def test_a_users_tuple_is_added_as_in_the_peer(loss: str, miner: str, kind: str) -> None:
    """Its positives and negatives are rows of the memory, in the memory's own order."""
    ours, theirs = (m.losses.CrossBatchMemory(LOSSES[loss](m), D, MEMORY, miner=MINERS[miner](m)) for m in (OURS, PEER))
    for k in range(6):
        x, labels = draw(7, seed=k)
        ours_after = ours.queue_call(x, labels)
        size = len(ours_after.ref_emb)
        in_memory = ours_after.ref_labels.roll(ours.queue_idx)
        same = labels.unsqueeze(1) == in_memory
        same[torch.arange(7), (torch.arange(7) + ours.queue_idx) % size] = False
        given = (*torch.where(same), *torch.where(labels.unsqueeze(1) != in_memory))
        if kind == "triplets":
            given = tuple(lmu.convert_to_triplets(given, labels))
        given = tuple(part[::5] for part in given)
        if not len(given[0]) or (kind == "pairs" and not len(given[2])):
            continue
        assert_same_step(*(step(memory, x, labels, given) for memory in (ours, theirs)))


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
@pytest.mark.parametrize("miner", ["none", "multi_similarity"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_backend_leaves_own_copies_out(loss: str, miner: str, backend: str) -> None:
    """With duplicates in the queue, and gradients to the reference set as a gathered batch has them."""
    x, labels = draw(40, seed=3, classes=7)
    others, other_labels = draw(50, seed=4, classes=7)
    others[:5], other_labels[:5] = x[:5], labels[:5]
    ref_labels = torch.cat([labels, other_labels])
    found = []
    for how in ("reference", backend):
        own, ref = x.detach().requires_grad_(), torch.cat([x, others]).requires_grad_()
        with use(backend=how):
            try:
                mined = MINERS[miner](OURS)
                source = AllPairs(pml_fast.engine.lazy.Source.of(own, labels, ref, ref_labels, False))
                mined = source if mined is None else mined(own, labels, ref, ref_labels)
                made = LOSSES[loss](OURS)
                indices = WithoutCopies(mined)
                if how == "reference":
                    indices = tuple(indices)
                value = made(own, labels, indices, ref, ref_labels)
            except ValueError as error:
                if "extension" not in str(error):
                    raise
                pytest.skip(str(error))
        found.append((value.detach(), *torch.autograd.grad(value, (own, ref))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


# ---- CrossBatchMemory: fused, in linear memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("miner", ["none", "multi_similarity", "pair_margin"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_queue_streams(loss: str, miner: str) -> None:
    made = LOSSES[loss](OURS)
    mine = MINERS[miner](OURS)
    if mine is not None:
        mine.distance = made.distance
    memory = losses.CrossBatchMemory(made, D, MEMORY, miner=mine)
    for k in range(5):
        memory(*draw(7, seed=k, dtype=torch.float32))
    x, labels = draw(7, seed=9, dtype=torch.float32)
    before = queue_of(memory)
    plan = explain(memory, x, labels)
    assert plan.mode == "fused" and plan.columns == MEMORY
    assert any("own copy" in note for note in plan.notes) and "copied once" in plan.notes[-1]
    assert_same_queue(memory, before)


def test_a_spec_may_refuse_larger_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rows ask for each other's state gets the pairs as index tensors, with the same loss."""
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    for k in range(3):
        memory(*draw(7, seed=k))
    twin = copy.deepcopy(memory)
    want = step(twin, *draw(7, seed=9))
    monkeypatch.setattr(type(memory.loss.spec()), "takes_copies", False)
    plan = explain(memory, *draw(7, seed=9))
    assert plan.engine == "indexed" and any("no predicate" in note for note in plan.notes)
    assert_same_step(step(memory, *draw(7, seed=9)), want)


def test_the_reference_set_is_the_queue_turned() -> None:
    """The batch comes first, then the queue from its oldest row on: columns 0 .. N - 1 are the rows' own copies."""
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    seen = torch.zeros(0, D, dtype=torch.float64)
    for k in range(6):
        x, labels = draw(7, seed=k)
        call = memory.queue_call(x, labels)
        seen = torch.cat([seen, x])[-MEMORY:]
        assert torch.equal(call.ref_emb, torch.cat([x, seen[:-7]]))
        memory(x, labels)


def test_a_choice_a_row_stays_one_a_row() -> None:
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(), D, MEMORY, miner=miners.BatchHardMiner())
    assert isinstance(memory.queue_call(*draw(7, seed=1)).indices, RowChoice)


@pytest.mark.parametrize("with_miner", [False, True])
@pytest.mark.parametrize("loss", ["contrastive", "supcon", "triplet"])
def test_a_large_queue_takes_no_matrix(loss: str, with_miner: bool) -> None:
    """512 x 65,536 scores alone are 128 MiB, a list of the pairs 512 MiB; a copy of the queue is 1.5 MiB."""
    memory = losses.CrossBatchMemory(
        LOSSES[loss](OURS),
        D,
        65536,
        miner=miners.MultiSimilarityMiner(distance=LOSSES[loss](OURS).distance) if with_miner else None,
    )
    gen = torch.Generator().manual_seed(0)
    memory.embedding_memory.normal_(generator=gen)
    memory.label_memory.random_(0, 20000, generator=gen)
    memory.has_been_filled = True
    batch = draw(512, seed=1, classes=20000, dtype=torch.float32)
    step(memory, *batch)
    _, peak = measure_peak(lambda: step(memory, *batch))
    assert peak < 96 << 20


# ---- CrossBatchMemory: state -------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_exactly(tmp_path: Any) -> None:
    """Queue, position and type: also where the queue is wider than a new module's."""
    for dtype, batches in itertools.product((torch.float64, torch.float32, torch.bfloat16), (1, 5)):
        memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
        for k in range(batches):
            memory(*draw(7, seed=k, dtype=dtype))
        torch.save(memory.state_dict(), tmp_path / "state.pt")
        resumed = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert_same_queue(resumed, queue_of(memory))
        for k in range(10, 14):
            batch = draw(7, seed=k, dtype=dtype)
            for got, want in zip(step(resumed, *batch), step(memory, *batch), strict=True):
                assert torch.equal(got, want)
        assert_same_queue(resumed, queue_of(memory))


def test_the_state_dict_of_a_larger_model_holds_the_queue() -> None:
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(2, D), "loss": losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)})
    model["loss"](*draw(7, seed=0, dtype=torch.float32))
    state = model.state_dict()
    keys = ("embedding_memory", "label_memory", "queue_idx", "has_been_filled")
    assert all(f"loss.{key}" in state for key in keys)
    other = copy.deepcopy(model)
    other["loss"].reset_queue()
    assert other.load_state_dict(state).missing_keys == []
    assert other["loss"].queue_idx == 7
    with pytest.raises(RuntimeError, match=r"queue_idx must be from 0 to .* got 99"):
        other.load_state_dict(state | {"loss.queue_idx": torch.tensor(99)})


def test_a_state_dict_of_the_peer_is_an_empty_queue(caplog: pytest.LogCaptureFixture) -> None:
    theirs = pml.losses.CrossBatchMemory(pml.losses.SupConLoss(), D, MEMORY)
    theirs(*draw(7, seed=0, dtype=torch.float32))
    ours = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    ours.queue_idx = 5
    ours.load_state_dict(theirs.state_dict())
    assert ours.queue_idx == 0 and not ours.has_been_filled
    assert "queue_idx" in caplog.text


def test_copies_and_pickles_have_the_queue() -> None:
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(), D, MEMORY, miner=miners.MultiSimilarityMiner())
    for k in range(5):
        memory(*draw(7, seed=k))
    twins = copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))
    batch = draw(7, seed=9)
    want = step(memory, *batch)
    for twin in twins:
        assert_same_step(step(twin, *batch), want)
        assert_same_queue(twin, queue_of(memory))


class Raises(losses.SupConLoss):
    def compute_loss(self, *args: Any) -> Any:
        raise ArithmeticError("no")


class RaisesMiner(miners.BaseMiner):
    def mine(self, *args: Any) -> Any:
        raise ArithmeticError("no")


@pytest.mark.parametrize("where", ["loss", "miner", "input"])
@pytest.mark.parametrize("steps", ["lazy", "own"])
def test_a_call_that_raises_leaves_the_queue(where: str, steps: str) -> None:
    class Own(losses.CrossBatchMemory):
        def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
            super().add_to_memory(embeddings, labels, batch_size)

    memory = (Own if steps == "own" else losses.CrossBatchMemory)(losses.SupConLoss(), D, MEMORY)
    for k in range(4):
        memory(*draw(7, seed=k))
    before = queue_of(memory)
    if where == "loss":
        raising = Raises()
        memory.loss = raising
    if where == "miner":
        memory.miner = RaisesMiner()
    x, labels = draw(7, seed=9, dtype=torch.float32)
    with pytest.raises(ValueError if where == "input" else ArithmeticError):
        memory(x[:, :3] if where == "input" else x, labels)
    assert_same_queue(memory, before)
    assert memory.embedding_memory.dtype == torch.float64


def test_a_subclass_with_steps_of_its_own() -> None:
    """What overrides add_to_memory or create_indices_tuple is called as the peer calls it."""

    def subclass(m: SimpleNamespace) -> Any:
        class Halved(m.losses.CrossBatchMemory):  # type: ignore[misc, name-defined]
            def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
                super().add_to_memory(embeddings * 0.5 + 0.1, labels, batch_size)

            def create_indices_tuple(self, *args: Any) -> Any:
                a1, p, a2, n = super().create_indices_tuple(*args)
                return a1[::2], p[::2], a2, n

        return Halved(m.losses.ContrastiveLoss(), D, MEMORY)

    ours, theirs = subclass(OURS), subclass(PEER)
    for k in range(6):
        assert_same_step(*(step(memory, *draw(7, seed=k)) for memory in (ours, theirs)))
        assert_same_queue(ours, queue_of(theirs))


def test_a_gradient_reaches_the_batch_alone() -> None:
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    first = draw(7, seed=0)[0].requires_grad_()
    memory(first, draw(7, seed=0)[1])
    second = draw(7, seed=1)[0].requires_grad_()
    memory(second, draw(7, seed=1)[1]).backward()
    assert first.grad is None and second.grad is not None and second.grad.any()
    assert not memory.embedding_memory.requires_grad


def test_several_steps_before_one_backward() -> None:
    """The queue has moved on by then; the gradients are those of the step."""
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(reducer=reducers.DoNothingReducer()), D, MEMORY)
    batches = [draw(7, seed=k) for k in range(4)]
    alone = []
    twin = copy.deepcopy(memory)
    for x, labels in batches:
        x = x.requires_grad_()
        alone.append(torch.autograd.grad(twin(x, labels)["loss"]["losses"].sum(), x)[0])
    total = sum(memory(x, labels)["loss"]["losses"].sum() for x, labels in batches)
    for got, want in zip(torch.autograd.grad(total, [x for x, _ in batches]), alone, strict=True):
        torch.testing.assert_close(got, want)


# ---- CrossBatchMemory: edges and differences ---------------------------------------------------------------------------------


def test_nothing_to_enqueue_leaves_the_queue_unfilled() -> None:
    """The peer then takes the queue for full, and compares with rows of zeros."""
    ours, theirs = (m.losses.CrossBatchMemory(m.losses.ContrastiveLoss(), D, MEMORY) for m in (OURS, PEER))
    x, labels = draw(7, seed=0)
    for memory in (ours, theirs):
        memory(x, labels)
        memory(x, labels, enqueue_mask=torch.zeros(7, dtype=torch.bool))
    assert not ours.has_been_filled and ours.queue_idx == 7
    assert theirs.has_been_filled


def test_of_a_mask_beyond_the_queue_the_last_rows_stay() -> None:
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, 5)
    memory(*draw(3, seed=0))
    x, labels = draw(14, seed=1)
    memory(x, labels, enqueue_mask=torch.arange(14) < 12)
    assert memory.has_been_filled and memory.queue_idx == (3 + 12) % 5
    assert torch.equal(memory.embedding_memory.roll(-memory.queue_idx, 0), x[7:12])


@pytest.mark.parametrize("loss", LOSSES)
def test_edges(loss: str) -> None:
    memory = losses.CrossBatchMemory(LOSSES[loss](OURS), D, 8)
    empty = torch.zeros(0, D, dtype=torch.float64, requires_grad=True)
    assert memory(empty, torch.zeros(0, dtype=torch.int64)) == 0
    assert memory.queue_idx == 0
    one = torch.ones(1, D, dtype=torch.float64)
    value, grad = step(memory, one, torch.zeros(1, dtype=torch.int64))
    assert value == 0 or loss == "multi_similarity"
    assert not grad.any()
    # As many as the queue holds, all alike; then the batch is the whole queue.
    value, grad = step(memory, one.expand(8, D), torch.arange(8) % 2)
    assert memory.has_been_filled and value.isfinite() and grad.isfinite().all()
    bad = torch.randn(8, D, dtype=torch.float64)
    bad[3, 2] = float("nan")
    assert memory(bad, torch.arange(8) % 2).isnan()


def test_labels_of_any_kind() -> None:
    for labels in (torch.tensor([0.5, 1.5] * 3), torch.tensor([0, 1] * 3, dtype=torch.int32), torch.tensor([-7, 1 << 40] * 3)):
        memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, MEMORY)
        want = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, MEMORY)
        for k in range(2):
            x, _ = draw(6, seed=k)
            torch.testing.assert_close(memory(x, labels), want(x, torch.arange(6) % 2))
        assert memory.label_memory.dtype == labels.dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    exact = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    for k in range(5):
        x, labels = draw(7, seed=k, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = memory(x, labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact(x.double(), labels).item(), rel=0.02)


def test_compiled_memory_does_not_compile_every_position(caplog: pytest.LogCaptureFixture) -> None:
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    twin = copy.deepcopy(memory)
    compiled = torch.compile(memory, backend="eager")
    for k in range(12):
        batch = draw(5, seed=k)
        torch.testing.assert_close(compiled(*batch), twin(*batch))
    assert "recompile_limit" not in caplog.text
    assert_same_queue(memory, queue_of(twin))


def test_memory_refuses_bad_calls() -> None:
    memory = losses.CrossBatchMemory(losses.SupConLoss(), D, MEMORY)
    x, labels = draw(7, seed=0)
    mask = torch.ones(7, dtype=torch.bool)
    calls: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "embedding_size", lambda: memory(torch.zeros(7, D + 1), labels)),
        (ValueError, "at most memory_size = 23", lambda: memory(torch.zeros(24, D), torch.zeros(24))),
        (ValueError, "labels", lambda: memory(x, labels[:3])),
        (TypeError, "labels must be a tensor", lambda: memory(x, None)),
        (ValueError, "mutually exclusive", lambda: memory(x, labels, (labels, labels, labels), mask)),
        (TypeError, "enqueue_mask must be a bool", lambda: memory(x, labels, None, labels)),
        (ValueError, "enqueue_mask must have shape", lambda: memory(x, labels, None, mask[:2])),
        (ValueError, "rows of the memory, 0 to 6", lambda: memory(x, labels, (labels, labels + 9, labels))),
        (ValueError, "memory_size must be a positive int", lambda: losses.CrossBatchMemory(losses.SupConLoss(), D, 0)),
        (ValueError, "embedding_size must be a positive int", lambda: losses.CrossBatchMemory(losses.SupConLoss(), -1)),
        (ValueError, "got CrossBatchMemory", lambda: losses.CrossBatchMemory(memory, D)),
        (TypeError, "loss must be a loss object", lambda: losses.CrossBatchMemory("SupConLoss", D)),
        (ValueError, "miner and a reference set of its own", lambda: explain(memory, x, labels, miners.BatchHardMiner())),
    ]
    for kind, message, bad in calls:
        with pytest.raises(kind, match=message):
            bad()
    assert memory.queue_idx == 0


def test_supported_losses_and_records_equal_the_peer() -> None:
    for name in ("CrossBatchMemory", "SelfSupervisedLoss"):
        assert getattr(losses, name).supported_losses() == getattr(pml.losses, name).supported_losses()
    ours, theirs = (m.losses.CrossBatchMemory(m.losses.SupConLoss(), D, MEMORY) for m in (OURS, PEER))
    assert ours._record_these == theirs._record_these


# ---- SelfSupervisedLoss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_self_supervised_equals_the_peer(loss: str, symmetric: bool) -> None:
    x, y = draw(9, seed=0)[0].requires_grad_(), draw(9, seed=1)[0].requires_grad_()
    found = []
    for m in (OURS, PEER):
        value = m.losses.SelfSupervisedLoss(LOSSES[loss](m), symmetric=symmetric)(x, y)
        found.append((value.detach(), *torch.autograd.grad(value, (x, y))))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def test_self_supervised_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(9, 6\), got \(8, 6\)"):
        losses.SelfSupervisedLoss(losses.NTXentLoss())(draw(9, 0)[0], draw(8, 0)[0])
    with pytest.raises(ValueError, match="got MultipleLosses"):
        losses.SelfSupervisedLoss(losses.MultipleLosses([losses.NTXentLoss()]))


def test_a_users_wrapper() -> None:
    class Doubled(losses.BaseLossWrapper):
        def __init__(self, loss: Any) -> None:
            super().__init__(loss)
            self.loss = loss

        @staticmethod
        def supported_losses() -> list[str]:
            return ["SupConLoss"]

        def forward(self, *args: Any) -> Tensor:
            return 2 * self.loss(*args)

    x, labels = draw(9, seed=0)
    torch.testing.assert_close(Doubled(losses.SupConLoss())(x, labels), 2 * losses.SupConLoss()(x, labels))
    with pytest.raises(ValueError, match="must be one of SupConLoss, got CircleLoss"):
        Doubled(losses.CircleLoss())
    with pytest.raises(NotImplementedError):
        losses.BaseLossWrapper(losses.CircleLoss())


# ---- MultipleLosses ----------------------------------------------------------------------------------------------------------


def several(m: SimpleNamespace, kind: str) -> Any:
    parts = [m.losses.SupConLoss(), m.losses.TripletMarginLoss(0.2)]
    if kind == "list":
        return m.losses.MultipleLosses(parts)
    if kind == "mined list":
        return m.losses.MultipleLosses(parts, miners=[m.miners.MultiSimilarityMiner(), None], weights=[0.5, 2])
    named = dict(zip("ab", parts, strict=True))
    if kind == "dict":
        return m.losses.MultipleLosses(named, weights={"b": 3, "a": 0.1})
    return m.losses.MultipleLosses(named, miners={"b": m.miners.TripletMarginMiner()})


@pytest.mark.parametrize("kind", ["list", "mined list", "dict", "mined dict"])
def test_several_losses_equal_the_peer(kind: str) -> None:
    batch = draw(15, seed=0)
    assert_same_step(*(step(several(m, kind), *batch) for m in (OURS, PEER)))
    if "mined" not in kind:
        triplets = tuple(lmu.get_all_triplets_indices(batch[1]))
        assert_same_step(*(step(several(m, kind), *batch, tuple(t[::3] for t in triplets)) for m in (OURS, PEER)))


def test_several_losses_around_a_memory() -> None:
    ours, theirs = (
        m.losses.MultipleLosses([m.losses.CrossBatchMemory(m.losses.SupConLoss(), D, MEMORY), m.losses.CircleLoss()])
        for m in (OURS, PEER)
    )
    for k in range(5):
        assert_same_step(*(step(loss, *draw(7, seed=k)) for loss in (ours, theirs)))


def test_several_losses_copy_pickle_and_hold_their_parts() -> None:
    batch = draw(15, seed=0)
    for kind in ("mined list", "mined dict"):
        loss = several(OURS, kind)
        want = step(loss, *batch)
        for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert_same_step(step(twin, *batch), want)
        assert loss.is_dict == ("dict" in kind) and len(loss.losses) == 2


def test_several_losses_refuse_what_does_not_fit() -> None:
    parts = [losses.SupConLoss(), losses.CircleLoss()]
    named = {"a": parts[0], "b": parts[1]}
    calls: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, "losses must be a list or a dict", lambda: losses.MultipleLosses(parts[0])),
        (TypeError, "weights must be a list", lambda: losses.MultipleLosses(parts, weights={"a": 1})),
        (ValueError, "each of the 2 losses, got 1", lambda: losses.MultipleLosses(parts, weights=[1])),
        (TypeError, "miners must be a dict", lambda: losses.MultipleLosses(named, miners=[None, None])),
        (ValueError, r"exactly the keys of losses \(a, b\), got a", lambda: losses.MultipleLosses(named, weights={"a": 1})),
        (ValueError, "only the keys", lambda: losses.MultipleLosses(named, miners={"c": miners.BatchHardMiner()})),
        (ValueError, "has miners", lambda: several(OURS, "mined list")(*draw(5, 0), (torch.tensor([0]),) * 3)),
    ]
    for kind, message, bad in calls:
        with pytest.raises(kind, match=message):
            bad()


# ---- PrecomputedDistance and BatchedDistance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("miner", ["none", "multi_similarity", "batch_hard"])
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "circle"])
def test_a_matrix_at_hand_equals_the_distance_that_made_it(loss: str, miner: str) -> None:
    x, labels = draw(11, seed=0)
    x.requires_grad_()
    for inverted, distance in ((True, distances.CosineSimilarity()), (False, distances.LpDistance())):
        found = []
        for how in (distance, distances.PrecomputedDistance(distance(x), is_inverted=inverted)):
            mine = MINERS[miner](OURS)
            if mine is not None:
                mine.distance = how
            value = LOSSES[loss](OURS, distance=how)(x, labels, None if mine is None else mine(x, labels))
            found.append((value.detach(), torch.autograd.grad(value, x)[0]))
        assert_same_step(*found)


def test_a_matrix_at_hand_against_a_reference_set() -> None:
    x, labels = draw(11, seed=0)
    y, ref_labels = draw(5, seed=1)
    mat = distances.LpDistance()(x, y).requires_grad_()
    loss = losses.ContrastiveLoss(distance=distances.PrecomputedDistance())
    loss.distance.mat = mat
    value = loss(x, labels, None, y, ref_labels)
    torch.testing.assert_close(value, losses.ContrastiveLoss()(x, labels, None, y, ref_labels))
    assert torch.autograd.grad(value, mat)[0].any()
    plan = explain(loss, x, labels, ref_emb=y, ref_labels=ref_labels)
    assert plan.mode == "materialised" and "given to PrecomputedDistance" in plan.notes[0]
    with pytest.raises(ValueError, match=r"must have shape \(11, 11\), got \(11, 5\)"):
        loss(x, labels)
    with pytest.raises(TypeError, match="mat of PrecomputedDistance must be a tensor, got NoneType"):
        losses.ContrastiveLoss(distance=distances.PrecomputedDistance())(x, labels)


@pytest.mark.parametrize("with_ref", [True, False])
def test_blocks_of_a_distance_equal_the_peer(with_ref: bool) -> None:
    x, y = draw(11, seed=0)[0], draw(5, seed=1)[0]
    found: list[list[Any]] = []
    for m in (OURS, PEER):
        blocks: list[Any] = []
        distance = m.distances.BatchedDistance(
            m.distances.SNRDistance(), lambda mat, s, e, out=blocks: out.append((mat, s, e)), 4
        )
        assert distance(x, y if with_ref else None) is None
        assert distance.power == 1 and not distance.is_inverted
        found.append(blocks)
    assert [b[1:] for b in found[0]] == [b[1:] for b in found[1]] == [(0, 4), (4, 8), (8, 12)]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got[0], want[0])


def test_blocks_copy_pickle_and_refuse() -> None:
    distance = distances.BatchedDistance(distances.LpDistance(power=2))
    for twin in (copy.deepcopy(distance), pickle.loads(pickle.dumps(distance))):
        assert twin.power == 2 and twin.batch_size == 32
    with pytest.raises(TypeError, match="iter_fn"):
        distance(torch.ones(2, 2))
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        distances.BatchedDistance(distances.LpDistance(), batch_size=0)
    with pytest.raises(AttributeError, match="wings"):
        _ = distance.wings
