"""The standard evaluation of a flow: FID, inception score, precision and recall, with their protocol."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from rfpp import metrics
from rfpp.base import files, processes
from rfpp.base.checks import at_least
from rfpp.base.files import digest
from rfpp.metrics import Extractor, Grades, Moments, Statistics, embed
from rfpp.metrics.grades import check_reference
from rfpp.pipeline.flows import TrainFlow
from rfpp.pipeline.grades import SHARD, compared
from rfpp.pipeline.networks import MODEL
from rfpp.pipeline.plan import Config, Plan
from rfpp.pipeline.sampling import Sampler, Samples
from rfpp.pipeline.steps import Run


def grade(
    plan: Plan,
    run: Run,
    folder: Path,
    config: Config,
    seed: int,
    sampler: Samples,
    *,
    n: int | None = None,
    reference: str | Path | None = None,
    reference_count: int | None = None,
    weights: str | Path | None = None,
) -> Grades:
    """Grade ``n`` samples of a flow and keep the samples; of several processes, only the first one grades.

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
    step = plan.samples(config, seed, sampler, n)
    samples, dataset = step.load(run), plan.images.load()
    trained = step.flow if isinstance(step.flow, TrainFlow) else None
    weights_of = files.sha256(run.get(trained) / MODEL) if trained else plan.teacher.identity()[0]

    def work() -> Grades:
        real = torch.cat([found for found, _ in embed(dataset.train.pixels[: metrics.PUBLISHED_MANIFOLD], extractor)])
        batches = (samples.read(rows)["images"] for rows in torch.arange(n).split(SHARD))
        described: dict[str, Any] = {"nfe": sampler.nfe, "solver": str(sampler)}
        if isinstance(sampler, Sampler):
            described = {each.name: getattr(sampler, each.name) for each in fields(sampler) if each.compare}
        return metrics.grade(
            batches, extractor, published or own_reference(plan, folder, extractor), reference_features=real,
            dataset=dataset.name, flow_sha256=str(weights_of), seed=plan.noise_seed(seed), **described,
        )  # fmt: skip

    return processes.by_main(work)


def own_reference(plan: Plan, folder: Path, extractor: Extractor) -> Statistics:
    """Compute reference statistics as published: of all images of an archive, else of the training split."""
    dataset = plan.images.load()
    moments = Moments(extractor.num_features)
    for found, _ in embed((rows for part in compared(dataset) for rows in part.pixels.split(128)), extractor):
        moments.add(found)
    name = f"{dataset.name}-{extractor.sha256[:8] if extractor.sha256 else 'own'}.npz"
    (folder / "references").mkdir(parents=True, exist_ok=True)
    return moments.statistics(name).save(folder / "references" / name)


def write(grades: Grades, config: object, seed: int, folder: Path) -> Path:
    """Write grades as JSON to a preset's results, named by their protocol."""
    protocol = digest(asdict(grades.protocol))[:8]
    path = folder / "grades" / f"{config}-{seed}-{protocol}.json"
    if processes.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(asdict(grades), indent=1))
    return path
