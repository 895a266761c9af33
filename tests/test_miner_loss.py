"""Every miner with every loss that takes tuples: both lists are read from the package, so that new members are covered."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import pytorch_metric_learning.losses
import pytorch_metric_learning.miners
import torch
from torch import Tensor

from pml_fast import losses, miners
from pml_fast.engine.lazy import LazyIndices
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, prepare_call
from pml_fast.miners.drawn_miner import DrawnMiner

PEER = pytorch_metric_learning
D, CLASSES = 8, 6

# Classes of pml_fast.losses that are no loss of their own, and those with more labels than one a row, which no miner takes.
NO_LOSS = {"BaseMetricLossFunction", "BaseLossWrapper", "GenericPairLoss", "MultiSupConLoss"}
# Arguments without a default.
REQUIRED: dict[str, Any] = {
    "num_classes": CLASSES,
    "embedding_size": D,
    "descriptors_dim": D,
    "l": D,
    "margin": 0.4,
    "Tn": 3.0,
    "loss": lambda m: m.losses.ContrastiveLoss(),
    "losses": lambda m: [m.losses.ContrastiveLoss(), m.losses.TripletMarginLoss()],
}


def is_loss(name: str) -> bool:
    cls = getattr(losses, name)
    return inspect.isclass(cls) and issubclass(cls, torch.nn.Module) and name not in NO_LOSS and not name.endswith("Mixin")


LOSSES = [name for name in losses.__all__ if is_loss(name)]
MINERS = [name for name in miners.__all__ if name != "BaseMiner"]


def build_loss(name: str, module: Any) -> Any:
    cls = getattr(module.losses, name)
    options: dict[str, Any] = {}
    for argument in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        if argument.kind is argument.VAR_POSITIONAL:
            # What a softmax loss hands on to the one it extends.
            options |= {"num_classes": CLASSES, "embedding_size": D}
        elif argument.default is argument.empty and argument.kind is not argument.VAR_KEYWORD:
            assert argument.name in REQUIRED, f"say in REQUIRED what {argument.name} of {name} may be"
            value = REQUIRED[argument.name]
            options[argument.name] = value(module) if callable(value) else value
    return cls(**options).double()


def build_miner(name: str) -> Any:
    cls = getattr(miners, name)
    return cls(seed=7) if issubclass(cls, DrawnMiner) else cls()


class OURS:
    losses, miners = losses, miners


def batch(refs: bool) -> tuple[Tensor, ...]:
    gen = torch.Generator().manual_seed(11)
    rows = [torch.randn(size, D, generator=gen, dtype=torch.float64) for size in (36, 39)]
    # In the order of classes, as many as a class has rows: the only batch that the peer's SmoothAPLoss groups as it should.
    first = rows[0].requires_grad_(), torch.arange(36) // CLASSES
    return (*first, rows[1].requires_grad_(), torch.arange(39) % CLASSES) if refs else first


def outcome(loss: Any, data: tuple[Tensor, ...], indices: Any) -> list[Tensor]:
    """The value and the gradients by every set of embeddings and every parameter."""
    x, labels, *refs = data
    torch.manual_seed(0)
    value = loss(x, labels, indices, *refs)
    leaves = [x, *refs[:1], *loss.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(s) if g is None else g for s, g in zip(leaves, grads, strict=True))]


def refused(loss: Any, data: tuple[Tensor, ...]) -> bool:
    """Whether the loss takes no tuples, or no reference set: its signature or its error says so."""
    arguments = inspect.signature(loss.forward).parameters
    if "indices_tuple" not in arguments or (len(data) > 2 and "ref_emb" not in arguments):
        return True
    triplets = tuple(torch.tensor([k]) for k in (0, 1, 7))
    try:
        outcome(loss, data, triplets)
    except ValueError as error:
        if not any(words in str(error) for words in ("not supported", "indices_tuple", "ref_emb")):
            raise
        return True
    return False


@pytest.mark.parametrize("refs", [False, True], ids=["itself", "refs"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_what_every_miner_returns(name: str, refs: bool) -> None:
    """As it is (lazy, and folded where it can be), as the tuple it stands for, and as the peer's loss takes that tuple."""
    loss, data = build_loss(name, OURS), batch(refs)
    if refused(loss, data):
        with pytest.raises((ValueError, TypeError)):
            outcome(loss, data, build_miner("BatchHardMiner")(*data))
        return
    for miner_name in MINERS:
        # A loss may hold state (a memory): every call gets a fresh one with the same parameters.
        torch.manual_seed(1)
        fresh = [build_loss(name, OURS) for _ in range(2)]
        fresh[1].load_state_dict(fresh[0].state_dict())
        state = fresh[0].state_dict()
        lazy = build_miner(miner_name)(*data)
        got = outcome(fresh[0], data, lazy)
        assert all(torch.isfinite(part).all() for part in got), miner_name
        made = tuple(lazy)
        torch.testing.assert_close(got, outcome(fresh[1], data, made), msg=lambda m, k=miner_name: f"{k}: {m}")
        again = build_miner(miner_name)(*data)
        assert all(torch.equal(a, b) for a, b in zip(tuple(again), made, strict=True)), miner_name
        if not refs and hasattr(PEER.losses, name):
            peers = build_loss(name, PEER)
            if set(peers.state_dict()) != set(state):
                continue
            peers.load_state_dict(state)
            # Some of the peer's losses hold numbers of their own in float32.
            want = [part.double() for part in outcome(peers, data, made)[:2]]
            torch.testing.assert_close(got[:2], want, rtol=1e-4, atol=1e-6, msg=lambda m, k=miner_name: f"{k}, peer: {m}")


@pytest.mark.parametrize("name", LOSSES)
def test_a_folded_share_compiles_into_one_graph(name: str) -> None:
    """The hardest share with each loss that folds it."""
    loss, (x, labels) = build_loss(name, OURS), batch(False)
    miner = miners.HDCMiner()
    if not isinstance(loss, BaseMetricLossFunction) or refused(loss, (x, labels)):
        return
    call = prepare_call(x, labels, miner(x, labels), None, None)
    assert isinstance(call.indices, LazyIndices)
    if loss.plan(call).rule is None:
        return
    torch._dynamo.reset()
    step = torch.compile(lambda x, labels: loss(x, labels, miner(x, labels)), fullgraph=True, backend="aot_eager")
    want = outcome(loss, (x, labels), miner(x, labels))
    value = step(x, labels)
    torch.testing.assert_close([value.detach(), torch.autograd.grad(value, x)[0]], want[:2])
