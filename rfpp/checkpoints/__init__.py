"""Models on disk: ours, and those that others have published.

Our files are safetensors with the model's description and provenance in the header, so that the file alone is enough to
rebuild the model: :func:`save`, :func:`load`. Other formats are EDM's pickles (:func:`load_edm_pickle`), the released
2-rectified flow++ state dicts (:func:`load_released`) and diffusers models (:func:`load_diffusers`). Nothing is ever
unpickled: :mod:`rfpp.base.pickles` reads pickles without executing them.

Whatever the format, a network is first made without weights, on the meta device, and the names and shapes of all
tensors are compared with it before any tensor is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rfpp.base import downloads, files
from rfpp.checkpoints.descriptions import build, describe
from rfpp.checkpoints.diffusers import load_diffusers
from rfpp.checkpoints.edm import export_edm, load_edm_pickle
from rfpp.checkpoints.ours import load, save
from rfpp.checkpoints.released import load_released

__all__ = [
    "build",
    "describe",
    "export_edm",
    "load",
    "load_any",
    "load_diffusers",
    "load_edm_pickle",
    "load_released",
    "save",
]


def load_any(source: str | Path, sha256: str | None = None) -> Any:
    """Load a published model or our own by path or URL: EDM's ``.pkl``, our ``.safetensors``, or a diffusers folder.

    ``sha256``: the checksum that the file must have; without it, a download is compared with the first download.
    """
    is_url = downloads.is_address(source)
    path = downloads.fetch(str(source), sha256) if is_url else Path(source).expanduser()
    if not is_url and sha256 is not None and path.is_file() and (found := files.sha256(path)) != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, expected {sha256}")
    if path.is_dir():
        return load_diffusers(path)
    if path.suffix == ".pkl":
        return load_edm_pickle(path)
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{path} may be a state dict, which does not say of which network; "
            f"run: python -m rfpp import {path} model.safetensors --network NAME, and name the file that this writes"
        )
    return load(path)
