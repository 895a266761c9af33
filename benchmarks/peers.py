"""The peers: everything that can run an operation, each as a step: a call for the loss and the leaves of its gradient."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import dense
from benchmarks.cases import Case
from benchmarks.inputs import Inputs
from benchmarks.operations import CORE, QUEUE

OURS = "pml_fast/"
PML = "pytorch_metric_learning"
# Cheng et al., "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss", arXiv 2410.17243.
INF_CL = "inf_cl"
# Its kernels take D in heads, of at most so many numbers.
INF_CL_HEAD = 256
# Parameters are the same for all peers, and other numbers than the inputs.
PARAMETER_SEED = 1000


@dataclass(frozen=True)
class Step:
    """call() computes the loss; leaves are what it is differentiated by, the embeddings first; drawn: the tuple that a miner
    drew in the last call, where it draws."""

    call: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    drawn: Callable[[], tuple[Tensor, ...] | None] = lambda: None


# Compile workers would outlive their case and take memory and cores from the next.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


@dataclass(frozen=True)
class Peer:
    """name: as in tables; build: makes the step of a case on its inputs; context: what the step runs inside of."""

    name: str
    build: Callable[[Case, Inputs], Step]
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    compiles: bool = False

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    def runs(self, case: Case) -> bool:
        """Whether the peer has the operation."""
        if self.is_ours:
            return True
        if self.name == "pml":
            return case.what.in_peer and not case.only_ours
        if self.name == INF_CL:
            return case.operation == "clip" and not case.only_ours
        if self.compiles and (not case.compiled or (case.operation not in CORE and case.what.in_peer)):
            return False  # compiling takes longer than all the rest of such a case
        return hasattr(dense, case.operation) and not case.only_ours


def library(package: str) -> SimpleNamespace:
    """A package's modules of losses and miners."""
    return SimpleNamespace(**{name: importlib.import_module(f"{package}.{name}") for name in ("losses", "miners")})


def made_loss(package: str, case: Case, inputs: Inputs) -> Any:
    """The loss of a library with the parameters that all peers have, its queue filled."""
    loss = case.what.make(library(package), case.columns, PARAMETER_SEED)
    loss = loss.to(device=inputs.embeddings.device, dtype=inputs.embeddings.dtype)
    if case.what.against == QUEUE:
        loss.embedding_memory = inputs.queue.clone()
        loss.label_memory = inputs.queue_labels.clone()
        loss.has_been_filled = True
    return loss


def library_step(package: str, case: Case, inputs: Inputs) -> Step:
    what, modules = case.what, library(package)
    loss, miner = made_loss(package, case, inputs), what.make_miner(modules)
    leaves = (*inputs.leaves, *_trained(loss))
    if not what.drawn:
        return Step(lambda: what.call(loss, inputs, miner), leaves)
    last: list[Any] = [None]

    def drawing(*batch: Tensor) -> Any:
        torch.manual_seed(PARAMETER_SEED)
        last[0] = miner(*batch)
        return last[0]

    return Step(lambda: what.call(loss, inputs, drawing), leaves, lambda: last[0] and tuple(last[0]))


def step_of_tuple(package: str, case: Case, inputs: Inputs, indices: tuple[Tensor, ...]) -> Step:
    """The loss of a miner's tuple that is given."""
    loss = made_loss(package, case, inputs)
    return Step(lambda: loss(inputs.embeddings, inputs.labels, indices), (*inputs.leaves, *_trained(loss)))


def _trained(loss: Any) -> list[Tensor]:
    return [parameter for parameter in loss.parameters() if parameter.requires_grad]


def _formula(case: Case) -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = getattr(dense, case.operation)
    if case.operation == "triplet_all":
        return functools.partial(function, max_positives=case.positives)
    return function


def _dense_step(case: Case, inputs: Inputs, compiled: bool = False) -> Step:
    function = _formula(case)
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=False)
    beside = case.what.beside(inputs)
    parameters = _trained(made_loss("pml_fast", case, inputs))
    return Step(lambda: function(inputs.embeddings, beside, *parameters), (*inputs.leaves, *parameters))


def _compiled_step(case: Case, inputs: Inputs) -> Step:
    return _dense_step(case, inputs, compiled=True)


def _inf_cl_step(case: Case, inputs: Inputs) -> Step:
    """InfoNCE between two sets, in both directions, by the kernels of one process."""
    function = importlib.import_module(INF_CL).cal_flash_loss
    (logit_scale,) = parameters = _trained(made_loss("pml_fast", case, inputs))
    head = math.gcd(case.dim, INF_CL_HEAD)
    assert inputs.other is not None
    other = inputs.other

    def call() -> Tensor:
        scale = logit_scale.exp().clamp(max=100)
        rows, cols = F.normalize(inputs.embeddings), F.normalize(other)
        there, back = (function(*pair, scale=scale, head_dim=head).mean() for pair in ((rows, cols), (cols, rows)))
        return (there + back) / 2

    return Step(call, (*inputs.leaves, *parameters))


def _backend(name: str) -> AbstractContextManager[object]:
    context: AbstractContextManager[object] = importlib.import_module("pml_fast").use(backend=name)
    return context


def _ours(backend: str) -> Peer:
    return Peer(
        OURS + backend,
        functools.partial(library_step, "pml_fast"),
        functools.partial(_backend, backend),
    )


PEERS = {
    peer.name: peer
    for peer in (
        _ours("auto"),
        _ours("cpu"),
        _ours("chunked"),
        _ours("triton"),
        Peer("pml", functools.partial(library_step, PML)),
        Peer("eager", _dense_step),
        Peer("compile", _compiled_step, compiles=True),
        Peer(INF_CL, _inf_cl_step),
    )
}
ON_CPU = ("pml_fast/cpu", "pml_fast/chunked", "pml", "eager", "compile")
# Of many losses: compiling every one anew would take longer than all the rest.
DEFAULTS_ON_CPU = ("pml_fast/auto", "pml", "eager")
ON_GPU = ("pml_fast/triton", "pml_fast/chunked", "pml", "eager", "compile", INF_CL)


def headline(names: list[str]) -> str | None:
    """The peer whose figures stand for pml_fast: the first of ours, None where there is none."""
    return next((name for name in names if name.startswith(OURS)), None)


def forward_backward(step: Step) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One training step's work: the loss and its gradients by the step's leaves."""
    loss = step.call()
    return loss.detach(), torch.autograd.grad(loss, step.leaves)
