"""Import torchvision beside a torch build that its compiled operators do not fit.

``lpips`` and ``torch_fidelity`` import torchvision, whose own import fails with ``operator torchvision::nms does not
exist`` where its compiled operators do not fit the installed torch (a CPU torch beside the default torchvision wheel).
Neither needs those operators: declaring their schemas is enough. Where the builds match, nothing is declared.
"""

from __future__ import annotations

import importlib
import sys

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
