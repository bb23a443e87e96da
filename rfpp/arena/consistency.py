"""Consistency training and distillation: the network learns to predict the same image at two points of a path.

``f(x_t, t) = x_t - t v(x_t, t)`` is the x-prediction, which EDM's preconditioning makes the identity at ``t = 0``. The
schedule of the two noise levels is that of easy consistency tuning (Geng et al., 2024), the distance is pseudo-Huber
(Song and Dhariwal, 2024), and distillation computes the second point by a Heun step of the teacher (Song et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from rfpp.arena.methods import PLAIN, Coupled, Method
from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.data import Images
from rfpp.denoisers import expand
from rfpp.engine import Batch, Objective
from rfpp.flow import interpolate
from rfpp.pairs import PairDataset


@dataclass(frozen=True)
class Consistency(Method):
    """``f(x_t, t)`` is fitted to ``f(x_r, r)``, which passes no gradient; ``r`` approaches ``t`` during training.

    In noise levels ``sigma = t / (1 - t)``, ``sigma_r = sigma_t (1 - 2^-k (1 + 8 sigmoid(-sigma_t)))`` at stage ``k``
    of ``stages``, but at least 0, where the target is ``x``. ``distilled``: ``x_r`` comes from a Heun step of the
    teacher, not from the same ``x`` and ``z``. A row's loss is pseudo-Huber with ``c = 0.00054 sqrt(d)``, divided by
    ``sigma_t - sigma_r``.
    """

    distilled: bool = False
    stages: int = 8

    predicts_ends: ClassVar[bool] = True
    first: ClassVar[float | None] = 80 / 81  # EDM's highest noise level, 80

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("stages", self.stages, 1)

    @property
    def price(self) -> float:
        return PLAIN + 1 + 2 * self.distilled

    def objective(
        self, source: Images | PairDataset, batch_size: int, seed: int, steps: int, teacher: nn.Module
    ) -> Objective:
        made = teacher if self.distilled else None
        return _Consistency(source, self.timesteps, batch_size, seed, steps, self.stages, made)


def earlier(sigma: Tensor, stage: int) -> Tensor:
    """The lower noise level for each higher one in ``sigma`` ``(B,)``, at a stage counted from 1."""
    return (sigma * (1 - 2.0**-stage * (1 + 8 * torch.sigmoid(-sigma)))).clamp_min(0)


@torch.no_grad()
def heun_step(flow: nn.Module, x_t: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
    """The state at time ``r`` of the path through ``x_t`` at ``t``, by one Heun step in the flow's own time.

    ``t``, ``r``: ``(B,)``; a step to 0 is an Euler step.
    """
    length, slope = expand(r - t, x_t), flow(x_t, t, labels)
    proposal = x_t + length * slope
    mean = (slope + flow(proposal, r, labels)) / 2
    return torch.where(expand(r, x_t) > 0, x_t + length * mean, proposal)


@dataclass(frozen=True)
class _Consistency(Coupled):
    steps: int
    stages: int
    teacher: nn.Module | None

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "reflow", step)
        x, z, labels = self.couple(generator, rows)
        t = self.timesteps.sample(self.batch_size, generator=generator)[rows.start : rows.stop]
        lower = earlier(t / (1 - t), 1 + step * self.stages // self.steps)
        return x, z, labels, t, lower / (1 + lower)

    def losses(self, model: nn.Module, x: Tensor, z: Tensor, labels: Tensor | None, t: Tensor, r: Tensor) -> Tensor:
        x_t = interpolate(x, z, t)
        x_r = interpolate(x, z, r) if self.teacher is None else heun_step(self.teacher, x_t, t, r, labels)
        with torch.no_grad():
            target = torch.where(expand(r, x) > 0, x_r - expand(r, x) * model(x_r, r, labels), x_r)
        error = x_t - expand(t, x) * model(x_t, t, labels) - target
        c = 0.00054 * error[0].numel() ** 0.5
        squared = error.square().flatten(1).sum(dim=1)
        return squared / ((squared + c**2).sqrt() + c) / (t / (1 - t) - r / (1 - r))
