"""From images to noise and back (Section 5.4): reconstruction, Gaussianity, interpolation and translation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy import stats
from torch import Tensor

from rfpp import metrics, samplers
from rfpp.base import rng
from rfpp.base.checks import counts, one_of
from rfpp.configurations import TEACHER
from rfpp.data import to_float
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow

METHODS = ("F, Euler", "EDM, Euler", "EDM, Heun")
"""Configuration F, and the teacher with EDM's ODE and noise levels."""

CONTROL = "1-rectified flow, Euler"
"""The teacher's ODE on the times of configuration F, which shows the effect of the times without the training."""

HEUN = (7, 15)
"""Evaluations of Heun's method, ``2 k - 1`` for ``k`` steps: four, which are too few for digits, and eight."""

SIGMA_MAX = 80.0
FEWEST = 20


@dataclass(frozen=True)
class RealImages:
    """Held-out images ``x`` ``(N, C, H, W)`` in [-1, 1] with ``classes`` ``(N,)``; ``labels`` are those
    that a network receives, ``None`` where the teacher knows no classes."""

    x: Tensor
    classes: Tensor
    labels: Tensor | None

    def first(self, n: int) -> RealImages:
        """The first ``n`` images, or all where there are fewer."""
        return RealImages(self.x[:n], self.classes[:n], None if self.labels is None else self.labels[:n])

    def first_of_each_class(self) -> Tensor:
        """The index of the first image of each class."""
        return torch.stack([torch.nonzero(self.classes == c).flatten()[0] for c in self.classes.unique()])


def check_evaluations(experiment: Experiment, evaluations: Sequence[int]) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are different NFE for which uniform times exist."""
    counts("evaluations", evaluations)
    first = experiment.preset.evaluation.first_time
    if first <= 1 - 1 / max(evaluations):
        raise ValueError(
            f"evaluations={list(evaluations)}: generation starts at evaluation.first_time={first}, which leaves no "
            f"room for {max(evaluations)} steps; leave {max(evaluations)} out, or raise first_time"
        )


def real_images(experiment: Experiment, n: int) -> RealImages:
    """The first ``n`` held-out images of the first ten classes, so that there are several of a class.

    All of them where there are fewer. Raises ``ValueError`` where there are fewer than twenty.
    """
    held_out = experiment.data.held_out
    kept = torch.nonzero(held_out.labels < 10).flatten()[:n]
    if len(kept) < FEWEST:
        raise ValueError(
            f"data.name={experiment.data.name!r} holds out {len(kept)} images of its first ten classes; at least "
            f"{FEWEST} are needed: raise data.held_out"
        )
    classes = held_out.labels[kept]
    return RealImages(to_float(held_out.pixels[kept]), classes, classes if experiment.classes else None)


@dataclass(frozen=True)
class RoundTrips:
    """Real images carried to noise and back, by method of :data:`METHODS`, NFE each way and training seed.

    Noise is cached after its first use. A ``seed`` also draws the little noise that inversion starts with.
    """

    experiment: Experiment
    seeds: Sequence[int]
    real: RealImages

    @cached_property
    def flows(self) -> dict[int, RectifiedFlow]:
        """Configuration F by seed."""
        return {seed: self.experiment.flow("F", seed) for seed in self.seeds}

    @cached_property
    def _kept(self) -> dict[tuple[str, int], list[Tensor]]:
        return {}

    def noise(self, method: str, nfe: int) -> list[Tensor]:
        """The noise ``(N, C, H, W)`` of the images, for each seed.

        Raises ``ValueError`` for an unknown method, or an even ``nfe`` with Heun.
        """
        one_of("method", method, (*METHODS, CONTROL))
        if (method, nfe) not in self._kept:
            self._kept[method, nfe] = [self._there(method, nfe, seed) for seed in self.seeds]
        return self._kept[method, nfe]

    def reconstructions(self, method: str, nfe: int) -> list[Tensor]:
        """The images ``(N, C, H, W)`` that the noise is carried back to, for each seed."""
        pairs = zip(self.seeds, self.noise(method, nfe), strict=True)
        return [self._back(method, nfe, seed, z) for seed, z in pairs]

    def decode(self, z: Tensor, labels: Tensor | None, seed: int, nfe: int) -> Tensor:
        """The images that a seed's flow makes from noise ``z`` ``(M, C, H, W)`` with other ``labels`` ``(M,)``."""
        return self.experiment.sampler(nfe)(self.flows[seed], z, labels)

    @torch.no_grad()
    def _there(self, method: str, nfe: int, seed: int) -> Tensor:
        x, labels, generator = self.real.x, self.real.labels, rng.generator(seed, "inversion")
        if method in ("F, Euler", CONTROL):
            flow = self.experiment.flow(TEACHER) if method == CONTROL else self.flows[seed]
            return samplers.invert(flow, x, nfe, labels=labels, generator=generator)
        solver = method.removeprefix("EDM, ").lower()
        steps = samplers.steps_for(nfe, solver)
        teacher = self.experiment.teacher
        return samplers.edm_invert(teacher, x, steps, labels=labels, solver=solver, generator=generator)

    @torch.no_grad()
    def _back(self, method: str, nfe: int, seed: int, z: Tensor) -> Tensor:
        labels = self.real.labels
        if method in ("F, Euler", CONTROL):
            flow = self.experiment.flow(TEACHER) if method == CONTROL else self.flows[seed]
            return self.experiment.sampler(nfe)(flow, z, labels)
        solver = method.removeprefix("EDM, ").lower()
        steps, teacher = samplers.steps_for(nfe, solver), self.experiment.teacher
        if steps == 1:  # EDM's sampler needs two levels; its one-step form is a jump from the highest
            return samplers.edm_integrate(teacher, SIGMA_MAX * z, [SIGMA_MAX, 0.0], labels=labels)
        return samplers.edm_sample(teacher, z, steps, labels=labels, solver=solver)


