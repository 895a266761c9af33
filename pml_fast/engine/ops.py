"""The operators: one schema, one fake and one autograd formula an engine, whatever the loss.

A loss is a scalar, so its gradient is known up to one factor when the forward ends: ``*_loss`` operators compute it at once and
their backward only scales it. ``pairwise_rows`` keeps every row's loss differentiable, for reductions that are not folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.specs  # noqa: F401  (fills the registry the operators look specs up in)
from pml_fast.engine import dispatch
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold, reduce_rows
from pml_fast.engine.problem import Backend, ExtremeProblem, Limits, PairProblem, PairRows
from pml_fast.engine.score import Score, compute_type, row_norms, unit_rows_backward
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import pair_spec

_LIBRARY = torch.library.Library("pml_fast", "DEF")

_SETS = "Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? rule"


def _define(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pml_fast::{name}", fake, lib=_LIBRARY)


@dataclass
class _Rows:
    """One side's embeddings, what they are divided by, and the way back for their gradient."""

    x: Tensor
    norm: Tensor | None
    dtype: torch.dtype

    @staticmethod
    def of(x: Tensor, score: Score) -> _Rows:
        wide = x.to(compute_type(x.dtype))
        return _Rows(wide, row_norms(wide) if score.normalize else None, x.dtype)

    def unit(self) -> Tensor:
        """The rows as a backend takes them that does not divide them itself."""
        rows = self.x if self.norm is None else self.x / self.norm
        # Half precision stays so where the kernels multiply in it.
        half = rows.is_cuda and self.dtype in (torch.float16, torch.bfloat16)
        return rows.to(self.dtype) if half else rows

    def back(self, grad: Tensor | None) -> Tensor:
        """The gradient by the embeddings (an empty tensor for none), given that by the rows, which it may overwrite."""
        if grad is None:
            return self.x.new_empty(0, dtype=self.dtype)
        if self.norm is not None:
            grad = unit_rows_backward(grad.to(self.x.dtype), self.x, self.norm)
        return grad.to(self.dtype)


def _prepared(problem: Any, backend: Backend, rows: _Rows, cols: _Rows) -> Any:
    """The problem with the rows that this backend takes: a backend that ``divides`` never needs a second copy of them."""
    if getattr(backend, "divides", False):
        return replace(problem, x_norm=rows.norm, y_norm=cols.norm)
    x = rows.unit()
    return replace(problem, x=x, y=x if cols is rows else cols.unit())


def _both(x: Tensor, y: Tensor, itself: bool, score: Score) -> tuple[_Rows, _Rows]:
    rows = _Rows.of(x, score)
    return rows, rows if itself and score.symmetric else _Rows.of(y, score)


def _pair_problem(
    rows: _Rows, cols: _Rows, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: Score, itself: bool, limits: list[Limits],
) -> PairProblem:  # fmt: skip
    return PairProblem(
        pair_spec(spec, params), score, rows.x, cols.x, x_labels, y_labels, itself, rule, limits
    )


def _folds(encoded: Sequence[str]) -> list[Fold]:
    return [Fold.decode(text) for text in encoded]


# ---- pairwise_loss -----------------------------------------------------------------------------------------------------------


def _pairwise_loss(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    spec: str, params: Sequence[float], score: str, itself: bool, folds: Sequence[str], need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if itself and row_weights is None and small.applies(x):
        how = small.recipe(spec, tuple(params), score, tuple(folds))
        if how is not None:
            return small.pair_loss(x, x_labels, rule, how, need_x)
    sc, reductions = Score.decode(score), _folds(folds)
    with math_precision():
        rows, cols = _both(x, y, itself, sc)
        limits = [fold.pair_limits() for fold in reductions]
        problem = _pair_problem(rows, cols, x_labels, y_labels, rule, spec, params, sc, itself, limits)
        backend = dispatch.select(problem)
        problem = _prepared(problem, backend, rows, cols)
        state = backend.pair_rows(problem, need_x or need_y)
        losses, weights = [], []
        for t, (term, fold) in enumerate(zip(problem.spec.terms, reductions, strict=True)):
            own = None if row_weights is None else row_weights[t]
            loss, w = reduce_rows(fold, term, state.rows[t, 0], state.rows[t, 1], own)
            losses.append(loss)
            weights.append(w)
        terms, w = torch.stack(losses), torch.stack(weights)
        if problem.spec.gated:
            gate = state.exists.all().to(terms.device)
            terms, w = torch.where(gate, terms, 0.0), torch.where(gate, w, 0.0)
        dx = dy = None
        if need_x or need_y:
            dx, dy = backend.pair_grads(problem, state, w, need_x, need_y)
        return terms.sum(), terms, rows.back(dx), cols.back(dy)


def _shared(itself: bool, score: str) -> bool:
    return itself and Score.decode(score).symmetric


def _grad_like(tensor: Tensor, needed: bool) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else tensor.new_empty(0)


def _pairwise_loss_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    spec: str, params: Sequence[float], score: str, itself: bool, folds: Sequence[str], need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = compute_type(x.dtype)
    loss, terms = x.new_empty((), dtype=wide), x.new_empty(len(folds), dtype=wide)
    return loss, terms, _grad_like(x, need_x), _grad_like(y, need_y and not _shared(itself, score))


def _refuse_double_backward() -> None:
    # Grad mode is on inside a backward only where its own graph is wanted.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the gradient of a fused loss cannot be differentiated again (create_graph=True); "
            "call backward with create_graph=False, or write the penalty on pml_fast.distances' own matrix"
        )


