"""Pairs: noise that is a function of seed and index, images that are the teacher's, and files that survive anything."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from truth import Counting, kolmogorov_bound, mixture

from rfpp.pairs import PairDataset, generate, noise
from rfpp.samplers import edm_sample

SHAPE = (1, 1, 2)
OPTIONS = {"num_steps": 4, "shape": SHAPE, "classes": 3, "shard_size": 16, "batch_size": 8}


@pytest.fixture(scope="module")
def teacher():
    """A closed-form denoiser; float32, as networks are."""
    return mixture(torch.float32)


def images(folder):
    return PairDataset(folder).images


# Noise


def test_noise_is_a_function_of_seed_and_index():
    """Alone, in a batch, in another order: the same bits. Another seed or index: others."""
    batch = noise(3, range(10), SHAPE)
    assert torch.equal(noise(3, [7], SHAPE)[0], batch[7])
    assert torch.equal(noise(3, torch.tensor([9, 2, 2]), SHAPE), batch[[9, 2, 2]])
    assert not torch.equal(noise(4, range(10), SHAPE), batch)
    assert len({tuple(row.flatten().tolist()) for row in noise(3, range(1000), SHAPE)}) == 1000


def test_long_images_of_neighbouring_indices_do_not_overlap():
    """Index i's stream must not run into index i + 1's: no value of one occurs in the other."""
    first, second = noise(0, [0, 1], (3, 64, 64)).flatten(1).numpy()
    assert np.intersect1d(first, second).size < 5  # 12,288 floats of 24 random bits each meet now and then by chance


def test_noise_is_standard_normal():
    """100,000 numbers: Kolmogorov-Smirnov distance within its 1e-6 bound; mean within 5 / sqrt(n); variance within
    5 sqrt(2 / n)."""
    n = 100_000
    values = noise(0, range(1000), (1, 10, 10)).flatten().double().numpy()
    assert stats.kstest(values, "norm").statistic < kolmogorov_bound(n)
    assert abs(values.mean()) < 5 / math.sqrt(n) and abs(values.var() - 1) < 5 * math.sqrt(2 / n)


def test_noise_of_different_indices_is_uncorrelated():
    """1000 rows of 100: all 499,500 correlations have standard deviation 0.1, so none exceeds 6.5 times that; nor
    do neighbours correlate on average (999 of them: 5 * 0.1 / sqrt(999))."""
    rows = noise(0, range(1000), (1, 10, 10)).flatten(1).numpy()
    correlations = np.corrcoef(rows)
    assert np.abs(correlations[np.triu_indices(1000, 1)]).max() < 0.65
    assert abs(np.diag(correlations, 1).mean()) < 0.5 / math.sqrt(999)


# Generation


def test_images_are_the_teachers_and_stored_in_eight_bits(tmp_path, teacher):
    """``x`` is the teacher's sample of ``z`` for label ``i mod classes``, to half a grey level; 0..255 on [-1, 1]."""
    dataset = PairDataset(generate(teacher, 20, tmp_path, **OPTIONS))
    assert len(dataset) == 20 and dataset.images.dtype == torch.uint8
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
    assert not torch.equal(first.images, second.images) and not torch.equal(first[0][1], second[0][1])


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
    with pytest.raises(ValueError, match="shard-00001.safetensors is damaged.*make the pairs again"):
        PairDataset(tmp_path)
    counting = Counting(teacher)
    generate(counting, 40, tmp_path, **OPTIONS)
    assert counting.calls == 14 and shard.read_bytes() == content and torch.equal(images(tmp_path), whole)


def test_a_missing_shard_is_named_and_made_again(tmp_path, teacher):
    generate(teacher, 40, tmp_path, **OPTIONS)
    whole = images(tmp_path)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00000.safetensors is missing"):
        PairDataset(tmp_path)
    generate(teacher, 40, tmp_path, **OPTIONS)
    assert torch.equal(images(tmp_path), whole)


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
