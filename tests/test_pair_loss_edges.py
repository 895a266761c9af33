"""What the pair losses do at the edges: differences from the peer, odd batches, statistics, refusals, plans and copies."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer
from pytorch_metric_learning import miners as peer_miners
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor

from pml_fast import _extension, distances, explain, losses, miners, reducers, use
from pml_fast.engine import grad_sum
from pml_fast.engine.cpu import small
from pml_fast.losses.base_metric_loss_function import prepare_call

LOSSES: dict[str, Callable[..., Any]] = {
    "nca": losses.NCALoss,
    "lifted": losses.LiftedStructureLoss,
    "generalized_lifted": losses.GeneralizedLiftedStructureLoss,
    "intra_pair_variance": losses.IntraPairVarianceLoss,
    "tuplet": losses.TupletMarginLoss,
    "ranked_list": lambda **k: losses.RankedListLoss(0.4, 5, **k),
    "snr_contrastive": losses.SignalToNoiseRatioContrastiveLoss,
    "tcm": losses.ThresholdConsistentMarginLoss,
    "n_pairs": losses.NPairsLoss,
    "instance": losses.InstanceLoss,
    "angular": losses.AngularLoss,
    "margin": losses.MarginLoss,
    "margin_classes": lambda **k: losses.MarginLoss(learn_beta=True, nu=0.1, num_classes=9, **k),
    "siglip": losses.SigLIPLoss,
}
FUSED = {"lifted", "generalized_lifted", "intra_pair_variance", "tuplet", "ranked_list", "snr_contrastive", "tcm", "nca"}


def batch(n: int = 24, d: int = 6, classes: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype).requires_grad_(), torch.arange(n) % classes


# ---- odd batches ----

EDGES = {
    "empty": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    "one_row": (torch.ones(1, 4), torch.zeros(1, dtype=torch.int64)),
    "one_class": (torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(7, dtype=torch.int64)),
    "all_distinct": (torch.randn(7, 4, generator=torch.Generator().manual_seed(2)), torch.arange(7)),
    "duplicates": (torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).repeat(4, 1), torch.arange(12) % 2),
    "all_equal": (torch.ones(8, 4), torch.arange(8) % 2),
    "two_rows": (torch.randn(2, 4, generator=torch.Generator().manual_seed(4)), torch.zeros(2, dtype=torch.int64)),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", LOSSES)
def test_odd_batches_have_finite_losses_and_gradients(name: str, edge: str) -> None:
    if name == "snr_contrastive" and edge in ("one_row", "all_equal"):
        pytest.skip("rows of equal features have no variance to divide by")
    rows, labels = EDGES[edge]
    x = rows.double().requires_grad_()
    loss = LOSSES[name]().double()
    value = loss(x, labels)
    value.backward()
    assert value.shape == () and value.isfinite()
    assert x.grad is not None and x.grad.isfinite().all()
    assert edge != "empty" or value == 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_is_seen(name: str) -> None:
    x, labels = batch()
    rows = x.detach().clone()
    rows[1, 3] = float("nan")
    assert LOSSES[name]().double()(rows, labels).isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_strips_do_not_change_a_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = batch(40)
    loss = LOSSES[name]().double()
    leaves = [x, *loss.parameters()]
    whole = loss(x, labels)
    grads = torch.autograd.grad(whole, leaves)
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 3 * 40)
    cut = loss(x, labels)
    torch.testing.assert_close(cut, whole)
    for mine, theirs in zip(torch.autograd.grad(cut, leaves), grads, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    x, labels = batch(dtype=dtype)
    loss = LOSSES[name]()
    value = loss(x, labels)
    exact = LOSSES[name]().double()(x.detach().double(), labels)
    assert value.dtype == torch.float32
    # The variances of the signal-to-noise ratio are taken in the type of the rows.
    near = 3e-2 if name == "snr_contrastive" else 3e-5
    torch.testing.assert_close(value.double(), exact, rtol=near, atol=near)
    value.backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_round_the_scores(name: str) -> None:
    x, labels = batch(dtype=torch.float32)
    loss = LOSSES[name]()
    plain = loss(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x, labels)
    torch.testing.assert_close(inside, plain, rtol=1e-5, atol=1e-6)
    (grad,), (want,) = (torch.autograd.grad(value, x) for value in (inside, plain))
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_copies_pickles_and_states(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]().double()
    want = loss(x, labels)
    other = LOSSES[name]().double()
    other.load_state_dict(loss.state_dict())
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(buffer, weights_only=False), other):
        torch.testing.assert_close(twin(x, labels), want, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_no_allocation_is_as_large_as_the_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor, saved or passing, has N x N elements: strips are cut far below."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 2048)
    n = 240
    x, labels = batch(n, classes=n // 4, dtype=torch.float32)
    loss = losses.MarginLoss(learn_beta=True, num_classes=n // 4) if name == "margin_classes" else LOSSES[name]()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for part in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(part, Tensor):
                    largest = max(largest, part.untyped_storage().nbytes() // part.element_size())
            return result

    with use(backend="auto"), Watch():
        loss(x, labels).backward()
    assert largest < n * n // 4, largest


# ---- differences from the peer ----


def test_lifted_pairs_of_a_reference_set_have_the_anchors_negatives() -> None:
    """The peer takes the negatives of batch row p for those of reference row p."""
    x, labels = batch(7, classes=3)
    y, ref_labels = batch(9, classes=3)
    d = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(y))
    same = labels.unsqueeze(1) == ref_labels
    negatives = torch.logsumexp((1 - d).masked_fill(same, -math.inf), dim=1, keepdim=True)
    want = (torch.relu(negatives + d).square() / 2)[same].mean()
    got = losses.LiftedStructureLoss()(x, labels, ref_emb=y, ref_labels=ref_labels)
    torch.testing.assert_close(got, want)
    for mine, plain in zip(torch.autograd.grad(got, (x, y)), torch.autograd.grad(want, (x, y)), strict=True):
        torch.testing.assert_close(mine, plain)
    assert not torch.isclose(peer.LiftedStructureLoss()(x, labels, ref_emb=y, ref_labels=ref_labels), want)


def test_threshold_consistent_pairs_of_a_reference_set_lie_in_it() -> None:
    """The peer looks reference rows up in the batch, and fails where there are more of them."""
    x, labels = batch(6, classes=3)
    y, ref_labels = batch(11, classes=3)
    s = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    same = labels.unsqueeze(1) == ref_labels
    pos, neg = s[same & (s <= 0.9)], s[~same & (s >= 0.1)]
    want = (0.9 - pos).mean() + (neg - 0.1).mean()
    loss = losses.ThresholdConsistentMarginLoss(margin_minus=0.1)
    torch.testing.assert_close(loss(x, labels, ref_emb=y, ref_labels=ref_labels), want)
    with pytest.raises(IndexError):
        peer.ThresholdConsistentMarginLoss()(x, labels, ref_emb=y, ref_labels=ref_labels)


def test_pairs_at_a_margin_count_in_the_threshold_consistent_mean() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    options = {"margin_plus": 1.0, "margin_minus": 0.0}
    ours = losses.ThresholdConsistentMarginLoss(**options)(x, labels)
    torch.testing.assert_close(ours, peer.ThresholdConsistentMarginLoss(**options)(x, labels))
    # Of six positive pairs two are at the margin; of six negative pairs four are.
    assert ours.item() == pytest.approx(4 / 6 + 2 / 6)


def test_equal_rows_have_a_tuplet_gradient() -> None:
    """The arc cosine of a cosine that rounding leaves at or above 1 has no finite slope, or is no number at all."""
    gen = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 16, generator=gen).repeat(2, 1)
    labels = torch.arange(40).repeat(2)
    x, y = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    losses.TupletMarginLoss()(x, labels).backward()
    assert x.grad is not None and x.grad.isfinite().all()
    peer.TupletMarginLoss()(y, labels).backward()
    assert y.grad is not None and not y.grad.isfinite().all()


def test_nca_keeps_the_loss_of_a_row_whose_share_underflows() -> None:
    """The peer leaves out rows whose share of the softmax is 0 in the type of the embeddings: the worst ones."""
    x = torch.tensor([[0.0], [30.0], [0.1], [30.1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    loss = losses.NCALoss(distance=distances.LpDistance(normalize_embeddings=False, power=2))
    assert loss(x, labels).item() == pytest.approx((30.0**2 - 0.01 + 30.0**2 - 0.01) / 2, rel=1e-3)
    peers = peer.NCALoss(distance=peer_distances.LpDistance(normalize_embeddings=False, power=2))
    assert not peers(x, labels) > 0


def test_nca_compares_one_row_with_a_reference_set() -> None:
    x, labels = batch(1)
    y, ref_labels = batch(9, classes=3)
    assert losses.NCALoss()(x, labels, ref_emb=y, ref_labels=ref_labels) > 0
    assert peer.NCALoss()(x, labels, ref_emb=y, ref_labels=ref_labels) == 0


@pytest.mark.parametrize("name", ["lifted", "tuplet", "angular", "generalized_lifted"])
def test_class_weights_meet_their_own_anchor(name: str) -> None:
    x, labels = batch()
    weights = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    entry = LOSSES[name](reducer=reducers.DoNothingReducer())(x, labels)["loss"]
    anchor = entry["indices"] if torch.is_tensor(entry["indices"]) else entry["indices"][0]
    want = (entry["losses"] * weights[labels[anchor]]).mean()
    torch.testing.assert_close(LOSSES[name](reducer=reducers.ClassWeightedReducer(weights))(x, labels), want)


@pytest.mark.parametrize("name", ["lifted", "tuplet", "angular"])
def test_means_of_each_anchor(name: str) -> None:
    x, labels = batch()
    entry = LOSSES[name](reducer=reducers.DoNothingReducer())(x, labels)["loss"]
    anchor = entry["indices"][0]
    sums = torch.zeros(24, dtype=torch.float64).index_add(0, anchor, entry["losses"])
    want = (sums / torch.bincount(anchor, minlength=24)).mean()
    torch.testing.assert_close(LOSSES[name](reducer=reducers.PerAnchorReducer())(x, labels), want)


# ---- margin ----


def test_margin_triplets_follow_from_counts_and_a_rule() -> None:
    """All triplets, and those that join a rule's pairs, are those of the enumeration; in value and in beta's gradient."""
    x, labels = batch(20, classes=4)
    for indices in (None, miners.PairMarginMiner(0.7, 1.3)(x, labels)):
        for reducer in (None, reducers.MeanReducer(), reducers.SumReducer(), reducers.AvgNonZeroReducer()):
            made = losses.MarginLoss(nu=0.2, beta=1.0, learn_beta=True, num_classes=4, reducer=reducer).double()
            value = made(x, labels, indices)
            listed = None if indices is None else tuple(indices)
            triplets = convert_to_triplets(listed, labels, labels, "all")
            by_hand = made(x, labels, triplets)
            torch.testing.assert_close(value, by_hand)
            leaves = (x, made.beta)
            for mine, theirs in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(by_hand, leaves), strict=True):
                torch.testing.assert_close(mine, theirs)


def test_margin_plans() -> None:
    x, labels = batch()
    call = prepare_call(x, labels, None, None, None)
    assert losses.MarginLoss().plan(call).engine == "pairwise"
    assert losses.MarginLoss(triplets_per_anchor=3).plan(call).engine == "indexed"
    plan = losses.MarginLoss(reducer=reducers.ThresholdReducer(low=0.2)).plan(call)
    assert plan.mode == "materialised" and any("only a threshold at 0" in note for note in plan.notes)
    with use(backend="triton"), pytest.raises(ValueError, match="backend 'triton' cannot run this"):
        losses.MarginLoss()(x, labels)
    with use(backend="reference"):
        value = losses.MarginLoss()(x, labels)
    torch.testing.assert_close(value, losses.MarginLoss()(x, labels))


def test_drawn_triplets_of_the_margin_loss() -> None:
    x, labels = batch()
    torch.manual_seed(0)
    entry = losses.MarginLoss(triplets_per_anchor=2, reducer=reducers.DoNothingReducer())(x, labels)["margin_loss"]
    a, p, n = entry["indices"]
    assert len(a) == 48 and (labels[a] == labels[p]).all() and (labels[a] != labels[n]).all()


# ---- plans ----


@pytest.mark.parametrize("name", sorted(FUSED))
def test_plans_are_fused_with_the_default_reducer(name: str) -> None:
    x, labels = batch()
    loss = LOSSES[name]()
    plan = loss.plan(prepare_call(x, labels, None, None, None))
    assert (plan.mode, plan.engine) == ("fused", "pairwise")
    said = explain(loss, x, labels)
    assert said.costs is not None and said.backend == ("cpu" if _extension.load() is not None else "chunked")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_explained(name: str) -> None:
    x, labels = batch()
    for reducer in (None, reducers.DoNothingReducer()):
        said = explain(LOSSES[name](reducer=reducer), x, labels)
        assert said.error is None and said.notes and said.mode in str(said)


class OwnMatrix(distances.CosineSimilarity):
    """Its matrix is materialised."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return super().compute_mat(query_emb, ref_emb)


