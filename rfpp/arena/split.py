"""Shortcut models and SplitMeanFlow (Frans et al., 2025; Guo et al., 2025): one leap is fitted to two shorter ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rfpp.arena.methods import PLAIN, Coupled, TwoTimes
from rfpp.base import rng
from rfpp.data import Images
from rfpp.denoisers import expand
from rfpp.engine import Batch, Objective
from rfpp.flow import interpolate
from rfpp.pairs import PairDataset


@dataclass(frozen=True)
class Shortcut(TwoTimes):
    """``(t - s) u(x_t, s, t) = (t - r) u(x_t, r, t) + (r - s) u(x_r, s, r)`` with ``x_r = x_t - (t - r) u(x_t, r, t)``.

    The left side is fitted to the right side, which passes no gradient. One row out of ``every`` has ``s < t``, with
    ``r`` uniform between them; in the others the target of ``u(x_t, t, t)`` is ``z - x``. Errors are squared.
    """

    @property
    def price(self) -> float:
        return PLAIN + 2 / self.every

    def objective(
        self, source: Images | PairDataset, batch_size: int, seed: int, steps: int, teacher: nn.Module
    ) -> Objective:
        return _Shortcut(source, self.timesteps, batch_size, seed, self.every)


@dataclass(frozen=True)
class _Shortcut(Coupled):
    every: int

    def draw(self, step: int, rows: range) -> Batch:
        generator = rng.generator(self.seed, "reflow", step)
        x, z, labels = self.couple(generator, rows)
        t, s = self.two(generator, rows, self.every)
        share = torch.rand(self.batch_size, generator=generator)[rows.start : rows.stop]
        return x, z, labels, t, s, s + share * (t - s)

    def losses(
        self, model: nn.Module, x: Tensor, z: Tensor, labels: Tensor | None, t: Tensor, s: Tensor, r: Tensor
    ) -> Tensor:
        x_t, target = interpolate(x, z, t), z - x
        rows = (s < t).nonzero().flatten()
        if len(rows):
            target[rows] = self._two_leaps(model, x_t[rows], None if labels is None else labels[rows], *(
                times[rows] for times in (t, s, r)
            )).to(target.dtype)  # fmt: skip
        return (model(x_t, t, labels, s) - target).square().flatten(1).mean(dim=1)

    @torch.no_grad()
    def _two_leaps(
        self, model: nn.Module, x_t: Tensor, labels: Tensor | None, t: Tensor, s: Tensor, r: Tensor
    ) -> Tensor:
        """The average velocity from ``t`` to ``s``, by way of ``r``."""
        first, second = expand(t - r, x_t), expand(r - s, x_t)
        before = model(x_t, t, labels, r)
        after = model(x_t - first * before, r, labels, s)
        mean: Tensor = (first * before + second * after) / (first + second)
        return mean
