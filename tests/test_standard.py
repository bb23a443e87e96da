"""The standard evaluation, against numpy, scipy, closed forms, and torch-fidelity's own whole run.

Inception has random weights here: what is published cannot be had without a network, and nothing below needs it.
"""

import hashlib
import json
import pickle
import sys
import warnings
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import linalg, special
from truth import randn, random_inception

from rfpp import metrics
from rfpp.base import files, torchvision_shim
from rfpp.experiment import Experiment
from rfpp.metrics import Extractor, Grades, Moments, Protocol, Statistics, statistics

FINE = Protocol(
    n=50_000,
    extractor="inception",
    extractor_sha256=metrics.INCEPTION_SHA256,
    reference="cifar10-32x32.npz",
    reference_sha256="ab" * 32,
    reference_count=50_000,
    dataset="cifar10",
    flow_sha256="cd" * 32,
    nfe=2,
    solver="heun",
    update="straight",
    first_time=0.99999,
    inner=(0.8, 0.5),
    seed=3,
)
"""Nothing forbids a comparison."""


def pixels(n, *shape, seed=0):
    """Random 8-bit images."""
    shape = shape or (3, 2, 2)
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Flat(Extractor):
    """Pixels in [0, 1] as features and, if there are classes, fixed mixtures of them as logits."""

    name = "flat"

    def __init__(self, num_features=12, classes=5, spoilt=None):
        super().__init__()
        self.num_features, self.classes, self.spoilt, self.seen = num_features, classes, spoilt, []

    def forward(self, images):
        self.seen.append(len(images))
        features = images.flatten(1).float() / 255
        logits = features @ randn(self.num_features, self.classes) if self.classes else None
        if self.spoilt is not None:
            features[0, 0] = self.spoilt
        return features, logits


def reference(dim=12, **more):
    """Statistics of a standard normal distribution."""
    return Statistics(np.zeros(dim), np.eye(dim), **{"name": "normal", **more})


def quietly(*arguments, **options):
    """``grade`` where its caveats are not what is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="not comparable with published numbers")
        return metrics.grade(*arguments, **options)


def frechet(m, s, n, t):
    """The distance of two Gaussians by scipy's matrix square root."""
    return (m - n) @ (m - n) + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)


# Inception


