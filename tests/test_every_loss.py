"""What every loss does, whatever its maths: types, copies, state, compilation, wrapping, edges."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_table import CLASSES, DIMENSION, NAMES, NOT_A_LOSS, WRAPPERS, call_loss, loss_inputs, make_loss
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_fast import losses
from pml_fast.losses.base_metric_loss_function import prepare_call

# A call changes what the next one gives: a running histogram, a queue.
STATEFUL = {"CrossBatchMemory", "DynamicSoftMarginLoss"}
# Which pairs there are depends on the labels' values beyond their being equal.
READS_LABELS = {"MultiSupConLoss", "NPairsLoss"}
# Draws its proxies from the batch.
NEEDS_ROWS = {"ManifoldLoss"}


def batch(dtype: torch.dtype = torch.float32, n: int = 20, seed: int = 5) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, DIMENSION, generator=gen, dtype=torch.float64).to(dtype)
    return x, torch.arange(n) % CLASSES


def step(loss: Any, x: Tensor, labels: Tensor, name: str | None = None) -> tuple[Tensor, Tensor]:
    """Value and gradient by the embeddings; by the parameters it is left in them."""
    x = x.detach().requires_grad_()
    value = call_loss(loss, x, labels, name)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def parameter_grads(loss: torch.nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in loss.parameters()]


def relative(got: Tensor, want: Tensor) -> float:
    return (got.double() - want.double()).norm().item() / max(want.double().norm().item(), 1e-6)


def assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- types -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64(name: str) -> None:
    value, grad = step(make_loss(losses, name).double(), *batch(torch.float64))
    assert value.dtype == grad.dtype == torch.float64
    assert value.isfinite() and grad.isfinite().all()
    single, single_grad = step(make_loss(losses, name), *batch())
    assert single.dtype == single_grad.dtype == torch.float32
    assert single.item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_embeddings_give_a_float32_loss(name: str, dtype: torch.dtype) -> None:
    """Against float64 on the very same (rounded) numbers: only sums and formulas may differ, not inputs."""
    x, labels = batch(dtype)
    exact, exact_grad = step(make_loss(losses, name).double(), x.double(), labels)
    value, grad = step(make_loss(losses, name), x, labels)
    assert value.dtype == torch.float32 and grad.dtype == dtype
    assert value.item() == pytest.approx(exact.item(), rel=2e-2, abs=2e-2)
    assert relative(grad, exact_grad) < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_a_loss(name: str, dtype: torch.dtype) -> None:
    """Full-precision embeddings under autocast give the full-precision loss, forward and backward."""
    x, labels = batch()
    want = step(make_loss(losses, name), x, labels)
    with torch.autocast("cpu", dtype=dtype):
        got = step(make_loss(losses, name), x, labels)
    assert got[0].dtype == torch.float32
    assert got[0].item() == pytest.approx(want[0].item(), rel=1e-2, abs=1e-2)
    assert relative(got[1], want[1]) < 5e-2


@pytest.mark.parametrize("name", NAMES)
def test_fused_losses_run_on_meta_tensors(name: str) -> None:
    """Shapes alone suffice where no size depends on data: the operators have fake implementations."""
    if name in WRAPPERS or name in READS_LABELS:
        pytest.skip("as the loss inside" if name in WRAPPERS else "sizes depend on the labels")
    loss = make_loss(losses, name)
    x, labels = batch()
    given = loss_inputs(name, x, labels)
    plan = loss.plan(prepare_call(x, given.get("labels"), None, given.get("ref_emb"), None))
    if plan.mode != "fused" or plan.engine != "pairwise":
        pytest.skip(f"{plan.mode}, {plan.engine} engine: sizes depend on the data")
    value = call_loss(loss.to("meta"), x.detach().to("meta").requires_grad_(), labels.to("meta"))
    assert value.is_meta and value.shape == () and value.dtype == torch.float32


# ---- copies and state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_copies_pickles_and_state_give_the_same_loss(name: str) -> None:
    loss = make_loss(losses, name)
    step(loss, *batch(seed=1))
    stored = io.BytesIO()
    torch.save(loss.state_dict(), stored)
    stored.seek(0)
    fresh = make_loss(losses, name)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    fresh.load_state_dict(torch.load(stored))
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), fresh]
    loss.zero_grad()
    want = step(loss, *batch())
    for twin in twins:
        twin.zero_grad()
        got = step(twin, *batch())
        assert_equal(got, want, 1e-6)
        assert_equal(tuple(parameter_grads(twin)), tuple(parameter_grads(loss)), 1e-6)


# ---- compiled, checkpointed, wrapped -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_compiled_losses_equal_themselves(name: str) -> None:
    torch.compiler.reset()
    loss = make_loss(losses, name)
    twin = copy.deepcopy(loss)
    compiled = torch.compile(loss, backend="aot_eager")
    for seed in (5, 6):
        x, labels = batch(seed=seed)
        own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        values = [call_loss(f, e, labels, name) for f, e in ((compiled, own), (twin, other))]
        assert_equal(torch.autograd.grad(values[0], own), torch.autograd.grad(values[1], other))
        assert_equal((values[0].detach(),), (values[1].detach(),))


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_losses_equal_themselves(name: str) -> None:
    """A second forward in the backward, as torch.utils.checkpoint does it, gives the same gradients."""
    x, labels = batch()
    loss = make_loss(losses, name)
    want = step(copy.deepcopy(loss), x, labels)
    x = x.requires_grad_()
    value = checkpoint(lambda e: call_loss(loss, e, labels), x, use_reentrant=False)
    (grad,) = torch.autograd.grad(value, x)
    assert_equal((value.detach(),), want[:1])
    if name in STATEFUL:
        assert grad.isfinite().all() and grad.any()
    else:
        assert_equal((grad,), want[1:])


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of one process."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    store: Path = tmp_path_factory.mktemp("store") / f"store-{os.getpid()}"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_losses_with_parameters_in_ddp(name: str, process_group: None) -> None:
    loss = make_loss(losses, name)
    if not any(p.requires_grad for p in loss.parameters()):
        pytest.skip("a loss without parameters needs no wrapping")
    x, labels = batch()
    twin = copy.deepcopy(loss)
    want = step(twin, x, labels)
    wrapped = torch.nn.parallel.DistributedDataParallel(loss)
    assert_equal(step(wrapped, x, labels, name), want)
    assert_equal(tuple(parameter_grads(loss)), tuple(parameter_grads(twin)))
    assert any(grad.any() for grad in parameter_grads(loss))


# ---- edges -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_nan_is_seen(name: str) -> None:
    x, labels = batch()
    x[3, 1] = float("nan")
    assert call_loss(make_loss(losses, name), x, labels).isnan()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_is_a_differentiable_zero(name: str) -> None:
    if name in NEEDS_ROWS:
        pytest.skip("draws from the batch, and says so where there is too little of it")
    loss = make_loss(losses, name)
    x = torch.zeros(0, DIMENSION, requires_grad=True)
    value = call_loss(loss, x, torch.zeros(0, dtype=torch.int64))
    assert value.shape == () and value == 0
    value.backward()
    assert x.grad is not None and x.grad.shape == (0, DIMENSION)
    assert not any(grad.any() for grad in parameter_grads(loss))


@pytest.mark.parametrize("name", NAMES)
def test_without_gradients_the_loss_is_the_same(name: str) -> None:
    x, labels = batch()
    want = step(make_loss(losses, name), x, labels)[0]
    with torch.no_grad():
        value = call_loss(make_loss(losses, name), x, labels)
    assert not value.requires_grad
    assert_equal((value,), (want,))


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: str) -> None:
    x, labels = batch()
    want = step(make_loss(losses, name), x, labels)
    turned = x.t().contiguous().t()
    assert not turned.is_contiguous()
    assert_equal(step(make_loss(losses, name), turned, labels), want)


def test_every_exported_loss_is_here() -> None:
    missing = [name for name in losses.__all__ if name not in NAMES and name not in NOT_A_LOSS]
    assert missing == []
    assert len(NAMES) == len(set(NAMES)) >= 9
