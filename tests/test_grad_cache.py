"""GradCache: the gradient of one large batch, in the memory of a chunk."""

from __future__ import annotations

import copy
import weakref
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pml_fast import losses
from pml_fast.utils.grad_cache import GradCache


def digits(n: int = 50, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.data[:n] / 16).to(dtype), torch.from_numpy(bunch.target[:n])


def encoder(*middle: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), *middle, nn.ReLU(), nn.Linear(32, 8)).to(dtype)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk_size", [1, 7, 50, 99])
@pytest.mark.parametrize("name", ["NTXentLoss", "MultiSimilarityLoss", "TripletMarginLoss", "FastAPLoss"])
def test_gradients_are_those_of_one_batch(name: str, chunk_size: int) -> None:
    x, labels = digits()
    whole, chunked = (model := encoder()), copy.deepcopy(model)
    loss_func = getattr(losses, name)()
    expected = loss_func(whole(x), labels)
    expected.backward()
    with GradCache(chunked, chunk_size) as encode:
        loss = loss_func(encode(x), labels)
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert len(gradients(chunked)) == 4
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def embedded_in_chunks(model: nn.Module, x: Tensor, size: int) -> Tensor:
    return torch.cat([model(part) for part in x.split(size)])


def test_dropout_is_replayed_and_the_stream_goes_on() -> None:
    x, labels = digits()
    whole, chunked = (model := encoder(nn.Dropout(0.5))), copy.deepcopy(model)
    loss_func = losses.NTXentLoss()
    torch.manual_seed(3)
    loss_func(embedded_in_chunks(whole, x, 16), labels).backward()
    after = torch.rand(3)
    torch.manual_seed(3)
    with GradCache(chunked, 16) as encode:
        loss_func(encode(x), labels).backward()
    assert torch.equal(torch.rand(3), after)
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_batch_normalization_sees_chunks_and_updates_its_statistics_once() -> None:
    x, labels = digits()
    whole, chunked = (model := encoder(nn.BatchNorm1d(32))), copy.deepcopy(model)
    loss_func = losses.NTXentLoss()
    loss_func(embedded_in_chunks(whole, x, 16), labels).backward()
    with GradCache(chunked, 16) as encode:
        loss_func(encode(x), labels).backward()
    for name, buffer in chunked.named_buffers():
        torch.testing.assert_close(buffer, whole.get_buffer(name))
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_spectral_normalization_has_the_same_vectors_in_both_passes() -> None:
    x, labels = digits(20)
    chunked = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(64, 8))).double()
    whole, loss_func = copy.deepcopy(chunked), losses.ContrastiveLoss()
    loss_func(embedded_in_chunks(whole, x, 6), labels).backward()
    with GradCache(chunked, 6) as encode:
        loss_func(encode(x), labels).backward()
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_two_calls_of_a_tower_with_named_inputs() -> None:
    x, labels = digits(40)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = encoder(nn.Dropout(0.3))

        def forward(self, pixels: Tensor, scales: dict[str, Tensor], flip: bool) -> Tensor:
            return self.body((pixels.flip(1) if flip else pixels) * scales["s"])

    whole, chunked = (model := Pair()), copy.deepcopy(model)
    scales = {"s": torch.rand(20, 1, dtype=torch.float64)}
    loss_func = losses.MultiSimilarityLoss()
    parts = [{"s": s} for s in scales["s"].split(8)]
    torch.manual_seed(0)
    views = [
        torch.cat([whole(p, s, flip=flip) for p, s in zip(x[k : k + 20].split(8), parts)])
        for k, flip in ((0, False), (20, True))
    ]
    loss_func(torch.cat(views), labels).backward()
    torch.manual_seed(0)
    with GradCache(chunked, 8) as encode:
        both = [encode(x[:20], scales=scales, flip=False), encode(pixels=x[20:], scales=scales, flip=True)]
        loss_func(torch.cat(both), labels).backward()
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_autocast_is_replayed_and_weights_have_gradients() -> None:
    x, labels = digits(dtype=torch.float32)
    whole, chunked = (model := encoder(dtype=torch.float32)), copy.deepcopy(model)
    loss_func = losses.NTXentLoss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_func(embedded_in_chunks(whole, x, 16), labels).backward()
        with GradCache(chunked, 16) as encode:
            embeddings = encode(x)
            assert embeddings.dtype is torch.bfloat16
            loss_func(embeddings, labels).backward()
    assert len(gradients(chunked)) == 4
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