def list_of(images):
    """Images as the kind of dataset that torch-fidelity takes."""

    class Listed(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index]

    return Listed()


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of random weights, with which activations neither vanish nor explode, and logits tell images apart."""
    return random_inception(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture(scope="session")
def inception(weights):
    return metrics.inception(weights)


def test_the_checksum_is_that_of_the_published_name():
    assert len(metrics.INCEPTION_SHA256) == 64
    assert metrics.INCEPTION_URL.endswith(f"-{metrics.INCEPTION_SHA256[:8]}.pth")


def test_inception_knows_which_one_it_is(inception, weights):
    assert inception.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert inception.name == "inception-v3 with random.pth" and inception.num_features == 2048
    assert not inception.training and not any(parameter.requires_grad for parameter in inception.parameters())


def test_grades_in_inceptions_features_are_torch_fidelitys(inception, weights):
    """Score, precision and recall from a whole run of torch-fidelity on the same images and weights. The distance from
    the singular values of a small matrix: of n and m images with centred features X and Y, the trace of
    ``(S T)^(1/2)`` is the nuclear norm of ``X Y^T / sqrt((n - 1) (m - 1))``."""
    calculate_metrics = torchvision_shim.load("torch_fidelity").calculate_metrics

    images = pixels(11, 3, 2, 2)
    real = torch.cat([images[:2], pixels(2, 3, 2, 2, seed=1)])
    ((features, logits),) = metrics.embed(real, inception)
    assert features.dtype == torch.float32 and features.shape == (4, 2048) and logits.shape == (4, 1008)
    kept, reference = [], Moments(2048).add(features).statistics("real")
    hook = inception.register_forward_hook(lambda module, batch, found: kept.append(found[0]))
    given = quietly(images, inception, reference, reference_features=features, batch_size=6)
    hook.remove()
    x, y = torch.cat(kept).double(), features.double()
    gap, variances = x.mean(0) - y.mean(0), x.var(0).sum() + y.var(0).sum()
    overlap = torch.linalg.matrix_norm((x - x.mean(0)) @ (y - y.mean(0)).T / (10 * 3) ** 0.5, "nuc")
    assert given.fid == pytest.approx(float(gap @ gap + variances - 2 * overlap), rel=1e-3)
    truth = calculate_metrics(
        input1=list_of(images), input2=list_of(real), isc=True, prc=True, feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights), cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert given.inception_score == pytest.approx(truth["inception_score_mean"], rel=1e-5)
    assert (given.precision, given.recall) == (truth["precision"], truth["recall"])
    assert given.fid > 0 and given.inception_score > 1 and given.precision > 0 and given.recall > 0


def test_grey_images_are_repeated_to_three_channels(inception):
    grey = pixels(1, 1, 8, 8)
    for given, wanted in zip(inception(grey), inception(grey.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(given, wanted)


def test_loading_inception_leaves_the_global_generator_alone(weights):
    before = torch.get_rng_state()
    metrics.inception(weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_published_file_may_be_put_there_by_hand(weights, tmp_path, monkeypatch):
    """Where the download would go; the checksum tells whether it is the one."""
    monkeypatch.setenv("RFPP_CACHE", str(tmp_path))
    place = tmp_path / f"{metrics.INCEPTION_SHA256[:16]}-{metrics.INCEPTION_URL.split('/')[-1]}"
    place.write_bytes(b"something else")
    with pytest.raises(ValueError, match=f"{place} has the SHA-256 .*, expected {metrics.INCEPTION_SHA256}; delete"):
        metrics.inception()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(sys.modules[Extractor.__module__], "INCEPTION_SHA256", digest)
    (tmp_path / f"{digest[:16]}-{place.name.partition('-')[2]}").write_bytes(weights.read_bytes())
    assert metrics.inception().name == "inception-v3-2015-12-05"


def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RFPP_CACHE", str(tmp_path))
    place = tmp_path / f"{metrics.INCEPTION_SHA256[:16]}-weights.pth"
    with pytest.raises(OSError, match=f"cannot download http://127.0.0.1:9/weights.pth.*put the file at {place}"):
        metrics.inception("http://127.0.0.1:9/weights.pth")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"a": torch.zeros(2)}, "does not fit Inception-v3"),
        ([torch.zeros(2)], "is not a dictionary of tensors"),
        ({"a": 1}, "is not a dictionary of tensors"),
        (b"not a file of weights", "is refused"),
    ],
)
def test_other_weights_are_refused(tmp_path, content, complaint):
    path = tmp_path / "other.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"other.pth.* {complaint}"):
        metrics.inception(path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"weights='{tmp_path}/no.pth' does not exist; put https://.* there"):
        metrics.inception(tmp_path / "no.pth")


class Boom:
    """Fails the test that unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_weights_are_not_unpickled(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"a": Boom()}, path)
    with pytest.raises(ValueError, match="is refused"):
        metrics.inception(path)


# Statistics


@pytest.mark.parametrize("sizes", [[50], [1] * 50, [7, 30, 1, 12]])
def test_moments_are_numpys(sizes):
    """Also far from the origin, where sums of squares would have lost all digits."""
    features = 1e6 + randn(50, 6, dtype=torch.float64) @ randn(6, 6, seed=1, dtype=torch.float64)
    moments = Moments(6)
    for batch in features.split(sizes):
        moments.add(batch)
    found = moments.statistics("all")
    np.testing.assert_allclose(found.mu, features.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.sigma, np.cov(features.numpy(), rowvar=False), rtol=1e-7, atol=1e-8)
    assert found.count == 50 and found.mu.dtype == found.sigma.dtype == np.float64


