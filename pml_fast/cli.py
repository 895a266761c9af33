"""The command line: ``pml-fast info | explain | demo | tune | bench``."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pml_fast import __version__, _extension
from pml_fast.engine import dispatch, settings
from pml_fast.engine.triton import tuned
from pml_fast.engine.triton.configs import TUNABLE

_DEMO_NEEDS = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "PIL": "pillow", "rich": "rich", "tqdm": "tqdm"}
_FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11")
_BENCHMARKS_REMEDY = (
    "the benchmarks are not part of the installed package; "
    "clone the repository, install it there with `pip install -e '.[bench]'` and run this again"
)


_TUNED_KERNELS = ["state", "grad", "extreme"]
# dtype and precision of float32 products
_TUNED_TYPES = {
    "float32": (torch.float32, "highest"),
    "bf16x3": (torch.float32, "bf16x3"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}


class InputError(ValueError):
    """A request that cannot be met as given; the message says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, 1 where the machine failed it, or 2 where its input was at fault."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"]:
        # argparse would take the benchmarks' own options for its own.
        arguments = argparse.Namespace(command="bench", run=_bench, arguments=words[1:])
    else:
        arguments = build_parser().parse_args(words)
    try:
        return int(arguments.run(arguments))
    except InputError as error:
        print(f"pml-fast {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pml-fast {arguments.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"pml-fast {arguments.command}: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="pml-fast", description="Deep metric learning on fused, streaming, linear-memory kernels."
    )
    parser.add_argument("--version", action="version", version=f"pml_fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_info(commands)
    _add_explain(commands)
    _add_demo(commands)
    _add_tune(commands)
    _add_bench(commands)
    return parser


def _add_info(commands: Any) -> None:
    command = commands.add_parser("info", help="what this installation can use", description=_info.__doc__)
    command.set_defaults(run=_info)


def _add_explain(commands: Any) -> None:
    command = commands.add_parser(
        "explain",
        help="how a loss would run",
        description=_explain.__doc__,
        epilog="LOSS, MINER, REDUCER and DISTANCE are class names, with arguments if wanted: "
        "--loss 'TripletMarginLoss(margin=0.2, swap=True)'",
    )
    command.add_argument("--loss", required=True, help="a class of pml_fast.losses, such as SupConLoss")
    command.add_argument("--miner", help="a class of pml_fast.miners")
    command.add_argument("--reducer", help="a class of pml_fast.reducers, given to the loss")
    command.add_argument("--distance", help="a class of pml_fast.distances, given to the loss and the miner")
    command.add_argument("--n", type=_positive, default=4096, help="batch size (default %(default)s)")
    command.add_argument("--dim", type=_positive, default=128, help="embedding size (default %(default)s)")
    command.add_argument("--per-class", type=_positive, default=4, help="items a class (default %(default)s)")
    command.add_argument("--ref", type=_positive, metavar="M", help="compare with a reference set of M, not the batch")
    command.add_argument("--backend", choices=settings.BACKENDS, help="ask for this backend (default: as set, or auto)")
    command.add_argument("--device", default="cpu", help="device of the embeddings (default %(default)s)")
    command.set_defaults(run=_explain)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="train an embedding on real images", description=_demo.__doc__)
    add = command.add_argument
    add("--data", type=Path, metavar="FOLDER", help="images, one sub-folder a class (default: handwritten digits)")
    add("--image-size", type=_positive, default=32, help="side in pixels for --data (default %(default)s)")
    add("--grey", action="store_true", help="one channel instead of RGB for --data")
    add("--orientations", action=argparse.BooleanOptionalAction, default=None,
        help="train on turned and mirrored classes as further classes (default: for the digits only)")  # fmt: skip
    add("--out", type=Path, default=Path("pml_fast_demo"), help="folder for the figures (default ./%(default)s)")
    add("--seed", type=_seed, default=0, help="equal seeds give equal runs (default %(default)s)")
    add("--steps", type=_positive, default=240, help="training steps (default %(default)s)")
    add("--batch-size", type=_positive, default=320, help="largest training batch (default %(default)s)")
    add("--dim", type=_positive, default=32, help="embedding size (default %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda, for training (default %(default)s)")
    add("--speed", action=argparse.BooleanOptionalAction, default=True, help="end with a comparison of speeds")
    add("--speed-sizes", type=_positive, nargs="+", default=[256, 1024, 4096], metavar="N",
        help="batch sizes of that comparison (default 256 1024 4096)")  # fmt: skip
    add("--memory-gb", type=_positive_float, default=4.0, help="memory bound of each run of it (default %(default)s)")
    add("--timeout", type=_positive_float, default=20.0, help="seconds bound of each run of it (default %(default)s)")
    command.set_defaults(run=_demo)


