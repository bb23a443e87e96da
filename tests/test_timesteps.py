"""Timestep distributions: density, distribution function, quantiles and draws, each from another one by scipy."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from truth import kolmogorov_bound

from rfpp.flow import T_MAX, T_MIN
from rfpp.timesteps import Exponential, LogitNormal, Uniform, UShaped

EVERY = [
    Uniform(),
    *(UShaped(a) for a in (4.0, 0.0, 1e-9, 1e-7, 2e-6, 1e-3, 1.0, 12.0, 30.0, -4.0)),
    *(LogitNormal(mean, std) for mean, std in ((0.0, 1.0), (-0.5, 0.6), (1.0, 2.0))),
    *(Exponential(a) for a in (4.0, -4.0, 1e-6, 20.0)),
]
EACH = pytest.mark.parametrize("distribution", EVERY, ids=str)
INSIDE = np.linspace(0.01, 0.99, 25)


@EACH
def test_the_density_integrates_to_one(distribution):
    """scipy's adaptive quadrature."""
    mass, _ = integrate.quad(lambda t: float(distribution.pdf(t)), 0, 1, points=[0.02, 0.5, 0.98], limit=200)
    assert mass == pytest.approx(1, abs=1e-8)


@EACH
@pytest.mark.parametrize("t", [0.02, 0.3, 0.5, 0.77, 0.99])
def test_the_distribution_function_is_the_integral_of_the_density(distribution, t):
    """scipy's adaptive quadrature again."""
    mass, _ = integrate.quad(lambda s: float(distribution.pdf(s)), 0, t, points=[t / 50, t / 2, t * 0.98], limit=200)
    assert float(distribution.cdf(t)) == pytest.approx(mass, abs=1e-8)


@EACH
def test_quantiles_invert_the_distribution_function(distribution):
    """There and back, in both directions; the ends are the ends."""
    p = torch.from_numpy(INSIDE)
    torch.testing.assert_close(distribution.cdf(distribution.icdf(p)), p, rtol=0, atol=1e-9)
    t = distribution.icdf(p)
    rounding = 1e-15 / distribution.pdf(t)  # of a probability, seen as a time: much where hardly any times fall
    assert ((distribution.icdf(distribution.cdf(t)) - t).abs() <= 1e-9 + rounding).all()
    assert float(distribution.cdf(0.0)) == pytest.approx(0, abs=1e-12)
    assert float(distribution.cdf(1.0)) == pytest.approx(1, abs=1e-12)
    assert float(distribution.icdf(0.0)) == pytest.approx(0, abs=1e-9)


@EACH
def test_draws_follow_the_distribution_function(distribution):
    """Kolmogorov-Smirnov on 20,000 draws of a fixed seed; the bound is exceeded once in a million."""
    n = 20_000
    t = distribution.sample(n, generator=torch.Generator().manual_seed(0))
    distance = stats.kstest(t.double().numpy(), lambda s: distribution.cdf(torch.from_numpy(s)).numpy()).statistic
    assert distance < kolmogorov_bound(n)
    assert t.shape == (n,) and t.dtype == torch.float32
    assert np.float32(T_MIN) <= t.min() and t.max() <= np.float32(T_MAX)


@pytest.mark.parametrize(
    ("distribution", "truth"),
    [
        (Uniform(), stats.uniform()),
        (Exponential(-4.0), stats.truncexpon(b=4, scale=1 / 4)),
        (Exponential(-0.5), stats.truncexpon(b=0.5, scale=2)),
    ],
    ids=["uniform", "steep", "flat"],
)
def test_scipys_distribution_of_the_same_name(distribution, truth):
    t = torch.from_numpy(INSIDE)
    np.testing.assert_allclose(distribution.pdf(t), truth.pdf(INSIDE), rtol=1e-10)
    np.testing.assert_allclose(distribution.cdf(t), truth.cdf(INSIDE), rtol=1e-10)
    np.testing.assert_allclose(distribution.icdf(t), truth.ppf(INSIDE), rtol=1e-10)


def test_logit_normal_is_a_normal_in_the_logit():
    """Change of variables with scipy's normal."""
    t, distribution = torch.from_numpy(INSIDE), LogitNormal(0.3, 0.7)
    logit = np.log(INSIDE / (1 - INSIDE))
    np.testing.assert_allclose(distribution.cdf(t), stats.norm.cdf(logit, 0.3, 0.7), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        distribution.pdf(t), stats.norm.pdf(logit, 0.3, 0.7) / (INSIDE * (1 - INSIDE)), rtol=1e-9
    )
    assert float(distribution.pdf(0.0)) == float(distribution.pdf(1.0)) == 0


def test_exponential_of_positive_rate_is_the_mirror_image():
    t = torch.from_numpy(INSIDE)
    torch.testing.assert_close(Exponential(4.0).pdf(t), Exponential(-4.0).pdf(1 - t), rtol=1e-10, atol=0)