def test_moments_of_single_precision_are_summed_in_double():
    features = randn(1000, 3) + 3
    found = Moments(3).add(features).statistics("all")
    np.testing.assert_allclose(found.sigma, np.cov(features.double().numpy(), rowvar=False), rtol=1e-12)


def test_moments_that_are_merged_are_those_of_all():
    features = randn(40, 4, dtype=torch.float64) + 5
    whole, first, second = (Moments(4).add(part) for part in (features, features[:11], features[11:]))
    merged = Moments(4).merge(first).merge(second).merge(Moments(4))
    assert merged.count == 40 and (first.count, second.count) == (11, 29)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-12)
    np.testing.assert_array_equal(first.scatter, Moments(4).add(features[:11]).scatter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_name_the_image_whose_features_are_not_finite(bad):
    features = randn(5, 3)
    features[2, 1] = bad
    moments = Moments(3).add(randn(10, 3))
    with pytest.raises(ValueError, match="the features of image 12 hold NaN or infinity"):
        moments.add(features)
    assert moments.count == 10


def test_moments_refuse_other_features():
    for shape in ((5, 4), (5,), (0, 3), (5, 3, 1)):
        with pytest.raises(ValueError, match=r"features have shape \(.*\); \(B, 3\) with B of 1 or more is needed"):
            Moments(3).add(torch.zeros(shape))
    with pytest.raises(ValueError, match="moments of 4 features cannot be merged with those of 3"):
        Moments(3).merge(Moments(4))
    with pytest.raises(ValueError, match="there are 1 images; at least 2"):
        Moments(3).add(torch.zeros(1, 3)).statistics("one")


def edm(path, n=30, dim=5):
    """A file as EDM's code leaves it, and the features it is of."""
    features = np.random.default_rng(0).standard_normal((n, dim))
    np.savez(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    return features


def test_a_file_of_edms_is_read(tmp_path):
    path = tmp_path / "cifar10-32x32.npz"
    features = edm(path)
    found = Statistics.load(path)
    np.testing.assert_array_equal(found.mu, features.mean(0))
    np.testing.assert_array_equal(found.sigma, np.cov(features, rowvar=False))
    assert found.name == "cifar10-32x32.npz" and found.count is None
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Statistics.load(str(path), count=30).count == 30


def test_what_is_saved_is_a_file_of_edms(tmp_path):
    """Plain numpy reads it, and it comes back the same with its number of images."""
    features, path = randn(20, 4), tmp_path / "made.npz"
    made = Moments(4).add(features).statistics("made")
    saved = made.save(path)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["mu"], made.mu)
        np.testing.assert_array_equal(file["sigma"], made.sigma)
    found = Statistics.load(path)
    assert (found.name, found.count, found.sha256) == (saved.name, 20, saved.sha256)
    np.testing.assert_array_equal(found.sigma, made.sigma)
    assert made.sha256 is None and list(tmp_path.iterdir()) == [path]
    replace(made, count=None).save(path)
    assert set(np.load(path)) == {"mu", "sigma"}


def test_a_count_that_contradicts_the_file_is_refused(tmp_path):
    Moments(2).add(randn(20, 2)).statistics("made").save(tmp_path / "made.npz")
    assert Statistics.load(tmp_path / "made.npz", count=20).count == 20
    with pytest.raises(ValueError, match="count=50000, but .*made.npz is of 20 images; leave count out"):
        Statistics.load(tmp_path / "made.npz", count=50_000)


GOOD = {"mu": np.zeros(3), "sigma": np.eye(3)}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mu": None}, "arrays called mu and sigma are needed, but it has .*sigma.npy"),
        ({"sigma": None, "cov": np.eye(3)}, "arrays called mu and sigma are needed"),
        ({"mu": np.zeros(4)}, r"mu \(4,\) and sigma \(3, 3\); shapes \(F,\) and \(F, F\)"),
        ({"mu": np.zeros((3, 1))}, r"mu \(3, 1\) and sigma"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \(0,\)"),
        ({"mu": np.float64(1), "sigma": np.float64(1)}, r"mu \(\) and sigma \(\)"),
        ({"sigma": np.eye(3)[None]}, r"sigma \(1, 3, 3\)"),
        ({"mu": np.array([0, np.nan, 0])}, "mu holds NaN or infinity"),
        ({"sigma": np.diag([1, np.inf, 1])}, "sigma holds NaN or infinity"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "sigma is not symmetric"),
        ({"sigma": np.diag([1.0, -1.0, 1.0])}, "sigma has the variance -1; 0 or more"),
        ({"sigma": np.eye(3, dtype=np.int64)}, "sigma is of type int64"),
        ({"mu": np.zeros(3, dtype=complex)}, "mu is of type complex128"),
        ({"mu": np.array([1, 2, Boom()], dtype=object)}, "is not a file of statistics: Object arrays cannot be loaded"),
        ({"count": np.array(1)}, "count=1 is too small"),
        ({"count": np.array(2.5)}, "is not a file of statistics"),
        ({"count": np.arange(3)}, "is not a file of statistics"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, changes, complaint):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"bad.npz.*{complaint}" if "count=" not in complaint else complaint):
        Statistics.load(tmp_path / "bad.npz")


def test_damaged_files_are_refused(tmp_path):
    """Cut anywhere, changed in the middle, of another kind, or absent."""
    path = tmp_path / "bad.npz"
    edm(path, dim=40)
    whole = path.read_bytes()
    broken = [whole[:cut] for cut in (0, 10, len(whole) // 2, len(whole) - 1)]
    broken.append(whole[:5000] + bytes(200) + whole[5200:])
    np.save(tmp_path / "plain.npy", np.zeros(3))
    broken += [(tmp_path / "plain.npy").read_bytes(), pickle.dumps(Boom()), b"mu sigma"]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="bad.npz is not a file of statistics"):
            Statistics.load(path)
    with pytest.raises(FileNotFoundError, match="no.npz' does not exist; EDM publishes such files"):
        Statistics.load(tmp_path / "no.npz")


def test_a_file_that_unfolds_or_claims_to_be_huge_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bad.npz"
    monkeypatch.setattr(statistics, "MAX_BYTES", 100_000)
    np.savez_compressed(path, mu=np.zeros(200), sigma=np.zeros((200, 200)))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="it takes 3[0-9]{5} bytes; at most 100000 are allowed"):
        Statistics.load(path)
    np.savez(path, **GOOD, other=np.zeros(20_000))
    with pytest.raises(ValueError, match="it takes 1[0-9]{5} bytes; at most 100000 are allowed"):
        Statistics.load(path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000), }"
    header += b" " * (53 - len(header) % 64 + 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("mu.npy", "sigma.npy"):
            archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match="bad.npz is not a file of statistics"):
        Statistics.load(path)


