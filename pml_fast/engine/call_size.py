"""How large a call is: rows and columns, and the pairs and triplets that its labels or its tuple make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cost import Size
from pml_fast.engine.lazy import LazyIndices, RowChoice
from pml_fast.engine.plan import Call, Plan
from pml_fast.engine.spec import TripletSpec


@dataclass
class CallSize:
    """One call, its plan, and the rows the engine would see."""

    loss: Any
    call: Call
    plan: Plan
    x: Tensor
    y: Tensor

    def size(self) -> tuple[Size | None, bool, list[str]]:
        """The sizes, whether they are bounds, and what is to be said about them."""
        call, plan = self.call, self.plan
        if plan.cost is None and (plan.spec is None or plan.score is None):
            return None, False, []
        need_x, need_y = call.embeddings.requires_grad, call.ref_emb.requires_grad and not call.itself
        notes = []
        if not (need_x or need_y):
            need_x = True
            notes.append("no input requires a gradient: the backward is counted as if the embeddings did")
        positives, negatives = self._partners()
        pairs = int(positives.sum())
        listed, triplets, at_most = self._listed(positives, negatives)
        shared = call.itself and (plan.score is None or plan.score.symmetric)
        size = Size(
            len(self.x),
            len(self.y),
            self.x.shape[1],
            pairs,
            listed,
            triplets,
            self.x.dtype,
            shared,
            need_x,
            need_y or (call.itself and not shared),
            self.x.device,
        )
        return size, at_most, notes

    def _partners(self) -> tuple[Tensor, Tensor]:
        """How many positives and negatives each row has by its label, ``[N]`` each; none without labels or with sets."""
        call = self.call
        if call.labels is None or call.ref_labels is None or call.labels.ndim > 1:
            none = torch.zeros(len(call.embeddings), dtype=torch.int64)
            return none, none
        codes = torch.unique(torch.cat([call.labels, call.ref_labels]), return_inverse=True)[1].cpu()
        rows, columns = codes.split([len(call.labels), len(call.ref_labels)])
        sizes = torch.bincount(columns, minlength=int(codes.max()) + 1 if len(codes) else 0)
        positives = sizes[rows]
        return positives - int(call.itself), len(columns) - positives

    def _listed(self, positives: Tensor, negatives: Tensor) -> tuple[int, int, bool]:
        """Scores of listed pairs, triplets, and whether a lazy tuple makes these a bound."""
        plan, indices = self.plan, self.call.indices
        if plan.engine not in ("indexed", "dense"):
            return 0, 0, False
        of_triplets = isinstance(plan.spec, TripletSpec)
        if isinstance(indices, RowChoice):
            count, bound = len(indices.anchor), False
            return self._scores(count) if of_triplets else 2 * count, count * of_triplets, bound
        bound = isinstance(indices, LazyIndices)
        if indices is None or bound:
            every = int((positives * negatives).sum())
            drawn = getattr(self.loss, "triplets_per_anchor", "all")
            if of_triplets and indices is None and drawn != "all":
                every, bound = min(every, int(drawn) * len(positives)), True
            return (self._scores(every), every, bound) if of_triplets else (int((positives + negatives).sum()), 0, bound)
        return self._listed_by_hand([len(part) for part in indices], of_triplets, indices)

    def _listed_by_hand(self, lengths: list[int], of_triplets: bool, indices: Sequence[Tensor]) -> tuple[int, int, bool]:
        if not of_triplets:
            return (2 * lengths[0] if len(lengths) == 3 else lengths[0] + lengths[2]), 0, False
        if len(lengths) == 3:
            return self._scores(lengths[0]), lengths[0], False
        # Every positive of an anchor meets every negative of it.
        n = len(self.x)
        pos, neg = (torch.bincount(part.cpu(), minlength=n) for part in (indices[0], indices[2]))
        count = int((pos * neg).sum())
        return self._scores(count), count, False

    def _scores(self, triplets: int) -> int:
        spec = self.plan.spec
        return triplets * (3 if isinstance(spec, TripletSpec) and spec.swap else 2)
