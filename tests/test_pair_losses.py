"""The pair losses agree with pytorch-metric-learning 2.9 in value and in every gradient, those of their parameters included.

The cases are drawn with fixed seeds from the options of `test_agreement_pml.py`: distance x reducer x miner or index tuple x
reference set x regularizer x shape of the batch. A case in which the two libraries differ on purpose is left out; `difference`
says why.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_agreement_pml import (
    BATCHES,
    DISTANCES,
    MINERS,
    OURS,
    PEER,
    REDUCERS,
    REGULARIZERS,
    assert_same_losses,
    explicit,
    labels_of,
    squares,
)
from torch import Tensor

REDUCERS = {**REDUCERS, "divisor": lambda m: m.reducers.DivisorReducer()}
Make = Callable[..., Any]


def ranked(m: SimpleNamespace, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return m.losses.RankedListLoss(margin=0.4, Tn=10, Tp=1, **options)


LOSSES: dict[str, Make] = {
    "nca": lambda m, **k: m.losses.NCALoss(softmax_scale=2, **k),
    "lifted": lambda m, **k: m.losses.LiftedStructureLoss(neg_margin=1.1, pos_margin=0.2, **k),
    "generalized_lifted": lambda m, **k: m.losses.GeneralizedLiftedStructureLoss(pos_margin=0.3, **k),
    "intra_pair_variance": lambda m, **k: m.losses.IntraPairVarianceLoss(pos_eps=0.02, neg_eps=0.03, **k),
    "tuplet": lambda m, **k: m.losses.TupletMarginLoss(scale=8, **k),
    "ranked_list": ranked,
    "snr_contrastive": lambda m, **k: m.losses.SignalToNoiseRatioContrastiveLoss(pos_margin=0.1, **k),
    "tcm": lambda m, **k: m.losses.ThresholdConsistentMarginLoss(1.5, 0.5, 0.6, 0.1, **k),
    "n_pairs": lambda m, **k: m.losses.NPairsLoss(**k),
    "instance": lambda m, **k: m.losses.InstanceLoss(gamma=8, **k),
    "angular": lambda m, **k: m.losses.AngularLoss(alpha=35, **k),
    "margin": lambda m, **k: m.losses.MarginLoss(**k),
    "margin_learned": lambda m, **k: m.losses.MarginLoss(nu=0.3, beta=0.9, learn_beta=True, **k),
    "margin_classes": lambda m, **k: m.losses.MarginLoss(margin=0.3, nu=0.2, beta=1.1, learn_beta=True, num_classes=5, **k),
    "margin_classes_fixed": lambda m, **k: m.losses.MarginLoss(num_classes=5, **k),
}
# Losses that take one distance only.
OWN_DISTANCE = {"tuplet", "snr_contrastive", "tcm", "instance", "angular"}
ALONE = {"ranked_list", "n_pairs", "instance"}  # take no reference set
UNINDEXED = {"ranked_list", "instance"}  # take no index tuple
COLUMNS = {"generalized_lifted", "lifted", "tuplet", "angular"}  # hold their losses in a column, there
PAIR_TERMS = {"lifted", "intra_pair_variance", "tuplet", "snr_contrastive", "angular"}
Case = tuple[str, str, str, str, str, str, str]


def difference(case: Case) -> str | None:
    """Why the two libraries differ here on purpose, or ``None``."""
    loss, _, reducer, miner, reference, _, _ = case
    separate = reference == "separate"
    if loss in ("lifted", "tcm") and separate:
        return "the peer takes rows of the reference set for rows of the batch"
    if loss in COLUMNS and reducer.startswith(("class_weighted", "per_anchor")):
        return "the peer's losses have shape [N, 1], where class weights form an outer product and a PerAnchorReducer fails"
    if loss == "n_pairs" and miner == "multi_similarity":
        return "the first pair of a class is another one, as the peer's miners order a tuple by distance"
    if loss in PAIR_TERMS and reducer.startswith("per_anchor"):
        if separate:
            return "the peer's PerAnchorReducer knows no reference set"
        if miner.startswith("triplet"):
            return "the peer's PerAnchorReducer counts the gradient of a pair that is named twice, twice"
    return None


def meaningless(case: Case) -> bool:
    loss, distance, reducer, miner, reference, _, _ = case
    if loss in OWN_DISTANCE and distance != "default":
        return True
    if loss in ALONE and reference == "separate":
        return True
    if loss in UNINDEXED and miner != "none":
        return True
    return reducer == "divisor" and not loss.startswith("margin")


def draw(loss: str, count: int) -> list[Case]:
    rng = random.Random(f"pairs {loss}")
    axes = (DISTANCES, REDUCERS, MINERS, ["itself", "separate"], REGULARIZERS, BATCHES)
    found: dict[Case, None] = {}
    while len(found) < count:
        case: Case = (loss, *(rng.choice(list(axis)) for axis in axes))  # type: ignore[assignment]
        if not meaningless(case) and difference(case) is None:
            found[case] = None
    return list(found)


class Run:
    """One library's answer to a case."""

    def __init__(self, m: SimpleNamespace, case: Case) -> None:
        loss, distance, reducer, miner, reference, regularizer, batch = case
        n, n_ref, d, pattern = BATCHES[batch]
        gen = torch.Generator().manual_seed(sum(map(ord, "".join(case))))
        itself = reference == "itself"
        self.x = (0.6 * torch.randn(n, d, generator=gen, dtype=torch.float64)).requires_grad_()
        self.y = (0.6 * torch.randn(n_ref, d, generator=gen, dtype=torch.float64)).requires_grad_()
        labels, ref_labels = labels_of(pattern, n, gen), labels_of(pattern, n_ref, gen)
        refs = () if itself else (self.y, ref_labels)
        make = MINERS[miner]
        if make is not None:
            indices: Any = make(m)(self.x, labels, *refs)
        elif miner == "none":
            indices = None
        else:
            indices = explicit(miner, labels, labels if itself else ref_labels, itself, gen)
        self.sizes = [] if indices is None else [len(part) for part in indices]
        options: dict[str, Any] = {"reducer": REDUCERS[reducer](m)}
        if distance != "default":
            options["distance"] = DISTANCES[distance](m)
        penalty = REGULARIZERS[regularizer](m)
        if penalty is not None:
            options |= {"embedding_regularizer": penalty, "embedding_reg_weight": 0.3}
        self.loss = LOSSES[loss](m, **options).double()
        self.answer = self.loss(self.x, labels, indices, *refs)

    def gradients(self) -> list[Tensor]:
        scalar = self.answer if torch.is_tensor(self.answer) else squares(self.answer)
        if torch.is_tensor(scalar) and scalar.requires_grad:
            scalar.sum().backward()
        leaves = [self.x, self.y, *self.loss.parameters()]
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def agree(case: Case) -> None:
    if case[0].startswith("margin") and case[2].startswith("per_anchor"):
        # No reduction of triplets, unless there are none.
        try:
            want = Run(PEER, case)
        except (AssertionError, NotImplementedError):
            with pytest.raises((ValueError, NotImplementedError)):
                Run(OURS, case)
            return
    else:
        want = Run(PEER, case)
    if any(want.sizes) and max(want.sizes) == 1:
        return  # the peer's loss of at most one pair a side is zero
    if torch.is_tensor(want.answer) and want.answer.isnan():
        assert case[0] == "nca"  # the peer's mean of no losses
        return
    got = Run(OURS, case)
    if torch.is_tensor(want.answer):
        torch.testing.assert_close(got.answer, want.answer.reshape(got.answer.shape), rtol=1e-7, atol=1e-8)
    else:
        assert_same_losses(got.answer, want.answer)
    for mine, theirs in zip(got.gradients(), want.gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_equal_the_peer(loss: str) -> None:
    failed = []
    for case in draw(loss, 100):
        try:
            agree(case)
        except (AssertionError, pytest.fail.Exception) as error:
            failed.append(f"{'-'.join(case)}: {error}")
    assert not failed, f"{len(failed)} cases differ:\n" + "\n".join(failed[:4])
