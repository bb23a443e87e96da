"""Finished steps on disk, found again by their inputs.

A step's key is the hash of its inputs: settings, keys of earlier steps, and the code that computes it. ``Store.get``
returns the finished step of that key, or computes it in a separate folder beside the final one and renames the folder
when it is complete. A process may be killed at any moment: finished steps remain, and unfinished ones are never read.
The checksum of each file is kept and compared before the step is used again (for large steps, the file sizes are, see
:data:`HASHED`); a step with a damaged file is computed again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import rfpp
from rfpp.base import files, processes
from rfpp.base.files import digest

MANIFEST = "manifest.json"


class StorageError(OSError):
    """Raised when a result could not be written; earlier results are intact."""


def provenance() -> dict[str, str]:
    """Return the software and machine that a result was computed with."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread" if threads == 1 else f"CPU, {threads} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {
        "rfpp": rfpp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }


@dataclass(frozen=True)
class Artifact:
    """A finished step: its ``key``, the ``folder`` with its files, and a ``manifest`` of how it was computed."""

    step: str
    key: str
    folder: Path
    manifest: dict[str, Any]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def _why(error: OSError, folder: Path) -> StorageError:
    reasons = {
        errno.ENOSPC: "there is no space left",
        errno.EDQUOT: "the quota is used up",
        errno.EACCES: "write access is denied",
        errno.EPERM: "write access is denied",
        errno.EROFS: "the file system is read-only",
    }
    reason = reasons.get(error.errno or 0, str(error))
    return StorageError(
        error.errno, f"{folder} cannot be written: {reason}. Earlier results are intact; "
        "fix this or set RFPP_RUNS to another folder, and run again"
    )  # fmt: skip


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """Say of an error in writing what to do about it."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise _why(error, folder) from error
        raise


_TOOK = ".took-"
"""The beginning of names of files that tell how many seconds a part took."""
HASHED = 1 << 30
"""The largest step, in bytes, whose whole content is compared with its checksums when it is opened. For larger steps,
with millions of pairs, only file sizes are compared: their shards have row checksums, compared when rows are read."""


CHECKED = ("shard-*.safetensors", "states/*")
"""The files with checksums of their own: shards of pairs, and checkpoints of trainings."""


def _prepare(final: Path, partial: Path, damaged: list[Path]) -> None:
    """Make the folder where a step is computed; it keeps the undamaged files."""
    if damaged and not partial.exists():
        for path in damaged:
            path.unlink(missing_ok=True)
        os.replace(final, partial)
    partial.mkdir(exist_ok=True)


class Store:
    """The finished steps under one folder, as ``<step>/<key>/``. Each store compares a step's checksums once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: dict[tuple[str, str], Artifact] = {}
        self._named: set[tuple[str, str]] = set()

    @staticmethod
    def key(step: str, inputs: Mapping[str, Any]) -> str:
        """Return the key of a step with these inputs."""
        return digest({"step": step, "inputs": inputs})[:16]

    def partial(self, step: str, key: str) -> Path:
        """Return the folder of an unfinished step."""
        return self.root / step / f".{key}.partial"

    def get(self, step: str, inputs: Mapping[str, Any], compute: Callable[[Path], object]) -> Artifact:
        """Return the step with these ``inputs`` (a JSON value), from disk or from ``compute(folder)``.

        An interrupted ``compute`` finds its files again and can continue; undamaged files of a damaged step are kept.
        Two runs that need the same step compute it once; the processes of one run, which all call this together, all
        compute. Raises :class:`StorageError` when the folder cannot be written.
        """
        key = self.key(step, inputs)
        final, partial = self.root / step / key, self.partial(step, key)
        if (found := self.peek(step, inputs)) is not None:
            return found
        with _translated(final.parent), contextlib.ExitStack() as stack:

            def prepare() -> bool:
                final.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.lock(step, key))
                for part in sorted(final.parent.glob(f".{key}-*.lock")):  # held by workers that lost their run
                    stack.enter_context(FileLock(part))
                found, damaged = self._find(step, key)  # another run may have finished it meanwhile
                if found is None:
                    _prepare(final, partial, damaged)
                return found is None

            def finish() -> None:
                self._finish(step, key, dict(inputs), partial, time.monotonic() - started)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)

            if processes.by_main(prepare):
                started = time.monotonic()
                compute(partial)
                processes.wait()
                processes.by_main(finish)
        finished = self.peek(step, inputs)
        assert finished is not None
        return finished

    def lock(self, step: str, key: str) -> FileLock:
        """Return the lock that a run holds while it computes a step."""
        return FileLock(self.root / step / f".{key}.lock")

    @contextlib.contextmanager
    def part(self, step: str, key: str, number: int) -> Iterator[Path]:
        """Provide the folder of an unfinished step for one of its parts, and note how long that took.

        Whoever asks for parts holds the step's lock. The part has one of its own, because it may outlive that run.
        """
        folder = self.partial(step, key)
        took = folder / f"{_TOOK}{number}"
        with _translated(folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{key}-{number}.lock")):
                before, started = float(took.read_text()) if took.is_file() else 0.0, time.monotonic()
                yield folder
                files.write_text(took, str(before + time.monotonic() - started))

    def peek(self, step: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Return the step with these ``inputs`` if it is finished and undamaged; all processes call this together.

        The first process looks and tells the others, because a shared disk may not look the same to all of them.
        """
        key = self.key(step, inputs)
        if (step, key) in self._checked:
            return self._checked[step, key]
        found = processes.by_main(lambda: self._find(step, key)[0])
        return None if found is None else self._checked.setdefault((step, key), found)

    def _finish(self, step: str, key: str, inputs: dict[str, Any], folder: Path, seconds: float) -> None:
        written = {}
        for note in folder.glob(f"{_TOOK}*"):
            seconds += float(note.read_text())
            note.unlink()
        (folder / MANIFEST).unlink(missing_ok=True)  # left by a run that stopped just before renaming
        for pattern in (".*.partial", ".tmp*"):  # left by processes that were killed while writing
            for leftover in folder.rglob(pattern):
                leftover.unlink()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            files.follow_umask(path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            written[path.relative_to(folder).as_posix()] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "step": step, "key": key, "inputs": inputs, "files": written, "seconds": round(seconds, 1), **provenance()
        }  # fmt: skip
        with (folder / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())

    def _find(self, step: str, key: str) -> tuple[Artifact | None, list[Path]]:
        """Return the finished step, or ``None`` and its damaged files.

        Without a readable manifest, files that have no checksum of their own count as damaged, too.
        """
        folder = self.root / step / key
        unknown: list[Path] = []
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            content = sum(entry["bytes"] for entry in manifest["files"].values()) <= HASHED
            damaged = [
                name for name, entry in manifest["files"].items() if self._damaged(folder / name, entry, content)
            ]
        except FileNotFoundError:
            return None, []
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
            damaged = [MANIFEST]
            rest = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
            unknown = [path for path in rest if not any(path.match(pattern) for pattern in CHECKED)]
        if damaged:
            if (step, key) not in self._named:
                self._named.add((step, key))
                names = ", ".join(str(folder / name) for name in damaged)
                why = "it cannot be read" if damaged == [MANIFEST] else "missing or changed"
                warnings.warn(f"damaged ({why}): {names}; {step} is computed again when it is needed", stacklevel=5)
            return None, [*(folder / name for name in damaged), *unknown]
        return Artifact(step, key, folder, manifest), []

    @staticmethod
    def _damaged(path: Path, entry: dict[str, Any], content: bool) -> bool:
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return True
        return content and files.sha256(path) != entry["sha256"]

    def finished(self) -> list[Artifact]:
        """Return all finished steps, oldest first, without comparing checksums; unreadable manifests are skipped."""
        found = []
        for path in sorted(self.root.glob(f"*/[!.]*/{MANIFEST}"), key=lambda path: path.stat().st_mtime):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                manifest = json.loads(path.read_text())
                _ = manifest["files"].items(), manifest["seconds"]
                found.append(Artifact(manifest["step"], manifest["key"], path.parent, manifest))
        return found
