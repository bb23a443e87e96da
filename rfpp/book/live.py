"""The page that runs the model in a browser: the data of its scripts, and the pictures that stand in for them.

The scripts are in ``book/_static/live``. They read one more, which :func:`write` makes from the flow of a run: two
networks, the teacher's and the flow's, as trees of layers with weights in half precision, and what each must compute.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rfpp import intersections, pairs, samplers
from rfpp.base import files, rng
from rfpp.book import plots
from rfpp.configurations import TEACHER
from rfpp.denoisers import EDMPrecond
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.networks import Conv2d, GroupNorm, Linear, PositionalEmbedding, SongUNet, UNetBlock
from rfpp.pipeline.sampling import Sampler

CONFIG = "F"
"""The configuration that runs beside the teacher."""

DATA = Path("_static") / "live" / "data.js"
PICTURES = {name: Path("figures") / f"live-{name}.png" for name in ("digits", "plane")}

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    SongUNet: ("in_channels", "img_resolution"),
    nn.ModuleDict: (),
    UNetBlock: ("heads", "skip_scale"),
    Conv2d: ("up", "down"),
    GroupNorm: ("groups", "eps"),
    Linear: (),
    PositionalEmbedding: ("channels",),
}
"""What the scripts need to know about a layer, besides its weights and the layers in it."""
_MAKE_UP = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "in_channels": 1,
    "augment_dim": 0,
}
_MOST_WEIGHTS, _LARGEST = 1_000_000, 16
_NOISE, _CLASS = 0, 3
"""The noise and the class of the sample that the page compares with PyTorch's, and of the still picture."""


def runs_in_a_page(denoiser: Any) -> TypeGuard[EDMPrecond]:
    """Whether the scripts know all layers of a denoiser, and it is small enough for them."""
    if not (isinstance(denoiser, EDMPrecond) and isinstance(denoiser.model, SongUNet)):
        return False
    config, weights = denoiser.model.config, sum(parameter.numel() for parameter in denoiser.parameters())
    known = all(config[key] == value for key, value in _MAKE_UP.items()) and tuple(config["resample_filter"]) == (1, 1)
    return known and weights <= _MOST_WEIGHTS and config["img_resolution"] <= _LARGEST


def describe(module: nn.Module, weights: list[Tensor]) -> dict[str, Any]:
    """A layer as the scripts read it: settings, layers in it, and ``[start, length]`` of its weights.

    ``weights`` grows by the layer's; a start counts all numbers before. Raises ``KeyError`` for a layer that the
    scripts do not know.
    """
    tree = {name: getattr(module, name) for name in _SETTINGS[type(module)]}
    for name, parameter in module.named_parameters(recurse=False):
        tree[name] = [sum(known.numel() for known in weights), parameter.numel()]
        weights.append(parameter.detach().flatten())
    return tree | {name: describe(child, weights) for name, child in module.named_children()}


def rounded(denoiser: EDMPrecond) -> EDMPrecond:
    """A copy on the CPU whose weights are those of the page, rounded to half precision."""
    network = copy.deepcopy(denoiser.model)  # without what moves a placed denoiser's inputs to its device
    return denoiser.around(network).cpu().half().float().eval()


def model(denoiser: EDMPrecond) -> dict[str, Any]:
    """A denoiser as the scripts load it; ``weights`` are base64 of two-byte numbers, lower byte first."""
    weights: list[Tensor] = []
    network = describe(denoiser.model, weights)
    halves = torch.cat(weights).cpu().half().numpy().astype("<f2")
    return {
        "sigma_data": denoiser.sigma_data,
        "classes": denoiser.label_dim,
        "count": len(halves),
        "network": network,
        "weights": base64.b64encode(halves.tobytes()).decode(),
    }