@pytest.mark.parametrize("way", ["auto", "tiles", "chunked", "reference"])
@pytest.mark.parametrize("edge", ["random", *(name for name in EDGES if name not in ("empty", "one_row"))])
def test_an_instance_batch_is_one_softmax_over_all_rows(edge: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-sum-exp over the other rows, each row's score with itself and listed targets, against the whole matrix."""
    x, labels = batch(31, classes=9) if edge == "random" else (EDGES[edge][0].double(), EDGES[edge][1])
    backend: Any = "auto" if way == "tiles" else way
    if way == "tiles":
        monkeypatch.setattr(small, "LARGEST", 0)
    weights = torch.linspace(0.5, 2.0, 12)
    reductions = [
        reducers.MeanReducer(), reducers.SumReducer(), reducers.ThresholdReducer(low=0.2), reducers.AvgNonZeroReducer(),
        reducers.ClassWeightedReducer(weights), reducers.PerAnchorReducer(), reducers.DoNothingReducer(),
    ]  # fmt: skip
    for reducer in reductions:
        found = []
        for distance in (distances.CosineSimilarity(), OwnMatrix()):
            leaf = x.detach().clone().requires_grad_()
            with use(backend=backend):
                value = losses.InstanceLoss(gamma=7, reducer=reducer, distance=distance)(leaf, labels)
            if isinstance(value, dict):
                value = value["loss"]["losses"].sum()
            found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert explain(losses.InstanceLoss(), x, labels).mode == "fused"
    assert explain(losses.InstanceLoss(distance=OwnMatrix()), x, labels).mode != "fused"


@pytest.mark.parametrize("name", ["n_pairs", "instance"])
def test_row_softmaxes_are_fused(name: str) -> None:
    x, labels = batch()
    call = prepare_call(x, labels, None, None, None)
    assert LOSSES[name]().plan(call).mode == "fused"
    assert LOSSES[name](reducer=reducers.DoNothingReducer()).plan(call).mode == "partly fused"


def test_rules_are_predicates_where_a_loss_takes_them() -> None:
    x, labels = batch()
    mined = miners.MultiSimilarityMiner()(x, labels)
    call = prepare_call(x, labels, mined, None, None)
    for name in ("lifted", "generalized_lifted", "intra_pair_variance", "tuplet", "tcm", "margin"):
        plan = LOSSES[name]().plan(call)
        assert plan.rule is not None or plan.search is not None, name
        got = LOSSES[name]().double()(x, labels, mined)
        torch.testing.assert_close(got, LOSSES[name]().double()(x, labels, tuple(mined)))
    nca = losses.NCALoss().plan(call)
    assert nca.mode == "partly fused" and "how often the tuple names its row" in nca.notes[0]


# ---- statistics ----


def test_angles_are_recorded() -> None:
    x, labels = batch()
    for indices in (None, tuple(miners.BatchHardMiner()(x, labels))):
        ours, theirs = (m.TupletMarginLoss(collect_stats=True) for m in (losses, peer))
        assert ours(x, labels, indices).item() == pytest.approx(theirs(x, labels, indices).item())
        assert ours.avg_pos_angle == pytest.approx(theirs.avg_pos_angle)
        assert ours.avg_neg_angle == pytest.approx(theirs.avg_neg_angle)
        mine, peers = (m.AngularLoss(collect_stats=True) for m in (losses, peer))
        assert mine(x, labels, indices).item() == pytest.approx(peers(x, labels, indices).item())
        assert mine.average_angle == pytest.approx(peers.average_angle)
    pairs = losses.NPairsLoss()
    pairs(x, labels)
    assert pairs.num_pairs == 6


# ---- users' own pair losses ----


def users_loss(m: Any, by_matrix: bool) -> Any:
    class Own(m.GenericPairLoss):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(mat_based_loss=by_matrix)

        def _compute_loss(self, first: Any, second: Any, third: Any) -> dict[str, Any]:
            if by_matrix:
                values = (first * second).sum(dim=1) - (first * third).exp().sum(dim=1)
                return {"loss": {"losses": values, "indices": torch.arange(len(values)), "reduction_type": "element"}}
            values = torch.cat([part for part in (first, second) if len(part) > 0])
            return {"loss": {"losses": values.square().mean(), "indices": None, "reduction_type": "already_reduced"}}

    return Own()


@pytest.mark.parametrize("by_matrix", [True, False])
def test_users_pair_losses_work_as_in_the_peer(by_matrix: bool) -> None:
    x, labels = batch()
    y, ref_labels = batch(15, classes=5)
    tuples = tuple(miners.BatchHardMiner()(x, labels))
    for args in ((x, labels), (x, labels, tuples), (x, labels, None, y, ref_labels), (x, None, tuples), (x, torch.arange(24))):
        ours, theirs = users_loss(losses, by_matrix), users_loss(peer, by_matrix)
        torch.testing.assert_close(ours(*args), theirs(*args))
    lone = users_loss(losses, by_matrix)(x[:1], labels[:1])
    assert lone == 0 and lone.requires_grad
    with pytest.raises(ValueError, match="cannot both be None"):
        users_loss(losses, by_matrix)(x)
    assert users_loss(losses, by_matrix).plan(prepare_call(x, labels, None, None, None)).mode == "materialised"


def test_users_pair_losses_see_a_single_pair() -> None:
    x, labels = batch()
    i, j, k = torch.tensor([0]), torch.tensor([6]), torch.tensor([1])
    s = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x))
    want = (s[0, 6].square() + s[0, 1].square()) / 2
    torch.testing.assert_close(users_loss(losses, False)(x, labels, (i, j, i, k)), want)
    assert users_loss(peer, False)(x, labels, (i, j, i, k)) == 0


