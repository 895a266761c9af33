"""NT-Xent loss."""

from __future__ import annotations

from typing import Any

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import NTXent
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps


class NTXentLoss(PairLossInSteps):
    """Normalised temperature-scaled cross entropy: one loss for every anchor-positive pair.

    ``-log(exp(s_ap/t) / (exp(s_ap/t) + sum over the anchor's negatives of exp(s_an/t)))``; the anchor's other positives
    stay out
    of the denominator. Sohn, NIPS 2016; van den Oord et al. 2018 (InfoNCE); Chen et al., "SimCLR", ICML 2020.

    Args:
        temperature: the softmax temperature ``t``, above 0.
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        NTXent(temperature)  # refuses what it cannot take, as every call does
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    def spec(self) -> NTXent:
        return NTXent(self.temperature)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
