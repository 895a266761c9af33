"""What batches can hold: at every edge the oracle's numbers, nothing swallowed and nothing left unwritten."""

from __future__ import annotations

import pytest
import torch
from backend_cases import (
    BACKENDS,
    FOLD,
    HISTOGRAMS,
    INF,
    NAMES,
    NOT_COMPILED,
    SCORES,
    TRIPLETS,
    WITH_KERNEL,
    Answer,
    Batch,
    call,
    cases,
    distance,
    draw,
    loss_of,
    on,
    skip_unless,
)
from torch import Tensor

from pml_fast import losses, use
from pml_fast.distances import LpDistance
from pml_fast.engine.cpu import small
from pml_fast.engine.cpu.pairwise import Sweep
from pml_fast.engine.score import Score
from pml_fast.reducers import MeanReducer

SEEDED = torch.Generator().manual_seed(0)
EDGES = {
    "empty": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
    "one_row": (torch.ones(1, 3), torch.zeros(1, dtype=torch.int64)),
    "one_class": (torch.randn(9, 3, generator=SEEDED), torch.full((9,), -4)),
    "all_distinct": (torch.randn(9, 3, generator=SEEDED), torch.arange(9) * (1 << 40)),
    "one_feature": (torch.randn(9, 1, generator=SEEDED), torch.arange(9) % 3),
    "duplicates": (torch.randn(3, 5, generator=SEEDED).repeat(4, 1), torch.arange(12) % 2),
    "all_equal": (torch.ones(8, 5), torch.arange(8) % 2),
    "zero_rows": (torch.cat([torch.zeros(4, 3), torch.randn(5, 3, generator=SEEDED)]), torch.arange(9) % 2),
    "signs": (torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).repeat(3, 1), torch.arange(12) % 5),
    "huge": (torch.randn(9, 4, generator=SEEDED) * 1e15, torch.arange(9) % 3),
    "tiny": (torch.randn(9, 4, generator=SEEDED) * 1e-15, torch.arange(9) % 3),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_equal_the_oracle(backend: str, edge: str) -> None:
    """Empty, single, one-class, all-distinct, duplicate, zero, huge and tiny rows, for every spec and distance."""
    skip_unless(backend)
    x, labels = EDGES[edge]
    batch = Batch(x, labels).to(torch.float64)
    for other, name, score in cases():
        if other != backend or (edge in ("huge", "tiny") and not SCORES[score].normalize):
            continue
        # FastAP of positives alone is 0 up to rounding, which decides what is above a threshold of 0.
        fold = FOLD["mean" if name == "fast_ap" and edge == "one_class" else "threshold"]
        want = on("reference", name, batch, SCORES[score], fold)
        got = on(backend, name, batch, SCORES[score], fold)
        smooth = ("supcon", "ntxent", "multi_similarity", "circle", "smooth", "smooth_ap", "pnp")
        at_a_node = name in ("fast_ap", "triplet_histogram", "narrow_histogram") and edge in (
            "signs",
            "one_feature",
            "all_equal",
            "duplicates",
        )
        # The sine of the angle between equal rows has an infinite slope.
        at_no_angle = name == "tuplet_margin" and edge == "all_equal"
        if at_a_node or at_no_angle or (edge == "zero_rows" and name not in smooth):
            # At a distance of 1 from everything, rounding decides what is beyond a margin or a node of a histogram.
            assert got.value.isfinite() and got.dx.isfinite().all()
            continue
        what = f"{name} {score}"
        assert want.value.isfinite(), what
        torch.testing.assert_close(got.value, want.value, rtol=1e-8, atol=1e-9, msg=lambda m, w=what: f"{w}: {m}")
        # A row's gradient grows as its norm shrinks.
        scale = max(1.0, want.dx.abs().max().item() if len(want.dx) else 0.0)
        near = {"rtol": 1e-6, "atol": 1e-8 * scale}
        torch.testing.assert_close(got.dx, want.dx, **near, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_gradients_at_equal_rows_are_zero(backend: str) -> None:
    """The distance of a vector to itself has no direction: the gradient is 0, never NaN, for every power and order."""
    x = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 2
    pairs = (torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0]), torch.tensor([1]))
    for options in ({}, {"power": 2}, {"p": 1}, {"p": 3}, {"power": 0.5}, {"normalize_embeddings": False}):
        for mined in (None, pairs):
            loss = losses.ContrastiveLoss(distance=LpDistance(**options), reducer=MeanReducer())
            with use(backend=backend):
                (grad,) = torch.autograd.grad(loss(x, labels, mined), x)
            assert not grad.any(), options


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m"), [(5, 0), (0, 5), (0, 0)])
def test_empty_sets_give_a_differentiable_zero(backend: str, n: int, m: int) -> None:
    skip_unless(backend)
    batch = draw(n, m, seed=1)
    for other, name, score in cases():
        if other == backend:
            got = on(backend, name, batch, SCORES[score])
            assert got.value == 0 or (n > 0 and name == "multi_similarity" and got.value.isfinite()), f"{name} {score}"
            assert got.dy is not None and not got.dx.any() and not got.dy.any(), f"{name} {score}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_is_not_finite_is_seen(backend: str, bad: float, dtype: torch.dtype) -> None:
    """A NaN in a row makes every loss NaN, an infinity makes it what the formula says: nothing is swallowed."""
    skip_unless(backend)
    for other, name, score in cases():
        if other != backend or score in NOT_COMPILED:
            continue
        if name in TRIPLETS and TRIPLETS[name][3] != "every":
            # A comparison with NaN is false, so a miner leaves such triplets out, as the peer's does.
            continue
        if name in ("fast_ap", *HISTOGRAMS) and not SCORES[score].normalize:
            # An infinite distance lies beyond its histogram, which is one of unit vectors.
            continue
        for m in (None, 15):
            batch = draw(12, m, d=4, classes=2, seed=5).to(dtype)
            batch.x[3, 1] = bad
            value = on(backend, name, batch, SCORES[score]).value
            want = on("reference", name, batch, SCORES[score]).value
            what = f"{name} {score} {m}: {value} for {want}"
            if want.isfinite():
                assert bad not in (value, float("nan")) and value.item() == pytest.approx(want.item(), rel=1e-5), what
            else:
                assert not value.isfinite(), what
            assert value.isnan() or bad == bad, what


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cold_temperature_of_raw_inner_products_does_not_overflow(backend: str) -> None:
    """Logits of thousands, as raw embeddings and a temperature of 0.01 give, in float32."""
    skip_unless(backend)
    for m in (None, 40):
        batch = draw(50, m, d=16, classes=6, seed=2).to(torch.float32)
        batch.x.mul_(20)
        for name in ("supcon", "ntxent"):
            with use(backend=backend):
                got = call(name, batch, SCORES["dot"], params=[0.01])
            with use(backend="reference"):
                want = call(name, batch.to(torch.float64), SCORES["dot"], params=[0.01])
            assert want.value > 100
            torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=0)
            assert distance(got.dx, want.dx) <= 1e-3 * want.dx.norm().item()


