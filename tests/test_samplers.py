"""Samplers: the released code's numbers, ODEs with known solutions, orders of convergence, and counted evaluations."""

import math
from itertools import pairwise

import pytest
import torch
from torchdiffeq import odeint
from truth import Counting, GaussianFlow, agrees, arrays, mixture, randn, reference

from rfpp import samplers
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.flow import T_MAX, RectifiedFlow
from rfpp.metrics import straightness
from rfpp.samplers import TWO_STEPS, edm_invert, edm_sample, edm_sigmas, integrate, invert, sample, slerp

EULER_AND_HEUN = pytest.mark.parametrize("solver", ["euler", "heun"])
FLOATS = torch.float64


@pytest.fixture(scope="module")
def ncsnpp():
    return RectifiedFlow(reference("ncsnpp"))


# The released implementation's numbers


@pytest.mark.parametrize("update", ["standard", "straight"])
@pytest.mark.parametrize(
    ("solver", "nfe"), [("euler", 1), ("euler", 2), ("euler", 5), ("heun", 1), ("heun", 5), ("heun", 7)]
)
def test_samples_are_the_released_implementations(ncsnpp, solver, nfe, update):
    truth = arrays("ncsnpp")
    expected = truth[f"sample/{solver}/{ {'standard': 'default', 'straight': 'new'}[update] }/{nfe}"]
    assert agrees(sample(ncsnpp, truth["z"], nfe, solver, update), expected)


@pytest.mark.parametrize("times", [TWO_STEPS, [*TWO_STEPS, 0.0], torch.tensor(TWO_STEPS, dtype=FLOATS)])
def test_two_steps_are_the_released_implementations(ncsnpp, times):
    truth = arrays("ncsnpp")
    assert agrees(sample(ncsnpp, truth["z"], 2, times=times), truth["sample/euler/default/t=0.8"])


