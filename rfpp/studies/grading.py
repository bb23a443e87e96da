"""How good are the samples? Grades of several flows side by side, with what can be hoped for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
