"""The steps from a teacher to trained flows: pairs of three kinds, and reflow on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file
from torch import Tensor, nn

from rfpp import checkpoints, engine, features, pairs, premetrics, training
from rfpp.base import files, processes, rng
from rfpp.engine import Optimisation
from rfpp.flow import RectifiedFlow
from rfpp.pairs import Mixture, PairDataset
from rfpp.pipeline.digests import presentation
from rfpp.pipeline.networks import MODEL, STATES, Weights, is_kept, keep, perceptual_distance
from rfpp.pipeline.sampling import Sampler, draw, labels_in_turn
from rfpp.pipeline.sources import Given, Source
from rfpp.pipeline.steps import Cost, Run, Size, Step
from rfpp.timesteps import TimestepDistribution

_SNAPSHOT = "samples-{}.safetensors"
_SHOWN, _SHOWN_AT = 16, (0, 0.03, 0.1, 0.3, 1)
_SHOWN_FROM = 0.999
"""The time at which one-step pictures of a training start; fixed, so that pictures depend only on the training."""


@dataclass(frozen=True)
class MakePairs(Step):
    """Make pairs of the 1-rectified flow with EDM's sampler and ``2 num_steps - 1`` evaluations (Algorithm 1)."""

    teacher: Weights
    n: int
    seed: int
    num_steps: int
    label: str = field(default="", compare=False)

    name: ClassVar[str] = "pairs"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load,)

    @property
    @presentation
    def title(self) -> str:
        return f"{self.n:,} pairs{self.label}"

    @property
    @presentation
    def parts(self) -> int:
        return math.ceil(self.n / pairs.SHARD_SIZE)

    def compute(self, folder: Path, run: Run) -> None:
        teacher = processes.place(copy.deepcopy(self.teacher.load(run)))
        pairs.generate(
            teacher, self.n, folder, seed=self.seed, num_steps=self.num_steps, batch_size=run.batch_size,
            device=processes.device(), only=run.part,
        )  # fmt: skip

    @presentation
    def cost(self, size: Size) -> Cost:
        return Cost(passes=self.n * (2 * self.num_steps - 1), stored=self.n * size.pixels)


@dataclass(frozen=True)
class InvertImages(Step):
    """Make configuration G's pairs: real training images, and the noise that the 1-rectified flow carries each to."""

    images: Source | Given
    teacher: Weights
    nfe: int
    seed: int

    name: ClassVar[str] = "inverted"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load,)

    @property
    @presentation
    def title(self) -> str:
        return "invert the real images, for G"

    @property
    @presentation
    def parts(self) -> int:
        return math.ceil(len(self.images.load().train) / pairs.SHARD_SIZE)

    def compute(self, folder: Path, run: Run) -> None:
        teacher = processes.place(copy.deepcopy(self.teacher.load(run)))
        real = self.images.load().train
        pairs.invert(
            RectifiedFlow(teacher), real.pixels, real.labels if teacher.label_dim else None, folder, nfe=self.nfe,
            seed=self.seed, batch_size=run.batch_size, device=processes.device(), only=run.part,
        )  # fmt: skip

    @presentation
    def cost(self, size: Size) -> Cost:
        stored = 5 * size.images * size.pixels  # the noise as floats in addition to the pixels
        return Cost(passes=size.images * self.nfe, stored=stored)


@dataclass(frozen=True)
class OwnPairs(Step):
    """Make pairs with a trained flow itself: the start of another round of reflow."""

    flow: TrainFlow
    sampler: Sampler
    n: int
    seed: int

    name: ClassVar[str] = "own_pairs"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load,)

    @property
    @presentation
    def title(self) -> str:
        return f"{self.n:,} pairs of a flow's own, seed {self.flow.seed}"

    @property
    @presentation
    def parts(self) -> int:
        return math.ceil(self.n / pairs.SHARD_SIZE)

    def compute(self, folder: Path, run: Run) -> None:
        flow = placed(self.flow.load(run))
        draw(flow, self.sampler, folder, n=self.n, seed=self.seed, batch_size=run.batch_size, only=run.part)

    @presentation
    def cost(self, size: Size) -> Cost:
        return Cost(passes=self.n * self.sampler.nfe, stored=self.n * size.pixels)


