"""The plan: the steps that a preset's settings define."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rfpp import arena, engine
from rfpp.arena import PLAIN, Method
from rfpp.arena import find as contender
from rfpp.base import rng
from rfpp.base.checks import at_least, one_of
from rfpp.configurations import CONFIGURATIONS, TEACHER, Configuration, check, check_timesteps
from rfpp.data import Dataset
from rfpp.engine import Optimisation
from rfpp.pipeline.flows import InvertImages, MakePairs, OwnPairs, TrainFlow
from rfpp.pipeline.generators import Leaps, Renoised, TrainGenerator
from rfpp.pipeline.grades import DrawSamples, GradeFlow, MeasureReference
from rfpp.pipeline.identities import identity
from rfpp.pipeline.networks import (
    VGG,
    Inception,
    Published,
    Shipped,
    TrainFeatures,
    TrainTeacher,
    Weights,
)
from rfpp.pipeline.sampling import AnySampler, Sampler
from rfpp.pipeline.sources import Given, Source, checked
from rfpp.pipeline.steps import Run, Step, in_order
from rfpp.pipeline.store import Store
from rfpp.presets import Preset, PresetError

SPLITS = ("train", "held_out")
Config = str | Configuration | Method
"""A letter of Table 1, a name of :data:`rfpp.configurations.VARIANTS` or of :mod:`rfpp.arena`, an import path, or a
configuration or method object."""
_DEFAULTS = {"solver": "euler", "update": "standard", "inner": None}


def _check_features(kind: str, dataset: Dataset) -> None:
    if kind == "shipped" and dataset.train.shape[0] != 1:
        raise PresetError(
            f"features.kind='shipped' are networks for grey images, but data.name={dataset.name!r} has images of shape "
            f"{dataset.train.shape}; use features.kind trained or standard"
        )


class Plan:
    """The steps of a preset, as values; ``dataset``: a reader's own images instead of the preset's."""

    def __init__(self, preset: Preset, dataset: Dataset | None = None) -> None:
        self.preset = preset
        settings = preset.data
        self.images: Source | Given = (
            Source(
                settings.name, settings.path, settings.resolution, settings.crop, settings.held_out, settings.function
            )
            if dataset is None
            else Given(checked(dataset))
        )
        if dataset is None and settings.name == "custom" and settings.function is None:
            raise PresetError("data.name='custom' needs data.function, the import path of a function 'module:name'")
        if dataset is not None:
            _check_features(preset.features.kind, dataset)
        self.teacher = self._teacher()
        self.grader, self.perceptual = self._features("classifier"), self._features("perceptual")

    # Networks

    def _teacher(self) -> Weights:
        settings = self.preset.teacher
        if settings.name is not None:
            return Shipped(settings.name)
        if settings.file is not None:
            return Published(settings.file, settings.sha256)
        assert settings.train is not None  # exactly one of the three
        return TrainTeacher(self.images, settings.train, self.preset.machinery.precision)

    def _features(self, kind: str) -> Weights:
        settings = self.preset.features
        if settings.kind == "shipped":
            return Shipped(f"digits-{kind}")
        if settings.train is not None:
            return TrainFeatures(self.images, settings.train, kind, self.preset.machinery.precision)
        return Inception(settings.inception) if kind == "classifier" else VGG(settings.vgg)

    def fit(self, teacher: Any) -> None:
        """Raise :class:`rfpp.presets.PresetError` if the images or classes of a network differ from the dataset's."""
        dataset = self.images.load()
        _check_features(self.preset.features.kind, dataset)
        shape = (teacher.model.in_channels, teacher.model.img_resolution, teacher.model.img_resolution)
        if shape != dataset.train.shape:
            settings = self.preset.teacher.model_dump(exclude_none=True)
            given = next(name for name in ("name", "file", "train") if name in settings)
            raise PresetError(
                f"teacher.{given} makes images of shape {shape}, but data.name={dataset.name!r} has "
                f"{dataset.train.shape}; choose a teacher and data that fit"
            )
        if teacher.label_dim not in (0, dataset.classes):
            raise PresetError(
                f"the teacher knows {teacher.label_dim} classes, but data.name={dataset.name!r} has "
                f"{dataset.classes}; choose a teacher and data that fit"
            )

    def run(self, store: Store) -> Run:
        """Return how the preset's steps are computed."""
        return Run(store, self.preset.machinery, self.preset.pairs.batch_size)

    # Pairs

    def pairs(self, split: str = "train", seed: int | None = None) -> MakePairs:
        """Pairs of the 1-rectified flow: ``"held_out"``, or to ``"train"`` on with a ``seed``, by default the first.

        All seeds share the same pairs, unless the preset has ``pairs.per_seed``.
        """
        one_of("split", split, SPLITS)
        settings = self.preset.pairs
        own = settings.per_seed and split == "train"
        seed = self.preset.seeds[0] if seed is None else seed
        n = settings.train if split == "train" else settings.held_out
        label = f", {split.replace('_', ' ')}" + (f", seed {seed}" if own else "")
        drawn = rng.derive(settings.seed, split, seed) if own else rng.derive(settings.seed, split)
        return MakePairs(self.teacher, n, drawn, settings.num_steps, label)

    def inverted(self) -> InvertImages:
        """Real images and the noise that the teacher carries them to."""
        settings = self.preset.real_data
        return InvertImages(self.images, self.teacher, settings.nfe, rng.derive(settings.seed, "inversion"))

    def own_pairs(self, flow: TrainFlow) -> OwnPairs:
        """Pairs of a trained flow, made on its own times: few of EDM's noise levels fall in the middle of a flow."""
        settings = self.preset.third_round
        return OwnPairs(flow, self.sampler(settings.nfe), settings.pairs, rng.derive(flow.seed, "third"))

    # Flows

    def optimisation(self, configuration: Configuration) -> Optimisation:
        """The configuration's own optimisation, or that of the preset's section that it names."""
        if isinstance(configuration.schedule, Optimisation):
            return configuration.schedule
        general, fine, third = self.preset.training, self.preset.real_data, self.preset.third_round
        steps, lr, warmup = {
            "training": (general.steps, general.lr, general.warmup),
            "as_many_images": (
                math.ceil(general.steps * general.large_batch / self.batch_size(configuration)),
                general.lr,
                general.warmup,
            ),
            "real_data": (fine.steps, fine.lr, fine.warmup),
            "third_round": (third.steps, general.lr, general.warmup),
        }[configuration.schedule]
        return Optimisation(steps, lr, warmup, ema=general.ema, growing=general.ema_growing)

    def batch_size(self, configuration: Configuration) -> int:
        """The number of rows of a training step."""
        sizes = {"small": self.preset.training.small_batch, "large": self.preset.training.large_batch}
        return sizes[configuration.batch] if isinstance(configuration.batch, str) else configuration.batch

    def flow(self, config: Config, seed: int) -> TrainFlow | TrainGenerator:
        """The training of a configuration or of an arena method."""
        at_least("seed", seed, 0)
        found = contender(config)
        return self._generator(found, seed) if isinstance(found, Method) else self._reflow(found, seed)

    def budget(self) -> float:
        """The network passes of a training of B to F, which other methods get as well."""
        return PLAIN * self.preset.training.steps * self.preset.training.large_batch

    def _generator(self, method: Method, seed: int) -> TrainGenerator:
        general = self.preset.training
        steps = max(1, int(self.budget() / (method.price * general.large_batch)))
        return TrainGenerator(
            teacher=self.teacher,
            method=method,
            source=self.pairs("train", seed) if method.source == "pairs" else self.images,
            batch_size=general.large_batch,
            optimisation=Optimisation(
                steps, general.lr, min(general.warmup, steps), ema=general.ema, growing=general.ema_growing
            ),
            dropout=general.dropout,
            precision=self.preset.machinery.precision,
            seed=seed,
        )

    def _reflow(self, configuration: Configuration, seed: int) -> TrainFlow:
        start: str | TrainFlow
        if isinstance(configuration.start, Configuration):
            start = self._reflow(configuration.start, seed)
        else:
            start = configuration.start
        pairs: MakePairs | InvertImages | OwnPairs
        if configuration.pairs == "own":
            assert isinstance(start, TrainFlow)  # the configuration ensures it
            pairs = self.own_pairs(start)
        else:
            pairs = self.inverted() if configuration.pairs == "real" else self.pairs("train", seed)
        return TrainFlow(
            teacher=self.teacher,
            start=start,
            pairs=pairs,
            timesteps=configuration.timesteps,
            premetric=configuration.premetric,
            perceptual=self.perceptual if configuration.is_perceptual else None,
            batch_size=self.batch_size(configuration),
            optimisation=self.optimisation(configuration),
            dropout=self.preset.training.dropout,
            precision=self.preset.machinery.precision,
            seed=seed,
            real=self.inverted() if configuration.real_share else None,
            real_share=configuration.real_share,
            label=str(configuration),
        )

    def check(self, configs: Iterable[Config]) -> None:
        """Raise the ``ValueError`` or ``OSError`` that trainings would raise, before their pairs are made."""
        wanted = [contender(config) for config in configs]
        configurations = [each for each in wanted if isinstance(each, Configuration)]
        methods = [each for each in wanted if isinstance(each, Method)]
        if not wanted:
            return
        recipes = [recipe for recipe in (self.preset.teacher.train, self.preset.features.train) if recipe is not None]
        sizes = {self.batch_size(configuration) for configuration in configurations}
        sizes |= {self.preset.training.large_batch} if methods else set()
        for size in (*sizes, *(recipe.batch for recipe in recipes)):
            engine.check(size, self.preset.machinery)
        shape = self.images.load().train.shape
        for configuration in configurations:
            check(configuration, shape)
            for part in (configuration.timesteps, configuration.premetric):
                identity(part)
        for method in methods:
            check_timesteps(method.timesteps)
            identity(method)
        if any(method.two_times for method in methods):
            arena.average.initial(self.teacher.untrained(), 0.0, 0)
        if any(configuration.is_perceptual for configuration in configurations):
            self.perceptual.untrained()

    # Grades

    def sampler(
        self, nfe: int = 1, solver: str = "euler", update: str = "standard", inner: Sequence[float] | None = None
    ) -> Sampler:
        """A sampler that starts at the preset's first time; ``inner``: the start times of the later steps."""
        times = None if inner is None else tuple(inner)
        return Sampler(nfe, solver, update, self.preset.evaluation.first_time, times, self.preset.pairs.batch_size)

    def own_sampler(self, config: Config, nfe: int = 1, **options: Any) -> AnySampler:
        """The sampler that a configuration or method is designed for; ``options``: those of :meth:`sampler`.

        Raises ``ValueError`` for options that a method does not take, and ``TypeError`` for unknown ones.
        """
        found = contender(config) if config != TEACHER else None
        if not isinstance(found, Method):
            return self.sampler(nfe, **options)
        if unknown := options.keys() - _DEFAULTS.keys():
            raise TypeError(f"{', '.join(sorted(unknown))} is no option of a sampler; allowed: {', '.join(_DEFAULTS)}")
        if given := [name for name, value in options.items() if value != _DEFAULTS[name]]:
            raise ValueError(f"config={str(config)!r} samples in its own way: leave out {', '.join(given)}")
        first, at_once = found.first or self.preset.evaluation.first_time, self.preset.pairs.batch_size
        if found.two_times:
            return Leaps(nfe, first, at_once)
        return (
            Renoised(nfe, first, at_once) if found.predicts_ends else Sampler(nfe, first_time=first, batch_size=at_once)
        )

    def noise_seed(self, seed: int, draw: int = 0) -> int:
        """The seed of the noise for a training seed's samples; ``draw``: 0, or another number for other noise."""
        return rng.derive(self.preset.evaluation.seed, "evaluation", seed, draw)

    def reference(self) -> MeasureReference:
        """The real images' moments, with which samples are compared."""
        return MeasureReference(self.images, self.grader)

    def _graded(self, config: Config, seed: int) -> TrainFlow | TrainGenerator | Weights:
        return self.teacher if config == TEACHER else self.flow(config, seed)

    def grade(self, config: Config, seed: int, sampler: AnySampler, draw: int = 0) -> GradeFlow:
        """The grades of a configuration's flow, or of the ``"teacher"``, with a sampler, on the seed's noise."""
        return GradeFlow(
            self._graded(config, seed), sampler, self.preset.evaluation.samples, self.noise_seed(seed, draw),
            self.pairs("held_out"), self.reference(),
        )  # fmt: skip

    def samples(self, config: Config, seed: int, sampler: AnySampler, n: int) -> DrawSamples:
        """Samples of a flow that are kept."""
        return DrawSamples(self._graded(config, seed), sampler, n, self.noise_seed(seed))

    def steps(self, configs: Iterable[Config] | None = None, seeds: Sequence[int] | None = None) -> list[Step]:
        """All steps up to graded flows of ``configs`` (A to G) at one evaluation, each after the steps it needs."""
        return in_order(
            self.grade(config, seed, self.own_sampler(config))
            for seed in seeds or self.preset.seeds
            for config in configs or CONFIGURATIONS
        )
