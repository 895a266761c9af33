"""What the class operator hands to a backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.score import Score


@dataclass
class ClassProblem:
    """Prepared rows ``x [N, D']`` against the weights ``y [C * centers, D]`` as they are stored, any floating type.

    ``target`` is each row's class ``[N]``; ``bias [N]`` is added to a row's logits.
    """

    spec: ClassSpec
    x: Tensor
    y: Tensor
    target: Tensor
    bias: Tensor | None

    @property
    def score(self) -> Score:
        """What is computed for a row and a prepared column."""
        return self.spec.score

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.y.shape[0] // self.spec.centers

    @property
    def folded(self) -> int:
        """How many numbers the fold leaves."""
        return self.classes if self.spec.fold == "class_lse" else self.x.shape[0]

    def weights(self, first: int, last: int) -> Tensor:
        """The weights of a range of classes in the type that is computed in."""
        return self.y[first * self.spec.centers : last * self.spec.centers].to(self.x.dtype)


@dataclass
class ClassScores:
    """What a sweep leaves: ``others``, the fold (:class:`ClassSpec`); ``target [N]``, the pooled score of each row's class;
    ``norms [N]`` of its weight (empty unless asked for); ``kept``, what a backend keeps of the scores for the backward."""

    others: Tensor
    target: Tensor
    norms: Tensor
    kept: Tensor


@dataclass
class ClassGrads:
    """The derivatives of a loss by ``others``, ``target`` and ``norms`` (``None``: zero)."""

    others: Tensor
    target: Tensor
    norms: Tensor | None


def own_norms(problem: ClassProblem) -> tuple[Tensor, Tensor]:
    """Each row's own class weight ``[N, D]`` and its norm."""
    own = problem.y[problem.target].to(problem.x.dtype)
    return own, torch.linalg.vector_norm(own, dim=1)


def add_norm_grads(problem: ClassProblem, grad: Tensor, dy: Tensor) -> None:
    """Add the derivative by the norms of the rows' own weights to that by the weights."""
    weights, norm = own_norms(problem)
    share = torch.where(norm > 0, grad / norm, 0.0).unsqueeze(1)
    dy.index_add_(0, problem.target, (weights * share).to(dy.dtype))


def own_columns(target: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """For classes ``first .. last``: a column ``[n, 1]`` to look at for each row, and whether it is the row's class."""
    column = (target - first).unsqueeze(1)
    inside = (column >= 0) & (column < last - first)
    return column.clamp(0, last - first - 1), inside


def check_targets(target: Tensor, classes: int) -> None:
    """``ValueError`` (an assertion on the device, where it cannot be waited for) unless labels number the classes."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"labels must be integers, the numbers of the classes, got {target.dtype}; call .long() on them")
    if target.device.type == "meta":
        return
    message = f"labels must be from 0 to {classes - 1}, as the loss has {classes} classes"
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        torch._assert_async(((target >= 0) & (target < classes)).all(), message)
    elif target.numel() > 0:
        low, high = (end.item() for end in target.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"{message}, got labels from {low} to {high}: map them to 0, 1, ..., or pass a larger num_classes")
