"""Small batches: a whole step of a softmax with several targets a row in one compiled call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_fast.engine.cpu import small
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.indexed import check_pairs
from pml_fast.engine.cpu.rows import distance_name
from pml_fast.engine.fold import Fold
from pml_fast.engine.score import Score, compute_type

FOLDS = ("mean", "sum", "threshold")


@dataclass(frozen=True)
class Side:
    """Other rows ``[M, D]`` to compare with, and whether their gradient is wanted."""

    y: Tensor
    need: bool


@dataclass(frozen=True)
class Targets:
    """Targets of a softmax over scores times ``scale``: ``row`` (in order), ``column`` and ``target``, ``[K]``. Of one set
    each row is a column of its ``own``, or none."""

    row: Tensor
    column: Tensor
    target: Tensor
    scale: float
    own: bool


def takes(x: Tensor, y: Tensor | None, score: Score, fold: Fold) -> bool:
    """Whether :func:`soft_target_loss` has a kernel for rows ``[N, D]`` against others, or against themselves."""
    seen = score if y is None else replace(score, symmetric=True)
    return small.has_kernel(seen) and fold.kind in FOLDS and small.applies(x, y)


def soft_target_loss(
    x: Tensor, other: Side | None, targets: Targets, score: Score, fold: Fold, need: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The outputs of ``soft_target_loss``, for what :func:`takes`; ``None`` where the rows are not in order."""
    rows = x.to(compute_type(x.dtype)).contiguous()
    columns = None if other is None else other.y.to(rows.dtype).contiguous()
    row, column, target = targets.row.contiguous(), targets.column.contiguous(), targets.target.to(rows.dtype).contiguous()
    loss = rows.new_empty(())
    # What nobody wants is empty, and has no address.
    dx = torch.empty_like(rows) if need else rows.new_empty(0)
    dy = torch.empty_like(columns) if columns is not None and other is not None and other.need else rows.new_empty(0)
    to, m = (0, 0) if columns is None else (columns.data_ptr(), len(columns))
    result = extension().small_soft_targets(
        rows.data_ptr(), *rows.shape, to, m, targets.own, distance_name(score), score.normalize, torch.get_num_threads(),
        row.data_ptr(), column.data_ptr(), target.data_ptr(), len(row), targets.scale, fold.kind, fold.pair_limits(),
        loss.data_ptr(), dx.data_ptr(), dy.data_ptr(), rows.dtype == torch.float64,
    )  # fmt: skip
    if result == small.REFUSED:
        check_pairs(row, column, len(rows), len(rows if columns is None else columns))
        return None
    if result == small.NOTHING:
        for grad in (dx, dy):
            grad.masked_fill_(~grad.isfinite(), 0.0)
    return loss, dx.to(x.dtype), dy.to(x.dtype if other is None else other.y.dtype)
