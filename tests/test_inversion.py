"""Round trips: the same as the solver's own, and bounds that Gaussian noise keeps."""

import pytest
import torch
from truth import randn

from rfpp import metrics, samplers
from rfpp.base import rng
from rfpp.experiment import Experiment
from rfpp.studies import inversion


@pytest.fixture
def trips(tiny_flow, monkeypatch):
    """Round trips of twenty digits, with a flow that was not trained in place of F."""
    experiment = Experiment("smoke")
    monkeypatch.setattr(type(experiment), "flow", lambda self, config, seed: tiny_flow)
    real = inversion.real_images(experiment, 20)
    return inversion.RoundTrips(experiment, [4], inversion.RealImages(real.x, real.classes, real.labels % 3))


def test_there_and_back_is_the_solver_with_rising_and_falling_times(trips, tiny_flow):
    x, labels = trips.real.x, trips.real.labels
    eps = torch.randn(x.shape, generator=rng.generator(4, "inversion"))
    with torch.no_grad():
        up = samplers.integrate(tiny_flow, 0.999 * x + 0.001 * eps, [0.001, 0.5, 1], labels=labels)[-1]
        down = samplers.integrate(tiny_flow, 0.999 * up, [0.999, 0.5, 0], labels=labels)[-1]
    torch.testing.assert_close(trips.noise("F, Euler", 2)[0], up)
    torch.testing.assert_close(trips.reconstructions("F, Euler", 2)[0], down)
    error = inversion.reconstruction_errors(trips, [2])["F, Euler"][2]
    assert error == pytest.approx([float((down - x).square().mean())], rel=1e-4)


def test_heun_has_its_own_evaluations(trips):
    found = inversion.norm_distances(trips, [1])
    assert {method: [*by] for method, by in found.items()} == {
        "F, Euler": [1], "EDM, Euler": [1], "EDM, Heun": [7, 15],
    }  # fmt: skip
    with pytest.raises(ValueError, match="nfe=8 is even"):
        trips.noise("EDM, Heun", 8)
    with pytest.raises(ValueError, match="method='F' is unknown"):
        trips.noise("F", 8)


def test_a_ratio_is_of_equal_evaluations_and_of_one_seed():
    curves = {"F, Euler": {2: [1.0, 2.0], 4: [1.0, 1.0]}, "EDM, Euler": {2: [4.0, 4.0], 4: [3.0, 2.0]}, "EDM, Heun": {}}
    assert inversion.ratio(curves) == {2: [4.0, 2.0], 4: [3.0, 2.0]}


def test_inverted_noise_is_shown_on_one_scale(trips):
    """The first images' own noise, a third of it; Gaussian noise as in the histogram of the norms."""
    rows = inversion.noises(trips, nfe=2, shown=3)
    assert list(rows) == ["real image", "F, 2 NFE", "EDM, 2 NFE", "Gaussian noise"]
    assert torch.equal(rows["real image"], trips.real.x[:3])
    for name, method in (("F, 2 NFE", "F, Euler"), ("EDM, 2 NFE", "EDM, Euler")):
        torch.testing.assert_close(3 * rows[name], trips.noise(method, 2)[0][:3])
    norms = inversion.norms(trips, 2)["Gaussian noise"]
    torch.testing.assert_close(3 * rows["Gaussian noise"].flatten(1).norm(dim=1), norms[:3])
    assert all(len(images) == 20 for images in inversion.noises(trips, nfe=2, shown=50).values())


def test_a_walk_begins_and_ends_with_real_images_of_its_class(trips):
    walks = inversion.interpolations(trips, there=2, back=1, shown=5)
    assert 0 < len(walks) <= 5
    for name, walk in walks.items():
        of_class = trips.real.x[trips.real.classes == int(name.removeprefix("class "))]
        assert walk.shape == (5, 1, 8, 8)
        assert torch.equal(walk[0], of_class[0]) and torch.equal(walk[-1], of_class[-1])


def test_a_translation_is_another_class_and_compared_with_others(trips, monkeypatch):
    """A flow that makes its images of their own noise, whatever the class: each is its source, which none is closer to.
    Of another's noise it makes another source. With fresh noise in its place half of the images are closer, give or
    take: 20 images, 4 deviations allowed."""
    source, own = trips.real.x, trips.noise("F, Euler", 4)[0]
    moved = inversion.next_of_class(trips.real.classes)

    def decode(self, z, labels, seed, nfe):
        return source if torch.equal(z, own) else source[moved] if torch.equal(z, own[moved]) else source + z

    monkeypatch.setattr(inversion.RoundTrips, "decode", decode)
    (kept,), (exchanged,), (fresh,), (mean,) = (inversion.translated(trips, of, 4, 2) for of in inversion.SOURCES)
    several = torch.bincount(trips.real.classes)[trips.real.classes] > 1
    assert kept.fresh.all() and torch.equal(kept.others, several) and kept.distance == 0
    assert several.any() and not exchanged.others[several].all()
    assert float(fresh.fresh.float().mean()) == pytest.approx(0.5, abs=0.45)
    assert fresh.distance == pytest.approx(1, abs=0.3)
    assert float(mean.others[several].float().mean()) == pytest.approx(0.5, abs=0.45)
    assert fresh.former == float((fresh.recognised & fresh.fresh).float().mean())
    means, images = inversion.class_means(trips.experiment), trips.experiment.data.train
    for c in (0, 7):
        torch.testing.assert_close(means[c], images.floats()[images.labels == c].mean(dim=0))
    wanted = inversion._other_classes(trips)
    assert (wanted != trips.real.classes).all() and set(wanted.tolist()) <= set(range(10))
    recognised = trips.experiment.classifier(source).argmax(dim=1) == wanted
    assert kept.share == float((recognised & several).float().mean()) and kept.former == float(
        recognised.float().mean()
    )


def test_what_keeps_nothing_of_a_source_is_not_closer_to_it_than_to_others():
    """One image for all of a class, in the middle of it or anywhere, is closer to a source than to most of the others
    for the nearer half of the sources alone. Compared by hand with the ranks of the distances."""
    sources, classes = randn(40, 1, 4, 4), torch.arange(40) % 2
    made = randn(2, 1, 4, 4, seed=1)[classes]
    found = inversion.closer_than_others(made, sources, classes)
    for c in (0, 1):
        apart = (sources[classes == c] - made[c]).square().sum(dim=(1, 2, 3))
        assert torch.equal(found[classes == c], apart.argsort().argsort() < 10)
    assert inversion.closer_than_others(sources, sources, classes).all()
    assert not inversion.closer_than_others(sources[:1], sources[:1], classes[:1]).any()


def test_the_next_of_a_class_goes_round():
    assert inversion.next_of_class(torch.tensor([3, 1, 3, 1, 3, 7])).tolist() == [2, 3, 4, 1, 0, 5]


def test_gaussian_noise_lies_in_its_shell_and_keeps_below_the_critical_distance():
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    low, high = inversion.shell(64)
    inside = ((z.norm(dim=1) > low) & (z.norm(dim=1) < high)).float().mean()
    assert float(inside) == pytest.approx(0.95, abs=0.015)
    assert metrics.norm_distance(z) < inversion.critical_distance(4000) < metrics.norm_distance(1.02 * z)
