"""Two sets of pairs as one; a row comes from each with a given probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp.pairs.store import PairDataset


@dataclass(frozen=True)
class Mixture:
    """A mixture of pairs: a drawn row comes from ``others`` with probability ``share``, else from ``pairs``.

    Indices from ``len(pairs)`` on belong to ``others``, which may lack the last classes. Raises ``ValueError`` for sets
    that differ in shape, or of which one has no classes, and for a ``share`` outside [0, 1].
    """

    pairs: PairDataset
    others: PairDataset
    share: float

    def __post_init__(self) -> None:
        one, two = ((each.shape, each.classes) for each in (self.pairs, self.others))
        if one[0] != two[0] or two[1] > one[1] or bool(one[1]) != bool(two[1]):
            raise ValueError(f"pairs of shape and classes {one} do not mix with those of {two}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} is not a probability; a number from 0 to 1 is needed")

    def __len__(self) -> int:
        return len(self.pairs) + len(self.others)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, ``(C, H, W)``."""
        return self.pairs.shape

    @property
    def classes(self) -> int:
        """The number of classes; 0 for none."""
        return self.pairs.classes

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``n`` rows with replacement, ``(n,)``."""
        of_others = torch.rand(n, generator=generator) < self.share
        first, second = (each.draw(n, generator) for each in (self.pairs, self.others))
        return torch.where(of_others, second + len(self.pairs), first)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``x, z, labels`` for many indices at once; ``labels`` is ``None`` without classes."""
        of_others = indices >= len(self.pairs)
        x, z = torch.empty((2, len(indices), *self.shape))
        labels = torch.empty(len(indices), dtype=torch.int64) if self.classes else None
        for rows, source, first in ((~of_others, self.pairs, 0), (of_others, self.others, len(self.pairs))):
            if rows.any():
                x[rows], z[rows], found = source.batch(indices[rows] - first)
                if labels is not None and found is not None:
                    labels[rows] = found
        return x, z, labels
