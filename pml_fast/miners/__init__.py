"""Miners."""

from pml_fast.miners.base_miner import BaseMiner
from pml_fast.miners.batch_easy_hard_miner import BatchEasyHardMiner
from pml_fast.miners.batch_hard_miner import BatchHardMiner
from pml_fast.miners.multi_similarity_miner import MultiSimilarityMiner
from pml_fast.miners.pair_margin_miner import PairMarginMiner
from pml_fast.miners.triplet_margin_miner import TripletMarginMiner

__all__ = [
    "BaseMiner",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
]
