"""What the exact flow leaves for reflow: closed forms of one Gaussian and of two points on a line, forward-mode
differentiation, and the brute-force sum over all images."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch.autograd import forward_ad
from truth import GaussianFlow, randn

from rfpp import data, intersections
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow, interpolate
from rfpp.studies import exact_flow, lipschitz
from rfpp.studies.exact_flow import EXACT, INDEPENDENT, OPPOSITE

FLOATS = torch.float64
POINTS = torch.tensor([[-1.0], [1.0]], dtype=FLOATS)
"""Two points on a line: by symmetry the exact flow takes noise to the one on its side of zero."""


def folds_of_one_gaussian(std):
    exact, z = GaussianFlow(randn(3, dtype=FLOATS), std), randn(10, 3, seed=1, dtype=FLOATS)
    return exact_flow.Folds(lipschitz.differentiate(exact.flow.denoiser, z, 1e-9)[1])


def test_lines_of_one_gaussian_never_fold():
    """``F(z) = mean + std z``: the smallest singular value is ``(1 - t) std + t``, the bound ``t - (1 - t) std``."""
    found, times = folds_of_one_gaussian(0.4), [0.1, 0.3, 0.8]
    t = torch.tensor(times, dtype=FLOATS)[:, None].expand(3, 10)
    torch.testing.assert_close(found.least(times), (1 - t) * 0.4 + t, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.bound(times), (t - (1 - t) * 0.4).clamp(min=0), atol=1e-3, rtol=0)
    assert not found.reversed(times).any() and exact_flow.folded(found) == 0
    assert found.asymmetry.max() < 1e-6 and float((found.lowest - 0.4).abs().max()) < 1e-3


def test_with_the_opposite_noise_they_fold_once():
    """``z -> mean - std z``: three equal factors ``t - (1 - t) std``, negative before ``std / (1 + std) = 0.286``."""
    found = folds_of_one_gaussian(0.4).opposite
    assert found.reversed([0.1, 0.28, 0.29, 0.9]).tolist() == [1, 1, 0, 0] and exact_flow.folded(found) == 1


@pytest.mark.parametrize(
    ("matrix", "share"),
    [
        ([[0.0, -1.0], [1.0, 0.0]], 0),  # a right angle: no real eigenvalue
        ([[-1.0, 0.0], [0.0, -2.0]], 1),  # a half turn: singular twice, and never reversed before or after both
        ([[-1.0, 0.0], [0.0, 2.0]], 1),
        ([[1.0, 50.0], [0.0, 1.0]], 0),  # a shear stretches, and folds nothing
    ],
)
def test_a_map_folds_where_its_jacobian_has_a_negative_real_eigenvalue(matrix, share):
    """Against the smallest singular value over a fine grid of times."""
    found = exact_flow.Folds(torch.tensor([matrix], dtype=FLOATS))
    touched = found.least(torch.linspace(0.01, 0.99, 9801).tolist()).min() < 1e-3
    assert exact_flow.folded(found) == share == float(touched)


def test_asymmetry_is_the_tangent_of_a_turn():
    angle = 0.3
    turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    found = exact_flow.Folds(torch.tensor([turn], dtype=FLOATS))
    assert float(found.asymmetry) == pytest.approx(math.tan(angle))


def test_the_variational_equation_agrees_with_forward_mode_differentiation():
    """Dual numbers through 100 Runge-Kutta steps over the logarithm of the noise level, in three dimensions."""
    means, std, z = randn(5, 3, dtype=FLOATS), 0.3, randn(6, 3, seed=2, dtype=FLOATS)
    ends = [math.log(t / (1 - t)) for t in (T_MAX, T_MIN)]
    grid = torch.sigmoid(torch.linspace(*ends, 101, dtype=FLOATS)).tolist()

    def velocity(x_t, t):
        """With products in place of distances, which have no forward mode."""
        total, y = (t / (1 - t)) ** 2 + std**2, x_t / (1 - t)
        mean = ((y @ means.T - means.square().sum(dim=1) / 2) / total).softmax(dim=1) @ means
        return (x_t - mean - std**2 / total * (y - mean)) / t

    def carry(x):
        for t, s in itertools.pairwise(grid):
            h, middle = s - t, (s + t) / 2
            a = velocity(x, t)
            b = velocity(x + h / 2 * a, middle)
            c = velocity(x + h / 2 * b, middle)
            x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, s))
        return x

    directions = torch.eye(3, dtype=FLOATS).repeat_interleave(len(z), dim=0)
    with forward_ad.dual_level():
        columns = forward_ad.unpack_dual(carry(forward_ad.make_dual(z.repeat(3, 1), directions))).tangent
    _, found = lipschitz.differentiate(GaussianMixtureDenoiser(means, std), z, 1e-8)
    torch.testing.assert_close(found, columns.unflatten(0, (3, len(z))).permute(1, 2, 0), atol=1e-4, rtol=1e-3)


# As a whole


def test_independent_pairs_have_the_flow_of_the_closed_form():
    """Velocity and irreducible term of the mixture of width zero."""
    images, t = randn(7, 4, dtype=FLOATS), 0.4
    coupling = exact_flow.Independent(images)
    z, index = coupling.pairs(0, 5)
    x_t = interpolate(images[index], z, t)
    truth = RectifiedFlow(GaussianMixtureDenoiser(images))
    torch.testing.assert_close(coupling.velocity(x_t, t), truth.velocity(x_t, t))
    covariance = lipschitz.posterior_covariance(truth.denoiser, x_t / (1 - t), t / (1 - t))
    wanted = covariance.diagonal(dim1=1, dim2=2).sum(dim=1) / (t**2 * 4)
    torch.testing.assert_close(exact_flow.terms(coupling, 0, 5, [t])[0], wanted)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.6, 0.9])
def test_two_points_on_a_line_leave_nothing(t):
    """In one dimension lines keep their order: no term, and straight paths."""
    reflowed = exact_flow.couplings(POINTS)[EXACT]
    assert exact_flow.terms(reflowed, 0, 200, [t]).max() < 1e-20
    assert exact_flow.deviation(reflowed, 0, 50).max() < 1e-20


@pytest.mark.parametrize("t", [0.3, 0.5, 0.7])
def test_two_points_with_the_opposite_noise_leave_what_the_normal_law_says(t):
    """At ``x_t`` there may be ``x = 1`` with ``z < 0`` and ``x = -1`` with ``z > 0``: ``z = (x_t - (1 - t) x) / t``.

    Both are there when ``|x_t| < 1 - t``. Then the variance of ``x`` is ``4 p (1 - p)``, with their densities' share
    ``p``; integrated over ``x_t``. 4,000 pairs: five standard errors are allowed, and what lies within the solver's
    error of zero does not count.
    """
    found = exact_flow.terms(exact_flow.couplings(POINTS)[OPPOSITE], 0, 4000, [t])[0]
    x_t = torch.linspace(-(1 - t), 1 - t, 20_001, dtype=FLOATS)
    above, below = (torch.from_numpy(stats.norm.pdf((x_t - (1 - t) * x) / t)) for x in (1, -1))
    share = above / (above + below)
    truth = torch.trapezoid((above + below) / t * 4 * share * (1 - share), x_t) / t**2
    error = found.std() / len(found) ** 0.5
    assert abs(float(found.mean() - truth)) < 5 * float(error) and truth > 10 * error


def test_leaving_out_what_is_negligible_changes_nothing(monkeypatch):
    """Against trying every image at every point, for pairs that are known and for points that may be anywhere."""
    images, t = 2 * randn(8, 3, dtype=FLOATS), 0.3
    coupling = exact_flow.couplings(images)[OPPOSITE]
    z, index = coupling.pairs(0, 40)
    x_t = interpolate(images[index], z, t)
    few = coupling.weights(x_t, t, index), coupling.velocity(x_t, t)
    monkeypatch.setattr(exact_flow, "_NEGLIGIBLE", math.inf)
    torch.testing.assert_close(few[0], coupling.weights(x_t, t, index), atol=1e-9, rtol=0)
    torch.testing.assert_close(few[1], coupling.velocity(x_t, t), atol=1e-9, rtol=0)


def test_the_velocity_of_reflowed_pairs_is_their_mean_direction():
    """Among 30,000 pairs with the opposite noise in the plane: those within 0.08 of a point, five standard errors."""
    images, t = exact_flow.scattered(0, 3), 0.4
    coupling = exact_flow.couplings(images)[OPPOSITE]
    z, index = coupling.pairs(1, 30_000)
    x_t = interpolate(images[index], z, t)
    point = images.mean(dim=0, keepdim=True) * (1 - t)
    near = (x_t - point).norm(dim=1) < 0.08
    directions = (z - images[index])[near]
    error = directions.std(dim=0) / near.sum() ** 0.5
    found = coupling.velocity(x_t[near], t).mean(dim=0)
    assert near.sum() > 50 and ((found - directions.mean(dim=0)).abs() < 5 * error + 1e-9).all()


def test_another_round_repairs_pairs_that_cross_and_leaves_straight_ones():
    """In the plane: the second flow of the exact pairs has the same ends; that of opposite noise is straighter."""
    of = exact_flow.couplings(exact_flow.scattered(0, 4))
    again = {name: exact_flow.Reflowed(of[name], steps=6) for name in (EXACT, OPPOSITE)}
    z, index = of[EXACT].pairs(0, 50)
    assert torch.equal(again[EXACT].partner(z), index)
    once, twice = (exact_flow.terms(each, 0, 10, [0.3, 0.5]).mean() for each in (of[OPPOSITE], again[OPPOSITE]))
    assert twice < once / 4


def test_a_measurement_has_both_questions_and_both_controls():
    """Digits: nothing folds and nothing remains of the exact flow's pairs; with the opposite noise both do."""
    images = data.digits().train
    found = exact_flow.measure(images, 0, 12, 5, 4, 0.1)
    (share, control), (left, crossed) = found.claims.values()
    assert (share, control, left) == (0, 1, 0) and crossed > 0.1
    times, mean, error = exact_flow.curves([found.terms, found.terms])[INDEPENDENT]
    torch.testing.assert_close(mean, found.terms[INDEPENDENT].mean(dim=1))
    assert len(times) == len(mean) == len(error) == len(exact_flow.TIMES)
    assert exact_flow.subset(images, 0, 3).shape == (3, 64) and len(exact_flow.subset(images, 0, 9999)) == len(images)


