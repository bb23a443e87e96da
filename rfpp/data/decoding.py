"""Decode images, crop or resize them, and write them into one array."""

from __future__ import annotations

import io
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rfpp.base import progress
from rfpp.data.archives import BROKEN, Member, first_few, members, read

CROPS = ("center", "dhariwal")
LARGEST_SIDE = 1 << 14


def write_pixels(
    source: Path, folder: Path, names: list[str], resolution: int | None, crop: str | None
) -> tuple[int, ...]:
    """Write ``pixels.npy``, a row for each of ``names``, and return its shape ``(N, C, H, W)``."""
    rows = {name: row for row, name in enumerate(names)}
    store, first, grey, seen = None, "", True, 0
    unreadable, unequal = [], []

    def work(name: str, content: bytes | Exception) -> tuple[str, NDArray[np.uint8] | Exception]:
        try:
            return name, content if isinstance(content, Exception) else _decode(content, resolution, crop)
        except UnidentifiedImageError:
            return name, ValueError("it is not a PNG, JPEG, WebP or BMP image")
        except Exception as error:  # a decoder can raise any error
            return name, error

    contents = ((member.name, _attempt(member)) for member in members(source, rows.__contains__))
    with progress.bar(total=len(rows), desc="decoding images", unit="image") as bar:
        for name, pixels in _ahead(work, contents):
            bar.update(1)
            seen += 1
            if isinstance(pixels, Exception):
                unreadable.append(f"{name} ({pixels})")
                continue
            height, width, *colours = pixels.shape
            if height != width or (store is not None and height != store.shape[-1]):
                unequal.append(f"{name} ({width}x{height})")
                continue
            if store is None:
                store, first = _array(folder / "pixels.npy", (len(rows), 3, height, width)), name
            store[rows[name]] = pixels.transpose(2, 0, 1) if colours else pixels
            grey = grey and not colours
    wanted = f"of the size {store.shape[3]}x{store.shape[2]} of {first}" if store is not None else "square"
    complaints = _complaints(len(rows), len(rows) - seen, unreadable, unequal, wanted)
    if complaints:
        raise ValueError(f"{source}: {'; '.join(complaints)}")
    assert store is not None  # there are images, and none of them has a problem
    if grey:
        store = _one_channel(store, folder)
    store.flush()
    return store.shape


def _complaints(total: int, missing: int, unreadable: list[str], unequal: list[str], wanted: str) -> list[str]:
    """List the problems: images that are missing, that cannot be read, or that are not ``wanted`` as all should be."""
    complaints = []
    if missing:
        complaints.append(f"{missing} of {total} images disappeared meanwhile")
    if unreadable:
        complaints.append(f"{len(unreadable)} of {total} images cannot be read: {first_few(sorted(unreadable))}")
    if unequal:
        complaints.append(
            f"{len(unequal)} of {total} images are not {wanted}: {first_few(sorted(unequal))}; "
            "pass data.resolution to resize all"
        )
    return complaints


_Array = np.memmap[Any, np.dtype[np.uint8]]


def _one_channel(colour: _Array, folder: Path) -> _Array:
    """Replace ``pixels.npy`` with the first of its three equal channels."""
    store = _array(folder / "grey.npy", (len(colour), 1, *colour.shape[2:]))
    for start in range(0, len(colour), 1024):
        store[start : start + 1024] = colour[start : start + 1024, :1]
    os.replace(folder / "grey.npy", folder / "pixels.npy")
    return store


def _array(path: Path, shape: tuple[int, ...]) -> _Array:
    """Create an array mapped to a new file; raises ``OSError`` when the disk has no space for it."""
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path.parent).free
    if free < needed:
        # Writing to a mapped file on a full disk ends the process without an error message.
        raise OSError(f"{path.parent.parent} has {free} bytes left, but {needed} are needed; pass another folder")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _attempt(member: Member) -> bytes | Exception:
    try:
        return read(member)
    except BROKEN as error:
        return error


def _ahead(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield ``function(*a) for a in arguments`` in this order, from threads that run a little ahead of the consumer."""
    workers = min(os.cpu_count() or 1, 16)
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for argument in arguments:
            waiting.append(pool.submit(function, *argument))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _decode(content: bytes, resolution: int | None, crop: str | None) -> NDArray[np.uint8]:
    """Decode an image to ``(H, W)`` or ``(H, W, 3)``; its size is checked before it is decompressed."""
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP", "BMP"]) as opened:
        _check(opened.width, opened.height)
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its mode is {opened.mode}; 8 bits for each channel are needed")
        opened.info.pop("transparency", None)
        image = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(image if resolution is None else _resized(image, resolution, crop))


def _check(width: int, height: int) -> None:
    if max(width, height) > LARGEST_SIDE:
        raise ValueError(f"it is {width}x{height}; at most {LARGEST_SIDE} pixels a side are allowed")


def _resized(image: Image.Image, resolution: int, crop: str | None) -> Image.Image:
    """Return a square image."""
    if crop == "dhariwal":
        while min(image.size) >= 2 * resolution:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = resolution / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        _check(width, height)
        return _centre(image.resize((width, height), Image.Resampling.BICUBIC), resolution)
    if crop == "center":
        image = _centre(image, min(image.size))
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def _centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
