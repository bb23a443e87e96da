"""The arena: other few-step methods beside the paper's, with the same teacher, network, pairs and budget.

Costs are counted in two ways. In network passes, a training step costs what :attr:`rfpp.arena.methods.Method.price`
says, and LPIPS costs nothing because it runs another network. In seconds, LPIPS costs :data:`LPIPS` passes a row, so
that F takes fewer steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rfpp import pairs
from rfpp.arena import METHODS, PLAIN, SIMPLE_REFLOW, Method, find
from rfpp.configurations import ALL, TEACHER, Configuration
from rfpp.data import to_uint8
from rfpp.experiment import Experiment
from rfpp.pipeline.costs import size_of
from rfpp.pipeline.flows import InvertImages, MakePairs, TrainFlow
from rfpp.pipeline.generators import TrainGenerator
from rfpp.pipeline.grades import Evaluation
from rfpp.pipeline.plan import Config
from rfpp.pipeline.sampling import labels_in_turn
from rfpp.pipeline.steps import in_order
from rfpp.studies import scales
from rfpp.studies.grading import compared, precision_recall, real_features

LPIPS = 0.45
"""The time that LPIPS adds to a row of a training step with the digits' networks, in units of a network pass, as it was
when the arena's budgets were set; ``make bench`` measures it again."""
FINE_TUNED = 0.25
"""The share of the budget that G spends on real images."""
BASELINE = "B"
"""Reflow with the squared distance and uniform times, from the teacher's weights: what Simple ReFlow changes."""


FAMILIES = {
    "the paper's": ("A", "B", "C", "F", "F in time", "G"),
    "Simple ReFlow's": ("B", "levelled", "towards-noise", "sharp", "simple-reflow"),
    "others": ("F", "meanflow", "meanflow-pairs", "shortcut", "shortcut-pairs", "ct", "cd"),
}
"""Contenders that are shown together, with one of another family for comparison."""


@dataclass(frozen=True)
class Contender:
    """A way to train, and the images and pairs that it needs."""

    config: Config
    summary: str
    source: str


def contenders(experiment: Experiment) -> dict[str, Contender]:
    """All by name, the paper's first. Each is trained for :meth:`rfpp.pipeline.plan.Plan.budget` network passes."""
    plan, best = experiment.plan, ALL["F"]
    schedule = plan.optimisation(best)
    tuned = round(FINE_TUNED * schedule.steps)
    before = replace(best, schedule=replace(schedule, steps=schedule.steps - tuned))
    slow = plan.optimisation(ALL["G"])
    paper: dict[str, tuple[Config, str]] = {
        "A": ("A-longer", "vanilla 2-rectified flow"),
        BASELINE: (BASELINE, "reflow from the teacher"),
        "C": ("C", "+ U-shaped times"),
        "F": ("F", "2-rectified flow++"),
        "F in time": (
            replace(best, summary="F, fewer steps", schedule=replace(schedule, steps=in_time(schedule.steps))),
            "2-rectified flow++, equal seconds",
        ),
        "G": (
            replace(
                ALL["G"], summary="G, F's passes in all", start=before, schedule=replace(slow, steps=max(1, tuned))
            ),
            "F + real images",
        ),
    }
    found = {name: Contender(config, summary, "pairs") for name, (config, summary) in paper.items()}
    found |= {name: Contender(name, config.summary, "pairs") for name, config in SIMPLE_REFLOW.items()}
    found |= {name: Contender(name, method.summary, method.source) for name, method in METHODS.items()}
    return found


def in_time(steps: int) -> int:
    """Steps with LPIPS that take as long as ``steps`` without."""
    return max(1, int(steps * PLAIN / (PLAIN + LPIPS)))


def check(names: object, experiment: Experiment) -> list[str]:
    """The requested contenders, all for an empty list; raises ``TypeError`` or ``ValueError`` for others."""
    known = list(contenders(experiment))
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"entered={names!r} is a {type(names).__name__}; a list of contenders is needed")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"entered={list(names)}: {unknown[0]!r} is no contender; allowed: {', '.join(known)}")
    return [name for name in known if not names or name in names]


