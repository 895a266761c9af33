"""Keys, losses, files and random states of a trainer: what is refused, what is summed, what survives a killed run."""

from __future__ import annotations

import os
import pickle
import random
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils import common_functions as peer_c_f
from pytorch_metric_learning.utils.loss_tracker import LossTracker as PeerTracker

from pml_fast.utils import common_functions as c_f
from pml_fast.utils import model_files
from pml_fast.utils.key_checker import KeyChecker, KeyCheckerDict
from pml_fast.utils.loss_tracker import LossTracker
from pml_fast.utils.random_state import get_random_state, set_random_state

SCHEMA = KeyCheckerDict(
    {
        "models": KeyChecker(["trunk", "embedder", "classifier_[0-9]+"], essential=["trunk"]),
        "optimizers": KeyChecker(lambda s, d: c_f.append_map(d["models"].keys, "_optimizer"), important=[]),
    }
)


def verify(models: Any, optimizers: Any = None) -> None:
    SCHEMA.verify(SimpleNamespace(models=models, optimizers=optimizers))


def test_keys_are_whole_expressions() -> None:
    verify({"trunk": 1, "classifier_10": 2}, {"trunk_optimizer": 1, "classifier_0_optimizer": 2})
    verify(torch.nn.ModuleDict({"trunk": torch.nn.Identity()}), {})
    with pytest.raises(ValueError, match=r"models keys must be one of trunk, .* got 'trunc': did you mean 'trunk'"):
        verify({"trunc": 1})
    with pytest.raises(ValueError, match="optimizers keys must be one of"):
        verify({"trunk": 1}, {"trunk": 1})
    with pytest.raises(ValueError, match="got 'classifier_1_more'"):
        verify({"trunk": 1, "classifier_1_more": 1})
    with pytest.raises(ValueError, match="models must contain 'trunk', got 'embedder'"):
        verify({"embedder": 1})
    with pytest.raises(TypeError, match="models must be a dictionary, got list"):
        verify(["trunk"])


def test_what_is_missing_but_not_needed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    verify({"trunk": 1})
    assert 'models is missing "embedder"' in caplog.text and "optimizers is empty" in caplog.text


def test_losses_are_weighed_and_summed_as_the_peers() -> None:
    trackers = [cls(["a", "b"]) for cls in (LossTracker, PeerTracker)]
    for tracker in trackers:
        tracker.losses["a"], tracker.losses["b"] = torch.tensor(2.0), torch.tensor(3.0)
        tracker.update({"a": 0.5})
    mine, theirs = trackers
    assert mine.losses == theirs.losses == {"a": 1.0, "b": 3.0, "total_loss": 4.0}
    assert mine.loss_weights == theirs.loss_weights


def test_weighing_leaves_the_losses_tensor_alone() -> None:
    tracker, loss = LossTracker(["a"]), torch.tensor(2.0)
    tracker.losses["a"] = loss
    tracker.update({"a": 3})
    assert loss == 2.0 and tracker.losses["total_loss"] == 6.0


def test_rows_are_interleaved_as_the_peers() -> None:
    parts = [torch.randn(4, 3) for _ in range(3)]
    assert torch.equal(c_f.unslice_by_n(parts), peer_c_f.unslice_by_n(parts))
    assert c_f.unslice_by_n([x.double() for x in parts]).dtype is torch.float64


def test_an_iterator_at_its_end_begins_again() -> None:
    it = iter([1])
    same, item = c_f.try_next_on_generator(it, [5, 6])
    assert same is it and item == 1
    again, item = c_f.try_next_on_generator(it, [5, 6])
    assert item == 5 and next(again) == 6
    with pytest.raises(ValueError, match="smaller than batch_size"):
        c_f.try_next_on_generator(iter([]), [])


def test_normalization_layers_are_put_into_evaluation() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.apply(c_f.set_layers_to_eval("BatchNorm"))
    assert model[0].training and not model[1].training


# Files


