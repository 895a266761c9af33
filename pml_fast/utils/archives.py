"""Archives taken apart without trusting them: all of an archive, or nothing of it, comes into a folder."""

from __future__ import annotations

import errno
import filecmp
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pml_fast.utils.downloads import progress

# Of which a damaged archive makes one or the other.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, OSError,
)  # fmt: skip
_CHUNK = 1 << 20
# How much an archive may hold: images hardly shrink, lists do tenfold; what shrinks a thousandfold is made to fill a disk.
_RATIO, _ALLOWANCE = 100, 1 << 30
# What macOS adds to archives.
_JUNK = "__MACOSX"


def extract(archive: str | os.PathLike[str], folder: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Take a tar (plain, gz, bz2, xz) or zip archive apart into ``folder``, which is there.

    The members go to a hidden folder first, and are moved when all of them are right. Files that are in ``folder`` already are
    never replaced.

    Args:
        max_bytes: how much the members may be together; 100 times the archive and 1 GiB by default.

    Raises:
        ValueError: the archive is damaged or cut short; a member's name leads out of the folder, or a member is a link, a
            device or the like; the members are larger than ``max_bytes``; ``folder`` holds something else under one of their
            names.
        OSError: the disk has no room for a member.
    """
    archive, folder = Path(archive), Path(folder)
    hidden = folder / f".{archive.name}.extracting"
    shutil.rmtree(hidden, ignore_errors=True)  # of a run that was killed
    hidden.mkdir()
    try:
        _take_apart(archive, hidden, _RATIO * archive.stat().st_size + _ALLOWANCE if max_bytes is None else max_bytes)
        _move_in(archive, hidden, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@dataclass(frozen=True)
class Member:
    """kind: file, folder, or what is refused; size: in bytes, as the archive says."""

    name: str
    kind: str
    size: int
    open: Callable[[], Any]


def _take_apart(archive: Path, hidden: Path, max_bytes: int) -> None:
    with open(archive, "rb") as file:
        # By its content: names say little of what a server sent.
        members = _of_zip if file.read(2) == b"PK" else _of_tar
        file.seek(0)
        found, total = members(file), 0
        while True:
            try:
                member = next(found, None)
            except _DAMAGE as error:
                raise _damaged(archive, error) from error
            if member is None:
                return
            total += member.size
            _check(archive, hidden, member, total, max_bytes)
            _write(archive, hidden, member)


def _check(archive: Path, hidden: Path, member: Member, total: int, max_bytes: int) -> None:
    name = member.name
    if member.kind not in ("file", "folder"):
        raise ValueError(f"{archive} holds a {member.kind}, {name!r}: nothing was extracted; get it from its makers")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name or re.match("[A-Za-z]:", name):
        raise ValueError(f"{archive} holds {name!r}, which leads out of the folder: nothing was extracted")
    if total > max_bytes:
        raise ValueError(
            f"{archive} holds more than {max_bytes} bytes, too many for an archive of {archive.stat().st_size}: nothing was "
            "extracted; if it comes from its makers, extract it by hand"
        )
    if member.size > shutil.disk_usage(hidden).free:
        raise OSError(errno.ENOSPC, f"no room for {name!r} of {member.size} bytes: nothing was extracted of {archive}")


def _of_tar(file: IO[bytes]) -> Iterator[Member]:
    """Name, kind and opener of each member."""
    size = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=file, mode="r:*") as tar, progress(f"extracting {Path(file.name).name}", size) as advance:
        done = 0
        while (member := tar.next()) is not None:
            # Not a list of all members, of which there may be millions.
            tar.members = []  # type: ignore[attr-defined]
            kind = "file" if member.isreg() else "folder" if member.isdir() else _kind(member)
            yield Member(member.name, kind, member.size, partial(tar.extractfile, member))
            advance(file.tell() - done)
            done = file.tell()
        # To the end, where the checksum is.
        while tar.fileobj is not None and tar.fileobj.read(_CHUNK):
            pass


def _kind(member: tarfile.TarInfo) -> str:
    return "link" if member.issym() or member.islnk() else "device" if member.isdev() else "special file"


def _of_zip(file: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(file) as whole:
        size = sum(info.compress_size for info in whole.infolist())
        with progress(f"extracting {Path(file.name).name}", size) as advance:
            for info in whole.infolist():
                mode = info.external_attr >> 16
                plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = "link" if stat.S_ISLNK(mode) else "device" if not plain else "folder" if info.is_dir() else "file"
                yield Member(info.filename, kind, info.file_size, partial(whole.open, info))
                advance(info.compress_size)


def _write(archive: Path, hidden: Path, member: Member) -> None:
    parts = PurePosixPath(member.name).parts
    if not parts or parts[0] == _JUNK:
        return
    place = hidden.joinpath(*parts)
    try:
        (place if member.kind == "folder" else place.parent).mkdir(parents=True, exist_ok=True)
        if member.kind == "folder":
            return
        target = place.open("wb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"{archive} holds {member.name!r} both as file and folder: nothing was extracted") from error
    with target:
        try:
            with member.open() as source:
                for chunk in iter(partial(source.read, _CHUNK), b""):
                    _put(target, chunk)
        except _Full as error:
            raise error.cause from None
        except _DAMAGE as error:
            raise _damaged(archive, error) from error


class _Full(Exception):
    """An error of the folder written to, not of the archive."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _put(target: IO[bytes], chunk: bytes) -> None:
    try:
        target.write(chunk)
    except OSError as error:
        raise _Full(error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    reason = str(error) or type(error).__name__
    return ValueError(f"{archive} is damaged or was cut short ({reason}): nothing was extracted; delete it and get it again")


def _move_in(archive: Path, hidden: Path, folder: Path) -> None:
    # Folders last: where a run is killed between, what a dataset looks for is not there yet.
    entries = sorted(hidden.iterdir(), key=lambda entry: (entry.is_dir(), entry.name))
    for entry in entries:
        there = folder / entry.name
        same = there.is_file() and entry.is_file() and filecmp.cmp(there, entry, shallow=False)
        if os.path.lexists(there) and not same:
            raise ValueError(
                f"{there} is there already, and {archive} holds another: nothing was extracted; move it away and try again"
            )
    for entry in entries:
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
