"""A classifier's softmax over a million classes: the loss streams them, and no [batch, classes] matrix of logits is made.

The classes are the numbers 000000 to 999999, each written as six of scikit-learn's handwritten digits. Training sees some of
them; the test asks which of the million a number is that is written with digits never seen.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from pml_fast import functional, losses

PLACES = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, default=32, help="how many of the million are trained on")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
    written = torch.tensor(digits.target, device=device)
    numbers = torch.randperm(10**PLACES, device=device)[: args.numbers]
    powers = 10 ** torch.arange(PLACES - 1, -1, -1, device=device)

    def write(labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Each number as images [N, PLACES * 64] of its digits, drawn from these rows."""
        wanted = labels[:, None] // powers % 10
        by_digit = [rows[written[rows] == digit] for digit in range(10)]
        drawn = [[by_digit[d][torch.randint(len(by_digit[d]), ())] for d in number] for number in wanted.tolist()]
        return images[torch.tensor(drawn, device=device)].flatten(1)

    logits = args.batch_size * 10**PLACES * 4 / 2**20
    print(f"{10**PLACES:,} classes; the logits of a batch, which are never made, would take {logits:,.0f} MiB")
    train_rows, test_rows = torch.arange(1200, device=device), torch.arange(1200, len(images), device=device)
    model = nn.Sequential(nn.Linear(PLACES * 64, 256), nn.ReLU(), nn.Linear(256, 32)).to(device)
    loss_func = losses.NormalizedSoftmaxLoss(10**PLACES, embedding_size=32, temperature=0.05).to(device)
    # The class weights are parameters of the loss; their gradient is the largest tensor of a step.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    class_optimizer = torch.optim.SGD(loss_func.parameters(), lr=20.0)

    @torch.no_grad()
    def accuracy() -> float:
        """How often the nearest of the million class weights is the number's own."""
        found = functional.nearest_neighbors(
            model(write(numbers, test_rows)), 1, ref_embeddings=loss_func.W.t(), distance="cosine"
        )
        return (found.indices[:, 0] == numbers).float().mean().item()

    print(f"accuracy before: {accuracy():.4f}")
    start = time.perf_counter()
    for step in range(args.steps):
        labels = numbers[torch.randint(len(numbers), (args.batch_size,), device=device)]
        loss = loss_func(model(write(labels, train_rows)), labels)
        optimizer.zero_grad()
        class_optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        class_optimizer.step()
        if step % 5 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    print(f"{(time.perf_counter() - start) / args.steps:.3f} s a step")
    print(f"accuracy after: {accuracy():.4f}")


if __name__ == "__main__":
    main()
