"""From a loss and what it is called with to the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.copies import AllPairs, WithoutCopies
from pml_fast.engine.fold import Fold
from pml_fast.engine.lazy import HardestPairs, LazyIndices, RowChoice, RulePairs, SelectedTriplets
from pml_fast.engine.score import Score
from pml_fast.engine.search import Search
from pml_fast.engine.spec import PairSpec, TripletSpec

if TYPE_CHECKING:
    from pml_fast.engine.cost import Cost, Size

FUSED, PARTLY, MATERIALISED = "fused", "partly fused", "materialised"


@dataclass
class Call:
    """One call of a loss: checked tensors, and whether the reference set is the batch itself."""

    embeddings: Tensor
    labels: Tensor | None
    indices: Sequence[Tensor] | None
    ref_emb: Tensor
    ref_labels: Tensor | None
    itself: bool


@dataclass
class Plan:
    """How a call runs. ``notes`` say what is fused or materialised, and why.

    ``copies``: the reference set begins with a copy of the batch, and the kernel leaves each row's own copy out.
    """

    mode: str
    engine: str
    spec: PairSpec | TripletSpec | ClassSpec | HistogramSpec | None = None
    score: Score | None = None
    folds: list[Fold] | None = None
    rule: Tensor | None = None
    notes: list[str] = field(default_factory=list)
    copies: bool = False
    # In the place of a rule, the tuple whose rule the kernel finds itself.
    searched: RulePairs | None = None
    # The columns are anchors as well, in the sweep that serves the rows; their folds follow the rows'.
    bidirectional: bool = False
    # For what no engine's own estimate covers.
    cost: Callable[[Size], Cost] | None = None
    # Of the call's sizes those the engine sees, where these are others.
    seen: Callable[[Size], Size] | None = None

    @property
    def search(self) -> Search | None:
        """What the kernel searches for, where it does."""
        if self.searched is None or self.searched.search is None:
            return None
        return replace(self.searched.search, counts_copies=self.copies)


@dataclass
class Reduction:
    """How the terms of a loss are reduced: folds, or the reason why every single loss is needed."""

    folds: list[Fold] | None
    reason: str = ""


def reduction_of(reducer: Any, names: Sequence[str]) -> Reduction:
    """Ask a reducer for the folds of the named terms."""
    if not hasattr(reducer, "fold_for"):
        return Reduction(None, f"{type(reducer).__name__} is no reducer of this package")
    folds = []
    for name in names:
        fold = reducer.fold_for(name)
        if fold is None:
            return Reduction(None, reducer.fold_refusal_for(name))
        folds.append(fold)
    return Reduction(folds)


def convert_rule(rule: Tensor, have: Score, want: Score) -> Tensor | None:
    """A miner's intervals in the score of a loss, where the one is a monotone function of the other; else ``None``.

    Between unit vectors ``d^2 = 2 - 2 s``, so a cosine's interval is a distance's, ends swapped.
    """
    if have == want:
        return rule
    if not (have.bounded and want.bounded):
        return None
    inner = rule if have.kind == "dot" else 1 - _root(rule, have.power).square() / 2
    if have.kind == "dot" and have.power != 1:
        return None
    infinite = torch.isinf(rule)
    if have.kind != "dot":
        # A bound below every distance stays beyond every inner product, however it rounds.
        inner = torch.where(rule < 0, float("inf"), inner)
        inner = torch.where(infinite, -rule, inner)[[1, 0, 3, 2]]
    else:
        inner = torch.where(infinite, rule, inner)
    if want.kind == "dot":
        return inner if want.power == 1 else None
    square = (2 - 2 * inner).clamp(min=0)
    out = square ** (want.power / 2)
    # A bound below every distance must stay below: clamping it to 0 would let duplicates in.
    out = torch.where(2 - 2 * inner < 0, torch.full_like(out, -1.0), out)
    return torch.where(torch.isinf(inner), -inner, out)[[1, 0, 3, 2]]


def _root(value: Tensor, power: float) -> Tensor:
    return value if power == 1 else value.clamp(min=0) ** (1.0 / power)


@dataclass
class Mined:
    """What a call's index tuple means to an engine: a rule, a choice of triplets, or lists."""

    rule: Tensor | None = None
    select: str = "every"
    select_margin: float = 0.0
    lists: Sequence[Tensor] | None = None
    note: str = ""
    copies: bool = False
    searched: RulePairs | None = None


def with_copies(call: Call, score: Score, copies: bool) -> tuple[Call, Score]:
    """A call and its score as an operator takes them where the reference set begins with a copy of the batch: self pairs are
    excluded as those of a batch against itself are, but rows and columns are two sets."""
    return (replace(call, itself=True), replace(score, symmetric=False)) if copies else (call, score)


