"""Where the scripts that need images take them from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from provenance import tests

tests()
from shrunk import coloured_digits  # noqa: E402


def _known() -> Path | None:
    """CIFAR-10 in the folder of datasets, or one folder down."""
    folder = Path(os.environ.get("RFPP_DATA") or "nowhere")
    return next((path.parent for at in ("", "*/") for path in folder.glob(f"{at}data_batch_1.bin")), None)


def options(top: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The option ``--data``, added to a parser."""
    top.add_argument(
        "--data", type=Path, default=_known(),
        help="CIFAR-10's binary version, or a folder or archive of 32x32 images with train/<class>/ and test/<class>/; "
        "by default the former in $RFPP_DATA",
    )  # fmt: skip
    return top


def settings(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """What a preset has to be told; without images, coloured digits in the same format are written into ``scratch``."""
    if arguments.data is None:
        place = scratch / "cifar-10-batches-bin"
        place.mkdir()
        return {"data.path": coloured_digits(place)}
    data = arguments.data.expanduser().resolve()
    if not data.exists():
        raise SystemExit(f"--data={data} does not exist; give a folder or an archive of images")
    binary = any(data.rglob("data_batch_1.bin")) if data.is_dir() else "binary" in data.name
    return {"data.path": str(data), **({} if binary else {"data.name": "images"})}
