"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import pml_fast
from pml_fast import _extension, cli
from pml_fast.engine import dispatch


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must end with exit code 2 and one message on stderr; returns that message."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"pml-fast {arguments[0]}: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", [(), ("info",), ("explain",), ("demo",)])
def test_help_is_everywhere(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(" ".join(("usage: pml-fast", *command)))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pml_fast {pml_fast.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("info", "--fly"),
        ("explain",),
        ("explain", "--loss", "SupConLoss", "--n", "0"),
        ("explain", "--loss", "SupConLoss", "--dim", "many"),
        ("explain", "--loss", "SupConLoss", "--backend", "abacus"),
        ("demo", "--steps", "-1"),
        ("demo", "--seed", "-1"),
        ("demo", "--memory-gb", "nan"),
        ("demo", "--timeout", "inf"),
    ],
)
def test_wrong_usage_ends_with_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: pml-fast" in capsys.readouterr().err


def test_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "pml_fast.cli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pml_fast {pml_fast.__version__}\n"


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_shows_versions_backends_and_variables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PML_FAST_SOMETHING", "on")
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for wanted in (pml_fast.__version__, importlib.metadata.version("torch"), _extension.status()):
        assert wanted in printed
    assert "PML_FAST_SOMETHING=on" in printed
    for name, reason in dispatch.backends().items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"backend {name}")]
        assert line.endswith("can run" if reason is None else f"cannot run: {reason}")


def test_info_says_how_to_get_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for extra in ("gpu", "faiss-cpu", "bench"):
        assert f'pip install "pml_fast[{extra}]"' in printed


def test_info_works_without_optional_parts() -> None:
    # None in sys.modules makes an import fail as if the module were not there.
    program = (
        "import sys\n"
        "optional = 'pml_fast._C triton faiss pytorch_metric_learning matplotlib sklearn rich tqdm PIL'\n"
        "for name in optional.split():\n"
        "    sys.modules[name] = None\n"
        "from pml_fast.cli import main\n"
        "sys.exit(main(['info']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "backend chunked   can run" in done.stdout
    assert "backend cpu       cannot run" in done.stdout


# --- explain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--loss", "SupConLoss"),
        ("--loss", "MultiSimilarityLoss", "--miner", "MultiSimilarityMiner"),
        ("--loss", "TripletMarginLoss(margin=0.2, swap=True)", "--distance", "LpDistance(power=2)"),
        ("--loss", "ContrastiveLoss", "--reducer", "ThresholdReducer(low=0.1)"),
        ("--loss", "NTXentLoss", "--ref", "96"),
    ],
)
def test_explain_prints_a_plan(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--n", "64", "--dim", "8", *arguments]) == 0
    printed = capsys.readouterr().out.lower()
    for wanted in ("engine", "backend", "flop", "memory", "precision"):
        assert wanted in printed


def test_explain_keeps_to_the_backend_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    before = pml_fast.engine.settings.current()
    arguments = ["explain", "--loss", "SupConLoss", "--n", "64", "--dim", "8", "--backend"]
    assert cli.main([*arguments, "chunked"]) == 0
    chunked = capsys.readouterr().out
    assert cli.main([*arguments, "reference"]) == 0
    assert capsys.readouterr().out != chunked
    assert pml_fast.engine.settings.current() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "SupCon"), "has no 'SupCon'; it has .*SupConLoss"),
        (("--loss", "SupConLoss", "--miner", "SupConLoss"), "pml_fast.miners has no 'SupConLoss'"),
        (("--loss", "SupConLoss(fire=1)"), r"SupConLoss\(fire=1\): .*fire"),
        (("--loss", "SupConLoss(temperature=open('x'))"), "expected a class name"),
        (("--loss", "SupConLoss("), "expected a class name"),
        (("--loss", "losses.SupConLoss()"), "expected a class name"),
        (("--loss", "SupConLoss", "--device", "abacus"), "--device abacus"),
    ],
)
def test_explain_refuses_what_is_not_there(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refused(capsys, "explain", *arguments))


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_refuses_a_folder_that_does_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refused(capsys, "demo", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"))
    assert "nowhere does not exist" in message
    assert not (tmp_path / "out").exists()


def test_demo_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("sklearn", "PIL") else find(name))
    message = refused(capsys, "demo")
    assert "needs scikit-learn, pillow" in message
    assert 'pip install "pml_fast[demo]"' in message


def test_demo_passes_its_options_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("ash", "birch", "cedar", "date"):
        (tmp_path / "trees" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (6, 6), (40 * len(name), 90 * number, 0)).save(tmp_path / "trees" / name / f"{number}.png")
    out = tmp_path / "out"
    arguments = ["--steps", "2", "--image-size", "8", "--no-speed", "--device", "cpu", "--grey", "--seed", "3"]
    assert cli.main(["demo", "--data", str(tmp_path / "trees"), "--out", str(out), *arguments]) == 0
    captured = capsys.readouterr()
    assert "train on 4 images of classes ash, birch" in captured.out
    assert "NTXentLoss" not in captured.out
    assert "training: step 1 of 2" in captured.err
    assert sorted(path.name for path in out.iterdir()) == ["loss.png", "map.png", "neighbours.png", "similarities.png"]


# --- bench -----------------------------------------------------------------------------------------------------------


def clone(root: Path, program: str) -> Path:
    """What looks like a clone of the repository, with a benchmarks program of its own."""
    for folder, name, text in (("benchmarks", "__main__.py", program), ("pml_fast", "cli.py", "")):
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_text(text)
    (root / "benchmarks" / "__init__.py").write_text("")
    return root


def test_bench_passes_its_arguments_and_exit_code_on(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = clone(tmp_path / "clone", "import sys; print(sys.argv[1:]); sys.exit(7)")
    monkeypatch.setattr(cli, "__file__", str(root / "pml_fast" / "cli.py"))
    assert cli.main(["bench", "--list", "a b"]) == 7
    assert capfd.readouterr().out == "['--list', 'a b']\n"


def test_bench_outside_a_clone_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "pml_fast" / "cli.py"))
    monkeypatch.chdir(tmp_path)
    assert "clone the repository" in refused(capsys, "bench", "--list")
