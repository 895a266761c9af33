"""Sub-center ArcFace loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.grad_sum import strips
from pml_fast.losses.arcface_loss import ArcFaceLoss
from pml_fast.losses.class_loss import check_count
from pml_fast.utils import common_functions as c_f


class SubCenterArcFaceLoss(ArcFaceLoss):
    """ArcFace with several centres a class, of which an embedding meets the closest.

    Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        margin: the angle added, in degrees; the attribute is in radians.
        scale: the logits' factor.
        sub_centers: centres of a class; those of class ``c`` are the columns ``c * sub_centers ..`` of ``W``.
    """

    def __init__(self, *args: Any, margin: float = 28.6, scale: float = 64, sub_centers: int = 3, **kwargs: Any) -> None:
        if len(args) > 2:
            raise TypeError(f"at most num_classes and embedding_size can be given by position, got {len(args)} arguments")
        for name, value in zip(("num_classes", "embedding_size"), args):
            if name in kwargs:
                raise TypeError(f"{name} was given by position and by name; pass it once")
            kwargs[name] = value
        missing = [name for name in ("num_classes", "embedding_size") if name not in kwargs]
        if missing:
            raise TypeError(f"{' and '.join(missing)} must be given")
        num_classes = kwargs.pop("num_classes")
        check_count(num_classes=num_classes, sub_centers=sub_centers)
        super().__init__(num_classes=num_classes * sub_centers, margin=margin, scale=scale, **kwargs)
        self.sub_centers = sub_centers
        self.num_classes = num_classes

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        if isinstance(compared, str):
            return compared
        return compared.spec(scale=float(self.scale), centers=self.sub_centers, pool="max")

    def get_cosine(self, embeddings: Tensor) -> Tensor:
        cosine = self.distance(embeddings, self.W.t())
        return cosine.view(-1, self.num_classes, self.sub_centers).max(dim=2).values

    @torch.no_grad()
    def get_outliers(
        self, embeddings: Tensor, labels: Tensor, threshold: float = 75, return_dominant_centers: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The embeddings further than an angle from their class's dominant centre, the one that most of them are closest to.

        Args:
            embeddings: ``[N, D]``; usually of a whole data set.
            labels: ``[N]``.
            threshold: the angle in degrees.
            return_dominant_centers: give the dominant centres too.

        Returns:
            indices of the outliers, int64, ordered by class; and, if asked for, the centres ``[D, num_classes]``, zeros for a
            class without embeddings.
        """
        c_f.check_shapes(embeddings, labels)
        labels = self.targets(embeddings, c_f.to_device(labels, embeddings))
        similarity = self._own_similarities(embeddings, labels)
        votes = self.W.new_zeros(self.num_classes, self.sub_centers, dtype=torch.int64)
        closest = similarity.argmax(dim=1)
        votes.index_put_((labels, closest), torch.ones_like(labels), accumulate=True)
        dominant = votes.argmax(dim=1)
        to_dominant = similarity.gather(1, dominant[labels].unsqueeze(1)).squeeze(1)
        (outliers,) = torch.where(to_dominant < math.cos(math.radians(threshold)))
        outliers = outliers[torch.sort(labels[outliers], stable=True).indices]
        if not return_dominant_centers:
            return outliers
        columns = torch.arange(self.num_classes, device=labels.device) * self.sub_centers + dominant
        present = votes.sum(dim=1) > 0
        return outliers, torch.where(present, self.W.detach()[:, columns], 0.0)

    def _own_similarities(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """``[N, sub_centers]``: each embedding against the centres of its class, in strips of rows."""
        offsets = torch.arange(self.sub_centers, device=labels.device)
        weights, found = self.class_weights(), []
        for first, last in strips(len(labels), self.sub_centers * embeddings.shape[1]):
            rows = embeddings[first:last].repeat_interleave(self.sub_centers, dim=0)
            own = weights[(labels[first:last].unsqueeze(1) * self.sub_centers + offsets).flatten()]
            rows = rows.to(torch.promote_types(rows.dtype, own.dtype))
            pairs = self.distance.pairwise_distance(
                self.distance.maybe_normalize(rows), self.distance.maybe_normalize(own.to(rows.dtype))
            )
            found.append(pairs.view(-1, self.sub_centers))
        return torch.cat(found) if found else embeddings.new_zeros(0, self.sub_centers)
