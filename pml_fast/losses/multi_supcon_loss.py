"""Supervised contrastive loss of samples with several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine import listed
from pml_fast.engine.cpu import small_targets
from pml_fast.engine.fold import Fold, reduce_rows
from pml_fast.engine.label_sets import AlikePairs, alike_pairs, jaccard, with_empty_sets
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, overridden, reduction_of
from pml_fast.engine.recompute import KEPT_ELEMENTS, over_rows, strip_scores, unit
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.soft_targets import TERM, own_labels, soft_target_loss
from pml_fast.engine.specs import LogSumExp
from pml_fast.engine.views import ListedSide
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict, prepare_call
from pml_fast.losses.spec_pair_loss import pair_row_losses
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer, ClassWeightedReducer


class MultiSupConLoss(BaseMetricLossFunction):
    """``1/|P(i)| sum over p in P(i) of J_ip (log sum over all others of exp(s_ij/t) - s_ip/t)``, one loss an anchor.

    ``J`` is the Jaccard similarity of two label sets, and ``P(i)`` are the rows with ``J_ip >= threshold``. Two empty sets are
    equal (1); an empty set and another have nothing in common (0). A row without positives has a loss of 0. With one label a
    row it is :class:`SupConLoss`. "Contrastive Learning for Multi-Label Classification"; the definition is that of PML 3.

    ``labels`` is ``[N, C]``: bool, or numbers of which those that are not 0 are set; or, with ``num_classes``, a list with the
    class numbers of each row. ``ref_labels`` likewise, with as many classes. An ``indices_tuple`` chooses the pairs, the labels
    weigh them.

    Args:
        temperature: the softmax temperature ``t``.
        threshold: the similarity from which on two rows are positives, from 0 to 1.
        num_classes: how many classes there are; ``None`` to read it from the labels.
    """

    joint_anchors: ClassVar[str] = "label similarities are not shared"

    def __init__(self, temperature: float = 0.1, threshold: float = 0.5, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a similarity from 0 to 1, got {threshold!r}")
        self.temperature = temperature
        self.threshold = threshold
        self.num_classes = num_classes
        self.add_to_recordable_attributes(list_of_names=["temperature", "threshold"], is_stat=False)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        if self.distance.engine_score() is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", notes=[note])
        if call.indices is not None:
            return Plan(PARTLY, "indexed", None, self.distance.engine_score(), notes=["only the listed pairs are compared"])
        fold = self._fold()
        if not self._lists(call, fold):
            notes = [
                "a strip of scores and label similarities at a time, computed again in the backward",
                "one loss a row is reduced in torch",
            ]
            return Plan(PARTLY, "strips", notes=notes)
        notes = [
            "the log-sum-exp of every row comes out of the sweep",
            "positives are listed by the labels they share, which waits for the device; where too many do, strips of label "
            "similarities take the place of both",
        ]
        spec, score = LogSumExp(self.temperature), self.distance.engine_score()
        if fold is None:
            return Plan(PARTLY, "pairwise", spec, score, notes=[*notes, "one loss a row is reduced in torch"])
        return Plan(FUSED, "pairwise", spec, score, [fold], notes=[*notes, "one loss a row is reduced in the operator"])

    def forward(
        self,
        embeddings: Tensor,
        labels: Any = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Any = None,
    ) -> Any:
        """The loss, a scalar.

        Args:
            embeddings: ``[N, D]``.
            labels: label sets of the rows.
            indices_tuple: pairs or triplets; ``None`` for all pairs.
            ref_emb: ``[M, D]``; ``None`` for the batch itself.
            ref_labels: label sets of the reference set.
        """
        self.reset_stats()
        call = self.read_call(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        fold = self._fold()
        if fold is not None:
            loss = self._folded(call, fold)
            if self.embedding_regularizer is not None:
                loss = loss + self.reduced_regularization(embeddings, None)
            return loss
        loss_dict = self.compute_loss(call.embeddings, call.labels, call.indices, call.ref_emb, call.ref_labels)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        return self.reducer(loss_dict, embeddings, call.labels)

    def read_call(self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Any) -> Call:
        """The checked inputs; label sets as masks ``[N, C]``."""
        itself = ref_emb is None or (ref_emb is embeddings and (ref_labels is None or ref_labels is labels))
        call = prepare_call(embeddings, None, indices_tuple, None if itself else ref_emb, None)
        call.labels = sets = self._sets("labels", labels, call.embeddings)
        call.ref_labels = others = sets if itself else self._sets("ref_labels", ref_labels, call.ref_emb)
        if sets.shape[1] != others.shape[1]:
            raise ValueError(f"ref_labels must have the labels' {sets.shape[1]} classes, got {others.shape[1]}")
        return call

    def _fold(self) -> Fold | None:
        """How the rows are reduced, where the reducer need not see them; its own comparisons would leave out a NaN."""
        if isinstance(self.reducer, ClassWeightedReducer):
            raise ValueError("reducer must not be a ClassWeightedReducer for MultiSupConLoss, whose rows have several labels")
        folds = None if overridden(self) else reduction_of(self.reducer, ["loss"]).folds
        return folds[0] if folds else None

    def _sets(self, name: str, labels: Any, embeddings: Tensor) -> Tensor:
        """Label sets as a mask ``[N, C]``."""
        n = len(embeddings)
        if torch.is_tensor(labels):
            if labels.ndim != 2 or len(labels) != n:
                raise ValueError(
                    f"{name} must be a 2-D tensor with a row of classes an embedding, shape ({n}, num_classes), got shape "
                    f"{tuple(labels.shape)}; for one label a row use SupConLoss"
                )
            if self.num_classes is not None and labels.shape[1] != self.num_classes:
                raise ValueError(f"{name} must have num_classes={self.num_classes} columns, got {labels.shape[1]}")
            labels = labels.to(embeddings.device)
            return labels if labels.dtype == torch.bool else labels != 0
        if not isinstance(labels, Sequence):
            raise TypeError(f"{name} must be a tensor of shape ({n}, num_classes) or a list of class numbers, got {labels!r}")
        return self._from_lists(name, labels, n).to(embeddings.device)

    def _from_lists(self, name: str, labels: Sequence[Any], n: int) -> Tensor:
        if self.num_classes is None:
            raise ValueError(f"num_classes must be given for {name} as lists of class numbers, got None")
        if len(labels) != n:
            raise ValueError(f"{name} must have a list of class numbers for each of the {n} embeddings, got {len(labels)}")
        sets = torch.zeros(n, self.num_classes, dtype=torch.bool)
        for row, classes in enumerate(labels):
            numbers = torch.as_tensor(list(classes), dtype=torch.int64)
            if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_classes:
                raise ValueError(f"{name} must be class numbers from 0 to {self.num_classes - 1}, got {numbers.tolist()}")
            sets[row, numbers] = True
        return sets

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss a row."""
        itself = ref_emb is embeddings and ref_labels is labels
        call = Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself)
        losses = self._row_losses(call, self._alike(call, None))
        index = torch.arange(len(embeddings), device=embeddings.device)
        return {"loss": {"losses": losses, "indices": index, "reduction_type": "element"}}

    def _folded(self, call: Call, fold: Fold) -> Tensor:
        """The reduced loss."""
        alike = self._alike(call, fold)
        score = self.distance.engine_score()
        if alike is not None and score is not None:
            # What each row's targets sum to is known before the sweep.
            target = alike.weight / torch.bincount(alike.row, minlength=len(call.embeddings))[alike.row]
            rows = self.distance.engine_rows(call.embeddings, call.ref_emb)
            return soft_target_loss(*rows, alike.row, alike.column, target, self.temperature, score, call.itself, fold)
        losses = self._row_losses(call, None)
        return reduce_rows(fold, TERM, losses, torch.ones_like(losses), None)[0]

    def _alike(self, call: Call, fold: Fold | None) -> AlikePairs | None:
        """The positives, where they are listed."""
        assert call.labels is not None and call.ref_labels is not None
        if call.indices is not None or self.distance.engine_score() is None or not self._lists(call, fold):
            return None
        wide = compute_type(call.embeddings.dtype)
        return alike_pairs(call.labels, call.ref_labels, self.threshold, call.itself, wide)

    def _lists(self, call: Call, fold: Fold | None) -> bool:
        """Whether positives are listed: not of so few pairs that a strip is quicker, unless one call then does it all, and not
        in a traced graph, which cannot read their number; a trained temperature has its gradient from the strips."""
        if torch.compiler.is_compiling() or self.threshold == 0 or isinstance(self.temperature, Tensor):
            return False
        x, y, score = call.embeddings, None if call.itself else call.ref_emb, self.distance.engine_score()
        if len(x) * len(call.ref_emb) > KEPT_ELEMENTS:
            return True
        return fold is not None and score is not None and small_targets.takes(x, y, score, fold)

    def _row_losses(self, call: Call, alike: AlikePairs | None) -> Tensor:
        """One loss a row; ``alike`` are all positives, ``None`` where strips find them."""
        score, wide = self.distance.engine_score(), compute_type(call.embeddings.dtype)
        if call.indices is not None:
            return self._listed_losses(score, call)
        if alike is not None and score is not None:
            return self._alike_losses(score, call, alike)
        assert call.labels is not None and call.ref_labels is not None
        sets = with_empty_sets(call.labels).to(wide)
        others = sets if call.itself else with_empty_sets(call.ref_labels).to(wide)
        if score is None:
            score = Score(inverted=self.distance.is_inverted)
            matrix = self.distance(call.embeddings, call.ref_emb).to(wide)
            return self._dense_losses(score, matrix, 0, sets, others, call.itself, self.temperature)
        rows, columns = self.distance.engine_rows(call.embeddings, call.ref_emb)
        x = unit(score, rows)
        y = x if columns is rows else unit(score, columns)
        # The backward keeps what a strip reads, and no masks.
        wanted, itself = score, call.itself

        def strip(first: int, last: int, x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
            scores = strip_scores(wanted, x[first:last], y)
            return self._dense_losses(wanted, scores, first, sets[first:last], others, itself, temperature)

        temperature = torch.as_tensor(self.temperature, dtype=x.dtype, device=x.device)
        return over_rows(strip, len(x), len(y), x, y, temperature)

    def _alike_losses(self, score: Score, call: Call, alike: AlikePairs) -> Tensor:
        """One loss a row, given all its positives."""
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        n = len(x)
        labels, others = own_labels(n, len(y), call.itself, x.device)
        apart = Call(call.embeddings, labels, None, call.ref_emb, others, call.itself)
        log_all = pair_row_losses(LogSumExp(self.temperature), score, None, apart, x, y)[0]
        pos = ListedSide(listed.engine_scorer(x, y, score)(alike.row, alike.column), alike.row, n)
        total = pos.sum(alike.weight * (pos.spread(log_all) - pos.s * (score.sign / self.temperature)))
        count = pos.count()
        return torch.where(count > 0, total / count.clamp(min=1), 0.0)

    def _dense_losses(
        self, score: Score, s: Tensor, first: int, sets: Tensor, ref_sets: Tensor, itself: bool, temperature: Any
    ) -> Tensor:
        """One loss a row of a strip of scores from row ``first`` on: a cross-entropy whose targets are not one but several."""
        if s.shape[1] == 0:
            return s.sum(dim=1)
        weight = jaccard(sets @ ref_sets.T, sets.sum(dim=1, keepdim=True), ref_sets.sum(dim=1))
        positive = weight >= self.threshold
        logits = s * (score.sign / temperature)
        if itself:
            positive.diagonal(offset=first).fill_(False)
            # A finite number, for 0 times its logarithm is to be 0. What it has of the softmax is 0, and so is its gradient.
            with torch.no_grad():
                logits.diagonal(offset=first).fill_(torch.finfo(s.dtype).min / 2)
        count = positive.sum(dim=1)
        losses = torch.nn.functional.cross_entropy(logits, weight.mul_(positive), reduction="none") / count.clamp(min=1)
        return losses.masked_fill(count == 0, 0.0)

    def _listed_losses(self, score: Score | None, call: Call) -> Tensor:
        assert call.labels is not None and call.ref_labels is not None
        indices: Any = call.indices
        if isinstance(indices, LazyIndices):
            indices = indices.materialise()
        # Every pair once, however often the tuple names it.
        lists = listed.pair_lists(indices, None, None, len(call.ref_emb), unique=True)
        if score is None:
            scorer = listed.matrix_scorer(self.distance(call.embeddings, call.ref_emb))
            score = Score(inverted=self.distance.is_inverted)
        else:
            scorer = listed.engine_scorer(*self.distance.engine_rows(call.embeddings, call.ref_emb), score)
        view = listed.listed_view(lists, scorer, len(call.embeddings), call.itself)
        sets, others = (with_empty_sets(part[k]) for part, k in ((call.labels, lists.a1), (call.ref_labels, lists.p)))
        weight = jaccard(*(part.sum(dim=1, dtype=view.pos.s.dtype) for part in (sets & others, sets, others)))
        pos, scale = view.pos, score.sign / self.temperature
        count = pos.count()
        logits = pos.s * scale
        among = torch.where(count > 0, pos.logsumexp(logits), 0.0)
        log_all = torch.logaddexp(among, view.neg.logsumexp(view.neg.s * scale))
        total = pos.sum(weight * (pos.spread(log_all) - logits))
        return torch.where(count > 0, total / count.clamp(min=1), 0.0)
