"""What the agreement with pytorch-metric-learning 2.9 is tested over: every option of every axis, as both libraries make it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytorch_metric_learning as pml
import torch
from torch import Tensor

import pml_fast

CLASSES = 24
WEIGHTS = torch.linspace(0.1, 3.5, CLASSES, dtype=torch.float64)

Make = Callable[..., Any]


def library(package: Any) -> SimpleNamespace:
    """The modules of one of the two libraries."""
    names = ("distances", "losses", "miners", "reducers", "regularizers")
    return SimpleNamespace(**{name: __import__(f"{package.__name__}.{name}", fromlist=[name]) for name in names})


PEER, OURS = library(pml), library(pml_fast)


def users_distance(m: SimpleNamespace) -> Any:
    """A distance as a user writes it: only its matrix is known."""

    class Bent(m.distances.BaseDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb.unsqueeze(1) - ref_emb).square() + 0.01).sqrt().mean(dim=2)

        def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return ((query_emb - ref_emb).square() + 0.01).sqrt().mean(dim=1)

    return Bent()


def users_cosine(m: SimpleNamespace) -> Any:
    """A subclass of a distance of the library, as a user writes it."""

    class Own(m.distances.CosineSimilarity):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return 0.9 * query_emb @ ref_emb.t()

    return Own()


DISTANCES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "cosine": lambda m: m.distances.CosineSimilarity(),
    "cosine_p1": lambda m: m.distances.CosineSimilarity(p=1),
    "cosine_cubed": lambda m: m.distances.CosineSimilarity(power=3),
    "dot": lambda m: m.distances.DotProductSimilarity(),
    "dot_raw": lambda m: m.distances.DotProductSimilarity(normalize_embeddings=False),
    "l2": lambda m: m.distances.LpDistance(),
    "l2_squared": lambda m: m.distances.LpDistance(power=2),
    "l2_raw": lambda m: m.distances.LpDistance(normalize_embeddings=False),
    "l2_squared_raw": lambda m: m.distances.LpDistance(normalize_embeddings=False, power=2),
    "l1": lambda m: m.distances.LpDistance(p=1),
    "l3": lambda m: m.distances.LpDistance(p=3),
    "snr": lambda m: m.distances.SNRDistance(),
    "users": users_distance,
    "users_cosine": users_cosine,
}
ANY = tuple(name for name in DISTANCES if name != "users_cosine")
COSINES = ("default", "cosine", "cosine_p1", "cosine_cubed", "users_cosine")

REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "mean": lambda m: m.reducers.MeanReducer(),
    "sum": lambda m: m.reducers.SumReducer(),
    "avg_non_zero": lambda m: m.reducers.AvgNonZeroReducer(),
    "above": lambda m: m.reducers.ThresholdReducer(low=0.1),
    "between": lambda m: m.reducers.ThresholdReducer(low=0.02, high=0.8),
    "below": lambda m: m.reducers.ThresholdReducer(high=0.6),
    "per_anchor": lambda m: m.reducers.PerAnchorReducer(),
    "per_anchor_avg": lambda m: m.reducers.PerAnchorReducer(m.reducers.AvgNonZeroReducer()),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(WEIGHTS.clone()),
    "divisor": lambda m: m.reducers.DivisorReducer(),
    "multiple": lambda m: m.reducers.MultipleReducers(
        {
            "loss": m.reducers.ThresholdReducer(low=0.05),
            "pos_loss": m.reducers.MeanReducer(),
            "neg_loss": m.reducers.SumReducer(),
        },
        default_reducer=m.reducers.MeanReducer(),
    ),
    "do_nothing": lambda m: m.reducers.DoNothingReducer(),
}
COMMON_REDUCERS = tuple(name for name in REDUCERS if name != "divisor")
SCALAR_REDUCERS = tuple(name for name in COMMON_REDUCERS if name != "do_nothing")

REGULARIZERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "none": lambda m: None,
    "lp": lambda m: m.regularizers.LpRegularizer(),
    "lp_squared": lambda m: m.regularizers.LpRegularizer(p=2, power=2),
    "zero_mean": lambda m: m.regularizers.ZeroMeanRegularizer(),
    "center_invariant": lambda m: m.regularizers.CenterInvariantRegularizer(),
    "regular_face": lambda m: m.regularizers.RegularFaceRegularizer(),
}
OF_CENTERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    **REGULARIZERS,
    "sparse_centers": lambda m: m.regularizers.SparseCentersRegularizer(CLASSES, 3),
}

MINERS: dict[str, Make] = {
    "batch_hard": lambda m, **k: m.miners.BatchHardMiner(**k),
    "easy_semihard": lambda m, **k: m.miners.BatchEasyHardMiner(**k),
    "semihard_hard": lambda m, **k: m.miners.BatchEasyHardMiner("semihard", "hard", **k),
    "ranged": lambda m, **k: m.miners.BatchEasyHardMiner(
        "hard", "easy", allowed_pos_range=(0.1, 1.2), allowed_neg_range=(-0.5, 1.4), **k
    ),
    "all_hard": lambda m, **k: m.miners.BatchEasyHardMiner("all", "hard", **k),
    "easy_all": lambda m, **k: m.miners.BatchEasyHardMiner("easy", "all", **k),
    "multi_similarity": lambda m, **k: m.miners.MultiSimilarityMiner(**k),
    "pair_margin": lambda m, **k: m.miners.PairMarginMiner(0.4, 1.2, **k),
    "triplet_all": lambda m, **k: m.miners.TripletMarginMiner(0.2, "all", **k),
    "triplet_hard": lambda m, **k: m.miners.TripletMarginMiner(0.2, "hard", **k),
    "triplet_semihard": lambda m, **k: m.miners.TripletMarginMiner(0.3, "semihard", **k),
    "triplet_easy": lambda m, **k: m.miners.TripletMarginMiner(0.1, "easy", **k),
    "angular": lambda m, **k: m.miners.AngularMiner(35, **k),
    "hdc": lambda m, **k: m.miners.HDCMiner(0.4, **k),
    "packaged": lambda m, **k: m.miners.EmbeddingsAlreadyPackagedAsTriplets(**k),
    # Drawn by the peer for both.
    "distance_weighted": lambda m, **k: m.miners.DistanceWeightedMiner(0.3, 1.6, **k),
    "uniform_histogram": lambda m, **k: m.miners.UniformHistogramMiner(9, 4, 5, **k),
}
DRAWN = ("distance_weighted", "uniform_histogram")
# A user's own tuples.
TUPLES = ("pairs", "triplets")
INDICES = ("none", *TUPLES, *MINERS)
# Miners that know one distance only.
ONE_DISTANCE = ("angular", "distance_weighted", "packaged")
# Tuples that may name a pair twice.
REPEATING = (
    *("triplets", "triplet_all", "triplet_hard", "triplet_semihard", "triplet_easy"),
    *("angular", "distance_weighted", "uniform_histogram", "packaged"),
)

LABELS = ("even", "random", "one", "distinct", "singletons", "imbalanced")


def labels_of(pattern: str, n: int, gen: torch.Generator) -> Tensor:
    if pattern == "one":
        return torch.ones(n, dtype=torch.int64)
    if pattern == "even":
        return torch.arange(n) % 4
    if pattern == "distinct":
        return torch.randperm(CLASSES, generator=gen)[:n]
    if pattern == "square":
        return torch.arange(n) // round(n**0.5)
    if pattern == "imbalanced":
        return (torch.rand(n, generator=gen).square() * 6).long()
    labels = torch.randint(0, 4, (n,), generator=gen)
    if pattern == "singletons":
        labels[n // 2], labels[-1] = 7, 11
    return labels


def explicit(kind: str, labels: Tensor, ref_labels: Tensor, itself: bool, gen: torch.Generator) -> tuple[Tensor, ...]:
    """A user's own tuple: about half of all pairs, or of all triplets."""
    same = labels.unsqueeze(1) == ref_labels
    pos, neg = same.clone(), ~same
    if itself:
        pos.fill_diagonal_(False)
    if kind == "pairs":
        keep = torch.rand(same.shape, generator=gen) < 0.5
        return (*torch.where(pos & keep), *torch.where(neg & keep))
    triplets = torch.where(pos.unsqueeze(2) & neg.unsqueeze(1))
    keep = torch.rand(len(triplets[0]), generator=gen) < 0.5
    return tuple(index[keep] for index in triplets)


