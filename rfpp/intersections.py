"""Section 3: do the straight lines between reflow's pairs cross, and what loss remains if they do not?

Two pairs ``(x', z')`` and ``(x'', z'')`` cross at ``t`` when ``(1 - t) x' + t z' = (1 - t) x'' + t z''``. One pair and
the image of the other determine the noise of the other. The paper argues that this noise is not Gaussian, so the
1-rectified flow never sees it and cannot map it to ``x''``. Reflow's pairs therefore do not cross, and its optimal flow
is straight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import stats
from scipy.spatial import cKDTree
from torch import Tensor
from torchdiffeq import odeint

from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.denoisers import GaussianMixtureDenoiser, expand
from rfpp.flow import RectifiedFlow, interpolate


def crossing_noise(z: Tensor, x1: Tensor, x2: Tensor, t: float | Tensor) -> Tensor:
    """Return ``z'' = z' + ((1 - t) / t) (x' - x'')``, whose line to ``x''`` crosses that of ``(x', z')`` at ``t``.

    ``z`` (``z'``), ``x1`` (``x'``), ``x2`` (``x''``): ``(B, ...)``; ``t`` in (0, 1]: a number or ``(B,)``.
    Raises ``ValueError`` for a time outside (0, 1], or shapes that differ.
    """
    if not z.shape == x1.shape == x2.shape:
        raise ValueError(f"z, x1, x2 have shapes {[tuple(a.shape) for a in (z, x1, x2)]}; they must be equal")
    t = expand(t, z)
    if not ((t > 0) & (t <= 1)).all():
        raise ValueError(f"t spans {t.min().item():g}..{t.max().item():g}; allowed: above 0 and at most 1")
    return z + (1 - t) / t * (x1 - x2)


def autocorrelation(z: Tensor, max_lag: int) -> Tensor:
    """``R(l) = mean_i z_i z_{i+l}`` of each flattened ``z`` (Eq. 10), for lags 0 to ``max_lag``: ``(B, max_lag + 1)``.

    The mean is over the ``d - l`` places where both factors exist, without division by the variance. For white noise,
    ``R(0)`` is near 1 and the other values are near 0, with standard deviation ``1 / sqrt(d - l)``.
    Raises ``ValueError`` unless ``0 <= max_lag < d``.
    """
    flat = z.flatten(1)
    at_least("max_lag", max_lag, 0)
    if max_lag >= flat.shape[1]:
        raise ValueError(f"max_lag={max_lag}, but z has only {flat.shape[1]} entries; allowed: 0..{flat.shape[1] - 1}")
    lags = [(flat[:, : flat.shape[1] - lag] * flat[:, lag:]).mean(dim=1) for lag in range(max_lag + 1)]
    return torch.stack(lags, dim=1)


def exceedance(a: Tensor, b: Tensor) -> float:
    """The probability that a draw of ``a`` exceeds one of ``b``; ties count half, so equal distributions give 1/2."""
    return float(stats.mannwhitneyu(a.cpu().numpy(), b.cpu().numpy()).statistic) / (len(a) * len(b))


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise where the generator is, so that it does not depend on the device of ``x``."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)


@torch.no_grad()
def irreducible_loss(
    denoiser: GaussianMixtureDenoiser, x: Tensor, t: float, generator: torch.Generator, labels: Tensor | None = None
) -> Tensor:
    """Eq. 4's first term for independent pairs of data ``x`` and fresh noise, per sample, ``(B,)``.

    ``denoiser`` knows the data's distribution exactly, so its posterior mean is optimal, and no training can remove the
    remaining loss ``||(z - x) - E[z - x | x_t]||^2 / d = ||x - E[x | x_t]||^2 / (t^2 d)``.
    """
    z = _noise_like(x, generator)
    best = RectifiedFlow(denoiser).x_prediction(interpolate(x, z, t), t, labels)
    return (x - best).square().flatten(1).mean(dim=1) / t**2


@torch.no_grad()
def excess_loss(
    flow: RectifiedFlow,
    denoiser: GaussianMixtureDenoiser,
    x: Tensor,
    t: float,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> Tensor:
    """Eq. 4's second term for a 1-rectified ``flow``: ``||E[z - x | x_t] - v(x_t, t)||^2 / d`` per sample, ``(B,)``."""
    z = _noise_like(x, generator)
    x_t = interpolate(x, z, t)
    best, found = (model.x_prediction(x_t, t, labels) for model in (RectifiedFlow(denoiser), flow))
    return (best - found).square().flatten(1).mean(dim=1) / t**2


def regression_residual(inputs: Tensor, targets: Tensor, neighbours: int = 8) -> Tensor:
    """How far ``targets`` are from being a function of ``inputs``: their variance among nearest neighbours, ``(N,)``.

    ``inputs``: ``(N, d)`` with small ``d``; ``targets``: ``(N, ...)``. With many points, neighbours have almost the
    same input, and the variance of their targets estimates ``Var[target | input]``, summed over its entries.
    """
    flat, known = targets.flatten(1).double().cpu(), inputs.double().cpu().numpy()
    _, places = cKDTree(known).query(known, k=neighbours)
    return flat[torch.from_numpy(places)].var(dim=1).sum(dim=1)


def solve(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Tensor, rtol: float = 1e-7, atol: float = 1e-7
) -> Tensor:
    """Solve ``dx/dt = velocity(x, t)`` with torchdiffeq's adaptive dopri5; returns states ``(len(times), *x.shape)``.

    For pictures of closed-form flows in the plane, where the solver's own error must not be visible.
    """
    found: Tensor = odeint(lambda t, y: velocity(y, float(t)), x, times.to(x.dtype), rtol=rtol, atol=atol)
    return found


def plane_data(std: float = 0.06) -> GaussianMixtureDenoiser:
    """Return six Gaussians on the unit circle as a closed-form denoiser: the data of the pictures."""
    angle = 2 * torch.pi * torch.arange(6, dtype=torch.float64) / 6
    return GaussianMixtureDenoiser(torch.stack([angle.cos(), angle.sin()], dim=1), std)


def draw_plane(data: GaussianMixtureDenoiser, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``n`` independent pairs of the plane's data and noise, both ``(n, 2)``."""
    generator = rng.generator(seed, "plane")
    chosen = torch.randint(len(data.means), (n,), generator=generator)
    eps, z = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return data.means[chosen] + data.std * eps, z
