"""Contrastive loss of the signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

from pml_fast.distances import SNRDistance
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.utils import common_functions as c_f


class SignalToNoiseRatioContrastiveLoss(ContrastiveLoss):
    """:class:`ContrastiveLoss` over :class:`SNRDistance`, and over no other distance.

    Yuan et al., "Signal-to-noise Ratio: A Robust Distance Metric for Deep Metric Learning", CVPR 2019.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, SNRDistance)

    def get_default_distance(self) -> SNRDistance:
        return SNRDistance()
