"""A batch of U-shaped timesteps: the inverse in closed form against a root finder for every draw."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq
from timing import medians, table

from rfpp.timesteps import UShaped

SIZE = 512
density = UShaped()
generator, numpy_generator = torch.Generator().manual_seed(0), np.random.default_rng(0)


def root_finding() -> np.ndarray:
    """Solve ``cdf(t) = p`` numerically, one draw at a time."""
    a = density.a

    def cdf(t: float) -> float:
        return 0.5 + np.sinh(a * (t - 0.5)) / (2 * np.sinh(a / 2))

    return np.array([brentq(lambda t, p=p: cdf(t) - p, 0, 1) for p in numpy_generator.random(SIZE)])


closed_form = "closed form, with its generator"
seconds = medians({closed_form: lambda: density.sample(SIZE, generator), "root finding, one by one": root_finding})
table(f"{SIZE} timesteps", seconds, baseline=closed_form)
