"""The whole path at one scale: data, teacher, pairs, trained flows, evaluations, each kept on disk once finished.

Notebooks and the command line request results from an :class:`Experiment`, which finds or computes the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from rfpp import data, engine, features, pairs, presets
from rfpp.base import batches, paths, processes
from rfpp.configurations import TEACHER
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.metrics import Grades
from rfpp.pairs import PairDataset
from rfpp.pipeline import networks, places, sampling, scheduling, standard
from rfpp.pipeline.digests import code_digest, is_own
from rfpp.pipeline.flows import snapshots
from rfpp.pipeline.grades import Evaluation, evaluations, load_flow
from rfpp.pipeline.identities import identity
from rfpp.pipeline.measurements import Measurement
from rfpp.pipeline.plan import Config, Plan
from rfpp.pipeline.sampling import AnySampler, Sampler, labels_in_turn
from rfpp.pipeline.steps import Run, Step
from rfpp.pipeline.store import Store

Model = TypeVar("Model", bound=nn.Module)


def _at_most(rows: int, model: Model) -> Model:
    """Return a model, or a flow with its denoiser, that computes at most ``rows`` rows at once."""
    batches.at_most(rows, getattr(model, "denoiser", model))
    return model


def _either(sampler: AnySampler | None, options: Mapping[str, Any]) -> None:
    if sampler is not None and options:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"{given} beside sampler={sampler!r}, which has settings of its own; leave one of them out")


class Experiment:
    """Everything a notebook asks for, at the scale of a preset.

    ``preset``: a name, a YAML file or a :class:`rfpp.presets.Preset`; ``overrides``: settings to replace, such as
    ``{"training.steps": 800}``; ``runs``: the folder of results, by default :func:`rfpp.base.paths.runs`; ``dataset``:
    images of your own instead of the preset's; ``jobs``: how many steps to compute side by side, by default
    ``RFPP_JOBS`` or one for each core or GPU; ``scheduler``: the address of a dask cluster that computes instead.
    Raises ``ValueError``, for settings :class:`rfpp.presets.PresetError`, or ``TypeError`` before any work if one of
    them does not fit.

    Models take tensors from any device and compute ``pairs.batch_size`` rows at once; everything else is on the CPU.
    """

    def __init__(
        self,
        preset: str | Path | presets.Preset = presets.DEFAULT,
        overrides: Mapping[str, Any] | None = None,
        runs: Path | None = None,
        dataset: data.Dataset | None = None,
        jobs: int | None = None,
        scheduler: str | None = None,
    ) -> None:
        if dataset is not None:
            overrides = {**(overrides or {}), "data": {"name": "custom"}}
        processes.prepare()
        self.preset = presets.load(preset, overrides)
        self.plan = Plan(self.preset, dataset)
        self.folder = (runs or paths.runs()) / self.preset.name
        self.jobs, self.scheduler = scheduling.jobs(jobs), scheduler
        self.run: Run = self.plan.run(Store(self.folder.with_name(self.preset.origin)))

    def __repr__(self) -> str:
        return f"Experiment({self.preset.name!r}: {self.preset.summary})"

    def __getstate__(self) -> dict[str, Any]:  # another process loads data and networks again
        return {k: v for k, v in vars(self).items() if not isinstance(getattr(type(self), k, None), cached_property)}

    def compute(self, steps: Iterable[Step]) -> None:
        """Compute the missing ones of the plan's ``steps`` and of their dependencies, side by side."""
        scheduling.compute(self.run, steps, self.jobs, self.scheduler)

    def kept(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``, from disk if it was computed before; see :meth:`kept_each`."""
        return self.kept_each(function, {"": arguments})[""]

    def kept_each(self, function: Callable[..., Any], calls: Mapping[Any, Sequence[Any]]) -> dict[Any, Any]:
        """Return ``function(*arguments)`` by name, for arguments by name; on this machine, side by side.

        Arguments may be the experiment itself, flows, samplers, tensors and other values that are identified by their
        content. Raises ``ValueError`` for values that are not, and ``TypeError`` for a result made of anything but
        numbers, strings, tensors and dataclasses of this package.
        """
        steps = {name: Measurement(function, tuple(arguments)) for name, arguments in calls.items()}
        scheduling.compute(self.run, steps.values(), self.jobs if self.scheduler is None else 1)
        return {name: step.load(self.run) for name, step in steps.items()}

    def identity(self) -> Any:
        """Return what identifies the experiment among a measurement's inputs: settings, images, networks and code."""
        settings, plan = self.preset.model_dump(exclude={"name", "summary"}), self.plan
        return identity([settings, plan.images, plan.teacher, plan.grader, plan.perceptual, code_digest(type(self))])

    # Data and networks

    @cached_property
    def data(self) -> data.Dataset:
        """The dataset."""
        return self.plan.images.load()

    @cached_property
    def teacher(self) -> EDMPrecond:
        """The denoiser that makes the pairs; raises :class:`rfpp.presets.PresetError` if it is for other images."""
        teacher = self.plan.teacher.load(self.run)
        self.plan.fit(teacher)
        return _at_most(self.run.batch_size, processes.place(copy.deepcopy(teacher)))

    @property
    def classes(self) -> int:
        """The number of the teacher's classes; 0 for an unconditional teacher."""
        return self.teacher.label_dim

    @cached_property
    def _grader(self) -> nn.Module:
        grader: nn.Module = self.plan.grader.load(self.run)
        return grader

    @cached_property
    def classifier(self) -> features.Classifier:
        """The network that recognises samples; the loss never uses it.

        Raises ``ValueError`` if there is none: Inception, which then grades, does not know these classes.
        """
        if isinstance(self.plan.grader, networks.Inception):
            raise ValueError(
                f"preset {self.preset.name!r} grades with Inception and has no classifier of its own classes; "
                "features.kind=trained makes one"
            )
        grader = self._grader
        assert isinstance(grader, features.Classifier)
        return _at_most(self.run.batch_size, processes.place(copy.deepcopy(grader)))

    @cached_property
    def embedding(self) -> nn.Module:
        """The grading features as a module: images in [-1, 1] to ``(B, num_features)``."""
        return _at_most(self.run.batch_size, networks.embedding(self._grader))

    @cached_property
    def perceptual(self) -> nn.Module:
        """The LPIPS of the loss, on a network that the grades do not use."""
        return _at_most(self.run.batch_size, networks.perceptual_distance(self.plan.perceptual.load(self.run)))

    # Pairs

    def _get_pairs(self, step: Step) -> PairDataset:
        if self.run.find(step) is None:
            _ = self.teacher  # raises before any work if it does not fit
            self.compute([step])
        return PairDataset(self.run.get(step).folder)

    def pairs(self, split: str = "train", seed: int | None = None) -> PairDataset:
        """Return pairs ``(x, z, label)`` of the 1-rectified flow, ``"held_out"`` or to ``"train"`` on with a seed.

        All seeds share the training pairs, unless the preset has ``pairs.per_seed``; the default is then its first
        seed.
        """
        return self._get_pairs(self.plan.pairs(split, seed))

    def inverted(self) -> PairDataset:
        """Return configuration G's pairs: real training images, and the noise the 1-rectified flow carries them to."""
        return self._get_pairs(self.plan.inverted())

    # Flows

    def train(self, configs: Config | Iterable[Config], seeds: Sequence[int] | None = None) -> None:
        """Train the missing flows of ``configs`` times ``seeds``, side by side, with a bar that counts them.

        Raises ``ValueError`` or ``OSError`` before any work for a configuration whose parts do not fit.
        """
        configs = [configs] if isinstance(configs, Config) else list(configs)
        seeds = seeds or self.preset.seeds
        steps = [(config, self.plan.flow(config, seed)) for seed in seeds for config in configs]
        missing = [config for config, step in steps if self.run.find(step) is None]
        self.plan.check(missing)
        if missing:
            _ = self.teacher  # raises before any work if it does not fit
        self.compute(step for _, step in steps)

    def flow_file(self, config: Config, seed: int = 0) -> Path:
        """Return the file of a trained flow, which :func:`rfpp.checkpoints.load` reads.

        Of an arena method with average velocities, that function reads the velocities at equal times alone;
        :meth:`flow` returns the whole.
        """
        self.train([config], [seed])
        return self.run.get(self.plan.flow(config, seed)) / networks.MODEL

    def flow(self, config: Config, seed: int = 0) -> RectifiedFlow:
        """Return the trained flow of a configuration; ``"teacher"``: the 1-rectified flow."""
        if config == TEACHER:
            return RectifiedFlow(self.teacher)
        self.train([config], [seed])
        return _at_most(self.run.batch_size, load_flow(self.plan.flow(config, seed), self.run))

    def history(self, config: Config, seed: int = 0) -> engine.History:
        """Return the loss curve of a trained flow."""
        return networks.history(self.flow_file(config, seed).parent)

    def snapshots(self, config: Config, seed: int = 0) -> dict[int, Tensor]:
        """Return one-step samples from the same noise, by the training step at which they were taken."""
        return snapshots(self.flow_file(config, seed).parent)

    # Samples and grades

    def sampler(
        self, nfe: int = 1, solver: str = "euler", update: str = "standard", inner: Sequence[float] | None = None
    ) -> Sampler:
        """Return a sampler that starts at the preset's first time; ``inner``: the start times of the later steps."""
        return self.plan.sampler(nfe, solver, update, inner)

    def own_sampler(self, config: Config, nfe: int = 1, **options: Any) -> AnySampler:
        """Return the sampler that a configuration or method is designed for; ``options``: those of :meth:`sampler`.

        Raises ``ValueError`` for options that a method does not take.
        """
        return self.plan.own_sampler(config, nfe, **options)

    def noise(self, n: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return noise ``(n, C, H, W)`` for pictures, that of the first seed's samples, and labels ``(n,)``.

        Labels take the classes in turn; they are ``None`` if the teacher has no classes.
        """
        n, seed = n or self.preset.evaluation.samples, self.plan.noise_seed(self.preset.seeds[0])
        return pairs.noise(seed, range(n), self.data.train.shape), labels_in_turn(n, self.classes)

    def check(self, samplers: Sequence[AnySampler], config: Config, seed: int) -> None:
        """Raise ``ValueError`` or ``TypeError`` for a reader's sampler that does not do what it says."""
        for sampler in (each for each in samplers if not is_own(type(each))):
            sampling.check(sampler, self.flow(config, seed), *self.noise(3))

    def sweep(
        self, config: Config, seeds: Sequence[int], wanted: Sequence[AnySampler], draw: int = 0
    ) -> dict[AnySampler, list[Evaluation]]:
        """Grade a configuration with several samplers: for each sampler, one evaluation per seed.

        Each seed has its own noise for samples, the same for every configuration; another ``draw`` gives other noise.
        Raises ``ValueError`` for a reader's sampler that does not do what it says.
        """
        steps = {sampler: [self.plan.grade(config, seed, sampler, draw) for seed in seeds] for sampler in wanted}
        missing = [sampler for sampler, each in steps.items() if any(self.run.find(step) is None for step in each)]
        if missing:
            self.plan.grader.untrained()  # a missing Inception must fail now, not after days of training
        if config != TEACHER:
            self.train([config], seeds)
        self.check(missing, config, seeds[0])
        if self.jobs > 1 or self.scheduler is not None or places.are_shared():
            self.compute(step for each in steps.values() for step in each)
        return evaluations(steps, self.run, f"evaluating {config}")

    def evaluate(
        self, config: Config, seed: int = 0, *, sampler: AnySampler | None = None, **options: Any
    ) -> Evaluation:
        """Grade a flow with a ``sampler`` or, without one, with its own sampler and these ``options``.

        :mod:`rfpp.arena`'s methods take no option but ``nfe``. Raises ``ValueError`` for options beside a sampler.
        """
        _either(sampler, options)
        sampler = sampler or self.own_sampler(config, **options)
        return self.sweep(config, [seed], [sampler])[sampler][0]

    def grade(self, config: Config, seed: int = 0, sampler: AnySampler | None = None, **options: Any) -> Grades:
        """Return FID, inception score, precision and recall on Inception's features, with their protocol.

        ``sampler``: by default the one that the configuration or method is designed for, with one evaluation;
        ``options``: as for :func:`rfpp.pipeline.standard.grades`.
        """
        return next(self.grades(config, [seed], sampler, **options))

    def grades(
        self, config: Config, seeds: Sequence[int], sampler: AnySampler | None = None, **options: Any
    ) -> Iterator[Grades]:
        """Yield the :meth:`grade` of each seed; the samples of all seeds are drawn first, side by side."""
        sampler = sampler or self.own_sampler(config)

        def compute(steps: Iterable[Step]) -> None:
            self.check([sampler], config, seeds[0])
            self.compute(steps)

        return standard.grades(self.plan, self.run, config, seeds, sampler, compute, **options)
