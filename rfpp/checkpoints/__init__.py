"""Models on disk: ours, and those that others have published.

Ours are safetensors with the model's make-up and provenance in the header, so that a file alone rebuilds it:
:func:`save`, :func:`load`. From elsewhere come EDM's pickles (:func:`load_edm_pickle`), the released 2-rectified flow++
state dicts (:func:`load_released`) and diffusers models (:func:`load_diffusers`). Nothing is ever unpickled:
:mod:`rfpp.base.pickles` reads what has to be read.

Whatever the format, a network is first made without weights, on the meta device, and the tensors are compared with it
by name and shape before any of them is used.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import rfpp
from rfpp import networks
from rfpp.base import downloads, files, pickles
from rfpp.base.checks import nearest, one_of
from rfpp.denoisers import DiscreteSchedule, EDMPrecond, LinearSchedule, VPPrecond
from rfpp.flow import RectifiedFlow
from rfpp.networks import DhariwalUNet, DiffusersUNet, SongUNet

_HEADER, _PROVENANCE = "rfpp", "provenance"
_SCHEDULES: dict[str, Any] = {"LinearSchedule": LinearSchedule, "DiscreteSchedule": DiscreteSchedule}
_SHOWN = 5


def _networks() -> dict[str, Any]:
    from rfpp.features import Classifier  # imports torchvision: only when a file is read or written

    return {
        "SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet, "DiffusersUNet": DiffusersUNet, "Classifier": Classifier,
        "DigitNet": Classifier,  # what it is called in the files that ship
    }  # fmt: skip


def describe(obj: nn.Module) -> dict[str, Any]:
    """What :func:`build` needs to make ``obj`` again, without its weights.

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
    if name not in _networks():
        allowed = ", ".join(["RectifiedFlow", "EDMPrecond", "VPPrecond", *_networks()])
        raise TypeError(f"a {name} cannot be saved; allowed: {allowed}")
    return {"type": name, "config": obj.config}


def build(description: dict[str, Any]) -> nn.Module:
    """The model of a description, with untrained weights."""
    kind = description["type"]
    one_of("type", kind, ["RectifiedFlow", "EDMPrecond", "VPPrecond", *_networks()])
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
        _check_arguments(_networks()[kind], config)
    else:
        _check_size(config)
    return _networks()[kind](**config)


_MOST_BLOCKS, _MOST_CHANNELS = 64, 1 << 16
"""Far beyond any network that was published; a file must not make us build one without end."""


def _check_size(value: Any, name: str = "") -> None:
    """Raise ``ValueError`` for a number, anywhere in a configuration, that no network has."""
    most = _MOST_BLOCKS if name in ("num_blocks", "layers_per_block") else _MOST_CHANNELS
    if isinstance(value, int) and not -1 <= value <= most:
        raise ValueError(f"{name} is not within 0..{most}")
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
            continue  # the constructor complains
        of_type = {
            int: isinstance(value, int) and not isinstance(value, bool),
            float: isinstance(value, int | float) and not isinstance(value, bool),
            str: isinstance(value, str),
        }.get(hints[name], isinstance(value, list | tuple) and all(type(item) is int for item in value))
        if not of_type:
            raise ValueError(f"{name} is a {type(value).__name__}; {hints[name]} is needed")
    _check_size(dict(config))


def _problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with ``found`` as the weights of a model that expects others, one sentence a tensor."""
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


def _assemble(
    description: dict[str, Any], tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype | None = None
) -> nn.Module:
    """The described model with these weights, in evaluation mode on the CPU; copied to ``dtype`` if one is given.

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
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        labels = ""
        if _classes(expected) != _classes(tensors):
            labels = f"the file has {_classes(tensors)} classes, the network label_dim={_classes(expected)}; "
        raise ValueError(f"{source} does not fit {type(model).__name__}: {labels}{'; '.join(problems[:_SHOWN])}{more}")
    if dtype is not None:
        # Copies, also of tensors that share a storage; of the size of the model, which is known by now.
        options: dict[str, Any] = {"copy": True, "memory_format": torch.contiguous_format}
        tensors = {name: tensor.to(dtype, **options) for name, tensor in tensors.items()}
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()


