"""Listed pairs on the compiled backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension, is_chosen
from pml_fast.engine.cpu.rows import distance_name
from pml_fast.engine.operator import are_plain
from pml_fast.engine.score import Score


def _list(score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Any:
    return extension().pair_list(
        x.data_ptr(), y.data_ptr(), i.data_ptr(), j.data_ptr(), len(i), x.shape[1], distance_name(score),
        torch.get_num_threads(),
    )  # fmt: skip


def check_pairs(i: Tensor, j: Tensor, n: int, m: int) -> None:
    """``IndexError`` unless a list of pairs names rows that there are."""
    for name, index, size in (("anchors", i, n), ("positives or negatives", j, m)):
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= size):
            raise IndexError(f"{name} must be indices from 0 to {size - 1}, got {int(index.min())} to {int(index.max())}")


def listed_scores(score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Scores ``[K]`` of listed pairs."""
    x, y, i, j = x.contiguous(), y.contiguous(), i.contiguous(), j.contiguous()
    check_pairs(i, j, x.shape[0], y.shape[0])
    out = x.new_empty(len(i))
    extension().score_list(_list(score, x, y, i, j), out.data_ptr(), x.dtype == torch.float64)
    return out


def listed_grads(
    score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by both sides of ``sum(grad * score)``."""
    x, y, i, j = x.contiguous(), y.contiguous(), i.contiguous(), j.contiguous()
    scores, grad = listed_scores(score, x, y, i, j), grad.to(x.dtype).contiguous()
    pairs = _list(score, x, y, i, j)
    sides: list[Tensor | None] = []
    for needed, rows, columns in ((need_x, x, False), (need_y, y, True)):
        out = torch.zeros_like(rows) if needed else None
        if out is not None:
            extension().add_list_gradients(
                pairs, scores.data_ptr(), grad.data_ptr(), columns, out.data_ptr(), len(rows), x.dtype == torch.float64
            )
        sides.append(out)
    return sides[0], sides[1]


@dataclass(frozen=True)
class Exponents:
    """What :func:`pml_fast.engine.pair_exponents.pair_exponents` is about; without ``y`` the pairs are rows of ``x``."""

    x: Tensor
    y: Tensor | None
    i: Tensor
    j: Tensor
    slope: float
    normalize: bool

    def compiled(self) -> tuple[Any, list[Tensor]]:
        """As the kernels take them, and what has to live as long."""
        x, i, j = self.x.contiguous(), self.i.contiguous(), self.j.contiguous()
        y = x if self.y is None else self.y.contiguous()
        compiled = extension().exponent_pairs(
            x.data_ptr(), 0 if self.y is None else y.data_ptr(), i.data_ptr(), j.data_ptr(), len(i), len(x), len(y), x.shape[1],
            self.normalize, self.slope, torch.get_num_threads(),
        )  # fmt: skip
        return compiled, [x, y, i, j]


def takes(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can read these tensors, and are what is to run on them."""
    return is_chosen(tensors[0]) and are_plain(*tensors)


def pair_exponents(pairs: Exponents) -> Tensor:
    """The rows ``[K, D + 1]``."""
    compiled, _tensors = pairs.compiled()
    out = pairs.x.new_empty(len(pairs.i), pairs.x.shape[1] + 1)
    extension().pair_exponents(compiled, out.data_ptr(), out.dtype == torch.float64)
    return out


def pair_exponent_grads(
    pairs: Exponents, grad: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None, float]:
    """Gradients by both sets and by the slope, given that by the rows."""
    compiled, tensors = pairs.compiled()
    x, y, grad = tensors[0], tensors[1], grad.contiguous()
    dx = torch.empty_like(x) if need_x else None
    dy = torch.empty_like(y) if need_y else None
    by_x, by_y = (0 if part is None else part.data_ptr() for part in (dx, dy))
    by_slope = extension().pair_exponent_gradients(compiled, grad.data_ptr(), by_x, by_y, grad.dtype == torch.float64)
    return dx, dy, by_slope
