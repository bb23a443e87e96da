"""Datasets behind one call: ``load("digits").train`` and ``.held_out``, images kept as 8-bit and served in [-1, 1].

``digits`` comes with scikit-learn, ``cifar10`` is downloaded once, and ``images`` is any folder, zip or tar of images,
decoded once into arrays that are mapped into memory. Nothing is unpickled, and no archive is extracted.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rfpp.base import downloads, files, paths, progress, rng
from rfpp.base.checks import at_least, one_of

NAMES = ("digits", "cifar10", "images")
CROPS = ("center", "dhariwal")
HELD_OUT = 0.1

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR10_RECORD = 1 + 3 * 32 * 32

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LABELS = "dataset.json"
_LARGEST_FILE, _LARGEST_SIDE = 1 << 26, 1 << 14
_DECODING = 2
"""To be raised when the same images would be decoded or ordered differently."""


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
    """0 where images have no classes; their labels are 0 then."""


def load(
    name: str,
    path: str | Path | None = None,
    *,
    resolution: int | None = None,
    crop: str | None = "center",
    held_out: float = HELD_OUT,
    folder: str | Path | None = None,
) -> Dataset:
    """The dataset called ``name``, one of :data:`NAMES`: see :func:`digits`, :func:`cifar10`, :func:`images`.

    ``path``: where it lies; none for ``digits``, optional for ``cifar10``. ``folder``: where what is downloaded or
    decoded is kept, by default in :func:`rfpp.base.paths.downloads`. ``resolution``, ``crop`` and ``held_out`` are for
    ``images`` alone: the other two have a size and a split of their own.

    Raises ``ValueError`` for an unknown name, or a path or a resolution where there can be none.
    """
    one_of("data.name", name, NAMES)
    if name == "images":
        if path is None:
            raise ValueError("data.path=None, but data.name='images' needs the folder, zip or tar where they lie")
        return images(path, resolution=resolution, crop=crop, held_out=held_out, folder=folder)
    if resolution is not None:
        raise ValueError(f"data.resolution={resolution}, but data.name={name!r} comes in one size; leave it out")
    if name == "cifar10":
        return cifar10(path, folder)
    if path is not None:
        raise ValueError(f"data.path={str(path)!r}, but data.name='digits' comes with scikit-learn; leave it out")
    return digits()


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


def cifar10(path: str | Path | None = None, folder: str | Path | None = None) -> Dataset:
    """CIFAR-10 in its binary version, 32x32 pixels in colour; its test images are the held-out ones.

    ``path``: the archive, or a folder with the six ``.bin`` files, there or one folder down; they may be shorter than
    the official ones. Without it the archive is downloaded to ``folder`` and checked
    (:func:`rfpp.base.downloads.fetch`).

    Raises ``FileNotFoundError`` where the path or one of the files is missing, ``ValueError`` for a damaged one, and
    ``OSError`` when the download cannot be had.
    """
    source = downloads.fetch(CIFAR10_URL, CIFAR10_SHA256, folder) if path is None else _existing(path)
    parts: dict[str, Images] = {}
    for member in _members(source, lambda name: name.count("/") < 2 and name.split("/")[-1] in _CIFAR10_FILES):
        file = member.name.split("/")[-1]
        if file in parts:
            raise ValueError(f"{source} has two files called {file}; pass the folder of one of them as data.path")
        parts[file] = _cifar10_batch(member, source)
    missing = [file for file in _CIFAR10_FILES if file not in parts]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {_some(missing)}; data.path must lead to the binary version of CIFAR-10, {CIFAR10_URL} "
            "(the python version, whose files have no ending, is not read)"
        )
    *batches, test = (parts[file] for file in _CIFAR10_FILES)
    train = Images(torch.cat([part.pixels for part in batches]), torch.cat([part.labels for part in batches]))
    return Dataset("cifar10", train, test, classes=10)


def _cifar10_batch(member: _Member, source: Path) -> Images:
    try:
        content = _read(member)
    except _BROKEN as error:
        raise ValueError(f"{source}: {member.name} is damaged ({error})") from error
    if not content or len(content) % _CIFAR10_RECORD:
        raise ValueError(
            f"{source}: {member.name} has {len(content)} bytes; whole records of {_CIFAR10_RECORD} are needed, "
            "a class and 3 x 32 x 32 pixels"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR10_RECORD)
    labels, pixels = records[:, 0].astype(np.int64), records[:, 1:].reshape(-1, 3, 32, 32).copy()
    if labels.max() > 9:
        raise ValueError(f"{source}: {member.name} has the class {labels.max()}; allowed: 0..9")
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def images(
    path: str | Path,
    *,
    resolution: int | None = None,
    crop: str | None = "center",
    held_out: float = HELD_OUT,
    folder: str | Path | None = None,
) -> Dataset:
    """The PNG, JPEG, WebP and BMP images of a folder, a ``.zip`` or a ``.tar`` (``.gz``, ``.xz``), however nested.

    Hidden files are passed over, alpha and EXIF are ignored, and the images are RGB unless all are grey.

    ``resolution``: of the square images returned; ``None`` wants images that are square and of one size already.
    ``crop``: ``"center"`` resizes the largest centred square with Lanczos and ``None`` the whole image; ``"dhariwal"``
    (ADM, ImageNet 64x64) halves by averaging as often as it can, goes on with bicubic until the shorter side fits, and
    crops the centre.
    ``held_out``: the share of images that is held out, chosen by a fixed shuffle, unless there are folders ``train``
    and ``test`` (or ``val``) at the top: they are the split, and what lies outside them is passed over. The images of a
    split are in mixed order, the same each time.

    The classes are those of ``dataset.json`` at the root (``{"labels": [["00000/img00000000.png", 6], ...]}``, or
    ``null`` for none). Without it, where every image lies in one of several folders at the top, or below ``train`` and
    ``test``, they are these folders in alphabetical order, unless all are called like ``00012``. A folder around
    everything does not count.

    All images are decoded once into ``folder`` and mapped into memory from there. They are decoded again when a file
    of the folder, or the archive, has another name, size or modification time.

    Raises ``FileNotFoundError`` for a path that does not exist, and ``ValueError`` for a damaged archive, one without
    images, too few of them to be split, labels that do not fit, and, all in one error, images that cannot be read, are
    wider or higher than 16,384 pixels, or have another size than the others and no ``resolution`` to go by.
    """
    if resolution is not None:
        at_least("data.resolution", resolution, 1)
        if resolution > _LARGEST_SIDE:
            raise ValueError(f"data.resolution={resolution} is too large; at most {_LARGEST_SIDE} is allowed")
    if crop is not None:
        one_of("data.crop", crop, CROPS)
    if not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out} is not a share; a number between 0 and 1 is needed")
    source = _existing(path)
    settings = [_DECODING, resolution, crop if resolution else None, held_out]
    where = Path(folder or paths.downloads() / "images") / _fingerprint(source, settings)
    # Without the lock first: the folder may be somebody else's, who has decoded into it already.
    found = _decoded(where)
    if found is None:
        where.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{where}.lock"):
            found = _decoded(where)
            if found is None:
                _decode(source, where, resolution, crop, held_out)
                found = _decoded(where)
    assert found is not None
    return found


# Where images lie


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a folder or an archive. That of an archive is read before the next one is asked for."""

    name: str
    size: int
    modified: int
    read: Callable[[], bytes]


