"""Two views of every sample, without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.losses.base_loss_wrapper import BaseLossWrapper


class SelfSupervisedLoss(BaseLossWrapper):
    """A supervised loss where row ``i`` of two tensors is the same sample, and every sample a class of its own.

    Args:
        loss: one of :meth:`supported_losses`.
        symmetric: both views are anchors, compared with all other rows of both (``2N x 2N``); otherwise ``embeddings`` are
            anchors and ``ref_emb`` is their reference set (``N x N``).
    """

    def __init__(self, loss: torch.nn.Module, symmetric: bool = True, **kwargs: Any) -> None:
        super().__init__(loss=loss, **kwargs)
        self.loss = loss
        self.symmetric = symmetric

    @staticmethod
    def supported_losses() -> list[str]:
        return [
            "AngularLoss",
            "CircleLoss",
            "ContrastiveLoss",
            "GeneralizedLiftedStructureLoss",
            "IntraPairVarianceLoss",
            "LiftedStructureLoss",
            "MultiSimilarityLoss",
            "NTXentLoss",
            "SignalToNoiseRatioContrastiveLoss",
            "SupConLoss",
            "TripletMarginLoss",
            "NCALoss",
            "TupletMarginLoss",
        ]

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Any:
        """The loss of two views ``[N, D]`` of the same ``N`` samples; ``ValueError`` where their shapes differ."""
        rows, labels, others, other_labels = self.labelled(embeddings, ref_emb)
        if others is None:
            return self.loss(rows, labels)
        return self.loss(rows, labels, ref_emb=others, ref_labels=other_labels)

    def labelled(self, embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Anchors and their labels, and the reference set with its labels where there is one."""
        if embeddings.shape != ref_emb.shape:
            raise ValueError(
                f"ref_emb must have the shape of embeddings, one view for each, {tuple(embeddings.shape)}, "
                f"got {tuple(ref_emb.shape)}"
            )
        labels = torch.arange(embeddings.shape[0], device=embeddings.device)
        if self.symmetric:
            return torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]), None, None
        return embeddings, labels, ref_emb, labels.clone()
