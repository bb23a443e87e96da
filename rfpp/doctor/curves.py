"""Expected curves: the quality of finished trainings at 10, 30 and 100 % of their steps, and the range for the next.

For each training the store has its losses and one-step pictures from 16 noises (:func:`rfpp.pipeline.flows.snapshots`).
The error of the pictures is measured against the teacher's images of the same noises. Grades need weights: the final
ones always exist, earlier ones where checkpoints were kept (``machinery.keep_every``). Other grades are left out.

The logarithm of each number is assumed normal over seeds. The range for one more seed is then Student's prediction
interval, ``mean ± t s (1 + 1/n)^(1/2)``, which is wide for few seeds.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rfpp import data, engine, pairs, samplers
from rfpp.base import files, paths, rng
from rfpp.doctor.material import trained_on_pairs
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.metrics import frechet_distance
from rfpp.pipeline.flows import snapshots
from rfpp.pipeline.grades import moments
from rfpp.pipeline.networks import STATES
from rfpp.pipeline.sampling import labels_in_turn
from rfpp.pipeline.store import provenance

FILE = Path("book") / "data" / "curves.json"
"""Where the curves are kept, in a checkout."""
FRACTIONS = (0.1, 0.3, 1.0)
"""The fractions of a training's steps at which it is measured."""
QUANTITIES = {
    "loss": "loss of the tenth that ends there",
    "pictures": "one-step error of 16 pictures",
    "pair_error": "one-step error of held-out pairs",
    "frechet": "one-step Fréchet distance",
}
"""The quantities measured at each fraction: descriptions by name."""
ALPHA = 1e-3
"""How often the next seed's number lies outside its range if the logarithms are normal."""
FEWEST = 3
"""The fewest seeds for which a range is given."""
_TENTH, _TARGET_STEPS = 0.1, 36
_SETTINGS = ("teacher", "start", "timesteps", "premetric", "batch_size")


def loss_at(history: engine.History, steps: int, fraction: float) -> float | None:
    """The mean of the losses that were logged within the tenth of ``steps`` that ends at ``fraction``."""
    end, start = round(steps * fraction), round(steps * (fraction - _TENTH))
    logged = zip(history.steps, history.losses, strict=True)
    losses = [loss for step, loss in logged if start < step <= end]
    return statistics.fmean(losses) if losses else None


def noises(teacher: Any) -> tuple[Tensor, Tensor | None]:
    """The noises ``(16, C, H, W)`` and labels that pictures of trainings start from."""
    network = teacher.model
    z = pairs.noise(rng.derive(0, "snapshots"), range(16), (network.in_channels, *[network.img_resolution] * 2))
    return z, labels_in_turn(len(z), network.label_dim)


def targets(teacher: Any) -> Tensor:
    """The teacher's images of :func:`noises`, ``(16, C, H, W)``."""
    z, labels = noises(teacher)
    place = next(teacher.parameters()).device
    labels = None if labels is None else labels.to(place)
    return samplers.edm_sample(teacher, z.to(place), _TARGET_STEPS, labels=labels).clamp(-1, 1).cpu()


def picture_error(folder: Path, steps: int, fraction: float, images: Tensor) -> float | None:
    """The mean of ``||picture - x||^2 / d`` over a training's pictures at a fraction of its ``steps``."""
    found = snapshots(folder).get(max(1, round(steps * fraction)))
    return None if found is None else float((found - images).square().mean())


