"""The status page: the software that built the book, when its notebooks ran, what steps took, which networks ship."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rfpp.base.files import sha256
from rfpp.book.tables import Table, device
from rfpp.claims.records import commit
from rfpp.pipeline import costs, shipped
from rfpp.pipeline.store import Artifact, Store, provenance

SHOWN = ("torch", "numpy", "jupyter-book", "Sphinx", "papermill")
"""Packages whose versions are shown, besides Python and the library itself."""
HASH = 16
"""How many digits of a checksum are shown."""


def moment(seconds: float) -> str:
    """A time as a date in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def software(preset: str) -> Table:
    """The software and the device that built the book."""
    found = provenance()
    rows = [("preset", f"`{preset}`"), ("rfpp", f"{found['rfpp']}, commit `{commit()}`"), ("Python", found["python"])]
    rows += [(name, metadata.version(name)) for name in SHOWN]
    rows += [("device", found["device"]), ("system", f"{platform.system()}, {platform.machine()}")]
    return Table(("part", "version"), rows)


def notebooks(run: Path, shown: Mapping[str, bool]) -> Table:
    """When each of the notebooks that the book shows was run; ``shown``: whether it was, by name."""
    rows = []
    for name, was_run in shown.items():
        when = moment((run / "notebooks" / f"{name}.ipynb").stat().st_mtime) if was_run else "not run, shown as stored"
        rows.append((f"{{doc}}`../notebooks/{name}`", when))
    return Table(("notebook", "run"), rows)


def steps(finished: Iterable[Artifact]) -> Table:
    """How many steps of each kind are kept, how long they took, and their size."""
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for artifact in finished:
        kinds[artifact.step].append(artifact.manifest)
    rows = []
    for kind, manifests in sorted(kinds.items()):
        seconds = [manifest["seconds"] for manifest in manifests]
        stored = sum(entry["bytes"] for manifest in manifests for entry in manifest["files"].values())
        where = sorted({f"{device(manifest['device'])}, torch {manifest['torch']}" for manifest in manifests})
        rows.append(
            (kind, len(manifests), costs.duration(sum(seconds)), costs.duration(max(seconds)), costs.size(stored),
             "; ".join(where))
        )  # fmt: skip
    return Table(("step", "finished", "time, all", "time, longest", "disk", "computed on"), rows)


def networks() -> Table:
    """The networks that ship with the library: checksums of the files, and of the recipes that made them."""
    rows = []
    for name, entry in json.loads(shipped.MANIFEST.read_text()).items():
        file = shipped.ASSETS / f"{name}.safetensors"
        whole = "as recorded" if sha256(file) == entry["sha256"] else "differs from what was recorded"
        rows.append(
            (f"`{name}`", costs.size(file.stat().st_size), f"`{entry['sha256'][:HASH]}`", whole,
             f"`{entry['recipe'][:HASH]}`")
        )  # fmt: skip
    return Table(("network", "size", "SHA-256", "file", "recipe"), rows)


def page(preset: str, run: Path, shown: Mapping[str, bool]) -> str:
    """The page, as MyST Markdown, of a book at ``preset`` whose steps and notebooks are kept in ``run``.

    ``shown``: its notebooks by name, and whether each was run for it.
    """
    parts: list[str | Table] = [
        "(status)=", "# Status", f"This book was built on {moment(datetime.now(UTC).timestamp())}.",
        software(preset), "## Notebooks", "Each page shows the output of the run in this table, "
        "or the one that is stored in the repository.",
        notebooks(run, shown), "## Steps",
        "Each finished step is stored with a record of the software and device that computed it. The table covers all "
        "steps in the folder of this preset, including those of other settings. Times are those of one process, when "
        "the step was first computed.",
        steps(Store(run).finished()), "## Networks that ship",
        f"The first {HASH} digits of each checksum are shown; `rfpp/assets/manifest.json` has them in full. To make a "
        "network again after its recipe has changed, run `python -m rfpp retrain`.",
        networks(),
    ]  # fmt: skip
    return "\n\n".join(part._repr_markdown_() if isinstance(part, Table) else part for part in parts) + "\n"
