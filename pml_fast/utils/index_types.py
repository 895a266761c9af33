"""Names for the index tuples that miners return and losses accept; plain tuples do as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor


class PairIndices(NamedTuple):
    """Positive pairs `(anchor_pos, pos)` and negative pairs `(anchor_neg, neg)`.

    Shapes: `anchor_pos` and `pos` (num_positive_pairs,), `anchor_neg` and `neg` (num_negative_pairs,), all
    int64. Anchors index the batch; `pos` and `neg` index the reference set, which is the batch itself by
    default.
    """

    anchor_pos: Tensor
    pos: Tensor
    anchor_neg: Tensor
    neg: Tensor


class TripletIndices(NamedTuple):
    """Triplets `(anchor[i], pos[i], neg[i])`: three int64 tensors of shape (num_triplets,).

    Anchors index the batch; `pos` and `neg` index the reference set, which is the batch itself by default.
    """

    anchor: Tensor
    pos: Tensor
    neg: Tensor


# What a user may hand over: a named or a plain tuple, or anything that unpacks like one (a lazy miner
# output).
IndicesTuple: TypeAlias = PairIndices | TripletIndices | Sequence[Tensor]


def named_indices(parts: Sequence[Tensor]) -> PairIndices | TripletIndices:
    """Give a sequence of three or four index tensors its name; ValueError for any other length."""
    if len(parts) == 3:
        return TripletIndices(*parts)
    if len(parts) == 4:
        return PairIndices(*parts)
    raise ValueError(
        f"indices_tuple must hold 3 tensors (anchors, positives, negatives) or 4 (anchors, positives, "
        f"anchors, negatives), got {len(parts)}: "
        "pass what a miner returned, or build PairIndices or TripletIndices"
    )
