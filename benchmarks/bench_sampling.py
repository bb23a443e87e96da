"""EDM's sampler, as the teacher makes pairs with it."""

import baselines
import torch

from rfpp import samplers


def bench_edm_sampler(compare, teacher, size):
    generator = torch.Generator().manual_seed(0)
    n, num_steps = size(16, 2), size(18, 2)
    z, labels = torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 10
    compare(
        lambda: samplers.edm_sample(teacher, z, num_steps, labels=labels),
        lambda: baselines.edm_sample(teacher, z, num_steps, labels),
        question="samples of the teacher, digits",
        baseline="a state in float64, of which copies are kept",
        rounds=21,
    )
