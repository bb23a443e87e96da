"""How should evaluations be spent? Samplers compared over the NFE (Figure 4, Section 5.3, Appendix D)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from rfpp import intersections, metrics, samplers
from rfpp.base.checks import between, counts, distinct
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline.grades import Evaluation
from rfpp.pipeline.sampling import Sampler

PATH = 8
"""The number of Euler steps in which a path is examined."""

EXACT = 127
"""Evaluations of Heun's method that stand in for the exact solution."""


def families(experiment: Experiment, euler: Sequence[int], heun: Sequence[int]) -> dict[str, list[Sampler]]:
    """Samplers by name and NFE: Euler's method and Heun's, each with either update.

    Raises ``TypeError`` or ``ValueError`` unless ``euler`` and ``heun`` are different numbers of evaluations that the
    methods can take from the preset's first time, and so can the solve that stands in for the exact solution.
    """
    counts("euler", euler)
    counts("heun", heun)
    found: dict[str, list[Sampler]] = {
        name: [] for name in ("Euler", "Euler, straight update", "Heun", "Heun, straight update")
    }
    for parameter, values in (("euler", euler), ("heun", heun)):
        for nfe in sorted(values):
            try:
                standard = experiment.sampler(nfe, parameter)
            except ValueError as error:
                raise ValueError(f"{parameter}={list(values)}: {error}") from error
            found[parameter.capitalize()].append(standard)
            found[f"{parameter.capitalize()}, straight update"].append(
                experiment.sampler(nfe, parameter, update="straight")
            )
    try:
        experiment.sampler(EXACT, "heun")
    except ValueError as error:
        raise ValueError(f"the solution that others are compared with takes {EXACT} evaluations: {error}") from error
    return found


