"""Files fetched over https: resumed where they were cut off, checked, and put in place once whole."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pml_fast.utils.files import flush

_CHUNK = 1 << 20
Advance = Callable[[int], object]


def download(
    url: str, filename: str | os.PathLike[str], checksum: str | None = None, *, attempts: int = 5, pause: float = 1.0
) -> Path:
    """Fetch a file. ``filename`` is written when all has come and is right; until then what was there stays.

    What has come so far is kept in ``filename.part``: later attempts, and later calls, ask for the rest alone, if the file on
    the server is still the same one.

    Args:
        url: https; plain http for this machine alone (localhost). The same holds for where it redirects to.
        filename: where to, in a folder that is there.
        checksum: ``"md5:..."`` or ``"sha256:..."`` (any name of hashlib), in hex.
        attempts: how often to try in succession without anything coming.
        pause: seconds before the next attempt, doubled each time.

    Raises:
        ValueError: another kind of URL or of checksum; a web page in place of a file; a file of another checksum.
        ConnectionError: the server refuses, or the connection was lost too often.
    """
    _check_url(url)
    if checksum is not None and checksum.partition(":")[0] not in hashlib.algorithms_available:
        raise ValueError(f'checksum must be "md5:...", "sha256:..." or of another name of hashlib, got {checksum!r}')
    target = Path(filename)
    part, failures = _Part(target), 0
    while failures < attempts:
        before = part.size
        try:
            whole = _fetch(url, part, known=checksum is not None)
            problem: Exception | None = None
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise ConnectionError(f"the server refused {url}: {error.code} {error.reason}") from error
            whole, problem = False, error
        except (OSError, http.client.HTTPException) as error:
            whole, problem = False, error
        if whole:
            part.finish(url, checksum)
            return target
        failures = 0 if part.size > before else failures + 1
        time.sleep(pause * 2**failures if failures < attempts else 0)
    raise ConnectionError(
        f"the connection to {url} was lost {attempts} times ({problem or 'it ended early'}): "
        f"{part.size} bytes are kept in {part.path}, call again to go on from there"
    ) from problem


class _Part:
    """What has come so far of a file, and a note of where from."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str | None:
        """What the server named the version that has partly come; ``None`` where nothing came from this URL."""
        try:
            note = json.loads(self.note.read_text())
            return str(note["validator"]) if note["url"] == url else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def finish(self, url: str, checksum: str | None) -> None:
        """Check what has come and put it in its place."""
        if checksum is not None:
            algorithm, _, wanted = checksum.partition(":")
            found = _digest(self.path, algorithm)
            if found != wanted.lower():
                self.path.unlink()
                self.note.unlink(missing_ok=True)
                raise ValueError(
                    f"{algorithm} of {url} is {found}, expected {wanted}: the file was damaged on the way or is another one "
                    f"now; {self.target} was left as it was. Fetch it again"
                )
        flush(self.path)
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)


def _fetch(url: str, part: _Part, known: bool) -> bool:
    """One request for what is missing; whether all has come then. A file of ``known`` checksum is resumed unnamed, too."""
    headers = {"User-Agent": "pml_fast", "Accept-Encoding": "identity"}
    size, validator = part.size, part.validator(url)
    if size and validator is not None and (validator or known):
        headers["Range"] = f"bytes={size}-"
        if validator:
            headers["If-Range"] = validator
    try:
        response = _opener(url).open(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(size):
                return True
            part.path.unlink()
            return False
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(
                f"the server sent a web page, not a file, for {url}: open it in a browser, and put the file at {part.target}"
            )
        total = _total(response, size)
        if response.status != 206:
            size = 0
        etag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag
        part.note.write_text(json.dumps({"url": url, "validator": validator}))
        with open(part.path, "ab" if size else "wb") as file, progress(part.target.name, total, size) as advance:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
    return total is None or part.size == total


def _total(response: Any, asked_from: int) -> int | None:
    """The size of the whole file, from the headers; an OSError where another part came than was asked for."""
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return None if length is None else int(length)
    span, _, total = response.headers.get("Content-Range", "").partition("/")
    if not span.startswith(f"bytes {asked_from}-") or not total.isdigit():
        raise OSError(f"the server sent {span or 'an unnamed part'} when asked for bytes from {asked_from}")
    return int(total)


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, progress(f"checking {path.stem}", path.stat().st_size) as advance:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


# ---- where from --------------------------------------------------------------------------------------------------------------


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_url(url: str) -> None:
    scheme = urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and _is_loopback(url)):
        raise ValueError(f"url must begin with https://, got {url!r}: plain http is taken of this machine alone")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    # This machine is reached without a proxy.
    proxies = [urllib.request.ProxyHandler({})] if _is_loopback(url) else []
    return urllib.request.build_opener(_Redirects, *proxies)


@contextlib.contextmanager
def progress(description: str, total: int | None, initial: int = 0) -> Iterator[Advance]:
    """A progress bar in bytes, where tqdm is installed and a person looks on."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(desc=description, total=total, initial=initial, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update
