"""Tuples over a reference set that begins with a copy of the batch: all pairs, or a miner's, without own copies.

A memory queue holds the batch that has just been put in, and a batch gathered from several processes begins with this one's.
Row ``i`` and column ``i`` are then one sample, which is no pair. No list is made of the others: a kernel leaves the pair out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pml_fast.engine.lazy import LazyIndices, RowChoice, RulePairs, SelectedTriplets, Source
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.index_types import PairIndices, TripletIndices, named_indices


class AllPairs(LazyIndices):
    """Every pair of a batch and a reference set."""

    size = 4

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def _make(self) -> PairIndices:
        return lmu.get_all_pairs_indices(self.source.labels, self.source.ref_labels)

    def describe(self) -> str:
        return "all pairs"


class WithoutCopies(LazyIndices):
    """What another lazy tuple holds, without the pairs of a sample and its own copy."""

    def __init__(self, of: AllPairs | RulePairs | SelectedTriplets) -> None:
        super().__init__()
        self.of, self.size = of, of.size

    def _make(self) -> PairIndices | TripletIndices:
        return drop_copies(self.of.materialise())

    def describe(self) -> str:
        return f"{self.of.describe()}, without each sample's own copy"


def drop_copies(indices: Sequence[Tensor]) -> PairIndices | TripletIndices:
    """An index tuple without the positives that are their own anchor."""
    named = named_indices(indices)
    keep = named[0] != named[1]
    if isinstance(named, TripletIndices):
        return TripletIndices(*(part[keep] for part in named))
    return PairIndices(named.anchor_pos[keep], named.pos[keep], named.anchor_neg, named.neg)


def without_copies(indices: Sequence[Tensor]) -> Sequence[Tensor]:
    """A tuple over such a set without own copies: lazy where it is lazy."""
    if isinstance(indices, AllPairs | RulePairs | SelectedTriplets):
        return WithoutCopies(indices)
    if isinstance(indices, RowChoice):
        others = indices.keep_pos & (indices.pos != torch.arange(len(indices.pos), device=indices.pos.device))
        return RowChoice(indices.pos, others, indices.neg, indices.keep_neg, indices.triplets, indices.words)
    return drop_copies(tuple(indices))
