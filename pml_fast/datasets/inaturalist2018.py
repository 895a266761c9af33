"""iNaturalist 2018, in the split for retrieval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pml_fast.datasets.base_dataset import Archive, BaseDataset

_HOST = "https://ml-inat-competition-datasets.s3.amazonaws.com/2018"


class INaturalist2018(BaseDataset):
    """461,939 images of 8,142 species: 5,690 for training, 2,452 others for testing.

    The images of the 2018 competition in the split of Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image
    Retrieval", ECCV 2020. Archives: ``train_val2018.tar.gz`` (120 GB), ``train2018.json.tar.gz``, ``val2018.json.tar.gz`` and
    ``Inat_dataset_splits.zip``.
    """

    IMG_DOWNLOAD_URL: ClassVar[str] = f"{_HOST}/train_val2018.tar.gz"
    TRAIN_ANN_URL: ClassVar[str] = f"{_HOST}/train2018.json.tar.gz"
    VAL_ANN_URL: ClassVar[str] = f"{_HOST}/val2018.json.tar.gz"
    SPLITS_URL: ClassVar[str] = "https://drive.google.com/uc?id=1sXfkBTFDrRU3__-NUs1qBP3sf_0uMB98"
    # Of the first three; that of the split's lists is not published.
    CHECKSUMS: ClassVar[tuple[str | None, ...]] = (
        "md5:b1c6952ce38f31868cc50ea72d066cc3",
        "md5:bfa29d89d629cbf04d826a720c0a68b0",
        "md5:f2ed8bfe3e9901cdefceb4e53cd3775d",
    )

    def sources(self) -> Sequence[Sequence[Archive]]:
        images, train, val = self.CHECKSUMS
        lists = tuple(f"Inaturalist_{split}_set1.txt" for split in ("train", "test"))
        # The small ones first: what is wrong shows before the large one.
        return [
            [
                Archive(("Inat_dataset_splits.zip",), lists, "Inat_dataset_splits", self.SPLITS_URL),
                Archive(("train2018.json.tar.gz",), ("train2018.json",), "", self.TRAIN_ANN_URL, train),
                Archive(("val2018.json.tar.gz",), ("val2018.json",), "", self.VAL_ANN_URL, val),
                Archive(("train_val2018.tar.gz",), ("train_val2018",), "", self.IMG_DOWNLOAD_URL, images),
            ]
        ]

    def generate_split(self) -> None:
        lists, train, val, images = self.folders
        label_of = {**_labels(val / "val2018.json"), **_labels(train / "train2018.json")}
        self.paths, self.labels = [], []
        for split in self.split.split("+"):
            listed = lists / f"Inaturalist_{split}_set1.txt"
            for name in filter(None, map(str.strip, listed.read_text(encoding="utf-8").splitlines())):
                if name not in label_of:
                    raise ValueError(f"{listed} names {name!r}, of which the annotations know nothing: get both again")
                self.paths.append(str(images / name))
                self.labels.append(label_of[name])


def _labels(path: Path) -> dict[str, int]:
    """Each file's category."""
    try:
        annotations: Any = json.loads(path.read_text(encoding="utf-8"))
        category_of = {entry["image_id"]: int(entry["category_id"]) for entry in annotations["annotations"]}
        return {entry["file_name"]: category_of[entry["id"]] for entry in annotations["images"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or holds no annotations ({error!r}): get it again") from error
