"""Runs a case in both libraries, compares every number of it, and makes a case that fails small."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from agreement_cases import Case, allowed
from agreement_options import (
    DISTANCES,
    DRAWN,
    MINERS,
    OF_CENTERS,
    OURS,
    PEER,
    REDUCERS,
    REGULARIZERS,
    TUPLES,
    explicit,
    labels_of,
)
from torch import Tensor

REFUSALS = (AssertionError, NotImplementedError, ValueError, TypeError)


class Skipped(Exception):
    """The peer's answer says nothing about ours: a known difference that only the numbers show."""


class Run:
    """One library's answers to a case, with their gradients by embeddings, references and parameters."""

    def __init__(self, m: SimpleNamespace, case: Case) -> None:
        self.gen = torch.Generator().manual_seed(case.seed)
        self.case, self.single = case, False
        self.loss = self.made(m)
        call: Callable[[SimpleNamespace], Any] = getattr(self, f"of_{case.what.call}")
        self.answers: list[Any] = []
        self.gradients: list[Tensor] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(case.seed)
            call(m)

    def made(self, m: SimpleNamespace) -> Any:
        """The loss in float64, its parameters the same in both libraries."""
        case = self.case
        given: dict[str, Any] = {"reducer": REDUCERS[case.reducer](m)}
        if case.distance != "default":
            given["distance"] = DISTANCES[case.distance](m)
        if case.regularizer != "none":
            given |= {"embedding_regularizer": REGULARIZERS[case.regularizer](m), "embedding_reg_weight": 0.3}
        if case.weights != "none":
            given |= {"weight_regularizer": OF_CENTERS[case.weights](m), "weight_reg_weight": 0.2}
        if case.what.call == "queue" and case.miner != "none":
            given["miner"] = self.miner(m)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(case.seed)
            loss = case.what.make(m, case.features, **given).double()
        for parameter in loss.parameters():
            drawn = torch.randn(parameter.shape, generator=self.gen, dtype=torch.float64)
            parameter.data = drawn if parameter.dim() > 1 else parameter.data + 0.1 * drawn
        return loss

    def miner(self, m: SimpleNamespace) -> Any:
        case = self.case
        distance = {"distance": DISTANCES[case.distance](m)} if case.mined_with == "same" else {}
        return MINERS[case.miner](m, **distance)

    def rows(self, n: int) -> Tensor:
        return (0.6 * torch.randn(n, self.case.features, generator=self.gen, dtype=torch.float64)).requires_grad_()

    def record(self, answer: Any, *rows: Tensor) -> None:
        total = answer.sum() if torch.is_tensor(answer) else squares(answer)
        leaves = [*rows, *self.loss.parameters()]
        grads: Any = [None] * len(leaves)
        if torch.is_tensor(total) and total.requires_grad:
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        self.answers.append(answer)
        self.gradients += [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, grads, strict=True)]

    def of_labels(self, m: SimpleNamespace) -> None:
        case, itself = self.case, self.case.reference == "itself"
        n = int(case.rows**0.5) ** 2 if case.labels == "square" else case.rows
        x, labels = self.rows(n), labels_of(case.labels, n, self.gen)
        y, ref_labels = self.rows(case.ref_rows), labels_of(case.labels, case.ref_rows, self.gen)
        refs = () if itself else (y, ref_labels)
        indices: Any = None
        if case.miner in TUPLES:
            indices = explicit(case.miner, labels, labels if itself else ref_labels, itself, self.gen)
        elif case.miner in DRAWN or (case.miner == "hdc" and itself):
            # Draws, and the order of equal distances, as those of a pair and its mirror, are the peer's own.
            torch.manual_seed(case.seed)
            indices = self.miner(PEER)(x.detach(), labels, *(part.detach() for part in refs))
        elif case.miner != "none":
            indices = self.miner(m)(x, labels, *refs)
        if indices is not None:
            self.single = is_single(indices)
        self.record(self.loss(x, labels, indices, *refs), x, y)

    def of_views(self, m: SimpleNamespace) -> None:
        x, y = self.rows(self.case.rows), self.rows(self.case.rows)
        self.record(self.loss(x, ref_emb=None if self.case.reference == "itself" else y), x, y)

    def of_proxies(self, m: SimpleNamespace) -> None:
        proxies = torch.randint(0, 3, (self.case.rows,), generator=self.gen)
        x = self.rows(self.case.rows)
        self.record(self.loss(x, indices_tuple=proxies), x)

    def of_queue(self, m: SimpleNamespace) -> None:
        """Four batches: the queue is filled, and written over."""
        for _ in range(4):
            x, labels = self.rows(self.case.rows), labels_of(self.case.labels, self.case.rows, self.gen)
            if m is OURS and self.case.miner != "none":
                self.single |= is_single(self.loss.queue_call(x, labels, None, None).indices)
            self.record(self.loss(x, labels), x)


def is_single(indices: Any) -> bool:
    """Whether no list of a tuple holds more than one index, and some hold one."""
    return max(len(part) for part in indices) == 1


def squares(loss_dict: dict[str, dict[str, Any]]) -> Any:
    """A number that does not depend on the order of the losses."""
    return sum(entry["losses"].square().sum() for entry in loss_dict.values() if torch.is_tensor(entry["losses"]))


