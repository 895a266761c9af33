"""Where this package behaves differently from pytorch-metric-learning 2.9, on purpose; `docs/differences.md` lists each.

Every test shows both behaviours. Differences of one module alone are shown in that module's tests.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import miners as peer_miners
from pytorch_metric_learning import reducers as peer_reducers
from pytorch_metric_learning import samplers as peer_samplers
from torch import Tensor

from pml_fast import distances, losses, miners, reducers, samplers
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.index_types import PairIndices

WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


def batch(n: int = 12, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=gen, dtype=torch.float64), torch.arange(n) % classes


def gradient(loss: Any, x: Tensor, *rest: Any) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x, *rest), x)
    return grad


def singles(loss: Any, *arguments: Any) -> Tensor:
    """Every single loss of a loss with the DoNothingReducer."""
    return loss(*arguments)["loss"]["losses"]


# ---- what is wrong there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "CircleLoss"])
def test_class_weights_meet_their_own_anchor(name: str) -> None:
    """The peer's losses have shape [N, 1]: times weights [N] they form a matrix, whose mean mixes all classes."""
    x, labels = batch()
    labels[:3] = 2
    mine, peers = getattr(losses, name), getattr(peer_losses, name)
    each = singles(mine(reducer=reducers.DoNothingReducer()), x, labels)
    theirs = singles(peers(reducer=peer_reducers.DoNothingReducer()), x, labels)
    assert each.shape == (12,) and theirs.shape == (12, 1)
    got = mine(reducer=reducers.ClassWeightedReducer(WEIGHTS))(x, labels)
    torch.testing.assert_close(got, (each * WEIGHTS[labels]).mean())
    wrong = peers(reducer=peer_reducers.ClassWeightedReducer(WEIGHTS))(x, labels)
    torch.testing.assert_close(wrong, each.mean() * WEIGHTS[labels].mean())
    assert abs(got - wrong) > 1e-3


def test_a_pair_named_twice_counts_once_an_anchor() -> None:
    """PerAnchorReducer: the peer's matrix holds the pair once and hands its gradient to every naming."""
    x, labels = batch()
    a, p, n = torch.tensor([0, 0, 1]), torch.tensor([3, 3, 4]), torch.tensor([1, 2, 0])
    once = PairIndices(torch.tensor([0, 1]), torch.tensor([3, 4]), torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]))
    options = {"pos_margin": 0.1, "neg_margin": 2.0}
    mine = losses.ContrastiveLoss(reducer=reducers.PerAnchorReducer(), **options)
    peers = peer_losses.ContrastiveLoss(reducer=peer_reducers.PerAnchorReducer(), **options)
    torch.testing.assert_close(mine(x, labels, (a, p, n)), peers(x, labels, (a, p, n)))
    torch.testing.assert_close(gradient(mine, x, labels, (a, p, n)), gradient(mine, x, labels, once))
    torch.testing.assert_close(gradient(peers, x, labels, once), gradient(mine, x, labels, once))
    assert not torch.allclose(gradient(peers, x, labels, (a, p, n)), gradient(peers, x, labels, once))


def test_per_anchor_takes_a_reference_set() -> None:
    """The peer's PerAnchorReducer makes a matrix of the batch against the batch, whatever the reference set is."""
    x, labels = batch()
    y, ref_labels = batch(30, seed=1)
    got = losses.NTXentLoss(reducer=reducers.PerAnchorReducer())(x, labels, None, y, ref_labels)
    entry = losses.NTXentLoss(reducer=reducers.DoNothingReducer())(x, labels, None, y, ref_labels)["loss"]
    anchors = entry["indices"][0]
    means = torch.stack([entry["losses"][anchors == i].mean() for i in range(len(x))])
    torch.testing.assert_close(got, means.mean())
    with pytest.raises(IndexError):
        peer_losses.NTXentLoss(reducer=peer_reducers.PerAnchorReducer())(x, labels, None, y, ref_labels)