Curves = dict[str, dict[int, list[float]]]
"""By method and NFE, one value per seed."""


def errors(trips: RoundTrips, method: str, nfe: int) -> list[float]:
    """Mean squared error of a method's reconstructions, for each seed."""
    return [float((image - trips.real.x).square().mean()) for image in trips.reconstructions(method, nfe)]


def distances(trips: RoundTrips, method: str, nfe: int) -> list[float]:
    """Kolmogorov's distance of a method's inverted noise's norms from those of Gaussian noise, for each seed."""
    return [metrics.norm_distance(z) for z in trips.noise(method, nfe)]


def _curves(evaluations: Iterable[int], value: Callable[[str, int], list[float]]) -> Curves:
    return {
        method: {nfe: value(method, nfe) for nfe in (HEUN if method == "EDM, Heun" else evaluations)}
        for method in METHODS
    }


def reconstruction_errors(trips: RoundTrips, evaluations: Sequence[int]) -> Curves:
    """Mean squared error of the reconstructions with as many evaluations to invert as to generate (Figure 5a)."""
    return _curves(evaluations, lambda method, nfe: errors(trips, method, nfe))


def ratio(curves: Curves) -> dict[int, list[float]]:
    """EDM's error over configuration F's at equal NFE, Euler, for each seed."""
    ours, edm = curves["F, Euler"], curves["EDM, Euler"]
    return {nfe: [b / a for a, b in zip(ours[nfe], edm[nfe], strict=True)] for nfe in ours}


def norm_distances(trips: RoundTrips, evaluations: Sequence[int]) -> Curves:
    """Kolmogorov's distance of the inverted noise's norms from those of Gaussian noise."""
    return _curves(evaluations, lambda method, nfe: distances(trips, method, nfe))


def norms(trips: RoundTrips, nfe: int) -> dict[str, Tensor]:
    """Norms of the inverted noise, all seeds together, and of as much Gaussian noise as images (Figure 5b)."""
    found = {
        name: torch.cat(trips.noise(method, nfe)).flatten(1).norm(dim=1)
        for name, method in (("configuration F", "F, Euler"), ("EDM", "EDM, Euler"))
    }
    return {**found, "Gaussian noise": _gaussian(trips).flatten(1).norm(dim=1)}


def _gaussian(trips: RoundTrips) -> Tensor:
    """As much Gaussian noise as there are images."""
    return torch.randn(trips.real.x.shape, generator=rng.generator(0, "reference"))


