"""Miners."""

from pml_fast.miners.angular_miner import AngularMiner
from pml_fast.miners.base_miner import BaseMiner
from pml_fast.miners.batch_easy_hard_miner import BatchEasyHardMiner
from pml_fast.miners.batch_hard_miner import BatchHardMiner
from pml_fast.miners.distance_weighted_miner import DistanceWeightedMiner
from pml_fast.miners.embeddings_already_packaged_as_triplets import EmbeddingsAlreadyPackagedAsTriplets
from pml_fast.miners.hdc_miner import HDCMiner
from pml_fast.miners.label_comparison_miner import LabelComparisonMiner
from pml_fast.miners.multi_similarity_miner import MultiSimilarityMiner
from pml_fast.miners.pair_margin_miner import PairMarginMiner
from pml_fast.miners.triplet_margin_miner import TripletMarginMiner
from pml_fast.miners.uniform_histogram_miner import UniformHistogramMiner

__all__ = [
    "AngularMiner",
    "BaseMiner",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",
    "HDCMiner",
    "LabelComparisonMiner",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
    "UniformHistogramMiner",
]
