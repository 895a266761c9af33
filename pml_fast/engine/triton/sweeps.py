"""Launchers of the pairwise kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import ExtremeProblem, PairProblem, PairRows
from pml_fast.engine.triton import given, histograms, layout, soft_ranks
from pml_fast.engine.triton.epilogues import EPILOGUES, HISTOGRAM, RANKS, Epilogue
from pml_fast.engine.triton.launch import numbers_of, rule_of, sweep
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.pairwise import extreme_kernel
from pml_fast.engine.triton.pairwise_grad import pair_grad_kernel, pair_pulls_kernel
from pml_fast.engine.triton.wide import by_strips


def pair_rows(problem: PairProblem) -> PairRows:
    """The forward: each row's values and counts, and what its derivative needs as ``saved [S, N]``."""
    if problem.bidirectional:
        # A block of rows has the whole of its own sums, and no other's: columns are swept as rows.
        forth, back = pair_rows(problem.forth), pair_rows(problem.back)
        return PairRows(forth.rows, forth.exists, torch.cat([forth.saved, back.saved], dim=1), columns=back.rows)
    epilogue = EPILOGUES[problem.spec.name]
    if epilogue.positives_again and problem.y.shape[0] >= layout.SORT_FROM:
        sorted_problem, place = layout.class_sorted(problem)
        rows, saved, seen = _state(sorted_problem, epilogue)
        rows, saved = rows[:, :, place], saved[:, place]
    else:
        rows, saved, seen = _state(problem, epilogue)
    return PairRows(rows, seen.any(dim=1), saved)


def _state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    if epilogue.first is not None:
        return given.state(problem, epilogue)
    if epilogue.shape == HISTOGRAM:
        return histograms.state(problem, epilogue)
    if epilogue.shape == RANKS:
        return soft_ranks.state(problem, epilogue)
    kind = layout.score_kind(problem.score)
    x, y = layout.sides(problem, kind)
    return sweep(x, y, epilogue, kind, problem.itself, problem.rule, numbers_of(problem), len(problem.spec.terms))


@dataclass(frozen=True)
class Anchors:
    """What anchors bring to the derivative: ``saved [3, N]`` of the forward sweep, and weights ``[T, N]``."""

    saved: Tensor
    w: Tensor

    @staticmethod
    def of(saved: Tensor, w: Tensor) -> Anchors:
        return Anchors(saved.contiguous(), w.to(torch.float32).contiguous())


def pair_grads(
    problem: PairProblem, saved: Tensor, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """The backward: float32 gradients of ``sum(w * value)``, one launch a side (two a strip where D is wide)."""
    epilogue, kind, n = EPILOGUES[problem.spec.name], layout.score_kind(problem.score), problem.x.shape[0]
    if epilogue.shape == RANKS:
        return soft_ranks.grads(problem, epilogue, saved, w.to(torch.float32).contiguous(), need_x, need_y)
    if epilogue.first is not None:
        saved = given.weighed(problem, epilogue, saved, w.to(torch.float32).contiguous())
    rows = columns = Anchors.of(saved, w)
    if w_columns is not None:
        rows, columns = Anchors.of(saved[:, :n], w), Anchors.of(saved[:, n:], w_columns)
    both = problem.itself or problem.bidirectional
    dx = _grad(problem, *layout.sides(problem, kind), rows, columns if both else None) if need_x else None
    if problem.itself or not need_y:
        return dx, None
    return dx, _grad(problem, *layout.sides(problem, kind, swapped=True), columns if both else None, rows)


def _grad(problem: PairProblem, x: layout.Operand, y: layout.Operand, rows: Anchors | None, columns: Anchors | None) -> Tensor:
    """Gradient by the rows of ``x`` against the columns ``y``; the anchors are the rows, the columns, or both."""
    # A kernel does not read those that are none.
    own, there = rows or columns, columns or rows
    assert own is not None and there is not None
    epilogue, kind = EPILOGUES[problem.spec.name], layout.score_kind(problem.score)
    (n, d), m = x.rows.shape, y.rows.shape[0]
    out = layout.empty((n, problem.x.shape[1]), dtype=torch.float32, device=x.rows.device)
    if out.numel() == 0:
        return out
    # The parts of split rows are multiplied by the coefficients' own parts, which are written out.
    cfg = launch_config("pulls" if x.split or epilogue.heavy else "grad", x.rows, kind, x.split)
    inputs = (
        x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(problem.rule, problem.x),
        own.saved, own.w, there.saved, there.w,
    )  # fmt: skip
    sizes = (n, m, d, *numbers_of(problem))
    chosen = {
        "TERMS": len(problem.spec.terms), "SAVED": epilogue.levels, "TABLE": epilogue.nodes(problem.spec),
        "LOGIT": epilogue.logit, "DERIVATIVE": epilogue.derivative, "STATE": epilogue.state, "KIND": kind,
        "ITSELF": problem.itself, "ROW_ANCHORS": rows is not None, "COL_ANCHORS": columns is not None,
        "HAS_RULE": problem.rule is not None,
        "PRECISION": layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
    }  # fmt: skip
    strides = (x.rows.stride(0), y.rows.stride(0))
    if cfg.resident:
        turned = layout.turned(y.rows, cfg.block_n) if cfg.turned else y.rows
        with on(x.rows):
            pair_grad_kernel[(triton.cdiv(n, cfg.block_m),)](
                *inputs[:2], turned, *inputs[2:], out, *strides, turned.stride(0), out.stride(0), *sizes, **chosen,
                TURNED=cfg.turned,
            )  # fmt: skip
        return out

    def launch(h: Tensor, first: int, last: int) -> None:
        grid = (triton.cdiv(len(h), cfg.block_m), triton.cdiv(m, cfg.block_n))
        pair_pulls_kernel[grid](*inputs, h, first, last, *strides, h.stride(0), *sizes, **chosen, SPLIT=x.split)

    with on(x.rows):
        by_strips(out, x.rows, y.rows, kind, x.split, launch)
    return out


def extremes(problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
    """Each row's largest or smallest score (float32) and its column (int64, the lowest of equals, -1 for none)."""
    n, m = problem.x.shape[0], problem.y.shape[0]
    value = layout.empty((n,), dtype=torch.float32, device=problem.x.device)
    index = layout.empty((n,), dtype=torch.int64, device=problem.x.device)
    if n == 0:
        return value, index
    kind = layout.score_kind(problem.score)
    x, y = layout.sides(problem, kind)
    low, high = (problem.x if b is None else b.to(torch.float32).contiguous() for b in (problem.low, problem.high))
    cfg = launch_config("extreme", x.rows, kind, x.split)
    with on(x.rows):
        extreme_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, low, high, value, index,
            x.rows.stride(0), y.rows.stride(0), n, m, x.rows.shape[1],
            POSITIVE=problem.positive, LARGEST=problem.largest, HAS_LOW=problem.low is not None,
            HAS_HIGH=problem.high is not None, KIND=kind, ITSELF=problem.itself,
            PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return value, index
