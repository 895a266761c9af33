"""A small convolutional network that turns an image into an embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pml_fast import testers

_FIRST_WIDTH = 32
_MAX_WIDTH = 64
_FINAL_GRID = 4
_LARGEST_POOLED = 8


class Embedder(nn.Module):
    """images [N, C, S, S] float32 in [0, 1] -> embeddings [N, embedding_dim] float32 of unit length.

    Convolution stages halve the image until it is about 4 x 4; one linear layer follows.
    mean and std, one a channel, standardise the input; take them from the training images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, mean: Tensor, std: Tensor, embedding_dim: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("std", std.reshape(1, -1, 1, 1))
        stages: list[nn.Module] = []
        channels, width, size = mean.numel(), _FIRST_WIDTH, image_size
        while not stages or size > _FINAL_GRID + 1:
            pooled = size <= _LARGEST_POOLED
            stages.append(_stage(channels, width, pooled))
            channels, width, size = width, min(2 * width, _MAX_WIDTH), size // 2 if pooled else (size + 1) // 2
        self.features = nn.Sequential(*stages)
        self.project = nn.Linear(channels * size * size, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        standardised = (images - self.mean) / self.std
        embeddings = self.project(self.features(standardised).flatten(1))
        return nn.functional.normalize(embeddings, dim=1)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images [N, C, H, W]: two tensors [C]."""
    mean = images.mean(dim=(0, 2, 3))
    # Blank images have no spread: dividing by one then leaves them blank instead of NaN.
    std = images.std(dim=(0, 2, 3))
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def embed(model: nn.Module, images: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Embeddings [N, embedding_dim] of all images, on the CPU, in evaluation mode."""
    tester = testers.GlobalEmbeddingSpaceTester(batch_size=batch_size, dataloader_num_workers=0, data_device=device)
    # A tester measures data sets with labels; embeddings alone do not depend on them.
    embeddings, _ = tester.get_all_embeddings(TensorDataset(images, torch.zeros(len(images), dtype=torch.long)), model)
    return embeddings.cpu()


def _stage(channels: int, width: int, pooled: bool) -> nn.Sequential:
    """Two convolutions that halve the image: by a pool at the end, or, a quarter of the work, by a stride at once."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, stride=1 if pooled else 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2) if pooled else nn.Identity(),
    )
