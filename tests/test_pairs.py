"""Pairs: noise that is a function of seed and index, images that are the teacher's, and files that survive anything."""

import copy
import io
import json
import math
import signal
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import nn
from truth import DATA, Counting, kolmogorov_bound, mixture, randn, released_pairs

from rfpp import pairs
from rfpp.base import rng
from rfpp.base.processes import Stopped
from rfpp.data import to_uint8
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.pairs import (
    Damaged,
    Mixture,
    PairDataset,
    generate,
    generators,
    import_released,
    invert,
    noise,
    noise_of_states,
    released,
    store,
)
from rfpp.samplers import edm_sample, integrate, inversion_times

SHAPE = (1, 1, 2)
OPTIONS = {"num_steps": 4, "shape": SHAPE, "classes": 3, "shard_size": 16, "batch_size": 8}


@pytest.fixture(scope="module")
def teacher():
    """A closed-form denoiser; float32, as networks are."""
    return mixture(torch.float32)


def stored(dataset):
    """Everything that is stored of a folder's pairs."""
    return dataset.read(torch.arange(len(dataset)))


def images(folder):
    return stored(PairDataset(folder))["images"]


# Noise


def test_noise_is_a_function_of_seed_and_index():
    """Alone, in a batch, in another order: the same bits. Another seed or index: others."""
    batch = noise(3, range(10), SHAPE)
    assert torch.equal(noise(3, [7], SHAPE)[0], batch[7])
    assert torch.equal(noise(3, torch.tensor([9, 2, 2]), SHAPE), batch[[9, 2, 2]])
    assert not torch.equal(noise(4, range(10), SHAPE), batch)
    assert len({tuple(row.flatten().tolist()) for row in noise(3, range(1000), SHAPE)}) == 1000


@pytest.mark.parametrize("version", [1, 2])
def test_long_images_of_neighbouring_indices_do_not_overlap(version):
    """Index i's stream must not run into index i + 1's: no two neighbours of one occur in the other. By chance two of
    12,288 would with a probability of 1e-6, for each number has some 23 random bits."""
    bits = noise(0, [0, 1], (3, 64, 64), version=version).flatten(1).numpy().view(np.uint32).astype(np.uint64)
    first, second = bits[:, :-1] << np.uint64(32) | bits[:, 1:]
    assert np.intersect1d(first, second).size == 0


@pytest.mark.parametrize("size", [1, 2, 7, 97, 3072])
def test_how_many_rows_are_drawn_at_once_does_not_change_them(size, monkeypatch):
    """Not by a bit, also where rows are as long as no vector of the processor's."""
    whole = noise(1, range(60), (size,))
    for chunk in (1, 5 * size, 23 * size):
        monkeypatch.setattr(generators, "CPU_CHUNK", chunk)
        order = torch.randperm(60, generator=torch.Generator().manual_seed(chunk))[: 1 + chunk % 50]
        assert torch.equal(noise(1, order, (size,)), whole[order])


@pytest.mark.parametrize("version", [1, 2])
def test_noise_is_standard_normal(version):
    """A million numbers: Kolmogorov-Smirnov distance within its 1e-6 bound; the first four moments within five of
    their standard deviations, sqrt(1, 2, 15, 96 / n)."""
    n = 1_000_000
    values = noise(0, range(1000), (10, 10, 10), version=version).flatten().double().numpy()
    assert stats.kstest(values, "norm").statistic < kolmogorov_bound(n)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - expected) < 5 * math.sqrt(variance / n)


def test_tails_are_as_heavy_as_they_should_be():
    """Of 3 million numbers, those beyond 3, 3.5, 4 and 4.5, on either side: Poisson counts, five deviations wide."""
    n = 3_000_000
    values = noise(1, range(1000), (3000,)).flatten()
    for bound in (3, 3.5, 4, 4.5):
        expected = n * stats.norm.sf(bound)
        for count in (int((values > bound).sum()), int((values < -bound).sum())):
            assert abs(count - expected) < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("library", [np, torch])
def test_every_word_gives_a_finite_number(library):
    """Radii at the ends of the integers: the smallest words give the largest, sqrt(64 log 2), the largest give 0."""
    ends = [0, -1, 1, 2**31 - 1, -(2**31)]
    radius = torch.tensor(ends, dtype=torch.int32).float().reshape(5, 1)
    arrays = (radius, torch.zeros(5, 1), normal := torch.empty(5, 2))
    generators._normal(*(arrays if library is torch else [array.numpy() for array in arrays]), library)
    truth = [math.sqrt(64 * math.log(2))] * 2 + [math.sqrt(-2 * math.log(1.5 / 2**31)), 0, 0]
    torch.testing.assert_close(normal, torch.tensor([[radius, 0] for radius in truth]))


def test_noise_of_different_indices_is_uncorrelated():
    """1000 rows of 100: all 499,500 correlations have standard deviation 0.1, so none exceeds 6.5 times that; nor
    do neighbours correlate on average (999 of them: 5 * 0.1 / sqrt(999))."""
    rows = noise(0, range(1000), (1, 10, 10)).flatten(1).numpy()
    correlations = np.corrcoef(rows)
    assert np.abs(correlations[np.triu_indices(1000, 1)]).max() < 0.65
    assert abs(np.diag(correlations, 1).mean()) < 0.5 / math.sqrt(999)


