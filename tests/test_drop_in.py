"""What a user's own classes, loops and files around the peer's classes count on, beyond values and gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import miners as peer_miners
from pytorch_metric_learning import reducers as peer_reducers
from pytorch_metric_learning import regularizers as peer_regularizers
from torch import Tensor

from pml_fast import distances, explain, losses, miners, reducers, regularizers
from pml_fast.engine.explanation import Explanations
from pml_fast.utils.index_types import PairIndices, TripletIndices

COUNTS = ("num_pos_pairs", "num_neg_pairs", "num_triplets")


def batch(n: int = 16, d: int = 6, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=gen, dtype=torch.float64), torch.arange(n) % classes


# ---- how much a miner has chosen ----


@pytest.mark.parametrize(
    "name", ["TripletMarginMiner", "MultiSimilarityMiner", "BatchHardMiner", "PairMarginMiner", "AngularMiner"]
)
def test_a_miner_says_how_much_it_has_chosen(name: str) -> None:
    """Without statistics, after every call, as training loops print it; what is asked for late is counted late."""
    ours, theirs = getattr(miners, name)(), getattr(peer_miners, name)()
    for seed in range(2):
        data = batch(seed=seed)
        lazy = ours(*data)
        theirs(*data)
        del lazy
        for count in COUNTS:
            assert getattr(ours, count, None) == (getattr(theirs, count) if count in vars(theirs) else None), count


def test_a_copy_of_a_miner_holds_no_batch() -> None:
    miner = miners.MultiSimilarityMiner()
    miner(*batch())
    for made in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):
        assert not hasattr(made, "num_pos_pairs") and made.epsilon == 0.1
    assert miner.num_pos_pairs > 0


# ---- mined tuples ----


@pytest.mark.parametrize("name", ["MultiSimilarityMiner", "TripletMarginMiner", "HDCMiner", "BatchHardMiner"])
def test_a_copy_of_a_mined_tuple_is_its_index_tensors(name: str) -> None:
    mined = getattr(miners, name)()(*batch())
    want = tuple(mined)
    for made in (copy.deepcopy(mined), pickle.loads(pickle.dumps(mined))):
        assert isinstance(made, PairIndices | TripletIndices)
        assert all(torch.equal(a, b) for a, b in zip(made, want, strict=True))


def test_mined_tuples_can_be_joined_like_tuples() -> None:
    mined = miners.TripletMarginMiner()(*batch())
    assert len(mined + (1, 2)) == 5 and len((1,) + mined) == 4 and len(mined * 2) == 6


# ---- steps of a loss ----


def own_steps(module: Any) -> list[Any]:
    """Subclasses that change a step, or what a step gives."""

    class Constant(module.NTXentLoss):
        def _compute_loss(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: Any) -> Any:
            return {"loss": {"losses": pos_pairs * 0 + 7, "indices": indices_tuple[:2], "reduction_type": "pos_pair"}}

    def scaled(name: str, factor: float) -> Any:
        class Scaled(getattr(module, name)):  # type: ignore[misc]
            def _compute_loss(self, first: Any, second: Any, third: Any) -> Any:
                return super()._compute_loss(first * factor, second, third)

        Scaled.__name__ = f"Scaled{name}"
        return Scaled()

    class Positives(module.ContrastiveLoss):
        def pos_calc(self, pos_pair_dist: Tensor, margin: float) -> Tensor:
            return 100 + pos_pair_dist

    class Negatives(module.SignalToNoiseRatioContrastiveLoss):
        def neg_calc(self, neg_pair_dist: Tensor, margin: float) -> Tensor:
            return super().neg_calc(neg_pair_dist, margin) ** 2

    class Matrix(module.SupConLoss):
        def mat_based_loss(self, mat: Tensor, indices_tuple: Any) -> Any:
            return super().mat_based_loss(mat / 3, indices_tuple)

    names = (
        "ContrastiveLoss", "NTXentLoss", "MultiSimilarityLoss", "CircleLoss", "SupConLoss", "LiftedStructureLoss",
        "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss", "TupletMarginLoss",
    )  # fmt: skip
    return [Constant(), Positives(), Negatives(), Matrix(), *(scaled(name, 0.7) for name in names)]


@pytest.mark.parametrize("refs", [False, True], ids=["itself", "refs"])
@pytest.mark.parametrize("k", range(13))
def test_steps_that_a_subclass_replaces_are_taken(k: int, refs: bool) -> None:
    """With all pairs and with a miner's; and the loss says that it is no longer fused."""
    ours, theirs = own_steps(losses)[k], own_steps(peer_losses)[k]
    x, labels = batch()
    y, ref_labels = batch(12, seed=1)
    more = {"ref_emb": y, "ref_labels": ref_labels} if refs else {}
    if refs and type(ours).__name__ == "ScaledLiftedStructureLoss":
        # The peer's negatives of a reference set are partly those of the batch: docs/differences.md.
        return
    for mined in (None, tuple(miners.PairMarginMiner(0.2, 0.8)(x, labels, *more.values()))):
        found = []
        for loss in (ours, theirs):
            leaf = x.clone().requires_grad_()
            value = loss(leaf, labels, mined, **more)
            found.append((value.detach(), *torch.autograd.grad(value, leaf)))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)
    assert explain(ours, x, labels).mode == "materialised"
    assert isinstance(ours, losses.GenericPairLoss)


