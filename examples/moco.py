"""Cross-batch memory, MoCo style: queries against a queue of keys from a momentum encoder, without labels.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020.
"""

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from pml_fast import losses
from pml_fast.utils.accuracy_calculator import AccuracyCalculator


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each image of [N, 1, H, W] turned, stretched and shifted a little, with noise."""
    maps = torch.eye(2, 3).repeat(len(images), 1, 1) + 0.15 * torch.randn(len(images), 2, 3)
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.05 * torch.randn_like(images)


@torch.no_grad()
def map_at_r(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    return calculator.get_accuracy(F.normalize(model(images)), labels)["mean_average_precision_at_r"]


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float = 0.99) -> None:
    for old, new in zip(slow.parameters(), fast.parameters()):
        old.lerp_(new, 1 - momentum)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--memory-size", type=int, default=1024)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, device=device)
    encoder = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 32),
    ).to(device)  # fmt: skip
    momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
    loss_func = losses.CrossBatchMemory(losses.NTXentLoss(temperature=0.1), embedding_size=32, memory_size=args.memory_size)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)

    print(f"MAP@R before: {map_at_r(encoder, images[1200:], labels[1200:]):.4f}")
    for step in range(args.steps):
        rows = torch.randperm(1200, device=device)[: args.batch_size]
        queries = encoder(augment(images[rows]))
        with torch.no_grad():
            follow(momentum_encoder, encoder)
            keys = momentum_encoder(augment(images[rows]))
        # A row's number in the data set is its class: two views of it are a pair, in the queue, too.
        is_key = torch.arange(2 * len(rows), device=device) >= len(rows)
        loss = loss_func(torch.cat([queries, keys]), rows.repeat(2), enqueue_mask=is_key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}, {loss_func.queue_idx} is the next row of the queue")
    print(f"MAP@R after: {map_at_r(encoder, images[1200:], labels[1200:]):.4f}")


if __name__ == "__main__":
    main()
