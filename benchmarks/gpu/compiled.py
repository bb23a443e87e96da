"""Compiled trainings beside plain ones: with and without dropout, with and without LPIPS.

Do they run, in how many pieces, how long until the first step, how much faster afterwards; do losses agree; and does a
seed draw the same activations for dropout again, another seed others.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trainings
from provenance import Report, choice, parser
from torch._dynamo.utils import counters

from rfpp.pairs import PairDataset
from rfpp.pipeline.plan import Plan


def losses(
    plan: Plan, dataset: PairDataset, config: str, dropout: float, steps: int, compiled: bool, seed: int = 0
) -> tuple[torch.Tensor, trainings.Clock]:
    """The loss of each step ``(steps,)``; ``seed`` is that of dropout alone."""
    flow, objective = trainings.reflow(plan, config, dataset, dropout)
    machinery = plan.preset.machinery.model_copy(update={"compile": compiled, "log_every": 1})
    clock, _, history = trainings.fit(flow, objective, steps, machinery, seed=seed)
    return torch.tensor(history.losses), clock


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest relative difference."""
    return float(((a - b).abs() / b.abs()).max())


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compare D and F, whose losses lack and have LPIPS."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=40, help="steps of each training")
    choice(options, "configs", ["D", "F"])
    arguments = options.parse_args(argv)
    report, small = Report(__file__, arguments), arguments.small
    steps = 3 if small else arguments.steps
    warmup = steps // 4 + 1
    plan = trainings.plan(small, changes={"machinery.workers": 0} if small else None)
    # Traced all the same, but no C++ is compiled.
    traced = patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")) if small else nullcontext()
    with traced, tempfile.TemporaryDirectory() as folder:
        dataset = trainings.made_pairs(plan.teacher.untrained(), Path(folder))
        for config in arguments.configs[-1:] if small else arguments.configs:
            for dropout in (0.0, 0.1):
                plain, slow = losses(plan, dataset, config, dropout, steps, compiled=False)
                torch._dynamo.reset()
                counters.clear()
                found, fast = losses(plan, dataset, config, dropout, steps, compiled=True)
                graphs, breaks = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
                again, _ = losses(plan, dataset, config, dropout, steps, compiled=True)
                other, _ = losses(plan, dataset, config, dropout, steps, compiled=True, seed=1)
                report.add(
                    config=config, LPIPS=config == "F", dropout=dropout, precision=plan.preset.machinery.precision,
                    **{
                        "graphs": graphs, "breaks": breaks, "seconds to the first step": fast.seconds(0, 1),
                        "seconds a step": fast.step(warmup), "plain seconds a step": slow.step(warmup),
                        "speed-up": slow.step(warmup) / fast.step(warmup), "from plain": apart(found, plain),
                        "same seed again": apart(again, found), "another seed": apart(other, found),
                        "finite": bool(found.isfinite().all()),
                    },
                )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    main()
