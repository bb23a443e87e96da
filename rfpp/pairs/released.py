"""Pairs as the paper's released code writes them: archives of images and of generator states."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rfpp.base.checks import at_least
from rfpp.data.archives import BROKEN, first_few
from rfpp.pairs.generators import STATE_BYTES
from rfpp.pairs.store import SHARD_SIZE, fill

_LARGEST_FILE, _LARGEST_SIDE = 1 << 24, 4096


def _entries(archive: zipfile.ZipFile, source: Path, ending: str) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's files with this ending, by their names without it.

    A run of the released code that was interrupted and repeated stores files twice, which is fine if they are equal.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        if info.is_dir() or path.suffix != ending:
            continue
        if info.file_size > _LARGEST_FILE:
            raise ValueError(
                f"{source}: {info.filename} would unfold to {info.file_size} bytes; is this the right file?"
            )
        stem = str(path.with_suffix(""))
        if stem in found and (found[stem].CRC, found[stem].file_size) != (info.CRC, info.file_size):
            raise ValueError(f"{source} has two different files called {info.filename}")
        found[stem] = info
    if not found:
        raise ValueError(f"{source} has no {ending} files")
    return found


def _open(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"no archive at {path}")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a complete zip archive ({error})") from error


def _read_labels(path: Path, names: Sequence[str], classes: int | None) -> tuple[Tensor, int]:
    """Read the labels of the images called ``names``, and the number of classes."""
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}")
    found: dict[str, int] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a list of names and classes ({error})") from error
    for number, row in enumerate(rows, start=1):
        if row:
            if len(row) != 2 or not PurePosixPath(row[0]).name or not re.fullmatch(r"\d{1,9}", row[1].strip()):
                raise ValueError(f"{path}, line {number}: {','.join(row)[:100]!r} is not a name and a class")
            name, label = str(PurePosixPath(row[0]).with_suffix("")), int(row[1])
            if found.setdefault(name, label) != label:
                raise ValueError(f"{path}, line {number}: {row[0]} has class {label}, but {found[name]} further up")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no class for {len(missing)} of {len(names)} images: {first_few(missing)}")
    labels = torch.tensor([found[name] for name in names])
    largest = int(labels.max())
    if classes is not None and largest >= classes:
        raise ValueError(f"{path} has class {largest}, but classes={classes}; allowed: 0..{classes - 1}")
    return labels, classes or largest + 1


def import_released(
    samples_zip: str | Path,
    z_zip: str | Path,
    out_dir: str | Path,
    labels_csv: str | Path | None = None,
    *,
    classes: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Import pairs that the paper's released code made, and return ``out_dir``.

    ``samples_zip``: images as PNG; ``z_zip``: for each image a ``.bin`` file with the state of the generator that its
    noise was drawn from; ``labels_csv``: a line ``name,class`` for each image. Pairs are ordered by the numbers in
    their names. ``classes``: the number of classes, by default one more than the largest. Existing shards are kept.

    Raises ``FileNotFoundError``; ``ValueError``, before anything is written, for archives that are damaged or do not
    match; and ``ValueError``, later, naming an image that cannot be read or has another size.
    """
    at_least("shard_size", shard_size, 1)
    samples_zip, z_zip = Path(samples_zip), Path(z_zip)
    with _open(samples_zip) as sample_archive, _open(z_zip) as z_archive:
        images, noises = _entries(sample_archive, samples_zip, ".png"), _entries(z_archive, z_zip, ".bin")
        for one, other, here, there in ((images, noises, samples_zip, z_zip), (noises, images, z_zip, samples_zip)):
            alone = sorted(one.keys() - other.keys())
            if alone:
                raise ValueError(
                    f"{len(alone)} of {len(one)} files in {here} have no partner in {there}: {first_few(alone)}"
                )
        wrong = [name for name, info in noises.items() if info.file_size != STATE_BYTES]
        if wrong:
            raise ValueError(f"{z_zip}: {len(wrong)} files do not have {STATE_BYTES} bytes: {first_few(wrong)}")
        names = sorted(images, key=_place)
        labels = None
        if labels_csv is not None:
            labels, classes = _read_labels(Path(labels_csv), names, classes)
        shape = _pixels(sample_archive, images[names[0]], samples_zip).shape
        content = hashlib.sha256(b"" if labels is None else labels.numpy().tobytes())
        for name in names:
            content.update(f"{name} {images[name].CRC} {noises[name].CRC}\n".encode())
        index = {
            "n": len(names), "shape": list(shape), "classes": classes if labels is not None else 0,
            "shard_size": shard_size, "noise": "pcg64", "content": content.hexdigest(),
        }  # fmt: skip

        def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
            pixels = np.empty((len(indices), *shape), dtype=np.uint8)
            states = np.empty((len(indices), STATE_BYTES), dtype=np.uint8)
            for row, name in enumerate(names[i] for i in indices.tolist()):
                pixels[row] = _pixels(sample_archive, images[name], samples_zip, shape)
                states[row] = np.frombuffer(_member(z_archive, noises[name], z_zip), dtype=np.uint8)
                advance(1)
            # Numpy makes only odd increments, so this reveals files of anything else.
            if not (states[:, -1] % 2).all():
                raise ValueError(f"{z_zip} does not hold PCG64 states: there are even increments")
            shard = {"images": torch.from_numpy(pixels), "indices": indices, "states": torch.from_numpy(states)}
            return shard if labels is None else {**shard, "labels": labels[indices]}

        return fill(Path(out_dir), index, make, "importing pairs")


def _place(name: str) -> tuple[float, str]:
    number = PurePosixPath(name).name
    return (int(number) if number.isdecimal() and len(number) < 19 else float("inf")), name


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path) -> bytes:
    try:
        return archive.read(info)
    except BROKEN as error:
        raise ValueError(f"{source}: {info.filename} is damaged ({error})") from error


def _pixels(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path, shape: tuple[int, ...] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode an image to ``(C, H, W)``; its size is checked before it is decompressed."""
    content = _member(archive, info, source)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            channels = {"L": 1, "RGB": 3}.get(image.mode)
            found = (channels, image.height, image.width)
            if channels is None or max(image.size) > _LARGEST_SIDE or (shape is not None and found != shape):
                wanted = (
                    f"mode L or RGB, at most {_LARGEST_SIDE} pixels wide" if shape is None else f"(C, H, W) = {shape}"
                )
                raise ValueError(f"it is {image.width}x{image.height} of mode {image.mode}; {wanted} is needed")
            pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source}: {info.filename} cannot be read ({error})") from error
    return pixels.transpose(2, 0, 1)