def test_n_pairs_of_a_miner_are_in_order_of_their_indices() -> None:
    x, labels = batch()
    mined = tuple(miners.MultiSimilarityMiner()(x, labels))
    a, p = mined[:2]
    assert (a.diff() >= 0).all() and (p.diff()[a.diff() == 0] > 0).all()
    theirs = peer_miners.MultiSimilarityMiner()(x, labels)
    assert {*zip(*(part.tolist() for part in theirs[:2]), strict=True)} == {*zip(a.tolist(), p.tolist(), strict=True)}
    assert not torch.isclose(losses.NPairsLoss()(x, labels, mined), peer.NPairsLoss()(x, labels, theirs))


def test_a_pair_on_both_sides_is_refused_where_masks_are_made() -> None:
    x, labels = batch()
    i, j = torch.tensor([0]), torch.tensor([3])
    with pytest.raises(ValueError, match="each pair as positive or as negative"):
        users_loss(losses, True)(x, labels, (i, j, i, j))


# ---- refusals ----

X, LABELS = torch.randn(6, 4), torch.arange(6) % 3
INDEX = torch.tensor([0])
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "imbalance": (lambda: losses.RankedListLoss(0.4, 5, imbalance=2), ValueError, "imbalance must be from 0 .* to 1 .*got 2"),
    "ranked references": (
        lambda: losses.RankedListLoss(0.4, 5)(X, LABELS, ref_emb=X.clone(), ref_labels=LABELS), ValueError, "ref_emb is not"
    ),
    "ranked indices": (
        lambda: losses.RankedListLoss(0.4, 5)(X, LABELS, (INDEX, INDEX + 3, INDEX + 1)), ValueError, "indices_tuple is not"
    ),
    "unlabelled ranks": (
        lambda: losses.RankedListLoss(0.4, 5)(X, None), ValueError, "labels are required"
    ),
    "unlabelled nca": (
        lambda: losses.NCALoss()(X, None, (INDEX, INDEX + 3, INDEX + 1)), ValueError, "labels are required"
    ),
    "unlabelled angles": (
        lambda: losses.AngularLoss()(X, None, (INDEX, INDEX + 3, INDEX + 1)), ValueError, "labels are required"
    ),
    "references of n-pairs": (
        lambda: losses.NPairsLoss()(X, LABELS, ref_emb=X.clone(), ref_labels=LABELS), ValueError, "ref_emb is not"
    ),
    "instance indices": (
        lambda: losses.InstanceLoss()(X, LABELS, (INDEX, INDEX + 3, INDEX + 1)), ValueError, "indices_tuple is not"
    ),
    "tuplet's distance": (
        lambda: losses.TupletMarginLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity, got LpDistance"
    ),
    "snr's distance": (
        lambda: losses.SignalToNoiseRatioContrastiveLoss(distance=distances.LpDistance()), TypeError, "SNRDistance, got LpDis"
    ),
    "angular's power": (
        lambda: losses.AngularLoss(distance=distances.LpDistance(power=2)), ValueError, "distance.power to be 1, got 2"
    ),
    "triplets": (lambda: losses.MarginLoss(triplets_per_anchor=0), ValueError, "triplets_per_anchor must be 'all' or a pos"),
    "classes": (
        lambda: losses.MarginLoss(num_classes=2)(X, LABELS), ValueError, "labels must be from 0 to 1.*got labels from 0 to 2"
    ),
    "unlabelled classes": (
        lambda: losses.MarginLoss(num_classes=2)(X, None, (INDEX, INDEX + 3, INDEX + 1)), ValueError, "choose the beta of each"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_high_temperatures_warn() -> None:
    with pytest.warns(UserWarning, match="Tp and Tn above 5 may overflow"):
        losses.RankedListLoss(0.4, 10)
