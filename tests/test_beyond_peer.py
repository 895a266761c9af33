"""Losses that the peer does not have, against plain formulas over whole matrices in float64."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pml_fast import _extension, distances, explain, losses, reducers, use
from pml_fast.engine import grad_sum, recompute
from pml_fast.engine import label_sets as sets_of_labels
from pml_fast.losses import multi_supcon_loss
from pml_fast.losses.base_metric_loss_function import prepare_call


@pytest.fixture(autouse=True)
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips, also for the small batches here."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 60)


@pytest.fixture
def lists_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positives are listed however few pairs there are."""
    monkeypatch.setattr(multi_supcon_loss, "KEPT_ELEMENTS", 0)


def rows(n: int, d: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    gen = torch.Generator().manual_seed(100 * n + seed)
    return torch.randn(n, d, generator=gen, dtype=torch.float64).to(dtype).requires_grad_()


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x, dim=1) @ F.normalize(y, dim=1).T


def same_with_gradients(got: Tensor, want: Tensor, *leaves: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    mine, theirs = (torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) for value in (got, want))
    for ours, plain in zip(mine, theirs, strict=True):
        assert ours is not None and plain is not None
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-10)


# ---- two towers ----


def dense_direction(logits: Tensor, pos: Tensor) -> Tensor:
    """Mean over the positives of the cross-entropy, one loss a row; 0 for a row without any."""
    share = pos / pos.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share * F.log_softmax(logits, dim=1)).sum(dim=1)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("distance", [distances.CosineSimilarity(), distances.DotProductSimilarity(normalize_embeddings=False)])
def test_clip_is_the_cross_entropy_of_both_directions(learned: bool, symmetric: bool, distance: Any) -> None:
    x, y = rows(19), rows(19, seed=1)
    loss = losses.CLIPLoss(0.2, learn_temperature=learned, symmetric=symmetric, distance=distance).double()
    scale = loss.logit_scale.exp() if learned else torch.tensor(5.0).double()
    mat = (cosines(x, y) if distance.normalize_embeddings else x @ y.T) * scale
    target = torch.arange(19)
    want = F.cross_entropy(mat, target)
    if symmetric:
        want = (want + F.cross_entropy(mat.T, target)) / 2
    same_with_gradients(loss(x, ref_emb=y), want, x, y, *loss.parameters())


def test_clip_with_labels_has_all_rows_of_a_label_as_positives() -> None:
    x, y = rows(17), rows(23)
    labels, ref_labels = torch.arange(17) % 5, torch.arange(23) % 5
    loss = losses.CLIPLoss(0.3).double()
    mat = cosines(x, y) * loss.logit_scale.exp()
    pos = (labels.unsqueeze(1) == ref_labels).double()
    want = (dense_direction(mat, pos).mean() + dense_direction(mat.T, pos.T).mean()) / 2
    same_with_gradients(loss(x, labels, ref_emb=y, ref_labels=ref_labels), want, x, y, loss.logit_scale)
    singles = losses.CLIPLoss(0.3, reducer=reducers.DoNothingReducer()).double()(x, labels, ref_emb=y, ref_labels=ref_labels)
    torch.testing.assert_close(singles["loss"]["losses"], dense_direction(mat, pos) / 2)
    torch.testing.assert_close(singles["reverse_loss"]["losses"], dense_direction(mat.T, pos.T) / 2)


def test_the_temperature_is_held_at_its_bound() -> None:
    x, y = rows(9), rows(9, seed=1)
    loss = losses.CLIPLoss(0.001, max_scale=50.0).double()
    assert loss.temperature == pytest.approx(0.02)
    value = loss(x, ref_emb=y)
    same_with_gradients(value, losses.CLIPLoss(0.02, learn_temperature=False).double()(x, ref_emb=y), x, y)
    assert torch.autograd.grad(value, loss.logit_scale)[0] == 0


