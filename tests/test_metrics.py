"""Metrics against scipy, numpy and sums done by hand."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from truth import GaussianFlow, kolmogorov_bound, randn

from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import RectifiedFlow
from rfpp.metrics import label_agreement, norm_distance, precision_recall, straightness
from rfpp.samplers import integrate


class Flat(nn.Module):
    """Pixels as features."""

    def __init__(self, num_features=4):
        super().__init__()
        self.num_features = num_features

    def forward(self, x):
        return x.flatten(1)


def test_label_agreement_is_a_share():
    """Six logits with a known winner each, four of them the label."""
    winners = torch.tensor([0, 2, 1, 1, 0, 2])
    logits = torch.eye(3)[winners] + 0.1
    images = logits.reshape(6, 3, 1, 1)
    labels = torch.tensor([0, 2, 1, 0, 0, 1])
    assert label_agreement(images, labels, Flat()) == pytest.approx(4 / 6)
    assert label_agreement(images, winners, Flat()) == 1 and label_agreement(images, (winners + 1) % 3, Flat()) == 0


# Straightness


@pytest.mark.parametrize("times", [[1.0, 0.6, 0.5, 0.0], [0.0, 0.1, 1.0], [0.9, 0.2]])
def test_a_straight_line_is_straight_on_any_grid(times):
    start, direction = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    trajectory = [start + t * direction for t in times]
    assert straightness(trajectory, times).max() < 1e-10


def test_a_kink_by_hand():
    """Velocities 1 and 3 over two equal halves: chord 2, squared deviations 1 and 1. Over 1/4 and 3/4: chord 2.5,
    deviations 2.25 and 0.25, and each step counts the same."""
    trajectory = torch.tensor([0.0, 0.5, 2.0]).reshape(3, 1, 1)
    assert straightness(trajectory, [0.0, 0.5, 1.0]).tolist() == [1.0]
    trajectory = torch.tensor([0.0, 0.25, 2.5]).reshape(3, 1, 1)
    assert straightness(trajectory, [0.0, 0.25, 1.0]).tolist() == [pytest.approx((2.25 + 0.25) / 2)]


def test_straightness_against_numpy_on_an_uneven_grid():
    """Differences by numpy, per sample."""
    trajectory, times = randn(6, 3, 1, 2, 2), [0.99, 0.9, 0.6, 0.5, 0.1, 0.0]
    states = trajectory.double().numpy().reshape(6, 3, 4)
    velocities = np.diff(states, axis=0) / np.diff(times)[:, None, None]
    chord = (states[-1] - states[0]) / (times[-1] - times[0])
    truth = np.square(velocities - chord).mean(axis=(0, 2))
    np.testing.assert_allclose(straightness(list(trajectory), torch.tensor(times)).numpy(), truth, rtol=1e-4)


def test_straightness_does_not_depend_on_direction_or_on_where_the_grid_stops():
    """Backwards it is the same; a grid ten times as fine finds the same curve, to the grid's error."""
    exact = GaussianFlow(randn(1, 2, 2, seed=1, dtype=torch.float64), 0.2)
    x = randn(3, 1, 2, 2, dtype=torch.float64)

    def measure(steps, backwards=False):
        times = torch.linspace(0.99, 0.01, steps + 1, dtype=torch.float64).tolist()
        states = [exact.carry(x, 0.99, t) for t in times]
        return straightness(states[::-1], times[::-1]) if backwards else straightness(states, times)

    torch.testing.assert_close(measure(50), measure(50, backwards=True))
    torch.testing.assert_close(measure(50), measure(500), rtol=2e-2, atol=0)


def test_a_curved_flow_is_not_straight_and_a_reflowed_one_would_be():
    """A flow to one point is straight, a flow to two is not."""
    z, times = randn(4, 1, 1, 2, dtype=torch.float64), torch.linspace(0.99, 0, 21).tolist()
    points = randn(2, 1, 1, 2, seed=4, dtype=torch.float64)
    one, two = (RectifiedFlow(GaussianMixtureDenoiser(p)) for p in (points[:1], points))
    assert straightness(integrate(one, z, times), times).max() < 1e-12
    assert straightness(integrate(two, z, times), times).min() > 1e-3


@pytest.mark.parametrize(("states", "times"), [(3, [0.0, 1.0]), (1, [0.0]), (0, [])])
def test_straightness_needs_a_time_for_each_state(states, times):
    with pytest.raises(ValueError, match=f"{states} states at {len(times)} times"):
        straightness(list(randn(states, 1, 2)), times)


# Precision, recall, norms


def by_hand(inside, of, k=3):
    """The share of points within the ball of some point of ``of`` that reaches to its k-th neighbour."""
    count = 0
    for point in inside:
        for centre in of:
            radius = (of - centre).norm(dim=1).sort().values[k]
            if (point - centre).norm() <= radius:
                count += 1
                break
    return count / len(inside)


def test_precision_and_recall_are_their_definition():
    real, generated = randn(40, 1, 1, 3), 0.7 * randn(30, 1, 1, 3, seed=1) + 0.5
    precision, recall = precision_recall(real, generated, Flat())
    assert precision == pytest.approx(by_hand(generated.flatten(1), real.flatten(1)))
    assert recall == pytest.approx(by_hand(real.flatten(1), generated.flatten(1)))
    assert 0 < precision < 1 and 0 < recall < 1


def test_images_far_away_have_no_precision():
    assert precision_recall(randn(20, 1, 2, 2), randn(20, 1, 2, 2) + 100, Flat()) == (0, 0)


def test_norms_of_gaussian_noise_are_not_far_from_chi():
    """Below the 1e-6 bound for 4,000 draws; shrunk by 5 %, well above it."""
    z = randn(4000, 1, 8, 8)
    assert norm_distance(z) < kolmogorov_bound(4000) < norm_distance(0.95 * z)


def test_norms_that_are_all_the_same_are_as_far_as_can_be():
    """A step at the median is half a distribution away."""
    z = torch.ones(100, 1, 8, 8) * (stats.chi(64).median() / 8)
    assert norm_distance(z) == pytest.approx(0.5, abs=1e-3)
