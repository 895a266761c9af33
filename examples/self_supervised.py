"""Self-supervised learning: two augmented views of each image are a pair, every other image of the batch a negative.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (SimCLR).
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, device=device)  # used to judge, never to train
    loader = DataLoader(images[:1200], batch_size=240, shuffle=True, drop_last=True)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 32),
    ).to(device)  # fmt: skip
    loss_func = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    print(f"MAP@R before: {map_at_r(model, images[1200:], labels[1200:]):.4f}")
    for epoch in range(args.epochs):
        for batch in loader:
            loss = loss_func(model(augment(batch)), model(augment(batch)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    print(f"MAP@R after: {map_at_r(model, images[1200:], labels[1200:]):.4f}")


if __name__ == "__main__":
    main()
