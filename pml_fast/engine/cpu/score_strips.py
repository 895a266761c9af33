"""What :mod:`pml_fast.engine.hardest` and :mod:`pml_fast.engine.even_bins` fold out of a strip of scores, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.pair_set import PairSet, ScoreStrip
from pml_fast.engine.settings import current

if TYPE_CHECKING:
    from pml_fast.engine.even_bins import Draws


def applies(pairs: PairSet) -> bool:
    """Whether the compiled folds run on these pairs."""
    return pairs.x.device.type == "cpu" and current().backend in ("auto", "cpu") and _extension.load() is not None


class CompiledFolds:
    """One call a strip; labels are int64."""

    def __init__(self, pairs: PairSet) -> None:
        self.pairs, self.extension = pairs, extension()
        # Read through their addresses.
        self.labels, self.ref_labels = pairs.labels.contiguous(), pairs.ref_labels.contiguous()
        self.scores = torch.empty(0)

    def _strip(self, strip: ScoreStrip) -> Any:
        self.scores = strip.scores.contiguous()
        return self.extension.ScoreStrip(
            self.scores.data_ptr(), self.labels.data_ptr(), self.ref_labels.data_ptr(), *self.scores.shape, strip.first,
            strip.column, self.pairs.itself, self.pairs.mirrored, self.scores.dtype == torch.float64, torch.get_num_threads(),
        )  # fmt: skip

    def count_digits(self, strip: ScoreStrip, shift: int, prefix: Tensor | None, counts: Tensor, total: Tensor) -> None:
        """As :meth:`pml_fast.engine.hardest.TorchFolds.count_digits`."""
        self.extension.count_digits(
            self._strip(strip), self.pairs.score.sign, shift, 0 if prefix is None else prefix.data_ptr(), counts.data_ptr(),
            total.data_ptr(),
        )  # fmt: skip

    def find_neighbours(self, strip: ScoreStrip, key: Tensor, ties: Tensor, below: Tensor, above: Tensor) -> None:
        """As :meth:`pml_fast.engine.hardest.TorchFolds.find_neighbours`."""
        self.extension.find_neighbours(
            self._strip(strip), self.pairs.score.sign, key.data_ptr(), ties.shape[1], ties.data_ptr(), below.data_ptr(),
            above.data_ptr(),
        )  # fmt: skip

    def widen_range(self, strip: ScoreStrip, low: Tensor, high: Tensor) -> None:
        """As :meth:`pml_fast.engine.even_bins.TorchFolds.widen_range`."""
        self.extension.widen_range(self._strip(strip), low.data_ptr(), high.data_ptr())

    def count_bins(self, strip: ScoreStrip, edges: Tensor, counts: Tensor) -> None:
        """As :meth:`pml_fast.engine.even_bins.TorchFolds.count_bins`."""
        self.extension.count_bins(self._strip(strip), edges.data_ptr(), counts.shape[1], counts.data_ptr())

    def locate(self, strip: ScoreStrip, edges: Tensor, draws: list[Draws]) -> None:
        """As :meth:`pml_fast.engine.even_bins.TorchFolds.locate`."""
        parts = [
            [part.data_ptr() for part in (own.start, own.rank, own.anchor, own.other, own.seen, own.next)] for own in draws
        ]
        self.extension.locate_pairs(self._strip(strip), edges.data_ptr(), edges.shape[1] - 1, *parts)
