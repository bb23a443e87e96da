"""Is Proposition 1 exact? Velocities of perfect VE and VP models of Gaussian data, against their closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rfpp.denoisers import GaussianMixtureDenoiser, LinearSchedule, VPPrecond
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow

MEAN, STD = torch.linspace(-1, 1, 4, dtype=torch.float64)[None], 0.5
"""The data: a Gaussian in four dimensions."""


def grid() -> Tensor:
    """Ninety times in double precision, denser towards both ends, from 1e-5 to 1 - 1e-5."""
    ends, middle = torch.logspace(-5, -1, 30).double(), torch.linspace(0.12, 0.88, 30).double()
    return torch.cat([ends, middle, 1 - ends.flip(0)]).clamp(T_MIN, T_MAX)


def perfect_models() -> dict[str, RectifiedFlow]:
    """The flows that Proposition 1 makes of the perfect VE denoiser and of a perfect VP network of the data.

    The network predicts noise. Its inputs differ from those of the VE denoiser only in their scale and their time.
    """
    ve, schedule = GaussianMixtureDenoiser(MEAN, STD), LinearSchedule()

    class PerfectVP(nn.Module):
        def forward(self, y: Tensor, label: Tensor, *unused: object) -> Tensor:
            sigma = schedule.sigma(label / (schedule.steps - 1))[:, None]
            x = y * (1 + sigma**2).sqrt()
            noise: Tensor = (x - ve(x, sigma.flatten())) / sigma
            return noise

    return {"VE": RectifiedFlow(ve), "VP": RectifiedFlow(VPPrecond(PerfectVP()))}


def wrong_time() -> RectifiedFlow:
    """The perfect VE denoiser evaluated at the noise level ``t`` in place of ``t / (1 - t)``."""
    ve = GaussianMixtureDenoiser(MEAN, STD)

    class Wrong(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            x_hat: Tensor = ve(x, sigma / (1 + sigma), labels)
            return x_hat

    return RectifiedFlow(Wrong())


def exact_velocity(x_t: Tensor, t: float) -> Tensor:
    """``v = (x_t - E[x | x_t]) / t`` of the data, from the covariance of ``x`` and ``x_t``; shapes ``(N, 4)``."""
    variance = ((1 - t) * STD) ** 2 + t**2
    posterior = MEAN + (1 - t) * STD**2 / variance * (x_t - (1 - t) * MEAN)
    return (x_t - posterior) / t


def difference(flow: RectifiedFlow, t: float) -> float:
    """The flow's largest difference from the exact velocity, over the largest velocity, within two deviations."""
    deviations = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(4, 4)
    x_t = (1 - t) * MEAN + (((1 - t) * STD) ** 2 + t**2) ** 0.5 * deviations
    v = exact_velocity(x_t, t)
    return float((flow.velocity(x_t, t) - v).abs().max() / v.abs().max())
