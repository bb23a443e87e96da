"""Denoisers: the preconditioning's reference numbers, and posterior means worked out in other ways."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch.autograd.functional import jacobian
from truth import REFERENCES, agrees, arrays, mixture, network, rand, randn, reference

from rfpp.denoisers import DiscreteSchedule, EDMPrecond, GaussianMixtureDenoiser, LinearSchedule, VPPrecond, expand

SIGMAS = [1e-3, 0.05, 0.3, 1.0, 5.0, 80.0]


@pytest.mark.parametrize("name", REFERENCES)
def test_preconditioned_output_is_the_released_implementations(name):
    truth = arrays(name)
    assert agrees(reference(name)(truth["x_for_denoise"], truth["sigma"], truth.get("labels")), truth["denoised"])


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sigma_data", [0.5, 0.75])
def test_a_network_that_knows_nothing_gives_the_best_linear_denoiser(sigma, sigma_data):
    """With F = 0, EDM's D is the regression of x0 on x: covariance sd^2 over variance sd^2 + s^2, by hand."""
    denoiser = EDMPrecond(lambda x, *_: torch.zeros_like(x), sigma_data)
    x = randn(2, 1, 4, 4)
    torch.testing.assert_close(denoiser(x, sigma), x * sigma_data**2 / (sigma_data**2 + sigma**2))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_sees_unit_variance_and_the_log_of_the_noise(sigma):
    """Section 5 of EDM: inputs of variance one for data of variance sd^2, the target too, and ln(s) / 4."""
    seen = []
    denoiser = EDMPrecond(lambda x, c, *_: seen.append((x, c)) or torch.ones_like(x), 0.5)
    x = math.sqrt(sigma**2 + 0.25) * randn(64, 1, 32, 32)
    output = denoiser(x, sigma)
    (given, level), skip = seen[0], 0.25 / (0.25 + sigma**2)
    assert given.std().item() == pytest.approx(1, abs=0.02)  # 65,536 draws: five standard errors are 0.014
    torch.testing.assert_close(level, torch.full((64,), math.log(sigma) / 4))
    # The target (x0 - skip x) / c_out has variance one: c_out^2 = Var(x0 - skip x) = (1 - skip)^2 sd^2 + skip^2 s^2.
    gain = math.sqrt((1 - skip) ** 2 * 0.25 + skip**2 * sigma**2)
    torch.testing.assert_close(output - skip * x, torch.full_like(x, gain), atol=1e-4 * (1 + gain), rtol=1e-4)


def test_without_noise_there_is_nothing_to_remove(tiny):
    """D(x; sigma -> 0) = x, whatever the network says; the difference is of the order of sigma."""
    x = randn(3, 1, 8, 8)
    for sigma in (1e-3, 1e-5, 1e-7):
        assert (tiny(x, sigma) - x).abs().max() < 20 * sigma + 1e-6


def test_one_noise_level_for_all_or_one_for_each(tiny):
    """A number, a (B,) tensor of it, and each image alone give the same; a whole number serves as well."""
    x, sigma = randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    alone = torch.cat([tiny(x[i : i + 1], float(sigma[i])) for i in range(3)])
    torch.testing.assert_close(tiny(x, sigma), alone)
    torch.testing.assert_close(tiny(x, 0.7), tiny(x, torch.full((3,), 0.7)))
    torch.testing.assert_close(tiny(x, 2), tiny(x, 2.0))


