"""The operations by hand in plain PyTorch over the full N x N matrix: the "eager" and "compile" peers.

Each function takes embeddings [N, D], labels [N] (or sets of them, or a second set of rows) and the loss's parameters, and
returns the scalar loss with the default settings of the class of the same name. No shape depends on data, so that each compiles
with ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


def _pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [N, N] of the positive pairs (self pairs left out) and the negative pairs."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _cosine(embeddings: Tensor) -> Tensor:
    unit = F.normalize(embeddings)
    return unit @ unit.T


def _euclidean(embeddings: Tensor) -> Tensor:
    """Distances [N, N] of the normalised rows, with gradient 0 where the distance is 0."""
    squared = (2 - 2 * _cosine(embeddings)).clamp(min=0)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _mean_of_positive(losses: Tensor) -> Tensor:
    return losses.clamp(min=0).sum() / (losses > 0).sum().clamp(min=1)


def _masked_logsumexp(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, NEGATIVE_INFINITY).logsumexp(dim=1)


def supcon(embeddings: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    scores = _cosine(embeddings) / temperature
    positive, negative = _pair_masks(labels)
    log_probability = scores - _masked_logsumexp(scores, positive | negative)[:, None]
    row = -torch.where(positive, log_probability, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return _mean_of_positive(row)


def ntxent(embeddings: Tensor, labels: Tensor, temperature: float = 0.07) -> Tensor:
    scores = _cosine(embeddings) / temperature
    positive, negative = _pair_masks(labels)
    losses = F.softplus(_masked_logsumexp(scores, negative)[:, None] - scores)
    return torch.where(positive, losses, 0.0).sum() / positive.sum().clamp(min=1)


def _multi_similarity(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    alpha, beta, base = 2.0, 50.0, 0.5
    # log(1 + sum of exponentials) is softplus of the log-sum-exp, and 0 where nothing is kept.
    pull = F.softplus(_masked_logsumexp(alpha * (base - scores), positive)) / alpha
    push = F.softplus(_masked_logsumexp(beta * (scores - base), negative)) / beta
    return (pull + push).mean()


def multi_similarity(embeddings: Tensor, labels: Tensor) -> Tensor:
    return _multi_similarity(_cosine(embeddings), *_pair_masks(labels))


def circle(embeddings: Tensor, labels: Tensor, m: float = 0.4, gamma: float = 80.0) -> Tensor:
    scores = _cosine(embeddings)
    positive, negative = _pair_masks(labels)
    fixed = scores.detach()
    pull = -gamma * F.relu(1 + m - fixed) * (scores - (1 - m))
    push = gamma * F.relu(fixed + m) * (scores - m)
    row = F.softplus(_masked_logsumexp(pull, positive) + _masked_logsumexp(push, negative))
    return _mean_of_positive(torch.where(positive.any(dim=1) & negative.any(dim=1), row, 0.0))


def contrastive(embeddings: Tensor, labels: Tensor) -> Tensor:
    distances = _euclidean(embeddings)
    positive, negative = _pair_masks(labels)
    pull = torch.where(positive, distances, 0.0)
    push = torch.where(negative, 1.0 - distances, 0.0)
    return _mean_of_positive(pull) + _mean_of_positive(push)


def triplet_all(embeddings: Tensor, labels: Tensor, max_positives: int, margin: float = 0.05) -> Tensor:
    """All triplets; each anchor's positives are gathered first: N x P x N elements and not N x N x N."""
    distances = _euclidean(embeddings)
    positive, negative = _pair_masks(labels)
    found, index = positive.to(embeddings.dtype).topk(max_positives, dim=1)
    violation = distances.gather(1, index)[:, :, None] - distances[:, None, :] + margin
    usable = (found > 0)[:, :, None] & negative[:, None, :]
    return _mean_of_positive(torch.where(usable, violation, 0.0))


