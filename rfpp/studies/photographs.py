"""Section 3 on photographs: noise of crossings among patches, and whether lines cross when the flow is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rfpp import data, intersections
from rfpp.base import rng
from rfpp.data import photographs
from rfpp.denoisers import GaussianMixtureDenoiser, expand
from rfpp.flow import T_MAX, RectifiedFlow, interpolate
from rfpp.studies import crossings
from rfpp.studies.crossings import Couples

_AT_ONCE = 1000
_LAST = 0.01
"""The time to which the flow of a finite set is solved; it tells apart images that differ by more than a few
hundredths."""


def check(sizes: Sequence[int], count: int) -> None:
    """Raise what :func:`patches` would, without reading a photograph."""
    for size in sizes:
        photographs.places(size, patches=count)


def patches(sizes: Sequence[int], count: int) -> dict[int, Tensor]:
    """Training patches ``(count, 3, size, size)`` in [-1, 1] of each size, as :func:`rfpp.data.photos` cuts them."""
    return {size: data.photos(size, patches=count).train.floats() for size in sizes}


def couples(images: Tensor, seed: int, n: int, t: float = 0.5) -> Couples:
    """Two different ones of ``images`` ``(K, ...)``, fresh noise for the first, and the crossing's noise at ``t``."""
    generator = rng.generator(seed, "crossings of images")
    one, step = (torch.randint(low, len(images), (n,), generator=generator) for low in (0, 1))
    z, x2 = torch.randn(n, *images.shape[1:], generator=generator), images[(one + step) % len(images)]
    return Couples(z, intersections.crossing_noise(z, images[one], x2, t), x2, None)


def statistics(images: Tensor, seed: int, n: int) -> tuple[float, float]:
    """The :func:`rfpp.studies.crossings.statistics` of the noise of ``n`` crossings at ``t = 1/2`` among ``images``
    ``(K, ...)`` in place of a preset's pairs."""
    drawn = couples(images, seed, n)
    return crossings.statistics(drawn.crossing, drawn.gaussian)


def white_noise(images: Tensor, seed: int, n: int) -> tuple[float, float]:
    """The :func:`statistics` of ``n`` Gaussian noises of the shape of ``images`` in place of the crossings'."""
    gaussian = couples(images, seed, n).gaussian
    return crossings.statistics(torch.randn(gaussian.shape, generator=rng.generator(seed, "white noise")), gaussian)


