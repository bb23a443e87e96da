"""The standard evaluation of a flow: FID, inception score, precision and recall, with their protocol."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfpp import metrics
from rfpp.base import files, processes
from rfpp.base.checks import at_least
from rfpp.base.files import digest
from rfpp.metrics import Grades, Statistics, embed
from rfpp.metrics.grades import check_reference
from rfpp.pipeline.grades import SHARD, DrawSamples, MeasureReference
from rfpp.pipeline.networks import MODEL, Inception
from rfpp.pipeline.plan import Config, Plan
from rfpp.pipeline.sampling import AnySampler, Sampler
from rfpp.pipeline.steps import Run, Step


def grades(
    plan: Plan,
    run: Run,
    config: Config,
    seeds: Sequence[int],
    sampler: AnySampler,
    compute: Callable[[Iterable[Step]], None],
    *,
    n: int | None = None,
    reference: str | Path | None = None,
    reference_count: int | None = None,
    weights: str | Path | None = None,
) -> Iterator[Grades]:
    """Grade ``n`` samples of a flow of each seed and keep the samples; of several processes, only the first one grades.

    ``compute`` computes the samples of all seeds at once, side by side where it can; the iterator grades them in turn.
    ``reference``: statistics of real images in EDM's ``.npz`` format. If ``None``, they are computed from the training
    images and, for a folder or archive, also the held-out ones. ``reference_count``: the number of images behind the
    statistics, if the file does not say; ``weights``: Inception's weights, the preset's if ``None``. Raises
    ``ValueError`` before any work for fewer images than precision and recall need, a ``reference`` of another number of
    features, and a ``reference_count`` without one.
    """
    asked, n = ("n", n) if n is not None else ("evaluation.samples", plan.preset.evaluation.samples)
    at_least(asked, n, metrics.NEIGHBOURS + 1)
    if reference is None and reference_count is not None:
        raise ValueError(
            f"reference_count={reference_count} works only with a reference; name that .npz file, or leave this out"
        )
    published = None if reference is None else Statistics.load(reference, reference_count)
    source = weights or plan.preset.features.inception or metrics.INCEPTION_URL
    extractor = metrics.inception(source, processes.device())
    if published is not None:
        check_reference(published, extractor)
    steps = [plan.samples(config, seed, sampler, n) for seed in seeds]
    compute(steps)
    own = MeasureReference(plan.images, Inception(None if source == metrics.INCEPTION_URL else str(source)))
    against = published or own.load(run)

    @functools.cache
    def real() -> Tensor:
        some = plan.images.load().train.pixels[: metrics.PUBLISHED_MANIFOLD]
        return torch.cat([found for found, _ in embed(some, extractor)])

    def graded(step: DrawSamples) -> Grades:
        samples, flow = step.load(run), step.flow
        weights_of = files.sha256(run.get(flow) / MODEL) if isinstance(flow, Step) else str(flow.identity()[0])

        def work() -> Grades:
            batches = (samples.read(rows)["images"] for rows in torch.arange(n).split(SHARD))
            return metrics.grade(
                batches, extractor, against, reference_features=real(), flow_sha256=weights_of, seed=step.seed,
                dataset=plan.images.load().name, **_described(sampler),
            )  # fmt: skip

        return processes.by_main(work)

    return map(graded, steps)


def _described(sampler: AnySampler) -> dict[str, Any]:
    """How a sampler works, as the protocol says it."""
    if isinstance(sampler, Sampler):
        return {each.name: getattr(sampler, each.name) for each in fields(sampler) if each.compare}
    return {"nfe": sampler.nfe, "solver": str(sampler)}


def write(grades: Grades, config: object, seed: int, folder: Path) -> Path:
    """Write grades as JSON to a preset's results, named by their protocol."""
    protocol = digest(asdict(grades.protocol))[:8]
    path = folder / "grades" / f"{config}-{seed}-{protocol}.json"
    if processes.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(asdict(grades), indent=1))
    return path