@pytest.mark.parametrize("learn_scale", [True, False])
@pytest.mark.parametrize("learn_bias", [True, False])
@pytest.mark.parametrize("sets", ["two", "labelled", "one"])
def test_siglip_is_the_sum_of_all_pairs(learn_scale: bool, learn_bias: bool, sets: str) -> None:
    x = rows(18)
    y = x if sets == "one" else rows(18 if sets == "two" else 21, seed=1)
    loss = losses.SigLIPLoss(4.0, -1.5, learn_scale, learn_bias).double()
    labels, ref_labels = torch.arange(len(x)) % 4, torch.arange(len(y)) % 4
    same = torch.eye(18, dtype=torch.bool) if sets == "two" else labels.unsqueeze(1) == ref_labels
    scale, bias = loss.logit_scale.exp() if learn_scale else 4.0, loss.logit_bias if learn_bias else -1.5
    logits = cosines(x, y) * scale + bias
    every = -F.logsigmoid(torch.where(same, logits, -logits))
    if sets == "one":
        every = every.masked_fill(torch.eye(18, dtype=torch.bool), 0.0)
        got = loss(x, labels)
    elif sets == "two":
        got = loss(x, ref_emb=y)
    else:
        got = loss(x, labels, ref_emb=y, ref_labels=ref_labels)
    leaves = [x, *([] if sets == "one" else [y]), *loss.parameters()]
    same_with_gradients(got, every.sum() / 18, *leaves)


def test_two_towers_refuse_what_they_cannot_pair() -> None:
    x, y = rows(6), rows(5)
    for loss in (losses.CLIPLoss(), losses.SigLIPLoss()):
        with pytest.raises(ValueError, match="ref_emb must be given where there are no labels"):
            loss(x)
        with pytest.raises(ValueError, match=r"ref_emb must have as many rows as embeddings.*6, got 5"):
            loss(x, ref_emb=y)
        index = torch.tensor([0])
        with pytest.raises(ValueError, match="indices_tuple"):
            loss(x, None, (index, index, index), ref_emb=x.detach().clone())
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        losses.CLIPLoss(0)
    with pytest.raises(ValueError, match="scale must be above 0, got -1"):
        losses.SigLIPLoss(-1)
    with pytest.raises(TypeError, match="DotProductSimilarity"):
        losses.CLIPLoss(distance=distances.LpDistance())
    with pytest.raises(ValueError, match=r"distance must be CosineSimilarity or DotProductSimilarity itself"):
        losses.CLIPLoss(distance=distances.CosineSimilarity(collect_stats=True))(x, ref_emb=x.detach().clone())


# ---- label sets ----


def dense_multi(loss: Any, x: Tensor, y: Tensor, sets: Tensor, ref_sets: Tensor, itself: bool) -> Tensor:
    """The definition, pair by pair."""
    values = []
    scores = cosines(x, y) / loss.temperature
    for i in range(len(x)):
        others = [j for j in range(len(y)) if not (itself and i == j)]
        log_all = torch.logsumexp(scores[i, others], dim=0) if others else scores.new_zeros(())
        parts = []
        for j in others:
            left, right = set(sets[i].nonzero().flatten().tolist()), set(ref_sets[j].nonzero().flatten().tolist())
            overlap = len(left & right) / len(left | right) if left | right else 1.0
            if overlap >= loss.threshold:
                parts.append(overlap * (log_all - scores[i, j]))
        values.append(torch.stack(parts).mean() if parts else scores[i].sum() * 0)
    return torch.stack(values)


