"""MeanFlow (Geng et al., 2025): the average velocity by the identity that it obeys, on images or reflow's pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from rfpp.arena.methods import JVP, PLAIN, Coupled, TwoTimes
from rfpp.base import rng
from rfpp.data import Images
from rfpp.denoisers import expand
from rfpp.engine import Batch, Objective
from rfpp.flow import interpolate
from rfpp.pairs import PairDataset


@dataclass(frozen=True)
class MeanFlow(TwoTimes):
    """``u(x_t, r, t)`` is fitted to ``v - (t - r) du/dt``, with ``v = z - x`` and no gradient through the target.

    One row in ``every`` has ``r < t``; in the others the target is ``v``. A row's squared error ``e = ||.||^2`` is
    divided by ``(e + offset)^power``, again without a gradient.
    """

    power: float = 1.0
    offset: float = 1e-3

    @property
    def price(self) -> float:
        return PLAIN + JVP / self.every

    def objective(
        self, source: Images | PairDataset, batch_size: int, seed: int, steps: int, teacher: nn.Module
    ) -> Objective:
        return _MeanFlow(source, self.timesteps, batch_size, seed, self.every, self.power, self.offset)


@dataclass(frozen=True)
class _MeanFlow(Coupled):
    every: int
    power: float
    offset: float

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "reflow", step)
        return (*self.couple(generator, rows), *self.two(generator, rows, self.every))

    def losses(self, model: nn.Module, x: Tensor, z: Tensor, labels: Tensor | None, t: Tensor, r: Tensor) -> Tensor:
        u, change = model(interpolate(x, z, t), t, labels, r, along=z - x)
        error = (u - (z - x - expand(t - r, x) * change)).square().flatten(1).sum(dim=1)
        return error / (error.detach() + self.offset) ** self.power