def check_evaluations(experiment: Experiment, names: Sequence[str], evaluations: Sequence[int]) -> None:
    """Raise ``ValueError`` for a number of evaluations that a contender's own sampler cannot take."""
    known = contenders(experiment)
    for name, nfe in ((name, nfe) for name in names for nfe in evaluations):
        try:
            experiment.plan.own_sampler(known[name].config, nfe)
        except ValueError as error:
            raise ValueError(f"evaluations={list(evaluations)}: {name} cannot take {nfe}: {error}") from error


def incomparable(
    experiment: Experiment, before: str, after: str, names: Sequence[str], evaluations: Sequence[int]
) -> str | None:
    """Why a claim about one step of two contenders cannot be judged; ``None`` where it can."""
    if not {before, after} <= set(names):
        return f"it compares {before} and {after}; entered={list(names)}"
    if 1 not in evaluations:
        return f"it is about one step; evaluations={list(evaluations)}"
    if "F in time" in (before, after) and (images := experiment.preset.data.name) != "digits":
        return f"F in time is given the time that LPIPS takes on digits, and data.name={images!r}"
    return None


@dataclass(frozen=True)
class Arena:
    """Evaluations by contender and NFE, one for each of ``seeds``."""

    graded: Mapping[str, Mapping[int, Sequence[Evaluation]]]
    seeds: Sequence[int]

    def values(self, nfe: int, quantity: str = "frechet") -> dict[str, list[float]]:
        """A quantity of :class:`rfpp.pipeline.grades.Evaluation` by contender, one value for each seed."""
        return {name: [getattr(run, quantity) for run in runs[nfe]] for name, runs in self.graded.items()}

    def removed(self, before: str, after: str, nfe: int = 1) -> list[float]:
        """The share of one contender's Fréchet distance that another removes: ``1 - after / before`` for each seed."""
        found = self.values(nfe)
        return [1 - b / a for a, b in zip(found[before], found[after], strict=True)]

    def against_itself(self, name: str, nfe: int = 1) -> list[float]:
        """The same for one contender, with the next seed's training in place of another contender's."""
        runs = self.values(nfe)[name]
        return [1 - b / a for a, b in zip(runs, [*runs[1:], runs[0]], strict=True)]

    def families(self) -> dict[str, dict[str, dict[int, list[float]]]]:
        """Fréchet distances by family, contender and NFE, one value for each seed, without families that are empty."""
        curves = {
            name: {n: [run.frechet for run in each] for n, each in runs.items()} for name, runs in self.graded.items()
        }
        found = {family: {name: curves[name] for name in some if name in curves} for family, some in FAMILIES.items()}
        return {family: some for family, some in found.items() if some}


def compete(experiment: Experiment, names: Sequence[str], evaluations: Sequence[int], seeds: Sequence[int]) -> Arena:
    """Train the contenders where needed, and grade each with its own sampler at each number of evaluations."""
    known, plan = contenders(experiment), experiment.plan
    experiment.train([known[name].config for name in names], seeds)
    samplers = {name: {nfe: plan.own_sampler(known[name].config, nfe) for nfe in evaluations} for name in names}
    experiment.compute(
        plan.grade(known[name].config, seed, sampler)
        for name, each in samplers.items() for sampler in each.values() for seed in seeds
    )  # fmt: skip
    graded = {}
    for name, each in samplers.items():
        found = experiment.sweep(known[name].config, seeds, list(each.values()))
        graded[name] = {nfe: found[sampler] for nfe, sampler in each.items()}
    return Arena(graded, seeds)


_STUDY = "arena"


def keep(arena: Arena, experiment: Experiment) -> None:
    """Keep the grades of all contenders for comparison with other scales; those of some only are not kept."""
    if arena.graded.keys() == contenders(experiment).keys():
        scales.keep(experiment, _STUDY, {**asdict(arena), "steps": experiment.preset.training.steps})


def _read(content: Any) -> Arena:
    graded = {
        name: {int(nfe): [Evaluation(**run) for run in runs] for nfe, runs in by_nfe.items()}
        for name, by_nfe in content["graded"].items()
    }
    return Arena(graded, content["seeds"])


def at_scales(arena: Arena, experiment: Experiment) -> dict[str, Arena]:
    """The grades of this run and those that come with the book, by preset; the shortest training first."""
    preset, kept = experiment.preset, scales.kept(experiment, _STUDY)
    found = {name: _read(content) for name, content in kept.items()} | {preset.name: arena}
    steps = {name: content["steps"] for name, content in kept.items()} | {preset.name: preset.training.steps}
    return {name: found[name] for name in sorted(found, key=steps.__getitem__)}


