"""Downloads: resumed, checked, and put in place once whole; from a server on this machine that misbehaves."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest
from file_server import serving

from pml_fast.utils.downloads import download

BODY = bytes(range(256)) * 20
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
DATA = {"/data.bin": BODY}
quick = functools.partial(download, pause=0.0)


def test_a_file_arrives_whole_and_alone(tmp_path: Path) -> None:
    with serving(DATA) as server:
        assert quick(server.url(), tmp_path / "data.bin", MD5).read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


@pytest.mark.parametrize(
    "headers", [{"ETag": '"1"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, {}, {"ETag": 'W/"1"'}], ids=str
)
def test_a_lost_connection_is_taken_up_where_it_was(headers: dict[str, str], tmp_path: Path) -> None:
    with serving(DATA, cut=[1000, 500], headers=headers) as server:
        quick(server.url(), tmp_path / "data.bin", MD5)
        assert server.asked == [None, 1000, 1500]
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_a_later_call_goes_on(tmp_path: Path) -> None:
    with serving(DATA, cut=[1000, 0]) as server:
        with pytest.raises(ConnectionError, match=r"1000 bytes are kept in .*call again"):
            quick(server.url(), tmp_path / "data.bin", attempts=1)
        assert not (tmp_path / "data.bin").exists()
        quick(server.url(), tmp_path / "data.bin")
        assert server.asked == [None, 1000, 1000]
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_without_a_name_or_checksum_nothing_is_pieced_together(tmp_path: Path) -> None:
    with serving(DATA, cut=[1000], headers={}) as server:
        quick(server.url(), tmp_path / "data.bin")
        assert server.asked == [None, None]
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_another_version_of_the_file_is_fetched_from_its_start(tmp_path: Path) -> None:
    with serving(DATA, cut=[1000, 0]) as server:
        with pytest.raises(ConnectionError):
            quick(server.url(), tmp_path / "data.bin", attempts=1)
        server.files["/data.bin"], server.headers = BODY[::-1], {"ETag": '"2"'}
        quick(server.url(), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == BODY[::-1]


def test_what_came_of_another_url_is_not_gone_on_with(tmp_path: Path) -> None:
    with serving({**DATA, "/other.bin": BODY[::-1]}, cut=[1000, 0]) as server:
        with pytest.raises(ConnectionError):
            quick(server.url(), tmp_path / "data.bin", attempts=1)
        quick(server.url("/other.bin"), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path) -> None:
    with serving(DATA, cut=[1000], ranges=False) as server:
        quick(server.url(), tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_a_file_that_had_come_whole_is_put_in_place(tmp_path: Path) -> None:
    """As where a run was killed between the last byte and the renaming."""
    with serving(DATA, cut=[1000, 0]) as server:
        with pytest.raises(ConnectionError):
            quick(server.url(), tmp_path / "data.bin", attempts=1)
        (tmp_path / "data.bin.part").write_bytes(BODY)
        quick(server.url(), tmp_path / "data.bin", MD5)
        assert server.asked[-1] == len(BODY)
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_more_than_the_file_has_is_thrown_away(tmp_path: Path) -> None:
    with serving(DATA, cut=[1000, 0]) as server:
        with pytest.raises(ConnectionError):
            quick(server.url(), tmp_path / "data.bin", attempts=1)
        (tmp_path / "data.bin.part").write_bytes(BODY + b"more")
        quick(server.url(), tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == BODY


def test_another_checksum_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"old")
    with serving({"/data.bin": BODY[:-1] + b"x"}) as server, pytest.raises(ValueError, match=r"expected .*left as it was"):
        quick(server.url(), tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


@pytest.mark.parametrize("checksum", ["97eceeb196236b17998738112f37df78", "md6:00", ""])
def test_a_checksum_of_no_kind_is_refused_before_anything_is_fetched(checksum: str, tmp_path: Path) -> None:
    with serving(DATA) as server:
        with pytest.raises(ValueError, match=r'checksum must be "md5:\.\.\.", "sha256:\.\.\."'):
            quick(server.url(), tmp_path / "data.bin", checksum)
        assert len(server.asked) == 0


def test_a_cut_download_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"old")
    with serving(DATA, cut=[10, 0, 0]) as server, pytest.raises(ConnectionError, match="was lost 2 times"):
        quick(server.url(), tmp_path / "data.bin", attempts=2)
    assert (tmp_path / "data.bin").read_bytes() == b"old"


def test_a_web_page_is_no_file(tmp_path: Path) -> None:
    with serving(DATA, headers={"Content-Type": "text/html"}) as server, pytest.raises(ValueError, match="web page"):
        quick(server.url(), tmp_path / "data.bin")


def test_what_the_server_refuses_is_asked_for_once(tmp_path: Path) -> None:
    with serving({}) as server:
        with pytest.raises(ConnectionError, match="404"):
            quick(server.url(), tmp_path / "data.bin")
        assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(tmp_path: Path) -> None:
    with serving(DATA, status=503) as server:
        with pytest.raises(ConnectionError, match="503"):
            quick(server.url(), tmp_path / "data.bin", attempts=3)
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "ftp://example.com/x", "file:///etc/passwd", "http://127.0.0.1.x.org/y"]
)
def test_other_machines_are_reached_over_https_alone(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="https"):
        quick(url, tmp_path / "data.bin")


@pytest.mark.parametrize(
    ("place", "error", "word"),
    [("http://example.com/x", ValueError, "https"), ("file:///etc/passwd", ConnectionError, "not allowed")],
)
def test_redirects_lead_over_https_alone(place: str, error: type[Exception], word: str, tmp_path: Path) -> None:
    with serving(DATA, status=302, headers={"Location": place}) as server:
        with pytest.raises(error, match=word):
            quick(server.url(), tmp_path / "data.bin")
        assert len(server.asked) == 1
