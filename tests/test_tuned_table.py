"""The user's table of tuned configurations: its file, its keys, and what becomes of a damaged one."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pml_fast import cli
from pml_fast.engine.triton import tuned
from pml_fast.engine.triton.configs import Config

TILE = Config(32, 64, 128, 8, 3, True, None)
WIDE = Config(64, 32, 64, 4, 2, False, 255)
KEY = tuned.key("Card X", 90, "3.7.1", "grad", "bf16", False, 100, 3000)
OTHER = tuned.key("Card X", 90, "3.7.1", "state", "tf32", True, 700, 4096)
ENTRIES = {KEY: tuned.Entry(TILE, 0.5, 0.75), OTHER: tuned.Entry(WIDE, 1.0, 1.5)}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "_table", None)


def damage(**changes: Any) -> str:
    """The file of one good entry, some values of which are changed."""
    tuned.write(tuned.path(), {KEY: ENTRIES[KEY]})
    found = json.loads(tuned.path().read_text())
    entry = found["entries"][0]
    for name, value in changes.items():
        (entry["config"] if name in entry["config"] else entry)[name] = value
    return json.dumps(found)


def test_what_is_written_is_read_back() -> None:
    tuned.write(tuned.path(), ENTRIES)
    assert tuned.read(tuned.path()) == ENTRIES
    assert tuned.table() == ENTRIES
    # Nothing of the writing is left behind.
    assert [path.name for path in tuned.path().parent.iterdir()] == ["triton.json"]


def test_a_write_that_fails_leaves_the_old_table(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.write(tuned.path(), ENTRIES)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tuned.json, "dump", full)
        with pytest.raises(OSError, match="no space"):
            tuned.write(tuned.path(), {})
    assert tuned.read(tuned.path()) == ENTRIES
    assert [path.name for path in tuned.path().parent.iterdir()] == ["triton.json"]


def test_sizes_up_to_the_next_power_of_two_share_an_entry() -> None:
    def key(d: int, rows: int) -> tuned.Key:
        return tuned.key("Card X", 90, "3.7.1", "grad", "bf16", False, d, rows)

    assert key(65, 2049) == key(128, 4096) == KEY
    assert key(129, 4096) != KEY != key(128, 4097)
    assert key(1, 1) == key(64, 256)
    assert (key(0, 0).d, key(0, 0).rows) == (64, 256)


@pytest.mark.parametrize("home, base", [("", ".cache"), ("relative", ".cache")])
def test_without_a_cache_folder_of_the_users_it_is_the_usual_one(
    home: str, base: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuned.path() == tmp_path / base / "pml_fast" / "triton.json"


def test_no_file_is_an_empty_table() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.table() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99, "entries": []}', '{"format": 1, "entries": [{}]}'])
def test_a_damaged_file_is_warned_of_once_and_not_used(text: str) -> None:
    tuned.path().parent.mkdir(parents=True)
    tuned.path().write_text(text)
    with pytest.warns(RuntimeWarning, match=r"triton\.json .*shipped configurations are used.*pml-fast tune"):
        assert tuned.table() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned.table() == {}
    assert tuned.path().read_text() == text


@pytest.mark.parametrize(
    "changes",
    [
        {"block_m": 24}, {"block_m": 8}, {"block_n": 1024}, {"block_k": 64}, {"num_warps": 3}, {"num_warps": "4"},
        {"kernel": "pull"}, {"block_out": 64}, {"turned": 1},
        {"num_stages": 0}, {"maxnreg": 256}, {"maxnreg": True}, {"resident": 1}, {"card": 5}, {"arch": "90"}, {"d": 64},
    ],
    ids=str,
)  # fmt: skip
def test_a_tile_that_no_kernel_could_run_is_refused(changes: dict[str, Any]) -> None:
    tuned.path().parent.mkdir(parents=True)
    tuned.path().write_text(damage(**changes))
    with pytest.raises(tuned.TunedTableError, match=str(next(iter(changes.values()))).strip("'")):
        tuned.read(tuned.path())


def test_blocks_that_a_kernel_lacks_are_zero_and_those_that_it_has_are_not() -> None:
    nearest = Config(16, 0, 32, 4, 2)
    for kernel, tile, fits in [
        ("nearest", nearest, True),
        ("nearest", replace(nearest, block_n=16), False),
        ("ranks", nearest, False),
        ("triplet-grad", Config(16, 16, 16, 4, 2), True),
        ("triplet-grad", Config(16, 16, 16, 4, 2, block_out=16), True),
        ("small", Config(16, 16, 16, 4, 2), False),
        ("pulls", replace(TILE, resident=True), False),
        ("state", replace(TILE, turned=True), False),
        ("grad", replace(TILE, turned=True), True),
        ("grad", replace(WIDE, turned=True), False),
    ]:
        entries = {KEY._replace(kernel=kernel): tuned.Entry(tile, 1.0, 2.0)}
        tuned.write(tuned.path(), entries)
        if fits:
            assert tuned.read(tuned.path()) == entries
        else:
            with pytest.raises(tuned.TunedTableError, match=kernel if kernel in ("nearest", "pulls") else None):
                tuned.read(tuned.path())


def test_a_table_from_before_there_were_slices_is_read() -> None:
    tuned.write(tuned.path(), {KEY: ENTRIES[KEY]})
    found = json.loads(tuned.path().read_text())
    for name in ("block_out", "turned"):
        del found["entries"][0]["config"][name]
    tuned.path().write_text(json.dumps(found))
    assert tuned.read(tuned.path()) == {KEY: ENTRIES[KEY]}


def test_the_table_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.write(tuned.path(), ENTRIES)
    monkeypatch.setenv("PML_FAST_TUNED", "0")
    assert tuned.table() == {}


def test_another_table_is_in_force_for_a_block() -> None:
    tuned.write(tuned.path(), ENTRIES)
    assert tuned.table() == ENTRIES
    with tuned.using({}):
        assert tuned.table() == {}
    assert tuned.table() == ENTRIES


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card to tune")
def test_without_a_card_the_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.main(["tune"]) == 2
    assert "torch sees none" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cli.main(["tune"]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
    assert not tuned.path().exists()


def test_without_triton_the_command_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["tune"]) == 2
    assert 'pip install "pml_fast[gpu]"' in capsys.readouterr().err


def test_info_counts_the_tuned_entries(capsys: pytest.CaptureFixture[str]) -> None:
    tuned.write(tuned.path(), ENTRIES)
    cli.main(["info"])
    assert f"2 in {tuned.path()}" in capsys.readouterr().out
    tuned.path().write_text("{")
    cli.main(["info"])
    assert "triton.json is damaged" in capsys.readouterr().out
