"""The log-density of images under a rectified flow, by the exact change of variables along its ODE.

Along ``dx_t/dt = v(x_t, t)`` the density changes as ``d log p_t(x_t)/dt = -div v(x_t, t)`` (Chen et al., 2018, Theorem
1; Song et al., 2021, Eq. 39). So an image is carried from the data's end to noise, where its density is known:

    log p_start(x_start) = log N(x_end; 0, end^2 I) + integral of div v(x_t, t) dt from start to end.

**Truncation.** The velocity is undefined at ``t = 0``, so ``start`` is above 0. The flow's state there is
``(1 - t) (x + sigma eps)`` with ``sigma = t / (1 - t)``, so the density is that of data with Gaussian noise of this
size. Any ``start`` gives a density, and :func:`matching_time` chooses the one whose noise is as large as that of
uniform dequantisation. The path ends at ``end`` in noise of standard deviation ``end``, where the samplers also start.

**Bits per dimension.** Pixels have ``levels`` values, evenly spaced in [-1, 1], each with a bin of width
``2 / (levels - 1)`` around it. A discrete image has the probability of its box. With ``u`` uniform in the box, Jensen's
inequality makes ``-E[log2 p(x + u)] - d log2(width)`` an upper bound of its code length (Theis et al., 2016, Section
3.1). For 8-bit pixels the width is ``1 / 127.5``, as :func:`rfpp.data.to_float` scales them. Images with fewer levels
have wider bins and cost fewer bits: scikit-learn's digits have 17 levels, where uniform noise costs
``log2 17 = 4.09`` bits a pixel. Values for different numbers of levels cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torchdiffeq import odeint

from rfpp.base import rng
from rfpp.base.checks import at_least
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow

ROWS = 1024
"""Rows that go back through a network at once, images times directions."""

_SORTED = 10_000
"""Images whose pixels are sorted at once."""

Field = Callable[[Tensor], Tensor]


class _Distances(TorchFunctionMode):
    """``torch.cdist`` by its formula: mapped over directions, its own derivative is silently wrong (torch 2.13).

    The closed-form denoiser computes its distances with ``torch.cdist``.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.cdist and len(args) == 2 and (kwargs or {}).get("p", 2) == 2:
            return torch.linalg.vector_norm(args[0].unsqueeze(-2) - args[1].unsqueeze(-3), dim=-1)
        return func(*args, **(kwargs or {}))


