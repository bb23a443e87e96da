"""How likely are held-out images under each flow, and how few evaluations are enough to tell?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp import data, likelihood
from rfpp.base import rng
from rfpp.base.checks import at_least, between
from rfpp.configurations import TEACHER
from rfpp.experiment import Experiment
from rfpp.likelihood import Exact, Hutchinson, LogDensity

LARGEST = 256
"""The most values of an image for which whole Jacobians are computed."""

FEWEST = 2
"""The fewest images that a mean is taken over."""


@dataclass(frozen=True)
class Setting:
    """Held-out ``images`` ``(N, C, H, W)`` in [-1, 1] with the ``labels`` that a flow receives, and the ends of paths.

    ``levels``: those of grey or of a colour; ``start``: the time where the flow expects noise as large as
    dequantisation's.
    """

    images: Tensor
    labels: Tensor | None
    levels: int
    start: float
    end: float
    tolerance: float

    def dequantised(self, seed: int) -> Tensor:
        """The images with a seed's uniform noise within their bins."""
        return likelihood.dequantise(self.images, self.levels, rng.generator(seed, "dequantisation"))

    def first(self, n: int) -> Setting:
        """The first ``n`` images."""
        labels = None if self.labels is None else self.labels[:n]
        return Setting(self.images[:n], labels, self.levels, self.start, self.end, self.tolerance)

    @property
    def is_small(self) -> bool:
        """Whether the exact trace is affordable."""
        return self.images[0].numel() <= LARGEST

    def times(self, steps: int) -> list[float]:
        """``steps + 1`` uniform times from the data's end to noise."""
        return [float(t) for t in torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)]


def setting(experiment: Experiment, images: int, tolerance: float) -> Setting:
    """The first ``images`` held out, or all where there are fewer; noise begins at the preset's first time.

    Raises ``TypeError`` or ``ValueError`` for fewer than two images, or a tolerance that is not positive.
    """
    check(images, tolerance)
    held_out, levels = experiment.data.held_out, likelihood.grey_levels(experiment.data.train.pixels)
    labels = held_out.labels[:images] if experiment.classes else None
    return Setting(
        data.to_float(held_out.pixels[:images]), labels, levels, likelihood.matching_time(levels),
        experiment.preset.evaluation.first_time, tolerance,
    )  # fmt: skip


def check(images: int, tolerance: float) -> None:
    """Raise ``TypeError`` or ``ValueError`` for values that :func:`setting` cannot take."""
    at_least("images", images, FEWEST)
    between("tolerance", tolerance, 0, 1)


def solved(
    experiment: Experiment, config: str, seed: int, of: Setting, probes: int | None = None, noise: int | None = None
) -> LogDensity:
    """Log-densities of the images under a configuration's flow, by the adaptive solver.

    ``probes``: those of Hutchinson's estimate; without them the trace is exact. ``noise``: the seed of the
    dequantisation, which is ``seed`` by default.
    """
    noise = seed if noise is None else noise
    rows = experiment.preset.machinery.micro_batch or likelihood.ROWS
    divergence = Exact(rows) if probes is None else Hutchinson(probes, noise, rows)
    return likelihood.log_density(
        experiment.flow(config, seed), of.dequantised(noise), of.labels, start=of.start, end=of.end,
        divergence=divergence, rtol=of.tolerance, atol=of.tolerance, batch_size=min(100, rows),
    )  # fmt: skip


def estimates(
    experiment: Experiment, configs: Sequence[str], seeds: Sequence[int], of: Setting, probes: int
) -> dict[str, list[LogDensity]]:
    """Hutchinson's estimates for each configuration and seed; a seed's images share noise and probes in all flows."""
    calls = {(config, seed): (experiment, config, seed, of, probes) for config in configs for seed in seeds}
    found = experiment.kept_each(solved, calls)
    return {config: [found[config, seed] for seed in seeds] for config in configs}


def bits(found: Mapping[str, Sequence[LogDensity]], levels: int) -> dict[str, list[float]]:
    """Mean bits per dimension by configuration, one value for each seed."""
    return {
        config: [float(each.bits_per_dimension(levels).mean()) for each in of_seeds]
        for config, of_seeds in found.items()
    }


def excess(more: Sequence[float], less: Sequence[float]) -> list[float]:
    """How many bits more, for each seed."""
    return [a - b for a, b in zip(more, less, strict=True)]


def excess_of_images(more: Sequence[LogDensity], less: Sequence[LogDensity], levels: int) -> list[float]:
    """How many bits per dimension more, for each image: the mean over seeds."""
    both = zip(more, less, strict=True)
    apart = [a.bits_per_dimension(levels) - b.bits_per_dimension(levels) for a, b in both]
    found: list[float] = torch.stack(apart).mean(dim=0).tolist()
    return found


