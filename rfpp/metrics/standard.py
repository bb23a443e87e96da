"""The standard evaluation of images: FID, inception score, precision and recall, each with the protocol behind it.

Images are graded as 8-bit pixels in the features of Inception-v3. torch-fidelity has the network, the TensorFlow port
with TensorFlow's own resizing, and computes the distance and the scores. What is here is bookkeeping: moments that are
added batch by batch, reference statistics in the files EDM publishes, and a :class:`Protocol` that goes with every
number and says why it cannot be compared with published ones, if it cannot. ::

    extractor = standard.inception(device="cuda")
    reference = standard.Statistics.load("cifar10-32x32.npz", count=50_000)
    grades = standard.grade(batches, extractor, reference, dataset="cifar10", nfe=1, solver="euler", seed=0)
    print(grades)
"""

from __future__ import annotations

import io
import operator
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rfpp import metrics
from rfpp.base import downloads, files, pickles, progress, rng, torchvision_shim
from rfpp.base.checks import at_least

torchvision_shim.ensure()
from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: E402 (needs torchvision)
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric  # noqa: E402

INCEPTION_URL = URL_INCEPTION_V3
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights behind published FIDs, in the file that torch-fidelity and pytorch-fid offer (95,628,359 bytes)."""
PUBLISHED_N = 50_000
"""Generated images behind a published FID."""
PUBLISHED_REFERENCE = 10_000
"""Fewest real images that a published reference is made of; AFHQv2, the smallest of EDM's, has 15,803."""
SPLITS = 10
NEIGHBOURS = 3
MAX_BYTES = 1 << 28
"""Size above which a file of statistics is refused; 2048 features take 32 MiB."""


# Features


class Extractor(nn.Module):
    """What images are compared in: maps uint8 ``(B, C, H, W)`` to features ``(B, num_features)`` and logits ``(B, K)``.

    The logits, of which the inception score is made, may be ``None``. ``name`` and ``sha256``, of the weights' file,
    say which one it is.
    """

    name: str
    num_features: int
    sha256: str | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))


class Inception(Extractor):
    """torch-fidelity's Inception-v3: uint8 ``(B, 1 or 3, H, W)`` to features ``(B, 2048)`` and logits ``(B, 1008)``.

    Grey images are repeated to three channels. The logits are without biases, as in the published inception score.
    Made by :func:`inception`.
    """

    num_features = 2048

    def __init__(self, weights: dict[str, Tensor], name: str, sha256: str) -> None:
        super().__init__()
        self.name, self.sha256 = name, sha256
        # torch-fidelity unpickles the file that it is given. It gets one of our own making, from checked tensors.
        file = io.BytesIO()
        torch.save(weights, file)
        file.seek(0)
        with rng.scoped(0, "inception"):  # initial weights are drawn before they are replaced
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], file)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Left alone, convolutions on a GPU round to the three decimal digits of TensorFloat-32.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits


def inception(weights: str | Path = INCEPTION_URL, device: torch.device | str = "cpu") -> Inception:
    """The Inception-v3 of published FIDs, in eval mode.

    ``weights``: the address of the published file or of a mirror, fetched once and checked against
    :data:`INCEPTION_SHA256`; or a local file, whose checksum is kept in ``sha256``: with other than the published
    weights, numbers come with a caveat.

    Raises ``OSError`` when the file cannot be had, with the place to put it by hand, ``FileNotFoundError`` when the
    local one is not there, and ``ValueError`` for another checksum or weights that do not fit.
    """
    path = downloads.weights(weights, INCEPTION_URL, INCEPTION_SHA256)
    state = pickles.read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={str(weights)!r} is not a dictionary of tensors; {INCEPTION_URL} is")
    sha256 = files.sha256(path)
    name = "inception-v3-2015-12-05" if sha256 == INCEPTION_SHA256 else f"inception-v3 with {path.name}"
    try:
        extractor = Inception(state, name, sha256)
    except RuntimeError as error:
        raise ValueError(f"weights={str(weights)!r} does not fit Inception-v3; {INCEPTION_URL} does") from error
    return extractor.eval().to(device)


