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
from rfpp.metrics import Extractor, Grades, Moments, Statistics, embed
from rfpp.metrics.grades import check_reference
from rfpp.pairs import PairDataset
from rfpp.pipeline.grades import SHARD, compared
from rfpp.pipeline.networks import MODEL
from rfpp.pipeline.plan import Config, Plan
from rfpp.pipeline.sampling import Sampler, Samples
from rfpp.pipeline.steps import Run, Step


def grades(
    plan: Plan,
    run: Run,
    folder: Path,
    config: Config,
    seeds: Sequence[int],
    sampler: Samples,
    compute: Callable[[Iterable[Step]], None],
    *,
    n: int | None = None,
    reference: str | Path | None = None,
    reference_count: int | None = None,
    weights: str | Path | None = None,
) -> Iterator[Grades]:
    """Grade ``n`` samples of a flow of each seed and keep the samples; of several processes, only the first one grades.

    ``compute`` computes the samples of all seeds, side by side where it can.
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
    steps = {seed: plan.samples(config, seed, sampler, n) for seed in seeds}
    compute(steps.values())
    described: dict[str, Any] = {"nfe": sampler.nfe, "solver": str(sampler)}
    if isinstance(sampler, Sampler):
        described = {each.name: getattr(sampler, each.name) for each in fields(sampler) if each.compare}

    @functools.cache
    def real() -> tuple[Statistics, Tensor]:
        some = plan.images.load().train.pixels[: metrics.PUBLISHED_MANIFOLD]
        features = torch.cat([found for found, _ in embed(some, extractor)])
        return published or own_reference(plan, folder, extractor), features

    for seed, step in steps.items():
        samples, flow = step.load(run), step.flow
        weights_of = files.sha256(run.get(flow) / MODEL) if isinstance(flow, Step) else flow.identity()[0]

        def work(seed: int = seed, samples: PairDataset = samples, weights_of: str = str(weights_of)) -> Grades:
            batches = (samples.read(rows)["images"] for rows in torch.arange(n).split(SHARD))
            against, features = real()
            return metrics.grade(
                batches, extractor, against, reference_features=features, dataset=plan.images.load().name,
                flow_sha256=weights_of, seed=plan.noise_seed(seed), **described,
            )  # fmt: skip

        yield processes.by_main(work)


def own_reference(plan: Plan, folder: Path, extractor: Extractor) -> Statistics:
    """Reference statistics as published: of all images of an archive, else of the training split.

    They are kept in ``folder``, under a name that tells images and extractor apart, and used again from there.
    """
    dataset, whose = plan.images.load(), "own"
    if extractor.sha256:
        whose = digest([plan.images.identity(), extractor.sha256])[:8]
    path = folder / "references" / f"{dataset.name}-{whose}.npz"
    if extractor.sha256 and path.is_file():
        return Statistics.load(path)
    moments = Moments(extractor.num_features)
    for found, _ in embed((rows for part in compared(dataset) for rows in part.pixels.split(128)), extractor):
        moments.add(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    return moments.statistics(path.name).save(path)


def write(grades: Grades, config: object, seed: int, folder: Path) -> Path:
    """Write grades as JSON to a preset's results, named by their protocol."""
    protocol = digest(asdict(grades.protocol))[:8]
    path = folder / "grades" / f"{config}-{seed}-{protocol}.json"
    if processes.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(asdict(grades), indent=1))
    return path
