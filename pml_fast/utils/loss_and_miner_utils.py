"""Index tuples: which pairs or triplets a batch holds, and conversions between the two.

Anchors index the batch, positives and negatives the reference set. A reference set whose labels are the *same
object* as the batch's labels (or None) is the batch itself, and then a sample is never its own positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import common_functions as c_f
from .index_types import IndicesTuple, PairIndices, TripletIndices, named_indices
from .triplet_sampling import get_random_triplet_indices

__all__ = [
    "convert_to_pairs",
    "convert_to_pos_pairs_with_unique_labels",
    "convert_to_triplets",
    "convert_to_weights",
    "get_all_pairs_indices",
    "get_all_triplets_indices",
    "get_all_triplets_indices_loop_method",
    "get_all_triplets_indices_vectorized_method",
    "get_anchors",
    "get_compared_pairs_indices",
    "get_matches_and_diffs",
    "get_random_triplet_indices",
    "limit_tuples",
    "logsumexp",
    "matched_size_indices",
    "meshgrid_from_sizes",
    "neg_pairs_from_tuple",
    "not_self_comparisons",
    "pos_pairs_from_tuple",
    "remove_self_comparisons",
    "repeat_to_match_size",
]

# Label comparisons held at once while pairs are listed, and triplets written at once while pairs are joined.
COMPARISON_BLOCK = 1 << 26
JOIN_BLOCK = 1 << 24


def logsumexp(x: Tensor, keep_mask: Tensor | None = None, add_one: bool = True, dim: int = 1) -> Tensor:
    """log of the sum of exp(x) along `dim` of a 2D tensor, kept as a dimension of size 1.

    `keep_mask` (bool, as `x`) selects the terms; where it selects none the result is 0. `add_one` adds
    exp(0).
    """
    if keep_mask is not None:
        x = x.masked_fill(~keep_mask, c_f.neg_inf(x.dtype))
    if add_one:
        x = torch.cat([x, torch.zeros_like(x[:, :1] if dim == 1 else x[:1])], dim=dim)
    output = torch.logsumexp(x, dim=dim, keepdim=True)
    if keep_mask is None:
        return output
    return output.masked_fill(~keep_mask.any(dim=dim, keepdim=True), 0)


def meshgrid_from_sizes(x: Tensor, y: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Row and column numbers, each (x.size(dim), y.size(dim)), of the comparison matrix of `x` and `y`."""
    rows, cols = torch.meshgrid(c_f.torch_arange_from_size(x, dim), c_f.torch_arange_from_size(y, dim), indexing="ij")
    return rows, cols


