"""Why pairs help: how noisy MeanFlow's targets and gradients are on images with fresh noise, and on reflow's pairs.

MeanFlow's target ``v - (t - r) du/dt`` uses the velocity ``v = z - x`` of one couple, where the identity behind it
needs the mean ``E[v | x_t]``. It is linear in ``v``, so that with ``e = v - E[v | x_t]`` and the Jacobian ``J = du/dx``

    target - E[target | x_t] = e - (t - r) J e.

On independent couples ``e`` is as large as Eq. 4's irreducible term; on pairs that do not cross it nearly vanishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfpp.arena import METHODS, Levelled, average
from rfpp.base import batches as parts
from rfpp.base import processes, rng
from rfpp.base.checks import at_least
from rfpp.configurations import ALL, Configuration
from rfpp.data import Images
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.studies.crossings import closed_form, ideal_denoiser

IMAGES, PAIRS, HELD_OUT, EXCHANGED = (
    "images, fresh noise", "reflow's pairs", "reflow's pairs, held out", "pairs, noise exchanged"
)  # fmt: skip
TIMES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The times at which spreads are measured."""
JUDGED = 0.5
"""The time at which the claim compares targets, with ``r = 0``: the middle."""


@dataclass(frozen=True)
class Coupling:
    """Couples ``x``, ``z`` ``(n, C, H, W)`` with their labels, and the flow that has their mean velocity.

    It is exact for independent couples of a finite set of images. For reflow's pairs it is what a flow has learnt. On
    pairs that the flow has not seen, the spread around it is at least the true spread. On those it was trained with, it
    may be smaller, the more often it has seen them.
    """

    x: Tensor
    z: Tensor
    labels: Tensor | None
    mean: RectifiedFlow


def couplings(experiment: Experiment, seed: int, n: int, most: int = 20_000, config: str = "C") -> dict[str, Coupling]:
    """The couplings by name, ``n`` couples each; there may be fewer held-out pairs.

    ``most``: how many images, or pairs, a closed form is made of at most, and couples are drawn from; ``config``: the
    flow that stands for the mean of reflow's pairs.
    """
    at_least("couples", n, 2)
    images, made, unseen = experiment.data.train, experiment.pairs("train", seed), experiment.pairs("held_out")
    flow = experiment.flow(config, seed)
    generator, available = rng.generator(seed, "targets"), min(len(made), most)
    x, labels = Images(images.pixels[:most], images.labels[:most]).batch(n, generator)
    z = torch.randn(x.shape, generator=generator)
    every, _, of_all = made.batch(torch.arange(available))
    chosen = torch.randperm(available, generator=generator)[:n]
    paired, noise, wanted = made.batch(chosen)
    exchanged = RectifiedFlow(closed_form(experiment, every, of_all))
    ideal = RectifiedFlow(ideal_denoiser(experiment, most))
    return {
        IMAGES: Coupling(x, z, labels if experiment.classes else None, ideal),
        PAIRS: Coupling(paired, noise, wanted, flow),
        HELD_OUT: Coupling(*unseen.batch(torch.arange(min(n, len(unseen)))), flow),
        EXCHANGED: Coupling(paired, noise.roll(1, 0), wanted, exchanged),
    }


@torch.no_grad()
def spread(flow: average.AverageFlow, couples: Coupling, t: float, r: float = 0.0) -> tuple[float, float]:
    """The mean of ``||e||^2 / d``, and that of ``||e - (t - r) J e||^2 / d``, at a time ``t``."""
    x_t = interpolate(couples.x, couples.z, t)
    error = couples.z - couples.x - couples.mean.velocity(x_t, t, couples.labels)
    changed = torch.func.jvp(lambda x_t: flow.average(x_t, t, couples.labels, r), (x_t,), (error,))[1]
    return float(error.square().mean()), float((error - (t - r) * changed).square().mean())


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
    """The flow that MeanFlow starts from. It computes as many rows at once as a training step does: in forward mode it
    takes about as much memory."""
    flow = average.initial(experiment.plan.teacher.load(experiment.run), 0.0, 0).eval()
    rows = experiment.preset.machinery.micro_batch or experiment.preset.pairs.batch_size
    assert isinstance(flow.denoiser, nn.Module)
    parts.at_most(rows, processes.place(flow.denoiser))
    return flow


def gradients(
    flow: average.AverageFlow,
    couples: Coupling,
    batches: int,
    seed: int,
    rows: int | None = None,
    every: int | None = None,
) -> Iterator[Tensor]:
    """Yield MeanFlow's gradient with respect to all weights, ``(weights,)``, for each of some batches of the couples.

    Times are those of MeanFlow on images, uniform, so that couplings differ in nothing else. ``rows``: how many are
    computed at once; a whole batch by default. ``every``: one row in so many has ``r < t``; by default as MeanFlow has.
    """
    at_least("batches", batches, 2)
    size = len(couples.x) // batches
    method: Any = METHODS["meanflow"].objective(None, size, seed, 1, flow)  # type: ignore[arg-type]
    for number, batch in enumerate(torch.arange(batches * size).split(size)):
        times = method.two(rng.generator(seed, "gradients", number), range(size), every or method.every)
        total: Any = 0
        for some in torch.arange(size).split(rows or size):
            chosen = batch[some]
            labels = None if couples.labels is None else couples.labels[chosen]
            given = couples.x[chosen], couples.z[chosen], labels, *(each[some] for each in times)
            loss = method.losses(flow, *given).sum() / size
            found = torch.autograd.grad(loss, list(flow.parameters()))
            total = total + torch.cat([part.flatten() for part in found])
        yield total


def accord(gradients: Iterable[Tensor]) -> float:
    """The mean cosine between the gradients ``(weights,)`` of two different batches: 1 where all agree.

    With unit vectors ``u_i`` of ``n`` gradients it is ``(||sum_i u_i||^2 - n) / (n (n - 1))``, which needs no two of
    them at once.
    """
    total, count = torch.zeros(()), 0
    for gradient in gradients:
        total, count = total + torch.nn.functional.normalize(gradient.double(), dim=0), count + 1
    return float((total.square().sum() - count) / (count * (count - 1)))


def accords(
    experiment: Experiment, coupled: Mapping[int, Mapping[str, Coupling]], batches: int, every: int | None = None
) -> dict[str, list[float]]:
    """How much the gradients of two batches agree at the start of a training, by coupling, for each seed.

    Held-out pairs are left out: there are too few of them for batches as large as the others'. ``every``: one row in so
    many has ``r < t``; by default as MeanFlow has.
    """
    flow, rows = start(experiment), experiment.preset.machinery.micro_batch
    names = dict.fromkeys(name for couples in coupled.values() for name in couples if name != HELD_OUT)
    return {
        name: [accord(gradients(flow, couples[name], batches, seed, rows, every)) for seed, couples in coupled.items()]
        for name in names
    }


def powers(values: Sequence[float]) -> dict[float, Configuration]:
    """Configuration C with the premetric family at some powers; at 0 it is C itself.

    Raises ``ValueError`` unless these are different numbers from 0 to 1, at least one.
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
