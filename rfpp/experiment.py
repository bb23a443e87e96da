"""The whole path at one scale: data, teacher, pairs, trained flows, evaluations, each kept on disk once finished.

Notebooks and the command line ask an :class:`Experiment` for what they need; it finds the finished step or computes it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rfpp import (
    checkpoints,
    data,
    denoisers,
    engine,
    features,
    intersections,
    metrics,
    networks,
    pairs,
    premetrics,
    presets,
    samplers,
    timesteps,
    training,
)
from rfpp import flow as flows
from rfpp.base import downloads, files, paths, processes, progress, rng
from rfpp.base.checks import at_least, one_of
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.metrics import standard
from rfpp.pairs import PairDataset
from rfpp.pipeline import shipped
from rfpp.pipeline.store import Artifact, Store, code_digest, digest

_MODELS = (networks, denoisers, flows)
_PAIRS = (*_MODELS, samplers, pairs, data, rng)
_THIS = sys.modules[__name__]  # how a training or an evaluation is put together stands here
_TRAINING = (*_PAIRS, engine, training, timesteps, premetrics, features, _THIS)
_EVALUATION = (*_PAIRS, metrics, standard, features, _THIS)

TEACHER = "teacher"
"""Stands where a configuration's letter does: the 1-rectified flow, which is the teacher itself (Proposition 1)."""

_MODEL, _HISTORY, STATES = "model.safetensors", "history.json", "states"
_SHOWN, _SNAPSHOT = 16, "samples-{}.safetensors"
_REFERENCE, SAMPLES, _GRADES = "reference.npz", "samples", "evaluation.json"
_BATCH = 1024
_GRADED = 128
"""Images that a network grades at once: Inception sees them at 299x299."""

FEATURES = ("classifier", "perceptual")

FLOWS = (*training.ALL, TEACHER)


@dataclass(frozen=True)
class Evaluation:
    """One flow with one sampler. ``frechet``: distance of samples to the training images in the features that grade;
    ``agreement``: share of samples recognised as their label; ``pair_error``: mean ``||sample(z) - x||^2 / d`` over
    held-out pairs, the one-step error at ``nfe = 1``."""

    frechet: float
    agreement: float
    pair_error: float


@dataclass(frozen=True)
class Sampler:
    """A way to spend evaluations; arguments, and errors for bad ones, as for :func:`rfpp.samplers.sample`."""

    nfe: int = 1
    solver: str = "euler"
    update: str = "standard"
    first_time: float = flows.T_MAX
    inner: tuple[float, ...] | None = None
    """The times of the steps after the first; uniform ones when ``None``."""

    def __post_init__(self) -> None:
        one_of("update", self.update, samplers.UPDATES)
        _ = self.times  # complains about the others

    @property
    def times(self) -> Tensor:
        """The grid from the first time down to 0."""
        steps = samplers.steps_for(self.nfe, self.solver)
        if self.inner is None:
            return samplers.generation_times(steps, self.first_time)
        if len(self.inner) != steps - 1:
            raise ValueError(
                f"inner={self.inner}: nfe={self.nfe} with solver={self.solver!r} has {steps - 1} inner times"
            )
        return torch.tensor([self.first_time, *self.inner, 0.0], dtype=torch.float64)

    def __call__(
        self,
        flow: RectifiedFlow,
        z: Tensor,
        labels: Tensor | None = None,
        batch_size: int = 500,
    ) -> Tensor:
        """Samples from noise ``z`` ``(N, ...)`` in batches, on the device of ``z``."""
        images = []
        place = next((parameter.device for parameter in flow.parameters()), z.device)
        for rows in torch.arange(len(z)).split(batch_size):
            chosen = None if labels is None else labels[rows].to(place)
            noise = z[rows].to(place)
            made = samplers.sample(flow, noise, self.nfe, self.solver, self.update, self.times, chosen)
            images.append(made.to(z.device))
        return torch.cat(images)


@dataclass(frozen=True)
class Step:
    """An arrow of the path: what it depends on, what computes it into a folder, and the steps it ``needs`` first.

    For forecasts: ``passes``, forward passes of the network; ``trained``, images of training steps, and whether these
    are ``with_lpips``; ``stored``, bytes that stay, but for checkpoints that are to be kept.
    """

    name: str
    inputs: Mapping[str, Any]
    compute: Callable[[Path], object]
    title: str = ""
    needs: tuple[Step, ...] = ()
    passes: int = 0
    trained: int = 0
    with_lpips: bool = False
    stored: int = 0

    @property
    def key(self) -> str:
        return Store.key(self.name, self.inputs)


