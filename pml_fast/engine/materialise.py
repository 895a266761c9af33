"""Index tensors of mined pairs and triplets, found strip by strip."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.grad_sum import STRIP_ELEMENTS, strips
from pml_fast.engine.problem import comparable_mask, same_labels
from pml_fast.engine.score import Score, compute_type, unit_rows
from pml_fast.engine.settings import current
from pml_fast.engine.strips import powered, strip_base
from pml_fast.utils.index_types import PairIndices, TripletIndices


def prepared_rows(rows: tuple[Tensor, Tensor], score: Score) -> tuple[Tensor, Tensor]:
    wide = [x.detach().to(compute_type(x.dtype)) for x in rows]
    x, y = [unit_rows(x)[0] if score.normalize else x for x in wide]
    return x, y


def masked_strips(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, itself: bool
) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Strips: first row, last row, scores, positives, negatives."""
    x, y = prepared_rows(rows, score)
    for first, last in strips(x.shape[0], y.shape[0]):
        s = powered(score, strip_base(score, x[first:last], y))
        same = same_labels(labels[first:last], ref_labels)
        pos, neg = same, ~same
        if itself:
            other = comparable_mask(first, last - first, y.shape[0], s.device)
            pos, neg = pos & other, neg & other
        yield first, last, s, pos, neg


def rule_pairs(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, rule: Tensor, itself: bool
) -> PairIndices:
    """Pairs whose score lies in the closed intervals ``rule [4, N]`` of their anchor, row by row."""
    if current().backend == "cuda" and labels.is_cuda:
        from pml_fast.engine.cuda import pairs

        return pairs.rule_pairs(labels, ref_labels, prepared_rows(rows, score), score, rule, itself)
    empty = torch.empty(0, dtype=torch.int64, device=labels.device)
    parts: list[list[Tensor]] = [[empty], [empty], [empty], [empty]]
    for first, last, s, pos, neg in masked_strips(labels, ref_labels, rows, score, itself):
        pos_low, pos_high, neg_low, neg_high = rule[:, first:last].unsqueeze(2).unbind(0)
        for k, kept in ((0, pos & (s >= pos_low) & (s <= pos_high)), (2, neg & (s >= neg_low) & (s <= neg_high))):
            i, j = torch.nonzero(kept, as_tuple=True)
            parts[k].append(i + first)
            parts[k + 1].append(j)
    return PairIndices(*(torch.cat(part) for part in parts))


def triplet_margin(score: Score, ap: Tensor, an: Tensor) -> Tensor:
    """How much further the negative is than the positive."""
    return ap - an if score.inverted else an - ap


def is_selected(select: str, margin: float, gap: Tensor) -> Tensor:
    """The mask of a TripletMarginMiner's choice over :func:`triplet_margin`."""
    if select == "easy":
        return gap > margin
    kept = gap <= margin
    if select == "hard":
        kept &= gap <= 0
    elif select == "semihard":
        kept &= gap > 0
    return kept


def selected_triplets(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, select: str, margin: float,
    itself: bool,
) -> TripletIndices:  # fmt: skip
    """The triplets that ``select`` and ``margin`` leave, anchor by anchor."""
    empty = torch.empty(0, dtype=torch.int64, device=labels.device)
    parts: list[list[Tensor]] = [[empty], [empty], [empty]]
    for first, _, s, pos, neg in masked_strips(labels, ref_labels, rows, score, itself):
        anchor, positive = torch.nonzero(pos, as_tuple=True)
        step = max(1, STRIP_ELEMENTS // max(s.shape[1], 1))
        for a, p in zip(anchor.split(step), positive.split(step), strict=True):
            gap = triplet_margin(score, s[a, p].unsqueeze(1), s[a])
            k, n = torch.nonzero(is_selected(select, margin, gap) & neg[a], as_tuple=True)
            for part, index in zip(parts, (a[k] + first, p[k], n), strict=True):
                part.append(index)
    return TripletIndices(*(torch.cat(part) for part in parts))


def mean_scores(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, itself: bool
) -> tuple[float, float]:
    """Mean score of all positive and of all negative pairs (0 where there is none)."""
    sums, counts = [0.0, 0.0], [0, 0]
    for _, _, s, *sides in masked_strips(labels, ref_labels, rows, score, itself):
        for k, mask in enumerate(sides):
            sums[k] += float(s[mask].sum(dtype=torch.float64))
            counts[k] += int(mask.sum())
    pos, neg = (total / max(count, 1) for total, count in zip(sums, counts, strict=True))
    return pos, neg


def mean_triplet_scores(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, itself: bool
) -> tuple[float, float]:
    """Mean anchor-positive and anchor-negative score over all triplets (NaN where there is none)."""
    pos_sum = neg_sum = count = 0.0
    for _, _, s, pos, neg in masked_strips(labels, ref_labels, rows, score, itself):
        n_pos, n_neg = pos.sum(dim=1).double(), neg.sum(dim=1).double()
        # Each pair stands in as many triplets as its anchor has partners of the other kind.
        pos_sum += float((torch.where(pos, s, 0.0).sum(dim=1).double() * n_neg).sum())
        neg_sum += float((torch.where(neg, s, 0.0).sum(dim=1).double() * n_pos).sum())
        count += float((n_pos * n_neg).sum())
    if count == 0:
        return float("nan"), float("nan")
    return pos_sum / count, neg_sum / count
