"""What a step is given: seeded rows as those of a half-trained network, their labels, and what some losses take besides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

COMMON, OF_CLASS, NOISE = 0.3**0.5, 0.2**0.5, 0.5**0.5


@dataclass(frozen=True)
class Inputs:
    """Embeddings [N, D] and labels [N].

    other: a second set of rows [N, D] that gets a gradient too, of losses of two sets. queue, queue_labels: past rows [M, D].
    """

    embeddings: Tensor
    labels: Tensor
    other: Tensor | None = None
    queue: Tensor | None = None
    queue_labels: Tensor | None = None

    @cached_property
    def label_sets(self) -> Tensor:
        """Each row has its own class and the next, [N, classes + 1]: rows of a class have equal sets, neighbours share one."""
        classes = int(self.labels.max()) + 2
        return F.one_hot(self.labels, classes).bool() | F.one_hot(self.labels + 1, classes).bool()

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What the loss is differentiated by, but for its own parameters."""
        return (self.embeddings,) if self.other is None else (self.embeddings, self.other)

    def double(self) -> Inputs:
        """The same numbers in float64 on the CPU, as leaves of their own."""
        wide = {
            name: None if rows is None else rows.detach().cpu().double()
            for name, rows in (("embeddings", self.embeddings), ("other", self.other), ("queue", self.queue))
        }
        return replace(self, labels=self.labels.cpu(), **wide)._with_gradients()

    def rounded(self, seed: int) -> Inputs:
        """The same rows moved by as much as rounding in float32 moves a number, as leaves of their own."""
        gen = torch.Generator().manual_seed(seed)
        eps = float(torch.finfo(torch.float32).eps)

        def move(rows: Tensor | None) -> Tensor | None:
            if rows is None:
                return None
            return rows.detach() * (1 + eps * torch.randn(rows.shape, generator=gen, dtype=rows.dtype))

        embeddings = move(self.embeddings)
        assert embeddings is not None
        return replace(self, embeddings=embeddings, other=move(self.other), queue=move(self.queue))._with_gradients()

    def _with_gradients(self) -> Inputs:
        for leaf in self.leaves:
            leaf.requires_grad_()
        return self


class Clusters:
    """Draws rows that share a common part, a class part and noise.

    Positives have cosine about 0.5 and negatives about 0.3, so that margins, miners and hinges all have work to do.
    """

    def __init__(self, classes: int, dim: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.centres = torch.randn(classes, dim, generator=generator)
        self.common = torch.randn(1, dim, generator=generator)

    def rows(self, labels: Tensor) -> Tensor:
        noise = torch.randn(len(labels), self.centres.shape[1], generator=self.generator)
        return COMMON * self.common + OF_CLASS * self.centres[labels] + NOISE * noise
