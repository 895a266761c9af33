"""Inference: neighbours, matches and saved indices, under PML's names and with its results."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning.utils import inference as peer
from torch import Tensor, nn

from pml_fast import distances
from pml_fast.utils import clustering, exact_search, faiss_search, files, inference

X, Y = torch.randn(40, 6), torch.randn(70, 6)


class Manhattan(distances.BaseDistance):
    """A distance of a user's own: the engine knows only its matrix."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return (query_emb.unsqueeze(1) - ref_emb.unsqueeze(0)).abs().sum(dim=2)


def assert_neighbors(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("included", [False, True], ids=["separate", "begins with the queries"])
@pytest.mark.parametrize("knn", [inference.ExactKNN(), inference.FaissKNN()], ids=["exact", "faiss"])
def test_neighbors_are_those_of_the_peers_faiss(knn: Any, included: bool) -> None:
    reference = torch.cat([X, Y]) if included else Y
    assert_neighbors(knn(X, 5, reference, included), peer.FaissKNN()(X, 5, reference, included))


@pytest.mark.parametrize("included", [False, True], ids=["separate", "begins with the queries"])
@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("name", ["CosineSimilarity", "DotProductSimilarity", "LpDistance", "SNRDistance"])
def test_neighbors_by_a_distance(name: str, batch_size: int | None, included: bool) -> None:
    reference = torch.cat([X, Y]) if included else Y
    got = inference.CustomKNN(getattr(distances, name)(), batch_size)(X, 5, reference, included)
    want = peer.CustomKNN(getattr(peer_distances, name)(), batch_size)(X, 5, reference, included)
    assert_neighbors(got, want)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_neighbors_by_a_distance_of_ones_own(batch_size: int | None) -> None:
    knn = inference.CustomKNN(Manhattan(normalize_embeddings=False), batch_size)
    want = torch.cdist(X, X, p=1).fill_diagonal_(float("inf")).topk(4, largest=False)
    assert_neighbors(knn(X, 4, X, ref_includes_query=True), (want.values, want.indices))
    assert knn(X[:0], 3, Y)[1].shape == (0, 3)


def test_an_index_grows_and_is_searched() -> None:
    knn = inference.ExactKNN("cosine")
    knn.add(Y[:30])
    knn.add(Y[30:].numpy())
    assert len(knn) == 70
    assert_neighbors(knn(X, 3), inference.ExactKNN("cosine")(X, 3, Y))
    knn.train(Y[:5])
    assert len(knn) == 5
    knn.reset()
    with pytest.raises(ValueError, match="no index to search"):
        knn(X, 1)


def test_the_index_is_a_copy() -> None:
    rows = Y.clone()
    knn = inference.ExactKNN()
    knn.train(rows)
    rows.zero_()
    assert torch.equal(knn.embeddings, Y)


# ---- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_an_exact_index_survives_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    knn, other = inference.ExactKNN(distances.CosineSimilarity()), inference.ExactKNN(distances.CosineSimilarity())
    knn.train(Y.to(dtype))
    knn.save(tmp_path / "index.npz")
    other.load(str(tmp_path / "index.npz"))
    assert other.embeddings.dtype == dtype
    assert torch.equal(other.embeddings, knn.embeddings)
    assert os.listdir(tmp_path) == ["index.npz"]


def test_a_faiss_index_survives_a_file_and_serves_the_peer(tmp_path: Path) -> None:
    knn = inference.FaissKNN(reset_before=False, reset_after=False)
    knn.train(Y)
    knn.save(tmp_path / "index")
    other, theirs = (module.FaissKNN(reset_before=False, reset_after=False) for module in (inference, peer))
    other.load(tmp_path / "index")
    theirs.load(str(tmp_path / "index"))
    assert_neighbors(other(X, 3), theirs(X, 3))


def test_a_faiss_index_has_a_version_and_those_of_faiss_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    knn = inference.FaissKNN(reset_before=False, reset_after=False)
    knn.train(Y)
    faiss.write_index(knn.index, str(tmp_path / "theirs"))
    other = inference.FaissKNN(reset_before=False, reset_after=False)
    other.load(tmp_path / "theirs")
    assert_neighbors(other(X, 3), knn(X, 3))
    monkeypatch.setattr(faiss_search, "VERSION", 2)
    knn.save(tmp_path / "later")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must be an index of version 1, got version 2"):
        other.load(tmp_path / "later")
    assert_neighbors(other(X, 3), knn(X, 3))


@pytest.mark.parametrize("batch_size", [None, 16])
def test_an_index_by_a_distance_of_ones_own(batch_size: int | None, tmp_path: Path) -> None:
    def made(distance: Any = None) -> inference.CustomKNN:
        return inference.CustomKNN(distance or Manhattan(normalize_embeddings=False), batch_size)

    knn, other = made(), made()
    knn.train(Y[:30])
    knn.add(Y[30:])
    assert len(knn) == 70
    assert_neighbors(knn(X, 3), made()(X, 3, Y))
    knn.save(tmp_path / "index")
    other.load(tmp_path / "index")
    assert_neighbors(other(X, 3), knn(X, 3))
    for distance in (Manhattan(normalize_embeddings=True), distances.LpDistance()):
        with pytest.raises(ValueError, match="was made for the distance Manhattan"):
            made(distance).load(tmp_path / "index")
    model = inference.InferenceModel(nn.Identity(), normalize_embeddings=False, knn_func=other)
    model.add_to_knn(X)
    assert model.get_nearest_neighbors(X, 1)[1].flatten().tolist() == list(range(70, 110))


@pytest.mark.parametrize("kind", ["exact", "faiss"])
@pytest.mark.parametrize("damage", ["cut short", "changed", "another's", "empty"])
def test_a_damaged_file_leaves_the_index(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / "index"

    def make() -> Any:
        if kind == "exact":
            return inference.ExactKNN()
        return inference.FaissKNN(reset_before=False, reset_after=False)

    saved, knn = make(), make()
    saved.train(X)
    saved.save(path)
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 255
    path.write_bytes({"cut short": content[:-300], "changed": content, "another's": b"text" * 200, "empty": b""}[damage])
    knn.train(Y)
    with pytest.raises(ValueError, match="not a whole"):
        knn.load(path)
    assert_neighbors(knn(X, 3), inference.ExactKNN()(X, 3, Y))


def test_an_index_of_another_distance_or_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knn, other = inference.ExactKNN("cosine"), inference.ExactKNN("dot")
    knn.train(Y)
    knn.save(tmp_path / "index")
    with pytest.raises(ValueError, match="was made for the distance"):
        other.load(tmp_path / "index")
    with pytest.raises(ValueError, match=r"must hold pml_fast.CustomKNN of version 1, got pml_fast.ExactKNN"):
        inference.CustomKNN(distances.CosineSimilarity()).load(tmp_path / "index")
    monkeypatch.setattr(exact_search, "VERSION", 2)
    with pytest.raises(ValueError, match=r"version 2, got pml_fast.ExactKNN of version 1"):
        knn.load(tmp_path / "index")
    for absent in (knn, inference.FaissKNN()):
        with pytest.raises(FileNotFoundError):
            absent.load(tmp_path / "nothing")


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("index.npz", header=np.array([Payload()], dtype=object), embeddings=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not a whole index"):
        inference.ExactKNN().load("index.npz")
    assert not Path("executed").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_text("old")

    def fail(temporary: str) -> None:
        Path(temporary).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["index"]
    with pytest.raises(ValueError, match="no index to search"):
        inference.ExactKNN().save(path)
    with pytest.raises(ValueError, match="no index to save"):
        inference.FaissKNN().save(path)


# ---- models


class Letters(nn.Module):
    """Embeds words, which are no tensors, by how often each letter occurs."""

    def forward(self, words: list[str]) -> Tensor:
        return torch.tensor([[float(word.count(letter)) for letter in "abcd"] for word in words])


class Pairs(torch.utils.data.Dataset[Any]):
    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int) -> Any:
        return (Y[i], i) if self.labelled else Y[i]


@pytest.mark.parametrize("knn", [None, inference.FaissKNN(False, False)], ids=["exact", "faiss"])
def test_a_model_gives_the_peers_neighbors_and_matches(knn: Any) -> None:
    trunk, embedder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout()), nn.Linear(8, 4)
    ours = inference.InferenceModel(trunk, embedder, knn_func=knn)
    theirs = peer.InferenceModel(trunk, embedder)
    for model in (ours, theirs):
        model.train_knn(Y[:32])
        model.add_to_knn(list(Y[32:]), batch_size=7)
    assert_neighbors(ours.get_nearest_neighbors(X, 5), theirs.get_nearest_neighbors(X, 5))
    assert_neighbors(ours.get_nearest_neighbors(X, 5, batch_size=9), theirs.get_nearest_neighbors(X, 5))
    assert np.array_equal(ours.get_matches(X, Y), theirs.get_matches(X, Y))
    assert ours.get_matches(X, threshold=0.5, return_tuples=True) == theirs.get_matches(X, threshold=0.5, return_tuples=True)
    assert np.array_equal(ours.is_match(X, Y[:40], 0.3), theirs.is_match(X, Y[:40], 0.3))
    assert ours.is_match(X[:1], X[:1]) is True


@pytest.mark.parametrize("labelled", [True, False])
def test_an_index_of_a_dataset(labelled: bool, tmp_path: Path) -> None:
    model = inference.InferenceModel(nn.Identity(), dtype=torch.float64)
    model.train_knn(Pairs(labelled), batch_size=4)
    model.save_knn_func(tmp_path / "index")
    other = inference.InferenceModel(nn.Identity(), dtype=torch.float64)
    other.load_knn_func(tmp_path / "index")
    distances_, indices = other.get_nearest_neighbors(Y, 1)
    assert distances_.dtype == torch.float64
    assert torch.equal(indices.flatten(), torch.arange(70))


def test_inputs_that_are_no_tensors() -> None:
    model = inference.InferenceModel(Letters())
    model.train_knn(["aab", "bcd", "ddd", "abab"], batch_size=3)
    assert model.get_nearest_neighbors(["dd", "aba"], 1)[1].tolist() == [[2], [0]]
    assert model.get_nearest_neighbors(["dd", "aba", "bbaa"], 1, batch_size=2)[1].tolist() == [[2], [0], [3]]


def test_images_are_transformed_batch_by_batch(tmp_path: Path) -> None:
    """A list of files, none of which is open for longer than its batch."""
    from PIL import Image

    paths = []
    for shade in range(0, 250, 25):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (4, 4), (shade, 250 - shade, 9)).save(paths[-1])
    read: list[Path] = []
    read_before: list[int] = []

    def transform(path: Path) -> Tensor:
        read.append(path)
        return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255

    class Colours(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[1:] == (3, 4, 4)
            read_before.append(len(read))
            return images.mean((2, 3))

    model = inference.InferenceModel(Colours(), transform=transform)
    model.train_knn(paths, batch_size=3)
    assert read == paths
    assert read_before == [3, 6, 9, 10]
    assert model.get_nearest_neighbors(paths[3:5], 1)[1].flatten().tolist() == [3, 4]


def test_matches_in_batches() -> None:
    sizes: list[int] = []

    class Seen(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            sizes.append(len(rows))
            return rows

    model = inference.InferenceModel(Seen())
    whole, two = model.get_matches(X, Y, 0.3), model.is_match(X, Y[:40], 0.3)
    sizes.clear()
    assert np.array_equal(model.get_matches(X, Y, 0.3, batch_size=16), whole)
    assert np.array_equal(model.is_match(list(X), Y[:40], 0.3, batch_size=16), two)
    assert max(sizes) == 16
    assert model.get_matches(Pairs(True), threshold=0.3, batch_size=16).shape == (70, 70)


@pytest.mark.parametrize("distance", [distances.LpDistance(), distances.CosineSimilarity(), Manhattan()])
def test_matches_in_strips(distance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = inference.MatchFinder(distance, threshold=0.8)
    whole = finder.get_matching_pairs(X, Y)
    mat = distance(X, Y)
    assert np.array_equal(whole, (mat >= 0.8 if distance.is_inverted else mat <= 0.8).numpy())
    monkeypatch.setattr(inference, "_STRIP_ELEMENTS", 200)
    assert np.array_equal(finder.get_matching_pairs(X, Y), whole)
    assert finder.get_matching_pairs(X, Y, return_tuples=True) == [(int(i), int(j)) for i, j in zip(*np.where(whole))]
    assert finder.get_matching_pairs(X[:0], Y).shape == (0, 70)


# ---- faiss, honestly


class FakeFaiss:
    """As many GPUs as a test wants."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus

    def get_num_gpus(self) -> int:
        return self.gpus

    def index_cpu_to_all_gpus(self, index: Any) -> Any:
        raise RuntimeError("out of memory on device 0")

    def index_cpu_to_gpus_list(self, index: Any, gpus: list[int]) -> Any:
        raise RuntimeError(f"no such device {gpus}")


def test_what_fails_on_a_gpu_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer calls any such error "k too large", and goes to the CPU."""
    monkeypatch.setattr(faiss_search, "import_faiss", lambda: FakeFaiss(1))
    with pytest.raises(RuntimeError, match="out of memory"):
        inference.try_gpu(object(), X, Y, 3, True, None)
    with pytest.raises(RuntimeError, match="no such device"):
        inference.try_gpu(object(), X, Y, 3, False, [7])


def test_gpus_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    knn = inference.FaissKNN(gpus=[0])
    with pytest.raises(ValueError, match=r"gpus=\[0\] cannot be used: this build of faiss"):
        knn(X, 3, Y)
    index = knn.index_init_fn(6)
    with caplog.at_level(logging.WARNING):
        inference.try_gpu(index, X, Y, 3, True, None)
    assert "can use no GPU" in caplog.text
    monkeypatch.setattr(faiss_search, "import_faiss", lambda: FakeFaiss(1))
    with pytest.raises(ValueError, match="at most 2048 neighbors"):
        inference.try_gpu(index, X, Y, 3000, False, [0])


def test_an_index_that_must_be_trained() -> None:
    import faiss

    knn = inference.FaissKNN(False, False, index_init_fn=lambda d: faiss.index_factory(d, "IVF2,Flat"))
    rows = torch.randn(200, 6)
    knn.train(rows)
    assert knn(rows[:5], 1)[1].flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "kmeans", [inference.FaissKMeans(niter=20, nredo=10), clustering.SklearnKMeans(), clustering.InstalledKMeans()]
)
def test_clusters(kmeans: Any) -> None:
    centers = torch.randn(4, 8) * 20
    labels = torch.randint(0, 4, (300,))
    found = kmeans(centers[labels] + torch.randn(300, 8) * 0.1, 4)
    assert found.dtype == torch.int64
    assert len(set(zip(labels.tolist(), found.tolist()))) <= 5


def test_faiss_clusters_are_the_peers() -> None:
    rows = torch.randn(300, 5)
    assert torch.equal(inference.FaissKMeans(niter=20)(rows, 6), peer.FaissKMeans(niter=20)(rows, 6))
    torch.testing.assert_close(inference.run_pca(rows, 2), peer.run_pca(rows, 2))


def test_without_faiss_everything_else_works() -> None:
    script = (
        "import sys\n"
        "sys.modules['faiss'] = None\n"
        "import torch\n"
        "from pml_fast.utils import inference, accuracy_calculator\n"
        "print(inference.ExactKNN()(torch.eye(3), 1, torch.eye(3))[1].tolist())\n"
        "c = accuracy_calculator.AccuracyCalculator(exclude=('AMI', 'NMI'))\n"
        "print(sorted(c.get_accuracy(torch.eye(2)[[0, 0, 1, 1]], torch.arange(4) // 2).values()))\n"
        "try: inference.FaissKNN()\n"
        "except ImportError as error: print(error)\n"
        "sys.modules['sklearn.metrics'] = sys.modules['sklearn.cluster'] = None\n"
        "try: accuracy_calculator.AccuracyCalculator(include=('AMI',)).get_accuracy(torch.eye(2), torch.arange(2))\n"
        "except ImportError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first, second, third, fourth = ran.stdout.splitlines()
    assert first == "[[0], [1], [2]]"
    assert second == "[1.0, 1.0, 1.0, 1.0, 1.0]"
    assert "faiss is needed here" in third and "pip install" in third
    assert "scikit-learn is needed here" in fourth


def test_importing_does_not_import_the_optional() -> None:
    script = (
        "import sys\n"
        "import pml_fast.utils.inference, pml_fast.utils.accuracy_calculator\n"
        "print([name for name in ('faiss', 'sklearn', 'triton', 'pml_fast._C') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def searched_by_faiss(query: Tensor) -> Any:
    knn = inference.FaissKNN(reset_before=False)
    knn.train(Y)
    return knn(query, 1)


CALLS: list[tuple[Any, type[Exception], str]] = [
    (lambda: inference.ExactKNN("nearby"), ValueError, "distance must be one of"),
    (lambda: inference.ExactKNN(Manhattan()), ValueError, "use CustomKNN"),
    (lambda: inference.ExactKNN()(X, 71, Y), ValueError, "k must be from 0"),
    (lambda: inference.ExactKNN()(X, 1, Y[:, :3]), ValueError, "query's length"),
    (lambda: inference.ExactKNN()(X.long(), 1, Y), TypeError, "query must be a floating-point"),
    (lambda: inference.ExactKNN()(X[0], 1, Y), ValueError, "query must have shape"),
    (lambda: inference.ExactKNN()(X, 1, X[:9], True), ValueError, "must hold the 40 queries"),
    (lambda: inference.ExactKNN().train(X.long()), TypeError, "embeddings must be"),
    (lambda: inference.CustomKNN(Manhattan())(X, 71, Y), ValueError, "k must be from 0"),
    (lambda: inference.FaissKNN(gpus=0), TypeError, "gpus must be a list"),
    (lambda: inference.FaissKNN(gpus=[]), ValueError, "gpus must name"),
    (lambda: inference.FaissKNN(reset_before=False)(X, 1), ValueError, "no index to search"),
    (lambda: inference.CustomKNN(Manhattan())(X, 1), ValueError, "no index to search"),
    (lambda: inference.FaissKNN()(X, 1, Y[:, :3]), ValueError, r"reference must have shape \(N, 6\)"),
    (lambda: searched_by_faiss(X[:, :3]), ValueError, r"query must have shape \(N, 6\)"),
    (lambda: inference.MatchFinder(Manhattan()).is_match(X, X), ValueError, "threshold must be a number"),
    (lambda: inference.InferenceModel(nn.Identity()).train_knn(X[:0]), ValueError, "inputs must not be empty"),
    (lambda: inference.InferenceModel(nn.Identity()).train_knn(7), TypeError, "inputs must be a tensor"),
    (lambda: inference.InferenceModel(nn.Identity()).train_knn(X, 0), ValueError, "batch_size must be"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_adding_rows_of_another_length_leaves_the_index() -> None:
    knn = inference.ExactKNN()
    knn.train(X)
    with pytest.raises(ValueError, match="index's length"):
        knn.add(torch.randn(3, 2))
    assert torch.equal(knn.embeddings, X)
