"""Every script of examples/ runs as a person would run it, and what it prints shows that it learned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Fewer epochs or steps than by default, and the least by which what is printed after must exceed what is printed before.
SCRIPTS: dict[str, tuple[tuple[str, ...], float]] = {
    "plain_loop": (("--epochs", "2"), 0.1),
    "lightning_module": (("--epochs", "3"), 0.1),
    "accelerate_loop": (("--epochs", "3"), 0.1),
    "ddp_torchrun": (("--epochs", "3"), 0.1),
    "moco": (("--steps", "60"), 0.03),
    "self_supervised": (("--epochs", "10"), 0.05),
    "million_classes": (("--steps", "6", "--batch-size", "64", "--numbers", "8"), 0.2),
    "two_tower": (("--epochs", "10"), 0.5),
    "large_batches": (("--epochs", "8"), 0.1),
    "migration": ((), 0.1),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run_example(name: str, options: tuple[str, ...], launcher: tuple[str, ...] = ()) -> str:
    """What a script prints, run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed(text: str, when: str) -> float:
    """The number that is printed as `<measure> before:` or `after:`."""
    (value,) = re.findall(rf"^\S+ {when}: ([\d.]+)$", text, flags=re.MULTILINE)
    return float(value)


def test_every_script_is_run() -> None:
    assert sorted(SCRIPTS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_learns(name: str) -> None:
    options, least = SCRIPTS[name]
    text = run_example(name, options, TORCHRUN if name == "ddp_torchrun" else ())
    before, after = printed(text, "before"), printed(text, "after")
    assert before + least < after <= 1, text
    if name == "ddp_torchrun":
        assert "2 processes" in text
    if name == "million_classes":
        assert "1,000,000 classes" in text
    if name == "migration":
        found = re.findall(r"^nearest training image of the same digit: ([\d.]+)$", text, flags=re.MULTILINE)
        assert float(found[0]) > 0.9


def test_documentation_lists_every_script() -> None:
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert {f"examples/{name}.py" for name in SCRIPTS} <= set(re.findall(r"examples/\w+\.py", page))
