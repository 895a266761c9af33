"""Specs that sweep twice, on strips of rows: the first sweep leaves a state, whose gradient comes back in the last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.grad_sum import strips
from pml_fast.engine.problem import PairProblem
from pml_fast.engine.spec import Losses, TwoSweepSpec
from pml_fast.engine.strips import powered, strip_base
from pml_fast.engine.views import View

# The view of the rows first .. last, given their scores.
ViewOf = Callable[[PairProblem, int, int, Tensor], View]


def first_sweep(problem: PairProblem, view_of: ViewOf) -> Tensor:
    """The state ``[S, N]`` of all rows; nothing for a spec of one sweep."""
    spec, n = problem.spec, problem.x.shape[0]
    if not isinstance(spec, TwoSweepSpec):
        return problem.x.new_zeros(0)
    # A batch without rows has one empty strip, which says how long the state is.
    ranges = strips(n, problem.y.shape[0]) if n else [(0, 0)]
    parts = [spec.row_state(view_of(problem, *ends, _scores(problem, *ends)), problem.score) for ends in ranges]
    return torch.cat(parts, dim=1)


def _scores(problem: PairProblem, first: int, last: int) -> Tensor:
    return powered(problem.score, strip_base(problem.score, problem.x[first:last], problem.y))


def losses_of(problem: PairProblem, state: Tensor) -> Callable[[View, int, int], Losses]:
    """What gives the losses of the rows first .. last, given the first sweep's state."""
    spec, score = problem.spec, problem.score
    if not isinstance(spec, TwoSweepSpec):
        return lambda view, first, last: problem.spec_of(first, last).formula(view, score)
    shared = spec.share(state)
    return lambda view, first, last: spec.losses(view, score, shared[:, first:last], shared)


def state_grads(
    problem: PairProblem, state: Tensor, view_of: ViewOf, weighed: Callable[[View, Losses, int, int], Tensor]
) -> Tensor | None:
    """Derivative of the weighed losses by the state ``[S, N]``; ``None`` for a spec of one sweep."""
    spec, score = problem.spec, problem.score
    if not isinstance(spec, TwoSweepSpec):
        return None
    with autograd_enabled():
        leaf = state.detach().requires_grad_()
        shared = spec.share(leaf)
        told = shared.detach().requires_grad_()
    total = torch.zeros_like(told)
    for first, last in strips(problem.x.shape[0], problem.y.shape[0]):
        s = _scores(problem, first, last)
        with autograd_enabled():
            view = view_of(problem, first, last, s)
            losses = spec.losses(view, score, told[:, first:last], told)
            loss = weighed(view, losses, first, last)
            total += torch.autograd.grad(loss, told, allow_unused=True, materialize_grads=True)[0]
    if shared is leaf:
        return total
    with autograd_enabled():
        back: Tensor = torch.autograd.grad(shared, leaf, total)[0]
    return back


def state_share(problem: PairProblem, view: View, back: Tensor) -> Tensor:
    """What a strip adds to the loss through the state, given the state's derivative ``[S, n]``; only its slope counts."""
    spec = problem.spec
    assert isinstance(spec, TwoSweepSpec)
    state = spec.row_state(view, problem.score)
    return torch.where(back != 0, state * back, 0.0).sum()