def test_dictionaries_of_models_go_to_files_and_back(tmp_path: Path) -> None:
    models = {"trunk": torch.nn.Linear(3, 2), "embedder": torch.nn.DataParallel(torch.nn.Linear(2, 2))}
    c_f.save_dict_of_models(models, 3, tmp_path)
    peer_copy = {name: torch.nn.Linear(*shape) for name, shape in (("trunk", (3, 2)), ("embedder", (2, 2)))}
    peer_c_f.load_dict_of_models(peer_copy, 3, str(tmp_path), "cpu", assert_success=True)
    assert torch.equal(peer_copy["trunk"].weight, models["trunk"].weight)
    mine = {name: torch.nn.Linear(*shape) for name, shape in (("trunk", (3, 2)), ("embedder", (2, 2)))}
    c_f.load_dict_of_models(mine, 3, tmp_path, "cpu")
    assert torch.equal(mine["embedder"].weight, models["embedder"].module.weight)
    c_f.delete_dict_of_models(models, 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_a_warning_or_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    c_f.load_dict_of_models({"trunk": torch.nn.Linear(1, 1)}, 1, tmp_path, "cpu")
    assert "Could not LOAD" in caplog.text
    with pytest.raises(OSError):
        c_f.load_dict_of_models({"trunk": torch.nn.Linear(1, 1)}, 1, tmp_path, "cpu", assert_success=True)


@pytest.mark.parametrize("names", [[], ["trunk_3.pth", "trunk_12.pth", "trunk_best7.pth"]])
@pytest.mark.parametrize("best", [False, True])
def test_the_latest_version_is_the_peers(names: list[str], best: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert c_f.latest_version(tmp_path, best=best) == peer_c_f.latest_version(str(tmp_path), best=best)


def test_a_file_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/executed",)

    for name, write in (("zip", lambda path: torch.save({"a": Evil()}, path)), ("pickle", None)):
        path = tmp_path / name
        if write is None:
            path.write_bytes(pickle.dumps(Evil()))
        else:
            write(path)
        with pytest.raises(ValueError, match="would execute code"):
            model_files.load_state(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(TypeError, match=r"state\['a'\] must hold tensors, numbers, strings"):
        model_files.save_state({"a": Evil()}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_truncated_file_is_named_and_left(tmp_path: Path) -> None:
    path = tmp_path / "trunk.pth"
    model = torch.nn.Linear(3, 3)
    c_f.save_model(model, path)
    path.write_bytes(path.read_bytes()[:-100])
    before = model.weight.clone()
    with pytest.raises(ValueError, match=r"trunk\.pth cannot be read as a checkpoint"):
        c_f.load_model(model, path, "cpu")
    assert torch.equal(model.weight, before)


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    model_files.save_state({"w": torch.randn(50, 10), "step": torch.tensor(3), "names": ["a", "b"]}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if info.file_size]
    for info in entries:
        # The data follow a header of 30 bytes, the name and what fills up to where they are aligned.
        lengths = whole[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        place = start + random.randrange(info.file_size)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << random.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="cannot be read as a checkpoint: it is damaged"):
            model_files.load_state(path)
    assert len(entries) >= 3


@pytest.mark.parametrize("kind", ["without checksums", "the older format"])
def test_files_of_other_programs_are_read(kind: str, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(kind != "without checksums")
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x", _use_new_zipfile_serialization=kind != "the older format")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(model_files.load_state(tmp_path / "x")["w"], torch.ones(3))


def test_numpy_numbers_are_written_as_pythons(tmp_path: Path) -> None:
    model_files.save_state({"lr": np.float64(0.5), "n": [np.int64(3)]}, tmp_path / "x")
    assert model_files.load_state(tmp_path / "x") == {"lr": 0.5, "n": [3]}


SAVER = """
import sys, torch
from pml_fast.utils.model_files import save_together
open(sys.argv[2], "w").close()
for k in range(1, 100000):
    save_together({name: {"x": torch.full((50000,), float(k))} for name in ("a", "b", "c")}, sys.argv[1])
"""


def test_files_saved_together_stay_together_when_a_run_is_killed(tmp_path: Path) -> None:
    """Killed at random moments of saving: the three files are whole and of one save, and no save is lost."""
    newest = 0.0
    for k in range(3):
        ready, log = tmp_path.with_name(f"ready{k}"), tmp_path.with_name(f"printed{k}")
        run = forked.start(SAVER, str(tmp_path), str(ready), log=log)
        # The last run is let save at least once, however slow the machine.
        while not ready.exists() or (k == 2 and not (tmp_path / "c").exists()):
            assert run.is_alive(), log.read_text()
            time.sleep(0.01)
        time.sleep(0.05 + 0.3 * random.random())
        run.kill()
        run.join()
        model_files.finish_interrupted(tmp_path)
        found = [model_files.load_state(tmp_path / name)["x"] for name in ("a", "b", "c") if (tmp_path / name).exists()]
        assert len(found) in (0, 3)
        assert all(torch.equal(x, found[0][0].expand(50000)) for x in found)
        newest = max(newest, float(found[0][0]) if found else 0.0)
    assert newest > 0
    model_files.save_together({name: {"x": torch.zeros(1)} for name in ("a", "b", "c")}, tmp_path)
    left = {path.name for path in tmp_path.iterdir() if not path.match(".interrupted_save.json.*.tmp")}
    assert left == {"a", "b", "c"}


@pytest.mark.parametrize(
    "source",
    [
        np.random,
        np.random.RandomState(3),
        np.random.Generator(np.random.PCG64(3)),
        np.random.Generator(np.random.MT19937(3)),
        np.random.Generator(np.random.Philox(3)),
    ],
    ids=lambda source: type(getattr(source, "bit_generator", source)).__name__,
)
def test_random_numbers_come_again_from_a_file(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every default generator, and of what `NUMPY_RANDOM` is."""
    monkeypatch.setattr(c_f, "NUMPY_RANDOM", source)

    def draws() -> list[float]:
        return [float(torch.rand(())), np.random.rand(), random.random(), random.gauss(0, 1), float(source.normal())]

    draws()
    model_files.save_state(get_random_state(), tmp_path / "state")
    expected = draws()
    assert draws() != expected
    set_random_state(model_files.load_state(tmp_path / "state"))
    assert draws() == expected
