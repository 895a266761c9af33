"""Float64 answers of operations that :mod:`benchmarks.oracle` has no formula for: PML's own, or else this library's.

PML in float64 is independent of what is measured. Where it does not fit into memory or time, or is not exact, this library
answers in float64 on a backend that no kernel has a part in: the dense ``reference`` for up to 2^25 scores, else the strips of
``chunked``. The results name which one it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks import oracle, peers
from benchmarks.cases import Case
from benchmarks.inputs import Inputs
from benchmarks.oracle import Answer
from benchmarks.peers import Step, forward_backward, library_step

OURS, PML = "pml_fast", peers.PML
REFERENCE_SCORES = 2**25
PEER_SCORES = 2**28  # of more, PML's float64 takes minutes and more memory than most machines have
# Gradients of more numbers than these are compared as sums of rows with random signs, which keep the length of a difference.
WHOLE_NUMBERS = 2**22
SKETCH_ROWS = 4096
BLOCK_ROWS = 65_536


def has_formula(case: Case) -> bool:
    return case.operation in oracle.FORMULAS


def sources(case: Case) -> list[str]:
    """Who may answer a case, best first."""
    bounded = case.size * case.width <= PEER_SCORES
    return [PML, OURS] if case.what.in_peer and case.what.peer_is_exact and bounded else [OURS]


def answer(case: Case, inputs: Inputs, package: str, drawn: Sequence[np.ndarray] | None = None) -> Answer:
    """The float64 answer of a package; where a miner draws, for the tuple ``drawn``."""
    indices = None if drawn is None else tuple(torch.from_numpy(part) for part in drawn)
    wide = inputs.double()

    def step(given: Inputs, by: str) -> Step:
        return library_step(by, case, given) if indices is None else peers.step_of_tuple(by, case, given, indices)

    exact = _run(case, lambda: step(wide, package), package)
    if not case.counts:
        return exact
    own = exact if package == OURS else _run(case, lambda: step(wide, OURS), OURS)
    moved = [_run(case, lambda seed=seed: step(wide.rounded(seed), OURS), OURS) for seed in range(2)]  # type: ignore[misc]
    errors = [own.errors(other.value, other.gradient, other.others) for other in moved]
    return Answer(
        exact.value,
        exact.gradient,
        moved_value=max(value for value, _ in errors),
        moved_gradient=max(gradient for _, gradient in errors),
        others=exact.others,
        source=exact.source,
    )


def _run(case: Case, build: Callable[[], Step], package: str) -> Answer:
    if package == PML:
        loss, gradients = forward_backward(build())
        source = "PML in float64"
    else:
        backend = "reference" if case.what.dense_oracle and case.size * case.width <= REFERENCE_SCORES else "chunked"
        with importlib.import_module(OURS).use(backend=backend):
            loss, gradients = forward_backward(build())
        source = f"pml_fast's {backend} in float64"
    first, *others = (digest(gradient) for gradient in gradients)
    return Answer(float(loss), first, others=tuple(others), source=source)


def digest(gradient: Tensor) -> np.ndarray:
    """A gradient in float64, or where it is large a sketch of it: 4096 sums of rows with random signs."""
    gradient = gradient.detach().cpu()
    if gradient.numel() <= WHOLE_NUMBERS:
        return gradient.double().numpy()
    rows = gradient if gradient.shape[0] >= gradient.shape[1] else gradient.T
    generator = torch.Generator().manual_seed(0)
    sums = torch.zeros(SKETCH_ROWS, rows.shape[1], dtype=torch.float64)
    for block in rows.split(BLOCK_ROWS):
        place = torch.randint(0, SKETCH_ROWS, (len(block),), generator=generator)
        sign = 2.0 * torch.randint(0, 2, (len(block), 1), generator=generator) - 1
        sums.index_add_(0, place, block.double() * sign)
    return sums.numpy()
