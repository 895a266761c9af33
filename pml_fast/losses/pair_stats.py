"""Statistics of all pairs of a call, strip by strip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.grad_sum import STRIP_ELEMENTS, strips
from pml_fast.engine.plan import Call
from pml_fast.engine.problem import comparable_mask, same_labels
from pml_fast.utils import loss_and_miner_utils as lmu


def mean_of_pairs(
    function: Callable[[Tensor], Tensor], distance: Any, call: Call, indices: Sequence[Tensor] | None
) -> tuple[float, float]:
    """Mean of ``function(score)`` over the positive and over the negative pairs of a call, NaN where there is none."""
    x, y = call.embeddings.detach(), call.ref_emb.detach()
    sums, counts = [0.0, 0.0], [0, 0]
    with torch.no_grad():
        for side, values in _pairs(distance, call, x, y, indices):
            sums[side] += float(function(values).sum(dtype=torch.float64))
            counts[side] += len(values)
    pos, neg = (total / count if count else float("nan") for total, count in zip(sums, counts, strict=True))
    return pos, neg


def _pairs(distance: Any, call: Call, x: Tensor, y: Tensor, indices: Sequence[Tensor] | None) -> Any:
    """Scores of the pairs in parts, each with 0 for positives or 1 for negatives."""
    if indices is not None:
        a1, p, a2, n = lmu.convert_to_pairs(indices, call.labels, call.ref_labels)  # type: ignore[arg-type]
        step = max(1, STRIP_ELEMENTS // max(x.shape[1], 1))
        for side, (i, j) in enumerate(((a1, p), (a2, n))):
            for a, b in zip(i.split(step), j.split(step), strict=True):
                rows, columns = distance.maybe_normalize(x[a]), distance.maybe_normalize(y[b])
                yield side, distance.pairwise_distance(rows, columns)
        return
    assert call.labels is not None and call.ref_labels is not None
    for first, last in strips(len(x), len(y)):
        scores = distance(x[first:last], y)
        same = same_labels(call.labels[first:last], call.ref_labels)
        pos = same & comparable_mask(first, last - first, len(y), x.device) if call.itself else same
        yield 0, scores[pos]
        yield 1, scores[~same]