@pytest.mark.parametrize("score", ["dot", "l2_raw"])
def test_norms_that_bound_the_logits_spare_a_sweep(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of raw rows have no bound of their own; only rows that are too long are asked for their largest logit."""
    skip_unless("cpu")
    asked = []
    extremes = Sweep._extremes
    monkeypatch.setattr(Sweep, "_extremes", lambda sweep, largest: (asked.append(1), extremes(sweep, largest))[1])
    monkeypatch.setattr(small, "LARGEST", 0)
    for stretch, sweeps in ((1, 0), (100, 1)):
        for m in (None, 45):
            batch = draw(61, m).to(torch.float32)
            batch.x.mul_(stretch)
            assert_close_to_reference("supcon", batch, SCORES[score])
            assert len(asked) == sweeps
            asked.clear()


def assert_close_to_reference(name: str, batch: Batch, score: Score) -> None:
    got, want = on("cpu", name, batch, score), on("reference", name, batch.to(torch.float64), score)
    torch.testing.assert_close(got.value.double(), want.value, rtol=1e-5, atol=0)
    assert distance(got.dx, want.dx) <= 1e-2 * want.dx.norm().item()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    """Transposed, sliced and expanded inputs give what their contiguous copies give."""
    skip_unless(backend)
    wide = draw(40, None, d=24, classes=5, seed=3).to(torch.float32)
    views = [wide.x.t().contiguous().t(), torch.cat([wide.x, wide.x], dim=1)[:, ::2], wide.x[::2], wide.x[:1].expand(9, 24)]
    labels = torch.stack([wide.labels, wide.labels], dim=1)[:, 0]
    for name in NAMES:
        if (backend, name) not in WITH_KERNEL:
            continue
        for x in views:
            own = labels[: len(x)]
            assert not x.is_contiguous()
            got = on_view(backend, name, x, own)
            want = on_view(backend, name, x.contiguous(), own.contiguous())
            torch.testing.assert_close(got.value, want.value, rtol=1e-6, atol=0)
            assert distance(got.dx, want.dx) <= 1e-5 * want.dx.norm().item(), name


def on_view(backend: str, name: str, x: Tensor, labels: Tensor) -> Answer:
    """As `on`, keeping the strides."""
    x = x.detach().requires_grad_()
    with use(backend=backend):
        value = loss_of(name, (x, x), (labels, labels), SCORES["l2" if name in TRIPLETS else "cosine"], True)
    return Answer(value.detach(), torch.autograd.grad(value, x)[0], None)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uninitialised tensor holds NaN (or a wild index): what a kernel forgets to write is seen."""

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-(1 << 50))

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, _make=make, **options: fill(_make(*args, **options)))


@pytest.mark.parametrize(("backend", "name"), WITH_KERNEL)
def test_every_output_is_written(poisoned: None, backend: str, name: str) -> None:
    skip_unless(backend)
    assert torch.empty(2).isnan().all()
    for m in (None, 29):
        answer = on(backend, name, draw(37, m, seed=6), SCORES["cosine"])
        assert answer.value.isfinite() and answer.dx.isfinite().all()
        assert answer.dy is None or answer.dy.isfinite().all()
