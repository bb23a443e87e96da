"""Training: solutions that are known, averages done by hand, and randomness that belongs to the step."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import special
from truth import Trainable, fit, mixture, network, randn

from rfpp import premetrics, timesteps
from rfpp.data import Images, to_float, to_uint8
from rfpp.denoisers import DiscreteSchedule, EDMPrecond, GaussianMixtureDenoiser, LinearSchedule, VPPrecond
from rfpp.flow import RectifiedFlow
from rfpp.networks import DiffusersUNet
from rfpp.pairs import PairDataset, generate
from rfpp.training import (
    CONFIGURATIONS,
    VARIANTS,
    Classification,
    Denoising,
    Reflow,
    initial_flow,
    losses_over_time,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """64 pairs of the mixture, three classes."""
    folder = tmp_path_factory.mktemp("pairs")
    return PairDataset(generate(mixture(torch.float32), 64, folder, num_steps=8, shape=(1, 1, 2), classes=3))


@pytest.fixture(scope="module")
def images_of_pairs(tmp_path_factory, tiny):
    return PairDataset(generate(tiny, 32, tmp_path_factory.mktemp("pairs"), num_steps=3))


def seeing(seen):
    """A premetric that writes down what it is given."""

    def premetric(a, b, x_t, t):
        seen.append((a, b, x_t, t))
        return (a - b).square().flatten(1).mean(1)

    return premetric


def test_the_reflow_loss_is_given_pairs_at_their_times(pairs):
    """From ``a``, ``x_t`` and ``t`` alone: ``x_t - t a`` is an image of the folder, ``x_t + (1 - t) a`` its own noise;
    the model saw its label, and ``b`` is what the model said."""
    seen, labels = [], []

    def model(x_t, t, given):
        labels.append(given)
        return 0.5 * x_t

    Reflow(pairs, timesteps.Uniform(), seeing(seen), 100, seed=0)(Trainable(model), 0)
    (a, b, x_t, t), (given,) = seen[0], labels
    t = t.reshape(-1, 1, 1, 1)
    all_x, all_z, all_labels = pairs.batch(torch.arange(64))
    gaps = (x_t + (1 - t) * a)[:, None] - all_z
    gap, index = gaps.flatten(2).norm(dim=2).min(dim=1)
    assert gap.max() < 1e-5 and len(index.unique()) > 40
    torch.testing.assert_close(x_t - t * a, all_x[index], atol=1e-5, rtol=0)
    assert torch.equal(given, all_labels[index])
    torch.testing.assert_close(b, 0.5 * x_t)


def test_times_come_from_the_distribution_that_was_given(pairs):
    """A distribution that draws one time only."""
    seen = []

    class Constant(timesteps.Uniform):
        def icdf(self, p):
            return torch.full_like(p, 0.25)

    Reflow(pairs, Constant(), seeing(seen), 8, seed=0)(Trainable(lambda x_t, t, labels: x_t), 0)
    assert torch.allclose(seen[0][3], torch.tensor(0.25), atol=1e-4)


def test_a_steps_randomness_depends_on_its_number_alone(pairs):
    """Called out of order, repeatedly, with other draws in between: equal. Other steps and seeds: other batches."""

    def batch(seed, step):
        seen = []
        Reflow(pairs, timesteps.UShaped(), seeing(seen), 8, seed)(Trainable(lambda x_t, t, labels: x_t), step)
        return seen[0][2]

    later, first = batch(0, 5), batch(0, 0)
    assert torch.equal(batch(0, 0), first) and torch.equal(batch(0, 5), later)
    assert not torch.equal(first, later) and not torch.equal(batch(1, 0), first)


@pytest.mark.parametrize("kind", [premetrics.squared_l2, premetrics.pseudo_huber, premetrics.LPIPSHuber])
def test_a_perfect_model_has_no_reflow_loss(tmp_path, kind):
    """A single image: all pairs end there, nothing crosses, and Eq. 4's first term is nought.

    ``(x_t - x) / t`` loses digits as t -> 0: float32's 1e-7 over a time of 1e-2 or more, squared, is what is left.
    """
    point = to_float(torch.tensor([[[40, 200]]], dtype=torch.uint8))
    teacher = GaussianMixtureDenoiser(point[None])
    pairs = PairDataset(generate(teacher, 16, tmp_path, num_steps=18, shape=(1, 1, 2)))
    premetric = premetrics.bind(kind, lambda: lambda p, q: (p - q).square().flatten(1).mean(1))

    class NotTooSmall(timesteps.Uniform):
        def icdf(self, p):
            return 0.01 + 0.99 * p

    objective = Reflow(pairs, NotTooSmall(), premetric, 200, seed=0)
    assert objective(Trainable(RectifiedFlow(teacher).velocity), 0).max() < 1e-8
    assert objective(Trainable(lambda x_t, t, labels: RectifiedFlow(teacher).velocity(x_t, t) + 0.1), 0).min() > 1e-3


def trained(pairs, seed=0, on_step=None, ema=0.9, **options):
    start = initial_flow(EDMPrecond(network()), "teacher", dropout=0.3, seed=seed)
    objective = Reflow(pairs, timesteps.UShaped(), premetrics.pseudo_huber, 8, seed)
    flow, history = fit(start, objective, 4, lr=1e-3, ema=ema, seed=seed, on_step=on_step, **options)
    return torch.cat([parameter.flatten() for parameter in flow.parameters()]), history


def test_a_seed_fixes_a_training_bit_by_bit(images_of_pairs):
    """With dropout; unrelated draws from the global generator in between change nothing, another seed does."""
    weights, history = trained(images_of_pairs)
    again, same = trained(images_of_pairs)
    assert torch.equal(weights, again) and history == same
    with torch.random.fork_rng([]):
        torch.manual_seed(123)
        disturbed, _ = trained(images_of_pairs, on_step=lambda step, average: torch.rand(step))
    assert torch.equal(weights, disturbed)
    other, _ = trained(images_of_pairs, seed=1)
    assert not torch.equal(weights, other)


# Where it starts


@pytest.mark.parametrize("kind", ["random", "teacher"])
def test_the_start_is_the_teacher_or_knows_nothing_of_it(kind, tiny):
    """Proposition 1: from B on the first velocity is the teacher's, in A it is not; the architecture is the same."""
    start = initial_flow(tiny, kind, dropout=0.0, seed=0).eval()
    x_t, t, labels = randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.arange(3)
    same = torch.allclose(start.velocity(x_t, t, labels), RectifiedFlow(tiny).velocity(x_t, t, labels))
    assert same == (kind == "teacher")
    assert start.denoiser.sigma_data == tiny.sigma_data
    assert [p.shape for p in start.parameters()] == [p.shape for p in tiny.parameters()]


