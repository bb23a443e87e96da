"""Weights from any file. Their names and shapes are compared with the model before any of them is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rfpp.base import files
from rfpp.checkpoints.descriptions import build

SHOWN = 5
"""How many problems or entries of a file a message lists."""


def _problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the differences between a model's ``expected`` weights and those ``found``, one sentence per tensor."""
    for name in expected.keys() | found.keys():
        if name not in found:
            yield f"{name} is missing, expected shape {tuple(expected[name].shape)}"
        elif name not in expected:
            yield f"{name} of shape {tuple(found[name].shape)} is not expected"
        elif found[name].shape != expected[name].shape:
            yield f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        elif expected[name].is_floating_point() and not found[name].is_floating_point():
            yield f"{name} has dtype {found[name].dtype}, expected a floating-point one"
        elif expected[name].is_floating_point() and not (finite := found[name].float().isfinite()).all():
            yield f"{name} has {int((~finite).sum())} values that are NaN or infinite"


def _classes(tensors: Mapping[str, Tensor]) -> int:
    weight = next((tensor for name, tensor in tensors.items() if name.endswith("map_label.weight")), None)
    return 0 if weight is None or weight.ndim != 2 else weight.shape[1]


def assemble(
    description: dict[str, Any], tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype | None = None
) -> nn.Module:
    """Return the described model with these weights, in evaluation mode on the CPU; copied to ``dtype`` if given.

    Raises ``ValueError`` naming the tensors that are missing, too many, of another shape, or not numbers.
    """
    try:
        with torch.device("meta"):
            model = build(description)
    except (TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{source} describes a model that cannot be made: {error}") from error
    expected = model.state_dict()
    problems = sorted(_problems(expected, tensors))
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        labels = ""
        if _classes(expected) != _classes(tensors):
            labels = f"the file has {_classes(tensors)} classes, the network label_dim={_classes(expected)}; "
        raise ValueError(f"{source} does not fit {type(model).__name__}: {labels}{'; '.join(problems[:SHOWN])}{more}")
    if dtype is not None:
        # Tensors that share a storage are copied, too. The copies are no larger than the model, whose size was checked.
        options: dict[str, Any] = {"copy": True, "memory_format": torch.contiguous_format}
        tensors = {name: tensor.to(dtype, **options) for name, tensor in tensors.items()}
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()


def imported(model: Any, path: Path, form: str, **more: Any) -> Any:
    """Record where a model came from, for :func:`save` to keep."""
    model.provenance = {"format": form, "file": path.name, "sha256": files.sha256(path), **more}
    return model


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration from a file; ``FileNotFoundError`` or ``ValueError``, naming the file, if there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a JSON object is needed")
    return content


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return ``content`` as a state dict, without the prefixes that compilation and distribution add to names."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} is not a state dict: {str(name)[:100]!r} is a {type(value).__name__}")
        plain = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        if plain in found:
            raise ValueError(f"{path} has {plain} twice, the second time as {name}")
        found[plain] = value
    return found


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a safetensors file; ``FileNotFoundError``, or ``ValueError`` for a damaged file."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); make it again") from error
