"""The specs: one short file a loss family."""

from pml_fast.engine.specs.circle import Circle
from pml_fast.engine.specs.contrastive import Contrastive
from pml_fast.engine.specs.fast_ap import FastAP
from pml_fast.engine.specs.intra_pair_variance import IntraPairVariance
from pml_fast.engine.specs.lifted_structure import GeneralizedLiftedStructure, LiftedStructure
from pml_fast.engine.specs.log_sum_exp import LogSumExp
from pml_fast.engine.specs.margin import Margin
from pml_fast.engine.specs.multi_similarity import MultiSimilarity
from pml_fast.engine.specs.nca import NCA
from pml_fast.engine.specs.ntxent import NTXent
from pml_fast.engine.specs.pnp import PNP
from pml_fast.engine.specs.ranked_list import RankedList
from pml_fast.engine.specs.siglip import SigLIP
from pml_fast.engine.specs.smooth_ap import SmoothAP
from pml_fast.engine.specs.supcon import SupCon
from pml_fast.engine.specs.threshold_consistent import ThresholdConsistent
from pml_fast.engine.specs.tuplet_margin import TupletMargin

__all__ = [
    "Circle",
    "Contrastive",
    "FastAP",
    "GeneralizedLiftedStructure",
    "IntraPairVariance",
    "LiftedStructure",
    "LogSumExp",
    "Margin",
    "MultiSimilarity",
    "NCA",
    "NTXent",
    "PNP",
    "RankedList",
    "SigLIP",
    "SmoothAP",
    "SupCon",
    "ThresholdConsistent",
    "TupletMargin",
]