# Metrics


def test_the_distance_of_gaussians_that_commute_is_the_closed_form():
    """``|m - n|^2 + sum (s - t)^2`` for standard deviations s and t along the same axes."""
    m, n, s, t = (np.abs(row) for row in randn(4, 6, dtype=torch.float64).numpy())
    axes = linalg.qr(randn(6, 6, seed=1).double().numpy())[0]
    first, second = (Statistics(m_, axes @ np.diag(s_**2) @ axes.T, "x") for m_, s_ in ((m, s), (n, t)))
    truth = np.sum((m - n) ** 2) + np.sum((s - t) ** 2)
    assert metrics.frechet_distance(first, second) == pytest.approx(truth, rel=1e-9)
    assert metrics.frechet_distance(second, first) == pytest.approx(truth, rel=1e-9)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_the_distance_of_gaussians_that_do_not_commute_is_scipys():
    first, second = (Moments(4).add(randn(30, 4, seed=i) @ randn(4, 4, seed=9 + i)).statistics("x") for i in (0, 1))
    truth = frechet(first.mu, first.sigma, second.mu, second.sigma)
    assert metrics.frechet_distance(first, second) == pytest.approx(truth, rel=1e-9)


def test_the_distance_needs_the_same_features():
    with pytest.raises(ValueError, match="normal has 3 features, but normal has 4; use one extractor"):
        metrics.frechet_distance(reference(3), reference(4))


