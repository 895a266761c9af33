"""Losses of soft ranks: a table of each row's positives, whose slopes the gradient takes up again for every pair.

Rows and columns are put in the order of their labels, so that a row's positives are one range of columns. How many the largest
class has is read on the host, once a step: the tables are that wide, O(N P), and no tensor is rows x positives x columns. While
a CUDA graph is captured nothing can be read, and its replays may bring other labels: the tables are then as wide as there are
columns, which the kernels do not visit for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import PairProblem
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.configs import Config
from pml_fast.engine.triton.epilogues import Epilogue
from pml_fast.engine.triton.launch import numbers_of, rule_of
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.soft_rank_kernels import own_logits_kernel, soft_rank_pulls_kernel, soft_ranks_kernel
from pml_fast.engine.triton.wide import by_strips

# Positives whose ranks a program keeps in registers: more of them take more sweeps.
HITS = 16

# The most that the tables of a captured step may take: those of 4096 rows against themselves.
CAPTURED_BYTES = 256 << 20


class _Sorted:
    """A problem with both sides in the order of their labels, and where each row's positives begin and end."""

    def __init__(self, problem: PairProblem) -> None:
        self.problem, self.place = layout.class_sorted(problem)
        self.kind = layout.score_kind(problem.score)
        labels = self.problem.y_labels.contiguous(), self.problem.x_labels.contiguous()
        self.start = torch.searchsorted(*labels, out_int32=True)
        self.stop = torch.searchsorted(*labels, right=True, out_int32=True)
        self.rule = rule_of(self.problem.rule, self.problem.x)
        sign, _, _, _, _, *params = numbers_of(problem)
        self.numbers = (sign, *params)

    def choices(self, epilogue: Epilogue, x: layout.Operand, cfg: Config) -> dict[str, Any]:
        """What every launch is told."""
        return {
            "LOGIT": epilogue.logit, "KIND": self.kind, "ITSELF": self.problem.itself,
            "HAS_RULE": self.problem.rule is not None, "PRECISION": layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        }  # fmt: skip


def state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    """``rows [1, 2, N]``, the tables ``[4, P, N]`` of the rows in the order of their labels, and ``seen [2, N]``."""
    by_class = _Sorted(problem)
    x, y = layout.sides(by_class.problem, by_class.kind)
    (n, d), m = x.rows.shape, y.rows.shape[0]
    width = _width(by_class, n, m) if n else 0
    device = x.rows.device
    rows = layout.empty((1, 2, n), dtype=torch.float32, device=device)
    table = layout.empty((4, width, n), dtype=torch.float32, device=device)
    table[0].fill_(float("-inf"))
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, table, seen
    cfg = launch_config("soft-ranks", x.rows, by_class.kind, x.split)
    inputs = (x.rows, y.rows, x.norms, y.norms, by_class.start, by_class.stop, by_class.rule, table)
    sizes = (x.rows.stride(0), y.rows.stride(0), n, m, d)
    chosen = by_class.choices(epilogue, x, cfg)
    grid = (triton.cdiv(n, cfg.block_m),)
    with on(x.rows):
        own_logits_kernel[grid](*inputs, *sizes, *by_class.numbers, **chosen)
        soft_ranks_kernel[grid](
            *inputs, rows, seen, *sizes, width, *by_class.numbers,
            FINISH=epilogue.finish, AMONG=epilogue.among, ALONE=epilogue.among, HITS=HITS, **chosen,
        )  # fmt: skip
    return rows[:, :, by_class.place], table, seen


def _width(by_class: _Sorted, n: int, m: int) -> int:
    """Columns that no class has more of."""
    if not layout.capturing(by_class.start):
        return int((by_class.stop - by_class.start).amax())
    size = 4 * torch.float32.itemsize * n * m
    if size > CAPTURED_BYTES:
        raise RuntimeError(
            f"the loss {by_class.problem.spec.name!r} cannot be captured in a CUDA graph for {n} rows and {m} columns: without "
            "reading on the host how large the largest class is, its tables must have room for every column, which takes "
            f"{-(-size // (1 << 20))} MiB of at most {CAPTURED_BYTES >> 20}; capture a smaller batch, or leave the loss out of "
            "the graph"
        )
    return m


def grads(
    problem: PairProblem, epilogue: Epilogue, table: Tensor, w: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, from the tables; nothing is read back."""
    by_class = _Sorted(problem)
    order = torch.empty_like(by_class.place)
    order[by_class.place] = torch.arange(len(order), device=order.device)
    w = w[0, order].contiguous()
    dx = _grad(by_class, epilogue, table, w, True, problem.itself)[by_class.place] if need_x else None
    if problem.itself or not need_y:
        return dx, None
    dy = _grad(by_class, epilogue, table, w, False, True)
    return dx, torch.empty_like(dy).index_copy_(0, torch.argsort(problem.y_labels, stable=True), dy)


def _grad(by_class: _Sorted, epilogue: Epilogue, table: Tensor, w: Tensor, by_row: bool, by_col: bool) -> Tensor:
    """By the rows, or by the columns where the anchors are not ``by_row``."""
    x, y = layout.sides(by_class.problem, by_class.kind, swapped=not by_row)
    (n, d), m = x.rows.shape, y.rows.shape[0]
    out = layout.empty((n, by_class.problem.x.shape[1]), dtype=torch.float32, device=x.rows.device)
    if out.numel() == 0:
        return out
    cfg = launch_config("soft-ranks-grad", x.rows, by_class.kind, x.split)
    inputs = (x.rows, y.rows, x.norms, y.norms, by_class.start, by_class.stop, by_class.rule, table, w)
    chosen = by_class.choices(epilogue, x, cfg) | {"ROW_ANCHORS": by_row, "COL_ANCHORS": by_col, "SPLIT": x.split}

    def launch(h: Tensor, first: int, last: int) -> None:
        soft_rank_pulls_kernel[(triton.cdiv(len(h), cfg.block_m), triton.cdiv(m, cfg.block_n))](
            *inputs, h, first, last, x.rows.stride(0), y.rows.stride(0), h.stride(0), n, m, d, table.shape[1],
            *by_class.numbers, **chosen,
        )  # fmt: skip

    with on(x.rows):
        by_strips(out, x.rows, y.rows, by_class.kind, x.split, launch)
    return out
