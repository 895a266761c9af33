"""What the operators are made of: registration, embeddings on their way in and gradients on their way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.problem import Backend
from pml_fast.engine.score import ROWS_AT_ONCE, Score, compute_type, row_norms, unit_rows_backward

LIBRARY = torch.library.Library("pml_fast", "DEF")

SETS = "Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? rule"


# What `call` runs for an operator where nobody looks on.
_DIRECT: dict[str, Callable[..., Any]] = {}


def define(name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator. Autocast stays outside: it would round the scores inside to half precision."""

    def precise(*inputs: Any) -> Any:
        with torch._C._DisableAutocast():
            return implementation(*inputs)

    LIBRARY.define(f"{name}{schema}")
    LIBRARY.impl(name, precise, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pml_fast::{name}", fake, lib=LIBRARY)
    _DIRECT[name] = _below_autograd(precise)


def _below_autograd(run: Callable[..., Any]) -> Callable[..., Any]:
    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return run(*inputs)

    return below


def call(name: str, *inputs: Any) -> Any:
    """The operator's outputs.

    Two passes through PyTorch's dispatcher take longer than a small batch's whole step: where no transform, mode, compiler or
    tensor subclass has to see the operator, its autograd formula is called as it stands.
    """
    if are_plain(*(x for x in inputs if isinstance(x, Tensor))):
        return _DIRECT[name](*inputs)
    return getattr(torch.ops.pml_fast, name)(*inputs)


@dataclass
class Rows:
    """One side's embeddings, what they are divided by, and the way back for their gradient."""

    x: Tensor
    norm: Tensor | None
    dtype: torch.dtype

    @staticmethod
    def of(x: Tensor, score: Score) -> Rows:
        wide = x.to(compute_type(x.dtype))
        return Rows(wide, row_norms(wide) if score.normalize else None, x.dtype)

    def unit(self, keep_half: bool = False) -> Tensor:
        """The divided rows; ``keep_half`` leaves half precision to kernels that multiply in it and add in float32."""
        rows = self.x if self.norm is None else self.x / self.norm
        half = keep_half and self.dtype in (torch.float16, torch.bfloat16)
        return rows.to(self.dtype) if half else rows

    def back(self, grad: Tensor | None) -> Tensor:
        """The gradient by the embeddings (an empty tensor for none), given that by the rows, which it may overwrite."""
        if grad is None:
            return self.x.new_empty(0, dtype=self.dtype)
        if self.norm is not None:
            grad = unit_rows_backward(grad.to(self.x.dtype), self.x, self.norm)
        return grad.to(self.dtype)


def prepared(problem: Any, backend: Backend, rows: Rows, cols: Rows) -> Any:
    """The problem with the rows that this backend takes: a backend that ``divides`` never needs a second copy of them."""
    if getattr(backend, "divides", False):
        return replace(problem, x_norm=rows.norm, y_norm=cols.norm)
    keeps = getattr(backend, "keeps_half", None)
    half = keeps is not None and keeps(problem)
    x = rows.unit(half)
    return replace(problem, x=x, y=x if cols is rows else cols.unit(half))


def both(x: Tensor, y: Tensor, itself: bool, score: Score) -> tuple[Rows, Rows]:
    rows = Rows.of(x, score)
    return rows, rows if itself and score.symmetric else Rows.of(y, score)


def shared(itself: bool, score: str) -> bool:
    return itself and Score.decode(score).symmetric


def grad_like(tensor: Tensor, needed: bool) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format) if needed else tensor.new_empty(0)


def settled(value: Tensor, grad: Tensor, on_host: bool = False) -> Tensor:
    """``grad``, where ``value`` (losses, or gradients from above) is 0 throughout without what is not finite.

    Then nothing was compared, or nothing is violated: 0 times a NaN row is no gradient. Whether it is may be read ``on_host``;
    elsewhere the answer would stop the queue.
    """
    if grad.numel() == 0:
        return grad
    nothing = (value == 0).all()
    if on_host and not nothing:
        return grad
    for part in grad.split(ROWS_AT_ONCE) if grad.ndim else (grad,):
        part.masked_fill_(nothing & ~part.isfinite(), 0.0)
    return grad


def differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any], results: int | None = None) -> None:
    """Give an operator its autograd formula.

    ``results`` are the first outputs, which are for the caller, where the others are gradients for the backward: what
    :func:`call` returns without the dispatcher has them alone.

    The formula is registered for the Autograd key itself: torch.library.register_autograd does the same through layers of
    Python that take longer than a small batch's whole step.
    """
    dispatched = _below_autograd(getattr(torch.ops.pml_fast, name).default)
    LIBRARY.impl(name, _with_formula(name, dispatched, setup, backward, None), "Autograd")
    _DIRECT[name] = _with_formula(name, _DIRECT[name], setup, backward, results)


def _with_formula(
    name: str, run: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any], results: int | None
) -> Callable[..., Any]:
    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = run(*inputs)
            ctx.keeps_grads = results is not None
            setup(ctx, inputs, output)
            # Of one tensor a slice would be a view, which nobody may change in place.
            return output if results is None else output[:results]

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    Formula.__name__ = Formula.__qualname__ = f"pml_fast_{name}"

    def differentiated(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return Formula.apply(*inputs)
        return run(*inputs)

    return differentiated


def are_plain(*tensors: Tensor) -> bool:
    """Whether tensors are nothing but their numbers: not traced, of a function transform, seen by a mode, of a subclass, or
    without an address."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return all(type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta for tensor in tensors)


def refuse_double_backward() -> None:
    # Grad mode is on inside a backward only where its own graph is wanted.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "the gradient of a fused loss cannot be differentiated again (create_graph=True); "
            "call backward with create_graph=False, or write the penalty on pml_fast.distances' own matrix"
        )


def scaled(ctx: Any, grad_loss: Tensor) -> list[Tensor | None]:
    """The saved gradients that are ``needed``: what the forward computed, times the one factor it did not know.

    A factor of 1 leaves them as they are, without a copy, where nobody else has them and no later backward will want them.
    """
    refuse_double_backward()
    grads = zip(ctx.saved_tensors, ctx.needed, strict=True)
    last = ctx.keeps_grads and are_plain(grad_loss) and not torch._C._autograd._get_current_graph_task_keep_graph()
    # On a GPU the answer would stop the queue.
    if last and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0:
        return [grad if needed else None for grad, needed in grads]
    return [grad * grad_loss.to(grad.dtype) if needed else None for grad, needed in grads]


# Positions of the arguments that every `*_loss` operator has in common.
_SCORE, _ITSELF, _NEED_X, _NEED_Y = 8, 9, 11, 12


def loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what a ``*_loss`` operator's backward scales."""
    own = inputs[_NEED_Y] and not shared(inputs[_ITSELF], inputs[_SCORE])
    ctx.needed = inputs[_NEED_X], own
    ctx.save_for_backward(output[2], output[3])
    ctx.set_materialize_grads(False)


def loss_backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    """Gradients of a ``*_loss`` operator by its arguments."""
    count = len(ctx.needs_input_grad)
    if grad_loss is None:
        return (None,) * count
    return (*scaled(ctx, grad_loss), *(None,) * (count - 2))
