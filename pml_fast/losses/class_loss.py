"""Losses of a batch against the weights of classes, on the class engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import BaseDistance, SNRDistance
from pml_fast.engine.classes.blocks import classes_a_block
from pml_fast.engine.classes.problem import check_targets
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.plan import FUSED, MATERIALISED, Call, Plan, learnable, overridden
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.views import softplus
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.joined import refuse_row_weights
from pml_fast.losses.mixins import WeightRegularizerMixin
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


@dataclass(frozen=True)
class Comparison:
    """What a distance asks of the class engine: the score, and how rows and weights are prepared for it."""

    score: Score
    unit_rows: bool
    unit_columns: bool
    p: float
    lift: str = "none"

    def spec(self, **parts: Any) -> ClassSpec:
        """The engine's spec with this comparison."""
        return _spec(self, **parts)


def comparison(distance: BaseDistance, shift_free: bool) -> Comparison | str:
    """How the class engine compares for a distance, or why it cannot.

    ``shift_free`` says that a number added to all scores of a row changes nothing: then a squared Euclidean distance is an
    inner product.
    """
    score = distance.engine_score()
    if score is None:
        return f"the matrix of {type(distance).__name__} is materialised: {distance.engine_refusal()}"
    unit, p = bool(distance.normalize_embeddings), float(distance.p)
    if isinstance(distance, SNRDistance):
        return _comparison(score, unit, p, "snr")
    if not score.symmetric:
        return f"the matrix of {type(distance).__name__} is materialised: it prepares rows and columns differently"
    return _comparison(score, unit, p, "square" if shift_free and score.kind == "l2" and score.power == 2 else "none")


@lru_cache(maxsize=256)
def _comparison(score: Score, unit: bool, p: float, lift: str) -> Comparison:
    if lift == "square":
        return Comparison(Score(normalize=False), unit, unit, p, lift)
    return Comparison(replace(score, normalize=False, symmetric=score.symmetric and lift == "snr"), unit, unit, p, lift)


@lru_cache(maxsize=256)
def _spec(compared: Comparison, **parts: Any) -> ClassSpec:
    return ClassSpec(
        compared.score, compared.unit_columns, compared.p, compared.lift, unit_rows=compared.unit_rows, **parts
    )  # fmt: skip


def follow(parameter: torch.nn.Parameter, dtype: torch.dtype, device: torch.device) -> None:
    """Bring a parameter to the device and type of the embeddings.

    Under autocast, and for half-precision embeddings, it keeps its own type: products and sums are in float32.
    """
    data = parameter.data
    keep = compute_type(dtype) != dtype or (device.type != "meta" and torch.is_autocast_enabled(device.type))
    wanted = data.dtype if keep else dtype
    if data.dtype != wanted or data.device != device:
        parameter.data = data.to(device=device, dtype=wanted)


