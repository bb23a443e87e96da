"""A batch of U-shaped timesteps: the inverse in closed form against a search for the root of every draw."""

import baselines
import numpy as np
import torch

from rfpp.timesteps import UShaped


def bench_against_a_density(compare, size):
    n, generator, other = size(512, 4), torch.Generator().manual_seed(0), np.random.default_rng(0)
    law = baselines.NumericUShaped()
    compare(
        lambda: UShaped().sample(n, generator),
        lambda: law.sample(n, other),
        question="a batch of U-shaped timesteps",
        baseline="scipy integrates the density and finds each draw's root",
        goal=5000,
        calls=200,
    )


def bench_against_a_distribution_function(compare, size):
    n, generator, other = size(512, 4), torch.Generator().manual_seed(0), np.random.default_rng(0)
    compare(
        lambda: UShaped().sample(n, generator),
        lambda: baselines.solved_times(n, other),
        question="the same batch, its distribution function known",
        baseline="a root finder for each draw",
        calls=200,
    )