@pytest.mark.parametrize(("solver", "nfe"), [("euler", 2), ("euler", 4), ("euler", 8), ("heun", 5)])
def test_inversion_is_the_released_implementations(ncsnpp, solver, nfe):
    """The reference's state at t = 1e-3 is x itself, without fresh noise."""
    truth = arrays("ncsnpp")
    times = samplers.inversion_times(nfe if solver == "euler" else (nfe + 1) // 2)
    assert agrees(integrate(ncsnpp, truth["x"][:2], times, solver)[-1], truth[f"invert/{solver}/{nfe}"])


def test_teacher_samples_are_the_released_implementations():
    truth = arrays("ncsnpp")
    assert agrees(edm_sample(reference("ncsnpp"), truth["z"]), truth["edm_heun18"])


def test_straightness_is_the_released_implementations(ncsnpp):
    truth, times = arrays("ncsnpp"), samplers.generation_times(8)
    assert agrees(straightness(integrate(ncsnpp, truth["z"] * T_MAX, times), times), truth["straightness/euler8"])


# Flows that are known exactly


@pytest.fixture(scope="module")
def gaussian():
    return GaussianFlow(randn(1, 2, 2, seed=1, dtype=FLOATS), 0.4)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize(("start", "end"), [(0.95, 0.05), (0.05, 0.95)])
def test_order_of_convergence(gaussian, solver, order, start, end):
    """Halving the step divides the error by ``2^order``: measured in the limit, against the exact solution."""
    x = randn(3, 1, 2, 2, dtype=FLOATS)
    exact = gaussian.carry(x, start, end)

    def error(steps):
        return (
            integrate(gaussian.flow, x, torch.linspace(start, end, steps + 1, dtype=FLOATS), solver)[-1] - exact
        ).norm()

    assert math.log2(error(160) / error(320)) == pytest.approx(order, abs=0.1)


def test_the_exact_solution_is_one(gaussian):
    """torchdiffeq's dopri5 agrees with the closed form that the other tests rest on."""
    x = randn(3, 1, 2, 2, dtype=FLOATS)
    solved = odeint(lambda t, x: gaussian.flow.velocity(x, t), x, torch.tensor([0.95, 0.05], dtype=FLOATS), rtol=1e-10)
    torch.testing.assert_close(solved[-1], gaussian.carry(x, 0.95, 0.05), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("start", "end"), [(0.99, 0.01), (0.01, 0.99)])
def test_a_curved_flow_against_dopri5(start, end):
    """A mixture's flow has no closed form; torchdiffeq's adaptive solver is the judge, at every time of the grid."""
    flow, x = RectifiedFlow(mixture()), randn(6, 1, 1, 2, dtype=FLOATS)
    times = torch.linspace(start, end, 201, dtype=FLOATS)
    truth = odeint(lambda t, x: flow.velocity(x, t), x, times, rtol=1e-9, atol=1e-9)
    ours = torch.stack(integrate(flow, x, times, "heun"))
    torch.testing.assert_close(ours, truth, rtol=0, atol=5e-3)
    assert (ours[-1] - truth[-1]).norm() < 0.2 * (integrate(flow, x, times)[-1] - truth[-1]).norm()


def test_any_grid_will_do(gaussian):
    """Steps of different lengths, written out: Euler by hand, Heun with its last step Euler."""
    x, times = randn(2, 1, 2, 2, dtype=FLOATS), [0.9, 0.5, 0.45, 0.1]
    v = gaussian.flow.velocity
    a = x - 0.4 * v(x, 0.9)
    b = a - 0.05 * v(a, 0.5)
    c = b - 0.35 * v(b, 0.45)
    for state, truth in zip(integrate(gaussian.flow, x, times), [x, a, b, c], strict=True):
        torch.testing.assert_close(state, truth)
    a = x - 0.2 * (v(x, 0.9) + v(a, 0.5))
    b = a - 0.025 * (v(a, 0.5) + v(a - 0.05 * v(a, 0.5), 0.45))
    c = b - 0.35 * v(b, 0.45)
    for state, truth in zip(integrate(gaussian.flow, x, times, "heun"), [x, a, b, c], strict=True):
        torch.testing.assert_close(state, truth)


def test_the_straight_update_written_out(gaussian):
    """Appendix D: ``x_t' = (1 - t') x_hat + t' z`` with x_hat from the closed form and the first z throughout."""
    z, times = randn(2, 1, 2, 2, dtype=FLOATS), [T_MAX, 0.7, 0.2, 0.0]
    x = z
    for t, s in pairwise(times):
        x = (1 - s) * gaussian.x_given(x, t) + s * z
    torch.testing.assert_close(integrate(gaussian.flow, z, times, update="straight")[-1], x, rtol=1e-7, atol=1e-7)


@EULER_AND_HEUN
def test_both_updates_are_the_same_at_one_step(tiny_flow, solver):
    """Section 5: equal to Euler at NFE 1. Both land on the x-prediction at the start; the noise only rounds."""
    z = randn(3, 1, 8, 8)
    standard, straight = (sample(tiny_flow, z, 1, solver, update) for update in ("standard", "straight"))
    torch.testing.assert_close(standard, straight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(standard, tiny_flow.x_prediction(z * T_MAX, T_MAX), atol=1e-4, rtol=1e-4)


@EULER_AND_HEUN
@pytest.mark.parametrize("update", ["standard", "straight"])
@pytest.mark.parametrize("nfe", [1, 3, 9])
def test_a_flow_to_a_single_point_is_exact_in_any_number_of_steps(solver, update, nfe):
    """All lines end in the point: nothing crosses, everything is straight."""
    point = randn(1, 2, 2, seed=1, dtype=FLOATS)
    flow, z = RectifiedFlow(GaussianMixtureDenoiser(point[None])), randn(4, 1, 2, 2, dtype=FLOATS)
    torch.testing.assert_close(sample(flow, z, nfe, solver, update), point.expand_as(z), atol=1e-8, rtol=0)


class Paired(RectifiedFlow):
    """A flow in which z is paired with ``m z + b``: ``x_t = ((1 - t) m + t) z + (1 - t) b``, hence z, hence z - x."""

    def __init__(self, m, b):
        super().__init__(None)
        self.m, self.b = m, b

    def velocity(self, x_t, t, labels=None):
        z = (x_t - (1 - t) * self.b) / ((1 - t) * self.m + t)
        return z - (self.m * z + self.b)


@EULER_AND_HEUN
@pytest.mark.parametrize("update", ["standard", "straight"])
@pytest.mark.parametrize("nfe", [1, 5])
def test_a_straight_coupling_is_exact_in_any_number_of_steps(solver, update, nfe):
    """A linear map as coupling: the trajectories are straight lines with known ends.

    The start is a line's point at ``t = 1 - 1e-5`` only to 1e-5, which is what the tolerance is for.
    """
    flow, z = Paired(0.5, 0.3), randn(4, 1, 2, 2, dtype=FLOATS)
    torch.testing.assert_close(sample(flow, z, nfe, solver, update), 0.5 * z + 0.3, atol=1e-4, rtol=0)


@EULER_AND_HEUN
def test_inverting_a_straight_coupling_is_exact(solver):
    """From the point on the line at t = 1e-3 to its end."""
    z = randn(4, 1, 2, 2, dtype=FLOATS)
    start = (1 - 1e-3) * (0.5 * z + 0.3) + 1e-3 * z
    inverted = integrate(Paired(0.5, 0.3), start, samplers.inversion_times(3), solver)[-1]
    torch.testing.assert_close(inverted, z, atol=1e-9, rtol=0)


def test_sampling_the_exact_flow_gives_the_exact_distribution(gaussian):
    """One path, in closed form: ``x = mean + std z``; the start at 1 - 1e-5 costs 1e-4 at most, Heun the rest."""
    z = randn(5, 1, 2, 2, dtype=FLOATS)
    torch.testing.assert_close(sample(gaussian.flow, z, 199, "heun"), gaussian.mean + 0.4 * z, atol=5e-3, rtol=0)


def test_inversion_and_generation_undo_each_other():
    """Round trip on a curved flow; the error falls with the steps and is small in the end."""
    flow, x = RectifiedFlow(mixture()), mixture().means[[0, 1, 2]] + 0.1
    errors = []
    for nfe in (19, 79, 319):
        z = invert(flow, x, nfe, "heun", generator=torch.Generator().manual_seed(0))
        errors.append((sample(flow, z, nfe, "heun") - x).abs().max().item())
    # What remains is the 1e-3 of fresh noise that inversion starts with: four standard deviations of it.
    assert errors[0] > errors[1] > errors[2] and errors[2] < 5e-3


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_going_there_and_back_errs_at_the_solvers_order(solver, order):
    """On a curved flow, from t = 0.05 to 0.95 and back: the distance from the start falls by 2^order as steps halve."""
    flow, x = RectifiedFlow(mixture()), mixture().means[[0, 1, 2]] + 0.1

    def error(steps):
        times = torch.linspace(0.05, 0.95, steps + 1, dtype=FLOATS)
        there = integrate(flow, x, times, solver)[-1]
        return (integrate(flow, there, times.flip(0), solver)[-1] - x).norm()

    assert math.log2(error(640) / error(1280)) == pytest.approx(order, abs=0.1)


def test_inversion_starts_from_slightly_noisy_data(gaussian):
    """By hand: ``(1 - 1e-3) x + 1e-3 eps`` at t = 1e-3, one Euler step to 1."""
    x = randn(2, 1, 2, 2, dtype=FLOATS)
    eps = randn(2, 1, 2, 2, seed=3, dtype=FLOATS)
    start = 0.999 * x + 0.001 * eps
    expected = start + 0.999 * gaussian.flow.velocity(start, 1e-3)
    given = invert(gaussian.flow, x, 1, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9)
    assert not torch.equal(invert(gaussian.flow, x, 1), invert(gaussian.flow, x, 1))  # fresh entropy without one


def test_inverted_noise_of_the_exact_flow_is_the_standardised_data(gaussian):
    """``z = (x - mean) / std`` in closed form, up to 1e-3 / 0.4 of fresh noise and the solver's error."""
    x = gaussian.mean + 0.4 * randn(3, 1, 2, 2, dtype=FLOATS)
    z = invert(gaussian.flow, x, 199, "heun", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z, (x - gaussian.mean) / 0.4, atol=2e-2, rtol=0)


@pytest.mark.parametrize("update", ["standard", "straight"])
def test_times_of_ones_own_start_from_noise_at_the_first_of_them(gaussian, update):
    """One step from t = 0.8 starts at 0.8 z and lands on the closed form's x-prediction there."""
    z = randn(3, 1, 2, 2, dtype=FLOATS)
    given = sample(gaussian.flow, z, 1, update=update, times=[0.8])
    torch.testing.assert_close(given, gaussian.x_given(0.8 * z, 0.8), rtol=1e-9, atol=1e-9)


# Counting


@pytest.mark.parametrize(
    ("solver", "nfe"), [("euler", 1), ("euler", 2), ("euler", 7), ("heun", 1), ("heun", 3), ("heun", 9)]
)
@pytest.mark.parametrize("what", ["sample", "straight", "invert"])
def test_evaluations_are_as_many_as_were_asked_for(tiny, solver, nfe, what):
    """Counted in the denoiser."""
    counting, x = Counting(tiny), randn(2, 1, 8, 8)
    if what == "invert":
        invert(RectifiedFlow(counting), x, nfe, solver)
    else:
        sample(RectifiedFlow(counting), x, nfe, solver, "straight" if what == "straight" else "standard")
    assert counting.calls == nfe


@pytest.mark.parametrize("num_steps", [2, 5, 18])
def test_the_teachers_evaluations(tiny, num_steps):
    """``2 N - 1``: 35 for the paper's 18 steps."""
    counting = Counting(tiny)
    edm_sample(counting, randn(1, 1, 8, 8), num_steps)
    assert counting.calls == 2 * num_steps - 1


@pytest.mark.parametrize(("sigma_min", "sigma_max", "rho"), [(0.002, 80.0, 7.0), (0.01, 10.0, 3.0)])
def test_the_teachers_noise_levels(sigma_min, sigma_max, rho):
    """The ends, and equal spacing of the roots in between."""
    sigmas = edm_sigmas(18, rho, sigma_min, sigma_max)
    assert len(sigmas) == 19 and sigmas[-1] == 0
    assert sigmas[0].item() == pytest.approx(sigma_max) and sigmas[-2].item() == pytest.approx(sigma_min)
    gaps = (sigmas[:-1] ** (1 / rho)).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(17), rtol=1e-9, atol=0)


def test_the_teachers_sampler_solves_the_teachers_ode():
    """For Gaussian data ``x = mean + std (80 z - mean) / sqrt(std^2 + 80^2)``; second order, so four times closer at
    twice the steps."""
    mean, z = randn(1, 2, 2, seed=1, dtype=FLOATS), randn(3, 1, 2, 2, dtype=FLOATS)
    denoiser = GaussianMixtureDenoiser(mean[None], 0.4)
    exact = mean + 0.4 * (80 * z - mean) / math.hypot(0.4, 80)
    errors = [(edm_sample(denoiser, z, n) - exact).abs().max().item() for n in (18, 36, 72)]
    assert errors[0] < 0.1 and errors[1] / errors[0] < 0.35 and errors[2] / errors[1] < 0.35


def test_teacher_and_its_flow_agree(gaussian):
    """Proposition 1: both ODEs carry the same noise to the same image."""
    z = randn(4, 1, 1, 2, dtype=FLOATS)
    denoiser = mixture()
    by_teacher, by_flow = edm_sample(denoiser, z, 200), sample(RectifiedFlow(denoiser), z, 799, "heun")
    torch.testing.assert_close(by_flow, by_teacher, atol=2e-2, rtol=0)


def test_labels_reach_every_evaluation():
    """A class's samples lie at its component of the mixture, whatever the sampler (6 standard deviations)."""
    labels, z = torch.tensor([2, 0, 1, 2]), randn(4, 1, 1, 2, dtype=FLOATS)
    denoiser = mixture()
    centres = denoiser.means[labels]
    for x in (
        sample(RectifiedFlow(denoiser), z, 15, "heun", labels=labels),
        sample(RectifiedFlow(denoiser), z, 15, update="straight", labels=labels),
        edm_sample(denoiser, z, 18, labels=labels),
    ):
        assert ((x - centres).abs() < 6 * 0.3).all()
    kept = integrate(RectifiedFlow(denoiser), z, [0.9, 0.5], labels=labels)[-1]
    assert not torch.allclose(kept, integrate(RectifiedFlow(denoiser), z, [0.9, 0.5])[-1])


# Gradients and grids


def test_sampling_needs_no_gradient_and_integration_allows_it(tiny_flow):
    z = randn(1, 1, 8, 8).requires_grad_()
    assert not sample(tiny_flow, z, 2).requires_grad and not invert(tiny_flow, z, 2).requires_grad
    assert integrate(tiny_flow, z, [0.9, 0.1])[-1].requires_grad


def test_grids_are_uniform_but_for_the_first_time():
    assert samplers.generation_times(4).tolist() == pytest.approx([1 - 1e-5, 0.75, 0.5, 0.25, 0])
    assert samplers.inversion_times(4).tolist() == pytest.approx([1e-3, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("steps", [1, 2, 10, 999, 1000, 1001, 5000])
def test_grids_are_monotone_however_many_steps_there_are(steps):
    """The first time must stay outside of the uniform ones: 1e-3 is the second of a thousand steps."""
    assert (samplers.generation_times(steps).diff() < 0).all() and (samplers.inversion_times(steps).diff() > 0).all()
    assert len(samplers.generation_times(steps)) == len(samplers.inversion_times(steps)) == steps + 1


def test_a_trajectory_has_a_state_for_each_time_and_starts_where_it_was_put(tiny_flow):
    z = randn(2, 1, 8, 8)
    trajectory = integrate(tiny_flow, z, [0.9, 0.6, 0.3, 0.0], "heun")
    assert len(trajectory) == 4 and torch.equal(trajectory[0], z)


# What is refused


@pytest.mark.parametrize("function", [sample, invert])
@pytest.mark.parametrize(
    ("nfe", "solver", "error", "complaint"),
    [
        (0, "euler", ValueError, "nfe=0 is too small; an integer of at least 1"),
        (-1, "heun", ValueError, "nfe=-1 is too small"),
        (2.5, "euler", TypeError, r"nfe=2\.5 is a float; an integer"),
        (2.0, "euler", TypeError, r"nfe=2\.0 is a float"),
        (True, "euler", TypeError, "nfe=True is a bool"),
        ("2", "euler", TypeError, "nfe='2' is a str"),
        (2, "heun", ValueError, "nfe=2 is even; solver='heun' takes 2 N - 1 evaluations: use nfe=1 or 3"),
        (2, "huen", ValueError, "solver='huen' is unknown; allowed: 'euler', 'heun'; did you mean 'heun'"),
        (2, "Euler", ValueError, "did you mean 'euler'"),
    ],
)
def test_an_nfe_or_solver_that_makes_no_sense_is_refused(tiny_flow, function, nfe, solver, error, complaint):
    with pytest.raises(error, match=complaint):
        function(tiny_flow, randn(1, 1, 8, 8), nfe, solver)


@pytest.mark.parametrize(
    "times",
    [[0.5], [], [0.5, 0.5], [0.9, 0.5, 0.6], [0.1, 0.5, 0.4], [1.1, 0.5], [0.5, -0.1], [0.9, float("nan"), 0.1]],
)
def test_times_that_are_not_monotone_within_0_and_1_are_refused(tiny_flow, times):
    with pytest.raises(ValueError, match=r"times=.*strictly falling or strictly rising, within \[0, 1\]"):
        integrate(tiny_flow, randn(1, 1, 8, 8), times)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"solver": "rk45"}, "solver='rk45' is unknown"),
        ({"update": "strait"}, "update='strait' is unknown; allowed: 'standard', 'straight'; did you mean 'straight'"),
        ({"update": "straight"}, "update='straight' needs the initial noise.*falling times"),
    ],
)
def test_integrate_refuses(tiny_flow, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        integrate(tiny_flow, randn(1, 1, 8, 8), [0.1, 0.9], **options)


@pytest.mark.parametrize(
    ("nfe", "solver", "times", "complaint"),
    [
        (3, "euler", [0.99, 0.5], r"make 2 steps, but nfe=3 with solver='euler' makes 3"),
        (1, "euler", [0.99, 0.5, 0.0], "make 2 steps, but nfe=1"),
        (5, "heun", [0.99, 0.5], "make 2 steps, but nfe=5 with solver='heun' makes 3"),
        (2, "euler", [0.5, 0.99], "strictly falling"),
        (1, "euler", [], "times"),
        (1, "euler", [1.5], "within"),
    ],
)
def test_times_that_do_not_fit_the_nfe_are_refused(tiny_flow, nfe, solver, times, complaint):
    with pytest.raises(ValueError, match=complaint):
        sample(tiny_flow, randn(1, 1, 8, 8), nfe, solver, times=times)


def test_an_unknown_update_is_refused_before_anything_runs(tiny):
    counting = Counting(tiny)
    with pytest.raises(ValueError, match="did you mean 'straight'"):
        sample(RectifiedFlow(counting), randn(1, 1, 8, 8), 2, update="straigt")
    assert counting.calls == 0


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"num_steps": 1}, ValueError, "num_steps=1 is too small; an integer of at least 2"),
        ({"num_steps": 2.0}, TypeError, r"num_steps=2\.0 is a float"),
        ({"sigma_min": 0.0}, ValueError, r"sigma_min=0\.0, sigma_max=80\.0"),
        ({"sigma_min": 90.0}, ValueError, "0 < sigma_min < sigma_max is needed"),
        ({"sigma_max": float("nan")}, ValueError, "sigma_max=nan"),
    ],
)
def test_teacher_sampling_refuses(tiny, options, error, complaint):
    with pytest.raises(error, match=complaint):
        edm_sample(tiny, randn(1, 1, 8, 8), **options)


