"""Testers on scikit-learn's digits: the peer's numbers, for every tester and setting."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import pytorch_metric_learning.testers as peer_testers
import torch
from pytorch_metric_learning.distances import LpDistance as PeerDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator as PeerCalculator
from pytorch_metric_learning.utils.inference import CustomKNN as PeerKNN
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from pml_fast import testers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator

INCLUDE = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")


@lru_cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and labels of three levels: the digit, odd or even, all the same."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    target = torch.from_numpy(bunch.target)
    return torch.from_numpy((bunch.data / 16).astype(np.float32)), torch.stack([target, target % 2, target * 0], dim=1)


def split(first: int, last: int, levels: int = 1) -> TensorDataset:
    x, labels = digits()
    return TensorDataset(x[first:last], labels[first:last, 0] if levels == 1 else labels[first:last, :levels])


class TwoViews(Dataset[Any]):
    def __init__(self, first: int, last: int) -> None:
        self.rows = split(first, last)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> Any:
        x, label = self.rows[k]
        return x, x + 0.05 * x.flip(0), label


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Dropout(0.5)), nn.Linear(24, 12)


def both(name: str, data: dict[str, Any], splits: Any = None, **options: Any) -> tuple[Any, Any]:
    """The metrics of this package and of the peer, whose nearest neighbours are searched without faiss."""
    found = []
    for module, calculator in (
        (testers, AccuracyCalculator(include=INCLUDE)),
        (peer_testers, PeerCalculator(include=INCLUDE, knn_func=PeerKNN(PeerDistance(normalize_embeddings=False)))),
    ):
        tester = getattr(module, name)(
            accuracy_calculator=calculator,
            dataloader_num_workers=0,
            dtype=torch.float64,
            end_of_testing_hook=lambda tester: None,
            **options,
        )
        given = None if splits is None else [(query, list(references)) for query, references in splits]
        # In float64 two libraries agree on which of nearly equal neighbours is nearer.
        result = tester.test(data, 3, *(model.double() for model in models()), splits_to_eval=given)
        found.append({key: {name: float(value) for name, value in values.items()} for key, values in result.items()})
        found[-1]["name"] = tester.description_suffixes("x")
    return found[0], found[1]


def assert_same(mine: Any, theirs: Any) -> None:
    assert mine.keys() == theirs.keys() and mine.pop("name") == theirs.pop("name")
    for key, values in theirs.items():
        assert mine[key] == pytest.approx(values, abs=1e-5)
        assert len(values) > 4 and mine[key]["epoch"] == 3


@pytest.mark.parametrize(
    "options", [{}, {"normalize_embeddings": False}, {"use_trunk_output": True}, {"set_min_label_to_zero": True}]
)
def test_the_global_space_has_the_peers_numbers(options: dict[str, Any]) -> None:
    if "set_min_label_to_zero" in options:
        options = {**options, "dataset_labels": digits()[1][:, 0].numpy()}
    assert_same(*both("GlobalEmbeddingSpaceTester", {"train": split(0, 300), "val": split(300, 500)}, **options))


def test_queries_against_other_splits_have_the_peers_numbers() -> None:
    data = {"train": split(0, 300), "val": split(300, 400), "more": split(400, 500)}
    splits = [("val", ["train", "val"]), ("train", ["more"]), ("more", ["more", "train"])]
    assert_same(*both("GlobalEmbeddingSpaceTester", data, splits))


@pytest.mark.parametrize("level", ["all", 1, [0, 1], [1]])
def test_levels_of_labels_have_the_peers_numbers(level: Any) -> None:
    assert_same(*both("GlobalEmbeddingSpaceTester", {"val": split(0, 300, levels=2)}, label_hierarchy_level=level))


@pytest.mark.parametrize("level", ["all", 0, 1])
def test_within_parents_has_the_peers_numbers(level: Any) -> None:
    assert_same(*both("WithSameParentLabelTester", {"val": split(0, 300, levels=3)}, label_hierarchy_level=level))


def test_two_streams_have_the_peers_numbers() -> None:
    assert_same(*both("GlobalTwoStreamEmbeddingSpaceTester", {"val": TwoViews(0, 200)}))


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    tester = testers.GlobalEmbeddingSpaceTester(pca=5, normalize_embeddings=False, dataloader_num_workers=0)
    trunk, embedder = models()
    embeddings, labels = tester.get_all_embeddings(split(0, 200), trunk, embedder, return_as_numpy=True)
    trunk.eval()
    with torch.no_grad():
        raw = embedder(trunk(digits()[0][:200])).numpy()
    expected = PCA(5).fit_transform((raw - raw.mean(0)) / raw.std(0, ddof=1))
    np.testing.assert_allclose(np.abs(embeddings), np.abs(expected), atol=1e-4)
    assert labels.shape == (200, 1)
    assert tester.description_suffixes("a").startswith("a_pca5_GlobalEmbeddingSpaceTester_level_0")
    with pytest.raises(ValueError, match=r"pca must be at most 12 .* got 13"):
        testers.BaseTester(pca=13, dataloader_num_workers=0).get_all_embeddings(split(0, 200), trunk, embedder)


def test_a_visualizer_sees_every_split_and_level() -> None:
    from sklearn.decomposition import PCA

    seen = []

    def hook(visualizer: Any, reduced: Any, labels: Any, split_name: str, key: str, epoch: int) -> None:
        seen.append((type(visualizer).__name__, reduced.shape, len(labels), split_name, key, epoch))

    tester = testers.GlobalEmbeddingSpaceTester(
        visualizer=PCA(2), visualizer_hook=hook, label_hierarchy_level="all", dataloader_num_workers=0
    )
    tester.test({"a": split(0, 60, 2), "b": split(60, 100, 2)}, 1, *models())
    assert seen == [("PCA", (n, 2), n, name, f"PCA_level{level}", 1) for name, n in (("a", 60), ("b", 40)) for level in (0, 1)]


def test_the_hook_sees_the_embeddings_and_dropout_is_off() -> None:
    kept = []
    tester = testers.GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0, end_of_testing_hook=lambda t: kept.append(t.embeddings_and_labels["val"][0].clone())
    )
    trunk, embedder = models()
    for _ in range(2):
        tester.test({"val": split(0, 100)}, 1, trunk.train(), embedder)
    assert torch.equal(*kept) and not hasattr(tester, "embeddings_and_labels")
    assert torch.allclose(kept[0].norm(dim=1), torch.ones(100))


def test_what_is_refused() -> None:
    tester = testers.GlobalEmbeddingSpaceTester(dataloader_num_workers=0, label_hierarchy_level=2)
    with pytest.raises(ValueError, match="below the 2 levels of the labels, got 2"):
        tester.test({"val": split(0, 50, 2)}, 1, *models())
    with pytest.raises(ValueError, match="each query split once"):
        tester.test({"val": split(0, 50, 2)}, 1, *models(), splits_to_eval=[("val", ["val"]), ("val", ["val"])])
    with pytest.raises(ValueError, match=r"splits of dataset_dict \(val\), got \['train'\]"):
        tester.test({"val": split(0, 50, 2)}, 1, *models(), splits_to_eval=[("val", ["train"])])
    with pytest.raises(ValueError, match="a level with a parent"):
        testers.WithSameParentLabelTester(dataloader_num_workers=0).test({"val": split(0, 50)}, 1, *models())
    with pytest.raises(ValueError, match="compares the two streams of one split"):
        testers.GlobalTwoStreamEmbeddingSpaceTester(dataloader_num_workers=0).test(
            {"a": TwoViews(0, 50), "b": TwoViews(50, 99)}, 1, *models(), splits_to_eval=[("a", ["b"])]
        )
    with pytest.raises(NotImplementedError, match="must define do_knn_and_accuracies"):
        testers.BaseTester(dataloader_num_workers=0).test({"val": split(0, 50)}, 1, *models())


def test_splits_given_by_the_caller_are_left_alone() -> None:
    splits = [("val", ["train", "val"])]
    testers.GlobalEmbeddingSpaceTester(dataloader_num_workers=0).test(
        {"train": split(0, 60), "val": split(60, 100)}, 1, *models(), splits_to_eval=splits
    )
    assert splits == [("val", ["train", "val"])]
