"""Two towers, CLIP style: images and another description of them in one space, with a learned temperature.

The other description of a digit is here its row and column sums; a caption's encoder takes its place.
Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import functional, losses


@torch.no_grad()
def recall_at_1(image_tower: nn.Module, sum_tower: nn.Module, images: torch.Tensor, sums: torch.Tensor) -> float:
    """How often the nearest description of an image is its own."""
    found = functional.nearest_neighbors(image_tower(images), 1, ref_embeddings=sum_tower(sums), distance="cosine")
    own = torch.arange(len(images), device=images.device)
    return (found.indices[:, 0] == own).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    images = torch.tensor(load_digits().images, dtype=torch.float32, device=device) / 16
    sums = torch.cat([images.sum(1), images.sum(2)], dim=1)
    loader = DataLoader(TensorDataset(images[:1200], sums[:1200]), batch_size=240, shuffle=True, drop_last=True)
    image_tower = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).to(device)
    sum_tower = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 32)).to(device)
    loss_func = losses.CLIPLoss().to(device)
    parameters = [*image_tower.parameters(), *sum_tower.parameters(), *loss_func.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)

    test = images[1200:], sums[1200:]
    print(f"recall@1 before: {recall_at_1(image_tower, sum_tower, *test):.4f}")
    for epoch in range(args.epochs):
        for batch_images, batch_sums in loader:
            # Row i of one tower belongs to row i of the other.
            loss = loss_func(image_tower(batch_images), ref_emb=sum_tower(batch_sums))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}, temperature {loss_func.temperature:.4f}")
    print(f"recall@1 after: {recall_at_1(image_tower, sum_tower, *test):.4f}")


if __name__ == "__main__":
    main()
