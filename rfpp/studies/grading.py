"""How good are the samples? Grades of several flows side by side, with what can be hoped for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp import metrics
from rfpp.data import to_float, to_uint8
from rfpp.experiment import Experiment
from rfpp.pipeline.grades import Evaluation

COLUMNS = ("", "Fréchet distance", "recognised", "pair error")


def _quantities(run: Evaluation) -> dict[str, float]:
    """By the name on a figure; lower is better."""
    return {
        "Fréchet distance": run.frechet,
        "share not recognised": 1 - run.agreement,
        "pair error": run.pair_error,
    }


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
        found: dict[str, dict[str, list[float]]] = {}
        for name, runs in self.runs.items():
            for run in runs:
                for quantity, value in _quantities(run).items():
                    if not math.isnan(value):
                        found.setdefault(quantity, {}).setdefault(name, []).append(value)
        return found

    def levels(self) -> dict[str, dict[str, float]]:
        """By quantity and reference."""
        found: dict[str, dict[str, float]] = {}
        for name, run in self.references.items():
            for quantity, value in _quantities(run).items():
                if not math.isnan(value):
                    found.setdefault(quantity, {})[name] = value
        return found

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


def references(experiment: Experiment, n: int) -> dict[str, Tensor]:
    """Up to ``n`` real images that were held out, and of the teacher's, ``(N, C, H, W)`` each."""
    pairs, held_out = experiment.pairs(), experiment.data.held_out
    x, _, _ = pairs.batch(torch.arange(min(n, len(pairs))))
    return {"real, held out": to_float(held_out.pixels[:n]), "teacher": x}


STANDING = ("", "images", "Fréchet distance", "precision", "recall", "score by classes")


@torch.no_grad()
def standing(experiment: Experiment, images: Mapping[str, Tensor]) -> list[tuple[object, ...]]:
    """A row for each set of ``images`` ``(N, C, H, W)`` in [-1, 1], as :data:`STANDING` says, in the preset's features.

    They are rounded to 8 bits and compared with the training images, precision and recall with as many as there are of
    the set. The score is the inception score's formula on the preset's classifier, left out where there is none.
    """
    real, rows = experiment.data.train, []
    for name, made in images.items():
        rounded, near = to_float(to_uint8(made)), to_float(real.pixels[: len(made)])
        distance = metrics.frechet_distance_of_images(to_float(real.pixels), rounded, experiment.embedding)
        shares = metrics.precision_recall(near, rounded, experiment.embedding)
        score = math.nan
        if experiment.preset.features.kind != "standard":
            score = metrics.inception_score(torch.cat([experiment.classifier(part) for part in rounded.split(500)]))
        rows.append((name, len(made), f"{distance:.3f}", *(f"{share:.2f}" for share in shares), _shown(score, ".2f")))
    return rows
