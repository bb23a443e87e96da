"""Why pairs help: how noisy MeanFlow's targets and gradients are on images with fresh noise, and on reflow's pairs.

MeanFlow's target ``v - (t - r) du/dt`` uses the velocity ``v = z - x`` of one couple, where the identity behind it
needs the mean ``E[v | x_t]``. It is linear in ``v``, so that with ``e = v - E[v | x_t]`` and the Jacobian ``J = du/dx``

    target - E[target | x_t] = e - (t - r) J e.

On independent couples ``e`` is as large as Eq. 4's irreducible term; on pairs that do not cross it nearly vanishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rfpp.arena import METHODS, Levelled, average
from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.configurations import ALL, Configuration
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow, interpolate

IMAGES, PAIRS, EXCHANGED = "images, fresh noise", "reflow's pairs", "pairs, noise exchanged"
TIMES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The times at which spreads are measured."""
JUDGED = 0.5
"""The time at which the claim compares targets, with ``r = 0``: the middle."""
_AT_ONCE = 250


@dataclass(frozen=True)
class Coupling:
    """Couples ``x``, ``z`` ``(n, C, H, W)`` with their labels, and the flow that has their mean velocity.

    It is exact for independent couples of a finite set of images. For reflow's pairs it is what a flow has learnt. On
    pairs that the flow has not seen, the spread around it is at least the true spread; on those it was trained with, as
    here, it may be smaller, the more often it has seen them.
    """

    x: Tensor
    z: Tensor
    labels: Tensor | None
    mean: RectifiedFlow


def _independent(images: Tensor, labels: Tensor | None) -> RectifiedFlow:
    """The exact flow of images with independent noise."""
    return RectifiedFlow(GaussianMixtureDenoiser(images, classes=labels))


def couplings(experiment: Experiment, seed: int, n: int, config: str = "C") -> dict[str, Coupling]:
    """The couplings by name, ``n`` couples each; ``config``: the flow that stands for the mean of reflow's pairs."""
    at_least("couples", n, 2)
    images, made = experiment.data.train, experiment.pairs("train", seed)
    generator = rng.generator(seed, "targets")
    x, labels = images.batch(n, generator)
    z = torch.randn(x.shape, generator=generator)
    known = images.labels if experiment.classes else None
    every, _, of_all = made.batch(torch.arange(len(made)))
    chosen = torch.randperm(len(made), generator=generator)[:n]
    paired, noise, wanted = made.batch(chosen)
    return {
        IMAGES: Coupling(x, z, labels if experiment.classes else None, _independent(images.floats(), known)),
        PAIRS: Coupling(paired, noise, wanted, experiment.flow(config, seed)),
        EXCHANGED: Coupling(paired, noise.roll(1, 0), wanted, _independent(every, of_all)),
    }


@torch.no_grad()
def spread(flow: average.AverageFlow, couples: Coupling, t: float, r: float = 0.0) -> tuple[float, float]:
    """The mean of ``||e||^2 / d``, and that of ``||e - (t - r) J e||^2 / d``, at a time ``t``."""
    velocity, target = [], []
    for rows in torch.arange(len(couples.x)).split(_AT_ONCE):
        x, z = couples.x[rows], couples.z[rows]
        labels = None if couples.labels is None else couples.labels[rows]
        x_t = interpolate(x, z, t)
        error = z - x - couples.mean.velocity(x_t, t, labels)

        def u(x_t: Tensor, labels: Tensor | None = labels) -> Tensor:
            return flow.average(x_t, t, labels, r)

        changed = torch.func.jvp(u, (x_t,), (error,))[1]
        velocity.append(error.square().flatten(1).mean(dim=1))
        target.append((error - (t - r) * changed).square().flatten(1).mean(dim=1))
    return float(torch.cat(velocity).mean()), float(torch.cat(target).mean())


def spreads(
    experiment: Experiment, couples: Mapping[str, Coupling], times: Sequence[float] = TIMES
) -> dict[str, tuple[Tensor, Tensor]]:
    """By coupling the spread of velocities and of targets, ``(T,)`` each, at the start of a training: ``u`` is the
    teacher's velocity."""
    flow = start(experiment)
    found = {name: [spread(flow, each, t) for t in times] for name, each in couples.items()}
    return {
        name: (torch.tensor([v for v, _ in each]), torch.tensor([u for _, u in each])) for name, each in found.items()
    }


