"""Random triplets, sampled for all anchors at once on the labels' device."""

from __future__ import annotations

import torch
from torch import Tensor

from .index_types import TripletIndices


def get_random_triplet_indices(
    labels: Tensor,
    ref_labels: Tensor | None = None,
    t_per_anchor: int | None = None,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> TripletIndices:
    """`t_per_anchor` random triplets for every anchor that has a positive and a negative, in order of anchor.

    Positives and negatives are drawn uniformly with replacement; with `weights` (N, M), negatives in
    proportion to their weight, and anchors whose negatives all weigh 0 are left out. None draws as many
    triplets as the reference set holds samples of the anchor's class. A `generator` on another device than
    the labels is drawn from there.
    """
    if t_per_anchor is not None and t_per_anchor < 1:
        raise ValueError(f"t_per_anchor must be a positive int or None, got {t_per_anchor}")
    ref = labels if ref_labels is None else ref_labels
    if weights is not None and weights.shape != (len(labels), len(ref)):
        raise ValueError(
            f"weights must have shape {(len(labels), len(ref))}, one row a sample and one column a "
            f"reference, got {tuple(weights.shape)}"
        )
    return ClassIndex(labels, ref).sample(t_per_anchor, weights, generator)


class ClassIndex:
    """The reference set sorted by label, and the run of each anchor's class in it."""

    def __init__(self, labels: Tensor, ref: Tensor) -> None:
        self.labels, self.ref, self.is_self = labels, ref, ref is labels
        sorted_ref, self.order = torch.sort(ref, stable=True)
        self.start = torch.searchsorted(sorted_ref, labels.contiguous())
        self.class_size = torch.searchsorted(sorted_ref, labels.contiguous(), right=True) - self.start
        self.num_pos = self.class_size - int(self.is_self)
        self.num_neg = len(ref) - self.class_size

    def anchors(self) -> Tensor:
        """Anchors with a positive and a negative, each as often as the reference set holds samples of its class."""
        usable = (self.num_pos > 0) & (self.num_neg > 0)
        return torch.repeat_interleave(torch.where(usable, self.class_size, 0))

    def sample(self, t_per_anchor: int | None, weights: Tensor | None, generator: torch.Generator | None) -> TripletIndices:
        usable = (self.num_pos > 0) & (self.num_neg > 0)
        if weights is not None:
            weights = weights.float().masked_fill(self.labels.unsqueeze(1) == self.ref, 0)
            usable &= weights.sum(dim=1) > 0
        anchors = usable.nonzero().squeeze(1)
        if t_per_anchor is None:
            repeats = self.class_size[anchors]
        else:
            repeats = torch.full_like(anchors, t_per_anchor)
        anchor = anchors.repeat_interleave(repeats)
        pos = self.positives(anchor, generator)
        if weights is None:
            return TripletIndices(anchor, pos, self._negatives(anchor, generator))
        return TripletIndices(anchor, pos, _weighted_negatives(weights[anchors], repeats, generator))

    def positives(self, anchor: Tensor, generator: torch.Generator | None) -> Tensor:
        """A uniform positive for each anchor, never itself."""
        slot = self.start[anchor] + _random_below(self.num_pos[anchor], generator)
        if self.is_self:
            # Step over the anchor's own slot in the run of its class.
            own_slot = torch.empty_like(self.order)
            own_slot[self.order] = torch.arange(len(self.order), device=slot.device)
            slot = slot + (slot >= own_slot[anchor])
        return self.order[slot]

    def _negatives(self, anchor: Tensor, generator: torch.Generator | None) -> Tensor:
        slot = _random_below(self.num_neg[anchor], generator)
        # Step over the run of the anchor's class.
        return self.order[torch.where(slot >= self.start[anchor], slot + self.class_size[anchor], slot)]


def _random_below(limit: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform integer in [0, limit) for each limit; the bias of the remainder is below limit / 2**62."""
    device = limit.device if generator is None else generator.device
    return torch.randint(1 << 62, limit.shape, generator=generator, device=device).to(limit.device) % limit


def _weighted_negatives(weights: Tensor, repeats: Tensor, generator: torch.Generator | None) -> Tensor:
    """`repeats[i]` columns of row i of `weights`, with replacement, in proportion to their weight."""
    if len(repeats) == 0:
        return repeats
    source = weights if generator is None else weights.to(generator.device)
    most = int(repeats.max())
    drawn = torch.multinomial(source, most, replacement=True, generator=generator).to(weights.device)
    return drawn[torch.arange(most, device=drawn.device) < repeats.unsqueeze(1)]
