"""The flow: Proposition 1 against closed forms, the identities of Eq. 1, and times at and beyond the ends."""

import math

import pytest
import torch
from scipy import integrate, optimize, stats
from truth import REFERENCES, GaussianFlow, agrees, arrays, mixture, randn, reference

from rfpp.denoisers import GaussianMixtureDenoiser, VPPrecond
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow, interpolate

TIMES = [1e-3, 0.1, 0.5, 0.9, 0.999]


@pytest.mark.parametrize("name", REFERENCES)
def test_velocity_is_the_released_implementations(name):
    truth = arrays(name)
    flow = RectifiedFlow(reference(name))
    assert agrees(flow.velocity(truth["x"], truth["t"], truth.get("labels")), truth["velocity"])


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("std", [0.05, 0.5, 2.0])
def test_proposition_1_is_exact_for_gaussian_data(t, std):
    """``E[x | x_t]`` of jointly Gaussian x and x_t by their covariance; E[z | x_t] and the velocity likewise."""
    mean = randn(1, 2, 2, seed=1, dtype=torch.float64)
    exact, x_t = GaussianFlow(mean, std), randn(4, 1, 2, 2, dtype=torch.float64)
    x_hat = exact.x_given(x_t, t)
    z_hat = t / exact.deviation(t) ** 2 * (x_t - (1 - t) * mean)
    torch.testing.assert_close(exact.flow.x_prediction(x_t, t), x_hat, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.flow.z_prediction(x_t, t), z_hat, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(exact.flow.velocity(x_t, t), z_hat - x_hat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("x_t", [-1.0, 0.2, 1.3])
def test_proposition_1_is_exact_for_a_mixture(t, x_t):
    """``E[x | x_t]`` by scipy's quadrature over x in the flow's own variables, no noise level anywhere."""
    means, weights, std = [-1.0, 1.5], [0.3, 0.7], 0.2

    def joint(x):
        prior = sum(w * stats.norm.pdf(x, m, std) for w, m in zip(weights, means, strict=True))
        return prior * stats.norm.pdf(x_t, (1 - t) * x, t)

    mass, first = (
        integrate.quad(lambda x, k=k: x**k * joint(x), -6, 6, points=[*means, 0], limit=300, epsrel=1e-11)[0]
        for k in (0, 1)
    )
    columns = torch.tensor([means, weights], dtype=torch.float64)
    denoiser = GaussianMixtureDenoiser(columns[0][:, None], std, columns[1])
    velocity = RectifiedFlow(denoiser).velocity(torch.tensor([[x_t]], dtype=torch.float64), t).item()
    assert velocity == pytest.approx((x_t - first / mass) / t, rel=1e-7)


EVERYWHERE = [T_MIN, 1e-4, 1e-2, 0.2, 0.5, 0.8, 0.99, 1 - 1e-4, T_MAX]


@pytest.mark.parametrize("t", EVERYWHERE)
@pytest.mark.parametrize("process", ["VE", "VP"])
def test_proposition_1_holds_over_the_whole_interval(t, process):
    """Table 2, both rows, from t = 1e-5 to 1 - 1e-5. The models are exact ones of a Gaussian in their own variables:
    VE hears of sigma, VP of a time t' alone, and sees an image scaled by alpha(t'). The velocity is compared with
    the covariance's, to 1e-5 of the largest value."""
    mean, std = randn(1, 2, 2, seed=1, dtype=torch.float64), 0.5
    exact = GaussianFlow(mean, std)

    def ve(x, sigma, labels=None):
        sigma = sigma.reshape(-1, 1, 1, 1)
        return mean + std**2 / (std**2 + sigma**2) * (x - mean)

    def vp(y, label, class_labels=None, augment_labels=None):
        time = label.reshape(-1, 1, 1, 1) / 999
        alpha_squared = torch.exp(-19.9 / 2 * time**2 - 0.1 * time)
        noise = (-torch.expm1(-19.9 / 2 * time**2 - 0.1 * time)).sqrt()
        alpha = alpha_squared.sqrt()
        x0 = mean + alpha * std**2 / (alpha_squared * std**2 + noise**2) * (y - alpha * mean)
        return (y - alpha * x0) / noise

    x_t = (1 - t) * mean + exact.deviation(t) * randn(4, 1, 2, 2, dtype=torch.float64)
    flow = RectifiedFlow(ve if process == "VE" else VPPrecond(vp))
    expected = (x_t - exact.x_given(x_t, t)) / t
    assert (flow.velocity(x_t, t) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("t", EVERYWHERE)
def test_the_vp_network_sees_what_table_2_says(t):
    """``s = 1 / sqrt((1 - t)^2 + t^2)`` and the positive root of Eq. 28, found by scipy instead of the formula."""
    seen = []
    flow = RectifiedFlow(VPPrecond(lambda y, label, *_: seen.append((y, label)) or torch.zeros_like(y)))
    x_t = randn(2, 1, 2, 2, dtype=torch.float64)
    flow.velocity(x_t, t)
    (y, label), log_snr = seen[0], 2 * math.log((1 - t) / t)
    torch.testing.assert_close(y, x_t / math.hypot(1 - t, t))

    def difference(time):
        exponent = 19.9 / 2 * time**2 + 0.1 * time
        return -exponent - math.log(-math.expm1(-exponent)) - log_snr

    root = optimize.brentq(difference, 1e-12, 2, xtol=1e-15, rtol=1e-14)
    assert label[0].item() / 999 == pytest.approx(root, rel=1e-6)


def test_the_velocity_is_the_regression_of_z_minus_x_on_x_t():
    """Eq. 1 by Monte Carlo: with the exact velocity, the residual is uncorrelated with any function of x_t.

    20,000 draws; a mean of n draws of standard deviation s lies within 5 s / sqrt(n) but for 6e-7.
    """
    n, t = 20_000, 0.4
    denoiser = mixture()
    component = torch.multinomial(denoiser.log_weights.exp(), n, True, generator=torch.Generator().manual_seed(0))
    x = denoiser.means[component] + 0.3 * randn(n, 1, 1, 2, dtype=torch.float64)
    z = randn(n, 1, 1, 2, seed=1, dtype=torch.float64)
    x_t = interpolate(x, z, t)
    residual = (z - x) - RectifiedFlow(denoiser).velocity(x_t, t)
    for function in (torch.ones_like, torch.sin, torch.square, lambda u: u.flip(-1)):
        product = (residual * function(x_t)).flatten(1)
        assert (product.mean(0).abs() < 5 * product.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("t", TIMES)
def test_the_three_predictions_tell_the_same(t):
    """``x_t = (1 - t) x_hat + t z_hat`` and ``v = z_hat - x_hat``."""
    flow, x_t = RectifiedFlow(mixture()), randn(5, 1, 1, 2, dtype=torch.float64)
    x_hat, z_hat, v = flow.x_prediction(x_t, t), flow.z_prediction(x_t, t), flow.velocity(x_t, t)
    torch.testing.assert_close(interpolate(x_hat, z_hat, t), x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(z_hat - x_hat, v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x_t - t * v, x_hat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("t", "inside"), [(0.0, T_MIN), (1.0, T_MAX), (-0.1, T_MIN), (1.1, T_MAX)])
def test_times_at_the_ends_are_kept_inside(tiny_flow, t, inside):
    """Finite, and what the nearest allowed time gives."""
    x_t, labels = randn(2, 1, 8, 8), torch.tensor([0, 1])
    for function in (tiny_flow.velocity, tiny_flow.x_prediction, tiny_flow.z_prediction):
        at_end = function(x_t, t, labels)
        assert at_end.isfinite().all() and torch.equal(at_end, function(x_t, inside, labels))


def test_the_limits_at_the_ends():
    """As t -> 1 the x-prediction is the mean of the data, as t -> 0 it is x_t itself."""
    mean = randn(1, 2, 2, seed=1, dtype=torch.float64)
    exact, x_t = GaussianFlow(mean, 0.5), randn(3, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(exact.flow.x_prediction(x_t, 1.0), mean.expand_as(x_t), atol=1e-4, rtol=0)
    torch.testing.assert_close(exact.flow.x_prediction(x_t, 0.0), x_t, atol=1e-4, rtol=0)


def test_one_time_for_all_or_one_for_each(tiny_flow):
    """A number, a (B,) tensor of it, and each sample alone."""
    x_t, t = randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    alone = torch.cat([tiny_flow.velocity(x_t[i : i + 1], float(t[i])) for i in range(3)])
    torch.testing.assert_close(tiny_flow.velocity(x_t, t), alone, rtol=1e-4, atol=1e-4)
    for one in (0.3, torch.tensor(0.3), torch.full((3,), 0.3)):
        torch.testing.assert_close(tiny_flow.velocity(x_t, one), tiny_flow.velocity(x_t, 0.3))
    assert torch.equal(tiny_flow(x_t, t), tiny_flow.velocity(x_t, t))


def test_labels_reach_the_denoiser(tiny_flow):
    x_t = randn(3, 1, 8, 8)
    by_index = tiny_flow.velocity(x_t, 0.5, torch.arange(3))
    assert torch.equal(by_index, tiny_flow.velocity(x_t, 0.5, torch.eye(3)))
    assert not torch.equal(by_index, tiny_flow.velocity(x_t, 0.5, torch.tensor([1, 2, 0])))


@pytest.mark.parametrize("length", [2, 4])
def test_times_of_the_wrong_number_are_refused(tiny_flow, length):
    with pytest.raises(ValueError, match=rf"shape \({length},\) does not fit a batch of 3"):
        tiny_flow.velocity(randn(3, 1, 8, 8), torch.rand(length, generator=torch.Generator()))


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0, torch.tensor([0.0, 0.5, 1.0])])
def test_interpolation_goes_from_data_to_noise(t):
    """Entry by entry in Python's own numbers."""
    x, z = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    x_t, times = interpolate(x, z, t), [float(s) for s in torch.as_tensor(t).expand(3)]
    for i in range(3):
        for place in torch.ones(1, 2, 2).nonzero().tolist():
            a, b, given = (float(tensor[i][tuple(place)]) for tensor in (x, z, x_t))
            assert given == pytest.approx((1 - times[i]) * a + times[i] * b, abs=1e-6)
