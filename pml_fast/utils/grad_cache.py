"""Batches too large for the encoder: embedded in chunks, compared as a whole, trained chunk by chunk.

After Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (RepL4NLP 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

__all__ = ["GradCache"]


class GradCache:
    """A large batch's exact gradient in the memory of a chunk.

        with GradCache(encoder, chunk_size=64) as encode:
            loss_func(encode(images), labels).backward()
        optimizer.step()

    Calls embed `chunk_size` rows at a time without a graph, and return a leaf `[N, D]` that the loss is taken of once.
    Leaving the block replays the encoder, chunk by chunk, with the gradients that `backward` left there: those of
    the parameters are then what one pass over the whole batch would give. The encoder runs twice, with one chunk's
    activations at a time.

    Both passes draw the same random numbers (dropout), on the CPU and on GPUs, run under the autocast of the call,
    and start from the same buffers, so that running statistics are updated once. Layers that mix the rows of a batch,
    as batch normalization does in training, see chunks: their gradient is that of the chunks' own statistics.
    Several calls in one block (two views, two towers) are replayed in order. Within `torch.no_grad` a call is only cut into
    chunks.

    Args:
        encoder: takes a batch and returns a tensor `[N, ...]`. Tensors among its arguments, those in tuples, lists and
            dictionaries too, are cut along their first dimension; anything else is passed on whole.
        chunk_size: rows of a chunk.
        modules: those that a function `encoder` runs, where it is no module itself: their buffers are kept, and of those in
            DistributedDataParallel the gradients are exchanged once, with the last chunk.

    Raises:
        ValueError: for inputs of different lengths, or that require a gradient themselves.
        RuntimeError: where the block ends without a backward pass through what was embedded.
    """

    def __init__(
        self, encoder: Callable[..., Tensor], chunk_size: int, modules: Sequence[torch.nn.Module] | None = None
    ) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive int, got {chunk_size!r}")
        self.encoder = encoder
        self.chunk_size = chunk_size
        if modules is None:
            modules = [encoder] if isinstance(encoder, torch.nn.Module) else []
        self.modules = list(modules)
        self.calls: list[_Call] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> GradCache:
        self.calls, self._buffers = [], []
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self.calls:
                self._replay()
        finally:
            self.calls, self._buffers = [], []

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        chunks = list(_chunks((args, kwargs), self.chunk_size))
        if not torch.is_grad_enabled():
            return torch.cat([self._encode(chunk) for chunk in chunks])
        if any(x.requires_grad for x in _tensors((args, kwargs))):
            raise ValueError(
                "inputs of the encoder must not require a gradient: gradients are cached for its parameters alone. "
                "Detach them, or make what they depend on a part of the encoder"
            )
        if not self.calls:
            buffers = [buffer for module in self.modules for buffer in module.buffers()]
            self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        call = _Call(chunks, [], _autocast_of(_tensors((args, kwargs))))
        outputs = []
        with torch.no_grad(), call.autocast():
            for chunk in chunks:
                call.states.append(_RandomState(_tensors(chunk)))
                outputs.append(self._encode(chunk))
        call.embeddings = torch.cat(outputs).requires_grad_()
        self.calls.append(call)
        return call.embeddings

    def _encode(self, chunk: Any) -> Tensor:
        args, kwargs = chunk
        output = self.encoder(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TypeError(f"encoder must return a tensor, got {type(output).__name__}: wrap it in a function that does")
        return output

    def _replay(self) -> None:
        """The second pass: each chunk with a graph, and backward from it."""
        if all(call.embeddings.grad is None for call in self.calls):
            raise RuntimeError("no gradient has reached the embeddings: call backward on the loss within the block")
        with torch.no_grad():
            for buffer, kept in self._buffers:
                buffer.copy_(kept)
        last = max(k for k, call in enumerate(self.calls) if call.embeddings.grad is not None)
        for k, call in enumerate(self.calls):
            gradient = call.embeddings.grad
            parts = [None] * len(call.chunks) if gradient is None else gradient.split(self.chunk_size)
            for j, (chunk, state, part) in enumerate(zip(call.chunks, call.states, parts)):
                exchange = k == last and j == len(call.chunks) - 1
                with ExitStack() as stack:
                    for context in self._contexts(call, state, exchange, part is not None):
                        stack.enter_context(context)
                    output = self._encode(chunk)
                if part is None or not output.requires_grad:
                    continue
                with self._exchange(exchange):
                    torch.autograd.backward(output, part)

    def _contexts(self, call: _Call, state: _RandomState, exchange: bool, grad: bool) -> list[AbstractContextManager[Any]]:
        return [self._exchange(exchange), state.replayed(), torch.set_grad_enabled(grad), call.autocast()]

    def _exchange(self, wanted: bool) -> ExitStack:
        """Within it, parallel modules exchange gradients only if wanted."""
        stack = ExitStack()
        for module in self.modules:
            no_sync: Any = getattr(module, "no_sync", None)
            if not wanted and no_sync is not None:
                stack.enter_context(no_sync())
        return stack


@dataclass
class _Call:
    """What one call is replayed from: its chunks, the random state before each, the autocast it ran under."""

    chunks: list[Any]
    states: list[_RandomState]
    autocast: Callable[[], AbstractContextManager[Any]]
    embeddings: Tensor = None  # type: ignore[assignment]


class _RandomState:
    """The default generators of the CPU and of the GPUs that tensors are on."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.devices = sorted({x.get_device() for x in tensors if x.is_cuda})
        if not self.devices and torch.cuda.is_available() and torch.cuda.is_initialized():
            self.devices = [torch.cuda.current_device()]  # the encoder itself may move its inputs
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    def replayed(self) -> ExitStack:
        """Within it, random numbers come again; after it they go on as if it had not been."""
        stack = ExitStack()
        stack.enter_context(torch.random.fork_rng(self.devices))
        torch.set_rng_state(self.cpu)
        for device, state in zip(self.devices, self.cuda):
            torch.cuda.set_rng_state(state, device)
        return stack


def _autocast_of(tensors: Sequence[Tensor]) -> Callable[[], AbstractContextManager[Any]]:
    """The autocast in force, without its cache of cast weights: copies made without a graph would have no gradient."""
    kinds = {x.device.type for x in tensors} | {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    active = [(kind, torch.get_autocast_dtype(kind)) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)]

    def entered() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for kind, dtype in active:
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        return stack if active else nullcontext()

    return entered


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [x for part in tree for x in _tensors(part)] if isinstance(tree, (list, tuple)) else []


def _chunks(tree: Any, size: int) -> Iterator[Any]:
    lengths = {x.shape[0] if x.ndim else 0 for x in _tensors(tree)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "the encoder's tensors must have one first dimension, that of the batch, which is not empty, got "
            f"{sorted(lengths) or 'no tensors'}"
        )
    (length,) = lengths
    for first in range(0, length, size):
        yield _cut(tree, first, first + size)


def _cut(tree: Any, first: int, stop: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[first:stop]
    if isinstance(tree, Mapping):
        return {key: _cut(value, first, stop) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([_cut(value, first, stop) for value in tree])
    return tree
