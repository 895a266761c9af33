"""What each loss does to a tile of scores: its logit, what a row keeps, and its derivative, side by side.

Shapes of sweeps cover the losses. ``EXP``: a row keeps the log-sum-exp of a logit over its positives and over its
negatives, then ``finish`` turns them into the row's loss and the *levels* its derivative needs. ``HINGE``: every pair
has a loss of its own that is summed and counted. ``SUM``: the row's loss is the sum of its pairs'. ``EXP_THEN_PAIRS`` is
``EXP`` over the negatives, then a loss for each positive against that level. ``MEAN`` is ``EXP``, and the mean of the scores
with the logits' softmax as weights. ``GIVEN``: an ``EXP`` or ``HINGE`` of the first sweep leaves levels, and a second one has
losses of pairs that need them (:class:`First`). ``HISTOGRAM``: a row keeps soft counts of its pairs at ``nodes``, whose logit
is a place among them. ``RANKS``: a row keeps a table of its positives with their soft ranks, one of which the row is itself.

A loss is one group of functions (``one_sweep_epilogues.py`` and its neighbours) and one line of :data:`EPILOGUES`:

``logit(s, same, sign, p0, p1, p2, p3, p4)``
    the logit (``EXP``, ``MEAN``, ``GIVEN``) or the pair's loss (``HINGE``, where ``-inf`` is none at all, and ``SUM``);
    ``same`` marks positives, ``sign`` is the score's.
``finish(log_pos, log_neg, sum_pos, count_pos, count_neg, p0, p1, p2, p3, p4)`` (``EXP``)
    the row's loss, whether it has one (1 or 0), and the levels ``(level_pos, level_neg, extra)``; a level of ``inf`` means no
    gradient.
``finish(z, log_neg)`` (``EXP_THEN_PAIRS``)
    a positive's loss and its derivative by ``log_neg``.
``finish(log_pos, log_neg, mean_pos, mean_neg, columns, p0, p1, p2, p3, p4)`` (``MEAN``)
    as of ``EXP``, with an extra for each side.
``finish(z, same, level, other, sign, p0, p1, p2, p3, p4)`` (``GIVEN``)
    a pair's loss and its derivatives by the level of the anchor's side and by that of the other end (``-inf`` for one outside
    of the batch).
``finish(among, before, p0, p1, p2, p3, p4)`` (``RANKS``, whose logit is a multiple of the score)
    what a positive adds to the mean that is the row's loss, and its derivatives by the two ranks: sums of sigmoids over all
    positives, the positive itself among them, and over the negatives.
``derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4)``
    dL/ds of a pair of an anchor of weight 1, with ``level`` and ``extra`` those of the pair's side. Of a ``HISTOGRAM`` the
    level is the address of the row's slopes by its counts, those of positives at each node first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.specs.fast_ap import largest_score
from pml_fast.engine.triton import one_sweep_epilogues as one
from pml_fast.engine.triton import table_epilogues as table
from pml_fast.engine.triton import two_sweep_epilogues as two

EXP, HINGE, EXP_THEN_PAIRS, SUM, MEAN, GIVEN, HISTOGRAM, RANKS = range(8)


def _own_params(spec: PairSpec, score: Score) -> list[float]:
    return spec.params()


def _no_nodes(spec: PairSpec) -> int:
    return 0


@dataclass(frozen=True)
class First:
    """The first of two sweeps, with a shape of its own and ``terms``, and the way between it and the pairs of the second.

    ``shared`` makes what the second is told of the first's ``rows [T, 2, N]`` and ``saved [3, N]``: levels of both sides
    ``[2, N]``, and rows that it wants again. ``back`` turns slopes by the levels ``[2, N]`` into weights ``[2, N]`` of what
    ``state(z, same, level, sign)`` says that each pair is to the first sweep. ``across``: pairs need their other end's level.
    """

    sweep: Epilogue
    terms: int
    shared: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    state: Any
    across: bool = False


@dataclass(frozen=True)
class Epilogue:
    """The functions of one loss, as the kernels take them.

    ``params`` gives the numbers ``p0 ..`` of a spec and a score, at most :data:`PARAMS`: the spec's own parameters, or what
    follows from them. ``cosines`` says that the maths is that of cosines: of distances there is no kernel. The derivative of a
    ``heavy`` one leaves no registers for a block of the gradient, whose coefficients are written out instead. ``nodes`` says
    how many a ``HISTOGRAM`` has, ``among`` whether ``RANKS`` need those among positives: then a row that is its only positive
    has a loss. The derivative of a ``steep`` one has steps, or logits a hundred times the scores: rows of half precision are
    divided by their norms, and multiplied, in float32.
    """

    shape: int
    logit: Any
    finish: Any
    derivative: Any
    params: Callable[[Any, Score], list[float]] = _own_params
    cosines: bool = False
    heavy: bool = False
    first: First | None = None
    nodes: Callable[[Any], int] = _no_nodes
    among: bool = False
    steep: bool = False

    @property
    def levels(self) -> int:
        """Numbers a row has for the derivative: levels of both sides, and an extra of both or of each (``MEAN``, ``GIVEN``);
        none where a pair's loss is its own, or where the row has a table."""
        return {HINGE: 0, SUM: 0, MEAN: 4, GIVEN: 4, HISTOGRAM: 0, RANKS: 0}.get(self.shape, 3)

    @property
    def state(self) -> Any:
        """What a pair is to a first sweep; ``None`` where there is one sweep."""
        return None if self.first is None else self.first.state

    @property
    def small(self) -> bool:
        """Whether a small batch's three launches can have it: one sweep leaves all that the gradient needs."""
        return self.shape in (EXP, HINGE, EXP_THEN_PAIRS, SUM, MEAN)

    @property
    def positives_again(self) -> bool:
        """Whether a second sweep is over the positives alone, which sorting by class brings together."""
        return self.shape == EXP_THEN_PAIRS or (self.first is not None and self.first.terms == 1)