SPREADS = ("of the velocity", "of the target, r = 0")
"""The quantities shown, one in each panel."""


def panels(found: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, tuple[Tensor, Tensor, None]]]:
    """The spreads of each coupling at :data:`TIMES` as curves, a panel for each of :data:`SPREADS`."""
    times = torch.tensor(TIMES)
    return {
        quantity: {name: (times, each[place], None) for name, each in found.items()}
        for place, quantity in enumerate(SPREADS)
    }


def in_the_middle(experiment: Experiment, coupled: Mapping[int, Mapping[str, Coupling]]) -> dict[str, list[float]]:
    """The spread of the target at :data:`JUDGED`, by coupling, one value for each seed of ``coupled``."""
    flow = start(experiment)
    names = dict.fromkeys(name for couples in coupled.values() for name in couples)
    return {name: [spread(flow, couples[name], JUDGED)[1] for couples in coupled.values()] for name in names}


def multiples(of: Mapping[str, Sequence[float]], coupling: str) -> list[float]:
    """The values on images with fresh noise as multiples of those on another coupling, seed by seed."""
    return [a / b for a, b in zip(of[IMAGES], of[coupling], strict=True)]


def excess(of: Mapping[str, Sequence[float]], coupling: str) -> list[float]:
    """The values on a coupling less those on images with fresh noise, seed by seed."""
    return [b - a for a, b in zip(of[IMAGES], of[coupling], strict=True)]


def start(experiment: Experiment) -> average.AverageFlow:
    """The flow that MeanFlow starts from, on the CPU."""
    return average.initial(experiment.plan.teacher.load(experiment.run), 0.0, 0).eval()


def gradients(flow: average.AverageFlow, couples: Coupling, batches: int, seed: int) -> Tensor:
    """MeanFlow's gradient with respect to all weights for each of some batches of the couples, ``(batches, weights)``.

    Times are those of MeanFlow on images, uniform, so that couplings differ in nothing else.
    """
    at_least("batches", batches, 2)
    size = len(couples.x) // batches
    method: Any = METHODS["meanflow"].objective(None, size, seed, 1, flow)  # type: ignore[arg-type]
    found = []
    for number in range(batches):
        rows = slice(number * size, (number + 1) * size)
        drawn = rng.generator(seed, "gradients", number)
        times = method.two(drawn, range(size), method.every)
        labels = None if couples.labels is None else couples.labels[rows]
        loss = method.losses(flow, couples.x[rows], couples.z[rows], labels, *times).mean()
        parts = torch.autograd.grad(loss, list(flow.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def accord(gradients: Tensor) -> float:
    """The mean cosine between the gradients ``(batches, weights)`` of two different batches: 1 where all agree."""
    unit = torch.nn.functional.normalize(gradients.double(), dim=1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def accords(
    experiment: Experiment, coupled: Mapping[int, Mapping[str, Coupling]], batches: int
) -> dict[str, list[float]]:
    """How much the gradients of two batches agree at the start of a training, by coupling, for each seed."""
    flow = start(experiment)
    names = dict.fromkeys(name for couples in coupled.values() for name in couples)
    return {
        name: [accord(gradients(flow, couples[name], batches, seed)) for seed, couples in coupled.items()]
        for name in names
    }


def powers(values: Sequence[float]) -> dict[float, Configuration]:
    """Configuration C with the premetric family at some powers; at 0 it is C itself.

    Raises ``TypeError`` or ``ValueError`` unless these are different numbers from 0 to 1, at least one.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"powers={values!r}: a list of at least one number from 0 to 1 is needed")
    if any(isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 for value in values):
        raise ValueError(f"powers={list(values)}: numbers from 0 to 1 are needed")
    if len(set(values)) < len(values):
        raise ValueError(f"powers={list(values)} has an entry twice; leave one of them out")
    base = ALL["C"]
    return {
        value: dataclasses.replace(base, summary=f"C, power {value:g}", premetric=Levelled(power=value))
        if value
        else base
        for value in values
    }