def correlation(a, b):
    return np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]


def test_noise_is_independent_along_a_row_and_of_neighbouring_seeds():
    """A million numbers, and their squares, within five standard deviations of no correlation: 5e-3. Lag 500 is that
    of two numbers made of the same radius."""
    rows = noise(0, range(1000), (1000,))
    for lag in (1, 2, 3, 4, 8, 499, 500, 501):
        first, second = rows[:, lag:], rows[:, :-lag]
        bound = 5 / math.sqrt(first.numel())
        assert abs(correlation(first, second)) < bound and abs(correlation(first**2, second**2)) < bound
    other = noise(1, range(1000), (1000,))
    assert abs(correlation(rows, other)) < 5e-3 and abs(correlation(rows**2, other**2)) < 5e-3


def test_philox_is_the_published_one():
    """Known answers of Random123 (philox4x64, 10 rounds) for numpy's, which counts up first; ours is numpy's, word for
    word, also for the largest keys, indices and lengths that are no whole blocks."""
    zero = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4)
    ones = np.random.Philox(key=2**128 - 1, counter=2**256 - 2).random_raw(4)
    assert zero.tolist() == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert ones.tolist() == [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    indices = [0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**63 - 1]
    for key in (0, 1, 2**32 - 1, 2**63 - 1, 1076161852920124492):
        for n in (1, 4, 103):
            words = generators.philox(key, indices, n).numpy().view(np.uint64)
            for row, index in zip(words, indices, strict=True):
                assert np.array_equal(row, np.random.Philox(key=key, counter=[0, 0, 0, index]).random_raw(n))


@pytest.mark.parametrize("device", ["torch on the CPU", "cuda"])
def test_noise_is_the_same_on_every_device(device):
    """The same words; the numbers to the rounding of logarithm, sine and cosine. What devices run is also run here."""
    expected = noise(3, range(50), (3, 5, 5))
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        found = noise(3, range(50), (3, 5, 5), "cuda").cpu()
    else:
        halves = generators.philox(rng.derive(3, "pairs"), range(50), 38).view(torch.int32).float()
        generators._normal(*halves.chunk(2, dim=1), found := torch.empty(50, 76), torch)
        found = found[:, :75].reshape(50, 3, 5, 5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


GOLDEN = {
    1: [
        [[-0.7495459914, -0.3770063519, 1.5421552658], [0.3326894939, -0.9712283611, 0.1124507114],
         [-0.5797846913, -0.1119913012, -0.9943205714]],
        [[-0.0604590513, 0.0042502522, 0.5500820279], [-0.3394655883, -0.3740367889, 1.6035394669]],
    ],
    2: [
        [[-0.8217938542, 0.5040139556, -2.4398279190], [0.1085665151, 0.6957475543, 1.7496248484],
         [0.5303906202, -1.3516873121, -0.9568089843]],
        [[-1.6651861668, 0.6556156278, -1.5751554966], [-1.8287125826, 0.6994820833, -1.2125852108]],
    ],
}  # fmt: skip
"""Of seed 0 and indices 0, 1 and 12345678901, and of seed 3 and indices 7 and 5: stores rely on them."""


@pytest.mark.parametrize("version", GOLDEN)
def test_noise_stays_what_it_is(version):
    """Each version of the generator draws for ever what it drew; single precision of another machine is allowed."""
    for (seed, indices), expected in zip(((0, [0, 1, 12345678901]), (3, [7, 5])), GOLDEN[version], strict=True):
        found = noise(seed, indices, (1, 1, 3), version=version).flatten(1)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", [0, 3])
def test_an_unknown_version_is_refused(version):
    with pytest.raises(ValueError, match=f"version={version} of the noise is not known; allowed: 1, 2"):
        noise(0, [0], SHAPE, version=version)


def change_index(folder, **changes):
    """Rewrite the index of a folder; ``None`` deletes."""
    index = {**json.loads((folder / "pairs.json").read_text()), **changes}
    (folder / "pairs.json").write_text(json.dumps({key: value for key, value in index.items() if value is not None}))


def test_a_store_is_read_with_the_generator_it_was_made_with(tmp_path, teacher):
    """Its index names it; one that names none is of the first."""
    generate(teacher, 5, tmp_path, **OPTIONS)
    assert json.loads((tmp_path / "pairs.json").read_text())["generator"] == 2
    assert torch.equal(PairDataset(tmp_path).batch(torch.arange(5))[1], noise(0, range(5), SHAPE))
    change_index(tmp_path, generator=None)
    assert torch.equal(PairDataset(tmp_path).batch(torch.arange(5))[1], noise(0, range(5), SHAPE, version=1))
    with pytest.raises(ValueError, match="made with other settings.*generator: 1 instead of 2"):
        generate(teacher, 5, tmp_path, **OPTIONS)
    change_index(tmp_path, generator=3)
    with pytest.raises(ValueError, match="noise of generator 3, but this version knows 1 to 2"):
        PairDataset(tmp_path)


# Generation


def test_images_are_the_teachers_and_stored_in_eight_bits(tmp_path, teacher):
    """``x`` is the teacher's sample of ``z`` for label ``i mod classes``, to half a grey level; 0..255 on [-1, 1]."""
    dataset = PairDataset(generate(teacher, 20, tmp_path, **OPTIONS))
    assert len(dataset) == 20 and stored(dataset)["images"].dtype == torch.uint8
    z, labels = noise(0, range(20), SHAPE), torch.arange(20) % 3
    truth = edm_sample(teacher, z, 4, labels=labels).clamp(-1, 1)
    for i in range(20):
        x, given, label = dataset[i]
        assert torch.equal(given, z[i]) and int(label) == i % 3 and x.shape == SHAPE
        assert (x - truth[i]).abs().max() <= 0.5 / 127.5 + 1e-5
        assert ((x + 1) * 127.5 - ((x + 1) * 127.5).round()).abs().max() < 1e-4


def test_a_network_tells_its_shape_and_classes(tmp_path, tiny):
    dataset = PairDataset(generate(tiny, 4, tmp_path, num_steps=2))
    assert dataset.shape == (1, 8, 8) and dataset.classes == 3
    assert [int(dataset[i][2]) for i in range(4)] == [0, 1, 2, 0]


def test_without_classes_there_are_no_labels(tmp_path, teacher):
    dataset = PairDataset(generate(teacher, 3, tmp_path, **{**OPTIONS, "classes": None}))
    assert len(dataset[0]) == 2 and dataset.batch(torch.arange(2))[2] is None


def test_a_closed_form_denoiser_needs_a_shape(tmp_path, teacher):
    with pytest.raises(ValueError, match=r"shape=None.*pass shape=\(C, H, W\)"):
        generate(teacher, 3, tmp_path)


def test_twice_is_the_same(tmp_path, teacher):
    first, second = (images(generate(teacher, 40, tmp_path / name, **OPTIONS)) for name in "ab")
    assert torch.equal(first, second)


def test_another_seed_is_other_pairs(tmp_path, teacher):
    first, second = (PairDataset(generate(teacher, 40, tmp_path / str(seed), seed=seed, **OPTIONS)) for seed in (0, 1))
    assert not torch.equal(stored(first)["images"], stored(second)["images"]) and not torch.equal(
        first[0][1], second[0][1]
    )


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64}, {"shard_size": 5}])
@pytest.mark.parametrize("kind", ["closed form", "network"])
def test_how_the_work_is_cut_does_not_change_the_result(tmp_path, teacher, tiny, changes, kind):
    """To one grey level in a few pixels for a network, whose sums a batch size may order differently; exact else."""
    denoiser = teacher if kind == "closed form" else tiny
    options = OPTIONS if kind == "closed form" else {"num_steps": 3, "shard_size": 16, "batch_size": 8}
    whole = images(generate(denoiser, 20, tmp_path / "whole", **options)).int()
    cut = images(generate(denoiser, 20, tmp_path / "cut", **{**options, **changes})).int()
    differing = (whole - cut).abs()
    assert differing.max() <= (0 if kind == "closed form" else 1) and (differing > 0).float().mean() < 0.01


