"""The steps from flows to grades."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rfpp import checkpoints, data, features, metrics
from rfpp.base import files, processes, progress
from rfpp.flow import RectifiedFlow
from rfpp.metrics.statistics import Moments, Statistics, frechet_distance
from rfpp.pairs import PairDataset
from rfpp.pipeline.digests import presentation
from rfpp.pipeline.flows import MakePairs, TrainFlow, placed
from rfpp.pipeline.generators import TrainGenerator
from rfpp.pipeline.networks import Weights, embedding
from rfpp.pipeline.sampling import AnySampler, draw, labels_in_turn
from rfpp.pipeline.sources import Given, Source
from rfpp.pipeline.steps import Cost, Run, Size, Step

_REFERENCE, SAMPLES, _GRADES = "reference.npz", "samples", "evaluation.json"
SHARD = 1024
_GRADED = 128
"""How many images a network grades at once: Inception takes them at 299x299."""


@dataclass(frozen=True)
class Evaluation:
    """The grades of one flow with one sampler. ``frechet``: distance of samples to the training images in the grading
    features; ``agreement``: share of samples recognised as their label; ``pair_error``: mean
    ``||sample(z) - x||^2 / d`` over held-out pairs, the one-step error at ``nfe = 1``."""

    frechet: float
    agreement: float
    pair_error: float


@torch.no_grad()
def moments(network: nn.Module, batches: Tensor | Iterator[Tensor]) -> Moments:
    """Compute the moments of the features of 8-bit images, in batches that a network can grade at once."""
    found = Moments(int(network.num_features))  # type: ignore[arg-type]
    for batch in (batches,) if isinstance(batches, Tensor) else batches:
        for rows in batch.split(_GRADED):
            found.add(network(data.to_float(rows)))
    return found


def agreement(grader: nn.Module, pixels: Tensor, labels: Tensor | None) -> float:
    """Share of 8-bit images recognised as their label; NaN without labels or without a classifier of their classes."""
    if labels is None or not isinstance(grader, features.Classifier):
        return float("nan")
    own = processes.place(copy.deepcopy(grader))  # others share the grader, and a model must not be placed twice
    return metrics.label_agreement(data.to_float(pixels), labels, own)


def compared(dataset: data.Dataset) -> list[data.Images]:
    """Return the real images that samples are compared with, as in published evaluations.

    These are the training images. Of a folder or an archive they are all images, because published evaluations do not
    hold out the images that are held out here.
    """
    return [dataset.train, *([dataset.held_out] if dataset.name == "images" else [])]


@dataclass(frozen=True)
class MeasureReference(Step):
    """Compute the moments of the real images' features."""

    images: Source | Given
    grader: Weights

    name: ClassVar[str] = "reference"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load, features.Embedding, features.EightBit)

    @property
    @presentation
    def title(self) -> str:
        return "features of the real images"

    def compute(self, folder: Path, run: Run) -> None:
        network = embedding(self.grader.load(run))  # in all processes: it may have to be trained
        if processes.is_main():
            dataset = self.images.load()
            parts = [part.pixels.split(_GRADED) for part in compared(dataset)]
            found = moments(network, chain.from_iterable(parts))
            found.statistics(f"{dataset.name}, {found.count:,} images").save(folder / _REFERENCE)

    def load(self, run: Run) -> Statistics:
        """Load the moments."""
        return Statistics.load(run.get(self) / _REFERENCE)


