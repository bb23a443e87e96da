"""The digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from rfpp.data.dataset import Dataset, Images


def digits(held_out: float = 0.2) -> Dataset:
    """The 1,797 scans of handwritten digits that come with scikit-learn, 8x8 pixels in 17 grey levels, ten classes.

    The split is fixed: one seeded shuffle decides the place of every image within its class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    pixels = torch.from_numpy(np.rint(source.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(source.target.astype(np.int64))
    train, rest = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=source.target, random_state=0)
    return Dataset("digits", Images(pixels[train], labels[train]), Images(pixels[rest], labels[rest]), classes=10)
