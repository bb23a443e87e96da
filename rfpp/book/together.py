"""Run notebooks in parallel: first the trainings that several of them need, then each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from rfpp import claims
from rfpp.book import NotebookFailed, shown_progress, sizes
from rfpp.configurations import ALL, TEACHER
from rfpp.experiment import Experiment
from rfpp.pipeline import places, scheduling
from rfpp.pipeline.plan import Config
from rfpp.pipeline.steps import Size
from rfpp.studies import arena


def run(sources: Sequence[Path], preset: str, given: Mapping[str, Any], count: int, terminal: TextIO) -> None:
    """Execute notebooks, ``count`` at a time, with ``given`` parameters, after the trainings that their claims rest on.

    When fewer are left, these borrow the cores or GPUs of those that have ended (:mod:`rfpp.pipeline.places`). When one
    fails, the running ones finish, no others start, and :class:`rfpp.book.NotebookFailed` names it.
    """
    with shown_progress("trainings", terminal):
        gather(sources, preset, given, count, terminal)
    parameters = [f"--set={name}={json.dumps(value)}" for name, value in given.items() if name != "preset"]
    command = [sys.executable, "-m", "rfpp", "run", "--preset", preset, "--jobs", "1", *parameters]
    # Those with most claims take longest; the others fill the gaps.
    waiting = deque(sorted(sources, key=lambda source: -len(_claims(source))))
    working: list[subprocess.Popen[str]] = []
    complaints: list[str] = []
    failed = threading.Event()

    def execute(source: Path, environment: Mapping[str, str]) -> None:
        with subprocess.Popen([*command, source.stem], stderr=subprocess.PIPE, text=True, env=environment) as process:
            working.append(process)
            if failed.is_set():  # since it was looked at
                process.terminate()
            lines = []
            for line in process.stderr or ():
                lines.append(line)
                if line.startswith("[1/1] "):
                    terminal.write(line.removeprefix("[1/1] "))
                    terminal.flush()
        if process.returncode:
            failed.set()
            said = "".join(line for line in lines if not line.startswith("[1/1] ")).removeprefix("error: ").strip()
            complaints.append(said or f"{source.name} failed: its process ended with status {process.returncode}")

    def work(place: int) -> None:
        """Execute notebooks at a place, which is free for others when none is left."""
        with places.held(folder, place) as environment:
            while not failed.is_set():
                try:
                    source = waiting.popleft()
                except IndexError:
                    return
                try:
                    execute(source, {**os.environ, **environment})
                except BaseException:
                    failed.set()  # the others begin no more
                    raise

    side_by_side = min(count, len(sources))
    with places.shared(count) as folder, ThreadPoolExecutor(side_by_side) as pool:
        try:
            list(pool.map(work, range(side_by_side)))
        except BaseException:  # the pool waits for those that run, so they must end first
            failed.set()
            for process in working:
                process.terminate()
            raise
    if complaints:
        raise NotebookFailed("\n".join(complaints))


def _claims(source: Path) -> list[claims.Claim]:
    """The claims that a notebook judges."""
    return [claim for claim in claims.ledger().values() if claim.notebook == source.stem.partition("_")[2]]


def gather(sources: Sequence[Path], preset: str, given: Mapping[str, Any], count: int, terminal: TextIO) -> None:
    """Train, in parallel, what the claims of these notebooks rest on; say before how much that is."""
    experiment = Experiment(preset, given.get("settings"), jobs=count)
    judged = [claim for source in sources for claim in _claims(source) if not claims.out_of_scope(claim.id, experiment)]
    names: dict[Config, None] = dict.fromkeys(name for claim in judged for name in claim.rests_on if name != TEACHER)
    slugs = {source.stem.partition("_")[2] for source in sources}
    if "ablation" in slugs:
        names |= dict.fromkeys(ALL)  # it also shows those that no claim rests on
    if "arena" in slugs and not given.get("entered"):
        names |= dict.fromkeys(each.config for each in arena.contenders(experiment).values())
    if names:
        seeds = given.get("seeds") or experiment.preset.seeds
        steps = [experiment.plan.flow(name, seed) for seed in seeds for name in names]
        missing = scheduling.missing(experiment.run, steps)
        if missing:
            size = Size(pixels=1, parameters=1, images=len(experiment.data.train))
            passes = sizes.large(sum(step.cost(size).in_all for step in missing))
            terminal.write(f"trainings: {len(missing)} steps, {passes} forward passes\n")
        experiment.train(names, seeds)
