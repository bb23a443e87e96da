"""Finished steps on disk, found again by what they depend on.

A step's key is the hash of its inputs: settings, keys of earlier steps, and the code that computes it. ``Store.get``
returns the finished step of that key, or computes it in a folder of its own beside the final place and renames the
folder when it is whole. A process may be killed at any moment: what was finished stays, what was not is never read.
Each file's checksum is kept and compared before the step is used again (of large steps the sizes are, see
:data:`HASHED`); a step with a damaged file is computed anew.
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
from collections.abc import Callable, Mapping
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
    """A result could not be written; earlier results are intact."""


def provenance() -> dict[str, str]:
    """What a result was computed with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "rfpp": rfpp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }


@dataclass(frozen=True)
class Artifact:
    """A finished step: its ``key``, the ``folder`` with its files, and what it took to compute."""

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
        "free the place or set RFPP_RUNS to another folder, and run again"
    )  # fmt: skip


HASHED = 1 << 30
"""Bytes of a step up to which all of it is compared with its checksums when it is opened. Of larger ones, millions of
pairs, only the files' sizes are: their shards have checksums of their own, which are compared as rows are read."""


def _prepare(final: Path, partial: Path, damaged: list[Path], resumable: bool) -> None:
    """Make the folder where a step is computed; a resumable one finds there what is whole of it."""
    if not resumable:
        shutil.rmtree(partial, ignore_errors=True)
    elif damaged and not partial.exists():
        for path in damaged:
            path.unlink(missing_ok=True)
        os.replace(final, partial)
    partial.mkdir(exist_ok=True)


class Store:
    """The finished steps under one folder, as ``<step>/<key>/``. Checksums are compared once in a store's life."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._checked: dict[tuple[str, str], Artifact] = {}
        self._named: set[tuple[str, str]] = set()

    @staticmethod
    def key(step: str, inputs: Mapping[str, Any]) -> str:
        """What a step with these inputs is called."""
        return digest({"step": step, "inputs": inputs})[:16]

    def partial(self, step: str, key: str) -> Path:
        """Where a step is computed before it is finished."""
        return self.root / step / f".{key}.partial"

    def get(
        self, step: str, inputs: Mapping[str, Any], compute: Callable[[Path], object], *, resumable: bool = False
    ) -> Artifact:
        """The step with these ``inputs`` (a JSON value), from disk or from ``compute(folder)``.

        ``resumable``: an interrupted ``compute`` finds what it had written and goes on; what is whole of a damaged step
        is kept. Two runs that ask for the same step compute it once; the processes of one run, which all ask together,
        all compute. Raises :class:`StorageError` when the place cannot be written.
        """
        key = self.key(step, inputs)
        final, partial = self.root / step / key, self.partial(step, key)
        if (found := self.peek(step, inputs)) is not None:
            return found
        try:
            with contextlib.ExitStack() as stack:

                def prepare() -> bool:
                    final.parent.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(final.with_name(f".{key}.lock")))
                    found, damaged = self._find(step, key)  # another run may have finished it meanwhile
                    if found is None:
                        _prepare(final, partial, damaged, resumable)
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
        except StorageError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise _why(error, final.parent) from error
            raise
        finished = self.peek(step, inputs)
        assert finished is not None
        return finished

    def peek(self, step: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """The step with these ``inputs`` if it is finished and whole; all processes ask together.

        The first one looks, and tells the others: a shared disk need not show all of them the same.
        """
        key = self.key(step, inputs)
        if (step, key) in self._checked:
            return self._checked[step, key]
        found = processes.by_main(lambda: self._find(step, key)[0])
        return None if found is None else self._checked.setdefault((step, key), found)

    def _finish(self, step: str, key: str, inputs: dict[str, Any], folder: Path, seconds: float) -> None:
        written = {}
        (folder / MANIFEST).unlink(missing_ok=True)  # of a run that was stopped just before the renaming
        for pattern in (".*.partial", ".tmp*"):  # of processes that were killed while they, or safetensors, wrote
            for leftover in folder.rglob(pattern):
                leftover.unlink()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            written[path.relative_to(folder).as_posix()] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
        manifest = {
            "step": step, "key": key, "inputs": inputs, "files": written, "seconds": round(seconds, 1), **provenance()
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))

    def _find(self, step: str, key: str) -> tuple[Artifact | None, list[Path]]:
        """The finished step, or nothing and the files of it that are damaged."""
        folder = self.root / step / key
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
        if damaged:
            if (step, key) not in self._named:
                self._named.add((step, key))
                names = ", ".join(str(folder / name) for name in damaged)
                warnings.warn(f"damaged (checksum differs): {names}; computing {step} again", stacklevel=5)
            return None, [folder / name for name in damaged]
        return Artifact(step, key, folder, manifest), []

    @staticmethod
    def _damaged(path: Path, entry: dict[str, Any], content: bool) -> bool:
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return True
        return content and files.sha256(path) != entry["sha256"]

    def finished(self) -> list[Artifact]:
        """All finished steps, oldest first, without comparing checksums; unreadable manifests are passed over."""
        found = []
        for path in sorted(self.root.glob(f"*/[!.]*/{MANIFEST}"), key=lambda path: path.stat().st_mtime):
            with contextlib.suppress(ValueError, KeyError):
                manifest = json.loads(path.read_text())
                found.append(Artifact(manifest["step"], manifest["key"], path.parent, manifest))
        return found
