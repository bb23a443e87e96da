"""The study of crossings among photographs: where the exact flow of a finite set ends, and what its lines do."""

import itertools

import pytest
import torch
from scipy import stats
from truth import CHANCE

from rfpp import intersections
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.studies import photographs


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small():
    """Twenty patches of 4 by 4 pixels."""
    return photographs.patches([4], 20)[4]


def test_a_finite_set_is_a_mixture_without_width(small):
    x, sigma = small[:8] + noise(8, 3, 4, 4), torch.logspace(-1, 2, 8)
    ours, theirs = (
        kind(small.double())(x.double(), sigma) for kind in (photographs.FiniteSet, GaussianMixtureDenoiser)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 1)])
def test_between_two_images_a_plane_through_zero_decides(shape):
    """By symmetry: noise goes to the image on its side of the plane across the line between the two.

    Noise very near the plane is left out: the flow starts a little before ``t = 1``, where the plane is elsewhere.
    """
    images, z = noise(2, *shape, seed=1), noise(400, *shape)
    side = z.flatten(1) @ (images[0] - images[1]).flatten()
    clear = side.abs() > 0.01
    assert clear.sum() > 380 and torch.equal(photographs.ends(images, z)[clear], (side < 0).long()[clear])


def test_ends_are_those_of_small_steps_in_double_precision(small):
    """Heun's method over the noise level ``t / (1 - t)``, in 2,000 steps, among all pixels."""
    z, denoiser = noise(300, *small.shape[1:]), GaussianMixtureDenoiser(small.double())
    levels = torch.logspace(5, -2.5, 2001, dtype=torch.float64)
    x = z.double() * levels[0]
    for level, following in itertools.pairwise(levels):
        slope = (x - denoiser(x, level)) / level
        ahead = x + (following - level) * slope
        x = x + (following - level) * (slope + (ahead - denoiser(ahead, following)) / following) / 2
    distances = torch.cdist(x.flatten(1), small.double().flatten(1))
    assert distances.min(dim=1).values.max() < 0.2
    assert (photographs.ends(small, z) == distances.argmin(dim=1)).float().mean() >= 0.99


def test_ends_do_not_depend_on_the_span(small):
    """More images than pixels are solved among all pixels; pixels that are zero in all images change nothing."""
    z = noise(100, *small.shape[1:])
    padded, wide = (torch.cat([each.flatten(1), fill], dim=1) for each, fill in (
        (small, torch.zeros(20, 50)), (z, noise(100, 50, seed=1)),
    ))  # fmt: skip
    few = photographs.ends(small[:, :1, :2], z[:, :1, :2])
    assert (photographs.ends(padded, wide) == photographs.ends(small, z)).float().mean() >= 0.98
    assert few.max() < 20 and len(few.unique()) > 1


def test_noise_of_crossings_of_white_images_is_longer_and_not_correlated():
    """It has variance 3 in closed form, and its lag-1 autocorrelation is as often below Gaussian noise's as above."""
    share, exceeds = photographs.statistics(noise(4000, 1, 8, 8), 0, 4000)
    low, high = stats.chi2(64).ppf([0.005, 0.995])
    expected = 1 - stats.chi2(64).cdf(high / 3) + stats.chi2(64).cdf(low / 3)
    assert share == pytest.approx(expected, abs=0.02)
    half_width = stats.norm.isf(CHANCE) / (12 * 2000) ** 0.5
    assert exceeds == pytest.approx(0.5, abs=2 * half_width)


def test_couples_are_of_different_images_and_cross(small):
    drawn = photographs.couples(small, 0, 500, 0.3)
    first = (drawn.crossing - drawn.gaussian) * 0.3 / 0.7 + drawn.wanted
    distances = torch.cdist(first.flatten(1), small.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    found = small[distances.argmin(dim=1)]
    torch.testing.assert_close(first, found, atol=1e-4, rtol=0)
    assert (found != drawn.wanted).flatten(1).any(dim=1).all()


def test_arrivals_are_of_a_seed(small):
    one, again, other = (photographs.arrivals(small, seed, 40, [0.3, 0.9]) for seed in (0, 0, 1))
    assert all(torch.equal(getattr(one, name), getattr(again, name)) for name in ("reached", "stayed", "different"))
    assert not torch.equal(one.stayed, other.stayed)
    assert one.chance == 1 / 20 and one.ordinary <= 20 and one.different.max() <= 20
    assert ((one.reached >= 0) & (one.reached + one.stayed <= 1)).all()


def test_close_to_noise_the_flow_stays_with_its_image(small):
    """At ``t`` near 1 the crossing's noise is the pair's own."""
    found = photographs.arrivals(small, 0, 100, [0.9999])
    assert found.stayed.item() >= 0.98 and found.different.item() == pytest.approx(found.ordinary, abs=1)


def test_lines_of_two_images_never_cross(small):
    """The crossing's noise lies further on the first image's side of the plane, so Eq. 4's term is 0 after reflow."""
    two = small[[0, 1]]
    found = photographs.arrivals(two, 0, 100, [0.3, 0.9])
    assert found.reached.tolist() == [0, 0] and found.stayed.tolist() == [1, 1]
    exact = photographs.exact_terms(two, 0, 100, [0.5, 0.8])
    assert exact.reached.tolist() == [0, 0] and exact.remaining == pytest.approx(0, abs=1e-6)


def test_terms_before_reflow_are_the_closed_form_of_independent_pairs(small):
    exact = photographs.exact_terms(small, 0, 1000, [0.7, 0.9])
    x = small[torch.arange(4000) % 20]
    generator = torch.Generator().manual_seed(0)
    for t, before in zip((0.7, 0.9), exact.before, strict=True):
        loss = intersections.irreducible_loss(GaussianMixtureDenoiser(small), x, t, generator)
        assert before == pytest.approx(loss.mean().item(), rel=0.15)
    assert (exact.after <= exact.before).all()


def test_one_round_leaves_less_than_the_flow_before(small):
    """The control is the loss of the exact flow on independent pairs over its own closed form: 1 but for the draws."""
    left, before = photographs.remaining(small, 0, [0.5, 0.7, 0.9], count=10, n=100, draws=4000)
    assert left < 0.05 and before == pytest.approx(1, abs=0.2)
    assert photographs.remaining(small, 0, [0.9], 10, 20) == photographs.remaining(small, 0, [0.9], 10, 20)


def test_quantities_are_those_of_the_statistics_one_for_each_seed(small):
    found = photographs.quantities(small, [0, 3], 50, [0.9])
    assert found.keys() == {"c01", "c02", "c04"} and all(len(values) == 2 for pair in found.values() for values in pair)
    crossed, white = photographs.statistics(small, 3, 50), photographs.white_noise(small, 3, 50)
    assert (found["c01"][0][1], found["c02"][0][1]) == crossed and (found["c01"][1][1], found["c02"][1][1]) == white
    assert white[0] < 0.2 and white[1] == pytest.approx(0.5, abs=0.3)
