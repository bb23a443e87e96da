"""The ladder of configurations (Table 1): what each change is worth, in one step and in two, paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from rfpp.base.checks import between
from rfpp.configurations import ALL, CONFIGURATIONS
from rfpp.experiment import Experiment
from rfpp.pipeline.grades import Evaluation
from rfpp.pipeline.sampling import AnySampler
from rfpp.studies import scales

RUNGS = (*pairwise(CONFIGURATIONS), ("C-small", "D-small"))
"""Neighbours in Table 1, and the change from C to D with the small batch."""


def check_second_time(experiment: Experiment, second_time: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless the time lies between 0 and the first time of the preset."""
    first = experiment.preset.evaluation.first_time
    between("second_time", second_time, 0, first, setting="evaluation.first_time")


def _name(premetric: Any) -> str:
    made = premetric.func if isinstance(premetric, partial) else premetric
    return str(getattr(made, "__name__", made))


def configurations(experiment: Experiment) -> list[tuple[object, ...]]:
    """A row for each configuration: name, summary, start, batch, law of times, premetric, pairs."""
    return [
        (
            name,
            row.summary,
            row.start,
            experiment.plan.batch_size(row),
            f"`{row.timesteps}`",
            f"`{_name(row.premetric)}`",
            f"{row.pairs}, {row.real_share:.0%} real" if row.real_share else row.pairs,
        )
        for name, row in ALL.items()
    ]


@dataclass(frozen=True)
class Ladder:
    """Evaluations by sampler's title and configuration, one for each of ``seeds``, and the ``steps`` of training."""

    graded: Mapping[str, Mapping[str, Sequence[Evaluation]]]
    seeds: Sequence[int]
    steps: int

    def __post_init__(self) -> None:
        for title, by_config in self.graded.items():
            for config, runs in by_config.items():
                if len(runs) != len(self.seeds):
                    raise ValueError(
                        f"{config}, {title}: {len(runs)} evaluations for seeds={list(self.seeds)}; "
                        "a comparison needs one for each of the same seeds"
                    )

    def values(self, title: str, configs: Iterable[str], quantity: str = "frechet") -> dict[str, list[float]]:
        """A quantity of :class:`rfpp.pipeline.grades.Evaluation` by configuration, one value for each seed."""
        return {config: [getattr(run, quantity) for run in self.graded[title][config]] for config in configs}

    def distances(self, configs: Iterable[str]) -> dict[str, dict[str, list[float]]]:
        """Fréchet distances by title and configuration."""
        configs = list(configs)
        return {title: self.values(title, configs) for title in self.graded}

    def gain(self, title: str, before: str, after: str, quantity: str = "frechet") -> list[float]:
        """The share of a quantity that a change removes, ``1 - after / before``, for each seed."""
        first, then = self.values(title, (before, after), quantity).values()
        return [1 - b / a for a, b in zip(first, then, strict=True)]

    def against_itself(self, title: str, config: str, quantity: str = "frechet") -> list[float]:
        """The gain without any change, for each seed: the next seed's flow takes the place of the changed one."""
        ((_, runs),) = self.values(title, [config], quantity).items()
        return [1 - after / before for before, after in zip(runs, [*runs[1:], runs[0]], strict=True)]

    def rungs(self) -> dict[str, tuple[list[float], list[float], list[float]]]:
        """For each of :data:`RUNGS` the gain in Fréchet distance in one step and in two, and in one-step pair error."""
        one, two = self.graded
        return {
            f"{a} → {b}": (self.gain(one, a, b), self.gain(two, a, b), self.gain(one, a, b, "pair_error"))
            for a, b in RUNGS
        }


def climb(
    experiment: Experiment, configs: Iterable[str], steps: Mapping[str, AnySampler], seeds: Sequence[int]
) -> Ladder:
    """Train ``configs`` where needed, and grade them with each sampler of ``steps``, by its title."""
    configs = list(configs)
    experiment.train(configs, seeds)
    experiment.compute(
        experiment.plan.grade(config, seed, sampler)
        for sampler in steps.values() for config in configs for seed in seeds
    )  # fmt: skip
    graded = {
        title: {config: [experiment.evaluate(config, seed, sampler=sampler) for seed in seeds] for config in configs}
        for title, sampler in steps.items()
    }
    return Ladder(graded, seeds, experiment.preset.training.steps)


_STUDY = "ladder"


def keep(ladder: Ladder, experiment: Experiment) -> None:
    """Keep a ladder for comparison with other scales."""
    scales.keep(experiment, _STUDY, asdict(ladder))


def _read(content: Any) -> Ladder:
    graded = {
        title: {config: [Evaluation(**run) for run in runs] for config, runs in by_config.items()}
        for title, by_config in content["graded"].items()
    }
    return Ladder(graded, content["seeds"], content["steps"])


def at_scales(experiment: Experiment) -> dict[str, Ladder]:
    """The ladders of this run and of those with the book, by preset; the shortest training first."""
    ladders = {name: _read(content) for name, content in scales.kept(experiment, _STUDY).items()}
    return dict(sorted(ladders.items(), key=lambda item: item[1].steps))


def over_training(ladders: Mapping[str, Ladder]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """For one step and for two, each rung of Table 1 and its gain for each seed, by the length of the training.

    ``ladders``: by scale, as from :func:`at_scales`. Scales of equal length are told apart by their names.
    """
    lengths = [each.steps for each in ladders.values()]
    named = {
        f"{each.steps:,} steps" + (f" ({name})" if lengths.count(each.steps) > 1 else ""): each
        for name, each in ladders.items()
    }
    titles = dict.fromkeys(title for each in ladders.values() for title in each.graded)
    return {
        title: {
            f"{before} → {after}": {
                length: each.gain(title, before, after) for length, each in named.items() if title in each.graded
            }
            for before, after in pairwise(CONFIGURATIONS)
        }
        for title in titles
    }
