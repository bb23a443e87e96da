"""Log-densities: closed forms of Gaussians and mixtures, two ways of one integral, and what is refused."""

import math

import pytest
import torch
from truth import GaussianFlow, mixture, randn

from rfpp import likelihood
from rfpp.base import rng
from rfpp.flow import T_MAX, RectifiedFlow
from rfpp.likelihood import Exact, Hutchinson, LogDensity
from rfpp.studies import likelihoods

FLOATS = torch.float64
START = 0.05
SIGMA = START / (1 - START)
TIGHT = {"start": START, "rtol": 1e-8, "atol": 1e-8}


def mixture_density(data, x, labels=None):
    """The mixture convolved with the noise at the start, by torch's own distributions."""
    means = data.means.flatten(1)
    log_weights = data.log_weights.expand(len(x), -1)
    if labels is not None:
        log_weights = torch.where(data.classes == labels[:, None], log_weights, -torch.inf).log_softmax(dim=1)
    deviation = math.sqrt(data.std**2 + SIGMA**2)
    of_parts = torch.distributions.Normal(means, deviation).log_prob(x.flatten(1)[:, None]).sum(dim=2)
    return (log_weights + of_parts).logsumexp(dim=1)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2, 0, 1, 2])])
def test_a_mixtures_density_is_that_of_data_with_the_starts_noise(labels):
    """The prior at the other end is that of noise alone: data leave a trace of ``1 - T_MAX`` there."""
    data, x = mixture(), randn(6, 1, 1, 2, dtype=FLOATS)
    found = likelihood.log_density(RectifiedFlow(data), x, labels, **TIGHT)
    torch.testing.assert_close(found.total, mixture_density(data, x, labels), atol=1e-4, rtol=0)
    assert not found.standard_error.any() and found.z.shape == x.shape


def test_the_density_integrates_to_one():
    """A grid over the plane, whose rectangles are far smaller than the mixture's Gaussians."""
    side = torch.linspace(-3, 3, 61, dtype=FLOATS)
    x = torch.cartesian_prod(side, side).reshape(-1, 1, 1, 2)
    found = likelihood.log_density(RectifiedFlow(mixture()), x, start=START, batch_size=4000)
    assert float(found.total.exp().sum() * 0.1**2) == pytest.approx(1, abs=1e-3)


def test_parts_of_one_gaussian():
    """The path is known: noise, and a volume that changes by the ratio of deviations in each dimension."""
    exact = GaussianFlow(randn(2, 3, dtype=FLOATS), 0.4)
    x = randn(5, 2, 3, seed=1, dtype=FLOATS)
    found = likelihood.log_density(exact.flow, x, **TIGHT)
    z = exact.carry((1 - START) * x, START, T_MAX)
    torch.testing.assert_close(found.z, z, atol=1e-5, rtol=0)
    ratio = exact.deviation(T_MAX) / exact.deviation(START) * (1 - START)
    torch.testing.assert_close(found.volume, torch.full_like(found.volume, 6 * math.log(ratio)), atol=1e-5, rtol=0)
    normal = torch.distributions.Normal(0.0, T_MAX).log_prob(z).flatten(1).sum(dim=1)
    torch.testing.assert_close(found.prior, normal, atol=1e-4, rtol=0)


