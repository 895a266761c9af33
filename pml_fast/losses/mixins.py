"""Optional parts of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.checks import check_number


class WeightMixin:
    """A loss with weights of its own, which ``weight_init_func(weights)`` initialises in place."""

    def __init__(self, weight_init_func: Callable[[Tensor], Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight_init_func = self.get_default_weight_init_func() if weight_init_func is None else weight_init_func

    def get_default_weight_init_func(self) -> Callable[[Tensor], Any]:
        """The initialiser used when none is given."""
        return c_f.TorchInitWrapper(torch.nn.init.normal_)


class WeightRegularizerMixin(WeightMixin):
    """Adds ``weight_regularizer(weights) * weight_reg_weight`` to a loss as the sub-loss ``weight_reg_loss``."""

    def __init__(self, weight_regularizer: Any = None, weight_reg_weight: float = 1, **kwargs: Any) -> None:
        # The bases ask for the sub-losses' names while they are constructed, before modules can be attached.
        self.weight_regularizer: Any = weight_regularizer is not None
        super().__init__(**kwargs)
        del self.weight_regularizer
        self.weight_regularizer = weight_regularizer
        self.weight_reg_weight = weight_reg_weight
        if weight_regularizer is not None:
            self.add_to_recordable_attributes(  # type: ignore[attr-defined]
                list_of_names=["weight_reg_weight"], is_stat=False
            )

    def weight_regularization_loss(self, weights: Tensor) -> dict[str, Any]:
        """The regularizer's loss as an entry of a loss dictionary; ``weights`` has a row a class (or centre)."""
        loss: Any = 0
        if self.weight_regularizer is not None:
            loss = self.weight_regularizer(weights) * self.weight_reg_weight
        return {"losses": loss, "indices": None, "reduction_type": "already_reduced"}

    def add_weight_regularization_to_loss_dict(self, loss_dict: dict[str, Any], weights: Tensor) -> None:
        """Put the regularizer's loss into ``loss_dict``, where there is a regularizer."""
        if self.weight_regularizer is not None:
            loss_dict["weight_reg_loss"] = self.weight_regularization_loss(weights)

    def regularization_loss_names(self) -> list[str]:
        """The sub-loss this mixin adds."""
        return ["weight_reg_loss"]


class EmbeddingRegularizerMixin:
    """Adds ``embedding_regularizer(embeddings) * embedding_reg_weight`` to a loss as the sub-loss ``embedding_reg_loss``."""

    def __init__(self, embedding_regularizer: Any = None, embedding_reg_weight: float = 1, **kwargs: Any) -> None:
        # The bases ask for the sub-losses' names while they are constructed, before modules can be attached.
        self.embedding_regularizer: Any = embedding_regularizer is not None
        super().__init__(**kwargs)
        del self.embedding_regularizer
        self.embedding_regularizer = embedding_regularizer
        check_number("embedding_reg_weight", embedding_reg_weight)
        self.embedding_reg_weight = embedding_reg_weight
        if embedding_regularizer is not None:
            self.add_to_recordable_attributes(  # type: ignore[attr-defined]
                list_of_names=["embedding_reg_weight"], is_stat=False
            )

    def embedding_regularization_loss(self, embeddings: Tensor) -> dict[str, Any]:
        """The regularizer's loss as an entry of a loss dictionary."""
        loss: Any = 0
        if self.embedding_regularizer is not None:
            loss = self.embedding_regularizer(embeddings) * self.embedding_reg_weight
        return {"losses": loss, "indices": None, "reduction_type": "already_reduced"}

    def add_embedding_regularization_to_loss_dict(self, loss_dict: dict[str, Any], embeddings: Tensor) -> None:
        """Put the regularizer's loss into ``loss_dict``, where there is a regularizer."""
        if self.embedding_regularizer is not None:
            loss_dict["embedding_reg_loss"] = self.embedding_regularization_loss(embeddings)

    def regularization_loss_names(self) -> list[str]:
        """The sub-loss this mixin adds."""
        return ["embedding_reg_loss"]
