"""The training of the arena's contenders, and the samplers on uniform times."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rfpp import checkpoints, engine, training
from rfpp.arena import Method, average
from rfpp.base import processes, rng
from rfpp.engine import Optimisation
from rfpp.flow import T_MAX, RectifiedFlow, interpolate
from rfpp.pairs import PairDataset
from rfpp.pipeline.digests import presentation
from rfpp.pipeline.flows import MakePairs
from rfpp.pipeline.networks import MODEL, STATES, Weights, is_kept, keep
from rfpp.pipeline.sources import Given, Source
from rfpp.pipeline.steps import Cost, Run, Size, Step
from rfpp.samplers import generation_times


@dataclass(frozen=True)
class TrainGenerator(Step):
    """Train a contender: a ``method``, from the teacher's weights, on images or on the teacher's pairs."""

    teacher: Weights
    method: Method
    source: MakePairs | Source | Given
    batch_size: int
    optimisation: Optimisation
    dropout: float
    precision: str
    seed: int

    name: ClassVar[str] = "generator"
    code: ClassVar[tuple[Any, ...]] = (checkpoints.load,)

    @property
    @presentation
    def label(self) -> str:
        return self.method.summary

    @property
    @presentation
    def title(self) -> str:
        return f"train {self.label}, seed {self.seed}"

    @presentation
    def suited(self, run: Run) -> Run:
        """Return the run without compilation for a method with average velocities: no compiler takes their ``jvp``."""
        if not self.method.two_times:
            return run
        return replace(run, machinery=run.machinery.model_copy(update={"compile": False}))

    def compute(self, folder: Path, run: Run) -> None:
        if is_kept(folder):
            return
        teacher = self.teacher.load(run)
        if self.method.two_times:
            start: RectifiedFlow = average.initial(teacher, self.dropout, self.seed)
        else:
            start = training.initial_flow(teacher, "teacher", self.dropout, self.seed)
        frozen = RectifiedFlow(copy.deepcopy(teacher)).to(processes.device()).requires_grad_(False)
        source = (
            PairDataset(run.get(self.source).folder) if isinstance(self.source, MakePairs) else self.source.load().train
        )
        objective = self.method.objective(source, self.batch_size, self.seed, self.optimisation.steps, frozen)
        flow, history = engine.fit(
            start, objective, self.optimisation, seed=self.seed, desc=f"{self.title}{run.position}",
            machinery=run.machinery.model_copy(update={"precision": self.precision}), folder=folder / STATES,
            identity=self.inputs,
        )  # fmt: skip
        keep(folder, flow, history, run)

    def load(self, run: Run) -> RectifiedFlow:
        """Load the trained flow, in evaluation mode on the CPU."""
        flow = checkpoints.load(run.get(self) / MODEL)
        assert isinstance(flow, RectifiedFlow)
        return average.around(flow.denoiser).eval() if self.method.two_times else flow  # type: ignore[arg-type]

    @presentation
    def cost(self, size: Size) -> Cost:
        return Cost(trained=self.optimisation.steps * self.batch_size, stored=4 * size.parameters)


@dataclass(frozen=True)
class UniformSteps(ABC):
    """Sampling in ``nfe`` steps between uniform times from ``first_time`` down to 0, ``batch_size`` images at once.

    Raises ``ValueError`` if the times do not decrease.
    """

    nfe: int = 1
    first_time: float = T_MAX
    batch_size: int = field(default=500, compare=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.times  # raises errors

    @property
    def times(self) -> Tensor:
        """The grid from the first time down to 0, ``(nfe + 1,)``."""
        return generation_times(self.nfe, self.first_time)

    @abstractmethod
    def images(self, flow: Any, z: Tensor, labels: Tensor | None) -> Tensor:
        """Return images of one batch of noise ``z`` ``(B, ...)``, on the flow's device."""

    def __call__(self, flow: RectifiedFlow, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images of noise ``z`` ``(N, ...)``, computed in batches, on the device of ``z``."""
        place, images = next((parameter.device for parameter in flow.parameters()), z.device), []
        for rows in torch.arange(len(z)).split(self.batch_size):
            chosen = None if labels is None else labels[rows].to(place)
            images.append(self.images(flow, z[rows].to(place), chosen).to(z.device))
        return torch.cat(images)


@dataclass(frozen=True)
class Leaps(UniformSteps):
    """Sampling with average velocities, one leap per step."""

    def images(self, flow: Any, z: Tensor, labels: Tensor | None) -> Tensor:
        if not isinstance(flow, average.AverageFlow):
            raise ValueError(
                f"flow={type(flow).__name__} has no second time; rfpp.pipeline.sampling.Sampler samples it"
            )
        return average.leap(flow, z, self.times, labels)


@dataclass(frozen=True)
class Renoised(UniformSteps):
    """Sampling with predicted ends: each prediction is mixed with new noise for the next step.

    The new noise is the initial noise with its entries permuted and some signs flipped, so that an image depends only
    on its own initial noise. Signed permutations of standard normal noise are standard normal.
    """

    @torch.no_grad()
    def images(self, flow: Any, z: Tensor, labels: Tensor | None) -> Tensor:
        first, *later = self.times[:-1].tolist()
        x: Tensor = flow.x_prediction(first * z, first, labels)
        for number, t in enumerate(later):
            x = flow.x_prediction(interpolate(x, signed_permutation(z, number), t), t, labels)
        return x


def signed_permutation(z: Tensor, number: int) -> Tensor:
    """Permute the entries of each row of noise ``(N, ...)`` and flip random signs; ``number`` selects which."""
    generator, flat = rng.generator(number, "signed permutation"), z.flatten(1)
    order = torch.randperm(flat.shape[1], generator=generator)
    signs = 2.0 * torch.randint(2, (flat.shape[1],), generator=generator) - 1
    return (flat[:, order.to(z.device)] * signs.to(z)).reshape(z.shape)
