"""Datasets behind one call: ``load("digits").train`` and ``.held_out``, images kept as 8-bit and served in [-1, 1].

``digits`` and ``photos``, patches of two photographs, come with scikit-learn. ``cifar10`` is downloaded once.
``images`` is any folder, zip or tar of images, decoded once into arrays that are mapped into memory. Nothing is
unpickled, and no archive is extracted.
"""

from __future__ import annotations

from pathlib import Path

from rfpp.base.checks import one_of
from rfpp.data.cifar import CIFAR10_SHA256, CIFAR10_URL, cifar10
from rfpp.data.dataset import Dataset, Images, to_float, to_uint8
from rfpp.data.decoding import CROPS
from rfpp.data.folders import HELD_OUT, images
from rfpp.data.photographs import photos
from rfpp.data.sklearn_digits import digits

__all__ = [
    "CIFAR10_SHA256", "CIFAR10_URL", "CROPS", "HELD_OUT", "NAMES", "Dataset", "Images", "cifar10", "digits", "images",
    "load", "photos", "to_float", "to_uint8",
]  # fmt: skip

NAMES = ("digits", "photos", "cifar10", "images")
"""The names that :func:`load` accepts."""


def load(
    name: str,
    path: str | Path | None = None,
    *,
    resolution: int | None = None,
    crop: str | None = "center",
    held_out: float = HELD_OUT,
    folder: str | Path | None = None,
) -> Dataset:
    """Load the dataset called ``name``, one of :data:`NAMES`: see :func:`digits`, :func:`photos`, :func:`cifar10`,
    :func:`images`.

    ``path``: the location of the data; none for ``digits`` and ``photos``, optional for ``cifar10``. ``folder``: where
    downloaded or decoded files are kept, by default in :func:`rfpp.base.paths.downloads`. ``resolution`` and
    ``held_out`` apply to ``images`` and to ``photos``, whose patches are 32 pixels wide by default. ``crop`` applies to
    ``images`` alone: ``digits`` and ``cifar10`` have a size and a split of their own.

    Raises ``ValueError`` for an unknown name, or for a path or a resolution that the dataset does not take.
    """
    one_of("data.name", name, NAMES)
    if name == "images":
        if path is None:
            raise ValueError("data.path=None, but data.name='images' needs the folder, zip or tar of the images")
        return images(path, resolution=resolution, crop=crop, held_out=held_out, folder=folder)
    if path is not None and name in ("digits", "photos"):
        raise ValueError(f"data.path={str(path)!r}, but data.name={name!r} comes with scikit-learn; leave it out")
    if name == "photos":
        return photos(32 if resolution is None else resolution, held_out=held_out)
    if resolution is not None:
        raise ValueError(f"data.resolution={resolution}, but data.name={name!r} comes in one size; leave it out")
    return digits() if name == "digits" else cifar10(path, folder)
