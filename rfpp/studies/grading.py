"""How good are the samples? Grades of several flows beside those of real images and the teacher."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rfpp import data, metrics
from rfpp.base import processes, rng
from rfpp.base.checks import at_least, distinct
from rfpp.configurations import TEACHER, find
from rfpp.experiment import Experiment
from rfpp.pipeline.grades import Evaluation, agreement, moments
from rfpp.pipeline.sampling import Sampler
from rfpp.samplers import TWO_STEPS

COLUMNS = ("", "Fréchet distance", "recognised", "pair error")
"""Headings of a table of grades; the first column has names."""


def _quantities(run: Evaluation) -> dict[str, float]:
    """Values by their name on a figure; lower is better."""
    return {
        "Fréchet distance": run.frechet,
        "share not recognised": 1 - run.agreement,
        "pair error": run.pair_error,
    }


def _by_quantity(runs: Mapping[str, Sequence[Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Values by quantity and name, without those that do not apply."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, each in runs.items():
        for run in each:
            for quantity, value in _quantities(run).items():
                if not math.isnan(value):
                    found.setdefault(quantity, {}).setdefault(name, []).append(value)
    return found


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


@dataclass(frozen=True)
class Grades:
    """Evaluations by flow, one for each seed, and ``references``: real images and the teacher's, graded alike.

    What does not apply is left out: there is no pair error of real images, and nothing is recognised without a
    classifier of its classes.
    """

    runs: Mapping[str, Sequence[Evaluation]]
    references: Mapping[str, Evaluation]

    def values(self) -> dict[str, dict[str, list[float]]]:
        """By quantity and flow, one value for each seed."""
        return _by_quantity(self.runs)

    def levels(self) -> dict[str, dict[str, float]]:
        """By quantity and reference."""
        found = _by_quantity({name: [run] for name, run in self.references.items()})
        return {quantity: {name: value for name, (value,) in by_name.items()} for quantity, by_name in found.items()}

    def rows(self) -> list[tuple[object, ...]]:
        """A row for each reference and flow, means over seeds, as :data:`COLUMNS` says."""
        found: list[tuple[object, ...]] = []
        for name, runs in {**{name: [run] for name, run in self.references.items()}, **self.runs}.items():
            frechet, agreement, error = (
                statistics.fmean(values)
                for values in zip(*((run.frechet, run.agreement, run.pair_error) for run in runs), strict=True)
            )
            found.append((name, f"{frechet:.2f}", _shown(agreement, ".1%"), _shown(error, ".4f")))
        return found


# Precision, recall and the classifier score

SCORES = ("", "NFE", "Fréchet distance", "precision", "recall", "classifier score")
"""Headings of a table of scores; the first column has names."""
NETWORK_BATCH = 128
"""Images that a network embeds at once."""


@dataclass(frozen=True)
class Scores:
    """Samples beside as many real images, in the features that grade.

    ``frechet``: as in :class:`rfpp.pipeline.grades.Evaluation`; ``precision`` and ``recall``: Kynkäänniemi et al.,
    2019; ``classifier_score``: the inception score's formula on the grading classifier's logits, between 1 and the
    number of classes. It is NaN without such a classifier, or with fewer images than the score's ten splits.
    """

    frechet: float
    precision: float
    recall: float
    classifier_score: float


def check_scored(experiment: Experiment, configs: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are configurations, none twice, with images enough."""
    if isinstance(configs, str) or not isinstance(configs, Sequence):
        raise TypeError(f"graded={configs!r} is a {type(configs).__name__}; a list of configurations is needed")
    for config in configs:
        find(config)
    distinct("graded", configs)
    if configs:
        few_steps(experiment)  # raises where the second time is not below the preset's first
        at_least("evaluation.samples, or the number of training images,", compared(experiment), metrics.NEIGHBOURS + 1)


def few_steps(experiment: Experiment) -> list[Sampler]:
    """Samplers in one step, and in two with the second step at the paper's time."""
    return [experiment.sampler(1), experiment.sampler(2, inner=TWO_STEPS[1:])]


def compared(experiment: Experiment) -> int:
    """How many samples are compared with as many real images: the preset's, or all training images if fewer."""
    return min(experiment.preset.evaluation.samples, len(experiment.data.train))


def protocol(experiment: Experiment) -> str:
    """How the scores are computed, and what is left out."""
    n, dataset = compared(experiment), experiment.data.name
    known = (
        "" if _has_classifier(experiment) else "; no classifier score, as no classifier of these classes grades here"
    )
    return f"{n:,} samples of seed {experiment.preset.seeds[0]} against {n:,} training images of {dataset}{known}"


