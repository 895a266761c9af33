"""Losses agree with pytorch-metric-learning 2.9 in value and in every gradient: embeddings, references and parameters.

The cases are generated: loss x miner or tuple x the miner's distance x distance x reducer x reference set x regularizers of
embeddings and weights x labels, with random shapes, all in float64 (`agreement_options.py` has the options). The default run
takes every two options that may meet at least once, and random cases of each loss beside; seeds are fixed.
`PML_FAST_TEST_ALL=1` runs the product of the options of each loss. A case that fails is made small and printed as the call that
runs it again (`agreement.py`). Where the two libraries differ on purpose a case is left out: `difference` in
`agreement_cases.py` says why, and which file has a test of it.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import agreement_cases
import pytest
from agreement import Tally, agree, check, shrink, simpler
from agreement_cases import FEATURES, ROWS, Case, allowed, difference, draw, options
from agreement_options import DISTANCES, EVERY, LOSSES, MINERS, OF_CENTERS, OURS, PAIR_LOSSES, PEER, REDUCERS, Loss

from pml_fast import use

ALL = os.environ.get("PML_FAST_TEST_ALL") == "1"
RANDOM_CASES = 30  # of each loss
AXES = ("loss", *EVERY)
Pair = tuple[str, str, str, str]


def pairs_of(case: Case) -> set[Pair]:
    chosen = [(axis, getattr(case, axis)) for axis in AXES]
    return {(*left, *right) for left, right in itertools.combinations(chosen, 2)}


def possible(pair: Pair) -> bool:
    """Whether some loss takes both options."""
    left, a, right, b = pair
    kinds = [LOSSES[a]] if left == "loss" else list(LOSSES.values())
    wanted = {axis: value for axis, value in ((left, a), (right, b)) if axis != "loss"}
    return any(all(value in options(kind)[axis] for axis, value in wanted.items()) for kind in kinds)


def find(rng: random.Random, pair: Pair, tries: int = 40) -> Case | None:
    """A case that holds two options, of the loss named or of any that takes both."""
    fixed = {pair[0]: pair[1], pair[2]: pair[3]}
    names = [fixed.pop("loss")] if "loss" in fixed else rng.sample(list(LOSSES), len(LOSSES))
    return next((case for name in names if (case := draw(rng, name, fixed, tries)) is not None), None)


def covering() -> tuple[list[Case], set[Pair]]:
    """A deterministic choice of cases with every two options that can meet; and those for which no case was found."""
    rng = random.Random(20)
    values = {"loss": tuple(LOSSES), **EVERY}
    every = {
        (left, a, right, b)
        for left, right in itertools.combinations(AXES, 2)
        for a, b in itertools.product(values[left], values[right])
    }
    still, none, chosen = {pair for pair in every if possible(pair)}, set(), []
    for pair in sorted(still):
        if pair not in still:
            continue
        found = [case for _ in range(3) if (case := find(rng, pair)) is not None]
        if not found:
            none.add(pair)
            still.discard(pair)
            continue
        best = max(found, key=lambda case: len(pairs_of(case) & still))
        still -= pairs_of(best)
        chosen.append(best)
    return chosen, none


COVERING, NEVER = covering()


def random_cases(loss: str, count: int) -> list[Case]:
    rng = random.Random(f"agreement {loss}")
    return [case for _ in range(count) if (case := draw(rng, loss, {})) is not None]


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_equal_the_peers(loss: str) -> None:
    cases = [case for case in COVERING if case.loss == loss] + random_cases(loss, RANDOM_CASES)
    tally = Tally()
    check(cases, tally)
    assert tally.compared >= len(cases) * 0.6, f"{loss}: only {tally} of {len(cases)} cases say anything"


def test_there_are_two_thousand_cases_and_more() -> None:
    assert len(set(COVERING)) + sum(len(set(random_cases(loss, RANDOM_CASES))) for loss in LOSSES) >= 2500


def test_every_two_options_meet_but_for_known_differences() -> None:
    """What no case holds is excluded by a known difference, or says the same as another combination."""
    for pair in NEVER:
        assert explained(pair), pair


def explained(pair: Pair) -> bool:
    """Whether every case with both options, at otherwise the simplest options of a loss, is excluded for a reason."""
    fixed = {pair[0]: pair[1], pair[2]: pair[3]}
    names = [fixed.pop("loss")] if "loss" in fixed else list(LOSSES)
    for name in names:
        axes = options(LOSSES[name])
        if any(value not in axes[axis] for axis, value in fixed.items()):
            continue
        simplest = {axis: values[0] for axis, values in axes.items()}
        for features, rows in itertools.product(FEATURES, ROWS):
            if allowed(Case(name, **{**simplest, **fixed}, rows=rows, features=features)):
                return False
    return True


def made(loss: Loss) -> Any:
    return loss.make(OURS, 4)


@pytest.mark.parametrize(
    ("module", "makes"),
    [
        ("losses", [functools.partial(made, loss) for loss in LOSSES.values()]),
        *(
            (module, [functools.partial(make, OURS) for make in table.values()])
            for module, table in (
                ("miners", MINERS),
                ("distances", DISTANCES),
                ("reducers", REDUCERS),
                ("regularizers", OF_CENTERS),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_everything_that_both_libraries_have_takes_part(module: str, makes: list[Any]) -> None:
    """But for BatchedDistance, which hands its parts of the matrix to a function and is no loss's distance."""
    found = {type(part).__name__ for make in makes if (whole := make()) is not None for part in whole.modules()}
    ours, peers = getattr(OURS, module), getattr(PEER, module)
    shared = {name for name in ours.__all__ if hasattr(peers, name)}
    bases = {name for name in shared if name.startswith("Base") or name.endswith("Mixin")}
    assert shared - bases - {"GenericPairLoss", "BatchedDistance"} <= found