class FiniteSet(GaussianMixtureDenoiser):
    """The closed-form denoiser of equally likely ``images`` ``(K, ...)``, with distances from one matrix product.

    With Proposition 1 it is their exact 1-rectified flow. ``||x||^2`` is the same for all images and cancels.
    """

    def logits(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """``log p(image | x)`` up to a constant of each row, ``(B, K)``."""
        means = self.means.flatten(1)
        return (x.flatten(1) @ means.T - means.square().sum(dim=1) / 2) / expand(sigma, x).flatten()[:, None] ** 2

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` for ``x`` ``(B, ...)`` at noise levels ``sigma``, a number or ``(B,)``."""
        return (self.logits(x, sigma).softmax(dim=1) @ self.means.flatten(1)).reshape(x.shape)


@torch.no_grad()
def ends(images: Tensor, noise: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Which of ``images`` ``(K, ...)`` their exact flow makes of each ``noise`` ``(n, ...)``, as indices ``(n,)``.

    The exact flow of a finite set ends at one of its images, whatever it starts from. Across the images' span it only
    scales noise down, so it is solved within the span. It is solved to ``t = 0.01``, where one image has all
    the weight; from there on the others only lose weight. ``tolerance`` is that of the solver, absolute and relative.
    """
    known, starts = images.flatten(1), noise.flatten(1)
    if len(known) < known.shape[1]:
        basis = torch.linalg.qr(known.T).Q
        known, starts = known @ basis, starts @ basis
    denoiser, times = FiniteSet(known), torch.tensor([T_MAX, _LAST])
    flow, found = RectifiedFlow(denoiser), []
    for rows in (starts * T_MAX).split(_AT_ONCE):
        last = intersections.solve(flow.velocity, rows, times, tolerance, tolerance)[-1]
        found.append(denoiser.logits(last / (1 - _LAST), _LAST / (1 - _LAST)).argmax(dim=1))
    return torch.cat(found)


@dataclass(frozen=True)
class Arrivals:
    """Where the exact flow of ``K`` images takes noise. At each time: the share of crossing noises ``z''`` that it
    takes to ``x''`` (``reached``) or to ``x'`` (``stayed``), and at how many ``different`` images they end. The last
    number for Gaussian noise is ``ordinary``, and ``chance`` is the share of it that ends at ``x''``, ``1 / K``."""

    reached: Tensor
    stayed: Tensor
    different: Tensor
    ordinary: int
    chance: float


def arrivals(images: Tensor, seed: int, n: int, times: Sequence[float]) -> Arrivals:
    """Section 3's first condition for ``n`` pairs ``(x', z')`` of the exact flow and random other ``images`` ``x''``.

    The pairs are the flow's own, as in the paper's definition of a crossing: ``x'`` is what it makes of Gaussian
    ``z'``.
    """
    generator, count = rng.generator(seed, "arrivals"), len(images)
    z = torch.randn(n, *images.shape[1:], generator=generator)
    first = ends(images, z)
    other = (first + torch.randint(1, count, (n,), generator=generator)) % count
    found = [ends(images, intersections.crossing_noise(z, images[first], images[other], t)) for t in times]
    reached, stayed = (torch.stack([(end == wanted).float().mean() for end in found]) for wanted in (other, first))
    different = torch.tensor([len(end.unique()) for end in found])
    return Arrivals(reached, stayed, different, len(first.unique()), 1 / count)


@dataclass(frozen=True)
class Exact:
    """Eq. 4's irreducible term at each time, per pixel, for independent pairs (``before``) and for those of their exact
    flow (``after``), and the share of possible crossings that are crossings (``reached``)."""

    before: Tensor
    after: Tensor
    reached: Tensor

    @property
    def remaining(self) -> float:
        """The term after reflow over that before, each averaged over the times."""
        return float(self.after.mean() / self.before.mean())


@torch.no_grad()
def exact_terms(images: Tensor, seed: int, n: int, times: Sequence[float]) -> Exact:
    """Eq. 4's first term before and after one round of reflow on a small set of ``images`` ``(K, ...)``, exactly.

    For each image, one noise gives a line through ``x_t``. Independent pairs include all of these lines, with the
    posterior's weights. The flow's pairs include those whose noise it takes to their image, with the same relative
    weights; finding them takes ``n (K - 1)`` solutions of its ODE at each time. Each kind of pair is evaluated at the
    ``x_t`` of ``n`` pairs of that kind, with the same noise.
    """
    generator, count, terms = rng.generator(seed, "exact terms"), len(images), []
    z = torch.randn(n, *images.shape[1:], generator=generator)
    drawn, first, posterior = torch.randint(count, (n,), generator=generator), ends(images, z), FiniteSet(images)
    for t in times:
        independent, x_t = (interpolate(images[index], z, t) for index in (drawn, first))
        noise = ((x_t[:, None] - (1 - t) * images) / t).flatten(0, 1)
        crossed = ends(images, noise).reshape(n, count) == torch.arange(count)
        crossed[torch.arange(n), first] = True
        every, kept = (posterior.logits(x / (1 - t), t / (1 - t)) for x in (independent, x_t))
        kept = kept.masked_fill(~crossed, -torch.inf)
        before, after = (_variance(images, logits.softmax(dim=1)) / t**2 for logits in (every, kept))
        terms.append(torch.stack([before, after, (crossed.sum() - n) / (n * (count - 1))]))
    return Exact(*torch.stack(terms, dim=1))


@torch.no_grad()
def remaining(
    images: Tensor, seed: int, times: Sequence[float], count: int = 12, n: int = 20, draws: int = 1000
) -> tuple[float, float]:
    """Eq. 4's first term after reflow over that before, each averaged over ``times``, and the same for the flow before.

    Both are exact for a set of ``count`` of ``images``, drawn with the seed, at the ``x_t`` of ``n`` pairs. In the
    second, the exact flow's squared loss on ``draws`` independent pairs stands in place of the term after reflow.
    """
    generator = rng.generator(seed, "small set")
    chosen = images[torch.randperm(len(images), generator=generator)[:count]]
    exact, x = exact_terms(chosen, seed, n, times), chosen[torch.arange(draws) % len(chosen)]
    losses = [intersections.irreducible_loss(FiniteSet(chosen), x, t, generator).mean() for t in times]
    return exact.remaining, float(torch.stack(losses).mean() / exact.before.mean())


def quantities(
    images: Tensor, seeds: Sequence[int], n: int, times: Sequence[float]
) -> dict[str, tuple[list[float], list[float]]]:
    """The quantities of Section 3's claims, measured on ``images`` ``(K, ...)``: values and those of the control.

    By the claim's id, one value for each seed. c01 and c02: :func:`statistics` of ``n`` crossings, and of white noise.
    c04: :func:`remaining` of Eq. 4's term, which is exact here and needs no bound by a trained model.
    """
    crossed, white = ([measure(images, seed, n) for seed in seeds] for measure in (statistics, white_noise))
    left = [remaining(images, seed, times) for seed in seeds]
    noise = {id: ([a[k] for a in crossed], [a[k] for a in white]) for k, id in enumerate(("c01", "c02"))}
    return {**noise, "c04": ([a for a, _ in left], [a for _, a in left])}


def _variance(images: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of ``weights`` ``(n, K)`` of the images' variance under them, per pixel."""
    flat = images.flatten(1)
    # By products of matrices, as cdist computes many distances by default, the distance of equal images is not 0.
    apart = torch.cdist(weights @ flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return (weights * apart.square()).sum(dim=1).mean() / flat.shape[1]