def at(arenas: Mapping[str, Arena], nfe: int) -> dict[str, dict[str, list[float]]]:
    """Fréchet distances by scale and contender, without scales that lack this number of evaluations."""
    return {
        scale: arena.values(nfe) for scale, arena in arenas.items() if all(nfe in by for by in arena.graded.values())
    }


def coverage(
    experiment: Experiment, names: Sequence[str], seeds: Sequence[int], evaluations: Sequence[int] = (1,)
) -> dict[str, dict[str, list[float]]]:
    """Precision and recall of each contender's samples among as many training images, by contender and by a heading
    such as ``"precision, 1 NFE"``.

    There is one value for each seed. They are computed by :func:`rfpp.metrics.precision_recall` in the grading
    features. ``"teacher"``: those of the images in the pairs, for comparison, the same at each number of evaluations.
    """
    known, plan = contenders(experiment), experiment.plan
    count, real = compared(experiment), real_features(experiment)

    def drawn(name: str, seed: int, nfe: int) -> torch.Tensor:
        if name == TEACHER:
            made = experiment.pairs("train", seed)
            return made.batch(torch.arange(min(count, len(made))))[0]
        z = pairs.noise(plan.noise_seed(seed), range(count), experiment.data.train.shape)
        sampler, flow = plan.own_sampler(known[name].config, nfe), experiment.flow(known[name].config, seed)
        return sampler(flow, z, labels_in_turn(count, experiment.classes))

    def graded(name: str, seed: int, nfe: int) -> tuple[float, float]:
        return precision_recall(real, to_uint8(drawn(name, seed, nfe)), experiment)

    found: dict[str, dict[str, list[float]]] = {name: {} for name in (*names, TEACHER)}
    for name, columns in found.items():
        values = {nfe: [graded(name, seed, nfe) for seed in seeds] for nfe in evaluations}
        for place, quantity in enumerate(("precision", "recall")):
            columns |= {f"{quantity}, {nfe} NFE": [each[place] for each in values[nfe]] for nfe in evaluations}
    return found


COLUMNS = ("", "trains on", "passes a row", "steps", "passes", "with LPIPS", "to make the pairs")
"""Headings of the table of what each contender spends; LPIPS counts as the passes that take as long."""


def spending(experiment: Experiment, names: Sequence[str], seeds: Sequence[int]) -> list[tuple[object, ...]]:
    """A row for each contender, as :data:`COLUMNS` says. For G both trainings count."""
    known, rows, size = contenders(experiment), list[tuple[object, ...]](), size_of(experiment.plan)
    for name in names:
        found = find(known[name].config)
        price = found.price if isinstance(found, Method) else PLAIN
        flows = [experiment.plan.flow(known[name].config, seed) for seed in seeds]
        trained = [each for flow in flows for each in (flow, getattr(flow, "start", None))]
        trainings = [each for each in trained if isinstance(each, TrainFlow | TrainGenerator)]
        steps = sum(each.optimisation.steps for each in trainings) / len(seeds)
        passes = sum(price * each.optimisation.steps * each.batch_size for each in trainings) / len(seeds)
        lpips = isinstance(found, Configuration) and found.is_perceptual
        spent = (f"{price:g}", f"{steps:,.0f}", f"{passes:,.0f}", f"{passes * (1 + lpips * LPIPS / PLAIN):,.0f}")
        makers = (step for step in in_order(flows[:1]) if isinstance(step, MakePairs | InvertImages))
        made = sum(step.cost(size).passes for step in makers)
        rows.append((name, known[name].source, *spent, f"{made:,.0f}"))
    return rows


def pictures(experiment: Experiment, names: Sequence[str], seed: int, n: int, nfe: int = 1) -> dict[str, torch.Tensor]:
    """``n`` samples of each contender from the same noise, ``(n, C, H, W)`` by name."""
    known = contenders(experiment)
    z, labels = experiment.noise(n)
    return {
        name: experiment.plan.own_sampler(known[name].config, nfe)(experiment.flow(known[name].config, seed), z, labels)
        for name in names
    }
