"""How a problem's tensors are laid out for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.problem import PairProblem
from pml_fast.engine.score import Score
from pml_fast.engine.settings import float32_precision

# Every output of a launcher is made here, so that a test can poison them all.
empty = torch.empty

# What is written out of a gradient at a time, where D is wide: it stays in the second-level cache.
WORKSPACE_BYTES = 16 << 20

# From this many columns on, a second sweep over the positives pays for sorting both sides by class.
SORT_FROM = 4096

KINDS = {("dot", 1.0): 0, ("l2", 1.0): 1, ("l2", 2.0): 2}


@dataclass
class Operand:
    """Rows as the kernels read them: unit stride along D, squared norms where the score needs them; ``split`` into parts."""

    rows: Tensor
    norms: Tensor
    labels: Tensor
    split: bool = False


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which nothing can be read on the host."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def score_kind(score: Score) -> int:
    """The constexpr of a score (``tiles.DOT``, ``L2``, ``L2_SQUARED``)."""
    return KINDS[(score.kind, float(score.power))]


def product_type(dtype: torch.dtype) -> str:
    """How products of this type are taken, the key of the tables: ``bf16``, ``fp16``, ``tf32`` or ``tf32x3``."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names.get(dtype) or dot_precision(dtype)


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` of every product: float32 follows torch's own setting, "highest" being a three-term split."""
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


def rounded_tf32(x: Tensor) -> Tensor:
    """``x`` rounded to the 11 bits that tf32 products read: the hardware would truncate, which is biased."""
    bits = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.where(x.isnan(), x, bits)


def operand(x: Tensor, labels: Tensor, kind: int) -> Operand:
    """Lay out one side. The norms are those of the rows as the products see them."""
    rows = x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
    if rows.dtype == torch.float32 and dot_precision(rows.dtype) == "tf32":
        rows = rounded_tf32(rows.contiguous())
    norms = rows if kind == 0 else torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square_()
    return Operand(rows, norms, labels.contiguous())


def turned(rows: Tensor, block: int) -> Tensor:
    """``rows [M, D]`` as ``[D, M]``, with zeros up to a whole number of blocks of ``M``."""
    m, d = rows.shape
    columns = empty((d, -(-m // block) * block), dtype=rows.dtype, device=rows.device)
    columns[:, :m] = rows.T
    columns[:, m:] = 0
    return columns


def splits(dtype: torch.dtype, kind: int) -> bool:
    """Whether products are those of bfloat16 parts: inner products of float32 rows at the precision ``bf16x3``."""
    return dtype == torch.float32 and kind == 0 and float32_precision() == "bf16x3"


def bf16_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 numbers, and what they leave of ``x``."""
    high = x.to(torch.bfloat16)
    return high, (x - high).to(torch.bfloat16)


def split_rows(x: Tensor, labels: Tensor) -> Operand:
    """One side as rows ``[low | high | high]`` of three times the width, for :func:`split_columns`: one bfloat16 product of
    both sums all but ``low * low``."""
    high, low = bf16_parts(x)
    rows = torch.cat([low, high, high], dim=1)
    return Operand(rows, rows, labels.contiguous(), split=True)


def split_columns(y: Tensor, labels: Tensor) -> Operand:
    """The other side, ``[high | low | high]``."""
    high, low = bf16_parts(y)
    rows = torch.cat([high, low, high], dim=1)
    return Operand(rows, rows, labels.contiguous(), split=True)


def stacked(columns: Tensor) -> Tensor:
    """What coefficients in parts ``[high | low | high]`` multiply, of :func:`split_columns`: ``high``, ``high``, ``low``."""
    high, low, _ = columns.chunk(3, dim=1)
    return torch.cat([high, high, low])


def sides(problem: Any, kind: int, swapped: bool = False) -> tuple[Operand, Operand]:
    """Rows and columns of a problem; ``swapped``, its columns as rows and its rows as columns."""
    ends = (problem.x, problem.x_labels), (problem.y, problem.y_labels)
    rows, columns = (ends[1], ends[0]) if swapped else ends
    if splits(problem.x.dtype, kind):
        return split_rows(*rows), split_columns(*columns)
    first = operand(*rows, kind)
    return first, first if problem.itself else operand(*columns, kind)


def class_sorted(problem: PairProblem) -> tuple[PairProblem, Tensor]:
    """The problem with both sides sorted by class, and the place each row went to (``[N]``)."""
    x_order = torch.argsort(problem.x_labels, stable=True)
    y_order = x_order if problem.itself else torch.argsort(problem.y_labels, stable=True)
    x, x_labels = problem.x[x_order], problem.x_labels[x_order]
    sorted_problem = replace(
        problem,
        x=x,
        y=x if problem.itself else problem.y[y_order],
        x_labels=x_labels,
        y_labels=x_labels if problem.itself else problem.y_labels[y_order],
        rule=None if problem.rule is None else problem.rule[:, x_order],
    )
    place = torch.empty_like(x_order)
    place[x_order] = torch.arange(len(x_order), device=place.device)
    return sorted_problem, place
