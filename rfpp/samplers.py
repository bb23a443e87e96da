"""Solving the flow's ODE: any grid, either direction, Euler or Heun, standard or straight update.

A step from ``t`` to ``t'`` needs one velocity (Euler) or two (Heun). The last step of a Heun solve is an Euler step,
which needs no velocity at the end of the interval, so ``N`` steps cost ``2 N - 1`` evaluations (NFE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rfpp.base import rng
from rfpp.base.checks import at_least, one_of
from rfpp.flow import T_MAX, Denoiser, RectifiedFlow, interpolate

SOLVERS = ("euler", "heun")
UPDATES = ("standard", "straight")
INVERSION_START = 1e-3
"""The time at which inversion starts, from data mixed with this much noise: at ``t = 0`` the velocity is undefined."""

TWO_STEPS = (0.99999, 0.8)
"""The paper's times for two-step generation (Appendix E)."""


def steps_for(nfe: int, solver: str) -> int:
    """Return the number of steps that cost ``nfe`` evaluations: Euler ``nfe``, Heun ``(nfe + 1) / 2``.

    Raises ``ValueError`` for an unknown solver, ``nfe < 1``, or an even ``nfe`` with Heun.
    """
    one_of("solver", solver, SOLVERS)
    at_least("nfe", nfe, 1)
    if solver == "euler":
        return nfe
    if nfe % 2 == 0:
        raise ValueError(f"nfe={nfe} is even; solver='heun' takes 2 N - 1 evaluations: use nfe={nfe - 1} or {nfe + 1}")
    return (nfe + 1) // 2


def generation_times(steps: int, first: float = T_MAX) -> Tensor:
    """Return ``steps + 1`` times from ``first`` down to 0, uniform except the first (Appendix E: ``1 - 1e-5``).

    Raises ``ValueError`` if the second time would not be below the first.
    """
    if steps > 1 and first <= 1 - 1 / steps:
        raise ValueError(f"first_time={first} leaves no room for {steps} steps; it must be above {1 - 1 / steps:.6g}")
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times[0] = first
    return times


def inversion_times(steps: int) -> Tensor:
    """Return ``steps + 1`` times from ``1e-3`` up to 1: uniform except the first; from 1,000 steps on, all uniform."""
    start = 0 if steps * INVERSION_START < 1 else INVERSION_START
    times = torch.linspace(start, 1, steps + 1, dtype=torch.float64)
    times[0] = INVERSION_START
    return times


def _solve(
    slope: Callable[[Tensor, float], Tensor],
    move: Callable[[Tensor, Tensor, float, float], Tensor],
    x: Tensor,
    grid: Sequence[float],
    solver: str,
) -> Iterator[Tensor]:
    """Yield the states at ``grid[1:]``, starting from ``x`` at ``grid[0]``, with Euler or Heun.

    ``slope(x, s)`` is the derivative at ``s``, and ``move(x, slope, s, following)`` the state after a step along it.
    """
    for index, (s, following) in enumerate(pairwise(grid)):
        first = slope(x, s)
        proposal = move(x, first, s, following)
        if solver == "heun" and index < len(grid) - 2:
            proposal = move(x, (first + slope(proposal, following)) / 2, s, following)
        x = proposal
        yield x


def integrate(
    flow: RectifiedFlow,
    x: Tensor,
    times: Sequence[float] | Tensor,
    solver: str = "euler",
    update: str = "standard",
    labels: Tensor | None = None,
) -> list[Tensor]:
    """Integrate ``dx/dt = v(x, t)`` along ``times`` and return the state at each of them.

    ``x``: the state at ``times[0]``, ``(B, ...)``; ``times``: strictly monotone within [0, 1], decreasing to generate
    and increasing to invert. ``update="straight"`` moves along the line between the x-prediction and the initial noise,
    ``x_t' = (1 - t') (x_t - t v) + t' z`` (Appendix D). It takes ``x`` as ``z`` and so needs decreasing times from
    near 1.

    Raises ``ValueError`` for an unknown solver or update, and for times that are not monotone or leave [0, 1].
    """
    one_of("solver", solver, SOLVERS)
    one_of("update", update, UPDATES)
    grid = [float(t) for t in times]
    falling = all(t > s for t, s in pairwise(grid))
    rising = all(t < s for t, s in pairwise(grid))
    if len(grid) < 2 or not (falling or rising) or not all(0 <= t <= 1 for t in grid):
        raise ValueError(f"times={grid} must be at least two, strictly falling or strictly rising, within [0, 1]")
    if update == "straight" and rising:
        raise ValueError("update='straight' needs the initial noise, so it can only generate; pass falling times")
    z = x

    def velocity(x_t: Tensor, t: float) -> Tensor:
        return flow.velocity(x_t, t, labels)

    def move(x_t: Tensor, v: Tensor, t: float, s: float) -> Tensor:
        return x_t + (s - t) * v if update == "standard" else interpolate(x_t - t * v, z, s)

    return [x, *_solve(velocity, move, x, grid, solver)]