def test_more_pairs_begin_with_the_fewer(tmp_path, teacher):
    """A pair depends on its index, not on how many there are."""
    few, many = (images(generate(teacher, n, tmp_path / str(n), **OPTIONS)) for n in (10, 40))
    assert torch.equal(many[:10], few)


# Interruption


class Failing(nn.Module):
    """A denoiser that gives up after some calls."""

    def __init__(self, denoiser, after):
        super().__init__()
        self.denoiser, self.left = denoiser, after

    def forward(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.denoiser(*arguments)


@pytest.mark.parametrize("after", [0, 1, 20, 30, 34])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, teacher, after):
    """40 pairs are shards of two, two and one batches of seven evaluations; finished shards are not made again."""
    with pytest.raises(KeyboardInterrupt):
        generate(Failing(teacher, after), 40, tmp_path / "broken", **OPTIONS)
    finished = min(after // 14, 2)
    assert len(list((tmp_path / "broken").glob("shard-*.safetensors"))) == finished
    with pytest.raises(FileNotFoundError, match="is missing; make the pairs again"):
        PairDataset(tmp_path / "broken")
    counting = Counting(teacher)
    generate(counting, 40, tmp_path / "broken", **OPTIONS)
    assert counting.calls == 35 - 14 * finished
    assert torch.equal(images(tmp_path / "broken"), images(generate(teacher, 40, tmp_path / "whole", **OPTIONS)))
    assert not list((tmp_path / "broken").glob(".*"))  # nothing unfinished is left lying about


def test_finished_pairs_are_not_made_again(tmp_path, teacher):
    generate(teacher, 40, tmp_path, **OPTIONS)
    counting = Counting(teacher)
    generate(counting, 40, tmp_path, **OPTIONS)
    assert counting.calls == 0


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_shard_is_noticed_and_made_again(tmp_path, teacher, keep):
    generate(teacher, 40, tmp_path, **OPTIONS)
    whole, shard = images(tmp_path), tmp_path / "shard-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:keep])
    with pytest.raises(Damaged, match="shard-00001.safetensors is damaged.*make the pairs again"):
        images(tmp_path)
    counting = Counting(teacher)
    with pytest.warns(UserWarning, match="shard-00001.safetensors is damaged; making it again"):
        generate(counting, 40, tmp_path, **OPTIONS)
    assert counting.calls == 14 and shard.read_bytes() == content and torch.equal(images(tmp_path), whole)


@pytest.mark.parametrize("place", [-1, -2000, -7000])
def test_a_flipped_bit_is_never_read(tmp_path, teacher, place, monkeypatch):
    """In an image, an index or a checksum: of a large folder that row is never had, but others of its shard are."""
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    generate(teacher, 3000, tmp_path, num_steps=2, shape=(1, 1, 2), classes=3, seed=1, batch_size=1000)
    whole, shard = images(tmp_path), tmp_path / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[place] ^= 16
    shard.write_bytes(content)
    dataset, broken = PairDataset(tmp_path), []
    for index in range(3000):
        try:
            assert torch.equal(dataset.read(torch.tensor([index]))["images"][0], whole[index])
        except Damaged as error:
            assert "rows differ from their checksums" in str(error)
            broken.append(index)
    assert len(broken) == 1
    with pytest.raises(Damaged, match="shard-00000.safetensors is damaged"):
        images(tmp_path)
    monkeypatch.undo()
    with pytest.raises(Damaged, match="shard-00000.safetensors is damaged"):
        PairDataset(tmp_path)[(broken[0] + 1) % 3000]


def test_a_folder_of_an_older_format_is_named(tmp_path, teacher):
    generate(teacher, 40, tmp_path, **OPTIONS)
    index = json.loads((tmp_path / "pairs.json").read_text())
    del index["format"]
    (tmp_path / "pairs.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has pairs of format 1, but this version reads 2; delete it"):
        PairDataset(tmp_path)


@pytest.mark.parametrize("in_memory", [0, pairs.IN_MEMORY])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_rows_come_in_the_order_they_are_asked_for(tmp_path, teacher, size, in_memory, monkeypatch):
    """Across shards, repeated, backwards: numpy's indexing of the whole."""
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    generate(teacher, 40, tmp_path, **{**OPTIONS, "shard_size": size})
    dataset = PairDataset(tmp_path)
    order = torch.tensor([39, 0, 0, 17, 3, 38, 17, 20])
    x, z, labels = dataset.batch(torch.arange(40))
    found = dataset.batch(order)
    assert torch.equal(found[0], x[order]) and torch.equal(found[1], z[order])
    assert (labels is None and found[2] is None) or torch.equal(found[2], labels[order])


def test_a_missing_shard_is_named_and_made_again(tmp_path, teacher):
    generate(teacher, 40, tmp_path, **OPTIONS)
    whole = images(tmp_path)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00000.safetensors is missing"):
        PairDataset(tmp_path)
    generate(teacher, 40, tmp_path, **OPTIONS)
    assert torch.equal(images(tmp_path), whole)


def test_an_image_that_is_not_finite_is_named_instead_of_stored(tmp_path, teacher):
    """As an 8-bit pixel, it would look like any other."""

    def broken(x, sigma, labels=None):
        found = teacher(x, sigma, labels)
        return torch.where(torch.arange(len(x))[:, None, None, None] == 3, torch.nan, found) if broken.later else found

    broken.later = False
    generate(broken, 16, tmp_path, **OPTIONS)
    broken.later, more = True, {**OPTIONS, "shard_size": 16}
    with pytest.raises(ArithmeticError, match="pair 3 is not finite; finished pairs are kept"):
        generate(broken, 32, tmp_path / "more", **more)
    assert not list((tmp_path / "more").glob("shard-*"))


# Reading


def test_a_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no pairs in {tmp_path}.*run rfpp.pairs.generate"):
        PairDataset(tmp_path)


def test_a_damaged_index_is_named(tmp_path, teacher):
    """As for a shard: which file, and what to do."""
    generate(teacher, 4, tmp_path, **OPTIONS)
    (tmp_path / "pairs.json").write_text('{"n": 4')
    with pytest.raises(ValueError, match="pairs.json"):
        PairDataset(tmp_path)
    with pytest.raises(ValueError, match="pairs.json"):
        generate(teacher, 4, tmp_path, **OPTIONS)


def test_an_index_that_holds_no_settings_is_named(tmp_path, teacher):
    generate(teacher, 4, tmp_path, **OPTIONS)
    (tmp_path / "pairs.json").write_text("[4]")
    with pytest.raises(ValueError, match=r"pairs.json is damaged \(a list instead of settings\)"):
        PairDataset(tmp_path)


@pytest.mark.parametrize("index", [-1, 40])
@pytest.mark.parametrize("in_memory", [0, 1 << 26])
def test_rows_that_no_pair_has_are_refused(tmp_path, teacher, index, in_memory, monkeypatch):
    """Also a row that the last shard would have if it were full."""
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    dataset = PairDataset(generate(teacher, 40, tmp_path, **OPTIONS))
    with pytest.raises(IndexError, match=r"this folder has pairs 0\.\.39"):
        dataset.batch(torch.tensor([0, index]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n": 5}, "n: 4 instead of 5"),
        ({"seed": 1}, "seed: 0 instead of 1"),
        ({"num_steps": 5}, "num_steps: 4 instead of 5"),
        ({"classes": 0}, "classes: 3 instead of 0"),
        ({"shape": (1, 2, 1)}, r"shape: \[1, 1, 2\] instead of \[1, 2, 1\]"),
    ],
)
def test_other_settings_do_not_mix_with_what_is_there(tmp_path, teacher, changes, complaint):
    generate(teacher, 4, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=f"made with other settings.*{complaint}.*choose another out_dir"):
        generate(teacher, changes.pop("n", 4), tmp_path, **{**OPTIONS, **changes})
    assert len(PairDataset(tmp_path)) == 4 and json.loads((tmp_path / "pairs.json").read_text())["n"] == 4


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"n": 0}, ValueError, "n=0 is too small"),
        ({"n": 1.5}, TypeError, r"n=1\.5 is a float"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is too small"),
        ({"shard_size": -1}, ValueError, "shard_size=-1 is too small"),
        ({"num_steps": 1}, ValueError, "num_steps=1 is too small"),
    ],
)
def test_settings_that_make_no_pairs_are_refused_before_anything_is_written(
    tmp_path, teacher, changes, error, complaint
):
    out_dir = tmp_path / "pairs"
    with pytest.raises(error, match=complaint):
        generate(teacher, changes.pop("n", 4), out_dir, **{**OPTIONS, **changes})
    assert not out_dir.exists()


