"""What the library is compared with: the same results, computed as training code of the field usually computes them.

Each of these is written as its author would have written it who wanted it to be right and short: times by a general
sampler of densities, a file for each image, loops over parameters. None is slowed down on purpose.
`tests/test_benchmarks.py` shows that they agree with the library.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import rv_continuous
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rfpp.denoisers import EDMPrecond
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow
from rfpp.networks.unet import UNetBlock
from rfpp.pairs import PairDataset
from rfpp.premetrics import pseudo_huber

Item = tuple[Tensor, Tensor, Tensor]


class NumericUShaped(rv_continuous):
    """The U-shaped density on [0, 1], and nothing else: scipy integrates it and looks for the root, draw by draw.

    This is how the paper's released code draws its times.
    """

    def __init__(self, a: float = 4.0) -> None:
        super().__init__(a=0, b=1, name="u-shaped")
        self.steepness = a

    def _pdf(self, t: np.ndarray) -> np.ndarray:
        return self.steepness * np.cosh(self.steepness * (t - 0.5)) / (2 * np.sinh(self.steepness / 2))

    def sample(self, n: int, generator: np.random.Generator) -> Tensor:
        return _rescaled(self.rvs(size=n, random_state=generator))


def solved_times(n: int, generator: np.random.Generator, a: float = 4.0) -> Tensor:
    """U-shaped times by a search for the root, draw by draw, of the distribution function in closed form."""

    def cdf(t: float) -> float:
        return 0.5 + np.sinh(a * (t - 0.5)) / (2 * np.sinh(a / 2))

    return _rescaled(np.array([brentq(lambda t, p=p: cdf(t) - p, 0, 1) for p in generator.random(n)]))


def _rescaled(t: np.ndarray) -> Tensor:
    return T_MIN + (T_MAX - T_MIN) * torch.from_numpy(t).float()


def write_archives(folder: Path, pixels: Tensor) -> None:
    """``samples.zip`` with a PNG for each of ``pixels`` ``(N, C, H, W)``, and ``z.zip`` with a generator's states."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "samples.zip", "w") as samples, zipfile.ZipFile(folder / "z.zip", "w") as z:
        for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            file = io.BytesIO()
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, format="PNG")
            samples.writestr(f"{i:06d}.png", file.getvalue())
            state = generator.bit_generator.state["state"]
            z.writestr(f"{i:06d}.bin", state["state"].to_bytes(16, "big") + state["inc"].to_bytes(16, "big"))
            generator.standard_normal(image.size)


class ArchivedPairs(Dataset[Item]):
    """Pairs from two archives, one by one: an image to decode, and a generator to set to the state of its noise."""

    def __init__(self, folder: Path, classes: int = 10) -> None:
        self.samples, self.z = zipfile.ZipFile(folder / "samples.zip"), zipfile.ZipFile(folder / "z.zip")
        self.names = sorted(name.removesuffix(".png") for name in self.samples.namelist())
        self.generator, self.classes = np.random.default_rng(), classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        name = self.names[index]
        with self.samples.open(f"{name}.png") as file:
            pixels = np.array(Image.open(file))
        x = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).float() / 127.5 - 1
        content = self.z.read(f"{name}.bin")
        state = self.generator.bit_generator.state
        state["state"] = {"state": int.from_bytes(content[:16], "big"), "inc": int.from_bytes(content[16:], "big")}
        self.generator.bit_generator.state = state
        z = torch.tensor(self.generator.standard_normal(tuple(x.shape)), dtype=torch.float32)
        return x, z, torch.tensor(index % self.classes)


def one_by_one(pairs: Dataset[Item], indices: Tensor) -> Item:
    """A batch as a loader without workers makes it: item after item, then stacked."""
    return next(iter(DataLoader(pairs, batch_sampler=[indices.tolist()])))


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam in a loop over parameters: torch's own choice on a CPU."""
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, foreach=False)


@torch.no_grad()
def average_weights(average: nn.Module, model: nn.Module, decay: float) -> None:
    """The moving average of weights, parameter by parameter."""
    for kept, parameter in zip(average.parameters(), model.parameters(), strict=True):
        kept.copy_(decay * kept + (1 - decay) * parameter.detach())
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


class PlainBlock(UNetBlock):
    """A residual block whose attention is spelt out, its matrix of weights in memory."""

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(batch * self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.unbind(2)
        weights = torch.einsum("ncq,nck->nqk", query, key / key.shape[1] ** 0.5).softmax(dim=2)
        return self.proj(torch.einsum("nqk,nck->ncq", weights, value).reshape(x.shape))


def plain(network: nn.Module) -> nn.Module:
    """The same network with :class:`PlainBlock` for its blocks."""
    made = copy.deepcopy(network)
    for module in made.modules():
        if isinstance(module, UNetBlock):
            module.__class__ = PlainBlock
    return made


@torch.no_grad()
def edm_sample(denoiser: EDMPrecond, z: Tensor, num_steps: int, labels: Tensor | None = None) -> tuple[Tensor, list]:
    """Heun's method on EDM's levels, with a state in double precision of which a copy is kept at each step."""
    steps = torch.arange(num_steps, dtype=torch.float64)
    sigmas = (80 ** (1 / 7) + steps / (num_steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    x = z.to(torch.float64) * sigmas[0]
    states = [x.clone()]
    for place, (sigma, following) in enumerate(pairwise(sigmas)):
        slope = (x - denoiser(x.float(), sigma.float(), labels).to(torch.float64)) / sigma
        proposal = x + (following - sigma) * slope
        if place < num_steps - 1:
            again = (proposal - denoiser(proposal.float(), following.float(), labels).to(torch.float64)) / following
            proposal = x + (following - sigma) * (0.5 * slope + 0.5 * again)
        x = proposal
        states.append(x.clone())
    return x.float(), states


def train(teacher: EDMPrecond, pairs: Dataset[Item], steps: int, batch: int, lr: float = 1e-3) -> nn.Module:
    """Reflow from the teacher's weights with U-shaped times and the pseudo-Huber loss, all of it as above."""
    flow = RectifiedFlow(teacher.around(plain(teacher.model))).requires_grad_(True).train()
    average, optimiser = copy.deepcopy(flow), adam(flow, lr)
    law, generator = NumericUShaped(), np.random.default_rng(0)
    losses, batches = [], _forever(DataLoader(pairs, batch, shuffle=True, drop_last=True))
    for _ in range(steps):
        x, z, labels = next(batches)
        t = law.sample(batch, generator)
        x_t = (1 - t[:, None, None, None]) * x + t[:, None, None, None] * z
        optimiser.zero_grad()
        loss = pseudo_huber(z - x, flow(x_t, t, labels), x_t, t).mean()
        loss.backward()
        optimiser.step()
        average_weights(average, flow, 0.99)
        losses.append(loss.item())
    return average


def _forever(loader: DataLoader[Item]) -> Iterator[Item]:
    while True:
        yield from loader


def stored(folder: Path, pairs: PairDataset, n: int) -> ArchivedPairs:
    """The images of the first ``n`` pairs in archives, with noise of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_archives(folder, pairs.read(torch.arange(n))["images"])
    return ArchivedPairs(folder)


__all__ = [
    "ArchivedPairs", "NumericUShaped", "PlainBlock", "adam", "average_weights", "edm_sample", "one_by_one",
    "plain", "solved_times", "stored", "train", "write_archives",
]  # fmt: skip