def test_labels_as_indices_or_one_hot(tiny):
    """The same classes in two notations; no labels are the zero vector, which is none of the classes."""
    x, index = randn(4, 1, 8, 8), torch.tensor([2, 0, 1, 2])
    one_hot = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert torch.equal(tiny(x, 0.5, index), tiny(x, 0.5, one_hot))
    assert torch.equal(tiny(x, 0.5, index), tiny(x, 0.5, one_hot.float()))
    assert torch.equal(tiny(x, 0.5), tiny(x, 0.5, torch.zeros(4, 3)))
    assert not torch.equal(tiny(x, 0.5), tiny(x, 0.5, index))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (torch.tensor([0, 3]), r"labels span 0\.\.3; allowed: 0\.\.2"),
        (torch.tensor([-1, 0]), r"labels span -1\.\.0; allowed: 0\.\.2"),
        (torch.tensor([0, 1, 2]), r"labels have shape \(3,\); allowed: \(2,\) or \(2, 3\)"),
        (torch.zeros(2, 4), r"labels have shape \(2, 4\); allowed"),
        (torch.zeros(1, 3), r"labels have shape \(1, 3\); allowed"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tiny, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny(randn(2, 1, 8, 8), 0.5, labels)


def test_an_unconditional_denoiser_takes_no_notice_of_labels():
    denoiser = EDMPrecond(network(label_dim=0)).eval()
    x = randn(2, 1, 8, 8)
    assert torch.equal(denoiser(x, 0.5), denoiser(x, 0.5, torch.tensor([7, 9])))


def test_augmentation_labels_are_zeros():
    """A network that was trained with augmentation is asked for images without any."""
    model = network(augment_dim=2, label_dim=0).eval()
    x = randn(2, 1, 8, 8)
    direct = model(x / math.sqrt(1.25), torch.zeros(2), None, torch.zeros(2, 2))
    torch.testing.assert_close(EDMPrecond(model)(x, 1.0), 0.2 * x + 0.5 / math.sqrt(1.25) * direct)


@pytest.mark.parametrize("scalar", [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.full((3,), 0.5)])
@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_expand_makes_one_value_for_each_sample(scalar, ndim):
    expanded = expand(scalar, torch.zeros(3, *[2] * (ndim - 1)))
    assert expanded.shape == (3, *[1] * (ndim - 1))
    assert expanded.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("length", [0, 2, 4])
def test_noise_levels_of_the_wrong_number_are_refused(tiny, length):
    with pytest.raises(ValueError, match=rf"shape \({length},\) does not fit a batch of 3; allowed: one number or.*3"):
        tiny(randn(3, 1, 8, 8), torch.ones(length))


# The closed-form mixture


def posterior_mean(x, sigma, means, std, weights):
    """``E[x0 | x]`` in one dimension by numerical integration over x0."""

    def prior(x0):
        if std == 0:
            return 0.0
        return sum(w * stats.norm.pdf(x0, m, std) for w, m in zip(weights, means, strict=True))

    places = sorted({*means, x, *((m * sigma**2 + x * std**2) / (sigma**2 + std**2) for m in means)})
    low, high = min(places) - 12, max(places) + 12
    moments = [
        integrate.quad(
            lambda x0, power=power: x0**power * prior(x0) * stats.norm.pdf(x, x0, sigma), low, high,
            points=places, limit=500, epsabs=0, epsrel=1e-11,
        )[0]
        for power in (0, 1)
    ]  # fmt: skip
    return moments[1] / moments[0]


@pytest.mark.parametrize("x", [-2.5, -0.4, 0.1, 1.7])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_the_mixtures_denoiser_is_the_integral_over_the_posterior(x, sigma):
    """scipy's quadrature of Bayes' rule."""
    means, weights, std = [-1.0, 0.3, 2.0], [0.2, 0.5, 0.3], 0.4
    columns = torch.tensor([means, weights], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(columns[0][:, None], std, columns[1])
    given = denoiser(torch.tensor([[x]], dtype=torch.float64), sigma).item()
    assert given == pytest.approx(posterior_mean(x, sigma, means, std, weights), rel=1e-8)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_the_mixtures_denoiser_obeys_tweedies_formula(sigma, std):
    """``E[x0 | x] = x + sigma^2 grad log p(x)``, the density by scipy-free log-sum-exp and its gradient by autograd."""
    weights, means = torch.tensor([0.5, 0.2, 0.3]).double(), mixture().means
    x = randn(5, 1, 1, 2, dtype=torch.float64).requires_grad_()
    variance = sigma**2 + std**2
    exponents = -(x[:, None] - means).square().flatten(2).sum(2) / (2 * variance)
    (score,) = torch.autograd.grad((weights.log() + exponents).logsumexp(1).sum(), x)
    denoised = GaussianMixtureDenoiser(means, std, weights)(x, sigma)
    torch.testing.assert_close(denoised, x + sigma**2 * score, rtol=1e-9, atol=1e-9)


def test_the_denoisers_slope_is_the_posterior_variance():
    """Second-order Tweedie: ``sigma^2 dD/dx = Var[x0 | x]``, which is symmetric and positive definite."""
    x, sigma = randn(1, 1, 1, 2, dtype=torch.float64), 0.8
    slope = jacobian(lambda x: mixture()(x, sigma).flatten(), x).reshape(2, 2) * sigma**2
    torch.testing.assert_close(slope, slope.T, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(slope).min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_empirical_denoiser_returns_the_nearest_image_at_little_noise(dtype):
    """The nearest by numpy-style search; all others have weight exp(-large)."""
    images, x = randn(50, 1, 3, 3, dtype=dtype), randn(20, 1, 3, 3, seed=1, dtype=dtype)
    nearest = (x[:, None] - images).flatten(2).norm(dim=2).argmin(dim=1)
    torch.testing.assert_close(GaussianMixtureDenoiser(images)(x, 1e-3), images[nearest])


def test_the_empirical_denoiser_returns_the_mean_at_much_noise():
    """At sigma -> infinity the posterior is the prior."""
    images = randn(50, 1, 3, 3)
    denoised = GaussianMixtureDenoiser(images)(randn(4, 1, 3, 3, seed=1), 1e4)
    torch.testing.assert_close(denoised, images.mean(0).expand(4, -1, -1, -1), atol=1e-3, rtol=0)


def test_labels_restrict_the_mixture_to_their_class():
    """The same as a mixture of those components alone, with their weights."""
    means, weights = randn(6, 1, 1, 2, dtype=torch.float64), rand(6, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    x, labels = randn(6, 1, 1, 2, seed=1, dtype=torch.float64), torch.tensor([2, 2, 0, 1, 0, 1])
    restricted = GaussianMixtureDenoiser(means, 0.3, weights, classes)(x, 0.7, labels)
    for i, label in enumerate(labels):
        mine = classes == label
        alone = GaussianMixtureDenoiser(means[mine], 0.3, weights[mine] / weights[mine].sum())
        torch.testing.assert_close(restricted[i : i + 1], alone(x[i : i + 1], 0.7))


def test_weights_are_uniform_by_default_and_need_not_sum_to_one():
    means, x = randn(4, 1, 1, 2), randn(3, 1, 1, 2, seed=1)
    denoised = GaussianMixtureDenoiser(means)(x, 0.7)
    torch.testing.assert_close(GaussianMixtureDenoiser(means, weights=torch.full((4,), 3.0))(x, 0.7), denoised)


def test_a_label_outweighs_any_distance():
    """An image that lies on another class's component, with next to no noise: the answer is still of its own class."""
    denoiser = mixture()
    swapped = GaussianMixtureDenoiser(denoiser.means, 0.0, classes=torch.arange(3))
    given = swapped(denoiser.means, 1e-3, torch.tensor([1, 2, 0]))
    torch.testing.assert_close(given, denoiser.means[[1, 2, 0]])


@pytest.mark.parametrize("of_means", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_x", [torch.float32, torch.float64])
def test_means_and_images_may_differ_in_precision(of_means, of_x):
    """The answer is in that of the images, and the same to float32's digits."""
    x = randn(3, 1, 1, 2)
    given = mixture(of_means)(x.to(of_x), 0.7)
    assert given.dtype == of_x
    torch.testing.assert_close(given.double(), mixture()(x.double(), 0.7), rtol=1e-5, atol=1e-6)


def test_a_label_that_no_component_has_is_refused():
    """There is no distribution to take the mean of; it must not come out as silent NaN."""
    with pytest.raises(ValueError, match="3"):
        mixture()(randn(2, 1, 1, 2, dtype=torch.float64), 0.5, torch.tensor([0, 3]))


# Variance-preserving models


class ExactVP:
    """What a perfect VP network says of ``N(mean, std^2 I)``: it sees ``y = alpha x0 + s eps`` and its time alone."""

    def __init__(self, mean, std, alpha_of_label, prediction):
        self.mean, self.std, self.alpha_of_label, self.prediction = mean, std, alpha_of_label, prediction

    def __call__(self, y, label, class_labels=None, augment_labels=None):
        alpha = self.alpha_of_label(label).reshape(-1, 1, 1, 1)
        noise = (1 - alpha**2).sqrt()
        x0 = self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + noise**2) * (y - alpha * self.mean)
        eps = (y - alpha * x0) / noise
        return {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - noise * x0}[self.prediction]


def alpha_of_time(t):
    """The paper's alpha (Appendix C): the integral of beta(t) = 0.1 + 19.9 t by hand."""
    return torch.exp(-19.9 / 4 * t**2 - 0.1 / 2 * t)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("sigma", [1e-5, 1e-2, 0.5, 3.0, 100.0, 1e5])
def test_a_perfect_vp_network_is_a_perfect_denoiser(sigma, prediction):
    """E[x0 | x0 + sigma eps] of a Gaussian by its covariance; the network never hears of sigma."""
    mean, std = randn(1, 2, 2, seed=1, dtype=torch.float64), 0.6
    network = ExactVP(mean, std, lambda label: alpha_of_time(label / 999), prediction)
    x = mean + math.hypot(std, sigma) * randn(4, 1, 2, 2, dtype=torch.float64)
    expected = mean + std**2 / (std**2 + sigma**2) * (x - mean)
    torch.testing.assert_close(VPPrecond(network, prediction=prediction)(x, sigma), expected, rtol=1e-5, atol=1e-5)


def test_the_linear_schedules_time_and_noise_undo_each_other():
    """Both ways, over ten orders of magnitude; Eq. 29 as printed, where it has digits left to compare."""
    schedule, sigma = LinearSchedule(), torch.logspace(-5, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(schedule.time(sigma)), sigma, rtol=1e-9, atol=0)
    printed = (-0.1 + (0.01 + 2 * 19.9 * (1 + sigma**2).log()).sqrt()) / 19.9
    torch.testing.assert_close(schedule.time(sigma), printed, rtol=0, atol=1e-12)
    alpha = alpha_of_time(schedule.time(sigma))
    torch.testing.assert_close((1 - alpha**2).sqrt() / alpha, sigma, rtol=1e-4, atol=0)


def test_the_linear_schedules_time_keeps_its_digits_in_single_precision():
    """At sigma = 1e-5 the printed root is a difference of two nearly equal numbers: 0 in float32."""
    sigma = torch.tensor([1e-5, 1e-3])
    exact = LinearSchedule().time(sigma.double())
    torch.testing.assert_close(LinearSchedule().time(sigma).double(), exact, rtol=1e-5, atol=0)


def ddpm():
    """DDPM's own schedule: a thousand betas from 1e-4 to 0.02."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def test_a_discrete_schedule_knows_its_steps_and_is_even_between_them():
    """Whole steps at their own noise; half-way in log sigma is half a step; beyond the ends, the ends."""
    squared = ddpm()
    sigma, schedule = ((1 - squared) / squared).sqrt(), DiscreteSchedule(squared)
    steps = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.noise_label(sigma), steps, rtol=0, atol=1e-8)
    halfway = (sigma[1:] * sigma[:-1]).sqrt()
    torch.testing.assert_close(schedule.noise_label(halfway), steps[:-1] + 0.5, rtol=0, atol=1e-8)
    assert schedule.noise_label(torch.tensor([1e-9, 1e9], dtype=torch.float64)).tolist() == [0, 999]
    assert schedule.noise_label(torch.tensor([1.0])).dtype == torch.float32


def test_ddpms_schedule_is_nearly_the_linear_one():
    """A thousand steps of DDPM are the VP process of Song et al. (2021), to two and a half of them."""
    sigma = torch.logspace(-1.5, 1.5, 50, dtype=torch.float64)
    discrete, linear = DiscreteSchedule(ddpm()).noise_label(sigma), LinearSchedule().noise_label(sigma)
    assert (discrete - linear).abs().max() < 2.5


def test_a_vp_network_gets_labels_as_an_edm_network_does():
    seen = []
    model = network()
    denoiser = VPPrecond(lambda x, c, labels, augment: seen.append((x, c, labels, augment)) or torch.zeros_like(x))
    denoiser.model.label_dim = 3
    x = randn(2, 1, 8, 8)
    assert torch.equal(denoiser(x, 1.0, torch.tensor([2, 0])), x)  # no noise predicted, none removed
    y, label, one_hot, augment = seen[0]
    torch.testing.assert_close(y, x / math.sqrt(2))
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0]] and augment is None
    torch.testing.assert_close(label, torch.full((2,), 999 * float(LinearSchedule().time(torch.tensor(1.0)))))
    assert VPPrecond(model).label_dim == 3


@pytest.mark.parametrize("values", [[0.9], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [[0.5, 0.4]], []])
def test_a_schedule_that_does_not_fall_is_refused(values):
    with pytest.raises(ValueError, match="alphas_cumprod must be a list of at least two numbers that fall within"):
        DiscreteSchedule(values)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction='eps' is unknown; .*did you mean 'epsilon'"):
        VPPrecond(network(), prediction="eps")


@pytest.mark.parametrize("labels", [None, torch.tensor([2, 0]), torch.eye(3)[[2, 0]]])
@pytest.mark.parametrize("kind", [EDMPrecond, VPPrecond])
def test_a_denoiser_compiles_in_one_piece(kind, labels):
    denoiser = kind(network()).eval()
    x, sigma = randn(2, 1, 8, 8), torch.tensor([0.3, 2.0])
    found = torch.compile(denoiser, fullgraph=True, backend="aot_eager")(x, sigma, labels)
    torch.testing.assert_close(found, denoiser(x, sigma, labels))
