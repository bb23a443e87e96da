"""The states of a training on disk, from which it continues after an interruption."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rfpp.base import files

FORMAT = 1


class Checkpoints:
    """The states of a training in a folder, each a pair of files: the tensors, and a note with their checksum.

    The note is written last, so a state without a note does not count. Damaged states are named in a warning and
    deleted.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def _files(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"step-{step:08d}.safetensors", self.folder / f"step-{step:08d}.json"

    def steps(self) -> list[int]:
        """Return the steps that have states, in order."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("step-*.json"))

    def note(self, step: int) -> dict[str, Any] | None:
        """Read the note of a state without its tensors; ``None`` if the note cannot be read."""
        try:
            found: dict[str, Any] = json.loads(self._files(step)[1].read_text())
        except (OSError, ValueError):
            return None
        return found

    def save(self, step: int, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> Path:
        """Write a state, and delete the states that need not be kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, beside = self._files(step)
        files.write_tensors(path, tensors)
        content = {**note, "format": FORMAT, "step": step, "sha256": files.sha256(path)}
        files.write_text(beside, json.dumps(content, sort_keys=True))
        for old in self.steps()[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                self._delete(old)
        self._sweep()
        return path

    def _delete(self, step: int) -> None:
        for file in reversed(self._files(step)):  # the note first
            file.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete incomplete files of processes that were killed while writing."""
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").is_file():
                path.unlink()
        for path in (*self.folder.glob(".tmp*"), *self.folder.glob(".*.partial")):
            path.unlink()

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a state's tensors and note; raises ``OSError``, or ``ValueError`` if the state is damaged."""
        path, beside = self._files(step)
        try:
            note = json.loads(beside.read_text())
            if note["format"] != FORMAT:
                raise ValueError(f"it has format {note['format']}; this version reads {FORMAT}")
            if files.sha256(path) != note["sha256"]:
                raise ValueError("its checksum differs")
        except (KeyError, TypeError) as error:
            raise ValueError(f"its note is damaged: {error}") from error
        return load_file(path), note

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the newest undamaged state, tensors and note.

        Damaged states are named in a warning and deleted; those that cannot be read now are named and kept.
        """
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except (OSError, ValueError) as error:
                path = self._files(step)[0]
                warnings.warn(f"{path} cannot be used ({error}); going back to the checkpoint before it", stacklevel=2)
                if isinstance(error, ValueError | FileNotFoundError):
                    self._delete(step)
        return None

    def clear(self) -> None:
        """Delete the states that a finished training does not need: all but every ``keep_every``-th."""
        for step in self.steps():
            if not self.keep_every or step % self.keep_every:
                self._delete(step)
        self._sweep()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