def test_the_start_is_a_copy_with_its_own_dropout(tiny):
    start = initial_flow(tiny, "teacher", dropout=0.5, seed=0)
    with torch.no_grad():
        start.denoiser.model.map_layer0.weight.add_(1)
    assert not torch.equal(start.denoiser.model.map_layer0.weight, tiny.model.map_layer0.weight)
    assert start.denoiser.model.config["dropout"] == 0.5 and tiny.model.config["dropout"] == 0.0


def test_a_random_start_depends_on_the_seed(tiny):
    first, again, other = (
        initial_flow(tiny, "random", 0.0, seed).denoiser.model.map_layer0.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


TABLE_1 = {
    "A": ("random", "small", timesteps.Uniform(), "squared_l2"),
    "B": ("teacher", "large", timesteps.Uniform(), "squared_l2"),
    "C": ("teacher", "large", timesteps.UShaped(4.0), "squared_l2"),
    "D": ("teacher", "large", timesteps.UShaped(4.0), "pseudo_huber"),
    "E": ("teacher", "large", timesteps.UShaped(4.0), "LPIPSHuber"),
    "F": ("teacher", "large", timesteps.UShaped(4.0), "LPIPSHuberOverT"),
    "G": (CONFIGURATIONS["F"], "large", timesteps.UShaped(4.0), "LPIPSHuberOverT"),
}


@pytest.mark.parametrize("config", TABLE_1)
def test_configurations_are_the_papers(config):
    """Table 1, typed from the paper."""
    row = CONFIGURATIONS[config]
    assert (row.start, row.batch, row.timesteps, row.premetric.__name__) == TABLE_1[config]
    assert row.pairs == ("real" if config == "G" else "teacher")


def test_variants_differ_from_table_1_in_one_thing():
    """The small batch, or whose pairs and for how long; G alone trains on real images."""
    for name in "CD":
        assert dataclasses.replace(CONFIGURATIONS[name], batch="small") == VARIANTS[f"{name}-small"]
    best = CONFIGURATIONS["F"]
    for name, whose in (("longer", "teacher"), ("third", "own")):
        assert VARIANTS[name] == dataclasses.replace(best, start=best, pairs=whose, schedule="third_round")
    assert [name for name, row in {**CONFIGURATIONS, **VARIANTS}.items() if row.pairs == "real"] == ["G"]


def test_losses_over_time_are_those_of_single_pairs(tmp_path, tiny):
    """Each entry by itself, from the definition; in batches of another size the same."""
    pairs = PairDataset(generate(tiny, 7, tmp_path, num_steps=2))
    flow, times = RectifiedFlow(tiny), torch.tensor([0.1, 0.5, 0.9])
    found = losses_over_time(flow, pairs, times, premetrics.pseudo_huber, 6)
    assert found.shape == (3, 6)
    again = losses_over_time(flow, pairs, times, premetrics.pseudo_huber, 6, batch_size=4)
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-6)
    x, z, label = pairs[4]
    x_t = 0.5 * x + 0.5 * z
    v = flow.velocity(x_t[None], 0.5, label[None])[0]
    c = 0.00054 * x.numel()
    expected = (((z - x - v) ** 2).sum() + c**2).sqrt() - c
    assert found[1, 4].item() == pytest.approx(expected.item() / x.numel(), rel=1e-3)


