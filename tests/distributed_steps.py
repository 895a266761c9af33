"""What runs on each rank in the tests of utils.distributed."""

from __future__ import annotations

from typing import Any

import torch
from loss_table import CLASSES, DIMENSION, loss_inputs, make_loss
from torch import Tensor

from pml_fast import losses, miners
from pml_fast.utils import distributed as d


def batch(n: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DIMENSION, generator=generator, dtype=torch.float64), torch.arange(n) % CLASSES


def mine(x: Tensor, sizes: list[int]) -> Tensor:
    """This rank's rows of the whole batch, as a tensor of its own."""
    return x.split(sizes)[torch.distributed.get_rank()].clone()


def numpy(value: Any) -> Any:
    return value.detach().numpy() if torch.is_tensor(value) else value


def parameter_grads(loss: torch.nn.Module) -> list[Any]:
    return [numpy(torch.zeros_like(p) if p.grad is None else p.grad) for p in loss.parameters()]


def made(name: str, options: dict[str, Any] | None) -> Any:
    loss = make_loss(losses, name, **(options or {})) if options else make_loss(losses, name)
    return loss.double()


def loss_step(
    name: str, objective: str, sizes: list[int], options: dict[str, Any] | None = None, mined: str | None = None,
    references: list[int] | None = None, calls: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    """Value, gradient by this rank's embeddings (and references), gradients by parameters, and the buffers afterwards."""
    wrapped = d.DistributedLossWrapper(made(name, options), objective=objective)
    local = objective == "local_anchor"
    for call in range(calls):
        whole, labels = batch(sum(sizes), seed=5 + call)
        given = {key: mine(value, sizes) for key, value in loss_inputs(name, whole, labels).items()}
        x = mine(whole, sizes).requires_grad_()
        if references is not None:
            ref, ref_labels = batch(sum(references), seed=77)
            given["ref_emb"], given["ref_labels"] = mine(ref, references).requires_grad_(), mine(ref_labels, references)
        indices = None
        if mined is not None:
            miner = d.DistributedMinerWrapper(getattr(miners, mined)(), efficient=local)
            indices = miner(x, given["labels"], given.get("ref_emb"), given.get("ref_labels"))
        torch.manual_seed(torch.distributed.get_rank())  # ranks that would draw differently
        value = wrapped(x, indices_tuple=indices, **given)
        value.backward()
    grad_ref = given["ref_emb"].grad if references is not None else None
    state = {key: numpy(value) for key, value in wrapped.loss.state_dict().items()}
    return numpy(value), numpy(x.grad), numpy(grad_ref), parameter_grads(wrapped.loss), state


def mined_tuple(name: str, efficient: bool, sizes: list[int]) -> tuple[Any, ...]:
    whole, labels = batch(sum(sizes))
    miner = d.DistributedMinerWrapper(getattr(miners, name)(), efficient=efficient)
    torch.manual_seed(torch.distributed.get_rank())
    return tuple(numpy(part) for part in miner(mine(whole, sizes), mine(labels, sizes)))


def refused(name: str) -> str:
    try:
        d.DistributedLossWrapper(made(name, None), efficient=True)
    except ValueError as error:
        return str(error)
    return ""


def plan_after_mining(sizes: list[int], loss_name: str, miner_name: str) -> str:
    """How a local-anchor loss reads what the local miner found."""
    whole, labels = batch(sum(sizes))
    x, own = mine(whole, sizes).requires_grad_(), mine(labels, sizes)
    indices = d.DistributedMinerWrapper(getattr(miners, miner_name)(), efficient=True)(x, own)
    loss = made(loss_name, None)
    seen: list[str] = []
    plan = loss.plan

    def watched(call: Any) -> Any:
        found = plan(call)
        seen.append(f"{found.mode}: {found.engine}")
        return found

    loss.plan = watched
    d.DistributedLossWrapper(loss, efficient=True)(x, own, indices).backward()
    return seen[0]


def ddp_step(name: str, objective: str, sizes: list[int]) -> tuple[list[Any], list[Any]]:
    """Gradients of a model and of a loss's parameters, both wrapped for the group."""
    torch.manual_seed(3)
    model = torch.nn.Linear(DIMENSION, DIMENSION).double()
    whole, labels = batch(sum(sizes))
    wrapped: Any = d.DistributedLossWrapper(made(name, None), objective=objective)
    data_parallel = torch.nn.parallel.DistributedDataParallel
    trained = any(p.requires_grad for p in wrapped.parameters())
    loss, shared_model = (data_parallel(wrapped) if trained else wrapped), data_parallel(model)
    loss(shared_model(mine(whole, sizes)), mine(labels, sizes)).backward()
    return parameter_grads(model), parameter_grads(wrapped.loss)


def helpers(sizes: list[int]) -> dict[str, Any]:
    """What the functions of the module give."""
    whole, labels = batch(sum(sizes))
    x, own = mine(whole, sizes).requires_grad_(), mine(labels, sizes)
    others = d.all_gather(x)
    all_emb, all_labels, same = d.gather(x, own)
    all_emb.pow(2).sum().backward()
    mask = d.gather_enqueue_mask(own == 0, "cpu")
    pairs = d.get_indices_tuple(own, all_labels)
    assert same is own
    return {
        "others": numpy(others),
        "none": d.all_gather_embeddings_and_labels(x, None)[1],
        "embeddings": numpy(all_emb),
        "labels": numpy(all_labels),
        "grad": numpy(x.grad),
        "mask": numpy(mask),
        "pairs": [numpy(part) for part in pairs],
    }


def sampled(seed: int) -> list[list[int]]:
    """This rank's shares of a sampler's batches, seeded differently on each rank."""
    from pml_fast.samplers import DistributedBatchSampler, MPerClassSampler

    labels = torch.arange(60) % 12
    return list(DistributedBatchSampler(MPerClassSampler(labels, 2, 8, 80, seed=seed + torch.distributed.get_rank())))
