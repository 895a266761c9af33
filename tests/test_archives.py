"""Archives: all of one is extracted, or nothing."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pml_fast.utils.archives import extract

FILES = {"set/a.txt": b"a" * 5000, "set/deep/b.bin": os.urandom(40_000), "top.txt": b"top"}


def as_tar(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo, mode: Any = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
        for info in more:
            tar.addfile(info)
    return path


def as_zip(path: Path, files: dict[str, bytes], *more: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, body in files.items():
            target.writestr(name, body)
        for info in more:
            target.writestr(info, b"/etc/passwd")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "mine.txt").write_text("mine")
    return made


MINE = {"mine.txt": b"mine"}


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_extracted(mode: str, tmp_path: Path, folder: Path) -> None:
    extract(as_tar(tmp_path / "x", FILES, special("set/empty", tarfile.DIRTYPE), mode=mode), folder)
    assert tree(folder) == {**FILES, **MINE}
    assert (folder / "set" / "empty").is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["mine.txt", "set", "top.txt"]


def test_zips_are_extracted_whatever_their_name(tmp_path: Path, folder: Path) -> None:
    extract(as_zip(tmp_path / "no-suffix", {**FILES, "__MACOSX/._a": b"", "set/empty/": b""}), folder)
    assert tree(folder) == {**FILES, **MINE}
    assert (folder / "set" / "empty").is_dir()


@pytest.mark.parametrize("pack", [as_tar, as_zip])
@pytest.mark.parametrize("name", ["../out.txt", "set/../../out.txt", "/out.txt", "set\\..\\..\\out.txt", "C:out.txt"])
def test_names_that_lead_out_are_refused(pack: Any, name: str, tmp_path: Path, folder: Path) -> None:
    archive = pack(tmp_path / "x", {**FILES, name: b"out"})
    with pytest.raises(ValueError, match="leads out"):
        extract(archive, folder)
    assert tree(folder) == MINE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x"]
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (special("set/link", tarfile.SYMTYPE, "/etc"), "link"),
        (special("set/link", tarfile.SYMTYPE, "a.txt"), "link"),
        (special("set/hard", tarfile.LNKTYPE, "set/a.txt"), "link"),
        (special("set/device", tarfile.CHRTYPE), "device"),
        (special("set/device", tarfile.BLKTYPE), "device"),
        (special("set/pipe", tarfile.FIFOTYPE), "device"),
    ],
    ids=lambda x: x.name if isinstance(x, tarfile.TarInfo) else x,
)
def test_links_and_devices_in_tars_are_refused(member: tarfile.TarInfo, word: str, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=word):
        extract(as_tar(tmp_path / "x", FILES, member), folder)
    assert tree(folder) == MINE


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "device")])
def test_links_and_devices_in_zips_are_refused(mode: int, word: str, tmp_path: Path, folder: Path) -> None:
    info = zipfile.ZipInfo("set/link")
    info.external_attr = (mode | 0o777) << 16
    with pytest.raises(ValueError, match=word):
        extract(as_zip(tmp_path / "x", FILES, info), folder)
    assert tree(folder) == MINE


@pytest.mark.parametrize("pack", [as_tar, as_zip])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_cut_archive_leaves_the_folder_as_it_was(pack: Any, keep: float, tmp_path: Path, folder: Path) -> None:
    archive = pack(tmp_path / "x", FILES)
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    with pytest.raises(ValueError, match="damaged or was cut short"):
        extract(archive, folder)
    assert tree(folder) == MINE


@pytest.mark.parametrize("pack", [as_tar, as_zip])
def test_a_changed_byte_is_seen(pack: Any, tmp_path: Path, folder: Path) -> None:
    archive = pack(tmp_path / "x", FILES)
    body = bytearray(archive.read_bytes())
    body[len(body) // 2] ^= 0xFF
    archive.write_bytes(body)
    with pytest.raises(ValueError, match="damaged"):
        extract(archive, folder)
    assert tree(folder) == MINE


def test_what_is_there_is_never_replaced(tmp_path: Path, folder: Path) -> None:
    (folder / "set").mkdir()
    (folder / "set" / "own.txt").write_text("own")
    with pytest.raises(ValueError, match=r"set is there already.*move it away"):
        extract(as_tar(tmp_path / "x", FILES), folder)
    assert tree(folder) == {**MINE, "set/own.txt": b"own"}


def test_a_run_killed_before_the_last_move_can_be_taken_up(tmp_path: Path, folder: Path) -> None:
    """What it left: the hidden folder, and the files that are moved first."""
    archive = as_tar(tmp_path / "x", FILES)
    (folder / ".x.extracting" / "set").mkdir(parents=True)
    (folder / "top.txt").write_bytes(FILES["top.txt"])
    extract(archive, folder)
    assert tree(folder) == {**FILES, **MINE}


def test_more_than_an_archive_of_its_size_holds_is_refused(tmp_path: Path, folder: Path) -> None:
    """Zeros shrink a thousandfold: a small file that would fill the disk."""
    for pack in (as_tar, as_zip):
        archive = pack(tmp_path / pack.__name__, {**FILES, "zeros": bytes(3_000_000)})
        with pytest.raises(ValueError, match="holds more than 1000000 bytes"):
            extract(archive, folder, max_bytes=1_000_000)
        assert tree(folder) == MINE
    archive = as_tar(tmp_path / "x", {}, mode="w")
    huge = tarfile.TarInfo("huge")
    huge.size = 1 << 50
    archive.write_bytes(huge.tobuf() + archive.read_bytes())
    with pytest.raises(ValueError, match="too many for an archive"):
        extract(archive, folder)


def test_a_full_disk_is_seen_before_it_is_full(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(OSError, match=r"no room for 'set/deep/b.bin' of 40000 bytes"):
        extract(as_tar(tmp_path / "x", FILES), folder)
    assert tree(folder) == MINE


@pytest.mark.parametrize("pack", [as_tar, as_zip])
def test_a_file_that_is_a_folder_too_is_refused(pack: Any, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="both as file and folder"):
        extract(pack(tmp_path / "x", {"set": b"a", "set/a.txt": b"b"}), folder)
    with pytest.raises(ValueError, match="both as file and folder"):
        extract(pack(tmp_path / "y", {"set/a.txt": b"b", "set": b"a"}), folder)
    assert tree(folder) == MINE
