"""Rounds of a linear flow: against the square root of a covariance, Wishart's moments, and the identity."""

import math

import pytest
import torch
from scipy import stats
from truth import randn

from rfpp.studies import rounds
from rfpp.studies.rounds import ERRORS, FRESH, KINDS, PAIRS

FLOATS = torch.float64


def covariance(d, seed=0):
    root = randn(d, 2 * d, seed=seed, dtype=FLOATS)
    return root @ root.T / (2 * d)


def test_the_flow_of_independent_noise_is_the_root_of_the_covariance():
    """All slopes are functions of the covariance, so that they commute, and each eigenvalue is a flow of its own."""
    x = randn(1, 30, 3, dtype=FLOATS) @ torch.diag(torch.tensor([1.0, 0.5, 0.2], dtype=FLOATS)) + 0.3
    found, seen = rounds.fit(rounds.with_fresh_noise(x)), torch.cov(x[0].T, correction=0)
    torch.testing.assert_close(found.covariance[0], seen, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.matrix, found.matrix.mT, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.mean[0], x[0].mean(dim=0))


def test_a_flow_of_pairs_takes_the_noises_moments_to_those_of_the_data():
    """The property that makes it a rectified flow, for pairs that share a part."""
    z = randn(2, 50, 3, dtype=FLOATS)
    x = 0.5 * z @ covariance(3) + 0.2 * randn(2, 50, 3, seed=1, dtype=FLOATS) + 1
    moments = rounds.of_pairs(x, z)
    found = rounds.fit(moments)
    torch.testing.assert_close(found.matrix @ moments.zz @ found.matrix.mT, moments.xx, atol=1e-6, rtol=0)
    torch.testing.assert_close(found(moments.z[:, None])[:, 0], moments.x)


def test_own_pairs_lose_nothing_however_few():
    """Six pairs in four dimensions lie on one linear map, and least squares finds it."""
    flows = rounds.rounds(PAIRS, 6, seed=0, chains=5, count=3)
    torch.testing.assert_close(flows[-1].covariance, flows[0].covariance, atol=1e-6, rtol=1e-6)
    assert rounds.lost(PAIRS, 20, 0, 5) < 1e-6


def test_a_round_with_fresh_noise_loses_what_wishart_says():
    """The expected log-determinant against 200,000 of scipy's draws, and one round against its first two moments."""
    n, d = 12, 3
    draws = stats.wishart(n - 1, torch.eye(d).numpy() / n).rvs(200_000, random_state=0)
    logs = torch.linalg.slogdet(torch.from_numpy(draws)).logabsdet / 2
    assert -rounds.expected_loss(n, d) == pytest.approx(float(logs.mean()), abs=5 * float(logs.std()) / 200_000**0.5)


def test_rounds_with_fresh_noise_follow_the_curves():
    """400 chains of 4 rounds of 20 samples: five standard errors; the covariance and the mean add up to the data's."""
    flows = rounds.rounds(FRESH, 20, seed=0, chains=400, count=4)
    mean, error = rounds.changes(flows)
    wanted = rounds.expected(FRESH, 20, count=4)
    assert ((mean - wanted).abs() <= 5 * error).all() and wanted[-1] < -20 * error[-1]
    seen, theory = rounds.spread(flows), rounds.expected_spread(20, count=4)
    traces = torch.stack([flow.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) for flow in flows])
    tolerance = 5 * traces.std(dim=1) / 20
    for name, values in theory.items():
        assert ((seen[name] - values).abs() <= tolerance + 1e-12).all()
    torch.testing.assert_close(theory["both"], rounds.COVARIANCE.trace().expand(5))


def test_errors_of_pairs_add_up():
    """Of many samples: the covariance grows by ``tau^2`` a round; within five standard errors of 200 chains."""
    tau, flows = 0.1, rounds.rounds(ERRORS, 200, seed=0, chains=200, tau=0.1, count=3)
    found = torch.stack([flow.covariance for flow in flows])
    error = found[-1].std(dim=0).max() / 200**0.5
    wanted = rounds.COVARIANCE + 3 * tau**2 * torch.eye(4, dtype=FLOATS)
    assert float((found[-1].mean(dim=0) - wanted).abs().max()) < 5 * float(error) < tau**2
    truth = (torch.logdet(wanted) - torch.logdet(rounds.COVARIANCE)) / 2
    assert float(rounds.expected(ERRORS, 200, tau, count=3)[-1]) == pytest.approx(float(truth))
    assert not rounds.expected(PAIRS, 200).any()


def test_the_control_loses_what_is_expected():
    """100 chains: the mean's standard error is about 0.06 of the expected loss."""
    assert rounds.lost(FRESH, 100, 0, 100) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"kind": "own"}, f"kind='own' is unknown; allowed: '{KINDS[0]}'"),
        ({"n": 5}, "n=5 is too small; an integer of at least 6"),
        ({"count": 0}, "count=0 is too small"),
    ],
)
def test_what_does_not_fit_is_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        rounds.rounds(**{"kind": PAIRS, "n": 20, "seed": 0, **given})


def test_a_round_depends_on_its_seed_alone():
    once, again, other = (rounds.rounds(FRESH, 20, seed, count=1)[-1].matrix for seed in (3, 3, 4))
    assert torch.equal(once, again) and not math.isclose(float(once.sum()), float(other.sum()))