def test_a_step_replaced_in_one_object_is_taken() -> None:
    loss, (x, labels) = losses.ContrastiveLoss(), batch()
    plain = loss(x, labels)
    loss.pos_calc = lambda pairs, margin: 100 + pairs  # type: ignore[method-assign]
    assert loss(x, labels) > plain + 90 and explain(loss, x, labels).mode == "materialised"


def test_steps_that_kernels_do_not_take_are_refused() -> None:
    """A method that would never be called is an error where the class is written."""
    with pytest.raises(TypeError, match=r"Own defines nca_computation, which NCALoss would never call.*override compute_loss"):
        type("Own", (losses.NCALoss,), {"nca_computation": lambda *_: None})
    with pytest.raises(TypeError, match=r"Own defines get_bins, which UniformHistogramMiner would never call.*override mine"):
        type("Own", (miners.UniformHistogramMiner,), {"get_bins": lambda *_: None})
    type("Own", (losses.NCALoss,), {"another": lambda *_: None})


# ---- distances ----


def doubled(module: Any) -> Any:
    class Doubled(module.LpDistance):
        def margin(self, x: Any, y: Any) -> Any:
            return 2 * (x - y)

    return Doubled()


def test_a_distance_s_own_margin_is_taken_or_refused() -> None:
    x, labels = batch()
    got = losses.ContrastiveLoss(distance=doubled(distances))(x, labels)
    torch.testing.assert_close(got, peer_losses.ContrastiveLoss(distance=doubled(peer_distances))(x, labels))
    for name in ("TripletMarginLoss", "MarginLoss", "MultiSimilarityLoss", "LiftedStructureLoss"):
        with pytest.raises(TypeError, match=f"{name} compares scores by their difference.*Doubled"):
            getattr(losses, name)(distance=doubled(distances))(x, labels)
    # Nothing of NT-Xent is a margin.
    got = losses.NTXentLoss(distance=doubled(distances))(x, labels)
    torch.testing.assert_close(got, losses.NTXentLoss(distance=distances.LpDistance())(x, labels))


def test_hooks_and_patches_of_a_distance_are_seen() -> None:
    x, labels = batch()
    for use in (losses.ContrastiveLoss, losses.TripletMarginLoss, miners.MultiSimilarityMiner):
        seen: list[int] = []
        distance = distances.LpDistance()
        distance.register_forward_hook(lambda *_, s=seen: s.append(1))
        use(distance=distance)(x, labels)
        assert seen, use.__name__
    patched = distances.LpDistance()
    plain = losses.ContrastiveLoss(distance=patched)(x, labels)
    patched.compute_mat = lambda query, ref: 3 * torch.cdist(query, ref)  # type: ignore[method-assign]
    assert losses.ContrastiveLoss(distance=patched)(x, labels) != plain


