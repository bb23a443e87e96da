"""Our own files: safetensors with the model's description and provenance in the header."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import rfpp
from rfpp.base import files
from rfpp.checkpoints.descriptions import describe
from rfpp.checkpoints.weights import assemble, read_safetensors

_HEADER, _PROVENANCE = "rfpp", "provenance"


def save(obj: nn.Module, path: str | Path, **metadata: str) -> Path:
    """Write a flow, denoiser or network to ``path`` (safetensors).

    The header holds the model's description, the versions of this package and torch and, for an imported model, its
    origin; ``metadata`` is added to it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in obj.state_dict().items()}
    origin = getattr(obj, _PROVENANCE, None) or getattr(getattr(obj, "denoiser", None), _PROVENANCE, {})
    provenance = {"rfpp": rfpp.__version__, "torch": torch.__version__, **origin}
    header = {
        _HEADER: json.dumps(describe(obj), sort_keys=True),
        _PROVENANCE: json.dumps(provenance, sort_keys=True),
    }
    files.write_tensors(path, tensors, {**metadata, **header})
    return path


def load(path: str | Path) -> nn.Module:
    """Load a model that :func:`save` wrote, in evaluation mode on the CPU, with its ``provenance``.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file if it is damaged or not one of ours.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if _HEADER not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but its header does not say what it holds ({_HEADER!r} is missing)"
        )
    try:
        description, provenance = json.loads(metadata[_HEADER]), json.loads(metadata.get(_PROVENANCE, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); delete it and make it again") from error
    model = assemble(description, tensors, path)
    model.provenance = provenance
    return model
