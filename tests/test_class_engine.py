"""The class engine: every derivative, blocks against the oracle, and memory, which explain bounds."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from allocations import allocations
from torch import Tensor

from pml_fast import distances, explain, losses, use
from pml_fast.engine import grad_sum
from pml_fast.engine.classes import blocks, small, unit
from pml_fast.engine.classes.explain import SCORE_BUFFERS, WEIGHT_BUFFERS
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.score import Score

C, D = 9, 7


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one or two classes and of five rows."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 15)
    monkeypatch.setattr(blocks, "ROWS", 5)


def batch(n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=gen, dtype=dtype), torch.randint(0, C, (n,), generator=gen)


def close(got: list[Tensor], want: list[Tensor]) -> None:
    for mine, expected in zip(got, want, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


SPECS = {
    "plain": ClassSpec(Score(normalize=False), scale=2.0),
    "unit": ClassSpec(Score(normalize=False), unit=True, scale=-1.5),
    "unit_p3": ClassSpec(Score(normalize=False), unit=True, p=3.0),
    "cubed": ClassSpec(Score(normalize=False, power=3.0), unit=True, scale=0.7),
    "norms": ClassSpec(Score(normalize=False), norms=True),
    "l2": ClassSpec(Score("l2", normalize=False, inverted=False), scale=-1.0, norms=False),
    "l1": ClassSpec(Score("lp", p=1.0, normalize=False, inverted=False), unit=True, p=1.0, scale=-1.0),
    "max": ClassSpec(Score(normalize=False), centers=3, pool="max"),
    "soft": ClassSpec(Score(normalize=False), unit=True, centers=3, pool="soft", sharpness=2.0),
    "soft_pairs": ClassSpec(Score(normalize=False), unit=True, centers=2, pool="soft", sharpness=2.0),
    "soft_four": ClassSpec(Score(normalize=False), unit=True, centers=4, pool="soft", sharpness=2.0),
    "soft_five": ClassSpec(Score(normalize=False), unit=True, centers=5, pool="soft", sharpness=2.0),
    "soft_l2": ClassSpec(Score("l2", normalize=False), unit=True, centers=3, pool="soft", sharpness=2.0),
    "squared": ClassSpec(Score(normalize=False), lift="square", scale=2.0),
    "squared_unit": ClassSpec(Score(normalize=False), unit=True, lift="square"),
    "snr": ClassSpec(Score(normalize=False), unit=True, lift="snr", scale=-1.0),
    "by_class": ClassSpec(Score(normalize=False), unit=True, fold="class_lse", scale=3.0),
    "by_class_l2": ClassSpec(Score("l2", normalize=False), fold="class_lse", scale=-2.0),
    "squares": ClassSpec(Score(normalize=False), fold="row_squares"),
}


def sets(spec: ClassSpec, n: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(8)
    x = torch.randn(n, 4, generator=gen, dtype=torch.float64).requires_grad_()
    y = torch.randn(classes * spec.centers, 4, generator=gen, dtype=torch.float64).requires_grad_()
    target = torch.tensor([0, 1, 1, 4, 2, 0])[:n]
    return x, y, target, torch.rand(n, generator=gen, dtype=torch.float64)


def scores(spec: ClassSpec, x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    found = class_scores(x, y, target, replace(spec, unit_rows=spec.unit), bias)
    return (found.others, found.target) + ((found.norms,) if spec.norms else ())


# Those that the compiled kernels take.
COMPILED = [kind for kind, spec in SPECS.items() if spec.score.kind == "dot" and spec.score.power == 1 and spec.p == 2]
COMPILED.remove("snr")


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference", "cpu"])
@pytest.mark.parametrize("kind", SPECS)
def test_every_derivative_is_autograds(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[kind]
    x, y, target, bias = sets(spec)
    if backend == "cpu":
        # Some blocks kept, others computed again.
        monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 18)
        monkeypatch.setattr(blocks, "ROWS", 4)
        monkeypatch.setattr(blocks, "KEPT_BYTES", 3 * spec.centers * len(x) * 8)
    with use(backend=backend):
        if backend == "cpu" and kind not in COMPILED:
            with pytest.raises(ValueError, match=r"no compiled kernel|have a compiled kernel for"):
                scores(spec, x, y, target, bias)
            return
        assert torch.autograd.gradcheck(lambda a, b: scores(spec, a, b, target, bias), (x, y))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("transposed", [False, True])
def test_one_block_many_blocks_and_the_oracle_agree(kind: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS[kind]
    x, y, target, bias = sets(spec)
    if transposed:
        y = y.detach().t().contiguous().t().requires_grad_()

    def answer() -> list[Tensor]:
        out = scores(spec, x, y, target, bias)
        grads = torch.autograd.grad(sum(((k + 1) * part.square()).sum() for k, part in enumerate(out)), (x, y))  # type: ignore[arg-type]
        assert small.is_small(len(x), y.shape[0], y.shape[1], x.device) or grads[1].stride() == y.stride()
        return [*(part.detach() for part in out), *grads]

    with use(backend="reference"):
        want = answer()
    close(answer(), want)
    backends = ["chunked", "cpu"] if kind in COMPILED else ["chunked"]
    for backend in backends:
        with use(backend=backend):
            close(answer(), want)
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 9)
    monkeypatch.setattr(blocks, "ROWS", 4)
    for backend in backends:
        for kept in (0, blocks.KEPT_BYTES):
            monkeypatch.setattr(blocks, "KEPT_BYTES", kept)
            with use(backend=backend):
                close(answer(), want)


@pytest.mark.parametrize("kind", SPECS)
def test_a_spec_survives_its_schema(kind: str) -> None:
    assert ClassSpec.decode(SPECS[kind].encode()) == SPECS[kind]


def test_bad_specs_are_refused() -> None:
    with pytest.raises(ValueError, match="pool must be one of"):
        ClassSpec(Score(), pool="mean")
    with pytest.raises(ValueError, match="norms are Euclidean"):
        ClassSpec(Score(), p=3.0, norms=True)
    with pytest.raises(ValueError, match="centers must be 1"):
        ClassSpec(Score(), centers=2)


def test_only_the_wanted_gradients_are_computed() -> None:
    loss = losses.ArcFaceLoss(C, D).double()
    x, labels = batch()
    loss.W.requires_grad_(False)
    y = x.clone().requires_grad_()
    loss(y, labels).backward()
    assert y.grad is not None and loss.W.grad is None
    loss.W.requires_grad_(True)
    loss(x, labels).backward()
    assert loss.W.grad is not None and loss.W.grad.stride() == loss.W.stride()
    with torch.no_grad():
        assert not loss(x, labels).requires_grad


def test_second_derivatives_are_refused() -> None:
    x, labels = batch()
    x.requires_grad_()
    loss = losses.CosFaceLoss(C, D).double()
    for backend in ("auto", "chunked"):
        with use(backend=backend), pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(loss(x, labels), x, create_graph=True)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_made_unit_vectors_where_they_lie(
    dtype: torch.dtype, transposed: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(unit, "_is_compiled", lambda _: False)
    weights = torch.randn(700, 33, dtype=dtype)
    weights[3] = 0
    want = torch.nn.functional.normalize(weights.double(), dim=1).to(dtype)
    weights = weights.t().contiguous().t() if transposed else weights
    unit.make_unit(weights)
    torch.testing.assert_close(weights, want, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    before = weights.clone()
    unit.make_unit(weights)
    assert torch.equal(weights, before)


# ---- memory and what explain says of it ----


BIG = {
    "arcface": lambda m, c, d: m.ArcFaceLoss(c, d),
    "large_margin": lambda m, c, d: m.LargeMarginSoftmaxLoss(c, d),
    "sphereface": lambda m, c, d: m.SphereFaceLoss(c, d),
    "subcenter": lambda m, c, d: m.SubCenterArcFaceLoss(num_classes=c, embedding_size=d),
    "normalized_l2": lambda m, c, d: m.NormalizedSoftmaxLoss(c, d, distance=distances.LpDistance()),
    "proxy_nca": lambda m, c, d: m.ProxyNCALoss(c, d),
    "proxy_anchor": lambda m, c, d: m.ProxyAnchorLoss(c, d),
    "soft_triple": lambda m, c, d: m.SoftTripleLoss(c, d, centers_per_class=2),
    "p2s_grad": lambda m, c, d: m.P2SGradLoss(d, c),
}


@pytest.mark.parametrize(("n", "classes", "d"), [(256, 120000, 16), (256, 5000, 16), (128, 5000, 128), (64, 500, 16)])
@pytest.mark.parametrize("name", BIG)
def test_memory_is_gradients_and_blocks_and_explain_bounds_it(name: str, n: int, classes: int, d: int) -> None:
    loss = BIG[name](losses, classes, d)
    x, labels = torch.randn(n, d, requires_grad=True), torch.randint(0, classes, (n,))

    def step() -> None:
        loss(x, labels).backward()

    step()
    x.grad = None
    loss.zero_grad(set_to_none=True)
    said = explain(loss, x, labels)
    events = allocations(step)
    peak, weights = max(accumulate(events)), sum(p.numel() * 4 for p in loss.parameters())
    assert said.mode == "fused" and said.engine == "classes" and said.costs is not None
    assert 0.9 * peak <= said.costs.memory_bytes <= 8 * peak + (2 << 20)
    matrix = 4 * len(x) * classes
    if matrix > 2 * blocks.KEPT_BYTES:
        # Nothing as large as the matrix but the weights' gradient; in all, that, the kept scores, and as many buffers of a
        # block (STRIP_ELEMENTS numbers of 4 bytes) as explain counts.
        assert sorted(events)[-1] <= max(weights, blocks.KEPT_BYTES)
        assert peak < weights + blocks.KEPT_BYTES + (SCORE_BUFFERS + WEIGHT_BUFFERS) * grad_sum.STRIP_ELEMENTS * 4


def test_nothing_grows_with_the_batch_times_the_classes() -> None:
    """Twice the classes: the peak grows by the weights' gradient alone."""
    peaks = []
    for classes in (80000, 160000):
        loss = losses.ArcFaceLoss(classes, 16)
        x, labels = torch.randn(512, 16, requires_grad=True), torch.randint(0, classes, (512,))
        loss(x, labels).backward()
        x.grad, loss.W.grad = None, None
        peaks.append(max(accumulate(allocations(lambda: loss(x, labels).backward()))) - classes * 16 * 4)  # noqa: B023
    # Norms and the like are a few numbers a class; the matrix would add 160 MiB.
    assert peaks[1] - peaks[0] < 4 << 20


