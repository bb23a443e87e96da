"""What a contender is: an objective, what it trains on, and what a row of its training costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rfpp.base.checks import at_least, one_of
from rfpp.data import Images
from rfpp.engine import Objective
from rfpp.pairs import PairDataset
from rfpp.timesteps import TimestepDistribution

SOURCES = ("images", "pairs")

PLAIN = 3.0
"""Network passes for a row that goes forwards and backwards; a backward pass counts as two."""
JVP = 5.5
"""Network passes for a value with its derivative along a direction, without gradients: what it cost when the
arena's budgets were set. ``benchmarks/bench_arena.py`` measures it again."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to train a few-step generator, as a value.

    ``source``: ``"images"`` that are coupled with fresh noise, or the teacher's ``"pairs"``; ``timesteps``: the law of
    the times ``t``. Raises ``ValueError`` or ``TypeError`` for other values.
    """

    summary: str = field(compare=False)
    source: str
    timesteps: TimestepDistribution

    two_times: ClassVar[bool] = False
    """Whether the network is given a second time."""
    predicts_ends: ClassVar[bool] = False
    """Whether it learns where a path ends instead of a velocity; sampling in several steps then adds noise again."""
    first: ClassVar[float | None] = None
    """The time where sampling starts; the preset's when ``None``."""
    label = property(lambda self: self.summary)

    def __post_init__(self) -> None:
        one_of("source", self.source, SOURCES)
        if not isinstance(self.timesteps, TimestepDistribution):
            raise TypeError(
                f"timesteps={self.timesteps!r} is a {type(self.timesteps).__name__}; a rfpp.timesteps."
                "TimestepDistribution is needed, such as UShaped(4.0)"
            )

    @property
    @abstractmethod
    def price(self) -> float:
        """Network passes for a row of a training step."""

    @abstractmethod
    def objective(
        self, source: Images | PairDataset, batch_size: int, seed: int, steps: int, teacher: nn.Module
    ) -> Objective:
        """The objective for :func:`rfpp.engine.fit` over ``steps`` steps; ``teacher``: the 1-rectified flow."""

    def __str__(self) -> str:
        return self.summary


@dataclass(frozen=True)
class TwoTimes(Method):
    """A method whose network is given a second time; the two times differ in one row out of ``every``.

    Raises ``ValueError`` or ``TypeError`` unless ``every`` is an integer of at least 1.
    """

    every: int = 4

    two_times: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("every", self.every, 1)


@dataclass(frozen=True)
class Coupled(Objective):
    """An objective on images ``x`` and noise ``z``: the teacher's pairs, or images with fresh noise.

    With the same seed, pairs are those that :class:`rfpp.training.Reflow` draws, and so are the times of rows with a
    single time.
    """

    source: Images | PairDataset
    timesteps: TimestepDistribution
    batch_size: int
    seed: int

    def couple(self, generator: torch.Generator, rows: range) -> tuple[Tensor, Tensor, Tensor | None]:
        """``x``, ``z`` and labels of the rows of a step; the draws do not depend on which rows are requested."""
        own = slice(rows.start, rows.stop)
        if not isinstance(self.source, Images):
            return self.source.batch(self.source.draw(self.batch_size, generator)[own])
        x, labels = self.source.batch(self.batch_size, generator)
        return x[own], torch.randn(x.shape, generator=generator)[own], labels[own]

    def two(self, generator: torch.Generator, rows: range, every: int) -> tuple[Tensor, Tensor]:
        """Times ``t`` and ``r <= t`` of the rows: one row out of ``every`` has both drawn, the others ``r = t``."""
        t, other = (self.timesteps.sample(self.batch_size, generator=generator) for _ in range(2))
        apart = torch.arange(self.batch_size) % every == 0
        own = slice(rows.start, rows.stop)
        return torch.where(apart, t.maximum(other), t)[own], torch.where(apart, t.minimum(other), t)[own]

    def times(self, *batch: Any) -> Tensor:
        found: Tensor = batch[3]
        return found
