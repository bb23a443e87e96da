"""Group normalisation in a compiled step of CIFAR-10's network: torch's, and statistics taken channel by channel.

The gradient of torch's normalisation comes in the layout of rows, which each convolution before one then copies into
the layout of channels. Those copies are counted and timed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import trainings
from provenance import Report, choice, parser
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from rfpp import engine, networks, premetrics, timesteps, training
from rfpp.denoisers import EDMPrecond
from rfpp.networks.layers import GroupNorm, normalised_by_channel


def by_torch(self: GroupNorm, x: Tensor) -> Tensor:
    """What an uncompiled network does, and one on a CPU."""
    return functional.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def by_channel(self: GroupNorm, x: Tensor) -> Tensor:
    """What a compiled network does on a GPU."""
    return normalised_by_channel(x, self.groups, self.weight, self.bias, self.eps)


WAYS = {"torch's": by_torch, "by channel": by_channel}


class _Watch(trainings.Clock):
    """A clock that also notes the kernels of the last two steps, which it leaves out of the time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.profile = steps, profile(activities=[ProfilerActivity.CUDA])

    def __call__(self, step: int, average: nn.Module) -> None:
        super().__call__(step, average)
        if trainings.on_gpu() and step in (self.steps - 2, self.steps):
            torch.cuda.synchronize()
            (self.profile.__enter__ if step < self.steps else lambda: self.profile.__exit__(None, None, None))()

    def copies(self) -> tuple[float, float]:
        """How many plain copies a step makes, and their seconds."""
        kernels = self.profile.key_averages() if trainings.on_gpu() else []
        found = [each for each in kernels if "direct_copy" in each.key]
        return sum(each.count for each in found) / 2, sum(each.self_device_time_total for each in found) / 2e6


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Time a step with each way; the networks have the same weights."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=18, help="steps of each training; the first third is warm-up")
    choice(options, "ways", list(WAYS))
    arguments = options.parse_args(argv)
    report, small = Report(__file__, arguments), arguments.small
    steps, batch = (4, 2) if small else (arguments.steps, 256)
    shrunk = {"img_resolution": 8, "model_channels": 64, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [8]}
    changes = {"machinery.workers": 0, "machinery.compile": False} if small else {"machinery.precision": "bf16"}
    machinery = trainings.plan(small, changes=changes).preset.machinery
    made = networks.paper("cifar10", generator=torch.Generator().manual_seed(0), **(shrunk if small else {}))
    teacher = EDMPrecond(made)
    for way in arguments.ways:
        torch._dynamo.reset()
        with patch.object(GroupNorm, "forward", WAYS[way]), tempfile.TemporaryDirectory() as folder:
            dataset = trainings.made_pairs(teacher, Path(folder), n=batch)
            flow = trainings.livened(training.initial_flow(teacher, "teacher", dropout=0.1, seed=0))
            objective = training.Reflow(dataset, timesteps.UShaped(), premetrics.pseudo_huber, batch, seed=0)
            clock = _Watch(steps)
            _, history = engine.fit(
                flow, objective, engine.Optimisation(steps, 1e-4), machinery=machinery, on_step=clock
            )
            number, seconds = clock.copies()
        report.add(
            way=way, compiled=machinery.compile, batch=batch,
            **{
                "seconds a step": clock.seconds(steps // 3, steps - 2) / (steps - 2 - steps // 3),
                "copies a step": number, "seconds of copies": seconds, "loss": history.losses[-1],
            },
        )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    main()