def _along(field: Field, x: Tensor, directions: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """``field(x)`` ``(B, ...)`` and ``e^T J`` for ``directions`` ``e`` ``(K, B, ...)``, ``J`` each image's Jacobian."""
    # Fused attention cannot be mapped over directions.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _Distances():
        value, pull = vjp(field, x)  # type: ignore[misc]  # without auxiliary output there are two
        found = vmap(lambda e: pull(e)[0], chunk_size=max(1, rows // len(x)))(directions)
    return value.detach(), found.detach()


def jacobian(field: Field, x: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """``field(x)`` ``(B, ...)`` and its Jacobian ``(B, d, d)``; ``field`` treats each image of ``x`` by itself.

    ``rows``: how many go back through a network at once, images times directions.
    """
    d = x[0].numel()
    units = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    value, found = _along(field, x, units, rows)
    return value, found.flatten(2).transpose(0, 1)


class Divergence(Protocol):
    """A way to compute ``div v``: exactly, or by several unbiased estimates."""

    def directions(self, x: Tensor) -> Tensor | None:
        """The directions drawn once for images ``x`` ``(B, ...)``, and kept along their paths: ``(K, B, ...)``."""

    def __call__(self, field: Field, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """``field(x)`` ``(B, ...)`` and its divergence, ``K`` estimates for each image ``(B, K)``."""


@dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian: ``d`` backward passes for each evaluation, so for small images only."""

    rows: int = ROWS
    """How many go back through a network at once, images times directions."""

    def directions(self, x: Tensor) -> None:
        """Nothing is drawn."""

    def __call__(self, field: Field, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        value, found = jacobian(field, x, self.rows)
        return value, found.diagonal(dim1=1, dim2=2).sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Hutchinson:
    """``e^T J e`` for ``probes`` vectors ``e`` of random signs (Hutchinson, 1989; Grathwohl et al., 2019).

    Each is an unbiased estimate, whose variance is half the sum of squares of ``J + J^T`` off the diagonal. The
    probes of an image stay the same along its path, so the estimates of its log-density are independent, and their
    spread gives a standard error. Raises ``TypeError`` or ``ValueError`` unless there are two probes or more.
    """

    probes: int = 8
    seed: int = 0
    rows: int = ROWS
    """How many go back through a network at once, images times probes."""

    def __post_init__(self) -> None:
        at_least("probes", self.probes, 2)

    def directions(self, x: Tensor) -> Tensor:
        """Random signs, which depend on an image's place and not on how many are solved at once."""
        source = rng.generator(self.seed, "hutchinson")
        signs = torch.randint(2, (len(x), self.probes, *x.shape[1:]), generator=source)
        return (2 * signs - 1).to(x).transpose(0, 1)

    def __call__(self, field: Field, x: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        assert directions is not None
        value, found = _along(field, x, directions, self.rows)
        return value, (found * directions).flatten(2).sum(dim=2).T


@dataclass(frozen=True)
class LogDensity:
    """Log-densities in nats, ``(N,)`` each.

    ``prior``: that of the noise ``z`` ``(N, ...)`` that an image is carried to; ``volume``: what the change of volume
    along the path adds; ``total`` is their sum. ``standard_error``: of Hutchinson's estimate, 0 for the exact trace.
    """

    prior: Tensor
    volume: Tensor
    standard_error: Tensor
    z: Tensor
    evaluations: int
    """Evaluations of velocity and divergence, averaged over images."""

    @property
    def total(self) -> Tensor:
        """``log p(x)``."""
        return self.prior + self.volume

    def bits_per_dimension(self, levels: int) -> Tensor:
        """See :func:`bits_per_dimension`."""
        return bits_per_dimension(self.total, self.z[0].numel(), levels)


def bits_per_dimension(log_density: Tensor, d: int, levels: int = 256) -> Tensor:
    """``-log2 p(x) / d - log2(2 / (levels - 1))`` of log-densities in nats of dequantised images in [-1, 1]: ``(N,)``.

    The first term is the density's, the second is due to the bins. Raises ``ValueError`` for fewer than two levels.
    """
    at_least("d", d, 1)
    at_least("levels", levels, 2)
    return -log_density / (d * math.log(2)) + math.log2((levels - 1) / 2)


def grey_levels(pixels: Tensor) -> int:
    """The number of values of 8-bit ``pixels`` if evenly spaced from 0 to 255, such as 17 for the digits; else 256.

    The values may be rounded to whole numbers.
    """
    known = torch.empty(0, dtype=pixels.dtype)
    for some in pixels.split(_SORTED):
        known = torch.cat([known, some.unique()]).unique()
        if len(known) == 256:
            return 256
    known = known.double()
    even = torch.linspace(0, 255, max(len(known), 2), dtype=torch.float64)
    return len(known) if len(known) > 1 and bool(((known - even).abs() <= 0.5).all()) else 256


def dequantise(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """``x + u`` for images in [-1, 1], ``u`` uniform in a bin around each value: ``(N, ...)``."""
    at_least("levels", levels, 2)
    uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    return x + (2 * uniform - 1) / (levels - 1)


def matching_time(levels: int) -> float:
    """The time whose noise ``sigma = t / (1 - t)`` has the deviation of uniform dequantisation, a width over sqrt(12).

    A flow expects noise there about as large as :func:`dequantise` adds. The time is 0.0023 for 8-bit pixels and 0.035
    for 17 levels.
    """
    at_least("levels", levels, 2)
    sigma = 2 / (levels - 1) / math.sqrt(12)
    return sigma / (1 + sigma)


def _check(x: Tensor, labels: Tensor | None, start: float, end: float) -> None:
    if x.ndim < 2 or not len(x) or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}; floats (N, ...) with N of 1 or more are needed"
        )
    if not x.isfinite().all():
        raise ValueError("x holds numbers that are not finite; leave these images out")
    if labels is not None and len(labels) != len(x):
        raise ValueError(f"labels has {len(labels)} entries for {len(x)} images of x; one for each is needed")
    if not T_MIN <= start < end <= T_MAX:
        raise ValueError(f"start={start}, end={end}: {T_MIN} <= start < end <= {T_MAX} is needed")


def _prior(x: Tensor, end: float) -> Tensor:
    """``log N(x; 0, end^2 I)`` of ``x`` ``(B, ...)``: ``(B,)``."""
    squares = (x / end).square().flatten(1)
    return -squares.sum(dim=1) / 2 - squares.shape[1] * (math.log(2 * math.pi) / 2 + math.log(end))


def log_density(
    flow: RectifiedFlow,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    start: float,
    end: float = T_MAX,
    divergence: Divergence | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    batch_size: int = 100,
) -> LogDensity:
    """``log p(x)`` for ``x`` ``(N, ...)``, the density of data with noise of size ``start / (1 - start)``.

    ``labels`` ``(N,)``: for a flow with classes. torchdiffeq's adaptive dopri5 carries image and log-density together,
    over ``s = log(t / (1 - t))``, in which neither end is stiff: ``dt/ds = t (1 - t)``. ``rtol``, ``atol``: its
    tolerances for both; that of the log-density is per dimension. ``divergence``: :class:`Exact` by default, or
    :class:`Hutchinson`. Images are solved in batches of ``batch_size``, which share their steps.

    Raises ``ValueError`` for images, labels or times that do not fit.
    """
    _check(x, labels, start, end)
    at_least("batch_size", batch_size, 1)
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not tolerance > 0:
            raise ValueError(f"{name}={tolerance} is not a tolerance; a number above 0 is needed")
    divergence = divergence or Exact()
    drawn, parts, spent = divergence.directions(x), [], 0
    for rows in torch.arange(len(x)).split(batch_size):
        chosen = drawn if drawn is None else drawn[:, rows]
        problem = _Problem(flow, None if labels is None else labels[rows], divergence, chosen)
        z, volumes = problem.carry((1 - start) * x[rows], start, end, rtol, atol)
        parts.append((z, volumes + x[0].numel() * math.log(1 - start)))
        spent += problem.evaluations * len(rows)
    z, volumes = (torch.cat(each) for each in zip(*parts, strict=True))
    count = volumes.shape[1]
    error = volumes.std(dim=1) / math.sqrt(count) if count > 1 else volumes.new_zeros(len(x))
    return LogDensity(_prior(z, end), volumes.mean(dim=1), error, z, round(spent / len(x)))


@dataclass
class _Problem:
    """The ODE of some images and their log-densities, with the directions drawn for them."""

    flow: RectifiedFlow
    labels: Tensor | None
    divergence: Divergence
    directions: Tensor | None
    evaluations: int = 0

    def _change(self, s: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives with respect to ``s`` of the image and of the log-density per dimension."""
        self.evaluations += 1
        x, t = state[0], float(s.sigmoid())
        value, found = self.divergence(lambda y: self.flow.velocity(y, t, self.labels), x, self.directions)
        return t * (1 - t) * value, t * (1 - t) * found / x[0].numel()

    def carry(self, x: Tensor, start: float, end: float, rtol: float, atol: float) -> tuple[Tensor, Tensor]:
        """The state at the end, and estimates of the integral of ``div v`` ``(B, K)``."""
        count = 1 if self.directions is None else len(self.directions)
        span = torch.tensor([math.log(t / (1 - t)) for t in (start, end)], dtype=torch.float64, device=x.device)
        with torch.no_grad():
            initial = x, x.new_zeros(len(x), count)
            states, volumes = odeint(self._change, initial, span, rtol=rtol, atol=atol, method="dopri5")
        return states[-1], x[0].numel() * volumes[-1]


def stepwise(
    flow: RectifiedFlow, x: Tensor, times: Sequence[float], labels: Tensor | None = None
) -> tuple[LogDensity, LogDensity]:
    """Log-densities by Euler steps along rising ``times``, from the data's end ``times[0]`` to noise, in two ways.

    The first is exact for the map that these steps define: with ``J`` the velocity's Jacobian, a step from ``t`` to
    ``t'`` multiplies volume by ``|det(I + (t' - t) J)|``. The second is the sum of ``(t' - t) div v``, which is Euler's
    rule for the integral and the first order of the former's logarithm. On a straight flow, where ``v`` is constant
    along a path, the first is exact in one step. The second is not: ``div v`` changes along straight paths that come
    closer together.

    For small images only, like :class:`Exact`. Raises ``ValueError`` for images, labels or times that do not fit.
    """
    grid = [float(t) for t in times]
    if len(grid) < 2 or not all(t < s for t, s in pairwise(grid)):
        raise ValueError(f"times={grid} must be at least two numbers, each above the one before")
    _check(x, labels, grid[0], grid[-1])
    with torch.no_grad():
        state, d = (1 - grid[0]) * x, x[0].numel()
        volumes = [torch.full((len(x),), d * math.log(1 - grid[0]), dtype=x.dtype, device=x.device) for _ in range(2)]
        for t, s in pairwise(grid):
            value, slope = jacobian(lambda y, t=t: flow.velocity(y, t, labels), state)  # type: ignore[misc]
            unit = torch.eye(d, dtype=x.dtype, device=x.device)
            volumes[0] = volumes[0] + torch.linalg.slogdet(unit + (s - t) * slope)[1]
            volumes[1] = volumes[1] + (s - t) * slope.diagonal(dim1=1, dim2=2).sum(dim=1)
            state = state + (s - t) * value
    prior, none = _prior(state, grid[-1]), x.new_zeros(len(x))
    exact, first_order = (LogDensity(prior, volume, none, state, len(grid) - 1) for volume in volumes)
    return exact, first_order
