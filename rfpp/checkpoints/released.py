"""Files of the paper's released code: 2-rectified flow++, its teachers, and training states."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfpp import networks
from rfpp.base import pickles
from rfpp.base.checks import nearest, one_of
from rfpp.checkpoints.descriptions import kinds
from rfpp.checkpoints.weights import assemble, imported, read_json, state_dict
from rfpp.flow import RectifiedFlow

_TYPES = {"songunet": "SongUNet", "adm": "DhariwalUNet"}
_BESIDE = {"unet_type", "num_params", "use_fp16"}
"""Entries of the released configurations that are no arguments of a network."""
_UNUSED = {"aux_dim": 0, "aug": False}
"""Parts of a network that the released code supports but the paper does not use, with the values for their absence."""


def _kind(network: Mapping[str, Any]) -> str:
    """Return the class of network in a released configuration.

    Configurations that come with the code name the class. Those that the code writes (``config_unet.json``) do not, but
    hold every argument: ``embedding_type`` then distinguishes NCSN++ and DDPM++ from ADM.
    """
    is_adm = "num_params" in network and "embedding_type" not in network
    unet_type = network.get("unet_type", "adm" if is_adm else "songunet")
    one_of("unet_type", unet_type, _TYPES)
    return _TYPES[unet_type]


def _arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's arguments in a released configuration; ``ValueError`` for parts that no network here has."""
    for name, absent in _UNUSED.items():
        if network.get(name, absent) != absent:
            value = repr(network[name])[:100]
            raise ValueError(f"network: {name}={value} asks for a part that is not supported; allowed: {absent!r}")
    return {name: value for name, value in network.items() if name not in _BESIDE and name not in _UNUSED}


def _description(network: str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a network given by name, by the file of a released configuration, or by the file's content."""
    if isinstance(network, str | Path) and str(network).endswith(".json"):
        network = read_json(Path(network))
    if isinstance(network, str | Path):
        one_of("network", str(network), networks.PAPER)
        made, config = networks.PAPER[str(network)]
        kind, config = made.__name__, {"in_channels": 3, "out_channels": 3, **config, **changes}
    else:
        network = {**network, **changes}
        kind, config = _kind(network), _arguments(network)
    known = inspect.signature(kinds()[kind]).parameters
    for name in config:
        if name not in known:
            raise ValueError(f"network: {kind} has no argument {name!r}{nearest(name, known)}")
    return {"type": kind, "config": config}


def _averaged(state: Mapping[str, Tensor], optimizer: Any) -> dict[str, Tensor] | None:
    """Return the weights, replaced by their averages in the optimizer's state; ``None`` if it holds no averages.

    The optimizer numbers the parameters in the order of the state dict and does not count its buffers.
    """
    entries = optimizer.get("state") if isinstance(optimizer, dict) else None
    if not isinstance(entries, dict) or not any(
        isinstance(entry, dict) and "ema" in entry for entry in entries.values()
    ):
        return None
    parameters = [name for name in state if name.rpartition(".")[2] not in ("freqs", "resample_filter")]
    averaged = dict(state)
    for number, entry in entries.items():
        if not isinstance(number, int) or not 0 <= number < len(parameters):
            raise ValueError(f"the optimizer has a parameter number {number}, but the model has only {len(parameters)}")
        if isinstance(entry, dict) and isinstance(entry.get("ema"), Tensor):
            name = parameters[number]
            if entry["ema"].shape != state[name].shape:
                raise ValueError(
                    f"the average of {name} has shape {tuple(entry['ema'].shape)}, expected {tuple(state[name].shape)}"
                )
            averaged[name] = entry["ema"]
    return averaged


def load_released(
    path: str | Path, network: str | Path | Mapping[str, Any], weights: str | None = None, **changes: Any
) -> RectifiedFlow:
    """Load the flow in a ``.pth`` file of the paper's released code, in evaluation mode on the CPU.

    ``network``: a name in :data:`rfpp.networks.PAPER`, or a released configuration, as a dictionary or a ``.json``
    file, such as the ``config_unet.json`` that the released sampler writes; ``changes`` replace its arguments
    (``label_dim=10``). The file at ``path`` is a state dict or a training state. From a training state, ``weights``
    selects the averaged (``"ema"``) or the last (``"model"``) weights, by default the averaged ones if it has them. A
    released EDM teacher is the flow's ``denoiser``.

    Raises ``FileNotFoundError``, :class:`rfpp.base.pickles.Refused` for a file that holds more than tensors, and
    ``ValueError`` for an unknown network or for tensors that do not fit, naming them.
    """
    path = Path(path)
    if weights is not None:
        one_of("weights", weights, ("ema", "model"))
    description = _description(network, changes)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = pickles.read_torch(path)
    is_training = isinstance(content, dict) and "model_state_dict" in content
    state = state_dict(content["model_state_dict"] if is_training else content, path)
    if not any(name.startswith("model.") for name in state):
        state = {f"model.{name}": tensor for name, tensor in state.items()}  # the file holds the network alone
    if weights is not None and not is_training:
        raise ValueError(
            f"weights={weights!r}, but {path} is not a training state: it holds one set of weights; leave weights out"
        )
    averaged = None
    if is_training and weights != "model":
        try:
            averaged = _averaged(state, content.get("optimizer_state_dict"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if weights == "ema" and averaged is None:
        raise ValueError(f"weights='ema', but {path} has no averaged weights; allowed: 'model'")
    denoiser = {"type": "EDMPrecond", "sigma_data": 0.5, "network": description}
    flow = RectifiedFlow(assemble(denoiser, averaged or state, path, torch.float32))
    taken = "as stored" if not is_training else "model" if averaged is None else "ema"
    released: RectifiedFlow = imported(flow.eval(), path, "released state dict", weights=taken)
    return released