def get_matches_and_diffs(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Two uint8 matrices (N, M): 1 where labels match (self pairs excluded), and 1 where they differ."""
    ref = labels if ref_labels is None else ref_labels
    same = labels.unsqueeze(1) == ref.unsqueeze(0)
    diffs = (~same).byte()
    if ref is labels:
        same.fill_diagonal_(False)
    return same.byte(), diffs


def get_all_pairs_indices(labels: Tensor, ref_labels: Tensor | None = None) -> PairIndices:
    """Every positive and every negative pair, in order of anchor, then of the other."""
    return get_compared_pairs_indices(labels, ref_labels, torch.eq)


def get_compared_pairs_indices(
    labels: Tensor,
    ref_labels: Tensor | None,
    positive: Callable[[Tensor, Tensor], Tensor],
    negative: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> PairIndices:
    """Every positive and every negative pair by functions of labels `[n, 1, ...]` and `[1, m, ...]`; without `negative` what is
    no positive is one. Self pairs are neither.

    Rows of the comparison are taken in blocks, so that no matrix exceeds what `nonzero` can index. `TypeError` or `ValueError`
    for an answer that is not bool or not `[n, m]`.
    """
    ref = labels if ref_labels is None else ref_labels
    rows = max(1, COMPARISON_BLOCK // max(1, ref.numel()))
    empty = torch.empty(0, dtype=torch.long, device=labels.device)
    pairs: tuple[list[Tensor], ...] = ([empty], [empty], [empty], [empty])
    for start in range(0, len(labels), rows):
        block = labels[start : start + rows].unsqueeze(1), ref.unsqueeze(0)
        same = _compared("positive", positive, *block)
        differ = ~same if negative is None else _compared("negative", negative, *block)
        if ref is labels:
            # Not in place: what a function gives may be its own.
            others = torch.arange(start, start + len(same), device=ref.device).unsqueeze(1) != c_f.torch_arange_from_size(ref)
            same, differ = same & others, differ & others
        for (anchors, others_of), mask in ((pairs[:2], same), (pairs[2:], differ)):
            row, col = torch.where(mask)
            anchors.append(row + start)
            others_of.append(col)
    return PairIndices(*(torch.cat(part) for part in pairs))


def _compared(name: str, comparison: Callable[[Tensor, Tensor], Tensor], labels: Tensor, ref_labels: Tensor) -> Tensor:
    answer = comparison(labels, ref_labels)
    shape = (labels.shape[0], ref_labels.shape[1])
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool:
        kind = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
        raise TypeError(f"{name} must give a bool tensor, got {kind}")
    if answer.shape != shape:
        raise ValueError(f"{name} must give an answer for each pair, shape {shape}, got {tuple(answer.shape)}")
    return answer


def convert_to_pairs(indices_tuple: IndicesTuple | None, labels: Tensor, ref_labels: Tensor | None = None) -> IndicesTuple:
    """Pairs of whatever was given: all pairs for None, pairs as they are, each triplet split into two."""
    if indices_tuple is None:
        return get_all_pairs_indices(labels, ref_labels)
    if len(indices_tuple) == 4:
        return indices_tuple
    anchor, pos, neg = tuple(named_indices(indices_tuple))
    return PairIndices(anchor, pos, anchor, neg)


def convert_to_pos_pairs_with_unique_labels(indices_tuple: IndicesTuple | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first positive pair of each anchor label, in order of label."""
    anchor, pos = convert_to_pairs(indices_tuple, labels)[:2]
    sorted_labels, order = torch.sort(labels[anchor], stable=True)
    is_first = torch.ones_like(sorted_labels, dtype=torch.bool)
    is_first[1:] = sorted_labels[1:] != sorted_labels[:-1]
    first = order[is_first]
    return anchor[first], pos[first]


def pos_pairs_from_tuple(indices_tuple: IndicesTuple) -> Sequence[Tensor]:
    """Anchors and positives."""
    return indices_tuple[:2]


def neg_pairs_from_tuple(indices_tuple: IndicesTuple) -> Sequence[Tensor]:
    """Anchors and negatives of a tuple of pairs."""
    return indices_tuple[2:]


def get_anchors(indices_tuple: IndicesTuple) -> Tensor:
    """Every anchor named: those of the triplets, or of positive pairs and then of negative pairs."""
    named = named_indices(indices_tuple)
    if isinstance(named, TripletIndices):
        return named.anchor
    return torch.cat([named.anchor_pos, named.anchor_neg], dim=0)


def get_all_triplets_indices(labels: Tensor, ref_labels: Tensor | None = None) -> TripletIndices:
    """Every triplet, int64, in order of anchor, positive, negative; exact for any number of them."""
    return _join_by_anchor(*get_all_pairs_indices(labels, ref_labels))


def get_all_triplets_indices_vectorized_method(all_matches: Tensor, all_diffs: Tensor) -> TripletIndices:
    """Every triplet of the two matrices of `get_matches_and_diffs`."""
    return _join_by_anchor(*torch.where(all_matches), *torch.where(all_diffs))


def get_all_triplets_indices_loop_method(labels: Tensor, all_matches: Tensor, all_diffs: Tensor) -> TripletIndices:
    """The same as `get_all_triplets_indices_vectorized_method`; `labels` is not needed."""
    return get_all_triplets_indices_vectorized_method(all_matches, all_diffs)


def _join_by_anchor(anchor_pos: Tensor, pos: Tensor, anchor_neg: Tensor, neg: Tensor) -> TripletIndices:
    """Each positive pair with each negative pair of the same anchor, in the order of the pairs.

    O(P log Q + triplets) for P positive and Q negative pairs, written in blocks: beside the result no
    temporary is larger than a block.
    """
    anchor_pos = anchor_pos.long().contiguous()
    sorted_anchor, order = torch.sort(anchor_neg.long(), stable=True)
    neg = neg[order]
    first = torch.searchsorted(sorted_anchor, anchor_pos)
    count = torch.searchsorted(sorted_anchor, anchor_pos, right=True) - first
    ends = count.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    result = TripletIndices(*(pos.new_empty(total, dtype=torch.long) for _ in range(3)))
    start_pair = written = 0
    while written < total:
        # At least one positive pair a block, however many negatives it has.
        end_pair = max(start_pair + 1, int(torch.searchsorted(ends, written + JOIN_BLOCK, right=True)))
        block = slice(start_pair, end_pair)
        end = int(ends[end_pair - 1])
        pair = torch.repeat_interleave(count[block]) + start_pair
        # The k-th triplet of the whole list is number k - (triplets before its pair) among those of its pair.
        within = torch.arange(written, end, device=pair.device) - (ends - count)[pair]
        for target, values in zip(result, (anchor_pos[pair], pos[pair], neg[first[pair] + within])):
            target[written:end] = values
        start_pair, written = end_pair, end
    return result


def convert_to_triplets(
    indices_tuple: IndicesTuple | None,
    labels: Tensor,
    ref_labels: Tensor | None = None,
    t_per_anchor: int | str = 100,
    generator: torch.Generator | None = None,
) -> IndicesTuple:
    """Triplets of whatever was given: pairs are joined by anchor, triplets returned as they are.

    For None: every triplet if `t_per_anchor` is "all", else that many random ones an anchor, from
    `generator`.
    """
    if indices_tuple is None:
        if isinstance(t_per_anchor, int):
            return get_random_triplet_indices(labels, ref_labels, t_per_anchor=t_per_anchor, generator=generator)
        if t_per_anchor == "all":
            return get_all_triplets_indices(labels, ref_labels)
        raise ValueError(f't_per_anchor must be a positive int or "all", got {t_per_anchor!r}')
    if len(indices_tuple) == 3:
        return indices_tuple
    return _join_by_anchor(*named_indices(indices_tuple))


def limit_tuples(
    indices_tuple: IndicesTuple, tuples_per_anchor: int, generator: torch.Generator | None = None
) -> PairIndices | TripletIndices:
    """At most `tuples_per_anchor` random triplets an anchor, or as many positive and as many negative pairs.

    Drawn without replacement, each tuple of an anchor alike likely, from `generator` (on any device); what is kept
    stays in its order. O(tuples) memory; a lazy tuple is made. ValueError for a number below 1.
    """
    if isinstance(tuples_per_anchor, bool) or not isinstance(tuples_per_anchor, int):
        raise TypeError(f"tuples_per_anchor must be a positive int, got {tuples_per_anchor!r}")
    if tuples_per_anchor < 1:
        raise ValueError(f"tuples_per_anchor must be a positive int, got {tuples_per_anchor}")
    named = named_indices(tuple(indices_tuple))
    if isinstance(named, TripletIndices):
        kept = _drawn_per_anchor(named.anchor, tuples_per_anchor, generator)
        return TripletIndices(*(x[kept] for x in named))
    pos = _drawn_per_anchor(named.anchor_pos, tuples_per_anchor, generator)
    neg = _drawn_per_anchor(named.anchor_neg, tuples_per_anchor, generator)
    return PairIndices(named.anchor_pos[pos], named.pos[pos], named.anchor_neg[neg], named.neg[neg])


def _drawn_per_anchor(anchor: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """Positions, ascending, of at most `most` random members of each anchor."""
    device = anchor.device if generator is None else generator.device
    shuffled = torch.randperm(len(anchor), generator=generator, device=device).to(anchor.device)
    order = shuffled[torch.argsort(anchor[shuffled], stable=True)]
    run = anchor[order]
    rank = torch.arange(len(run), device=run.device) - torch.searchsorted(run, run)
    return torch.sort(order[rank < most]).values


def convert_to_weights(
    indices_tuple: IndicesTuple | None, labels: Tensor, dtype: torch.dtype, using_ref: bool = False
) -> Tensor:
    """How often each sample of the batch is named, as a share of the most named one; shape (N,).

    All ones where there is no tuple or it is empty. With `using_ref` only the anchors are counted, as the
    others index another set. Under autocast the result is float32 rather than `dtype`.
    """
    counts = torch.zeros(labels.shape[0], dtype=torch.long, device=labels.device)
    if indices_tuple is None or all(len(x) == 0 for x in indices_tuple):
        return c_f.to_dtype(counts.float() + 1, dtype=dtype)
    indices = get_anchors(indices_tuple) if using_ref else torch.cat(list(indices_tuple), dim=0)
    indices = indices.to(labels.device)
    counts = counts.index_add(0, indices, torch.ones_like(indices))
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return c_f.to_dtype(counts.to(exact) / counts.max(), dtype=dtype)


def remove_self_comparisons(
    indices_tuple: IndicesTuple, curr_batch_idx: Tensor, ref_size: int, ref_is_subset: bool = False
) -> PairIndices | TripletIndices:
    """Drop the positives that are their own anchor in a queue of `ref_size` rows.

    `curr_batch_idx` (N,) says at which row of the queue each sample of the batch was put, in consecutive rows
    that wrap around at the end.
    """
    named = named_indices(indices_tuple)
    if len(curr_batch_idx) == 0:
        return named
    s, e = curr_batch_idx[0], curr_batch_idx[-1]
    keep = not_self_comparisons(named[0], named[1], s, e, curr_batch_idx, ref_size, ref_is_subset)
    if isinstance(named, TripletIndices):
        return TripletIndices(*(x[keep] for x in named))
    return PairIndices(named.anchor_pos[keep], named.pos[keep], named.anchor_neg, named.neg)


def not_self_comparisons(
    a: Tensor,
    p: Tensor,
    s: Tensor | int,
    e: Tensor | int,
    curr_batch_idx: Tensor,
    ref_size: int,
    ref_is_subset: bool = False,
) -> Tensor:
    """Which pairs join two different samples, the batch being rows `s` to `e` of a queue of `ref_size` rows.

    `a` indexes the batch and `p` the queue; with `ref_is_subset` it is the other way round.
    """
    in_batch, in_queue = (p, a) if ref_is_subset else (a, p)
    # Rows are consecutive and wrap, so the queue row of batch member i is s + i.
    return ((in_batch + s) % ref_size != in_queue) | (in_batch >= len(curr_batch_idx))


def repeat_to_match_size(smaller_set: Tensor, larger_size: int, smaller_size: int) -> Tensor:
    """`smaller_set`, of `smaller_size` members, repeated in order up to `larger_size` members."""
    if smaller_size == 0 and larger_size > 0:
        raise ValueError(f"an empty set cannot be repeated to {larger_size} members: pass at least one pair of each kind")
    return smaller_set.repeat(math.ceil(larger_size / max(1, smaller_size)))[:larger_size]


def matched_size_indices(curr_p_idx: Tensor, curr_n_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Both index tensors at the length of the longer one, the shorter repeated."""
    size = max(len(curr_p_idx), len(curr_n_idx))
    return (
        repeat_to_match_size(curr_p_idx, size, len(curr_p_idx)),
        repeat_to_match_size(curr_n_idx, size, len(curr_n_idx)),
    )