def test_a_determinant_is_exact_in_one_step_where_paths_are_straight_and_a_trace_is_not():
    """``v(x, t) = (a - 1) x / (1 + t (a - 1))`` carries ``x`` to ``a x`` along straight lines, for each dimension's a.

    The integral of its divergence is ``log a``; Euler's rule makes ``a - 1`` of it.
    """
    factors = torch.tensor([0.5, 2.0, 5.0], dtype=FLOATS)

    class Straight(RectifiedFlow):
        def velocity(self, x_t, t, labels=None):
            return x_t * (factors - 1) / (1 + t * (factors - 1))

    flow, x, end = Straight(None), randn(4, 3, dtype=FLOATS), 0.999
    start = 1e-5
    reached = x * (1 - start) * (1 + end * (factors - 1)) / (1 + start * (factors - 1))
    known = ((1 + end * (factors - 1)) / (1 + start * (factors - 1)) * (1 - start)).log().sum()
    for times in ([start, end], [start, 0.1, 0.7, end]):
        exact, _ = likelihood.stepwise(flow, x, times)
        torch.testing.assert_close(exact.volume, known.expand(4))
        torch.testing.assert_close(exact.z, reached)
        assert exact.evaluations == len(times) - 1
    one = likelihood.stepwise(flow, x, [start, end])[1]
    torch.testing.assert_close(one.volume, (factors - 1).sum().expand(4), rtol=2e-3, atol=0)
    adaptive = likelihood.log_density(flow, x, start=start, end=end, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(adaptive.volume, known.expand(4), atol=1e-6, rtol=0)


def test_many_steps_come_to_the_adaptive_solution_either_way():
    """Euler's error falls with the step: twice as many halve it, give or take a third."""
    flow, x = RectifiedFlow(mixture()), randn(3, 1, 1, 2, dtype=FLOATS)
    exact = likelihood.log_density(flow, x, **TIGHT).total
    for way in (0, 1):
        errors = [
            float((likelihood.stepwise(flow, x, torch.linspace(START, T_MAX, n + 1))[way].total - exact).abs().mean())
            for n in (100, 200)
        ]
        assert errors[1] < 0.2 and errors[1] / errors[0] == pytest.approx(0.5, abs=0.17)


def test_the_jacobian_of_a_network_is_that_of_autograd(tiny_flow):
    """Attention, group norms and convolutions, mapped over directions in chunks."""
    x, labels = randn(2, 1, 8, 8), torch.tensor([0, 2])
    value, found = likelihood.jacobian(lambda y: tiny_flow.velocity(y, 0.4, labels), x)
    torch.testing.assert_close(value, tiny_flow.velocity(x, 0.4, labels))
    for n in range(2):
        one = torch.autograd.functional.jacobian(
            lambda y, n=n: tiny_flow.velocity(y, 0.4, labels[n : n + 1]), x[n : n + 1]
        )
        torch.testing.assert_close(found[n], one.reshape(64, 64), atol=1e-4, rtol=1e-4)


def test_hutchinson_is_within_its_own_standard_error(tiny_flow):
    """Student's t with 31 degrees of freedom is beyond 4.5 once in 11,000; four times the probes halve the error."""
    x, labels = randn(4, 1, 8, 8), torch.arange(4) % 3
    given = {"start": START, "end": 0.999, "rtol": 1e-2, "atol": 1e-2}
    exact = likelihood.log_density(tiny_flow, x, labels, **given)
    many, few = (
        likelihood.log_density(tiny_flow, x, labels, divergence=Hutchinson(n, seed=1), **given) for n in (32, 8)
    )
    scores = (many.total - exact.total) / many.standard_error
    assert scores.abs().max() < 4.5 and scores.abs().max() > 0.1
    assert float((few.standard_error / many.standard_error).mean()) == pytest.approx(2, abs=0.8)


def test_how_many_rows_go_back_at_once_changes_nothing(tiny_flow):
    x, labels = randn(3, 1, 8, 8), torch.arange(3)
    given = {"start": 0.3, "end": 0.999, "rtol": 1e-2, "atol": 1e-2}
    for way, few in ((Exact(), Exact(rows=10)), (Hutchinson(4, 1), Hutchinson(4, 1, rows=3))):
        whole, parts = (likelihood.log_density(tiny_flow, x, labels, divergence=each, **given) for each in (way, few))
        torch.testing.assert_close(whole.total, parts.total, rtol=1e-4, atol=1e-3)


def test_hutchinsons_variance_is_that_of_the_formula():
    """``sum_{i != j} (J_ij + J_ji)^2 / 2`` for random signs. 4,000 probes know a variance to 15 %."""
    matrix, x = randn(5, 5, dtype=FLOATS), randn(1, 5, seed=1, dtype=FLOATS)
    way = Hutchinson(4000)
    value, found = way(lambda y: y @ matrix.T, x, way.directions(x))
    symmetric = matrix + matrix.T
    variance = float((symmetric - symmetric.diag().diag()).square().sum() / 2)
    torch.testing.assert_close(value, x @ matrix.T)
    assert found.shape == (1, 4000) and float(found.var()) == pytest.approx(variance, rel=0.15)
    assert float(found.mean()) == pytest.approx(float(matrix.trace()), abs=4.5 * math.sqrt(variance / 4000))
    exact = Exact()(lambda y: y @ matrix.T, x, None)[1]
    torch.testing.assert_close(exact, matrix.trace().expand(1, 1))


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(3)])
def test_batches_change_nothing_beyond_the_tolerance(divergence):
    flow, x, labels = RectifiedFlow(mixture()), randn(7, 1, 1, 2, dtype=FLOATS), torch.arange(7) % 3
    all_at_once, in_twos = (
        likelihood.log_density(flow, x, labels, divergence=divergence, batch_size=size, **TIGHT) for size in (7, 2)
    )
    torch.testing.assert_close(in_twos.total, all_at_once.total, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_twos.standard_error, all_at_once.standard_error, atol=1e-5, rtol=0)


def test_bits_of_uniform_noise_are_the_logarithm_of_the_levels():
    """All images of 17 levels alike: the density is 1 over the volume of their boxes, which reach over the ends."""
    for levels in (2, 17, 256):
        density = -64 * math.log(2 * levels / (levels - 1))
        found = likelihood.bits_per_dimension(torch.tensor([density], dtype=FLOATS), 64, levels)
        torch.testing.assert_close(found, torch.tensor([math.log2(levels)], dtype=FLOATS))
    known = likelihood.bits_per_dimension(torch.zeros(1, dtype=FLOATS), 3072)
    torch.testing.assert_close(known, torch.tensor([math.log2(127.5)], dtype=FLOATS))