# ---- the rest ----


@pytest.mark.parametrize("bounds", [{"low": float("inf")}, {"high": float("-inf")}])
def test_a_bound_that_leaves_nothing_leaves_nothing(bounds: dict[str, float]) -> None:
    data = batch()
    for name in ("ContrastiveLoss", "NTXentLoss", "SupConLoss", "TripletMarginLoss", "MultiSimilarityLoss"):
        loss = getattr(losses, name)(reducer=reducers.ThresholdReducer(**bounds))
        assert loss(*data) == 0, name


def test_a_regularizer_has_a_reducer_of_its_name() -> None:
    x, labels = batch()
    found = []
    for ls, rs, rg in ((losses, reducers, regularizers), (peer_losses, peer_reducers, peer_regularizers)):

        class Doubled(rs.BaseReducer):  # type: ignore[name-defined,misc]
            def already_reduced_reduction(self, losses: Any, *_: Any) -> Any:
                return 2 * losses

        reducer = rs.MultipleReducers({"embedding_reg_loss": Doubled()})
        found.append(ls.NTXentLoss(reducer=reducer, embedding_regularizer=rg.LpRegularizer())(x, labels))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16])
def test_labels_of_any_type(dtype: torch.dtype) -> None:
    x, labels = batch(classes=2)
    for name in ("AngularLoss", "ContrastiveLoss", "TripletMarginLoss", "NPairsLoss", "MultiSimilarityLoss"):
        loss = getattr(losses, name)()
        torch.testing.assert_close(loss(x, labels.to(dtype)), loss(x, labels), msg=name)
    miner = miners.BatchHardMiner()
    assert all(torch.equal(a, b) for a, b in zip(miner(x, labels.to(dtype)), miner(x, labels), strict=True))


def test_module_lists_of_losses() -> None:
    x, labels = batch()
    parts = [losses.NTXentLoss(), losses.ContrastiveLoss()]
    want = losses.MultipleLosses(parts)(x, labels)
    assert losses.MultipleLosses(torch.nn.ModuleList(parts))(x, labels) == want
    assert losses.MultipleLosses(torch.nn.ModuleDict({"a": parts[0], "b": parts[1]}))(x, labels) == want


def test_a_state_dict_of_the_peer_without_a_histogram(caplog: pytest.LogCaptureFixture) -> None:
    loss = losses.DynamicSoftMarginLoss()
    loss(*batch())
    before = loss.hist_.clone()
    loss.load_state_dict(peer_losses.DynamicSoftMarginLoss().state_dict())
    assert torch.equal(loss.hist_, before) and before.any() and "no hist_" in caplog.text


def test_wrappers_are_explained() -> None:
    x, labels = batch()
    y, _ = batch(seed=1)
    parts = {"a": losses.NTXentLoss(), "b": losses.ContrastiveLoss()}
    found = explain(losses.MultipleLosses(parts, {"a": miners.MultiSimilarityMiner()}, {"a": 1, "b": 0.5}), x, labels)
    assert isinstance(found, Explanations) and list(found) == ["a, weight 1", "b, weight 0.5"]
    assert found["a, weight 1"].miner == "MultiSimilarityMiner(epsilon=0.1)" and "== b, weight 0.5\nloss" in str(found)
    both = explain(losses.SelfSupervisedLoss(losses.NTXentLoss()), x, ref_emb=y)
    one = explain(losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=False), x, ref_emb=y)
    assert both.rows == 32 and both.itself and one.rows == one.columns == 16 and not one.itself
    with pytest.raises(ValueError, match="two views"):
        explain(losses.SelfSupervisedLoss(losses.NTXentLoss()), x, labels)
    with pytest.raises(ValueError, match="its own miners"):
        explain(losses.MultipleLosses(parts), x, labels, miners.BatchHardMiner())
    assert explain(losses.CLIPLoss(), x, ref_emb=y).mode == "fused"
