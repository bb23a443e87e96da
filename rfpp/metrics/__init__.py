"""How good samples and trajectories are. Images in [-1, 1]; distributions are compared through ``torchmetrics``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from scipy import stats
from torch import Tensor, nn

from rfpp.base import torchvision_shim
from rfpp.flow import RectifiedFlow
from rfpp.samplers import sample

torchvision_shim.ensure()
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402 (needs torchvision)
from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: E402


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
def label_agreement(images: Tensor, labels: Tensor, classifier: nn.Module, batch_size: int = 1024) -> float:
    """Share of images ``(N, C, H, W)`` that ``classifier`` recognises as their label ``(N,)``."""
    found = torch.cat([classifier(batch).argmax(dim=1) for batch in images.split(batch_size)])
    return float((found == labels).float().mean())


@torch.no_grad()
def precision_recall(real: Tensor, generated: Tensor, embedding: nn.Module, neighbours: int = 3) -> tuple[float, float]:
    """Precision, the share of generated images within the real ones' manifold, and recall, the converse.

    The manifold is made of balls around the ``embedding`` of each image that reach to its ``neighbours``-th neighbour
    (Kynkäänniemi et al., 2019); computed by torch-fidelity. Images: ``(N, C, H, W)``.
    """
    found = prc_features_to_metric(
        embedding(generated).float(),
        embedding(real).float(),
        prc_neighborhood=neighbours,
        prc_batch_size=10_000,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def norm_distance(z: Tensor) -> float:
    """How far the norms of noises ``z`` ``(N, ...)`` are from those of standard normal noise: Kolmogorov's distance.

    Between 0 and 1: the largest gap between the norms' distribution function and that of the chi distribution with
    ``d`` degrees of freedom. ``N`` Gaussian noises stay below ``1.36 / sqrt(N)`` in 95 % of all cases.
    """
    norms = z.flatten(1).double().norm(dim=1).numpy()
    return float(stats.kstest(norms, stats.chi(z[0].numel()).cdf).statistic)


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
