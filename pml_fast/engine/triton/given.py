"""Losses of two sweeps: the first leaves each row's levels, the second has the losses of pairs against them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import NO_LIMITS, PairProblem
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.epilogues import Epilogue
from pml_fast.engine.triton.launch import numbers_of, rule_of, scalars, sweep
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.pairwise_given import given_back_kernel, given_state_kernel


def state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    """Both sweeps: ``rows [T, 2, N]``, ``saved`` (what the second is told, then its slopes ``[2, N]``) and ``seen [2, N]``."""
    first = epilogue.first
    assert first is not None
    kind, terms = layout.score_kind(problem.score), len(problem.spec.terms)
    x, y = layout.sides(problem, kind)
    (n, d), m = x.rows.shape, y.rows.shape[0]
    plain = scalars(problem.spec, problem.score, [NO_LIMITS] * terms)
    found, kept, seen = sweep(x, y, first.sweep, kind, problem.itself, problem.rule, plain, first.terms, "two-sweeps")
    told = first.shared(found, kept)
    rows = layout.empty((terms, 2, n), dtype=torch.float32, device=x.rows.device)
    slopes = layout.empty((2, n), dtype=torch.float32, device=x.rows.device)
    if n:
        cfg = launch_config("two-sweeps", x.rows, kind, x.split)
        with on(x.rows):
            given_state_kernel[(triton.cdiv(n, cfg.block_m),)](
                x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(problem.rule, x.rows), told, rows, slopes,
                x.rows.stride(0), y.rows.stride(0), n, m, d, *numbers_of(problem),
                ITSELF=problem.itself, **_pairs(problem, epilogue, x), BOTH_SIDES=terms == 2, **tile_arguments(cfg),
            )  # fmt: skip
    return rows, torch.cat([told, slopes]), seen


def weighed(problem: PairProblem, epilogue: Epilogue, saved: Tensor, w: Tensor) -> Tensor:
    """Levels and extras ``[4, N]`` for the gradient: the extras weigh what each pair is to the first sweep."""
    assert epilogue.first is not None
    told, slopes = saved[:-2], saved[-2:]
    if epilogue.first.across and problem.itself:
        slopes = _slopes_of_both_ends(problem, epilogue, told[:2], w).expand(2, -1)
    else:
        slopes = torch.where(w != 0, w * slopes, 0.0)
    return torch.cat([told[:2], epilogue.first.back(slopes, told)])


def _slopes_of_both_ends(problem: PairProblem, epilogue: Epilogue, levels: Tensor, w: Tensor) -> Tensor:
    """Of the weighed losses, the slope by each row's level ``[1, N]``."""
    if problem.y.shape[0] < layout.SORT_FROM:
        return _back(problem, epilogue, levels, w)
    by_class, place = layout.class_sorted(problem)
    order = torch.empty_like(place)
    order[place] = torch.arange(len(place), device=place.device)
    return _back(by_class, epilogue, levels[:, order].contiguous(), w[:, order].contiguous())[:, place]


def _back(problem: PairProblem, epilogue: Epilogue, levels: Tensor, w: Tensor) -> Tensor:
    kind = layout.score_kind(problem.score)
    x, y = layout.sides(problem, kind)
    n, d = x.rows.shape
    back = layout.empty((1, n), dtype=torch.float32, device=x.rows.device)
    if n:
        cfg = launch_config("two-sweeps", x.rows, kind, x.split)
        with on(x.rows):
            given_back_kernel[(triton.cdiv(n, cfg.block_m),)](
                x.rows, y.rows, x.norms, x.labels, rule_of(problem.rule, x.rows), levels.contiguous(), w, back,
                x.rows.stride(0), y.rows.stride(0), n, d, *numbers_of(problem), **_pairs(problem, epilogue, x),
                **tile_arguments(cfg),
            )  # fmt: skip
    return back


def _pairs(problem: PairProblem, epilogue: Epilogue, x: layout.Operand) -> dict[str, Any]:
    return {
        "LOGIT": epilogue.logit,
        "PAIR": epilogue.finish,
        "KIND": layout.score_kind(problem.score),
        "HAS_RULE": problem.rule is not None,
        "PRECISION": layout.dot_precision(x.rows.dtype),
    }
