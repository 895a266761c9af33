"""The compiled backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.cpu import classes, histogram, knn, small, strip
from pml_fast.engine.cpu import columns as cpu_columns
from pml_fast.engine.cpu.classes import refuse_classes
from pml_fast.engine.cpu.indexed import listed_grads, listed_scores
from pml_fast.engine.cpu.knn import refuse_knn
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.cpu.pairwise import Sweep
from pml_fast.engine.cpu.strip import COMPILED_ROWS
from pml_fast.engine.cpu.triplet import refuse_triplet, triplet_grads, triplet_rows
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip
from pml_fast.engine.problem import ExtremeProblem, HistogramProblem, HistogramSums, PairProblem, PairRows, TripletProblem
from pml_fast.engine.score import Score


class CpuBackend:
    """The compiled C++ kernels."""

    name = "cpu"
    divides = True
    searches = True
    on_host = True

    def available(self) -> str | None:
        return None if _extension.load() is not None else f"the compiled extension is {_extension.status()}"

    def refuse(self, problem: Any) -> str | None:
        reason = self.available()
        if reason is not None:
            return reason
        if problem.x.device.type != "cpu":
            return f"the embeddings are on {problem.x.device.type}, the compiled kernels run on the cpu"
        if isinstance(problem, ClassProblem):
            return refuse_classes(problem)
        score: Score = problem.score
        if isinstance(problem, NearestProblem | RankProblem) and score.kind != "lp":
            return refuse_knn(problem)
        if score.kind == "lp":
            return f"an L{score.p:g} distance is not an inner product; its tiles come from torch.cdist (backend chunked)"
        if score.kind == "dot" and score.power != 1:
            return f"power {score.power:g} of an inner product has no compiled epilogue"
        if score.kind == "l2" and score.power not in (1, 2):
            return f"power {score.power:g} of a distance has no compiled epilogue (1 and 2 have)"
        if isinstance(problem, PairProblem) and problem.spec.name in COMPILED_ROWS:
            return strip.refuse_rows(problem)
        if isinstance(problem, PairProblem) and problem.spec.name not in COMPILED:
            return f"the loss {problem.spec.name!r} has no compiled epilogue"
        if isinstance(problem, TripletProblem):
            return refuse_triplet(problem)
        if isinstance(problem, HistogramProblem):
            return histogram.refuse_histogram(problem)
        return None

    def pair_rows(self, problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
        if problem.spec.name in COMPILED_ROWS:
            return strip.pair_rows(problem, need_x, need_y)
        keep = need_x or need_y
        copied = problem.shared or problem.bidirectional or need_y
        columns = "all" if copied or not cpu_columns.may_stream(problem.y.numel(), problem.score) else "streamed"
        sweep = Sweep(problem, problem.spec.name, problem.spec.params(), problem.rule, columns)
        sweep.forward(need_x, need_y)
        return sweep.finish(keep)

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if problem.spec.name in COMPILED_ROWS:
            return strip.pair_grads(problem, state, w, need_x, need_y)
        sweep = state.scratch
        if sweep is None:
            sweep = self.pair_rows(problem, need_x, need_y).scratch
        return sweep.gradients(w, need_x, need_y, w_columns)

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return triplet_rows(problem, need_x, need_y, uniform)

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return triplet_grads(problem, w, need_x, need_y)

    def histogram_sums(self, problem: HistogramProblem, keep: bool) -> HistogramSums:
        return histogram.histogram_sums(problem, keep)

    def histogram_grads(
        self, problem: HistogramProblem, state: HistogramSums, slopes: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return histogram.histogram_grads(problem, state, slopes, need_x, need_y)

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        if small.takes(problem):
            return small.extremes(problem)
        numbers = 0 if problem.shared else problem.y.numel()
        kind = "streamed" if cpu_columns.may_stream(numbers, problem.score) else "all"
        kind = "positives" if problem.positive and numbers > cpu_columns.MANY_NUMBERS else kind
        sweep = Sweep(problem, "", [], problem.rule, kind)
        order = sweep.layout.row_order
        if problem.positive:
            value = sweep.x.new_full((sweep.n,), float("-inf") if problem.largest else float("inf"))
            index = torch.full((sweep.n,), -1, dtype=torch.int64)
            sweep.engine.score_positives()
            sweep.engine.positive_extreme(problem.largest, value.data_ptr(), index.data_ptr())
        else:
            value, index = sweep.extreme(problem.largest)
        columns = torch.cat([sweep.layout.col_order, index.new_tensor([-1])])
        out_value, out_index = torch.empty_like(value), torch.empty_like(index)
        out_value[order], out_index[order] = value, columns[index]
        return out_value, out_index

    def class_scores(self, problem: ClassProblem, keep: bool) -> ClassScores:
        return classes.class_scores(problem, keep)

    def class_grads(
        self, problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return classes.class_grads(problem, state, grads, need_x, need_y)

    def nearest(self, problem: NearestProblem) -> tuple[Tensor, Tensor]:
        return knn.nearest(problem)

    def rank_strips(self, problem: RankProblem) -> Iterator[RankStrip]:
        return knn.rank_strips(problem)

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return listed_scores(score, x, y, i, j)

    def listed_grads(
        self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return listed_grads(score, x, y, i, j, grad, need_x, need_y)