def test_bits_bound_the_code_length_of_a_discrete_image():
    """A pixel of three levels under a Gaussian density: the mean over bins bounds the bin's own probability."""
    normal, levels = torch.distributions.Normal(0.3, 0.5), 3
    x = torch.tensor([-1.0, 0.0, 1.0])[:, None].repeat(20_000, 1)
    noisy = likelihood.dequantise(x, levels, rng.generator(0, "test"))
    assert float((noisy - x).abs().max()) <= 0.5 and float((noisy - x).var()) == pytest.approx(1 / 12, rel=0.02)
    bound = likelihood.bits_per_dimension(normal.log_prob(noisy[:, 0]), 1, levels)
    for value in (-1.0, 0.0, 1.0):
        inside = float(normal.cdf(torch.tensor(value + 0.5)) - normal.cdf(torch.tensor(value - 0.5)))
        known = ((value - 0.3) ** 2 + 1 / 12) / (2 * 0.5**2) + math.log(0.5 * math.sqrt(2 * math.pi))
        mean = float(bound[x[:, 0] == value].mean())
        assert mean == pytest.approx(known / math.log(2), abs=0.05) and mean > -math.log2(inside)


def test_the_start_expects_noise_as_large_as_dequantisations():
    for levels in (2, 17, 256):
        t = likelihood.matching_time(levels)
        uniform = likelihood.dequantise(torch.zeros(100_000), levels, rng.generator(0, "test"))
        assert t / (1 - t) == pytest.approx(float(uniform.std()), rel=0.01)


def test_levels_are_counted_where_they_are_even(monkeypatch):
    digits = torch.tensor([round(k * 255 / 16) for k in range(17)], dtype=torch.uint8)
    assert likelihood.grey_levels(digits) == 17
    assert likelihood.grey_levels(torch.tensor([0, 255], dtype=torch.uint8)) == 2
    assert likelihood.grey_levels(torch.arange(256).to(torch.uint8)) == 256
    monkeypatch.setattr(likelihood, "_SORTED", 2)
    assert likelihood.grey_levels(digits) == 17
    assert likelihood.grey_levels(digits[:-1]) == likelihood.grey_levels(digits[:1]) == 256


GOOD = {"start": START}


@pytest.mark.parametrize(
    ("x", "given", "complaint"),
    [
        (randn(3, 2), {"start": 0.0}, "start=0.0, end=.*: 1e-05 <= start < end"),
        (randn(3, 2), {"start": 0.5, "end": 0.4}, "start=0.5, end=0.4"),
        (randn(3, 2), {"start": 0.5, "end": 1.0}, "start=0.5, end=1.0"),
        (randn(3, 2), {**GOOD, "labels": torch.tensor([0])}, "labels has 1 entries for 3 images"),
        (randn(3), GOOD, r"x has shape \(3,\)"),
        (randn(0, 2), GOOD, r"x has shape \(0, 2\)"),
        (torch.zeros(3, 2, dtype=torch.uint8), GOOD, "type torch.uint8"),
        (torch.full((3, 2), torch.nan), GOOD, "not finite"),
        (randn(3, 2), {**GOOD, "rtol": 0.0}, "rtol=0.0 is not a tolerance"),
        (randn(3, 2), {**GOOD, "atol": math.nan}, "atol=nan is not a tolerance"),
        (randn(3, 2), {**GOOD, "batch_size": 0}, "batch_size=0 is too small"),
    ],
)
def test_what_does_not_fit_is_refused(x, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        likelihood.log_density(RectifiedFlow(mixture()), x, **given)


def test_other_values_are_refused():
    for times in ([0.5], [0.5, 0.2], [0.1, 0.1]):
        with pytest.raises(ValueError, match="must be at least two numbers, each above the one before"):
            likelihood.stepwise(RectifiedFlow(mixture()), randn(2, 2), times)
    with pytest.raises(ValueError, match="probes=1 is too small"):
        Hutchinson(1)
    with pytest.raises(ValueError, match="levels=1 is too small"):
        likelihood.bits_per_dimension(torch.zeros(1), 4, 1)


def test_differences_are_taken_by_image_and_with_their_sign():
    """Log-densities of three images under two seeds of two flows, which differ by 1 to 6 bits per dimension."""
    zero, z = torch.zeros(3), torch.zeros(3, 1, 1, 2)

    def bits(values):
        return LogDensity(-math.log(2) * 2 * torch.tensor(values), zero, zero, z, 1)

    more = [bits([1.0, 2.0, 3.0]), bits([4.0, 5.0, 6.0])]
    found = likelihoods.excess_of_images(more, [bits([0.0, 0.0, 0.0])] * 2, levels=2)
    assert found == pytest.approx([2.5, 3.5, 4.5])
    few = likelihoods.FewEvaluations(torch.tensor([1.0, 1.0]), 9, {4: torch.tensor([0.0, 4.0])}, {4: torch.zeros(2)})
    assert likelihoods.bias({"F": [few]}) == {"F": {4: [pytest.approx(1.0)]}} and few.errors() == {
        4: pytest.approx(2.0)
    }