def read_indices(call: Call, score: Score, triplets: bool, copies: bool = False, search: bool = False) -> Mined:
    """Fold a lazy tuple where the engine has a predicate for it, else fall back to lists of indices.

    ``copies`` says that the caller passes :attr:`Mined.copies` on to its operator (:func:`with_copies`), and ``search`` that
    its operator takes a search in the place of a rule.
    """
    indices = call.indices
    if indices is None:
        return Mined(note="all triplets" if triplets else "all pairs")
    if isinstance(indices, AllPairs | RulePairs | SelectedTriplets):
        return _fold_lazy(call, indices, score, triplets, search)
    if isinstance(indices, WithoutCopies) and copies:
        return _fold_without_copies(call, indices, score, triplets, search)
    if isinstance(indices, RowChoice):
        return Mined(lists=indices, note=f"the miner's {indices.describe()} as one row of indices an anchor, masked")
    if isinstance(indices, LazyIndices):
        return Mined(lists=indices, note=f"{indices.describe()}: the loss has no predicate for it, index tensors")
    return Mined(lists=indices, note="explicit index tensors")


def _fold_without_copies(call: Call, lazy: WithoutCopies, score: Score, triplets: bool, search: bool) -> Mined:
    mined = _fold_lazy(call, lazy.of, score, triplets, search)
    if mined.lists is not None:
        return replace(mined, lists=lazy)
    return replace(mined, copies=True, note=f"{mined.note}; each sample's own copy is left out there too")


def _fold_lazy(call: Call, lazy: AllPairs | RulePairs | SelectedTriplets, score: Score, triplets: bool, search: bool) -> Mined:
    labels, ref_labels = call.labels, call.ref_labels
    if labels is None or ref_labels is None:
        return Mined(lists=lazy, note="a lazy tuple needs the labels it was made with: index tensors")
    if not lazy.source.is_for(call.embeddings, labels, call.ref_emb, ref_labels, call.itself):
        return Mined(lists=lazy, note="the miner saw other embeddings or labels than the loss: index tensors")
    if isinstance(lazy, HardestPairs) and not lazy.is_exact():
        return Mined(lists=lazy, note="pairs of one anchor tie where the miner's share ends: index tensors")
    if isinstance(lazy, AllPairs):
        return Mined(note="all triplets, by the kernel" if triplets else "all pairs, by the kernel")
    if isinstance(lazy, RulePairs):
        note = f"the miner's rule ({lazy.describe()}) is a predicate in the kernel"
        if search and lazy.search is not None and lazy.score == score:
            return Mined(searched=lazy, note=note)
        rule = convert_rule(lazy.rule, lazy.score, score)
        if rule is None:
            return Mined(lists=lazy, note="the miner's distance is no function of the loss's: index tensors")
        return Mined(rule=rule, note=note)
    if not triplets:
        return Mined(lists=lazy, note="mined triplets count their pairs as often as they occur: index tensors")
    if lazy.score != score:
        return Mined(lists=lazy, note="the miner's distance differs from the loss's: index tensors")
    note = f"the miner's rule ({lazy.describe()}) is a range of the sorted positives in the kernel"
    return Mined(select=lazy.select, select_margin=lazy.margin, note=note)


def learnable(obj: Any, names: Sequence[str]) -> list[str]:
    """Settings that are parameters to be trained: the kernels take numbers and give no gradient by them."""
    values = ((name, getattr(obj, name, None)) for name in names)
    return [name for name, value in values if torch.is_tensor(value) and value.requires_grad]


# Methods that choose parts and hold no maths.
_HARMLESS = {"get_default_distance", "get_default_reducer", "extra_repr"}
# Entries of a module's dictionary that replace no maths: those of every module, and methods that are called in any case.
_NO_METHODS = {*vars(torch.nn.Module()), "forward", "plan", "run_plan"}


def overridden(obj: Any) -> list[str]:
    """What a user's subclass replaces of ours: its own maths is not ours to fuse."""
    mro = type(obj).__mro__
    ours = next(k for k, cls in enumerate(mro) if cls.__module__.startswith("pml_fast."))
    own = [name for cls in mro[:ours] for name in vars(cls) if not name.startswith("__")]
    # A method may be replaced in one object alone.
    own += [name for name in vars(obj) if name not in _NO_METHODS and callable(getattr(mro[ours], name, None))]
    return [name for name in own if name not in _HARMLESS and hasattr(mro[ours], name)]