def batch_hard_triplet(embeddings: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    distances = _euclidean(embeddings)
    positive, negative = _pair_masks(labels)
    farthest = distances.masked_fill(~positive, NEGATIVE_INFINITY).amax(dim=1)
    nearest = distances.masked_fill(~negative, float("inf")).amin(dim=1)
    return _mean_of_positive(farthest - nearest + margin)


def multi_similarity_mined(embeddings: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    scores = _cosine(embeddings)
    positive, negative = _pair_masks(labels)
    fixed = scores.detach()
    weakest_positive = fixed.masked_fill(~positive, float("inf")).amin(dim=1, keepdim=True)
    strongest_negative = fixed.masked_fill(~negative, NEGATIVE_INFINITY).amax(dim=1, keepdim=True)
    kept_positive = positive & (fixed - epsilon < strongest_negative)
    kept_negative = negative & (fixed + epsilon > weakest_positive)
    return _multi_similarity(scores, kept_positive, kept_negative)


def nca(embeddings: Tensor, labels: Tensor) -> Tensor:
    scores = 2 * _cosine(embeddings) - 2  # minus the squared distance of unit vectors
    positive, negative = _pair_masks(labels)
    row = _masked_logsumexp(scores, positive | negative) - _masked_logsumexp(scores, positive)
    return _mean_of_positive(torch.where(positive.any(dim=1), row, 0.0))


def generalized_lifted(embeddings: Tensor, labels: Tensor, neg_margin: float = 1.0) -> Tensor:
    distances = _euclidean(embeddings)
    positive, negative = _pair_masks(labels)
    pull, push = _masked_logsumexp(distances, positive), _masked_logsumexp(neg_margin - distances, negative)
    return F.relu(pull + push).mean()


def multi_supcon(embeddings: Tensor, label_sets: Tensor, temperature: float = 0.1, threshold: float = 0.5) -> Tensor:
    sets = label_sets.to(embeddings.dtype)
    common = sets @ sets.T
    size = sets.sum(dim=1)
    itself = torch.eye(len(sets), dtype=torch.bool, device=sets.device)
    similarity = common / (size[:, None] + size[None, :] - common)
    positive = (similarity >= threshold) & ~itself
    scores = _cosine(embeddings) / temperature
    losses = similarity * (_masked_logsumexp(scores, ~itself)[:, None] - scores)
    row = torch.where(positive, losses, 0.0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return _mean_of_positive(row)


def clip(embeddings: Tensor, other: Tensor, logit_scale: Tensor) -> Tensor:
    scores = logit_scale.exp().clamp(max=100) * (F.normalize(embeddings) @ F.normalize(other).T)
    target = torch.arange(len(embeddings), device=embeddings.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def siglip(embeddings: Tensor, other: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    logits = logit_scale.exp() * (F.normalize(embeddings) @ F.normalize(other).T) + logit_bias
    sign = 2 * torch.eye(len(embeddings), dtype=logits.dtype, device=logits.device) - 1
    return F.softplus(-sign * logits).sum(dim=1).mean()


def cosface(embeddings: Tensor, labels: Tensor, weight: Tensor, margin: float = 0.35, scale: float = 64.0) -> Tensor:
    """weight is [D, C]."""
    cosines = F.normalize(embeddings) @ F.normalize(weight, dim=0)
    target = F.one_hot(labels, weight.shape[1]).to(cosines.dtype)
    return F.cross_entropy(scale * (cosines - margin * target), labels)


def normalized_softmax(embeddings: Tensor, labels: Tensor, weight: Tensor, temperature: float = 0.05) -> Tensor:
    """weight is [D, C]."""
    return F.cross_entropy(F.normalize(embeddings) @ F.normalize(weight, dim=0) / temperature, labels)


def proxy_anchor(embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float = 0.1, alpha: float = 32.0) -> Tensor:
    """proxies are [C, D]; the classes that a batch has are counted in a sum over all."""
    scores = F.normalize(proxies) @ F.normalize(embeddings).T
    positive = torch.arange(len(proxies), device=labels.device)[:, None] == labels[None, :]
    pull = F.softplus(_masked_logsumexp(alpha * (margin - scores), positive))
    push = F.softplus(_masked_logsumexp(alpha * (scores + margin), ~positive))
    return pull.sum() / positive.any(dim=1).sum() + push.mean()