@torch.no_grad()
def norms_by_origin(experiment: Experiment, n: int) -> dict[str, Tensor]:
    """Norms ``(n,)`` of the noise of training images, as in G's pairs (Section 4.4), and of two others to compare with.

    These are the noise of held-out images, which the same flow carries there in the same way, and Gaussian noise. There
    may be fewer than ``n`` images of a kind.
    """
    inverted, held_out = experiment.inverted(), experiment.data.held_out
    _, seen, _ = inverted.batch(torch.arange(min(n, len(inverted))))
    x, labels = to_float(held_out.pixels[:n]), held_out.labels[:n] if experiment.classes else None
    nfe, generator = experiment.preset.real_data.nfe, rng.generator(0, "inversion")
    unseen = samplers.invert(experiment.flow(TEACHER), x, nfe, labels=labels, generator=generator)
    gaussian = torch.randn(seen.shape, generator=rng.generator(0, "reference"))
    found = {"noise of training images": seen, "noise of held-out images": unseen, "Gaussian noise": gaussian}
    return {name: z.flatten(1).norm(dim=1) for name, z in found.items()}


FULL_SCALE = 3.0
"""Standard deviations of noise that fill the range of an image."""


def noises(trips: RoundTrips, nfe: int, shown: int) -> dict[str, Tensor]:
    """The first images, their inverted noise by the first seed's flow and by EDM, and Gaussian noise (Figure 5c).

    ``(shown, C, H, W)`` each, or fewer where there are fewer images. All noise is on one scale: three standard
    deviations of Gaussian noise reach from 0 to 1.
    """
    found = {
        f"F, {nfe} NFE": trips.noise("F, Euler", nfe)[0],
        f"EDM, {nfe} NFE": trips.noise("EDM, Euler", nfe)[0],
        "Gaussian noise": _gaussian(trips),
    }
    return {"real image": trips.real.x[:shown], **{name: z[:shown] / FULL_SCALE for name, z in found.items()}}


def shell(d: int) -> tuple[float, float]:
    """The norms between which 95 % of Gaussian noises in ``d`` dimensions lie, by the chi distribution."""
    low, high = stats.chi(d).interval(0.95)
    return float(low), float(high)


def critical_distance(n: int) -> float:
    """Kolmogorov's distance that ``n`` Gaussian noises stay below 95 times in 100."""
    return float(1.36 / n**0.5)