@pytest.mark.parametrize("a", [600.0, 800.0, 1e5, -600.0, -800.0])
def test_a_steep_exponential_is_one_ended(a):
    """Beyond exp's range it is scipy's exponential law, measured from the heavier end, and draws stay in [0, 1]."""
    law, end = Exponential(a), stats.expon(scale=1 / abs(a))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    distance = (1 - t if a > 0 else t).numpy()
    np.testing.assert_allclose(law.pdf(t), end.pdf(distance), rtol=1e-6, atol=1e-300)
    np.testing.assert_allclose(law.cdf(t), end.sf(distance) if a > 0 else end.cdf(distance), rtol=1e-6, atol=1e-250)
    p = torch.tensor([0, 1e-9, 0.1, 0.5, 0.9, 1], dtype=torch.float64)
    expected = 1 + np.log(p.numpy()[1:]) / a if a > 0 else -np.log1p(-p.numpy()[:-1]) / -a
    found = law.icdf(p)
    np.testing.assert_allclose(found[1:] if a > 0 else found[:-1], np.clip(expected, 0, 1), rtol=1e-9)
    assert bool(((found >= 0) & (found <= 1)).all())
    drawn = law.sample(1000, torch.Generator().manual_seed(0))
    assert bool(((drawn >= 0) & (drawn <= 1)).all())


@pytest.mark.parametrize("a", [5e-3, 0.5, 4.0, 12.0])
def test_the_u_shape_is_the_papers(a):
    """Proportional to ``exp(a t) + exp(a (1 - t))``, as the released code samples it: lowest in the middle."""
    t = torch.from_numpy(INSIDE)
    density = UShaped(a).pdf(t)
    printed = torch.exp(a * t) + torch.exp(a * (1 - t))
    torch.testing.assert_close(density / density[0], printed / printed[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(density, density.flip(0), rtol=1e-9, atol=0)
    assert (density[:12].diff() < 0).all() and (density[13:].diff() > 0).all()


@pytest.mark.parametrize("a", [0, 0.0, 1e-12, 1e-7, -1e-7, 1e-4])
def test_the_u_shape_flattens_to_uniform(a):
    """``cosh(a/2) - 1 ~ a^2 / 8`` is all that is left; nothing divides by nought."""
    t = torch.from_numpy(INSIDE)
    for name, truth in (("pdf", torch.ones_like(t)), ("cdf", t), ("icdf", t)):
        torch.testing.assert_close(getattr(UShaped(a), name)(t), truth, rtol=0, atol=1e-8)
    assert UShaped(a).sample(4, generator=torch.Generator().manual_seed(0)).isfinite().all()


@pytest.mark.parametrize("a", [200.0, 1500.0, -1500.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_real_steepness_is_allowed(a, dtype):
    """A steep U is two exponentials: at both ends ``p = a / 2``, and a quarter of all times lies below ``ln 2 / a``."""
    ends = UShaped(a).pdf(torch.tensor([0.0, 1.0], dtype=dtype))
    torch.testing.assert_close(ends, torch.full((2,), abs(a) / 2, dtype=dtype), rtol=1e-4, atol=0)
    quarter = UShaped(a).icdf(torch.tensor(0.25, dtype=torch.float64))
    assert float(quarter) == pytest.approx(np.log(2) / abs(a), rel=1e-6)
    assert float(UShaped(a).cdf(torch.tensor(0.5, dtype=dtype))) == 0.5


@EACH
def test_a_generator_fixes_the_draws(distribution):
    first, again, other = (distribution.sample(50, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(distribution.sample(50), distribution.sample(50))


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "meta"])
def test_draws_land_on_the_device_that_was_asked_for(device):
    drawn = UShaped().sample(3, generator=torch.Generator().manual_seed(0), device=device)
    assert drawn.device == torch.device(device or "cpu") and drawn.shape == (3,)


def test_none_may_be_drawn():
    assert UShaped().sample(0).shape == (0,)


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_number_of_draws_that_is_none_is_refused(n, error):
    with pytest.raises(error, match=f"n={n}"):
        Uniform().sample(n)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: UShaped(float("nan")), "a=nan"),
        (lambda: UShaped(float("inf")), "a=inf"),
        (lambda: LogitNormal(std=0.0), "std=0.0"),
        (lambda: LogitNormal(std=-1.0), "std=-1.0"),
        (lambda: LogitNormal(std=float("nan")), "std=nan"),
        (lambda: LogitNormal(std=float("inf")), "std=inf"),
        (lambda: LogitNormal(mean=float("nan")), "mean=nan"),
        (lambda: LogitNormal(mean=float("inf")), "mean=inf"),
        (lambda: Exponential(0.0), "a=0.0"),
        (lambda: Exponential(float("nan")), "a=nan"),
    ],
)
def test_parameters_that_make_no_density_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@EACH
def test_distributions_are_values(distribution):
    """Equal parameters make equal distributions, and nobody changes them afterwards."""
    assert distribution == dataclasses.replace(distribution)
    for field in dataclasses.fields(distribution):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(distribution, field.name, 1.0)
