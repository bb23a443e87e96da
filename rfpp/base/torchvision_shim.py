"""Import torchvision beside a torch build that its compiled operators do not fit.

``lpips`` and ``torch_fidelity`` import torchvision, whose own import fails with ``operator torchvision::nms does not
exist`` where its compiled operators do not fit the installed torch (a CPU torch beside the default torchvision wheel).
Neither needs those operators: declaring their schemas is enough. Where the builds match, nothing is declared.

Importing torchvision takes as long as the rest of this package, and few of its uses need it. So those that do load it.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_schemas: list[torch.library.Library] = []  # kept alive: a Library withdraws its operators when collected


def ensure() -> None:
    """Import torchvision; if its operators are missing, declare the two that its import needs."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
        importlib.import_module("torchvision")


def load(name: str) -> Any:
    """Import a module that needs torchvision, and return it."""
    ensure()
    return importlib.import_module(name)
