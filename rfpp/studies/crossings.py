"""Do the lines of reflow's pairs cross? Noise of crossings among a preset's pairs, and what the teacher makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from rfpp import intersections, metrics, premetrics, samplers, training
from rfpp.base import batches, processes, rng
from rfpp.base.checks import at_least
from rfpp.data import to_float
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow, interpolate

_TAIL = 0.01
"""Share of Gaussian noise outside of the annulus and of the band."""


@dataclass(frozen=True)
class Couples:
    """``n`` couples of pairs: Gaussian noise ``z'``, the noise ``z''`` of a ``crossing``, the image ``x''`` that it
    should become (``wanted``), each ``(n, C, H, W)``, and that image's ``labels``."""

    gaussian: Tensor
    crossing: Tensor
    wanted: Tensor
    labels: Tensor | None


def check(experiment: Experiment) -> None:
    """Raise ``ValueError`` if there are too few pairs to draw two of each class; no teacher is trained for it."""
    classes = experiment.plan.teacher.untrained().label_dim
    at_least("pairs.train", experiment.preset.pairs.train, 2 * max(1, classes))


def other_of_class(one: Tensor, n: int, classes: int, share: Tensor) -> Tensor:
    """Another of ``n`` pairs for each index in ``one``, of its class, which is the index modulo ``classes``.

    ``share`` in [0, 1) says which, ``(len(one),)``: uniform draws make all others of the class equally likely.
    """
    members = (n - 1 - one % classes) // classes + 1
    step = 1 + (share * (members - 1)).long()
    return one % classes + classes * ((one // classes + step) % members)


def couples(
    experiment: Experiment, seed: int, n: int, t: float = 0.5, fresh: bool = False, of_any_class: bool = False
) -> Couples:
    """A pair of the preset's, the image of another one, and the noise with which that would cross the pair at ``t``.

    A crossing is between lines of reflow's pairs, so ``z'`` is the noise that the teacher turned into ``x'``. With
    ``fresh`` it is drawn anew, independent of both images, as for the paper's Figure 2.

    A flow that is told the class has a velocity for each class, so lines of two classes may pass through one point.
    Where the teacher has classes, both images are therefore of one class, unless ``of_any_class``.
    """
    generator, made = rng.generator(seed, "crossings"), experiment.pairs("train", seed)
    one = torch.randint(len(made), (n,), generator=generator)
    share = torch.rand(n, generator=generator, dtype=torch.float64)
    other = other_of_class(one, len(made), 1 if of_any_class else max(1, made.classes), share)
    x1, z, _ = made.batch(one)
    x2, _, labels = made.batch(other)
    if fresh:
        z = torch.randn(x1.shape, generator=generator)
    return Couples(z, intersections.crossing_noise(z, x1, x2, t), x2, labels)


def norms(z: Tensor) -> Tensor:
    """``||z||`` of each noise, ``(n,)``."""
    return z.flatten(1).norm(dim=1)


def lag_one(z: Tensor) -> Tensor:
    """``R(1)`` of each noise, ``(n,)`` (Eq. 10)."""
    return intersections.autocorrelation(z, 1)[:, 1]


def annulus(d: int) -> tuple[float, float]:
    """The norms between which 99 % of Gaussian noise in ``d`` dimensions lies, by the chi distribution."""
    low, high = stats.chi(d).ppf([_TAIL / 2, 1 - _TAIL / 2])
    return float(low), float(high)


def band(d: int) -> tuple[float, float]:
    """The values between which 99 % of Gaussian noise has its ``R(1)``, of standard deviation ``1 / sqrt(d - 1)``."""
    half = float(stats.norm.ppf(1 - _TAIL / 2)) / (d - 1) ** 0.5
    return -half, half


def outside(z: Tensor, limits: tuple[float, float]) -> float:
    """Share of noises whose norm lies outside of ``limits``."""
    low, high = limits
    found = norms(z)
    return float(((found < low) | (found > high)).float().mean())


def statistics(z: Tensor, gaussian: Tensor) -> tuple[float, float]:
    """Share of noises ``z`` outside the annulus, and how often their ``R(1)`` exceeds that of ``gaussian`` noise."""
    return outside(z, annulus(gaussian[0].numel())), intersections.exceedance(lag_one(z), lag_one(gaussian))


def of_crossings(
    experiment: Experiment, seed: int, n: int, fresh: bool = False, of_any_class: bool = False
) -> tuple[float, float]:
    """The :func:`statistics` of the noise of ``n`` crossings, which :func:`couples` draws."""
    drawn = couples(experiment, seed, n, fresh=fresh, of_any_class=of_any_class)
    return statistics(drawn.crossing, drawn.gaussian)


def of_white_noise(experiment: Experiment, seed: int, n: int) -> tuple[float, float]:
    """The :func:`statistics` of ``n`` Gaussian noises, which must have neither property."""
    gaussian = couples(experiment, seed, n).gaussian
    return statistics(torch.randn(gaussian.shape, generator=rng.generator(seed, "white noise")), gaussian)


def mean_autocorrelation(z: Tensor, lags: int) -> tuple[Tensor, Tensor]:
    """The lags, starting at 1, and the mean of ``R`` over noises at each lag."""
    return torch.arange(1, lags + 1), intersections.autocorrelation(z, lags)[:, 1:].mean(dim=0)


def teacher_samples(experiment: Experiment, noise: Tensor, labels: Tensor | None) -> Tensor:
    """The images that the teacher's ODE makes from each noise ``(n, C, H, W)``; surplus labels are ignored."""
    given = None if labels is None else labels[: len(noise)]
    return samplers.edm_sample(experiment.teacher, noise, experiment.preset.pairs.num_steps, labels=given)


def miss(experiment: Experiment, drawn: Couples) -> tuple[float, float]:
    """Mean squared distance from ``x''`` per pixel: of the image from the crossing's noise, and of that from ``z'``."""
    crossed, chance = (
        float((teacher_samples(experiment, noise, drawn.labels) - drawn.wanted).square().mean())
        for noise in (drawn.crossing, drawn.gaussian)
    )
    return crossed, chance


@dataclass(frozen=True)
class Overlap:
    """The teacher's ``ordinary`` samples and those of crossing noise (``missed``), ``(n, C, H, W)``; ``share``: the
    precision of samples of crossing noise among other ordinary ones, divided by that of ordinary samples. The same for
    crossings with ``fresh`` noise ``z'``, for those between images of any class (``of_any_class``), and for ordinary
    samples of other noise (``control``)."""

    ordinary: Tensor
    missed: Tensor
    share: float
    fresh: float
    of_any_class: float
    control: float


def overlap(experiment: Experiment, seed: int, n: int) -> Overlap:
    """Samples of ``n`` crossings against ``n`` ordinary ones, in the grading features (precision)."""
    drawn, fresh = (couples(experiment, seed, 2 * n, fresh=given) for given in (False, True))
    ordinary = teacher_samples(experiment, fresh.gaussian, fresh.labels)
    white = torch.randn(fresh.gaussian[:n].shape, generator=rng.generator(seed, "white noise"))
    noises = {"share": drawn.crossing[:n], "fresh": fresh.crossing[:n], "control": white}
    samples = {name: teacher_samples(experiment, noise, drawn.labels) for name, noise in noises.items()}
    samples["of_any_class"] = samples["fresh"]
    if experiment.classes:
        mixed = couples(experiment, seed, 2 * n, fresh=True, of_any_class=True)
        samples["of_any_class"] = teacher_samples(experiment, mixed.crossing[:n], mixed.labels)
    reference, *shares = (
        metrics.precision_recall(ordinary[n:], images, experiment.embedding)[0]
        for images in (ordinary[:n], *samples.values())
    )
    return Overlap(
        ordinary[:n], samples["share"], **{name: share / reference for name, share in zip(samples, shares, strict=True)}
    )


@torch.no_grad()
def principal_plane(groups: dict[str, Tensor], embedding: nn.Module) -> dict[str, Tensor]:
    """Features of groups of images along the first group's two principal components, ``(n, 2)`` each."""
    found = {name: embedding(images) for name, images in groups.items()}
    first = next(iter(found.values()))
    _, _, axes = torch.linalg.svd(first - first.mean(dim=0), full_matrices=False)
    return {name: values @ axes[:2].T for name, values in found.items()}


# Eq. 4


def ideal_denoiser(experiment: Experiment, most: int) -> GaussianMixtureDenoiser:
    """The closed-form posterior mean of the first ``most`` training images, by class if the teacher has any."""
    images = experiment.data.train
    return closed_form(experiment, to_float(images.pixels[:most]), images.labels[:most])


def closed_form(experiment: Experiment, x: Tensor, labels: Tensor | None) -> GaussianMixtureDenoiser:
    """The closed-form posterior mean of images ``x`` ``(K, C, H, W)``, by class if the teacher has any.

    Like the experiment's models it is on this process's device, and computes ``pairs.batch_size`` rows at once.
    """
    made = GaussianMixtureDenoiser(x, classes=labels if experiment.classes else None)
    return batches.at_most(experiment.preset.pairs.batch_size, processes.place(made))


@dataclass(frozen=True)
class Terms:
    """Eq. 4's terms at each time, per pixel: the irreducible loss of independent pairs (``before``), the teacher's loss
    in excess of it (``excess``), and a bound on the irreducible loss of reflow's pairs (``after``)."""

    before: Tensor
    excess: Tensor
    after: Tensor

    @property
    def remaining(self) -> float:
        """The bound after reflow over the term before, each averaged over the times."""
        return float(self.after.mean() / self.before.mean())

    @property
    def control(self) -> float:
        """The same for the flow before reflow: the teacher's loss on independent pairs over its irreducible part."""
        return float((self.before + self.excess).mean() / self.before.mean())


def terms(experiment: Experiment, seed: int, times: Sequence[float], most: int) -> Terms:
    """Eq. 4's terms from configuration C, trained with ``seed``, and the closed form of ``most`` training images."""
    ideal, held_out = ideal_denoiser(experiment, most), experiment.pairs("held_out")
    teacher, student = RectifiedFlow(experiment.teacher), experiment.flow("C", seed)
    images = experiment.data.train
    generator = rng.generator(seed, "irreducible")
    index = torch.randint(min(most, len(images)), (len(held_out),), generator=generator)
    x, labels = to_float(images.pixels[index]), images.labels[index] if experiment.classes else None
    return Terms(
        torch.stack([intersections.irreducible_loss(ideal, x, t, generator, labels).mean() for t in times]),
        torch.stack([intersections.excess_loss(teacher, ideal, x, t, generator, labels).mean() for t in times]),
        training.losses_over_time(student, held_out, torch.tensor(times), premetrics.squared_l2, len(held_out)).mean(
            dim=1
        ),
    )


def mean_terms(of_seeds: Sequence[Terms]) -> dict[str, Tensor]:
    """Eq. 4's terms as means over seeds, by name; values below a picture's range are set to its lower end."""
    before, excess, after = (
        torch.stack([getattr(each, name) for each in of_seeds]).mean(dim=0) for name in ("before", "excess", "after")
    )
    return {
        "independent pairs: irreducible": before.clamp(min=1e-4),
        "independent pairs: the teacher's excess": excess,
        "reflow's pairs: irreducible, at most": after,
    }


def residual(x: Tensor, z: Tensor, times: Tensor) -> Tensor:
    """How much ``z - x`` varies among pairs whose ``x_t`` is nearly the same, at each of ``times``."""
    return torch.stack([intersections.regression_residual(interpolate(x, z, t), z - x).mean() for t in times.tolist()])
