"""How straight trajectories are, and how far from their ends one step lands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rfpp.flow import RectifiedFlow
from rfpp.samplers import sample


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
