"""Blends of two updates, and chosen grids: the library's own at both ends, closed forms, and no worse than uniform."""

import dataclasses
import json

import pytest
import torch
from truth import GaussianFlow, randn

from rfpp.experiment import Experiment
from rfpp.flow import T_MAX, RectifiedFlow
from rfpp.pipeline.identities import identity
from rfpp.pipeline.sampling import Sampler
from rfpp.studies import few_steps
from rfpp.studies.few_steps import Blended, Pairs

FLOATS = torch.float64


class Straight(RectifiedFlow):
    """``v(x_t, t) = (1 - a) x_t / (a + t (1 - a))``: from noise ``z`` to ``a z`` along a straight line."""

    def __init__(self, a):
        super().__init__(None)
        self.a = a

    def velocity(self, x_t, t, labels=None):
        return (1 - self.a) * x_t / (self.a + t * (1 - self.a))


@pytest.mark.parametrize(("weight", "update"), [(0.0, "standard"), (1.0, "straight")])
@pytest.mark.parametrize("inner", [(), (0.7, 0.25), (0.9, 0.5, 0.1)])
def test_the_ends_are_the_librarys_updates_bit_for_bit(tiny_flow, weight, update, inner):
    z, labels = randn(5, 1, 8, 8), torch.arange(5) % 3
    times = (0.999, *inner)
    found = Blended(times, (weight,) * len(times), batch_size=2)(tiny_flow, z, labels)
    known = Sampler(len(times), "euler", update, 0.999, inner, batch_size=2)(tiny_flow, z, labels)
    assert torch.equal(found, known)


def test_a_blend_lies_between_the_two_updates(tiny_flow):
    """After two of three steps the state is linear in the second weight, and so is the prediction's input."""
    z, times = randn(3, 1, 8, 8), [0.999, 0.6, 0.3]
    with torch.no_grad():
        low, middle, high = (few_steps.blend(tiny_flow, z, times, (0.0, w)) for w in (0.0, 0.25, 1.0))
    torch.testing.assert_close(middle, 0.75 * low + 0.25 * high)
    assert float((high - low).abs().max()) > 1e-3


def test_on_a_straight_flow_all_grids_and_weights_agree():
    """Up to what is missing of the noise at the first time, ``1 - T_MAX``."""
    flow, z = Straight(0.2), randn(4, 3, dtype=FLOATS)
    for inner, weights in (((), (0.0,)), ((0.5, 0.1), (0.3, 0.8, 0.1)), ((0.2,), (1.0, 0.5))):
        torch.testing.assert_close(Blended((T_MAX, *inner), weights)(flow, z), 0.2 * z, rtol=1e-4, atol=0)


def test_one_chosen_time_is_the_best_of_a_fine_scan():
    """Two steps of a Gaussian's flow, whose error is a function of one number: no time of 200 does better."""
    exact, first = GaussianFlow(torch.zeros(1, dtype=FLOATS), 0.3), 0.999
    z = randn(50, 1, dtype=FLOATS)
    pairs = Pairs(exact.carry(first * z, first, 0), z, None)
    found = few_steps.choose(exact.flow, pairs, 2, first, "times", iterations=50)
    scan = [pairs.error(exact.flow, Blended((first, float(t)), (0.0, 0.0))) for t in torch.linspace(0.004, 0.99, 200)]
    assert pairs.error(exact.flow, found) <= min(scan) * (1 + 1e-3)
    assert pairs.error(exact.flow, found) < 0.9 * pairs.error(exact.flow, few_steps.uniform(2, first))


def test_one_chosen_weight_is_the_parabolas_lowest_point():
    """With two steps before the last, the images are linear in the second step's weight, and the error is a parabola.

    A linear flow keeps that up to the end: three errors give the parabola.
    """
    exact, first = GaussianFlow(torch.zeros(1, dtype=FLOATS), 0.3), 0.999
    z = randn(50, 1, dtype=FLOATS)
    pairs = Pairs(exact.carry(first * z, first, 0), z, None)
    times = few_steps.uniform(3, first).times

    def error(w):
        return pairs.error(exact.flow, Blended(times, (0.0, w, 0.0)))

    low, middle, high = error(0.0), error(0.5), error(1.0)
    lowest = min(1.0, max(0.0, 0.5 - 0.25 * (high - low) / (high - 2 * middle + low)))
    found = few_steps.choose(exact.flow, pairs, 3, first, "weights", iterations=50)
    assert found.times == times and found.weights[1] == pytest.approx(lowest, abs=2e-3)


@pytest.mark.parametrize("what", few_steps.CHOICES)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4])
def test_a_choice_is_no_worse_on_its_own_pairs(tiny_flow, what, nfe):
    """Than either update on the uniform grid, even where the pairs have nothing to do with the flow."""
    pairs = Pairs(randn(6, 1, 8, 8, seed=1).tanh(), randn(6, 1, 8, 8), torch.arange(6) % 3)
    found = few_steps.choose(tiny_flow, pairs, nfe, 0.999, what, iterations=3)
    plain = [few_steps.uniform(nfe, 0.999, weight) for weight in (0.0, 1.0)]
    assert found.nfe == nfe and found.times[0] == 0.999
    assert pairs.error(tiny_flow, found) <= min(pairs.error(tiny_flow, each) for each in plain)
    assert found == few_steps.choose(tiny_flow, pairs, nfe, 0.999, what, iterations=3)


