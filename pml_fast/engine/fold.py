"""How the losses of one term become a number: the reductions that fold into a streaming kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.spec import Term

INF = float("inf")
# Stands for the class weights of a decoded fold: an operator takes each row's weight as a tensor of its own.
_TRAVELS_APART = torch.empty(0)
KINDS = ("mean", "sum", "threshold", "class_weighted", "per_anchor", "over_triplets")


@dataclass(frozen=True, eq=False)
class Fold:
    """A reduction of one term.

    ``mean``: over all losses. ``sum``. ``threshold``: mean of the losses with ``low < loss < high``. ``class_weighted``:
    mean of
    ``loss * weights[label of the anchor]``. ``per_anchor``: mean over each row's losses (0 for none), then ``inner`` over rows.
    ``over_triplets``: mean of the losses above 0 of the positive and the negative pairs together, each pair as often as there
    are triplets that hold it; both terms of a spec have this fold.
    """

    kind: str = "mean"
    low: float = -INF
    high: float = INF
    weights: Tensor | None = None
    inner: Fold | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.weights is not None) != (self.kind == "class_weighted"):
            raise ValueError(f"weights belong to kind 'class_weighted' and to no other, got kind {self.kind!r}")
        if (self.inner is not None) != (self.kind == "per_anchor"):
            raise ValueError(f"inner belongs to kind 'per_anchor' and to no other, got kind {self.kind!r}")

    # Weights compare by identity: comparing their values would wait for the device.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fold):
            return NotImplemented
        same_numbers = (self.kind, self.low, self.high) == (other.kind, other.low, other.high)
        return same_numbers and self.weights is other.weights and self.inner == other.inner

    def __hash__(self) -> int:
        return hash((self.kind, self.low, self.high, id(self.weights), self.inner))

    def encode(self) -> str:
        """The fold, without its weights, as the string an operator's schema carries."""
        inner = self.inner.encode() if self.inner is not None else ""
        return f"{self.kind};{self.low!r};{self.high!r};{inner}"

    @staticmethod
    @lru_cache(maxsize=256)
    def decode(text: str) -> Fold:
        """The inverse of :meth:`encode`."""
        kind, low, high, inner = text.split(";", 3)
        weights = _TRAVELS_APART if kind == "class_weighted" else None
        return Fold(kind, float(low), float(high), weights, Fold.decode(inner) if inner else None)

    def pair_limits(self) -> tuple[float, float]:
        """The interval a pair's own loss must lie in to be counted by the kernel."""
        if self.kind == "over_triplets":
            return 0.0, INF
        return (self.low, self.high) if self.kind == "threshold" else (-INF, INF)

    def even(self, term: Term) -> bool:
        """Whether every row of a term weighs the same: the gradient is then one factor times that of the plain sum."""
        # Of losses that are rows a threshold leaves out some.
        return self.kind in ("mean", "sum") or (self.kind == "threshold" and term.kind != "element")

    @property
    def weighs(self) -> bool:
        """Whether this fold (or its inner one) weighs classes."""
        return self.weights is not None or (self.inner is not None and self.inner.weighs)

    def row_weights(self, labels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The weight of each anchor ``[N]``, where this fold :attr:`weighs` classes."""
        if self.weights is not None:
            if labels is None:
                raise ValueError("labels must be given where losses are weighted by class, got None")
            check_classes(labels, len(self.weights))
            return self.weights.to(device=labels.device, dtype=dtype)[labels]
        return self.inner.row_weights(labels, dtype) if self.inner is not None else None


def evenly(folds: Sequence[Fold], terms: Sequence[Term]) -> bool:
    """Whether the rows of each term weigh the same, where they have no weights of their own."""
    return all(fold.even(term) for fold, term in zip(folds, terms, strict=False))


def check_classes(classes: Tensor, num_weights: int) -> None:
    """``ValueError`` unless every label has its weight."""
    outside = ((classes < 0) | (classes >= num_weights)).any()
    message = f"labels must be from 0 to {num_weights - 1}, as ClassWeightedReducer has {num_weights} weights"
    if torch.compiler.is_compiling() or classes.is_cuda:
        # Reading the answer would break the graph, or stop the queue.
        torch._assert_async(~outside, message)
    elif outside:
        raise ValueError(
            f"{message}, got labels from {int(classes.min())} to {int(classes.max())}: pass one weight for each label"
        )


def inside(losses: Tensor, low: float, high: float) -> Tensor:
    """Mask of the losses with ``low < loss < high``. An infinite bound is not tested, and a NaN is kept, and seen."""
    outside = torch.zeros_like(losses, dtype=torch.bool)
    if low != -INF:
        outside = losses <= low
    return ~(outside if high == INF else outside | (losses >= high))


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, total / count.clamp(min=1), 0.0)


def _reduce_elements(fold: Fold, values: Tensor, weights: Tensor | None, there: Tensor | None) -> tuple[Tensor, Tensor]:
    """``there`` is 1 for the rows that have a loss and 0 for the others, ``None`` where all have."""
    n: Any = max(values.shape[0], 1) if there is None else there.sum().clamp(min=1)
    if fold.kind == "threshold":
        keep = inside(values, fold.low, fold.high)
        keep = keep if there is None else keep & (there > 0)
        w = keep.to(values.dtype) / keep.sum().clamp(min=1)
        return torch.where(keep, values * w, 0.0).sum(), w
    if fold.kind == "sum":
        return values.sum(), torch.ones_like(values)
    if fold.kind == "class_weighted":
        if weights is None:
            raise ValueError("weights must be given for a class_weighted fold, got None; pass Fold(weights=...)")
        w = weights / n
        return (values * w).sum(), w
    if fold.kind == "per_anchor":
        return _reduce_elements(fold.inner or Fold(), values, weights, there)
    w = torch.full_like(values, 1.0 / n) if there is None else (1.0 / n).expand_as(values)
    return values.sum() / n, w


def _reduce_pairs(fold: Fold, sums: Tensor, counts: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if fold.kind == "per_anchor":
        total, w = _reduce_elements(fold.inner or Fold(), _ratio(sums, counts), weights, None)
        return total, _ratio(w, counts)
    if fold.kind == "sum":
        return sums.sum(), torch.ones_like(sums)
    if fold.kind == "class_weighted":
        if weights is None:
            raise ValueError("weights must be given for a class_weighted fold, got None; pass Fold(weights=...)")
        sums = sums * weights
    else:
        weights = torch.ones_like(sums)
    one = torch.ones((), dtype=sums.dtype, device=sums.device)
    scale = _ratio(one, counts.sum())
    return sums.sum() * scale, weights * scale


def reduce_rows(fold: Fold, term: Term, values: Tensor, counts: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss of one term and its derivative by each row's value.

    ``values`` and ``counts`` are ``[N]``: the losses of the rows, or for pair terms the sum and the number of each row's
    losses (those inside the fold's limits). Returns a scalar and ``[N]``.
    """
    if term.kind == "element":
        return _reduce_elements(fold, values, weights, counts if term.partial else None)
    return _reduce_pairs(fold, values, counts, weights)


def reduce_terms(
    folds: Sequence[Fold], terms: Sequence[Term], rows: Tensor, weights: Tensor | None, gate: Tensor | None,
    partners: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Losses ``[T]`` of all terms and their derivatives by the rows' values ``[T, N]``. With ``over_triplets`` the losses are
    ``[2, T]``: the second row is by how much they move where every loss that was counted moves by 1.

    ``rows`` is ``[T, 2, N]``: values and counts as :func:`reduce_rows` takes them; ``weights`` are the rows' of each term. A
    ``gate`` that is ``False`` lets nothing through. ``partners``, which ``over_triplets`` asks for, gives how many positives
    and how many negatives each row has, ``[2, N]``.
    """
    if folds[0].kind == "over_triplets":
        assert partners is not None
        return _gated(gate, *_over_triplets(rows, partners()))
    losses, derivatives = [], []
    for t, (term, fold) in enumerate(zip(terms, folds, strict=True)):
        loss, w = reduce_rows(fold, term, rows[t, 0], rows[t, 1], None if weights is None else weights[t])
        losses.append(loss)
        derivatives.append(w)
    return _gated(gate, torch.stack(losses), torch.stack(derivatives))


def _gated(gate: Tensor | None, losses: Tensor, derivatives: Tensor) -> tuple[Tensor, Tensor]:
    if gate is None:
        return losses, derivatives
    return torch.where(gate, losses, 0.0), torch.where(gate, derivatives, 0.0)


def _over_triplets(rows: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    # A positive pair is in a triplet with each negative of its anchor, and the reverse.
    w = partners.flip(0).to(rows.dtype)
    divisor = (w * rows[:, 1]).sum()
    scale = torch.where(divisor > 0, 1 / divisor.clamp(min=1), 0.0)
    # A row without triplets adds nothing, also where one of its pairs is not a number.
    total = torch.where(w > 0, w * rows[:, 0], 0.0).sum(dim=1)
    return torch.stack([total, (w * rows[:, 1]).sum(dim=1)]) * scale, w * scale
