"""What a loss folds: the maths of a loss, free of any device, tile or class of the public API.

A :class:`PairSpec` is written once, against a *view* of the scores (:mod:`pml_fast.engine.views`), and so serves the dense
float64 oracle, the strips of the chunked backend and explicit lists of pairs. Compiled backends carry the same maths and its
derivative by hand (``csrc/engine/pair_specs.h``, ``engine/triton/epilogues.py``) under the same name and parameter order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pml_fast.utils.checks import check_number, check_positive

if TYPE_CHECKING:
    from pml_fast.engine.score import Score
    from pml_fast.engine.views import View


@dataclass(frozen=True)
class Term:
    """One named sub-loss. ``kind`` is PML's reduction type: ``element`` (a loss a row), ``pos_pair`` or ``neg_pair``.

    Of a ``partial`` term of elements some rows have no loss: they are not counted.
    """

    name: str
    kind: str
    partial: bool = False


class Some(NamedTuple):
    """What a formula gives for a term of which only the losses in ``there`` (a mask) exist; the others are not counted."""

    loss: Tensor
    there: Tensor


Losses: TypeAlias = "Sequence[Tensor | Some]"


@dataclass(frozen=True)
class PairSpec(ABC):
    """A loss over positive and negative pairs; the dataclass fields are its parameters, all floats, in order.

    A parameter named in ``scales`` must be finite and above 0, any other must not be NaN; else ``ValueError``.
    """

    name: ClassVar[str]
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element"),)
    # PML gives 0 for the whole batch unless a positive and a negative pair exist.
    gated: ClassVar[bool] = False
    scales: ClassVar[tuple[str, ...]] = ()
    # The parameter to which each row may add a number of its own; "" where there is none.
    level: ClassVar[str] = ""
    # Sweeps over all scores that the losses take.
    sweeps: ClassVar[int] = 1
    # Whether the formula holds where the columns are a larger set that begins with the rows (see engine/copies.py): it does
    # where no row asks for what another row has found.
    takes_copies: ClassVar[bool] = True
    # The formula reads a number on the host: one synchronisation a strip on an accelerator (one a forward of Triton's kernels,
    # none while a CUDA graph is captured).
    waits: ClassVar[bool] = False
    # How many times the memory of a usual formula this one takes for each score: its strips are as many times shorter.
    width: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            check = check_positive if field.name in self.scales else check_number
            check(field.name, getattr(self, field.name))

    @abstractmethod
    def formula(self, view: View, score: Score) -> Losses:
        """One tensor a term: ``[N]`` for ``element``; the shape of the view's side for pair terms (masked by the caller)."""

    def params(self) -> list[float]:
        """The parameters as an operator's schema carries them."""
        return [float(getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True)
class TwoSweepSpec(PairSpec):
    """A loss whose pairs need numbers of other rows than their own: a first sweep leaves them, a second one uses them."""

    sweeps: ClassVar[int] = 2
    takes_copies: ClassVar[bool] = False

    @abstractmethod
    def row_state(self, view: View, score: Score) -> Tensor:
        """What the first sweep keeps of each row of a strip, ``[S, n]``."""

    def share(self, state: Tensor) -> Tensor:
        """What the second sweep is told, ``[R, N]``, of the state ``[S, N]`` of all rows."""
        return state

    @abstractmethod
    def losses(self, view: View, score: Score, own: Tensor, every: Tensor) -> Losses:
        """As :meth:`formula`, given what is shared for the strip's ``own`` rows ``[R, n]`` and for ``every`` row ``[R, N]``."""

    def formula(self, view: View, score: Score) -> Losses:
        """Both sweeps at once, over a view of all rows."""
        shared = self.share(self.row_state(view, score))
        return self.losses(view, score, shared, shared)


class SoftmaxSums(NamedTuple):
    """What a softmax leaves of rows' logits, each ``[N]`` and of the logits' type: log-sum-exp of the positives' and of the
    negatives' logits (``-inf`` for none), sum of the positives' logits, and how many positives and negatives there are."""

    log_pos: Tensor
    log_neg: Tensor
    total_pos: Tensor
    positives: Tensor
    negatives: Tensor

    @staticmethod
    def of(view: View, scale: float) -> SoftmaxSums:
        """Those of a view's rows, whose logits are ``scale`` times the scores."""
        pos, neg = view.pos, view.neg
        logits = pos.s * scale
        count, others = (side.count().to(logits.dtype) for side in (pos, neg))
        # Both sides of a dense view are the same scores under two masks.
        rest = logits if neg.s is pos.s else neg.s * scale
        return SoftmaxSums(pos.logsumexp(logits), neg.logsumexp(rest), pos.sum(logits), count, others)

    def merged(self, more: SoftmaxSums) -> SoftmaxSums:
        """The sums over these and over further pairs of the same rows."""
        return SoftmaxSums(
            torch.logaddexp(self.log_pos, more.log_pos),
            torch.logaddexp(self.log_neg, more.log_neg),
            *(own + further for own, further in zip(self[2:], more[2:], strict=True)),
        )


@dataclass(frozen=True)
class SoftmaxSpec(PairSpec):
    """A loss a row that needs only the :class:`SoftmaxSums` of its logits ``s/t``.

    These can be summed over strips of rows for the columns too, so that columns may be anchors in the rows' own sweep.
    """

    temperature: float = 0.1

    scales: ClassVar[tuple[str, ...]] = ("temperature",)

    def scale(self, score: Score) -> float:
        """What a score is multiplied by to be a logit."""
        return score.sign / self.temperature

    @abstractmethod
    def row_losses(self, sums: SoftmaxSums) -> Losses:
        """The term's losses ``[N]``."""

    def formula(self, view: View, score: Score) -> Losses:
        return self.row_losses(SoftmaxSums.of(view, self.scale(score)))


PAIR_SPECS: dict[str, type[PairSpec]] = {}


def register_pair_spec(cls: type[PairSpec]) -> type[PairSpec]:
    """Make a spec known to the operators and to the registry-driven tests."""
    PAIR_SPECS[cls.name] = cls
    return cls


def pair_spec(name: str, params: Sequence[float]) -> PairSpec:
    """Rebuild a spec from what an operator's schema carries."""
    cls = PAIR_SPECS[name]
    if len(params) != len(fields(cls)):
        raise ValueError(f"params of spec {name!r} must have {len(fields(cls))} numbers, got {len(params)}")
    return cls(*params)


@dataclass(frozen=True)
class TripletSpec:
    """Triplets of an anchor: ``relu`` (or softplus when ``smooth``) of ``sign * (s_an - s_ap) + margin``.

    ``sign`` is the score's. ``swap`` uses the harder of the anchor-negative and positive-negative scores. ``select`` is a
    TripletMarginMiner's choice on the same scores (``every`` keeps all triplets), with that miner's ``select_margin``.
    """

    margin: float = 0.05
    smooth: bool = False
    swap: bool = False
    select: str = "every"
    select_margin: float = 0.0

    SELECTIONS: ClassVar[tuple[str, ...]] = ("every", "all", "hard", "semihard", "easy")

    def __post_init__(self) -> None:
        check_number("margin", self.margin)
        check_number("select_margin", self.select_margin)
        if self.select not in self.SELECTIONS:
            raise ValueError(f"select must be one of {self.SELECTIONS}, got {self.select!r}")
