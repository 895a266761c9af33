"""What miners return: a tuple of index tensors that need not exist.

A lazy tuple unpacks, indexes and measures like the tuple it stands for, but holds only the rule that selects the pairs. A
loss of
this package that is handed one, for the same embeddings, folds the rule into its kernel; anything else that touches it gets
ordinary index tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.hardest import hardest_pairs
from pml_fast.engine.materialise import rule_pairs, selected_triplets
from pml_fast.engine.pair_set import PairSet
from pml_fast.engine.score import Score
from pml_fast.engine.search import Search
from pml_fast.utils.index_types import PairIndices, TripletIndices


def _same_data(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    # A traced tensor has no address.
    if torch.compiler.is_compiling():
        return False
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.device == b.device
    )


@dataclass(frozen=True)
class Source:
    """The embeddings and labels a miner saw."""

    embeddings: Tensor
    labels: Tensor
    ref_emb: Tensor
    ref_labels: Tensor
    itself: bool
    version: tuple[int, ...]
    # While a graph is traced, the tensors as they were handed over: one variable is known by its identity alone. Outside of
    # tracing they would keep the embeddings' graph alive.
    traced: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, itself: bool) -> Source:
        """Remember the tensors as they are now."""
        mined = embeddings.detach(), labels, ref_emb.detach(), ref_labels
        traced = (embeddings, ref_emb) if torch.compiler.is_compiling() else None
        return Source(*mined, itself, _versions(*mined), traced)

    def is_for(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, itself: bool) -> bool:
        """Whether a loss is called on the very data that was mined, unchanged since.

        A write between mining and loss inside one compiled graph is not seen: tracing keeps no count of writes.
        """
        own_emb, own_ref = (self.embeddings, self.ref_emb) if self.traced is None else self.traced
        return (
            itself == self.itself
            and _same_data(own_emb, embeddings)
            and _same_data(self.labels, labels)
            and (itself or (_same_data(own_ref, ref_emb) and _same_data(self.ref_labels, ref_labels)))
            and self.unchanged()
        )

    def unchanged(self) -> bool:
        """Whether nothing has written into the mined embeddings or labels since."""
        return _versions(self.embeddings, self.labels, self.ref_emb, self.ref_labels) == self.version


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    # Inference tensors keep no count of writes.
    if torch.compiler.is_compiling():
        return ()
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)


class LazyIndices(Sequence[Tensor]):
    """The base: a sequence of 3 or 4 index tensors, made when first touched."""

    size: int

    def __init__(self) -> None:
        self._made: PairIndices | TripletIndices | None = None

    def _make(self) -> PairIndices | TripletIndices:
        raise NotImplementedError

    def blocks(self) -> Iterator[TripletIndices] | None:
        """Triplets by ascending anchor, a bounded number at a time; ``None`` where they are not made that way, are there
        already, or are so few that one list is quicker."""
        return None

    def materialise(self) -> PairIndices | TripletIndices:
        """The index tensors, int64."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return self.materialise()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.materialise())

    def __repr__(self) -> str:
        state = "materialised" if self._made is not None else "not materialised"
        return f"{type(self).__name__}({self.describe()}; {state})"

    def __add__(self, other: Any) -> tuple[Any, ...]:
        return tuple(self) + tuple(other)

    def __radd__(self, other: Any) -> tuple[Any, ...]:
        return tuple(other) + tuple(self)

    def __mul__(self, times: int) -> tuple[Tensor, ...]:
        return tuple(self) * times

    __rmul__ = __mul__

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy would not know whether what was mined has changed: it is the index tensors.
        made = self.materialise()
        return type(made), tuple(made)

    def describe(self) -> str:
        """The rule in words."""
        raise NotImplementedError


