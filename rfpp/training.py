"""Training: one loop for everything, and the objectives and configurations it is used with.

An objective is a function ``(model, step) -> (B,)`` losses that draws its own batch from ``(seed, step)``. A step's
randomness therefore depends on nothing but its number: two runs that differ in one choice see the same data, noise and
times, which is what makes configurations comparable.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rfpp import progress, rng
from rfpp.data import Images
from rfpp.denoisers import EDMPrecond, VPPrecond
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.pairs import PairDataset
from rfpp.premetrics import Premetric
from rfpp.timesteps import TimestepDistribution

Objective = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class Configuration:
    """A row of Table 1: what 2-rectified flow training starts from and minimises."""

    summary: str
    start: str  # "random", "teacher", or another configuration
    batch: str  # "small" or "large"; the preset says how many
    timesteps: str  # "uniform" or "u_shaped"
    premetric: str  # a name of rfpp.premetrics
    pairs: str = "teacher"  # whose: the "teacher"'s, those of inverted "real" images, or the start's "own"


CONFIGURATIONS = {
    "A": Configuration("vanilla 2-rectified flow", "random", "small", "uniform", "squared_l2"),
    "B": Configuration("A + teacher's weights, larger batch", "teacher", "large", "uniform", "squared_l2"),
    "C": Configuration("B + U-shaped timesteps", "teacher", "large", "u_shaped", "squared_l2"),
    "D": Configuration("C + pseudo-Huber", "teacher", "large", "u_shaped", "pseudo_huber"),
    "E": Configuration("C + LPIPS-Huber", "teacher", "large", "u_shaped", "lpips_huber"),
    "F": Configuration("C + LPIPS-Huber-1/t", "teacher", "large", "u_shaped", "lpips_huber_over_t"),
    "G": Configuration("F + real data", "F", "large", "u_shaped", "lpips_huber_over_t", "real"),
}
"""Table 1, each adding to the one before."""

VARIANTS = {
    "C-small": Configuration("C with the small batch", "teacher", "small", "u_shaped", "squared_l2"),
    "D-small": Configuration("D with the small batch", "teacher", "small", "u_shaped", "pseudo_huber"),
    "longer": Configuration("F, trained on", "F", "large", "u_shaped", "lpips_huber_over_t"),
    "third": Configuration("F, trained on its own pairs", "F", "large", "u_shaped", "lpips_huber_over_t", "own"),
}
"""What the paper says beside the table: pseudo-Huber at small batches (Section 4.2), and another round of reflow
(Section 3), with a second round that is trained as long to compare it with."""

ALL = {**CONFIGURATIONS, **VARIANTS}


def reflow(
    pairs: PairDataset, timesteps: TimestepDistribution, premetric: Premetric, batch_size: int, seed: int
) -> Objective:
    """Algorithm 1's loss on pairs ``(x, z)`` of the 1-rectified flow: ``m(z - x, v(x_t, t))`` (Eq. 2, a premetric)."""

    def losses(model: nn.Module, step: int) -> Tensor:
        generator = rng.generator(seed, "reflow", step)
        index = torch.randint(len(pairs), (batch_size,), generator=generator)
        t = timesteps.sample(batch_size, generator=generator)
        device = next(model.parameters()).device
        x, z, labels = pairs.batch(index, device)
        t = t.to(device)
        x_t = interpolate(x, z, t)
        return premetric(z - x, model(x_t, t, labels), x_t, t)

    return losses


@torch.no_grad()
def losses_over_time(
    flow: RectifiedFlow, pairs: PairDataset, times: Tensor, premetric: Premetric, n: int, batch_size: int = 500
) -> Tensor:
    """The loss of the first ``n`` pairs at each of ``times``, ``(len(times), n)``: Figure 3, before it is averaged."""
    found = torch.empty(len(times), n)
    for rows in torch.arange(n).split(batch_size):
        x, z, labels = pairs.batch(rows)
        for place, t in enumerate(times.tolist()):
            x_t, at = interpolate(x, z, t), torch.full((len(x),), t)
            found[place, rows] = premetric(z - x, flow.velocity(x_t, at, labels), x_t, at)
    return found


