"""Launchers of the pairwise kernels."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import ExtremeProblem, PairProblem, PairRows
from pml_fast.engine.triton import layout, tuned
from pml_fast.engine.triton.configs import ARCHES, Config, config, table_arch
from pml_fast.engine.triton.epilogues import EPILOGUES, EXP_THEN_PAIRS, Epilogue
from pml_fast.engine.triton.pairwise import extreme_kernel, pair_grad_kernel, pair_pulls_kernel, pair_state_kernel
from pml_fast.engine.triton.wide import WIDE_RESULT, pull, strips

MAX_PARAMS = 3


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


def _scalars(problem: PairProblem) -> tuple[float, ...]:
    # sign, limits of the positive and of the negative side, parameters
    pos, neg = problem.limits[0], problem.limits[-1]
    params = [float(p) for p in problem.spec.params()]
    return (problem.score.sign, *pos, *neg, *params, *([0.0] * (MAX_PARAMS - len(params))))


def _rule(problem: PairProblem) -> Tensor:
    rule = problem.rule
    return problem.x if rule is None else rule.to(torch.float32).contiguous()


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


def pair_rows(problem: PairProblem) -> PairRows:
    """The forward sweep: each row's values and counts, and the levels its derivative needs as ``saved [3, N]``."""
    epilogue = EPILOGUES[problem.spec.name]
    if epilogue.shape == EXP_THEN_PAIRS and problem.y.shape[0] >= layout.SORT_FROM:
        sorted_problem, place = layout.class_sorted(problem)
        rows, saved, seen = _state(sorted_problem, epilogue)
        rows, saved = rows[:, :, place], saved[:, place]
    else:
        rows, saved, seen = _state(problem, epilogue)
    return PairRows(rows, seen.any(dim=1), saved)


def _state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), m = problem.x.shape, problem.y.shape[0]
    device = problem.x.device
    rows = layout.empty((len(problem.spec.terms), 2, n), dtype=torch.float32, device=device)
    saved = layout.empty((epilogue.levels, n), dtype=torch.float32, device=device)
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, saved, seen
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    y = x if problem.itself else layout.operand(problem.y, problem.y_labels, kind)
    cfg = launch_config("state", x.rows, kind)
    with on(x.rows):
        pair_state_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, _rule(problem), rows, saved, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, *_scalars(problem),
            SHAPE=epilogue.shape, LOGIT=epilogue.logit, FINISH=epilogue.finish, KIND=kind, ITSELF=problem.itself,
            HAS_RULE=problem.rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return rows, saved, seen


def pair_grads(
    problem: PairProblem, saved: Tensor, w: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The backward: float32 gradients of ``sum(w * value)``, one launch a side (two a strip where D is wide)."""
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    w = w.to(torch.float32).contiguous()
    if problem.itself:
        return (_grad(problem, x, x, saved, w, True, True) if need_x else None), None
    y = layout.operand(problem.y, problem.y_labels, kind)
    dx = _grad(problem, x, y, saved, w, True, False) if need_x else None
    dy = _grad(problem, y, x, saved, w, False, True) if need_y else None
    return dx, dy


def _grad(
    problem: PairProblem, x: layout.Operand, y: layout.Operand, saved: Tensor, w: Tensor, by_row: bool, by_col: bool
) -> Tensor:
    """Gradient by the rows of ``x`` against the columns ``y``; the anchors are the rows, the columns, or both."""
    epilogue = EPILOGUES[problem.spec.name]
    (n, d), m = x.rows.shape, y.rows.shape[0]
    out = layout.empty((n, d), dtype=torch.float32, device=x.rows.device)
    if out.numel() == 0:
        return out
    kind = layout.score_kind(problem.score)
    cfg = launch_config("grad", x.rows, kind)
    inputs = (x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, _rule(problem), saved, w)
    sizes = (n, m, d, *_scalars(problem))
    chosen = {
        "TERMS": len(problem.spec.terms), "SAVED": epilogue.levels > 0, "LOGIT": epilogue.logit,
        "DERIVATIVE": epilogue.derivative, "KIND": kind, "ITSELF": problem.itself, "ROW_ANCHORS": by_row,
        "COL_ANCHORS": by_col, "HAS_RULE": problem.rule is not None, "PRECISION": layout.dot_precision(x.rows.dtype),
        **tile_arguments(cfg),
    }  # fmt: skip
    strides = (x.rows.stride(0), y.rows.stride(0))
    if cfg.resident:
        with on(x.rows):
            pair_grad_kernel[(triton.cdiv(n, cfg.block_m),)](*inputs, out, *strides, out.stride(0), *sizes, **chosen)
        return out
    pulled = y.rows if x.rows.dtype == torch.bfloat16 and x.rows.is_cuda and WIDE_RESULT else y.rows.float()
    for first, h in strips(n, m, pulled):
        last = first + len(h)
        with on(x.rows):
            grid = (triton.cdiv(len(h), cfg.block_m), triton.cdiv(m, cfg.block_n))
            pair_pulls_kernel[grid](*inputs, h, first, last, *strides, h.stride(0), *sizes, **chosen)
            pull(out[first:last], h, x.rows[first:last], pulled, kind)
    return out


def extremes(problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
    """Each row's largest or smallest score (float32) and its column (int64, the lowest of equals, -1 for none)."""
    (n, d), m = problem.x.shape, problem.y.shape[0]
    value = layout.empty((n,), dtype=torch.float32, device=problem.x.device)
    index = layout.empty((n,), dtype=torch.int64, device=problem.x.device)
    if n == 0:
        return value, index
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    y = x if problem.itself else layout.operand(problem.y, problem.y_labels, kind)
    low, high = (problem.x if b is None else b.to(torch.float32).contiguous() for b in (problem.low, problem.high))
    cfg = launch_config("extreme", x.rows, kind)
    with on(x.rows):
        extreme_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, low, high, value, index,
            x.rows.stride(0), y.rows.stride(0), n, m, d,
            POSITIVE=problem.positive, LARGEST=problem.largest, HAS_LOW=problem.low is not None,
            HAS_HIGH=problem.high is not None, KIND=kind, ITSELF=problem.itself,
            PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return value, index
