"""The CUDA C++ backend: what it can run, and the way to its launchers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cuda import nearest, triplet
from pml_fast.engine.knn.problem import NearestProblem
from pml_fast.engine.problem import TripletProblem
from pml_fast.engine.score import Score

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CudaBackend:
    """torch's products on strips of rows, a CUDA block for each row in between; float32 inside; deterministic."""

    name = "cuda"

    def available(self) -> str | None:
        module = _extension.load()
        if module is None:
            return f"the compiled extension is {_extension.status()}"
        if not module.build_info()["cuda"]:
            return "the extension was built without CUDA; put nvcc on the PATH and run `pip install .` again"
        return None if torch.cuda.is_available() else "torch sees no CUDA device; use a machine with one"

    def refuse(self, problem: Any) -> str | None:
        reason = self.available()
        if reason is not None:
            return reason
        if not isinstance(problem, TripletProblem | NearestProblem):
            return "only triplets and neighbours have CUDA C++ kernels; everything else is Triton's"
        if not problem.x.is_cuda:
            return f"the embeddings are on {problem.x.device}, not on a CUDA device"
        if problem.x.dtype not in DTYPES or problem.y.dtype not in DTYPES:
            return f"the kernels take float32, bfloat16 and float16, got {problem.x.dtype} and {problem.y.dtype}"
        score: Score = problem.score
        if isinstance(problem, NearestProblem) and score.kind == "l2":
            return None  # any power orders as the square does
        if (score.kind, score.power) not in (("dot", 1.0), ("l2", 1.0), ("l2", 2.0)):
            return f"the kernels take inner products, and Euclidean distances of power 1 or 2, not {score.kind} {score.power:g}"
        return triplet.refuse_triplet(problem) if isinstance(problem, TripletProblem) else None

    def nearest(self, problem: NearestProblem) -> tuple[Tensor, Tensor]:
        return nearest.nearest(problem)

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return triplet.triplet_rows(problem, need_x, need_y, uniform)

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return triplet.triplet_grads(problem, w, need_x, need_y)