def denoising(
    images: Images, batch_size: int, seed: int, sigma_data: float, log_mean: float = -1.2, log_std: float = 1.2
) -> Objective:
    """EDM's loss for a teacher: weighted squared error at log-normal noise levels (Karras et al., 2022, Table 1)."""

    def losses(model: nn.Module, step: int) -> Tensor:
        generator = rng.generator(seed, "denoising", step)
        x, labels = images.batch(batch_size, generator)
        sigma = (log_mean + log_std * torch.randn(batch_size, generator=generator)).exp()
        noise = torch.randn(x.shape, generator=generator)
        device = next(model.parameters()).device
        x, labels, sigma, noise = x.to(device), labels.to(device), sigma.to(device), noise.to(device)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        denoised = model(x + noise * sigma.reshape(-1, 1, 1, 1), sigma, labels)
        return weight * (denoised - x).square().flatten(1).mean(dim=1)

    return losses


def classification(images: Images, batch_size: int, seed: int, shift: int, noise: float) -> Objective:
    """Cross-entropy on images moved by up to ``shift`` pixels each way, with noise of up to ``noise`` added."""

    def losses(model: nn.Module, step: int) -> Tensor:
        generator = rng.generator(seed, "classification", step)
        x, labels = images.batch(batch_size, generator)
        height, width = x.shape[-2:]
        padded = F.pad(x, [shift] * 4, value=-1.0)
        corners = torch.randint(2 * shift + 1, (2, batch_size, 1), generator=generator)
        rows = (corners[0] + torch.arange(height))[:, None, :, None]
        columns = (corners[1] + torch.arange(width))[:, None, None, :]
        x = padded[
            torch.arange(batch_size)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns
        ]
        level = noise * torch.rand(batch_size, 1, 1, 1, generator=generator)
        x = x + level * torch.randn(x.shape, generator=generator)
        device = next(model.parameters()).device
        return F.cross_entropy(model(x.to(device)), labels.to(device), reduction="none", label_smoothing=0.05)

    return losses


@dataclass
class History:
    """Mean loss per logged step."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Diverged(RuntimeError):
    """The loss stopped being a number."""


Tensors = tuple[Tensor, ...] | list[Tensor]


def _ema_update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose decay grows with the run, ``min(decay, n / (n + 9))``: it forgets the start."""

    def update(averages: Tensors, currents: Tensors, averaged: Tensor | int) -> None:
        n = int(averaged) + 1
        torch._foreach_lerp_(averages, currents, 1 - min(decay, n / (n + 9)))

    return update


def fit(
    model: nn.Module,
    objective: Objective,
    steps: int,
    *,
    lr: float,
    warmup: int = 0,
    decay: bool = False,
    ema: float = 0.9999,
    seed: int = 0,
    desc: str = "training",
    log_every: int = 10,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, History]:
    """Train ``model`` with Adam and return its exponential moving average with the loss curve.

    ``warmup``: steps over which the learning rate rises to ``lr`` (the first step already trains); ``decay``: let it
    fall to nought along a cosine; ``ema``: decay of the moving average; ``on_step(step, average)`` follows each step.
    Raises :class:`Diverged` when the loss is not finite. ``model`` itself is left untouched.
    """
    accelerator = Accelerator()
    model = copy.deepcopy(model).requires_grad_(True).train()
    average = AveragedModel(model, multi_avg_fn=_ema_update(ema)).to(accelerator.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        return rise * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * step / steps)).item() if decay else 1.0)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    model, optimiser = accelerator.prepare(model, optimiser)
    history = History()
    recent: list[Tensor] = []
    with progress.bar(range(steps), desc=desc) as bar:
        for step in bar:
            with rng.scoped(seed, "dropout", step):
                loss = objective(model, step).mean()
            accelerator.backward(loss)
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            average.update_parameters(accelerator.unwrap_model(model))
            recent.append(loss.detach())
            if (step + 1) % log_every == 0 or step + 1 == steps:
                value = torch.stack(recent).mean().item()
                recent.clear()
                if not math.isfinite(value):
                    raise Diverged(f"{desc}: the loss is {value} at step {step + 1}; lower the learning rate lr={lr}")
                history.steps.append(step + 1)
                history.losses.append(value)
                bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
            if on_step is not None:
                on_step(step + 1, average.module)
    return average.module.cpu().eval().requires_grad_(False), history


def initial_flow(
    teacher: EDMPrecond | VPPrecond, configuration: Configuration, dropout: float, seed: int
) -> RectifiedFlow:
    """The flow that training starts from: fresh weights of the teacher's network, or the teacher's (Proposition 1)."""
    trained: Any = teacher.model
    config = {**trained.config, "dropout": dropout}
    network = type(trained)(**config, generator=rng.generator(seed, "initialisation"))
    if configuration.start != "random":
        network.load_state_dict(trained.state_dict())
    return RectifiedFlow(teacher.around(network))