def test_explain_counts_the_products() -> None:
    x, labels = torch.randn(64, 32, requires_grad=True), torch.zeros(64, dtype=torch.int64)
    classes = 4 * blocks.KEPT_BYTES // (64 * 4)
    g = 2 * 64 * classes * 32
    with use(backend="chunked"):
        again = explain(losses.ArcFaceLoss(classes, 32), x, labels).costs
    assert again is not None and (again.forward_flops, again.step_flops) == (g, 4 * g)
    a_quarter_kept = explain(losses.ArcFaceLoss(classes, 32), x, labels).costs
    assert a_quarter_kept is not None and a_quarter_kept.step_flops == pytest.approx(3.75 * g, rel=0.01)
    all_kept = explain(losses.ArcFaceLoss(classes // 4, 32), x, labels).costs
    assert all_kept is not None and all_kept.step_flops == 3 * g // 4


def test_a_few_scores_take_no_operator_and_say_so() -> None:
    x, labels = batch(64, torch.float32)
    loss = losses.ArcFaceLoss(C, D)
    said = explain(loss, x, labels)
    assert said.mode == "fused" and said.engine == "classes" and said.backend == "cpu" and "one compiled call" in str(said)
    said = explain(losses.NormalizedSoftmaxLoss(1000, D, distance=distances.LpDistance()), x, labels)
    assert said.mode == "fused" and said.engine == "classes" and said.backend is None and "plain torch" in str(said)
    with use(backend="chunked"):
        assert explain(loss, x, labels).backend == "chunked"
    large = explain(losses.ArcFaceLoss(20000, D), x, labels)
    assert large.backend == "cpu" and "all scores are kept" in str(large)
    larger = explain(losses.ArcFaceLoss(400000, D), x, labels)
    assert larger.backend == "cpu" and "of the scores are kept" in str(larger)
    with use(backend="chunked"):
        assert "scores the blocks again" in str(explain(losses.ArcFaceLoss(20000, D), x, labels))


@pytest.mark.parametrize("compiled", [True, False])
def test_small_and_streamed_agree_in_float32(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that take two compiled calls, and those that take plain torch."""
    if not compiled:
        monkeypatch.setattr(small, "is_compiled", lambda *_: False)
    x, labels = batch(64, torch.float32)
    x.requires_grad_()
    for loss in (losses.ArcFaceLoss(C, D), losses.ProxyAnchorLoss(C, D), losses.ProxyNCALoss(C, D), losses.P2SGradLoss(D, C)):
        found = []
        for backend in ("auto", "chunked"):
            with use(backend=backend):
                value = loss(x, labels)
                found.append([value.detach(), *torch.autograd.grad(value, [x, *loss.parameters()])])
        for mine, expected in zip(*found, strict=True):
            torch.testing.assert_close(mine, expected, rtol=2e-5, atol=1e-5)


# ---- the compiled kernels ----


def wide_call(loss: Any, x: Tensor, labels: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, labels)
    return [value.detach(), *torch.autograd.grad(value, [leaf, *loss.parameters()])]


WIDE = {
    "arcface": lambda: losses.ArcFaceLoss(3001, 24, scale=64),
    "subcenter": lambda: losses.SubCenterArcFaceLoss(num_classes=1301, embedding_size=24),
    "proxy_nca": lambda: losses.ProxyNCALoss(3001, 24, softmax_scale=20),
    "proxy_anchor": lambda: losses.ProxyAnchorLoss(3001, 24),
    "soft_triple": lambda: losses.SoftTripleLoss(1301, 24, centers_per_class=3),
    "p2s_grad": lambda: losses.P2SGradLoss(24, 3001),
}


@pytest.mark.parametrize("name", WIDE)
def test_float32_blocks_are_as_precise_as_the_plain_formula(name: str) -> None:
    """Within twice the error of the dense formula in float32, both against float64."""
    loss = WIDE[name]()
    x, labels = torch.randn(203, 24), torch.randint(0, loss.num_classes, (203,))
    loss(x[:2], labels[:2])
    with use(backend="cpu"):
        got, again = wide_call(loss, x, labels), wide_call(loss, x, labels)
    with use(backend="reference"):
        plain = wide_call(loss, x, labels)
        exact = wide_call(loss.double(), x.double(), labels)
    for mine, same, dense, want in zip(got, again, plain, exact, strict=True):
        assert torch.equal(mine, same)
        size = want.norm()
        error, budget = (mine - want).norm() / size, 2 * (dense - want).norm() / size + 4 * torch.finfo(torch.float32).eps
        assert error <= budget


@pytest.mark.parametrize("name", WIDE)
def test_what_is_not_a_number_stays_visible(name: str) -> None:
    loss = WIDE[name]()
    x, labels = torch.randn(203, 24), torch.randint(0, loss.num_classes, (203,))
    x[7, 3] = float("nan")
    with use(backend="cpu"):
        value, grad, *_ = wide_call(loss, x, labels)
    assert value.isnan() and grad[7].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    loss = losses.ArcFaceLoss(3001, 24).to(dtype)
    x, labels = torch.randn(64, 24).to(dtype), torch.randint(0, 3001, (64,))
    with use(backend="cpu"):
        got = wide_call(loss, x, labels)
    with use(backend="reference"):
        want = wide_call(loss.double(), x.double(), labels)
    assert got[2].dtype == dtype
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2].double(), want[2], rtol=2e-2, atol=2e-2 * float(want[2].abs().max()))


def test_coefficients_that_weigh_nothing_leave_no_denormal_numbers() -> None:
    """Products stall at them. The logits of a row lie far apart, and half of its features are tiny, so that every product with
    a small coefficient would be such a number."""
    gen = torch.Generator().manual_seed(0)
    x, labels = torch.randn(1, 32, generator=gen) * 5, torch.tensor([3])
    x[:, ::2] *= 1e-5
    weight = torch.randn(32, 2000, generator=gen)
    grads = []
    for dtype in (torch.float32, torch.float64):
        loss = losses.LargeMarginSoftmaxLoss(2000, 32).to(dtype)
        loss.W.data.copy_(weight)
        loss(x.to(dtype), labels).backward()
        assert loss.W.grad is not None
        grads.append(loss.W.grad)
    got, want = grads[0].abs(), grads[1].abs()
    tiny = torch.finfo(torch.float32).tiny
    assert ((want > 0) & (want < tiny)).any()
    assert not ((got > 0) & (got < tiny)).any()
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