def settings(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What trainings with comparable curves have in common: data, law, loss, batch and length, but not code."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items() if key != "code"}
        return value

    found = {name: plain(inputs[name]) for name in _SETTINGS}
    return {**found, "teacher": inputs["teacher"][0], "pairs": inputs["pairs"][0],
            "steps": inputs["optimisation"]["fields"]["steps"]}  # fmt: skip


# Making curves


def kept_flow(folder: Path, step: int, like: RectifiedFlow) -> RectifiedFlow | None:
    """A flow ``like`` the final one with a kept checkpoint's averaged weights; ``None`` without that checkpoint."""
    states, prefix = engine.Checkpoints(folder / STATES), "average/module."
    if step not in states.steps():
        return None
    flow = copy.deepcopy(like)
    tensors = states.read(step)[0].items()
    flow.load_state_dict({name.removeprefix(prefix): value for name, value in tensors if name.startswith(prefix)})
    return flow.eval()


def graded(experiment: Experiment, flow: RectifiedFlow, seed: int) -> tuple[float, float]:
    """One-step error of held-out pairs, and Fréchet distance, as :class:`rfpp.pipeline.grades.GradeFlow` has them."""
    plan, sampler, held_out = experiment.plan, experiment.sampler(), experiment.pairs("held_out")
    x, z, labels = held_out.batch(torch.arange(len(held_out)))
    error = float((sampler(flow, z, labels) - x).square().mean())
    n = experiment.preset.evaluation.samples
    z = pairs.noise(plan.noise_seed(seed), range(n), x.shape[1:])
    pixels = data.to_uint8(sampler(flow, z, labels_in_turn(n, experiment.classes)))
    of_samples = moments(experiment.embedding, pixels).statistics("samples")
    return error, frechet_distance(of_samples, plan.reference().load(experiment.run))


def measure(experiment: Experiment, config: str, seed: int, images: Tensor) -> dict[str, list[float | None]]:
    """Each of :data:`QUANTITIES` at each of :data:`FRACTIONS`; ``None`` for what was not kept."""
    folder, steps = experiment.flow_file(config, seed).parent, experiment.plan.flow(config, seed).optimisation.steps
    found: dict[str, list[float | None]] = {name: [] for name in QUANTITIES}
    for fraction in FRACTIONS:
        found["loss"].append(loss_at(experiment.history(config, seed), steps, fraction))
        found["pictures"].append(picture_error(folder, steps, fraction, images))
        error, distance = None, None
        if fraction == 1:
            evaluation = experiment.evaluate(config, seed, nfe=1)
            error, distance = evaluation.pair_error, evaluation.frechet
        elif (flow := kept_flow(folder, round(steps * fraction), experiment.flow(config, seed))) is not None:
            error, distance = graded(experiment, flow, seed)
        found["pair_error"].append(error)
        found["frechet"].append(distance)
    return found


def make(experiment: Experiment, configs: Iterable[str] = ("A", "F")) -> Path:
    """Write the curves of an experiment's trainings to :data:`FILE`, and return the file.

    They replace the preset's earlier ones, except those of other configurations with the same seeds.

    Raises ``FileNotFoundError`` outside a checkout, and ``ValueError`` for too few seeds.
    """
    path, seeds = paths.repository() / FILE, experiment.preset.seeds
    if len(seeds) < FEWEST:
        raise ValueError(f"seeds={seeds} are too few for a range; list at least {FEWEST} in seeds")
    kept = json.loads(path.read_text()) if path.is_file() else {}
    planned = {config: [trained_on_pairs(experiment, config, seed) for seed in seeds] for config in configs}
    made, images = {}, targets(experiment.teacher)
    for config, steps in planned.items():
        experiment.train([config], seeds)
        measured = [measure(experiment, config, seed, images) for seed in seeds]
        made[config] = {
            "settings": settings(steps[0].inputs),
            "values": {name: [list(at) for at in zip(*(each[name] for each in measured), strict=True)]
                       for name in QUANTITIES},
            "trainings": [step.key for step in steps],
        }  # fmt: skip
    name = experiment.preset.name  # with changed settings another than its origin's
    others = kept[name]["configurations"] if name in kept and kept[name]["seeds"] == seeds else {}
    entry = {
        "seeds": seeds, "fractions": list(FRACTIONS), "configurations": others | made, "provenance": provenance()
    }  # fmt: skip
    files.write_text(path, json.dumps({**kept, name: entry}, indent=1, sort_keys=True) + "\n")
    return path


# Reading curves


def read() -> dict[str, Any]:
    """The curves that come with the book, by preset; empty where there are none, outside a checkout for example."""
    try:
        path = paths.repository() / FILE
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def expected(values: Sequence[float | None], alpha: float = ALPHA) -> tuple[float, float] | None:
    """The range for one more seed; ``None`` for fewer than three values."""
    logs = [math.log(value) for value in values if value is not None]
    if len(logs) < FEWEST:
        return None
    half = stats.t.isf(alpha / 2, len(logs) - 1) * statistics.stdev(logs) * math.sqrt(1 + 1 / len(logs))
    return math.exp(statistics.fmean(logs) - half), math.exp(statistics.fmean(logs) + half)


def like(inputs: Mapping[str, Any], curves: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The name and the values of the trainings with the same :func:`settings`; ``None`` where there are none."""
    own = json.loads(json.dumps(settings(inputs)))
    for preset, entry in curves.items():
        for config, each in entry["configurations"].items():
            if each["settings"] == own:
                return f"{config} at {preset}", each["values"]
    return None
