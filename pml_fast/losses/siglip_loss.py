"""Sigmoid loss of two towers, or of one."""

from __future__ import annotations

import math
from typing import Any

import torch

from pml_fast.engine.spec import PairSpec
from pml_fast.engine.specs import SigLIP
from pml_fast.losses.two_tower import Trained, TwoTowerLoss

_OF_LOGITS = SigLIP(1.0, 0.0)


class SigLIPLoss(TwoTowerLoss):
    """``-log sigmoid(z (scale s + bias))`` summed over the columns of a row, ``z`` 1 for positives and -1 for negatives.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. Called as ``loss(images, ref_emb=texts)``, with row
    ``i`` the positive of row ``i``, or with labels, for two sets or for one (self pairs excluded). The default reducer divides
    the sum by the number of rows, as the paper does.

    Args:
        scale: the factor of the similarities, or where it starts.
        bias: the summand of the logits, or where it starts.
        learn_scale: train ``logit_scale``, the logarithm of the factor.
        learn_bias: train ``logit_bias``.
    """

    def __init__(
        self, scale: float = 10.0, bias: float = -10.0, learn_scale: bool = True, learn_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale!r}")
        self.learn_scale, self.learn_bias = learn_scale, learn_bias
        self.scale, self.bias = float(scale), float(bias)
        if learn_scale:
            self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(scale)))
        if learn_bias:
            self.logit_bias = torch.nn.Parameter(torch.tensor(float(bias)))
        self.add_to_recordable_attributes(list_of_names=["scale", "bias"], is_stat=False)

    def spec(self, trained: bool) -> PairSpec:
        return _OF_LOGITS if trained else SigLIP(self.scale, self.bias)

    def trained(self) -> Trained | None:
        if not (self.learn_scale or self.learn_bias):
            return None
        log_scale = self.logit_scale if self.learn_scale else torch.tensor(math.log(self.scale), dtype=torch.float64)
        return Trained(log_scale, self.logit_bias if self.learn_bias else torch.tensor(self.bias, dtype=torch.float64))