def label_sets(n: int, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    sets = torch.rand(n, 7, generator=gen) < 0.35
    sets[:1] = False
    return sets


class OwnMean(reducers.DoNothingReducer):
    """A reducer that must see every loss."""

    def forward(self, loss_dict: Any, embeddings: Tensor, labels: Tensor) -> Any:
        return super().forward(loss_dict, embeddings, labels)["loss"]["losses"].mean()


@pytest.mark.parametrize("kept", [0, recompute.KEPT_ELEMENTS])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("itself", [True, False])
def test_multi_supcon_is_its_definition(threshold: float, itself: bool, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With positives listed or in strips, a single strip computed again or kept; and reduced inside the operator or not."""
    monkeypatch.setattr(multi_supcon_loss, "KEPT_ELEMENTS", kept)
    if kept:
        monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 1 << 20)
    x, sets = rows(20), label_sets(20)
    y, ref_sets = (x, sets) if itself else (rows(15), label_sets(15, 1))
    loss = losses.MultiSupConLoss(0.2, threshold, reducer=reducers.MeanReducer())
    want = dense_multi(loss, x, y, sets, ref_sets, itself).mean()
    for folded in (True, False):
        loss.reducer = reducers.MeanReducer() if folded else OwnMean()
        for backend in ("auto", "chunked"):
            with use(backend=backend):
                got = loss(x, sets) if itself else loss(x, sets, ref_emb=y, ref_labels=ref_sets)
            same_with_gradients(got, want, *((x,) if itself else (x, y)))


def test_explain_takes_label_sets(lists_of_few: None) -> None:
    sets = torch.eye(8)[torch.arange(8) // 2]
    said = str(explain(losses.MultiSupConLoss(), rows(8), sets))
    assert "log_sum_exp" in said or "log-sum-exp of every row" in said
    with pytest.raises(ValueError, match="for one label a row use SupConLoss"):
        explain(losses.MultiSupConLoss(), rows(8), torch.arange(8))


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_positives_by_shared_labels_are_those_of_all_similarities(itself: bool, threshold: float) -> None:
    """Sets of every size, empty ones too; and a list that is too long is none."""
    sets = (torch.rand(60, 9) < 0.25).double()
    others = sets if itself else (torch.rand(41, 9) < 0.25).double()
    sets[3] = 0
    others[5] = 0
    masks = sets.bool()
    found = sets_of_labels.alike_pairs(masks, masks if itself else others.bool(), threshold, itself, torch.float64)
    sets, others = (sets_of_labels.with_empty_sets(part.bool()).double() for part in (sets, others))
    common, size, other_size = sets @ others.T, sets.sum(dim=1, keepdim=True), others.sum(dim=1)
    weight = sets_of_labels.jaccard(common, size, other_size)
    alike = weight >= threshold
    if itself:
        alike.fill_diagonal_(False)
    assert found is not None
    assert torch.equal(torch.stack([found.row, found.column]), alike.nonzero().T)
    assert torch.equal(found.weight, weight[alike])


def test_where_too_many_share_a_label_strips_take_over(lists_of_few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, sets = rows(40).requires_grad_(), (torch.rand(40, 6) < 0.4).double()
    listed = losses.MultiSupConLoss()(x, sets)
    monkeypatch.setattr(sets_of_labels, "LISTED", 0)
    monkeypatch.setattr(sets_of_labels, "LISTED_A_ROW", 0)
    assert sets_of_labels.alike_pairs(sets.bool(), sets.bool(), 0.5, True, torch.float64) is None
    same_with_gradients(losses.MultiSupConLoss()(x, sets), listed, x)


def test_multi_supcon_with_one_label_a_row_is_supcon() -> None:
    x, labels = rows(16), torch.arange(16) % 4
    sets = F.one_hot(labels)
    same_with_gradients(losses.MultiSupConLoss(0.1)(x, sets), losses.SupConLoss(0.1)(x, labels), x)


def test_label_sets_may_be_lists_of_class_numbers() -> None:
    x, sets = rows(12), label_sets(12)
    lists = [row.nonzero().flatten().tolist() for row in sets]
    got = losses.MultiSupConLoss(num_classes=7)(x, lists)
    torch.testing.assert_close(got, losses.MultiSupConLoss()(x, sets), rtol=0, atol=0)
    torch.testing.assert_close(got, losses.MultiSupConLoss()(x, sets.float() * 3), rtol=0, atol=0)


def test_index_tuples_choose_the_pairs_and_labels_weigh_them() -> None:
    x, sets = rows(8), label_sets(8, 3)
    sets[1], sets[2], sets[3] = sets[4].clone(), sets[5].clone() | sets[4], sets[6].clone()
    a1, p, a2, n = (torch.tensor(part) for part in ([1, 1, 2, 2], [4, 2, 5, 5], [1, 2, 2], [6, 7, 0]))
    loss = losses.MultiSupConLoss(0.5, reducer=reducers.SumReducer())
    s = cosines(x, x) / 0.5
    common = sets.double() @ sets.double().T
    size = sets.double().sum(dim=1)

    def weight(i: int, j: int) -> Tensor:
        return common[i, j] / (size[i] + size[j] - common[i, j])

    first = torch.logsumexp(s[1, [4, 2, 6]], dim=0)
    second = torch.logsumexp(s[2, [5, 7, 0]], dim=0)
    want = (weight(1, 4) * (first - s[1, 4]) + weight(1, 2) * (first - s[1, 2])) / 2 + weight(2, 5) * (second - s[2, 5])
    same_with_gradients(loss(x, sets, (a1, p, a2, n)), want, x)


SETS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one label a row": (lambda: losses.MultiSupConLoss()(rows(4), torch.arange(4)), ValueError, "must be a 2-D.*SupConLoss"),
    "no labels": (lambda: losses.MultiSupConLoss()(rows(4)), TypeError, "labels must be a tensor.*got None"),
    "other classes": (
        lambda: losses.MultiSupConLoss(num_classes=3)(rows(4), torch.ones(4, 2)), ValueError, "num_classes=3 columns, got 2"
    ),
    "lists alone": (lambda: losses.MultiSupConLoss()(rows(2), [[0], [1]]), ValueError, "num_classes must be given.*got None"),
    "short lists": (lambda: losses.MultiSupConLoss(num_classes=2)(rows(2), [[0]]), ValueError, "of the 2 embeddings, got 1"),
    "a class beyond": (
        lambda: losses.MultiSupConLoss(num_classes=2)(rows(2), [[0], [2]]), ValueError, r"class numbers from 0 to 1, got \[2\]"
    ),
    "threshold": (lambda: losses.MultiSupConLoss(threshold=2), ValueError, "threshold must be a similarity from 0 to 1, got 2"),
    "uneven classes": (
        lambda: losses.MultiSupConLoss()(rows(2), torch.ones(2, 3), ref_emb=rows(3), ref_labels=torch.ones(3, 4)),
        ValueError, "ref_labels must have the labels' 3 classes, got 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_label_sets_that_do_not_fit_are_refused(name: str) -> None:
    call, error, message = SETS[name]
    with pytest.raises(error, match=message):
        call()


# ---- what they have in common ----

BEYOND: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "clip": (losses.CLIPLoss, lambda loss, x, y: loss(x, ref_emb=y)),
    "siglip": (losses.SigLIPLoss, lambda loss, x, y: loss(x, ref_emb=y)),
    "multi_supcon": (
        losses.MultiSupConLoss,
        lambda loss, x, y: loss(x, label_sets(len(x)), ref_emb=y, ref_labels=label_sets(len(y), 1)),
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_copies_pickles_and_states(name: str) -> None:
    make, call = BEYOND[name]
    loss, x, y = make().double(), rows(10), rows(10, seed=1)
    want = call(loss, x, y)
    other = make().double()
    other.load_state_dict(loss.state_dict())
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.load(buffer, weights_only=False), other):
        torch.testing.assert_close(call(twin, x, y), want, rtol=0, atol=0)


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("n", [0, 1])
def test_empty_sets_give_a_differentiable_zero(name: str, n: int) -> None:
    make, call = BEYOND[name]
    loss, x, y = make().double(), rows(n), rows(n, seed=1)
    value = call(loss, x, y)
    value.backward()
    assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()
    assert n == 1 or value == 0
    assert all(part.grad is None or part.grad.isfinite().all() for part in loss.parameters())


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    make, call = BEYOND[name]
    x, y = rows(30, dtype=dtype), rows(30, seed=1, dtype=dtype)
    value = call(make(), x, y)
    exact = call(make().double(), x.detach().double(), y.detach().double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=1e-6)
    value.backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize("name", BEYOND)
def test_a_nan_is_seen(name: str) -> None:
    make, call = BEYOND[name]
    x, y = rows(12).detach(), rows(12, seed=1)
    x[3, 2] = float("nan")
    assert call(make().double(), x, y).isnan()


def test_plans_and_explanations_tell_how_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(8), rows(8, seed=1)
    call = prepare_call(x, None, None, y, None)
    for loss in (losses.CLIPLoss(), losses.SigLIPLoss()):
        plan = loss.plan(call)
        assert (plan.mode, plan.engine) == ("fused", "pairwise")
        assert any("factor and a feature of the rows" in note for note in plan.notes)
    assert losses.CLIPLoss(reducer=reducers.DoNothingReducer()).plan(call).mode == "partly fused"
    # A list of so few pairs is worth its while where one call takes it.
    one_call = _extension.load() is not None
    assert losses.MultiSupConLoss().plan(call).engine == ("pairwise" if one_call else "strips")
    assert losses.MultiSupConLoss(reducer=reducers.DoNothingReducer()).plan(call).engine == "strips"
    monkeypatch.setattr(multi_supcon_loss, "KEPT_ELEMENTS", 0)
    plan = losses.MultiSupConLoss().plan(call)
    assert (plan.mode, plan.engine) == ("fused", "pairwise")
    plan = losses.MultiSupConLoss(reducer=reducers.DoNothingReducer()).plan(call)
    assert (plan.mode, plan.engine) == ("partly fused", "pairwise")
    assert losses.MultiSupConLoss(threshold=0).plan(call).engine == "strips"
    labels = torch.arange(8) // 2
    said = explain(losses.SigLIPLoss(learn_scale=False, learn_bias=False), x, labels)
    assert said.backend == ("cpu" if _extension.load() is not None else "chunked") and said.costs is not None
