"""As much of ``cifar10`` at its full size as some minutes allow, the most telling results first.

The command line does it, ``python -m rfpp``, a process for each command: the teacher and its pairs; then A, F and G of
one seed, trained and graded at 1 and at 2 evaluations. When the time is over the command that runs is told to stop; the
same script goes on from there. What is finished by now, in earlier calls too, is what the rows say. Without --data the
preset downloads CIFAR-10.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from images import options, settings
from provenance import REPOSITORY, Report, parser, tests

from rfpp import presets
from rfpp.base import paths
from rfpp.experiment import Experiment
from rfpp.pipeline import costs
from rfpp.pipeline.grades import GradeFlow
from rfpp.pipeline.steps import in_order

tests()
from shrunk import SHRUNK  # noqa: E402

PATIENCE = 120.0
"""Seconds that a command has to write its checkpoint in."""


def run(command: list[str], changes: dict[str, Any], folder: Path, left: float) -> tuple[int, str]:
    """A command of the library within ``left`` seconds: its status, 75 where it was stopped, and its last words."""
    chosen = [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    own = {"RFPP_RUNS": str(folder), "RFPP_JOBS": "1", "RFPP_PROGRESS": os.devnull, "PYTHONPATH": path}
    with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open as long as any process of the command's own
        process = subprocess.Popen(
            [sys.executable, "-m", "rfpp", *command, "--preset", "cifar10", *chosen], env={**os.environ, **own},
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(left)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        output.seek(0)
        return process.returncode, output.read().strip().rpartition("\n")[2]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Work through the commands, then look at what there is."""
    top = options(parser(__doc__))
    top.add_argument("--minutes", type=float, default=25, help="minutes until it stops and writes a checkpoint")
    top.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="replace a setting of the preset")
    top.add_argument("--runs", type=Path, default=paths.runs(), help="the folder of results")
    arguments = top.parse_args(argv)
    report, small, end = Report(__file__, arguments), arguments.small, time.monotonic() + 60 * arguments.minutes
    given = {name: presets.parse(value) for name, _, value in (each.partition("=") for each in arguments.set)}
    configs, evaluations = (("A",), (1,)) if small else (("A", "F", "G"), (1, 2))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "runs") if small else arguments.runs
        here = small or arguments.data is not None
        changes = {**(SHRUNK if small else {}), **(settings(arguments, Path(scratch)) if here else {}), **given}
        grading = [["evaluate", "--config", c, "--seed", "0", "--nfe", str(n)] for c in configs for n in evaluations]
        commands = []
        for command in ([] if small else [["pairs"]]) + grading:
            left, start = end - time.monotonic(), time.monotonic()
            if left <= 0:
                break
            status, said = run(command, changes, folder, left)
            row = {"command": " ".join(command), "status": status, "seconds": time.monotonic() - start, "said": said}
            commands.append(row)
            print(row, flush=True)
            report.write(commands=commands)
            if command == ["pairs"] and status not in (0, 75):
                raise SystemExit(said)  # the rest would fail alike: most likely there are no images
        for row in finished(Experiment("cifar10", changes, runs=folder), configs, evaluations):
            report.add(**row)
    return report.finish()


def finished(experiment: Experiment, configs: tuple[str, ...], evaluations: tuple[int, ...]) -> list[dict[str, Any]]:
    """The steps, each with its state, the share that is done, what it took, and grades where it has such."""
    plan, store = experiment.plan, experiment.run
    steps = in_order(plan.grade(config, 0, plan.sampler(nfe)) for config in configs for nfe in evaluations)
    rows = []
    for entry in costs.forecast(plan, store, steps):
        row: dict[str, Any] = {"step": entry.step.title, "state": entry.state, "done": entry.done}
        if (found := store.find(entry.step)) is not None:
            row |= {"seconds": found.manifest["seconds"], "device": found.manifest["device"]}
            if isinstance(entry.step, GradeFlow):
                row |= asdict(entry.step.load(store))
        rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(any(row["status"] not in (0, 75) for row in main()["commands"]))
