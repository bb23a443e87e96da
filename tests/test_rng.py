"""Random numbers belong to their caller: the library leaves the global generators as it found them."""

import cProfile
import importlib
import inspect
import json
import os
import pkgutil
import random
import warnings
from pathlib import Path
from types import SimpleNamespace

import edm
import matplotlib
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from truth import GaussianFlow, fit, mixture, network, randn, released_pairs

import rfpp
from rfpp import (
    arena,
    checkpoints,
    claims,
    data,
    denoisers,
    doctor,
    engine,
    experiment,
    features,
    flow,
    intersections,
    likelihood,
    metrics,
    networks,
    pairs,
    premetrics,
    presets,
    samplers,
    timesteps,
    training,
)
from rfpp.base import batches, files, rng, torchvision_shim
from rfpp.book import contrasts, plots, results, sizes, tables
from rfpp.claims.records import commit
from rfpp.denoisers import EDMPrecond, expand
from rfpp.networks import layers
from rfpp.pairs import generators
from rfpp.pipeline import costs, digests, identities, sampling, shipped, sources
from rfpp.pipeline import store as artifacts
from rfpp.pipeline.plan import Plan
from rfpp.studies import grading, solvers

matplotlib.use("Agg")


def state():
    """The global generators of torch, numpy and Python."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()


@pytest.fixture
def untouched():
    """Fails a test that drew from a global generator, or seeded one."""
    before = state()
    yield
    assert state() == before


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What the calls below are made with."""
    denoiser = EDMPrecond(network()).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("things")
    generated = pairs.generate(denoiser, 12, folder / "pairs", num_steps=2)
    return SimpleNamespace(
        denoiser=denoiser,
        flow=flow.RectifiedFlow(denoiser),
        folder=folder,
        pairs=pairs.PairDataset(generated),
        x=randn(4, 1, 8, 8),
        z=randn(4, 1, 8, 8, seed=1),
        t=torch.linspace(0.1, 0.9, 4),
        labels=torch.tensor([0, 1, 2, 0]),
        images=data.Images(data.to_uint8(randn(6, 1, 8, 8)), torch.arange(6)),
        digits=shipped.load("digits-classifier"),
    )


def reflow_once(things):
    objective = training.Reflow(things.pairs, timesteps.UShaped(), premetrics.pseudo_huber, 4, 0)
    fit(things.flow, objective, 2)


def lpips_loss(things):
    premetric = premetrics.LPIPSHuberOverT(features.FeatureLPIPS(things.digits))
    return premetric(things.x, things.z, things.x, things.t)


def dropout_training(things):
    start = training.initial_flow(things.denoiser, "random", 0.5, 0)
    fit(start, training.Reflow(things.pairs, timesteps.Uniform(), premetrics.squared_l2, 4, 0), 2)


def teacher_training(things):
    objective = training.Denoising(things.images, 4, 0, 0.5)
    fit(EDMPrecond(network(label_dim=10, dropout=0.5)), objective, 2)


def classifier_training(things):
    fit(things.digits, training.Classification(things.images, 4, 0, 1, 0.3), 2)


def whole_experiment(things):
    whole = experiment.Experiment("smoke", {"data.name": "digits"}, runs=things.folder / "runs")
    whole.train(["A", "F", "G", "third"], [0])
    (
        whole.evaluate("F", nfe=3, solver="heun"),
        grading.references(whole),
        whole.noise(5),
        whole.history("A"),
        whole.snapshots("A"),
    )


def contenders(things):
    whole = experiment.Experiment("smoke", {"data.name": "digits"}, runs=things.folder / "runs")
    for name in ("meanflow", "shortcut-pairs", "cd", "simple-reflow"):
        whole.evaluate(name, nfe=2)


def likelihoods(things):
    likelihood.matching_time(likelihood.grey_levels(torch.tensor([0, 255], dtype=torch.uint8)))
    x = likelihood.dequantise(randn(2, 1, 2, 2), 17, torch.Generator().manual_seed(0))
    likelihood.bits_per_dimension(x.flatten(1).sum(dim=1), 4)
    likelihood.jacobian(lambda x: -x, x)
    x, options = things.x[:2], {"divergence": likelihood.Hutchinson(2), "rtol": 0.5, "atol": 0.5}
    likelihood.log_density(things.flow, x, start=0.1, end=0.9, **options)
    likelihood.stepwise(things.flow, x, [0.1, 0.9])


