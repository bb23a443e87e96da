"""How long training waits for batches, as a share of its steps: the goal is under 3 %.

Two measures: the time that the loop waits in the loader, which overlaps with the GPU's work and is an upper bound, and
how much longer steps take than with a batch that is always there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trainings
from provenance import Report, choice, parser
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rfpp import engine, training

GOAL = 0.03


class Timed(DataLoader[engine.Batch]):
    """A loader that notes how long each batch was waited for."""

    waits: list[float]

    def __iter__(self) -> Iterator[engine.Batch]:  # type: ignore[override]
        Timed.waits, batches = [], super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            Timed.waits.append(time.perf_counter() - start)
            yield batch


class Always(engine.Objective):
    """Another objective on its first batch for ever."""

    def __init__(self, objective: engine.Objective) -> None:
        self.objective, self.batch_size = objective, objective.batch_size
        self.first = objective.draw(0, range(objective.batch_size))

    def draw(self, step: int, rows: range) -> engine.Batch:
        return self.first

    def losses(self, model: nn.Module, *batch: Any) -> Tensor:
        return self.objective.losses(model, *batch)

    def times(self, *batch: Any) -> Tensor | None:
        return self.objective.times(*batch)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure a teacher's training, and flows with small and with large batches."""
    options = parser(__doc__)
    options.add_argument("--workers", type=int, help="processes that draw batches; the preset's number by default")
    options.add_argument("--steps", type=int, default=300, help="steps of each training; the first third is warm-up")
    choice(options, "trainings", ["teacher", "A", "F"])
    arguments = options.parse_args(argv)
    report, small = Report(__file__, arguments), arguments.small
    steps = 4 if small else arguments.steps
    warmup = steps // 3
    plan = trainings.plan(small, changes={"machinery.workers": 1} if small else None)
    machinery = plan.preset.machinery.model_copy(update={"log_every": steps})
    if arguments.workers is not None:
        machinery = machinery.model_copy(update={"workers": arguments.workers})
    recipe = plan.preset.teacher.train
    assert recipe is not None
    with tempfile.TemporaryDirectory() as folder:
        dataset = trainings.made_pairs(plan.teacher.untrained(), Path(folder), n=256 if small else 50_000)
        teacher = training.Denoising(plan.images.load().train, recipe.batch, 0, recipe.sigma_data, flip=recipe.flip)
        kinds: dict[str, Any] = {"teacher": lambda: (plan.teacher.untrained(), teacher)}
        kinds |= {config: lambda config=config: trainings.reflow(plan, config, dataset) for config in ("A", "F")}
        for name in arguments.trainings:
            torch._dynamo.reset()  # or sizes of batches seen before make this one's graph more general, and slower
            model, objective = kinds[name]()
            with patch("rfpp.engine.loop.DataLoader", Timed):
                clock, _, _ = trainings.fit(model, objective, steps, machinery)
            took, waited = clock.step(warmup), sum(Timed.waits[warmup:]) / (steps - warmup)
            none = machinery.model_copy(update={"workers": 0})
            clock, _, _ = trainings.fit(model, Always(objective), steps, none)
            longer = took / clock.step(warmup) - 1
            report.add(
                training=name, batch=objective.batch_size, workers=machinery.workers, goal=GOAL,
                **{
                    "seconds a step": took, "seconds waited": waited, "share waited": waited / took,
                    "longer than without drawing": longer, "reached": min(waited / took, longer) < GOAL,
                },
            )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    main()
