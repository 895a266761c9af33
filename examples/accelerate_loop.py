"""A Hugging Face Accelerate loop, in one process or, by `accelerate launch`, over the batches of several."""

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import losses, samplers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator
from pml_fast.utils.distributed import DistributedLossWrapper


@torch.no_grad()
def map_at_r(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    embeddings = nn.functional.normalize(model(images))
    return calculator.get_accuracy(embeddings, labels)["mean_average_precision_at_r"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    accelerator = Accelerator()

    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
    test = images[1200:].to(accelerator.device), labels[1200:].to(accelerator.device)
    # Equal seeds on all processes: Accelerate deals the batches of one order out to them.
    sampler = samplers.MPerClassSampler(labels[:1200], m=12, batch_size=120, length_before_new_iter=1200, seed=0)
    loader = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=120, sampler=sampler)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loss_func = losses.SupConLoss(temperature=0.1)
    if accelerator.num_processes > 1:
        loss_func = DistributedLossWrapper(loss_func, efficient=True)

    accelerator.print(f"MAP@R before: {map_at_r(model, *test):.4f}")
    for epoch in range(args.epochs):
        for batch_images, batch_labels in loader:
            loss = loss_func(model(batch_images), batch_labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")
    accelerator.print(f"MAP@R after: {map_at_r(model, *test):.4f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
