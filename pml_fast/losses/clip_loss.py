"""Contrastive loss of two towers."""

from __future__ import annotations

import math
from typing import Any

import torch

from pml_fast.engine.plan import Call
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.specs import SupCon
from pml_fast.losses.two_tower import Trained, TwoTowerLoss

_OF_LOGITS = SupCon(1.0)


class CLIPLoss(TwoTowerLoss):
    """InfoNCE between two sets, in both directions: cross-entropy of ``s/t``, row ``i`` against row ``i`` of the other.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; van den Oord et al.,
    "Representation Learning with Contrastive Predictive Coding", 2018. Called as ``loss(images, ref_emb=texts)``. With labels
    every row of the other set with the same label is a positive, and the loss is the mean over them, as in :class:`SupConLoss`.
    A batch without a positive or without a negative pair has a loss of 0.

    Args:
        temperature: the softmax temperature ``t``, or where it starts.
        learn_temperature: train ``logit_scale = log(1 / t)``.
        max_scale: the largest ``1 / t`` that training may reach; beyond it the scale is held, without a gradient.
        symmetric: average the losses of both directions; otherwise only that of ``embeddings`` against ``ref_emb``.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        max_scale: float = 100.0,
        symmetric: bool = True,
        **kwargs: Any,
    ) -> None:
        # The bases ask for the names of the sub-losses.
        self.symmetric = symmetric
        super().__init__(**kwargs)
        self.symmetric = symmetric
        for name, value in (("temperature", temperature), ("max_scale", max_scale)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        self.learn_temperature = learn_temperature
        self.max_scale = max_scale
        self._fixed = temperature
        if learn_temperature:
            self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    @property
    def temperature(self) -> float:
        """The temperature as it is now."""
        if not self.learn_temperature:
            return self._fixed
        return max(math.exp(-self.logit_scale.item()), 1 / self.max_scale)

    def _sub_loss_names(self) -> list[str]:
        return ["loss", "reverse_loss"] if self.symmetric else ["loss"]

    def sides(self, call: Call) -> list[tuple[str, Call, float]]:
        if not self.symmetric:
            return [("loss", call, 1.0)]
        back = Call(call.ref_emb, call.ref_labels, None, call.embeddings, call.labels, call.itself)
        return [("loss", call, 0.5), ("reverse_loss", back, 0.5)]

    def spec(self, trained: bool) -> PairSpec:
        return _OF_LOGITS if trained else SupCon(self._fixed)

    def trained(self) -> Trained | None:
        return Trained(self.logit_scale, max_scale=self.max_scale) if self.learn_temperature else None
