"""The noise of a batch of 512 pairs of 32x32, on one thread: each version of the generator, and torch's own."""

from __future__ import annotations

import torch
from timing import medians, table

from rfpp.pairs import noise

SHAPE, BATCH = (3, 32, 32), 512
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
indices = torch.randint(0, 1_000_000, (BATCH,), generator=generator)

contenders = {
    f"version {version}": lambda version=version: noise(0, indices, SHAPE, version=version) for version in (1, 2)
}
contenders["one torch.randn, not a function of the index"] = lambda: torch.randn(BATCH, *SHAPE, generator=generator)
if torch.cuda.is_available():

    def on_the_gpu() -> None:
        noise(0, indices, SHAPE, "cuda")
        torch.cuda.synchronize()

    contenders["version 2, on the GPU"] = on_the_gpu
table(f"noise of {BATCH} pairs of {SHAPE}", medians(contenders, repeats=31), baseline="version 1")