class Experiment:
    """Everything a notebook asks for, at the scale of a preset.

    ``preset``: a name, a YAML file or a :class:`rfpp.presets.Preset`; ``overrides``: settings to replace, such as
    ``{"training.steps": 800}``; ``runs``: the folder of results, ``runs/`` in the checkout by default.
    Raises :class:`rfpp.presets.PresetError` before any work when one of them does not fit.

    Models lie on this process's device and take tensors from anywhere; everything else is on the CPU.
    """

    def __init__(
        self,
        preset: str | Path | presets.Preset = presets.DEFAULT,
        overrides: Mapping[str, Any] | None = None,
        runs: Path | None = None,
    ) -> None:
        self.preset = preset if isinstance(preset, presets.Preset) else presets.load(preset, overrides)
        self.folder = (runs or paths.runs()) / self.preset.name
        self.store = Store(self.folder.with_name(self.preset.origin))
        self.used: dict[str, Artifact] = {}
        """The finished steps that were asked for, as ``"step/key"``: what a claim's record rests on."""

    def __repr__(self) -> str:
        return f"Experiment({self.preset.name!r}: {self.preset.summary})"

    def _get(self, step: Step) -> Artifact:
        """A step's result; what it needs is made first, unless the result is there without."""
        finished = self._finished(step)
        for need in step.needs:
            if not finished or self._finished(need):
                self._get(need)
        artifact = self.store.get(step.name, step.inputs, step.compute, resumable=True)
        self.used[f"{step.name}/{artifact.key}"] = artifact
        return artifact

    def _finished(self, step: Step) -> bool:
        return self.store.peek(step.name, step.inputs) is not None

    # Data

    @cached_property
    def data(self) -> data.Dataset:
        """The dataset."""
        settings = self.preset.data
        path = None if settings.path is None else paths.datasets(settings.path)
        return data.load(
            settings.name, path, resolution=settings.resolution, crop=settings.crop, held_out=settings.held_out
        )

    @cached_property
    def _data_id(self) -> str:
        """What stands for the dataset's content wherever results depend on it."""
        if self.preset.data.name == "digits":
            return "digits"
        return digest([fingerprint(part) for part in (self.data.train, self.data.held_out)])

    # Networks that everything starts from

    def _trained_network(self, recipe: str, seed: int, make: Callable[[], nn.Module]) -> Step:
        """A network that the preset trains itself: the ``"teacher"``, or one of the two that images are compared in."""
        settings = getattr(self.preset, "teacher" if recipe == "teacher" else "features").train
        assert settings is not None
        inputs = {
            "recipe": settings.model_dump(),
            "seed": seed,
            "data": self._data_id,
            "precision": self.preset.machinery.precision,
            "code": code_digest(*_MODELS, training, engine, features, data, rng, _THIS),
        }

        def compute(folder: Path) -> None:
            if self._is_kept(folder):
                return
            images, objective = self.data.train, settings.objective(self.data.train, seed)
            model, history = engine.fit(
                make(), objective, settings.steps, lr=settings.lr, warmup=settings.warmup, decay=True, ema=settings.ema,
                seed=seed, desc=f"{recipe}, {len(images):,} images", folder=folder / STATES,
                machinery=self.preset.machinery,
            )  # fmt: skip
            self._keep(folder, model, history)

        size = {"trained": settings.steps * settings.batch, "stored": self._weights}
        size = size if recipe == "teacher" else {}  # the others are much smaller
        return Step(recipe, inputs, compute, f"train the {recipe}", **size)

    def _is_kept(self, folder: Path) -> bool:
        """Whether a training was over when its run was killed: then its checkpoints may be gone already."""
        return bool(processes.from_main(all((folder / name).is_file() for name in (_MODEL, _HISTORY))))

    def _keep(self, folder: Path, model: nn.Module, history: engine.History) -> None:
        """Write what a training made, the history last, and delete what it no longer needs."""
        if processes.is_main():
            checkpoints.save(model, folder / _MODEL)
            files.write_text(folder / _HISTORY, json.dumps(asdict(history)))
            engine.Checkpoints(folder / STATES, keep_every=self.preset.machinery.keep_every).clear()

    def _fresh_teacher(self) -> EDMPrecond:
        settings = self.preset.teacher.train
        assert settings is not None
        (channels, _, size), generator = self.data.train.shape, rng.generator(settings.seed, "initialisation")
        shape = {"img_resolution": size, "in_channels": channels, "out_channels": channels}
        config = {**shape, "label_dim": self.data.classes, **settings.network}
        try:
            network = networks.SongUNet(**config, generator=generator)
        except (TypeError, ValueError, RuntimeError) as error:
            raise presets.PresetError(f"teacher.train.network makes no network: {error}") from error
        return EDMPrecond(network, settings.sigma_data)

    def _teacher_step(self) -> Step:
        settings = self.preset.teacher.train
        assert settings is not None
        return self._trained_network("teacher", settings.seed, self._fresh_teacher)

    def _fresh_features(self, kind: str) -> features.Classifier:
        settings = self.preset.features.train
        assert settings is not None
        if not self.data.classes:
            raise presets.PresetError(
                "features.kind='trained' needs images with classes, and these have none; choose 'standard'"
            )
        wide, activation = (1.0, "relu") if kind == "classifier" else (0.75, "silu")
        widths = [max(1, round(wide * width)) for width in settings.widths]
        classes, channels, seed = self.data.classes, self.data.train.shape[0], settings.seed + FEATURES.index(kind)
        return features.Classifier(widths, activation, classes, settings.dropout, seed, channels)

    def _feature_step(self, kind: str) -> Step:
        settings = self.preset.features.train
        assert settings is not None
        return self._trained_network(kind, settings.seed + FEATURES.index(kind), lambda: self._fresh_features(kind))

    def _teachers(self) -> tuple[Step, ...]:
        return (self._teacher_step(),) if self.preset.teacher.train is not None else ()

    @cached_property
    def _teacher_id(self) -> str:
        """What stands for the teacher's weights wherever results depend on them."""
        settings = self.preset.teacher
        if settings.name is not None:
            return shipped.sha256(settings.name)
        if settings.train is not None:
            return self._teacher_step().key
        assert settings.file is not None
        local = Path(settings.file).expanduser()
        return settings.sha256 or (files.sha256(local) if local.is_file() else settings.file)

    @cached_property
    def _bare_teacher(self) -> EDMPrecond:
        settings = self.preset.teacher
        if settings.name is not None:
            teacher = shipped.load(settings.name)
        elif settings.train is not None:
            teacher = checkpoints.load(self._get(self._teacher_step()) / _MODEL)
        else:
            assert settings.file is not None
            teacher = checkpoints.load_any(settings.file, settings.sha256)
        if isinstance(teacher, RectifiedFlow):
            teacher = teacher.denoiser
        shape = (teacher.model.in_channels, teacher.model.img_resolution, teacher.model.img_resolution)
        if shape != self.data.train.shape:
            raise presets.PresetError(
                f"teacher.{'name' if settings.name else 'file'} makes images of shape {shape}, "
                f"data.name={self.preset.data.name!r} has {self.data.train.shape}; choose others that fit"
            )
        if teacher.label_dim not in (0, self.data.classes):
            raise presets.PresetError(
                f"the teacher knows {teacher.label_dim} classes, data.name={self.preset.data.name!r} has "
                f"{self.data.classes}; choose others that fit"
            )
        return teacher

    @cached_property
    def teacher(self) -> EDMPrecond:
        """The denoiser that makes the pairs."""
        return processes.place(copy.deepcopy(self._bare_teacher))

    @property
    def classes(self) -> int:
        """How many classes the teacher knows; 0 for an unconditional one."""
        return self._bare_teacher.label_dim

    def _features(self, kind: str) -> features.Classifier:
        if self.preset.features.kind == "shipped":
            return copy.deepcopy(shipped.load(f"digits-{kind}"))
        network = checkpoints.load(self._get(self._feature_step(kind)) / _MODEL)
        assert isinstance(network, features.Classifier)
        return network

    def _features_id(self, kind: str) -> str:
        """What stands for the weights of a network that images are compared in."""
        settings = self.preset.features
        if settings.kind == "shipped":
            return shipped.sha256(f"digits-{kind}")
        if settings.kind == "trained":
            return self._feature_step(kind).key
        given, url, sha256 = (
            (settings.inception, standard.INCEPTION_URL, standard.INCEPTION_SHA256)
            if kind == "classifier"
            else (settings.vgg, features.VGG_URL, features.VGG_SHA256)
        )
        if given is None or downloads.is_address(given):
            return sha256
        return files.sha256(downloads.weights(given, url, sha256))

    @cached_property
    def classifier(self) -> features.Classifier:
        """The network that recognises samples; the loss never sees it.

        Raises ``ValueError`` where there is none: Inception, which then grades, does not know these classes.
        """
        if self.preset.features.kind == "standard":
            raise ValueError(
                f"preset {self.preset.name!r} grades with Inception and has no classifier of its own classes; "
                "features.kind=trained makes one"
            )
        return processes.place(self._features("classifier"))

    @cached_property
    def embedding(self) -> nn.Module:
        """The features that images are graded in: floats in [-1, 1] to ``(B, num_features)``."""
        if self.preset.features.kind == "standard":
            inception = standard.inception(self.preset.features.inception or standard.INCEPTION_URL)
            return processes.place(features.EightBit(inception))
        return processes.place(features.Embedding(self._features("classifier")))

    @cached_property
    def perceptual(self) -> nn.Module:
        """LPIPS for the loss, on a network that the grades do not use."""
        return self._lpips(untrained=False)

    def _lpips(self, untrained: bool) -> nn.Module:
        """``untrained``: if the preset trains it, as large and as fast, before it is."""
        if self.preset.features.kind == "standard":
            return processes.place(features.vgg_lpips(self.preset.features.vgg or features.VGG_URL))
        trunk = self._fresh_features if untrained and self.preset.features.train else self._features
        return processes.place(features.FeatureLPIPS(trunk("perceptual")))

    @property
    def _pixels(self) -> int:
        return math.prod(self.data.train.shape)

    def stand_ins(self, lpips: bool = True) -> tuple[EDMPrecond, nn.Module | None]:
        """The teacher and, with ``lpips``, LPIPS, to time them: what the preset trains is as large, and untrained."""
        teacher = self._fresh_teacher() if self.preset.teacher.train is not None else self._bare_teacher
        return copy.deepcopy(teacher), self._lpips(untrained=True) if lpips else None

    @cached_property
    def _parameters(self) -> int:
        """Of a flow's network."""
        model = self._fresh_teacher() if self.preset.teacher.train is not None else self._bare_teacher
        return sum(parameter.numel() for parameter in model.parameters())

    @property
    def _weights(self) -> int:
        """Bytes of a flow's weights, as far as they are known without fetching a teacher."""
        known = self.preset.teacher.file is None or "_bare_teacher" in self.__dict__
        return 4 * self._parameters if known else 0

    def plan(self, configs: Iterable[str] | None = None, seeds: Sequence[int] | None = None) -> list[Step]:
        """All steps up to graded flows of ``configs`` (A to G) at one evaluation, each after those it needs."""
        ordered: dict[tuple[str, str], Step] = {}

        def add(step: Step) -> None:
            if (step.name, step.key) not in ordered:
                for need in step.needs:
                    add(need)
                ordered[step.name, step.key] = step

        for seed in seeds or self.preset.seeds:
            for config in configs or training.CONFIGURATIONS:
                add(self._evaluation(config, seed, self.sampler(), None))
        return list(ordered.values())

    # Pairs

    def _pairs(self, split: str) -> Step:
        one_of("split", split, ("train", "held_out"))
        settings = self.preset.pairs
        arguments = {
            "n": getattr(settings, split),
            "seed": rng.derive(settings.seed, split),
            "num_steps": settings.num_steps,
        }
        inputs = {**arguments, "teacher": self._teacher_id, "code": code_digest(*_PAIRS)}

        def compute(folder: Path) -> None:
            pairs.generate(
                self.teacher, out_dir=folder, batch_size=settings.batch_size, device=processes.device(), **arguments
            )

        title = f"{getattr(settings, split):,} pairs, {split.replace('_', ' ')}"
        n, nfe = getattr(settings, split), 2 * settings.num_steps - 1
        return Step("pairs", inputs, compute, title, self._teachers(), n * nfe, stored=n * self._pixels)

    @lru_cache(maxsize=2)  # noqa: B019 (an experiment lives as long as its notebook)
    def pairs(self, split: str = "train") -> PairDataset:
        """Pairs ``(x, z, label)`` of the 1-rectified flow, ``"train"`` or ``"held_out"``."""
        return PairDataset(self._get(self._pairs(split)).folder)

    def _inverted(self) -> Step:
        settings = self.preset.real_data
        arguments: dict[str, Any] = {"nfe": settings.nfe, "seed": rng.derive(settings.seed, "inversion")}
        inputs = {**arguments, "data": self._data_id, "teacher": self._teacher_id, "code": code_digest(*_PAIRS)}

        def compute(folder: Path) -> None:
            images, flow = self.data.train, RectifiedFlow(self.teacher)
            pairs.invert(
                flow, images.pixels, images.labels if self.classes else None, folder,
                batch_size=self.preset.pairs.batch_size, device=processes.device(), **arguments,
            )  # fmt: skip

        n, title = len(self.data.train), "invert the real images, for G"
        stored = 5 * n * self._pixels  # the noise in floats beside the pixels
        return Step("inverted", inputs, compute, title, self._teachers(), n * settings.nfe, stored=stored)

    def inverted(self) -> PairDataset:
        """Configuration G's pairs: real training images, and the noise that the 1-rectified flow carries each to."""
        return PairDataset(self._get(self._inverted()).folder)

    def _own_pairs(self, config: str, seed: int) -> Step:
        """Pairs that a trained flow makes itself: the start of another round of reflow."""
        settings = self.preset.third_round
        sampler = self.sampler(settings.nfe)  # on its own times: EDM's noise levels hardly touch the middle of a flow
        arguments: dict[str, Any] = {"n": settings.pairs, "seed": rng.derive(seed, "third")}
        inputs = {
            **arguments,
            "sampler": asdict(sampler),
            "flow": self._flow(config, seed).key,
            "code": code_digest(*_PAIRS, _THIS),
        }

        def compute(folder: Path) -> None:
            self._draw(self.flow(config, seed), sampler, folder, **arguments)

        title = f"{settings.pairs:,} pairs of {config}'s own, seed {seed}"
        n = settings.pairs
        needs = (self._flow(config, seed),)
        return Step("own_pairs", inputs, compute, title, needs, n * settings.nfe, stored=n * self._pixels)

    def _draw(self, flow: RectifiedFlow, sampler: Sampler, folder: Path, **arguments: Any) -> PairDataset:
        """Images of a flow as a folder of pairs; processes share the work, and an interrupted one goes on."""
        pairs.generate(
            flow.denoiser, out_dir=folder, batch_size=self.preset.pairs.batch_size, device=processes.device(),
            sampler=lambda z, labels: sampler(flow, z, labels), **arguments,
        )  # fmt: skip
        return PairDataset(folder)

    def _pairs_of(self, configuration: training.Configuration, seed: int) -> Step:
        if configuration.pairs == "real":
            return self._inverted()
        return self._own_pairs(configuration.start, seed) if configuration.pairs == "own" else self._pairs("train")

    # Flows

    def _flow(self, config: str, seed: int, position: str = "") -> Step:
        one_of("config", config, training.ALL)
        at_least("seed", seed, 0)
        configuration = training.ALL[config]
        settings = self.preset.training
        if configuration.pairs == "real":
            fine = self.preset.real_data
            settings = settings.model_copy(update={"steps": fine.steps, "lr": fine.lr, "warmup": fine.warmup})
        elif configuration.start in training.ALL:
            settings = settings.model_copy(update={"steps": self.preset.third_round.steps})
        perceptual = "lpips" in configuration.premetric
        batch_size = getattr(settings, f"{configuration.batch}_batch")
        inputs = {
            "configuration": {key: value for key, value in asdict(configuration).items() if key != "summary"},
            "batch_size": batch_size,
            "settings": settings.model_dump(exclude={"small_batch", "large_batch"}),
            "precision": self.preset.machinery.precision,
            "seed": seed,
            "pairs": self._pairs_of(configuration, seed).key,
            "teacher": self._teacher_id,
            "start": self._flow(configuration.start, seed).key if configuration.start in training.ALL else None,
            "perceptual": self._features_id("perceptual") if perceptual else None,
            "code": code_digest(*_TRAINING),
        }

        def compute(folder: Path) -> None:
            if self._is_kept(folder):
                return
            times = (
                timesteps.UShaped(settings.u_shape) if configuration.timesteps == "u_shaped" else timesteps.Uniform()
            )
            premetric = premetrics.build(configuration.premetric, self.perceptual if perceptual else None)
            trained_on = PairDataset(self._get(self._pairs_of(configuration, seed)).folder)
            objective = training.Reflow(trained_on, times, premetric, batch_size, seed)
            z, labels = self.noise(_SHOWN)
            shown = {max(1, round(settings.steps * part)) for part in (0, 0.03, 0.1, 0.3, 1)}

            def samples(average: nn.Module) -> Tensor:
                assert isinstance(average, RectifiedFlow)
                return self.sampler(1)(average.eval(), z, labels)

            def look(step: int, average: nn.Module) -> None:
                """Samples of the averaged model at a few steps, further and further apart."""
                if step in shown:
                    files.write_tensors(folder / _SNAPSHOT.format(step), {"samples": samples(average)})

            if configuration.start in training.ALL:
                start = self._bare_flow(configuration.start, seed)
            else:
                start = training.initial_flow(self._bare_teacher, configuration, settings.dropout, seed)
            flow, history = engine.fit(
                start,
                objective,
                settings.steps,
                lr=settings.lr,
                warmup=settings.warmup,
                ema=settings.ema,
                seed=seed,
                desc=f"training {config}, seed {seed}{position}",
                machinery=self.preset.machinery,
                folder=folder / STATES,
                settings=inputs,
                on_step=look,
                pictures=samples,
            )
            self._keep(folder, flow, history)

        needs = [self._pairs_of(configuration, seed)]
        if configuration.start in training.ALL:
            needs.append(self._flow(configuration.start, seed))
        if perceptual and self.preset.features.kind == "trained":
            needs.append(self._feature_step("perceptual"))
        return Step(
            "flow", inputs, compute, f"train {config}, seed {seed}", tuple(needs),
            trained=settings.steps * batch_size, with_lpips=perceptual, stored=self._weights,
        )  # fmt: skip

    def train(self, configs: Iterable[str], seeds: Sequence[int] | None = None) -> None:
        """Train what is missing of ``configs`` times ``seeds``, seed by seed, with a bar that counts them."""
        configs = list(configs)
        for config in configs:
            one_of("config", config, training.ALL)
        wanted = [(config, seed) for seed in seeds or self.preset.seeds for config in configs]
        self._check({config for config, seed in wanted if not self._finished(self._flow(config, seed))})
        for number, (config, seed) in enumerate(wanted, start=1):
            self._get(self._flow(config, seed, f" ({number} of {len(wanted)})"))

    def _check(self, configs: Collection[str]) -> None:
        """Raise ``ValueError`` or ``OSError`` for what trainings would complain about, before their pairs are made."""
        if not configs:
            return
        recipes = [recipe for recipe in (self.preset.teacher.train, self.preset.features.train) if recipe is not None]
        settings = self.preset.training
        for size in (settings.small_batch, settings.large_batch, *(recipe.batch for recipe in recipes)):
            engine.check(size, self.preset.machinery)
        if self.preset.features.kind == "trained":
            self._fresh_features("classifier")
        elif any("lpips" in training.ALL[config].premetric for config in configs):
            _ = self.perceptual

    def flow_file(self, config: str, seed: int = 0) -> Path:
        """The file of a trained flow, readable with :func:`rfpp.checkpoints.load`."""
        return self._get(self._flow(config, seed)) / _MODEL

    def _bare_flow(self, config: str, seed: int) -> RectifiedFlow:
        flow = checkpoints.load(self.flow_file(config, seed))
        assert isinstance(flow, RectifiedFlow)
        return flow

    def flow(self, config: str, seed: int = 0) -> RectifiedFlow:
        """The trained flow of a configuration in ``rfpp.training.ALL``; ``"teacher"``: the 1-rectified flow."""
        one_of("config", config, FLOWS)
        if config == TEACHER:
            return RectifiedFlow(self.teacher)
        flow = self._bare_flow(config, seed)
        assert isinstance(flow.denoiser, nn.Module)
        processes.place(flow.denoiser)
        return flow

    def history(self, config: str, seed: int = 0) -> engine.History:
        """The loss curve of a trained flow."""
        return engine.History(**json.loads((self._get(self._flow(config, seed)) / _HISTORY).read_text()))

    def snapshots(self, config: str, seed: int = 0) -> dict[int, Tensor]:
        """One-step samples from the same noise, by the training step they were taken at."""
        found = {
            int(path.stem.partition("-")[2]): load_file(path)["samples"]
            for path in self._get(self._flow(config, seed)).folder.glob(_SNAPSHOT.format("*"))
        }
        return dict(sorted(found.items()))

    # Samples and grades

    def sampler(
        self,
        nfe: int = 1,
        solver: str = "euler",
        update: str = "standard",
        inner: Sequence[float] | None = None,
    ) -> Sampler:
        """A sampler that starts at the preset's first time; ``inner``: the times of the steps after it."""
        first_time = self.preset.evaluation.first_time
        return Sampler(nfe, solver, update, first_time, None if inner is None else tuple(inner))

    @property
    def _noise_seed(self) -> int:
        return rng.derive(self.preset.evaluation.seed, "evaluation")

    def noise(self, n: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The evaluation's noise ``(n, C, H, W)`` and labels ``(n,)``, all classes in turn; the same for every flow.

        Labels are ``None`` where the teacher knows no classes.
        """
        n = n or self.preset.evaluation.samples
        labels = torch.arange(n) % self.classes if self.classes else None
        return pairs.noise(self._noise_seed, range(n), self.data.train.shape), labels

    def _reference(self) -> Step:
        """Moments of the real training images' features."""
        inputs = {
            "data": self._data_id,
            "features": self._features_id("classifier"),
            "code": code_digest(standard, features, _THIS),
        }

        def compute(folder: Path) -> None:
            embedding = self.embedding  # of all processes: it may have to be trained
            if processes.is_main():
                moments = _moments(embedding, self.data.train.pixels)
                moments.statistics(f"{self.preset.data.name}, training images").save(folder / _REFERENCE)

        return Step("reference", inputs, compute, "features of the real images", self._graders())

    def _graders(self) -> tuple[Step, ...]:
        return (self._feature_step("classifier"),) if self.preset.features.kind == "trained" else ()

    def _frechet(self, pixels: Tensor) -> float:
        """Distance of 8-bit images to the real training images."""
        reference = standard.Statistics.load(self._get(self._reference()) / _REFERENCE)
        return standard.frechet_distance(_moments(self.embedding, pixels).statistics("images"), reference)

    def _agreement(self, pixels: Tensor, labels: Tensor | None) -> float:
        if labels is None or self.preset.features.kind == "standard":
            return float("nan")
        return metrics.label_agreement(data.to_float(pixels), labels, self.classifier)

    def _evaluation(self, config: str, seed: int, sampler: Sampler, advance: Callable[[int], Any] | None) -> Step:
        settings = self.preset.evaluation
        trained = () if config == TEACHER else (self._flow(config, seed),)
        inputs = {
            "flow": trained[0].key if trained else self._teacher_id,
            "sampler": asdict(sampler),
            "settings": settings.model_dump(exclude={"first_time"}),
            "held_out": self._pairs("held_out").key,
            "reference": self._reference().key,
            "code": code_digest(*_EVALUATION),
        }

        def count(images: int) -> None:
            if advance is not None:
                advance(images * sampler.nfe)

        def compute(folder: Path) -> None:
            flow, held_out = self.flow(config, seed), self.pairs("held_out")
            samples = self._draw(
                flow, sampler, folder / SAMPLES, n=settings.samples, seed=self._noise_seed, shard_size=_BATCH,
                advance=count,
            )  # fmt: skip
            reference = standard.Statistics.load(self._get(self._reference()) / _REFERENCE)
            embedding = self.embedding
            if not processes.is_main():  # nothing below may wait for the others
                return
            errors = []
            for rows in torch.arange(len(held_out)).split(_BATCH):
                x, z, labels = held_out.batch(rows)
                errors.append((sampler(flow, z, labels) - x).square().flatten(1).mean(dim=1))
                count(len(rows))
            everything = torch.arange(len(samples))
            pixels = samples.read(everything)["images"]
            labels = everything % self.classes if self.classes else None
            result = Evaluation(
                frechet=standard.frechet_distance(_moments(embedding, pixels).statistics("samples"), reference),
                agreement=self._agreement(pixels, labels),
                pair_error=float(torch.cat(errors).mean()),
            )
            (folder / _GRADES).write_text(json.dumps(asdict(result)))
            shutil.rmtree(folder / SAMPLES)  # gigabytes at the paper's size, and made again in minutes

        needs = (*trained, self._pairs("held_out"), self._reference())
        passes = (settings.samples + self.preset.pairs.held_out) * sampler.nfe
        return Step("evaluation", inputs, compute, f"grade {config}, seed {seed}, {sampler.nfe} NFE", needs, passes)

    def sweep(self, config: str, seeds: Sequence[int], wanted: Sequence[Sampler]) -> dict[Sampler, list[Evaluation]]:
        """Grade a configuration with several samplers: for each of them, one evaluation per seed."""
        one_of("config", config, FLOWS)
        steps = [self._evaluation(config, seed, sampler, None) for seed in seeds for sampler in wanted]
        if self.preset.features.kind == "standard" and not all(map(self._finished, steps)):
            _ = self.embedding  # if Inception cannot be had, better now than after days of training
        self.train([] if config == TEACHER else [config], seeds)
        self._get(self._reference())
        images = self.preset.evaluation.samples + self.preset.pairs.held_out
        total = len(seeds) * images * sum(sampler.nfe for sampler in wanted)
        found: dict[Sampler, list[Evaluation]] = {sampler: [] for sampler in wanted}
        with progress.bar(total=total, desc=f"evaluating {config}", unit="NFE", unit_scale=True) as bar:
            for number, seed in enumerate(seeds, start=1):
                for index, sampler in enumerate(found, start=1):
                    done = bar.n
                    place = f"seed {number} of {len(seeds)}, sampler {index} of {len(found)}"
                    bar.set_postfix_str(place, refresh=False)
                    artifact = self._get(self._evaluation(config, seed, sampler, bar.update))
                    found[sampler].append(Evaluation(**json.loads((artifact / _GRADES).read_text())))
                    bar.update(done + images * sampler.nfe - bar.n)  # all of it, had it been kept on disk
        return found

    def evaluate(
        self,
        config: str,
        seed: int = 0,
        *,
        nfe: int = 1,
        solver: str = "euler",
        update: str = "standard",
        inner: Sequence[float] | None = None,
    ) -> Evaluation:
        """Grade a flow with a sampler; arguments as for :meth:`sampler`."""
        sampler = self.sampler(nfe, solver, update, inner)
        return self.sweep(config, [seed], [sampler])[sampler][0]

    def references(self) -> dict[str, Evaluation]:
        """What can be hoped for, graded like samples: real held-out images, and as many of the teacher's as samples.

        The held-out images are all there are; fewer images make a larger distance.
        """
        held_out, made = self.data.held_out, self.pairs("train")
        rows = torch.arange(min(len(made), self.preset.evaluation.samples))
        _, _, labels = made.batch(rows)

        def grade(pixels: Tensor, wanted: Tensor | None) -> Evaluation:
            return Evaluation(self._frechet(pixels), self._agreement(pixels, wanted), float("nan"))

        known = held_out.labels if self.classes else None
        return {"real, held out": grade(held_out.pixels, known), "teacher": grade(made.read(rows)["images"], labels)}

    def grade(
        self,
        config: str,
        seed: int = 0,
        sampler: Sampler | None = None,
        *,
        n: int | None = None,
        reference: str | Path | None = None,
        reference_count: int | None = None,
        weights: str | Path | None = None,
    ) -> standard.Grades:
        """FID, inception score, precision and recall on Inception's features, with the protocol they follow.

        ``reference``: statistics of real images in EDM's ``.npz`` format, made here when ``None``: of the training
        images, of a folder or archive with the held-out ones. ``reference_count``: the images they are of, where the
        file does not say; ``weights``: Inception's, the preset's when ``None``. The ``n`` images are kept. Of several
        processes the first one grades.
        """
        sampler, n = sampler or self.sampler(), n or self.preset.evaluation.samples
        chosen = weights or self.preset.features.inception or standard.INCEPTION_URL
        extractor = standard.inception(chosen, processes.device())
        published = None if reference is None else standard.Statistics.load(reference, reference_count)
        flow = self.flow(config, seed)
        arguments = {"n": n, "seed": self._noise_seed, "shard_size": _BATCH}
        inputs = {
            "flow": self._teacher_id if config == TEACHER else self._flow(config, seed).key,
            "sampler": asdict(sampler),
            "code": code_digest(*_PAIRS, _THIS),
            **arguments,
        }
        needs = () if config == TEACHER else (self._flow(config, seed),)
        made = Step("samples", inputs, lambda place: self._draw(flow, sampler, place, **arguments), needs=needs)
        samples, real = PairDataset(self._get(made).folder), self.data.train.pixels
        weights_of = self._teacher_id if config == TEACHER else files.sha256(self.flow_file(config, seed))

        def work() -> standard.Grades:
            batches = (samples.read(rows)["images"] for rows in torch.arange(n).split(_BATCH))
            return standard.grade(
                batches, extractor, published or self._own_reference(extractor),
                reference_features=torch.cat([found for found, _ in standard.embed(real[:n], extractor)]),
                dataset=self.preset.data.name, flow_sha256=weights_of, nfe=sampler.nfe, solver=sampler.solver,
                update=sampler.update, first_time=sampler.first_time, inner=sampler.inner, seed=self._noise_seed,
            )  # fmt: skip

        return processes.by_main(work)

    def _own_reference(self, extractor: standard.Extractor) -> standard.Statistics:
        """Statistics of the images that published ones are of: of archives, all; else those of the training split."""
        parts = [self.data.train, *([self.data.held_out] if self.preset.data.name == "images" else [])]
        batches = (rows for part in parts for rows in part.pixels.split(_GRADED))
        moments = standard.Moments(extractor.num_features)
        for found, _ in standard.embed(batches, extractor):
            moments.add(found)
        name = f"{self.preset.data.name}-{extractor.sha256[:8] if extractor.sha256 else 'own'}.npz"
        folder = self.folder / "references"
        folder.mkdir(parents=True, exist_ok=True)
        return moments.statistics(name).save(folder / name)


@torch.no_grad()
def _moments(embedding: nn.Module, pixels: Tensor) -> standard.Moments:
    """Of the features of 8-bit images, a batch at a time."""
    moments = standard.Moments(int(embedding.num_features))  # type: ignore[arg-type]
    for rows in pixels.split(_GRADED):
        moments.add(embedding(data.to_float(rows)))
    return moments


def fingerprint(images: data.Images) -> str:
    """What stands for a set of images: its size, labels, and a thousand of the images."""
    rows = torch.linspace(0, len(images) - 1, min(len(images), 1000)).long()
    content = hashlib.sha256(images.labels.numpy().tobytes())
    content.update(images.pixels[rows].numpy().tobytes())
    return digest([len(images), list(images.shape), content.hexdigest()])


def compute_digest() -> str:
    """Hash of all code that results depend on; a claim's record of other code is shown as stale."""
    return code_digest(*_TRAINING, metrics, standard, intersections)
