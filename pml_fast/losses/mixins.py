"""Optional parts of losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pml_fast.utils.checks import check_number


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
