"""Steps side by side: those that do not wait for each other are computed in worker processes.

The workers are loky's, which ship with joblib, or a dask cluster's. Both are :class:`concurrent.futures.Executor`, so
this module only says which step may begin. Each worker has its share of the processor's threads, and a GPU of its own.
What a step computes does not depend on where: weights, pairs and grades are those of one process with as many threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from graphlib import TopologicalSorter
from pathlib import Path

import psutil
import torch
from joblib.externals.loky import get_reusable_executor

import rfpp
from rfpp.base import files, processes, progress
from rfpp.base.checks import at_least
from rfpp.base.files import digest
from rfpp.base.processes import Stopped
from rfpp.pipeline.steps import Run, Size, Step

VARIABLE = "RFPP_JOBS"
MEMORY = 1 << 30
"""Bytes that a worker takes: its libraries, and a small network with what its training holds."""
ATTEMPTS = 3
"""How often a step is begun whose worker dies."""
_LOOK = 1.0
_SIZE = Size(pixels=1, parameters=1, images=1000)


def jobs(asked: int | None = None) -> int:
    """How many steps to compute side by side: as ``asked``, by ``RFPP_JOBS``, or one for each GPU, else for each core.

    Under ``torchrun`` it is one: there, all processes compute the same step. Raises ``ValueError`` for fewer than one,
    and for more than the memory that is free has room for.
    """
    if processes.count() > 1:
        return 1
    given = os.environ.get(VARIABLE)
    if asked is None and given:
        if not given.strip().isdecimal():
            raise ValueError(f"{VARIABLE}={given!r} is not a number of jobs; an integer of at least 1 is needed")
        asked = int(given)
    fit = max(1, psutil.virtual_memory().available // MEMORY)
    if asked is None:
        return min(torch.cuda.device_count() or _cores(), fit)
    at_least("jobs", asked, 1)
    if asked > fit:
        raise ValueError(f"jobs={asked} need {asked * MEMORY / 2**30:.0f} GiB of memory; {fit} fit into what is free")
    return asked


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int) -> dict[str, str]:
    """The environment of one of ``count`` processes that share this machine."""
    return {VARIABLE: "1", **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, _cores() // count)))}


def missing(run: Run, steps: Iterable[Step]) -> list[Step]:
    """What has to be computed for ``steps``, each after those that it needs."""
    found: dict[str, Step] = {}

    def look(step: Step) -> None:
        if step.key not in found and run.find(step) is None:
            for need in step.needs:
                look(need)
            found[step.key] = step

    for step in steps:
        look(step)
    return list(found.values())


def compute(run: Run, steps: Iterable[Step], asked: int | None = None, scheduler: str | None = None) -> None:
    """Compute what is missing of ``steps`` and of all that they need, side by side where they do not wait.

    ``scheduler``: the address of a dask cluster that computes in place of this machine's workers. SIGINT and SIGTERM
    end the workers, their checkpoints written, and raise :class:`rfpp.base.processes.Stopped`. A step whose worker dies
    is named in a warning and begun again. Raises what the first step that fails raises, and ``RuntimeError`` for a step
    whose workers die again and again.
    """
    wanted = missing(run, steps)
    count = len(wanted) if scheduler is not None else min(jobs(asked), len(wanted))
    if not wanted or (scheduler is None and count == 1):
        for number, step in enumerate(wanted, start=1):
            dataclasses.replace(run, position=f" ({number} of {len(wanted)})").get(step)
        return
    where = _local(count) if scheduler is None else _cluster(scheduler)
    with tempfile.TemporaryDirectory(prefix="rfpp-") as notes, where as workers:
        _Work(run, wanted, count, Path(notes), workers).do()


def _weights(steps: list[Step]) -> dict[str, float]:
    """How much work each step and the longest chain of those that wait for it are, by key; ``steps`` are in order."""
    longest = dict.fromkeys((step.key for step in steps), 0.0)
    for step in reversed(steps):
        cost = step.cost(_SIZE)
        longest[step.key] += cost.passes + 3 * cost.trained * (2 if cost.with_lpips else 1)
        for need in step.needs:
            if need.key in longest:
                longest[need.key] = max(longest[need.key], longest[step.key])
    return longest


class _Work:
    """Steps on their way: which may begin, which are computed, and what their workers say of themselves."""

    def __init__(self, run: Run, steps: list[Step], count: int, notes: Path, workers: Callable[[], Executor]) -> None:
        self.run = dataclasses.replace(run, advance=None, position="")
        self.steps, self.weights = {step.key: step for step in steps}, _weights(steps)
        self.count, self.notes, self.workers = count, notes, workers
        self.graph = TopologicalSorter(
            {step.key: [need.key for need in step.needs if need.key in self.steps] for step in steps}
        )
        self.ready: list[str] = []
        self.begun: dict[Future[None], str] = {}
        self.attempts: Counter[str] = Counter()

    def do(self) -> None:
        """Compute them all."""
        self.graph.prepare()
        with (
            processes.stoppable() as stop,
            progress.bar(total=len(self.steps), desc=f"steps, {self.count} at a time") as bar,
        ):
            while self.graph.is_active():
                self._begin()
                finished, _ = wait(self.begun, _LOOK, FIRST_COMPLETED)
                try:
                    bar.update(sum(self._ended(future) for future in finished))
                except BaseException:
                    self._end()
                    raise
                bar.set_postfix_str("; ".join(self._news()))
                if stop:
                    self._end()
                    raise Stopped(f"stopped by {stop.asked}; finished steps are kept, run the same command to go on")

    def _begin(self) -> None:
        """Hand the steps that may begin to workers that are free, those first that most work waits for."""
        self.ready = sorted([*self.ready, *self.graph.get_ready()], key=self.weights.__getitem__)
        while self.ready and len(self.begun) < self.count:
            key, taken = self.ready.pop(), {int(self._note(key, "place").read_text()) for key in self.begun.values()}
            place = min(set(range(self.count)) - taken)
            self._note(key, "place").write_text(str(place))
            future = self.workers().submit(_compute, self.steps[key], self.run, place, self._note(key, "progress"))
            self.begun[future] = key

    def _ended(self, future: Future[None]) -> bool:
        """Whether a step that has ended is finished; one whose worker died is to be begun again."""
        key = self.begun.pop(future)
        try:
            future.result()
        except BrokenExecutor as error:
            self.attempts[key] += 1
            title = self.steps[key].title
            if self.attempts[key] == ATTEMPTS:
                raise RuntimeError(f"{title}: its worker died {ATTEMPTS} times ({error})") from error
            warnings.warn(f"a worker died while {title!r} was computed; it is begun again", stacklevel=4)
            self.ready.append(key)
            return False
        self.graph.done(key)
        return True

    def _end(self) -> None:
        """Ask the workers to stop, and wait until their checkpoints are written."""
        for key in self.begun.values():
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._note(key, "worker").read_text()), signal.SIGTERM)
        for future in self.begun:
            future.cancel()
        wait(self.begun)

    def _note(self, key: str, what: str) -> Path:
        return self.notes / f"{key}.{what}"

    def _news(self) -> Iterator[str]:
        """How far each step is that is computed now."""
        for key in self.begun.values():
            note = self._note(key, "progress")
            text = note.read_text(errors="replace")[-400:] if note.is_file() else ""
            share = re.findall(r"(\d+)%", text)
            yield f"{self.steps[key].title} {share[-1] if share else 0} %"


def _compute(step: Step, run: Run, place: int, note: Path) -> None:
    """What a worker does. ``place``: a number that no other worker has at this time; ``note``: a file for its bars."""
    os.environ[progress.VARIABLE], os.environ[VARIABLE] = str(note), "1"
    if note.parent.is_dir():  # it is not on another machine
        note.touch()
        note.with_suffix(".worker").write_text(str(os.getpid()))
    else:
        os.environ[progress.VARIABLE] = os.devnull
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_initialized() and (found := visible.split(",") if visible else _gpus()):
        os.environ["CUDA_VISIBLE_DEVICES"] = found[place % len(found)]
    with processes.terminable():
        run.get(step)


def _gpus() -> list[str]:
    return [str(number) for number in range(torch.cuda.device_count())]


def _prepare(threads: int) -> None:
    """What a worker is before its first step. A Ctrl-C reaches all processes; it is the first that ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    processes.keep_memory()


