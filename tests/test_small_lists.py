"""Listed pairs of a small set, which take a compiled call each way: as the operator has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, losses, use
from pml_fast.engine.fold import Fold
from pml_fast.engine.listed import closest_scores, engine_scorer
from pml_fast.engine.score import NAMED_SCORES, Score

FIRST = torch.tensor([0, 1, 1, 5, 3, 3, 4])
SECOND = torch.tensor([1, 0, 2, 5, 6, 6, 3])

needs_extension = pytest.mark.skipif(_extension.load() is None, reason="the compiled extension is not there")


def rows() -> Tensor:
    """Seven rows, of which two are equal and one is zero."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[6], x[4] = x[3], 0.0
    return x


def value_and_gradient(what: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = what(x)
    factors = torch.arange(1.0, len(value) + 1, dtype=value.dtype)
    return [value.detach(), torch.autograd.grad((value * factors).sum(), x)[0]]


def listed(score: Score) -> Callable[[Tensor], Tensor]:
    return lambda x: engine_scorer(x, x, score)(FIRST, SECOND)


@pytest.mark.parametrize("name", NAMED_SCORES)
def test_scores_and_gradients_are_the_operators(name: str) -> None:
    score = NAMED_SCORES[name]
    for what in (listed(score), lambda x: closest_scores(x, score)):
        got = value_and_gradient(what, rows())
        with use(backend="chunked"):
            want = value_and_gradient(what, rows())
        for mine, expected in zip(got, want, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMED_SCORES)
def test_derivatives_are_numerical_ones(name: str) -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    apart = FIRST != SECOND
    assert torch.autograd.gradcheck(lambda a: engine_scorer(a, a, NAMED_SCORES[name])(FIRST[apart], SECOND[apart]), (x,))


def test_a_row_that_is_not_a_number_stays_visible() -> None:
    x = rows()
    x[2, 1] = float("nan")
    value, grad = value_and_gradient(lambda a: closest_scores(a, NAMED_SCORES["cosine"]), x)
    assert value[2].isnan() and grad[2].isnan().any()
    assert value[[0, 1, 3]].isfinite().all()


def test_half_precision_is_scored_in_float32() -> None:
    x = rows().to(torch.bfloat16)
    value, grad = value_and_gradient(listed(NAMED_SCORES["cosine"]), x)
    assert value.dtype == torch.float32 and grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, listed(NAMED_SCORES["cosine"])(x.double()).float())


@needs_extension
def test_an_index_that_names_no_row_is_refused() -> None:
    with pytest.raises(IndexError, match="from 0 to 6, got 1 to 7"):
        engine_scorer(rows(), rows(), NAMED_SCORES["dot"])(FIRST, SECOND + 1)
    x = rows()
    with pytest.raises(IndexError, match="from 0 to 6, got 0 to 7"):
        engine_scorer(x, x, NAMED_SCORES["dot"])(FIRST, SECOND.clamp(max=6) + (SECOND == 6))


@needs_extension
def test_second_derivatives_are_refused() -> None:
    x = rows().requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(engine_scorer(x, x, NAMED_SCORES["cosine"])(FIRST, SECOND).sum(), x, create_graph=True)


TRIPLETS = (torch.tensor([0, 0, 1, 3, 5, 2, 2]), torch.tensor([1, 2, 0, 6, 1, 2, 4]), torch.tensor([3, 4, 4, 0, 6, 5, 5]))
FOLDS = [Fold(), Fold("sum"), Fold("threshold", 0.0), Fold("threshold", 0.1, 1.5)]
KEEP = torch.tensor([True, True, False, True, True, True, True])


@pytest.mark.parametrize("name", NAMED_SCORES)
@pytest.mark.parametrize(
    "fold", [Fold(), Fold("sum"), Fold("threshold", 0.0), Fold("threshold", 0.1, 1.5)], ids=lambda f: f.encode()
)
def test_losses_of_listed_triplets_are_the_operators(name: str, fold: Fold) -> None:
    """With all and with some of the triplets, smooth and not, one of them with a row that is its own positive."""
    for keep in (None, KEEP):
        for smooth in (0.0, 1.0):
            found = []
            for backend in ("auto", "chunked"):
                x = rows().requires_grad_()
                with use(backend=backend):  # type: ignore[arg-type]
                    loss = torch.ops.pml_fast.listed_triplet_loss(
                        x, x, *TRIPLETS, keep, None, [0.3, smooth], NAMED_SCORES[name].encode(), True, fold.encode(), True, True
                    )[0]
                found.append((loss.detach(), torch.autograd.grad(3 * loss, x)[0]))
            for mine, expected in zip(*found, strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_no_triplet_and_triplets_that_are_not_a_number() -> None:
    for chosen, nothing in ((slice(0, 0), True), (slice(0, 3), False)):
        x = rows()
        x[0, 0] = float("nan")
        x.requires_grad_()
        index = [part[chosen] for part in TRIPLETS]
        loss = losses.TripletMarginLoss()(x, None, tuple(index))
        loss.backward()
        assert x.grad is not None
        if nothing:
            assert loss == 0 and (x.grad == 0).all()
        else:
            assert loss.isnan() and x.grad[0].isnan().any()


@needs_extension
def test_a_triplet_that_names_no_row_is_refused() -> None:
    x = rows()
    with pytest.raises(IndexError, match="from 0 to 6, got 0 to 9"):
        torch.ops.pml_fast.listed_triplet_loss(
            x, x, *TRIPLETS[:2], TRIPLETS[2] + 3, None, None, [0.3, 0.0], NAMED_SCORES["l2"].encode(), True, Fold().encode(),
            True, False,
        )  # fmt: skip
