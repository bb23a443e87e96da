"""How straight trajectories are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


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
