"""Large batches through the encoder: GradCache embeds in chunks, and the loss compares all rows of the batch at once.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import losses
from pml_fast.utils.accuracy_calculator import AccuracyCalculator
from pml_fast.utils.grad_cache import GradCache


@torch.no_grad()
def map_at_r(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    embeddings = nn.functional.normalize(model(images))
    return calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=600)
    parser.add_argument("--chunk-size", type=int, default=50)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, device=device)
    train, test = TensorDataset(images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    loader = DataLoader(train, batch_size=args.batch_size, shuffle=True)
    # Dropout draws the same numbers in both passes; prefer group to batch normalization, whose statistics are a chunk's.
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(32 * 4 * 4, 64),
    ).to(device)  # fmt: skip
    loss_func = losses.SupConLoss(temperature=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    print(f"MAP@R before: {map_at_r(model, *test):.4f}")
    for epoch in range(args.epochs):
        model.train()
        for batch_images, batch_labels in loader:
            optimizer.zero_grad()
            with GradCache(model, chunk_size=args.chunk_size) as encode:
                loss = loss_func(encode(batch_images), batch_labels)
                loss.backward()  # to the embeddings; leaving the block goes on, chunk by chunk, to the model
            optimizer.step()
        if epoch % 5 == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}")
    print(f"MAP@R after: {map_at_r(model, *test):.4f}")


if __name__ == "__main__":
    main()
