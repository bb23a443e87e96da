"""Models of the diffusers library: a ``UNet2DModel`` and its scheduler."""

from __future__ import annotations

from pathlib import Path

import torch

from rfpp.base import pickles
from rfpp.base.checks import one_of
from rfpp.checkpoints.descriptions import describe
from rfpp.checkpoints.weights import assemble, imported, read_json, read_safetensors, state_dict
from rfpp.denoisers import DiscreteSchedule, VPPrecond
from rfpp.networks import DiffusersUNet

_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)

_WEIGHTS = "diffusion_pytorch_model"

_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the parts of an attention block in early diffusers models, with today's names."""


def load_diffusers(folder: str | Path) -> VPPrecond:
    """Load the VP denoiser in a folder with a diffusers ``UNet2DModel`` and its scheduler, e.g. a DDPM.

    Both layouts are understood: ``unet/`` and ``scheduler/``, or all files in one folder. Weights are read from
    safetensors, or else from ``.bin`` without executing it. Needs the extra ``diffusers``.

    Raises ``FileNotFoundError`` and ``ValueError`` naming the part that is missing, unknown or does not fit, and
    ``ImportError`` without diffusers.
    """
    folder = Path(folder)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config = read_json(unet / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{unet / 'config.json'} describes a {config['_class_name']}; allowed: UNet2DModel")
    in_folder = folder / "scheduler" / "scheduler_config.json"
    scheduler_file = in_folder if in_folder.is_file() else folder / "scheduler_config.json"
    scheduler = read_json(scheduler_file)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    one_of(f"_class_name of {scheduler_file}", scheduler.get("_class_name", _SCHEDULERS[0]), _SCHEDULERS)
    try:
        with torch.device("meta"):
            network = DiffusersUNet(**config)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{unet / 'config.json'}: {error}") from error
    from diffusers import DDPMScheduler

    try:
        schedule = DiscreteSchedule(DDPMScheduler.from_config(scheduler).alphas_cumprod)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{scheduler_file}: {error}") from error
    prediction = scheduler.get("prediction_type", "epsilon")
    one_of("prediction_type", prediction, ("epsilon", "sample", "v_prediction"))
    path = unet / f"{_WEIGHTS}.safetensors"
    if path.is_file():
        tensors, _ = read_safetensors(path)
    else:
        path = unet / f"{_WEIGHTS}.bin"
        if not path.is_file():
            raise FileNotFoundError(f"{unet} has neither {_WEIGHTS}.safetensors nor {_WEIGHTS}.bin")
        tensors = state_dict(pickles.read_torch(path), path)
    expected = network.unet.state_dict()
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in _OLD_ATTENTION.items():
            if name not in expected and name.replace(old, new) in expected:
                name = name.replace(old, new)
        renamed[f"model.unet.{name}"] = tensor
    description = {
        "type": "VPPrecond",
        "schedule": schedule.config,
        "prediction": prediction,
        "network": describe(network),
    }
    denoiser: VPPrecond = imported(assemble(description, renamed, path, torch.float32), path, "diffusers")
    return denoiser