@contextlib.contextmanager
def _local(count: int) -> Iterator[Callable[[], Executor]]:
    """Workers on this machine. A pool with a dead worker is replaced by a new one when it is next asked for."""
    environment = share(count)
    threads = int(environment["OMP_NUM_THREADS"])
    yield lambda: get_reusable_executor(count, timeout=60, env=environment, initializer=_prepare, initargs=(threads,))


def _version() -> str:
    """What the files of this package are, in a hash."""
    root = Path(rfpp.__file__).parent
    return digest({str(path.relative_to(root)): files.sha256(path) for path in sorted(root.rglob("*.py"))})


@contextlib.contextmanager
def _cluster(scheduler: str) -> Iterator[Callable[[], Executor]]:
    """The workers of a dask cluster, which see the same ``runs/``.

    Raises ``ImportError`` without dask, and ``ValueError`` for a scheduler that cannot be reached, has no workers, or
    whose workers have another version of this package.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("a scheduler needs dask; pip install 'rfpp[cluster]'") from error
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(f"scheduler={scheduler!r} cannot be reached: {error}") from error
    with client:
        versions = client.run(_version)
        if not versions:
            raise ValueError(f"scheduler={scheduler!r} has no workers; start some with dask worker {scheduler}")
        others = [worker for worker, version in versions.items() if version != _version()]
        if others:
            raise ValueError(
                f"scheduler={scheduler!r}: {', '.join(others)} have another version of this package's code"
            )
        pool = client.get_executor(pure=False)
        yield lambda: pool
