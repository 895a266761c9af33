"""The cases of the agreement with pytorch-metric-learning 2.9, and where the two libraries differ on purpose."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from agreement_options import EVERY, LOSSES, ONE_DISTANCE, REPEATING, TUPLES, Loss

ROWS, FEATURES = (2, 3, 5, 7, 9, 12, 16, 20, 24), (2, 3, 4, 6, 8, 11)


@dataclass(frozen=True)
class Case:
    """One call of one loss. The defaults are the simplest options."""

    loss: str
    miner: str = "none"
    mined_with: str = "own"
    distance: str = "default"
    reducer: str = "default"
    reference: str = "itself"
    regularizer: str = "none"
    weights: str = "none"
    labels: str = "even"
    rows: int = 8
    ref_rows: int = 6
    features: int = 4
    seed: int = 0

    @property
    def what(self) -> Loss:
        return LOSSES[self.loss]

    def __str__(self) -> str:
        """The call that runs it again."""
        kept = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"agree(Case({', '.join(kept)}))"


def options(loss: Loss) -> dict[str, tuple[str, ...]]:
    """What a loss takes, an axis."""
    return {
        "miner": loss.indices,
        "mined_with": EVERY["mined_with"],
        "distance": loss.distances,
        "reducer": loss.reducers,
        "reference": loss.references,
        "regularizer": loss.regularizers,
        "weights": loss.weights,
        "labels": loss.labels,
    }


def meaningless(case: Case) -> bool:
    """Combinations that say the same as another one, or that cannot be made."""
    own = case.miner in ("none", *TUPLES, *ONE_DISTANCE)
    if case.mined_with == "same" and (own or case.distance == "default"):
        return True
    if case.miner == "packaged" and (case.rows % 3 or case.reference == "separate" or case.labels == "square"):
        return True
    return case.what.call == "queue" and case.rows < 9


def difference(case: Case) -> str | None:
    """Why the two libraries differ here on purpose, or ``None``. `test_differences.py` and the files named have the tests."""
    what, separate = case.what, case.reference == "separate" or case.what.call == "queue"
    per_anchor = case.reducer.startswith("per_anchor")
    if what.columns and case.reducer == "class_weighted":
        return "the peer's losses have shape [N, 1], so that class weights form an outer product (test_differences.py)"
    if what.columns and what.pairs and per_anchor:
        return "the peer's PerAnchorReducer fails for losses of shape [N, 1] (test_pair_loss_edges.py)"
    if what.pairs and per_anchor and separate:
        return "the peer's PerAnchorReducer knows no reference set (test_differences.py)"
    if what.pairs and per_anchor and case.miner in REPEATING:
        return "the peer's PerAnchorReducer counts the gradient of a pair that is named twice, twice (test_differences.py)"
    unbounded = case.distance in ("dot_raw", "l2_raw", "l2_squared_raw", "snr")
    counts = case.reducer in ("avg_non_zero", "per_anchor_avg") or (case.loss.endswith("supcon") and case.reducer == "default")
    if case.loss.endswith(("multi_similarity", "supcon", "proxy_anchor")) and counts and unbounded:
        return "a loss below the rounding of 1 is 0 in one library and not in the other (test_differences.py)"
    if "ntxent" in case.loss and case.distance == "snr" and case.features < 6:
        return "the peer's loss saturates (test_differences.py)"
    if case.what.call == "queue" and case.reducer == "do_nothing":
        return "the reference set is the queue turned, and its indices with it (test_wrappers.py)"
    if "swap" in case.loss and separate:
        return "the peer's swap indexes the matrix of batch and reference set with two reference indices (test_differences.py)"
    if case.loss in ("lifted", "tcm") and separate:
        return "the peer takes rows of the reference set for rows of the batch (test_pair_loss_edges.py)"
    if case.loss == "n_pairs" and case.miner in ("multi_similarity", "hdc"):
        return "the first pair of a class is another one, as the peer orders a tuple by distance (test_pair_loss_edges.py)"
    if case.loss == "proxy_anchor" and case.reducer == "class_weighted":
        return "the peer weighs proxies by the labels of rows (test_class_losses.py)"
    return None


def allowed(case: Case) -> bool:
    fits = all(getattr(case, axis) in values for axis, values in options(case.what).items())
    return fits and not meaningless(case) and difference(case) is None


def draw(rng: random.Random, loss: str, fixed: dict[str, str], tries: int = 40) -> Case | None:
    """A random case of a loss with the options given, or ``None`` where none is found."""
    axes = options(LOSSES[loss])
    if any(value not in axes[axis] for axis, value in fixed.items()):
        return None
    for _ in range(tries):
        chosen = {axis: fixed.get(axis) or rng.choice(values) for axis, values in axes.items()}
        if "mined_with" not in fixed and rng.random() < 0.5:
            chosen["mined_with"] = "own"
        shape = {"rows": rng.choice(ROWS), "ref_rows": rng.choice(ROWS), "features": rng.choice(FEATURES)}
        case = Case(loss, **chosen, **shape, seed=rng.randrange(1000))
        if allowed(case):
            return case
    return None
