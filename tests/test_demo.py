"""The demo: its data, its metrics against plain enumeration, and a short run from end to end."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pml_fast import _bounded
from pml_fast.demo import augment, data, metrics, speed, tables
from pml_fast.demo.data import DemoError
from pml_fast.demo.model import Embedder, channel_statistics, embed
from pml_fast.demo.run import DemoOptions, run
from pml_fast.demo.train import batch_shape, seed_everything, train

FIGURES = ("loss.png", "map.png", "neighbours.png", "similarities.png")


def write_folder(root: Path, classes: int = 4, images: int = 3, size: tuple[int, int] = (11, 9)) -> Path:
    """A folder of images, each class with a brightness of its own."""
    random = np.random.default_rng(0)
    for index in range(classes):
        folder = root / f"class_{index}"
        folder.mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(0, 40, (*size, 3)) + 50 * index
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


# --- metrics ---------------------------------------------------------------------------------------------------------


def enumerate_metrics(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """The definitions, one query and one rank at a time."""
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).tolist()
    first, precision, average = [], [], []
    for query, vector in enumerate(unit):
        others = [item for item in range(len(unit)) if item != query]
        others.sort(key=lambda item: -sum(a * b for a, b in zip(vector, unit[item])))
        right = [bool(labels[item] == labels[query]) for item in others]
        relevant = sum(right)
        if relevant == 0:
            continue
        first.append(float(right[0]))
        precision.append(sum(right[:relevant]) / relevant)
        terms = [sum(right[: rank + 1]) / (rank + 1) for rank in range(relevant) if right[rank]]
        average.append(sum(terms) / relevant)
    return float(np.mean(first)), float(np.mean(precision)), float(np.mean(average))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_enumeration(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Classes of very different sizes, one of them of a single item.
    labels = torch.repeat_interleave(torch.tensor([7, 3, 11, 5]), torch.tensor([20, 1, 4, 9]))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + 1.5 * torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    found = metrics.retrieval_metrics(embeddings, labels)
    wanted = enumerate_metrics(embeddings, labels)
    assert (found.precision_at_1, found.r_precision, found.map_at_r) == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted[2] < wanted[1] < 1  # else the case would distinguish nothing
    assert found.queries == 33


def test_metrics_of_separated_classes_are_one() -> None:
    labels = torch.arange(12) % 3
    found = metrics.retrieval_metrics(torch.eye(3)[labels], labels)
    assert (found.precision_at_1, found.r_precision, found.map_at_r) == (1, 1, 1)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(3), torch.zeros(3), "embeddings must be a floating-point tensor"),
        (torch.ones(3, 2), torch.zeros(2), "one entry an embedding"),
        (torch.full((4, 2), torch.nan), torch.zeros(4), "must be finite"),
        (torch.ones(3, 2), torch.arange(3), "a class with at least two items"),
        (torch.ones(0, 2), torch.arange(0), "a class with at least two items"),
    ],
)
def test_metrics_refuse_bad_input(embeddings: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.retrieval_metrics(embeddings, labels)


# --- data ------------------------------------------------------------------------------------------------------------


def test_digits_are_split_by_class() -> None:
    digits = data.load_digits()
    assert digits.train.class_names == tuple("01234")
    assert digits.test.class_names == tuple("56789")
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    for split in (digits.train, digits.test):
        assert split.images.shape[1:] == (1, 8, 8)
        assert split.labels.unique().tolist() == [0, 1, 2, 3, 4]
        assert (float(split.images.min()), float(split.images.max())) == (0, 1)


@pytest.mark.parametrize(("grey", "channels"), [(False, 3), (True, 1)])
def test_folder_is_read_and_split_in_the_order_of_names(tmp_path: Path, grey: bool, channels: int) -> None:
    root = write_folder(tmp_path / "images", classes=5)
    (root / ".cache").mkdir()
    (root / "class_0" / "notes.txt").write_text("not an image")
    (root / "class_0" / ".hidden.png").write_text("not an image")
    found = data.load_folder(root, image_size=16, grey=grey)
    assert found.train.class_names == ("class_0", "class_1")
    assert found.test.class_names == ("class_2", "class_3", "class_4")
    assert found.train.images.shape == (6, channels, 16, 16)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    brightness = [float(found.test.images[found.test.labels == label].mean()) for label in range(3)]
    assert brightness == pytest.approx([(50 * index + 19.5) / 255 for index in (2, 3, 4)], abs=0.02)


def test_sixteen_bit_and_palette_images_keep_their_brightness(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(root / "class_0" / "0.png")
    Image.new("RGB", (8, 8), (0, 128, 0)).convert("P").save(root / "class_0" / "1.gif")
    (root / "class_0" / "1.png").unlink()
    (root / "class_0" / "2.png").unlink()
    images = data.load_folder(root, image_size=8).train.images[:2]
    assert images[0].flatten().tolist() == pytest.approx([0.5] * 192, abs=0.01)
    assert images[1].mean(dim=(1, 2)).tolist() == pytest.approx([0, 0.5, 0], abs=0.01)


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="nowhere does not exist"):
        data.load_folder(tmp_path / "nowhere")


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="is a file"):
        data.load_folder(tmp_path / "file")


def test_folder_without_sub_folders(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    with pytest.raises(DemoError, match="no sub-folders"):
        data.load_folder(tmp_path)


def test_folder_with_too_few_classes(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"has 3 class\(es\) \(class_0, class_1, class_2\); at least 4"):
        data.load_folder(write_folder(tmp_path / "images", classes=3))


def test_folder_with_classes_of_one_image(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", images=2)
    (root / "class_2" / "1.png").unlink()
    (root / "empty").mkdir()
    with pytest.raises(DemoError, match=r"at least 2 images.*class_2 \(1\), empty \(0\)"):
        data.load_folder(root)


def test_folder_without_images(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("")
    with pytest.raises(DemoError, match=r"no images.*\.png"):
        data.load_folder(tmp_path)


def test_damaged_files_are_all_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    whole = root / "class_1" / "0.png"
    (root / "class_0" / "text.jpg").write_text("no image at all")
    (root / "class_1" / "cut.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (root / "class_3" / "empty.bmp").write_bytes(b"")
    with pytest.raises(DemoError) as caught:
        data.load_folder(root)
    message = str(caught.value)
    assert message.startswith("3 image file(s)")
    assert all(name in message for name in ("text.jpg", "cut.png", "empty.bmp"))
    assert "0.png" not in message
    assert "\n" not in message


def test_image_size_below_the_least_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="--image-size must be at least 4"):
        data.load_folder(write_folder(tmp_path / "images"), image_size=3)


# --- model, augmentation, batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 5, 8, 17, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_embedder_gives_unit_vectors_for_every_size(size: int, channels: int) -> None:
    images = torch.rand(7, channels, size, size)
    model = Embedder(size, *channel_statistics(images), embedding_dim=6)
    found = embed(model, images, torch.device("cpu"), batch_size=3)
    assert found.shape == (7, 6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_blank_images_give_finite_embeddings() -> None:
    images = torch.zeros(4, 1, 8, 8)
    assert embed(Embedder(8, *channel_statistics(images)), images, torch.device("cpu")).isfinite().all()


def test_orientations_are_eight_different_classes_each() -> None:
    corner = torch.zeros(1, 1, 3, 3)
    corner[0, 0, 0, 0], corner[0, 0, 0, 1] = 1.0, 0.5
    found = augment.with_orientations(data.Split(corner, torch.tensor([0]), ("corner",)))
    assert found.labels.tolist() == list(range(8))
    assert len(found.class_names) == 8
    assert len(found.images.flatten(1).unique(dim=0)) == 8


def test_distortion_is_seeded_and_moves_the_image_only_a_little() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 6:10, 6:10] = 1
    first, again = (augment.distort(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    grid = torch.arange(16.0)
    centres = (first * grid).sum(dim=(1, 2, 3)) / first.sum(dim=(1, 2, 3))
    assert float((centres - 7.5).abs().mean()) < 4


@pytest.mark.parametrize(
    ("classes", "batch_size", "wanted"),
    [(40, 320, (40, 8)), (2, 320, (2, 32)), (5, 160, (5, 32)), (1000, 320, (80, 4)), (1000, 1, (2, 4))],
)
def test_batches_hold_enough_of_each_class(classes: int, batch_size: int, wanted: tuple[int, int]) -> None:
    shape = batch_shape(classes, batch_size)
    assert (shape.classes, shape.per_class) == wanted


# --- a run from end to end -------------------------------------------------------------------------------------------


def quick(out: Path, **options: object) -> str:
    """A run of three steps without the comparison of speeds, unless options say otherwise; what it printed."""
    text = io.StringIO()
    chosen = {"steps": 3, "batch_size": 80, "speed": False, "device": "cpu", **options}
    paths = run(DemoOptions(out=out, **chosen), Console(file=text, width=100))  # type: ignore[arg-type]
    assert [path.name for path in paths] == list(FIGURES)
    return text.getvalue()


def assert_is_a_picture(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 500
    assert pixels.std() > 5  # something is drawn


def test_short_run_prints_the_metrics_and_writes_the_figures(tmp_path: Path) -> None:
    printed = quick(tmp_path / "new" / "out")
    for wanted in ("precision@1", "R-precision", "MAP@R", "before training", "after training", *FIGURES):
        assert wanted in printed
    assert "896 queries" in printed
    for name in FIGURES:
        assert_is_a_picture(tmp_path / "new" / "out" / name)


def test_equal_seeds_give_equal_runs_and_other_seeds_others() -> None:
    digits, cpu = data.load_digits(), torch.device("cpu")

    def short_run(seed: int) -> tuple[list[float], torch.Tensor]:
        seed_everything(seed)
        model = Embedder(8, *channel_statistics(digits.train.images))
        history = train(model, digits.train, 4, 80, seed, cpu)
        return history, embed(model, digits.test.images, cpu)

    first, again, other = (short_run(seed) for seed in (5, 5, 6))
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert first[0] != other[0]


@pytest.mark.parametrize("options", [{}, {"grey": True}, {"orientations": True}])
def test_short_run_on_the_smallest_folder(tmp_path: Path, options: dict[str, bool]) -> None:
    root = write_folder(tmp_path / "images", images=2)
    printed = quick(tmp_path / "out", data=root, image_size=8, **options)
    assert "classes class_0, class_1" in printed
    assert "4 queries" in printed
    for name in FIGURES:
        assert_is_a_picture(tmp_path / "out" / name)


def test_names_of_folders_are_not_taken_for_markup(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "[red]images")
    (root / "class_0").rename(root / "[bold]$x^")
    printed = quick(tmp_path / "[out]", data=root, image_size=8)
    assert "[red]images" in printed
    assert "[bold]$x^" in printed
    assert str(Path("[out]") / "loss.png") in printed


def test_training_lowers_the_loss_and_betters_the_unseen_classes() -> None:
    digits = data.load_digits()
    cpu = torch.device("cpu")
    seed_everything(0)
    model = Embedder(8, *channel_statistics(digits.train.images), embedding_dim=32)
    before = metrics.retrieval_metrics(embed(model, digits.test.images, cpu), digits.test.labels)
    history = train(model, augment.with_orientations(digits.train), 60, 320, seed=0, device=cpu)
    after = metrics.retrieval_metrics(embed(model, digits.test.images, cpu), digits.test.labels)
    assert np.mean(history[-10:]) < np.mean(history[:5])
    assert after.map_at_r > before.map_at_r


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_out_that_cannot_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match=r"--out .* cannot be made a folder"):
        quick(tmp_path / name)


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="--device 'abacus' is not a device"):
        quick(tmp_path, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(DemoError, match="no CUDA device"):
            quick(tmp_path, device="cuda")


# --- the comparison of speeds ----------------------------------------------------------------------------------------


def compared(**bounds: object) -> list[speed.Comparison]:
    chosen = {"batch_sizes": [32], "seed": 0, "memory_bytes": 2 << 30, "seconds": 120.0, **bounds}
    return list(speed.compare(**chosen))  # type: ignore[arg-type]


def test_both_libraries_give_the_same_loss() -> None:
    rows = compared()
    assert [row.step for row in rows] == list(speed.STEPS)
    for row in rows:
        assert row.ours.ok, row.ours.error
        assert row.peer is not None
        assert row.peer.ok, row.peer.error
        assert row.same_loss, (row.ours.value, row.peer.value)
        assert row.speed_up == row.peer.value.seconds / row.ours.value.seconds
    assert tables.remarks(rows) == []


def test_tables_of_speed_fit_a_terminal_of_80_columns() -> None:
    text = io.StringIO()
    ours, peer = outcome(_bounded.OK, seconds=0.1234), outcome(_bounded.OK, seconds=123.4)
    rows = [speed.Comparison(step, 65536, ours, peer) for step in speed.STEPS]
    rows += [speed.Comparison(speed.STEPS[1], 65536, ours, outcome(_bounded.OUT_OF_MEMORY))]
    for table in tables.speed_tables(rows):
        Console(file=text, width=80).print(table)
    assert "…" not in text.getvalue()
    for wanted in (*(step.title for step in speed.STEPS), "1,000 x", "out of memory"):
        assert wanted in text.getvalue()


def test_what_goes_beyond_the_bounds_is_said_in_the_table(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    text = quick(tmp_path / "out", data=root, image_size=8, speed=True, speed_sizes=(64,), seconds=0.001)
    assert text.count("timed out") == 2 * len(speed.STEPS)
    assert "bounded to 4 GiB and 0.001 s" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds the memory of a process")
def test_out_of_memory_is_an_outcome() -> None:
    (row,) = compared(batch_sizes=[512], memory_bytes=256 << 20, steps=speed.STEPS[:1])
    assert row.ours.ok, row.ours.error
    assert row.peer is not None
    assert row.peer.status == _bounded.OUT_OF_MEMORY
    assert row.speed_up is None
    assert row.same_loss is None


def test_without_the_peer_the_table_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peer_installed", lambda: False)
    root = write_folder(tmp_path / "images")
    printed = quick(tmp_path / "out", data=root, image_size=8, speed=True, speed_sizes=(32,))
    assert "not installed" in printed
    assert "pip install pytorch-metric-learning==2.9.0" in printed
    assert "timed out" not in printed


def outcome(status: str, loss: float = 1.0, error: str | None = None, seconds: float = 0.5) -> _bounded.Outcome:
    value = speed.Cost(seconds, 999 << 20, loss) if status == _bounded.OK else None
    return _bounded.Outcome(status, value, error, 1.0, None)


def test_losses_that_differ_and_runs_that_fail_are_remarked_on() -> None:
    step = speed.STEPS[0]
    rows = [
        speed.Comparison(step, 8, outcome(_bounded.OK), outcome(_bounded.OK, loss=1.01)),
        speed.Comparison(step, 16, outcome(_bounded.FAILED, error="KeyError: [x]\ntrace"), outcome(_bounded.TIMED_OUT)),
        speed.Comparison(step, 32, outcome(_bounded.OK), outcome(_bounded.OK, loss=1.0001)),
    ]
    assert tables.remarks(rows) == [
        f"{step.title}, batch 8: the losses differ: 1 and 1.01",
        f"{step.title}, batch 16, pml_fast: KeyError: [x]",
    ]


@pytest.mark.parametrize(("seconds", "wanted"), [(0.0001234, "0.123 ms"), (0.25, "250 ms"), (1.5, "1.5 s"), (123.4, "123 s")])
def test_durations(seconds: float, wanted: str) -> None:
    assert tables.duration(seconds) == wanted


@pytest.mark.parametrize(("count", "wanted"), [(None, "-"), (0, "0.0 MiB"), (3 << 19, "1.5 MiB"), (5 << 29, "2.5 GiB")])
def test_sizes(count: int | None, wanted: str) -> None:
    assert tables.size(count) == wanted
