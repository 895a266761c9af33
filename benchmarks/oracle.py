"""Float64 answers by strips of rows: what every peer must agree with before it is timed.

Every operation here is a sum over anchors of something that depends only on the anchor's row of scores,
divided by a count. So a strip of rows gives its share of the sum and autograd its gradient, in memory linear
in N, and the all-triplet sum needs no enumeration: positives sorted, one binary search a negative, suffix
sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INFINITY = float("inf")
STRIP_ELEMENTS = 4_000_000
SAMPLED_ROWS = 256
# How far from zero a term's sign may depend on the rounding of a float32 score.
EDGE = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Answer:
    """A loss and its gradient; rows names the rows of the gradient that are given (None: all of them).

    others are the gradients of a second set of rows and of the loss's parameters. moved_value and moved_gradient are by how
    much (relatively) the answer changes where rounding in float32 decides which terms take part. source: what computed it.
    """

    value: float
    gradient: np.ndarray
    rows: np.ndarray | None = None
    moved_value: float = 0.0
    moved_gradient: float = 0.0
    others: tuple[np.ndarray, ...] = ()
    source: str = "float64 by strips"

    def errors(self, value: float, gradient: np.ndarray, others: tuple[np.ndarray, ...] = ()) -> tuple[float, float]:
        """Relative error of a value and the largest relative L2 error of a gradient; infinity for anything not finite."""
        gradient = gradient if self.rows is None else gradient[self.rows]
        if not (math.isfinite(value) and all(np.isfinite(found).all() for found in (gradient, *others))):
            return math.inf, math.inf
        value_error = abs(value - self.value) / max(abs(self.value), float(np.finfo(np.float64).tiny))
        pairs = zip((gradient, *others), (self.gradient, *self.others), strict=True)
        return value_error, max(_relative(found, exact) for found, exact in pairs)


def numbers(gradient: Tensor) -> np.ndarray:
    """A gradient in float64, all of it."""
    return gradient.detach().cpu().double().numpy()


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    difference = np.linalg.norm(found.astype(np.float64) - exact)
    return float(difference / max(float(np.linalg.norm(exact)), float(np.finfo(np.float64).tiny)))


@dataclass(frozen=True)
class Strip:
    """Cosines [R, N] of R anchors with the whole batch and the masks of their positives and negatives.

    Losses that count their terms above zero count those above edge. anchors [R] are rows of the batch, whose embeddings [N, D]
    have no gradient.
    """

    scores: Tensor
    positive: Tensor
    negative: Tensor
    anchors: Tensor
    embeddings: Tensor
    edge: float = 0.0

    def distances(self) -> Tensor:
        squared = (2 - 2 * self.scores).clamp(min=0)
        return torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


Terms = list[tuple[Tensor, Tensor]]  # (sum, count) of each named term: the loss is the sum of their quotients


def _positive_terms(losses: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    kept = losses > edge
    return torch.where(kept, losses, 0.0).sum(), kept.sum()


def _log_sum(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, scores, -INFINITY).logsumexp(dim=1)


def _supcon(strip: Strip) -> Terms:
    scores = strip.scores / 0.1
    mean_positive = (scores * strip.positive).sum(dim=1) / strip.positive.sum(dim=1).clamp(min=1)
    row = _log_sum(scores, strip.positive | strip.negative) - mean_positive
    return [_positive_terms(torch.where(strip.positive.any(dim=1), row, 0.0), strip.edge)]


def _ntxent(strip: Strip) -> Terms:
    scores = strip.scores / 0.07
    anchor, other = strip.positive.nonzero(as_tuple=True)
    losses = F.softplus(_log_sum(scores, strip.negative)[anchor] - scores[anchor, other])
    return [(losses.sum(), torch.tensor(len(losses)))]


def _multi_similarity(strip: Strip) -> Terms:
    pull = torch.log1p((torch.exp(2 * (0.5 - strip.scores)) * strip.positive).sum(dim=1)) / 2
    push = torch.log1p((torch.exp(50 * (strip.scores - 0.5)) * strip.negative).sum(dim=1)) / 50
    return [((pull + push).sum(), torch.tensor(len(pull)))]


def _multi_similarity_mined(strip: Strip) -> Terms:
    scores = strip.scores.detach()
    weakest = torch.where(strip.positive, scores, INFINITY).amin(dim=1, keepdim=True)
    strongest = torch.where(strip.negative, scores, -INFINITY).amax(dim=1, keepdim=True)
    kept_positive = strip.positive & (scores - 0.1 < strongest)
    kept_negative = strip.negative & (scores + 0.1 > weakest)
    return _multi_similarity(replace(strip, positive=kept_positive, negative=kept_negative))


def _circle(strip: Strip) -> Terms:
    scores, fixed = strip.scores, strip.scores.detach()
    pull = _log_sum(-80 * (1.4 - fixed).clamp(min=0) * (scores - 0.6), strip.positive)
    push = _log_sum(80 * (fixed + 0.4).clamp(min=0) * (scores - 0.4), strip.negative)
    usable = strip.positive.any(dim=1) & strip.negative.any(dim=1)
    return [_positive_terms(F.softplus(pull + push)[usable], strip.edge)]


def _contrastive(strip: Strip) -> Terms:
    distances = strip.distances()
    pull, push = distances[strip.positive], 1 - distances[strip.negative]
    return [_positive_terms(pull, strip.edge), _positive_terms(push, strip.edge)]


def _batch_hard_triplet(strip: Strip) -> Terms:
    distances = strip.distances()
    farthest = torch.where(strip.positive, distances, -INFINITY).amax(dim=1)
    nearest = torch.where(strip.negative, distances, INFINITY).amin(dim=1)
    return [_positive_terms(farthest - nearest + 0.05, strip.edge)]


def _triplet_all(strip: Strip) -> Terms:
    distances = strip.distances()
    count = strip.positive.sum(dim=1, keepdim=True)
    by_distance = torch.where(strip.positive, distances, INFINITY).sort(dim=1).values
    ascending = by_distance[:, : int(count.max())].contiguous()
    valid = torch.arange(ascending.shape[1], device=count.device) < count
    kept = torch.where(valid, ascending, 0.0)
    suffix = F.pad(kept.flip(1).cumsum(dim=1).flip(1), (0, 1))  # [R, P + 1]: sum of the positives from k on
    first = torch.searchsorted(ascending.detach(), distances.detach() - 0.05 + strip.edge, right=True).clamp(max=count)
    active = (count - first) * strip.negative
    sums = suffix.gather(1, first) * strip.negative + active * (0.05 - distances)
    return [(sums.sum(), active.sum())]


def _angular_mined(strip: Strip) -> Terms:
    """The triplets whose angle at the negative exceeds 20 degrees; distances as torch's pairwise_distance takes them."""
    distances, rows, eps = strip.distances(), strip.embeddings, 1e-6
    anchor, positive = strip.positive.nonzero(as_tuple=True)
    own, other = rows[strip.anchors[anchor]], rows[positive]
    height = torch.cdist((own + other) / 2 - eps, rows, compute_mode="donot_use_mm_for_euclid_dist")
    angle = torch.atan((own - other + eps).norm(dim=1, keepdim=True) / (2 * height))
    mined = strip.negative[anchor] & (angle > math.radians(20))
    return [_positive_terms((distances[anchor, positive].unsqueeze(1) - distances[anchor] + 0.05)[mined], strip.edge)]