_BROKEN = (
    OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError
)  # fmt: skip
"""What reading a damaged archive can raise; ``RuntimeError`` is also that of encrypted or unknown ways of packing."""


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data.path={str(path)!r} does not exist")
    return path


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _members(source: Path, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    """The visible files of a folder or an archive whose names, relative to it, are ``wanted``."""
    if source.is_dir():
        yield from _in_folder(source, wanted)
        return
    try:
        yield from (_in_zip if source.suffix.lower() == ".zip" else _in_tar)(source, wanted)
    except _BROKEN as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{source} is damaged or of another kind ({reason}); a folder, a .zip, .tar, .tar.gz or .tar.xz is needed"
        ) from error


def _in_folder(source: Path, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(source),))]
    while waiting:
        prefix, above = waiting.pop()
        with os.scandir(source / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if not _visible(entry.name):
                    continue
                if entry.is_dir():
                    # Links are followed, but not in circles.
                    if (real := os.path.realpath(entry.path)) not in above:
                        waiting.append((f"{name}/", (*above, real)))
                elif wanted(name) and entry.is_file():
                    status = entry.stat()
                    yield _Member(name, status.st_size, status.st_mtime_ns, Path(entry.path).read_bytes)


def _in_zip(source: Path, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            name = info.filename.removeprefix("./")
            if not info.is_dir() and _visible(name) and wanted(name):
                yield _Member(name, info.file_size, 0, partial(archive.read, info))


def _in_tar(source: Path, wanted: Callable[[str], bool]) -> Iterator[_Member]:
    with tarfile.open(source) as archive:
        file = archive.fileobj
        assert file is not None

        def content(info: tarfile.TarInfo) -> bytes:
            opened = archive.extractfile(info)
            assert opened is not None  # a regular file
            return opened.read()

        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            name = info.name.removeprefix("./")
            if info.isreg() and _visible(name) and wanted(name):
                yield _Member(name, info.size, 0, partial(content, info))
        # Where a header is cut off or damaged, tarfile only stops; an archive that is whole goes on with zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off after {archive.offset} bytes")
        while file.read(1 << 20):
            pass  # gzip looks at its checksum at the very end


def _read(member: _Member) -> bytes:
    if member.size > _LARGEST_FILE:
        raise OSError(f"it would unfold to {member.size} bytes, at most {_LARGEST_FILE} are allowed")
    return member.read()


def _fingerprint(source: Path, settings: Sequence[object]) -> str:
    """A name for what a source and settings make. An archive is not opened: its list is long, or packed itself."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    if source.is_dir():
        members = _members(source, lambda name: _is_image(name) or name == _LABELS)
        listed = [(member.name, member.size, member.modified) for member in members]
    else:
        status = source.stat()
        listed = [(str(source.resolve()), status.st_size, status.st_mtime_ns)]
    for entry in sorted(listed):
        digest.update(os.fsencode("{}\0{}\0{}\n".format(*entry)))
    return digest.hexdigest()[:32]


# The split and the classes


@dataclass(frozen=True)
class _Layout:
    """The order in which images are stored, training images first, and the ``labels`` ``(N,)`` in this order."""

    names: list[str]
    labels: NDArray[np.int64]
    train: int
    classes: int


def _layout(source: Path, held_out: float) -> _Layout:
    seen: set[str] = set()
    table = None
    for member in _members(source, lambda name: _is_image(name) or name == _LABELS):
        if member.name in seen:
            raise ValueError(f"{source} has two files called {member.name}")
        seen.add(member.name)
        if member.name == _LABELS:
            table = _table(member, source)
    names = sorted(seen - {_LABELS})
    if not names:
        raise ValueError(f"data.path={str(source)!r} has no images; files called {_some(_ENDINGS, len(_ENDINGS))} are")
    # Archives are often in the order of their classes; here the first images are as good as any others.
    mixed = [names[i] for i in torch.randperm(len(names), generator=rng.generator(0, "held out")).tolist()]
    train, rest, depth = _split(mixed, held_out, source)
    order = train + rest
    if table is not None:
        labels, classes = _labels_of_table(order, table, source)
    else:
        labels, classes = _labels_of_folders(order, depth)
    return _Layout(order, np.array(labels, dtype=np.int64), len(train), classes)


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _split(names: list[str], held_out: float, source: Path) -> tuple[list[str], list[str], int]:
    """The names of the two splits, in the order given, and how many folders lie above those of classes."""
    # What the first and the last in alphabetical order share, all share.
    ends = min(map(_folders, names)), max(map(_folders, names))
    depth = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))
    tops = {name: (*_folders(name)[depth:], "")[0] for name in names}
    other = next((folder for folder in ("test", "val") if folder in tops.values()), None)
    if other and "train" in tops.values():
        train, rest = ([name for name in names if tops[name] == folder] for folder in ("train", other))
        return train, rest, depth + 1
    count = max(1, round(held_out * len(names)))
    if len(names) - count < 2:
        raise ValueError(
            f"{source} has {len(names)} images, and data.held_out={held_out} leaves {len(names) - count} to train on; "
            "at least 2 are needed"
        )
    return names[count:], names[:count], depth


def _table(member: _Member, source: Path) -> dict[str, int]:
    """The labels of ``dataset.json`` by name; empty where it says that there are none."""
    try:
        labels = dict(json.loads(_read(member))["labels"] or [])
    except (*_BROKEN, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{source}: {_LABELS} is not {{"labels": [[name, class], ...]}} ({error!r})') from error
    wrong = [
        f"{name}: {label!r}"[:100]
        for name, label in labels.items()
        if type(label) is not int or not 0 <= label < 1 << 31
    ]
    if wrong:
        raise ValueError(f"{source}: {_LABELS} has {len(wrong)} labels that are not classes 0, 1, ...: {_some(wrong)}")
    return labels


def _labels_of_table(names: list[str], table: dict[str, int], source: Path) -> tuple[list[int], int]:
    if not table:
        return [0] * len(names), 0
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"{source}: {_LABELS} has no label for {len(missing)} of {len(names)} images: {_some(missing)}"
        )
    labels = [table[name] for name in names]
    return labels, max(labels) + 1


def _labels_of_folders(names: list[str], depth: int) -> tuple[list[int], int]:
    homes = [(*_folders(name)[depth:], "")[0] for name in names]
    classes = sorted(set(homes))
    # Numbered folders only keep the number of files in each small.
    if "" in classes or len(classes) < 2 or all(re.fullmatch(r"\d{5}", folder) for folder in classes):
        return [0] * len(names), 0
    number = {folder: i for i, folder in enumerate(classes)}
    return [number[folder] for folder in homes], len(classes)


# Decoding


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _decoded(where: Path) -> Dataset | None:
    """What was decoded into a folder; ``None`` where nothing was, or where it is not whole."""
    try:
        index = json.loads((where / "index.json").read_text())
        train, classes, shape = index["train"], index["classes"], tuple(index["shape"])
        pixels = np.lib.format.open_memmap(where / "pixels.npy", mode="c")
        labels = np.lib.format.open_memmap(where / "labels.npy", mode="c")
        # Mapping a file that is too short fails, but not one that is too long.
        whole = (where / "pixels.npy").stat().st_size == pixels.offset + pixels.nbytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole or pixels.shape != shape or labels.shape != shape[:1]:
        return None
    stored = Images(torch.from_numpy(pixels), torch.from_numpy(labels))
    first, rest = (Images(stored.pixels[part], stored.labels[part]) for part in (slice(train), slice(train, None)))
    return Dataset("images", first, rest, classes)


def _decode(source: Path, where: Path, resolution: int | None, crop: str | None, held_out: float) -> None:
    """Fill the folder ``where``: pixels and labels as arrays, and how many are for training."""
    layout = _layout(source, held_out)
    beside = where.with_name(f".{where.name}.partial")
    for left_over in (beside, where):
        shutil.rmtree(left_over, ignore_errors=True)
    beside.mkdir()
    try:
        shape = _write_pixels(source, beside, layout.names, resolution, crop)
        np.save(beside / "labels.npy", layout.labels, allow_pickle=False)
        index = {"shape": shape, "train": layout.train, "classes": layout.classes}
        files.write_text(beside / "index.json", json.dumps(index))
        os.replace(beside, where)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_pixels(
    source: Path, folder: Path, names: list[str], resolution: int | None, crop: str | None
) -> tuple[int, ...]:
    """Write ``pixels.npy``, a row for each of ``names``, and return its shape ``(N, C, H, W)``."""
    rows = {name: row for row, name in enumerate(names)}
    store, first, grey, seen = None, "", True, 0
    unreadable, unequal = [], []

    def work(name: str, content: bytes | Exception) -> tuple[str, NDArray[np.uint8] | Exception]:
        try:
            return name, content if isinstance(content, Exception) else _pixels(content, resolution, crop)
        except UnidentifiedImageError:
            return name, ValueError("it is not a PNG, JPEG, WebP or BMP image")
        except Exception as error:  # a decoder can trip over anything
            return name, error

    contents = ((member.name, _attempt(member)) for member in _members(source, rows.__contains__))
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
    complaints = []
    if seen < len(rows):
        complaints.append(f"{len(rows) - seen} of {len(rows)} images disappeared meanwhile")
    if unreadable:
        complaints.append(f"{len(unreadable)} of {len(rows)} images cannot be read: {_some(sorted(unreadable))}")
    if unequal:
        wanted = f"of the size {store.shape[3]}x{store.shape[2]} of {first}" if store is not None else "square"
        complaints.append(
            f"{len(unequal)} of {len(rows)} images are not {wanted}: {_some(sorted(unequal))}; "
            "pass data.resolution to resize all"
        )
    if complaints:
        raise ValueError(f"{source}: {'; '.join(complaints)}")
    assert store is not None  # there are images, and nothing to complain about
    if grey:
        colour, store = store, _array(folder / "grey.npy", (len(rows), 1, *store.shape[2:]))
        for start in range(0, len(rows), 1024):
            store[start : start + 1024] = colour[start : start + 1024, :1]
        os.replace(folder / "grey.npy", folder / "pixels.npy")
    store.flush()
    return store.shape


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(path.parent).free
    if free < needed:
        # Writing to a mapped file on a full disk ends the process without a word.
        raise OSError(f"{path.parent.parent} has {free} bytes left, {needed} are needed; pass another folder")
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _attempt(member: _Member) -> bytes | Exception:
    try:
        return _read(member)
    except _BROKEN as error:
        return error


def _ahead(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """``function(*a) for a in arguments``, in this order, in threads and only a little ahead of who takes them."""
    workers = min(os.cpu_count() or 1, 16)
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for argument in arguments:
            waiting.append(pool.submit(function, *argument))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pixels(content: bytes, resolution: int | None, crop: str | None) -> NDArray[np.uint8]:
    """An image ``(H, W)`` or ``(H, W, 3)``; its size is looked at before it is unfolded."""
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP", "BMP"]) as opened:
        _check(opened.width, opened.height)
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"its mode is {opened.mode}, 8 bits for a pixel are needed")
        opened.info.pop("transparency", None)
        image = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    return np.asarray(image if resolution is None else _resized(image, resolution, crop))


def _check(width: int, height: int) -> None:
    if max(width, height) > _LARGEST_SIDE:
        raise ValueError(f"it is {width}x{height}, a side of at most {_LARGEST_SIDE} pixels is allowed")


def _resized(image: Image.Image, resolution: int, crop: str | None) -> Image.Image:
    """A square image."""
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