# ---- the product -------------------------------------------------------------------------------------------------------------


def product(loss: str) -> Iterator[Case]:
    """All options of a loss but regularizers, labels and shapes, which no other option depends on: those in turn."""
    axes = options(LOSSES[loss])
    slow = ("miner", "mined_with", "distance", "reducer", "reference")
    turn = itertools.cycle(itertools.product(axes["labels"], axes["regularizer"], axes["weights"]))
    rng = random.Random(loss)
    for chosen in itertools.product(*(axes[axis] for axis in slow)):
        labels, regularizer, weights = next(turn)
        case = Case(
            loss,
            **dict(zip(slow, chosen, strict=True)),
            labels=labels,
            regularizer=regularizer,
            weights=weights,
            rows=rng.choice(ROWS),
            ref_rows=rng.choice(ROWS),
            features=rng.choice(FEATURES),
            seed=rng.randrange(1000),
        )
        if allowed(case):
            yield case


if ALL:

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_whole_product_equals_the_peer(loss: str) -> None:
        check(list(product(loss)), Tally())


# ---- what runs them ----------------------------------------------------------------------------------------------------------


def test_a_case_prints_as_the_call_that_runs_it() -> None:
    case = Case("contrastive", miner="pairs", reducer="sum", rows=5, seed=3)
    assert str(case) == "agree(Case(loss='contrastive', miner='pairs', reducer='sum', rows=5, seed=3))"
    assert eval(str(case), {"agree": lambda found: found, "Case": Case}) == case
    assert agree(case)


def test_a_failing_case_is_made_small() -> None:
    """Down to what it takes: a miner that names triplets, and five rows."""
    case = Case("triplet", "triplet_all", "same", "l2", "sum", "separate", "lp", "none", "random", 24, 20, 11, 7)
    small, words = shrink(case, lambda found: "wrong" if found.miner != "none" and found.rows >= 5 else None)
    assert (small, words) == (Case("triplet", "triplet_all", rows=5, ref_rows=2, features=2), "wrong")
    assert all(candidate.rows < 5 or candidate.miner == "none" for candidate in simpler(small) if allowed(candidate))


def test_a_difference_is_found_and_reported_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is off by a thousandth where a regularizer is used."""
    right = PAIR_LOSSES["contrastive"]

    def wrong(m: Any, d: int, **given: Any) -> Any:
        if m is OURS and "embedding_regularizer" in given:
            given["embedding_reg_weight"] *= 1.001
        return right.make(m, d, **given)

    monkeypatch.setitem(agreement_cases.LOSSES, "contrastive", Loss(wrong, pairs=True))
    case = Case("contrastive", "batch_hard", "same", "l1", "mean", "itself", "lp", labels="random", rows=12, features=8, seed=4)
    with pytest.raises(AssertionError) as caught:
        check([Case("contrastive"), case], Tally())
    assert "1 of 2 cases differ" in str(caught.value)
    small = "agree(Case(loss='contrastive', regularizer='lp', rows=2, ref_rows=2, features=2))"
    assert f"made small:\n\n{small}\n" in str(caught.value)


def test_what_only_one_library_refuses_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(m: Any, d: int, **given: Any) -> Any:
        if m is not OURS:
            raise NotImplementedError("no such loss")
        return m.losses.ContrastiveLoss(**given)

    monkeypatch.setitem(agreement_cases.LOSSES, "contrastive", Loss(make))
    with pytest.raises(AssertionError, match="only the peer refuses: NotImplementedError: no such loss"):
        agree(Case("contrastive"))


def test_differences_have_a_reason_and_a_test() -> None:
    reasons = {difference(Case("lifted", reference="separate")), difference(Case("proxy_anchor", reducer="class_weighted"))}
    for reason in reasons:
        assert reason is not None and ".py)" in reason
    assert difference(Case("contrastive")) is None


@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_distant_pairs_of_the_other_side_have_no_gradient(backend: str) -> None:
    """Ranked list's exponential overflows for pairs that are none of the side that it weighs."""
    with use(backend=backend):
        assert agree(Case("ranked_list", distance="snr", rows=10, ref_rows=2, features=2, seed=164))