# The teacher's loss


@pytest.fixture(scope="module")
def eight():
    """Eight random images of 2x2 pixels, two classes."""
    return Images(to_uint8(0.6 * randn(8, 1, 2, 2)), torch.arange(8) % 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda d, x: 1.05 * d,
        lambda d, x: 0.95 * d,
        lambda d, x: d + 0.05,
        lambda d, x: 0.9 * d + 0.1 * x,
        lambda d, x: d.flip(-1),
    ],
)
def test_the_denoising_loss_is_least_at_the_posterior_mean(eight, change):
    """The closed-form denoiser of the very images is its minimiser: any change costs. Equal draws for both, 20,000 of
    them, so that the difference is known far better than either value. The noise levels are closer to each other than a
    teacher's, because the loss weighs a draw by ``1 / sigma^2``, which has no useful variance under EDM's law."""
    exact = GaussianMixtureDenoiser(eight.floats(), 0.0, classes=eight.labels)
    objective = Denoising(eight, 20_000, seed=0, sigma_data=0.6, log_std=0.5)
    best = objective(Trainable(exact), 0)
    changed = objective(Trainable(lambda x, sigma, labels: change(exact(x, sigma, labels), x)), 0)
    difference = changed - best
    assert difference.mean() > 5 * difference.std() / math.sqrt(20_000)


def test_the_denoising_loss_makes_use_of_labels(eight):
    """Knowing the class can only help."""
    exact = GaussianMixtureDenoiser(eight.floats(), 0.0, classes=eight.labels)
    objective = Denoising(eight, 20_000, seed=0, sigma_data=0.6)
    blind = objective(Trainable(lambda x, sigma, labels: exact(x, sigma)), 0)
    difference = blind - objective(Trainable(exact), 0)
    assert difference.mean() > 5 * difference.std() / math.sqrt(20_000)


@pytest.mark.parametrize(("log_mean", "log_std"), [(-1.2, 1.2), (1.0, 0.3)])
def test_the_denoising_loss_weighs_noise_levels_alike(log_mean, log_std):
    """EDM, Section 5: for data of variance sd^2 the best linear denoiser has loss one at every noise level.

    Pixels of +-1 (sd = 1); a loss is a mean over 64 pixels, 20,000 losses have a mean within 5 / sqrt(64 * 20,000) * 2.
    """
    pixels = 255 * (randn(50, 1, 8, 8) > 0).to(torch.uint8)
    images = Images(pixels, torch.zeros(50, dtype=torch.int64))

    def best_linear(x, sigma, labels):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    objective = Denoising(images, 20_000, 0, 1.0, log_mean, log_std)
    assert objective(Trainable(best_linear), 0).mean().item() == pytest.approx(1, abs=0.01)