def embed(
    images: Tensor | Iterable[Tensor], extractor: Extractor, batch_size: int = 64
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Features ``(B, num_features)`` and logits ``(B, K)`` of all images in turn, on the CPU, behind a progress bar.

    ``images``: uint8 ``(N, 1 or 3, H, W)``, or an iterable of such batches, which may be a generator that makes them.
    ``extractor`` sees ``batch_size`` of them at a time, on its own device. Raises ``ValueError`` for other images.
    """
    at_least("batch_size", batch_size, 1)
    extractor.eval()
    given = images.split(batch_size) if isinstance(images, Tensor) else images
    for group in progress.bar(given, desc="features", unit="batch"):
        _check_images(group)
        for batch in group.split(batch_size):
            with torch.no_grad():
                features, logits = extractor(batch.to(extractor.device))
            yield features.cpu(), None if logits is None else logits.cpu()


def _check_images(images: object) -> None:
    wanted = "uint8 (N, 3, H, W) or (N, 1, H, W) is needed; rfpp.data.to_uint8 makes it from floats in [-1, 1]"
    if not isinstance(images, Tensor):
        raise ValueError(f"images is or yields a {type(images).__name__}; {wanted}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images is or yields {images.dtype} of shape {tuple(images.shape)}; {wanted}")


# Statistics

_BROKEN = (
    ValueError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""What reading a damaged file of numpy's can raise; ``RuntimeError`` is also that of encryption."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean ``mu`` ``(F,)`` and covariance ``sigma`` ``(F, F)`` of the features of ``count`` images, in float64.

    ``count`` is ``None`` where it is not known, and ``sha256``, of the file, where there is none. Raises ``ValueError``
    unless shapes fit, all numbers are finite, and ``sigma`` is symmetric with no variance below 0.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    name: str
    count: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        for field in ("mu", "sigma"):
            array = np.asarray(getattr(self, field))
            if array.dtype.kind != "f":
                raise ValueError(
                    f"{self.name}: {field} is of type {array.dtype}; real floating-point numbers are needed"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{self.name}: {field} holds NaN or infinity")
            object.__setattr__(self, field, array.astype(np.float64))
        if self.mu.ndim != 1 or not self.mu.size or self.sigma.shape != 2 * self.mu.shape:
            raise ValueError(
                f"{self.name}: mu {self.mu.shape} and sigma {self.sigma.shape}; shapes (F,) and (F, F) are needed"
            )
        if not np.allclose(self.sigma, self.sigma.T, rtol=0, atol=1e-6 * np.abs(self.sigma).max()):
            raise ValueError(f"{self.name}: sigma is not symmetric, so it is not a covariance")
        if self.sigma.diagonal().min() < 0:
            raise ValueError(
                f"{self.name}: sigma has the variance {self.sigma.diagonal().min():g}; 0 or more is needed"
            )
        if self.count is not None:
            at_least("count", self.count, 2)

    def save(self, path: str | Path) -> Statistics:
        """Write EDM's format, an ``.npz`` with ``mu`` and ``sigma``, and beside them ``count`` where it is known.

        Returns the statistics with the file's name and checksum.
        """
        path = Path(path)
        arrays: dict[str, Any] = {"mu": self.mu, "sigma": self.sigma}
        if self.count is not None:
            arrays["count"] = self.count
        with files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        return replace(self, name=path.name, sha256=files.sha256(path))

    @classmethod
    def load(cls, path: str | Path, count: int | None = None) -> Statistics:
        """Read EDM's format: an ``.npz`` with ``mu`` ``(F,)`` and ``sigma`` ``(F, F)``.

        ``count``: the images they are of; EDM's own files do not say. Other arrays in the file are not read.

        Raises ``FileNotFoundError`` when there is no file, and ``ValueError`` for one that is not of this format, holds
        objects, is larger than :data:`MAX_BYTES`, or says another ``count``.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"path={str(path)!r} is not there; EDM publishes such files (https://nvlabs-fi-cdn.nvidia.com/edm/"
                "fid-refs/), and Moments.statistics(...).save(path) makes one"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = {info.filename: info.file_size for info in archive.infolist()}
            if not {"mu.npy", "sigma.npy"} <= unpacked.keys():
                raise ValueError(f"arrays called mu and sigma are needed, it has {sorted(unpacked)}"[:300])
            members = [name for name in ("mu.npy", "sigma.npy", "count.npy") if name in unpacked]
            size = max(path.stat().st_size, sum(unpacked[name] for name in members))
            if size > MAX_BYTES:
                raise ValueError(f"it takes {size} bytes, more than {MAX_BYTES}")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name.removesuffix(".npy"): file[name] for name in members}
            found = operator.index(arrays.pop("count").item()) if "count" in arrays else None
        except _BROKEN as error:
            raise ValueError(f"{path} is not a file of statistics: {error or type(error).__name__}") from error
        if None not in (count, found) and count != found:
            raise ValueError(f"count={count}, but {path} is of {found} images; leave count out")
        return cls(**arrays, name=path.name, count=found if count is None else count, sha256=files.sha256(path))


