"""Augmentation of training images: random distortions, and turned copies as classes of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_fast.demo.data import Split

ORIENTATIONS = 8
_MAX_ANGLE = math.radians(25)
_MAX_STRETCH = 0.25
_MAX_SHEAR = 0.25
_MAX_SHIFT = 0.2
_NOISE = 0.15


def with_orientations(split: Split) -> Split:
    """Eight times the classes: each class turned by quarters and mirrored counts as a class of its own.

    Few classes teach an embedder only to tell those few apart; more classes, even made ones, carry over better
    to classes it has never seen. Images must be square.
    """
    turned = [torch.rot90(split.images, quarter, (2, 3)) for quarter in range(4)]
    copies = turned + [images.flip(3) for images in turned]
    count = len(split.class_names)
    labels = [split.labels + index * count for index in range(ORIENTATIONS)]
    names = [f"{name}, orientation {index}" for index in range(ORIENTATIONS) for name in split.class_names]
    return Split(torch.cat(copies), torch.cat(labels), tuple(names))


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turns, stretches, shears and shifts each image of [N, C, H, W] a little at random, and adds noise."""
    grid = F.affine_grid(_affine(len(images), generator), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    return moved + _NOISE * torch.randn(images.shape, generator=generator)


def _affine(count: int, generator: torch.Generator) -> Tensor:
    """Random affine maps [count, 2, 3] in the unit coordinates of affine_grid."""

    def uniform(reach: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * reach

    angle, shear = uniform(_MAX_ANGLE), uniform(_MAX_SHEAR)
    cosine, sine = angle.cos(), angle.sin()
    width, height = 1 + uniform(_MAX_STRETCH), 1 + uniform(_MAX_STRETCH)
    top = torch.stack([cosine * width, cosine * shear - sine * height, uniform(_MAX_SHIFT)], dim=1)
    bottom = torch.stack([sine * width, sine * shear + cosine * height, uniform(_MAX_SHIFT)], dim=1)
    return torch.stack([top, bottom], dim=1)
