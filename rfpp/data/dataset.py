"""Images in memory, kept as 8-bit pixels and served in [-1, 1], and datasets of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def to_float(pixels: Tensor) -> Tensor:
    """Convert 8-bit pixels 0..255 to floats in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [-1, 1] (clamped) to the nearest 8-bit pixels."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Images:
    """Images ``pixels`` ``(N, C, H, W)`` uint8 with class indices ``labels`` ``(N,)``."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def floats(self) -> Tensor:
        """All images as ``(N, C, H, W)`` in [-1, 1]."""
        return to_float(self.pixels)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``size`` images in [-1, 1] and their labels, drawn with replacement."""
        index = torch.randint(len(self), (size,), generator=generator)
        return to_float(self.pixels[index]), self.labels[index]


@dataclass(frozen=True)
class Dataset:
    """A training split, held-out images that are never trained on, and the number of classes."""

    name: str
    train: Images
    held_out: Images
    classes: int
    """0 for images without classes, whose labels are then all 0."""
