"""DistributedDataParallel: every rank embeds its part of a batch, and the loss compares the parts of all.

torchrun --standalone --nproc-per-node 2 examples/ddp_torchrun.py
"""

import argparse

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import losses, miners, samplers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator
from pml_fast.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper


@torch.no_grad()
def map_at_r(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    embeddings = nn.functional.normalize(model(images))
    return calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    test = images[1200:].to(device), labels[1200:].to(device)
    # The batch of 120 that one process would have: each rank gets its part of it.
    batches = samplers.MPerClassSampler(labels[:1200], m=12, batch_size=120, length_before_new_iter=1200).batched()
    sampler = samplers.DistributedBatchSampler(batches)
    loader = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_sampler=sampler)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(device)
    model = DistributedDataParallel(model)
    miner = DistributedMinerWrapper(miners.MultiSimilarityMiner())
    loss_func = DistributedLossWrapper(losses.MultiSimilarityLoss())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    before = map_at_r(model, *test)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for batch_images, batch_labels in loader:
            batch_images, batch_labels = batch_images.to(device), batch_labels.to(device)
            embeddings = model(batch_images)
            loss = loss_func(embeddings, batch_labels, miner(embeddings, batch_labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    after = map_at_r(model, *test)
    if rank == 0:
        print(f"{dist.get_world_size()} processes\nMAP@R before: {before:.4f}\nMAP@R after: {after:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
