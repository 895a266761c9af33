"""The datasets that the field reports on, from disk or downloaded, under the names of pytorch-metric-learning.

Images need Pillow, Stanford's annotations of Cars196 need SciPy: ``pip install "pml-fast[datasets]"``.
"""

from __future__ import annotations

from pml_fast.datasets.base_dataset import Archive, BaseDataset
from pml_fast.datasets.cars196 import Cars196
from pml_fast.datasets.cub import CUB
from pml_fast.datasets.inaturalist2018 import INaturalist2018
from pml_fast.datasets.sop import StanfordOnlineProducts

__all__ = ["Archive", "BaseDataset", "CUB", "Cars196", "INaturalist2018", "StanfordOnlineProducts"]
