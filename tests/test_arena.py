"""The arena's objectives against closed forms: for Gaussian data the flow's map between any two times is known.

With data ``N(mean, std^2 I)``, ``x_t`` is normal with mean ``(1 - t) mean`` and variance ``(1 - t)^2 std^2 + t^2``, and
the flow carries it to ``x_r`` by matching quantiles. Average velocities and consistency functions follow.
"""

import linecache
import math
import re
import signal
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from truth import network, randn

from rfpp import arena, checkpoints, data, engine
from rfpp.arena import average, consistency
from rfpp.arena.methods import Coupled
from rfpp.arena.simple_reflow import TOWARDS_NOISE, sharpened
from rfpp.base import paths
from rfpp.base.processes import Stopped
from rfpp.denoisers import EDMPrecond, GaussianMixtureDenoiser, VPPrecond, expand
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.pipeline.flows import placed
from rfpp.pipeline.generators import Leaps, Renoised, signed_permutation
from rfpp.pipeline.plan import Plan
from rfpp.premetrics import pseudo_huber, squared_l2
from rfpp.presets import load
from rfpp.timesteps import Uniform

MEAN, STD = 0.4, 0.3


def spread(t):
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def carried(x, t, r):
    """Where the Gaussian's flow has carried ``x`` of time ``t`` at time ``r``."""
    t, r = expand(t, x), expand(r, x)
    return (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)


class Exact(average.AverageFlow):
    """The Gaussian's average velocity, times a factor that training would leave at 1."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def average(self, x_t, t, labels, r):
        t, r = expand(t, x_t), expand(r, x_t)
        apart = t - r > 1e-9
        gap = torch.where(apart, t - r, torch.ones_like(t))
        slope = ((t - (1 - t) * STD**2) / spread(t) ** 2) * (x_t - (1 - t) * MEAN) - MEAN
        return self.factor * torch.where(apart, (x_t - carried(x_t, t.flatten(), r.flatten())) / gap, slope)


def couples(n=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, z = torch.randn((2, n, 1, 2, 2), generator=generator, dtype=torch.float64)
    t, r = torch.rand((2, n), generator=generator, dtype=torch.float64).sort(dim=0, descending=True).values
    return MEAN + STD * x, z, t.clamp(0.02, 0.98), r.clamp(0.01, 0.97)


@pytest.fixture
def images():
    pixels = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return data.Images(pixels, torch.arange(40) % 10)


def objective(name, images, **changes):
    return replace(arena.METHODS[name], **changes).objective(images, 8, 0, 10, RectifiedFlow(EDMPrecond(network())))


def test_the_exact_velocity_is_the_gaussian_denoisers():
    x, z, t, _ = couples(50)
    x_t = interpolate(x, z, t)
    mixture = GaussianMixtureDenoiser(torch.full((1, 4), MEAN, dtype=torch.float64), std=STD)
    v = RectifiedFlow(mixture).velocity(x_t.flatten(1), t)
    assert torch.allclose(Exact().velocity(x_t, t).flatten(1), v, atol=1e-10)


def test_meanflows_identity_holds_for_the_marginal_velocity():
    """``u = v - (t - r) du/dt`` along the flow itself, to rounding."""
    x, z, t, r = couples(200)
    x_t, flow = interpolate(x, z, t), Exact()
    v = flow.velocity(x_t, t).detach()
    u, change = flow(x_t, t, None, r, along=v)
    assert (t - r).min() > 0
    assert torch.allclose(u, v - expand(t - r, x_t) * change, atol=1e-9)


@pytest.mark.parametrize("name", ["meanflow", "shortcut"])
def test_the_exact_average_velocity_is_stationary(name, images):
    """The mean gradient vanishes within 4.5 standard errors of a mean over 4,000 rows: 7 in a million miss by chance.

    Not so where the velocity is 5 % too large: the test would see it.
    """
    x, z, t, r = couples()
    method = objective(name, images, **({"power": 0.0} if name == "meanflow" else {}))
    for factor, stationary in ((1.0, True), (1.05, False)):
        flow = Exact()
        flow.factor.data.fill_(factor)
        between = () if name == "meanflow" else ((t + r) / 2,)
        # Rows in which both times agree are what anchors the shortcut's identity.
        r = torch.where(torch.arange(len(t)) % 2 == 0, r, t)
        losses = method.losses(flow, x, z, None, t, r, *between)
        gradients = torch.autograd.grad(losses, flow.factor, torch.eye(len(t), dtype=t.dtype), is_grads_batched=True)[0]
        away = gradients.mean().abs() / (gradients.std() / len(t) ** 0.5)
        assert (away < 4.5) == stationary


def test_two_exact_leaps_are_one(images):
    x, z, t, s = couples(100)
    r = s + 0.3 * (t - s)
    method, flow = objective("shortcut", images), Exact()
    x_t = interpolate(x, z, t)
    assert torch.allclose(method._two_leaps(flow, x_t, None, t, s, r), flow.average(x_t, t, None, s), atol=1e-9)


def test_leaps_of_the_exact_average_velocity_end_on_its_path():
    z = randn(6, 1, 2, 2).double()
    once = average.leap(Exact(), z, [0.999, 0.0])
    often = average.leap(Exact(), z, torch.linspace(0.999, 0, 9))
    assert torch.allclose(once, often, atol=1e-9)
    assert torch.allclose(once, carried(0.999 * z, 0.999 * torch.ones(6).double(), torch.zeros(6).double()), atol=1e-9)


class ExactConsistency(RectifiedFlow):
    """A velocity whose x-prediction is the end of the Gaussian's path."""

    def velocity(self, x_t, t, labels=None):
        return (x_t - carried(x_t, torch.as_tensor(t), torch.zeros_like(torch.as_tensor(t)))) / expand(t, x_t)

    forward = velocity