@contextmanager
def saved_bytes() -> Any:
    """The most bytes that graphs hold for backward at any time."""
    sizes = {"now": 0, "peak": 0}

    def pack(x: Tensor) -> Any:
        held = x.detach().clone()  # counted by its own life
        size = held.numel() * held.element_size()
        sizes["now"] += size
        sizes["peak"] = max(sizes["peak"], sizes["now"])
        weakref.finalize(held, lambda: sizes.__setitem__("now", sizes["now"] - size))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held):
        yield sizes


def test_memory_is_that_of_a_chunk() -> None:
    """The activations that graphs hold at a time grow with the chunk, not with the batch."""
    layers = [module for _ in range(8) for module in (nn.Linear(32, 32), nn.Tanh())]
    model = encoder(*layers)

    def peak(n: int, chunk_size: int) -> int:
        x = torch.randn(n, 64, dtype=torch.float64)
        with saved_bytes() as sizes, GradCache(model, chunk_size) as encode:
            (encode(x) ** 2).sum().backward()
        return sizes["peak"] - n * 8 * 8  # the embeddings, which the loss squares

    assert peak(640, 16) <= peak(64, 16) < peak(64, 64) / 2
    x = torch.randn(640, 64, dtype=torch.float64)
    with saved_bytes() as sizes:
        (model(x) ** 2).sum().backward()
    assert sizes["peak"] > 5 * peak(640, 16)


def test_without_gradients_a_call_is_cut_into_chunks() -> None:
    x, _ = digits()
    model, seen = encoder(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad(), GradCache(model, 20) as encode:
        embeddings = encode(x)
    assert seen == [20, 20, 10] and not embeddings.requires_grad
    torch.testing.assert_close(embeddings, model(x))


def test_a_function_with_its_modules() -> None:
    x, labels = digits()
    trunk, head = encoder(nn.BatchNorm1d(32)), nn.Linear(8, 4).double()
    with GradCache(lambda data: head(trunk(data)), 16, modules=[trunk, head]) as encode:
        losses.NTXentLoss()(encode(x), labels).backward()
    assert trunk[1].num_batches_tracked == 4 and head.weight.grad is not None


def test_a_frozen_encoder_is_left_alone() -> None:
    x, labels = digits()
    model = encoder().requires_grad_(False)
    with GradCache(model, 16) as encode:
        losses.NTXentLoss()(encode(x), labels).backward()
    assert gradients(model) == []


def test_what_is_refused() -> None:
    x, _ = digits()
    model = encoder()
    with pytest.raises(ValueError, match="chunk_size must be a positive int, got 0"):
        GradCache(model, 0)
    with pytest.raises(RuntimeError, match="call backward on the loss within the block"), GradCache(model, 8) as encode:
        encode(x)
    with pytest.raises(ValueError, match="must not require a gradient"), GradCache(model, 8) as encode:
        encode(x.requires_grad_())
    with pytest.raises(ValueError, match="one first dimension"), GradCache(model, 8) as encode:
        encode(x.detach(), x[:3].detach())
    with pytest.raises(TypeError, match="encoder must return a tensor, got tuple"), GradCache(lambda x: (x, x), 8) as encode:
        encode(x.detach())


def test_an_error_in_the_block_is_the_users_and_replays_nothing() -> None:
    x, _ = digits()
    model = encoder()

    def failing_step() -> None:
        with GradCache(model, 8) as encode:
            encode(x).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_step()
    assert gradients(model) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_is_replayed_on_a_gpu() -> None:
    x, labels = (t.cuda() for t in digits(dtype=torch.float32))
    whole, chunked = (model := encoder(nn.Dropout(0.5), dtype=torch.float32).cuda()), copy.deepcopy(model)
    loss_func = losses.NTXentLoss()
    torch.manual_seed(3)
    loss_func(embedded_in_chunks(whole, x, 16), labels).backward()
    torch.manual_seed(3)
    with GradCache(chunked, 16) as encode:
        loss_func(encode(x), labels).backward()
    for got, wanted in zip(gradients(chunked), gradients(whole)):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
