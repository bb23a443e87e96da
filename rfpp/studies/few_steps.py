"""Better few-step samplers without training: where steps begin, and how far each trusts the noise it started from.

Euler's step goes to ``(1 - t') x_hat + t' z_hat``, where ``z_hat`` is the predicted noise. The straight update uses
the initial noise ``z`` instead (Appendix D). A blend with weight ``w`` goes to a point between the two. Times and
weights are chosen by the mean squared distance to the images of some held-out pairs, and judged on others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rfpp.base import rng
from rfpp.base.checks import at_least, counts, one_of
from rfpp.experiment import Experiment
from rfpp.flow import T_MAX, RectifiedFlow, interpolate
from rfpp.samplers import generation_times
from rfpp.studies import scales

CHOICES = ("times", "weights", "both")
"""What may be chosen: the times of steps after the first, the weights, or both."""

_DIGITS = 4
"""Decimals that chosen numbers are rounded to, so that a sampler is the same wherever it is read."""


def blend(
    flow: RectifiedFlow, z: Tensor, times: Sequence[Any], weights: Sequence[Any], labels: Tensor | None = None
) -> Tensor:
    """Steps along falling ``times`` with a weight for each, from noise ``z`` ``(B, ...)`` to images.

    ``x_t' = (1 - w) (x_t + (t' - t) v) + w ((1 - t') (x_t - t v) + t' z)``: Euler's update at ``w = 0`` and the
    straight one at ``w = 1``, bit for bit as in :func:`rfpp.samplers.integrate`. Times and weights are numbers, or
    tensors to differentiate by. The velocities are then computed a second time for the gradient, so that the memory it
    takes is that of one step.
    """
    x = start = z * min(float(times[0]), T_MAX)
    for (t, s), w in zip(pairwise(times), weights, strict=True):
        if torch.is_grad_enabled():
            v = checkpoint(flow.velocity, x, t, labels, use_reentrant=False)
        else:
            v = flow.velocity(x, t, labels)
        x = (1 - w) * (x + (s - t) * v) + w * interpolate(x - t * v, start, s)
    return x


@dataclass(frozen=True)
class Blended:
    """A sampler with a time and a weight for each step: :func:`blend` from ``times[0]`` to the final 0.

    Raises ``ValueError`` for times that do not fall within (0, 1), weights outside of [0, 1], or not as many as steps.
    """

    times: tuple[float, ...]
    weights: tuple[float, ...]
    batch_size: int = field(default=500, compare=False, repr=False)
    """How many images are sampled at once."""

    def __post_init__(self) -> None:
        grid = (*self.times, 0.0)
        if not self.times or not self.times[0] < 1 or not all(t > s for t, s in pairwise(grid)):
            raise ValueError(f"times={self.times} must be one or more falling numbers within (0, 1)")
        if len(self.weights) != len(self.times):
            raise ValueError(f"weights={self.weights}: one for each of {len(self.times)} times is needed")
        if not all(0 <= w <= 1 for w in self.weights):
            raise ValueError(f"weights={self.weights} must lie within [0, 1]")

    @property
    def nfe(self) -> int:
        """One evaluation for each step."""
        return len(self.times)

    @torch.no_grad()
    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``(N, ...)`` of noise ``z``, in batches, on the device of ``z``."""
        images, place = [], next((parameter.device for parameter in flow.parameters()), z.device)
        for rows in torch.arange(len(z)).split(self.batch_size):
            chosen = None if labels is None else labels[rows].to(place)
            images.append(blend(flow, z[rows].to(place), (*self.times, 0.0), self.weights, chosen).to(z.device))
        return torch.cat(images)


def uniform(nfe: int, first: float, weight: float = 0.0) -> Blended:
    """The uniform grid with the same weight for all steps."""
    return Blended(tuple(generation_times(nfe, first)[:-1].tolist()), (weight,) * nfe)


def at_random(nfe: int, first: float, seed: int) -> Blended:
    """Random times and weights, drawn uniformly with a seed."""
    drawn = torch.rand(2, nfe, generator=rng.generator(seed, "few_steps", nfe), dtype=torch.float64)
    inner = sorted((first * drawn[0, 1:]).tolist(), reverse=True)
    return Blended((first, *inner), tuple(drawn[1].tolist()))


@dataclass(frozen=True)
class Pairs:
    """Pairs of noise ``z`` and image ``x`` ``(N, ...)`` with ``labels`` ``(N,)`` or ``None``."""

    x: Tensor
    z: Tensor
    labels: Tensor | None

    def parts(self, rows: int | None) -> list[Pairs]:
        """The pairs in groups of ``rows``; all in one where that is ``None``."""
        return [
            Pairs(self.x[some], self.z[some], None if self.labels is None else self.labels[some])
            for some in torch.arange(len(self.x)).split(rows or len(self.x))
        ]

    def error(self, flow: RectifiedFlow, sampler: Any) -> float:
        """The mean of ``||sampler(z) - x||^2 / d``."""
        return float((sampler(flow, self.z, self.labels) - self.x).square().mean())


def _leaves_some(experiment: Experiment, n: int) -> None:
    at_least("pairs_used", n, 1)
    made = experiment.preset.pairs.held_out
    if n >= made:
        raise ValueError(f"pairs_used={n} leaves none of the {made} held-out pairs to judge by; use fewer")


def split(experiment: Experiment, n: int) -> tuple[Pairs, Pairs]:
    """The first ``n`` held-out pairs to choose by, and as many others, or all that are left, to judge by.

    Raises ``ValueError`` if none is left to judge by.
    """
    _leaves_some(experiment, n)
    held_out = experiment.pairs("held_out")
    parts = torch.arange(n), torch.arange(n, min(2 * n, len(held_out)))
    chosen, judging = (Pairs(*held_out.batch(rows)) for rows in parts)
    return chosen, judging


def _objective(
    flow: RectifiedFlow, pairs: Pairs, start: Blended, what: str
) -> tuple[np.ndarray[Any, Any], list[tuple[float | None, float | None]], Callable[[Tensor], tuple[Any, Any]]]:
    """Where the search starts, its bounds, and times and weights as functions of its variables.

    The gaps between times are a softmax, so times fall for any variables; the first time is fixed. The weights of the
    first and the last step matter little or not at all, and are fixed as well.
    """
    gaps = -np.diff((*start.times, 0.0))
    steps = len(gaps)
    free_times, free_weights = what in ("times", "both"), what in ("weights", "both") and steps > 2
    variables = [*(np.log(gaps) if free_times else []), *(start.weights[1:-1] if free_weights else [])]
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * (steps if free_times else 0)
    bounds += [(0.0, 1.0)] * (steps - 2 if free_weights else 0)
    known_times = torch.tensor((*start.times, 0.0), dtype=torch.float64)
    known_weights = torch.tensor(start.weights, dtype=torch.float64)

    def made(values: Tensor) -> tuple[Tensor, Tensor]:
        times, weights = known_times, known_weights
        if free_times:
            fallen = values[:steps].softmax(dim=0).cumsum(dim=0)[:-1]
            times = torch.cat([known_times[:1], known_times[0] * (1 - fallen), known_times[-1:]])
        if free_weights:
            weights = torch.cat([known_weights[:1], values[-(steps - 2) :], known_weights[-1:]])
        return times, weights

    return np.array(variables), bounds, made


def choose(
    flow: RectifiedFlow,
    pairs: Pairs,
    nfe: int,
    first: float,
    what: str = "both",
    iterations: int = 10,
    rows: int | None = None,
) -> Blended:
    """Choose times, weights, or both for ``nfe`` evaluations by L-BFGS on the pairs' error, from the uniform grid.

    The choice is never worse on these pairs than the uniform grid with either update: both are candidates. Nothing is
    random. ``rows``: how many pairs are differentiated at once; all by default. Raises ``TypeError`` or ``ValueError``
    for an unknown choice, or fewer than one evaluation or iteration.
    """
    one_of("what", what, CHOICES)
    at_least("nfe", nfe, 1)
    at_least("iterations", iterations, 1)
    plain = [uniform(nfe, first, weight) for weight in (0.0, 1.0)]
    start = plain[0] if what == "times" else uniform(nfe, first, 0.5)
    variables, bounds, made = _objective(flow, pairs, start, what)
    candidates = [*plain, start]
    if nfe > 1 and len(variables):

        def error(values: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            inputs = torch.tensor(values, dtype=torch.float64, requires_grad=True)
            total, slope = 0.0, torch.zeros_like(inputs)
            for some in pairs.parts(rows):
                with torch.enable_grad():
                    times, weights = made(inputs)
                    found = blend(flow, some.z, [first, *times[1:]], list(weights), some.labels)
                    loss = (found - some.x).square().mean() * (len(some.x) / len(pairs.x))
                    slope += torch.autograd.grad(loss, inputs)[0]
                total += float(loss.detach())
            return total, slope.numpy()

        best = optimize.minimize(
            error, variables, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations}
        )
        times, weights = made(torch.from_numpy(best.x))
        if float((-times.diff()).min()) > 10.0**-_DIGITS:  # times that coincide once rounded are no grid
            inner = start.times[1:] if what == "weights" else [round(float(t), _DIGITS) for t in times[1:-1]]
            candidates.append(Blended((first, *inner), tuple(round(float(w), _DIGITS) for w in weights)))
    return min(candidates, key=lambda each: pairs.error(flow, each))


def check(experiment: Experiment, evaluations: Sequence[int], pairs_used: int = 1) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are different NFE for which uniform times exist, and
    ``pairs_used`` leaves some of the preset's held-out pairs."""
    _leaves_some(experiment, pairs_used)
    counts("evaluations", evaluations)
    for nfe in evaluations:
        try:
            experiment.sampler(nfe)
        except ValueError as error:
            raise ValueError(f"evaluations={list(evaluations)}: {error}") from error


UNIFORM = ("uniform, Euler", "uniform, straight")
"""The names of samplers with either update on the uniform grid."""

ByNFE = Mapping[int, Sequence[float]]
"""Values by NFE, one for each seed."""


def named(experiment: Experiment, evaluations: Sequence[int], seed: int) -> dict[str, dict[int, Any]]:
    """Samplers that are not optimised, by name and NFE: both updates on the uniform grid, and random ones of a seed."""
    first = experiment.preset.evaluation.first_time
    return {
        UNIFORM[0]: {n: experiment.sampler(n) for n in evaluations},
        UNIFORM[1]: {n: experiment.sampler(n, update="straight") for n in evaluations},
        "at random": {n: at_random(n, first, seed) for n in evaluations},
    }


def chosen(
    experiment: Experiment, flow: RectifiedFlow, pairs: Pairs, evaluations: Sequence[int], iterations: int
) -> dict[str, dict[int, Blended]]:
    """What :func:`choose` finds, by :data:`CHOICES` and NFE."""
    first, rows = experiment.preset.evaluation.first_time, experiment.preset.machinery.micro_batch
    return {what: {n: choose(flow, pairs, n, first, what, iterations, rows) for n in evaluations} for what in CHOICES}


def judge(
    flows: Sequence[RectifiedFlow], pairs: Pairs, samplers: Mapping[str, Mapping[int, Any]]
) -> dict[str, dict[int, list[float]]]:
    """Errors on pairs by sampler's name and NFE, one value for each flow."""
    return {
        name: {n: [pairs.error(flow, each) for flow in flows] for n, each in by.items()}
        for name, by in samplers.items()
    }


def distances(
    experiment: Experiment, config: str, seeds: Sequence[int], samplers: Mapping[str, Mapping[int, Any]]
) -> dict[str, dict[int, list[float]]]:
    """Fréchet distances by name and NFE, one value for each seed, each on noise of its own."""
    everything = [each for by in samplers.values() for each in by.values()]
    graded = experiment.sweep(config, seeds, everything)
    return {name: {n: [run.frechet for run in graded[each]] for n, each in by.items()} for name, by in samplers.items()}


def best_uniform(found: Mapping[str, ByNFE]) -> dict[int, list[float]]:
    """The smaller value of the two updates on the uniform grid, for each NFE and seed."""
    first, second = (found[name] for name in UNIFORM)
    return {n: [min(values) for values in zip(first[n], second[n], strict=True)] for n in first}


def turned(values: ByNFE) -> dict[int, list[float]]:
    """The values with each replaced by the next seed's, and the last by the first."""
    return {n: [*of_seeds[1:], of_seeds[0]] for n, of_seeds in values.items()}


def gain(before: ByNFE, after: ByNFE) -> list[float]:
    """The share that is removed, mean over the NFE, for each seed."""
    shares = [[1 - b / a for a, b in zip(before[n], after[n], strict=True)] for n in after]
    return [float(np.mean(of_seed)) for of_seed in zip(*shares, strict=True)]


def shares(found: Mapping[str, ByNFE]) -> dict[str, dict[int, list[float]]]:
    """The share of the better uniform update's value that each other sampler removes, by name, NFE and seed."""
    plain = best_uniform(found)
    return {
        name: {n: gain({n: plain[n]}, {n: values}) for n, values in by.items()}
        for name, by in found.items() if name not in UNIFORM
    }  # fmt: skip


def table(samplers: Mapping[int, Blended]) -> list[tuple[object, ...]]:
    """NFE, times and weights; a dash where the weight does not matter."""
    return [
        (
            n,
            ", ".join(f"{t:.3g}" for t in each.times),
            ", ".join("–" if k in (0, n - 1) else f"{w:.2f}" for k, w in enumerate(each.weights)),
        )
        for n, each in samplers.items()
    ]


# Other scales

_STUDY = "few_steps"


def keep(experiment: Experiment, samplers: Mapping[int, Blended]) -> None:
    """Keep samplers for other scales."""
    content = {
        str(n): {name: value for name, value in asdict(each).items() if name != "batch_size"}
        for n, each in samplers.items()
    }
    scales.keep(experiment, _STUDY, content)


def elsewhere(experiment: Experiment, evaluations: Sequence[int]) -> dict[str, dict[int, Blended]]:
    """The samplers that were chosen at other presets, by preset and NFE: those of runs beside this one, and the book's.

    Only presets with all of ``evaluations`` are included.
    """
    return {
        name: {n: Blended(tuple(of[str(n)]["times"]), tuple(of[str(n)]["weights"])) for n in evaluations}
        for name, of in scales.kept(experiment, _STUDY, beside=True).items()
        if name != experiment.preset.name and all(str(n) in of for n in evaluations)
    }