def test_what_was_never_seen_is_bounded():
    """The share at which ``n`` draws miss it in one case of twenty; about ``3 / n``."""
    assert stats.binom.pmf(0, 300, exact_flow.most(300)) == pytest.approx(0.05)
    assert exact_flow.most(300) == pytest.approx(3 / 300, rel=0.01)


@pytest.mark.parametrize("width", [0, -1, 1.5, "x", True, math.nan])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises((TypeError, ValueError), match=r"width=.*; a number above 0 and at most 1 is needed"):
        exact_flow.check_width(width)


def test_a_width_may_be_the_images_scale():
    exact_flow.check_width(1)


def test_the_plane_of_the_pictures_does_not_fold():
    """A property of the mixture on a ring that the chapter on crossings shows."""
    data = intersections.plane_data()
    found = exact_flow.Folds(lipschitz.differentiate(data, randn(200, 2, dtype=FLOATS))[1])
    assert exact_flow.folded(found) == 0 and exact_flow.folded(found.opposite) == 1


def test_a_line_meets_another_where_its_term_is_more_than_rounding():
    first = {INDEPENDENT: torch.ones(2, 3), EXACT: torch.tensor([[0.0, 1e-12, 0.0], [0.0, 0.0, 0.1]])}
    second = {INDEPENDENT: torch.full((2, 1), 1e-6), EXACT: torch.tensor([[1e-12], [0.0]])}
    assert exact_flow.meeting([first, second], EXACT).tolist() == [False, False, True, True]
