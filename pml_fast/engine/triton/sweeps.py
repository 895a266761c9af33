"""Launchers of the pairwise kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import ExtremeProblem, Limits, PairProblem, PairRows
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.epilogues import EPILOGUES, EXP_THEN_PAIRS, PARAMS, Epilogue
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.pairwise import extreme_kernel, pair_state_kernel
from pml_fast.engine.triton.pairwise_grad import pair_grad_kernel, pair_pulls_kernel
from pml_fast.engine.triton.wide import WIDE_RESULT, pull, strips


def scalars(spec: PairSpec, score: Score, limits: list[Limits]) -> tuple[float, ...]:
    """A loss's numbers as the kernels take them: sign, limits of the positive and of the negative side, parameters."""
    params = EPILOGUES[spec.name].params(spec)
    return (score.sign, *limits[0], *limits[-1], *params, *([0.0] * (PARAMS - len(params))))


def _scalars(problem: PairProblem) -> tuple[float, ...]:
    return scalars(problem.spec, problem.score, problem.limits)


def rule_of(rule: Tensor | None, x: Tensor) -> Tensor:
    """A miner's rule as the kernels read it; where there is none, any tensor, which they do not."""
    return x if rule is None else rule.to(torch.float32).contiguous()


def pair_rows(problem: PairProblem) -> PairRows:
    """The forward sweep: each row's values and counts, and the levels its derivative needs as ``saved [3, N]``."""
    if problem.bidirectional:
        # A block of rows has the whole of its own sums, and no other's: columns are swept as rows.
        forth, back = pair_rows(problem.forth), pair_rows(problem.back)
        return PairRows(forth.rows, forth.exists, torch.cat([forth.saved, back.saved], dim=1), columns=back.rows)
    epilogue = EPILOGUES[problem.spec.name]
    if epilogue.shape == EXP_THEN_PAIRS and problem.y.shape[0] >= layout.SORT_FROM:
        sorted_problem, place = layout.class_sorted(problem)
        rows, saved, seen = _state(sorted_problem, epilogue)
        rows, saved = rows[:, :, place], saved[:, place]
    else:
        rows, saved, seen = _state(problem, epilogue)
    return PairRows(rows, seen.any(dim=1), saved)


def _state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    kind = layout.score_kind(problem.score)
    x, y = layout.sides(problem, kind)
    return sweep(x, y, epilogue, kind, problem.itself, problem.rule, _scalars(problem), len(problem.spec.terms))


def sweep(
    x: layout.Operand, y: layout.Operand, epilogue: Epilogue, kind: int, itself: bool, rule: Tensor | None,
    numbers: tuple[float, ...], terms: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward sweep in one launch: ``rows [T, 2, N]``, ``saved [3, N]`` and ``seen [2, N]`` of ``pair_state_kernel``."""
    (n, d), m = x.rows.shape, y.rows.shape[0]
    device = x.rows.device
    rows = layout.empty((terms, 2, n), dtype=torch.float32, device=device)
    saved = layout.empty((epilogue.levels, n), dtype=torch.float32, device=device)
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, saved, seen
    cfg = launch_config("state", x.rows, kind)
    with on(x.rows):
        pair_state_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(rule, x.rows), rows, saved, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, *numbers,
            SHAPE=epilogue.shape, LOGIT=epilogue.logit, FINISH=epilogue.finish, KIND=kind, ITSELF=itself,
            HAS_RULE=rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return rows, saved, seen


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
    kind, n = layout.score_kind(problem.score), problem.x.shape[0]
    rows = columns = Anchors.of(saved[:, :n], w)
    if w_columns is not None:
        columns = Anchors.of(saved[:, n:], w_columns)
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
    split = layout.splits(problem.x.dtype, kind)
    out = layout.empty((n, problem.x.shape[1]), dtype=torch.float32, device=x.rows.device)
    if out.numel() == 0:
        return out
    # The parts of split rows are multiplied by the coefficients' own parts, which are written out.
    cfg = launch_config("pulls" if split or epilogue.heavy else "grad", x.rows, kind)
    inputs = (
        x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(problem.rule, problem.x),
        own.saved, own.w, there.saved, there.w,
    )  # fmt: skip
    sizes = (n, m, d, *_scalars(problem))
    chosen = {
        "TERMS": len(problem.spec.terms), "SAVED": epilogue.levels > 0, "LOGIT": epilogue.logit,
        "DERIVATIVE": epilogue.derivative, "KIND": kind, "ITSELF": problem.itself, "ROW_ANCHORS": rows is not None,
        "COL_ANCHORS": columns is not None, "HAS_RULE": problem.rule is not None,
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
    columns = layout.stacked(y.rows) if split else y.rows
    pulled = columns if x.rows.dtype == torch.bfloat16 and x.rows.is_cuda and WIDE_RESULT else columns.float()
    for first, h in strips(n, len(pulled), pulled):
        last = first + len(h)
        with on(x.rows):
            grid = (triton.cdiv(len(h), cfg.block_m), triton.cdiv(m, cfg.block_n))
            pair_pulls_kernel[grid](*inputs, h, first, last, *strides, h.stride(0), *sizes, **chosen, SPLIT=split)
            pull(out[first:last], h, x.rows[first:last], pulled, kind)
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
    cfg = launch_config("extreme", x.rows, kind)
    with on(x.rows):
        extreme_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, low, high, value, index,
            x.rows.stride(0), y.rows.stride(0), n, m, x.rows.shape[1],
            POSITIVE=problem.positive, LARGEST=problem.largest, HAS_LOW=problem.low is not None,
            HAS_HIGH=problem.high is not None, KIND=kind, ITSELF=problem.itself,
            PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
    return value, index
