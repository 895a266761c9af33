"""Small batches against class weights: each way of a step in one compiled call, from rows as they are given."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.cpu.classes import refuse_spec
from pml_fast.engine.cpu.extension import extension


@lru_cache(maxsize=256)
def takes(spec: ClassSpec) -> bool:
    """Whether one call can prepare the rows, compare and fold."""
    return refuse_spec(spec) is None and (spec.p == 2 or not spec.unit_rows)


@lru_cache(maxsize=256)
def _maths(spec: ClassSpec) -> Any:
    return extension().class_maths(spec.pool, spec.fold, spec.centers, spec.scale, spec.sharpness)


def _batch(spec: ClassSpec, x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None) -> Any:
    return extension().small_classes(
        x.data_ptr(), x.shape[0], x.shape[1], y.data_ptr(), y.shape[0] // spec.centers, *y.stride(), target.data_ptr(),
        0 if bias is None else bias.data_ptr(), spec.unit_rows, spec.unit, spec.lift == "square", torch.get_num_threads(),
    )  # fmt: skip


def scores(spec: ClassSpec, x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The folds, the rows' own scores and norms, and the state for :func:`grads`; contiguous ``x`` and ``target``."""
    (n, d), m = x.shape, y.shape[0]
    others = x.new_empty(m // spec.centers if spec.fold == "class_lse" else n)
    own, norms = x.new_empty(n), x.new_empty(n if spec.norms else 0)
    state = x.new_empty(n * d + n + m + n * m)
    extension().small_class_scores(
        _batch(spec, x, y, target, bias), _maths(spec), state.data_ptr(), others.data_ptr(), own.data_ptr(),
        norms.data_ptr() if spec.norms else 0, x.dtype == torch.float64,
    )  # fmt: skip
    return others, own, norms, state


def grads(
    spec: ClassSpec, x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, state: Tensor, others: Tensor,
    d_others: Tensor, d_own: Tensor, d_norms: Tensor | None, need_x: bool, need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients by the rows, and by the weights in their own memory order."""
    dx = torch.empty_like(x) if need_x else None
    dy = torch.empty_like(y) if need_y else None
    if dy is not None and 1 not in dy.stride():
        dy = torch.empty_like(y, memory_format=torch.contiguous_format)
    d_others, d_own = d_others.contiguous(), d_own.contiguous()
    d_norms = None if d_norms is None else d_norms.contiguous()
    extension().small_class_grads(
        _batch(spec, x, y, target, bias), _maths(spec), state.data_ptr(), others.data_ptr(), d_others.data_ptr(),
        d_own.data_ptr(), 0 if d_norms is None else d_norms.data_ptr(), 0 if dx is None else dx.data_ptr(),
        0 if dy is None else dy.data_ptr(), *((0, 0) if dy is None else dy.stride()), x.dtype == torch.float64,
    )  # fmt: skip
    return dx, dy


def make_unit_weights(weights: Tensor, least: float, rounding: float) -> None:
    """Divide rows by their norms, no less than ``least``, where these are not 1 up to ``rounding``."""
    extension().make_unit_weights(
        weights.data_ptr(), *weights.shape, *weights.stride(), least, rounding, torch.get_num_threads(),
        weights.dtype == torch.float64,
    )  # fmt: skip
