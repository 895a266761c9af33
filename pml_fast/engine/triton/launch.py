"""What the launchers have in common: the device, its tile sizes, a loss's numbers, and the sweep that leaves a row's state."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import Limits, PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.triton import layout, tuned
from pml_fast.engine.triton.configs import ARCHES, Config, config, table_arch
from pml_fast.engine.triton.epilogues import EPILOGUES, PARAMS, Epilogue
from pml_fast.engine.triton.pairwise import pair_state_kernel


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the tensor's own device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


INTERPRETER = "interpreter"


@lru_cache(maxsize=64)
def card_of(device: torch.device) -> tuple[str, int]:
    """Name and table of a device; an interpreted launch takes the newest table."""
    if device.type != "cuda":
        return INTERPRETER, ARCHES[-1]
    found = torch.cuda.get_device_properties(device)
    return found.name, table_arch((found.major, found.minor))


def tuning_key(op: str, x: Tensor, kind: int) -> tuned.Key:
    """What a configuration of ``op`` on rows ``x`` is timed and looked up for."""
    n, d = x.shape
    return tuned.key(*card_of(x.device), triton.__version__, op, layout.product_type(x.dtype), kind != 0, d, n)


def launch_config(op: str, x: Tensor, kind: int) -> Config:
    """What the user tuned for the tensor's device and shape, else the shipped table's entry."""
    table = tuned.table()
    if table and (entry := table.get(tuning_key(op, x, kind))) is not None:
        return entry.config
    n, d = x.shape
    return config(op, card_of(x.device)[1], layout.product_type(x.dtype), kind != 0, d, n)


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


def tile_arguments(cfg: Config) -> dict[str, Any]:
    """A launch's tile as the kernels' keyword arguments."""
    return {
        "RESIDENT": cfg.resident,
        "BLOCK_M": cfg.block_m,
        "BLOCK_N": cfg.block_n,
        "BLOCK_K": cfg.block_k,
        "num_warps": cfg.num_warps,
        "num_stages": cfg.num_stages,
        "maxnreg": cfg.maxnreg,
    }


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
    cfg = launch_config(op, x.rows, kind)
    with on(x.rows):
        pair_state_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(rule, x.rows), rows, saved, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, *numbers,
            SHAPE=epilogue.shape, LOGIT=epilogue.logit, FINISH=epilogue.finish, KIND=kind, ITSELF=itself,
            HAS_RULE=rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return rows, saved, seen
