"""A classifier's softmax over a million classes: the loss streams them, and no [batch, classes] matrix of logits is made.

Generated data: each class is a random point, a sample its point with noise. Use --classes for fewer.
"""

import argparse
import time

import torch
from torch import nn

from pml_fast import losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--features", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    points = torch.randn(args.classes, args.features, device=device)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(args.classes, (args.batch_size,), device=device)
        return points[labels] + 0.1 * torch.randn(args.batch_size, args.features, device=device), labels

    model = nn.Linear(args.features, 64).to(device)
    loss_func = losses.NormalizedSoftmaxLoss(args.classes, embedding_size=64, temperature=0.1).to(device)
    # The class weights are parameters of the loss; their gradient is the largest tensor of a step.
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": 0.1}, {"params": loss_func.parameters(), "lr": 20.0}])

    logits = args.batch_size * args.classes * 4 / 2**20
    print(f"{args.classes:,} classes; the logits of a batch, which are never made, would take {logits:,.0f} MiB")
    history = []
    start = time.perf_counter()
    for _ in range(args.steps):
        samples, labels = batch()
        loss = loss_func(model(samples), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    print(f"{(time.perf_counter() - start) / args.steps:.3f} s a step")
    print(f"loss before: {history[0]:.4f}")
    print(f"loss after: {history[-1]:.4f}")


if __name__ == "__main__":
    main()