FORMULAS: dict[str, Callable[[Strip], Terms]] = {
    "supcon": _supcon,
    "ntxent": _ntxent,
    "multi_similarity": _multi_similarity,
    "multi_similarity_mined": _multi_similarity_mined,
    "circle": _circle,
    "contrastive": _contrastive,
    "batch_hard_triplet": _batch_hard_triplet,
    "triplet_all": _triplet_all,
    # The miner leaves out triplets that are right by more than its margin of 0.2, which the loss, with 0.05, does not count.
    "triplet_margin_mined": _triplet_all,
    "angular_mined": _angular_mined,
}


def answer(operation: str, embeddings: Tensor, labels: Tensor, edge: float = 0.0) -> Answer:
    """Loss and gradient of an operation at its default settings, in float64 on its device; terms above edge are counted."""
    leaf = embeddings.detach().double().requires_grad_()
    unit = F.normalize(leaf)
    fixed = unit.detach().requires_grad_()
    sums: list[float] = []
    counts: list[int] = []
    gradients: list[Tensor] = []
    for rows in _strips(labels):
        for i, (total, count) in enumerate(FORMULAS[operation](replace(_strip(fixed, labels, rows, leaf.detach()), edge=edge))):
            if i == len(sums):
                sums, counts, gradients = [*sums, 0.0], [*counts, 0], [*gradients, torch.zeros_like(fixed)]
            sums[i] += float(total.detach())
            counts[i] += int(count)
            gradients[i] += torch.autograd.grad(total, fixed, retain_graph=True)[0]
    value = sum(total / max(count, 1) for total, count in zip(sums, counts))
    shares = [gradient / max(count, 1) for gradient, count in zip(gradients, counts)]
    combined = torch.stack(shares).sum(dim=0)
    (gradient,) = torch.autograd.grad(unit, leaf, combined)
    return Answer(value, gradient.cpu().numpy())