def save(obj: nn.Module, path: str | Path, **metadata: str) -> Path:
    """Write a flow, denoiser or network to ``path`` (safetensors).

    The header has the model's make-up, what it was made with and, for an imported model, where it came from;
    ``metadata`` goes beside it.
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); delete it and make it again") from error


def load(path: str | Path) -> nn.Module:
    """The model that :func:`save` wrote, in evaluation mode on the CPU, with its ``provenance``.

    Raises ``FileNotFoundError``, or ``ValueError`` naming the file when it is damaged or not one of ours.
    """
    path = Path(path)
    tensors, metadata = _read_safetensors(path)
    if _HEADER not in metadata:
        raise ValueError(
            f"{path} is a safetensors file, but its header does not say what it holds ({_HEADER!r} is missing)"
        )
    try:
        description, provenance = json.loads(metadata[_HEADER]), json.loads(metadata.get(_PROVENANCE, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); delete it and make it again") from error
    model = _assemble(description, tensors, path)
    model.provenance = provenance
    return model


def load_any(source: str | Path, sha256: str | None = None) -> Any:
    """A published or own model by path or URL: EDM's ``.pkl``, our ``.safetensors``, or a folder of diffusers.

    ``sha256``: what the file must have; a download without one is compared with what was downloaded first.
    """
    is_url = downloads.is_address(source)
    path = downloads.fetch(str(source), sha256) if is_url else Path(source).expanduser()
    if not is_url and sha256 is not None and path.is_file() and (found := files.sha256(path)) != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, expected {sha256}")
    if path.is_dir():
        return load_diffusers(path)
    if path.suffix == ".pkl":
        return load_edm_pickle(path)
    return load(path)


def _imported(model: Any, path: Path, form: str, **more: Any) -> Any:
    """Note where a model came from, for :func:`save` to keep."""
    model.provenance = {"format": form, "file": path.name, "sha256": files.sha256(path), **more}
    return model


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a configuration, with names, is needed")
    return content


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """``content`` as a state dict, without what compilation and distribution put into its names."""
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


# EDM's pickles

_MOST_MODULES = 20_000


def _parts(module: pickles.Object, key: str) -> dict[str, Any]:
    found = module.state.get(key)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise pickles.Refused(f"module {module.class_name} has no {key}")
    return found


def _state_dict(root: pickles.Object) -> dict[str, Tensor]:
    """Parameters and buffers of a module and those within it, under the names that ``state_dict`` gives them."""
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
    """The constructor arguments that EDM keeps with each module, by name."""
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
    """The description of EDM's network, from the arguments that it, or else its preconditioning, was made with."""
    kind = network.class_name
    one_of("the file's network class", kind, ["SongUNet", "DhariwalUNet"])
    names = [name for name in inspect.signature(_networks()[kind]).parameters if name != "generator"]
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
    """The denoiser in one of EDM's ``.pkl`` files, read without executing any of it, in evaluation mode on the CPU.

    ``key``: the entry of the file's dictionary. Files of class ``EDMPrecond`` and ``VPPrecond`` are understood.
    Raises ``FileNotFoundError``, :class:`rfpp.base.pickles.Refused` (a ``ValueError``) for a file that is damaged or
    names anything weights do not need, and ``ValueError`` naming the tensors that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = pickles.read_file(path)
    try:
        if not isinstance(content, dict) or not isinstance(content.get(key), pickles.Object):
            held = ", ".join(map(repr, list(content)[:_SHOWN])) if isinstance(content, dict) else type(content).__name__
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
                raise pickles.Refused(f"its {name} is not a positive number")
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
    made = _assemble(description, tensors, path, torch.float32)
    denoiser: EDMPrecond | VPPrecond = _imported(made, path, "EDM pickle", entry=key)
    return denoiser


# The released 2-rectified flow++ state dicts

_RELEASED_ONLY = {"unet_type", "num_params", "use_fp16"}
_RELEASED_TYPES = {"songunet": "SongUNet", "adm": "DhariwalUNet"}


def _released_network(network: str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(network, str | Path) and str(network).endswith(".json"):
        network = _json(Path(network))
    if isinstance(network, str | Path):
        one_of("network", str(network), networks.PAPER)
        made, config = networks.PAPER[str(network)]
        kind, config = made.__name__, {"in_channels": 3, "out_channels": 3, **config, **changes}
    else:
        unet_type = network.get("unet_type", "songunet")
        one_of("unet_type", unet_type, _RELEASED_TYPES)
        kind = _RELEASED_TYPES[unet_type]
        config = {key: value for key, value in {**network, **changes}.items() if key not in _RELEASED_ONLY}
    known = inspect.signature(_networks()[kind]).parameters
    for name in config:
        if name not in known:
            raise ValueError(f"network: {kind} has no argument {name!r}{nearest(name, known)}")
    return {"type": kind, "config": config}


def _averaged(state: Mapping[str, Tensor], optimizer: Any) -> dict[str, Tensor] | None:
    """The weights with those replaced that the optimizer's state averages; ``None`` where it averages none.

    The optimizer numbers the parameters in the order of the state dict, whose buffers it does not know.
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
            raise ValueError(f"the optimizer has a parameter number {number}, the model {len(parameters)} parameters")
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
    """The flow in a ``.pth`` file of the paper's released code, in evaluation mode on the CPU.

    ``network``: a name in :data:`rfpp.networks.PAPER`, or a released configuration, as a dictionary or a ``.json``
    file; ``changes`` replace its arguments (``label_dim=10``). The file is a state dict, or a training state; of the
    latter ``weights`` takes the averaged (``"ema"``) or the last (``"model"``) ones, by default the averaged where it
    has them. A released EDM teacher is the flow's ``denoiser``.

    Raises ``FileNotFoundError``, :class:`rfpp.base.pickles.Refused` for a file that holds more than tensors, and
    ``ValueError`` for an unknown network or naming the tensors that do not fit.
    """
    path = Path(path)
    if weights is not None:
        one_of("weights", weights, ("ema", "model"))
    description = _released_network(network, changes)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    content = pickles.read_torch(path)
    is_training = isinstance(content, dict) and "model_state_dict" in content
    state = _tensors(content["model_state_dict"] if is_training else content, path)
    if not any(name.startswith("model.") for name in state):
        state = {f"model.{name}": tensor for name, tensor in state.items()}  # of the network alone
    if weights is not None and not is_training:
        raise ValueError(
            f"weights={weights!r}, but {path} is no training state; it holds one set of weights: leave it out"
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
    flow = RectifiedFlow(_assemble(denoiser, averaged or state, path, torch.float32))
    taken = "as stored" if not is_training else "model" if averaged is None else "ema"
    released: RectifiedFlow = _imported(flow.eval(), path, "released state dict", weights=taken)
    return released


# diffusers

_SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
_WEIGHTS = "diffusion_pytorch_model"
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names that early diffusers models have for the parts of an attention block, and today's."""


def load_diffusers(folder: str | Path) -> VPPrecond:
    """The VP denoiser in a folder with a diffusers ``UNet2DModel`` and its scheduler, e.g. a DDPM.

    Both layouts are understood: ``unet/`` and ``scheduler/``, or all in one folder. Weights are read from safetensors,
    or else from ``.bin`` without executing it. Needs the extra ``diffusers``.

    Raises ``FileNotFoundError`` and ``ValueError`` naming what is missing, unknown or does not fit, ``ImportError``
    without diffusers.
    """
    folder = Path(folder)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config = _json(unet / "config.json")
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{unet / 'config.json'} is of a {config['_class_name']}; allowed: UNet2DModel")
    in_folder = folder / "scheduler" / "scheduler_config.json"
    scheduler_file = in_folder if in_folder.is_file() else folder / "scheduler_config.json"
    scheduler = _json(scheduler_file)
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
        tensors, _ = _read_safetensors(path)
    else:
        path = unet / f"{_WEIGHTS}.bin"
        if not path.is_file():
            raise FileNotFoundError(f"{unet} has neither {_WEIGHTS}.safetensors nor {_WEIGHTS}.bin")
        tensors = _tensors(pickles.read_torch(path), path)
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
    denoiser: VPPrecond = _imported(_assemble(description, renamed, path, torch.float32), path, "diffusers")
    return denoiser


# For others


def export_edm(obj: RectifiedFlow | EDMPrecond | VPPrecond, path: str | Path) -> Path:
    """Write the weights of a flow or denoiser under the names that EDM and the released code load.

    ``path`` ends in ``.safetensors``, or in ``.pth`` for a file of ``torch.save`` that holds nothing but tensors.
    Raises ``TypeError`` for another object, ``ValueError`` for another ending.
    """
    path = Path(path)
    denoiser = obj.denoiser if isinstance(obj, RectifiedFlow) else obj
    if not isinstance(denoiser, EDMPrecond | VPPrecond) or isinstance(denoiser.model, DiffusersUNet):
        raise TypeError(
            f"a {type(obj).__name__} has no EDM network; allowed: a flow or denoiser on one of its networks"
        )
    one_of("path's ending", path.suffix, (".pth", ".safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in denoiser.state_dict().items()}
    if path.suffix == ".safetensors":
        files.write_tensors(path, tensors)
    else:
        files.write_torch(path, tensors)
    return path
