"""How a loss would run, as a database's EXPLAIN says how a query would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch
from torch import Tensor

from pml_fast.engine import cost, dispatch
from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.call_size import CallSize
from pml_fast.engine.candidates import Problem, candidates_for, problem_of
from pml_fast.engine.cost import Cost, Size
from pml_fast.engine.explain_wrappers import explain_each, explain_queue, explain_views
from pml_fast.engine.explanation import Candidate, Explanation, Explanations, dtype_name
from pml_fast.engine.fold import Fold, evenly
from pml_fast.engine.listed_sums import UNORDERED
from pml_fast.engine.plan import MATERIALISED, Call, Plan
from pml_fast.engine.score import compute_type
from pml_fast.engine.settings import current, float32_precision, math_precision
from pml_fast.engine.spec import PairSpec, TripletSpec
from pml_fast.engine.triplet_ops import TERM

if TYPE_CHECKING:
    from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
    from pml_fast.losses.cross_batch_memory import CrossBatchMemory
    from pml_fast.losses.multiple_losses import MultipleLosses
    from pml_fast.losses.self_supervised_loss import SelfSupervisedLoss

    One: TypeAlias = BaseMetricLossFunction | CrossBatchMemory | SelfSupervisedLoss


@overload
def explain(
    loss: One, embeddings: Tensor, labels: Tensor | None = None, miner: Any = None, *, ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None, indices_tuple: Sequence[Tensor] | None = None,
) -> Explanation: ...  # fmt: skip


@overload
def explain(
    loss: MultipleLosses, embeddings: Tensor, labels: Tensor | None = None, miner: Any = None, *,
    ref_emb: Tensor | None = None, ref_labels: Tensor | None = None, indices_tuple: Sequence[Tensor] | None = None,
) -> Explanations: ...  # fmt: skip


def explain(
    loss: One | MultipleLosses,
    embeddings: Tensor,
    labels: Tensor | None = None,
    miner: Any = None,
    *,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    indices_tuple: Sequence[Tensor] | None = None,
) -> Explanation | Explanations:
    """Say how ``loss(embeddings, labels, ...)`` would run under the settings in force, without running it.

    ``print(explain(...))`` shows the engine, the backend and why no other, operations, bytes, memory and precision, and
    what is fused or materialised and why. A miner is run, without gradients, for the rule it hands to the loss; its own
    sweeps are not counted. Class sizes are read from the labels, which waits for the device.

    Args:
        loss: a loss of this package or a subclass of one; a CrossBatchMemory as its queue is now (which stays as it is); a
            SelfSupervisedLoss, with ``ref_emb`` as the other view; or a MultipleLosses, whose losses are explained by name.
        embeddings: ``[N, D]``, floating point.
        labels: ``[N]``; ``None`` where the loss takes none, or where ``indices_tuple`` is given.
        miner: what makes the ``indices_tuple``, called as ``miner(embeddings, labels, ref_emb, ref_labels)``.
        ref_emb: ``[M, D]``; ``None`` for the batch itself.
        ref_labels: ``[M]``.
        indices_tuple: triplets or pairs, as the loss takes them.

    Raises:
        TypeError: ``loss`` is no loss of this package.
        ValueError: both ``miner`` and ``indices_tuple`` are given, or the tensors do not fit, as the loss itself would raise.
    """
    from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
    from pml_fast.losses.cross_batch_memory import CrossBatchMemory
    from pml_fast.losses.multiple_losses import MultipleLosses
    from pml_fast.losses.self_supervised_loss import SelfSupervisedLoss

    with_set = miner is not None or ref_emb is not None or ref_labels is not None
    if isinstance(loss, CrossBatchMemory):
        return explain_queue(loss, embeddings, labels, indices_tuple, given=with_set)
    if isinstance(loss, MultipleLosses):
        return explain_each(loss, embeddings, labels, indices_tuple, given=with_set)
    if isinstance(loss, SelfSupervisedLoss):
        given = any(part is not None for part in (labels, miner, indices_tuple, ref_labels))
        return explain_views(loss, embeddings, ref_emb, given)
    if not isinstance(loss, BaseMetricLossFunction):
        raise TypeError(f"loss must be a loss of pml_fast.losses or a subclass of one, got {type(loss).__name__}")
    if miner is not None:
        if indices_tuple is not None:
            raise ValueError("miner and indices_tuple were both given; pass the miner, or the indices it has made")
        with torch.no_grad():
            indices_tuple = miner(embeddings, labels, ref_emb, ref_labels)
    with torch.no_grad():
        call = loss.read_call(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        plan = loss.plan(call)
        if hasattr(loss, "columns_for"):
            from pml_fast.engine.classes.explain import ClassExplainer, WeightsExplainer

            explainer = ClassExplainer if plan.engine == "classes" else WeightsExplainer
            return explainer(loss, miner, call, plan).result()
        rows, columns = loss.distance.engine_rows(call.embeddings, call.ref_emb)
    return Explainer(loss, miner, call, plan, rows, columns).result()


class Explainer:
    """One call, its plan, and the rows the engine would see."""

    def __init__(self, loss: Any, miner: Any, call: Call, plan: Plan, x: Tensor, y: Tensor) -> None:
        self.loss, self.miner, self.call, self.plan = loss, miner, call, plan
        self.x, self.y = x, y

    def result(self) -> Explanation:
        plan, call = self.plan, self.call
        candidates, error = self._candidates()
        backend = next((c.name for c in candidates if c.status == "chosen"), None)
        size, at_most, notes = self._size()
        explanation = Explanation(
            loss=_call_of(self.loss),
            distance=_call_of(self.loss.distance),
            reducer=_call_of(self.loss.reducer),
            miner=None if self.miner is None else _call_of(self.miner),
            device=str(call.embeddings.device),
            dtype=call.embeddings.dtype,
            rows=len(call.embeddings),
            columns=len(self.columns()),
            dimension=call.embeddings.shape[1],
            itself=self.itself(),
            mode=plan.mode,
            engine=plan.engine,
            backend=backend,
            candidates=candidates,
            precision=self._precision(),
            deterministic=self._deterministic(backend),
            at_most=at_most,
            notes=(*plan.notes, *self._search_notes(backend), *self._score_notes(), *notes),
            error=error,
            against=self.against(),
        )
        if error is not None or size is None:
            return explanation
        if plan.cost is not None:
            return replace(explanation, costs=plan.cost(size))
        size = size if plan.seen is None else plan.seen(size)
        return replace(explanation, costs=self._cost(backend or "", size))

    def columns(self) -> Tensor:
        """What the rows are compared with."""
        return self.call.ref_emb

    def itself(self) -> bool:
        """Whether that is the batch itself."""
        return self.call.itself

    def against(self) -> str:
        """The columns in words."""
        return "itself" if self.call.itself else f"a reference set of {len(self.call.ref_emb)}"

    def _cost(self, backend: str, size: Size) -> Cost:
        plan, spec, score = self.plan, self.plan.spec, self.plan.score
        assert isinstance(spec, PairSpec | TripletSpec | HistogramSpec) and score is not None
        if isinstance(spec, HistogramSpec):
            small = cost.one_histogram_call(backend, size, score, self.x.device)
            return cost.estimate(plan.engine, backend, size, spec, score, small_step=small)
        folds = plan.folds or []
        weighted = any(fold.weighs for fold in folds)
        encoded = [fold.encode() for fold in folds]
        one_call = (
            plan.engine == "pairwise"
            and plan.folds is not None
            and cost.one_call(
                backend, size, spec, score, encoded, self.x.device, weighted, self.call.itself, plan.bidirectional
            )
        )
        uniform = plan.folds is not None and evenly(folds, self._terms())
        with math_precision():
            found = cost.estimate(
                plan.engine, backend, size, spec, score, uniform=uniform, small_step=one_call, bidirectional=plan.bidirectional
            )
        if plan.engine == "pairwise" and plan.folds is None:
            # Every row's loss stays differentiable: its backward sweeps for the state again.
            return replace(found, step_flops=found.step_flops + found.forward_flops, read_bytes=2 * found.read_bytes)
        return found

    # ---- which backend, and how much ----

    def _candidates(self) -> tuple[tuple[Candidate, ...], str | None]:
        problem = self._problem()
        return ((), None) if problem is None else candidates_for(problem)

    def _problem(self) -> Problem | None:
        return problem_of(self.plan, self.call, self.x, self.y)

    def _size(self) -> tuple[Size | None, bool, list[str]]:
        return CallSize(self.loss, self.call, self.plan, self.x, self.y).size()

    # ---- how exactly ----

    def _precision(self) -> str:
        dtype = self.call.embeddings.dtype
        wide = compute_type(dtype)
        setting = "" if wide == torch.float64 else f", products at precision {float32_precision()!r}"
        kept = "sums and loss" if dtype != wide else "everything"
        return f"{dtype_name(dtype)} embeddings, {kept} in {dtype_name(wide)}{setting}"

    def _deterministic(self, backend: str | None) -> bool:
        """Whether the same call gives the same bits again: an index_add on an accelerator must be told to."""
        if self.x.device.type not in UNORDERED or current().deterministic or torch.are_deterministic_algorithms_enabled():
            return True
        return self.plan.engine == "pairwise" or (self.plan.engine == "triplet" and backend == "triton")

    def _search_notes(self, backend: str | None) -> list[str]:
        if self.plan.search is None or backend is None:
            return []
        if getattr(dispatch.backend(backend), "searches", False):
            return ["its bounds are found in the same sweep"]
        return ["its bounds are found by a search before the sweep"]

    def _score_notes(self) -> list[str]:
        plan, score = self.plan, self.plan.score
        if score is None or plan.engine == "dense":
            return []
        what = {"dot": "an inner product", "l2": "a Euclidean distance", "lp": f"an L{score.p:g} distance"}[score.kind]
        raised = "" if score.power == 1 else f" to the power {score.power:g}"
        unit = " of rows that the engine divides by their norms" if score.normalize else ""
        notes = [f"{type(self.loss.distance).__name__} is {what}{raised}{unit}"]
        names = [term.name for term in self._terms()]
        names = self.loss.sub_loss_names() if len(plan.folds or []) > len(names) else names
        notes += [f"{name}: reduced by {_fold_words(fold)}" for name, fold in zip(names, plan.folds or [])]
        if plan.mode == MATERIALISED and plan.engine == "indexed":
            notes.append("scores of the pairs are listed, the matrix is not built")
        return notes

    def _terms(self) -> Sequence[Any]:
        spec = self.plan.spec
        return spec.terms if isinstance(spec, PairSpec) else (TERM,)


def _fold_words(fold: Fold) -> str:
    """A fold in words."""
    if fold.kind == "threshold":
        return f"the mean of the losses between {fold.low:g} and {fold.high:g}"
    words = {"mean": "their mean", "sum": "their sum", "class_weighted": "a mean weighted by class"}
    words["over_triplets"] = "the mean of what is above 0, each pair as often as triplets hold it"
    return words.get(fold.kind) or f"the mean of each anchor's, then {_fold_words(fold.inner or Fold())}"


def _call_of(part: Any) -> str:
    """A part as it was made: its class and its public numbers."""
    numbers = {
        k: v
        for k, v in vars(part).items()
        if not k.startswith("_") and k not in _RECORDS and isinstance(v, (bool, int, float, str))
    }
    return f"{type(part).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})"


# Attributes of every nn.Module and of the record keeping.
_RECORDS = ("embedding_reg_weight", "weight_reg_weight", "training", "collect_stats", "call_super_init", "dump_patches")