def answer_with_movement(operation: str, embeddings: Tensor, labels: Tensor) -> Answer:
    """The answer and by how much rounding may move it: of a loss that counts its terms above zero, terms at the edge of zero
    are counted or not as their scores happen to round, in any float32 implementation."""
    exact = answer(operation, embeddings, labels)
    others = [answer(operation, embeddings, labels, edge) for edge in (-EDGE, EDGE)]
    moved = [exact.errors(other.value, other.gradient) for other in others]
    return replace(exact, moved_value=max(value for value, _ in moved), moved_gradient=max(gradient for _, gradient in moved))


def supcon_sampled(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Answer:
    """SupCon where full float64 strips take minutes: the exact value and the gradient of sampled rows.

    One float32 sweep gives every row's log-sum-exp (its error, about 1e-6, is far below the tolerance); the
    gradient with respect to a row needs only that row of scores and the log-sum-exps. Every anchor must have
    a positive.
    """
    n = len(labels)
    unit = F.normalize(embeddings.detach().double())
    single = unit.float()
    positives = torch.bincount(labels)[labels] - 1
    log_sums = torch.empty(n, dtype=torch.float64, device=unit.device)
    for rows in _strips(labels):
        scores = (single[rows] / temperature) @ single.T
        scores[torch.arange(len(rows), device=rows.device), rows] = -INFINITY
        log_sums[rows] = scores.logsumexp(dim=1).double()
    class_sums = unit.new_zeros(int(labels.max()) + 1, unit.shape[1]).index_add(0, labels, unit)
    positive_sums = (unit * (class_sums[labels] - unit)).sum(dim=1) / temperature
    row_losses = log_sums - positive_sums / positives
    chosen = torch.linspace(0, n - 1, min(SAMPLED_ROWS, n), device=unit.device).long()
    strip = _strip(unit, labels, chosen, embeddings.detach().double())
    scores = strip.scores / temperature
    other = strip.positive | strip.negative
    weight = torch.where(other, torch.exp(scores - log_sums[chosen, None]) + torch.exp(scores - log_sums), 0.0)
    weight -= strip.positive * (1 / positives[chosen, None] + 1 / positives)
    pull = (weight / temperature / n) @ unit
    anchor = unit[chosen]
    length = embeddings.detach().double()[chosen].norm(dim=1, keepdim=True)
    gradient = (pull - (pull * anchor).sum(dim=1, keepdim=True) * anchor) / length
    return Answer(float(row_losses.mean()), gradient.cpu().numpy(), chosen.cpu().numpy())


def _strips(labels: Tensor) -> list[Tensor]:
    n = len(labels)
    return list(torch.arange(n, device=labels.device).split(max(1, STRIP_ELEMENTS // n)))


def _strip(unit: Tensor, labels: Tensor, rows: Tensor, embeddings: Tensor) -> Strip:
    same = labels[rows, None] == labels
    itself = rows[:, None] == torch.arange(len(labels), device=rows.device)
    return Strip(unit[rows] @ unit.T, same & ~itself, ~same, rows, embeddings)
