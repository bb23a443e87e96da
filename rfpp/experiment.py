"""The whole path at one scale: data, teacher, pairs, trained flows, evaluations, each kept on disk once finished.

Notebooks and the command line ask an :class:`Experiment` for what they need; it finds the finished step or computes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    features,
    files,
    intersections,
    metrics,
    networks,
    pairs,
    paths,
    premetrics,
    presets,
    progress,
    rng,
    samplers,
    shipped,
    timesteps,
    training,
)
from rfpp import flow as flows
from rfpp.artifacts import Artifact, Store, code_digest
from rfpp.checks import at_least, one_of
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset

_MODELS = (networks, denoisers, flows)
_PAIRS = (*_MODELS, samplers, pairs, data, rng)
_THIS = sys.modules[__name__]  # how a training or an evaluation is put together stands here
_TRAINING = (*_PAIRS, training, timesteps, premetrics, features, _THIS)
_EVALUATION = (*_PAIRS, metrics, features, _THIS)

TEACHER = "teacher"
"""Stands where a configuration's letter does: the 1-rectified flow, which is the teacher itself (Proposition 1)."""

_SHOWN, _SNAPSHOTS = 16, "snapshots.safetensors"

FLOWS = (*training.ALL, TEACHER)


@dataclass(frozen=True)
class Evaluation:
    """One flow with one sampler. ``frechet``: distance of samples to the training images in classifier features;
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
        advance: Callable[[int], Any] | None = None,
        batch_size: int = 500,
    ) -> Tensor:
        """Samples from noise ``z`` ``(N, ...)`` in batches, each reported to ``advance`` in evaluations."""
        images = []
        for rows in torch.arange(len(z)).split(batch_size):
            chosen = None if labels is None else labels[rows]
            images.append(samplers.sample(flow, z[rows], self.nfe, self.solver, self.update, self.times, chosen))
            if advance is not None:
                advance(len(rows) * self.nfe)
        return torch.cat(images)


class Experiment:
    """Everything a notebook asks for, at the scale of a preset.

    ``preset``: a name, a YAML file or a :class:`rfpp.presets.Preset`; ``overrides``: settings to replace, such as
    ``{"training.steps": 800}``; ``runs``: the folder of results, ``runs/`` in the checkout by default.
    Raises :class:`rfpp.presets.PresetError` before any work when one of them does not fit.
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

    def _get(self, step: str, inputs: Mapping[str, Any], compute: Any, resumable: bool = False) -> Artifact:
        artifact = self.store.get(step, inputs, compute, resumable=resumable)
        self.used[f"{step}/{artifact.key}"] = artifact
        return artifact

    @cached_property
    def data(self) -> data.Dataset:
        """The dataset."""
        return data.load(self.preset.data.name)

    @cached_property
    def teacher(self) -> EDMPrecond:
        """The denoiser that makes the pairs."""
        teacher: EDMPrecond = shipped.load(self.preset.teacher.name)
        return teacher

    @property
    def classifier(self) -> features.DigitNet:
        """The network that grades samples; the loss never sees it."""
        classifier: features.DigitNet = shipped.load("digits-classifier")
        return classifier

    @cached_property
    def perceptual(self) -> nn.Module:
        """LPIPS on the second digit network, which the loss uses and the grades do not."""
        return features.DigitLPIPS(shipped.load("digits-perceptual"))

    def _pairs(self, split: str) -> Artifact:
        one_of("split", split, ("train", "held_out"))
        settings = self.preset.pairs
        arguments = {
            "n": getattr(settings, split),
            "seed": rng.derive(settings.seed, split),
            "num_steps": settings.num_steps,
        }
        inputs = {**arguments, "teacher": shipped.sha256(self.preset.teacher.name), "code": code_digest(*_PAIRS)}
        return self._get(
            "pairs",
            inputs,
            lambda folder: pairs.generate(self.teacher, out_dir=folder, batch_size=settings.batch_size, **arguments),
            resumable=True,
        )

    @lru_cache(maxsize=2)  # noqa: B019 (an experiment lives as long as its notebook)
    def pairs(self, split: str = "train") -> PairDataset:
        """Pairs ``(x, z, label)`` of the 1-rectified flow, ``"train"`` or ``"held_out"``."""
        return PairDataset(self._pairs(split).folder)

    def _inverted(self) -> Artifact:
        settings = self.preset.real_data
        arguments: dict[str, Any] = {"nfe": settings.nfe, "seed": rng.derive(settings.seed, "inversion")}
        inputs = {
            **arguments,
            "data": self.preset.data.model_dump(),
            "teacher": shipped.sha256(self.preset.teacher.name),
            "code": code_digest(*_PAIRS),
        }
        images = self.data.train
        return self._get(
            "inverted",
            inputs,
            lambda folder: pairs.invert(
                RectifiedFlow(self.teacher), images.pixels, images.labels, folder, batch_size=500, **arguments
            ),
            resumable=True,
        )

    def inverted(self) -> PairDataset:
        """Configuration G's pairs: real training images, and the noise that the 1-rectified flow carries each to."""
        return PairDataset(self._inverted().folder)

    def _own_pairs(self, config: str, seed: int) -> Artifact:
        """Pairs that a trained flow makes itself: the start of another round of reflow."""
        settings, batch_size = self.preset.third_round, self.preset.pairs.batch_size
        sampler = self.sampler(settings.nfe)  # on its own times: EDM's noise levels hardly touch the middle of a flow
        arguments: dict[str, Any] = {"n": settings.pairs, "seed": rng.derive(seed, "third")}
        inputs = {
            **arguments,
            "sampler": asdict(sampler),
            "flow": self._flow(config, seed).key,
            "code": code_digest(*_PAIRS, _THIS),
        }

        def compute(folder: Path) -> None:
            flow = self.flow(config, seed)

            def draw(z: Tensor, labels: Tensor | None) -> Tensor:
                return sampler(flow, z, labels)

            pairs.generate(flow.denoiser, out_dir=folder, batch_size=batch_size, sampler=draw, **arguments)

        return self._get("own_pairs", inputs, compute, resumable=True)

    def _pairs_of(self, configuration: training.Configuration, seed: int) -> Artifact:
        if configuration.pairs == "real":
            return self._inverted()
        return self._own_pairs(configuration.start, seed) if configuration.pairs == "own" else self._pairs("train")

    def _flow(self, config: str, seed: int, position: str = "") -> Artifact:
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
            "seed": seed,
            "pairs": self._pairs_of(configuration, seed).key,
            "teacher": shipped.sha256(self.preset.teacher.name),
            "start": self._flow(configuration.start, seed).key if configuration.start in training.ALL else None,
            "perceptual": shipped.sha256("digits-perceptual") if perceptual else None,
            "code": code_digest(*_TRAINING),
        }

        def compute(folder: Path) -> None:
            times = (
                timesteps.UShaped(settings.u_shape) if configuration.timesteps == "u_shaped" else timesteps.Uniform()
            )
            premetric = premetrics.build(configuration.premetric, self.perceptual if perceptual else None)
            trained_on = PairDataset(self._pairs_of(configuration, seed).folder)
            objective = training.reflow(trained_on, times, premetric, batch_size, seed)
            snapshots: dict[str, Tensor] = {}
            z, labels = self.noise(_SHOWN)

            def look(step: int, average: nn.Module) -> None:
                """Samples of the averaged model at a few steps, further and further apart."""
                if step in {max(1, round(settings.steps * part)) for part in (0, 0.03, 0.1, 0.3, 1)}:
                    assert isinstance(average, RectifiedFlow)
                    snapshots[str(step)] = self.sampler(1)(average.eval(), z, labels)

            if configuration.start in training.ALL:
                start = self.flow(configuration.start, seed)
            else:
                start = training.initial_flow(self.teacher, configuration, settings.dropout, seed)
            flow, history = training.fit(
                start,
                objective,
                settings.steps,
                lr=settings.lr,
                warmup=settings.warmup,
                ema=settings.ema,
                seed=seed,
                desc=f"training {config}, seed {seed}{position}",
                on_step=look,
            )
            files.write_tensors(folder / _SNAPSHOTS, snapshots)
            checkpoints.save(flow, folder / "flow.safetensors")
            (folder / "history.json").write_text(json.dumps(asdict(history)))

        return self._get("flow", inputs, compute)

    def train(self, configs: Iterable[str], seeds: Sequence[int] | None = None) -> None:
        """Train what is missing of ``configs`` times ``seeds``, seed by seed, with a bar that counts them."""
        configs = list(configs)
        for config in configs:
            one_of("config", config, training.ALL)
        wanted = [(config, seed) for seed in seeds or self.preset.seeds for config in configs]
        for number, (config, seed) in enumerate(wanted, start=1):
            self._flow(config, seed, f" ({number} of {len(wanted)})")

    def flow_file(self, config: str, seed: int = 0) -> Path:
        """The file of a trained flow, readable with :func:`rfpp.checkpoints.load`."""
        return self._flow(config, seed) / "flow.safetensors"

    def flow(self, config: str, seed: int = 0) -> RectifiedFlow:
        """The trained flow of a configuration in ``rfpp.training.ALL``; ``"teacher"``: the 1-rectified flow."""
        one_of("config", config, FLOWS)
        if config == TEACHER:
            return RectifiedFlow(self.teacher)
        flow = checkpoints.load(self.flow_file(config, seed))
        assert isinstance(flow, RectifiedFlow)
        return flow

    def history(self, config: str, seed: int = 0) -> training.History:
        """The loss curve of a trained flow."""
        return training.History(**json.loads((self._flow(config, seed) / "history.json").read_text()))

    def snapshots(self, config: str, seed: int = 0) -> dict[int, Tensor]:
        """One-step samples from the same noise, by the training step they were taken at."""
        found = load_file(self._flow(config, seed) / _SNAPSHOTS)
        return {step: found[str(step)] for step in sorted(map(int, found))}

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

    def noise(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The evaluation's noise ``(n, C, H, W)`` and labels ``(n,)``, all classes in turn; the same for every flow."""
        n = n or self.preset.evaluation.samples
        labels = torch.arange(n) % self.data.classes
        return pairs.noise(
            rng.derive(self.preset.evaluation.seed, "evaluation"), range(n), self.data.train.shape
        ), labels

    def _evaluation(self, config: str, seed: int, sampler: Sampler, advance: Callable[[int], Any]) -> Evaluation:
        inputs = {
            "flow": shipped.sha256(self.preset.teacher.name) if config == TEACHER else self._flow(config, seed).key,
            "sampler": asdict(sampler),
            "settings": self.preset.evaluation.model_dump(exclude={"first_time"}),
            "held_out": self._pairs("held_out").key,
            "classifier": shipped.sha256("digits-classifier"),
            "code": code_digest(*_EVALUATION),
        }

        def compute(folder: Path) -> None:
            flow, held_out = self.flow(config, seed), self.pairs("held_out")
            x, z, labels = held_out.batch(torch.arange(len(held_out)))
            noise, wanted = self.noise()
            error = sampler(flow, z, labels, advance) - x
            images = sampler(flow, noise, wanted, advance)
            result = Evaluation(
                frechet=metrics.frechet_distance(self.data.train.floats(), images, features.Embedding(self.classifier)),
                agreement=metrics.label_agreement(images, wanted, self.classifier),
                pair_error=float(error.square().mean()),
            )
            (folder / "evaluation.json").write_text(json.dumps(asdict(result)))

        return Evaluation(**json.loads((self._get("evaluation", inputs, compute) / "evaluation.json").read_text()))

    def sweep(self, config: str, seeds: Sequence[int], wanted: Sequence[Sampler]) -> dict[Sampler, list[Evaluation]]:
        """Grade a configuration with several samplers: for each of them, one evaluation per seed."""
        one_of("config", config, FLOWS)
        self.train([] if config == TEACHER else [config], seeds)
        images = self.preset.evaluation.samples + self.preset.pairs.held_out
        total = len(seeds) * images * sum(sampler.nfe for sampler in wanted)
        found: dict[Sampler, list[Evaluation]] = {sampler: [] for sampler in wanted}
        with progress.bar(total=total, desc=f"evaluating {config}", unit="NFE", unit_scale=True) as bar:
            for number, seed in enumerate(seeds, start=1):
                for index, sampler in enumerate(found, start=1):
                    done = bar.n
                    place = f"seed {number} of {len(seeds)}, sampler {index} of {len(found)}"
                    bar.set_postfix_str(place, refresh=False)
                    found[sampler].append(self._evaluation(config, seed, sampler, bar.update))
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
        x, _, labels = made.batch(torch.arange(min(len(made), self.preset.evaluation.samples)))
        embedding, train = features.Embedding(self.classifier), self.data.train.floats()

        def grade(images: Tensor, wanted: Tensor) -> Evaluation:
            distance = metrics.frechet_distance(train, images, embedding)
            return Evaluation(distance, metrics.label_agreement(images, wanted, self.classifier), float("nan"))

        assert labels is not None
        return {"real, held out": grade(held_out.floats(), held_out.labels), "teacher": grade(x, labels)}


def compute_digest() -> str:
    """Hash of all code that results depend on; a claim's record of other code is shown as stale."""
    return code_digest(*_TRAINING, metrics, intersections)