def _add_tune(commands: Any) -> None:
    command = commands.add_parser(
        "tune", help="time the GPU kernels' tiles on this card", description=_tune.__doc__,
        epilog="KERNEL is one or more of: " + "; ".join(f"{name}, {has.title}" for name, has in TUNABLE.items()) + "; or all.",
    )  # fmt: skip
    add = command.add_argument
    add("--dim", type=_positive, nargs="+", default=[128], metavar="D", help="embedding sizes (default 128)")
    add("--n", type=_positive, nargs="+", default=[4096], metavar="N", help="batch sizes (default 4096)")
    add("--dtype", choices=list(_TUNED_TYPES), nargs="+", default=["tf32", "bfloat16"],
        help="types, float32 at the precision highest, bf16x3 and tf32 (high) at theirs (default tf32 bfloat16)")  # fmt: skip
    add("--score", choices=("dot", "l2"), nargs="+", default=["dot"], help="inner products, distances (default dot)")
    add("--kernel", choices=(*TUNABLE, "all"), nargs="+", metavar="KERNEL",
        help=f"which kernels, see below (default {' '.join(_TUNED_KERNELS)}, but those without such a type)")  # fmt: skip
    add("--device", default="cuda", help="which card (default %(default)s)")
    command.set_defaults(run=_tune)


def _add_bench(commands: Any) -> None:
    commands.add_parser("bench", help="run the benchmarks of a clone of the repository: see bench --help")


def _info(_: argparse.Namespace) -> int:
    """Show versions, devices, backends and settings: what to paste into a report of a problem."""
    for name, value in _facts():
        print(f"{name:<17} {value}")
    return 0


def _facts() -> Iterator[tuple[str, str]]:
    yield "pml_fast", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "torch", torch.__version__
    yield "devices", "; ".join(["cpu", *_cuda_devices()])
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    yield "extension", _extension.status()
    yield "triton", _version(("triton",)) or 'not installed; to get it: pip install "pml_fast[gpu]"'
    yield "faiss", _version(_FAISS_PACKAGES) or 'not installed; to get it: pip install "pml_fast[faiss-cpu]"'
    peer = _version(("pytorch-metric-learning",))
    yield "PML (peer)", peer or 'not installed; to get it: pip install "pml_fast[bench]"'
    for name, reason in dispatch.backends().items():
        yield f"backend {name}", "can run" if reason is None else f"cannot run: {reason}"
    yield "tuned tiles", _tuned_tiles()
    chosen = {key: value for key, value in sorted(os.environ.items()) if key.startswith("PML_FAST_")}
    yield "variables", ", ".join(f"{key}={value}" for key, value in chosen.items()) or "no PML_FAST_* is set"


def _tuned_tiles() -> str:
    try:
        count = len(tuned.read(tuned.path()))
    except tuned.TunedTableError as error:
        return f"{tuned.path()} {error}"
    return f"{count} in {tuned.path()}" if count else "none; to time the GPU kernels on a card: pml-fast tune"


def _cuda_devices() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return [f"cuda:{i} {p.name} (sm_{p.major}{p.minor}, {p.total_memory >> 30} GiB)" for i, p in enumerate(found)]


def _version(packages: Sequence[str]) -> str | None:
    """Name and version of the first of the distributions that is installed, without importing it."""
    for package in packages:
        try:
            return f"{importlib.metadata.version(package)} ({package})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _explain(arguments: argparse.Namespace) -> int:
    """Print the plan of a loss on random embeddings, without running it: engine, backend, cost, and why."""
    from pml_fast import explain, use

    embeddings, labels = _random_batch(arguments.n, arguments)
    ref_emb, ref_labels = (None, None) if arguments.ref is None else _random_batch(arguments.ref, arguments)
    try:
        with use(backend=arguments.backend):
            loss, miner = _loss_and_miner(arguments)
            print(explain(loss, embeddings, labels, miner=miner, ref_emb=ref_emb, ref_labels=ref_labels))
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    return 0


