"""Small batches against themselves: a whole step of a pair loss in three launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from pml_fast.engine import dispatch
from pml_fast.engine.fold import Fold
from pml_fast.engine.problem import Limits
from pml_fast.engine.score import Score
from pml_fast.engine.settings import current, math_precision
from pml_fast.engine.spec import PairSpec, pair_spec
from pml_fast.engine.triton.backend import DTYPES, interpreting, refuse_small

# Above this the arithmetic hides the launches, and a gradient that takes its scores once for all of D is quicker.
LARGEST = 1024

_FOLDS = ("mean", "sum", "threshold")


@dataclass(frozen=True)
class Recipe:
    """What of a call does not depend on its tensors."""

    spec: PairSpec
    score: Score
    limits: list[Limits]
    summed: list[bool]
    elements: bool


@lru_cache(maxsize=256)
def recipe(spec: str, params: tuple[float, ...], score: str, folds: tuple[str, ...], half: bool = False) -> Recipe | None:
    """How to run this (on rows of ``half`` precision) in three launches, or ``None`` where the general way is needed."""
    sc, reductions = Score.decode(score), [Fold.decode(fold) for fold in folds]
    if refuse_small(spec, sc, half) or not sc.symmetric or any(fold.kind not in _FOLDS for fold in reductions):
        return None
    maths = pair_spec(spec, params)
    return Recipe(
        maths, sc, [fold.pair_limits() for fold in reductions], [fold.kind == "sum" for fold in reductions],
        maths.terms[0].kind == "element",
    )  # fmt: skip


def applies(x: Tensor) -> bool:
    """Whether three launches are the best there is for this batch."""
    wanted = current().backend
    return (
        0 < x.shape[0] <= LARGEST
        and x.shape[1] > 0
        and x.dtype in DTYPES
        and (x.is_cuda or (wanted == "triton" and interpreting()))
        and wanted in ("auto", "triton")
        and dispatch.backend("triton").available() is None
    )


def pair_loss(x: Tensor, labels: Tensor, rule: Tensor | None, how: Recipe, need: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of ``pairwise_loss`` for a batch ``[N, D]`` against itself."""
    from pml_fast.engine.triton.small_step import small_step

    with math_precision():
        total, terms, dx = small_step(x, labels, rule, how, need)
    return total, terms, dx, x.new_empty(0)
