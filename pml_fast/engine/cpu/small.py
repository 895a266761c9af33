"""Small batches against themselves: a whole step of a pair loss in one compiled call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cpu.pairwise import COMPILED, fixed_shift
from pml_fast.engine.cpu.rows import distance_name, extension
from pml_fast.engine.fold import Fold
from pml_fast.engine.problem import Limits
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import current
from pml_fast.engine.spec import pair_spec

# Above this, torch's matrix products on tiles are faster than one call.
LARGEST = 512

_FOLDS = ("mean", "sum", "threshold")


@dataclass(frozen=True)
class Recipe:
    """What of a call does not depend on its tensors."""

    spec: str
    params: list[float]
    distance: str
    normalize: bool
    gated: bool
    sign: float
    shifts: dict[torch.dtype, float]
    limits: list[Limits]
    folds: list[tuple[str, bool]]


@lru_cache(maxsize=256)
def recipe(spec: str, params: tuple[float, ...], score: str, folds: tuple[str, ...]) -> Recipe | None:
    """How to run this in one call, or ``None`` where only tiles will do."""
    sc, reductions = Score.decode(score), [Fold.decode(fold) for fold in folds]
    known = sc.symmetric and (sc.kind, sc.power) in (("dot", 1.0), ("l2", 1.0), ("l2", 2.0))
    if not known or spec not in COMPILED or any(fold.kind not in _FOLDS for fold in reductions):
        return None
    maths, values = pair_spec(spec, params), list(params)
    shifts = {dtype: fixed_shift(spec, values, sc, dtype) for dtype in (torch.float32, torch.float64)}
    if any(math.isnan(shift) for shift in shifts.values()):
        return None
    return Recipe(
        spec, values, distance_name(sc), sc.normalize, maths.gated, sc.sign, shifts,
        # A loss a row is compared with its limits when it is reduced, a pair's inside the sweep.
        [(fold.low, fold.high) if fold.kind == "threshold" else fold.pair_limits() for fold in reductions],
        [(fold.kind, term.kind == "element") for fold, term in zip(reductions, maths.terms, strict=True)],
    )  # fmt: skip


def pair_loss(x: Tensor, labels: Tensor, rule: Tensor | None, how: Recipe, need: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of ``pairwise_loss`` for a batch ``[N, D]`` against itself."""
    wide = compute_type(x.dtype)
    rows, labels = x.to(wide).contiguous(), labels.contiguous()
    rule = None if rule is None else rule.to(wide).contiguous()
    terms = rows.new_empty(len(how.folds))
    dx = torch.empty_like(rows) if need else rows.new_empty(0)
    extension().small_pair_loss(
        rows.data_ptr(), labels.data_ptr(), 0 if rule is None else rule.data_ptr(), rows.shape[0], rows.shape[1],
        how.distance, how.normalize, how.gated, need, how.sign, how.shifts[wide], torch.get_num_threads(), how.spec,
        how.params, how.limits, how.folds, terms.data_ptr(), dx.data_ptr() if need else 0, wide == torch.float64,
    )  # fmt: skip
    return terms.sum(), terms, dx.to(x.dtype) if dx.dtype != x.dtype else dx, rows.new_empty(0, dtype=x.dtype)


def applies(x: Tensor) -> bool:
    """Whether the one-call step is the best there is for this batch."""
    return (
        0 < x.shape[0] <= LARGEST
        and x.device.type == "cpu"
        and current().backend in ("auto", "cpu")
        and _extension.load() is not None
    )
