"""What launches of pair losses have in common: a loss's numbers, a rule, and the sweep that leaves a row's state."""

from __future__ import annotations

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import Limits, PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.epilogues import EPILOGUES, PARAMS, Epilogue
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.pairwise import pair_state_kernel


def scalars(spec: PairSpec, score: Score, limits: list[Limits]) -> tuple[float, ...]:
    """A loss's numbers as the kernels take them: sign, limits of the positive and of the negative side, parameters."""
    params = EPILOGUES[spec.name].params(spec, score)
    return (score.sign, *limits[0], *limits[-1], *params, *([0.0] * (PARAMS - len(params))))


def numbers_of(problem: PairProblem) -> tuple[float, ...]:
    """:func:`scalars` of a problem."""
    return scalars(problem.spec, problem.score, problem.limits)


def rule_of(rule: Tensor | None, x: Tensor) -> Tensor:
    """A miner's rule as the kernels read it; where there is none, any tensor, which they do not."""
    return x if rule is None else rule.to(torch.float32).contiguous()


def sweep(
    x: layout.Operand, y: layout.Operand, epilogue: Epilogue, kind: int, itself: bool, rule: Tensor | None,
    numbers: tuple[float, ...], terms: int, op: str = "state",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward sweep in one launch: ``rows [T, 2, N]``, ``saved [3, N]`` and ``seen [2, N]`` of ``pair_state_kernel``."""
    (n, d), m = x.rows.shape, y.rows.shape[0]
    device = x.rows.device
    rows = layout.empty((terms, 2, n), dtype=torch.float32, device=device)
    saved = layout.empty((epilogue.levels, n), dtype=torch.float32, device=device)
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, saved, seen
    cfg = launch_config(op, x.rows, kind, x.split)
    with on(x.rows):
        pair_state_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(rule, x.rows), rows, saved, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, *numbers,
            SHAPE=epilogue.shape, LOGIT=epilogue.logit, FINISH=epilogue.finish, KIND=kind, ITSELF=itself,
            HAS_RULE=rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return rows, saved, seen
