"""What the exact 1-rectified flow leaves for reflow: whether its lines fold, how straight the next flow is, and Eq. 4.

Let ``F`` be the exact flow's map from noise to images. At time ``t``, its pairs ``(F(z), z)`` are at
``(1 - t) F(z) + t z``. Two questions about this map can be answered without a trained network.

- *Near each noise.* With a Gaussian around each image ``F`` is smooth, and the map's Jacobian is ``(1 - t) J + t I``.
  It is singular for some ``t`` in (0, 1) exactly when ``J`` has a negative real eigenvalue, ``-t / (1 - t)``. If it
  never is, the map is one-to-one around ``z`` at all times. If that held at *every* noise, the map would be one-to-one
  as a whole, by Hadamard's theorem, since it takes far noise far away; the 2-rectified flow would then be straight.
- *As a whole.* For a finite set of images, without any Gaussian around them, all pairs through a point ``x_t`` can be
  listed. There is at most one for each image ``x``: its noise must be ``(x_t - (1 - t) x) / t``, and the flow must take
  that noise to ``x``. These pairs and their densities give the next flow's velocity and Eq. 4's irreducible term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rfpp import metrics
from rfpp.base import rng
from rfpp.base.checks import between
from rfpp.data import Images, to_float
from rfpp.flow import T_MAX, interpolate
from rfpp.studies import lipschitz, photographs
from rfpp.studies.photographs import FiniteSet

_LAST = 0.01
"""The time at which a flow of a finite set has settled on one of its images."""
_NEGLIGIBLE = 25.0
"""Pairs whose density is below ``exp(-25)``, 1e-11, of another's at the same point are left out."""

_ROUNDING = 1e-9
"""A term of this share of the mean term of independent pairs is rounding."""

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
"""The times of Eq. 4's term, as in the chapter on crossings."""


