"""Models on disk: safetensors with the model's make-up in the header, so that a file alone rebuilds it.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from rfpp import files
from rfpp.checks import one_of
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.networks import DhariwalUNet, SongUNet

_HEADER = "rfpp"
_NETWORKS: dict[str, Any] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


def _networks() -> dict[str, Any]:
    from rfpp.features import DigitNet  # imports torchvision: only when a file is read or written

    return {**_NETWORKS, "DigitNet": DigitNet}


def describe(obj: nn.Module) -> dict[str, Any]:
    """What :func:`build` needs to make ``obj`` again, without its weights.

    Raises ``TypeError`` for anything but a flow, a denoiser or a network of this package.
    """
    if isinstance(obj, RectifiedFlow):
        return {"type": "RectifiedFlow", "denoiser": describe(obj.denoiser)}  # type: ignore[arg-type]
    if isinstance(obj, EDMPrecond):
        return {"type": "EDMPrecond", "sigma_data": obj.sigma_data, "network": describe(obj.model)}
    name = type(obj).__name__
    if name not in _networks():
        raise TypeError(f"a {name} cannot be saved; allowed: RectifiedFlow, EDMPrecond, {', '.join(_networks())}")
    return {"type": name, "config": obj.config}


def build(description: dict[str, Any]) -> nn.Module:
    """The model of a description, with untrained weights."""
    kind = description["type"]
    one_of("type", kind, ["RectifiedFlow", "EDMPrecond", *_networks()])
    if kind == "RectifiedFlow":
        return RectifiedFlow(build(description["denoiser"]))
    if kind == "EDMPrecond":
        return EDMPrecond(build(description["network"]), description["sigma_data"])
    return _networks()[kind](**description["config"])


def save(obj: nn.Module, path: str | Path, **metadata: str) -> Path:
    """Write a flow, denoiser or network to ``path`` (safetensors); ``metadata`` goes into the header beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in obj.state_dict().items()}
    files.write_tensors(path, tensors, {**metadata, _HEADER: json.dumps(describe(obj), sort_keys=True)})
    return path


def load(path: str | Path) -> nn.Module:
    """The model that :func:`save` wrote, in evaluation mode on the CPU.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file when it is damaged or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); delete it and make it again") from error
    if header is None:
        raise ValueError(
            f"{path} is a safetensors file, but its header does not say what it holds ({_HEADER!r} is missing)"
        )
    model = build(json.loads(header))
    model.load_state_dict(tensors)
    return model.eval()
