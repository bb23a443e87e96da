"""What ships with the package: the files that the recipes made, and good enough for what they are for."""

import hashlib
import json
import shutil

import pytest
import torch
from truth import randn

from rfpp import data, metrics, pairs, samplers
from rfpp.features import Classifier, Embedding, FeatureLPIPS
from rfpp.pipeline import shipped
from rfpp.pipeline.grades import moments

EACH = pytest.mark.parametrize("name", shipped.RECIPES)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The shipped files in a folder that may be changed."""
    folder = tmp_path / "assets"
    shutil.copytree(shipped.ASSETS, folder)
    monkeypatch.setattr(shipped, "ASSETS", folder)
    monkeypatch.setattr(shipped, "MANIFEST", folder / "manifest.json")
    shipped._load.cache_clear()
    yield folder
    shipped._load.cache_clear()


@EACH
def test_each_file_is_the_manifests_and_of_the_recipe(name):
    """hashlib over the file, and over the recipe as it stands in the code: whoever changes one trains again."""
    entry = json.loads(shipped.MANIFEST.read_text())[name]
    content = (shipped.ASSETS / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"] == shipped.sha256(name)
    assert entry["recipe"] == shipped.recipe_hash(name)


def test_all_of_them_are_small():
    assert sum(path.stat().st_size for path in shipped.ASSETS.glob("*.safetensors")) < 3e6


@EACH
def test_loading_gives_a_network_at_rest(name):
    model = shipped.load(name)
    assert not model.training and shipped.load(name) is model


@EACH
def test_an_altered_file_is_refused(copy, name):
    path = copy / f"{name}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{path} is missing or not the file that shipped.*rfpp retrain {name}"):
        shipped.load(name)
    path.unlink()
    with pytest.raises(ValueError, match="is missing or not"):
        shipped.load(name)


def test_a_file_of_another_recipe_is_refused(copy, monkeypatch):
    """The weights are whole, but no longer what the recipe in the code would make."""
    monkeypatch.setitem(shipped.RECIPES, "digits-teacher", {**shipped.RECIPES["digits-teacher"], "sigma_data": 0.5})
    with pytest.raises(ValueError, match="recipe"):
        shipped.load("digits-teacher")


@pytest.mark.parametrize("call", [shipped.load, shipped.sha256, shipped.train, lambda name: shipped.retrain([name])])
def test_an_unknown_name_is_refused(call):
    with pytest.raises(ValueError, match="name='digits-techer' is unknown.*did you mean 'digits-teacher'"):
        call("digits-techer")


def test_retraining_is_repeatable_and_leaves_the_other_files(copy, monkeypatch):
    """Two steps instead of thousands: equal files, twice, and an entry with the recipe's hash."""
    name, others = "digits-perceptual", ["digits-classifier", "digits-teacher"]
    recipe = shipped.RECIPES[name]
    monkeypatch.setitem(shipped.RECIPES, name, {**recipe, "fit": {**recipe["fit"], "steps": 2}})
    before, said, digests = json.loads((copy / "manifest.json").read_text()), [], []
    for _ in range(2):
        shipped.retrain([name], copy, said.append)
        digests.append(hashlib.sha256((copy / f"{name}.safetensors").read_bytes()).hexdigest())
    after = json.loads((copy / "manifest.json").read_text())
    assert digests[0] == digests[1] == after[name]["sha256"] and after[name]["recipe"] == shipped.recipe_hash(name)
    assert len(said) == 2 and name in said[0] and all(after[other] == before[other] for other in others)


# What they are for


def test_the_classifier_reads_held_out_digits():
    """Counted on images that it was not trained on; 360 of them."""
    held_out = data.digits().held_out
    with torch.no_grad():
        right = shipped.load("digits-classifier")(held_out.floats()).argmax(1) == held_out.labels
    assert right.double().mean() > 0.97


def test_the_teacher_draws_digits_that_the_classifier_reads():
    """200 of them, of the class that was asked for; chance is a tenth."""
    labels = torch.arange(200) % 10
    teacher = shipped.load("digits-teacher")
    images = samplers.edm_sample(teacher, pairs.noise(0, range(200), (1, 8, 8)), labels=labels).clamp(-1, 1)
    classifier = shipped.load("digits-classifier")
    assert metrics.label_agreement(images, labels, classifier) > 0.9
    noise = randn(200, 1, 8, 8).clamp(-1, 1)
    real, *others = (
        moments(Embedding(classifier), pixels).statistics("images")
        for pixels in (data.digits().train.pixels, data.to_uint8(images), data.to_uint8(noise))
    )
    close, far = (metrics.frechet_distance(real, other) for other in others)
    assert close < 0.1 * far


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_teacher_removes_noise_from_held_out_digits(sigma):
    """Better than the best linear shrinkage towards the mean image, pixel by pixel; worse than knowing the image."""
    held_out, train = data.digits().held_out, data.digits().train.floats()
    x, mean, variance = held_out.floats(), train.mean(0), train.var(0)
    noisy = x + sigma * randn(*x.shape)
    with torch.no_grad():
        error = (shipped.load("digits-teacher")(noisy, sigma, held_out.labels) - x).square().mean()
    linear = (mean + variance / (variance + sigma**2) * (noisy - mean) - x).square().mean()
    assert 0 < error < 0.9 * linear


def test_the_metric_does_not_grade_its_own_loss():
    """Two networks of different make: widths, activation, weights."""
    classifier, perceptual = (shipped.load(f"digits-{name}") for name in ("classifier", "perceptual"))
    assert classifier.config["widths"] != perceptual.config["widths"]
    assert classifier.config["activation"] != perceptual.config["activation"]


def test_perceptual_distance_tells_another_digit_from_a_little_noise():
    """For nine of ten held-out images, another class is further away than five per cent of noise."""
    held_out = data.digits().held_out
    x, distance = held_out.floats(), FeatureLPIPS(shipped.load("digits-perceptual"))
    other = x.roll(1, 0)
    different = held_out.labels != held_out.labels.roll(1, 0)
    with torch.no_grad():
        near, far = distance(x + 0.05 * randn(*x.shape), x).flatten(), distance(other, x).flatten()
    assert (far > near)[different].double().mean() > 0.9


# The small classifiers themselves


@pytest.mark.parametrize(("widths", "size"), [((4,), 8), ((4, 6), 4), ((4, 6, 8), 2)])
def test_feature_maps_are_halved_between_stages(widths, size):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Classifier(widths).eval()
    x = randn(3, 1, 8, 8)
    maps = model.feature_maps(x)
    assert [m.shape[1] for m in maps] == list(widths) and maps[-1].shape[-1] == size
    torch.testing.assert_close(Embedding(model)(x), maps[-1].flatten(2).sum(2) / size**2)
    assert Embedding(model).num_features == widths[-1] and model(x).shape == (3, 10)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation='rely' is unknown; .*did you mean 'relu'"):
        Classifier(activation="rely")