def test_a_choice_does_not_depend_on_how_many_pairs_are_differentiated_at_once():
    exact, first = GaussianFlow(torch.zeros(1, dtype=FLOATS), 0.3), 0.999
    z = randn(50, 1, dtype=FLOATS)
    pairs = Pairs(exact.carry(first * z, first, 0), z, None)
    parts = pairs.parts(7)
    assert [len(part.z) for part in parts] == [7] * 7 + [1]
    assert torch.equal(torch.cat([part.x for part in parts]), pairs.x)
    whole, few = (few_steps.choose(exact.flow, pairs, 3, first, iterations=20, rows=rows) for rows in (None, 7))
    assert few.times == pytest.approx(whole.times, abs=2e-4) and few.weights == pytest.approx(whole.weights, abs=2e-3)


def test_a_blends_derivative_by_times_and_weights_is_a_difference_quotient(tiny_flow):
    """It computes velocities twice, once more for the gradient."""
    z, labels = randn(3, 1, 8, 8), torch.arange(3)

    def total(given):
        times, weights = [0.999, *given[:2], 0.0], [0.0, given[2], 0.0]
        return few_steps.blend(tiny_flow, z, times, weights, labels).double().square().sum()

    given = torch.tensor([0.7, 0.3, 0.4], dtype=FLOATS, requires_grad=True)
    (slope,) = torch.autograd.grad(total(given), given)
    for place, value in enumerate(slope):
        step = 1e-2 * torch.eye(3, dtype=FLOATS)[place]  # large, because the network computes in single precision
        with torch.no_grad():
            quotient = (total(given + step) - total(given - step)) / (2e-2)
        assert float(value) == pytest.approx(float(quotient), rel=1e-2, abs=1e-2 * float(slope.abs().max()))


def test_a_blend_is_a_value_that_is_graded_and_kept(tmp_path, monkeypatch):
    """The batch size stands in no key, and what is kept is read at another preset of the same runs."""
    chosen = Blended((0.999, 0.4), (0.0, 0.5))
    assert (
        identity(chosen)
        == identity(dataclasses.replace(chosen, batch_size=7))
        != identity(Blended((0.999, 0.4), (0.0, 0.6)))
    )
    here, there = (Experiment("smoke", {"evaluation.samples": n}, runs=tmp_path) for n in (12, 16))
    graded = here.evaluate("teacher", 0, sampler=chosen)
    plain = here.evaluate("teacher", 0, sampler=Blended((0.999, 0.4), (0.0, 0.0)))
    assert plain == here.evaluate("teacher", 0, nfe=2, inner=(0.4,)) and graded.frechet > 0
    few_steps.keep(here, {2: chosen})
    assert json.loads((here.folder / "claims" / "few_steps.json").read_text())["2"]["weights"] == [0.0, 0.5]
    assert few_steps.elsewhere(there, [2])[here.preset.name] == {2: chosen}
    assert here.preset.name not in few_steps.elsewhere(there, [2, 3])
    assert here.preset.name not in few_steps.elsewhere(here, [2])


def test_pairs_that_choose_do_not_judge(tmp_path):
    experiment = Experiment("smoke", runs=tmp_path)
    choosing, judging = few_steps.split(experiment, 40)
    assert len(choosing.z) == 40 and len(judging.z) == 24
    assert not (choosing.z[:, None] == judging.z[None]).flatten(2).all(dim=2).any()
    with pytest.raises(ValueError, match="pairs_used=64 leaves none of the 64 held-out pairs to judge by"):
        few_steps.split(experiment, 64)


def test_gains_by_hand():
    found = {
        "uniform, Euler": {2: [4.0, 2.0], 3: [1.0, 3.0]},
        "uniform, straight": {2: [5.0, 1.0], 3: [2.0, 2.0]},
        "both": {2: [2.0, 2.0], 3: [1.0, 1.0]},
    }
    plain = few_steps.best_uniform(found)
    assert plain == {2: [4.0, 1.0], 3: [1.0, 2.0]}
    assert few_steps.gain(plain, found["both"]) == [0.25, -0.25]
    assert few_steps.gain(plain, few_steps.turned(plain)) == [(0.75 - 1) / 2, (-3 + 0.5) / 2]
    assert few_steps.shares(found) == {"both": {2: [0.5, -1.0], 3: [0.0, 0.5]}}


@pytest.mark.parametrize(
    ("times", "weights", "complaint"),
    [
        ((), (), "one or more"),
        ((1.0, 0.5), (0, 0), "falling numbers within"),
        ((0.5, 0.5), (0, 0), "falling numbers within"),
        ((0.5, 0.0), (0, 0), "falling numbers within"),
        ((0.9, 0.5), (0,), r"weights=\(0,\): one for each of 2"),
        ((0.9,), (1.5,), r"weights=\(1.5,\) must lie within \[0, 1\]"),
        ((0.9,), (float("nan"),), "must lie within"),
    ],
)
def test_what_is_no_sampler_is_refused(times, weights, complaint):
    with pytest.raises(ValueError, match=complaint):
        Blended(times, weights)


def test_other_values_are_refused(tmp_path):
    flow, pairs = Straight(0.2), Pairs(randn(2, 3), randn(2, 3), None)
    with pytest.raises(ValueError, match="what='time' is unknown; .*did you mean 'times'"):
        few_steps.choose(flow, pairs, 2, 0.999, "time")
    with pytest.raises(ValueError, match="iterations=0 is too small"):
        few_steps.choose(flow, pairs, 2, 0.999, iterations=0)
    with pytest.raises(ValueError, match=r"evaluations=\[2000\]: first_time"):
        few_steps.check(Experiment("smoke", runs=tmp_path), [2000])
