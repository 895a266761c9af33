"""The Triton backend: what it can run, and the way to its launchers, which alone import triton."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.problem import ClassProblem
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip
from pml_fast.engine.problem import ExtremeProblem, HistogramProblem, IndexedProblem, PairProblem, PairRows, TripletProblem
from pml_fast.engine.score import Score

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The kernels' column and row numbers are 32 bit (their offsets are not).
MAX_ROWS = 2**31 - 2**10


def interpreting() -> bool:
    """Whether Triton runs its kernels on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@cache
def _installed() -> bool:
    # Looking for a package takes longer than launching a kernel.
    return importlib.util.find_spec("triton") is not None


def _module(name: str) -> Any:
    return importlib.import_module(f"pml_fast.engine.triton.{name}")


class TritonBackend:
    """Streaming Triton kernels: float32, bfloat16 and float16 inputs, float32 results; deterministic."""

    name = "triton"

    def keeps_half(self, problem: Any) -> bool:
        """Whether rows of half precision stay so: some losses are too steep for unit rows that are rounded to it."""
        return not (isinstance(problem, PairProblem) and _module("epilogues").EPILOGUES[problem.spec.name].steep)

    def available(self) -> str | None:
        if not _installed():
            return 'triton is not installed; install it with: pip install "pml_fast[gpu]"'
        if not (torch.cuda.is_available() or interpreting()):
            return "torch sees no CUDA device; use a machine with one, or set TRITON_INTERPRET=1 to interpret the kernels"
        return None

    def refuse(self, problem: Any) -> str | None:
        if isinstance(problem, ClassProblem):
            return self.available() or "blocks of classes have no Triton kernel"
        if isinstance(problem, HistogramProblem):
            return self.available() or "histograms of all pairs or triplets have no Triton kernel"
        reason = self.available() or _refuse_tensors(problem)
        if reason is not None:
            return reason
        if isinstance(problem, IndexedProblem):
            return _module("indexed").refuse_listed(problem)
        reason = refuse_score(problem.score)
        if reason is not None:
            return reason
        if getattr(problem, "itself", False) and not problem.score.symmetric:
            return "rows and columns of one batch that are prepared differently have no kernel"
        if isinstance(problem, NearestProblem | RankProblem):
            return _module("knn").refuse_knn(problem)
        if isinstance(problem, PairProblem):
            return _refuse_spec(problem)
        if isinstance(problem, TripletProblem):
            return _module("triplet").refuse_triplet(problem)
        return None

    def pair_rows(self, problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
        return _module("sweeps").pair_rows(problem)

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        return _module("sweeps").pair_grads(problem, state.saved, w, need_x, need_y, w_columns)

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        return _module("sweeps").extremes(problem)

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _module("triplet").triplet_rows(problem, need_x, need_y, uniform)

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return _module("triplet").triplet_grads(problem, w, need_x, need_y)

    def nearest(self, problem: NearestProblem) -> tuple[Tensor, Tensor]:
        return _module("knn").nearest(problem)

    def rank_strips(self, problem: RankProblem) -> Iterator[RankStrip]:
        return _module("knn").rank_strips(problem)

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return _module("indexed").listed_scores(score, x, y, i, j)

    def listed_grads(
        self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return _module("indexed").listed_grads(score, x, y, i, j, grad, need_x, need_y)


def _refuse_tensors(problem: Any) -> str | None:
    x, y = problem.x, problem.y
    if x.dtype not in DTYPES:
        return f"the kernels take float32, bfloat16 and float16, got {x.dtype}"
    if y.dtype != x.dtype:
        return f"both sides must have one dtype, got {x.dtype} and {y.dtype}"
    if not (x.is_cuda or interpreting()):
        return f"the tensors are on {x.device}, not on a CUDA device"
    if max(x.shape[0], y.shape[0]) > MAX_ROWS:
        return f"at most {MAX_ROWS} rows and columns, got {x.shape[0]} and {y.shape[0]}"
    if x.shape[1] == 0:
        return "rows without any number have nothing to compare"
    return None


def refuse_score(score: Score) -> str | None:
    """``None`` where the kernels compute this score, else the reason."""
    if score.kind == "dot":
        return None if score.power == 1 else f"inner products have power 1 in the kernels, got {score.power}"
    if score.kind == "lp":
        return f"the kernels compute inner products and Euclidean distances, got the p-norm with p = {score.p}"
    return None if score.power in (1, 2) else f"distances have power 1 or 2 in the kernels, got {score.power}"


def _refuse_spec(problem: PairProblem) -> str | None:
    if problem.levels is not None:
        return f"the loss {problem.spec.name!r} has no kernel epilogue with a parameter of each row's own"
    return refuse_epilogue(problem.spec.name, problem.score)


def refuse_epilogue(name: str, score: Score) -> str | None:
    """``None`` where the loss has a kernel epilogue for this score, else the reason."""
    known = _module("epilogues").EPILOGUES
    if name not in known:
        return f"no kernel epilogue for the loss {name!r}; there are {sorted(known)}"
    if known[name].cosines and score.kind != "dot":
        return f"the loss {name!r} takes scores for cosines: its kernel epilogue is for inner products"
    return None


def refuse_small(name: str, score: Score, half: bool) -> str | None:
    """``None`` where the loss of a small batch against itself (of ``half`` precision) takes three launches, else the reason."""
    reason = refuse_score(score) or refuse_epilogue(name, score)
    if reason is not None:
        return reason
    epilogue = _module("epilogues").EPILOGUES[name]
    if not epilogue.small:
        return f"the loss {name!r} takes more than a sweep"
    return f"the loss {name!r} widens rows of half precision" if half and epilogue.steep else None
