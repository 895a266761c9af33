"""Labelled images, split by class: some classes to train on, the others only to test on."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"})
MIN_IMAGE_SIZE = 4
MIN_CLASSES = 4
MIN_IMAGES_PER_CLASS = 2
_NAMES_SHOWN = 5
_DIGITS_MAX = 16.0


class DemoError(ValueError):
    """Data or options that the demo cannot use; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Split:
    """images [N, C, H, W] float32 in [0, 1]; labels [N] int64; class_names[label] is what to print."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ZeroShotData:
    """Two splits that share no class: the zero-shot protocol of metric learning."""

    name: str
    train: Split
    test: Split


def load_digits() -> ZeroShotData:
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 grey: 0-4 to train, 5-9 to test."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / _DIGITS_MAX).unsqueeze(1)
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    return split_by_class("handwritten digits", images, labels, tuple("0123456789"))


def load_folder(folder: str | Path, image_size: int = 32, grey: bool = False) -> ZeroShotData:
    """Images in one sub-folder a class; the first half of the classes, by name, is for training.

    Every image is resized to image_size x image_size, in RGB, or in one channel if grey.
    Hidden files and files without an image's suffix are passed over.
    Raises DemoError naming what is wrong with the folder, unreadable files included.
    """
    root = Path(folder)
    if image_size < MIN_IMAGE_SIZE:
        raise DemoError(f"--image-size must be at least {MIN_IMAGE_SIZE} pixels, got {image_size}")
    classes = _class_folders(root)
    files = {path.name: _image_files(path) for path in classes}
    _check_counts(root, files)
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    broken: list[str] = []
    for label, paths in enumerate(files.values()):
        for path in paths:
            try:
                arrays.append(_read_image(path, image_size, grey))
                labels.append(label)
            except _unreadable() as error:
                broken.append(f"{path} ({_one_line(error)})")
    if broken:
        raise DemoError(f"{len(broken)} image file(s) in {root} cannot be read: {_some(broken)}; repair or remove them")
    stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().div_(255.0).contiguous()
    return split_by_class(root.resolve().name, stacked, torch.tensor(labels), tuple(files))


def split_by_class(name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> ZeroShotData:
    """First half of the classes for training, the rest for testing; labels restart from 0 in each."""
    half = len(class_names) // 2
    seen = labels < half
    return ZeroShotData(
        name=name,
        train=Split(images[seen], labels[seen], class_names[:half]),
        test=Split(images[~seen], labels[~seen] - half, class_names[half:]),
    )


def _class_folders(root: Path) -> list[Path]:
    if not root.exists():
        raise DemoError(f"the folder {root} does not exist; give a folder with one sub-folder of images a class")
    if not root.is_dir():
        raise DemoError(f"{root} is a file; give a folder with one sub-folder of images a class")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DemoError(f"the folder {root} has no sub-folders; put the images of each class in its own sub-folder")
    return classes


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES
    )


def _check_counts(root: Path, files: dict[str, list[Path]]) -> None:
    if not any(files.values()):
        raise DemoError(
            f"there are no images in the sub-folders of {root}; "
            f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))} are looked for"
        )
    if len(files) < MIN_CLASSES:
        raise DemoError(
            f"{root} has {len(files)} class(es) ({_some(list(files))}); at least {MIN_CLASSES} are needed, "
            "half to train on and half to test on"
        )
    small = [f"{name} ({len(paths)})" for name, paths in files.items() if len(paths) < MIN_IMAGES_PER_CLASS]
    if small:
        raise DemoError(
            f"every class needs at least {MIN_IMAGES_PER_CLASS} images, but these of {root} have fewer: "
            f"{_some(small)}; add images or remove those sub-folders"
        )


def _read_image(path: Path, image_size: int, grey: bool) -> np.ndarray:
    """One image as uint8 [image_size, image_size, channels]."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        # Pillow only warns for a suspiciously large image: here that file is refused by name.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
    if upright.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if upright.mode.startswith("I"):
        # Pillow's own conversion of 16-bit pixels to 8 bits clips instead of scaling.
        upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257.0).round().astype(np.uint8))
    converted = upright.convert("L" if grey else "RGB")
    resized = converted.resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels[:, :, None] if grey else pixels


def _unreadable() -> tuple[type[Exception], ...]:
    """What Pillow's decoders raise for a file that is not the image its name promises."""
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    # A damaged PNG surfaces as SyntaxError, a damaged TIFF also as EOFError or struct.error.
    return (OSError, ValueError, SyntaxError, EOFError, struct.error, *bombs)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
