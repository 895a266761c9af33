"""A plain PyTorch loop: class-balanced batches, a miner, a loss, and MAP@R on images that training never saw."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import losses, miners, samplers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
    )  # fmt: skip


@torch.no_grad()
def map_at_r(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    embeddings = nn.functional.normalize(model(images))
    return calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, device=device)
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])

    sampler = samplers.MPerClassSampler(train[1].cpu(), m=12, batch_size=120, length_before_new_iter=1200)
    loader = DataLoader(TensorDataset(*train), batch_sampler=sampler.batched())
    model = make_model().to(device)
    miner = miners.MultiSimilarityMiner()
    loss_func = losses.MultiSimilarityLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    print(f"MAP@R before: {map_at_r(model, *test):.4f}")
    for epoch in range(args.epochs):
        model.train()
        for batch_images, batch_labels in loader:
            embeddings = model(batch_images)
            loss = loss_func(embeddings, batch_labels, miner(embeddings, batch_labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    print(f"MAP@R after: {map_at_r(model, *test):.4f}")


if __name__ == "__main__":
    main()
