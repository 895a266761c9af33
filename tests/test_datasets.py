"""Datasets: from folders and archives of the real layout, and downloaded; splits as in the literature, and as the peer's."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer, serving
from PIL import Image
from pytorch_metric_learning import datasets as peer
from scipy.io import savemat

from pml_fast import datasets
from pml_fast.datasets import CUB, Archive, BaseDataset, Cars196, INaturalist2018, StanfordOnlineProducts

Files = dict[str, bytes]


def picture(shade: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    body = io.BytesIO()
    Image.new(mode, (3, 2), shade if mode == "L" else (shade,) * 3).save(body, kind)
    return body.getvalue()


PICTURES = [picture(shade) for shade in range(256)]


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def as_tar(files: Files) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return body.getvalue()


def as_zip(files: Files) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return body.getvalue()


def spread(files: Files, root: Path) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


# ---- the archives, small


def cub() -> dict[str, Files]:
    """One image a class, and a second one of classes 1 and 101; the listed order is by class."""
    classes = sorted([*range(1, 201), 1, 101])
    names = [f"{label:03}.Bird_{label}/Bird_{number:04}.jpg" for number, label in enumerate(classes)]
    top = "CUB_200_2011"
    return {
        "CUB_200_2011.tgz": {
            f"{top}/images.txt": lines(*(f"{k} {name}" for k, name in enumerate(names, 1))),
            f"{top}/image_class_labels.txt": lines(*(f"{k} {label}" for k, label in enumerate(classes, 1))),
            **{f"{top}/images/{name}": PICTURES[label] for name, label in zip(names, classes)},
            "attributes.txt": b"",
        }
    }


CAR_NAMES = [f"Make {number} SUV" if number != 5 else "Ram C/V Cargo Van 2012" for number in range(1, 197)]


def cars_of_kaggle() -> dict[str, Files]:
    files = {"names.csv": lines(*CAR_NAMES)}
    for split, labels in (("train", [1, 5, 98, 99, 196]), ("test", [5, 98, 99, 150])):
        rows = []
        for number, label in enumerate(labels, 1):
            folder = CAR_NAMES[label - 1].replace("/", "-")
            rows.append(f"{number:05}.jpg,39,116,569,375,{label}")
            files[f"car_data/car_data/{split}/{folder}/{number:05}.jpg"] = PICTURES[label]
        files[f"anno_{split}.csv"] = lines(*rows)
    return {"stanford-car-dataset-by-classes-folder.zip": files}


def mat(**fields: list[Any]) -> bytes:
    entries = np.zeros((1, len(next(iter(fields.values())))), dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        for k, value in enumerate(values):
            entries[0, k][name] = value
    body = io.BytesIO()
    savemat(body, {"annotations": entries})
    return body.getvalue()


def cars_in_parts() -> dict[str, Files]:
    def images(split: str, labels: list[int]) -> Files:
        return {f"cars_{split}/{k:05}.jpg": PICTURES[label] for k, label in enumerate(labels, 1)}

    def listed(labels: list[int]) -> bytes:
        return mat(**{"class": labels}, fname=[f"{k:05}.jpg" for k in range(1, len(labels) + 1)])

    train, test = [1, 5, 98, 99, 196], [5, 98, 99, 150]
    return {
        "cars_train.tgz": images("train", train),
        "cars_test.tgz": images("test", test),
        "car_devkit.tgz": {"devkit/cars_train_annos.mat": listed(train)},
        "cars_test_annos_withlabels.mat": {"": listed(test)},
    }


def cars_in_one() -> dict[str, Files]:
    labels = [1, 5, 98, 99, 196, 5, 98, 99, 150]
    names = [f"car_ims/{k:06}.jpg" for k in range(1, len(labels) + 1)]
    return {
        "car_ims.tgz": {name: PICTURES[label] for name, label in zip(names, labels)},
        "cars_annos.mat": {"": mat(**{"class": labels}, relative_im_path=names)},
    }


def products() -> dict[str, Files]:
    top, files = "Stanford_Online_Products", {}
    for split, labels in (("train", [1, 1, 11318]), ("test", [11319, 22634, 22634])):
        names = [f"bicycle_final/{split}{label}_{k}.JPG" for k, label in enumerate(labels)]
        rows = [f"{k} {label} 1 {name}" for k, (label, name) in enumerate(zip(labels, names), 1)]
        files[f"{top}/Ebay_{split}.txt"] = lines("image_id class_id super_class_id path", *rows)
        files |= {f"{top}/{name}": PICTURES[label % 256] for name, label in zip(names, labels)}
    return {f"{top}.zip": {**files, "__MACOSX/._Ebay_train.txt": b""}}


def species() -> dict[str, Files]:
    """Training images of the competition are in the test split, and the other way round."""
    labels = {"train_val2018/Aves/2820/a.jpg": 2820, "train_val2018/Insecta/7/b.jpg": 7, "train_val2018/Aves/2820/c.jpg": 2820}

    def annotations(first: int, names: list[str]) -> bytes:
        ids = {name: k for k, name in enumerate(names, first)}
        return json.dumps({
            "images": [{"id": k, "file_name": name} for name, k in ids.items()],
            "annotations": [{"id": k, "image_id": k, "category_id": labels[name]} for name, k in ids.items()],
        }).encode()  # fmt: skip

    a, b, c = labels
    return {
        "Inat_dataset_splits.zip": {
            "Inat_dataset_splits/Inaturalist_train_set1.txt": lines(c, a),
            "Inat_dataset_splits/Inaturalist_test_set1.txt": lines(b),
        },
        "train2018.json.tar.gz": {"train2018.json": annotations(1, [a, b])},
        "val2018.json.tar.gz": {"val2018.json": annotations(3, [c])},
        "train_val2018.tar.gz": {name: PICTURES[label % 256] for name, label in labels.items()},
    }


LAYOUTS: dict[str, tuple[type[BaseDataset], Callable[[], dict[str, Files]]]] = {
    "CUB": (CUB, cub),
    "Cars196 of Kaggle": (Cars196, cars_of_kaggle),
    "Cars196 in parts": (Cars196, cars_in_parts),
    "Cars196 in one": (Cars196, cars_in_one),
    "StanfordOnlineProducts": (StanfordOnlineProducts, products),
    "INaturalist2018": (INaturalist2018, species),
}
# The layouts that the peer knows and that are downloaded, and the class attributes that hold their addresses.
KNOWN = {
    "CUB": {"DOWNLOAD_URL": "CUB_200_2011.tgz"},
    "Cars196 of Kaggle": {"DOWNLOAD_URL": "stanford-car-dataset-by-classes-folder.zip"},
    "StanfordOnlineProducts": {"DOWNLOAD_URL": "Stanford_Online_Products.zip"},
    "INaturalist2018": {
        "IMG_DOWNLOAD_URL": "train_val2018.tar.gz",
        "TRAIN_ANN_URL": "train2018.json.tar.gz",
        "VAL_ANN_URL": "val2018.json.tar.gz",
        "SPLITS_URL": "Inat_dataset_splits.zip",
    },
}
LABELS = {
    "CUB": ([1, *range(1, 101)], [101, *range(101, 201)]),
    "Cars196": ([1, 5, 98, 5, 98], [99, 196, 99, 150]),
    "StanfordOnlineProducts": ([1, 1, 11318], [11319, 22634, 22634]),
    "INaturalist2018": ([2820, 2820], [7]),
}


def packed(name: str, files: Files) -> bytes:
    if list(files) == [""]:
        return files[""]
    return as_zip(files) if name.endswith(".zip") else as_tar(files)


def archives(layout: str) -> Files:
    return {name: packed(name, files) for name, files in LAYOUTS[layout][1]().items()}


def extracted(layout: str) -> Files:
    files: Files = {}
    for name, members in LAYOUTS[layout][1]().items():
        files |= {member or name: content for member, content in members.items()}
    return files


def shade(found: Any) -> int:
    pixel: tuple[int, int, int] = found.getpixel((0, 0))
    return pixel[0]


# ---- from disk


@pytest.mark.parametrize("form", ["archives", "folder"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_dataset_is_read_from_disk(layout: str, form: str, tmp_path: Path) -> None:
    cls, _ = LAYOUTS[layout]
    spread(archives(layout) if form == "archives" else extracted(layout), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    train, test = LABELS[cls.__name__]
    for split, labels in (("train", train), ("test", test), ("train+test", train + test)):
        data = cls(str(tmp_path), split)
        assert len(data) == len(labels)
        assert sorted(data.labels) == sorted(labels)
        for k in range(0, len(data), max(1, len(data) // 4)):
            found, label = data[k]
            assert found.mode == "RGB" and label == data.labels[k]
            assert abs(shade(found) - label % 256) <= 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert before <= {path.name for path in tmp_path.iterdir()}, "archives of the user's own stay"


@pytest.mark.parametrize("split", ["train", "test", "train+test"])
@pytest.mark.parametrize("layout", KNOWN)
def test_paths_and_labels_are_the_peers(layout: str, split: str, tmp_path: Path) -> None:
    spread(extracted(layout), tmp_path)
    name = LAYOUTS[layout][0].__name__
    ours, theirs = (getattr(module, name)(str(tmp_path), split) for module in (datasets, peer))
    assert [Path(path) for path in ours.paths] == [Path(path) for path in theirs.paths]
    assert ours.labels == theirs.labels
    assert ours[0][1] == theirs[0][1] and ours[0][0].tobytes() == theirs[0][0].tobytes()


def test_the_folder_itself_may_be_given(tmp_path: Path) -> None:
    spread(extracted("CUB"), tmp_path)
    assert len(CUB(tmp_path / "CUB_200_2011", "train")) == 101


def test_the_lists_that_are_not_packed_may_lie_beside(tmp_path: Path) -> None:
    """Stanford's labels of the test images are a file of their own."""
    files = cars_in_parts()
    labels = files.pop("cars_test_annos_withlabels.mat")[""]
    spread({name: packed(name, members) for name, members in files.items()}, tmp_path)
    with pytest.raises(ValueError, match=r"Cars196 is not in .*car_ims.tgz, cars_annos.mat; or cars_train.tgz, cars_test.tgz"):
        Cars196(tmp_path)
    (tmp_path / "cars_test_annos_withlabels.mat").write_bytes(labels)
    assert sorted(Cars196(tmp_path, "test").labels) == sorted(LABELS["Cars196"][1])


