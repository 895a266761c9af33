"""Images with labels, from folders or archives on disk, or downloaded."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from pml_fast.utils.archives import extract
from pml_fast.utils.downloads import download as fetch


@dataclass(frozen=True)
class Archive:
    """A part of a dataset: what is in it, what its file may be called, and where it comes from.

    ``provides`` are paths below ``prefix``, the folder that the archive begins with.
    """

    names: tuple[str, ...]
    provides: tuple[str, ...]
    prefix: str = ""
    url: str | None = None
    checksum: str | None = None

    def folder(self, root: Path) -> Path | None:
        """Where all that it provides is: below ``prefix``, or in ``root`` itself."""
        for folder in (root / self.prefix, root):
            if all((folder / path).exists() for path in self.provides):
                return folder
        return None

    def file(self, root: Path) -> Path | None:
        """The archive itself, if it is in ``root``."""
        return next((root / name for name in self.names if (root / name).is_file()), None)


class BaseDataset(ABC, Dataset[tuple[Any, Any]]):
    """Images ``self.paths`` with labels ``self.labels`` (int): ``dataset[i]`` is an RGB image and its label, transformed.

    A subclass says how to :meth:`generate_split`, which fills both lists, and what it is made of (:meth:`sources`), or how to
    :meth:`download_and_remove`.

    Args:
        root: a folder that holds the dataset as its archives leave it, or these archives, which are then extracted into it
            once; with ``download`` it may be empty or not there.
        split: one of :meth:`get_available_splits`.
        transform: of an image.
        target_transform: of a label.
        download: fetch what is missing. Of several processes let one do so first.

    Raises:
        ValueError: another split; nothing to read and no ``download``; a damaged archive or list.
    """

    paths: list[str]
    labels: list[int]
    # Of the source that is there: its number among the sources, and the folder of each of its parts.
    source: int
    folders: list[Path]

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train+test",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        if split not in self.get_available_splits():
            raise ValueError(f"split must be one of {', '.join(self.get_available_splits())}, got {split!r}")
        self.root = root
        self.split = split
        self.transform = transform
        self.target_transform = target_transform
        self.source, self.folders = 0, [Path(root)]
        if self.sources():
            self._find_or_fetch(download)
        else:
            self._own_way(download)
        self.generate_split()

    @abstractmethod
    def generate_split(self) -> None:
        """Fill ``paths`` and ``labels``."""

    def sources(self) -> Sequence[Sequence[Archive]]:
        """The forms a dataset comes in, each with its parts. The first is the one that is downloaded."""
        return ()

    def get_available_splits(self) -> list[str]:
        """What ``split`` may be."""
        return ["train", "test", "train+test"]

    def download_and_remove(self) -> None:
        """Fetch what is missing, extract it into ``root``, and remove the archives that were fetched."""
        if not self.sources():
            raise NotImplementedError(f"{type(self).__name__} does not say where to download from")
        root = Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        for part in self.sources()[0]:
            if part.folder(root) is not None:
                continue
            if part.file(root) is None:
                if part.url is None:
                    raise ValueError(f"{part.names[0]} of {type(self).__name__} cannot be downloaded: put it into {root}")
                self._use(part, fetch(part.url, root / part.names[0], part.checksum))
                (root / part.names[0]).unlink()
            else:
                self._use(part)

    def _own_way(self, download: bool) -> None:
        """As subclasses of a user's own have it."""
        there = os.path.isdir(self.root)
        if download and (not there or not os.listdir(self.root)):
            os.makedirs(self.root, exist_ok=True)
            self.download_and_remove()
        elif not there:
            raise ValueError(f"root must be a folder, got {str(self.root)!r}: pass download=True to fetch the dataset there")

    def _find_or_fetch(self, download: bool) -> None:
        root = Path(self.root)
        if os.path.lexists(root) and not root.is_dir():
            raise ValueError(f"root must be a folder, got {str(root)!r}: pass the folder that an archive is in")
        if self._find(root):
            return
        if not download:
            wanted = "; or ".join(
                ", ".join(part.names[0] if part.names else part.provides[0] for part in source) for source in self.sources()
            )
            raise ValueError(
                f"{type(self).__name__} is not in {str(root)!r}: put there {wanted}, as they are or extracted; "
                "or pass download=True"
            )
        self.download_and_remove()
        if not self._find(root):
            raise ValueError(f"what was downloaded into {str(root)!r} is no {type(self).__name__}")

    def _find(self, root: Path) -> bool:
        """Choose the first source that is there, extracting what is not yet."""
        for number, source in enumerate(self.sources()):
            if any(part.folder(root) is None and part.file(root) is None for part in source):
                continue
            for part in source:
                if part.folder(root) is None:
                    self._use(part)
            self.source = number
            self.folders = [folder for part in source if (folder := part.folder(root)) is not None]
            return True
        return False

    def _use(self, part: Archive, file: Path | None = None) -> None:
        root = Path(self.root)
        file = file or part.file(root)
        assert file is not None
        extract(file, root)
        if part.folder(root) is None:
            raise ValueError(f"{file} lacks {', '.join(part.provides)}, which are {type(self).__name__}'s: get it again")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, idx: int) -> tuple[Any, Any]:
        image, label = read_image(self.paths[idx]), self.labels[idx]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label


def read_image(path: str) -> Any:
    """An RGB image, read whole. ValueError where the file is no image or was cut short."""
    try:
        from PIL import Image
    except ImportError as error:
        raise needed("Pillow", error) from error
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no image, or was cut short ({error}): extract the dataset again") from error


def needed(package: str, error: ImportError) -> ImportError:
    """The error where an optional package is missing."""
    return ImportError(f'{package} is needed here, and its import failed ({error}): pip install "pml-fast[datasets]"')


def rows(path: Path, columns: int, separator: str | None = None) -> Iterator[list[str]]:
    """The fields of each line of a list of images. ValueError where a line has another number of them."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            # Fields that may hold separators stand last.
            fields = line.strip().split(separator, columns - 1)
            if len(fields) != columns:
                raise ValueError(f"{path}, line {number}: {columns} fields expected, got {line.strip()!r}: get the list again")
            yield fields


def integer(path: Path, field: str) -> int:
    """A field that is an integer."""
    try:
        return int(field)
    except ValueError:
        raise ValueError(f"{path}: an integer expected, got {field!r}: get the list again") from None


def classes_of(split: str, first: int, count: int) -> range:
    """Classes, numbered from 1: the first ``first`` of ``count`` for training, the others for testing."""
    return {"train": range(1, first + 1), "test": range(first + 1, count + 1)}.get(split, range(1, count + 1))
