"""The demo from end to end: train, judge, draw, and compare speed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from pml_fast.demo import plots, speed, tables
from pml_fast.demo.augment import with_orientations
from pml_fast.demo.data import DemoError, ZeroShotData, load_digits, load_folder
from pml_fast.demo.metrics import RetrievalMetrics, retrieval_metrics
from pml_fast.demo.model import Embedder, channel_statistics, embed
from pml_fast.demo.train import seed_everything, train

_PIXELS, _BEFORE, _AFTER = "pixels, no network", "before training", "after training"


@dataclass(frozen=True)
class DemoOptions:
    """What a run is asked for; data None means the digits, orientations None the choice that suits the data."""

    data: Path | None = None
    image_size: int = 32
    grey: bool = False
    orientations: bool | None = None
    out: Path = Path("pml_fast_demo")
    seed: int = 0
    steps: int = 240
    batch_size: int = 320
    embedding_dim: int = 32
    device: str = "auto"
    speed: bool = True
    speed_sizes: tuple[int, ...] = (256, 1024, 4096)
    memory_gb: float = 4.0
    seconds: float = 20.0


@dataclass(frozen=True)
class Trained:
    """The history of a training and the embeddings [N, D] of the unseen classes on both sides of it."""

    history: list[float]
    before: Tensor
    after: Tensor


def run(options: DemoOptions, console: Console) -> list[Path]:
    """Runs the demo, printing to console; returns the paths of the figures it wrote.

    Raises DemoError for a folder that is not one of images by class, an out that cannot be written, or a device that
    is not there.
    """
    data = _load(options)
    _make_folder(options.out)
    device = _device(options.device)
    _introduce(data, console)
    trained = _train(options, data, device)
    found = _judged(data, trained)
    console.print(tables.metrics_table(found))
    paths = _draw(options, data, trained, found)
    console.print("Figures:")
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False, markup=False)
    if options.speed:
        compare_speed(options, console)
    return paths


def compare_speed(options: DemoOptions, console: Console) -> None:
    """Prints what a loss step costs here and in pytorch-metric-learning, each under the bounds of options."""
    rows = []
    memory_bytes = int(options.memory_gb * 2**30)
    with console.status("timing loss steps") as status:
        for row in speed.compare(list(options.speed_sizes), options.seed, memory_bytes, options.seconds):
            rows.append(row)
            status.update(f"timing loss steps: {row.step.title}, batch of {row.batch_size} done")
    for table in tables.speed_tables(rows):
        console.print(table)
    console.print(tables.conditions(options.memory_gb, options.seconds), highlight=False)
    for remark in tables.remarks(rows):
        console.print(remark, style="red", markup=False, soft_wrap=True)
    if not speed.peer_installed():
        console.print(tables.PEER_REMEDY, highlight=False)


def _load(options: DemoOptions) -> ZeroShotData:
    if options.data is None:
        return load_digits()
    return load_folder(options.data, options.image_size, options.grey)


def _introduce(data: ZeroShotData, console: Console) -> None:
    console.print(data.name, style="bold", markup=False)
    for verb, split in (("train on", data.train), ("test on ", data.test)):
        names = tables.class_list(split.class_names)
        console.print(f"  {verb} {len(split.labels)} images of classes {names}", highlight=False, markup=False)


def _train(options: DemoOptions, data: ZeroShotData, device: torch.device) -> Trained:
    seed_everything(options.seed)
    turn = options.data is None if options.orientations is None else options.orientations
    split = with_orientations(data.train) if turn else data.train
    mean, std = channel_statistics(data.train.images)
    model = Embedder(data.train.images.shape[-1], mean, std, options.embedding_dim).to(device)
    before = embed(model, data.test.images, device)
    history = train(model, split, options.steps, options.batch_size, options.seed, device)
    return Trained(history, before, embed(model, data.test.images, device))


def _judged(data: ZeroShotData, trained: Trained) -> dict[str, RetrievalMetrics]:
    candidates = {_PIXELS: data.test.images.flatten(1), _BEFORE: trained.before, _AFTER: trained.after}
    return {name: retrieval_metrics(points, data.test.labels) for name, points in candidates.items()}


def _draw(options: DemoOptions, data: ZeroShotData, trained: Trained, found: dict[str, RetrievalMetrics]) -> list[Path]:
    test, out = data.test, options.out
    before, after = (f"{name}: MAP@R {found[name].map_at_r:.3f}" for name in (_BEFORE, _AFTER))
    return [
        plots.loss_curve(trained.history, out / "loss.png"),
        plots.embedding_maps(trained.before, trained.after, test, (before, after), options.seed, out / "map.png"),
        plots.neighbour_grid(trained.before, trained.after, test, options.seed, out / "neighbours.png"),
        plots.similarities(trained.after, test, options.seed, out / "similarities.png"),
    ]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"--out {path} cannot be made a folder ({error.strerror}); choose another") from error
    if not os.access(path, os.W_OK):
        raise DemoError(f"--out {path} is not writable; choose another folder")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DemoError(f"--device {name!r} is not a device of torch; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DemoError(f"--device is {name!r} but torch sees no CUDA device; use --device cpu")
    return device
