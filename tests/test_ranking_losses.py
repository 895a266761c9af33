"""What ranking, histogram and other losses have in common: types, copies, graphs, strips, batches with nothing to rank."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from ranking_cases import EVERY, WITH_LABELS, close, made
from torch import Tensor

from pml_fast import explain, losses, miners, reducers, use
from pml_fast.engine import grad_sum, histogram_strips
from pml_fast.engine.specs import fast_ap


@pytest.mark.parametrize("name", EVERY)
def test_copies_pickles_and_state_dicts(name: str) -> None:
    loss, call, x = made(name)
    call(loss, x)
    other = made(name)[0]
    other.load_state_dict(loss.state_dict())
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), other]
    expected = call(loss, x)
    for twin in twins:
        assert torch.equal(call(twin, x), expected)


@pytest.mark.parametrize("name", EVERY)
def test_types(name: str) -> None:
    """Half precision is summed and returned in float32; gradients have the type of the embeddings."""
    for dtype, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)):
        loss, call, x = made(name)
        x = x.to(dtype).requires_grad_()
        value = call(loss, x)
        (grad,) = torch.autograd.grad(value, x)
        assert (value.dtype, grad.dtype) == (kept, dtype) and grad.isfinite().all()
        loss, call, _ = made(name)
        wide = call(loss, x.detach().double())
        close(value.double(), wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_autocast_stays_outside(name: str) -> None:
    values = []
    for on in (False, True):
        loss, call, x = made(name)
        x.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            value = call(loss, x)
        values.append((value, torch.autograd.grad(value, x)[0]))
    close(values[1][0], values[0][0], rtol=1e-5, atol=1e-6)
    close(values[1][1], values[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_losses_compile_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        loss, call, x = made(name)
        x.requires_grad_()
        step = lambda x, loss=loss, call=call: call(loss, x)  # noqa: E731
        value = torch.compile(step, fullgraph=True, backend="aot_eager")(x) if compiled else step(x)
        results.append((value.detach(), torch.autograd.grad(value, x)[0]))
    for mine, eager in zip(*results, strict=True):
        close(mine, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*WITH_LABELS, "soft_margin_rows"])
def test_a_second_derivative_is_refused(name: str) -> None:
    loss, call, x = made(name)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(call(loss, x), x, create_graph=True)


@pytest.mark.parametrize("name", WITH_LABELS)
def test_batches_without_anything_to_rank(name: str) -> None:
    """Empty, one row, one class, all distinct, all equal: finite, differentiable, zero where no pair counts."""
    for n, labels in ((0, []), (1, [3]), (4, [1] * 4), (4, [0, 1, 2, 3]), (6, [0, 0, 1, 1, 2, 2])):
        loss = WITH_LABELS[name]()
        x = torch.ones(n, 3, dtype=torch.float64, requires_grad=True)
        value = loss(x, torch.tensor(labels, dtype=torch.int64))
        value.backward()
        assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()
        no_pairs = n == 0 or len(set(labels)) in (1, n)
        if name in ("histogram", "soft_margin") and no_pairs:
            assert value == 0 and not x.grad.any()
        if name in ("pnp", "fast_ap") and len(set(labels)) == n:
            assert value == 0


@pytest.mark.parametrize("name", WITH_LABELS)
def test_a_nan_is_not_swallowed(name: str) -> None:
    loss, call, x = made(name)
    x[5, 2] = float("nan")
    assert call(loss, x).isnan()


@pytest.mark.parametrize("name", WITH_LABELS)
def test_many_strips_equal_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    results = []
    for elements in (1 << 20, 100):
        monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", elements)
        loss, call, x = made(name)
        x = x.double().requires_grad_()
        value = call(loss, x)
        results.append((value.detach(), torch.autograd.grad(value, x)[0]))
    for one, many in zip(*results, strict=True):
        close(many, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["fast_ap", "smooth_ap"])
@pytest.mark.parametrize("separate", [False, True])
def test_a_miner_weighs_rows(name: str, separate: bool) -> None:
    """A lazy tuple and the index tensors it stands for give the same weights."""
    loss, _, x = made(name)
    labels = torch.arange(24) // 4
    refs = (x[:16].clone(), labels[:16]) if separate else ()
    mined = miners.MultiSimilarityMiner()(x, labels, *refs)
    rows = type(loss)(reducer=reducers.DoNothingReducer())(x, labels, None, *refs)
    (entry,) = rows.values()
    counts = torch.bincount(torch.cat(list(mined)[::2] if separate else list(mined)), minlength=24).float()
    want = (entry["losses"] * (counts / counts.max())[entry["indices"]]).mean()
    close(type(loss)()(x, labels, mined, *refs), want, rtol=1e-5)
    close(type(loss)()(x, labels, tuple(mined), *refs), want, rtol=1e-5)


def test_a_trained_temperature_has_its_gradient() -> None:
    x, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(12) // 3
    loss = losses.SmoothAPLoss()
    loss.temperature = torch.nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    assert "temperature is trained" in str(explain(loss, x, labels))
    value = loss(x, labels)
    close(value.detach(), losses.SmoothAPLoss(0.2)(x, labels))
    (slope,) = torch.autograd.grad(value, loss.temperature)
    step = 1e-6
    numeric = (losses.SmoothAPLoss(0.2 + step)(x, labels) - losses.SmoothAPLoss(0.2 - step)(x, labels)) / (2 * step)
    assert slope.item() == pytest.approx(numeric.item(), rel=1e-6)


@pytest.mark.parametrize("name", [*WITH_LABELS])
def test_a_distance_of_ones_own_takes_its_matrix(name: str) -> None:
    """A subclass whose maths is overridden is materialised, with the same numbers, and the plan says so."""
    loss, call, x = made(name)
    base = type(loss.distance)

    class Own(base):  # type: ignore[misc, valid-type]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            if self.is_inverted:
                return query_emb @ ref_emb.T
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt()

    x = x.double().requires_grad_()
    other = made(name)[0]
    other.distance = Own(power=loss.distance.power)
    plan = explain(other, x, torch.arange(24) // 4)
    assert plan.mode == "materialised" and "Own" in plan.notes[0]
    want, got = call(loss, x), call(other, x)
    close(got, want)
    # The derivative of a root at 0 is not finite on the diagonal.
    if loss.distance.is_inverted:
        close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])


# ---- what accelerators run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator runs in the place of bincount."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("bincount waits for an accelerator")

    monkeypatch.setattr(histogram_strips, "keyed_sums", histogram_strips.scattered_sums)
    monkeypatch.setattr(fast_ap._Below, "forward", staticmethod(forward_elsewhere))
    monkeypatch.setattr(torch, "bincount", refuse)


def forward_elsewhere(ctx: Any, x: Tensor, pos: Tensor, neg: Tensor, nodes: int) -> Tensor:
    """The forward as it is, with the sums that a device other than the CPU takes."""
    by_keys = fast_ap.by_keys
    fast_ap.by_keys = lambda *_: fast_ap.by_passes(x, pos, neg, nodes)
    try:
        return BELOW_FORWARD(ctx, x, pos, neg, nodes)
    finally:
        fast_ap.by_keys = by_keys


BELOW_FORWARD = fast_ap._Below.forward


@pytest.mark.parametrize("name", ["fast_ap", "histogram", "soft_margin"])
def test_sums_without_bincount_are_the_same(name: str, request: pytest.FixtureRequest) -> None:
    results = []
    for _ in range(2):
        loss, call, x = made(name)
        x = x.double().requires_grad_()
        with use(backend="chunked"):
            value = call(loss, x)
            results.append((value.detach(), torch.autograd.grad(value, x)[0]))
        if len(results) == 1:
            request.getfixturevalue("elsewhere")
    for one, other in zip(*results, strict=True):
        close(other, one, rtol=1e-10)
