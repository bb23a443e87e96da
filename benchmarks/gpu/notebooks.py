"""Every notebook at a shrunk ``cifar10``, as the tests shrink it: whether it runs to its end on this device.

The numbers that the notebooks show have no meaning at this size; they are left in a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from images import options, settings
from provenance import Report, parser, tests

from rfpp import book

tests()
from shrunk import LIGHT, LIGHTER, SHRUNK  # noqa: E402


def traceback(folder: Path) -> list[str]:
    """Where a notebook failed, innermost last; the notebook itself lies in a folder that is deleted."""
    found = sorted(folder.rglob("*.failed.ipynb"), key=os.path.getmtime)[-1:]
    cells = [cell for path in found for cell in json.loads(path.read_text())["cells"]]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    last = [line for output in outputs for line in output.get("traceback", [])]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(last)).splitlines()[-40:]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run them one after the other, on to the next where one fails."""
    top = options(parser(__doc__))
    top.add_argument("notebooks", nargs="*", help="parts of the notebooks' names; by default all, with --small one")
    arguments = top.parse_args(argv)
    report = Report(__file__, arguments)
    slugs = arguments.notebooks or (["timesteps"] if arguments.small else list(LIGHT))
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, RFPP_RUNS=folder):
        changes = {**SHRUNK, **LIGHTER, **settings(arguments, Path(folder))}
        for slug in slugs:
            start, end, where = time.perf_counter(), "finished", {}
            try:
                book.run("cifar10", [slug], {**LIGHT[slug], "settings": changes}, terminal=io.StringIO())
            except book.NotebookFailed as error:
                end = str(error).partition("\nThe notebook")[0]
                where = {"traceback": traceback(Path(folder))}
            manifests = [json.loads(path.read_text()) for path in Path(folder).rglob("manifest.json")]
            report.add(
                notebook=slug, end=end, seconds=time.perf_counter() - start,
                devices=sorted({manifest["device"] for manifest in manifests}), **where,
            )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(any(row["end"] != "finished" for row in main()["rows"]))
