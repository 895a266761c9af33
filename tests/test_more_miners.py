"""The hardest share, angles and ready-made triplets: what they choose, and what their statistics are, equals the peer's."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_metric_learning.distances
import pytorch_metric_learning.miners
import torch
from torch import Tensor

from pml_fast import distances, losses, miners, use
from pml_fast.engine import angles, grad_sum, hardest
from pml_fast.engine.lazy import HardestPairs, LazyIndices
from pml_fast.engine.plan import FUSED, PARTLY
from pml_fast.engine.score import NAMED_SCORES
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.miners.drawn_miner import DrawnMiner
from pml_fast.reducers import SumReducer
from pml_fast.utils.index_types import TripletIndices

PEER = SimpleNamespace(distances=pytorch_metric_learning.distances, miners=pytorch_metric_learning.miners)
OURS = SimpleNamespace(distances=distances, miners=miners)


def users_distance(m: SimpleNamespace) -> Any:
    class UsersDistance(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

    return UsersDistance()


DISTANCES = {
    "cosine": lambda m: m.distances.CosineSimilarity(),
    "dot_raw": lambda m: m.distances.DotProductSimilarity(normalize_embeddings=False),
    "l1": lambda m: m.distances.LpDistance(p=1),
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared_raw": lambda m: m.distances.LpDistance(power=2, normalize_embeddings=False),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": users_distance,
}
LABELS = {
    "four_a_class": lambda n: torch.arange(n) // 4,
    "ragged": lambda n: torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 0, 7, 1])[torch.arange(n) % 14],
    "one_class": lambda n: torch.full((n,), 3),
    "all_distinct": lambda n: torch.arange(n),
}
SIZES = ((14, None), (2, None), (1, None), (11, 17), (9, 1))


def batch(n: int, m: int | None, labels: str, dtype: torch.dtype = torch.float64, d: int = 6) -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(n + 7 * (m or 0))
    x = torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype) * 0.7
    if m is None:
        return x, LABELS[labels](n)
    return x, LABELS[labels](n), torch.randn(m, d, generator=gen, dtype=torch.float64).to(dtype) * 0.7, LABELS[labels](m)


def as_set(*index: Tensor) -> set[tuple[int, ...]]:
    members = list(zip(*(part.tolist() for part in index), strict=True))
    assert len(set(members)) == len(members)
    return set(members)


# ---- the hardest share -------------------------------------------------------------------------------------------------------


def assert_hardest(got: Sequence[Tensor], want: Sequence[Tensor], mat: Tensor) -> None:
    """The same pairs, but where pairs tie: those have the peer's count and values."""
    for k in (0, 2):
        ours, theirs = as_set(*got[k : k + 2]), as_set(*want[k : k + 2])
        assert len(ours) == len(theirs)
        extra, missing = (sorted(mat[i, j].item() for i, j in side) for side in (ours - theirs, theirs - ours))
        assert extra == pytest.approx(missing, rel=1e-12, abs=1e-14)
        # Random rows tie with nothing but their mirror image.
        assert len(extra) <= 1


# A small batch against itself is one compiled call where that is there.
BACKENDS = ["auto", "chunked"]


@pytest.mark.parametrize(("backend", "strip"), [("auto", 1 << 20), ("chunked", 60), ("chunked", 1 << 20)])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_hardest_share_is_the_peers(distance: str, backend: Any, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a reference set, in one strip and in many."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", strip)
    with use(backend=backend):
        compare_hardest(distance)