def _given(denoiser: EDMPrecond, noise_seed: int, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The noise and the label of that sample, ``None`` where there are no classes."""
    labels = torch.tensor([_CLASS % denoiser.label_dim]) if denoiser.label_dim else None
    return pairs.noise(noise_seed, [_NOISE], shape), labels


def _expected(denoiser: EDMPrecond, noise_seed: int, first_time: float) -> dict[str, Any]:
    """What a page must reproduce of a denoiser's flow: the settings, and the image."""
    size: Any = denoiser.model.img_resolution
    z, labels = _given(denoiser, noise_seed, (1, size, size))
    sampler = Sampler(nfe=5, solver="heun", first_time=first_time)
    image = sampler(RectifiedFlow(rounded(denoiser)), z, labels)
    return {
        "index": _NOISE,
        "label": -1 if labels is None else int(labels),
        "nfe": sampler.nfe,
        "solver": sampler.solver,
        "update": sampler.update,
        "result": [round(value, 6) for value in image.flatten().tolist()],
    }


def script(denoisers: dict[str, EDMPrecond], noise_seed: int, first_time: float) -> str:
    """The script that the others read, for denoisers by name; without any, the page shows the plane alone."""
    plane = intersections.plane_data()
    data = {
        "key": str(rng.derive(noise_seed, "pairs")),
        "first_time": first_time,
        "plane": {"means": plane.means.flatten().tolist(), "std": plane.std},
        "models": {
            name: {**model(denoiser), "check": _expected(denoiser, noise_seed, first_time)}
            for name, denoiser in denoisers.items()
        },
    }
    return f'"use strict";\nrfpp.data = {json.dumps(data)};\n'


@torch.no_grad()
def _picture_of_paths(flows: dict[str, RectifiedFlow], z: Tensor, times: Tensor, labels: Tensor | None) -> Figure:
    """Each flow's path from the same noise above its predictions of the image; both rows end with the result."""
    rows = {}
    for name, flow in flows.items():
        states = samplers.integrate(flow, z * float(times[0]), times, labels=labels)
        predictions = [flow.x_prediction(x, t, labels) for x, t in zip(states, times[:-1].tolist(), strict=False)]
        rows[f"{name}: path"] = torch.cat(states)
        rows[f"{name}: predictions"] = torch.cat([*predictions, states[-1]])
    return plots.image_rows(rows)


def _picture_of_the_plane() -> Figure:
    """Pairs at random, the 1-rectified flow's paths, and the lines of its pairs, for the page's mixture."""
    data = intersections.plane_data()
    x, z = intersections.draw_plane(data, 80, seed=0)
    times = torch.linspace(0.9999, 1e-4, 60, dtype=torch.float64)
    paths = intersections.solve(RectifiedFlow(data).velocity, z, times)
    return plots.reflow_plane(x, z, paths, ends=paths[-1])


def write(experiment: Experiment, folder: Path) -> None:
    """Write the page's data and still pictures into the book's source ``folder``.

    The flow is :data:`CONFIG`'s at the preset's first seed. If it is missing, it is trained first where networks are
    small enough for the page. Raises ``FileNotFoundError`` elsewhere.
    """
    preset, plan = experiment.preset, experiment.plan
    seed = preset.seeds[0]
    if experiment.run.find(plan.flow(CONFIG, seed)) is None and not runs_in_a_page(experiment.teacher):
        raise FileNotFoundError(
            f"{CONFIG} with seed {seed} is not trained at preset {preset.name!r}, as this code would train it; "
            f"run: python -m rfpp train {preset.option} --config {CONFIG} --seed {seed}"
        )
    flows = {TEACHER: experiment.flow(TEACHER), "flow": experiment.flow(CONFIG, seed)}
    noise_seed = plan.noise_seed(seed)
    denoisers = {name: flow.denoiser for name, flow in flows.items() if runs_in_a_page(flow.denoiser)}
    text = script(denoisers, noise_seed, preset.evaluation.first_time)
    for path in (DATA, *PICTURES.values()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / DATA, text)

    z, labels = _given(experiment.teacher, noise_seed, experiment.data.train.shape)
    plt.switch_backend("agg")  # pictures for files, wherever this runs
    plots.style()
    pictures = {
        "digits": _picture_of_paths(flows, z, experiment.sampler(nfe=5).times, labels),
        "plane": _picture_of_the_plane(),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / PICTURES[name], dpi=220)
        plt.close(figure)
