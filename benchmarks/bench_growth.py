"""How time grows with pairs, evaluations and steps, and what the size of a folder does to memory."""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import measure
import pytest
import torch

from rfpp import engine, pairs, premetrics, samplers, timesteps, training
from rfpp.flow import RectifiedFlow

SHAPE, BATCH = (3, 32, 32), 512


def no_denoiser(*_):
    raise AssertionError("the sampler takes its place")


def make(n, folder):
    """Pairs of CIFAR-10's size, made by everything but a network."""
    return pairs.generate(no_denoiser, n, folder, sampler=lambda z, labels: z / 3, shape=SHAPE, classes=10)


def bench_making_pairs(grow, size):
    def making(n):
        with tempfile.TemporaryDirectory() as folder:
            return measure.seconds(lambda: make(n, folder))

    sizes = size([4096, 8192, 16384, 32768], [4, 8, 16])
    grow(making, sizes, what="making pairs, but for the network", over="pairs", rounds=3)


def bench_reading_pairs(grow, size, tmp_path):
    sizes = size([24_576, 40_960, 65_536, 106_496], [4, 8, 16])
    folders = {n: make(n, tmp_path / str(n)) for n in sizes}

    def reading(n):
        dataset, order = pairs.PairDataset(folders[n]), torch.randperm(n, generator=torch.Generator().manual_seed(0))

        def read():
            for indices in order.split(BATCH):
                dataset.batch(indices)

        return measure.seconds(read)

    grow(reading, sizes, what="reading all pairs of a folder in random order", over="pairs", rounds=2, warm=False)


def bench_sampling(grow, teacher, size):
    flow, z = RectifiedFlow(teacher), torch.randn(size(16, 2), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(z)) % 10

    def sampling(nfe):
        return measure.seconds(lambda: samplers.sample(flow, z, nfe, labels=labels))

    grow(sampling, size([1, 2, 4, 8, 16, 32, 64], [1, 2, 3]), what="sampling", over="NFE", rounds=9)


def bench_training(grow, teacher, size, tmp_path):
    dataset = pairs.PairDataset(pairs.generate(teacher, size(512, 16), tmp_path, num_steps=4))
    flow = training.initial_flow(teacher, "teacher", dropout=0.0, seed=0)
    objective = training.Reflow(dataset, timesteps.UShaped(), premetrics.pseudo_huber, size(16, 4), seed=0)

    def fitting(steps):
        return measure.seconds(lambda: engine.fit(flow, objective, engine.Optimisation(steps, 1e-4)))

    grow(fitting, size([10, 20, 40, 80], [1, 2, 3]), what="training", over="steps", rounds=3)


# Memory, and opening a folder, each size in a process of its own


def alone(n):
    """Make pairs, open the folder and train on it a little: what opening took, and the most memory in use."""
    with tempfile.TemporaryDirectory() as folder:
        make(n, folder)
        opening = measure.seconds(lambda: pairs.PairDataset(folder))
        objective = training.Reflow(
            pairs.PairDataset(folder), timesteps.UShaped(), premetrics.pseudo_huber, BATCH, seed=0
        )
        for step in range(10):
            objective.draw(step, range(BATCH))
    return {"opening": opening, "memory": peak()}


def peak():
    """The most memory that this process had in use, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # what Linux gives for resource.getrusage is at least what the parent had in use
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.fixture(scope="module")
def measured(size):
    """The answers of :func:`alone`, asked for when they are first needed."""
    known: dict[int, dict[str, float]] = {}

    def ask(n):
        if n not in known:
            command = [sys.executable, __file__, str(n)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
            output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
            known[n] = json.loads(output)
        return known[n]

    return ask


FOLDERS = [12_500, 40_000, 120_000]


def bench_memory(grow, size, measured):
    def most(n):
        return measured(n)["memory"]

    words = {"what": "peak memory of making pairs and training on them", "over": "pairs", "unit": "MiB"}
    grow(most, size(FOLDERS, [4, 8]), **words, expected=0.0, rounds=1, warm=False)


def bench_opening(grow, size, measured):
    def opening(n):
        return measured(n)["opening"]

    grow(opening, size(FOLDERS, [4, 8]), what="opening a folder", over="pairs", expected=None, rounds=1, warm=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(alone(int(sys.argv[1]))))