def _differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give an operator its autograd formula.

    The formula is registered for the Autograd key itself: torch.library.register_autograd does the same through layers of Python
    that take longer than a small batch's whole step.
    """
    operator = getattr(torch.ops.pml_fast, name).default

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    Formula.__name__ = Formula.__qualname__ = f"pml_fast_{name}"

    def autograd(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return Formula.apply(*inputs)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    _LIBRARY.impl(name, autograd, "Autograd")


def _scaled(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a ``*_loss`` operator: what the forward computed, times the one factor it did not know."""
    _refuse_double_backward()
    dx, dy = ctx.saved_tensors
    need_x, need_y = ctx.needed
    return (dx * grad_loss.to(dx.dtype) if need_x else None), (dy * grad_loss.to(dy.dtype) if need_y else None)


def _pairwise_loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    itself, need_x, need_y = inputs[9], inputs[11], inputs[12]
    ctx.needed = need_x, need_y and not _shared(itself, inputs[8])
    ctx.save_for_backward(output[2], output[3])
    ctx.set_materialize_grads(False)


def _pairwise_loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 13
    return (*_scaled(ctx, grad_loss), *(None,) * 11)


_define(
    "pairwise_loss",
    f"({_SETS}, Tensor? row_weights, str spec, float[] params, str score, bool itself, str[] folds, "
    "bool need_x, bool need_y) -> (Tensor, Tensor, Tensor, Tensor)",
    _pairwise_loss,
    _pairwise_loss_fake,
)
_differentiable("pairwise_loss", _pairwise_loss_context, _pairwise_loss_backward)


# ---- pairwise_rows -----------------------------------------------------------------------------------------------------------


def _no_limits(spec: str, params: Sequence[float]) -> list[Limits]:
    return [Fold().pair_limits() for _ in pair_spec(spec, params).terms]


def _rows_state(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, keep: bool,
) -> tuple[_Rows, _Rows, PairProblem, Backend, PairRows, Tensor]:  # fmt: skip
    sc = Score.decode(score)
    rows, cols = _both(x, y, itself, sc)
    limits = _no_limits(spec, params)
    problem = _pair_problem(rows, cols, x_labels, y_labels, rule, spec, params, sc, itself, limits)
    backend = dispatch.select(problem)
    problem = _prepared(problem, backend, rows, cols)
    state = backend.pair_rows(problem, keep)
    gate = state.exists.all().to(rows.x.device) | (not problem.spec.gated)
    return rows, cols, problem, backend, state, gate


def _pairwise_rows(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        *_, state, gate = _rows_state(x, y, x_labels, y_labels, rule, spec, params, score, itself, False)
        values, counts = state.rows.unbind(1)
        return torch.where(gate, values, 0.0), counts.clone()


def _pairwise_rows_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = len(pair_spec(spec, params).terms), x.shape[0]
    values = x.new_empty(shape, dtype=compute_type(x.dtype))
    return values, torch.empty_like(values)


def _pairwise_rows_grad(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        rows, cols, problem, backend, state, gate = _rows_state(
            x, y, x_labels, y_labels, rule, spec, params, score, itself, True
        )
        dx, dy = backend.pair_grads(problem, state, torch.where(gate, w, 0.0), need_x, need_y and not _shared(itself, score))
        return rows.back(dx), cols.back(dy)


def _pairwise_rows_grad_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _grad_like(x, need_x), _grad_like(y, need_y and not _shared(itself, score))


def _pairwise_rows_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, x_labels, y_labels, rule, *rest = inputs
    ctx.save_for_backward(x, y, x_labels, y_labels, *([] if rule is None else [rule]))
    ctx.rest = rest
    ctx.set_materialize_grads(False)


def _pairwise_rows_backward(ctx: Any, w: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if w is None:
        return (None,) * 9
    _refuse_double_backward()
    x, y, x_labels, y_labels, *rule = ctx.saved_tensors
    itself = ctx.rest[3]
    shared = _shared(itself, ctx.rest[2])
    need_x, need_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not shared
    dx, dy = torch.ops.pml_fast.pairwise_rows_grad(
        x, y, x_labels, y_labels, rule[0] if rule else None, *ctx.rest, w, need_x, need_y
    )
    return (dx if need_x else None, dy if need_y else None, *(None,) * 7)


_define(
    "pairwise_rows",
    f"({_SETS}, str spec, float[] params, str score, bool itself) -> (Tensor, Tensor)",
    _pairwise_rows,
    _pairwise_rows_fake,
)
_define(
    "pairwise_rows_grad",
    f"({_SETS}, str spec, float[] params, str score, bool itself, Tensor w, bool need_x, bool need_y) "
    "-> (Tensor, Tensor)",
    _pairwise_rows_grad,
    _pairwise_rows_grad_fake,
)
_differentiable("pairwise_rows", _pairwise_rows_context, _pairwise_rows_backward)


# ---- row_extremes (no gradient) ----------------------------------------------------------------------------------------------


def _row_extremes(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: Tensor | None, high: Tensor | None, score: str,
    itself: bool, positive: bool, largest: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sc = Score.decode(score)
    with math_precision():
        rows, cols = _both(x, y, itself, sc)
        problem = ExtremeProblem(
            sc, rows.x, cols.x, x_labels, y_labels, itself, positive, largest, low, high
        )
        backend = dispatch.select(problem)
        return backend.extremes(_prepared(problem, backend, rows, cols))


def _row_extremes_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: Tensor | None, high: Tensor | None, score: str,
    itself: bool, positive: bool, largest: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n = x.shape[0]
    return x.new_empty(n, dtype=compute_type(x.dtype)), x.new_empty(n, dtype=torch.int64)


_define(
    "row_extremes",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? low, Tensor? high, str score, bool itself, "
    "bool positive, bool largest) -> (Tensor, Tensor)",
    _row_extremes,
    _row_extremes_fake,
)
