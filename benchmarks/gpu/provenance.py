"""What the scripts share: their arguments, what a measurement was made with, and the file it goes to."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from rfpp.base import files, paths
from rfpp.pipeline import store

REPOSITORY = Path(__file__).resolve().parents[2]


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options of every script."""
    top = argparse.ArgumentParser(description=text)
    top.add_argument("--small", action="store_true", help="run a small version that takes seconds on a CPU")
    top.add_argument("--out", type=Path, help="the JSON file to write; in the folder of results by default")
    return top


def choice(top: argparse.ArgumentParser, name: str, known: Sequence[str]) -> None:
    """An option ``--name`` that takes some of the ``known``: short leases can share them out."""
    top.add_argument(f"--{name}", nargs="*", choices=known, default=list(known), help="all by default")


def _said(*command: str) -> str | None:
    """What a program says in a line; ``None`` where there is no such program, or it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip().partition("\n")[0]


def provenance(small: bool) -> dict[str, Any]:
    """What a result was measured with; ``RFPP_COMMIT`` names the commit where a copy of the code has no ``.git``."""
    found: dict[str, Any] = {
        **store.provenance(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "shrunk": small,
        "commit": os.environ.get("RFPP_COMMIT") or _said("git", "rev-parse", "HEAD"),
        "changed files": (_said("git", "status", "--porcelain", "--untracked-files=no") or None) is not None,
        "cuda": torch.version.cuda, "cudnn": None, "driver": None, "gpus": torch.cuda.device_count(),
    }  # fmt: skip
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["memory in GiB"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return found


class Report:
    """The rows that a script finds. The file is written after each: what ends early leaves what it had found.

    Ends the program where there is no GPU, unless it runs ``--small``.
    """

    def __init__(self, script: str, arguments: argparse.Namespace) -> None:
        if not (arguments.small or torch.cuda.is_available()):
            raise SystemExit(
                f"{script}: torch {torch.__version__} sees no CUDA GPU here, and the measurement needs one; "
                "--small runs a small version on the CPU, only to try the script out"
            )
        self.name = Path(script).stem
        default = paths.runs() / "gpu" / f"{self.name}{'-small' if arguments.small else ''}.json"
        self.path: Path = arguments.out or default
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items() if k != "out"}
        self.content: dict[str, Any] = {
            "script": self.name, "options": options, "provenance": provenance(arguments.small), "rows": [],
        }  # fmt: skip

    def add(self, **row: Any) -> None:
        """Take in a row, show it, and write the file."""
        self.content["rows"].append(row)
        print(", ".join(f"{name}: {_shown(value)}" for name, value in row.items()), flush=True)
        self.write()

    def write(self, **more: Any) -> None:
        """Write the file, whole, with ``more`` beside the rows."""
        self.content.update(more)
        files.write_text(self.path, json.dumps(_plain(self.content), indent=1, allow_nan=False) + "\n")

    def finish(self) -> dict[str, Any]:
        """Say where the file is, and return its content."""
        self.write()
        print(self.path)
        return self.content


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def tests() -> None:
    """Let a script import what the tests shrink presets with."""
    folder = str(REPOSITORY / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