@pytest.mark.parametrize("wrong", [{"num_steps": 1}, {"seed": -1}])
def test_a_refused_setting_does_not_stand_in_the_way_of_the_right_one(tmp_path, teacher, wrong):
    """A mistake, then the same command put right, in the same folder."""
    with pytest.raises(ValueError):
        generate(teacher, 4, tmp_path, **{**OPTIONS, **wrong})
    assert len(PairDataset(generate(teacher, 4, tmp_path, **OPTIONS))) == 4


def test_items_and_batches_are_the_same_pairs(tmp_path, teacher):
    dataset = PairDataset(generate(teacher, 40, tmp_path, **OPTIONS))
    index = torch.tensor([39, 0, 17])
    for place, items in enumerate(zip(*dataset.batch(index), strict=True)):
        assert all(torch.equal(a, b) for a, b in zip(items, dataset[int(index[place])], strict=True))
    assert torch.equal(dataset[-1][1], dataset[39][1])
    assert dataset[0][0].dtype == dataset[0][1].dtype == torch.float32


@pytest.mark.parametrize("index", [40, -41])
def test_an_index_outside_is_refused(tmp_path, teacher, index):
    dataset = PairDataset(generate(teacher, 40, tmp_path, **OPTIONS))
    with pytest.raises(IndexError, match=f"index {index} is outside the 40 pairs"):
        dataset[index]


