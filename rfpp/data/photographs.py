"""Patches of the two colour photographs that come with scikit-learn: natural images, with nothing to download."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.data.dataset import Dataset, Images
from rfpp.data.folders import HELD_OUT

BLOCK = 106
"""Side, in pixels, of the squares into which each photograph of 427x640 pixels is divided."""

_GRID = (4, 6)
"""Rows and columns of squares; 3 rows and 4 columns of pixels remain."""


def photos(
    size: int = 32, *, stride: int = 4, patches: int = 2000, colour: bool = True, held_out: float = HELD_OUT
) -> Dataset:
    """Cut square patches from photographs of a temple and a dahlia, ``size`` pixels wide; ``patches`` are for training.

    Patches are cut at the photographs' own resolution. A smaller patch shows a smaller part of the scene as sharply as
    a large one: neighbouring pixels are equally similar at every size, and only their number changes. Scaling patches
    down would change both at once.

    ``stride``: the distance in pixels between the starts of patches, in both directions; patches overlap if it is below
    ``size``. ``colour``: three channels, else one, the luma. ``held_out``: the share of patches that is held out.

    No held-out patch shares a pixel with a training patch. Each photograph is divided into 24 squares of 106 pixels,
    each patch lies within one of them, and a share ``held_out`` of the squares, at least one of each photograph, is
    held out. A fixed shuffle chooses the squares, the patches, and their order.

    There are two classes, one for each photograph. Patches have no other label, and networks that are trained here
    because no published one exists, such as the grading features, need classes to distinguish.

    Raises ``ValueError`` for a size larger than a square, a share outside (0, 1), or more patches than there are
    places, and ``TypeError`` for numbers of another type.
    """
    train, rest = places(size, stride=stride, patches=patches, held_out=held_out)
    pixels = _photographs(colour)
    return Dataset("photos", _cut(pixels, train, size), _cut(pixels, rest, size), classes=2)


def places(size: int, *, stride: int = 4, patches: int = 2000, held_out: float = HELD_OUT) -> tuple[Tensor, Tensor]:
    """The corners of the training and the held-out patches of :func:`photos`, as rows of (photograph, row, column).

    Raises the errors of :func:`photos`; reads no photograph.
    """
    at_least("size (data.resolution)", size, 1)
    if size > BLOCK:
        raise ValueError(f"size (data.resolution)={size} is too large; at most {BLOCK} is allowed for photos")
    at_least("stride", stride, 1)
    at_least("patches", patches, 2)
    if not 0 < held_out < 1:
        raise ValueError(f"data.held_out={held_out} is not a share; a number between 0 and 1 is needed")
    others = max(1, round(patches * held_out / (1 - held_out)))
    train, rest = _places(size, stride, held_out)
    for found, wanted, split in ((train, patches, "training"), (rest, others, "held-out")):
        if len(found) < wanted:
            raise ValueError(
                f"patches={patches} with size (data.resolution)={size}, stride={stride} and data.held_out={held_out} "
                f"needs {wanted} {split} patches, and there are {len(found)}; lower patches, size, stride or held_out"
            )
    return train[:patches], rest[:others]


def _photographs(colour: bool) -> Tensor:
    """Both photographs, ``(2, C, 427, 640)`` uint8."""
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(image).convert("RGB" if colour else "L") for image in load_sample_images().images]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in whole]))
    return pixels.permute(0, 3, 1, 2) if colour else pixels[:, None]


def _places(size: int, stride: int, held_out: float) -> tuple[Tensor, Tensor]:
    """The possible corners of patches of the two splits: rows of (photograph, row, column), shuffled."""
    generator = rng.generator(0, "photographs")
    rows, columns = _GRID
    count = min(max(1, round(held_out * rows * columns)), rows * columns - 1)
    inside = torch.arange(0, BLOCK - size + 1, stride)
    within = torch.cartesian_prod(torch.zeros(1, dtype=torch.int64), inside, inside)
    splits: tuple[list[Tensor], list[Tensor]] = [], []
    for photograph in range(2):
        for place, block in enumerate(torch.randperm(rows * columns, generator=generator).tolist()):
            corner = torch.tensor([photograph, block // columns * BLOCK, block % columns * BLOCK])
            splits[place < count].append(corner + within)
    train, rest = (torch.cat(split) for split in splits)
    return _mixed(train, generator), _mixed(rest, generator)


def _mixed(places: Tensor, generator: torch.Generator) -> Tensor:
    return places[torch.randperm(len(places), generator=generator)]


def _cut(photographs: Tensor, places: Tensor, size: int) -> Images:
    """Cut the patches that start at ``places``; their photographs are the classes."""
    cut = [photographs[which, :, row : row + size, column : column + size] for which, row, column in places.tolist()]
    return Images(torch.stack(cut), places[:, 0].clone())
