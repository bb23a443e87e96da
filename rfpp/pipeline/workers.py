"""The processes that compute steps side by side: on this machine, or on a dask cluster.

Those of this machine come from loky, which ships with joblib. Each is an executor of its own, so that one can be added
at any time, and the end of one ends no other. Each has its share of the processor's threads, and its GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from joblib.externals.loky import ProcessPoolExecutor

import rfpp
from rfpp.base import files, processes
from rfpp.base.files import digest
from rfpp.pipeline import places

VARIABLE = "RFPP_JOBS"
"""The environment variable with the number of steps to compute side by side."""
MEMORY = 1 << 30
"""Bytes that a worker takes: its libraries, and the training of a small network."""
_WORKER = "RFPP_WORKER"
_IDLE = 60
"""Seconds after which a worker without work ends."""
_CALL = 10
"""Seconds that a cluster's scheduler has to answer."""


class Workers(Protocol):
    """Processes that take one call at a time each."""

    def has_room(self, begun: int) -> bool:
        """Whether there is a worker, or one can be had, beyond those of the ``begun`` calls."""

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Give a call to a free worker; if it dies, the future raises ``BrokenExecutor``."""

    def return_idle(self) -> None:
        """Give back borrowed places that are idle."""


# On this machine


@dataclass(eq=False)
class _Worker:
    """An executor with one process, the place that was borrowed for it, and its last call."""

    environment: tuple[tuple[str, str], ...]
    threads: int
    place: places.Place | None = None
    executor: Executor | None = None
    call: Future[None] | None = None

    @property
    def is_free(self) -> bool:
        return self.call is None or self.call.done()

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        while True:
            self.executor = self.executor or self._waiting() or self._new()
            try:
                self.call = self.executor.submit(function, *arguments)
            except BrokenExecutor:  # its process died
                self.executor = None
            else:
                return self.call

    def _waiting(self) -> Executor | None:
        """The executor of a worker that was left."""
        return next(
            (each.executor for each in list(_left) if each.environment == self.environment and each._take()), None
        )

    def _new(self) -> Executor:
        return ProcessPoolExecutor(1, env=dict(self.environment), initializer=_prepare, initargs=(self.threads,))

    def leave(self) -> None:
        """Keep the executor for later calls for some time, unless its place was borrowed or it still computes.

        loky could end its process by itself. But it does not always notice the death of a process that it begins after
        that.
        """
        if self.executor is not None:
            if self.place is None and self.is_free:
                _left.append(self)
                timer = threading.Timer(_IDLE, self.end)
                timer.daemon = True
                timer.start()
            else:
                self.executor.shutdown(wait=False)
        if self.place is not None:
            self.place.give_back()

    def _take(self) -> bool:
        """Whether the executor, which was left, is the caller's now."""
        with contextlib.suppress(ValueError):
            _left.remove(self)
            return True
        return False

    def end(self) -> None:
        """End the executor, unless a call has taken it."""
        if self._take() and self.executor is not None:
            self.executor.shutdown(wait=False)


_left: list[_Worker] = []
"""Workers that were left, whose executors wait for another call."""


def is_one() -> bool:
    """Whether this process is a worker on this machine, which computes one step at a time and borrows no place."""
    return _WORKER in os.environ


def _prepare(threads: int) -> None:
    """Prepare a worker for its first step. It ignores Ctrl-C, which reaches all processes: the first one ends it."""
    os.environ[_WORKER] = "1"
    os.environ.pop(places.VARIABLE, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    processes.keep_memory()


class _Here:
    """Workers on this machine: ``count`` of its own, and more in borrowed places if it ``borrows``."""

    def __init__(self, count: int, borrows: bool) -> None:
        self.threads, self.borrows = torch.get_num_threads() if borrows else max(1, places.cores() // count), borrows
        self.workers = [self._worker(places.one_gpu(number)) for number in range(count)]

    def _worker(self, gpus: list[str], place: places.Place | None = None) -> _Worker:
        environment = {VARIABLE: "1", **places.environment(self.threads, gpus)}
        return _Worker(tuple(environment.items()), self.threads, place)

    def has_room(self, begun: int) -> bool:
        while begun >= len(self.workers):
            fits = psutil.virtual_memory().available > 2 * MEMORY  # this process's own worker may begin, too
            place = places.borrow() if self.borrows and fits else None
            if place is None:
                return False
            self.workers.append(self._worker(place.gpus, place))
        return True

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        own = {worker.environment for worker in self.workers}
        for each in [each for each in _left if each.environment not in own]:
            each.end()  # idle processes for other threads or GPUs would add up
        return next(worker for worker in self.workers if worker.is_free).submit(function, *arguments)

    def return_idle(self) -> None:
        for worker in [each for each in self.workers if each.is_free and each.place is not None]:
            self.workers.remove(worker)
            worker.leave()


@contextlib.contextmanager
def here(count: int, borrows: bool = False) -> Iterator[Workers]:
    """Provide ``count`` workers on this machine; with ``borrows``, more as long as there are free places.

    They share the cores. Those that borrow have as many threads as this process.
    """
    found = _Here(count, borrows)
    try:
        yield found
    finally:
        for worker in found.workers:
            worker.leave()


# A cluster


@dataclass(frozen=True)
class _There:
    """A dask cluster, which keeps calls until it has a worker for them."""

    executor: Executor

    def has_room(self, begun: int) -> bool:
        return True

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        return self.executor.submit(function, *arguments)

    def return_idle(self) -> None:
        pass


def _take_free_gpu(name: str) -> None:
    """Take a GPU for a cluster's worker, unless the cluster has given it one; ``name``: the cluster's."""
    if len(places.gpus()) > 1:
        folder = Path(tempfile.gettempdir()) / f"rfpp-places-{name}"
        folder.mkdir(exist_ok=True)
        places.take_gpu(folder)


def _version() -> str:
    """Return a hash of this package's source files."""
    root = Path(rfpp.__file__).parent
    return digest({str(path.relative_to(root)): files.sha256(path) for path in sorted(root.rglob("*.py"))})


@contextlib.contextmanager
def of_cluster(scheduler: str) -> Iterator[Workers]:
    """Provide the workers of a dask cluster, which share ``runs/``; each has a GPU of its own, if it sees several.

    Raises ``ImportError`` without dask, and ``ValueError`` for a scheduler that cannot be reached, has no workers, or
    whose workers have another version of this package, or several threads: these would share a random stream.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("a scheduler needs dask; run: pip install 'rfpp[cluster]'") from error
    try:
        client = Client(scheduler, timeout=_CALL)
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
        yield _There(client.get_executor(pure=False))
