"""Memory and speed of pair generation and training over the size of the store, and the time to open it.

Each size runs in a process of its own. The images are made without a network, by a sampler that returns its noise: what
is measured is everything else. The largest size takes 3 GB of disk, in a temporary folder.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time

SIZES = (10_000, 100_000, 1_000_000)
SHAPE, BATCH, STEPS = (3, 32, 32), 512, 100


def run(n: int, folder: str) -> None:
    """Print a row for a store of ``n`` pairs."""
    import torch

    from rfpp import engine, premetrics, timesteps, training
    from rfpp.denoisers import EDMPrecond
    from rfpp.flow import RectifiedFlow
    from rfpp.networks import SongUNet
    from rfpp.pairs import PairDataset, generate

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def no_denoiser(*_: object) -> torch.Tensor:
        raise AssertionError("the sampler takes its place")

    start = time.perf_counter()
    generate(no_denoiser, n, folder, sampler=lambda z, labels: z / 3, shape=SHAPE, classes=10)
    made, generating = time.perf_counter() - start, peak()

    start = time.perf_counter()
    pairs = PairDataset(folder)
    opened = time.perf_counter() - start

    network = SongUNet(32, 3, 3, label_dim=10, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    objective = training.Reflow(pairs, timesteps.UShaped(), premetrics.pseudo_huber, BATCH, seed=0)
    start = time.perf_counter()
    for step in range(STEPS):
        objective.draw(step, range(BATCH))
    drawn = STEPS / (time.perf_counter() - start)
    small = dataclasses.replace(objective, batch_size=32)
    engine.fit(RectifiedFlow(EDMPrecond(network)), small, engine.Optimisation(STEPS, 1e-4))
    print(f"{n:>10,}{n / made:>12,.0f}{generating:>14,.0f}{1000 * opened:>12,.1f}{drawn:>12,.1f}{peak():>14,.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(int(sys.argv[1]), sys.argv[2])
        sys.exit()
    print(f"{'pairs':>10}{'made/s':>12}{'peak, MB':>14}{'open, ms':>12}{'batches/s':>12}{'peak, MB':>14}", flush=True)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as place:
            subprocess.run([sys.executable, __file__, str(size), place], check=True)
