"""Moments of features: accumulated batch by batch, stored in EDM's file format, and compared by Fréchet's distance."""

from __future__ import annotations

import operator
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rfpp.base import files, torchvision_shim
from rfpp.base.checks import at_least

MAX_BYTES = 1 << 28
"""Size above which a file of statistics is refused; 2048 features take 32 MiB."""

_BROKEN = (
    ValueError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""What reading a damaged NumPy file can raise; an encrypted file also raises ``RuntimeError``."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean ``mu`` ``(F,)`` and covariance ``sigma`` ``(F, F)`` of the features of ``count`` images, in float64.

    ``count`` is ``None`` if unknown, and ``sha256``, that of the file, if there is no file. Raises ``ValueError``
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
        """Write EDM's format, an ``.npz`` with ``mu`` and ``sigma``, and also ``count`` if it is known.

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

        ``count``: how many images they are of; EDM's files do not state it. Other arrays in the file are not read.

        Raises ``FileNotFoundError`` when there is no file, and ``ValueError`` for one that is not of this format, holds
        objects, is larger than :data:`MAX_BYTES`, or states another ``count``.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"path={str(path)!r} does not exist; EDM publishes such files (https://nvlabs-fi-cdn.nvidia.com/edm/"
                "fid-refs/), and Moments.statistics(...).save(path) makes one"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = {info.filename: info.file_size for info in archive.infolist()}
            if not {"mu.npy", "sigma.npy"} <= unpacked.keys():
                raise ValueError(f"arrays called mu and sigma are needed, but it has {sorted(unpacked)}"[:300])
            members = [name for name in ("mu.npy", "sigma.npy", "count.npy") if name in unpacked]
            size = max(path.stat().st_size, sum(unpacked[name] for name in members))
            if size > MAX_BYTES:
                raise ValueError(f"it takes {size} bytes; at most {MAX_BYTES} are allowed")
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
    1983), which avoids cancellation.
    """

    def __init__(self, dim: int) -> None:
        at_least("dim", dim, 1)
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))  # the sum of outer products of deviations from the mean

    def add(self, features: Tensor) -> Moments:
        """Add features ``(B, dim)``; raises ``ValueError`` for another shape, NaN or infinity."""
        dim = self.mean.size
        if features.ndim != 2 or features.shape[1] != dim or not len(features):
            raise ValueError(f"features have shape {tuple(features.shape)}; (B, {dim}) with B of 1 or more is needed")
        if not features.isfinite().all():
            row = self.count + int((~features.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"the features of image {row} hold NaN or infinity; check the extractor's weights")
        rows = features.double().cpu().numpy()
        batch = Moments(dim)
        batch.count, batch.mean = len(rows), rows.mean(axis=0)
        batch.scatter = (rows - batch.mean).T @ (rows - batch.mean)
        return self.merge(batch)

    def merge(self, other: Moments) -> Moments:
        """Add the features that another has seen, e.g. on another device; raises ``ValueError`` for another ``dim``."""
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
        check_count(self.count, 2)
        return Statistics(self.mean, self.scatter / (self.count - 1), name, self.count)


def check_count(n: int, needed: int) -> None:
    """Raise ``ValueError`` for fewer images than are needed."""
    if n < needed:
        raise ValueError(f"there are {n} images; at least {needed} are needed")


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """``|m - n|^2 + tr(S + T - 2 (S T)^(1/2))``: FID for Inception's features, by torch-fidelity.

    Raises ``ValueError`` when the two have different numbers of features.
    """
    if first.mu.size != second.mu.size:
        raise ValueError(
            f"{first.name} has {first.mu.size} features, but {second.name} has {second.mu.size}; use one extractor"
        )
    a, b = ({"mu": statistics.mu, "sigma": statistics.sigma} for statistics in (first, second))
    by = torchvision_shim.load("torch_fidelity.metric_fid")
    return float(by.fid_statistics_to_metric(a, b, verbose=False)[by.KEY_METRIC_FID])
