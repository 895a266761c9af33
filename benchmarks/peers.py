"""The peers: everything that can run an operation, each as a step (embeddings, labels) -> loss."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import dense
from benchmarks.cases import OPERATIONS, Case

Step = Callable[[Tensor, Tensor], Tensor]
OURS = "pml_fast/"

# Compile workers would outlive their case and take memory and cores from the next.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


@dataclass(frozen=True)
class Peer:
    """name: as in tables; build: makes the step of a case; context: what the step runs inside of."""

    name: str
    build: Callable[[Case], Step]
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    compiles: bool = False

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def runs(self, case: Case) -> bool:
        return self.is_ours or not case.only_ours


def _library_step(package: str, case: Case) -> Step:
    losses = importlib.import_module(f"{package}.losses")
    miners = importlib.import_module(f"{package}.miners")
    return OPERATIONS[case.operation].build(losses, miners)


def _dense_step(case: Case) -> Step:
    function: Callable[..., Tensor] = getattr(dense, case.operation)
    if case.operation == "triplet_all":
        return functools.partial(function, max_positives=case.positives)
    return function


def _compiled_step(case: Case) -> Step:
    return torch.compile(_dense_step(case), fullgraph=True, dynamic=False)


def _backend(name: str) -> AbstractContextManager[object]:
    context: AbstractContextManager[object] = importlib.import_module("pml_fast").use(backend=name)
    return context


def _ours(backend: str) -> Peer:
    return Peer(
        OURS + backend,
        functools.partial(_library_step, "pml_fast"),
        functools.partial(_backend, backend),
    )


PEERS = {
    peer.name: peer
    for peer in (
        _ours("cpu"),
        _ours("chunked"),
        _ours("triton"),
        Peer("pml", functools.partial(_library_step, "pytorch_metric_learning")),
        Peer("eager", _dense_step),
        Peer("compile", _compiled_step, compiles=True),
    )
}
ON_CPU = ("pml_fast/cpu", "pml_fast/chunked", "pml", "eager", "compile")
ON_GPU = ("pml_fast/triton", "pml_fast/chunked", "pml", "eager", "compile")


def headline(names: list[str]) -> str | None:
    """The peer whose figures stand for pml_fast: the first of ours, None where there is none."""
    return next((name for name in names if name.startswith(OURS)), None)


def forward_backward(step: Step, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One training step's work: the loss and its gradient with respect to the embeddings."""
    loss = step(embeddings, labels)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    return loss.detach(), gradient
