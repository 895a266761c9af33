"""The batches of all ranks of a process group in one, with and without a graph."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f


def all_numbers(own: Tensor) -> Tensor:
    """Tensors of one shape of all ranks, ``[world_size, ...]``, without a graph."""
    own = own.detach()
    bits = own.to(torch.uint8) if own.dtype == torch.bool else own
    every = [torch.empty_like(bits) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(every, bits.contiguous())
    return torch.stack(every).to(own.dtype)


def all_sizes(own: Tensor) -> list[int]:
    """How many rows each rank has."""
    sizes: list[int] = all_numbers(torch.tensor([len(own)], device=own.device)).flatten().tolist()
    return sizes


def all_rows(own: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all ranks, ``sizes`` of each, in order of rank, without a graph."""
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: len(own)] = own.detach()
    every = all_numbers(padded)
    return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])


class _Joined(torch.autograd.Function):
    """``data``, the rows of all ranks, of which ``own`` are the rows ``first ..``; or ``turned``, with these rows first.

    The gradient of what all ranks compute alike is this rank's own, ``world_size`` times: the sum over ranks, without
    asking them. What each rank computes of turned rows differs, and is added up.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, data: Tensor, first: int, turned: bool, summed: bool) -> Tensor:
        ctx.place = first, len(own), turned, summed
        return data.view_as(data)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        first, size, turned, summed = ctx.place
        if turned:
            grad = torch.cat([grad[len(grad) - first :], grad[: len(grad) - first]])
        if summed:
            grad = grad.clone(memory_format=torch.contiguous_format)
            torch.distributed.all_reduce(grad)
        else:
            grad = grad * torch.distributed.get_world_size()
        return grad[first : first + size], None, None, None, None


@dataclass
class Batch:
    """The rows of all ranks, in order of rank; this rank's begin at ``first``. An ``Everyone`` of ``losses/joined.py``."""

    first: int
    seed: int
    embeddings: Tensor
    labels: Tensor | None
    draws: int = 0

    def attached(self, own: Tensor, summed: bool = False) -> Tensor:
        """The embeddings of all; ``own`` gets the gradient of its rows, ``summed`` over what the ranks compute."""
        joined: Tensor = _Joined.apply(own, self.embeddings, self.first, False, summed)
        return joined

    def own_first(self, own: Tensor) -> Tensor:
        """As :meth:`attached` and ``summed``, turned so that this rank's rows stand first."""
        joined: Tensor = _Joined.apply(own, self.embeddings_own_first, self.first, True, True)
        return joined

    # Kept: a loss folds what a miner found where both are called on the same data.
    @cached_property
    def embeddings_own_first(self) -> Tensor:
        return torch.cat([self.embeddings[self.first :], self.embeddings[: self.first]])

    @cached_property
    def labels_own_first(self) -> Tensor | None:
        return None if self.labels is None else torch.cat([self.labels[self.first :], self.labels[: self.first]])

    def turned(self, positions: Tensor) -> Tensor:
        """Positions in order of rank as positions where this rank's rows stand first."""
        return (positions - self.first) % max(1, len(self.embeddings))

    def in_order(self, positions: Tensor) -> Tensor:
        """The inverse of :meth:`turned`."""
        return (positions + self.first) % max(1, len(self.embeddings))

    def rows(self, own: Tensor) -> Tensor:
        """The rows of all ranks, as many of each as it has; ``own`` gets the gradient of its rows."""
        sizes = all_sizes(own)
        first = sum(sizes[: torch.distributed.get_rank()])
        joined: Tensor = _Joined.apply(own, all_rows(own, sizes), first, False, False)
        return joined

    def numbers(self, own: Tensor) -> Tensor:
        """A tensor of one shape, of all ranks, without a graph."""
        return all_numbers(own)

    @contextlib.contextmanager
    def same_draws(self, device: torch.device) -> Iterator[None]:
        """Inside, every rank draws the same random numbers; the generators stay as they are."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed + self.draws)
            self.draws += 1
            yield


@dataclass
class _Last:
    sources: list[weakref.ref[Tensor] | None]
    versions: list[int]
    world_size: int
    batch: Batch


_LAST: dict[str, _Last] = {}


def gathered(emb: Tensor, labels: Tensor | None, name: str = "batch") -> Batch:
    """The batches of all ranks. The same tensors, unchanged since, are gathered once: by a miner and by the loss after it.

    One number is drawn from torch's default generator; that of rank 0 seeds what the ranks draw together.
    """
    last, world_size = _LAST.get(name), torch.distributed.get_world_size()
    if last is not None and last.world_size == world_size and _same(last, emb, labels):
        return last.batch
    drawn = int(torch.randint(2**62, ()))
    told = all_numbers(torch.tensor([len(emb), drawn], device=emb.device))
    sizes = told[:, 0].tolist()
    together = None if labels is None else all_rows(c_f.to_device(labels, emb), sizes)
    first = sum(sizes[: torch.distributed.get_rank()])
    batch = Batch(first, int(told[0, 1]), all_rows(emb, sizes), together)

    def forget(_: Any) -> None:
        if name in _LAST and _LAST[name].batch is batch:
            del _LAST[name]

    sources = [None if x is None else weakref.ref(x, forget) for x in (emb, labels)]
    _LAST[name] = _Last(sources, _versions(emb, labels), world_size, batch)
    return batch


def _same(last: _Last, *tensors: Tensor | None) -> bool:
    known = all(ref is None if x is None else ref is not None and ref() is x for ref, x in zip(last.sources, tensors))
    return known and last.versions == _versions(*tensors)


def _versions(*tensors: Tensor | None) -> list[int]:
    return [0 if x is None or x.is_inference() else x._version for x in tensors]