def test_distillation_leaves_the_exact_consistency_function_alone(images):
    """With the exact teacher, the two ends differ by Heun's error alone: a ninth of it with a third of the step.

    The loss times the distance of noise levels is their squared distance, as long as that is small.
    """
    x, z, t, _ = couples(200)
    mixture = GaussianMixtureDenoiser(torch.full((1, 4), MEAN, dtype=torch.float64), std=STD)

    class Teacher(nn.Module):
        def forward(self, x_t, t, labels=None):
            return RectifiedFlow(mixture).velocity(x_t.flatten(1), t).reshape(x_t.shape)

    method, gaps = replace(objective("cd", images), teacher=Teacher()), []
    for step in (0.15, 0.05):
        r = t - step * t
        losses = method.losses(ExactConsistency(nn.Identity()), x, z, None, t, r)
        gaps.append(float((losses * (t / (1 - t) - r / (1 - r))).sqrt().mean()))
    assert gaps[0] / gaps[1] > 3**2.7 and gaps[0] < 0.1


def test_the_target_at_time_nought_is_the_image(images):
    method = objective("ct", images)
    x, z, labels, t, r = method.draw(0, range(8))
    assert (r[t / (1 - t) < 0.5] == 0).all()  # at the first stage, 1 + 8 sigmoid(-sigma) is above 2 there
    prediction = x + 0.1
    perfect, shifted = (
        method.losses(lambda x_t, t, _, image=image: (x_t - image) / expand(t, x_t), x, z, labels, t, torch.zeros(8))
        for image in (x, prediction)
    )
    assert torch.allclose(perfect, torch.zeros(8), atol=1e-9) and (shifted > 0).all()


def test_noise_levels_come_closer_from_stage_to_stage():
    sigma = torch.tensor([0.3, 1.0, 10.0, 80.0], dtype=torch.float64)
    found = torch.stack([consistency.earlier(sigma, stage) for stage in range(1, 9)])
    assert (found.diff(dim=0) >= 0).all() and (found < sigma).all() and found[0, 0] == 0
    assert torch.allclose(found[:, 3], 80 * (1 - 2.0 ** -torch.arange(1, 9).double()), rtol=1e-9)


def test_ends_that_are_right_stay_right_however_often_noise_is_mixed_in():
    """With one image as the data, every prediction is that image."""
    image = randn(1, 1, 2, 2)
    flow = RectifiedFlow(GaussianMixtureDenoiser(image))
    found = [Renoised(nfe, 80 / 81)(flow, randn(5, 1, 2, 2)) for nfe in (1, 2, 4)]
    assert all(torch.allclose(each, image.expand(5, 1, 2, 2), atol=1e-5) for each in found)


