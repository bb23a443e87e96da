"""Rectified flow: the interpolation, the velocity, and Proposition 1, which turns a denoiser into a flow.

Convention of the whole package: data ``x`` at ``t = 0``, noise ``z ~ N(0, I)`` at ``t = 1``, ``x_t = (1 - t) x + t z``.
Generation integrates ``dx_t/dt = v(x_t, t)`` from ``t = 1`` down to 0, inversion from 0 up to 1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rfpp.denoisers import expand

T_MIN, T_MAX = 1e-5, 1 - 1e-5
"""Times stay inside this interval, so that neither ``1/t`` nor ``1/(1 - t)`` divides by zero (Appendix E)."""

Denoiser = Callable[..., Tensor]


def interpolate(x: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
    """Return ``x_t = (1 - t) x + t z``; ``x``, ``z``: ``(B, ...)``, ``t``: a number or ``(B,)``."""
    t = expand(t, x)
    return (1 - t) * x + t * z


class RectifiedFlow(nn.Module):
    """The rectified flow whose posterior mean a denoiser computes (Eq. 1, with Proposition 1 for the change of time).

    Any ``denoiser(x, sigma, labels=None)`` can be used: a pretrained one gives the 1-rectified flow without training,
    and training continues from there. :class:`rfpp.denoisers.VPPrecond` turns a VP model into a denoiser, and both
    classes together give Table 2's VP row: ``(x_t / (1 - t)) / sqrt(1 + sigma^2) = x_t / sqrt((1 - t)^2 + t^2)``.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def x_prediction(self, x_t: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[x | x_t] = D(x_t / (1 - t); t / (1 - t))`` (Proposition 1, VE: the signal-to-noise ratios agree)."""
        t = expand(t, x_t).clamp(T_MIN, T_MAX)
        return self.denoiser(x_t / (1 - t), (t / (1 - t)).flatten(), labels)

    def velocity(self, x_t: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``v(x_t, t) = E[z - x | x_t] = (x_t - E[x | x_t]) / t`` (Eq. 1).

        ``x_t``: ``(B, ...)``; ``t``: a number or ``(B,)``, clamped to ``[T_MIN, T_MAX]``.
        """
        t = expand(t, x_t).clamp(T_MIN, T_MAX)
        return (x_t - self.x_prediction(x_t, t, labels)) / t

    def z_prediction(self, x_t: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[z | x_t] = x_t + (1 - t) v(x_t, t)``."""
        t = expand(t, x_t).clamp(T_MIN, T_MAX)
        return x_t + (1 - t) * self.velocity(x_t, t, labels)

    forward = velocity
