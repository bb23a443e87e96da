"""The networks that everything starts from: the teacher, and the networks in which images are compared.

Each is a value that represents its weights in keys and loads them when they are needed: a shipped network, a published
one, or a step that trains it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from rfpp import checkpoints, engine, features, metrics, networks, training
from rfpp.base import downloads, files, processes, rng
from rfpp.denoisers import EDMPrecond
from rfpp.engine import Optimisation
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import shipped
from rfpp.pipeline.digests import code_digest, presentation
from rfpp.pipeline.sources import Given, Source
from rfpp.pipeline.steps import Cost, Run, Size, Step
from rfpp.presets import FeatureRecipe, PresetError, TeacherRecipe

MODEL, HISTORY, STATES = "model.safetensors", "history.json", "states"
FEATURES = ("classifier", "perceptual")


class Weights(Protocol):
    """A value that represents a network's weights."""

    def identity(self) -> Any:
        """Return the identity of the weights in keys."""

    def load(self, run: Run) -> Any:
        """Load the network, in evaluation mode on the CPU; callers share it and must not change it."""

    def untrained(self) -> Any:
        """Return a network of the same size, for timing; one that is trained here keeps its initial weights."""


@dataclass(frozen=True)
class Shipped:
    """A network that comes with the package."""

    name: str

    def identity(self) -> Any:
        return [shipped.sha256(self.name), code_digest(Shipped)]

    def load(self, run: Run) -> Any:
        return shipped.load(self.name)

    def untrained(self) -> Any:
        return shipped.load(self.name)


@lru_cache(maxsize=2)
def _published(file: str, sha256: str | None, content: str) -> Any:
    """Load a model; ``content`` tells a file from one that replaces it."""
    model = checkpoints.load_any(file, sha256)
    return model.denoiser if isinstance(model, RectifiedFlow) else model


def _content(place: str) -> str:
    """Return a hash of a file or a folder; a URL stands for itself."""
    local = Path(place).expanduser()
    return files.content(local) if local.exists() else place


@dataclass(frozen=True)
class Published:
    """A denoiser from a file or URL: EDM's pickle, a file of ours, or a diffusers model."""

    file: str
    sha256: str | None = None

    def identity(self) -> Any:
        return [self.sha256 or _content(self.file), code_digest(Published)]

    def load(self, run: Run) -> Any:
        return self.untrained()

    def untrained(self) -> Any:
        return _published(self.file, self.sha256, self.sha256 or _content(self.file))


def _checksum(file: str | None, url: str, sha256: str) -> str:
    """Return the checksum of published weights, or of the local file that replaces them."""
    if file is None or downloads.is_address(file):
        return sha256
    return _content(str(downloads.weights(file, url, sha256)))


@dataclass(frozen=True)
class VGG:
    """VGG-16, the trunk of the paper's LPIPS; ``file``: a path or a mirror."""

    file: str | None = None

    def identity(self) -> Any:
        return [_checksum(self.file, features.VGG_URL, features.VGG_SHA256), code_digest(VGG)]

    def load(self, run: Run) -> Any:
        return self.untrained()

    def untrained(self) -> Any:
        return features.vgg_lpips(self.file or features.VGG_URL)


@dataclass(frozen=True)
class Inception:
    """Inception-v3, whose features published FIDs use; ``file``: a path or a mirror."""

    file: str | None = None

    def identity(self) -> Any:
        return [_checksum(self.file, metrics.INCEPTION_URL, metrics.INCEPTION_SHA256), code_digest(Inception)]

    def load(self, run: Run) -> Any:
        return self.untrained()

    def untrained(self) -> Any:
        return metrics.inception(self.file or metrics.INCEPTION_URL)


def perceptual_distance(network: nn.Module) -> nn.Module:
    """Return LPIPS on a network of :class:`Weights`, on this process's device."""
    if isinstance(network, features.Classifier):
        network = features.FeatureLPIPS(copy.deepcopy(network))
    return processes.place(network)


def embedding(network: nn.Module) -> nn.Module:
    """Return the grading features of images in [-1, 1] as a module, ``(B, num_features)``, on this process's device."""
    if isinstance(network, features.Classifier):
        return processes.place(features.Embedding(copy.deepcopy(network)))
    return processes.place(features.EightBit(network))


# Training


def is_kept(folder: Path) -> bool:
    """Whether training had finished when the run was killed; its checkpoints may already be deleted then."""
    return bool(processes.from_main(all((folder / name).is_file() for name in (MODEL, HISTORY))))


