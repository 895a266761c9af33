"""Which backend would take a call, and why no other."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from pml_fast.engine import dispatch
from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.classes.problem import ClassProblem
from pml_fast.engine.explanation import Candidate
from pml_fast.engine.plan import Call, Plan, with_copies
from pml_fast.engine.problem import NO_LIMITS, HistogramProblem, IndexedProblem, PairProblem, TripletProblem
from pml_fast.engine.score import compute_type
from pml_fast.engine.settings import current
from pml_fast.engine.spec import PairSpec, TripletSpec

Problem: TypeAlias = PairProblem | TripletProblem | HistogramProblem | IndexedProblem | ClassProblem


def candidates_for(problem: Problem) -> tuple[tuple[Candidate, ...], str | None]:
    """Every backend and why it is chosen or not, and why none can run where that is so."""
    wanted = current().backend
    order = dispatch.preference(problem.x.device) if wanted == "auto" else (wanted,)
    verdicts = dispatch.verdicts(problem)
    error = None
    try:
        chosen: str | None = dispatch.select(problem).name
    except ValueError as refusal:
        chosen, error = None, str(refusal)
    found = []
    for name, reason in verdicts.items():
        if name == chosen:
            found.append(Candidate(name, "chosen", f"asked for ({wanted})" if wanted != "auto" else "the first that can run"))
        elif reason is not None:
            found.append(Candidate(name, "refused", reason))
        elif name in order:
            found.append(Candidate(name, "less preferred", f"can run; {chosen} comes before it on {problem.x.device.type}"))
        else:
            why = f"can run; backend {wanted!r} was asked for" if wanted != "auto" else "can run, on request only"
            found.append(Candidate(name, "not asked", why))
    return tuple(found), error


def problem_of(plan: Plan, call: Call, x: Tensor, y: Tensor) -> Problem | None:
    """What the operator would hand to a backend; ``None`` where no operator runs."""
    score = plan.score
    if score is None or plan.engine not in ("pairwise", "triplet", "histogram", "indexed"):
        return None
    x, y = _stand_in(x), _stand_in(y)
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    if plan.engine == "indexed":
        return IndexedProblem(score, x, y, none, none)
    sides = (x, y, call.labels, call.ref_labels)
    call, score = with_copies(call, score, plan.copies)
    if isinstance(plan.spec, HistogramSpec):
        return HistogramProblem(plan.spec, score, *sides, call.itself)  # type: ignore[arg-type]
    if isinstance(plan.spec, PairSpec):
        folds = plan.folds or []
        limits = [f.pair_limits() for f in folds[: len(plan.spec.terms)]] or [NO_LIMITS for _ in plan.spec.terms]
        problem = PairProblem(plan.spec, score, *sides, call.itself, plan.rule, limits)  # type: ignore[arg-type]
        return replace(problem, bidirectional=plan.bidirectional, search=plan.search)
    assert isinstance(plan.spec, TripletSpec) and plan.folds
    return TripletProblem(plan.spec, score, *sides, call.itself, plan.rule, plan.folds[0].pair_limits())  # type: ignore[arg-type]


def _stand_in(rows: Tensor) -> Tensor:
    """A tensor of the shape and type that the operator would hand over, without its memory."""
    return torch.empty((), dtype=compute_type(rows.dtype), device=rows.device).expand(rows.shape)