# EDM's ODE in the other direction, and the sphere


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_edms_inversion_comes_back(solver):
    """There and back with many steps on a curved flow; what remains is of the order of the noise at the start."""
    denoiser = mixture()
    x = denoiser.means[[0, 1, 2]] + 0.1
    z = edm_invert(denoiser, x, 300, solver=solver, generator=torch.Generator().manual_seed(0))
    again = edm_sample(denoiser, z, 300, solver=solver)
    assert (again - x).abs().max() < (0.2 if solver == "euler" else 0.02)


def test_edms_inversion_of_gaussian_data_is_known():
    """The ODE keeps the distance from the mean in standard deviations: sqrt(s^2 + sigma^2) each."""
    mean, std = randn(1, 2, 2, seed=1, dtype=FLOATS), 0.4
    x = mean + std * randn(3, 1, 2, 2, dtype=FLOATS)
    found = edm_invert(GaussianMixtureDenoiser(mean[None], std), x, 400, generator=torch.Generator().manual_seed(0))
    start = randn(3, 1, 2, 2, dtype=FLOATS)  # the same draw as the generator's
    exact = (mean + (x + 0.002 * start - mean) * math.hypot(std, 80) / math.hypot(std, 0.002)) / 80
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 6), ("heun", 11)])
def test_edms_evaluations_in_both_directions(tiny, solver, evaluations):
    counting, x = Counting(tiny), randn(2, 1, 8, 8)
    edm_sample(counting, x, 6, solver=solver)
    assert counting.calls == evaluations
    edm_invert(counting, x, 6, solver=solver)
    assert counting.calls == 2 * evaluations


def test_slerp_is_the_released_implementations():
    truth = arrays("ncsnpp")
    assert agrees(slerp(truth["slerp_a"], truth["slerp_b"], 0.3), truth["slerp_03"])


def test_slerp_goes_along_the_sphere():
    """From one end to the other, at constant speed: halves of halves meet, and the norm of equal norms stays."""
    a, b = randn(3, 50, dtype=FLOATS), randn(3, 50, seed=1, dtype=FLOATS)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(slerp(a, middle, 0.5), slerp(a, b, 0.25))
    torch.testing.assert_close(slerp(a, b, 0.7).norm(dim=1), torch.ones(3, dtype=FLOATS))
    torch.testing.assert_close(slerp(a, a, 0.4), a)