class Moments:
    """Count, mean and covariance of features ``(N, dim)`` that come batch by batch, in float64.

    Memory does not grow with ``N``. Each batch is centred on its own mean before it is merged (Chan, Golub and LeVeque,
    1983), so nothing cancels.
    """

    def __init__(self, dim: int) -> None:
        at_least("dim", dim, 1)
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))  # the sum of outer products of deviations from the mean

    def add(self, features: Tensor) -> Moments:
        """Take in features ``(B, dim)``; raises ``ValueError`` for another shape, NaN or infinity."""
        dim = self.mean.size
        if features.ndim != 2 or features.shape[1] != dim or not len(features):
            raise ValueError(f"features of shape {tuple(features.shape)} where (B, {dim}) is needed")
        if not features.isfinite().all():
            row = self.count + int((~features.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"the features of image {row} hold NaN or infinity; check the extractor's weights")
        rows = features.double().cpu().numpy()
        batch = Moments(dim)
        batch.count, batch.mean = len(rows), rows.mean(axis=0)
        batch.scatter = (rows - batch.mean).T @ (rows - batch.mean)
        return self.merge(batch)

    def merge(self, other: Moments) -> Moments:
        """Take in what another has seen, e.g. on another device; raises ``ValueError`` for another ``dim``."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {other.mean.size} features cannot be merged with those of {self.mean.size}")
        total, gap = self.count + other.count, other.mean - self.mean
        if other.count:
            self.scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / total)
            self.mean = self.mean + gap * (other.count / total)
            self.count = total
        return self

    def statistics(self, name: str) -> Statistics:
        """Mean and unbiased covariance; raises ``ValueError`` for fewer than 2 images."""
        _check_count(self.count, 2)
        return Statistics(self.mean, self.scatter / (self.count - 1), name, self.count)


def _check_count(n: int, needed: int) -> None:
    if n < needed:
        raise ValueError(f"images: there are {n}; at least {needed} are needed")


# Metrics


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """``|m - n|^2 + tr(S + T - 2 (S T)^(1/2))``: FID if these are of Inception's features. By torch-fidelity.

    Raises ``ValueError`` when the two have different numbers of features.
    """
    if first.mu.size != second.mu.size:
        raise ValueError(
            f"{first.name} has {first.mu.size} features and {second.name} {second.mu.size}; use one extractor"
        )
    a, b = ({"mu": statistics.mu, "sigma": statistics.sigma} for statistics in (first, second))
    return float(fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID])


def inception_score(logits: Tensor) -> float:
    """``exp E KL(p(y|x) || p(y))`` of logits ``(N, K)``: the mean over ten splits, as published. By torch-fidelity.

    Images are shuffled first, in a fixed order, so that splits do not become classes. Raises ``ValueError`` for fewer
    images than splits.
    """
    _check_count(len(logits), SPLITS)
    return float(isc_features_to_metric(logits, splits=SPLITS)[KEY_METRIC_ISC_MEAN])


@dataclass(frozen=True)
class Protocol:
    """How a number came about: what made the images, and what they were graded with. It goes on every figure.

    ``dataclasses.asdict`` makes a JSON record of it, ``str`` one line. Of the sampler, ``inner`` are the times of the
    steps after the first, ``None`` if uniform. Checksums are SHA-256s of files: ``flow_sha256`` that of the flow's
    weights. ``manifold``: the real images that precision and recall are taken against, in balls that reach to their
    third neighbours; the reference is that of FID. What is ``None`` is not known, or was not done.
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
        return reasons


@dataclass(frozen=True)
class Grades:
    """FID (lower is better), inception score, precision and recall (higher is better), and how they came about."""

    fid: float
    inception_score: float | None
    precision: float | None
    recall: float | None
    protocol: Protocol

    def __str__(self) -> str:
        """One line of numbers, one of the protocol, one for each caveat: none of them goes without the others."""
        caveats = [f"not comparable with published numbers: {reason}" for reason in self.protocol.caveats()]
        numbers = [
            f"{name} {value:.{digits}f}"
            for name, value, digits in (
                ("FID (not as published)" if caveats else "FID", self.fid, 2),
                ("inception score", self.inception_score, 2),
                ("precision", self.precision, 3),
                ("recall", self.recall, 3),
            )
            if value is not None
        ]
        return "\n".join([", ".join(numbers), str(self.protocol), *caveats])


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
    ``extractor``; ``reference_features`` ``(M, num_features)``: real images' features themselves, for precision and
    recall (3 neighbours, as :func:`rfpp.metrics.precision_recall`), which are ``None`` without. In Inception's features
    they are comparable with ADM's, not with those that were published in VGG-16's. The inception score is ``None``
    where the extractor has no logits or there are fewer images than its ten splits. ``sampling``: what else the
    :class:`Protocol` tells, such as ``nfe=1``.

    Warns of what forbids a comparison with published numbers. Raises ``ValueError`` for images of another type or
    shape, fewer than 2 of them (4 for precision and recall), a reference of another number of features, or features
    that hold NaN or infinity.
    """
    protocol = Protocol(
        0, extractor.name, extractor.sha256, reference.name, reference.sha256, reference.count, **sampling
    )  # fmt: skip
    dim = extractor.num_features
    if reference.mu.size != dim:
        raise ValueError(
            f"reference={reference.name} has {reference.mu.size} features, {extractor.name} {dim}; "
            "use statistics made with this extractor"
        )
    needed = 2
    if reference_features is not None:
        needed = NEIGHBOURS + 1
        shape = tuple(reference_features.shape)
        if len(shape) != 2 or shape[0] < needed or shape[1] != dim or not reference_features.isfinite().all():
            raise ValueError(f"reference_features of shape {shape}: at least {needed} finite rows of {dim} are needed")
    if isinstance(images, Tensor):
        _check_images(images)
        _check_count(len(images), needed)

    moments, kept, scores = Moments(dim), [], []
    for features, logits in embed(images, extractor, batch_size):
        moments.add(features)
        if reference_features is not None:
            kept.append(features)
        if logits is not None:
            scores.append(logits)
    _check_count(moments.count, needed)

    precision = recall = None
    if reference_features is not None:
        protocol = replace(protocol, manifold=len(reference_features))
        real, generated = (rows.to(extractor.device) for rows in (reference_features, torch.cat(kept)))
        precision, recall = metrics.precision_recall(real, generated, nn.Identity(), NEIGHBOURS)
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