def test_signed_permutations_are_fresh_noise_for_every_row():
    """Norms stay; the mean product with the first noise is within 5 standard errors of 0 where an entry moved."""
    z = torch.randn(2000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = signed_permutation(z, 0)
    assert torch.allclose(moved.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.equal(signed_permutation(z[5:7], 0), moved[5:7]) and not torch.equal(signed_permutation(z, 1), moved)
    products = (moved * z).flatten(1).mean(dim=0)
    assert int((products.abs() > 5 / 2000**0.5).sum()) <= 3  # entries that stay where they are


# The second time


@pytest.fixture(params=[0, 3], ids=["without augmentation", "with a teacher's augmentation"])
def teacher(request):
    return EDMPrecond(network(augment_dim=request.param)).eval()


def test_at_the_start_every_average_velocity_is_the_teachers_velocity(teacher):
    flow, before = average.initial(teacher, 0.0, seed=1).eval(), RectifiedFlow(teacher)
    x_t, t, labels = randn(5, 1, 8, 8), torch.linspace(0.1, 0.9, 5), torch.arange(5) % 3
    for r in (t, t / 2, torch.zeros(5)):
        assert torch.equal(flow.average(x_t, t, labels, r), before.velocity(x_t, t, labels))
    assert all(torch.equal(flow.state_dict()[f"denoiser.{k}"], v) for k, v in teacher.state_dict().items()
               if "map_augment" not in k)  # fmt: skip


def moved(teacher):
    """A flow that heeds its second time."""
    flow = average.initial(teacher, 0.0, seed=1).eval().double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.05 * randn(*parameter.shape).double()
    return flow


def test_where_both_times_agree_the_second_counts_for_nothing(teacher):
    """The network sees zeros then, as with any other preconditioning; elsewhere, the length of the interval counts."""
    flow, x_t, t, labels = moved(teacher), randn(5, 1, 8, 8).double(), torch.linspace(0.1, 0.9, 5).double(), None
    plain = RectifiedFlow(EDMPrecond(flow.denoiser.model, flow.denoiser.sigma_data))
    assert torch.equal(flow.average(x_t, t, labels, t), plain.velocity(x_t, t, labels))
    assert not torch.allclose(flow.average(x_t, t, labels, t - 0.1), plain.velocity(x_t, t, labels))


def test_the_derivative_is_that_of_finite_differences(teacher):
    flow = moved(teacher)
    x_t, v, t = randn(4, 1, 8, 8).double(), randn(4, 1, 8, 8).double(), torch.tensor([0.3, 0.5, 0.6, 0.9]).double()
    r, h = torch.tensor([0.1, 0.5, 0.0, 0.6]).double(), 1e-6
    labels = torch.arange(4) % 3
    ahead, behind = (flow.average(x_t + h * s * v, t + h * s, labels, r) for s in (1, -1))
    u, change = flow(x_t, t, labels, r, along=v)
    apart = r < t
    assert torch.allclose(change[apart], ((ahead - behind) / (2 * h))[apart], atol=1e-6)
    assert torch.equal(u, flow.average(x_t, t, labels, r)) and (change[~apart] == 0).all() and not change.requires_grad


def test_files_keep_the_second_time(teacher, tmp_path):
    flow = moved(teacher).float()
    again = average.around(checkpoints.load(checkpoints.save(flow, tmp_path / "flow.safetensors")).denoiser)
    x_t = randn(2, 1, 8, 8)
    assert torch.equal(again.average(x_t, 0.7, None, 0.2), flow.average(x_t, 0.7, None, 0.2))
    assert not torch.equal(again.average(x_t, 0.7, None, 0.2), flow.average(x_t, 0.7, None, 0.6))


def test_a_start_without_a_second_time_is_refused(teacher):
    with pytest.raises(
        ValueError, match=r"denoiser=VPPrecond .* lacks the second time input; .* augment_dim of at least 9"
    ):
        average.around(VPPrecond(network()))
    with pytest.raises(ValueError, match="denoiser=EDMPrecond"):
        average.around(teacher)
    with pytest.raises(ValueError, match="teacher=VPPrecond .* has no place for a second time"):
        average.initial(VPPrecond(network()), 0.0, 0)
    with pytest.raises(ValueError, match="flow=RectifiedFlow has no second time"):
        Leaps(1)(RectifiedFlow(teacher), randn(1, 1, 8, 8))


# What is drawn


def test_rows_do_not_depend_on_who_asks(images):
    for name in arena.METHODS:
        whole = objective(name, images).draw(3, range(8))
        parts = [objective(name, images).draw(3, rows) for rows in (range(3), range(3, 8))]
        for one, *others in zip(whole, *parts, strict=True):
            assert torch.equal(one, torch.cat(others))


def test_of_one_row_in_four_the_times_differ():
    t, r = Coupled.two(
        SimpleNamespace(timesteps=Uniform(), batch_size=400), torch.Generator().manual_seed(0), range(400), 4
    )
    assert (r <= t).all() and int((r < t).sum()) == 100 and (r < t)[::4].all()


def test_pairs_and_times_are_those_of_reflow(tmp_path):
    experiment = Experiment("smoke", runs=tmp_path)
    from rfpp.training import Reflow

    pairs, method = experiment.pairs("train"), arena.METHODS["meanflow-pairs"]
    ours = method.objective(pairs, 8, 1, 10, None).draw(5, range(8))
    theirs = Reflow(pairs, method.timesteps, squared_l2, 8, 1).draw(5, range(8))
    same = ours[3] == ours[4]
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[3][same], theirs[3][same]) and int(same.sum()) == 6


def start_of(method):
    denoiser = EDMPrecond(network(label_dim=10))
    return average.initial(denoiser, 0.0, 0) if method.two_times else RectifiedFlow(denoiser)


def trained(name, images, steps=4, folder=None, stop=0, **machinery):
    """Weights after some steps of a contender; a signal comes after step ``stop``."""

    def signalled(step, average):
        if step == stop:
            signal.raise_signal(signal.SIGTERM)

    teacher = placed(RectifiedFlow(EDMPrecond(network(seed=1, label_dim=10))).requires_grad_(False))
    method = arena.METHODS[name]
    made = method.objective(images, 8, 0, 4, teacher)
    flow, _ = engine.fit(
        start_of(method), made, engine.Optimisation(steps, 1e-3), folder=folder, on_step=signalled,
        machinery=engine.Machinery(save_every=steps, **machinery),
    )  # fmt: skip
    return flow.state_dict()


@pytest.mark.parametrize("name", arena.METHODS)
def test_a_stopped_training_goes_on_to_the_same_bits(name, images, tmp_path):
    whole = trained(name, images)
    with pytest.raises(Stopped):
        trained(name, images, folder=tmp_path, stop=2)
    resumed = trained(name, images, folder=tmp_path)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", ["meanflow", "shortcut", "cd"])
def test_layout_and_precision_of_a_gpu_train_as_well(name, images):
    """Channels last and bf16: the weights move by about as much."""
    before = start_of(arena.METHODS[name]).state_dict()
    moved = [
        torch.cat([(after[key] - value).abs().flatten() for key, value in before.items()]).mean()
        for after in (trained(name, images), trained(name, images, channels_last=True, precision="bf16"))
    ]
    assert float(moved[1]) == pytest.approx(float(moved[0]), rel=0.2)


@pytest.mark.parametrize("name", arena.METHODS)
def test_parts_of_a_batch_add_up(name, images):
    """As processes and micro-batches take them; Adam's first steps enlarge rounding where gradients nearly vanish."""
    whole, parts = trained(name, images, steps=2), trained(name, images, steps=2, micro_batch=2)
    apart = torch.cat([(parts[key] - value).abs().flatten() for key, value in whole.items()])
    assert float(apart.mean()) < 1e-5 and float((apart > 1e-4).float().mean()) < 0.01


# Simple ReFlow


def test_the_power_family_has_pseudo_hubers_gradient_at_one_half():
    a, b = randn(6, 1, 4, 4), (randn(6, 1, 4, 4) * 5).requires_grad_()
    levelled = arena.Levelled(power=0.5, offset=(0.00054 * 16) ** 2 / 16)
    ours, theirs = (torch.autograd.grad(m(a, b).sum(), b)[0] for m in (levelled, pseudo_huber))
    ratio = ours / theirs
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)


