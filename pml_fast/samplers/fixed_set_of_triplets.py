"""A fixed set of triplets in the place of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..utils import common_functions as c_f
from .deck import Deck
from .seeded_sampler import IndexSampler


class FixedSetOfTriplets(IndexSampler):
    """Draws `num_triplets` triplets once, and yields them triplet by triplet in another order every epoch.

    For experiments where triplets, not labels, are all that is known. Indices come as anchor, positive, negative: a
    batch of triplets has a multiple of 3 rows, which `miners.EmbeddingsAlreadyPackagedAsTriplets` reads.

    `fixed_set_of_triplets` is `[num_triplets, 3]`, int64. Every class of two samples or more is the anchors' before any is
    again, every class the negatives' likewise, and every sample of a class comes before any of it comes again in that role.
    `labels` is 1D; `seed`, epochs and state as in `SeededSampler`.
    """

    fixed_set_of_triplets: np.ndarray

    def __init__(self, labels: Any, num_triplets: int, *, seed: int | None = None) -> None:
        super().__init__(seed)
        self.labels_to_indices = c_f.get_labels_to_indices(labels)
        self.num_triplets = int(num_triplets)
        if self.num_triplets < 1:
            raise ValueError(f"num_triplets must be at least 1, got {num_triplets}")
        if len(self.labels_to_indices) < 2:
            raise ValueError(f"labels must have at least 2 classes, got {len(self.labels_to_indices)}")
        if all(len(members) < 2 for members in self.labels_to_indices.values()):
            raise ValueError("labels must have a class of at least 2 samples, an anchor and its positive")
        self.create_fixed_set_of_triplets()

    def __len__(self) -> int:
        return 3 * self.num_triplets

    def create_fixed_set_of_triplets(self) -> None:
        """Draw the set from the seed."""
        generator = np.random.default_rng(self.seed)
        classes = list(self.labels_to_indices.values())
        with_positives = [k for k, members in enumerate(classes) if len(members) > 1]
        anchors, negatives = (Deck(members, generator) for members in (with_positives, range(len(classes))))
        pairs, singles = ([Deck(members, generator) for members in classes] for _ in range(2))
        triplets = np.empty((self.num_triplets, 3), dtype=np.int64)
        for triplet in triplets:
            (own,) = anchors.draw(1)
            triplet[:2] = pairs[own].draw(2)
            triplet[2:] = singles[negatives.draw_other_than(own)].draw(1)
        self.fixed_set_of_triplets = triplets

    def load_state_dict(self, state_dict: Any) -> None:
        before = self.seed
        super().load_state_dict(state_dict)
        if self.seed != before:
            self.create_fixed_set_of_triplets()

    def agree(self) -> None:
        super().agree()
        self.create_fixed_set_of_triplets()

    def _items(self, generator: np.random.Generator, epoch: int) -> Iterator[int]:
        return iter(generator.permutation(self.fixed_set_of_triplets).ravel().tolist())
