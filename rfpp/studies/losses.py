"""Where in time is the loss? Losses of trained flows over ``t`` (Figure 3), and how well a law of times follows it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rfpp import premetrics, training
from rfpp.base import rng
from rfpp.base.checks import one_of
from rfpp.configurations import ALL, TEACHER
from rfpp.data import to_float
from rfpp.experiment import Experiment
from rfpp.flow import interpolate
from rfpp.timesteps import TimestepDistribution

TIMES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""The times at which the loss is measured, denser towards the ends."""


def squared_losses(experiment: Experiment, config: str, seeds: Sequence[int], n: int) -> list[Tensor]:
    """For each training seed ``||z - x - v||^2 / d`` at :data:`TIMES`, ``(T, n)``, of ``n`` training pairs at most."""
    one_of("config", config, ALL)
    times, found = torch.tensor(TIMES), []
    for seed in seeds:
        flow, made = experiment.flow(config, seed), experiment.pairs("train", seed)
        found.append(training.losses_over_time(flow, made, times, premetrics.squared_l2, min(n, len(made))))
    return found


def blind_losses(experiment: Experiment, seed: int, n: int) -> Tensor:
    """The same for a flow that has learnt the mean direction alone, ``v = E[z - x]``: it cannot depend on ``t``."""
    made = experiment.pairs("train", seed)
    x, z, _ = made.batch(torch.arange(min(n, len(made))))
    direction = z - x
    return premetrics.squared_l2(direction, direction.mean(dim=0, keepdim=True)).expand(len(TIMES), -1)


@torch.no_grad()
def of_teacher(experiment: Experiment, n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The teacher's loss at :data:`TIMES` on at most ``n`` training images and held-out ones: times and means ``(T,)``.

    Each image has one noise for all times. A teacher that has overfitted has a smaller loss on its training images.
    """
    flow, images, found = experiment.flow(TEACHER), experiment.data, {}
    for name, part in (("training images", images.train), ("held-out images", images.held_out)):
        x, labels = to_float(part.pixels[:n]), part.labels[:n] if experiment.classes else None
        z = torch.randn(x.shape, generator=rng.generator(0, "loss on images"))
        velocities = (flow.velocity(interpolate(x, z, t), t, labels) for t in TIMES)
        losses = torch.stack([premetrics.squared_l2(z - x, v).mean() for v in velocities])
        found[name] = torch.tensor(TIMES), losses
    return found


def mean_and_spread(of_seeds: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Times, mean and standard deviation among pairs ``(T,)`` of losses ``(T, N)``, all seeds together."""
    pooled = torch.cat(list(of_seeds), dim=1)
    return torch.tensor(TIMES), pooled.mean(dim=1), pooled.std(dim=1)


def end_ratio(losses: Tensor) -> float:
    """The mean loss ``(T, N)`` at the lower of the two ends over that in the middle: above 1 for a U-shape."""
    means = losses.mean(dim=1)
    middle = (torch.tensor(TIMES) - 0.5).abs().argmin()
    return float(torch.minimum(means[0], means[-1]) / means[middle])


def printed_density(t: Tensor) -> Tensor:
    """The density that the paper prints, ``2 cosh(4 t)``, normalised over the unit interval: it only rises."""
    return 4 * torch.cosh(4 * t) / math.sinh(4)


def share_drawn(law: TimestepDistribution, low: float, high: float, n: int = 100_000) -> float:
    """The share of ``n`` draws that fall between ``low`` and ``high``."""
    draws = law.sample(n, generator=rng.generator(0, "draws"))
    return float(((low < draws) & (draws < high)).float().mean())


def mismatch(law: TimestepDistribution, loss: Tensor) -> float:
    """Total variation distance between the law and the normalised loss ``(T,)``, both at :data:`TIMES`.

    0 for equal densities, 1 for those that share nothing.
    """
    times = torch.tensor(TIMES)
    (width,) = torch.gradient(times)
    p, q = (values * width / (values * width).sum() for values in (law.pdf(times), loss))
    return float((p - q).abs().sum() / 2)


def by_part(experiment: Experiment, config: str, seeds: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """The training loss over ``t`` in the first, a middle and the last tenth of a training: times and mean over seeds.

    Tenths without a step of their own, in trainings of a few steps, are left out.
    """
    kept = [experiment.history(config, seed).over_time for seed in seeds]
    values = [[[math.nan if loss is None else loss for loss in part] for part in run] for run in kept]
    parts = torch.tensor(values).nanmean(dim=0)
    seen = (~parts.isnan()).any(dim=1).nonzero().flatten().tolist()
    centres = (torch.arange(parts.shape[1]) + 0.5) / parts.shape[1]
    chosen = dict.fromkeys((seen[0], seen[len(seen) // 2], seen[-1]))
    return {f"{10 * part} to {10 * part + 10} % of the training": (centres, parts[part]) for part in chosen}