def check_second_times(experiment: Experiment, second: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are times between 0 and the preset's first, none twice."""
    first = experiment.preset.evaluation.first_time
    if isinstance(second, str) or not isinstance(second, Sequence):
        raise TypeError(f"second={second!r} is a {type(second).__name__}; a list of times is needed")
    if not second:
        raise ValueError(f"second={second!r} is empty; a list of at least one time is needed")
    for time in second:
        between("an entry of second", time, 0, first, setting="evaluation.first_time")
    distinct("second", second)


@dataclass(frozen=True)
class Comparison:
    """Samplers by family, and the evaluations of each, one for each seed."""

    samplers: Mapping[str, Sequence[Sampler]]
    runs: Mapping[Sampler, Sequence[Evaluation]]

    def over_nfe(self, quantity: str) -> dict[str, dict[int, list[float]]]:
        """A quantity of :class:`rfpp.pipeline.grades.Evaluation` by family and NFE, one value for each seed."""
        return {
            name: {sampler.nfe: [getattr(run, quantity) for run in self.runs[sampler]] for sampler in family}
            for name, family in self.samplers.items()
        }

    def gain(self, couples: Iterable[tuple[Sampler, Sampler]]) -> list[float]:
        """By how much the second sampler's Fréchet distance is smaller than the first's, for each seed.

        The mean over ``couples`` of samplers; empty without any.
        """
        gains = [
            [worse.frechet - better.frechet for worse, better in zip(self.runs[a], self.runs[b], strict=True)]
            for a, b in couples
        ]
        return [statistics.fmean(of_seed) for of_seed in zip(*gains, strict=True)]

    def trends(self, family: str) -> list[float]:
        """Kendall's rank correlation of the Fréchet distance with the NFE, for each seed: -1 if it always falls."""
        distances = self.over_nfe("frechet")[family]
        of_seeds = zip(*distances.values(), strict=True)
        return [_trend(list(distances), of_seed) for of_seed in of_seeds]


def _trend(order: Sequence[int], values: Sequence[float]) -> float:
    return float(stats.kendalltau(order, values).statistic)


def fresh_draws(
    experiment: Experiment, config: str, seeds: Sequence[int], sampler: Sampler, n: int
) -> list[list[Evaluation]]:
    """The same sampler graded ``n`` times on fresh noise, one evaluation for each seed: the effect of chance alone."""
    return [experiment.sweep(config, seeds, [sampler], draw)[sampler] for draw in range(1, n + 1)]


def trends_by_chance(draws: Sequence[Sequence[Evaluation]]) -> list[float]:
    """Kendall's rank correlation of the Fréchet distance with the number of the draw, for each seed."""
    of_seeds = zip(*([run.frechet for run in draw] for draw in draws), strict=True)
    return [_trend(range(len(draws)), of_seed) for of_seed in of_seeds]


def against_euler(
    experiment: Experiment,
    config: str,
    comparison: Comparison,
    numbers: Sequence[int],
    seeds: Sequence[int],
    solver: str = "euler",
    update: str = "standard",
) -> tuple[list[float], list[float]]:
    """What another solver or update gains over Euler's standard one at equal NFE, mean over ``numbers``, for each seed.

    The second list is what Euler's gains over itself with fresh noise.
    """
    plain = [experiment.sampler(nfe) for nfe in numbers]
    others = [experiment.sampler(nfe, solver, update) for nfe in numbers]
    again = experiment.sweep(config, seeds, plain, draw=1)
    gains = [
        [first.frechet - second.frechet for first, second in zip(comparison.runs[each], again[each], strict=True)]
        for each in plain
    ]
    by_chance = [statistics.fmean(of_seed) for of_seed in zip(*gains, strict=True)]
    return comparison.gain(zip(plain, others, strict=True)), by_chance


def compare(
    experiment: Experiment, config: str, families: Mapping[str, Sequence[Sampler]], seeds: Sequence[int]
) -> Comparison:
    """Grade a configuration with every sampler, training it where needed."""
    wanted = [sampler for family in families.values() for sampler in family]
    graded = experiment.sweep(config, seeds, wanted)
    return Comparison(families, {sampler: graded[sampler] for sampler in wanted})


@dataclass(frozen=True)
class Start:
    """Noise ``z`` ``(N, C, H, W)`` and ``labels`` ``(N,)``, ``None`` where the teacher knows no classes."""

    z: Tensor
    labels: Tensor | None

    def first(self, n: int) -> Start:
        """The first ``n``."""
        return Start(self.z[:n], None if self.labels is None else self.labels[:n])


def errors(
    experiment: Experiment, flow: RectifiedFlow, families: Mapping[str, Sequence[Sampler]], start: Start
) -> dict[str, dict[int, list[float]]]:
    """Mean root mean square distance per pixel from the solution of the flow's own ODE, by family and NFE."""
    exact = experiment.sampler(EXACT, "heun")(flow, start.z, start.labels)

    def error(sampler: Sampler) -> float:
        difference = sampler(flow, start.z, start.labels) - exact
        return float(difference.square().flatten(1).mean(dim=1).sqrt().mean())

    return {name: {sampler.nfe: [error(sampler)] for sampler in family} for name, family in families.items()}


@torch.no_grad()
def path(experiment: Experiment, flow: RectifiedFlow, start: Start) -> tuple[list[Tensor], list[float]]:
    """The states ``(N, C, H, W)`` along Euler steps from noise to images, and their times."""
    times = experiment.sampler(PATH).times.tolist()
    return samplers.integrate(flow, start.z * times[0], times, labels=start.labels), times


def straightness(experiment: Experiment, flow: RectifiedFlow, start: Start) -> float:
    """Mean squared deviation of paths from their chords, known as straightness although 0 is straight."""
    return float(metrics.straightness(*path(experiment, flow, start)).mean())


@torch.no_grad()
def predictions(experiment: Experiment, flow: RectifiedFlow, start: Start) -> Tensor:
    """The x-prediction at the beginning of each Euler step, ``(N, steps, C, H, W)``."""
    states, times = path(experiment, flow, start)
    each = zip(states[:-1], times[:-1], strict=True)
    return torch.stack([flow.x_prediction(x_t, t, start.labels) for x_t, t in each], dim=1)


def two_steps(
    experiment: Experiment, config: str, seeds: Sequence[int], second: Sequence[float], quantity: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two Euler steps by the time at which the second begins: times, a quantity's mean over seeds, and its deviation.

    ``quantity``: of :class:`rfpp.pipeline.grades.Evaluation`; there is no deviation of a single seed.
    """
    wanted = [experiment.sampler(2, inner=(time,)) for time in second]
    graded = experiment.sweep(config, seeds, wanted)
    values = torch.tensor([[getattr(run, quantity) for run in graded[sampler]] for sampler in wanted])
    return torch.tensor(second), values.mean(dim=1), values.std(dim=1) if len(seeds) > 1 else None


def least(curve: tuple[Tensor, Tensor, Tensor | None], time: float) -> tuple[float, float]:
    """The time at which a curve of :func:`two_steps` is least, and by which share it is larger at ``time``.

    Raises ``ValueError`` for a time that was not tried.
    """
    times, means, _ = curve
    near = torch.isclose(times, torch.tensor(time, dtype=times.dtype))
    if not near.any():
        raise ValueError(f"time={time:g} was not tried; the curve has {', '.join(f'{each:g}' for each in times)}")
    return round(float(times[means.argmin()]), 6), float(means[near][0] / means.min()) - 1


@dataclass(frozen=True)
class Walk:
    """One path in the plane: its states ``(N + 1, 2)``, the ends that it predicted on its way ``(N, 2)``, and the
    exact path ``(T, 2)`` from the same noise."""

    states: Tensor
    predictions: Tensor
    exact: Tensor


def in_the_plane(update: str) -> Walk:
    """Four Euler steps of the plane's exact 1-rectified flow, whose paths are curved, with either update."""
    data = intersections.plane_data()
    flow = RectifiedFlow(data)
    _, z = intersections.draw_plane(data, 1, seed=17)
    times = samplers.generation_times(4)
    states = samplers.integrate(flow, z, times, update=update)
    ends = [flow.x_prediction(x, float(t)) for x, t in zip(states, times[:-1], strict=False)]
    exact = samplers.integrate(flow, z, samplers.generation_times(200), "heun")
    return Walk(torch.cat(states), torch.cat(ends), torch.cat(exact))
