"""The base of all miners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import operator
from pml_fast.engine.cpu import small
from pml_fast.engine.lazy import LazyIndices, Source
from pml_fast.engine.listed import is_direct
from pml_fast.engine.problem import ExtremeProblem
from pml_fast.engine.score import Score
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.losses.spec_pair_loss import engine_labels
from pml_fast.utils.index_types import named_indices
from pml_fast.utils.module_with_records_and_reducer import ModuleWithRecordsAndDistance

COUNTS = ("num_pos_pairs", "num_neg_pairs", "num_triplets")


class BaseMiner(ModuleWithRecordsAndDistance):
    """Chooses pairs or triplets of a batch.

    A subclass of your own implements :meth:`mine` and returns index tensors. The miners of this package return a lazy tuple: it
    holds a rule, which a loss of this package folds into its kernel, and becomes index tensors for whoever touches it.

    ``num_triplets``, or ``num_pos_pairs`` and ``num_neg_pairs``, say how much the last call has chosen. Of a lazy tuple that
    nobody has touched they are counted when they are asked for, on the embeddings as they were mined.
    """

    num_pos_pairs: int
    num_neg_pairs: int
    num_triplets: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_to_recordable_attributes(list_of_names=list(COUNTS), is_stat=True)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        """``(a, p, n)`` or ``(a1, p, a2, n)``. Subclasses implement it."""
        raise NotImplementedError

    def output_assertion(self, output: Sequence[Tensor]) -> None:
        """``TypeError``/``ValueError`` unless the output is 3 or 4 index tensors that match; counts them where asked to."""
        if isinstance(output, LazyIndices) and not self.collect_stats:
            return self._count_later(output)
        parts = tuple(output)
        if len(parts) not in (3, 4):
            raise TypeError(
                f"mine() of {type(self).__name__} must return 3 index tensors (a, p, n) or 4 (a1, p, a2, n), got {len(parts)}"
            )
        if len(parts) == 3:
            self.num_triplets = len(parts[0])
            matched = len(parts[0]) == len(parts[1]) == len(parts[2])
        else:
            self.num_pos_pairs, self.num_neg_pairs = len(parts[0]), len(parts[2])
            matched = len(parts[0]) == len(parts[1]) and len(parts[2]) == len(parts[3])
        if not matched:
            raise ValueError(
                f"mine() of {type(self).__name__} must return index tensors of matching lengths, got {[len(x) for x in parts]}"
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """Mine a batch ``[N, D]``, against itself or against a reference set ``[M, D]``; no gradient is kept."""
        self.reset_stats()
        with torch.no_grad():
            output = self.mine(*self.read_call(embeddings, labels, ref_emb, ref_labels))
        self.output_assertion(output)
        return output if isinstance(output, LazyIndices) else named_indices(output)

    def _count_later(self, output: LazyIndices) -> None:
        if torch.compiler.is_compiling():
            return
        for name in COUNTS:
            vars(self).pop(name, None)
        vars(self)["_uncounted"] = output

    def __getattr__(self, name: str) -> Any:
        # Reached where an attribute is not there.
        output = vars(self).get("_uncounted") if name in COUNTS else None
        if output is not None:
            parts = output.materialise()
            found = {"num_triplets": parts[0]} if len(parts) == 3 else {"num_pos_pairs": parts[0], "num_neg_pairs": parts[2]}
            vars(self).update({count: len(part) for count, part in found.items()}, _uncounted=None)
            if name in found:
                return vars(self)[name]
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is of the miner, not of what it has mined last.
        return {name: value for name, value in vars(self).items() if name != "_uncounted"}

    def read_call(
        self, embeddings: Tensor, labels: Any, ref_emb: Tensor | None, ref_labels: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The checked inputs of a call, as :meth:`mine` gets them: without a reference set the batch stands in its place."""
        call = prepare_call(embeddings, labels, None, ref_emb, ref_labels)
        if call.labels is None or call.ref_labels is None:
            raise ValueError("labels must be given to a miner, got None; pass a tensor of shape (batch_size,)")
        return call.embeddings, call.labels, call.ref_emb, call.ref_labels


class Mining:
    """One call of a miner, as the engines take it."""

    def __init__(self, miner: BaseMiner, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> None:
        itself = ref_emb is embeddings and ref_labels is labels
        self.source = Source.of(embeddings, labels, ref_emb, ref_labels, itself)
        self.labels, self.ref_labels = engine_labels(labels, ref_labels, itself)
        distance = miner.distance
        score = distance.engine_score()
        if score is None:
            # A matrix of one's own is its own inner product with the unit vectors: rows of the matrix against the identity.
            mat = distance(self.source.embeddings, self.source.ref_emb).detach()
            matrix = "rows of a matrix of one's own"
            score = Score("dot", normalize=False, inverted=distance.is_inverted, symmetric=False, prepared=matrix)
            self.rows = (mat, torch.eye(mat.shape[1], dtype=mat.dtype, device=mat.device))
        else:
            x, y = distance.engine_rows(self.source.embeddings, self.source.ref_emb)
            self.rows = (x, x if itself and score.symmetric else y)
        self.score = score

    def extreme(
        self, positive: bool, largest: bool, low: Tensor | None = None, high: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Value and index (-1 for none) of each row's largest or smallest score over its positives or negatives."""
        x, y = self.rows
        if self.source.itself and is_direct(x, self.score):
            own = self.labels, self.ref_labels, True, positive, largest, low, high
            return small.extremes(ExtremeProblem(self.score, x, y, *own))
        value, index = operator.call(
            "row_extremes",
            x, y, self.labels, self.ref_labels, low, high, self.score.encode(), self.source.itself, positive, largest,
        )  # fmt: skip
        return value, index

    @property
    def dtype(self) -> torch.dtype:
        """The type of scores."""
        return torch.float64 if self.rows[0].dtype == torch.float64 else torch.float32
