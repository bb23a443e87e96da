"""Crossings: the geometry by hand, autocorrelations with known answers, Eq. 4's terms against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import signal
from truth import GaussianFlow, rand, randn

from rfpp import intersections
from rfpp.base import rng
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.intersections import autocorrelation, crossing_noise, exceedance, regression_residual
from rfpp.premetrics import squared_l2

FLOATS = torch.float64


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 0.9, 1.0, torch.tensor([0.2, 0.4, 0.6, 1.0], dtype=FLOATS)])
def test_the_lines_do_cross(t):
    """By definition: both pairs are at the same point at t. At t = 1 the noise itself is the crossing."""
    z, x1, x2 = (randn(4, 3, 2, 2, seed=seed, dtype=FLOATS) for seed in range(3))
    z2 = crossing_noise(z, x1, x2, t)
    torch.testing.assert_close(interpolate(x1, z, t), interpolate(x2, z2, t))
    if isinstance(t, float) and t == 1:
        assert torch.equal(z2, z)


def test_a_crossing_with_itself_is_where_one_is():
    z, x = randn(4, 5, dtype=FLOATS), randn(4, 5, seed=1, dtype=FLOATS)
    assert torch.equal(crossing_noise(z, x, x, 0.3), z)


@pytest.mark.parametrize("t", [0.0, -0.1, 1.1])
def test_a_time_without_a_crossing_is_refused(t):
    with pytest.raises(ValueError, match="t spans .*; allowed: above 0 and at most 1"):
        crossing_noise(randn(2, 3), randn(2, 3), randn(2, 3), t)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="they must be equal"):
        crossing_noise(randn(2, 3), randn(2, 3), randn(2, 4), 0.5)


def test_autocorrelation_is_scipys():
    """scipy's full correlation, divided by the number of places where both factors exist."""
    z = randn(3, 2, 4, 5, dtype=FLOATS)
    found = autocorrelation(z, 39)
    for row, values in zip(found, z.flatten(1).numpy(), strict=True):
        full = signal.correlate(values, values, mode="full")[39:]
        np.testing.assert_allclose(row.numpy(), full / (40 - np.arange(40)), rtol=1e-10)


def test_autocorrelation_of_white_noise_and_of_a_wave():
    """White noise: 1 at lag 0, else 0 with deviation 1 / sqrt(d - l), here over 2,000 vectors to five standard errors.
    A cosine of period 8 and amplitude sqrt 2: cos(2 pi l / 8) but for its ends."""
    n, d = 2000, 256
    white = autocorrelation(randn(n, d), 20)
    deviation = torch.tensor([math.sqrt(2 / d), *(1 / math.sqrt(d - lag) for lag in range(1, 21))])
    assert ((white.mean(dim=0) - (torch.arange(21) == 0).float()).abs() < 5 * deviation / math.sqrt(n)).all()
    assert ((white.std(dim=0) / deviation - 1).abs() < 5 / math.sqrt(2 * n)).all()
    wave = math.sqrt(2) * torch.cos(2 * torch.pi * torch.arange(8000) / 8)
    expected = torch.cos(2 * torch.pi * torch.arange(17) / 8)
    assert (autocorrelation(wave[None], 16)[0] - expected).abs().max() < 0.01


@pytest.mark.parametrize(("lag", "error"), [(-1, ValueError), (12, ValueError), (1.5, TypeError)])
def test_a_lag_that_is_not_there_is_refused(lag, error):
    with pytest.raises(error, match="max_lag="):
        autocorrelation(randn(2, 3, 2, 2), lag)


