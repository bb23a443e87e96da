"""Rounds of reflow of a linear flow, each in closed form: what is lost when a flow learns from its own samples.

Data are ``N(m, S)``, noise is ``N(0, I)``, and the flow's velocity is linear in ``x_t``, a least-squares fit at each
``t``. The fit depends only on the pairs' first two moments, and its solution is again a linear map, ``x = m + A z``,
so that samples are normal with the covariance ``A A^T``. Three ways to make the next round's pairs are compared.

- *Own pairs*, as in reflow: ``n`` noises and what the flow makes of them. All lie on one linear map, the fit finds it,
  and nothing changes for any ``n > d``.
- *Fresh noise*: ``n`` own samples, each paired with infinitely many fresh noises. The next flow's covariance is that
  of the sample, ``A W A^T / n`` with ``W`` of Wishart's distribution with ``n - 1`` degrees of freedom. A round
  multiplies the expected covariance by ``1 - 1 / n`` and changes the expected logarithm of its determinant by
  ``sum_i psi((n - i) / 2) - d log(n / 2)``, ``i = 1..d``. The mean varies by what the covariance loses: the two add
  up to ``S``.
- *Own pairs with errors* of standard deviation ``tau`` in the images, as a network or rounding makes them. Each round
  adds ``tau^2 I`` to the covariance, up to the sampling error of ``n`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp import intersections
from rfpp.base import rng
from rfpp.base.checks import at_least, one_of

PAIRS, FRESH, ERRORS = KINDS = ("own pairs", "fresh noise", "own pairs with errors")
COUNT = 10
"""The number of rounds in the claim."""
COVARIANCE = torch.diag(torch.tensor([1, 1 / 2, 1 / 4, 1 / 8], dtype=torch.float64))
"""The covariance of the data in the pictures and the claim."""


@dataclass(frozen=True)
class Linear:
    """Maps from noise to data of ``B`` chains, ``x = mean + matrix z``: ``(B, d)`` and ``(B, d, d)``."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the maps to noise ``(B, n, d)``."""
        return self.mean[:, None] + z @ self.matrix.mT

    @property
    def covariance(self) -> Tensor:
        """The covariance of the samples from Gaussian noise: ``(B, d, d)``."""
        return self.matrix @ self.matrix.mT

    @property
    def log_volume(self) -> Tensor:
        """Half the logarithm of the covariance's determinant, ``(B,)``."""
        return torch.linalg.slogdet(self.matrix).logabsdet


@dataclass(frozen=True)
class Moments:
    """Means ``(B, d)`` and covariances ``(B, d, d)`` of data ``x`` and noise ``z``; ``xz``: ``Cov(x, z)``."""

    x: Tensor
    z: Tensor
    xx: Tensor
    xz: Tensor
    zz: Tensor

    def slope(self, t: float) -> Tensor:
        """The matrix of the best linear velocity, ``Cov(z - x, x_t) Cov(x_t)^-1``: ``(B, d, d)``."""
        along = (1 - t) ** 2 * self.xx + t**2 * self.zz + t * (1 - t) * (self.xz + self.xz.mT)
        across = (1 - t) * (self.xz.mT - self.xx) + t * (self.zz - self.xz)
        return torch.linalg.solve(along, across, left=False)


def of_pairs(x: Tensor, z: Tensor) -> Moments:
    """The moments of pairs ``x``, ``z`` ``(B, n, d)``: sums over ``n``, divided by ``n``."""
    mean_x, mean_z, n = x.mean(dim=1), z.mean(dim=1), x.shape[1]
    a, b = x - mean_x[:, None], z - mean_z[:, None]
    return Moments(mean_x, mean_z, a.mT @ a / n, a.mT @ b / n, b.mT @ b / n)


def with_fresh_noise(x: Tensor) -> Moments:
    """The moments of data ``x`` ``(B, n, d)`` with endless fresh noise, whose moments are known."""
    seen = of_pairs(x, x)
    unit = torch.eye(x.shape[2], dtype=x.dtype).expand_as(seen.xx)
    return Moments(seen.x, torch.zeros_like(seen.x), seen.xx, torch.zeros_like(unit), unit)


