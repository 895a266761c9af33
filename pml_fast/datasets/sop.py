"""Stanford Online Products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import ClassVar

from pml_fast.datasets.base_dataset import Archive, BaseDataset, integer, rows


class StanfordOnlineProducts(BaseDataset):
    """120,053 images of 22,634 products: 11,318 for training (``Ebay_train.txt``), 11,316 for testing (``Ebay_test.txt``).

    Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016. Archive:
    ``Stanford_Online_Products.zip``.
    """

    DOWNLOAD_URL: ClassVar[str] = (
        "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&authuser=0&confirm=t"
    )
    CHECKSUM: ClassVar[str | None] = "md5:7f73d41a2f44250d4779881525aea32e"

    def sources(self) -> Sequence[Sequence[Archive]]:
        lists, folder = ("Ebay_train.txt", "Ebay_test.txt"), "Stanford_Online_Products"
        return [[Archive((f"{folder}.zip",), lists, folder, self.DOWNLOAD_URL, self.CHECKSUM)]]

    def generate_split(self) -> None:
        self.paths, self.labels = [], []
        for split in self.split.split("+"):
            listed = self.folders[0] / f"Ebay_{split}.txt"
            for _, label, _, path in islice(rows(listed, 4), 1, None):  # the first line names the columns
                self.paths.append(str(self.folders[0] / path))
                self.labels.append(integer(listed, label))
