"""Uniform histogram miner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.grad_sum import STRIP_ELEMENTS
from pml_fast.engine.materialise import masked_strips
from pml_fast.engine.settings import math_precision
from pml_fast.miners.base_miner import Mining
from pml_fast.miners.drawn_miner import DrawnMiner, uniform
from pml_fast.miners.settings import check_count
from pml_fast.utils.index_types import PairIndices


class UniformHistogramMiner(DrawnMiner):
    """Pairs whose distances are spread evenly: as many random ones of each bin of a histogram.

    The bins divide the range of the positives' and of the negatives' distances, each kind for itself. Pairs are drawn with
    replacement; an empty bin gives none. Three sweeps over the strips: the ranges, the counts, and the pairs that were drawn.

    Args:
        num_bins: bins of each kind.
        pos_per_bin: positive pairs drawn of a bin.
        neg_per_bin: negative pairs drawn of a bin.
        seed: of the miner's own random numbers (keyword only; not in PML).
        generator: a generator to draw from (keyword only; not in PML).
    """

    def __init__(self, num_bins: int = 100, pos_per_bin: int = 10, neg_per_bin: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = check_count("num_bins", num_bins)
        self.pos_per_bin = check_count("pos_per_bin", pos_per_bin)
        self.neg_per_bin = check_count("neg_per_bin", neg_per_bin)
        self.add_to_recordable_attributes(list_of_names=["pos_per_bin", "neg_per_bin"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        generator = self.stream(embeddings.device)
        with math_precision():
            sweeps = _Sweeps(mining)
            edges = _edges(sweeps, self.num_bins)
            counts = _counts(sweeps, edges)
            draws = [
                Draws.of(count, per_bin, generator)
                for count, per_bin in zip(counts, (self.pos_per_bin, self.neg_per_bin), strict=True)
            ]
            _locate(sweeps, edges, draws)
        return PairIndices(draws[0].anchor, draws[0].other, draws[1].anchor, draws[1].other)


Strip = tuple[int, Tensor, list[Tensor]]  # first row, scores, masks of positives and negatives (no NaN)


class _Sweeps:
    """The strips, to be swept several times: a single one is kept, more are computed again."""

    def __init__(self, mining: Mining) -> None:
        self.mining = mining
        n, m = mining.rows[0].shape[0], mining.rows[1].shape[0]
        self.kept = list(self._strips()) if n * m <= STRIP_ELEMENTS else None

    def _strips(self) -> Iterator[Strip]:
        mining = self.mining
        itself = mining.source.itself
        for first, _, s, *sides in masked_strips(mining.labels, mining.ref_labels, mining.rows, mining.score, itself):
            number = ~torch.isnan(s)
            yield first, s, [side & number for side in sides]

    def __iter__(self) -> Iterator[Strip]:
        return self._strips() if self.kept is None else iter(self.kept)


def _edges(sweeps: _Sweeps, num_bins: int) -> list[Tensor]:
    """``num_bins + 1`` edges from the least to the greatest score of either kind."""
    rows = sweeps.mining.rows[0]
    low = torch.full((2,), torch.inf, dtype=sweeps.mining.dtype, device=rows.device)
    high = -low
    for _, s, sides in sweeps:
        if s.numel() > 0:
            low = torch.minimum(low, torch.stack([torch.where(side, s, torch.inf).amin() for side in sides]))
            high = torch.maximum(high, torch.stack([torch.where(side, s, -torch.inf).amax() for side in sides]))
    # A kind without pairs has no range; its bins stay empty.
    low, high = (torch.where(low <= high, end, 0.0) for end in (low, high))
    return [torch.linspace(low[k], high[k], num_bins + 1, dtype=low.dtype, device=low.device) for k in range(2)]


def _bins(s: Tensor, edges: Tensor) -> Tensor:
    """The bin of each score; the last one holds both of its ends."""
    return (torch.bucketize(s, edges, right=True) - 1).clamp_(0, len(edges) - 2)


def _counts(sweeps: _Sweeps, edges: list[Tensor]) -> list[Tensor]:
    """Pairs in each bin, of either kind."""
    counts = [torch.zeros(len(edge) - 1, dtype=torch.int64, device=edge.device) for edge in edges]
    for _, s, sides in sweeps:
        for k, side in enumerate(sides):
            counts[k] += torch.bincount(_bins(s[side], edges[k]), minlength=len(counts[k]))
    return counts


@dataclass
class Draws:
    """The drawn pairs of one kind: number ``rank [K]`` of bin ``bin [K]``, row by row; then ``anchor`` and ``other``."""

    bin: Tensor
    rank: Tensor
    anchor: Tensor
    other: Tensor
    # Pairs of each bin in the strips that have been visited.
    before: Tensor

    @staticmethod
    def of(count: Tensor, per_bin: int, generator: torch.Generator) -> Draws:
        """``per_bin`` random ranks of each bin that is not empty."""
        which = torch.nonzero(count > 0).squeeze(1).repeat_interleave(per_bin)
        size = count[which]
        rank = torch.minimum((uniform(len(which), generator, count.device) * size).to(torch.int64), size - 1)
        return Draws(which, rank, torch.zeros_like(which), torch.zeros_like(which), torch.zeros_like(count))

    def locate(self, first: int, bins: Tensor) -> None:
        """Find the draws that lie in a strip with these bins ``[n, M]`` (-1: none)."""
        num_bins = len(self.before)
        # [n, bins], at most as large as the strip: its rows were chosen so.
        row_of = torch.arange(bins.shape[0], device=bins.device).unsqueeze(1).expand_as(bins)
        there = bins >= 0
        table = torch.bincount(row_of[there] * num_bins + bins[there], minlength=bins.shape[0] * num_bins)
        table = table.view(bins.shape[0], num_bins).cumsum(0)
        left = self.rank - self.before[self.bin]
        mine = torch.nonzero((left >= 0) & (left < table[-1][self.bin])).squeeze(1)
        for part in mine.split(max(1, STRIP_ELEMENTS // bins.shape[1])):
            which, rank = self.bin[part], left[part]
            row = torch.searchsorted(table.T[which].contiguous(), rank.unsqueeze(1), right=True).squeeze(1)
            rank = rank - torch.where(row > 0, table[(row - 1).clamp(min=0), which], 0)
            seen = (bins[row] == which.unsqueeze(1)).cumsum(1)
            self.anchor[part] = row + first
            self.other[part] = torch.searchsorted(seen, rank.unsqueeze(1), right=True).squeeze(1)
        self.before = self.before + table[-1]


def _locate(sweeps: _Sweeps, edges: list[Tensor], draws: list[Draws]) -> None:
    for first, s, sides in sweeps:
        for k, side in enumerate(sides):
            if s.shape[1] == 0:
                continue
            step = max(1, STRIP_ELEMENTS // max(len(edges[k]), s.shape[1]))
            bins = torch.where(side, _bins(s, edges[k]), -1)
            for start in range(0, s.shape[0], step):
                draws[k].locate(first + start, bins[start : start + step])