def turned(values: Sequence[float]) -> list[float]:
    """The values with each replaced by the next seed's, and the last by the first."""
    return [*values[1:], values[0]]


@dataclass(frozen=True)
class FewEvaluations:
    """Bits per dimension ``(N,)`` of a flow by the adaptive solver, and by Euler steps with determinants or traces."""

    reference: Tensor
    evaluations: int
    by_determinant: Mapping[int, Tensor]
    by_trace: Mapping[int, Tensor]

    def errors(self, kind: str = "determinant") -> dict[int, float]:
        """Mean absolute difference from the reference, by the number of evaluations."""
        found = self.by_determinant if kind == "determinant" else self.by_trace
        return {steps: float((values - self.reference).abs().mean()) for steps, values in found.items()}


def few_evaluations(
    experiment: Experiment, config: str, seed: int, of: Setting, steps: Sequence[int], noise: int
) -> FewEvaluations:
    """A flow's likelihood in few Euler steps, against the adaptive solver's with the exact trace."""
    exact, flow, x = (
        solved(experiment, config, seed, of, noise=noise),
        experiment.flow(config, seed),
        of.dequantised(noise),
    )
    both = {n: likelihood.stepwise(flow, x, of.times(n), of.labels) for n in sorted(steps)}
    determinant, trace = ({n: each[k].bits_per_dimension(of.levels) for n, each in both.items()} for k in range(2))
    return FewEvaluations(exact.bits_per_dimension(of.levels), exact.evaluations, determinant, trace)


def curves(
    found: Mapping[str, Sequence[FewEvaluations]], kind: str = "determinant"
) -> dict[str, dict[int, list[float]]]:
    """:meth:`FewEvaluations.errors` by name and number of evaluations, one value for each seed."""
    steps = next(iter(found.values()))[0].by_determinant
    return {name: {n: [each.errors(kind)[n] for each in of_seeds] for n in steps} for name, of_seeds in found.items()}


def bias(found: Mapping[str, Sequence[FewEvaluations]]) -> dict[str, dict[int, list[float]]]:
    """The mean difference from the adaptive solver's bits, with determinants, as in :func:`curves`. Where it is as
    large as the mean absolute one, all images err in one direction."""
    steps = next(iter(found.values()))[0].by_determinant
    return {
        name: {n: [float((each.by_determinant[n] - each.reference).mean()) for each in of_seeds] for n in steps}
        for name, of_seeds in found.items()
    }


def ratios(found: Sequence[FewEvaluations], baseline: FewEvaluations, steps: int) -> list[float]:
    """The error in ``steps`` evaluations over that of ``baseline``, for each seed."""
    return [each.errors()[steps] / baseline.errors()[steps] for each in found]


def standard_score(exact: LogDensity, estimated: LogDensity) -> Tensor:
    """How many of its own standard errors each of Hutchinson's estimates is from the exact value: ``(n,)``."""
    n = len(exact.total)
    return (estimated.total[:n] - exact.total) / estimated.standard_error[:n]


def in_order(found: LogDensity, of: Setting, shown: int) -> dict[str, Tensor]:
    """The most and the least likely of the images, ``shown`` each, from the most to the least likely."""
    order = found.total.argsort(descending=True)
    shown = min(shown, len(order))
    return {"most likely": of.images[order[:shown]], "least likely": of.images[order[-shown:]]}


def correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of two values over images, ``(N,)`` each."""
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def emptiness(of: Setting) -> Tensor:
    """The share of an image's values that are the lowest possible: ``(N,)``."""
    return (of.images == -1).flatten(1).double().mean(dim=1)


def rows(found: Mapping[str, Sequence[LogDensity]], levels: int) -> list[tuple[str, ...]]:
    """A flow's bits per dimension (mean over images and seeds), their deviation over images, the mean standard error of
    an image's estimate, and evaluations."""
    cells: list[tuple[str, ...]] = []
    for config, of_seeds in found.items():
        values = torch.stack([each.bits_per_dimension(levels) for each in of_seeds])
        unit = of_seeds[0].z[0].numel() * torch.log(torch.tensor(2.0)).item()
        error = statistics.fmean(float(each.standard_error.mean()) for each in of_seeds) / unit
        spent = statistics.fmean(each.evaluations for each in of_seeds)
        name = "teacher" if config == TEACHER else config
        cells.append((name, f"{values.mean():.3f}", f"{values.std(dim=1).mean():.3f}", f"{error:.3f}", f"{spent:.0f}"))
    return cells


COLUMNS = ("flow", "bits per dimension", "deviation over images", "standard error of one image", "evaluations")
"""Headings for :func:`rows`."""
