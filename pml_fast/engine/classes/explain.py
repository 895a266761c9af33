"""How a class loss would run, and what its blocks cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.blocks import ROWS, classes_a_block, is_one_block, kept_classes
from pml_fast.engine.classes.problem import ClassProblem
from pml_fast.engine.classes.small import is_compiled, is_small
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.cost import Cost, Size
from pml_fast.engine.explain import Explainer
from pml_fast.engine.plan import Call, Plan
from pml_fast.engine.score import compute_type

# Buffers of a block that are alive together: of scores, and of the size of its weights.
SCORE_BUFFERS, WEIGHT_BUFFERS = 6, 5


class WeightsExplainer(Explainer):
    """A call of a loss that compares the batch with weights of its own."""

    def __init__(self, loss: Any, miner: Any, call: Call, plan: Plan) -> None:
        super().__init__(loss, miner, call, plan, call.embeddings, loss.columns_for(call.embeddings))

    def columns(self) -> Tensor:
        return self.y

    def itself(self) -> bool:
        return self.y is self.call.embeddings

    def against(self) -> str:
        if self.itself():
            return "itself"
        classes, columns = self.loss.num_classes, len(self.y)
        return f"{classes} classes" + (f" of {columns // classes} centres" if columns > classes else "")


class ClassExplainer(WeightsExplainer):
    """The same on the class engine."""

    def __init__(self, loss: Any, miner: Any, call: Call, plan: Plan) -> None:
        super().__init__(loss, miner, call, plan)
        assert isinstance(plan.spec, ClassSpec)
        self.spec = plan.spec
        plan.notes = loss.plan_notes(call, plan.spec)

    def small(self) -> bool:
        """Whether no operator runs."""
        return is_small(self.x.shape[0], self.y.shape[0], self.y.shape[1], self.x.device)

    def plain(self) -> bool:
        """Whether plain torch takes the call."""
        return self.small() and not is_compiled(self.x.shape[0], self.x.device, self.spec)

    def _class_problem(self) -> ClassProblem:
        wide = self._computed_in()
        rows = torch.empty((), dtype=wide, device=self.x.device).expand(self.x.shape)
        return ClassProblem(self.spec, rows, self.y.detach(), torch.empty(0, dtype=torch.int64), None)

    def _problem(self) -> ClassProblem | None:
        return None if self.plain() else self._class_problem()

    def _computed_in(self) -> torch.dtype:
        return compute_type(torch.promote_types(self.x.dtype, self.y.dtype))

    def _size(self) -> tuple[Size, bool, list[str]]:
        need_x, need_y, notes = self.x.requires_grad, self.y.requires_grad, []
        if not (need_x or need_y):
            need_x = True
            notes.append("no input requires a gradient: the backward is counted as if the embeddings did")
        (n, d), m = self.x.shape, len(self.y)
        return Size(n, m, d, 0, 0, 0, self.x.dtype, False, need_x, need_y), False, notes

    def _cost(self, backend: str, size: Size) -> Cost:
        item, stored = self._computed_in().itemsize, self.y.dtype.itemsize
        n, m, d, g = size.n, size.m, size.d, size.gemm
        dense = backend == "reference"
        plain = dense or self.plain()
        kept = 1.0 if plain else self._kept_share(backend)
        columns = m if plain else min(m, self.spec.centers * classes_a_block(n, d, self.spec.centers))
        scores = columns * (n if plain else min(n, ROWS))
        gradients = n * d * size.need_x * item + m * d * size.need_y * stored
        memory = gradients + item * (5 * n * d + SCORE_BUFFERS * scores + WEIGHT_BUFFERS * columns * d + 16 * n)
        memory += item * 16 * (m if self.spec.fold == "class_lse" else 0)
        memory += 0 if plain else int(kept * n * m * item)
        again = 1.0 if dense else 1.0 - kept
        read = (2 * m * d * stored + int((1 + again) * n * d * item)) + 2 * n * 8
        step = int(g * (1 + again + size.need_x + size.need_y))
        return Cost(g, step, read, gradients + item * n, memory)

    def _kept_share(self, backend: str) -> float:
        """The share of the scores that the forward keeps for the backward."""
        if backend == "cpu":
            problem = self._class_problem()
            return kept_classes(problem) / problem.classes
        return float(is_one_block(len(self.x), len(self.y), self.x.shape[1], self.spec.centers))

    def _deterministic(self, backend: str | None) -> bool:
        sums_by_class = self.spec.norms or self.spec.fold == "class_lse"
        return self.x.device.type == "cpu" or not sums_by_class or torch.are_deterministic_algorithms_enabled()

    def _score_notes(self) -> list[str]:
        score, spec = self.spec.score, self.spec
        what = {"dot": "inner products", "l2": "Euclidean distances", "lp": f"L{score.p:g} distances"}[score.kind]
        how = {"none": "", "square": ", from which the squared distances follow", "snr": ", from which the ratios follow"}
        raised = "" if score.power == 1 else f" to the power {score.power:g}"
        unit = "; weights are divided by their norms block by block" if spec.unit else ""
        notes = [f"scores are {what}{raised}{how[spec.lift]}{unit}"]
        if self.small() and not self.plain():
            notes.append("the matrix of scores is smaller than a block: one compiled call each way, without an operator")
        if self.plain():
            notes.append("the matrix of scores is smaller than a block: plain torch, without an operator")
            return notes
        chosen = next((c.name for c in self._candidates()[0] if c.status == "chosen"), None)
        if chosen is None:
            return notes
        share = self._kept_share(chosen)
        if share == 1:
            notes.append("all scores are kept for the backward")
        elif share == 0:
            notes.append("the backward scores the blocks again")
        else:
            notes.append(f"{share:.0%} of the scores are kept for the backward, which computes the others again")
        return notes