@pytest.mark.parametrize("metric", ["LpDistance", "CosineSimilarity"])
def test_swap_compares_the_reference_set_with_itself(metric: str) -> None:
    """Positives and negatives are rows of the reference set; the peer reads batch row `p` against reference row `n`."""
    x, labels = batch()
    y, ref_labels = batch(12, seed=1)
    distance, other = getattr(distances, metric)(), getattr(peer_distances, metric)()
    got = losses.TripletMarginLoss(swap=True, margin=0.3, distance=distance, reducer=reducers.MeanReducer())
    a, p, n = lmu.get_all_triplets_indices(labels, ref_labels)
    cross, own = distance(x, y), distance(y, y)
    harder = distance.smallest_dist(cross[a, n], own[p, n])
    want = torch.relu(distance.margin(cross[a, p], harder) + 0.3).mean()
    torch.testing.assert_close(got(x, labels, None, y, ref_labels), want)
    peers = peer_losses.TripletMarginLoss(swap=True, margin=0.3, distance=other, reducer=peer_reducers.MeanReducer())
    assert abs(peers(x, labels, None, y, ref_labels) - want) > 1e-3


@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss", "SupConLoss", "MultiSimilarityLoss", "CircleLoss"])
def test_a_single_pair_has_its_loss(name: str) -> None:
    """The peer returns 0 where no list of a tuple holds more than one pair."""
    x, labels = batch()
    one = PairIndices(torch.tensor([0]), torch.tensor([3]), torch.tensor([0]), torch.tensor([1]))
    assert getattr(peer_losses, name)()(x, labels, one) == 0
    assert getattr(losses, name)()(x, labels, one) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ntxent_does_not_saturate(dtype: torch.dtype) -> None:
    """The peer adds the smallest number before the logarithm: no loss exceeds -log(tiny), and its gradient vanishes."""
    x = torch.tensor([[1.0, 0], [-1, 0], [1, 0.1]], dtype=dtype)
    labels = torch.tensor([0, 0, 1])
    mine, peers = losses.NTXentLoss(temperature=0.001), peer_losses.NTXentLoss(temperature=0.001)
    # Anchor 0 has its positive at a similarity of -1 and its negative near 1.
    assert mine(x, labels) > 900
    assert peers(x, labels) < -math.log(torch.finfo(dtype).tiny) < 900
    assert gradient(mine, x, labels)[0].norm() > 10 and not gradient(peers, x, labels)[0].any()


