"""The multi-similarity miner's rule found by the sweep that folds it: the loss of the tuple it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, distances, explain, losses, miners
from pml_fast.engine import lazy as lazy_tuples
from pml_fast.engine import operator
from pml_fast.engine.score import Score
from pml_fast.engine.search import Search
from pml_fast.engine.settings import use

Loss = Callable[..., Any]

# Every way a spec folds: levels that are known and that are not, one sweep that collects, two terms, means of all scores.
LOSSES: dict[str, Loss] = {
    "multi_similarity": losses.MultiSimilarityLoss,
    "contrastive": losses.ContrastiveLoss,
    "ntxent": lambda **k: losses.NTXentLoss(temperature=0.1, **k),
    "circle": losses.CircleLoss,
    "intra_pair_variance": losses.IntraPairVarianceLoss,
    "generalized_lifted": losses.GeneralizedLiftedStructureLoss,
    "lifted": losses.LiftedStructureLoss,
    "threshold_consistent": losses.ThresholdConsistentMarginLoss,
}
DISTANCES: dict[str, Loss] = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "l2": distances.LpDistance,
    "l2_squared_raw": lambda: distances.LpDistance(normalize_embeddings=False, power=2),
}
COSINE_ONLY = ("circle", "threshold_consistent")
BACKENDS = [
    pytest.param("cpu", marks=pytest.mark.skipif(_extension.load() is None, reason="the extension is not compiled")),
    "chunked",
    "reference",
]
# One call for a small set, tiles of one set, of two sets, and of a set that begins with the batch.
SHAPES = {"small": (30, 0), "small_refs": (20, 33), "tiles": (1100, 0), "tiles_refs": (300, 2100), "streamed": (40, 20_000)}


def batch(rows: int, columns: int, dim: int = 6) -> tuple[Tensor, ...]:
    """Few features, so that rules cut; a class of one, a class without negatives of its own in no set."""
    gen = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, dim, dtype=torch.float64, generator=gen)
    labels = torch.randint(0, max(rows // 4, 2), (rows,), generator=gen)
    labels[-1] = 10_000
    if not columns:
        return x, labels
    y = torch.randn(columns, dim, dtype=torch.float64, generator=gen)
    return x, labels, y, torch.randint(0, max(rows // 4, 2), (columns,), generator=gen)


def outcome(loss: Any, data: tuple[Tensor, ...], indices: Any) -> list[Tensor]:
    """Value and gradients by every set."""
    sets = [part.requires_grad_() for part in data[::2]]
    value = loss(*data[:2], indices, *data[2:])
    return [value.detach(), *torch.autograd.grad(value, sets)]


def assert_as_listed(loss: Any, miner: Any, data: tuple[Tensor, ...]) -> None:
    mined = miner(*data)
    got = outcome(loss, data, mined)
    assert callable(mined._rule), "the rule was searched for before the loss"
    want = outcome(loss, data, tuple(miner(*data)))
    assert want[0] != 0 and any(part.any() for part in want[1:])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.skipif(_extension.load() is None, reason="the extension is not compiled")
def test_the_compiled_sweep_finds_the_rule(name: str, distance: str, shape: str) -> None:
    if name in COSINE_ONLY and distance != "cosine":
        return
    own = DISTANCES[distance]
    loss, data = LOSSES[name](distance=own()), batch(*SHAPES[shape])
    for epsilon in (0.1, 0.0, -0.05):
        miner = miners.MultiSimilarityMiner(epsilon=epsilon, distance=own())
        with use(backend="cpu"):
            assert_as_listed(loss, miner, data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", ["small", "small_refs"])
@pytest.mark.parametrize("name", LOSSES)
def test_backends_that_cannot_search_first(name: str, shape: str, backend: str) -> None:
    """These search in the operator, and then sweep."""
    loss, data = LOSSES[name](), batch(*SHAPES[shape])
    mined = miners.MultiSimilarityMiner(distance=loss.distance)(*data)
    with use(backend=backend):
        got = outcome(loss, data, mined)
        want = outcome(loss, data, tuple(mined))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [64, 3000])
def test_a_row_s_own_copy_bounds_its_negatives(size: int, backend: str) -> None:
    """In a queue that begins with the batch the copy is a positive to the miner, and no pair to the loss."""
    x, labels = batch(48, 0)
    # Anchors whose only positive is their own copy.
    labels[:8] = torch.arange(500, 508)
    miner = miners.MultiSimilarityMiner(epsilon=0.6)
    found = []
    for seen in (miner, lambda *data: tuple(miner(*data))):
        queue = losses.CrossBatchMemory(losses.MultiSimilarityLoss(), 6, size, seen)
        queue.embedding_memory = torch.randn(size, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        queue.label_memory = torch.arange(size) % 12
        queue.has_been_filled = True
        leaf = x.clone().requires_grad_()
        with use(backend=backend):
            value = queue(leaf, labels)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
    assert found[0][1][:8].any(), "no negative of an anchor that has only its copy was kept"
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [12, 1100])
@pytest.mark.parametrize("what", ["one class", "no two alike", "one class but one"])
def test_anchors_without_a_side_keep_nothing_of_the_other(what: str, rows: int) -> None:
    x, _ = batch(rows, 0)
    labels = torch.zeros(rows, dtype=torch.int64) if "class" in what else torch.arange(rows)
    if what == "one class but one":
        labels[3] = 1
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(epsilon=5.0)
    got, want = outcome(loss, (x, labels), miner(x, labels)), outcome(loss, (x, labels), tuple(miner(x, labels)))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert bool(got[0] > 0) == (what == "one class but one")


@pytest.mark.parametrize("rows", [12, 1100])
def test_a_row_that_is_not_a_number_is_seen(rows: int) -> None:
    x, labels = batch(rows, 0)
    x[2, 0] = float("nan")
    assert losses.MultiSimilarityLoss()(x, labels, miners.MultiSimilarityMiner()(x, labels)).isnan()


@pytest.mark.parametrize("rows", [30, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_find_it_too(rows: int, dtype: torch.dtype) -> None:
    data = tuple(part.to(dtype) if part.is_floating_point() else part for part in batch(rows, 0))
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    got, want = outcome(loss, data, miner(*data)), outcome(loss, data, tuple(miner(*data)))
    torch.testing.assert_close(got, want, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_the_operator_is_asked_to_search_only_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search is one call fewer; where the scores differ, or single losses are wanted, the miner searches."""
    calls: list[str] = []
    real = operator.call

    def seen(name: str, *inputs: Any) -> Any:
        calls.append(name)
        return real(name, *inputs)

    monkeypatch.setattr(operator, "call", seen)
    data = batch(*SHAPES["small_refs"])
    mined = miners.MultiSimilarityMiner()(*data)
    losses.MultiSimilarityLoss()(*data[:2], mined, *data[2:])
    assert calls == ["pairwise_loss"] and "not materialised" in repr(mined)
    losses.MultiSimilarityLoss(distance=distances.LpDistance())(*data[:2], mined, *data[2:])
    assert calls == ["pairwise_loss", "row_extremes", "row_extremes", "pairwise_loss"]
    rule = mined.rule
    assert isinstance(rule, Tensor) and rule.shape == (4, len(data[0])) and mined.rule is rule


def test_explain_says_so() -> None:
    data = batch(*SHAPES["small"])
    found = explain(losses.MultiSimilarityLoss(), *data, miner=miners.MultiSimilarityMiner())
    assert found.mode == "fused" and any("found in the same sweep" in note for note in found.notes)


def test_a_search_survives_its_encoding() -> None:
    for search in (Search(0.1), Search(-0.3, True), Search(float("inf"))):
        assert Search.decode(search.encode()) == search


def test_a_rule_is_not_made_of_what_was_changed() -> None:
    x, labels = batch(*SHAPES["small"])
    mined = miners.MultiSimilarityMiner()(x, labels)
    assert isinstance(mined, lazy_tuples.RulePairs) and mined.score == Score("dot", normalize=True, inverted=True)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        _ = mined.rule