def test_noise_levels_of_the_denoising_loss_are_log_normal(eight):
    """20,000 of them: mean within 5 / sqrt(n) standard deviations, deviation within 5 / sqrt(2 n)."""
    seen = []
    objective = Denoising(eight, 20_000, seed=0, sigma_data=0.6, log_mean=-0.8, log_std=1.4)
    objective(Trainable(lambda x, sigma, labels: seen.append(sigma.log()) or x), 0)
    assert seen[0].mean().item() == pytest.approx(-0.8, abs=1.4 * 5 / math.sqrt(20_000))
    assert seen[0].std().item() == pytest.approx(1.4, rel=5 / math.sqrt(40_000))


# The classifiers' loss


def test_the_classification_loss_is_smoothed_cross_entropy(eight):
    """scipy's log-softmax with 5 % spread over all classes, on images that nothing was done to."""
    seen = []
    weight = randn(4, 2)

    def model(x):
        seen.append(x)
        return x.flatten(1) @ weight

    losses = Classification(eight, 32, seed=0, shift=0, noise=0.0)(Trainable(model), 0)
    x = seen[0]
    index = (x[:, None] - eight.floats()).flatten(2).norm(dim=2).min(dim=1)
    assert index.values.max() == 0  # they are images of the set
    logs = special.log_softmax((x.flatten(1) @ weight).numpy(), axis=1)
    target = 0.95 * np.eye(2)[eight.labels[index.indices]] + 0.05 / 2
    np.testing.assert_allclose(losses.detach().numpy(), -(target * logs).sum(1), rtol=1e-5)


def test_images_are_moved_by_whole_pixels_onto_background(eight):
    """Every one is among the nine shifts that numpy cuts out of the padded originals, and all nine turn up."""
    seen = []
    objective = Classification(eight, 400, seed=0, shift=1, noise=0.0)
    objective(Trainable(lambda x: seen.append(x) or x.flatten(1)[:, :2]), 0)
    padded = np.pad(eight.floats().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    shifts = {
        padded[i, :, row : row + 2, column : column + 2].tobytes(): (row, column)
        for i in range(8) for row in range(3) for column in range(3)
    }  # fmt: skip
    assert {shifts[image.numpy().tobytes()] for image in seen[0]} == {(r, c) for r in range(3) for c in range(3)}


def test_noise_of_the_classifiers_is_of_every_level_up_to_the_given(eight):
    """Uniform levels u have ``E[u^2] = noise^2 / 3``: the variance of what was added, within five standard errors."""
    seen = []
    objective = Classification(
        Images(torch.full((1, 1, 8, 8), 90, dtype=torch.uint8), torch.zeros(1).long()), 4000, 0, 0, 0.6
    )
    objective(Trainable(lambda x: seen.append(x) or x.flatten(1)[:, :2]), 0)
    added = seen[0] - to_float(torch.tensor(90))
    # Var(u^2) = 0.6^4 (1/5 - 1/9), so the mean of 4000 squared levels is known to 0.0005, one standard deviation.
    assert added.square().mean().item() == pytest.approx(0.12, abs=0.003)


@pytest.mark.parametrize("kind", ["random", "teacher"])
@pytest.mark.parametrize("network_of", ["VP", "diffusers"])
def test_training_starts_from_vp_teachers_too(kind, network_of):
    """Their schedule and prediction stay; B starts at the teacher's velocity, A at fresh weights that a seed fixes."""
    if network_of == "VP":
        teacher = VPPrecond(network(), LinearSchedule(0.2, 15.0))
    else:
        blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
        size = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
        teacher = VPPrecond(DiffusersUNet(**size, **blocks), DiscreteSchedule([0.9, 0.5, 0.1]), "v_prediction")
    starts = [initial_flow(teacher, kind, dropout=0.0, seed=seed).eval() for seed in (0, 0, 1)]
    x, t = randn(2, 1, 8, 8), torch.tensor([0.3, 0.8])
    velocities = [start.velocity(x, t) for start in starts]
    assert torch.equal(velocities[0], velocities[1])
    assert torch.equal(velocities[0], velocities[2]) == (kind == "teacher")
    assert torch.equal(velocities[0], RectifiedFlow(teacher.eval()).velocity(x, t)) == (kind == "teacher")
    assert starts[0].denoiser.prediction == teacher.prediction and starts[0].denoiser.schedule is teacher.schedule
