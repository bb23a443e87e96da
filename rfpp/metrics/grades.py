"""The standard evaluation of images: FID, inception score, precision and recall, each with the protocol behind it.

Images are graded as 8-bit pixels in the features of Inception-v3, and torch-fidelity computes the distance and the
scores. This module adds bookkeeping: one pass over the images, and a :class:`Protocol` that goes with every number and
states any reason why it cannot be compared with published ones. ::

    extractor = metrics.inception(device="cuda")
    reference = metrics.Statistics.load("cifar10-32x32.npz", count=50_000)
    grades = metrics.grade(batches, extractor, reference, dataset="cifar10", nfe=1, solver="euler", seed=0)
    print(grades)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rfpp.base import torchvision_shim
from rfpp.metrics.inception import INCEPTION_SHA256, Extractor, check_images, embed
from rfpp.metrics.samples import precision_recall
from rfpp.metrics.statistics import Moments, Statistics, check_count, frechet_distance

PUBLISHED_N = 50_000
"""Generated images behind a published FID."""
PUBLISHED_REFERENCE = 10_000
"""The fewest real images behind a published reference; AFHQv2, the smallest of EDM's, has 15,803."""
PUBLISHED_MANIFOLD = 10_000
"""Real images behind published precision and recall (Dhariwal and Nichol, 2021)."""
SPLITS = 10
NEIGHBOURS = 3


def inception_score(logits: Tensor) -> float:
    """``exp E KL(p(y|x) || p(y))`` of logits ``(N, K)``: the mean over ten splits, as published, by torch-fidelity.

    Images are shuffled first, in a fixed order, so that splits do not become classes. Raises ``ValueError`` for fewer
    images than splits.
    """
    check_count(len(logits), SPLITS)
    by = torchvision_shim.load("torch_fidelity.metric_isc")
    return float(by.isc_features_to_metric(logits, splits=SPLITS)[by.KEY_METRIC_ISC_MEAN])


@dataclass(frozen=True)
class Protocol:
    """How a number was obtained: what made the images, and what graded them. It is shown with every number.

    ``dataclasses.asdict`` makes a JSON record of it, ``str`` one line. ``inner``: the times of the sampler's steps
    after the first, ``None`` if uniform. Checksums are SHA-256s of files; ``flow_sha256`` is that of the flow's
    weights. ``manifold``: the number of real images that precision and recall are computed against, in balls that reach
    to their third neighbours; the reference is that of FID. ``None`` stands for what is not known, or was not done.
    """

    n: int
    extractor: str
    extractor_sha256: str | None
    reference: str
    reference_sha256: str | None
    reference_count: int | None
    dataset: str | None = None
    flow_sha256: str | None = None
    nfe: int | None = None
    solver: str | None = None
    update: str | None = None
    first_time: float | None = None
    inner: tuple[float, ...] | None = None
    seed: int | None = None
    manifold: int | None = None

    def __post_init__(self) -> None:
        if self.inner is not None:  # a list, after JSON
            object.__setattr__(self, "inner", tuple(self.inner))

    def __str__(self) -> str:
        def of(name: str, sha256: str | None) -> str:
            return f"{name} ({sha256[:8] if sha256 else 'no checksum'})"

        inner = "" if self.inner is None else f" then {', '.join(f'{time:g}' for time in self.inner)}"
        size = "an unknown number of" if self.reference_count is None else f"{self.reference_count:,}"
        return (
            f"{self.n:,} images, dataset {self.dataset}, {of('flow', self.flow_sha256)}, nfe {self.nfe}, "
            f"solver {self.solver}, update {self.update}, from t = {self.first_time}{inner}, seed {self.seed}; "
            f"{of(self.extractor, self.extractor_sha256)} against {of(self.reference, self.reference_sha256)}, "
            f"{size} images"
            + ("" if self.manifold is None else f"; precision and recall against {self.manifold:,} real images")
        )

    def caveats(self, published_n: int = PUBLISHED_N) -> list[str]:
        """Why the numbers cannot be compared with published ones, a reason each; empty if they can."""
        reasons = []
        if self.n < published_n:
            reasons.append(f"n={self.n} images, where published numbers take {published_n}: fewer make FID larger")
        if self.extractor_sha256 != INCEPTION_SHA256:
            reasons.append(f"the features are those of {self.extractor}, not of the published Inception-v3")
        if self.reference_sha256 is None:
            reasons.append(f"the reference {self.reference} has no file that could be checked")
        if self.reference_count is None:
            reasons.append(f"how many images the reference {self.reference} is made of is not known; pass its count")
        elif self.reference_count < PUBLISHED_REFERENCE:
            reasons.append(
                f"the reference {self.reference} is made of {self.reference_count} images, "
                f"published ones of at least {PUBLISHED_REFERENCE}"
            )
        if self.manifold is not None and self.manifold != PUBLISHED_MANIFOLD:
            reasons.append(
                f"precision and recall are taken against {self.manifold:,} real images, "
                f"published ones against {PUBLISHED_MANIFOLD:,}"
            )
        return reasons


