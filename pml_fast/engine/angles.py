"""Angles of triplets, block by block, and the lazy tuple of those above a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pml_fast.engine.grad_sum import STRIP_ELEMENTS, strips
from pml_fast.engine.lazy import LazyIndices, Source, require_unchanged
from pml_fast.engine.pair_set import PART
from pml_fast.engine.problem import comparable_mask, same_labels
from pml_fast.engine.recompute import KEPT_ELEMENTS
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.strips import strip_base
from pml_fast.utils.index_types import TripletIndices

Between = Callable[[Tensor, Tensor], Tensor]

EUCLIDEAN = Score("l2", normalize=False, inverted=False)
# torch's pairwise distance adds this to every difference.
PAIRWISE_EPS = 1e-6


@dataclass
class AngleBlock:
    """Some triplets and their angles in radians."""

    anchor: Tensor
    pos: Tensor
    neg: Tensor
    angle: Tensor


class AngularTriplets(LazyIndices):
    """All triplets whose angle exceeds ``threshold`` (radians).

    ``between`` is a distance of rows taken two by two; ``None`` is torch's pairwise distance, which needs no gathered rows.
    """

    size = 3

    def __init__(self, source: Source, between: Between | None, threshold: float) -> None:
        super().__init__()
        self.source, self.between, self.threshold = source, between, threshold

    def all_blocks(self) -> Iterator[AngleBlock]:
        """All triplets, anchor by anchor, whatever their angle."""
        source = self.source
        wide = compute_type(source.embeddings.dtype)
        x, y = source.embeddings.to(wide), source.ref_emb.to(wide)
        # Pairs of anchor and positive: their triplets take a dozen temporaries and, without a kernel, D numbers each.
        each = PART if self.between is None else x.shape[1]
        size = STRIP_ELEMENTS // max(y.shape[0] * each, 1)
        with math_precision():
            for first, last in strips(x.shape[0], y.shape[0]):
                same = same_labels(source.labels[first:last], source.ref_labels)
                pos = same & comparable_mask(first, last - first, y.shape[0], x.device) if source.itself else same
                anchor, positive = torch.nonzero(pos, as_tuple=True)
                for a, p in zip(anchor.split(max(1, size)), positive.split(max(1, size)), strict=True):
                    k, n = torch.nonzero(~same[a], as_tuple=True)
                    yield AngleBlock(a[k] + first, p[k], n, self._angles(x[a + first], y[p], y, k, n))

    def _angles(self, anchor: Tensor, pos: Tensor, y: Tensor, k: Tensor, n: Tensor) -> Tensor:
        """Angles of the pairs ``k`` with the negatives ``n``."""
        center = (anchor + pos) / 2
        if self.between is None:
            across = torch.nn.functional.pairwise_distance(anchor, pos, eps=PAIRWISE_EPS)
            height = strip_base(EUCLIDEAN, center - PAIRWISE_EPS, y)[k, n]
        else:
            across, height = self.between(anchor, pos), self.between(y[n], center[k])
        return torch.atan(across[k] / (2 * height))

    def blocks(self) -> Iterator[TripletIndices] | None:
        return None if self._made is not None or self._are_few else self._kept()

    @cached_property
    def _are_few(self) -> bool:
        # A plan and the call that follows it both ask.
        source = self.source
        if len(source.labels) * len(source.ref_labels) > KEPT_ELEMENTS:
            return False
        same = same_labels(source.labels, source.ref_labels)
        positives = same.sum(dim=1) - int(source.itself)
        return int((positives * (~same).sum(dim=1)).sum()) <= STRIP_ELEMENTS // PART

    def _kept(self) -> Iterator[TripletIndices]:
        require_unchanged(self.source)
        with torch.no_grad():
            for block in self.all_blocks():
                kept = block.angle > self.threshold
                anchor = block.anchor[kept]
                if len(anchor) > 0:
                    yield TripletIndices(anchor, block.pos[kept], block.neg[kept])

    def _make(self) -> TripletIndices:
        empty = torch.empty(0, dtype=torch.int64, device=self.source.labels.device)
        parts = [(empty, empty, empty), *self._kept()]
        return TripletIndices(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def describe(self) -> str:
        return f"triplets with an angle above {math.degrees(self.threshold):g} degrees"


class AngleStats:
    """Mean, extremes and spread of angles that come block by block, and the means on both sides of a threshold."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.count = self.above_count = 0
        self.mean = self.squares = self.above_sum = self.below_sum = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, angle: Tensor) -> None:
        """Take in a block."""
        n = len(angle)
        if n == 0:
            return
        angle = angle.double()
        above = angle > self.threshold
        block_mean = angle.mean().item()
        # Squares about the mean, merged as Chan, Golub and LeVeque do: no digits are lost where all angles are alike.
        shift = block_mean - self.mean
        self.squares += (angle - block_mean).square().sum().item() + shift**2 * self.count * n / (self.count + n)
        self.mean += shift * n / (self.count + n)
        self.count += n
        self.above_count += int(above.sum())
        self.above_sum += torch.where(above, angle, 0.0).sum().item()
        self.below_sum += torch.where(above, 0.0, angle).sum().item()
        self.low, self.high = min(self.low, angle.min().item()), max(self.high, angle.max().item())

    def named(self) -> dict[str, float]:
        """The statistics that exist, in radians; the spread of a single angle is NaN."""
        result: dict[str, float] = {}
        below_count = self.count - self.above_count
        if self.count > 0:
            result["average_angle"] = self.mean
            result["min_angle"], result["max_angle"] = self.low, self.high
            result["std_of_angle"] = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan
        if self.above_count > 0:
            result["average_angle_above_threshold"] = self.above_sum / self.above_count
        if below_count > 0:
            result["average_angle_below_threshold"] = self.below_sum / below_count
        return result