def test_levelled_rows_count_the_same_and_power_nought_is_the_squared_distance():
    """The value of a levelled row is 1, but its gradient is that of the squared distance, divided by it."""
    a, b = randn(6, 1, 4, 4), randn(6, 1, 4, 4) * torch.tensor([0.1, 2, 10, 0.5, 3, 7]).reshape(-1, 1, 1, 1)
    assert torch.equal(arena.Levelled(power=0.0)(a, b), squared_l2(a, b))
    assert torch.allclose(arena.Levelled()(a, b), torch.ones(6), rtol=1e-4)
    (gradient,) = torch.autograd.grad(arena.Levelled()(a, b.requires_grad_()).sum(), b)
    error = (b - a).flatten(1)
    assert torch.allclose(gradient.flatten(1), 2 * error / error.square().sum(dim=1, keepdim=True), rtol=1e-3)


def test_sharpening_leaves_flat_errors_and_multiplies_the_finest():
    flat, fine = (
        torch.ones(1, 2, 6, 6),
        (torch.arange(6) % 2 * 2.0 - 1)[None, :] * (torch.arange(6) % 2 * 2.0 - 1)[:, None],
    )
    assert torch.allclose(sharpened(flat, 10.0), flat, atol=1e-6)
    checks = fine.expand(1, 2, 6, 6)
    assert torch.allclose(sharpened(checks, 10.0)[..., 1:-1, 1:-1], 11 * checks[..., 1:-1, 1:-1], atol=1e-5)
    error = flat + 0.01 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sharpened(error, 10.0), sharpened(error.clone(), 10.0).float())
        found = sharpened(error, 10.0)
    assert torch.equal(found, sharpened(error, 10.0))  # bfloat16 would lose what the blur removes


