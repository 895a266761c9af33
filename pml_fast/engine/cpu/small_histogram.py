"""Small batches: a whole step of a loss of histograms in one compiled call."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.bins import HistogramSpec
from pml_fast.engine.cpu import small
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.cpu.rows import distance_name
from pml_fast.engine.score import Score, compute_type


def applies(x: Tensor, score: Score) -> bool:
    """Whether one call is the best there is for this batch against itself."""
    return small.applies(x) and small.has_kernel(score)


def loss(
    x: Tensor, labels: Tensor, spec: HistogramSpec, score: Score, before: Tensor | None, momentum: float, need: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether a pair lies outside of the bins, the loss, the histogram to keep (of triplets), and the gradient."""
    wide, bins = compute_type(x.dtype), spec.bins
    rows, labels = x.to(wide).contiguous(), labels.contiguous()
    before = None if before is None else before.to(torch.float64).contiguous()
    # The loss, then the histogram.
    values = torch.empty(1 + (0 if before is None else bins.count), dtype=torch.float64)
    dx = torch.empty_like(rows) if need else rows.new_empty(0)
    inside = extension().small_histogram_loss(
        rows.data_ptr(), labels.data_ptr(), rows.shape[0], rows.shape[1], distance_name(score), score.normalize,
        torch.get_num_threads(), bins.low, bins.delta, bins.count, spec.triplets, 0 if before is None else before.data_ptr(),
        momentum, values.data_ptr() + values.itemsize, values.data_ptr(), dx.data_ptr() if need else 0, wide == torch.float64,
    )  # fmt: skip
    value, after = values.to(wide, copy=True).split([1, len(values) - 1])
    return torch.tensor(not inside), value[0].clone(), after.clone(), dx.to(x.dtype)