def listed(entry: dict[str, Any]) -> list[tuple[tuple[int, ...], float]]:
    """Every single loss with its indices, in order."""
    values = torch.as_tensor(entry["losses"]).detach().double().flatten().tolist()
    index = entry["indices"]
    if index is None or entry["reduction_type"] == "already_reduced":
        return [((), value) for value in values]
    parts = (index,) if torch.is_tensor(index) else tuple(index)
    return sorted(zip(zip(*(part.tolist() for part in parts), strict=True), values, strict=True))


# ---- one case in both --------------------------------------------------------------------------------------------------------


def agree(case: Case) -> bool:
    """Whether both libraries take a case, in which they must agree; AssertionError where they do not, or only one refuses."""
    try:
        want = Run(PEER, case)
    except REFUSALS as refusal:
        must_refuse(case, refusal)
        return False
    except (IndexError, RuntimeError) as error:
        if case.loss.startswith("soft_margin") and "out of bounds" in str(error):
            raise Skipped("a difference beyond the peer's histogram (test_dynamic_soft_margin.py)") from error
        raise
    got = Run(OURS, case)
    compare(got, want, case)
    return True


def must_refuse(case: Case, refusal: BaseException) -> None:
    """What the peer refuses is refused here, with an error of the documented kinds."""
    try:
        Run(OURS, case)
    except (ValueError, TypeError, NotImplementedError):
        return
    raise AssertionError(f"only the peer refuses: {type(refusal).__name__}: {refusal}") from refusal


def compare(got: Run, want: Run, case: Case) -> None:
    if (got.single or want.single) and "triplet" not in case.loss:
        raise Skipped("the peer's loss of at most one pair a side is zero (test_differences.py)")
    near = case.what.near
    for mine, theirs in zip(got.answers, want.answers, strict=True):
        if isinstance(theirs, dict):
            assert_same_losses(mine, theirs, near)
            continue
        theirs = torch.as_tensor(theirs, dtype=torch.float64)
        if theirs.isnan().any():
            raise Skipped("the peer's mean of no losses is NaN (test_differences.py)")
        close(mine.double(), theirs.reshape(mine.shape), near, 0.1 * near)
    for mine, theirs in zip(got.gradients, want.gradients, strict=True):
        close(mine, theirs, 10 * near, near * max(1.0, theirs.abs().max().item()))


def close(got: Tensor, want: Tensor, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def assert_same_losses(ours: dict[str, dict[str, Any]], peers: dict[str, dict[str, Any]], near: float) -> None:
    assert set(ours) == set(peers)
    for name, want in peers.items():
        got = ours[name]
        if not torch.is_tensor(want["losses"]):
            # A loss a row without a pair may also be written out, row by row.
            assert want["losses"] == 0 and not torch.as_tensor(got["losses"]).any()
            continue
        assert got["reduction_type"] == want["reduction_type"]
        got_list, want_list = listed(got), listed(want)
        assert [k for k, _ in got_list] == [k for k, _ in want_list]
        assert [v for _, v in got_list] == pytest.approx([v for _, v in want_list], rel=near, abs=0.1 * near)


# ---- a case that fails, made small -------------------------------------------------------------------------------------------


def failure(case: Case) -> str | None:
    """What differs in a case, or ``None``."""
    try:
        agree(case)
    except Skipped:
        return None
    except Exception as error:  # an error of either library is a failure to show
        return f"{type(error).__name__}: {error}"
    return None


def simpler(case: Case) -> Iterator[Case]:
    """Cases one step simpler, the largest steps first: options at their defaults, then fewer rows and features."""
    for field in dataclasses.fields(Case)[1:9]:
        if getattr(case, field.name) != field.default:
            yield dataclasses.replace(case, **{field.name: field.default})
    for name, least in (("rows", 2), ("ref_rows", 2), ("features", 2)):
        now = getattr(case, name)
        for smaller in dict.fromkeys((least, now // 2, now - 3, now - 1)):
            if least <= smaller < now:
                yield dataclasses.replace(case, **{name: smaller})
    if case.seed:
        yield dataclasses.replace(case, seed=0)


def shrink(case: Case, fails: Callable[[Case], str | None] = failure, most: int = 300) -> tuple[Case, str]:
    """The smallest case found that fails, by steps that fail as well, with what differs in it."""
    words = fails(case)
    assert words is not None, f"{case} does not fail"
    tried = {case}
    while len(tried) < most:
        for candidate in simpler(case):
            if candidate in tried or not allowed(candidate):
                continue
            tried.add(candidate)
            found = fails(candidate)
            if found is not None:
                case, words = candidate, found
                break
        else:
            break
    return case, words


@dataclass
class Tally:
    """How many cases were compared, refused by both, and left out for what the numbers show."""

    compared: int = 0
    refused: int = 0
    skipped: int = 0


def check(cases: list[Case], tally: Tally, shown: int = 3) -> None:
    """Run cases; AssertionError with the first that fail, made small, as calls to paste into a test."""
    failed = []
    for case in cases:
        try:
            if agree(case):
                tally.compared += 1
            else:
                tally.refused += 1
        except Skipped:
            tally.skipped += 1
        except Exception:
            failed.append(case)
    if not failed:
        return
    small = [shrink(case) for case in failed[:shown]]
    text = "\n\n".join(f"{case}\n{words}" for case, words in small)
    raise AssertionError(f"{len(failed)} of {len(cases)} cases differ; the first, made small:\n\n{text}")
