"""Distance-weighted miner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.engine.draws import uniform
from pml_fast.engine.grad_sum import STRIP_ELEMENTS
from pml_fast.engine.materialise import masked_strips
from pml_fast.engine.pair_set import PART
from pml_fast.engine.settings import math_precision
from pml_fast.miners.base_miner import Mining
from pml_fast.miners.drawn_miner import DrawnMiner
from pml_fast.miners.settings import check_within
from pml_fast.utils import common_functions as c_f
from pml_fast.utils.index_types import TripletIndices
from pml_fast.utils.triplet_sampling import ClassIndex

INF = float("inf")


class DistanceWeightedMiner(DrawnMiner):
    """Random triplets whose negatives are drawn against the density of distances on a sphere, so that all distances are seen.

    Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017. A negative at distance ``d = max(distance, cutoff)``
    has the log weight ``(2 - D) log d - (D - 3)/2 log(1 - d^2/4)`` in D dimensions. An anchor gets as many triplets as the
    reference set holds samples of its class; their positives are uniform. Rows are taken strip by strip, so that no weight
    outlives its strip.

    Args:
        cutoff: smaller distances weigh as this one.
        nonzero_loss_cutoff: negatives at this distance or further are never drawn.
        seed: of the miner's own random numbers (keyword only; not in PML).
        generator: a generator to draw from (keyword only; not in PML).
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.cutoff = check_within("cutoff", cutoff, 0, INF, "[)")
        self.nonzero_loss_cutoff = check_within("nonzero_loss_cutoff", nonzero_loss_cutoff, 0, INF, "(]")
        self.add_to_recordable_attributes(list_of_names=["cutoff", "nonzero_loss_cutoff"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        generator = self.stream(embeddings.device)
        classes = ClassIndex(mining.labels, mining.ref_labels)
        anchor = classes.anchors()
        pos = classes.positives(anchor, generator)
        neg = self._negatives(mining, anchor, uniform(len(anchor), generator, anchor.device), embeddings.shape[1])
        drawn = neg >= 0
        return TripletIndices(anchor[drawn], pos[drawn], neg[drawn])

    def _negatives(self, mining: Mining, anchor: Tensor, u: Tensor, dim: int) -> Tensor:
        """A negative for each of the sorted anchors by inverting its row's distribution at ``u``; -1 where nothing weighs."""
        result = torch.full_like(anchor, -1)
        with math_precision():
            for first, last, d, _, neg in masked_strips(
                mining.labels, mining.ref_labels, mining.rows, mining.score, mining.source.itself
            ):
                # Weights are float64, and take a dozen temporaries: a few rows of the strip at a time.
                step = max(1, STRIP_ELEMENTS // PART // max(d.shape[1], 1))
                for start in range(first, last, step):
                    rows = slice(start - first, start - first + step)
                    bounds = torch.tensor([start, min(last, start + step)], device=anchor.device)
                    ends = torch.searchsorted(anchor, bounds).tolist()
                    mine = slice(*ends)
                    if ends[0] == ends[1]:
                        continue
                    cumulative = self._weights(d[rows].double(), neg[rows], dim).cumsum(dim=1)
                    result[mine] = _invert(cumulative, anchor[mine] - start, u[mine])
        return result

    def _weights(self, d: Tensor, neg: Tensor, dim: int) -> Tensor:
        """Weights of a strip, each row relative to its own largest; 0 for all but negatives that may be drawn."""
        d = d.clamp(min=self.cutoff)
        log_weight = (2.0 - dim) * torch.log(d) - (dim - 3) / 2 * torch.log(1.0 - 0.25 * d.square())
        allowed = neg & (d < self.nonzero_loss_cutoff) & torch.isfinite(log_weight)
        log_weight = torch.where(allowed, log_weight, -INF)
        top = log_weight.amax(dim=1, keepdim=True)
        return torch.where(allowed, torch.exp(log_weight - top), 0.0)


def _invert(cumulative: Tensor, row: Tensor, u: Tensor) -> Tensor:
    """The first column of each ``row`` at which the row's cumulative weight exceeds the share ``u``; -1 for rows of no weight.

    ``row`` is sorted. Draws of one row lie side by side, padded to the longest, as searchsorted wants them.
    """
    count = torch.bincount(row, minlength=cumulative.shape[0])
    within = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    total = cumulative[:, -1]
    # Rounding must not carry the product to the total itself.
    value = torch.minimum(u * total[row], torch.nextafter(total, torch.zeros_like(total))[row])
    padded = torch.zeros(cumulative.shape[0], int(count.max()), dtype=value.dtype, device=value.device)
    padded[row, within] = value
    column = torch.searchsorted(cumulative, padded, right=True)[row, within]
    return torch.where(total[row] > 0, column, -1)
