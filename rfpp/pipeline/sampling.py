"""A sampler as a value: what it is asked for stands in keys and on figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rfpp import pairs, samplers
from rfpp.base import processes
from rfpp.base.checks import one_of
from rfpp.flow import T_MAX, RectifiedFlow
from rfpp.pairs import PairDataset


class Samples(Protocol):
    """Any sampler: a frozen dataclass, or another value that can be identified, which makes images of noise."""

    @property
    def nfe(self) -> int:
        """Evaluations of the flow for an image."""

    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``(N, ...)`` of noise ``z``, on the device of ``z``."""


@dataclass(frozen=True)
class Sampler:
    """A way to spend evaluations; arguments, and errors for bad ones, as for :func:`rfpp.samplers.sample`."""

    nfe: int = 1
    solver: str = "euler"
    update: str = "standard"
    first_time: float = T_MAX
    inner: tuple[float, ...] | None = None
    """The times of the steps after the first; uniform ones when ``None``."""
    batch_size: int = field(default=500, compare=False, repr=False)
    """Images at once."""

    def __post_init__(self) -> None:
        one_of("update", self.update, samplers.UPDATES)
        _ = self.times  # complains about the others

    @property
    def times(self) -> Tensor:
        """The grid from the first time down to 0."""
        steps = samplers.steps_for(self.nfe, self.solver)
        if self.inner is None:
            return samplers.generation_times(steps, self.first_time)
        if len(self.inner) != steps - 1:
            raise ValueError(
                f"inner={self.inner}: nfe={self.nfe} with solver={self.solver!r} has {steps - 1} inner times"
            )
        grid = torch.tensor([self.first_time, *self.inner, 0.0], dtype=torch.float64)
        if not (grid.diff() < 0).all():
            raise ValueError(f"inner={self.inner}: times must fall from first_time={self.first_time} to 0")
        return grid

    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Samples from noise ``z`` ``(N, ...)`` in batches, on the device of ``z``."""
        images = []
        place = next((parameter.device for parameter in flow.parameters()), z.device)
        for rows in torch.arange(len(z)).split(self.batch_size):
            chosen = None if labels is None else labels[rows].to(place)
            made = samplers.sample(flow, z[rows].to(place), self.nfe, self.solver, self.update, self.times, chosen)
            images.append(made.to(z.device))
        return torch.cat(images)


def labels_in_turn(n: int, classes: int) -> Tensor | None:
    """All classes in turn, ``(n,)``; ``None`` for a network that knows none."""
    return torch.arange(n) % classes if classes else None


def draw(
    flow: RectifiedFlow,
    sampler: Samples,
    folder: Path,
    *,
    n: int,
    seed: int,
    batch_size: int,
    shard_size: int = pairs.SHARD_SIZE,
    advance: Callable[[int], Any] | None = None,
) -> PairDataset:
    """Images of a flow as a folder of pairs; processes share the work, and an interrupted one goes on."""
    pairs.generate(
        flow.denoiser, n, folder, seed=seed, batch_size=batch_size, device=processes.device(),
        sampler=lambda z, labels: sampler(flow, z, labels), shard_size=shard_size, advance=advance,
    )  # fmt: skip
    return PairDataset(folder)
