"""What a study found, kept beside the claim records, so that other scales can be shown with it."""

from __future__ import annotations

import json
from typing import Any

from rfpp.base import files, paths
from rfpp.experiment import Experiment


def keep(experiment: Experiment, study: str, content: Any) -> None:
    """Write a study's result, a JSON value, beside the experiment's claim records."""
    folder = experiment.folder / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{study}.json", json.dumps(content, indent=1) + "\n")


def kept(experiment: Experiment, study: str, beside: bool = False) -> dict[str, Any]:
    """A study's results by preset: those with the book, and this run's; with ``beside`` those of runs beside it, too.

    The result of a run takes the place of the one with the book.
    """
    runs = experiment.folder.parent.glob(f"*/claims/{study}.json") if beside else ()
    places = {path.parent.name: path for path in (paths.repository() / "book" / "records").glob(f"*/{study}.json")}
    places |= {path.parents[1].name: path for path in runs}
    places[experiment.preset.name] = experiment.folder / "claims" / f"{study}.json"
    return {name: json.loads(path.read_text()) for name, path in sorted(places.items()) if path.is_file()}
