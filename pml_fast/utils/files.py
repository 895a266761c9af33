"""Files that are either wholly written or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def write_atomically(filename: str | os.PathLike[str], write: Callable[[str], object]) -> None:
    """Let ``write`` make a temporary file beside ``filename``, then put it in that one's place.

    A run that is killed, or a ``write`` that raises, leaves the file that was there as it was.
    """
    target = Path(filename)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    try:
        write(temporary)
        flush(temporary)
        # mkstemp makes files for the owner alone: the rights are those of any new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with suppress(OSError):  # not every system can open a folder
        flush(target.parent)


def flush(path: str | os.PathLike[str]) -> None:
    """Let a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
