"""The Jacobian of the exact flow: linear for one Gaussian, and central differences for a mixture."""

import math

import pytest
import torch
from truth import GaussianFlow, randn

from rfpp import intersections
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow
from rfpp.studies import lipschitz

FLOATS = torch.float64


def test_the_flow_of_one_gaussian_is_linear():
    """``z -> mean + std z``: every singular value and every eigenvalue is the width."""
    mean, std = randn(3, dtype=FLOATS), 0.4
    z, exact = randn(20, 3, seed=1, dtype=FLOATS), GaussianFlow(mean, std)
    ends, jacobian = lipschitz.differentiate(exact.flow.denoiser, z, 1e-9)
    factor = exact.deviation(T_MIN) / exact.deviation(T_MAX)
    torch.testing.assert_close(ends, exact.carry(z, T_MAX, T_MIN), atol=1e-5, rtol=0)
    torch.testing.assert_close(jacobian, factor * torch.eye(3, dtype=FLOATS).expand(20, 3, 3), atol=1e-5, rtol=0)
    found = lipschitz.jacobians(exact.flow.denoiser, 0, 20)
    for values in (found.stretch, -found.reversal, found.least):
        torch.testing.assert_close(values, torch.full_like(values, std), atol=1e-3, rtol=0)
    assert found.last(0.5) == pytest.approx(std / (1 + std), abs=1e-3)
    assert found.stretched(torch.tensor([0.28, 0.29])).tolist() == [1, 0]
    assert found.reversed(torch.tensor([0.01, 0.9])).tolist() == [0, 0]


def test_two_gaussians_on_a_line_stretch_by_the_ratio_of_densities():
    """In one dimension the flow keeps the order, so ``F' (z) = p(z) / q(F(z))`` with the densities of both ends."""
    means, std = torch.tensor([[-1.0], [0.5]], dtype=FLOATS), 0.3
    z = torch.linspace(-2, 2, 21, dtype=FLOATS)[:, None]
    ends, jacobian = lipschitz.differentiate(GaussianMixtureDenoiser(means, std), z, 1e-8)
    normal = torch.distributions.Normal(0.0, 1.0)
    density = (normal.log_prob((ends - means.T) / std).exp() / std).mean(dim=1)
    torch.testing.assert_close(jacobian[:, 0, 0], normal.log_prob(z[:, 0]).exp() / density, rtol=1e-3, atol=1e-4)


def test_the_jacobian_in_the_plane_is_that_of_central_differences():
    """All shifted noise is solved in one batch, so that the solver takes the same steps for all of it."""
    data, step = intersections.plane_data(), 1e-5
    z, shifts = randn(20, 2, dtype=FLOATS), step * torch.eye(2, dtype=FLOATS)
    times = torch.tensor([T_MAX, T_MIN], dtype=FLOATS)
    noise = torch.cat([z, *(z + by for by in shifts), *(z - by for by in shifts)])
    solved = intersections.solve(RectifiedFlow(data).velocity, noise, times, 1e-8, 1e-8)[-1]
    ends, ahead, behind = solved.split([20, 40, 40])
    differences = ((ahead - behind) / (2 * step)).reshape(2, 20, 2).permute(1, 2, 0)
    reached, jacobian = lipschitz.differentiate(data, z, 1e-8)
    torch.testing.assert_close(reached, ends, atol=1e-5, rtol=0)
    torch.testing.assert_close(jacobian, differences, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_the_posteriors_covariance_is_the_slope_of_its_mean(sigma):
    """Tweedie: ``Cov[x0 | x] = sigma^2 dE[x0 | x] / dx``, by reverse-mode differentiation."""
    data, x = intersections.plane_data(std=0.2), randn(5, 2, dtype=FLOATS)
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda y: data(y, sigma)[0], row[None])[:, 0] for row in x]
    )
    torch.testing.assert_close(lipschitz.posterior_covariance(data, x, sigma), sigma**2 * slopes)


def test_nothing_in_the_plane_is_turned_around():
    """The symmetric part is positive at all noise that was drawn, however much it stretches there."""
    found = lipschitz.jacobians(intersections.plane_data(), 0, 500)
    assert found.stretch.max() > 1 and found.reversal.max() < 0 and found.least.min() > 0
    shares = found.stretched(torch.linspace(0.1, 0.9, 9))
    assert (shares.diff() <= 0).all() and 0 < shares[-1] < shares[0] < 1


def test_images_are_widened_within_their_span():
    """Distances are those of the images, and more images than pixels stay as they are."""
    few, many = randn(4, 3, 2, 2), randn(9, 1, 2, 2)
    within, all_of_it = lipschitz.widened(few, 0.1), lipschitz.widened(many, 0.1)
    assert within.means.shape == (4, 4) and torch.equal(all_of_it.means, many.flatten(1).double())
    torch.testing.assert_close(torch.pdist(within.means), torch.pdist(few.flatten(1).double()))
    assert math.isclose(within.std, 0.1)
