"""Distributions of the training timestep, each in closed form (Section 4.1).

All are defined on ``[0, 1]`` and sampled by inverting the distribution function, so a batch costs one call to ``rand``.
``sample`` rescales to ``[T_MIN, T_MAX]``; ``pdf``, ``cdf`` and ``icdf`` describe the times before rescaling.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.flow import T_MAX, T_MIN

_SQRT2 = 2**0.5
_STEEP = 40.0  # beyond this, 1 - exp(-a) is 1
_STEEPEST = 700.0  # beyond this, exp(a) overflows


class TimestepDistribution(ABC):
    """A density on [0, 1], given by its distribution function and the inverse of this function."""

    @abstractmethod
    def pdf(self, t: float | Tensor) -> Tensor:
        """The density at ``t``."""

    @abstractmethod
    def cdf(self, t: float | Tensor) -> Tensor:
        """The probability of a time up to ``t``."""

    @abstractmethod
    def icdf(self, p: float | Tensor) -> Tensor:
        """The time below which a share ``p`` of draws lies."""

    def sample(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw ``n`` times in ``[T_MIN, T_MAX]``, shape ``(n,)``; ``generator=None`` uses fresh entropy."""
        at_least("n", n, 0)
        device = device or (generator.device if generator is not None else "cpu")
        source = rng.fresh(generator, device)
        p = torch.rand(n, generator=source, device=source.device, dtype=torch.float64)
        return (T_MIN + (T_MAX - T_MIN) * self.icdf(p)).to(device, torch.float32)


def _tensor(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64 if not isinstance(value, Tensor) else None)


@dataclass(frozen=True)
class Uniform(TimestepDistribution):
    """``p(t) = 1``: vanilla rectified flow, configurations A and B."""

    def pdf(self, t: float | Tensor) -> Tensor:
        return torch.ones_like(_tensor(t))

    def cdf(self, t: float | Tensor) -> Tensor:
        return _tensor(t)

    def icdf(self, p: float | Tensor) -> Tensor:
        return _tensor(p)


@dataclass(frozen=True)
class UShaped(TimestepDistribution):
    """``p(t) ∝ cosh(a (t - 1/2))``: more weight at both ends, where the reflow loss is large (Section 4.1).

    The printed ``exp(a t) + exp(-a t)`` only increases on [0, 1]; this is the symmetric density that the paper's
    released code samples. ``a = 0`` is uniform; any real ``a`` is allowed.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.a):
            raise ValueError(f"a={self.a} is not a finite number")

    @property
    def _flat(self) -> bool:
        return abs(self.a) < 1e-6  # the closed forms would lose more digits than they differ from uniform, 1e-13

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(a (t - 1))`` and ``exp(-a t)`` over ``2 (1 - exp(-a))``: finite for every ``a``, unlike ``cosh``."""
        a = abs(self.a)
        scale = -2 * math.expm1(-a)
        return torch.exp(a * (t - 1)) / scale, torch.exp(-a * t) / scale

    def pdf(self, t: float | Tensor) -> Tensor:
        t = _tensor(t)
        return torch.ones_like(t) if self._flat else abs(self.a) * sum(self._ends(t), torch.zeros_like(t))

    def cdf(self, t: float | Tensor) -> Tensor:
        t = _tensor(t)
        noise_end, data_end = self._ends(t) if not self._flat else (t, torch.full_like(t, 0.5))
        return 0.5 + noise_end - data_end

    def icdf(self, p: float | Tensor) -> Tensor:
        p, a = _tensor(p), abs(self.a)
        if self._flat:
            return p
        if a < _STEEP:
            return 0.5 + torch.asinh((2 * p - 1) * math.sinh(a / 2)) / a
        # sinh(a / 2) is exp(a / 2) / 2 here and might overflow, so its logarithm a / 2 is taken out of asinh.
        half = (2 * p - 1).abs() / 2
        distance = 0.5 + torch.log(half + torch.sqrt(half**2 + math.exp(-a))) / a
        return 0.5 + torch.sign(p - 0.5) * distance


@dataclass(frozen=True)
class LogitNormal(TimestepDistribution):
    """``logit(t) ~ N(mean, std^2)``: weight in the middle, as for 1-rectified flows (Esser et al., 2024)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std) and math.isfinite(self.mean)):
            raise ValueError(f"mean={self.mean}, std={self.std}: finite numbers are needed, and a positive std")

    def pdf(self, t: float | Tensor) -> Tensor:
        t = _tensor(t)
        u = (torch.logit(t) - self.mean) / self.std
        density = torch.exp(-0.5 * u**2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
        return torch.where((t <= 0) | (t >= 1), torch.zeros_like(t), density)

    def cdf(self, t: float | Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf((torch.logit(_tensor(t)) - self.mean) / (self.std * _SQRT2)))

    def icdf(self, p: float | Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _SQRT2 * torch.erfinv(2 * _tensor(p) - 1))


@dataclass(frozen=True)
class Exponential(TimestepDistribution):
    """``p(t) ∝ exp(a t)``: weight at one end, noise for ``a > 0`` and data for ``a < 0``."""

    a: float = 4.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.a) or self.a == 0:
            raise ValueError(f"a={self.a} must be finite and not 0 (Uniform is the limit)")

    def pdf(self, t: float | Tensor) -> Tensor:
        if self.a > _STEEPEST:
            return self.a * torch.exp(self.a * (_tensor(t) - 1))
        return self.a * torch.exp(self.a * _tensor(t)) / math.expm1(self.a)

    def cdf(self, t: float | Tensor) -> Tensor:
        if self.a > _STEEPEST:
            return torch.exp(self.a * (_tensor(t) - 1))
        return torch.expm1(self.a * _tensor(t)) / math.expm1(self.a)

    def icdf(self, p: float | Tensor) -> Tensor:
        if self.a > _STEEPEST:
            return (1 + torch.log(_tensor(p)) / self.a).clamp_min(0)
        return (torch.log1p(_tensor(p) * math.expm1(self.a)) / self.a).clamp_max(1)
