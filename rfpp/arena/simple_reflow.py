"""Simple ReFlow (Kim et al., 2025): its changes to the loss, one by one and together, as configurations.

The changes are weights that level the losses of samples, times drawn closer to the noise, and a distance that weighs
fine detail more. Simple ReFlow uses no perceptual distance. Of its other changes, two are available elsewhere: less
dropout is a setting of the preset, and configuration G trains on pairs of inverted images. Its projected pairs, its
times for sampling and its guidance are not in this package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rfpp.configurations import Configuration
from rfpp.premetrics import full_precision, squared_l2
from rfpp.timesteps import Exponential, Uniform


def sharpened(error: Tensor, strength: float) -> Tensor:
    """An error ``(B, C, H, W)`` plus ``strength`` times what a binomial blur removes from it, in full precision."""
    line = error.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(error.shape[1], 1, 3, 3)
    with full_precision(error.device.type):
        blurred = F.conv2d(F.pad(error, (1, 1, 1, 1), mode="replicate"), kernel, groups=error.shape[1])
    return error + strength * (error - blurred)


@dataclass(frozen=True)
class Levelled:
    """The power family of premetrics: ``e / sg[e + offset]^power`` of the squared error ``e = ||a - b||^2 / d``.

    ``power = 0`` is the squared distance, 1/2 has pseudo-Huber's gradient far from 0, and 1 is Simple ReFlow's weight
    ``1 / sg[loss]``, with which every row counts the same. ``sharpness``: how much errors are sharpened first.
    Only its gradient is meaningful: with ``power = 1`` the value is nearly 1 wherever ``a`` and ``b`` differ.
    """

    power: float = 1.0
    sharpness: float = 0.0
    offset: float = 1e-6

    def __call__(self, a: Tensor, b: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        error = sharpened(a - b, self.sharpness) if self.sharpness else a - b
        squared = squared_l2(error, torch.zeros_like(error))
        return squared / (squared.detach() + self.offset) ** self.power


TOWARDS_NOISE = Exponential(math.log(10.0))
"""The density proportional to ``10^t``."""
SHARPNESS = 10.0
"""Simple ReFlow's weight of the high frequencies."""

SIMPLE_REFLOW = {
    "levelled": Configuration("baseline + levelled weights", timesteps=Uniform(), premetric=Levelled()),
    "towards-noise": Configuration("baseline + times towards noise", timesteps=TOWARDS_NOISE),
    "sharp": Configuration(
        "baseline + weight of detail", timesteps=Uniform(), premetric=Levelled(power=0.0, sharpness=SHARPNESS)
    ),
    "simple-reflow": Configuration(
        "Simple ReFlow's loss", timesteps=TOWARDS_NOISE, premetric=Levelled(sharpness=SHARPNESS)
    ),
}
"""Simple ReFlow's changes to the loss, each alone and all together."""