def references(experiment: Experiment) -> dict[str, Evaluation]:
    """Grade references like samples: real held-out images, and as many images of the teacher as there are samples.

    All held-out images are used; fewer images give a larger distance.
    """
    held_out, made, grader = experiment.data.held_out, experiment.pairs("train"), experiment.plan.grader
    rows = torch.arange(min(len(made), experiment.preset.evaluation.samples))
    _, _, labels = made.batch(rows)
    reference = experiment.plan.reference().load(experiment.run)

    def grade(pixels: Tensor, wanted: Tensor | None) -> Evaluation:
        distance = metrics.frechet_distance(moments(experiment.embedding, pixels).statistics("images"), reference)
        return Evaluation(distance, agreement(grader.load(experiment.run), pixels, wanted), float("nan"))

    known = held_out.labels if experiment.classes else None
    return {"real, held out": grade(held_out.pixels, known), "teacher": grade(made.read(rows)["images"], labels)}


def _has_classifier(experiment: Experiment) -> bool:
    return experiment.preset.features.kind != "standard"


@torch.no_grad()
def batched(network: nn.Module, pixels: Tensor) -> Tensor:
    """A network's output for 8-bit images, on the CPU."""
    return torch.cat([network(data.to_float(rows)).cpu() for rows in pixels.split(NETWORK_BATCH)])


def classifier_score(experiment: Experiment, pixels: Tensor) -> float:
    """The inception score's formula on the grading classifier's logits of 8-bit images ``(N, C, H, W)``.

    NaN without such a classifier, or with fewer images than the score's ten splits.
    """
    if not _has_classifier(experiment) or len(pixels) < metrics.SPLITS:
        return float("nan")
    return metrics.inception_score(batched(experiment.classifier, pixels))


def real_features(experiment: Experiment) -> Tensor:
    """Features ``(n, num_features)`` of the training images that samples are compared with, drawn at random."""
    pixels = experiment.data.train.pixels
    rows = torch.randperm(len(pixels), generator=rng.generator(0, "manifold"))[: compared(experiment)]
    return batched(experiment.embedding, pixels[rows])


def precision_recall(real: Tensor, pixels: Tensor, experiment: Experiment) -> tuple[float, float]:
    """Precision and recall of 8-bit images ``(N, C, H, W)`` against the features ``real`` of as many real ones.

    Computed on this process's device.
    """
    place, found = processes.device(), batched(experiment.embedding, pixels)
    return metrics.precision_recall(real.to(place), found.to(place), nn.Identity())


def scores(
    experiment: Experiment, configs: Sequence[str], samplers: Sequence[Sampler]
) -> dict[tuple[str, int], Scores]:
    """By flow and NFE: the teacher's images of the pairs, then the teacher and ``configs`` with each sampler.

    Samples are the first of those that :meth:`rfpp.experiment.Experiment.evaluate` grades for the first seed. Nothing
    is computed without any ``configs``.
    """
    if not configs:
        return {}
    seed, n, real = experiment.preset.seeds[0], compared(experiment), real_features(experiment)
    made, passes = experiment.pairs("train"), 2 * experiment.preset.pairs.num_steps - 1
    images = made.read(torch.arange(min(n, len(made))))["images"]

    def score(pixels: Tensor, graded: Evaluation) -> Scores:
        precision, recall = precision_recall(real, pixels, experiment)
        return Scores(graded.frechet, precision, recall, classifier_score(experiment, pixels))

    found = {(TEACHER, passes): score(images, references(experiment)["teacher"])}
    for config in (TEACHER, *configs):
        graded = experiment.sweep(config, [seed], samplers)
        for sampler in samplers:
            drawn = sampler(experiment.flow(config, seed), *experiment.noise(n))
            found[config, sampler.nfe] = score(data.to_uint8(drawn), graded[sampler][0])
    return found


def score_rows(found: Mapping[tuple[str, int], Scores]) -> list[tuple[object, ...]]:
    """A row for each flow and NFE, as :data:`SCORES` says."""
    return [
        (
            name,
            nfe,
            f"{each.frechet:.2f}",
            f"{each.precision:.3f}",
            f"{each.recall:.3f}",
            _shown(each.classifier_score, ".2f"),
        )
        for (name, nfe), each in found.items()
    ]