def test_pairs_serve_a_dataloader(tmp_path, teacher):
    """torch's own loader stacks them."""
    dataset = PairDataset(generate(teacher, 10, tmp_path, **OPTIONS))
    x, z, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=10)))
    assert x.shape == z.shape == (10, *SHAPE) and labels.tolist() == [i % 3 for i in range(10)]


def test_coupling_is_the_teachers_not_independent(tmp_path, teacher):
    """Reflow's point: x is a function of z. Given the class the flow is the map ``mean + std z``, clamped to [-1, 1];
    independent pairs would correlate with 0 +- 0.035 (800 numbers)."""
    options = {**OPTIONS, "num_steps": 18, "shard_size": 400, "batch_size": 400}
    dataset = PairDataset(generate(teacher, 400, tmp_path, **options))
    x, z, labels = dataset.batch(torch.arange(400))
    residual = (x - mixture(torch.float32).means[labels]).flatten()
    assert np.corrcoef(residual, z.flatten())[0, 1] > 0.5


def test_a_full_disk_is_an_os_error(tmp_path, teacher):
    """What the callers handle; the file size limit stands for the disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="shard-00000|File too large"):
            generate(teacher, 4000, tmp_path, **{**OPTIONS, "num_steps": 2, "shard_size": 4000, "batch_size": 4000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(FileNotFoundError):
        PairDataset(tmp_path)


# The released archives


def test_noise_of_a_released_state_is_the_released_implementations():
    """Bit for bit, for the states and the noise that the released code left."""
    with np.load(DATA / "pcg64_noise.npz") as file:
        content = b"".join(state.ljust(32, b"\0") for state in file["state"].flatten().tolist())
        states = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 32)
        assert torch.equal(noise_of_states(states, file["noise"].shape[1:]), torch.from_numpy(file["noise"]))


@pytest.mark.parametrize(("classes", "per_folder", "channels"), [(None, None, 3), (10, None, 1), (7, 4, 3)])
@pytest.mark.parametrize("shard_size", [3, 100])
def test_released_archives_come_in_bit_by_bit(tmp_path, classes, per_folder, channels, shard_size):
    """Images, noise and labels of 11 pairs, in the order of their numbers, also where they lie in sub-folders."""
    samples, z, labels_csv, pixels, noises, labels = released_pairs(
        tmp_path / "in", 11, classes, channels=channels, per_folder=per_folder
    )
    folder = import_released(samples, z, tmp_path / "out", labels_csv, shard_size=shard_size)
    dataset = PairDataset(folder)
    assert len(dataset) == 11 and torch.equal(stored(dataset)["images"], pixels)
    for i in range(11):
        x, noise, *label = dataset[i]
        assert torch.equal(noise, noises[i]) and (x * 127.5 + 127.5 - pixels[i]).abs().max() < 1e-4
        assert [int(value) for value in label] == ([labels[i]] if classes else [])
    indices = torch.tensor([9, 0, 3])
    assert torch.equal(dataset.batch(indices)[1], noises[indices])


def test_numbers_of_different_length_are_in_order(tmp_path):
    """From 99,998 on the released names grow by a digit, and 100000 comes before 99998 in the alphabet."""
    samples, z, _, pixels, noises, _ = released_pairs(tmp_path / "in", 4, start=99_998, per_folder=60_000)
    dataset = PairDataset(import_released(samples, z, tmp_path / "out"))
    assert torch.equal(stored(dataset)["images"], pixels) and torch.equal(dataset[3][1], noises[3])


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    """The shards that are there are kept; what comes out is the same."""
    samples, z, labels_csv, pixels, _, _ = released_pairs(tmp_path / "in", 10, 3)
    read, left = released._pixels, [6]

    def some(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(released, "_pixels", some)
    with pytest.raises(KeyboardInterrupt):
        import_released(samples, z, tmp_path / "out", labels_csv, shard_size=4)
    assert [path.name for path in (tmp_path / "out").glob("shard-*")] == ["shard-00000.safetensors"]
    left[0] = 7  # one look at the first image, for its size, and six images of two shards
    import_released(samples, z, tmp_path / "out", labels_csv, shard_size=4)
    assert torch.equal(stored(PairDataset(tmp_path / "out"))["images"], pixels)


def repack(path, change):
    """A zip archive in its own place; ``change(name, content)`` gives a list of what to write."""
    with zipfile.ZipFile(path) as old:
        content = [(info.filename, old.read(info)) for info in old.infolist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        warnings.simplefilter("ignore")  # of names that are there twice: that is the point
        for name, data in content:
            for entry in change(name, data):
                new.writestr(*entry)


def png(width, height, mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, (width, height)).save(content, format="PNG")
    return content.getvalue()


def at(place, *entries):
    """A change of one file of an archive."""
    return lambda name, data: list(entries) if place in name else [(name, data)]


def test_a_repeated_run_of_the_released_code_is_no_harm(tmp_path):
    """It stores every file again under the same name; the same content is fine, and counts once."""
    samples, z, labels_csv, pixels, _, _ = released_pairs(tmp_path / "in", 4, 3)
    for path in (samples, z):
        repack(path, lambda name, data: [(name, data), (name, data)])
    labels_csv.write_text(labels_csv.read_text() * 2)
    assert torch.equal(stored(PairDataset(import_released(samples, z, tmp_path / "out", labels_csv)))["images"], pixels)


ARCHIVE_COMPLAINTS = {
    "an image without noise": ("z", at("00002"), "1 of 5 files in .*samples.zip have no partner in .*z.zip: 0"),
    "noise without an image": ("samples", at("00002"), "1 of 5 files in .*z.zip have no partner in .*samples.zip: 0"),
    "no images": ("samples", lambda name, data: [(name + ".txt", data)], "samples.zip has no .png files"),
    "two images of one name": (
        "samples", at("00002", ("00002.png", png(4, 4)), ("00002.png", png(5, 5))), "different files called 00002.png"
    ),
    "a short state": ("z", at("00002", ("00002.bin", bytes(31))), "z.zip: 1 files do not have 32 bytes: 00002"),
    "a state of zeros": ("z", at("00002", ("00002.bin", bytes(32))), "does not hold PCG64 states"),
    "another size": (
        "samples", at("00002", ("00002.png", png(8, 4))), r"00002.png .*8x4 of mode RGB; .* = \(3, 4, 4\) is needed"
    ),
    "another mode": ("samples", at("00002", ("00002.png", png(4, 4, "L"))), "4x4 of mode L"),
    "transparency": ("samples", at("00000", ("00000.png", png(4, 4, "RGBA"))), "4x4 of mode RGBA; mode L or RGB"),
    "no image at all": ("samples", at("00002", ("00002.png", b"hello")), "00002.png cannot be read"),
    "another format": ("samples", at("00002", ("00002.png", b"GIF89a" + bytes(50))), "00002.png cannot be read"),
    "half an image": ("samples", at("00002", ("00002.png", png(4, 4)[:45])), "00002.png cannot be read"),
    "a file that unfolds": (
        "samples", at("00002", ("00002.png", bytes(1 << 25))), "00002.png would unfold to 33554432 bytes"
    ),
    "a picture that unfolds": (
        "samples", at("00000", ("00000.png", png(5000, 5000, "L"))), "5000x5000 of mode L; .* at most 4096 pixels wide"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVE_COMPLAINTS)
def test_archives_that_do_not_match_are_refused(tmp_path, kind):
    which, change, complaint = ARCHIVE_COMPLAINTS[kind]
    samples, z, *_ = released_pairs(tmp_path / "in", 5)
    repack(samples if which == "samples" else z, change)
    with pytest.raises(ValueError, match=complaint):
        import_released(samples, z, tmp_path / "out")
    assert not list(tmp_path.glob("out/shard-*"))


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
@pytest.mark.parametrize("which", [0, 1])
def test_a_truncated_archive_is_named(tmp_path, which, keep):
    archives = released_pairs(tmp_path / "in", 5)[:2]
    content = archives[which].read_bytes()
    archives[which].write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=f"{archives[which]} is not a complete zip archive"):
        import_released(*archives, tmp_path / "out")


def test_a_damaged_entry_is_named(tmp_path):
    """One byte of an image changed: the archive's own checksum tells."""
    samples, z, *_ = released_pairs(tmp_path / "in", 5)
    content = bytearray(samples.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    samples.write_bytes(content)
    with pytest.raises(ValueError, match="samples.zip: 00000.png is damaged"):
        import_released(samples, z, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("00000.png,1\n00001.png\n", {}, "line 2: '00001.png' is not a name and a class"),
        ("00000.png,1\n00001.png,cat\n", {}, "line 2: '00001.png,cat' is not a name and a class"),
        ("00000.png,-1\n", {}, "line 1: '00000.png,-1' is not a name and a class"),
        ("00000.png,1\n", {}, "has no class for 2 of 3 images: 00001, 00002"),
        ("00000.png,1\n00000.png,2\n", {}, "line 2: 00000.png has class 2, but 1 further up"),
        ("00000.png,1\n00001.png,7\n00002.png,0\n", {"classes": 7}, "has class 7, but classes=7; allowed: 0..6"),
    ],
)
def test_labels_that_do_not_match_are_refused(tmp_path, text, options, complaint):
    samples, z, *_ = released_pairs(tmp_path / "in", 3)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        import_released(samples, z, tmp_path / "out", tmp_path / "labels.csv", **options)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_archive_that_is_not_there_is_named(tmp_path, which):
    paths = list(released_pairs(tmp_path / "in", 3, 2)[:3])
    paths[which] = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=f"at {tmp_path / 'nowhere'}"):
        import_released(*paths[:2], tmp_path / "out", paths[2])


