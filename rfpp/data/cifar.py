"""CIFAR-10 in its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rfpp.base import downloads
from rfpp.data.archives import BROKEN, Member, existing, first_few, members, read
from rfpp.data.dataset import Dataset, Images

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR10_RECORD = 1 + 3 * 32 * 32


def cifar10(path: str | Path | None = None, folder: str | Path | None = None) -> Dataset:
    """Load CIFAR-10 in its binary version, 32x32 pixels in colour; its test images are held out.

    ``path``: the archive, or a folder with the six ``.bin`` files, directly or one folder down; they may be shorter
    than the official ones. Without it the archive is downloaded to ``folder`` and checked
    (:func:`rfpp.base.downloads.fetch`).

    Raises ``FileNotFoundError`` where the path or one of the files is missing, ``ValueError`` for a damaged file, and
    ``OSError`` when the download fails.
    """
    source = downloads.fetch(CIFAR10_URL, CIFAR10_SHA256, folder) if path is None else existing(path)
    parts: dict[str, Images] = {}
    for member in members(source, lambda name: name.count("/") < 2 and name.split("/")[-1] in _CIFAR10_FILES):
        file = member.name.split("/")[-1]
        if file in parts:
            raise ValueError(f"{source} has two files called {file}; pass the folder of one of them as data.path")
        parts[file] = _cifar10_batch(member, source)
    missing = [file for file in _CIFAR10_FILES if file not in parts]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {first_few(missing)}; data.path must lead to the binary version of CIFAR-10, "
            f"{CIFAR10_URL} (the python version, whose files have no ending, is not read)"
        )
    *batches, test = (parts[file] for file in _CIFAR10_FILES)
    train = Images(torch.cat([part.pixels for part in batches]), torch.cat([part.labels for part in batches]))
    return Dataset("cifar10", train, test, classes=10)


def _cifar10_batch(member: Member, source: Path) -> Images:
    try:
        content = read(member)
    except BROKEN as error:
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
