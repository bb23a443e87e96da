"""Section 3's edge case, crossings of nearly equal noise: how much the exact flow stretches noise, or reverses it.

Let ``F`` be the flow's map from noise to images, ``x = F(z)``. Two of its pairs cross at ``t`` exactly when

    x'' - x' = -(t / (1 - t)) (z'' - z'),

and their directions then differ by ``(z'' - x'') - (z' - x') = (z'' - z') / (1 - t) = -(x'' - x') / t``.

If ``F`` is ``L``-Lipschitz, ``||x'' - x'|| <= L ||z'' - z'|| = L ((1 - t) / t) ||x'' - x'||``. Different images need
``t / (1 - t) <= L``, that is ``t <= L / (1 + L)``. No two pairs cross later than that. Earlier, it says nothing.

The Jacobian ``J`` of ``F`` says more, in three steps.

- A crossing at ``t`` needs a place between ``z'`` and ``z''`` where ``J`` *stretches* by ``t / (1 - t)`` or more: its
  largest singular value is the local ``L``.
- It also needs a place where ``J`` *reverses* as much. With ``w`` the unit direction from ``z'`` to ``z''``, the mean
  of ``w^T J w`` between them is ``-t / (1 - t)``, so the least eigenvalue of ``(J + J^T) / 2`` is as low somewhere.
- Pairs whose noise is arbitrarily close to ``z`` cross at ``t`` only if ``-t / (1 - t)`` is an eigenvalue of ``J`` at
  ``z``. Otherwise the map ``z -> (1 - t) F(z) + t z`` is one-to-one around ``z``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp import intersections
from rfpp.base import rng
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow


def posterior_covariance(data: GaussianMixtureDenoiser, x: Tensor, sigma: float) -> Tensor:
    """``Cov[x0 | x]`` of the mixture for ``x`` ``(B, d)`` at noise level ``sigma``: ``(B, d, d)``.

    The covariance of the components' posterior means, weighted by their responsibilities, and each one's own variance.
    """
    means, shrink = data.means, data.std**2 / (sigma**2 + data.std**2)
    logits = data.log_weights - torch.cdist(x, means).square() / (2 * (sigma**2 + data.std**2))
    weights = logits.softmax(dim=1)
    gaps = means - (weights @ means)[:, None]
    between = (gaps * weights[..., None]).mT @ gaps
    return (1 - shrink) ** 2 * between + shrink * sigma**2 * torch.eye(x.shape[1], dtype=x.dtype)


@torch.no_grad()
def differentiate(data: GaussianMixtureDenoiser, z: Tensor, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The exact flow's images of noise ``z`` ``(n, d)``, and their Jacobians: ``(n, d)`` and ``(n, d, d)``.

    The Jacobian follows the variational equation ``dJ/dt = (dv/dx) J`` along each path, with ``J = I`` at the noise.
    For the exact flow ``dv/dx = (I - ((1 - t) / t^2) Cov[x | x_t]) / t``.
    """
    flow, unit = RectifiedFlow(data), torch.eye(z.shape[1], dtype=z.dtype)

    def change(state: Tensor, t: float) -> Tensor:
        x_t, jacobian = state[..., 0], state[..., 1:]
        covariance = posterior_covariance(data, x_t / (1 - t), t / (1 - t))
        slope = (unit - (1 - t) / t**2 * covariance) / t
        return torch.cat([flow.velocity(x_t, t)[..., None], slope @ jacobian], dim=2)

    start = torch.cat([z[..., None], unit.expand(len(z), -1, -1)], dim=2)
    last = intersections.solve(change, start, torch.tensor([T_MAX, T_MIN], dtype=z.dtype), tolerance, tolerance)[-1]
    return last[..., 0], last[..., 1:]


@dataclass(frozen=True)
class Jacobians:
    """What the Jacobian does at each of ``n`` noises: ``(n,)`` each.

    ``stretch``: its largest singular value; ``reversal``: minus the least eigenvalue of its symmetric part; ``least``:
    the least real part of its eigenvalues. Where that is positive, none is ``-t / (1 - t)`` for any ``t``.
    """

    stretch: Tensor
    reversal: Tensor
    least: Tensor

    def last(self, share: float) -> float:
        """The time ``L / (1 + L)`` after which the local bound allows no crossing at this ``share`` of the noise."""
        bound = float(self.stretch.quantile(share))
        return bound / (1 + bound)

    def stretched(self, times: Tensor) -> Tensor:
        """Share of the noise where the local bound allows a crossing, at each of ``times`` ``(T,)``: ``(T,)``."""
        return _reaching(self.stretch, times)

    def reversed(self, times: Tensor) -> Tensor:
        """The same by the sharper bound: ``J`` has to reverse a direction and stretch it as much."""
        return _reaching(self.reversal, times)

    def row(self, t: float) -> tuple[str, ...]:
        """Cells under :data:`COLUMNS`; ``t`` is the time of the two shares."""
        stretches = (f"{float(self.stretch.quantile(share)):.3g}" for share in (0.5, 0.99, 1))
        shares = (f"{float(of(torch.tensor([t]))):.1%}" for of in (self.stretched, self.reversed))
        return *stretches, f"{self.last(1):.3f}", *shares, f"{float(self.least.min()):.2g}"


COLUMNS = (
    "stretch: median",
    "99 % quantile",
    "largest, $L$",
    r"$L / (1 + L)$",
    "stretched enough",
    "reversed enough",
    "least eigenvalue",
)
"""Headings of a table of stretches, which the rows of :class:`Jacobians` fill."""


def _reaching(values: Tensor, times: Tensor) -> Tensor:
    return (values[:, None] >= times / (1 - times)).double().mean(dim=0)


def jacobians(data: GaussianMixtureDenoiser, seed: int, n: int) -> Jacobians:
    """The exact flow's Jacobian at ``n`` Gaussian noises, for ``data`` with means ``(K, d)`` in double precision."""
    z = torch.randn(n, data.means.shape[1], generator=rng.generator(seed, "lipschitz"), dtype=data.means.dtype)
    _, found = differentiate(data, z)
    return Jacobians(
        torch.linalg.svdvals(found)[:, 0],
        -torch.linalg.eigvalsh((found + found.mT) / 2)[:, 0],
        torch.linalg.eigvals(found).real.min(dim=1).values,
    )


def widened(images: Tensor, std: float) -> GaussianMixtureDenoiser:
    """A mixture with a Gaussian of width ``std`` around each of ``images`` ``(K, ...)``, within their span.

    Across the span the flow only scales noise, to the width, and its Jacobian there is ``std`` times the unit matrix.
    """
    known = images.flatten(1).double()
    if len(known) < known.shape[1]:
        known = known @ torch.linalg.qr(known.T).Q
    return GaussianMixtureDenoiser(known, std)
