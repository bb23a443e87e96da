"""The networks for digits that ship with the package, and their recipes: the teacher and two feature networks.

They replace the pretrained EDM, Inception and VGG-16 networks that the paper starts from. ``python -m rfpp retrain``
makes all three again from :data:`RECIPES`, which define them completely. ``assets/manifest.json`` holds the SHA-256 of
each file and the hash of its recipe; loading checks both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from rfpp import checkpoints, data, engine, training
from rfpp.base import files, rng
from rfpp.base.checks import one_of
from rfpp.denoisers import EDMPrecond
from rfpp.features import Classifier
from rfpp.networks import SongUNet

ASSETS = Path(__file__).parents[1] / "assets"
MANIFEST = ASSETS / "manifest.json"

RECIPES: dict[str, dict[str, Any]] = {
    "digits-teacher": {
        "network": {
            "img_resolution": 8,
            "in_channels": 1,
            "out_channels": 1,
            "label_dim": 10,
            "model_channels": 16,
            "channel_mult": [2, 2],
            "num_blocks": 1,
            "attn_resolutions": [4],
            "dropout": 0.05,
        },
        "sigma_data": 0.75,
        "loss": {"batch_size": 256, "log_mean": -0.8, "log_std": 1.4},
        "fit": {"steps": 6000, "lr": 2e-3, "warmup": 200, "decay": True, "ema": 0.998, "seed": 0},
    },
    "digits-classifier": {
        "network": {"widths": [32, 64], "activation": "relu", "dropout": 0.2},
        "loss": {"batch_size": 128, "shift": 1, "noise": 0.3},
        "fit": {"steps": 2000, "lr": 2e-3, "warmup": 100, "decay": True, "ema": 0.99, "seed": 1},
    },
    "digits-perceptual": {
        "network": {"widths": [24, 48], "activation": "silu"},
        "loss": {"batch_size": 128, "shift": 1, "noise": 0.6},
        "fit": {"steps": 2000, "lr": 2e-3, "warmup": 100, "decay": True, "ema": 0.99, "seed": 2},
    },
}
"""Everything except the code that decides the weights; all are trained on the training split of the digits."""


def recipe_hash(name: str) -> str:
    """Return the SHA-256 of a recipe, in hexadecimal."""
    return hashlib.sha256(json.dumps(RECIPES[name], sort_keys=True).encode()).hexdigest()


def train(name: str) -> nn.Module:
    """Train one of :data:`RECIPES` from scratch."""
    one_of("name", name, RECIPES)
    recipe = RECIPES[name]
    images, seed = data.digits().train, recipe["fit"]["seed"]
    model: nn.Module
    objective: engine.Objective
    if name == "digits-teacher":
        network = SongUNet(**recipe["network"], generator=rng.generator(seed, "initialisation"))
        model = EDMPrecond(network, recipe["sigma_data"])
        objective = training.Denoising(images, seed=seed, sigma_data=recipe["sigma_data"], **recipe["loss"])
    else:
        model = Classifier(**recipe["network"], seed=seed)
        objective = training.Classification(images, seed=seed, **recipe["loss"])
    settings = {key: value for key, value in recipe["fit"].items() if key != "seed"}
    model, _ = engine.fit(model, objective, engine.Optimisation(**settings), seed=seed, desc=name)
    return model


def retrain(names: list[str] | None = None, folder: Path = ASSETS, say: Callable[[str], None] = print) -> None:
    """Train the named files again (all by default) and write them with their manifest into ``folder``."""
    names = names or list(RECIPES)
    for name in names:
        one_of("name", name, RECIPES)
    path = folder / MANIFEST.name
    manifest = json.loads(path.read_text()) if path.is_file() else {}
    for name in names:
        file = checkpoints.save(train(name), folder / f"{name}.safetensors")
        files.follow_umask(file)
        manifest[name] = {"recipe": recipe_hash(name), "sha256": files.sha256(file)}
        files.write_text(path, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        say(f"{file} ({file.stat().st_size / 1e6:.2f} MB)")


@cache
def _load(name: str) -> nn.Module:
    one_of("name", name, RECIPES)
    file, entry = ASSETS / f"{name}.safetensors", json.loads(MANIFEST.read_text())[name]
    again = f"python -m rfpp retrain {name}"
    if entry["recipe"] != recipe_hash(name):
        raise ValueError(f"{file} was made by another recipe than the one in {__name__}; run: {again}")
    if not file.is_file() or files.sha256(file) != entry["sha256"]:
        raise ValueError(f"{file} is missing or not the file that shipped; reinstall, or run: {again}")
    return checkpoints.load(file)


def load(name: str) -> Any:
    """Load a shipped network in evaluation mode; raises ``ValueError`` if its file was altered.

    Callers share the network and must not change its weights.
    """
    return _load(name)


def sha256(name: str) -> str:
    """Return the checksum of a shipped file, which represents its weights in the keys of results."""
    one_of("name", name, RECIPES)
    return str(json.loads(MANIFEST.read_text())[name]["sha256"])