def compare_hardest(distance: str) -> None:
    for labels, (n, m), share in itertools.product(LABELS, SIZES, (0.01, 0.37, 0.5, 1.0)):
        data = batch(n, m, labels)
        ours = miners.HDCMiner(share, distance=DISTANCES[distance](OURS))
        got = ours(*data)
        assert isinstance(got, HardestPairs)
        want = PEER.miners.HDCMiner(share, distance=DISTANCES[distance](PEER))(*data)
        assert_hardest(tuple(got), want, ours.distance(data[0], data[2] if m else data[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_hardest_share_of_other_types(dtype: torch.dtype) -> None:
    """As many as the peer's in float64, and none that is easier than one that was left out."""
    x, labels = batch(90, None, "four_a_class", dtype, 32)
    a1, p, a2, n = miners.HDCMiner(0.3, distance=distances.CosineSimilarity())(x, labels)
    want = PEER.miners.HDCMiner(0.3, distance=PEER.distances.CosineSimilarity())(x.double(), labels)
    assert (len(a1), len(a2)) == (len(want[0]), len(want[2]))
    mat = distances.CosineSimilarity()(x.double())
    assert mat[a1, p].max() <= mat[want[0], want[1]].max() + 1e-6
    assert mat[a2, n].min() >= mat[want[2], want[3]].min() - 1e-6


@pytest.mark.parametrize("share", [0.1, 0.45, 0.5, 0.9])
def test_both_ways_to_the_threshold_agree(share: float) -> None:
    """On rules and on ties, for any distance with a kernel: in the batch's own order, with a row that is not a number."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-1, 2, (40, 3), generator=generator).double()
    labels = torch.randint(5, (40,), generator=generator)
    for score in NAMED_SCORES:
        for rows in (x, x.index_fill(0, torch.tensor(7), torch.nan), x[:3], x[:1]):
            inputs = rows, rows, labels[: len(rows)], labels[: len(rows)], NAMED_SCORES[score].encode(), True, share
            got = torch.ops.pml_fast.hardest_rule(*inputs)
            with use(backend="chunked"):
                want = torch.ops.pml_fast.hardest_rule(*inputs)
            torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=1e-12)
            assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.1, 0.45, 0.5, 0.9])
def test_ties_are_cut_at_the_peers_count(share: float, backend: Any) -> None:
    with use(backend=backend):
        compare_ties(share)


def compare_ties(share: float) -> None:
    """A collapsed model: every pair ties; and a batch of duplicates, where some do."""
    labels = torch.arange(12) % 3
    collapsed = torch.ones(12, 4, dtype=torch.float64)
    duplicates = torch.eye(4, dtype=torch.float64)[torch.arange(12) % 4]
    for x in (collapsed, duplicates):
        miner = miners.HDCMiner(share)
        lazy = miner(x, labels)
        want = PEER.miners.HDCMiner(share)(x, labels)
        got = tuple(lazy)
        assert [len(part) for part in got] == [len(part) for part in want]
        as_set(*got[:2]), as_set(*got[2:])
        assert ((labels[got[0]] == labels[got[1]]) & (got[0] != got[1])).all()
        mat = miner.distance(x)
        for k in (0, 2):
            values = [torch.sort(mat[t[k], t[k + 1]]).values for t in (got, want)]
            torch.testing.assert_close(*values, rtol=0, atol=1e-7)
        # A loss on it counts exactly those pairs, by the rule or by the tuple.
        loss = losses.ContrastiveLoss(pos_margin=-0.1, neg_margin=3)
        torch.testing.assert_close(loss(x, labels, miner(x, labels)), loss(x, labels, got))


def test_ties_within_one_anchor_are_not_a_rule() -> None:
    x, labels = torch.ones(12, 4), torch.arange(12) % 3
    lazy = miners.HDCMiner(0.45)(x, labels)
    plan = losses.ContrastiveLoss().plan(prepare_call(x, labels, lazy, None, None))
    assert plan.mode == PARTLY and "tie" in plan.notes[0]
    x, labels = batch(30, None, "ragged")
    plan = losses.ContrastiveLoss().plan(prepare_call(x, labels, miners.HDCMiner(0.45)(x, labels), None, None))
    assert plan.mode == FUSED


@pytest.mark.parametrize("loss", [losses.ContrastiveLoss(), losses.TripletMarginLoss(), losses.SupConLoss()], ids=repr)
@pytest.mark.parametrize("m", [None, 23])
@pytest.mark.parametrize("share", [0.31, 0.5, 0.77])
def test_a_loss_fuses_the_hardest_share(loss: Any, m: int | None, share: float) -> None:
    for dtype in (torch.float32, torch.float64):
        data = batch(30, m, "ragged", dtype)
        x = data[0].requires_grad_()
        lazy = miners.HDCMiner(share)(*data)
        value = loss(x, data[1], lazy, *data[2:])
        assert "not materialised" in repr(lazy)
        want = loss(x, data[1], tuple(lazy), *data[2:])
        torch.testing.assert_close(value, want)
        grads = [torch.autograd.grad(v, x)[0] for v in (value, want)]
        torch.testing.assert_close(*grads)


def test_candidates_from_outside() -> None:
    """Each call keeps the hardest of those that the one before has left, as in the peer."""
    x, labels = batch(14, None, "ragged")
    given = miners.TripletMarginMiner()(x, labels)
    for distance in ("l2", "cosine", "users"):
        ours, theirs = (m.miners.HDCMiner(0.4, distance=DISTANCES[distance](m)) for m in (OURS, PEER))
        ours.set_idx_externally(given, labels)
        theirs.set_idx_externally(tuple(given), labels)
        for _ in range(2):
            got, want = ours(x, labels), theirs(x, labels)
            mat = ours.distance(x)
            for k in (0, 2):
                values = [torch.sort(mat[t[k], t[k + 1]]).values for t in (got, want)]
                torch.testing.assert_close(*values)
        ours.reset_idx(), theirs.reset_idx()
        assert_hardest(tuple(ours(x, labels)), theirs(x, labels), mat)


def test_nan_rows_are_never_mined() -> None:
    x, labels = batch(14, None, "ragged")
    x[3] = torch.nan
    for miner in (miners.HDCMiner(0.9), miners.UniformHistogramMiner(seed=0), miners.DistanceWeightedMiner(seed=0)):
        got = tuple(miner(x, labels))
        assert len(got[0]) > 0
        others = got[2:] if isinstance(miner, miners.DistanceWeightedMiner) else got
        assert not any((part == 3).any() for part in others)


def test_the_threshold_is_exact_for_any_float() -> None:
    """Negative, tiny, huge and infinite values, both zeros."""
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0, torch.inf, -torch.inf, 1e-30, 2.0])
    for dtype in (torch.float32, torch.float64):
        v = values.to(dtype)
        key = hardest._ordered(v)
        assert torch.equal(hardest._value(key, dtype), v)
        order = torch.argsort(v + 0.0, stable=True)
        ordered = hardest._ordered(v + 0.0)[order]
        assert ((ordered[1:] > ordered[:-1]) == (v[order][1:] > v[order][:-1])).all()


# ---- angles ------------------------------------------------------------------------------------------------------------------


def own_pairwise(m: SimpleNamespace) -> Any:
    class Own(m.distances.LpDistance):  # type: ignore[misc, name-defined]
        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return (query_emb - ref_emb).abs().sum(dim=1)

    return Own()


@pytest.mark.parametrize("strip", [60, 1 << 20])
@pytest.mark.parametrize("distance", ["default", "own"])
def test_angles_and_their_statistics_are_the_peers(distance: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", strip)
    monkeypatch.setattr(angles, "STRIP_ELEMENTS", strip)
    for labels, (n, m), angle in itertools.product(LABELS, SIZES, (1, 20, 41.5, 89, 120)):
        data = batch(n, m, labels)
        options = [{} if distance == "default" else {"distance": own_pairwise(k)} for k in (OURS, PEER)]
        ours = miners.AngularMiner(angle, collect_stats=True, **options[0])
        theirs = PEER.miners.AngularMiner(angle, collect_stats=True, **options[1])
        assert ours.angle == pytest.approx(theirs.angle)
        got, want = ours(*data), theirs(*data)
        assert as_set(*got) == as_set(*want), (labels, n, m, angle)
        assert ours._record_these == theirs._record_these and ours._record_these_stats == theirs._record_these_stats
        for name in theirs._record_these_stats:
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-9, abs=1e-12, nan_ok=True), name


def test_equal_embeddings_have_the_peers_angle() -> None:
    """The distance of torch is never 0: a collapsed batch stands at atan(1/2)."""
    x, labels = torch.ones(6, 4, dtype=torch.float64), torch.arange(6) % 2
    for angle in (20, 30):
        assert as_set(*miners.AngularMiner(angle)(x, labels)) == as_set(*PEER.miners.AngularMiner(angle)(x, labels))


def test_angles_are_lazy() -> None:
    x, labels = batch(14, None, "ragged")
    x.requires_grad_()
    lazy = miners.AngularMiner()(x, labels)
    assert isinstance(lazy, LazyIndices) and len(lazy) == 3 and "20 degrees; not materialised" in repr(lazy)
    plan = losses.TripletMarginLoss().plan(prepare_call(x, labels, lazy, None, None))
    assert plan.mode == PARTLY and "no predicate" in plan.notes[0]
    a, p, n = lazy
    assert a.dtype == torch.int64 and (labels[a] == labels[p]).all() and (labels[a] != labels[n]).all()
    stale = miners.AngularMiner()(x, labels)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        tuple(stale)


# ---- triplets by position ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 12])
def test_packaged_triplets(n: int) -> None:
    x, labels = torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)
    got = miners.EmbeddingsAlreadyPackagedAsTriplets()(x, labels)
    assert isinstance(got, TripletIndices)
    want = PEER.miners.EmbeddingsAlreadyPackagedAsTriplets()(x, labels)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("n", [1, 2, 10])
def test_an_incomplete_triplet_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 3 rows .* got {n}"):
        miners.EmbeddingsAlreadyPackagedAsTriplets()(torch.randn(n, 4), torch.zeros(n, dtype=torch.int64))


# ---- all of them -------------------------------------------------------------------------------------------------------------

NAMES = [name for name in miners.__all__ if name != "BaseMiner"]
BEYOND_THE_PEER = {"LabelComparisonMiner"}


def test_every_miner_of_the_peer_is_here() -> None:
    theirs = {name for name, cls in vars(PEER.miners).items() if inspect.isclass(cls)}
    assert theirs == set(miners.__all__) - BEYOND_THE_PEER


@pytest.mark.parametrize("name", sorted({*miners.__all__} - BEYOND_THE_PEER))
def test_arguments_settings_and_distances_are_the_peers(name: str) -> None:
    ours, theirs = getattr(miners, name), getattr(PEER.miners, name)
    want = [(k, p.default, p.kind) for k, p in inspect.signature(theirs.__init__).parameters.items()]
    have = [(k, p.default, p.kind) for k, p in inspect.signature(ours.__init__).parameters.items()]
    assert have == want
    mine, its = ours(collect_stats=True), theirs(collect_stats=True)
    assert type(mine.distance).__name__ == type(its.distance).__name__
    for attribute in ("p", "power", "normalize_embeddings", "is_inverted"):
        assert getattr(mine.distance, attribute) == getattr(its.distance, attribute)
    for recordable in ("_record_these", "_record_these_stats"):
        assert getattr(mine, recordable, []) == getattr(its, recordable, [])
    for attribute in getattr(its, "_record_these", []):
        assert getattr(mine, attribute) == pytest.approx(getattr(its, attribute))
    assert not mine.state_dict()


REFUSED = [
    ("AngularMiner", {"angle": 0}, ValueError, r"angle must be in \(0, 180\), got 0"),
    ("AngularMiner", {"angle": 180}, ValueError, "angle"),
    ("AngularMiner", {"angle": -20}, ValueError, "angle"),
    ("AngularMiner", {"angle": float("nan")}, ValueError, "angle"),
    ("AngularMiner", {"angle": "20"}, TypeError, "angle must be a number"),
    ("AngularMiner", {"distance": distances.CosineSimilarity()}, TypeError, "LpDistance"),
    ("AngularMiner", {"distance": distances.LpDistance(p=1)}, ValueError, r"distance\.p"),
    ("AngularMiner", {"distance": distances.LpDistance(power=2)}, ValueError, r"distance\.power"),
    ("DistanceWeightedMiner", {"cutoff": -0.1}, ValueError, "cutoff must be in"),
    ("DistanceWeightedMiner", {"nonzero_loss_cutoff": -1}, ValueError, "nonzero_loss_cutoff"),
    ("DistanceWeightedMiner", {"nonzero_loss_cutoff": None}, TypeError, "nonzero_loss_cutoff"),
    ("DistanceWeightedMiner", {"distance": distances.LpDistance(normalize_embeddings=False)}, ValueError, "normalize"),
    ("DistanceWeightedMiner", {"seed": 1.5}, TypeError, "seed"),
    ("DistanceWeightedMiner", {"generator": 3}, TypeError, "generator"),
    ("DistanceWeightedMiner", {"generator": torch.Generator(), "seed": 3}, ValueError, "both"),
    ("HDCMiner", {"filter_percentage": 0}, ValueError, r"filter_percentage must be in \(0, 1\], got 0"),
    ("HDCMiner", {"filter_percentage": 1.01}, ValueError, "filter_percentage"),
    ("HDCMiner", {"filter_percentage": None}, TypeError, "filter_percentage"),
    ("UniformHistogramMiner", {"num_bins": 0}, ValueError, "num_bins must be a positive int, got 0"),
    ("UniformHistogramMiner", {"num_bins": 2.5}, TypeError, "num_bins"),
    ("UniformHistogramMiner", {"pos_per_bin": 0}, ValueError, "pos_per_bin"),
    ("UniformHistogramMiner", {"neg_per_bin": -3}, ValueError, "neg_per_bin"),
    ("UniformHistogramMiner", {"seed": True}, TypeError, "seed"),
]


@pytest.mark.parametrize(("name", "options", "error", "match"), REFUSED)
def test_bad_settings_are_refused(name: str, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(miners, name)(**options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", ["one_class", "all_distinct"])
def test_batches_without_triplets_and_empty_ones(name: str, labels: str) -> None:
    """No tuple that needs both kinds; int64 whatever comes out; a loss of it is a finite number."""
    for n, m in ((0, None), (12, None), (6, 0), (0, 6)):
        data = batch(n, m, labels) if m != 0 else (*batch(n, None, labels), torch.zeros(0, 6).double(), torch.zeros(0).long())
        if name == "EmbeddingsAlreadyPackagedAsTriplets" and m is not None:
            continue
        miner = getattr(miners, name)(collect_stats=True)
        got = miner(*data)
        parts = tuple(got)
        assert all(part.dtype == torch.int64 for part in parts)
        if name != "EmbeddingsAlreadyPackagedAsTriplets":
            if len(parts) == 3 or n == 0 or m == 0:
                assert all(len(part) == 0 for part in parts)
            elif labels == "one_class":
                assert len(parts[2]) == len(parts[3]) == 0
            elif m is None:
                assert len(parts[0]) == len(parts[1]) == 0
        x = data[0].requires_grad_()
        value = losses.TripletMarginLoss()(x, data[1], got, *data[2:])
        assert torch.isfinite(value)
        assert torch.isfinite(torch.autograd.grad(value, x)[0]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_mine_alike(name: str, how: str) -> None:
    data = batch(15, None, "ragged")
    options = {"seed": 3} if issubclass(getattr(miners, name), DrawnMiner) else {}
    miner = getattr(miners, name)(**options)
    miner(*data)
    other = copy.deepcopy(miner) if how == "deepcopy" else pickle.loads(pickle.dumps(miner))
    for _ in range(2):
        # A copy of a drawing miner goes on from the same state.
        pairs = zip(tuple(miner(*data)), tuple(other(*data)), strict=True)
        assert all(torch.equal(ours, its) for ours, its in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_collected(name: str) -> None:
    data = batch(15, None, "ragged")
    miner = getattr(miners, name)(collect_stats=True)
    got = tuple(miner(*data))
    if len(got) == 3:
        assert miner.num_triplets == len(got[0])
    else:
        assert (miner.num_pos_pairs, miner.num_neg_pairs) == (len(got[0]), len(got[2]))


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_hardest_share_compiles_into_one_graph(share: float) -> None:
    for loss in (losses.ContrastiveLoss(), losses.TripletMarginLoss()):
        miner = miners.HDCMiner(share)

        def step(x: Tensor, labels: Tensor) -> Tensor:
            return loss(x, labels, miner(x, labels))  # noqa: B023

        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        x, labels = batch(24, None, "ragged")
        grads = []
        for call in (step, compiled):
            leaf = x.clone().requires_grad_()
            value = call(leaf, labels)
            grads.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        torch.testing.assert_close(grads[0], grads[1])


def test_ties_of_one_anchor_stay_together_in_a_graph() -> None:
    """A graph cannot ask whether they tie: it counts a few more of them, never fewer."""
    x, labels = torch.ones(12, 4), torch.arange(12) % 3
    miner, loss = miners.HDCMiner(0.45), losses.ContrastiveLoss(pos_margin=-1, neg_margin=3, reducer=SumReducer())
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: loss(x, labels, miner(x, labels)), fullgraph=True, backend="eager")
    assert loss(x, labels, miner(x, labels)) == 17 * 1 + 44 * 3
    # ceil(0.45 * 36) = 17 positives end within the sixth anchor's 3; ceil(0.45 * 96) = 44 negatives with one's 8 are 48.
    assert compiled(x) == 18 * 1 + 48 * 3


def test_the_last_result_is_not_kept() -> None:
    x, labels = batch(14, None, "ragged")
    miner = miners.HDCMiner()
    miner(x, labels)
    assert miner.a1 is miner.n is None
    miner.set_idx(labels, labels)
    assert len(miner.a1) == len(miner.p) > 0
    miner.reset_idx()
    assert miner.a1 is None


@pytest.mark.parametrize("name", ["HDCMiner", "UniformHistogramMiner", "DistanceWeightedMiner"])
def test_no_matrix_is_held(name: str) -> None:
    """At 2048 x 2048 no tensor that an operation makes is as large as the matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(part):
                    largest = max(largest, part.untyped_storage().nbytes())
            return out

    n = 2048
    x, labels = torch.randn(n, 8), torch.arange(n) % 512
    with Watch():
        getattr(miners, name)()(x, labels)
    assert 0 < largest < n * n * 8


# ---- at most so many tuples an anchor ----------------------------------------------------------------------------------------


def test_tuples_are_limited_per_anchor() -> None:
    from pml_fast.utils.loss_and_miner_utils import get_all_pairs_indices, get_all_triplets_indices, limit_tuples

    labels = LABELS["ragged"](14)
    for full in (
        get_all_triplets_indices(labels),
        get_all_pairs_indices(labels),
        miners.HDCMiner()(*batch(14, None, "ragged")),
    ):
        for most in (1, 2, 5, 1000):
            few = limit_tuples(full, most, torch.Generator().manual_seed(1))
            again = limit_tuples(tuple(full), most, torch.Generator().manual_seed(1))
            assert type(few) is type(again) and all(torch.equal(a, b) for a, b in zip(few, again, strict=True))
            groups = [slice(0, 3)] if len(full) == 3 else [slice(0, 2), slice(2, 4)]
            for group in groups:
                kept, all_of = as_set(*few[group]), as_set(*full[group])
                assert kept <= all_of
                have, could = (Counter(t[0] for t in some) for some in (kept, all_of))
                assert have == {anchor: min(most, count) for anchor, count in could.items()}
                if most == 1000:
                    assert all(torch.equal(a, b) for a, b in zip(few[group], full[group], strict=True))


def test_the_limited_tuples_are_a_uniform_draw() -> None:
    from pml_fast.utils.loss_and_miner_utils import limit_tuples

    anchor, other = torch.tensor([4, 1, 4, 4, 4, 4]), torch.arange(6)
    gen = torch.Generator().manual_seed(0)
    seen = Counter(t for _ in range(3000) for t in as_set(*limit_tuples((anchor, other, other), 2, gen)))
    assert seen[(1, 1, 1)] == 3000
    for k in (0, 2, 3, 4, 5):
        assert abs(seen[(4, k, k)] - 1200) < 6 * (3000 * 0.4 * 0.6) ** 0.5


def test_bad_limits_are_refused() -> None:
    from pml_fast.utils.loss_and_miner_utils import limit_tuples

    index = torch.arange(3)
    assert [len(x) for x in limit_tuples((index[:0],) * 4, 3)] == [0] * 4
    with pytest.raises(ValueError, match="tuples_per_anchor"):
        limit_tuples((index, index, index), 0)
    with pytest.raises(TypeError, match="tuples_per_anchor"):
        limit_tuples((index, index, index), "all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 2"):
        limit_tuples((index, index), 1)
