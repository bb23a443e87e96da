"""What the scripts train when nothing is here yet: networks of the right size, on pairs that no teacher made.

Weights and pixels do not matter to what is measured; shapes, types and the path through the library do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rfpp import engine, pairs, premetrics, presets, training
from rfpp.base import processes
from rfpp.configurations import find
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import costs
from rfpp.pipeline.networks import perceptual_distance
from rfpp.pipeline.plan import Plan

NETWORK = {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [16], "dropout": 0.1}
SMALL = {
    "teacher.train.network": NETWORK, "teacher.train.batch": 8, "features.train.widths": [4, 8],
    "training.small_batch": 2, "training.large_batch": 4, "machinery.compile": False,
}  # fmt: skip
"""Settings with which a CPU takes steps of the ``cifar10`` preset in no time; precision, layout and workers stay."""

Model = TypeVar("Model", bound=nn.Module)


def plan(small: bool, name: str = "cifar10", changes: dict[str, Any] | None = None) -> Plan:
    """A preset's plan, for blank images where its own are not here."""
    preset = presets.load(name, {**(SMALL if small else {}), **(changes or {})})
    return Plan(preset, costs.expected(preset))


def made_pairs(denoiser: EDMPrecond, folder: Path, n: int = 2048) -> pairs.PairDataset:
    """Pairs whose images are their noise, a little fainter, in the shape and with the classes of a denoiser."""

    def faint(z: Tensor, labels: Tensor | None) -> Tensor:
        return z / 3

    return pairs.PairDataset(pairs.generate(denoiser, n, folder / "pairs", sampler=faint))


def livened(model: Model) -> Model:
    """The model with all weights moved a little: layers that start at nought hide what the others do."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.02)
    return model


def reflow(
    plan: Plan, config: str, dataset: pairs.PairDataset, dropout: float | None = None
) -> tuple[RectifiedFlow, training.Reflow]:
    """What a configuration trains at a plan's preset, whose networks nobody has trained."""
    configuration = find(config)
    dropout = plan.preset.training.dropout if dropout is None else dropout
    flow = training.initial_flow(plan.teacher.untrained(), "teacher", dropout, seed=0)
    premetric = premetrics.bind(configuration.premetric, lambda: perceptual_distance(plan.perceptual.untrained()))
    batch = plan.batch_size(configuration)
    return livened(flow), training.Reflow(dataset, configuration.timesteps, premetric, batch, seed=0)


class Clock:
    """Notes when each step of a training ends, for ``on_step``: on the GPU's clock, without making anything wait."""

    def __init__(self) -> None:
        self.marks: list[Any] = [self._now()]

    def __call__(self, step: int, average: nn.Module) -> None:
        self.marks.append(self._now())

    @staticmethod
    def _now() -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def seconds(self, first: int, last: int) -> float:
        """From the end of step ``first`` to that of step ``last``; step 0 ends where the clock was made."""
        start, end = self.marks[first], self.marks[last]
        if isinstance(start, float):
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def step(self, warmup: int) -> float:
        """Seconds of a step, the mean of all that follow ``warmup`` steps."""
        last = len(self.marks) - 1
        return self.seconds(warmup, last) / (last - warmup)


def fit(
    flow: nn.Module, objective: engine.Objective, steps: int, machinery: engine.Machinery, **options: Any
) -> tuple[Clock, nn.Module, engine.History]:
    """Train, with a clock, as the library trains: Adam, moving average, loader and all."""
    clock = Clock()
    average, history = engine.fit(
        flow, objective, engine.Optimisation(steps, 1e-4), machinery=machinery, on_step=clock, **options
    )
    return clock, average, history


def rate(work: Callable[[], object], repeats: int) -> float:
    """Seconds of a call, the mean of ``repeats`` after one to warm up."""
    work()
    clock = Clock()
    for _ in range(repeats):
        work()
    clock(repeats, nn.Identity())
    return clock.seconds(0, 1) / repeats


def on_gpu() -> bool:
    """Whether work is on a GPU."""
    return processes.device().type == "cuda"