def test_other_archives_do_not_fit_into_the_same_folder(tmp_path):
    first, second = (released_pairs(tmp_path / name, 3 + n)[:2] for n, name in enumerate("ab"))
    import_released(*first, tmp_path / "out")
    with pytest.raises(ValueError, match="holds pairs made with other settings"):
        import_released(*second, tmp_path / "out")


def test_pairs_of_another_denoiser_do_not_fit_into_the_same_folder(tmp_path, teacher, tiny):
    """Told apart by their weights; the same weights in another wrapping are the same denoiser."""
    options = {"num_steps": 2, "shape": (1, 8, 8), "classes": 3}
    generate(tiny, 3, tmp_path, **options)
    generate(Counting(tiny), 3, tmp_path, **options)
    other = copy.deepcopy(tiny)
    next(other.parameters()).data += 1
    with pytest.raises(ValueError, match="holds pairs made with other settings .denoiser: "):
        generate(other, 3, tmp_path, **options)


def test_classes_that_the_denoiser_does_not_have_are_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match="classes=5, but the denoiser's network has label_dim=3"):
        generate(tiny, 3, tmp_path, classes=5)


def test_other_labels_do_not_fit_into_the_same_folder(tmp_path):
    samples, z, labels_csv, *_ = released_pairs(tmp_path / "in", 6, 3)
    import_released(samples, z, tmp_path / "out", labels_csv)
    labels_csv.write_text("".join(f"{i:05d}.png,{i % 3}\n" for i in range(6)))
    with pytest.raises(ValueError, match="holds pairs made with other settings .content: "):
        import_released(samples, z, tmp_path / "out", labels_csv)


