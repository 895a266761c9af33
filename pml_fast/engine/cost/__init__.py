"""What a plan costs: arithmetic, traffic and memory, from the very tiles and buffers that the backends use.

``G`` is one product of all rows with all columns, ``2 N M D`` floating-point operations; elementwise work is not counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from pml_fast.engine.cost import cpu, gpu, torch_backends
from pml_fast.engine.cost.losses import dense, extremes, listed, manifold, vicreg
from pml_fast.engine.cost.parts import Cost, Estimate, Size, Spec
from pml_fast.engine.cpu import small, small_histogram
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.triton import small as triton_small

__all__ = [
    "Cost", "Size", "dense", "estimate", "extremes", "listed", "manifold", "one_call", "one_histogram_call", "vicreg",
]  # fmt: skip


def estimate(
    engine: str,
    backend: str,
    size: Size,
    spec: Spec,
    score: Score,
    *,
    uniform: bool = True,
    small_step: bool = False,
    bidirectional: bool = False,
) -> Cost:
    """The cost of an engine on a backend.

    ``uniform`` says that every anchor of a triplet loss weighs the same, ``small_step`` that the one-call step runs,
    ``bidirectional`` that columns are anchors as well, most of which a score that is there for its row does not cost.
    """
    if engine == "dense":
        return torch_backends.dense_matrix(size)
    if engine == "indexed":
        return torch_backends.indexed(size, backend)
    if small_step:
        return _SMALL[backend](size, score)
    found = _ENGINES[engine, backend](size, spec, score, uniform)
    return gpu.bidirectional_triton(size, found) if bidirectional and backend == "triton" else found


_ENGINES: dict[tuple[str, str], Estimate] = {
    ("pairwise", "cpu"): cpu.pairwise,
    ("pairwise", "chunked"): torch_backends.chunked_pairwise,
    ("pairwise", "reference"): torch_backends.reference(lambda size: size.n * size.m),
    ("pairwise", "triton"): gpu.triton_pairwise,
    ("triplet", "cpu"): cpu.triplet,
    ("histogram", "cpu"): cpu.histogram,
    ("histogram", "chunked"): torch_backends.chunked_histogram,
    ("histogram", "reference"): torch_backends.reference_histogram,
    ("triplet", "chunked"): torch_backends.chunked_triplet,
    ("triplet", "reference"): torch_backends.reference(lambda size: size.n * size.m * size.m),
    ("triplet", "triton"): gpu.triton_triplet,
    ("triplet", "cuda"): gpu.cuda_triplet,
}


_SMALL: dict[str, Callable[[Size, Score], Cost]] = {"cpu": cpu.small_step, "triton": gpu.triton_small}


def one_call(
    backend: str, size: Size, spec: Spec, score: Score, folds: list[str], device: torch.device,
    weighted: bool, itself: bool, bidirectional: bool = False,
) -> bool:  # fmt: skip
    """Whether the backend has a short cut for a batch as small as this pair loss's (its module ``small``)."""
    if not isinstance(spec, PairSpec) or weighted:
        return False
    key = spec.name, tuple(spec.params()), score.encode(), tuple(folds)
    batch = torch.empty(1, device=device, dtype=size.dtype).expand(size.n, size.d)
    if backend == "cpu":
        applies = small.applies(batch, None if size.shared else batch[:1].expand(size.m, size.d))
        return applies and (size.shared or not itself) and small.recipe(*key, size.shared, bidirectional) is not None
    half = size.dtype != torch.float32
    return backend == "triton" and size.shared and triton_small.applies(batch) and triton_small.recipe(*key, half) is not None


def one_histogram_call(backend: str, size: Size, score: Score, device: torch.device) -> bool:
    """As :func:`one_call`, of a loss of histograms."""
    batch = torch.empty(1, device=device, dtype=size.dtype).expand(size.n, size.d)
    return backend == "cpu" and size.shared and small_histogram.applies(batch, score)
