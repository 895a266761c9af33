"""Supervised contrastive loss."""

from __future__ import annotations

from typing import Any, ClassVar

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import SupCon
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer


class SupConLoss(PairLossInSteps):
    """Mean over an anchor's positives of ``-log(exp(s_ap/t) / sum over all others of exp(s_aj/t))``, one loss an anchor.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (L_out).

    Args:
        temperature: the softmax temperature ``t``, above 0.
    """

    over_matrix: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        SupCon(temperature)  # refuses what it cannot take, as every call does
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    def spec(self) -> SupCon:
        return SupCon(self.temperature)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
