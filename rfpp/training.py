"""The objectives that :func:`rfpp.engine.fit` minimises: for reflow, for a teacher, and for feature networks.

A step's randomness depends on the seed, its number and the size of its batch. Two runs that differ only in other
settings see the same data and noise and, with the same timestep distribution, the same times. This makes configurations
comparable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base import rng
from rfpp.base.checks import one_of
from rfpp.configurations import ALL, CONFIGURATIONS, STARTS, VARIANTS, Configuration
from rfpp.data import Images
from rfpp.denoisers import EDMPrecond, VPPrecond
from rfpp.engine import Batch, Objective
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.pairs import Mixture, PairDataset
from rfpp.premetrics import Premetric
from rfpp.timesteps import TimestepDistribution

__all__ = [
    "ALL", "CONFIGURATIONS", "VARIANTS", "Classification", "Configuration", "Denoising", "Reflow", "initial_flow",
    "losses_over_time",
]  # fmt: skip


@dataclass(frozen=True)
class Reflow(Objective):
    """Algorithm 1's loss on pairs ``(x, z)`` of the 1-rectified flow: ``m(z - x, v(x_t, t))`` (Eq. 2, a premetric)."""

    pairs: PairDataset | Mixture
    timesteps: TimestepDistribution
    premetric: Premetric
    batch_size: int
    seed: int

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "reflow", step)
        index = self.pairs.draw(self.batch_size, generator)
        t = self.timesteps.sample(self.batch_size, generator=generator)
        own = slice(rows.start, rows.stop)
        return (*self.pairs.batch(index[own]), t[own])

    def losses(self, model: nn.Module, x: Tensor, z: Tensor, labels: Tensor | None, t: Tensor) -> Tensor:
        x_t = interpolate(x, z, t)
        return self.premetric(z - x, model(x_t, t, labels), x_t, t)

    def times(self, x: Tensor, z: Tensor, labels: Tensor | None, t: Tensor) -> Tensor:
        return t


@torch.no_grad()
def losses_over_time(
    flow: RectifiedFlow, pairs: PairDataset, times: Tensor, premetric: Premetric, n: int, batch_size: int = 500
) -> Tensor:
    """Return the loss of the first ``n`` pairs at each of ``times``, ``(len(times), n)``: Figure 3 before averaging."""
    found = torch.empty(len(times), n)
    for rows in torch.arange(n).split(batch_size):
        x, z, labels = pairs.batch(rows)
        for place, t in enumerate(times.tolist()):
            x_t, at = interpolate(x, z, t), torch.full((len(x),), t)
            found[place, rows] = premetric(z - x, flow.velocity(x_t, at, labels), x_t, at)
    return found


def _half_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


@dataclass(frozen=True)
class Denoising(Objective):
    """EDM's loss for a teacher: weighted squared error at log-normal noise levels (Karras et al., 2022, Table 1).

    ``flip``: whether half of the images are mirrored.
    """

    images: Images
    batch_size: int
    seed: int
    sigma_data: float
    log_mean: float = -1.2
    log_std: float = 1.2
    flip: bool = False

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "denoising", step)
        x, labels = self.images.batch(self.batch_size, generator)
        sigma = (self.log_mean + self.log_std * torch.randn(self.batch_size, generator=generator)).exp()
        noise = torch.randn(x.shape, generator=generator)
        if self.flip:
            x = _half_mirrored(x, generator)
        own = slice(rows.start, rows.stop)
        return x[own], labels[own], sigma[own], noise[own]

    def losses(self, model: nn.Module, x: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        denoised = model(x + noise * sigma.reshape(-1, 1, 1, 1), sigma, labels)
        return weight * (denoised - x).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy with label smoothing 0.05, on images shifted by up to ``shift`` pixels each way, with noise of up
    to ``noise`` added."""

    images: Images
    batch_size: int
    seed: int
    shift: int
    noise: float
    flip: bool = False

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "classification", step)
        x, labels = self.images.batch(self.batch_size, generator)
        height, width = x.shape[-2:]
        padded = F.pad(x, [self.shift] * 4, value=-1.0)
        corners = torch.randint(2 * self.shift + 1, (2, self.batch_size, 1), generator=generator)
        down = (corners[0] + torch.arange(height))[:, None, :, None]
        across = (corners[1] + torch.arange(width))[:, None, None, :]
        x = padded[
            torch.arange(self.batch_size)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], down, across
        ]
        level = self.noise * torch.rand(self.batch_size, 1, 1, 1, generator=generator)
        x = x + level * torch.randn(x.shape, generator=generator)
        if self.flip:
            x = _half_mirrored(x, generator)
        own = slice(rows.start, rows.stop)
        return x[own], labels[own]

    def losses(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(x), labels, reduction="none", label_smoothing=0.05)


def initial_flow(teacher: EDMPrecond | VPPrecond, start: str, dropout: float, seed: int) -> RectifiedFlow:
    """Return the flow that training starts from: the teacher's network with ``"random"`` weights, or with the
    ``"teacher"``'s, which give the 1-rectified flow (Proposition 1).

    Raises ``ValueError`` for another ``start``.
    """
    one_of("start", start, STARTS)
    trained: Any = teacher.model
    config = {**trained.config, "dropout": dropout}
    network = type(trained)(**config, generator=rng.generator(seed, "initialisation"))
    if start == "teacher":
        network.load_state_dict(trained.state_dict())
    return RectifiedFlow(teacher.around(network))
