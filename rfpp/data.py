"""Datasets behind one call: ``load("digits").train`` and ``.held_out``, images kept as 8-bit and served in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rfpp.checks import one_of

NAMES = ("digits",)


def to_float(pixels: Tensor) -> Tensor:
    """8-bit pixels 0..255 to floats in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clamped) to the nearest 8-bit pixels."""
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
    """A training split, held-out images that nothing is trained on, and the number of classes."""

    name: str
    train: Images
    held_out: Images
    classes: int


def digits(held_out: float = 0.2) -> Dataset:
    """The 1,797 scans of handwritten digits that come with scikit-learn, 8x8 pixels in 17 grey levels, ten classes.

    The split is fixed: within each class, every image's place is decided by one seeded shuffle.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    pixels = torch.from_numpy(np.rint(source.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(source.target.astype(np.int64))
    train, rest = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=source.target, random_state=0)
    return Dataset("digits", Images(pixels[train], labels[train]), Images(pixels[rest], labels[rest]), classes=10)


def load(name: str) -> Dataset:
    """The dataset called ``name``; raises ``ValueError`` naming the allowed ones otherwise."""
    one_of("data.name", name, NAMES)
    return digits()
