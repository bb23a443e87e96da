"""How good samples and trajectories are. Images in [-1, 1]; distributions are compared through ``torchmetrics``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rfpp import torchvision_shim
from rfpp.flow import RectifiedFlow
from rfpp.samplers import sample

torchvision_shim.ensure()
from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402 (needs torchvision)


@torch.no_grad()
def frechet_distance(real: Tensor, generated: Tensor, embedding: nn.Module, batch_size: int = 1024) -> float:
    """Fréchet distance between two sets of images ``(N, C, H, W)`` in the features of ``embedding``.

    ``embedding`` maps images to ``(B, num_features)`` and has that attribute: Inception gives the usual FID, a digit
    classifier the distance this book reports on digits. Biased upwards by about ``1/N``: compare at equal ``N``.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"{len(real)} real and {len(generated)} generated images; at least 2 of each are needed")
    distance = FrechetInceptionDistance(feature=embedding)
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            distance.update(batch, real=is_real)
    return float(distance.compute())


@torch.no_grad()
def label_agreement(images: Tensor, labels: Tensor, classifier: nn.Module) -> float:
    """Share of images ``(N, C, H, W)`` that ``classifier`` recognises as their label ``(N,)``."""
    return float((classifier(images).argmax(dim=1) == labels).float().mean())


def one_step_error(flow: RectifiedFlow, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """``||sample(z, nfe=1) - x||^2 / d`` for each pair ``(x, z)``, ``(B,)``: how far one step lands from ``x``."""
    return (sample(flow, z, 1, labels=labels) - x).square().flatten(1).mean(dim=1)


def straightness(trajectory: Sequence[Tensor] | Tensor, times: Sequence[float] | Tensor) -> Tensor:
    """Mean squared deviation of the velocity along a trajectory from its chord, ``(B,)``; 0 for a straight line.

    ``trajectory``: states ``(B, ...)`` at ``times``, on any grid and in either direction. Each step counts the same.
    """
    grid = [float(t) for t in times]
    if len(grid) != len(trajectory) or len(grid) < 2:
        raise ValueError(
            f"{len(trajectory)} states at {len(grid)} times; as many states as times, and at least 2, are needed"
        )
    chord = (trajectory[-1] - trajectory[0]) / (grid[-1] - grid[0])
    deviations = [
        ((b - a) / (s - t) - chord).square().flatten(1).mean(dim=1)
        for (a, b), (t, s) in zip(pairwise(trajectory), pairwise(grid), strict=True)
    ]
    return torch.stack(deviations).mean(dim=0)
