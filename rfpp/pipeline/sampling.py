"""Samplers as values, which appear in keys and on figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rfpp import pairs, samplers
from rfpp.base import processes
from rfpp.base.checks import at_least, one_of
from rfpp.flow import T_MAX, RectifiedFlow


class AnySampler(Protocol):
    """Any sampler: a frozen dataclass, or another identifiable value, that makes images from noise."""

    @property
    def nfe(self) -> int:
        """The number of flow evaluations per image."""

    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images ``(N, ...)`` of noise ``z``, on the device of ``z``."""


@dataclass(frozen=True)
class Sampler:
    """A sampler of this package; arguments, and errors for invalid ones, as for :func:`rfpp.samplers.sample`."""

    nfe: int = 1
    solver: str = "euler"
    update: str = "standard"
    first_time: float = T_MAX
    inner: tuple[float, ...] | None = None
    """The start times of the steps after the first; uniform if ``None``."""
    batch_size: int = field(default=500, compare=False, repr=False)
    """The number of images at once."""

    def __post_init__(self) -> None:
        one_of("update", self.update, samplers.UPDATES)
        _ = self.times  # raises errors for the other fields

    @property
    def times(self) -> Tensor:
        """The grid from the first time down to 0."""
        steps = samplers.steps_for(self.nfe, self.solver)
        if self.inner is None:
            return samplers.generation_times(steps, self.first_time)
        if len(self.inner) != steps - 1:
            raise ValueError(
                f"inner={self.inner}: nfe={self.nfe} with solver={self.solver!r} needs {steps - 1} inner times"
            )
        grid = torch.tensor([self.first_time, *self.inner, 0.0], dtype=torch.float64)
        if not (grid.diff() < 0).all():
            raise ValueError(f"inner={self.inner}: times must fall from first_time={self.first_time} to 0")
        return grid

    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return samples from noise ``z`` ``(N, ...)``, computed in batches, on the device of ``z``."""
        images = []
        place = next((parameter.device for parameter in flow.parameters()), z.device)
        for rows in torch.arange(len(z)).split(self.batch_size):
            chosen = None if labels is None else labels[rows].to(place)
            made = samplers.sample(flow, z[rows].to(place), self.nfe, self.solver, self.update, self.times, chosen)
            images.append(made.to(z.device))
        return torch.cat(images)


def check(sampler: AnySampler, flow: RectifiedFlow, z: Tensor, labels: Tensor | None) -> None:
    """Raise ``TypeError`` or ``ValueError`` for a reader's sampler that does not do what it says.

    Of the noise ``z`` ``(N, ...)``, on which it is tried, it must make one finite image each, and the same ones again
    up to rounding, with ``nfe`` evaluations of the flow. Samples are drawn on this process's device, and a notebook's
    noise may be elsewhere, so the second time is there; the images must be where their noise is.
    """
    assert isinstance(flow.denoiser, nn.Module)
    name, calls = f"sampler={sampler!r}", []
    at_least(f"{name}: nfe", getattr(sampler, "nfe", None), 1)
    hook = flow.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    there = z.to(processes.device()), None if labels is None else labels.to(processes.device())
    try:
        with torch.no_grad():
            made, again = sampler(flow, z, labels), sampler(flow, *there)
    finally:
        hook.remove()
    if not isinstance(made, Tensor) or made.shape != z.shape:
        found = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ValueError(f"{name} makes {found} of noise of shape {tuple(z.shape)}; an image of each noise is needed")
    for noise, images in ((z, made), (there[0], again)):
        if images.device != noise.device:  # asked of tensors, whose devices have numbers
            raise ValueError(
                f"{name} makes images on {images.device} of noise on {noise.device}; "
                "return them on the device of the noise"
            )
    if not made.isfinite().all():
        raise ValueError(f"{name} makes images with NaN or infinity")
    if not torch.allclose(made, again.to(z), rtol=0, atol=1e-3):
        raise ValueError(f"{name} makes other images of the same noise; draw random numbers from a seed of its own")
    if len(calls) != 2 * sampler.nfe:
        raise ValueError(f"{name} has nfe={sampler.nfe}, but evaluates the flow {len(calls) // 2} times")


def labels_in_turn(n: int, classes: int) -> Tensor | None:
    """Return labels that take the classes in turn, ``(n,)``; ``None`` for a network without classes."""
    return torch.arange(n) % classes if classes else None


def draw(
    flow: RectifiedFlow,
    sampler: AnySampler,
    folder: Path,
    *,
    n: int,
    seed: int,
    batch_size: int,
    shard_size: int = pairs.SHARD_SIZE,
    advance: Callable[[int], Any] | None = None,
    only: int | None = None,
) -> None:
    """Draw images of a flow as a folder of pairs; processes share the work, and an interrupted call resumes.

    ``only``: the number of the one shard to draw.
    """
    pairs.generate(
        flow.denoiser, n, folder, seed=seed, batch_size=batch_size, device=processes.device(),
        sampler=lambda z, labels: sampler(flow, z, labels), shard_size=shard_size, advance=advance,
        only=only,
    )  # fmt: skip