def test_labels_as_spreadsheets_write_them(tmp_path):
    """With a mark of the byte order at the start, and an empty line at the end."""
    samples, z, labels_csv, _, _, labels = released_pairs(tmp_path / "in", 4, 3)
    labels_csv.write_text("\ufeff" + labels_csv.read_text() + "\n", encoding="utf-8")
    assert stored(PairDataset(import_released(samples, z, tmp_path / "out", labels_csv)))["labels"].tolist() == labels


def test_a_shard_that_cannot_be_read_for_now_is_not_thrown_away(tmp_path, teacher, monkeypatch):
    """Out of memory, or a network drive that is away: the shard stays."""

    def refuse(path):
        raise OSError(12, "Cannot allocate memory")

    generate(teacher, 20, tmp_path, **OPTIONS)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(store, "load_file", refuse)
    with pytest.raises(OSError, match="Cannot allocate"):
        generate(teacher, 20, tmp_path, **OPTIONS)
    assert {path.name for path in tmp_path.iterdir()} == before


# Inverted images


def test_inverted_pairs_hold_the_noise_of_each_image(tmp_path, tiny):
    """Images and labels as they were given; the noise is the flow's ODE from the little noise of (seed, i), however the
    work is cut, to what another batch size changes in a network's sums; the little noise itself is 1e-3."""
    flow, pixels = RectifiedFlow(tiny), to_uint8(0.5 * randn(7, 1, 8, 8))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    dataset = PairDataset(invert(flow, pixels, labels, tmp_path / "a", nfe=5, seed=3, batch_size=4, shard_size=5))
    whole = PairDataset(invert(flow, pixels, labels, tmp_path / "b", nfe=5, seed=3))
    assert torch.equal(stored(dataset)["images"], pixels) and stored(dataset)["labels"].tolist() == labels.tolist()
    torch.testing.assert_close(stored(dataset)["noise"], stored(whole)["noise"], rtol=1e-4, atol=1e-4)
    x, z, label = dataset[2]
    start = interpolate(x[None], noise(3, [2], (1, 8, 8)), 1e-3)
    with torch.no_grad():
        expected = integrate(flow, start, inversion_times(5), labels=label[None])[-1][0]
    torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(dataset.batch(torch.tensor([2]))[1][0], z)


def test_without_labels_inverted_pairs_have_none(tmp_path, tiny):
    dataset = PairDataset(invert(RectifiedFlow(tiny), to_uint8(randn(3, 1, 8, 8)), None, tmp_path, nfe=1))
    assert len(dataset[0]) == 2