def interpolations(trips: RoundTrips, there: int, back: int, shown: int) -> dict[str, Tensor]:
    """Walks between two images of a class, for up to five classes, by the first seed's flow: ``(shown, C, H, W)`` each.

    The first and the last image are real. Those between are decoded with ``back`` evaluations from the great circle
    between the noises of the two, which are inverted with ``there`` evaluations.
    """
    real, z, rows = trips.real, trips.noise("F, Euler", there)[0], {}
    classes, counts = real.classes.unique(return_counts=True)
    several = classes[counts > 1].tolist()
    for c in several[:: max(1, len(several) // 5)][:5]:
        a, b = torch.nonzero(real.classes == c).flatten()[[0, -1]].tolist()
        weights = torch.linspace(0, 1, shown - 2)
        walk = torch.cat([samplers.slerp(z[a : a + 1], z[b : b + 1], float(weight)) for weight in weights])
        labels = None if real.labels is None else real.labels[a].expand(len(walk))
        decoded = trips.decode(walk, labels, trips.seeds[0], back)
        rows[f"class {c}"] = torch.cat([real.x[a : a + 1], decoded, real.x[b : b + 1]])
    return rows


def translations(trips: RoundTrips, there: int, back: int) -> dict[str, Tensor]:
    """The first image of each class, and its noise decoded as every class, by the first seed's flow."""
    source = trips.real.first_of_each_class()
    z, rows = trips.noise("F, Euler", there)[0][source], {"real image": trips.real.x[source]}
    for c in trips.real.classes.unique():
        rows[f"as {c}"] = trips.decode(z, c.expand(len(source)), trips.seeds[0], back)
    return rows


@dataclass(frozen=True)
class Translations:
    """Images decoded as another class, for one seed, ``(N,)`` each: which were ``recognised`` as that class, which lie
    closer to their source than to more than half of the ``others`` of its class, and which lie closer to it than what
    the flow makes of ``fresh`` noise with the wanted class; ``distance``: the mean squared distance from the source,
    over that of the images of fresh noise."""

    recognised: Tensor
    others: Tensor
    fresh: Tensor
    distance: float

    @property
    def share(self) -> float:
        """The share that are recognised, and closer to their source than to the others of its class."""
        return float((self.recognised & self.others).float().mean())

    @property
    def former(self) -> float:
        """The share that are recognised, and closer to their source than what fresh noise becomes."""
        return float((self.recognised & self.fresh).float().mean())


@torch.no_grad()
def translate(trips: RoundTrips, seed: int, z: Tensor, back: int) -> Tensor:
    """Noise decoded as a class other than its image's, going through the other classes in turn."""
    return trips.decode(z, _other_classes(trips), seed, back)


def _other_classes(trips: RoundTrips) -> Tensor:
    classes, labels = trips.experiment.classes, trips.real.classes
    return (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes


def next_of_class(classes: Tensor) -> Tensor:
    """For each of ``classes`` ``(N,)`` the place of the next one that is equal, in a circle: ``(N,)``."""
    found = torch.empty_like(classes)
    for each in classes.unique():
        (places,) = torch.nonzero(classes == each, as_tuple=True)
        found[places] = places.roll(-1)
    return found


def closer_than_others(made: Tensor, sources: Tensor, classes: Tensor) -> Tensor:
    """Which of the images ``made`` of ``sources`` ``(N, ...)`` lie closer to their source than to more than half of the
    other sources of its class, ``(N,)``. A blurred image, which is close to all, is not among them more often than
    half of the time. None is where a source is the only one of its class."""
    apart = torch.cdist(made.flatten(1), sources.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    same = classes[:, None] == classes
    farther = (same & (apart > apart.diagonal()[:, None])).sum(dim=1)
    return 2 * farther > same.sum(dim=1) - 1


OWN, ANOTHER, FRESH, NONE = (
    "its own noise",
    "noise of another image of its class",
    "fresh noise",
    "none: the mean image",
)
SOURCES = (OWN, ANOTHER, FRESH, NONE)
"""What an image is decoded from in :func:`translated`; the last is the mean training image of the wanted class."""


@torch.no_grad()
def translated(trips: RoundTrips, source: str, there: int, back: int) -> list[Translations]:
    """Translations of the images, for each seed, from one of :data:`SOURCES`; images are inverted with ``there``
    evaluations and decoded with ``back``."""
    wanted, found, real = _other_classes(trips), [], trips.real
    for place, seed in enumerate(trips.seeds):
        fresh = [torch.randn(real.x.shape, generator=rng.generator(seed, "fresh", n)) for n in (0, 1)]
        of_fresh = translate(trips, seed, fresh[0], back)
        if source == NONE:
            images = class_means(trips.experiment)[wanted]
        else:
            z = fresh[1] if source == FRESH else trips.noise("F, Euler", there)[place]
            images = translate(trips, seed, z[next_of_class(real.classes)] if source == ANOTHER else z, back)
        far, farther = ((made - real.x).square().flatten(1).mean(dim=1) for made in (images, of_fresh))
        recognised = trips.experiment.classifier(images).argmax(dim=1).cpu() == wanted
        others = closer_than_others(images, real.x, real.classes)
        found.append(Translations(recognised, others, far < farther, float(far.mean() / farther.mean())))
    return found


def class_means(experiment: Experiment) -> Tensor:
    """The mean training image of each class that the teacher knows, ``(classes, C, H, W)``."""
    images = experiment.data.train
    of_class = (images.pixels[images.labels == c] for c in range(experiment.classes))
    return torch.stack([to_float(pixels).mean(dim=0) for pixels in of_class])


def translation_shares(of_seeds: Sequence[Translations]) -> tuple[str, str, str]:
    """The mean relative distance from the source, and the two mean shares of :class:`Translations`."""
    found = [statistics.fmean(getattr(each, name) for each in of_seeds) for name in ("distance", "share", "former")]
    return f"{found[0]:.0%}", f"{found[1]:.0%}", f"{found[2]:.0%}"


def untranslatable(experiment: Experiment) -> str | None:
    """Why images cannot be translated, or not be recognised; ``None`` where they can."""
    if experiment.classes < 2:
        return "the teacher knows no classes to translate between"
    if experiment.preset.features.kind == "standard":
        return "Inception grades here, and it does not know these classes"
    return None