def test_exceedance_counts_pairs():
    """All pairs, one by one; ties count half."""
    a, b = (rand(30, seed=1) * 5).round(), (rand(40, seed=2) * 4).round()
    by_hand = [(float(x > y) + float(x == y) / 2) for x in a for y in b]
    assert exceedance(a, b) == pytest.approx(sum(by_hand) / len(by_hand))
    assert exceedance(a, a) == 0.5 and exceedance(b + 10, a) == 1


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_irreducible_loss_of_gaussian_data_is_its_posterior_variance(t):
    """``Var[x | x_t] / t^2 = s^2 / ((1 - t)^2 s^2 + t^2)`` by the covariance; the excess is a constant of the offset.

    20,000 samples of four entries: the mean of squares has relative deviation sqrt(2 / 80,000), five times which is
    2.5 %.
    """
    std, n = 0.6, 20_000
    mean = randn(4, seed=1, dtype=FLOATS)
    data = GaussianMixtureDenoiser(mean[None], std)
    x = mean + std * randn(n, 4, seed=2, dtype=FLOATS)
    expected = std**2 / GaussianFlow(mean, std).deviation(t) ** 2
    found = intersections.irreducible_loss(data, x, t, rng.generator(0, "test")).mean().item()
    assert found == pytest.approx(expected, rel=0.025)
    shifted = RectifiedFlow(lambda x, sigma, labels=None: data(x, sigma) + 0.3)
    excess = intersections.excess_loss(shifted, data, x, t, rng.generator(0, "test"))
    torch.testing.assert_close(excess, torch.full_like(excess, (0.3 / t) ** 2), rtol=1e-9, atol=0)


def test_the_two_terms_add_up_to_the_loss():
    """Eq. 4: for any flow, the mean loss is irreducible plus excess. 20,000 samples, to five standard errors of the
    cross term, which has mean nought."""
    data = intersections.plane_data()
    x, z = intersections.draw_plane(data, 20_000, seed=0)
    flow = RectifiedFlow(lambda x, sigma, labels=None: 0.7 * data(x, sigma))
    t = 0.4
    x_t = interpolate(x, z, t)
    best = RectifiedFlow(data).velocity(x_t, t)
    loss, irreducible = squared_l2(z - x, flow.velocity(x_t, t)), squared_l2(z - x, best)
    excess = squared_l2(best, flow.velocity(x_t, t))
    cross = loss - irreducible - excess
    assert abs(cross.mean()) < 5 * cross.std() / math.sqrt(len(cross))
    drawn = intersections.irreducible_loss(data, x, t, rng.generator(1, "other noise"))
    spread = (irreducible.var() + drawn.var()).sqrt() / math.sqrt(len(x))
    assert abs(irreducible.mean() - drawn.mean()) < 5 * spread


def test_residuals_of_a_function_vanish_and_of_noise_do_not():
    """A smooth function of the input leaves next to nothing among neighbours; independent noise all of its variance."""
    inputs = rand(20_000, 2, seed=0, dtype=FLOATS)
    function = torch.stack([inputs[:, 0] ** 2, inputs.sum(dim=1).sin()], dim=1)
    noise = randn(20_000, 2, seed=1, dtype=FLOATS)
    assert regression_residual(inputs, function).mean() < 1e-3
    # Each residual is a variance of eight draws, twice: mean 2; 20,000 dependent ones have a standard error below 0.02.
    assert regression_residual(inputs, noise).mean().item() == pytest.approx(2, abs=0.1)


def test_the_exact_flow_of_the_plane_keeps_its_distribution():
    """Its ends are distributed as the data: equal shares of the modes (binomial, five deviations) and their spread."""
    data = intersections.plane_data()
    _, z = intersections.draw_plane(data, 3000, seed=0)
    times = torch.tensor([0.9999, 1e-4], dtype=FLOATS)
    ends = intersections.solve(RectifiedFlow(data).velocity, z, times, 1e-6, 1e-6)[-1]
    nearest = torch.cdist(ends, data.means).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=6) / len(ends)
    assert (shares - 1 / 6).abs().max() < 5 * math.sqrt(5 / 36 / len(ends))
    spread = (ends - data.means[nearest]).std().item()
    assert spread == pytest.approx(data.std, rel=5 / math.sqrt(2 * 6000))


def test_reflow_straightens_the_plane():
    """Independent pairs leave much of the direction undecided, the exact flow's pairs next to nothing: Section 3."""
    data = intersections.plane_data()
    x, z = intersections.draw_plane(data, 8000, seed=0)
    times = torch.tensor([0.9999, 1e-4], dtype=FLOATS)
    ends = intersections.solve(RectifiedFlow(data).velocity, z, times, 1e-5, 1e-5)[-1]
    before, after = (regression_residual((image + z) / 2, z - image).mean() for image in (x, ends))
    assert after < 0.1 * before