def test_a_mixture_may_lack_images_of_the_last_classes(tmp_path, tiny):
    labels = torch.tensor([0, 1, 0])
    inverted = PairDataset(invert(RectifiedFlow(tiny), to_uint8(randn(3, 1, 8, 8)), labels, tmp_path / "a", nfe=1))
    made = PairDataset(generate(tiny, 6, tmp_path / "b", num_steps=2))
    assert (made.classes, inverted.classes) == (3, 2)
    mixed = Mixture(made, inverted, 0.5)
    assert mixed.classes == 3 and mixed.batch(torch.arange(9))[2].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    with pytest.raises(ValueError, match="do not mix"):
        Mixture(inverted, made, 0.5)


def test_noise_that_is_not_finite_is_named_instead_of_stored(tmp_path, tiny):
    broken = copy.deepcopy(tiny)
    next(broken.parameters()).data.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match="pair 0 is not finite"):
        invert(RectifiedFlow(broken), to_uint8(randn(3, 1, 8, 8)), None, tmp_path, nfe=1)


def test_only_pixels_are_inverted(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"images have shape \(3, 1, 8, 8\) and type torch.float32; 8-bit pixels"):
        invert(RectifiedFlow(tiny), randn(3, 1, 8, 8), None, tmp_path / "new", nfe=1)
    assert not (tmp_path / "new").exists()


def test_inverted_pairs_of_other_settings_are_refused(tmp_path, tiny):
    pixels = to_uint8(randn(3, 1, 8, 8))
    invert(RectifiedFlow(tiny), pixels, None, tmp_path, nfe=1)
    with pytest.raises(ValueError, match="holds pairs made with other settings .nfe: 1 instead of 2"):
        invert(RectifiedFlow(tiny), pixels, None, tmp_path, nfe=2)
    with pytest.raises(ValueError, match="nfe=0 is too small"):
        invert(RectifiedFlow(tiny), pixels, None, tmp_path / "new", nfe=0)


def test_another_sampler_can_take_the_place_of_edms(tmp_path, tiny):
    """It gets the noise and labels of each batch, and what it returns is stored."""
    dataset = PairDataset(
        generate(
            tiny,
            7,
            tmp_path,
            batch_size=3,
            sampler=lambda z, labels: z.clamp(-1, 1) / (labels + 1).reshape(-1, 1, 1, 1),
        )
    )
    x, z, labels = dataset.batch(torch.arange(7))
    assert (x - z.clamp(-1, 1) / (labels + 1).reshape(-1, 1, 1, 1)).abs().max() < 0.51 / 127.5
    with pytest.raises(ValueError, match="num_steps: None instead of 18"):
        generate(tiny, 7, tmp_path)


@pytest.mark.parametrize("moment", [1, 5, 2])
def test_a_signal_while_pairs_are_made_is_not_lost(tmp_path, teacher, moment):
    """Also during the very last batch: finished shards stay, and the same call goes on."""

    class Signalling(Counting):
        def forward(self, *arguments):
            if self.calls == 7 * moment - 1:
                signal.raise_signal(signal.SIGTERM)
            return super().forward(*arguments)

    with pytest.raises(Stopped, match="stopped by SIGTERM; finished pairs are kept"):
        generate(Signalling(teacher), 40, tmp_path / "a", **OPTIONS)
    generate(teacher, 40, tmp_path / "a", **OPTIONS)
    generate(teacher, 40, tmp_path / "b", **OPTIONS)
    assert torch.equal(images(tmp_path / "a"), images(tmp_path / "b"))


# Mixtures


@pytest.fixture
def both(tmp_path, teacher):
    """Two folders of pairs, of 30 and of 12."""
    return [PairDataset(generate(teacher, n, tmp_path / str(n), **{**OPTIONS, "seed": n})) for n in (30, 12)]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixture_draws_each_kind_with_its_probability(both, share):
    """Uniformly within a kind; 4,000 draws, and four standard deviations."""
    found = Mixture(*both, share).draw(4000, rng.generator(0, "mixture"))
    of_others = (found >= 30).double().mean().item()
    assert abs(of_others - share) <= 4 * math.sqrt(share * (1 - share) / 4000)
    for rows, size in ((found[found < 30], 30), (found[found >= 30] - 30, 12)):
        if len(rows):
            assert stats.chisquare(torch.bincount(rows, minlength=size)).pvalue > 1e-4


def test_a_mixture_gives_the_rows_that_were_asked_for(both):
    one, two = both
    x, z, labels = Mixture(one, two, 0.5).batch(torch.tensor([3, 41, 29, 30, 3]))
    for place, (dataset, index) in enumerate([(one, 3), (two, 11), (one, 29), (two, 0), (one, 3)]):
        for found, expected in zip((x, z, labels), dataset[index], strict=True):
            assert torch.equal(found[place], expected)


def test_what_does_not_mix_is_refused(both, tmp_path, teacher):
    plain = PairDataset(generate(teacher, 12, tmp_path / "plain", **{**OPTIONS, "classes": None}))
    with pytest.raises(ValueError, match="do not mix"):
        Mixture(both[0], plain, 0.5)
    with pytest.raises(ValueError, match="share=1.5 is not a probability"):
        Mixture(*both, 1.5)