def test_ntxent_memory_is_not_positives_times_negatives() -> None:
    """A batch whose positives x negatives are 12.6 billion entries, which the peer would build."""
    x = torch.randn(2048, 8)
    assert losses.NTXentLoss()(x, torch.arange(2048) // 4).isfinite()


def test_a_zero_loss_spreads_no_nan() -> None:
    """Nothing to compare: the peer's zero is the sum of 0 * embeddings, which is NaN where one of them is infinite."""
    x, labels = batch()
    x[0, 0] = math.inf
    x.requires_grad_()
    nothing = (torch.zeros(0, dtype=torch.int64),) * 3
    for mine, peers in ((losses.TripletMarginLoss(), peer_losses.TripletMarginLoss()),
                        (losses.SupConLoss(), peer_losses.SupConLoss())):  # fmt: skip
        value = mine(x, labels, nothing)
        assert value == 0 and peers(x, labels, nothing).isnan()
        (grad,) = torch.autograd.grad(value, x)
        assert not grad.any()


def test_the_mean_of_no_losses_is_zero() -> None:
    """The peer's mean over an empty tensor is NaN."""
    entry = {"loss": {"losses": torch.zeros(0), "indices": torch.zeros(0, dtype=torch.int64), "reduction_type": "element"}}
    x = torch.ones(2, 3)
    assert peer_reducers.MeanReducer()(entry, x, None).isnan()
    assert reducers.MeanReducer()(entry, x, None) == 0
    empty = torch.zeros(0, 3, requires_grad=True)
    assert losses.MultiSimilarityLoss()(empty, torch.zeros(0, dtype=torch.int64)) == 0


def test_one_sample_of_a_queue_drops_itself() -> None:
    """remove_self_comparisons for a batch of one: the peer keeps the sample as its own positive."""
    tuples = PairIndices(*(torch.tensor(part) for part in ([0, 0], [4, 5], [0], [1])))
    kept = lmu.remove_self_comparisons(tuples, torch.tensor([4]), 8)
    assert kept[1].tolist() == [5]


def test_class_weights_refuse_labels_below_zero() -> None:
    """The peer's weights are indexed from behind by them."""
    x, labels = batch()
    peer_losses.SupConLoss(reducer=peer_reducers.ClassWeightedReducer(WEIGHTS.clone()))(x, labels - 1)
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        losses.SupConLoss(reducer=reducers.ClassWeightedReducer(WEIGHTS))(x, labels - 1)


def test_half_precision_is_summed_in_float32() -> None:
    """The peer's loss of float16 embeddings is a float16, and so are its sums."""
    x, labels = batch(64, 32, 8)
    half = x.half()
    exact = losses.ContrastiveLoss(reducer=reducers.SumReducer())(half.double(), labels)
    mine = losses.ContrastiveLoss(reducer=reducers.SumReducer())(half, labels)
    theirs = peer_losses.ContrastiveLoss(reducer=peer_reducers.SumReducer())(half, labels)
    assert mine.dtype == torch.float32 and theirs.dtype == torch.float16
    assert abs(mine - exact) < 0.01 * abs(theirs - exact)
    assert gradient(losses.ContrastiveLoss(), half, labels).dtype == torch.float16


# ---- what is stricter or finer here ------------------------------------------------------------------------------------------


def test_bad_input_is_a_value_error_or_a_type_error() -> None:
    """The peer asserts, or lets torch fail somewhere inside."""
    x, labels = batch()
    with pytest.raises(AssertionError):
        peer_distances.LpDistance(is_inverted=True)
    with pytest.raises(ValueError, match="is_inverted must be False"):
        distances.LpDistance(is_inverted=True)
    outside = (torch.tensor([0]), torch.tensor([-1]), torch.tensor([1]))
    assert peer_losses.TripletMarginLoss()(x, labels, outside).isfinite()
    with pytest.raises(ValueError, match="positives of indices_tuple must be from 0 to 11"):
        losses.TripletMarginLoss()(x, labels, outside)


def test_a_pair_may_be_positive_and_negative() -> None:
    """The peer's losses over a matrix of masks assert that no pair is named on both sides; here each side counts as named."""
    x, labels = batch()
    both = PairIndices(torch.tensor([0, 0]), torch.tensor([3, 6]), torch.tensor([0, 1]), torch.tensor([3, 0]))
    with pytest.raises(AssertionError, match="positive or negative"):
        peer_losses.SupConLoss()(x, labels, both)
    s = distances.CosineSimilarity()(x)[0, [3, 6]] / 0.1
    want = torch.logsumexp(torch.stack([s[0], s[1], s[0]]), dim=0) - s.mean()
    got = singles(losses.SupConLoss(reducer=reducers.DoNothingReducer()), x, labels, both)
    torch.testing.assert_close(got[0], want)


def test_losses_below_the_rounding_of_one_are_kept() -> None:
    """MultiSimilarityLoss: log(1 + e) with e = 1e-40 is 0 there and 1e-40 here, and AvgNonZeroReducer counts it."""
    x = torch.tensor([[3.0, 0], [3, 0], [0, 3], [0, 3]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    raw = {"normalize_embeddings": False}
    mine = losses.MultiSimilarityLoss(
        alpha=20, base=4, distance=distances.DotProductSimilarity(**raw), reducer=reducers.DoNothingReducer()
    )
    peers = peer_losses.MultiSimilarityLoss(
        alpha=20, base=4, distance=peer_distances.DotProductSimilarity(**raw), reducer=peer_reducers.DoNothingReducer()
    )
    assert (singles(peers, x, labels) == 0).all()
    assert (singles(mine, x, labels) > 0).all() and (singles(mine, x, labels) < 1e-40).all()


def test_a_loss_a_row_is_a_vector() -> None:
    """DoNothingReducer: MultiSimilarityLoss and CircleLoss give [N], there [N, 1]; zeros for a tuple without pairs, there 0."""
    x, labels = batch()
    nothing = (torch.zeros(0, dtype=torch.int64),) * 4
    mine = losses.MultiSimilarityLoss(reducer=reducers.DoNothingReducer())
    peers = peer_losses.MultiSimilarityLoss(reducer=peer_reducers.DoNothingReducer())
    assert singles(mine, x, labels).shape == (12,) and singles(peers, x, labels).shape == (12, 1)
    assert not singles(mine, x, labels, nothing).any() and singles(peers, x, labels, nothing) == 0


def test_miners_return_lazy_tuples() -> None:
    """Not a tuple but a sequence that unpacks, indexes and measures like one; index types are int64 whatever the labels'."""
    x, labels = batch()
    mined = miners.TripletMarginMiner()(x, labels.to(torch.int16))
    assert not isinstance(mined, tuple) and len(mined) == 3
    assert all(part.dtype == torch.int64 for part in mined)
    assert isinstance(peer_miners.TripletMarginMiner()(x, labels), tuple)


def test_second_derivatives_need_the_matrix() -> None:
    """A fused loss computes its gradient itself, which torch cannot differentiate again; the peer's graph can be."""
    x, labels = batch()
    x.requires_grad_()
    torch.autograd.grad(peer_losses.SupConLoss()(x, labels), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(losses.SupConLoss()(x, labels), x, create_graph=True)


# ---- samplers ----------------------------------------------------------------------------------------------------------------


def test_the_sampler_has_its_own_generator() -> None:
    """The peer draws from NumPy's global generator; here the order follows the seed (torch's by default) and the epoch."""
    import numpy as np

    labels = torch.arange(40) % 8
    before = np.random.get_state()[2], torch.random.get_rng_state()
    order = list(samplers.MPerClassSampler(labels, 2, batch_size=8, length_before_new_iter=40, seed=3))
    assert order == list(samplers.MPerClassSampler(labels, 2, batch_size=8, length_before_new_iter=40, seed=3))
    assert np.random.get_state()[2] == before[0] and torch.equal(torch.random.get_rng_state(), before[1])
    list(peer_samplers.MPerClassSampler(labels, 2, batch_size=8, length_before_new_iter=40))
    assert np.random.get_state()[2] != before[0]


def test_the_sampler_covers_every_class() -> None:
    """Ten classes, four a batch: here every class comes before any comes again; the peer starts anew for every batch."""
    labels = torch.arange(100) % 10
    ours = samplers.MPerClassSampler(labels, 2, batch_size=8, length_before_new_iter=24, seed=0)
    seen = [len({int(labels[i]) for i in ours}) for _ in range(20)]
    assert set(seen) == {10}
    peers = peer_samplers.MPerClassSampler(labels, 2, batch_size=8, length_before_new_iter=24)
    assert min(len({int(labels[i]) for i in peers}) for _ in range(20)) < 10


def test_lifted_structure_counts_the_anchors_negatives_in_a_reference_set() -> None:
    gen = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, 4, generator=gen, dtype=torch.float64) for n in (6, 8))
    labels, ref_labels = torch.arange(6) % 3, torch.arange(8) % 3
    away = torch.cdist(*(torch.nn.functional.normalize(rows) for rows in (x, y)))
    same = labels[:, None] == ref_labels
    pull = torch.logsumexp((1 - away).masked_fill(same, -torch.inf), dim=1, keepdim=True)
    want = (torch.relu(pull + away).square() / 2)[same].mean()
    got = [m.LiftedStructureLoss()(x, labels, None, y, ref_labels).item() for m in (losses, peer_losses)]
    assert got[0] == pytest.approx(want.item(), rel=1e-9)
    assert got[1] != pytest.approx(want.item(), rel=1e-3)


def test_another_set_with_the_very_labels_of_the_batch_is_another_set() -> None:
    """Two views of a batch, say: row i of the one is a positive of row i of the other, however losses are reduced."""
    (x, labels), (z, _) = batch(), batch(seed=1)
    for name in ("ContrastiveLoss", "NTXentLoss", "SupConLoss", "MultiSimilarityLoss", "TripletMarginLoss", "NCALoss"):
        ours, theirs = getattr(losses, name), getattr(peer_losses, name)
        want = theirs()(x, labels, ref_emb=z, ref_labels=labels.clone())
        watched = ours(reducer=type(ours().get_default_reducer())(collect_stats=True))
        for loss in (ours(), watched):
            torch.testing.assert_close(loss(x, labels, ref_emb=z, ref_labels=labels), want, msg=name)
        if name != "NCALoss":
            assert abs(theirs()(x, labels, ref_emb=z, ref_labels=labels) - want) > 1e-4
    for name in ("MultiSimilarityMiner", "PairMarginMiner", "BatchHardMiner", "TripletMarginMiner", "AngularMiner"):
        same, cloned = (getattr(miners, name)()(x, labels, z, other) for other in (labels, labels.clone()))
        assert all(torch.equal(a, b) for a, b in zip(same, cloned, strict=True)), name


def test_nca_compares_the_batch_with_labels_of_another_set() -> None:
    """Of one tensor as both sets, with two tensors of labels, every pair counts, as for the other losses."""
    x, labels = batch()
    other = labels.clone()
    got = losses.NCALoss()(x, labels, ref_emb=x, ref_labels=other)
    torch.testing.assert_close(got, peer_losses.NCALoss()(x, labels, ref_emb=x.clone(), ref_labels=other))
    assert abs(got - peer_losses.NCALoss()(x, labels, ref_emb=x, ref_labels=other)) > 0.1


def test_a_reference_set_has_labels_of_its_own() -> None:
    (x, labels), (z, _) = batch(), batch(seed=1)
    with pytest.raises(ValueError, match="ref_labels must be given with ref_emb"):
        losses.ContrastiveLoss()(x, labels, ref_emb=z)
    assert peer_losses.ContrastiveLoss()(x, labels, ref_emb=z) > 0


def test_a_nan_row_makes_the_loss_nan() -> None:
    """The peer's means of what is above 0 leave it out: the value looks sound, and the gradient is NaN."""
    x, labels = batch()
    x[3, 1] = math.nan
    for name in ("ContrastiveLoss", "TripletMarginLoss", "SignalToNoiseRatioContrastiveLoss"):
        assert getattr(losses, name)()(x, labels).isnan(), name
        assert getattr(peer_losses, name)()(x, labels).isfinite(), name
        assert gradient(getattr(peer_losses, name)(), x, labels).isnan().any(), name


def test_the_signal_to_noise_ratio_of_equal_rows_is_zero_to_rounding() -> None:
    x, _ = batch()
    x[1] = x[0]
    ours, theirs = distances.SNRDistance()(x)[0, 1], peer_distances.SNRDistance()(x)[0, 1]
    assert theirs == 0 and abs(ours) < 1e-14


def test_embeddings_without_a_feature_are_refused() -> None:
    empty, labels = torch.zeros(8, 0), torch.arange(8) % 2
    for name in ("ContrastiveLoss", "SigLIPLoss", "TripletMarginLoss"):
        with pytest.raises(ValueError, match="embeddings must have at least one feature"):
            getattr(losses, name)()(empty, labels)


def test_nca_with_a_scale_not_above_zero_leaves_the_row_itself_out() -> None:
    """The peer multiplies the minus infinity of the diagonal by the scale: then a row is its own nearest, or all are alike."""
    x, labels = batch()
    s = -torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x)).square()
    for scale in (-1.0, 0.0):
        others = (scale * s).fill_diagonal_(-math.inf)
        same = labels.unsqueeze(1) == labels
        want = (torch.logsumexp(others, 1) - torch.logsumexp(others.masked_fill(~same, -math.inf), 1)).mean()
        torch.testing.assert_close(losses.NCALoss(softmax_scale=scale)(x, labels), want)
        assert abs(peer_losses.NCALoss(softmax_scale=scale)(x, labels) - want) > 0.1


def test_lifted_negatives_of_a_sample_paired_with_itself_count_for_both_ends() -> None:
    x, labels = batch()
    itself = (torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([1, 2]))
    d = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x))
    want = torch.relu(math.log(2) + torch.logsumexp(1 - d[0, 1:3], 0)).square() / 2
    torch.testing.assert_close(losses.LiftedStructureLoss()(x, labels, itself), want)
    once = torch.relu(torch.logsumexp(1 - d[0, 1:3], 0)).square() / 2
    twice = (torch.cat([part, part]) for part in itself)
    torch.testing.assert_close(
        peer_losses.LiftedStructureLoss()(x, labels, tuple(twice)), (once.sqrt() + math.log(2) / 2**0.5) ** 2
    )


def test_zero_rows_are_divided_by_the_eps_of_normalize() -> None:
    """A zero embedding has no direction, and no gradient that means anything: torch has two constants for it."""
    x, labels = batch()
    x[0] = 0
    ours, theirs = (gradient(m.ThresholdConsistentMarginLoss(), x, labels) for m in (losses, peer_losses))
    torch.testing.assert_close(ours[1:], theirs[1:])
    torch.testing.assert_close(ours[0] / 1e12, theirs[0] / 1e8)