def _random_batch(count: int, arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    try:
        embeddings = torch.randn(count, arguments.dim, generator=generator).to(arguments.device)
    except RuntimeError as error:
        raise InputError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error
    return embeddings.requires_grad_(), (torch.arange(count) // arguments.per_class).to(embeddings.device)


def _loss_and_miner(arguments: argparse.Namespace) -> tuple[Any, Any]:
    shared = {} if arguments.distance is None else {"distance": build("distances", arguments.distance)}
    miner = None if arguments.miner is None else build("miners", arguments.miner, **shared)
    if arguments.reducer is not None:
        shared["reducer"] = build("reducers", arguments.reducer)
    return build("losses", arguments.loss, **shared), miner


def build(module: str, text: str, **more: Any) -> Any:
    """An object of one of the public modules from `Name` or `Name(argument=literal, ...)`; raises InputError."""
    name, keywords = _parse_call(text)
    namespace = importlib.import_module(f"pml_fast.{module}")
    names = sorted(key for key, value in vars(namespace).items() if isinstance(value, type))
    if name not in names:
        raise InputError(f"pml_fast.{module} has no {name!r}; it has {', '.join(names)}")
    try:
        return getattr(namespace, name)(**keywords, **more)
    except (TypeError, ValueError) as error:
        raise InputError(f"{text}: {error}") from error


def _parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments of a call written as text, which is parsed and never evaluated."""
    try:
        tree = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
        if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)) or tree.args:
            raise ValueError("not a name with named arguments")
        return tree.func.id, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"expected a class name or Name(argument=number, string, True, False or None, ...), got {text!r}"
        ) from error


def _demo(arguments: argparse.Namespace) -> int:
    """Train an embedder on some classes of images, judge it on classes it never saw, and compare speeds with PML.

    Prints precision@1, R-precision and MAP@R before and after, and writes figures.
    """
    missing = [package for module, package in _DEMO_NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f'the demo needs {", ".join(missing)}; install with: pip install "pml_fast[demo]"')
    from rich.console import Console

    from pml_fast.demo.data import DemoError
    from pml_fast.demo.run import DemoOptions, run

    options = DemoOptions(
        data=arguments.data,
        image_size=arguments.image_size,
        grey=arguments.grey,
        orientations=arguments.orientations,
        out=arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        embedding_dim=arguments.dim,
        device=arguments.device,
        speed=arguments.speed,
        speed_sizes=tuple(arguments.speed_sizes),
        memory_gb=arguments.memory_gb,
        seconds=arguments.timeout,
    )
    try:
        run(options, Console())
    except DemoError as error:
        raise InputError(str(error)) from error
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    """Time tiles of the Triton kernels near the shipped ones, and keep the faster ones for this user.

    Each must first give the answer of the shipped tile. The table is written after each kernel; launches of the same card, type
    and sizes (up to the next power of two) then follow it.
    """
    reason = _cannot_tune(arguments.device)
    if reason is not None:
        raise InputError(reason)
    from tqdm import tqdm

    from pml_fast.engine.triton import tune

    try:
        tuned.read(tuned.path())
    except tuned.TunedTableError as error:
        raise InputError(f"{tuned.path()} {error}; delete the file and run this again") from error
    named = arguments.kernel or _TUNED_KERNELS
    kernels = list(TUNABLE) if "all" in named else named
    types = [_TUNED_TYPES[dtype] for dtype in arguments.dtype]
    try:
        tasks = tune.tasks(kernels, types, arguments.score, arguments.dim, arguments.n, torch.device(arguments.device),
            skip=arguments.kernel is None or "all" in named)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    for task in tasks:
        with tqdm(total=tune.count(task), desc=tune.title(task), leave=False) as bar:
            try:
                found = tune.tune(task, on_candidate=bar.update)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
                raise InputError(f"--n {task.n}, --dim {task.d}: {reason}") from error
        tune.save(found)
        print(f"{tune.title(task)}: " + "\n".join(tune.report(found)))
    print(f"table: {tuned.path()}")
    return 0


def _cannot_tune(device: str) -> str | None:
    """Why kernels cannot be timed here, or ``None``."""
    missing = [name for name in ("triton", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        return f'tuning needs {", ".join(missing)}; install with: pip install "pml_fast[gpu]"'
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "interpreted kernels have no speed to tune; unset TRITON_INTERPRET"
    if not torch.cuda.is_available():
        return "tuning times a CUDA device and torch sees none; run this on a machine with a card and a CUDA build of torch"
    try:
        found = torch.device(device)
        if found.type != "cuda":
            return f"--device must be a CUDA device, got {device!r}"
        torch.cuda.get_device_properties(found)
    except (RuntimeError, AssertionError) as error:
        return f"--device {device}: {str(error).splitlines()[0]}"
    return None


def _bench(arguments: argparse.Namespace) -> int:
    """Run `python -m benchmarks` of a clone of the repository with the arguments that follow."""
    root = _benchmarks_root()
    if root is None:
        raise InputError(_BENCHMARKS_REMEDY)
    # With `-m` a folder called benchmarks in the current folder would come before the clone's.
    program = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    program += "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"
    return subprocess.run([sys.executable, "-c", program, str(root), *arguments.arguments], check=False).returncode


def _benchmarks_root() -> Path | None:
    """The clone that this package lies in, or else the current folder if it is one."""
    for root in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (root / "benchmarks" / "__main__.py").is_file() and (root / "pml_fast" / "cli.py").is_file():
            return root
    return None


def _number(kind: Callable[[str], Any], what: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


_positive = _number(int, "a positive whole number", lambda value: value > 0)
_positive_float = _number(float, "a positive number", lambda value: value > 0 and math.isfinite(value))
_seed = _number(int, "a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)


if __name__ == "__main__":
    sys.exit(main())
