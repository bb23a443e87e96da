"""Descriptions of models as JSON, without their weights, and the models built from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import nn

from rfpp.base.checks import one_of
from rfpp.denoisers import DiscreteSchedule, EDMPrecond, LinearSchedule, VPPrecond
from rfpp.flow import RectifiedFlow
from rfpp.networks import DhariwalUNet, DiffusersUNet, SongUNet

_SCHEDULES: dict[str, Any] = {"LinearSchedule": LinearSchedule, "DiscreteSchedule": DiscreteSchedule}


def kinds() -> dict[str, Any]:
    """Return the classes of networks that files may hold, by name."""
    from rfpp.features import Classifier  # imports torchvision: only when a file is read or written

    return {
        "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "DiffusersUNet": DiffusersUNet, "Classifier": Classifier,
        "DigitNet": Classifier,  # its name in the shipped files
    }  # fmt: skip


def describe(obj: nn.Module) -> dict[str, Any]:
    """Return the description from which :func:`build` rebuilds ``obj``, without its weights.

    Raises ``TypeError`` for anything but a flow, a denoiser or a network of this package.
    """
    if isinstance(obj, RectifiedFlow):
        return {"type": "RectifiedFlow", "denoiser": describe(obj.denoiser)}  # type: ignore[arg-type]
    if isinstance(obj, EDMPrecond):
        return {"type": "EDMPrecond", "sigma_data": obj.sigma_data, "network": describe(obj.model)}
    if isinstance(obj, VPPrecond):
        return {
            "type": "VPPrecond",
            "schedule": obj.schedule.config,
            "prediction": obj.prediction,
            "network": describe(obj.model),
        }
    name = type(obj).__name__
    if name not in kinds():
        allowed = ", ".join(["RectifiedFlow", "EDMPrecond", "VPPrecond", *kinds()])
        raise TypeError(f"a {name} cannot be saved; allowed: {allowed}")
    return {"type": name, "config": obj.config}


def build(description: dict[str, Any]) -> nn.Module:
    """Build the model of a description, with untrained weights."""
    kind = description["type"]
    one_of("type", kind, ["RectifiedFlow", "EDMPrecond", "VPPrecond", *kinds()])
    if kind == "RectifiedFlow":
        return RectifiedFlow(build(description["denoiser"]))
    if kind == "EDMPrecond":
        return EDMPrecond(build(description["network"]), description["sigma_data"])
    if kind == "VPPrecond":
        schedule = dict(description["schedule"])
        make = _SCHEDULES[schedule.pop("type")]
        return VPPrecond(build(description["network"]), make(**schedule), description["prediction"])
    config = description["config"]
    if kind in ("SongUNet", "DhariwalUNet"):
        _check_arguments(kinds()[kind], config)
    else:
        _check_size(config)
    return kinds()[kind](**config)


_MOST_BLOCKS, _MOST_CHANNELS = 64, 1 << 16
"""Limits far above any published network, so that a file cannot demand a network of unbounded size."""


def _check_size(value: Any, name: str = "") -> None:
    """Raise ``ValueError`` if a configuration contains a number beyond that of any network."""
    most = _MOST_BLOCKS if name in ("num_blocks", "layers_per_block") else _MOST_CHANNELS
    if isinstance(value, int) and not -1 <= value <= most:
        raise ValueError(f"{name}={value} is too large or too small; allowed: -1..{most}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_size(item, key)
    elif isinstance(value, list | tuple):
        if len(value) > 64:
            raise ValueError(f"{name} has {len(value)} entries; at most 64 are allowed")
        for item in value:
            _check_size(item, name)


def _check_arguments(kind: Any, config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for an argument of another type than the constructor's, or of a size no network has."""
    hints = get_type_hints(kind.__init__)
    for name, value in config.items():
        if name not in hints:
            continue  # the constructor raises an error
        of_type = {
            int: isinstance(value, int) and not isinstance(value, bool),
            float: isinstance(value, int | float) and not isinstance(value, bool),
            str: isinstance(value, str),
        }.get(hints[name], isinstance(value, list | tuple) and all(type(item) is int for item in value))
        if not of_type:
            raise ValueError(f"{name} is a {type(value).__name__}; {hints[name]} is needed")
    _check_size(dict(config))
