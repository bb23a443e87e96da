"""EDM's checkpoints: its pickles, read without executing them, and files that EDM and the released code load."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfpp.base import files, pickles
from rfpp.base.checks import one_of
from rfpp.checkpoints.descriptions import kinds
from rfpp.checkpoints.weights import SHOWN, assemble, imported
from rfpp.denoisers import EDMPrecond, VPPrecond
from rfpp.flow import RectifiedFlow
from rfpp.networks import DiffusersUNet

_MOST_MODULES = 20_000


def _parts(module: pickles.Object, key: str) -> dict[str, Any]:
    found = module.state.get(key)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise pickles.Refused(f"module {module.class_name} has no {key}")
    return found


def _state_dict(root: pickles.Object) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module and its submodules, under their ``state_dict`` names."""
    tensors: dict[str, Tensor] = {}
    waiting, seen = [("", root)], {id(root)}
    for _ in range(_MOST_MODULES):
        if not waiting:
            return tensors
        prefix, module = waiting.pop()
        for key in ("_parameters", "_buffers"):
            for name, value in _parts(module, key).items():
                if isinstance(value, Tensor):
                    tensors[prefix + name] = value
                elif value is not None:
                    raise pickles.Refused(f"{prefix}{name} is a {type(value).__name__}, not a tensor")
        for name, child in _parts(module, "_modules").items():
            if isinstance(child, pickles.Object):
                if id(child) in seen or len(name) > 100:
                    raise pickles.Refused(f"module {prefix}{name[:100]} is part of two others, or of itself")
                seen.add(id(child))
                waiting.append((f"{prefix}{name}.", child))
    raise pickles.Refused(f"it has more than {_MOST_MODULES} modules")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _arguments(module: pickles.Object, names: Sequence[str]) -> dict[str, Any]:
    """Return the constructor arguments that EDM stores with each module, by name."""
    positional, named = module.state.get("_init_args", ()), module.state.get("_init_kwargs", {})
    if not isinstance(positional, tuple | list) or len(positional) > len(names) or not isinstance(named, dict):
        raise pickles.Refused(f"its {module.class_name} does not say how it was made (_init_args, _init_kwargs)")
    return {**dict(zip(names, positional, strict=False)), **named}


_PRECOND_ARGUMENTS = ("img_resolution", "img_channels", "label_dim", "use_fp16")

_PRECOND_ONLY = {
    "img_channels", "use_fp16", "model_type", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M",
    "epsilon_t",
}  # fmt: skip


def _edm_network(root: pickles.Object, network: pickles.Object) -> dict[str, Any]:
    """Describe EDM's network by its constructor arguments, or else by those of its preconditioning."""
    kind = network.class_name
    one_of("the file's network class", kind, ["SongUNet", "DhariwalUNet"])
    names = [name for name in inspect.signature(kinds()[kind]).parameters if name != "generator"]
    arguments = _arguments(network, names)
    if not arguments:
        outer = _arguments(root, _PRECOND_ARGUMENTS)
        channels = outer.get("img_channels", 3)
        arguments = {name: value for name, value in outer.items() if name not in _PRECOND_ONLY}
        arguments.update(in_channels=channels, out_channels=channels)
    unknown = [name for name in arguments if name not in names]
    if unknown:
        raise pickles.Refused(f"its {kind} has an argument {str(unknown[0])[:100]!r}; known: {', '.join(names)}")
    return {"type": kind, "config": {name: _listed(value) for name, value in arguments.items()}}


def load_edm_pickle(path: str | Path, key: str = "ema") -> EDMPrecond | VPPrecond:
    """Load the denoiser of one of EDM's ``.pkl`` files, without executing any of it, in evaluation mode on the CPU.

    ``key``: the entry of the file's dictionary. Files of class ``EDMPrecond`` and ``VPPrecond`` are understood.
    Raises ``FileNotFoundError``, :class:`rfpp.base.pickles.Refused` (a ``ValueError``) for a file that is damaged or
    names anything that weights do not need, and ``ValueError`` naming the tensors that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = pickles.read_file(path)
    try:
        if not isinstance(content, dict) or not isinstance(content.get(key), pickles.Object):
            held = ", ".join(map(repr, list(content)[:SHOWN])) if isinstance(content, dict) else type(content).__name__
            raise pickles.Refused(f"it has no model under {key!r}; it holds: {held}")
        root: pickles.Object = content[key]
        one_of("the file's class", root.class_name, ["EDMPrecond", "VPPrecond"])
        network = _parts(root, "_modules").get("model")
        if not isinstance(network, pickles.Object):
            raise pickles.Refused(f"its {root.class_name} has no network called 'model'")
        tensors = _state_dict(root)

        def number(name: str, default: float) -> float:
            value = root.state.get(name, default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
                raise pickles.Refused(f"its {name} is not a number above 0 and below 1e9")
            return float(value)

        description: dict[str, Any] = {"type": root.class_name, "network": _edm_network(root, network)}
        if root.class_name == "EDMPrecond":
            description["sigma_data"] = number("sigma_data", 0.5)
        else:
            schedule = {"beta_min": number("beta_min", 0.1), "beta_d": number("beta_d", 19.9)}
            description["schedule"] = {"type": "LinearSchedule", **schedule, "steps": round(number("M", 1000))}
            description["prediction"] = "epsilon"
    except ValueError as error:
        raise pickles.Refused(f"{path} is refused: {error}") from error
    made = assemble(description, tensors, path, torch.float32)
    denoiser: EDMPrecond | VPPrecond = imported(made, path, "EDM pickle", entry=key)
    return denoiser


def export_edm(obj: RectifiedFlow | EDMPrecond | VPPrecond, path: str | Path) -> Path:
    """Write the weights of a flow or denoiser under the names that EDM and the released code expect.

    ``path`` ends in ``.safetensors``, or in ``.pth`` for a file of ``torch.save`` that holds nothing but tensors.
    Raises ``TypeError`` for another object, ``ValueError`` for another ending.
    """
    path = Path(path)
    denoiser = obj.denoiser if isinstance(obj, RectifiedFlow) else obj
    if not isinstance(denoiser, EDMPrecond | VPPrecond) or isinstance(denoiser.model, DiffusersUNet):
        raise TypeError(f"a {type(obj).__name__} has no network of EDM; allowed: a flow or denoiser that has one")
    one_of("path's ending", path.suffix, (".pth", ".safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    if path.suffix == ".safetensors":
        files.write_tensors(path, tensors)
    else:
        files.write_torch(path, tensors)
    return path
