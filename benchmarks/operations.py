"""Everything that is benchmarked, by name: a loss, or a miner and a loss, how it is made and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import Inputs

DIM = 128


@dataclass(frozen=True)
class Tolerance:
    """Largest relative error of the value and relative L2 error of a gradient, against float64."""

    value: float
    gradient: float

    def beyond(self, moved_value: float, moved_gradient: float) -> Tolerance:
        """This tolerance, or twice what rounding itself moves the exact answer by, where that is more."""
        return Tolerance(max(self.value, 2 * moved_value), max(self.gradient, 2 * moved_gradient))


# A smooth loss carries the rounding of its scores. Where terms are counted that are above zero, or chosen by a comparison, a
# term within rounding of the edge may be in or out, and each such flip moves value and gradient by a step. At large sizes
# there are always such terms: the oracle measures by how much they move its own answer, with all terms up to its EDGE above
# zero left out, and with all terms down to EDGE below zero taken in. What a float32 score flips is some of either, and flips of
# different pairs hardly overlap: together they move the answer by at most the sum of both, so by twice the larger.
# ContrastiveLoss of 8192 rows has 56,212 active negatives; one ordered both ways, a pair at distance 1 + 7e-8, is 2e-3 of its
# gradient, and with that pair counted as in float32 the rest of the difference is 3e-5.
SMOOTH = Tolerance(1e-5, 1e-4)
COUNTED = Tolerance(1e-4, 1e-3)
LOW_PRECISION = Tolerance(3e-2, 1e-1)

# What the rows of the batch are compared with.
BATCH, CLASSES, QUEUE, OTHER, FEATURES = "the batch", "classes", "a queue", "another set", "features"

Call = Callable[[Any, Inputs, Any], Tensor]


def with_labels(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    rows, labels = inputs.embeddings, inputs.labels
    return loss(rows, labels) if miner is None else loss(rows, labels, miner(rows, labels))


def of_two_sets(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    return loss(inputs.embeddings, ref_emb=inputs.other)


def of_two_views(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    return loss(inputs.embeddings, inputs.other)


def of_label_sets(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    return loss(inputs.embeddings, inputs.label_sets)


def with_given_proxies(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    return loss(inputs.embeddings, indices_tuple=inputs.labels % loss.K)


def in_threes(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    rows = len(inputs.labels) // 3 * 3
    embeddings, labels = inputs.embeddings[:rows], inputs.labels[:rows]
    return loss(embeddings, labels, miner(embeddings, labels))


def from_the_start_of_the_queue(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    """Every call replaces the same rows: the queue is the same for all calls."""
    loss.queue_idx = 0
    return loss(inputs.embeddings, inputs.labels)


def with_an_empty_histogram(loss: Any, inputs: Inputs, miner: Any) -> Tensor:
    """Every call is the first of a new loss: the running histogram would make each differ."""
    loss.hist_ = torch.zeros_like(loss.hist_).detach()
    return loss(inputs.embeddings, inputs.labels)


def labels_or_other(inputs: Inputs) -> Tensor:
    return inputs.labels if inputs.other is None else inputs.other


def label_sets(inputs: Inputs) -> Tensor:
    return inputs.label_sets


@dataclass(frozen=True)
class Operation:
    """How a library with PyTorch Metric Learning's API runs an operation.

    against: what the rows are compared with; beside: what the dense formula takes beside the rows; own: arguments of the loss
    from the number of classes; build: makes a loss that wraps others; in_peer: whether PML has it; peer_is_exact: whether its
    float64 answer is the definition's; streams: whether an algorithm exists that holds no N x M tensor; square: classes of as
    many rows as there are classes, in order; drawn: the miner draws, so that each peer is held to its own tuple; dense_oracle:
    whether this library has it over the matrix, on its backend ``reference``; compared: whether its time is judged by the
    floor of its products.
    """

    loss: str
    miner: str | None = None
    tolerance: Tolerance = SMOOTH
    against: str = BATCH
    call: Call = with_labels
    beside: Callable[[Inputs], Tensor] = labels_or_other
    own: Callable[[int], Mapping[str, Any]] = field(default=lambda classes: {})
    build: Callable[[SimpleNamespace, int], Any] | None = None
    centres: int = 1
    in_peer: bool = True
    peer_is_exact: bool = True
    streams: bool = True
    square: bool = False
    drawn: bool = False
    dense_oracle: bool = True
    compared: bool = False

    def make(self, library: SimpleNamespace, columns: int, seed: int) -> Any:
        """The loss of a library (its modules ``losses`` and ``miners``), with parameters of that seed."""
        loss = self.build(library, columns) if self.build else getattr(library.losses, self.loss)(**self.own(columns))
        generator = torch.Generator().manual_seed(seed)
        for parameter in loss.parameters():
            if parameter.dim() > 1:  # weights; what is a single number starts as its loss starts it
                parameter.data.normal_(generator=generator)
        return loss

    def make_miner(self, library: SimpleNamespace) -> Any:
        return None if self.miner is None else getattr(library.miners, self.miner)()


def _sizes(classes: int) -> Mapping[str, Any]:
    return {"num_classes": classes, "embedding_size": DIM}


def _queued(loss: str, miner: str | None = None) -> Operation:
    def build(m: SimpleNamespace, memory: int) -> Any:
        mined = {} if miner is None else {"miner": getattr(m.miners, miner)()}
        return m.losses.CrossBatchMemory(getattr(m.losses, loss)(), DIM, memory, **mined)

    tolerance = COUNTED if loss == "ContrastiveLoss" else SMOOTH
    call = from_the_start_of_the_queue
    return Operation("CrossBatchMemory", None, tolerance, QUEUE, call, build=build, compared=True)


def _class_loss(name: str, own: Callable[[int], Mapping[str, Any]] = _sizes, **options: Any) -> Operation:
    return Operation(name, against=CLASSES, own=own, compared=True, **options)


def _two(m: SimpleNamespace, classes: int) -> Any:
    return m.losses.MultipleLosses([m.losses.ContrastiveLoss(), m.losses.SupConLoss()], weights=[0.5, 2.0])


# The operations of the core suite.
CORE = {
    "supcon": Operation("SupConLoss", compared=True),
    "ntxent": Operation("NTXentLoss", compared=True),
    "multi_similarity": Operation("MultiSimilarityLoss", compared=True),
    "circle": Operation("CircleLoss", compared=True),
    "contrastive": Operation("ContrastiveLoss", tolerance=COUNTED, compared=True),
    "triplet_all": Operation("TripletMarginLoss", tolerance=COUNTED),
    "batch_hard_triplet": Operation("TripletMarginLoss", "BatchHardMiner", COUNTED),
    "multi_similarity_mined": Operation("MultiSimilarityLoss", "MultiSimilarityMiner", compared=True),
}
PAIRS = {
    "angular": Operation("AngularLoss"),
    "generalized_lifted": Operation("GeneralizedLiftedStructureLoss", tolerance=COUNTED, compared=True),
    "instance": Operation("InstanceLoss", compared=True),
    "intra_pair_variance": Operation("IntraPairVarianceLoss", tolerance=COUNTED, compared=True),
    "lifted": Operation("LiftedStructureLoss", tolerance=COUNTED, compared=True),
    "margin": Operation("MarginLoss", tolerance=COUNTED, own=lambda _: {"learn_beta": True}, compared=True),
    "nca": Operation("NCALoss", compared=True),
    "n_pairs": Operation("NPairsLoss", compared=True),
    "ranked_list": Operation("RankedListLoss", tolerance=COUNTED, own=lambda _: {"margin": 0.4, "Tn": 1.0}, compared=True),
    "snr_contrastive": Operation("SignalToNoiseRatioContrastiveLoss", tolerance=COUNTED, compared=True),
    "threshold_consistent": Operation("ThresholdConsistentMarginLoss", tolerance=COUNTED, compared=True),
    "tuplet": Operation("TupletMarginLoss", compared=True),
    "multi_supcon": Operation("MultiSupConLoss", call=of_label_sets, beside=label_sets, in_peer=False, compared=True),
    "multiple_losses": Operation("MultipleLosses", tolerance=COUNTED, build=_two),
}
RANKS = {
    "dynamic_soft_margin": Operation(
        "DynamicSoftMarginLoss", tolerance=COUNTED, call=with_an_empty_histogram, dense_oracle=False
    ),
    "fast_ap": Operation("FastAPLoss", tolerance=COUNTED),
    "histogram": Operation("HistogramLoss", tolerance=COUNTED, dense_oracle=False),
    "pnp": Operation("PNPLoss"),
    # PML takes as many consecutive rows as there are classes for a class, and keeps precisions in float32.
    "smooth_ap": Operation("SmoothAPLoss", square=True, peer_is_exact=False),
    # PML inverts the matrix in float32.
    "manifold": Operation(
        "ManifoldLoss",
        tolerance=COUNTED,
        call=with_given_proxies,
        own=lambda _: {"l": DIM},
        peer_is_exact=False,
        streams=False,
    ),
    "vicreg": Operation("VICRegLoss", tolerance=COUNTED, against=FEATURES, call=of_two_sets),
}
TWO_SETS = {
    "clip": Operation("CLIPLoss", against=OTHER, call=of_two_sets, in_peer=False, compared=True),
    "siglip": Operation("SigLIPLoss", against=OTHER, call=of_two_sets, in_peer=False, compared=True),
    "self_supervised": Operation(
        "SelfSupervisedLoss",
        against=OTHER,
        call=of_two_views,
        build=lambda m, _: m.losses.SelfSupervisedLoss(m.losses.NTXentLoss()),
    ),
}
CLASS_LOSSES = {
    "arcface": _class_loss("ArcFaceLoss"),
    "cosface": _class_loss("CosFaceLoss"),
    "sphereface": _class_loss("SphereFaceLoss"),
    "large_margin_softmax": _class_loss("LargeMarginSoftmaxLoss"),
    "subcenter_arcface": _class_loss("SubCenterArcFaceLoss", lambda c: {**_sizes(c), "sub_centers": 2}, centres=2),
    "normalized_softmax": _class_loss("NormalizedSoftmaxLoss"),
    "proxy_nca": _class_loss("ProxyNCALoss"),
    "proxy_anchor": _class_loss("ProxyAnchorLoss"),
    # Two centres a class, so that a million classes fit beside their gradients.
    "soft_triple": _class_loss("SoftTripleLoss", lambda c: {**_sizes(c), "centers_per_class": 2}, centres=2),
    "p2s_grad": _class_loss("P2SGradLoss", lambda c: {"descriptors_dim": DIM, "num_classes": c}),
}
MINED = {
    "angular_mined": Operation("TripletMarginLoss", "AngularMiner", COUNTED),
    "easy_hard_mined": Operation("ContrastiveLoss", "BatchEasyHardMiner", COUNTED),
    "distance_weighted_mined": Operation("MarginLoss", "DistanceWeightedMiner", COUNTED, drawn=True),
    "packaged_triplets": Operation("TripletMarginLoss", "EmbeddingsAlreadyPackagedAsTriplets", COUNTED, call=in_threes),
    "hdc_mined": Operation("ContrastiveLoss", "HDCMiner", COUNTED),
    "label_comparison_mined": Operation("ContrastiveLoss", "LabelComparisonMiner", COUNTED, in_peer=False, streams=False),
    "pair_margin_mined": Operation("ContrastiveLoss", "PairMarginMiner", COUNTED),
    "triplet_margin_mined": Operation("TripletMarginLoss", "TripletMarginMiner", COUNTED),
    "uniform_histogram_mined": Operation("ContrastiveLoss", "UniformHistogramMiner", COUNTED, drawn=True),
}
QUEUED = {
    "queue_contrastive": _queued("ContrastiveLoss"),
    "queue_ntxent": _queued("NTXentLoss"),
    "queue_multi_similarity_mined": _queued("MultiSimilarityLoss", "MultiSimilarityMiner"),
}
OPERATIONS = {**CORE, **PAIRS, **RANKS, **TWO_SETS, **CLASS_LOSSES, **MINED, **QUEUED}
