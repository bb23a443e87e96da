"""What training costs: forward passes as the paper counts them (Table 6), operations, and seconds on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rfpp import networks, premetrics, presets, rng, timesteps, torchvision_shim, training
from rfpp.checks import one_of
from rfpp.denoisers import EDMPrecond
from rfpp.experiment import Experiment

METHODS = {"reflow": 1, "consistency distillation": 4, "consistency training": 2}
"""Forward passes per image of a training step: reflow's student; distillation's student, average, and the two of a Heun
step of the teacher; consistency training's student and average (Section 5.2)."""


@dataclass(frozen=True)
class Training:
    """The size of a training: ``pairs`` of ``nfe_per_pair`` evaluations, then ``steps`` of ``batch`` images."""

    pairs: int
    nfe_per_pair: int
    steps: int
    batch: int

    @staticmethod
    def of(experiment: Experiment) -> Training:
        """Configuration F's at the experiment's preset."""
        pairs, settings = experiment.preset.pairs, experiment.preset.training
        return Training(pairs.train, 2 * pairs.num_steps - 1, settings.steps, settings.large_batch)


def forward_passes(size: Training, method: str) -> dict[str, int]:
    """Forward passes of a method of :data:`METHODS`, with as many steps as ``size`` has; only reflow makes pairs."""
    one_of("method", method, METHODS)
    passes = {"making pairs": size.pairs * size.nfe_per_pair} if method == "reflow" else {}
    return {**passes, "training": size.steps * size.batch * METHODS[method]}


@dataclass(frozen=True)
class Pace:
    """Images per second on one machine: ``forward`` through the teacher, in a training ``step`` of configuration F, and
    in one of D, which is the same without LPIPS (``plain``)."""

    forward: float
    step: float
    plain: float
    device: str

    @property
    def lpips(self) -> float:
        """How much longer a training step takes with LPIPS, as a share of one without."""
        return self.plain / self.step - 1

    def __str__(self) -> str:
        return f"{self.forward:,.0f} images a second forward, {self.step:,.0f} in a training step, on {self.device}"


def measure(experiment: Experiment, repeats: int = 20) -> Pace:
    """Time the preset's teacher and training steps of configurations F and D, ``repeats`` times after a warm-up."""
    batch, settings = experiment.preset.training.large_batch, experiment.preset.training
    z, labels = experiment.noise(batch)
    made = experiment.pairs("train")
    density = timesteps.UShaped(settings.u_shape)
    with_lpips, without = (
        training.reflow(made, density, premetrics.build(name, experiment.perceptual), batch, seed=0)
        for name in ("lpips_huber_over_t", "pseudo_huber")
    )
    student = training.initial_flow(experiment.teacher, training.CONFIGURATIONS["F"], settings.dropout, 0).train()

    def forward(step: int) -> None:
        with torch.no_grad():
            experiment.teacher(z, 1.0, labels)

    def train(objective: training.Objective) -> Callable[[int], None]:
        def work(step: int) -> None:
            with rng.scoped(0, "pace", step):
                objective(student, step).mean().backward()

        return work

    def pace(work: Callable[[int], None]) -> float:
        for step in range(3):
            work(step)
        start = time.perf_counter()
        for step in range(repeats):
            work(step)
        return repeats * batch / (time.perf_counter() - start)

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Pace(pace(forward), pace(train(with_lpips)), pace(train(without)), device)


def _vgg() -> nn.Module:
    """The trunk that LPIPS takes its features from, without weights."""
    torchvision_shim.ensure()
    from torchvision.models import vgg16

    trunk: nn.Module = vgg16(weights=None).features
    return trunk.requires_grad_(False)


def _count(loss: Any) -> int:
    """Multiplications and additions of ``loss()``, a scalar, and of its gradient."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return int(counter.get_total_flops())


def step_operations(name: str, resolution: int = 224) -> tuple[int, int, int]:
    """Parameters of a network of :data:`rfpp.networks.PAPER`, and operations per image of a training step.

    ``(parameters, network, lpips)``: the network forwards and backwards; VGG-16 forwards on both images at
    ``resolution`` and backwards to one of them. On the meta device: nothing is computed but the counts.
    """
    with torch.device("meta"):
        denoiser = EDMPrecond(networks.paper(name))
        size, trunk = int(networks.PAPER[name][1]["img_resolution"]), _vgg()
        x, target = torch.empty(1, 3, size, size), torch.empty(1, 3, resolution, resolution)
        image = torch.empty(1, 3, resolution, resolution, requires_grad=True)
        sigma = torch.ones(1)

        def lpips() -> Tensor:
            return (trunk(image) - trunk(target)).square().sum()

        network = _count(lambda: denoiser(x, sigma).square().sum())
        return sum(p.numel() for p in denoiser.parameters()), network, _count(lpips)


TABLE_7 = {
    "CIFAR-10": ("NCSN++", "1M, 35 NFE", "512", "0.13", "2e-4", "5,000", "800,000"),
    "AFHQ, FFHQ 64": ("NCSN++", "5M, 79 NFE", "256", "0.25", "2e-4", "5,000", "1,000,000"),
    "ImageNet 64": ("ADM", "5M, 79 NFE", "2,048", "0.10", "1e-4", "2,500", "700,000"),
}


def settings_table(preset: presets.Preset) -> str:
    """Table 7 as Markdown, with a row for ``preset``."""
    made, trained = preset.pairs, preset.training
    own = (
        "DDPM++, small" if preset.data.name == "digits" else "",
        f"{made.train:,}, {2 * made.num_steps - 1} NFE",
        f"{trained.large_batch:,}",
        f"{trained.dropout:g}",
        f"{trained.lr:g}",
        f"{trained.warmup:,}",
        f"{trained.steps:,}",
    )
    head = ("", "network", "pairs", "batch", "dropout", "learning rate", "warm-up", "steps")
    rows = [head, ("---",) * len(head), *((name, *row) for name, row in {**TABLE_7, f"`{preset.name}`": own}.items())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