@dataclass(frozen=True)
class Grades:
    """FID (lower is better), inception score, precision and recall (higher is better), and their protocol."""

    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    protocol: Protocol

    def __str__(self) -> str:
        """One line of numbers, one of the protocol, and one for each caveat, always together."""
        caveats = [f"not comparable with published numbers: {reason}" for reason in self.protocol.caveats()]
        numbers = [
            f"{name} {value:.{digits}f}"
            for name, value, digits in (
                ("FID (not as published)" if replace(self.protocol, manifold=None).caveats() else "FID", self.fid, 2),
                ("inception score", self.inception_score, 2),
                ("precision", self.precision, 3),
                ("recall", self.recall, 3),
            )
            if value is not None
        ]
        return "\n".join([", ".join(numbers), str(self.protocol), *caveats])


def check_reference(
    reference: Statistics, extractor: Extractor, features: Tensor | None = None, needed: int = NEIGHBOURS + 1
) -> None:
    """Raise ``ValueError`` for statistics of another number of features than the extractor's.

    The same for ``features`` that do not fit it, or of fewer than ``needed`` images.
    """
    dim = extractor.num_features
    if reference.mu.size != dim:
        raise ValueError(
            f"reference={reference.name} has {reference.mu.size} features, but {extractor.name} has {dim}; "
            "use statistics made with this extractor"
        )
    if features is not None:
        shape = tuple(features.shape)
        if len(shape) != 2 or shape[0] < needed or shape[1] != dim or not features.isfinite().all():
            raise ValueError(f"reference_features of shape {shape}: at least {needed} finite rows of {dim} are needed")


def grade(
    images: Tensor | Iterable[Tensor],
    extractor: Extractor,
    reference: Statistics,
    *,
    reference_features: Tensor | None = None,
    batch_size: int = 64,
    **sampling: Any,
) -> Grades:
    """Grade generated images in one pass.

    ``images`` and ``batch_size`` as for :func:`embed`. ``reference``: statistics of real images in the features of
    ``extractor``; ``reference_features`` ``(M, num_features)``: features of real images, for precision and recall (3
    neighbours, as in :func:`rfpp.metrics.precision_recall`), which are ``None`` without them. In Inception's features
    they are comparable with ADM's, not with those that were published in VGG-16's. The inception score is ``None``
    where the extractor has no logits or there are fewer images than its ten splits. ``sampling``: further fields
    of the :class:`Protocol`, such as ``nfe=1``.

    Warns of whatever prevents a comparison with published numbers. Raises ``ValueError`` for images of another type or
    shape, fewer than 2 of them (4 for precision and recall), a reference of another number of features, or features
    that hold NaN or infinity.
    """
    protocol = Protocol(
        0, extractor.name, extractor.sha256, reference.name, reference.sha256, reference.count, **sampling
    )  # fmt: skip
    needed = 2 if reference_features is None else NEIGHBOURS + 1
    check_reference(reference, extractor, reference_features, needed)
    if isinstance(images, Tensor):
        check_images(images)
        check_count(len(images), needed)

    moments, kept, scores = Moments(extractor.num_features), [], []
    for features, logits in embed(images, extractor, batch_size):
        moments.add(features)
        if reference_features is not None:
            kept.append(features)
        if logits is not None:
            scores.append(logits)
    check_count(moments.count, needed)

    precision = recall = None
    if reference_features is not None:
        protocol = replace(protocol, manifold=len(reference_features))
        real, generated = (rows.to(extractor.device) for rows in (reference_features, torch.cat(kept)))
        precision, recall = precision_recall(real, generated, nn.Identity(), NEIGHBOURS)
    protocol = replace(protocol, n=moments.count)
    for reason in protocol.caveats():
        warnings.warn(f"not comparable with published numbers: {reason}", stacklevel=2)
    return Grades(
        fid=frechet_distance(moments.statistics("images"), reference),
        inception_score=inception_score(torch.cat(scores)) if scores and moments.count >= SPLITS else None,
        precision=precision,
        recall=recall,
        protocol=protocol,
    )
