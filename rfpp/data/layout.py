"""The images of a folder or an archive, with their splits and classes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rfpp.base import rng
from rfpp.data.archives import BROKEN, Member, first_few, members, read

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LABELS = "dataset.json"


def is_image(name: str) -> bool:
    """Whether a file has the name of an image."""
    return name.lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Layout:
    """The order in which images are stored, training images first, and their ``labels`` ``(N,)`` in this order."""

    names: list[str]
    labels: NDArray[np.int64]
    train: int
    classes: int


def arrange(source: Path, held_out: float) -> Layout:
    """Return the layout of a folder or an archive; raises ``ValueError`` where there is none."""
    seen: set[str] = set()
    table = None
    for member in members(source, lambda name: is_image(name) or name == LABELS):
        if member.name in seen:
            raise ValueError(f"{source} has two files called {member.name}; remove one")
        seen.add(member.name)
        if member.name == LABELS:
            table = _table(member, source)
    names = sorted(seen - {LABELS})
    if not names:
        raise ValueError(
            f"data.path={str(source)!r} has no images; their names must end in {first_few(ENDINGS, len(ENDINGS))}"
        )
    # Archives are often sorted by class; after shuffling, the first images represent the others.
    mixed = [names[i] for i in torch.randperm(len(names), generator=rng.generator(0, "held out")).tolist()]
    train, rest, depth = _split(mixed, held_out, source)
    order = train + rest
    if table is not None:
        labels, classes = _labels_of_table(order, table, source)
    else:
        labels, classes = _labels_of_folders(order, depth)
    return Layout(order, np.array(labels, dtype=np.int64), len(train), classes)


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _split(names: list[str], held_out: float, source: Path) -> tuple[list[str], list[str], int]:
    """Return the names of the two splits, in the given order, and the number of folder levels above the classes."""
    # Folders that the first and the last name in alphabetical order share are shared by all names.
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


def _table(member: Member, source: Path) -> dict[str, int]:
    """Return the labels of ``dataset.json`` by name; empty if the file says that there are none."""
    try:
        labels = dict(json.loads(read(member))["labels"] or [])
    except (*BROKEN, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{source}: {LABELS} is not {{"labels": [[name, class], ...]}} ({error!r})') from error
    wrong = [
        f"{name}: {label!r}"[:100]
        for name, label in labels.items()
        if type(label) is not int or not 0 <= label < 1 << 31
    ]
    if wrong:
        raise ValueError(
            f"{source}: {LABELS} has {len(wrong)} labels that are not classes 0, 1, ...: {first_few(wrong)}"
        )
    return labels


def _labels_of_table(names: list[str], table: dict[str, int], source: Path) -> tuple[list[int], int]:
    if not table:
        return [0] * len(names), 0
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(
            f"{source}: {LABELS} has no label for {len(missing)} of {len(names)} images: {first_few(missing)}"
        )
    labels = [table[name] for name in names]
    return labels, max(labels) + 1


def _labels_of_folders(names: list[str], depth: int) -> tuple[list[int], int]:
    homes = [(*_folders(name)[depth:], "")[0] for name in names]
    classes = sorted(set(homes))
    # Numbered folders are no classes: they only limit the number of files in each folder.
    if "" in classes or len(classes) < 2 or all(re.fullmatch(r"\d{5}", folder) for folder in classes):
        return [0] * len(names), 0
    number = {folder: i for i, folder in enumerate(classes)}
    return [number[folder] for folder in homes], len(classes)