def test_times_towards_noise_rise_tenfold():
    assert float(TOWARDS_NOISE.pdf(1.0) / TOWARDS_NOISE.pdf(0.0)) == pytest.approx(10)


# In the pipeline


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment("smoke", {"seeds": [0]}, runs=tmp_path_factory.mktemp("runs"), jobs=1)


@pytest.mark.parametrize("name", [*arena.METHODS, "simple-reflow"])
def test_each_is_trained_and_graded(experiment, name):
    grades = experiment.evaluate(name, 0, nfe=2)
    assert math.isfinite(grades.frechet) and grades.frechet > 0
    flow = experiment.flow(name, 0)
    assert isinstance(flow, average.AverageFlow) == getattr(arena.find(name), "two_times", False)


def test_passes_are_the_same_for_all(experiment):
    plan = experiment.plan
    for name, method in arena.METHODS.items():
        step = plan.flow(name, 0)
        spent = step.optimisation.steps * step.batch_size * method.price
        assert plan.budget() - method.price * step.batch_size < spent <= plan.budget(), name


def test_what_a_method_does_not_use_changes_nothing(experiment):
    plan, other = experiment.plan, Plan(load("smoke", {"pairs.seed": 5}))
    assert plan.flow("meanflow", 0).key == other.flow("meanflow", 0).key
    assert plan.flow("meanflow-pairs", 0).key != other.flow("meanflow-pairs", 0).key


def test_the_contender_of_the_guide_trains_and_is_graded(experiment):
    """Its loss is reflow's with the weight ``t^2``."""
    guide = (paths.repository() / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"```python\n(from dataclasses.*?)```", guide, re.S)
    linecache.cache["<guide>"] = len(block), None, block.splitlines(keepends=True), "<guide>"
    module = ModuleType("guide")
    sys.modules["guide"] = module
    try:
        exec(compile(block, "<guide>", "exec"), vars(module))
        graded = experiment.evaluate(module.ENDS, 0, nfe=2)
        objective = module.ENDS.objective(experiment.pairs(), 8, 0, 3, None)
        batch, flow = objective.draw(1, range(8)), experiment.flow("teacher")
        x, z, labels, t = batch
        wanted = t**2 * (flow(interpolate(x, z, t), t, labels) - (z - x)).square().flatten(1).mean(dim=1)
        torch.testing.assert_close(objective.losses(flow, *batch), wanted, rtol=1e-4, atol=1e-5)
    finally:
        del sys.modules["guide"]
    assert math.isfinite(graded.frechet) and graded != experiment.evaluate("B", 0, nfe=2)


def test_bad_input_is_refused(experiment):
    with pytest.raises(ValueError, match="config='meanflw' is unknown; .*'meanflow'"):
        experiment.evaluate("meanflw")
    with pytest.raises(ValueError, match="source='noise'"):
        replace(arena.METHODS["meanflow"], source="noise")
    with pytest.raises(TypeError, match="timesteps=0.5 is a float"):
        replace(arena.METHODS["ct"], timesteps=0.5)
    with pytest.raises(ValueError, match="every=0"):
        replace(arena.METHODS["shortcut"], every=0)
    with pytest.raises(ValueError, match=r"samples in its own way: leave out solver"):
        experiment.evaluate("meanflow", solver="heun")
    for config in ("meanflow", "F"):
        with pytest.raises(TypeError, match="solvr"):
            experiment.evaluate(config, solvr="heun")
    sampler = experiment.sampler(2)
    with pytest.raises(ValueError, match=r"nfe=3 beside sampler=Sampler\(nfe=2"):
        experiment.evaluate("F", sampler=sampler, nfe=3)
