"""What the tests compare with: reference numbers, closed forms, and bounds that say how far chance may go."""

import io
import json
import math
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import linalg
from torch import nn

from rfpp import engine
from rfpp.base import torchvision_shim
from rfpp.denoisers import EDMPrecond, GaussianMixtureDenoiser
from rfpp.engine import Objective
from rfpp.flow import RectifiedFlow
from rfpp.networks import DhariwalUNet, SongUNet

DATA = Path(__file__).parent / "data"
REFERENCES = ("ncsnpp", "ddpmpp", "adm")
CHANCE = 1e-6
"""Probability with which a statistical test may fail on correct code (generators are fixed all the same)."""


@cache
def arrays(name):
    """The reference numbers in ``data/<name>.npz`` as tensors, without the weights."""
    with np.load(DATA / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file if not key.startswith("sd/")}


@cache
def reference(name):
    """The denoiser whose weights lie in ``data/<name>.npz``, under the names that EDM checkpoints use."""
    network = (DhariwalUNet if name == "adm" else SongUNet)(**json.loads((DATA / f"{name}.json").read_text()))
    denoiser = EDMPrecond(network, sigma_data=0.5)
    with np.load(DATA / f"{name}.npz") as file:
        weights = {key[3:]: torch.from_numpy(file[key]).float() for key in file if key.startswith("sd/")}
    denoiser.load_state_dict(weights, strict=True)
    return denoiser.eval().requires_grad_(False)


def agrees(actual, expected):
    """Whether two tensors agree as closely as float32 on another machine lets them."""
    assert actual.shape == expected.shape
    expected = expected.double()
    return float((actual.double() - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


def randn(*shape, seed=0, dtype=torch.float32):
    """Standard normal numbers of a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand(*shape, seed=0, dtype=torch.float32):
    """Uniform numbers of a seed."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kolmogorov_bound(n, chance=CHANCE):
    """The distance between the empirical and the true distribution function of ``n`` draws that only ``chance``
    exceeds (Dvoretzky, Kiefer, Wolfowitz; Massart)."""
    return math.sqrt(math.log(2 / chance) / (2 * n))


class GaussianFlow:
    """The rectified flow from ``N(0, I)`` at ``t = 1`` to ``N(mean, std^2 I)`` at ``t = 0``, all in closed form.

    ``x_t`` has mean ``(1 - t) mean`` and standard deviation ``s_t = sqrt((1 - t)^2 std^2 + t^2)``; the ODE is linear:
    a point ``k`` standard deviations from the mean stays at ``k`` standard deviations.
    """

    def __init__(self, mean, std):
        self.mean, self.std = mean, std
        self.flow = RectifiedFlow(GaussianMixtureDenoiser(mean[None], std))

    def deviation(self, t):
        return math.sqrt((1 - t) ** 2 * self.std**2 + t**2)

    def x_given(self, x_t, t):
        """``E[x | x_t]``, from the covariance of x with x_t."""
        return self.mean + (1 - t) * self.std**2 / self.deviation(t) ** 2 * (x_t - (1 - t) * self.mean)

    def carry(self, x_t, t, s):
        """Where the exact ODE takes ``x_t`` between times ``t`` and ``s``."""
        return (1 - s) * self.mean + self.deviation(s) / self.deviation(t) * (x_t - (1 - t) * self.mean)


class Counting(nn.Module):
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.calls = denoiser, 0

    def forward(self, *arguments):
        self.calls += 1
        return self.denoiser(*arguments)


class Function(Objective):
    """An objective without data: ``function(model, step)`` is the loss of a step's only row."""

    batch_size = 1

    def __init__(self, function):
        self.function = function

    def draw(self, step, rows):
        return (torch.tensor(step),)

    def losses(self, model, step):
        return self.function(model, int(step)).reshape(1)


class Trainable(nn.Module):
    """A closed-form model with a parameter for the loops that look for one."""

    def __init__(self, function):
        super().__init__()
        self.function, self.nothing = function, nn.Parameter(torch.zeros(1))

    def forward(self, *arguments):
        return self.function(*arguments) + 0 * self.nothing


def network(seed=0, **changes):
    """A very small conditional U-Net of 8x8 grey images whose last layers are not nought, as they are at the start."""
    config = {
        "img_resolution": 8,
        "in_channels": 1,
        "out_channels": 1,
        "label_dim": 3,
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.0,
    }
    made = SongUNet(**{**config, **changes}, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=seed + place)
    return made


def mixture(dtype=torch.float64):
    """A two-dimensional mixture of three Gaussians, images of shape ``(1, 1, 2)``, three classes."""
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.8], [0.2, -1.2]], dtype=dtype).reshape(3, 1, 1, 2)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=dtype)
    return GaussianMixtureDenoiser(means, 0.3, weights, classes=torch.arange(3))


def released_pairs(folder, n, classes=None, size=4, channels=3, per_folder=None, start=0):
    """Archives as the paper's released code leaves them, and what is in them: ``samples.zip``, ``z.zip``,
    ``images_labels.csv`` (``None`` without classes), pixels, noise and labels.

    One numpy generator draws all noise in turn, and its state before each draw is what is stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator, other = np.random.default_rng(0), np.random.default_rng(1)
    pixels, noises, labels = [], [], []
    with (
        zipfile.ZipFile(folder / "samples.zip", "w") as samples,
        zipfile.ZipFile(folder / "z.zip", "w") as z,
        open(folder / "images_labels.csv", "w") as csv,
    ):
        for i in range(start, start + n):
            name = f"{i:05d}" if per_folder is None else f"{i // per_folder}/{i:05d}"
            state = generator.bit_generator.state["state"]
            z.writestr(f"{name}.bin", state["state"].to_bytes(16, "big") + state["inc"].to_bytes(16, "big"))
            noises.append(generator.standard_normal((channels, size, size)).astype(np.float32))
            pixels.append(other.integers(0, 256, (channels, size, size), dtype=np.uint8))
            image = io.BytesIO()
            hwc = pixels[-1].transpose(1, 2, 0)
            Image.fromarray(hwc[:, :, 0] if channels == 1 else hwc).save(image, format="PNG")
            samples.writestr(f"{name}.png", image.getvalue())
            if classes:
                labels.append(int(other.integers(classes)))
                csv.write(f"{name}.png,{labels[-1]}\r\n")
    return (
        folder / "samples.zip",
        folder / "z.zip",
        folder / "images_labels.csv" if classes else None,
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(noises)),
        labels,
    )


def fit(model, objective, steps, *, lr=1e-3, warmup=0, decay=False, ema=0.9999, growing=True, **options):
    """``rfpp.engine.fit`` with the optimisation spelt out."""
    return engine.fit(model, objective, engine.Optimisation(steps, lr, warmup, decay, ema, growing), **options)


def random_inception(path):
    """A file of random weights, with which activations neither vanish nor explode, and logits tell images apart."""
    kind = torchvision_shim.load("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Bare(kind):
        def load_state_dict(self, *arguments, **options):
            pass

    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = Bare("bare", ["2048"], path).state_dict()
    scale = {"conv.weight": 6**0.5, "fc.weight": 30.0}
    torch.save({k: v * scale.get(".".join(k.split(".")[-2:]), 1) for k, v in state.items()}, path)
    return path


def frechet(first, second):
    """``|m - n|^2 + tr(S + T - 2 (S T)^(1/2))`` of two samples, by numpy and scipy's matrix square root."""
    first, second = (images.double().flatten(1).numpy() for images in (first, second))
    s, t = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    return gap @ gap + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
