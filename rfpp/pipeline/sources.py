"""The images of a run: a dataset by name, by import path, or a reader's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from rfpp import data
from rfpp.base import paths
from rfpp.base.files import digest
from rfpp.configurations import imported

WHOLE = 1 << 30
"""The largest set of images, in bytes, that is identified by all of them: AFHQ and FFHQ at 64x64 are smaller."""
_SOME = 1000


def fingerprint(images: data.Images, whole: bool = True) -> str:
    """Return a hash that represents a set of images: its size, its labels, and its pixels.

    Of a set above :data:`WHOLE`, or unless ``whole``, a thousand images stand for all, spread over the set.
    """
    content = hashlib.sha256(images.labels.numpy().tobytes())
    if whole and images.pixels.nbytes <= WHOLE:
        rows = torch.arange(len(images))
    else:
        rows = torch.linspace(0, len(images) - 1, min(len(images), _SOME)).long()
    for some in rows.split(_SOME):
        content.update(images.pixels[some].numpy().tobytes())
    return digest([len(images), list(images.shape), content.hexdigest()])


def _content(dataset: data.Dataset, whole: bool = True) -> Any:
    """Identify a dataset by its images and classes, whatever code decoded them."""
    return [fingerprint(dataset.train, whole), fingerprint(dataset.held_out, whole), dataset.classes]


@dataclass(frozen=True)
class Source:
    """A dataset by its name and settings, as in :func:`rfpp.data.load`; for ``name="custom"``, ``function`` is the
    import path of a function that returns the dataset."""

    name: str
    path: str | None = None
    resolution: int | None = None
    crop: str | None = "center"
    held_out: float = data.HELD_OUT
    function: str | None = None

    def load(self) -> data.Dataset:
        """Load the dataset; raises as :func:`rfpp.data.load` does, and ``ValueError`` if ``function`` makes none."""
        return _load(self)

    def identity(self) -> Any:
        """Identify the images in keys by their content, wherever they are stored."""
        return _identified(self)


@lru_cache(maxsize=4)
def _identified(source: Source) -> Any:
    """Identify a source's images; some of the digits are enough, which come with scikit-learn."""
    return _content(source.load(), whole=source.name != "digits")


@lru_cache(maxsize=4)
def _load(source: Source) -> data.Dataset:
    if source.function is not None:
        name, function = f"data.function={source.function!r}", imported(source.function, "data.function")
        if not callable(function):
            raise ValueError(f"{name} is a {type(function).__name__}; a function is needed")
        made = function()
        try:
            return checked(made)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} returned what does not fit: {error}") from error
    path = None if source.path is None else paths.datasets(source.path)
    return data.load(source.name, path, resolution=source.resolution, crop=source.crop, held_out=source.held_out)


@dataclass(frozen=True, eq=False)
class Given:
    """A reader's dataset, identified by its content."""

    dataset: data.Dataset

    def load(self) -> data.Dataset:
        """Return the dataset."""
        return self.dataset

    def identity(self) -> Any:
        """Identify the images in keys by their content, which must not change."""
        return self._identity

    @cached_property
    def _identity(self) -> Any:
        return _content(self.dataset)


def checked(dataset: Any) -> data.Dataset:
    """Return a reader's dataset; raises ``TypeError`` or ``ValueError`` if its images or labels do not fit."""
    if not isinstance(dataset, data.Dataset):
        raise TypeError(f"data is a {type(dataset).__name__}; a rfpp.data.Dataset is needed")
    for name, part in (("train", dataset.train), ("held_out", dataset.held_out)):
        pixels, labels = part.pixels, part.labels
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[2] != pixels.shape[3] or not len(pixels):
            raise ValueError(
                f"data.{name}.pixels are {pixels.dtype} of shape {tuple(pixels.shape)}; 8-bit square images "
                "(N, C, H, H) are needed"
            )
        if labels.shape != (len(pixels),) or labels.dtype != torch.int64:
            raise ValueError(
                f"data.{name}.labels are {labels.dtype} of shape {tuple(labels.shape)}; int64 of shape "
                f"({len(pixels)},) is needed"
            )
        if not 0 <= int(labels.min()) <= int(labels.max()) <= max(dataset.classes - 1, 0):
            raise ValueError(
                f"data.{name}.labels lie between {int(labels.min())} and {int(labels.max())}; data.classes="
                f"{dataset.classes} allows 0 to {max(dataset.classes - 1, 0)}"
            )
    if dataset.train.shape != dataset.held_out.shape:
        raise ValueError(
            f"data.train has images of shape {dataset.train.shape}, but data.held_out has {dataset.held_out.shape}"
        )
    return dataset