def check_width(width: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``width`` is a number above 0 and at most 1, the images' scale."""
    between("width", width, 0, 1, inclusive=True)


def subset(images: Images, seed: int, count: int) -> Tensor:
    """``count`` of ``images``, or all if there are fewer, drawn with a seed: ``(count, d)`` in [-1, 1], float64."""
    chosen = torch.randperm(len(images), generator=rng.generator(seed, "exact flow, images"))[:count]
    return to_float(images.pixels[chosen]).flatten(1).double()


def scattered(seed: int, count: int) -> Tensor:
    """``count`` points in the plane, drawn from ``N(0, I)``: ``(count, 2)``, float64."""
    return torch.randn(count, 2, generator=rng.generator(seed, "exact flow, plane"), dtype=torch.float64)


# Near each noise


@dataclass(frozen=True)
class Folds:
    """The Jacobian ``J`` of a map from noise to images at ``n`` noises, ``(n, d, d)``."""

    jacobian: Tensor

    @property
    def opposite(self) -> Folds:
        """The same images paired with the negative of their noise: ``z -> F(-z)`` has the Jacobian ``-J`` at ``-z``."""
        return Folds(-self.jacobian)

    @property
    def asymmetry(self) -> Tensor:
        """``||J - J^T|| / ||J + J^T||``, (n,): 0 for the gradient of a function, 1 for a turn by 45 degrees."""
        odd, even = self.jacobian - self.jacobian.mT, self.jacobian + self.jacobian.mT
        return torch.linalg.matrix_norm(odd) / torch.linalg.matrix_norm(even)

    @property
    def lowest(self) -> Tensor:
        """The least eigenvalue of the symmetric part of ``J``, (n,): positive where no direction is reversed."""
        return torch.linalg.eigvalsh((self.jacobian + self.jacobian.mT) / 2)[:, 0]

    def of_lines(self, t: float) -> Tensor:
        """``(1 - t) J + t I``, the Jacobian of ``z -> (1 - t) F(z) + t z``: ``(n, d, d)``."""
        return (1 - t) * self.jacobian + t * torch.eye(self.jacobian.shape[1], dtype=self.jacobian.dtype)

    def least(self, times: Sequence[float]) -> Tensor:
        """The smallest singular value of that matrix at each time, ``(T, n)``: how much closer lines come, at most."""
        return torch.stack([torch.linalg.svdvals(self.of_lines(t))[:, -1] for t in times])

    def bound(self, times: Sequence[float]) -> Tensor:
        """Its bound by the stretch alone, ``t - (1 - t) ||J||`` or zero, (T, n): positive after ``L / (1 + L)``."""
        stretch = torch.linalg.svdvals(self.jacobian)[:, 0]
        return torch.stack([(t - (1 - t) * stretch).clamp(min=0) for t in times])

    def reversed(self, times: Sequence[float]) -> Tensor:
        """Share of the noise where that matrix has a determinant of zero or less, at each time: ``(T,)``."""
        signs = torch.stack([torch.linalg.slogdet(self.of_lines(t)).sign for t in times])
        return (signs <= 0).double().mean(dim=1)


def folds(images: Tensor, seed: int, n: int, width: float) -> Folds:
    """Jacobians of the exact flow of ``images`` ``(K, ...)``, Gaussians of ``width`` around them, at ``n`` noises.

    They are taken within the images' span, as :func:`rfpp.studies.lipschitz.widened` explains.
    """
    data = lipschitz.widened(images, width)
    generator = rng.generator(seed, "exact flow, noise")
    z = torch.randn(n, data.means.shape[1], generator=generator, dtype=torch.float64)
    return Folds(lipschitz.differentiate(data, z)[1])


def folded(found: Folds) -> float:
    """Share of the noise at which ``(1 - t) J + t I`` is singular for some ``t``: ``J`` has a negative real eigenvalue.

    Eigenvalues of a real matrix are real, or come in pairs to which LAPACK gives imaginary parts other than zero.
    """
    values = torch.linalg.eigvals(found.jacobian)
    return float(((values.imag == 0) & (values.real < 0)).any(dim=1).double().mean())


def most(count: int) -> float:
    """The upper 95 % bound of a share with no case in ``count`` draws: ``1 - 0.05^(1 / count)``."""
    return 1 - 0.05 ** (1 / count)


# As a whole


class Independent:
    """Noise and ``images`` ``(K, d)`` paired at random; its velocity is the exact 1-rectified flow's."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.posterior = images, FiniteSet(images)

    def pairs(self, seed: int, n: int) -> tuple[Tensor, Tensor]:
        """``n`` pairs: noise ``(n, d)``, and the index of each one's image, ``(n,)``."""
        generator = rng.generator(seed, "exact flow, lines")
        z = torch.randn(n, self.images.shape[1], generator=generator, dtype=self.images.dtype)
        return z, torch.randint(len(self.images), (n,), generator=generator)

    def weights(self, x_t: Tensor, t: float, own: Tensor | None = None) -> Tensor:
        """The probability of each image given that a pair's line passes ``x_t`` ``(n, d)``: ``(n, K)``.

        ``own``: the image of a pair that is known to pass there, ``(n,)``.
        """
        return self._logits(x_t, t).softmax(dim=1)

    def velocity(self, x_t: Tensor, t: float) -> Tensor:
        """The exact velocity of the flow that is trained on these pairs, ``E[z - x | x_t]``: ``(n, d)``."""
        return (x_t - self.weights(x_t, t) @ self.images) / t

    def path(self, z: Tensor, times: Sequence[float]) -> list[Tensor]:
        """The states of that flow at falling ``times``, by Euler's method from the noise ``z`` ``(n, d)``."""
        states = [z * times[0]]
        for t, s in pairwise(times):
            states.append(states[-1] + (s - t) * self.velocity(states[-1], t))
        return states

    def arrivals(self, noise: Tensor) -> Tensor:
        """The index of the image that this flow makes from each noise ``(n, d)``: ``(n,)``."""
        return photographs.ends(self.images, noise)

    def _logits(self, x_t: Tensor, t: float) -> Tensor:
        return self.posterior.logits(x_t / (1 - t), t / (1 - t))


class Reflowed(Independent):
    """The pairs that the exact flow of a ``former`` coupling makes: the next round of reflow.

    ``sign=-1`` pairs each image with the negative of its noise instead. This coupling of the same noise with
    the same images is as deterministic as the flow's, but its lines cross. The flow of reflowed pairs is solved in
    ``steps`` steps.
    """

    def __init__(self, former: Independent, sign: int = 1, steps: int = 12) -> None:
        super().__init__(former.images)
        self.former, self.sign, self.steps = former, sign, steps

    def pairs(self, seed: int, n: int) -> tuple[Tensor, Tensor]:
        z, _ = super().pairs(seed, n)
        return z, self.partner(z)

    def partner(self, noise: Tensor) -> Tensor:
        """The index of the image that each noise ``(n, d)`` is paired with: ``(n,)``."""
        return self.former.arrivals(self.sign * noise)

    def weights(self, x_t: Tensor, t: float, own: Tensor | None = None) -> Tensor:
        """Pairs of this coupling have the same relative weights as independent ones; all others have weight 0.

        Candidates are tried in order of falling probability until the rest are negligible. Where none is a pair, as may
        happen within the solver's error of a boundary, all of them count.
        """
        logits = self._logits(x_t, t)
        tried, paired = torch.zeros(2, *logits.shape, dtype=torch.bool)
        if own is not None:
            tried[torch.arange(len(own)), own] = paired[torch.arange(len(own)), own] = True
        least = logits.masked_fill(tried.any(dim=1, keepdim=True) & ~tried, -torch.inf).amax(dim=1) - _NEGLIGIBLE
        for _ in range(2):
            rows, columns = ((logits >= least[:, None]) & ~tried).nonzero(as_tuple=True)
            if len(rows):
                noise = (x_t[rows] - (1 - t) * self.images[columns]) / t
                paired[rows, columns] = self.partner(noise) == columns
            tried[rows, columns] = True
            least = logits.masked_fill(~paired, -torch.inf).amax(dim=1) - _NEGLIGIBLE
        paired |= ~paired.any(dim=1, keepdim=True)
        return logits.masked_fill(~paired, -torch.inf).softmax(dim=1)

    def arrivals(self, noise: Tensor) -> Tensor:
        times = torch.linspace(T_MAX, _LAST, self.steps + 1, dtype=torch.float64).tolist()
        return self._logits(self.path(noise, times)[-1], _LAST).argmax(dim=1)


@torch.no_grad()
def terms(coupling: Independent, seed: int, n: int, times: Sequence[float]) -> Tensor:
    """Eq. 4's irreducible term, per value of an image, at the ``x_t`` of each of ``n`` pairs: ``(T, n)``.

    ``||(z - x) - E[z - x | x_t]||^2``, averaged over the pairs that meet there: the variance of ``x`` over ``t^2``.
    """
    images, (z, index) = coupling.images, coupling.pairs(seed, n)
    found = []
    for t in times:
        weights = coupling.weights(interpolate(images[index], z, t), t, index)
        variance = (
            weights * torch.cdist(weights @ images, images, compute_mode="donot_use_mm_for_euclid_dist").square()
        ).sum(dim=1)
        found.append(variance / (t**2 * images.shape[1]))
    return torch.stack(found)


@torch.no_grad()
def deviation(coupling: Independent, seed: int, n: int, steps: int = 8) -> Tensor:
    """How far ``n`` paths of the exact flow of a coupling are from straight, along Euler steps: ``(n,)``.

    Measured by :func:`rfpp.metrics.straightness`, which is zero for straight paths.
    """
    times = [T_MAX, *(1 - step / steps for step in range(1, steps + 1))]
    return metrics.straightness(coupling.path(coupling.pairs(seed, n)[0], times), times)


@dataclass(frozen=True)
class Found:
    """What the exact flow of a set of images leaves: its ``folds``, and Eq. 4's ``terms`` by coupling, ``(T, n)``."""

    folds: Folds
    terms: dict[str, Tensor]

    def remaining(self, coupling: str) -> float:
        """The term of a coupling over that of independent pairs, each averaged over times and pairs."""
        return float(self.terms[coupling].mean() / self.terms[INDEPENDENT].mean())

    @property
    def claims(self) -> dict[str, tuple[float, float]]:
        """Values of the claims' quantities, and of their controls."""
        return {
            "c37": (folded(self.folds), folded(self.folds.opposite)),
            "c38": (self.remaining(EXACT), self.remaining(OPPOSITE)),
        }


INDEPENDENT, EXACT, OPPOSITE = "independent pairs", "pairs of the exact flow", "with the opposite noise"
"""Names of couplings."""


def couplings(images: Tensor) -> dict[str, Independent]:
    """Independent pairs of ``images`` ``(K, d)``, those of their exact flow, and the same with opposite noise."""
    independent = Independent(images)
    return {INDEPENDENT: independent, EXACT: Reflowed(independent), OPPOSITE: Reflowed(independent, sign=-1)}


def measure(images: Images, seed: int, count: int, noises: int, lines: int, width: float) -> Found:
    """Answer both questions for ``count`` of ``images``, drawn with a seed: at ``noises`` noises with a Gaussian of
    ``width`` around each image, and at the ``x_t`` of ``lines`` pairs without Gaussians. Of the opposite pairs, whose
    lines meet nearly all, a fifth as many are enough."""
    chosen = subset(images, seed, count)
    number = {name: max(2, lines // 5) if name == OPPOSITE else lines for name in (INDEPENDENT, EXACT, OPPOSITE)}
    of = {name: terms(coupling, seed, number[name], TIMES) for name, coupling in couplings(chosen).items()}
    return Found(folds(chosen, seed, noises, width), of)


def meeting(of_seeds: Sequence[dict[str, Tensor]], coupling: str) -> Tensor:
    """Whether the line of each pair of a coupling meets that of another one at one of the times, ``(pairs of all
    seeds,)``: its term there is more than rounding."""
    return torch.cat([(each[coupling] > _ROUNDING * each[INDEPENDENT].mean()).any(dim=0) for each in of_seeds])


def curves(of_seeds: Sequence[dict[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Times, means of :func:`terms` over all pairs of all seeds, and their standard errors, by coupling: ``(T,)``."""
    joined = {name: torch.cat([each[name] for each in of_seeds], dim=1) for name in of_seeds[0]}
    return {
        name: (torch.tensor(TIMES), values.mean(dim=1), values.std(dim=1) / values.shape[1] ** 0.5)
        for name, values in joined.items()
    }