@dataclass(frozen=True)
class TrainFlow(Step):
    """Train a 2-rectified flow: reflow (Algorithm 1) on ``pairs`` from ``start``, with a timestep law and a premetric.

    ``start``: ``"random"``, ``"teacher"``, or the step of another flow; ``perceptual``: the weights of the premetric's
    perceptual distance, if it has one; ``real``: inverted images, from which a row comes with probability
    ``real_share`` (Section 4.4). ``label``: the name in progress bars.
    """

    teacher: Weights
    start: str | TrainFlow
    pairs: MakePairs | InvertImages | OwnPairs
    timesteps: TimestepDistribution
    premetric: Any
    perceptual: Weights | None
    batch_size: int
    optimisation: Optimisation
    dropout: float
    precision: str
    seed: int
    real: InvertImages | None = None
    real_share: float = 0.0
    label: Any = field(default="", compare=False)

    name: ClassVar[str] = "flow"
    code: ClassVar[tuple[Any, ...]] = (features.Classifier,)

    @property
    @presentation
    def title(self) -> str:
        return f"train {self.label}, seed {self.seed}"

    def _initial(self, run: Run) -> RectifiedFlow:
        if isinstance(self.start, TrainFlow):
            return self.start.load(run)
        return training.initial_flow(self.teacher.load(run), self.start, self.dropout, self.seed)

    def _pairs(self, run: Run) -> PairDataset | Mixture:
        trained_on = PairDataset(run.get(self.pairs).folder)
        if self.real is None:
            return trained_on
        return Mixture(trained_on, PairDataset(run.get(self.real).folder), self.real_share)

    def compute(self, folder: Path, run: Run) -> None:
        if is_kept(folder):
            return
        weights = self.perceptual
        premetric = premetrics.bind(
            self.premetric, lambda: perceptual_distance(weights.load(run) if weights else nn.Identity())
        )
        trained_on = self._pairs(run)
        objective = training.Reflow(trained_on, self.timesteps, premetric, self.batch_size, self.seed)
        pictures = _Pictures(trained_on.shape, trained_on.classes)
        flow, history = engine.fit(
            self._initial(run), objective, self.optimisation, seed=self.seed, desc=f"{self.title}{run.position}",
            machinery=run.machinery.model_copy(update={"precision": self.precision}), folder=folder / STATES,
            identity=self.inputs, on_step=pictures.writer(folder, self.optimisation.steps), pictures=pictures,
        )  # fmt: skip
        keep(folder, flow, history, run)

    def load(self, run: Run) -> RectifiedFlow:
        """Load the trained flow, in evaluation mode on the CPU."""
        flow = checkpoints.load(run.get(self) / MODEL)
        assert isinstance(flow, RectifiedFlow)
        return flow

    @presentation
    def cost(self, size: Size) -> Cost:
        images = self.optimisation.steps * self.batch_size
        return Cost(trained=images, with_lpips=self.perceptual is not None, stored=4 * size.parameters)


def placed(flow: RectifiedFlow) -> RectifiedFlow:
    """Return a flow whose network is on this process's device."""
    assert isinstance(flow.denoiser, nn.Module)
    processes.place(flow.denoiser)
    return flow


class _Pictures:
    """One-step samples from the same noise at a few steps of a training, at growing distances."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.z = pairs.noise(rng.derive(0, "snapshots"), range(_SHOWN), shape)
        self.labels = labels_in_turn(_SHOWN, classes)

    def __call__(self, average: nn.Module) -> Tensor:
        assert isinstance(average, RectifiedFlow)
        return Sampler(1, first_time=_SHOWN_FROM)(average.eval(), self.z, self.labels)

    def writer(self, folder: Path, steps: int) -> Callable[[int, nn.Module], None]:
        """Return a function to call after each training step, which writes pictures at some steps."""
        shown = {max(1, round(steps * part)) for part in _SHOWN_AT}

        def look(step: int, average: nn.Module) -> None:
            if step in shown:
                files.write_tensors(folder / _SNAPSHOT.format(step), {"samples": self(average)})

        return look


def snapshots(folder: Path) -> dict[int, Tensor]:
    """Return the one-step samples ``(16, C, H, W)`` of a training, by the step at which they were taken."""
    found = {
        int(path.stem.partition("-")[2]): load_file(path)["samples"] for path in folder.glob(_SNAPSHOT.format("*"))
    }
    return dict(sorted(found.items()))
