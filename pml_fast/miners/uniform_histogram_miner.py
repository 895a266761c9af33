"""Uniform histogram miner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from pml_fast.engine.even_bins import draw_evenly
from pml_fast.engine.pair_set import PairSet
from pml_fast.miners.base_miner import Mining
from pml_fast.miners.drawn_miner import DrawnMiner
from pml_fast.miners.settings import check_count


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

    _no_steps: ClassVar[tuple[str, ...]] = ("filter_by_bin", "get_bins", "get_uniformly_distributed_pairs")

    def __init__(self, num_bins: int = 100, pos_per_bin: int = 10, neg_per_bin: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = check_count("num_bins", num_bins)
        self.pos_per_bin = check_count("pos_per_bin", pos_per_bin)
        self.neg_per_bin = check_count("neg_per_bin", neg_per_bin)
        self.add_to_recordable_attributes(list_of_names=["pos_per_bin", "neg_per_bin"], is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        pairs = PairSet(*mining.rows, mining.labels, mining.ref_labels, mining.score, mining.source.itself)
        per_bin = self.pos_per_bin, self.neg_per_bin
        return draw_evenly(pairs, self.num_bins, per_bin, self.stream(embeddings.device))
