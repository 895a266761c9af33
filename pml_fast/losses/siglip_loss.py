"""Sigmoid loss of two towers, or of one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.spec import PairSpec
from pml_fast.engine.specs import SigLIP
from pml_fast.losses.two_tower import TwoTowerLoss


class SigLIPLoss(TwoTowerLoss):
    """``-log sigmoid(z (scale s + bias))`` summed over the columns of a row, ``z`` 1 for positives and -1 for negatives.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023. Called as ``loss(images, ref_emb=texts)``, with row
    ``i`` the positive of row ``i``, or with labels, for two sets or for one (self pairs excluded). The default reducer divides
    the sum by the number of rows, as the paper does.

    Args:
        scale: the factor of the similarities, or where it starts.
        bias: the summand of the logits, or where it starts.
        learn_scale: train ``logit_scale = log(scale)``.
        learn_bias: train ``logit_bias``.
    """

    logit_scale: Tensor
    logit_bias: Tensor

    def __init__(
        self, scale: float = 10.0, bias: float = -10.0, learn_scale: bool = True, learn_bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale!r}")
        self.learn_scale, self.learn_bias = learn_scale, learn_bias
        self._fixed = float(scale), float(bias)
        for name, value, learned in (("logit_scale", math.log(scale), learn_scale), ("logit_bias", float(bias), learn_bias)):
            if learned:
                setattr(self, name, torch.nn.Parameter(torch.tensor(value)))
            else:
                self.register_buffer(name, torch.tensor(value))

    def spec(self, trained: bool) -> PairSpec:
        return SigLIP(1.0, 0.0) if trained else SigLIP(*self._fixed)

    def trained(self) -> tuple[Tensor, Tensor | None] | None:
        if not (self.learn_scale or self.learn_bias):
            return None
        return self.logit_scale.exp(), self.logit_bias