def keep(folder: Path, model: nn.Module, history: engine.History, run: Run) -> None:
    """Write the results of a training, the history last, and delete files that are no longer needed."""
    if processes.is_main():
        checkpoints.save(model, folder / MODEL)
        files.write_text(folder / HISTORY, json.dumps(asdict(history)))
        engine.Checkpoints(folder / STATES, keep_every=run.machinery.keep_every).clear()


def _optimisation(recipe: TeacherRecipe | FeatureRecipe) -> Optimisation:
    return Optimisation(recipe.steps, recipe.lr, recipe.warmup, decay=True, ema=recipe.ema)


def _fit(step: TrainTeacher | TrainFeatures, model: nn.Module, objective: Any, folder: Path, run: Run) -> None:
    """Train a network by the recipe of its step, and keep it."""
    trained, history = engine.fit(
        model, objective, _optimisation(step.recipe), seed=objective.seed,
        machinery=run.machinery.model_copy(update={"precision": step.precision}), folder=folder / STATES,
        desc=step.title,
    )  # fmt: skip
    keep(folder, trained, history, run)


@dataclass(frozen=True)
class TrainTeacher(Step):
    """Train a denoiser on the images, as EDM does."""

    images: Source | Given
    recipe: TeacherRecipe
    precision: str

    name: ClassVar[str] = "teacher"
    code: ClassVar[tuple[Any, ...]] = (networks.SongUNet, EDMPrecond)

    @property
    @presentation
    def title(self) -> str:
        return "train the teacher"

    def untrained(self) -> EDMPrecond:
        """Return the teacher before its training; raises :class:`rfpp.presets.PresetError` for invalid arguments."""
        dataset = self.images.load()
        channels, _, size = dataset.train.shape
        shape = {"img_resolution": size, "in_channels": channels, "out_channels": channels}
        config = {**shape, "label_dim": dataset.classes, **self.recipe.network}
        try:
            network = networks.SongUNet(**config, generator=rng.generator(self.recipe.seed, "initialisation"))
        except (TypeError, ValueError, RuntimeError) as error:
            raise PresetError(f"teacher.train.network does not describe a network: {error}") from error
        return EDMPrecond(network, self.recipe.sigma_data)

    def compute(self, folder: Path, run: Run) -> None:
        if is_kept(folder):
            return
        recipe = self.recipe
        objective = training.Denoising(
            self.images.load().train, recipe.batch, recipe.seed, recipe.sigma_data, recipe.log_mean, recipe.log_std,
            recipe.flip,
        )  # fmt: skip
        _fit(self, self.untrained(), objective, folder, run)

    def load(self, run: Run) -> Any:
        """Load the trained teacher."""
        return checkpoints.load(run.get(self) / MODEL)

    @presentation
    def cost(self, size: Size) -> Cost:
        return Cost(trained=self.recipe.steps * self.recipe.batch, stored=4 * size.parameters)


@dataclass(frozen=True)
class TrainFeatures(Step):
    """Train a small classifier of the images. The ``"classifier"`` grades samples; the ``"perceptual"`` one, three
    quarters as wide and with another activation, is the trunk of LPIPS."""

    images: Source | Given
    recipe: FeatureRecipe
    kind: str
    precision: str

    name: ClassVar[str] = "features"
    code: ClassVar[tuple[Any, ...]] = (features.Classifier,)

    @property
    @presentation
    def title(self) -> str:
        return f"train the {self.kind} network"

    @property
    def seed(self) -> int:
        """The seed, which differs between the two classifiers."""
        return self.recipe.seed + FEATURES.index(self.kind)

    def untrained(self) -> features.Classifier:
        """Return the untrained network; raises :class:`rfpp.presets.PresetError` for images without classes."""
        dataset = self.images.load()
        if not dataset.classes:
            raise PresetError(
                "features.kind='trained' needs images with classes, and these have none; choose 'standard'"
            )
        wide, activation = {"classifier": (1.0, "relu"), "perceptual": (0.75, "silu")}[self.kind]
        widths = [max(1, round(wide * width)) for width in self.recipe.widths]
        channels = dataset.train.shape[0]
        return features.Classifier(widths, activation, dataset.classes, self.recipe.dropout, self.seed, channels)

    def compute(self, folder: Path, run: Run) -> None:
        if is_kept(folder):
            return
        recipe = self.recipe
        objective = training.Classification(
            self.images.load().train, recipe.batch, self.seed, recipe.shift, recipe.noise, recipe.flip
        )
        _fit(self, self.untrained(), objective, folder, run)

    def load(self, run: Run) -> Any:
        """Load the trained network."""
        return checkpoints.load(run.get(self) / MODEL)


def history(folder: Path) -> engine.History:
    """Load the loss curve that :func:`keep` wrote."""
    content: Mapping[str, Any] = json.loads((folder / HISTORY).read_text())
    return engine.History(**content)
