"""Is my reflow sound? Checks of pairs and of trainings, each with a number, the expected range and a remedy.

:func:`examine` takes what :func:`rfpp.doctor.material.read` finds at a path. ``python -m rfpp doctor`` prints the
findings.
"""

from __future__ import annotations

from pathlib import Path

from rfpp.doctor import of_pairs, of_trainings
from rfpp.doctor.findings import ALPHA, Finding, is_sound, report
from rfpp.doctor.material import ROWS, Pairs, Training, of_training, read, trained_on_pairs
from rfpp.experiment import Experiment
from rfpp.pairs import Damaged

__all__ = ["ALPHA", "ROWS", "Finding", "Pairs", "Training", "examine", "is_sound", "of_experiment", "read", "report"]


def examine(material: Pairs | Training) -> list[Finding]:
    """A finding for each check of some pairs, or of a training and its pairs."""
    return of_pairs.examine(material) if isinstance(material, Pairs) else of_trainings.examine(material)


def damage(error: Damaged) -> Finding:
    """The finding for a row that differs from its checksum, or a manifest that cannot be read."""
    remedy = "repeat the command that made them; if it stops at a damaged index or manifest, delete the folder first"
    return Finding("files", f"damaged files, the first: {error}", remedy, 1, 0, 0)


def of_experiment(experiment: Experiment, config: str, seed: int, rows: int = ROWS) -> Training:
    """A training of an experiment, finished or in progress; nothing is computed.

    Raises ``FileNotFoundError`` for one that was not started, and ``ValueError`` for a method that is no configuration.
    """
    run, step = experiment.run, trained_on_pairs(experiment, config, seed)
    folders: tuple[Path, ...] = (run.store.root / step.name / step.key, run.store.partial(step.name, step.key))
    folder = next((each for each in folders if each.is_dir()), None)
    if folder is None:
        again = f"python -m rfpp train {experiment.preset.option} --config {config} --seed {seed}"
        raise FileNotFoundError(f"config={config!r}, seed={seed} was not trained in {run.store.root}; run: {again}")
    grades = experiment.plan.grade(config, seed, experiment.sampler())
    frechet = grades.load(run).frechet if run.find(grades) is not None else None
    return of_training(folder, step.inputs, rows, frechet)