def examined(things):
    whole = experiment.Experiment("smoke", {"data.name": "digits"}, runs=things.folder / "runs")
    doctor.examine(doctor.of_experiment(whole, "A", 0))


def saved(things):
    return checkpoints.load(checkpoints.save(things.flow, things.folder / "flow.safetensors"))


def imported_from_edm(things):
    checkpoints.load_edm_pickle(edm.write(things.folder / "edm.pkl", {"ema": edm.denoiser(things.denoiser)}))


def loaded_by_path(things):
    checkpoints.load_any(edm.write(things.folder / "any.pkl", {"ema": edm.denoiser(things.denoiser)}))


def forecast(things):
    whole = experiment.Experiment("smoke", runs=things.folder / "runs")
    forecasts = costs.forecast(whole.plan, whole.run, whole.plan.steps(["G"], [0]))
    costs.report(forecasts, costs.measure(whole.plan, 1))
    costs.spent(whole.plan, whole.run)


def images_of_a_folder(things):
    (things.folder / "images").mkdir()
    for number, image in enumerate(things.images.pixels):
        Image.fromarray(image[0].numpy()).save(things.folder / "images" / f"{number}.png")
    data.images(things.folder / "images", held_out=0.5, folder=things.folder / "decoded")


def images_of_cifar10(things):
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name in names:
        (things.folder / f"{name}.bin").write_bytes(bytes(2 * 3073))
    data.cifar10(things.folder, folder=things.folder / "decoded")


def vgg(things):
    vgg16 = torchvision_shim.load("torchvision.models").vgg16

    with torch.random.fork_rng([]):
        weights = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in weights.items()}, things.folder / "vgg.pth")
    features.vgg_lpips(things.folder / "vgg.pth")


class Corners(metrics.Extractor):
    """Four pixels as features, and as logits."""

    name, num_features = "corners", 4

    def forward(self, images):
        found = images[:, 0, ::7, ::7].flatten(1).double()
        return found, found


def graded(things):
    rows = torch.cat([found for found, _ in metrics.embed(things.images.pixels, Corners())])
    moments = metrics.Moments(4).add(rows).statistics("itself")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics.grade(things.images.pixels, Corners(), moments, reference_features=rows)
    metrics.frechet_distance(moments, moments), metrics.inception_score(rows.repeat(2, 1))


def imported_from_the_released_code(things):
    path = checkpoints.export_edm(things.flow, things.folder / "released.pth")
    checkpoints.load_released(path, network().config)


def imported_from_diffusers(things):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    with torch.random.fork_rng([]):
        checkpoints_of_it = things.folder / "diffusers"
        model = networks.DiffusersUNet(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, **blocks)
        model.unet.save_pretrained(checkpoints_of_it)
        DDPMScheduler().save_pretrained(checkpoints_of_it)
    checkpoints.load_diffusers(checkpoints_of_it)(things.x, 0.5)


def in_the_plane(things):
    data = intersections.plane_data()
    x, z = intersections.draw_plane(data, 20, 0)
    exact, generator = flow.RectifiedFlow(data), rng.generator(0, "test")
    intersections.solve(exact.velocity, z, torch.tensor([0.9, 0.1]), 1e-2, 1e-2)
    intersections.irreducible_loss(data, x, 0.5, generator), intersections.excess_loss(exact, data, x, 0.5, generator)
    intersections.regression_residual(x, z, 3)


@pytest.fixture(autouse=True)
def no_figures_left():
    """Pictures that nobody looks at any more."""
    yield
    plots.plt.close("all")


def figures(things):
    line, curve = (
        torch.linspace(0, 1, 5),
        {"a": (torch.linspace(0, 1, 5), torch.rand(5, generator=torch.Generator()), None)},
    )
    points = torch.stack([line, line], dim=1)
    plots.reflow_plane(points, points, points[None], points)
    plots.crossing_plane(points, points[0], points[1], points[2], points[3], 0.5)
    plots.histograms({"norm": {"a": line}}, {"norm": (0.1, 0.9)}, "most")
    plots.over_time({"loss": curve}, logarithmic=["loss"])
    plots.scatter({"a": points}, "x", "y")
    plots.ladder({"one": {"A": [1.0, 2.0]}}, {"one": {"CIFAR-10": {"A": 3.0}}})
    plots.bars({"a": {"b": 1.0}}, "passes")
    plots.published({"GAN": [("a", 1, 2.0)]}, "NFE", "FID")
    contrasts.over_evaluations({"others": {"cd": {1: [2.0], 2: [1.0]}}})
    contrasts.across_scales({"1 NFE": {"laptop": {"cd": [2.0], "F": [1.0]}, "desk": {"F": [0.5, 0.6]}}})
    contrasts.updates({"standard": solvers.in_the_plane("standard")})
    contrasts.differences({"A": things.x}, things.x)