def check_count(**counts: Any) -> None:
    """``ValueError`` unless each number is a positive integer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


class ClassLoss(BaseMetricLossFunction):
    """A loss of one number a row against the weights of classes.

    Subclasses say :meth:`class_spec`, their weights, and the row losses from what the engine leaves (:meth:`streamed_losses`)
    and from a whole matrix of logits (:meth:`dense_losses`), which serves distances and methods of a user's own.
    """

    num_classes: int
    # Settings inside the sweep: where one is trained, the matrix is materialised for its gradient.
    swept_settings: ClassVar[tuple[str, ...]] = ()
    # Methods that act on the rows' own classes alone, or on no score: replacing them leaves the sweep as it is.
    outside_the_sweep: ClassVar[frozenset[str]] = frozenset({"get_default_weight_init_func", "reduction_labels"})

    meets_references: ClassVar[bool] = False

    def class_weights(self) -> Tensor:
        """The weights, a row a class (or centre): a view of the parameter."""
        raise NotImplementedError

    def columns_for(self, embeddings: Tensor) -> Tensor:
        """What a batch is compared with."""
        return self.class_weights()

    def class_spec(self) -> ClassSpec | str:
        """What the engine computes, with the settings as they are now, or why it cannot."""
        raise NotImplementedError

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        """One loss a row ``[N]`` by the class engine."""
        raise NotImplementedError

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """One loss a row ``[N]`` from the matrix of all logits."""
        raise NotImplementedError

    def check_call(self, labels: Tensor | None, indices_tuple: Any, itself: bool) -> None:
        """Raise where the loss cannot take what it is called with."""
        c_f.labels_required(labels)
        if not itself:
            raise ValueError("ref_emb is not supported for this loss function: leave ref_emb and ref_labels as None")

    def streamable(self) -> ClassSpec | str:
        """The spec of the next call, or why the matrix of logits is needed."""
        own = [name for name in overridden(self) if name not in self.outside_the_sweep]
        if own:
            return f"{type(self).__name__} replaces {', '.join(own)}"
        trained = learnable(self, self.swept_settings)
        if trained:
            return f"all logits are materialised: {', '.join(trained)} is trained, and needs its gradient"
        return self.class_spec()

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        self.check_call(call.labels, call.indices, call.itself)
        spec = self.streamable()
        if isinstance(spec, str):
            return Plan(MATERIALISED, "dense", notes=[spec])
        return Plan(FUSED, "classes", spec, spec.score)

    def plan_notes(self, call: Call, spec: ClassSpec) -> list[str]:
        """What is fused, in words."""
        weights = self.class_weights()
        block = classes_a_block(len(call.embeddings), weights.shape[1], spec.centers)
        what = "one loss a row" if spec.fold != "class_lse" else "one number a class"
        notes = [f"classes stream in blocks of {min(block, self.num_classes)}: {what} leaves the sweep and is reduced in torch"]
        if spec.centers > 1:
            notes.append(f"the {spec.centers} centres of a class become one score ({spec.pool}) inside the block")
        if call.indices is not None:
            notes.append("the index tuple only counts how often it names each row: index tensors")
        return notes

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss dictionary, streamed where it can be."""
        self.check_call(labels, indices_tuple, ref_emb is embeddings and ref_labels is labels)
        assert labels is not None
        return self.loss_terms(embeddings, self.targets(embeddings, labels), indices_tuple, self.streamable())

    def run_plan(self, plan: Plan, call: Call) -> Any:
        if not isinstance(plan.spec, ClassSpec) or self.embedding_regularizer is not None:
            return None
        assert call.labels is not None
        labels = self.targets(call.embeddings, call.labels)
        loss_dict = self.loss_terms(call.embeddings, labels, call.indices, plan.spec)
        return self.reducer(loss_dict, call.embeddings, self.reduction_labels(call))

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        refuse_row_weights(self, call)
        return super().joined_loss(call, False, everyone)

    def targets(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Each row's class, int64; brings the weights to the embeddings' type and device."""
        check_targets(labels, self.num_classes)
        self.cast_types(embeddings.dtype, embeddings.device)
        features = self.class_weights().shape[1]
        if embeddings.shape[1] != features:
            raise ValueError(f"embeddings must have {features} features, the loss's embedding_size, got {embeddings.shape[1]}")
        return labels.to(torch.int64)

    def loss_terms(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, spec: ClassSpec | str) -> LossDict:
        """One loss a row, weighted by how often ``indices_tuple`` names it; a reason in place of a spec asks for the matrix."""
        if isinstance(spec, str):
            losses = self.dense_losses(embeddings, labels)
        else:
            losses = self.streamed_losses(embeddings, labels, spec)
        losses = self.weigh(losses, labels, indices_tuple)
        loss_dict: LossDict = {
            "loss": {"losses": losses, "indices": c_f.torch_arange_from_size(embeddings), "reduction_type": "element"}
        }
        if isinstance(self, WeightRegularizerMixin):
            self.add_weight_regularization_to_loss_dict(loss_dict, self.class_weights())
        return loss_dict

    def weigh(self, losses: Tensor, labels: Tensor, indices_tuple: Sequence[Tensor] | None) -> Tensor:
        """Losses times their rows' weights."""
        if indices_tuple is None:
            return losses
        return losses * lmu.convert_to_weights(indices_tuple, labels, dtype=losses.dtype)

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the weights to the embeddings' type and device."""
        raise NotImplementedError


def softmax_losses(others: Tensor, target: Tensor) -> Tensor:
    """Cross entropy from the log-sum-exp of the other classes' logits and the target's logit."""
    return softplus(others - target)
