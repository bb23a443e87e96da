"""Every notebook at a shrunk ``cifar10``, as the tests shrink it: whether it runs to its end on this device.

The numbers that the notebooks show have no meaning at this size; they are left in a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
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

MORE = {"costs": {"graded": ["A"]}}
"""What the tests leave out, because Inception takes minutes on a CPU; here a small network grades."""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run them one after the other, on to the next where one fails."""
    top = options(parser(__doc__))
    top.add_argument("notebooks", nargs="*", help="parts of their names; all by default, with --small one")
    arguments = top.parse_args(argv)
    report = Report(__file__, arguments)
    slugs = arguments.notebooks or (["timesteps"] if arguments.small else list(LIGHT))
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, RFPP_RUNS=folder):
        changes = {**SHRUNK, **LIGHTER, **settings(arguments, Path(folder))}
        for slug in slugs:
            start, end = time.perf_counter(), "finished"
            try:
                parameters = {**LIGHT[slug], **MORE.get(slug, {}), "settings": changes}
                book.run("cifar10", [slug], parameters, terminal=io.StringIO())
            except book.NotebookFailed as error:
                end = str(error).partition("\nThe notebook")[0]
            manifests = [json.loads(path.read_text()) for path in Path(folder).rglob("manifest.json")]
            report.add(
                notebook=slug, end=end, seconds=time.perf_counter() - start,
                devices=sorted({manifest["device"] for manifest in manifests}),
            )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(any(row["end"] != "finished" for row in main()["rows"]))