def loaded(things):
    shipped._load.cache_clear()
    return [shipped.load(name) for name in shipped.RECIPES]


def scoped(things):
    with rng.scoped(0, "a purpose"):
        torch.rand(3)


def retrained(things):
    recipe = shipped.RECIPES["digits-perceptual"]
    short = {**recipe, "fit": {**recipe["fit"], "steps": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shipped.RECIPES, "digits-perceptual", short)
        shipped.retrain(["digits-perceptual"], things.folder / "retrained", say=lambda line: None)


CALLS = {
    artifacts.Store: lambda s: artifacts.Store(s.folder).get("step", {}, lambda folder: None),
    digests.code_digest: lambda s: digests.code_digest(timesteps.UShaped),
    identities.identity: lambda s: identities.identity([timesteps.UShaped(3.0), s.x]),
    artifacts.provenance: lambda s: artifacts.provenance(),
    checkpoints.build: lambda s: [checkpoints.build(checkpoints.describe(model)) for model in (s.flow, s.digits)],
    checkpoints.describe: lambda s: checkpoints.describe(s.flow),
    checkpoints.export_edm: lambda s: checkpoints.export_edm(s.flow, s.folder / "flow.pth"),
    checkpoints.load: saved,
    checkpoints.load_any: loaded_by_path,
    checkpoints.load_diffusers: imported_from_diffusers,
    checkpoints.load_edm_pickle: imported_from_edm,
    checkpoints.load_released: imported_from_the_released_code,
    checkpoints.save: saved,
    claims.check: lambda s: claims.check("c01", [0.1, 0.2, 0.3], control=[0.0, 0.1, 0.2]),
    claims.check_lock: lambda s: claims.check_lock(claims.ledger()),
    claims.holm: lambda s: claims.holm({"a": 0.1}),
    claims.locked: lambda s: claims.locked(),
    claims.out_of_scope: lambda s: claims.out_of_scope("c01", None),
    claims.seeds_needed: lambda s: (
        claims.seeds_needed(claims.Rule(above=0), [1.0, 2.0]),
        claims.p_value(claims.Rule(above=0), [1.0, 2.0]),
        claims.visible_effect([1.0, 2.0]),
    ),
    claims.interval: lambda s: claims.interval([1.0, 2.0]),
    claims.judge: lambda s: claims.judge(claims.Rule(above=0), (1, 2)),
    claims.ledger: lambda s: claims.ledger(),
    claims.records: lambda s: claims.records(s.folder),
    results.page: lambda s: (
        results.page(s.folder),
        results.tally(s.folder),
        claims.corrected({}, {}),
        claims.lost({}, {}),
        claims.survives(0.1),
        results.forest({}, {}),
    ),
    commit: lambda s: commit(),
    sizes.asked: lambda s: (sizes.asked(["smoke"]), sizes.taken(["smoke"])),
    claims.skip: lambda s: claims.skip("c22", "a reason"),
    claims.scales: lambda s: claims.scales(s.folder),
    data.Images: lambda s: s.images.batch(3, torch.Generator().manual_seed(0)),
    data.digits: lambda s: data.digits(),
    data.load: lambda s: data.load("digits"),
    data.photos: lambda s: data.photos(8, patches=20),
    data.to_float: lambda s: data.to_float(s.images.pixels),
    data.to_uint8: lambda s: data.to_uint8(s.x),
    EDMPrecond: lambda s: s.denoiser(s.x, 0.5, s.labels),
    denoisers.DiscreteSchedule: lambda s: denoisers.DiscreteSchedule([0.9, 0.5]).noise_label(s.t),
    denoisers.LinearSchedule: lambda s: denoisers.LinearSchedule().noise_label(s.t),
    denoisers.VPPrecond: lambda s: denoisers.VPPrecond(network())(s.x, 0.5, s.labels),
    type(mixture()): lambda s: mixture(torch.float32)(randn(2, 1, 1, 2), 0.5),
    expand: lambda s: expand(0.5, s.x),
    experiment.Experiment: whole_experiment,
    arena.find: contenders,
    likelihood.jacobian: likelihoods,
    doctor.examine: examined,
    sampling.Sampler: lambda s: sampling.Sampler(2)(s.flow, s.z, s.labels),
    sampling.check: lambda s: sampling.check(sampling.Sampler(2), s.flow, s.z, s.labels),
    batches.setting: lambda s: batches.setting("no traceback"),
    features.FeatureLPIPS: lpips_loss,
    features.Classifier: lambda s: features.Classifier()(s.x),
    features.Embedding: lambda s: features.Embedding(s.digits)(s.x),
    flow.RectifiedFlow: lambda s: (s.flow.velocity(s.x, s.t), s.flow.z_prediction(s.x, 0.5)),
    flow.interpolate: lambda s: flow.interpolate(s.x, s.z, s.t),
    metrics.label_agreement: lambda s: metrics.label_agreement(s.x, s.labels, s.digits),
    metrics.straightness: lambda s: metrics.straightness([s.x, s.z], [0, 1]),
    networks.DhariwalUNet: lambda s: networks.DhariwalUNet(8, 1, 1, model_channels=8, channel_mult=[1]).eval()(
        s.x, s.t
    ),
    networks.SongUNet: lambda s: networks.SongUNet(8, 1, 1, model_channels=8, embedding_type="fourier").eval()(
        s.x, s.t
    ),
    networks.DiffusersUNet: imported_from_diffusers,
    networks.paper: lambda s: networks.paper("cifar10", model_channels=4, channel_mult=[1], num_blocks=1),
    networks.zeros: lambda s: networks.zeros((2,), 1, 1),
    pairs.PairDataset: lambda s: (s.pairs[3], s.pairs.batch(torch.arange(4))),
    pairs.Mixture: lambda s: pairs.Mixture(s.pairs, s.pairs, 0.5).draw(3, torch.Generator().manual_seed(0)),
    pairs.generate: lambda s: pairs.generate(s.denoiser, 5, s.folder / "more", num_steps=2),
    costs.Pace: lambda s: costs.measure(Plan(presets.load("smoke")), 1),
    costs.Training: lambda s: costs.Training.of(Plan(presets.load("smoke"))),
    costs.forward_passes: lambda s: costs.forward_passes(costs.Training(1, 1, 1, 1), "reflow"),
    costs.measure: lambda s: costs.measure(Plan(presets.load("smoke")), 1),
    costs.bill: lambda s: [costs.bill(sizes.plan(name)) for name in ("smoke", "paper-cifar10")],
    costs.spent: forecast,
    costs.expected: lambda s: costs.expected(presets.load("smoke")),
    costs.duration: lambda s: costs.duration(100.0),
    costs.forecast: forecast,
    costs.report: forecast,
    costs.size: lambda s: costs.size(100.0),
    costs.step_operations: lambda s: costs.step_operations("cifar10", 32),
    intersections.autocorrelation: lambda s: intersections.autocorrelation(s.z, 3),
    intersections.crossing_noise: lambda s: intersections.crossing_noise(s.z, s.x, s.z, 0.5),
    intersections.draw_plane: in_the_plane,
    intersections.exceedance: lambda s: intersections.exceedance(s.t, s.t),
    intersections.excess_loss: in_the_plane,
    intersections.irreducible_loss: in_the_plane,
    intersections.plane_data: in_the_plane,
    intersections.regression_residual: in_the_plane,
    intersections.solve: in_the_plane,
    metrics.norm_distance: lambda s: metrics.norm_distance(s.z),
    metrics.precision_recall: lambda s: metrics.precision_recall(s.x, s.z, features.Embedding(s.digits), 1),
    pairs.invert: lambda s: pairs.invert(s.flow, s.images.pixels, None, s.folder / "inverted", nfe=2),
    pairs.import_released: lambda s: pairs.import_released(
        *released_pairs(s.folder / "zips", 3)[:2], s.folder / "come"
    ),
    pairs.noise: lambda s: [pairs.noise(0, range(5), (1, 8, 8), version=version) for version in (1, 2)],
    generators.philox: lambda s: generators.philox(0, [1, 2], 5),
    pairs.noise_of_states: lambda s: pairs.noise_of_states(torch.ones(2, 32, dtype=torch.uint8), (1, 8, 8)),
    plots.bars: figures,
    plots.over_evaluations: lambda s: plots.over_evaluations({"Euler": {1: [2.0], 2: [1.0]}}, "error", band=0.5),
    plots.norm_histogram: lambda s: plots.norm_histogram({"a": s.t}, (0.1, 0.9)),
    plots.rounds: lambda s: plots.rounds({"one step": {"F": [1.0, 2.0]}}, {"F": "second"}),
    plots.sheets: lambda s: plots.sheets({"x": s.x}, 2),
    plots.over_training: lambda s: plots.over_training({"one step": {"A → B": {"150 steps": [0.1, 0.2]}}}),
    tables.share: lambda s: (
        tables.share([0.1, 0.2]),
        tables.span([0.1, 0.2]),
        tables.number(0.1),
        tables.device("CPU, 2 threads"),
    ),
    tables.verdicts: lambda s: tables.verdicts({"digits": {"c01": ([0.6, 0.7], [0.0, 0.1])}}),
    tables.by_nfe: lambda s: tables.by_nfe({"Euler": {1: [2.0]}}),
    plots.crossing_plane: figures,
    plots.crossing_statistics: lambda s: plots.crossing_statistics({"noise": s.z}),
    plots.lines: lambda s: plots.lines({"a": (s.t, s.t)}, "loss"),
    plots.histograms: figures,
    plots.ladder: figures,
    plots.over_time: figures,
    plots.published: figures,
    plots.reflow_plane: figures,
    plots.scatter: figures,
    plots.by_nfe: lambda s: plots.by_nfe({"error": {"Euler": {1: [2.0, 3.0]}}}),
    plots.by_seed: lambda s: plots.by_seed({"error": {"A": [1.0, 2.0]}}, {}),
    plots.image_rows: lambda s: plots.image_rows({"x": s.x}),
    plots.loss_curves: lambda s: plots.loss_curves({"A": [engine.History([1, 2], [3.0, 2.0])]}, {"A": "loss"}),
    plots.style: lambda s: plots.style(),
    plots.timestep_densities: lambda s: plots.timestep_densities(s.t, {"U": timesteps.UShaped().pdf(s.t)}),
    layers.downsampled: lambda s: layers.downsampled(s.x, torch.tensor([0.5, 0.5]), 0),
    layers.upsampled: lambda s: layers.upsampled(s.x, torch.tensor([0.5, 0.5])),
    layers.normalised_by_channel: lambda s: layers.normalised_by_channel(s.x, 1, torch.ones(1), torch.zeros(1), 1e-5),
    premetrics.LPIPSHuber: lpips_loss,
    premetrics.LPIPSHuberOverT: lpips_loss,
    premetrics.bind: lpips_loss,
    premetrics.pseudo_huber: lambda s: premetrics.pseudo_huber(s.x, s.z),
    premetrics.squared_l2: lambda s: premetrics.squared_l2(s.x, s.z),
    presets.load: lambda s: presets.load("smoke", {"training.steps": 5}),
    presets.names: lambda s: presets.names(),
    presets.parse: lambda s: presets.parse("1e-3"),
    rng.derive: lambda s: rng.derive(0, "a purpose"),
    rng.fresh: lambda s: torch.rand(3, generator=rng.fresh(None)),
    rng.generator: lambda s: torch.rand(3, generator=rng.generator(0, "a purpose")),
    rng.scoped: scoped,
    samplers.edm_sample: lambda s: samplers.edm_sample(s.denoiser, s.z, 3),
    samplers.edm_sigmas: lambda s: samplers.edm_sigmas(5),
    samplers.generation_times: lambda s: samplers.generation_times(3),
    samplers.edm_integrate: lambda s: samplers.edm_integrate(s.denoiser, s.z, [2.0, 1.0, 0.0], labels=s.labels),
    samplers.edm_invert: lambda s: samplers.edm_invert(s.denoiser, s.x, 2),
    samplers.slerp: lambda s: samplers.slerp(s.x, s.z, 0.3),
    training.losses_over_time: lambda s: training.losses_over_time(s.flow, s.pairs, s.t, premetrics.squared_l2, 3),
    samplers.integrate: lambda s: samplers.integrate(s.flow, s.z, [0.9, 0.1], "heun"),
    samplers.inversion_times: lambda s: samplers.inversion_times(3),
    samplers.invert: lambda s: samplers.invert(s.flow, s.x, 3, "heun"),
    samplers.sample: lambda s: samplers.sample(s.flow, s.z, 3, "heun", "straight"),
    samplers.steps_for: lambda s: samplers.steps_for(3, "heun"),
    shipped.load: loaded,
    shipped.recipe_hash: lambda s: shipped.recipe_hash("digits-teacher"),
    shipped.retrain: retrained,
    shipped.sha256: lambda s: shipped.sha256("digits-teacher"),
    shipped.train: retrained,
    timesteps.Exponential: lambda s: timesteps.Exponential().sample(5),
    timesteps.LogitNormal: lambda s: timesteps.LogitNormal().sample(5),
    timesteps.UShaped: lambda s: timesteps.UShaped().sample(5),
    timesteps.Uniform: lambda s: timesteps.Uniform().sample(5),
    data.cifar10: images_of_cifar10,
    data.images: images_of_a_folder,
    engine.check: lambda s: engine.check(4, engine.Machinery()),
    engine.learning_rate: lambda s: engine.learning_rate(1, 0.1, 2, 3, True),
    sources.fingerprint: lambda s: sources.fingerprint(s.images),
    features.vgg_lpips: vgg,
    pairs.share_done: lambda s: pairs.share_done(s.pairs.folder),
    metrics.embed: graded,
    metrics.frechet_distance: graded,
    metrics.grade: graded,
    metrics.inception_score: graded,
    training.Classification: classifier_training,
    training.Denoising: teacher_training,
    engine.fit: reflow_once,
    training.initial_flow: dropout_training,
    training.Reflow: reflow_once,
}

QUIET = {
    # without numbers: files, folders, bars, messages, signals, and what reads programs or draws the book
    *("rfpp.base." + name for name in ("checks", "downloads", "files", "paths", "processes", "progress")),
    *(
        "rfpp.base.pickles",
        "rfpp.base.torchvision_shim",
        "rfpp.pipeline.places",
        "rfpp.pipeline.syntax",
        "rfpp.pipeline.workers",
        "rfpp.__main__",
        "rfpp.commands",
    ),
    *(
        "rfpp.book" + name
        for name in (
            *(
                "",
                ".benchmarks",
                ".comparisons",
                ".doctor",
                ".live",
                ".pages",
                ".planes",
                ".printing",
                ".site",
                ".status",
            ),
            ".together",
        )
    ),
    # Inception, whose weights are not at hand; the same code on another network is called
    *("rfpp.metrics.inception", "rfpp.pipeline.standard"),
}
ELSEWHERE_ENTIRELY = ("rfpp.studies", "rfpp.base.pickles", "rfpp.doctor")
"""Where every function is called in tests of its own, and those that draw are called above as well."""
ELSEWHERE = {
    "lock",
    "first_few",
    "reader_code",
    "rewritings",
    "inception",
    "find",
    "imported",
    "checked",
    "presentation",
    "in_order",
    "package",
    "share",
    "forest",
}
"""Called where bad input is tried, when the package is imported, or once for digests that are kept."""


def title(what):
    """As tests and messages name a call: by the first thing that it is listed for."""
    return f"{what.__module__.removeprefix('rfpp.')}.{what.__name__}"


DISTINCT = {}
"""Each call once, as several things may share one, with the title of the first of them."""
for what, call in CALLS.items():
    DISTINCT.setdefault(call, title(what))
ROOT = str(Path(rfpp.__file__).parent)


@pytest.fixture(scope="module")
def reached(things, tmp_path_factory):
    """``reached(call)`` makes a call and returns the library's functions that ran, as pairs of file and name.

    The processes of pytest-xdist share what was found in a folder, so that each call is made once. Python's own
    profiler, which is in C, hardly slows a call; a function for ``sys.setprofile`` makes it take several times as long.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "reached"
    folder.mkdir(exist_ok=True)

    def reach(call):
        file = folder / DISTINCT[call]
        if not file.exists():
            with cProfile.Profile(subcalls=False, builtins=False) as profiler:
                call(things)
            ran = [entry.code for entry in profiler.getstats() if hasattr(entry.code, "co_filename")]
            found = sorted({(code.co_filename, code.co_name) for code in ran if code.co_filename.startswith(ROOT)})
            files.write_text(file, json.dumps(found))
        return set(map(tuple, json.loads(file.read_text())))

    return reach


@pytest.mark.parametrize("call", DISTINCT, ids=DISTINCT.get)
def test_a_call_leaves_the_global_generators_alone(untouched, reached, call):
    reached(call)


def test_every_public_function_is_called_above(reached):
    """Whoever adds one adds a call to ``CALLS``, or calls it in one of these. Tests of notebooks run the studies."""
    public = set()
    for module in pkgutil.walk_packages(rfpp.__path__, "rfpp."):
        if module.name not in QUIET and not module.name.startswith(ELSEWHERE_ENTIRELY):
            found = importlib.import_module(module.name)
            for name, thing in vars(found).items():
                if inspect.isfunction(thing) and thing.__module__ == module.name and not name.startswith("_"):
                    public.add((found.__file__, name))
    called = set().union(*map(reached, DISTINCT))
    missed = {(file, name) for file, name in public - called if name not in ELSEWHERE}
    assert not missed, sorted(missed)


def test_the_guard_notices_a_draw():
    """What the tests above rest on."""
    with torch.random.fork_rng([]):
        before = state()
        torch.rand(1)
        assert state() != before
    before = state()
    np.random.rand(1)
    assert state() != before


# Derived seeds


def test_equal_purposes_have_equal_seeds_and_different_ones_do_not():
    """A thousand purposes, no two the same among them (by chance: 1e6 / 2^64)."""
    purposes = [(seed, name, step) for seed in range(10) for name in ("pairs", "reflow") for step in range(50)]
    seeds = [rng.derive(*purpose) for purpose in purposes]
    assert seeds == [rng.derive(*purpose) for purpose in purposes] and len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((0, "train", 1), (0, 1, "train")),
        ((0, "a", "b"), (0, "ab")),
        ((1, "a"), (1 + 2**64, "a")),
        ((0, "a"), (0, "a", 0)),
        ((0, "a", 0), (0, "a", 0, 0)),
        ((0,), (0, 0)),
        ((0, "1"), (0, 1)),
        ((0, "a", 12), (0, "a", 1, 2)),
        ((0, 'a", "b'), (0, "a", "b")),
        ((0, "-1"), (0, -1)),
        ((0, ""), (0,)),
    ],
)
def test_purposes_that_look_alike_are_told_apart(first, second):
    assert rng.derive(*first) != rng.derive(*second)


GOLDEN = {
    (0,): 6197007067532723406,
    (0, "reflow"): 1076161852920124492,
    (0, "reflow", 0): 3876096592459227965,
    (0, "reflow", "0"): 1245219430756592759,
    (2**70, "pairs", -1, "é"): 5998158005995692615,
}
"""What results on disk were made with: another value here makes them all anew, and the stored pairs without noise."""


@pytest.mark.parametrize("purpose", GOLDEN, ids=str)
def test_seeds_stay_what_they_are(purpose):
    assert rng.derive(*purpose) == GOLDEN[purpose]


def test_integers_of_any_kind_are_the_same_purpose():
    assert rng.derive(np.int64(3), "a", np.uint8(7), torch.tensor(5)) == rng.derive(3, "a", 7, 5)


@pytest.mark.parametrize("part", [1.0, None, b"a", ("a",)])
def test_a_purpose_of_another_kind_is_refused(part):
    with pytest.raises(TypeError):
        rng.derive(0, part)


def test_generators_of_a_purpose_draw_the_same():
    first, again, other = (torch.rand(5, generator=rng.generator(0, "x", step)) for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_scoped_code_draws_the_same_every_time_and_even_errors_are_undone(untouched):
    drawn = []
    for _ in range(2):
        with pytest.raises(RuntimeError), rng.scoped(0, "x"):
            drawn.append(torch.rand(5))
            raise RuntimeError
    assert torch.equal(*drawn)


def test_fresh_hands_back_what_it_was_given():
    given = torch.Generator()
    assert rng.fresh(given) is given and rng.fresh(None).initial_seed() != rng.fresh(None).initial_seed()


def test_the_closed_form_of_the_tests_is_deterministic(untouched):
    """The truth that other tests compare with does not draw either."""
    exact = GaussianFlow(torch.zeros(1, 2, 2), 0.5)
    assert torch.equal(exact.carry(randn(2, 1, 2, 2), 0.9, 0.1), exact.carry(randn(2, 1, 2, 2), 0.9, 0.1))