def test_transforms(tmp_path: Path) -> None:
    spread(extracted("StanfordOnlineProducts"), tmp_path)
    data = StanfordOnlineProducts(tmp_path, "train", transform=shade, target_transform=str)
    assert data[2] == (shade(Image.open(data.paths[2])), "11318")


def test_every_image_is_rgb(tmp_path: Path) -> None:
    files = extracted("StanfordOnlineProducts")
    name = next(name for name in files if name.endswith(".JPG"))
    spread({**files, name: picture(90, "PNG", "L")}, tmp_path)
    assert StanfordOnlineProducts(tmp_path)[0][0].mode == "RGB"


def test_an_archive_is_extracted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread(archives("CUB"), tmp_path)
    CUB(tmp_path)
    monkeypatch.setattr("pml_fast.datasets.base_dataset.extract", lambda *_: pytest.fail("extracted again"))
    CUB(tmp_path, "test")


# ---- what is wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_archive_leaves_the_folder(layout: str, tmp_path: Path) -> None:
    bodies = archives(layout)
    name = max((name for name in bodies if not name.endswith(".mat")), key=lambda name: len(bodies[name]))
    bodies[name] = bodies[name][: int(0.8 * len(bodies[name]))]
    spread({**bodies, "mine.txt": b"mine"}, tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is damaged or was cut short.*delete it and get it again"):
        LAYOUTS[layout][0](tmp_path)
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"
    assert (tmp_path / name).read_bytes() == bodies[name]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    spread({"CUB_200_2011.tgz": as_tar({"other/a.txt": b""})}, tmp_path)
    with pytest.raises(ValueError, match=r"CUB_200_2011.tgz lacks images.txt, .* which are CUB's"):
        CUB(tmp_path)


DAMAGE = [
    ("CUB", "CUB_200_2011/images.txt", b"1 a b\nx\n", r"images.txt, line 2: 2 fields expected, got 'x'"),
    ("CUB", "CUB_200_2011/image_class_labels.txt", b"1 one\n", "an integer expected, got 'one'"),
    ("CUB", "CUB_200_2011/image_class_labels.txt", b"1 1\n", "list different images"),
    ("Cars196 of Kaggle", "anno_train.csv", b"1.jpg,1,2,3,4,197\n", "names class 197, names.csv has 196"),
    ("Cars196 of Kaggle", "anno_test.csv", b"1.jpg,1,2\n", "line 1: 6 fields expected"),
    ("Cars196 in one", "cars_annos.mat", b"text", "cars_annos.mat is damaged or holds no annotations"),
    ("Cars196 in one", "cars_annos.mat", b"", "cars_annos.mat is damaged or holds no annotations"),
    ("StanfordOnlineProducts", "Stanford_Online_Products/Ebay_train.txt", b"a b c d\n1 2\n", "line 2: 4 fields expected"),
    ("INaturalist2018", "val2018.json", b'{"images": [', "val2018.json is damaged or holds no annotations"),
    ("INaturalist2018", "val2018.json", b'{"images": [], "annotations": []}', "of which the annotations know nothing"),
]


@pytest.mark.parametrize(("layout", "name", "body", "message"), DAMAGE)
def test_a_damaged_list_is_named(layout: str, name: str, body: bytes, message: str, tmp_path: Path) -> None:
    spread({**extracted(layout), name: body}, tmp_path)
    with pytest.raises(ValueError, match=message):
        LAYOUTS[layout][0](tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    spread(extracted("CUB"), tmp_path)
    data = CUB(tmp_path)
    Path(data.paths[3]).write_bytes(PICTURES[3][:200])
    with pytest.raises(ValueError, match=r"Bird_0003.jpg is no image, or was cut short .*extract the dataset again"):
        data[3]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split must be one of train, test, train\+test, got 'val'"):
        CUB(tmp_path, "val")
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"CUB is not in .*: put there CUB_200_2011.tgz.*download=True"):
            CUB(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="root must be a folder"):
        CUB(tmp_path / "file")


# ---- downloaded


def from_server(layout: str, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> type[BaseDataset]:
    """The dataset with its addresses those of a server on this machine, whose archives have other checksums."""
    cls = LAYOUTS[layout][0]
    for attribute, name in KNOWN[layout].items():
        assert getattr(cls, attribute).startswith("https://")
        assert getattr(cls, attribute) == getattr(getattr(peer, cls.__name__), attribute)
        monkeypatch.setattr(cls, attribute, server.url(f"/{name}"))
    if hasattr(cls, "CHECKSUMS"):
        monkeypatch.setattr(cls, "CHECKSUMS", (None, None, None))
    else:
        monkeypatch.setattr(cls, "CHECKSUM", None)
    return cls


@pytest.mark.parametrize("layout", KNOWN)
def test_a_dataset_is_downloaded_and_its_archives_removed(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = archives(layout)
    with serving({f"/{name}": body for name, body in bodies.items()}) as server:
        cls = from_server(layout, server, monkeypatch)
        data = cls(tmp_path / "new" / "root", download=True)
        assert len(server.asked) == len(bodies)
        assert sorted(data.labels) == sorted([label for split in LABELS[cls.__name__] for label in split])
        assert len(cls(tmp_path / "new" / "root", "test", download=True)) == len(LABELS[cls.__name__][1])
        assert len(server.asked) == len(bodies), "what is there is not fetched again"
    assert not [path for path in (tmp_path / "new" / "root").iterdir() if path.name in bodies or ".part" in path.name]


def test_only_what_is_missing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = archives("INaturalist2018")
    kept = "train_val2018.tar.gz"
    spread({kept: bodies.pop(kept), **LAYOUTS["INaturalist2018"][1]()["val2018.json.tar.gz"]}, tmp_path)
    bodies.pop("val2018.json.tar.gz")
    with serving({f"/{name}": body for name, body in bodies.items()}) as server:
        assert len(from_server("INaturalist2018", server, monkeypatch)(tmp_path, download=True)) == 3
        assert len(server.asked) == 2
    assert (tmp_path / kept).exists(), "an archive of the user's own stays"


def test_another_file_than_the_published_one_is_not_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"/CUB_200_2011.tgz": archives("CUB")["CUB_200_2011.tgz"]}) as server:
        from_server("CUB", server, monkeypatch)
        monkeypatch.undo()
        monkeypatch.setattr(CUB, "DOWNLOAD_URL", server.url("/CUB_200_2011.tgz"))
        with pytest.raises(ValueError, match="expected 97eceeb196236b17998738112f37df78"):
            CUB(tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


# ---- datasets of one's own


def test_a_subclass_says_what_it_is_made_of(tmp_path: Path) -> None:
    class Mine(BaseDataset):
        def sources(self) -> list[list[Archive]]:
            return [[Archive(("mine.zip",), ("list.txt",), "mine")]]

        def generate_split(self) -> None:
            self.paths = [str(self.folders[0] / name) for name in (self.folders[0] / "list.txt").read_text().split()]
            self.labels = [0] * len(self.paths)

    with pytest.raises(ValueError, match=r"mine.zip of Mine cannot be downloaded: put it into"):
        Mine(tmp_path, download=True)
    spread({"mine.zip": as_zip({"mine/list.txt": b"a.jpg", "mine/a.jpg": PICTURES[7]})}, tmp_path)
    assert shade(Mine(tmp_path)[0][0]) == 7


@pytest.mark.parametrize("there", [False, True])
def test_a_subclass_downloads_as_the_peers_do(there: bool, tmp_path: Path) -> None:
    class Mine(BaseDataset):
        def generate_split(self) -> None:
            self.paths, self.labels = sorted(map(str, Path(self.root).iterdir())), [3]

        def download_and_remove(self) -> None:
            (Path(self.root) / "a.jpg").write_bytes(PICTURES[9])

        def get_available_splits(self) -> list[str]:
            return ["train+test", "query"]

    root = tmp_path / "root"
    if there:
        root.mkdir()
    else:
        with pytest.raises(ValueError, match="pass download=True"):
            Mine(root)
    assert shade(Mine(root, "query", download=True)[0][0]) == 9
    with pytest.raises(ValueError, match=r"train\+test, query"):
        Mine(root, "test")