def test_the_inception_score_is_its_definition():
    """Ten splits of images in the order of torch-fidelity's permutation, each ``exp mean KL(p(y|x) || p(y))``."""
    logits = 3 * randn(57, 7, dtype=torch.float64).numpy()
    given = special.softmax(logits, axis=1)[np.random.RandomState(2020).permutation(57)]
    scores = []
    for i in range(10):
        part = given[i * 57 // 10 : (i + 1) * 57 // 10]
        scores.append(np.exp(special.rel_entr(part, part.mean(0)).sum(1).mean()))
    assert metrics.inception_score(torch.from_numpy(logits)) == pytest.approx(np.mean(scores), rel=1e-12)


def test_the_inception_score_of_images_that_are_all_alike_is_one():
    assert metrics.inception_score(randn(1, 6).repeat(40, 1)) == pytest.approx(1)
    with pytest.raises(ValueError, match="there are 9 images; at least 10 are needed"):
        metrics.inception_score(randn(9, 6))


def test_grades_are_those_of_the_features():
    images, given = pixels(40), reference()
    grades = quietly(images, Flat(), given)
    features, logits = Flat()(images)
    features = features.double().numpy()
    truth = frechet(features.mean(0), np.cov(features, rowvar=False), given.mu, given.sigma)
    assert grades.fid == pytest.approx(truth, rel=1e-9)
    assert grades.inception_score == pytest.approx(metrics.inception_score(logits), rel=1e-6)
    assert grades.precision is None and grades.recall is None and grades.protocol.manifold is None


def test_grades_do_not_depend_on_how_images_come():
    """A tensor, a list of uneven batches, a generator that makes them, another size of batches."""
    images = pixels(40)
    wanted, extractor = quietly(images, Flat(), reference()), Flat()
    for given in (images.split([1, 30, 9]), (batch for batch in images.split(13))):
        grades = quietly(given, extractor, reference(), batch_size=10)
        assert grades.fid == pytest.approx(wanted.fid, rel=1e-9)
        assert grades.inception_score == pytest.approx(wanted.inception_score, rel=1e-6)
        assert grades.protocol == wanted.protocol and grades.protocol.n == 40
    assert extractor.seen == [1, 10, 10, 10, 9, 10, 3, 10, 3, 10, 3, 1]


def test_precision_and_recall_of_clouds():
    """Two real clusters, of which one is generated: all that is generated is precise, half of what is real recalled."""
    cluster = pixels(10) // 64
    real = Flat()(torch.cat([cluster, 200 + cluster]))[0]
    grades = quietly(cluster, Flat(), reference(), reference_features=real)
    assert (grades.precision, grades.recall) == (1, 0.5) and grades.protocol.manifold == 20
    assert str(grades.protocol).endswith("images; precision and recall against 20 real images")
    swapped = quietly(torch.cat([cluster, 200 + cluster]), Flat(), reference(), reference_features=real[:10])
    assert (swapped.precision, swapped.recall) == (0.5, 1)


def test_no_inception_score_without_logits_or_with_too_few_images():
    assert quietly(pixels(40), Flat(classes=0), reference()).inception_score is None
    assert quietly(pixels(9), Flat(), reference()).inception_score is None
    assert quietly(pixels(20), Flat(), reference()).inception_score > 1


@pytest.mark.parametrize(
    ("images", "options", "complaint"),
    [
        (pixels(1), {}, "there are 1 images; at least 2 are needed"),
        (pixels(3), {"reference_features": randn(9, 12)}, "there are 3 images; at least 4 are needed"),
        (randn(5, 3, 2, 2), {}, r"torch.float32 of shape \(5, 3, 2, 2\); uint8 .* is needed; rfpp.data.to_uint8"),
        (pixels(5)[0], {}, r"torch.uint8 of shape \(3, 2, 2\)"),
        (pixels(5, 4, 2, 2), {}, r"of shape \(5, 4, 2, 2\); uint8 \(N, 3, H, W\)"),
        (pixels(0), {}, r"of shape \(0, 3, 2, 2\)"),
        ([np.zeros((5, 3, 2, 2), np.uint8)], {}, "images is or yields a ndarray"),
        (pixels(5), {"reference": reference(13)}, "reference=normal has 13 features, but flat has 12"),
        (pixels(5), {"reference_features": randn(9, 13)}, r"reference_features of shape \(9, 13\): at least 4 finite"),
        (pixels(5), {"reference_features": randn(3, 12)}, r"reference_features of shape \(3, 12\): at least 4 finite"),
        (pixels(5), {"reference_features": randn(9, 12).log()}, "at least 4 finite rows of 12 are needed"),
        (pixels(5), {"batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_bad_input_is_refused_before_any_work(images, options, complaint):
    extractor = Flat()
    with pytest.raises(ValueError, match=complaint):
        quietly(images, extractor, **{"reference": reference(), **options})
    assert not extractor.seen


def test_a_reference_of_other_features_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "inception", lambda weights, device="cpu": Flat())
    reference(13).save(tmp_path / "other.npz")
    experiment = Experiment("smoke", runs=tmp_path / "runs")
    with pytest.raises(ValueError, match="reference=other.npz has 13 features, but flat has 12"):
        experiment.grade("F", n=4, reference=tmp_path / "other.npz")
    assert not (tmp_path / "runs").exists()


class Named(Extractor):
    """The mean of grey images; with a checksum, as published weights have."""

    name, num_features, sha256 = "means", 1, "0" * 64

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        found = images.double().mean(dim=(2, 3))
        return found, found


def test_a_method_is_graded_by_its_own_sampler_and_named_by_its_own_weights(tmp_path, monkeypatch):
    """The real images pass the extractor once for all seeds, and once for their moments, which are then kept."""
    made = []
    monkeypatch.setattr(metrics, "inception", lambda weights, device="cpu": made.append(Named()) or made[-1])
    experiment = Experiment("smoke", runs=tmp_path, jobs=1)
    sampler = experiment.own_sampler("meanflow")
    with pytest.warns(UserWarning, match="not comparable"):
        grades = list(experiment.grades("meanflow", [0, 1], n=8))
    files_of = [experiment.flow_file("meanflow", seed) for seed in (0, 1)]
    assert [each.protocol.flow_sha256 for each in grades] == [files.sha256(file) for file in files_of]
    assert [each.protocol.solver for each in grades] == [str(sampler)] * 2
    assert experiment.plan.steps(["meanflow"], [0])[-1].sampler == sampler
    images = len(experiment.data.train)
    assert [extractor.seen for extractor in made] == [images + 8 + 8, images]
    with pytest.warns(UserWarning, match="not comparable"):
        again = experiment.grade("meanflow", 1, n=8)
    assert again == grades[1] and [extractor.seen for extractor in made[2:]] == [images + 8]
    with pytest.warns(UserWarning, match="not comparable"):
        assert len(list(experiment.grades("meanflow", [1, 1], n=8))) == 2


def test_a_misspelt_setting_is_refused_before_any_work():
    extractor = Flat()
    with pytest.raises(TypeError, match="unexpected keyword argument 'solvr'"):
        quietly(pixels(5), extractor, reference(), solvr="heun")
    assert not extractor.seen


def test_batches_are_checked_and_counted_as_they_come():
    with pytest.raises(ValueError, match="images is or yields torch.float32"):
        quietly([pixels(5), randn(5, 3, 2, 2)], Flat(), reference())
    with pytest.raises(ValueError, match="there are 1 images; at least 2"):
        quietly(iter([pixels(1)]), Flat(), reference())
    with pytest.raises(ValueError, match="there are 0 images; at least 2"):
        quietly([], Flat(), reference())


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(spoilt):
    with pytest.raises(ValueError, match="the features of image 0 hold NaN or infinity; check the extractor's weights"):
        quietly(pixels(5), Flat(spoilt=spoilt), reference())


# The protocol


def test_nothing_forbids_a_comparison_at_the_published_protocol():
    assert FINE.caveats() == [] and FINE.caveats(published_n=10_000) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n": 49_999}, "n=49999 images, where published numbers take 50000: fewer make FID larger"),
        ({"extractor_sha256": "ab" * 32}, "features are those of inception, not of the published"),
        ({"extractor_sha256": None}, "features are those of inception, not of the published"),
        ({"reference_sha256": None}, "the reference cifar10-32x32.npz has no file"),
        ({"reference_count": None}, "how many images the reference cifar10-32x32.npz is made of is not known"),
        ({"manifold": 50_000}, "recall are taken against 50,000 real images, published ones against 10,000"),
        ({"reference_count": 9_999}, "made of 9999 images, published ones of at least 10000"),
    ],
)
def test_each_caveat_has_its_reason(changes, complaint):
    (reason,) = replace(FINE, **changes).caveats()
    assert complaint in reason


def test_caveats_add_up_and_go_by_the_published_number_of_images():
    assert len(replace(FINE, n=2_000, reference_sha256=None, extractor_sha256=None).caveats()) == 3
    assert replace(FINE, n=10_000).caveats(published_n=10_000) == []


def test_a_caveat_about_the_manifold_is_none_about_fid():
    shown = str(Grades(2.013, 9.8, 0.7, 0.6, replace(FINE, manifold=50_000)))
    assert shown.startswith("FID 2.01,") and "published ones against 10,000" in shown
    assert replace(FINE, manifold=10_000).caveats() == []


def test_a_protocol_is_one_line_and_a_json_record():
    assert str(FINE) == (
        "50,000 images, dataset cifar10, flow (cdcdcdcd), nfe 2, solver heun, update straight, "
        "from t = 0.99999 then 0.8, 0.5, seed 3; "
        "inception (6726825d) against cifar10-32x32.npz (abababab), 50,000 images"
    )
    assert Protocol(**json.loads(json.dumps(asdict(FINE)))) == FINE
    assert "flow (no checksum)" in str(replace(FINE, flow_sha256=None))
    assert str(replace(FINE, reference_count=None)).endswith("an unknown number of images")


def test_grades_come_with_their_protocol_and_warnings(tmp_path):
    path = tmp_path / "normal.npz"
    given = reference(count=500).save(path)
    with pytest.warns(UserWarning, match="not comparable with published numbers") as caught:
        grades = metrics.grade(pixels(20), Flat(), given, dataset="noise", nfe=1, solver="euler", seed=4)
    assert grades.protocol == Protocol(
        20, "flat", None, "normal.npz", given.sha256, 500, dataset="noise", nfe=1, solver="euler", seed=4
    )
    notices = [warning for warning in caught if warning.category is UserWarning]
    reasons = [f"not comparable with published numbers: {reason}" for reason in grades.protocol.caveats()]
    assert [str(warning.message) for warning in notices] == reasons and len(reasons) == 3
    assert all(warning.filename == __file__ for warning in notices)
    numbers, protocol, *notes = str(grades).splitlines()
    assert numbers.startswith("FID (not as published) ") and "recall" not in numbers
    assert protocol == str(grades.protocol) and notes == reasons
    assert json.loads(json.dumps(asdict(grades)))["protocol"]["n"] == 20


def test_grades_at_the_published_protocol_have_no_notes():
    assert str(Grades(2.013, 9.8, 0.7, 0.6, FINE)) == (
        f"FID 2.01, inception score 9.80, precision 0.700, recall 0.600\n{FINE}"
    )