def fit(moments: Moments, tolerance: float = 1e-8) -> Linear:
    """The map of the linear flow that least squares finds at each ``t``: its ODE from ``t = 1`` to 0.

    ``x_t - E x_t`` moves by the slope, and ``E x_t`` along the line between the means.
    """
    start = torch.eye(moments.xx.shape[1], dtype=moments.xx.dtype).expand_as(moments.xx)
    times = torch.tensor([1.0, 0.0], dtype=start.dtype)
    matrix = intersections.solve(lambda y, t: moments.slope(t) @ y, start, times, tolerance, tolerance)[-1]
    return Linear(moments.x - (matrix @ moments.z[..., None])[..., 0], matrix)


def rounds(
    kind: str, n: int, seed: int, chains: int = 1, tau: float = 0, covariance: Tensor = COVARIANCE, count: int = COUNT
) -> list[Linear]:
    """``chains`` independent runs of ``count`` rounds, from the exact flow of ``N(0, covariance)``: ``count + 1`` maps.

    ``kind``: one of ``KINDS``; ``n``: samples of each round; ``tau``: the errors' standard deviation.
    Raises ``ValueError`` for an unknown kind, or fewer samples than two more than there are dimensions.
    """
    one_of("kind", kind, KINDS)
    d, generator = len(covariance), rng.generator(seed, "rounds", kind)
    at_least("n", n, d + 2)
    at_least("count", count, 1)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.sqrt() @ vectors.T
    flows = [Linear(torch.zeros(chains, d, dtype=covariance.dtype), root.expand(chains, d, d))]
    for _ in range(count):
        z, errors = torch.randn(2, chains, n, d, generator=generator, dtype=covariance.dtype)
        x = flows[-1](z) + (tau * errors if kind == ERRORS else 0)
        flows.append(fit(with_fresh_noise(x) if kind == FRESH else of_pairs(x, z)))
    return flows


def expected_loss(n: int, d: int) -> float:
    """By how much a round with fresh noise is expected to lower the log-volume."""
    halves = (n - torch.arange(1, d + 1, dtype=torch.float64)) / 2
    return float((math.log(n / 2) - torch.special.digamma(halves)).sum()) / 2


def expected(kind: str, n: int, tau: float = 0, covariance: Tensor = COVARIANCE, count: int = COUNT) -> Tensor:
    """The change of the log-volume after 0 to ``count`` rounds that theory predicts, ``(count + 1,)``.

    With errors it is the limit of infinitely many samples.
    """
    passed = torch.arange(count + 1, dtype=torch.float64)
    if kind == FRESH:
        return -passed * expected_loss(n, len(covariance))
    if kind == ERRORS:
        added = passed[:, None] * tau**2 / torch.linalg.eigvalsh(covariance)
        return added.log1p().sum(dim=1) / 2
    return torch.zeros_like(passed)


def changes(flows: Sequence[Linear]) -> tuple[Tensor, Tensor]:
    """The change of the log-volume since the first of ``flows``: mean over chains, and its standard error, (R,)."""
    found = torch.stack([flow.log_volume - flows[0].log_volume for flow in flows])
    return found.mean(dim=1), found.std(dim=1) / found.shape[1] ** 0.5


def spread(flows: Sequence[Linear]) -> dict[str, Tensor]:
    """Where the variance is: within samples (the covariance's trace), and that of the mean over chains: (R,)."""
    within = torch.stack([flow.covariance.diagonal(dim1=1, dim2=2).sum(dim=1).mean() for flow in flows])
    wandered = torch.stack([flow.mean.square().sum(dim=1).mean() for flow in flows])
    return {"covariance": within, "mean, squared": wandered, "both": within + wandered}


def expected_spread(n: int, covariance: Tensor = COVARIANCE, count: int = COUNT) -> dict[str, Tensor]:
    """The same as theory predicts for fresh noise."""
    total, kept = covariance.trace(), (1 - 1 / n) ** torch.arange(count + 1, dtype=torch.float64)
    return {"covariance": total * kept, "mean, squared": total * (1 - kept), "both": total * torch.ones_like(kept)}


def lost(kind: str, n: int, seed: int, chains: int) -> float:
    """The log-volume that :data:`COUNT` rounds lose or gain, in the mean over chains, over what fresh noise should
    lose."""
    change, _ = changes(rounds(kind, n, seed, chains))
    return abs(float(change[-1])) / (COUNT * expected_loss(n, len(COVARIANCE)))
