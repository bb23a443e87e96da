"""Locations of the repository, its runs and datasets, and downloads, wherever the process was started."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

LEDGER = Path("book") / "claims.yml"


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} begins with the home of a user who is not known here: {error}") from error


@cache
def _search(start: Path) -> Path | None:
    package = Path(__file__).resolve().parents[1]
    candidates = [start, *start.parents, package.parent]
    return next((folder for folder in candidates if (folder / LEDGER).is_file()), None)


def repository() -> Path:
    """The checkout: the folder with ``book/claims.yml`` at or above the working directory, or around the package.

    Raises ``FileNotFoundError`` outside a checkout.
    """
    found = _search(Path.cwd())
    if found is None:
        raise FileNotFoundError(
            f"{LEDGER} is not in {Path.cwd()}, in a folder above it, or next to the package; run this in a checkout"
        )
    return found


def runs() -> Path:
    """The folder of results: ``RFPP_RUNS`` if set, else ``runs/`` in the checkout or in the working directory.

    Raises ``NotADirectoryError`` where that is a file or within one.
    """
    given = os.environ.get("RFPP_RUNS")
    folder = _expanded(given).resolve() if given else (_search(Path.cwd()) or Path.cwd()) / "runs"
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"results cannot be kept in {folder}, because {existing} is a file; set RFPP_RUNS to another folder"
        )
    return folder


def downloads() -> Path:
    """The folder of downloads, shared by all checkouts: ``RFPP_CACHE``, else ``rfpp`` in the user's cache folder."""
    if os.environ.get("RFPP_CACHE"):
        return _expanded(os.environ["RFPP_CACHE"]).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfpp"


def datasets(path: str | Path) -> Path:
    """The location of a dataset. A relative path starts from ``RFPP_DATA`` if set, else from ``datasets/`` in the
    checkout or in the working directory."""
    folder = os.environ.get("RFPP_DATA")
    root = _expanded(folder) if folder else (_search(Path.cwd()) or Path.cwd()) / "datasets"
    return (root / _expanded(path)).resolve()