@torch.no_grad()
def sample(
    flow: RectifiedFlow,
    z: Tensor,
    nfe: int,
    solver: str = "euler",
    update: str = "standard",
    times: Sequence[float] | Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Generate ``x`` ``(B, ...)`` from noise ``z ~ N(0, I)`` with ``nfe`` evaluations.

    ``times``: the start times of the steps, e.g. :data:`TWO_STEPS`; a final 0 is added if missing. A network with
    classes takes zeros in the place of ``labels`` that are ``None``, as EDM's does.
    Raises ``ValueError`` for ``nfe < 1``, an even ``nfe`` with Heun, or ``times`` that cost another ``nfe``.
    """
    steps = steps_for(nfe, solver)
    one_of("update", update, UPDATES)
    if times is None:
        grid = generation_times(steps).tolist()
    else:
        grid = [float(t) for t in times]
        grid += [0.0] if grid[-1:] != [0.0] else []
        if len(grid) - 1 != steps:
            raise ValueError(
                f"times={grid} make {len(grid) - 1} steps, but nfe={nfe} with solver={solver!r} makes {steps}"
            )
    start = z * min(grid[0], T_MAX)
    return integrate(flow, start, grid, solver, update, labels)[-1]


def _noise(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise like ``x`` on the generator's device; from fresh entropy if ``None``."""
    source = rng.fresh(generator, x.device)
    return torch.randn(x.shape, generator=source, device=source.device, dtype=x.dtype).to(x.device)


@torch.no_grad()
def invert(
    flow: RectifiedFlow,
    x: Tensor,
    nfe: int,
    solver: str = "euler",
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the noise ``z`` ``(B, ...)`` that the flow maps to images ``x``, with ``nfe`` evaluations (Section 5.4).

    Starts at ``t = 1e-3`` from ``(1 - t) x + t eps``; ``generator`` draws ``eps`` (fresh entropy if ``None``).
    """
    steps = steps_for(nfe, solver)
    start = interpolate(x, _noise(x, generator), INVERSION_START)
    return integrate(flow, start, inversion_times(steps), solver, labels=labels)[-1]


def edm_sigmas(num_steps: int, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Return EDM's noise levels, from ``sigma_max`` down to ``sigma_min`` and then 0 (Karras et al., 2022, Eq. 5)."""
    at_least("num_steps", num_steps, 2)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: 0 < sigma_min < sigma_max is needed")
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def edm_integrate(
    denoiser: Denoiser, x: Tensor, sigmas: Sequence[float] | Tensor, solver: str = "heun", labels: Tensor | None = None
) -> Tensor:
    """Carry ``x`` from ``sigmas[0]`` to ``sigmas[-1]`` along EDM's ODE ``dx/dsigma = (x - D(x; sigma)) / sigma``.

    Decreasing levels generate, increasing ones invert. As everywhere in this module, Heun's last step is an Euler step.
    """
    one_of("solver", solver, SOLVERS)
    grid = [float(sigma) for sigma in sigmas]

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - denoiser(x, sigma, labels)) / sigma

    def move(x: Tensor, slope: Tensor, sigma: float, following: float) -> Tensor:
        return x + (following - sigma) * slope

    for state in _solve(slope, move, x, grid, solver):
        x = state
    return x


@torch.no_grad()
def edm_sample(
    denoiser: Denoiser,
    z: Tensor,
    num_steps: int = 18,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    labels: Tensor | None = None,
    solver: str = "heun",
) -> Tensor:
    """Generate ``x`` ``(B, ...)`` from ``z ~ N(0, I)`` with EDM's deterministic sampler (its Algorithm 1).

    It takes ``num_steps`` evaluations with ``solver="euler"``, and ``2 num_steps - 1`` with EDM's own choice,
    ``"heun"``, whose last step is an Euler step to ``sigma = 0``.
    """
    sigmas = edm_sigmas(num_steps, rho, sigma_min, sigma_max)
    return edm_integrate(denoiser, z * float(sigmas[0]), sigmas, solver, labels)


@torch.no_grad()
def edm_invert(
    denoiser: Denoiser,
    x: Tensor,
    num_steps: int = 18,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    labels: Tensor | None = None,
    solver: str = "heun",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the noise ``z`` ``(B, ...)`` that EDM's ODE maps to images ``x``, with its sampler's levels in reverse.

    Starts at ``sigma_min`` from ``x + sigma_min eps``; ``generator`` draws ``eps`` (fresh entropy if ``None``).
    It uses ``num_steps`` levels above ``sigma_min``, with evaluations as in :func:`edm_sample`.
    """
    at_least("num_steps", num_steps, 1)
    sigmas = edm_sigmas(num_steps + 1, rho, sigma_min, sigma_max)[:-1].flip(0)
    return edm_integrate(denoiser, x + sigma_min * _noise(x, generator), sigmas, solver, labels) / sigma_max


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolate spherically between noises ``a`` and ``b`` ``(B, ...)``: ``a`` at ``weight`` 0, ``b`` at 1.

    Unlike a straight line, the great circle preserves the norm of Gaussian noise.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    angle = cosine.acos().clamp(min=1e-6)  # for equal directions, the limit is a straight line
    parts = [((1 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin()]
    of_a, of_b = (part.reshape(-1, *[1] * (a.ndim - 1)) for part in parts)
    return of_a * a + of_b * b
