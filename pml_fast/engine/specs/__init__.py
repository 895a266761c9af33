"""The specs: one short file a loss family."""

from pml_fast.engine.specs.circle import Circle
from pml_fast.engine.specs.contrastive import Contrastive
from pml_fast.engine.specs.fast_ap import FastAP
from pml_fast.engine.specs.multi_similarity import MultiSimilarity
from pml_fast.engine.specs.ntxent import NTXent
from pml_fast.engine.specs.pnp import PNP
from pml_fast.engine.specs.smooth_ap import SmoothAP
from pml_fast.engine.specs.supcon import SupCon

__all__ = ["PNP", "Circle", "Contrastive", "FastAP", "MultiSimilarity", "NTXent", "SmoothAP", "SupCon"]
