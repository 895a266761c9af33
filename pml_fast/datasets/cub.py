"""CUB-200-2011."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pml_fast.datasets.base_dataset import Archive, BaseDataset, classes_of, integer, rows


class CUB(BaseDataset):
    """11,788 images of 200 bird species. Classes 1 to 100 are for training, 101 to 200 for testing.

    Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011. Archive: ``CUB_200_2011.tgz``.
    """

    DOWNLOAD_URL: ClassVar[str] = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    CHECKSUM: ClassVar[str | None] = "md5:97eceeb196236b17998738112f37df78"

    def sources(self) -> Sequence[Sequence[Archive]]:
        lists = ("images.txt", "image_class_labels.txt", "images")
        return [[Archive(("CUB_200_2011.tgz",), lists, "CUB_200_2011", self.DOWNLOAD_URL, self.CHECKSUM)]]

    def generate_split(self) -> None:
        folder, classes = self.folders[0], classes_of(self.split, 100, 200)
        names = dict(rows(folder / "images.txt", 2))
        listed = folder / "image_class_labels.txt"
        labels = [(image, integer(listed, label)) for image, label in rows(listed, 2)]
        if {image for image, _ in labels} != names.keys():
            raise ValueError(f"images.txt and image_class_labels.txt in {folder} list different images: get them again")
        chosen = [(image, label) for image, label in labels if label in classes]
        self.paths = [str(folder / "images" / names[image]) for image, _ in chosen]
        self.labels = [label for _, label in chosen]
