"""Whether a training that was stopped and went on ends where one does that was not: bit for bit, or how far apart.

Two uninterrupted runs give the floor: what differs between them is the GPU's order of sums, and no fault of resuming.
Each run has a process of its own, as in life; --small takes one for all. Weights, average and Adam's moments count.
"""

from __future__ import annotations

import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import trainings
from provenance import Report, choice, parser
from torch import nn

from rfpp import engine
from rfpp.base.processes import Stopped

CASES = {
    "bf16-compiled": ("bf16", True, False),
    "bf16-compiled-deterministic": ("bf16", True, True),
    "bf16": ("bf16", False, False),
    "bf16-deterministic": ("bf16", False, True),
    "fp32-deterministic": ("fp32", False, True),
}
"""Precision, whether the flow is compiled, whether kernels are deterministic."""


def train(
    folder: Path, config: str, steps: int, small: bool, changes: dict[str, Any], deterministic: bool, stop: int = 0
) -> str:
    """Train a configuration with checkpoints in ``folder``, until a signal comes at step ``stop``; how that ended."""
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when the GPU is first used
    torch.use_deterministic_algorithms(deterministic)
    plan = trainings.plan(small)
    machinery = plan.preset.machinery.model_copy(update={"workers": 0, "save_every": steps, **changes})
    dataset = trainings.made_pairs(plan.teacher.untrained(), folder.parent)
    flow, objective = trainings.reflow(plan, config, dataset)

    def signalled(step: int, average: nn.Module) -> None:
        if step == stop:
            signal.raise_signal(signal.SIGTERM)

    try:
        engine.fit(
            flow, objective, engine.Optimisation(steps, 1e-4), machinery=machinery, folder=folder, on_step=signalled
        )
        return "finished"
    except Stopped:
        return "stopped"
    except RuntimeError as error:  # an operation without a deterministic kernel says so
        return f"failed: {error}".partition("\n")[0]
    finally:
        torch.use_deterministic_algorithms(False)


def in_its_own(*arguments: Any) -> str:
    """:func:`train` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        return workers.submit(train, *arguments).result()


def deviation(a: Path, b: Path, steps: int) -> dict[str, float]:
    """The largest absolute difference between two trainings' last states, for each part of these."""
    one, other = (engine.Checkpoints(folder).read(steps)[0] for folder in (a, b))
    assert one.keys() == other.keys()
    found: dict[str, float] = {}
    for name, tensor in one.items():
        if tensor.numel():
            part = name.partition("/")[0]
            found[part] = max(found.get(part, 0.0), float((tensor.double() - other[name].double()).abs().max()))
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compare in each precision, with torch's own kernels and with deterministic ones."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=40, help="steps of each training")
    options.add_argument("--config", default="F", help="the configuration that is trained")
    choice(options, "cases", list(CASES))
    arguments = options.parse_args(argv)
    report, small = Report(__file__, arguments), arguments.small
    steps, start = (4, train) if small else (arguments.steps, in_its_own)
    cases = [CASES[name] for name in arguments.cases]
    for precision, compiled, deterministic in cases[2:4] if small else cases:
        changes = {"precision": precision, "compile": compiled}
        with tempfile.TemporaryDirectory() as place:
            once, twice, halves = (Path(place, name) for name in ("once", "twice", "halves"))
            shared = arguments.config, steps, small, changes, deterministic
            ends = [start(once, *shared), start(twice, *shared), start(halves, *shared, steps // 2)]
            stopped_at = engine.Checkpoints(halves).steps()
            ends.append(start(halves, *shared))
            row: dict[str, Any] = {
                **changes, "deterministic kernels": deterministic, "steps": steps, "ends": ends,
                "stopped at": stopped_at,
            }  # fmt: skip
            if ends == ["finished", "finished", "stopped", "finished"]:
                floor, resumed = deviation(once, twice, steps), deviation(once, halves, steps)
                row |= {"two runs apart": floor, "resumed apart": resumed, "exact": not any(resumed.values())}
            report.add(**row)
    return report.finish()


if __name__ == "__main__":
    main()
