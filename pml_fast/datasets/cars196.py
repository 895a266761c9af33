"""Cars196."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pml_fast.datasets.base_dataset import Archive, BaseDataset, classes_of, integer, needed, rows

_TRAIN, _TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"


class Cars196(BaseDataset):
    """16,185 images of 196 models of cars. Classes 1 to 98 are for training, 99 to 196 for testing.

    Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013. In any of three forms:

    - Kaggle's ``stanford-car-dataset-by-classes-folder.zip``, which is the one that is downloaded: ``names.csv``,
      ``anno_train.csv``, ``anno_test.csv`` and ``car_data/``;
    - Stanford's in one: ``car_ims.tgz`` and ``cars_annos.mat``;
    - Stanford's in parts: ``cars_train.tgz``, ``cars_test.tgz``, and ``car_devkit.tgz`` (or its ``devkit/``) with
      ``cars_test_annos_withlabels.mat`` beside.
    """

    DOWNLOAD_URL: ClassVar[str] = (
        "https://www.kaggle.com/api/v1/datasets/download/jutrera/stanford-car-dataset-by-classes-folder"
    )
    # Kaggle publishes none.
    CHECKSUM: ClassVar[str | None] = None

    def sources(self) -> Sequence[Sequence[Archive]]:
        kaggle = "stanford-car-dataset-by-classes-folder"
        lists = ("names.csv", "anno_train.csv", "anno_test.csv", "car_data/car_data")
        return [
            [Archive((f"{kaggle}.zip", kaggle, "archive.zip"), lists, "", self.DOWNLOAD_URL, self.CHECKSUM)],
            [Archive(("car_ims.tgz",), ("car_ims",)), Archive((), ("cars_annos.mat",))],
            [
                Archive(("cars_train.tgz",), ("cars_train",)),
                Archive(("cars_test.tgz",), ("cars_test",)),
                Archive(("car_devkit.tgz",), (_TRAIN,), "devkit"),
                Archive((), (_TEST,), "devkit"),
            ],
        ]

    def generate_split(self) -> None:
        classes = classes_of(self.split, 98, 196)
        listed = (self._of_csv, self._of_one_file, self._of_devkit)[self.source]()
        chosen = [(path, label) for path, label in listed if label in classes]
        self.paths = [str(path) for path, _ in chosen]
        self.labels = [label for _, label in chosen]

    def _of_csv(self) -> Iterator[tuple[Path, int]]:
        folder = self.folders[0]
        names = [line.strip() for line in (folder / "names.csv").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test"):
            listed = folder / f"anno_{split}.csv"
            for name, *_, label in rows(listed, 6, ","):
                number = integer(listed, label)
                if not 1 <= number <= len(names):
                    raise ValueError(f"{listed} names class {number}, names.csv has {len(names)}: get both again")
                # Folders have a dash where a name has a slash.
                model = names[number - 1].replace("/", "-")
                yield folder / "car_data" / "car_data" / split / model / name, number

    def _of_one_file(self) -> Iterator[tuple[Path, int]]:
        images, annotations = self.folders
        for entry in _annotations(annotations / "cars_annos.mat"):
            yield images / str(entry["relative_im_path"]), int(entry["class"])

    def _of_devkit(self) -> Iterator[tuple[Path, int]]:
        train, test, train_list, test_list = self.folders
        for folder, listed in ((train / "cars_train", train_list / _TRAIN), (test / "cars_test", test_list / _TEST)):
            for entry in _annotations(listed):
                yield folder / str(entry["fname"]), int(entry["class"])


def _annotations(path: Path) -> list[dict[str, Any]]:
    """The structs of one of Stanford's lists."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise needed("SciPy", error) from error
    try:
        entries = loadmat(path, simplify_cells=True)["annotations"]
        return [entries] if isinstance(entries, dict) else list(entries)
    except Exception as error:  # SciPy raises many kinds of a damaged file, with no base of their own
        raise ValueError(f"{path} is damaged or holds no annotations ({error!r}): get it again") from error