PARAMS = 5


def _threshold_consistent_params(spec: Any, score: Score) -> list[float]:
    return [spec.margin_plus, spec.margin_minus, spec.lambda_plus, spec.lambda_minus]


def _tuplet_margin_params(spec: Any, score: Score) -> list[float]:
    return [spec.scale, math.cos(spec.margin), math.sin(spec.margin)]


def _ranked_list_params(spec: Any, score: Score) -> list[float]:
    return [spec.alpha - spec.margin, spec.alpha, spec.Tp, spec.Tn, spec.imbalance]


def _fast_ap_nodes(spec: Any) -> int:
    return int(spec.num_bins) + 1


def _fast_ap_params(spec: Any, score: Score) -> list[float]:
    nodes = _fast_ap_nodes(spec)
    return [(nodes - 1) / largest_score(score), nodes]


EPILOGUES: dict[str, Epilogue] = {
    "contrastive": Epilogue(HINGE, one.contrastive_logit, None, one.contrastive_derivative),
    "ntxent": Epilogue(EXP_THEN_PAIRS, one.temperature_logit, one.ntxent_finish, one.ntxent_derivative),
    "supcon": Epilogue(EXP, one.temperature_logit, one.supcon_finish, one.supcon_derivative),
    "log_sum_exp": Epilogue(EXP, one.temperature_logit, one.log_sum_exp_finish, one.log_sum_exp_derivative),
    "multi_similarity": Epilogue(EXP, one.multi_similarity_logit, one.multi_similarity_finish, one.multi_similarity_derivative),
    "circle": Epilogue(EXP, one.circle_logit, one.circle_finish, one.circle_derivative, cosines=True),
    # The slope of a hinge does not depend on where it begins.
    "margin": Epilogue(HINGE, one.margin_logit, None, one.contrastive_derivative),
    "threshold_consistent": Epilogue(
        HINGE, one.threshold_consistent_logit, None, one.threshold_consistent_derivative, _threshold_consistent_params
    ),
    "siglip": Epilogue(SUM, one.siglip_logit, None, one.siglip_derivative),
    "nca": Epilogue(EXP, one.nca_logit, one.nca_finish, one.nca_derivative),
    "generalized_lifted_structure": Epilogue(
        EXP, one.generalized_lifted_logit, one.generalized_lifted_finish, one.generalized_lifted_derivative
    ),
    "tuplet_margin": Epilogue(
        EXP_THEN_PAIRS,
        one.tuplet_margin_logit,
        one.ntxent_finish,
        one.tuplet_margin_derivative,
        _tuplet_margin_params,
        cosines=True,
        heavy=True,
    ),
    "ranked_list": Epilogue(
        MEAN,
        one.ranked_list_logit,
        one.ranked_list_finish,
        one.ranked_list_derivative,
        _ranked_list_params,
        heavy=True,
        steep=True,
    ),
    "lifted_structure": Epilogue(
        GIVEN,
        one.generalized_lifted_logit,
        two.lifted_pair,
        two.lifted_derivative,
        heavy=True,
        first=First(
            Epilogue(EXP, one.generalized_lifted_logit, two.negatives_finish, None),
            1,
            two.lifted_shared,
            two.lifted_back,
            two.lifted_state,
            across=True,
        ),
    ),
    "intra_pair_variance": Epilogue(
        GIVEN,
        two.plain_logit,
        two.variance_pair,
        two.variance_derivative,
        heavy=True,
        first=First(
            Epilogue(HINGE, two.plain_logit, None, None), 2, two.variance_shared, two.variance_back, two.variance_state
        ),
    ),
    "fast_ap": Epilogue(
        HISTOGRAM,
        table.fast_ap_logit,
        None,
        table.fast_ap_derivative,
        _fast_ap_params,
        heavy=True,
        nodes=_fast_ap_nodes,
        steep=True,
    ),
    "smooth_ap": Epilogue(RANKS, one.temperature_logit, table.smooth_ap_finish, None, heavy=True, among=True, steep=True),
    "pnp": Epilogue(RANKS, table.pnp_logit, table.pnp_finish, None, heavy=True, steep=True),
}