@dataclass(frozen=True)
class Loss:
    """How a loss is made, and the options that it takes.

    make: of a library, the number of features and keywords. columns: the peer's losses have shape [K, 1]. pairs: its losses are
    one a pair. near: how near the two libraries come, less where the peer keeps a part in float32. call: how it is called.
    """

    make: Make
    distances: tuple[str, ...] = ANY
    reducers: tuple[str, ...] = COMMON_REDUCERS
    indices: tuple[str, ...] = INDICES
    references: tuple[str, ...] = ("itself", "separate")
    regularizers: tuple[str, ...] = tuple(REGULARIZERS)
    weights: tuple[str, ...] = ("none",)
    labels: tuple[str, ...] = LABELS
    columns: bool = False
    pairs: bool = False
    near: float = 1e-7
    call: str = "labels"


def ranked(m: SimpleNamespace, d: int, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return m.losses.RankedListLoss(margin=0.4, Tn=10, Tp=1, **options)


def of(name: str, **own: Any) -> Make:
    return lambda m, d, **k: getattr(m.losses, name)(**own, **k)


def of_classes(name: str, dimension: str = "embedding_size", **own: Any) -> Make:
    return lambda m, d, **k: getattr(m.losses, name)(**{"num_classes": CLASSES, dimension: d, **own, **k})


def queue(inner: Make) -> Make:
    """miner: how the wrapper's own miner is made, or None."""

    def make(m: SimpleNamespace, d: int, miner: Any = None, **options: Any) -> Any:
        return m.losses.CrossBatchMemory(inner(m, d, **options), d, 29, miner=miner)

    return make


def two(m: SimpleNamespace, d: int, **options: Any) -> Any:
    parts = [m.losses.ContrastiveLoss(0.2, 1.1, **options), m.losses.TripletMarginLoss(0.2, **options)]
    return m.losses.MultipleLosses(parts, weights=[0.5, 2.0])


CONTRASTIVE = of("ContrastiveLoss", pos_margin=0.3, neg_margin=1.1)
MULTI_SIMILARITY = of("MultiSimilarityLoss", beta=6)
PAIR_LOSSES = {
    "supcon": Loss(of("SupConLoss")),
    "ntxent": Loss(of("NTXentLoss", temperature=0.2), pairs=True),
    "multi_similarity": Loss(MULTI_SIMILARITY, columns=True),
    "circle": Loss(of("CircleLoss"), distances=COSINES[:2], columns=True),
    "contrastive": Loss(CONTRASTIVE, pairs=True),
    "triplet": Loss(of("TripletMarginLoss", margin=0.2)),
    "triplet_swap": Loss(of("TripletMarginLoss", swap=True)),
    "triplet_smooth": Loss(of("TripletMarginLoss", smooth_loss=True)),
    "triplet_swap_smooth": Loss(of("TripletMarginLoss", swap=True, smooth_loss=True)),
    "nca": Loss(of("NCALoss", softmax_scale=2)),
    "lifted": Loss(of("LiftedStructureLoss", neg_margin=1.1, pos_margin=0.2), columns=True, pairs=True),
    "generalized_lifted": Loss(of("GeneralizedLiftedStructureLoss", pos_margin=0.3), columns=True),
    "intra_pair_variance": Loss(of("IntraPairVarianceLoss", pos_eps=0.02, neg_eps=0.03), pairs=True),
    "tuplet": Loss(of("TupletMarginLoss", scale=8), distances=("default",), columns=True, pairs=True),
    "ranked_list": Loss(ranked, indices=("none",), references=("itself",)),
    "snr_contrastive": Loss(of("SignalToNoiseRatioContrastiveLoss", pos_margin=0.1), distances=("default",), pairs=True),
    "tcm": Loss(
        of("ThresholdConsistentMarginLoss", lambda_plus=1.5, lambda_minus=0.5, margin_plus=0.6, margin_minus=0.1),
        distances=("default",),
    ),
    "n_pairs": Loss(of("NPairsLoss"), references=("itself",)),
    "instance": Loss(of("InstanceLoss", gamma=8), distances=("default",), indices=("none",), references=("itself",)),
    "angular": Loss(of("AngularLoss", alpha=35), distances=("default",), columns=True, pairs=True),
    "margin": Loss(of("MarginLoss"), reducers=tuple(REDUCERS)),
    "margin_learned": Loss(of("MarginLoss", nu=0.3, beta=0.9, learn_beta=True), reducers=tuple(REDUCERS)),
    "margin_classes": Loss(
        of("MarginLoss", margin=0.3, nu=0.2, beta=1.1, learn_beta=True, num_classes=CLASSES), reducers=tuple(REDUCERS)
    ),
    "margin_classes_fixed": Loss(of("MarginLoss", num_classes=CLASSES), reducers=tuple(REDUCERS)),
}


def class_loss(make: Make, distances: tuple[str, ...] = COSINES, **options: Any) -> Loss:
    return Loss(make, distances, **{"references": ("itself",), "weights": tuple(REGULARIZERS), **options})


# Small scales: a loss below the rounding of 1 is 0 there and not here, and some reducers count it.
CLASS_LOSSES = {
    "arcface": class_loss(of_classes("ArcFaceLoss", scale=6)),
    "arcface_wide": class_loss(of_classes("ArcFaceLoss", margin=100.0, scale=4)),
    "cosface": class_loss(of_classes("CosFaceLoss", scale=8)),
    "sphereface": class_loss(of_classes("SphereFaceLoss")),
    "sphereface_3": class_loss(of_classes("SphereFaceLoss", margin=3, scale=0.7)),
    "large_margin": class_loss(of_classes("LargeMarginSoftmaxLoss", scale=0.5)),
    "large_margin_1": class_loss(of_classes("LargeMarginSoftmaxLoss", margin=1)),
    "subcenter": class_loss(of_classes("SubCenterArcFaceLoss", scale=6)),
    "normalized": class_loss(of_classes("NormalizedSoftmaxLoss", temperature=0.3), ANY),
    "proxy_nca": class_loss(of_classes("ProxyNCALoss", softmax_scale=2), ANY),
    "proxy_anchor": class_loss(of_classes("ProxyAnchorLoss", alpha=8), ANY),
    "soft_triple": class_loss(
        of_classes("SoftTripleLoss", centers_per_class=3, la=6),
        ("default", "cosine", "dot", "dot_raw"),
        weights=tuple(OF_CENTERS),
    ),
    # The peer's unit vectors have norms of 1 - 1e-7.
    "p2s_grad": class_loss(
        of_classes("P2SGradLoss", "descriptors_dim"), ("default",), indices=("none",), weights=("none",), near=1e-6
    ),
}


def rank_loss(make: Make, distances: tuple[str, ...], **options: Any) -> Loss:
    return Loss(make, distances, **{"references": ("itself",), **options})


L2 = ("default", "l2")
RANK_LOSSES = {
    "fast_ap": rank_loss(of("FastAPLoss"), (*L2, "l2_squared")),
    "fast_ap_bins": rank_loss(of("FastAPLoss", num_bins=7), (*L2, "l2_squared")),
    **{
        f"pnp_{variant}": rank_loss(
            of("PNPLoss", b=3, alpha=1.5, anneal=0.05, variant=variant), ("default", "cosine"), indices=("none",)
        )
        for variant in ("Ds", "Dq", "Iu", "Ib", "O")
    },
    # The peer's histogram has its nodes in float32.
    "histogram": rank_loss(of("HistogramLoss"), ("default", "cosine", "dot", "cosine_cubed"), near=1e-4),
    "histogram_delta": rank_loss(of("HistogramLoss", delta=0.3), ("default", "cosine", "dot", "cosine_cubed"), near=1e-4),
    "histogram_bins": rank_loss(of("HistogramLoss", n_bins=16), ("default", "cosine", "dot", "cosine_cubed"), near=1e-4),
    "soft_margin": rank_loss(of("DynamicSoftMarginLoss"), L2),
    "soft_margin_bins": rank_loss(of("DynamicSoftMarginLoss", min_val=-3.0, num_bins=23, momentum=0.3), L2),
    # The peer keeps precisions in float32, and takes as many consecutive rows for a class as there are classes.
    "smooth_ap": rank_loss(of("SmoothAPLoss", temperature=0.2), ("default", "cosine"), labels=("square",), near=1e-5),
    # The peer inverts its matrix in float32.
    "manifold": Loss(
        lambda m, d, **k: m.losses.ManifoldLoss(l=d, K=3, lambdaC=1.5, alpha=0.6, margin=0.01, **k),
        ("default", "cosine", "dot", "l2"),
        reducers=("default", "mean", "sum"),
        indices=("none",),
        references=("itself",),
        near=1e-4,
        call="proxies",
    ),
    "vicreg": Loss(of("VICRegLoss"), ("default",), reducers=("default", "mean", "sum", "avg_non_zero", "between", "do_nothing"),
                   indices=("none",), regularizers=("none",), call="views"),
    "vicreg_weighted": Loss(of("VICRegLoss", invariance_lambda=3, variance_mu=0.5, covariance_v=7, eps=0.01), ("default",),
                            reducers=("default", "mean", "sum", "avg_non_zero", "between", "do_nothing"),
                            indices=("none",), regularizers=("none",), call="views"),
}  # fmt: skip
QUEUED_MINERS = tuple(name for name in INDICES if name not in (*TUPLES, *DRAWN, "packaged", "hdc", "angular"))
WRAPPERS = {
    **{
        f"queue_{name}": Loss(
            queue(PAIR_LOSSES[name].make),
            PAIR_LOSSES[name].distances,
            indices=QUEUED_MINERS,
            references=("itself",),
            columns=PAIR_LOSSES[name].columns,
            pairs=PAIR_LOSSES[name].pairs,
            call="queue",
        )
        for name in (
            "contrastive",
            "ntxent",
            "supcon",
            "multi_similarity",
            "circle",
            "triplet",
            "triplet_smooth",
            "margin_learned",
        )
    },
    "multiple_losses": Loss(two, reducers=SCALAR_REDUCERS, references=("itself",), pairs=True),
    "self_supervised": Loss(
        lambda m, d, **k: m.losses.SelfSupervisedLoss(m.losses.NTXentLoss(0.2, **k)),
        indices=("none",),
        references=("separate",),
        pairs=True,
        call="views",
    ),
    "self_supervised_one_way": Loss(
        lambda m, d, **k: m.losses.SelfSupervisedLoss(m.losses.SupConLoss(**k), symmetric=False),
        indices=("none",),
        references=("separate",),
        call="views",
    ),
}
LOSSES: dict[str, Loss] = {**PAIR_LOSSES, **CLASS_LOSSES, **RANK_LOSSES, **WRAPPERS}
# Of what an option may be, whatever the loss.
EVERY = {
    "miner": INDICES,
    "mined_with": ("own", "same"),
    "distance": tuple(dict.fromkeys(itertools.chain.from_iterable(loss.distances for loss in LOSSES.values()))),
    "reducer": tuple(REDUCERS),
    "reference": ("itself", "separate"),
    "regularizer": tuple(REGULARIZERS),
    "weights": tuple(OF_CENTERS),
    "labels": (*LABELS, "square"),
}
