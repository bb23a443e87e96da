"""Folders and archives of images, decoded once into arrays that are mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from rfpp.base import files, paths
from rfpp.base.checks import at_least, one_of
from rfpp.data.archives import existing, members
from rfpp.data.dataset import Dataset, Images
from rfpp.data.decoding import CROPS, LARGEST_SIDE, write_pixels
from rfpp.data.layout import LABELS, arrange, is_image

HELD_OUT = 0.1
_DECODING = 2
"""A version number, to be increased when the same images would be decoded or ordered differently."""


def images(
    path: str | Path,
    *,
    resolution: int | None = None,
    crop: str | None = "center",
    held_out: float = HELD_OUT,
    folder: str | Path | None = None,
) -> Dataset:
    """Load the PNG, JPEG, WebP and BMP images of a folder, a ``.zip`` or a ``.tar`` (``.gz``, ``.xz``), however nested.

    Hidden files are skipped, alpha and EXIF are ignored, and the images are RGB unless all are grey.

    ``resolution``: the side of the square images returned; ``None`` requires square images of one size.
    ``crop``: ``"center"`` resizes the largest centred square with Lanczos, and ``None`` resizes the whole image;
    ``"dhariwal"`` (ADM, ImageNet 64x64) halves by averaging as often as possible, continues with bicubic until the
    shorter side fits, and crops the centre.
    ``held_out``: the share of images that is held out, chosen by a fixed shuffle. If there are folders ``train`` and
    ``test`` (or ``val``) at the top, they are the split instead, and files outside them are skipped. The images of a
    split are shuffled, in the same order each time.

    The classes are those of ``dataset.json`` at the root (``{"labels": [["00000/img00000000.png", 6], ...]}``, or
    ``null`` for none). Without this file, if every image lies in one of several folders at the top, or below ``train``
    and ``test``, these folders are the classes, in alphabetical order, unless all have names like ``00012``. A single
    folder around everything does not count.

    All images are decoded once into ``folder`` and mapped into memory from there. They are decoded again when a file
    of the folder, or the archive, has another name, size or modification time.

    Raises ``FileNotFoundError`` for a path that does not exist, and ``ValueError`` for a damaged archive, for an
    archive or folder without images or with too few to split, and for labels that do not fit. One ``ValueError`` also
    lists all images that cannot be read, that are wider or higher than 16,384 pixels, or that differ in size without a
    ``resolution``.
    """
    _check(resolution, crop, held_out)
    source = existing(path)
    settings = [_DECODING, resolution, crop if resolution else None, held_out]
    where = Path(folder or paths.downloads() / "images") / _fingerprint(source, settings)
    # First without the lock: another user may own the folder and have decoded into it already.
    found = _stored(where)
    if found is None:
        where.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{where}.lock"):
            found = _stored(where)
            if found is None:
                _fill(source, where, resolution, crop, held_out)
                found = _stored(where)
    assert found is not None
    return found


def _check(resolution: int | None, crop: str | None, held_out: float) -> None:
    if resolution is not None:
        at_least("data.resolution", resolution, 1)
        if resolution > LARGEST_SIDE:
            raise ValueError(f"data.resolution={resolution} is too large; at most {LARGEST_SIDE} is allowed")
    if crop is not None:
        one_of("data.crop", crop, CROPS)
    if not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out} is not a share; a number between 0 and 1 is needed")


def _fingerprint(source: Path, settings: Sequence[object]) -> str:
    """Name the result of a source and its settings. Archives are not opened: their lists are long, or compressed."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    if source.is_dir():
        relevant = members(source, lambda name: is_image(name) or name == LABELS)
        listed = [(member.name, member.size, member.modified) for member in relevant]
    else:
        status = source.stat()
        listed = [(str(source.resolve()), status.st_size, status.st_mtime_ns)]
    for entry in sorted(listed):
        digest.update(os.fsencode("{}\0{}\0{}\n".format(*entry)))
    return digest.hexdigest()[:32]


def _stored(where: Path) -> Dataset | None:
    """Return the dataset that was decoded into a folder; ``None`` if there is none or it is incomplete."""
    try:
        index = json.loads((where / "index.json").read_text())
        train, classes, shape = index["train"], index["classes"], tuple(index["shape"])
        pixels = np.lib.format.open_memmap(where / "pixels.npy", mode="c")
        labels = np.lib.format.open_memmap(where / "labels.npy", mode="c")
        # Mapping fails for a file that is too short, but not for one that is too long.
        whole = (where / "pixels.npy").stat().st_size == pixels.offset + pixels.nbytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole or pixels.shape != shape or labels.shape != shape[:1]:
        return None
    stored = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    first, rest = (Images(stored.pixels[part], stored.labels[part]) for part in (slice(train), slice(train, None)))
    return Dataset("images", first, rest, classes)


def _fill(source: Path, where: Path, resolution: int | None, crop: str | None, held_out: float) -> None:
    """Fill the folder ``where`` with pixels and labels as arrays, and the number of training images."""
    layout = arrange(source, held_out)
    beside = where.with_name(f".{where.name}.partial")
    for left_over in (beside, where):
        shutil.rmtree(left_over, ignore_errors=True)
    beside.mkdir()
    try:
        shape = write_pixels(source, beside, layout.names, resolution, crop)
        np.save(beside / "labels.npy", layout.labels, allow_pickle=False)
        index = {"shape": shape, "train": layout.train, "classes": layout.classes}
        files.write_text(beside / "index.json", json.dumps(index))
        os.replace(beside, where)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
