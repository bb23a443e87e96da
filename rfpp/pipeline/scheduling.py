"""Steps side by side: independent steps are computed in parallel worker processes.

The workers come from loky, which ships with joblib, or from a dask cluster. Both provide a
:class:`concurrent.futures.Executor`, so this module only decides which step may begin. Each worker has its share of the
processor's threads, and its own GPU. The result of a step does not depend on where it is computed: weights, pairs and
grades equal those of one process with the same number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from filelock import BaseFileLock, FileLock, Timeout
from joblib.externals.loky import get_reusable_executor

import rfpp
from rfpp.base import files, processes, progress
from rfpp.base.checks import at_least
from rfpp.base.files import digest
from rfpp.base.processes import Stopped, WorkerLost
from rfpp.pipeline.steps import Run, Size, Step
from rfpp.pipeline.store import CHECKED

VARIABLE = "RFPP_JOBS"
MEMORY = 1 << 30
"""Bytes that a worker takes: its libraries, and the training of a small network."""
ATTEMPTS = 3
"""How many times a step whose worker dies is started without getting further, the last time alone."""
_LOOK = 1.0
_STOP = "stop"
_own_place: list[FileLock] = []
"""The lock on this worker's place, and so on its GPU, held as long as the process lives."""
_SIZE = Size(pixels=1, parameters=1, images=1000)


