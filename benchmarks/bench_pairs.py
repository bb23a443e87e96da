"""The noise of a batch of pairs, and reading a batch."""

import baselines
import pytest
import torch
from torch.nn.functional import interpolate

from rfpp import pairs

SHAPE, BATCH = (3, 32, 32), 512


def smooth(z, labels):
    """Images as compressible as photographs are, where a network would make them of noise."""
    return interpolate(z[:, :, ::8, ::8], z.shape[2:], mode="bilinear") / 2 + z / 50


def no_denoiser(*_):
    raise AssertionError("the sampler takes its place")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, size):
    """As many pairs as do not fit into what is kept in memory."""
    place = tmp_path_factory.mktemp("pairs")
    return pairs.generate(no_denoiser, size(24_576, 64), place, sampler=smooth, shape=SHAPE, classes=10)


@pytest.fixture(scope="module")
def archived(folder, tmp_path_factory, size):
    return baselines.stored(tmp_path_factory.mktemp("archives"), pairs.PairDataset(folder), size(4096, 16))


def draw(n, size):
    return torch.randint(n, (size(BATCH, 8),), generator=torch.Generator().manual_seed(0))


def bench_noise(compare, size):
    indices = draw(1_000_000, size)
    compare(
        lambda: pairs.noise(0, indices, SHAPE),
        lambda: pairs.noise(0, indices, SHAPE, version=1),
        question="the noise of a batch of pairs",
        baseline="the generator's first version, a numpy generator for each pair",
        goal=3,
        rounds=31,
    )


def bench_noise_and_randn(compare, size):
    indices, generator = draw(1_000_000, size), torch.Generator().manual_seed(0)
    compare(
        lambda: pairs.noise(0, indices, SHAPE),
        lambda: torch.randn(len(indices), *SHAPE, generator=generator),
        question="that noise, beside noise that is no function of an index",
        baseline="one torch.randn for the batch",
        rounds=31,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def bench_noise_on_the_gpu(compare, size):
    indices = draw(1_000_000, size)

    def on_the_gpu():
        pairs.noise(0, indices, SHAPE, "cuda")
        torch.cuda.synchronize()

    compare(
        on_the_gpu,
        lambda: pairs.noise(0, indices, SHAPE),
        question="that noise on the GPU",
        baseline="on the CPU, one thread",
        rounds=31,
    )


def compare_reading(compare, size, dataset, archived, what):
    ours, usual = draw(len(dataset), size), draw(len(archived), size)
    compare(
        lambda: dataset.batch(ours),
        lambda: baselines.one_by_one(archived, usual),
        question=f"reading a batch of pairs, {what}",
        baseline="a PNG and a generator's state for each pair, from two zips, one by one",
        goal=20,
    )


def bench_reading_digits(compare, teacher, size, tmp_path):
    dataset = pairs.PairDataset(pairs.generate(teacher, size(4096, 16), tmp_path / "pairs", num_steps=2))
    archived = baselines.stored(tmp_path / "archives", dataset, len(dataset))
    compare_reading(compare, size, dataset, archived, "digits")


def bench_reading_from_memory(compare, size, archived, tmp_path):
    few = pairs.generate(no_denoiser, size(12_288, 16), tmp_path, sampler=smooth, shape=SHAPE, classes=10)
    compare_reading(compare, size, pairs.PairDataset(few), archived, "32×32 in colour, folder in memory")


def bench_reading_from_disk(compare, size, folder, archived):
    compare_reading(compare, size, pairs.PairDataset(folder), archived, "32×32 in colour, folder on disk")