@dataclass(frozen=True)
class GradeFlow(Step):
    """Grade samples of a flow: compare them with the real images and, on held-out pairs, with the teacher's.

    ``flow``: a trained flow, or the teacher's weights, which are the 1-rectified flow (Proposition 1).
    """

    flow: TrainFlow | TrainGenerator | Weights
    sampler: AnySampler
    samples: int
    seed: int
    held_out: MakePairs
    reference: MeasureReference

    name: ClassVar[str] = "evaluation"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load, features.Embedding, features.EightBit)

    @property
    @presentation
    def title(self) -> str:
        flow = self.flow
        of = f"{flow.label}, seed {flow.seed}" if isinstance(flow, TrainFlow | TrainGenerator) else "the teacher"
        return f"grade {of}, {self.sampler.nfe} NFE"

    def compute(self, folder: Path, run: Run) -> None:
        flow, held_out = load_flow(self.flow, run), PairDataset(run.get(self.held_out).folder)
        draw(
            flow, self.sampler, folder / SAMPLES, n=self.samples, seed=self.seed, batch_size=run.batch_size,
            shard_size=SHARD, advance=None if run.advance is None else lambda images: self._count(images, run),
        )  # fmt: skip
        drawn = PairDataset(folder / SAMPLES)
        reference, grader = self.reference.load(run), self.reference.grader.load(run)
        network = embedding(grader)
        if not processes.is_main():  # no code below may wait for other processes
            return
        pixels = drawn.read(torch.arange(self.samples))["images"]
        found = Evaluation(
            frechet=frechet_distance(moments(network, pixels).statistics("samples"), reference),
            agreement=agreement(grader, pixels, labels_in_turn(self.samples, drawn.classes)),
            pair_error=self._pair_error(flow, held_out, run),
        )
        files.write_text(folder / _GRADES, json.dumps(asdict(found)))
        shutil.rmtree(folder / SAMPLES)  # gigabytes at the paper's size, made again in minutes

    def _count(self, images: int, run: Run) -> None:
        if run.advance is not None:
            run.advance(images * self.sampler.nfe)

    def _pair_error(self, flow: RectifiedFlow, held_out: PairDataset, run: Run) -> float:
        """Return the mean of ``||sample(z) - x||^2 / d`` over held-out pairs."""
        errors = []
        for rows in torch.arange(len(held_out)).split(run.batch_size):
            x, z, labels = held_out.batch(rows)
            errors.append((self.sampler(flow, z, labels) - x).square().flatten(1).mean(dim=1))
            self._count(len(rows), run)
        return float(torch.cat(errors).mean())

    def load(self, run: Run) -> Evaluation:
        """Load the grades."""
        return Evaluation(**json.loads((run.get(self) / _GRADES).read_text()))

    @presentation
    def cost(self, size: Size) -> Cost:
        return Cost(passes=(self.samples + self.held_out.n) * self.sampler.nfe)


def evaluations(
    steps: Mapping[AnySampler, Sequence[GradeFlow]], run: Run, title: str
) -> dict[AnySampler, list[Evaluation]]:
    """Load the grades of samplers, those of each seed in turn, with a bar of evaluations."""
    found: dict[AnySampler, list[Evaluation]] = {sampler: [] for sampler in steps}
    sizes = Size(pixels=1, parameters=1, images=1)  # on which these costs do not depend
    total = sum(step.cost(sizes).passes for each in steps.values() for step in each)
    with progress.bar(total=total, desc=title, unit="NFE", unit_scale=True) as bar:
        for of_seed in zip(*steps.values(), strict=True):
            for sampler, step in zip(steps, of_seed, strict=True):
                done = bar.n
                bar.set_postfix_str(step.title, refresh=False)
                found[sampler].append(step.load(dataclasses.replace(run, advance=bar.update)))
                bar.update(done + step.cost(sizes).passes - bar.n)  # the full count, also for results from disk
    return found


@dataclass(frozen=True)
class DrawSamples(Step):
    """Draw and keep samples of a flow, for the standard evaluation."""

    flow: TrainFlow | TrainGenerator | Weights
    sampler: AnySampler
    n: int
    seed: int

    name: ClassVar[str] = "samples"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load,)

    @property
    @presentation
    def parts(self) -> int:
        return math.ceil(self.n / SHARD)

    def compute(self, folder: Path, run: Run) -> None:
        flow = load_flow(self.flow, run)
        draw(
            flow, self.sampler, folder, n=self.n, seed=self.seed, batch_size=run.batch_size, shard_size=SHARD,
            only=run.part,
        )  # fmt: skip

    def load(self, run: Run) -> PairDataset:
        """Load the samples as pairs with their noise."""
        return PairDataset(run.get(self).folder)


def load_flow(weights: TrainFlow | TrainGenerator | Weights, run: Run) -> RectifiedFlow:
    """Load a trained flow, or the teacher as the 1-rectified flow, on this process's device."""
    model = weights.load(run)
    return placed(model if isinstance(model, RectifiedFlow) else RectifiedFlow(copy.deepcopy(model)))
