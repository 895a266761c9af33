"""What an operator hands to a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.score import Score
from pml_fast.engine.search import Search
from pml_fast.engine.spec import PairSpec, TripletSpec

Limits = tuple[float, float]
NO_LIMITS: Limits = (float("-inf"), float("inf"))


class Compared:
    """What rows and columns are to each other in a problem of any kind."""

    score: Score
    itself: bool

    @property
    def shared(self) -> bool:
        """Whether ``y`` is ``x`` itself: one matrix, symmetric, whose gradient has one owner a row."""
        return self.itself and self.score.symmetric


@dataclass
class PairProblem(Compared):
    """Rows ``x [N, D]`` against columns ``y [M, D]``, already normalised where the score asks for it.

    ``itself`` means that row ``i`` and column ``i`` are one sample, whose pair is excluded: ``y`` is the same batch, or a
    larger set (a memory, a gathered batch) that begins with it. Where ``shared`` ``y`` is ``x``, and the gradient of both roles
    goes to ``x``.
    A backend that ``divides`` gets them as they are, with ``x_norm`` and ``y_norm`` ``[.., 1]`` to divide by.
    ``rule`` is ``[4, N]``, closed intervals of the score a pair must lie in (positive low, high; negative low, high).
    ``limits`` is one interval a term: only pair losses strictly inside it are summed and counted.
    ``levels`` ``[N]`` are what each row adds to the parameter that the spec names as its ``level``.
    ``bidirectional`` says that the columns, another set, are anchors as well: each has the spec's loss over the rows. The spec
    is then a :class:`pml_fast.engine.spec.SoftmaxSpec`, and there is no rule.
    ``search`` stands in the place of a rule, for a backend that ``searches``: it finds the rule as it sweeps.
    ``uniform`` says that the rows of a term will all weigh the same.
    ``beside`` is how many bytes the caller holds through the sweeps: that much less is kept from one for the next.
    """

    spec: PairSpec
    score: Score
    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    itself: bool
    rule: Tensor | None
    limits: list[Limits]
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None
    levels: Tensor | None = None
    bidirectional: bool = False
    search: Search | None = None
    uniform: bool = False
    beside: int = 0

    @property
    def forth(self) -> PairProblem:
        """The rows against the columns, alone."""
        return replace(self, bidirectional=False)

    @property
    def back(self) -> PairProblem:
        """The columns against the rows, alone."""
        return replace(
            self,
            x=self.y,
            y=self.x,
            x_labels=self.y_labels,
            y_labels=self.x_labels,
            x_norm=self.y_norm,
            y_norm=self.x_norm,
            bidirectional=False,
        )

    def spec_of(self, first: int, last: int) -> PairSpec:
        """The spec of the rows ``first .. last``."""
        if self.levels is None:
            return self.spec
        level = getattr(self.spec, self.spec.level) + self.levels[first:last]
        return replace(self.spec, **{self.spec.level: level})


@dataclass
class PairRows:
    """What a forward sweep leaves.

    ``rows`` is ``[T, 2, N]``: each term's value and count a row (``element``: the loss and 1; pair terms: sum and number of the
    losses inside the limits). ``exists`` is a bool ``[2]``: whether any positive and any negative pair was seen. ``saved`` is
    what the backward needs; ``scratch`` is an optional short cut for a backward that follows at once. ``columns`` ``[T, 2, M]``
    are as the rows, of a bidirectional problem.
    """

    rows: Tensor
    exists: Tensor
    saved: Tensor
    scratch: Any = field(default=None, repr=False)
    columns: Tensor | None = None


@dataclass
class TripletProblem(Compared):
    """As :class:`PairProblem`, for triplets. ``limits`` holds one interval; ``rule`` filters the pairs that may form
    triplets."""

    spec: TripletSpec
    score: Score
    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    itself: bool
    rule: Tensor | None
    limits: Limits
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None


@dataclass
class HistogramProblem(Compared):
    """As :class:`PairProblem`, for a loss of histograms. Of a batch against itself each pair is counted once."""

    spec: HistogramSpec
    score: Score
    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    itself: bool
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None


@dataclass
class HistogramSums:
    """What a forward sweep of a histogram leaves: ``sums`` float64 (:class:`HistogramSpec` says of what), and ``outside``, a
    bool: whether a pair lies outside of the bins. ``scratch`` is a short cut for the gradients that follow at once."""

    sums: Tensor
    outside: Tensor
    scratch: Any = field(default=None, repr=False)


@dataclass
class ExtremeProblem(Compared):
    """The largest (``largest``) or smallest score of each row over its positives or its negatives inside ``low``..``high``.

    ``low`` and ``high`` are ``[N]`` closed bounds or ``None``.
    """

    score: Score
    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    itself: bool
    positive: bool
    largest: bool
    low: Tensor | None
    high: Tensor | None
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None

    @property
    def rule(self) -> Tensor | None:
        """The bounds as a rule ``[4, N]``, or ``None`` where there are none."""
        if self.low is None and self.high is None:
            return None
        n, inf = self.x.shape[0], float("inf")
        low = self.x.new_full((n,), -inf) if self.low is None else self.low
        high = self.x.new_full((n,), inf) if self.high is None else self.high
        return torch.stack([low, high, low, high])


@dataclass
class IndexedProblem:
    """Rows ``i [K]`` of ``x`` against rows ``j [K]`` of ``y``, pair by pair; prepared rows."""

    score: Score
    x: Tensor
    y: Tensor
    i: Tensor
    j: Tensor


class Backend(Protocol):
    """What every backend offers. ``refuse`` returns ``None`` when it can run the problem, else the reason in a sentence."""

    name: str

    def available(self) -> str | None:
        """``None`` when this machine can use the backend at all, else the reason and the remedy."""
        ...

    def refuse(self, problem: Any) -> str | None: ...

    def pair_rows(self, problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
        """The forward sweep; ``need_x`` and ``need_y`` say which gradients will follow at once."""
        ...

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of ``sum(w[t] * value[t])`` (``w`` is ``[T, N]``) by ``x`` and ``y`` (``None`` for ``y`` if itself).

        The columns' values of a bidirectional problem weigh ``w_columns [T, M]``.
        """
        ...

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``rows [2, N]`` (float64 sum and count of each anchor's losses) and, where ``uniform`` (every anchor weighs 1), the
        gradients of the plain sum of all losses by ``x`` and ``y``."""
        ...

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of ``sum(w * row value)`` with ``w [N]``."""
        ...

    def histogram_sums(self, problem: HistogramProblem, keep: bool) -> HistogramSums:
        """The sums over the bins; ``keep`` says that the gradients will follow at once."""
        ...

    def histogram_grads(
        self, problem: HistogramProblem, state: HistogramSums, slopes: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of a loss whose derivatives by the sums are ``slopes`` ``[2, count]`` float64: by the parts of the positive
        and of the negative pairs, or by the parts and by the values of the triplets."""
        ...

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        """``value [N]`` and ``index [N]`` int64 (-1 and an infinity of the losing sign where a row has no candidate)."""
        ...

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Scores ``[K]`` of the listed pairs of prepared rows."""
        ...

    def listed_grads(
        self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of ``sum(grad * score)`` by ``x`` and by ``y`` (kept apart also when ``x`` is ``y``)."""
        ...

    # The nearest-neighbour engine's problems and results are in engine/knn.
    nearest: Callable[[Any], tuple[Tensor, Tensor]]
    rank_strips: Callable[[Any], Iterator[Any]]

    # The class engine; only backends that do not refuse its problem have these.
    class_scores: Callable[..., Any]
    class_grads: Callable[..., Any]


def same_labels(rows: Tensor, cols: Tensor) -> Tensor:
    """``[n, M]`` mask of equal labels."""
    return rows.unsqueeze(1) == cols.unsqueeze(0)


def comparable_mask(first: int, n: int, m: int, device: torch.device) -> Tensor:
    """``[n, M]`` mask without the self pairs of rows ``first ..``."""
    rows = torch.arange(first, first + n, device=device)
    return rows.unsqueeze(1) != torch.arange(m, device=device).unsqueeze(0)
