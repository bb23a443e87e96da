"""The cores and GPUs of this machine, and which of several processes computes where.

Processes that run side by side each have a place: a GPU, or a share of the cores. Once a process has ended and none
waits for its place, one with more steps than it can compute at a time may borrow it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from joblib.externals.loky import cpu_count

from rfpp.base import files

VARIABLE = "RFPP_PLACES"
"""The environment variable with the folder of places that processes share."""
_LIST = "places.json"
_own_place: list[FileLock] = []
"""The lock on this process's place, and so on its GPU, held as long as the process lives."""


def cores() -> int:
    """Return the number of cores that this process may use, by its affinity and its container's quota."""
    return int(cpu_count())


def gpus() -> list[str]:
    """Return the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return sorted(visible.split(",")) if visible else [str(number) for number in range(torch.cuda.device_count())]


def one_gpu(number: int) -> list[str]:
    """Return the GPU of the ``number``-th of several processes, which take the GPUs in turn; none if there is none."""
    found = gpus()
    return [found[number % len(found)]] if found else []


def environment(threads: int, seen: list[str]) -> dict[str, str]:
    """Return the environment variables for processes with so many threads, which see these GPUs, if there are any."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return variables | ({"CUDA_VISIBLE_DEVICES": ",".join(seen)} if seen else {})


def _lock(folder: Path, number: int) -> FileLock:
    return FileLock(folder / f"{number}.lock")


def take_gpu(folder: Path) -> None:
    """Take the first place in a folder that no other process has, and the GPU of its number.

    A process keeps them for life, because it cannot leave a GPU. A dead process's place is free again.
    """
    has_gpus, number = bool(gpus()), 0
    while has_gpus and not _own_place:
        lock = _lock(folder, number)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            _own_place.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = one_gpu(number)[0]
        number += 1


@contextlib.contextmanager
def shared(count: int) -> Iterator[Path]:
    """Provide the folder of ``count`` places, which is there until the end of the ``with`` block."""
    with tempfile.TemporaryDirectory(prefix="rfpp-places-") as name:
        files.write_text(Path(name) / _LIST, json.dumps([one_gpu(number) for number in range(count)]))
        yield Path(name)


@contextlib.contextmanager
def held(folder: Path, number: int) -> Iterator[dict[str, str]]:
    """Hold a place, so that nobody borrows it, and provide the environment variables for a process there."""
    with _lock(folder, number):
        seen = json.loads((folder / _LIST).read_text())
        yield {VARIABLE: str(folder), **environment(max(1, cores() // len(seen)), seen[number])}


def are_shared() -> bool:
    """Whether this process may borrow places from others."""
    return VARIABLE in os.environ


@dataclass(frozen=True)
class Place:
    """A place that this process borrowed, with its GPUs."""

    gpus: list[str]
    _held: FileLock

    def give_back(self) -> None:
        """Let others have it."""
        self._held.release()


def borrow() -> Place | None:
    """Borrow a free place, if there is one."""
    folder = Path(os.environ.get(VARIABLE, ""))
    with contextlib.suppress(OSError):  # the folder goes with the process that shares its places
        for number, seen in enumerate(json.loads((folder / _LIST).read_text()) if are_shared() else []):
            lock = _lock(folder, number)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                return Place(seen, lock)
    return None