class RulePairs(LazyIndices):
    """All pairs whose score lies in its anchor's intervals ``rule [4, N]`` (closed: positive low, high; negative low, high).

    A rule that is made when it is first asked for is given as a function, and with the ``search`` by which a kernel finds it in
    the sweep that needs it.
    """

    size = 4

    def __init__(
        self,
        source: Source,
        rows: tuple[Tensor, Tensor],
        score: Score,
        rule: Tensor | Callable[[], Tensor],
        words: str,
        search: Search | None = None,
    ) -> None:
        super().__init__()
        self.source, self.rows, self.score, self._rule, self.words, self.search = source, rows, score, rule, words, search

    @property
    def rule(self) -> Tensor:
        """The intervals."""
        if not isinstance(self._rule, Tensor):
            require_unchanged(self.source)
            with torch.no_grad():
                self._rule = self._rule()
        return self._rule

    def _make(self) -> PairIndices:
        require_unchanged(self.source)
        return rule_pairs(self.source.labels, self.source.ref_labels, self.rows, self.score, self.rule, self.source.itself)

    def describe(self) -> str:
        return self.words


class HardestPairs(RulePairs):
    """The hardest share of all pairs: a :class:`RulePairs`, but for ties at the threshold within one anchor.

    ``cut [2, 2]`` holds, for positives and negatives, the last row that keeps pairs at the threshold, and how many of its pairs
    there are too many.
    """

    def __init__(
        self, source: Source, rows: tuple[Tensor, Tensor], score: Score, rule: Tensor, cut: Tensor, words: str
    ) -> None:
        super().__init__(source, rows, score, rule, words)
        self.cut = cut

    def is_exact(self) -> bool:
        """Whether the rule alone gives the very pairs. A graph cannot ask: there an anchor's ties stay together."""
        if torch.compiler.is_compiling() or (self.cut.is_cuda and torch.cuda.is_current_stream_capturing()):
            return True
        return not bool(self.cut[1].any())

    def _make(self) -> PairIndices:
        require_unchanged(self.source)
        pairs = PairSet(*self.rows, self.source.labels, self.source.ref_labels, self.score, self.source.itself)
        return hardest_pairs(pairs, self.rule, self.cut)


class SelectedTriplets(LazyIndices):
    """All triplets that a TripletMarginMiner's ``select`` and ``margin`` leave."""

    size = 3

    def __init__(self, source: Source, rows: tuple[Tensor, Tensor], score: Score, select: str, margin: float) -> None:
        super().__init__()
        self.source, self.rows, self.score, self.select, self.margin = source, rows, score, select, margin

    def _make(self) -> TripletIndices:
        require_unchanged(self.source)
        source = self.source
        return selected_triplets(
            source.labels, source.ref_labels, self.rows, self.score, self.select, self.margin, source.itself
        )

    def describe(self) -> str:
        return f"{self.select} triplets by a margin of {self.margin:g}"


class RowChoice(LazyIndices):
    """At most one positive and one negative an anchor: indices ``[N]`` with a mask ``keep [N]`` for each side.

    ``triplets`` gives ``(a, p, n)`` of the anchors that have both; otherwise ``(a1, p, a2, n)``.
    """

    def __init__(self, pos: Tensor, keep_pos: Tensor, neg: Tensor, keep_neg: Tensor, triplets: bool, words: str) -> None:
        super().__init__()
        self.anchor = torch.arange(pos.shape[0], device=pos.device)
        self.pos, self.keep_pos, self.neg, self.keep_neg = pos, keep_pos, neg, keep_neg
        self.triplets, self.words = triplets, words
        self.size = 3 if triplets else 4

    def _make(self) -> PairIndices | TripletIndices:
        a = self.anchor
        if self.triplets:
            keep = self.keep_pos & self.keep_neg
            return TripletIndices(a[keep], self.pos[keep], self.neg[keep])
        return PairIndices(a[self.keep_pos], self.pos[self.keep_pos], a[self.keep_neg], self.neg[self.keep_neg])

    def describe(self) -> str:
        return self.words


class Deferred(LazyIndices):
    """Index tensors that a function makes when they are touched; no loss has a kernel for the rule."""

    def __init__(self, size: int, make: Callable[[], PairIndices | TripletIndices], words: str) -> None:
        super().__init__()
        self.size, self._function, self.words = size, make, words

    def _make(self) -> PairIndices | TripletIndices:
        return self._function()

    def describe(self) -> str:
        return self.words


def require_unchanged(source: Source) -> None:
    """``RuntimeError`` where a write has reached what was mined."""
    if not source.unchanged():
        raise RuntimeError(
            "the embeddings or labels were changed in place after they were mined, so the mined indices can no longer be made; "
            "unpack the miner's result (tuple(indices)) before the change"
        )