def jobs(asked: int | None = None) -> int:
    """Return how many steps to compute side by side: ``asked``, else ``RFPP_JOBS``, else one per GPU or per core.

    Under ``torchrun`` the number is one, because all processes compute the same step. Raises ``ValueError`` for fewer
    than one, and for more than fit into free memory.
    """
    if processes.count() > 1:
        return 1
    name, given = "jobs", os.environ.get(VARIABLE)
    if asked is None and given:
        if not given.strip().isdecimal():
            raise ValueError(f"{VARIABLE}={given!r} is not a number of jobs; an integer of at least 1 is needed")
        name, asked = VARIABLE, int(given)
    fit = max(1, psutil.virtual_memory().available // MEMORY)
    if asked is None:
        return min(torch.cuda.device_count() or _cores(), fit)
    at_least(name, asked, 1)
    if asked > fit:
        raise ValueError(
            f"{name}={asked} need {asked * MEMORY / 2**30:.0f} GiB of memory; {fit} fit into the free memory"
        )
    return asked


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int) -> dict[str, str]:
    """Return the environment variables for one of ``count`` processes that share this machine."""
    return {VARIABLE: "1", **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(max(1, _cores() // count)))}


def missing(run: Run, steps: Iterable[Step]) -> list[Step]:
    """Return the steps to compute for ``steps``, each after the steps that it needs."""
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
    """Compute what is missing of ``steps`` and their dependencies, with independent steps side by side.

    ``scheduler``: the address of a dask cluster that replaces this machine's workers. After SIGINT or SIGTERM the
    workers write their checkpoints and end, and :class:`rfpp.base.processes.Stopped` is raised. A step whose worker
    dies is named in a warning and started again. Raises the error of the first step that fails, and
    :class:`rfpp.base.processes.WorkerLost` for a step whose workers die again and again while it gets no further.
    """
    wanted = missing(run, steps)
    pieces = sum(step.parts for step in wanted)
    count = pieces if scheduler is not None else min(jobs(asked), pieces)
    if not wanted or (scheduler is None and count == 1):
        for number, step in enumerate(wanted, start=1):
            dataclasses.replace(run, position=f" ({number} of {len(wanted)})").get(step)
            processes.free_memory()
        return
    processes.free_memory()  # a worker on this process's GPU needs it
    where = _local(count) if scheduler is None else _cluster(scheduler)
    with tempfile.TemporaryDirectory(prefix="rfpp-") as notes, where as workers:
        _Work(run, wanted, count, Path(notes), workers).do()


def _weights(steps: list[Step]) -> dict[str, float]:
    """Return the work of each step plus that of the longest chain waiting for it, by key; ``steps`` are in order."""
    longest = dict.fromkeys((step.key for step in steps), 0.0)
    for step in reversed(steps):
        cost = step.cost(_SIZE)
        longest[step.key] += cost.passes + 3 * cost.trained * (2 if cost.with_lpips else 1)
        for need in step.needs:
            if need.key in longest:
                longest[need.key] = max(longest[need.key], longest[step.key])
    return longest


@dataclasses.dataclass(frozen=True)
class _Place:
    """What a worker computes: a step, or one of its parts."""

    key: str
    part: int | None


def _parts(run: Run, step: Step) -> list[int]:
    """The parts of a step to compute side by side; none for a step of one part, or one that has a result already.

    Of a damaged result, :meth:`rfpp.pipeline.store.Store.get` keeps the parts that are whole.
    """
    is_new = not (run.store.root / step.name / step.key).exists()
    return list(range(step.parts)) if is_new and step.parts > 1 else []


class _Work:
    """Steps in progress: those ready to begin, those being computed, and the progress that their workers report."""

    def __init__(self, run: Run, steps: list[Step], count: int, notes: Path, workers: Callable[[], Executor]) -> None:
        self.run = dataclasses.replace(run, advance=None, position="")
        self.steps, self.weights = {step.key: step for step in steps}, _weights(steps)
        self.count, self.notes, self.workers = count, notes, workers
        self.graph = TopologicalSorter(
            {step.key: [need.key for need in step.needs if need.key in self.steps] for step in steps}
        )
        self.ready: list[str] = []
        self.parts = {step.key: _parts(run, step) for step in steps}
        self.locks: dict[str, BaseFileLock] = {}
        self.begun: dict[Future[None], _Place] = {}
        self.died: dict[str, BrokenExecutor] = {}
        self.attempts: Counter[str] = Counter()
        self.reached: dict[str, float] = {}

    def do(self) -> None:
        """Compute all steps."""
        self.graph.prepare()
        try:
            self._do()
        finally:
            for key in list(self.locks):
                self._unlock(key)

    def _do(self) -> None:
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
                    raise Stopped(f"stopped by {stop.asked}; finished steps are kept. Run the same command to go on")

    def _begin(self) -> None:
        """Give ready steps to free workers; steps that the most work waits for come first.

        All workers end when one does. So the last attempt of a step waits until nothing else is left to do, and is made
        alone: only then is the death of a worker certainly this step's.
        """
        self.ready = sorted([*self.ready, *self.graph.get_ready()], key=self._urgency)
        while self.ready and len(self.begun) < self.count:
            if self.begun and self._is_last_attempt(self.ready[-1]):
                break
            key = self.ready[-1]
            part = self.parts[key].pop(0) if self._may_divide(key) else None
            if not self.parts[key]:
                self.ready.pop()  # the whole step comes after its last part
            place = _Place(key, part)
            run = dataclasses.replace(self.run, part=part)
            future = self.workers().submit(_compute, self.steps[key], run, self._note(place, "progress"))
            self.begun[future] = place

    def _is_last_attempt(self, key: str) -> bool:
        return self.attempts[key] == ATTEMPTS - 1

    def _urgency(self, key: str) -> tuple[bool, bool, float]:
        """A step whose lock is held comes first: who waits for another run's lock must not keep this one from it."""
        return not self._is_last_attempt(key), key in self.locks, self.weights[key]

    def _ended(self, future: Future[None]) -> bool:
        """Return whether an ended step is finished; a step whose worker died is queued again."""
        place = self.begun.pop(future)
        key = place.key
        try:
            future.result()
        except BrokenExecutor as error:  # all workers end when one does
            self.died[key], self.parts[key] = error, []
            self.ready = [each for each in self.ready if each != key]
        if place.part is None and key not in self.died:
            self.graph.done(key)
            return True
        if not self.parts[key] and all(other.key != key for other in self.begun.values()):
            self._unlock(key)
            if key in self.died:
                self._try_again(key, self.died.pop(key))
            self.ready.append(key)
        return False

    def _try_again(self, key: str, error: BrokenExecutor) -> None:
        """Count an attempt at a step, and give its parts again, but for the last one."""
        self.attempts[key] = 1 if self._got_further(key) else self.attempts[key] + 1
        title = self.steps[key].title
        if self.attempts[key] == ATTEMPTS:
            raise WorkerLost(
                f"{title}: its worker died {ATTEMPTS} times in a row, and nothing was added in between ({error})"
            ) from error
        warnings.warn(f"a worker died while {title!r} was computed; it is started again", stacklevel=5)
        self.parts[key] = [] if self._is_last_attempt(key) else _parts(self.run, self.steps[key])

    def _may_divide(self, key: str) -> bool:
        """Whether parts of a step are left to this run, which then holds the step's lock until they have ended."""
        if self.parts[key] and key not in self.locks:
            step, lock = self.steps[key], self.run.store.lock(self.steps[key].name, key)
            try:
                Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
                self.locks[key] = lock
            except (OSError, Timeout):  # another run computes it, or nothing can be written: the whole step will tell
                self.parts[key] = []
            if self.run.find(step) is not None:  # another run has finished it meanwhile
                self.parts[key] = []
                self._unlock(key)
        return bool(self.parts[key])

    def _unlock(self, key: str) -> None:
        if key in self.locks:
            self.locks.pop(key).release()

    def _got_further(self, key: str) -> bool:
        """Whether a step has written a shard or a checkpoint since its worker last died."""
        folder = self.run.store.partial(self.steps[key].name, key)
        written = (path for pattern in CHECKED for path in folder.rglob(pattern))  # a grade's samples lie further in
        newest = max((path.stat().st_mtime for path in written), default=0.0)
        before, self.reached[key] = self.reached.get(key, 0.0), newest
        return newest > before

    def _end(self) -> None:
        """Ask the workers to stop, and wait until their checkpoints are written.

        A worker that has not begun finds the mark; one that has, and left its number, is sent a signal.
        """
        (self.notes / _STOP).touch()
        for place in self.begun.values():
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._note(place, "worker").read_text()), signal.SIGTERM)
        for future in self.begun:
            future.cancel()
        wait(self.begun)

    def _note(self, place: _Place, what: str) -> Path:
        return self.notes / f"{place.key}{'' if place.part is None else f'-{place.part}'}.{what}"

    def _news(self) -> Iterator[str]:
        """Yield the progress of each step in computation."""
        for place in self.begun.values():
            note, step = self._note(place, "progress"), self.steps[place.key]
            text = note.read_text(errors="replace")[-400:] if note.is_file() else ""
            share = re.findall(r"(\d+)%", text)
            part = "" if place.part is None else f", part {place.part + 1} of {step.parts},"
            yield f"{step.title}{part} {share[-1] if share else 0} %"


def _compute(step: Step, run: Run, note: Path) -> None:
    """Compute a step in a worker; ``note``: a file for its bars."""
    os.environ[progress.VARIABLE], os.environ[VARIABLE] = str(note), "1"
    is_near = note.parent.is_dir()  # on the same machine
    if is_near:
        note.touch()
    else:
        os.environ[progress.VARIABLE] = os.devnull
    with processes.terminable():
        if is_near:
            note.with_suffix(".worker").write_text(str(os.getpid()))
            if note.with_name(_STOP).exists():
                raise Stopped("stopped before it began")
        try:
            run.get(step) if run.part is None else run.get_part(step, run.part)
        finally:
            note.with_suffix(".worker").unlink(missing_ok=True)  # no signal is for this step any more
            processes.free_memory()  # an idle worker still has what is reserved


def _gpus() -> list[str]:
    """Return the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return sorted(visible.split(",")) if visible else [str(number) for number in range(torch.cuda.device_count())]


def one_gpu(number: int) -> dict[str, str]:
    """Return the environment variables for the ``number``-th of several processes, which take the GPUs in turn."""
    gpus = _gpus()
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}


def _take_gpu(places: Path) -> None:
    """Take the first place in the folder that no other worker has, and the GPU of its number.

    A worker keeps them for life, because a process cannot leave a GPU. A dead worker's place is free again.
    """
    has_gpus, number = bool(_gpus()), 0
    while has_gpus and not _own_place:
        lock = FileLock(places / f"{number}.lock", timeout=0)
        with contextlib.suppress(Timeout):
            lock.acquire()
            _own_place.append(lock)
            os.environ |= one_gpu(number)
        number += 1


def _take_free_gpu(name: str) -> None:
    """Take a GPU for a cluster's worker, unless the cluster has given it one; ``name``: the cluster's."""
    if len(_gpus()) > 1:
        places = Path(tempfile.gettempdir()) / f"rfpp-places-{name}"
        places.mkdir(exist_ok=True)
        _take_gpu(places)


def _prepare(threads: int, places: Path) -> None:
    """Prepare a worker for its first step. It ignores Ctrl-C, which reaches all processes: the first one ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    processes.keep_memory()
    _take_gpu(places)


@functools.cache
def _places() -> tempfile.TemporaryDirectory[str]:
    """The folder of this process's workers' places."""
    return tempfile.TemporaryDirectory(prefix="rfpp-places-")


@contextlib.contextmanager
def _local(count: int) -> Iterator[Callable[[], Executor]]:
    """Provide workers on this machine. A pool with a dead worker is replaced at the next call."""
    environment = share(count)
    given = int(environment["OMP_NUM_THREADS"]), Path(_places().name)
    yield lambda: get_reusable_executor(count, timeout=60, env=environment, initializer=_prepare, initargs=given)


def _version() -> str:
    """Return a hash of this package's source files."""
    root = Path(rfpp.__file__).parent
    return digest({str(path.relative_to(root)): files.sha256(path) for path in sorted(root.rglob("*.py"))})


@contextlib.contextmanager
def _cluster(scheduler: str) -> Iterator[Callable[[], Executor]]:
    """Provide the workers of a dask cluster, which share ``runs/``; each has a GPU of its own, if it sees several.

    Raises ``ImportError`` without dask, and ``ValueError`` for a scheduler that cannot be reached, has no workers, or
    whose workers have another version of this package, or several threads: these would share a random stream.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("a scheduler needs dask; run: pip install 'rfpp[cluster]'") from error
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
                f"scheduler={scheduler!r}: {', '.join(others)} have another version of this package's code; "
                "install this one there"
            )
        if several := [worker for worker, threads in client.nthreads().items() if threads > 1]:
            raise ValueError(
                f"scheduler={scheduler!r}: {', '.join(several)} compute several steps at once; start workers with "
                "dask worker --nthreads 1"
            )
        client.register_worker_callbacks(
            functools.partial(_take_free_gpu, digest(scheduler)[:8])
        )  # also of workers that join later
        pool = client.get_executor(pure=False)
        yield lambda: pool
