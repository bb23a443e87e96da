"""What a study measures is computed once, for these arguments and this code, and comes back as it was."""

import copy
import inspect
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from test_digests import NO_RESULT, beyond, executed
from truth import network

from rfpp import checkpoints, data
from rfpp.configurations import TEACHER
from rfpp.denoisers import EDMPrecond, GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset
from rfpp.pipeline import digests, identities, measurements, networks, places, shipped, workers
from rfpp.pipeline.identities import Unidentified
from rfpp.studies import (
    arena,
    crossings,
    exact_flow,
    few_steps,
    inversion,
    likelihoods,
    losses,
    photographs,
    solvers,
    targets,
)
from rfpp.studies.solvers import Start


@pytest.fixture
def experiment():
    return Experiment("smoke")


@dataclass(frozen=True)
class Foreign:
    value: float


def noted(place, *values):
    """Its arguments, after a line in a file."""
    with open(place, "a") as file:
        file.write("computed\n")
    return values


def noted_otherwise(place, *values):
    """The same with other code."""
    with open(place, "a") as file:
        file.write("computed\n")
    return list(values)


def count(place):
    return len(place.read_text().splitlines()) if place.exists() else 0


def test_it_is_computed_once_for_its_arguments_and_its_code(experiment, tiny_flow, tmp_path):
    place, z = tmp_path / "calls", torch.arange(3.0)
    for number in (1, 1):
        assert experiment.kept(noted, str(place), number, "a") == (1, "a")
    assert count(place) == 1
    assert Experiment("smoke").kept(noted, str(place), 1, "a") == (1, "a") and count(place) == 1
    experiment.kept(noted, str(place), 2, "a")
    experiment.kept(noted_otherwise, str(place), 1, "a")
    assert count(place) == 3
    for value in (z, z.clone(), z + 1):
        experiment.kept(noted, str(place), value)
    assert count(place) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GaussianMixtureDenoiser(torch.zeros(2, 3), 0.1), GaussianMixtureDenoiser(torch.zeros(2, 3), 2.0)),
        (EDMPrecond(network(), 0.5), EDMPrecond(network(), 0.9)),
        (torch.nn.Sequential(EDMPrecond(network(), 0.5)), torch.nn.Sequential(EDMPrecond(network(), 0.9))),
    ],
    ids=["mixtures", "preconditioned", "inside others"],
)
def test_networks_are_told_apart_by_their_settings(one, other):
    """They have the same weights and the same name; another mode, as for training, makes no difference."""
    assert identities.identity(one) != identities.identity(other)
    assert identities.identity(one) == identities.identity(copy.deepcopy(one).train())


def test_a_network_may_hold_what_python_is_made_of():
    """Functions of packages, and sets; not what differs from call to call."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 8, activation="gelu")
    one, other = torch.nn.Identity(), torch.nn.Identity()
    one.act, other.act = torch.tanh, torch.sigmoid
    one.kinds = other.kinds = {"b", "a"}
    assert identities.identity(layer) == identities.identity(copy.deepcopy(layer))
    assert identities.identity(one) != identities.identity(other) == identities.identity(copy.deepcopy(other))
    one.act = [].append
    with pytest.raises(Unidentified):
        identities.identity(one)


def test_pairs_are_told_apart_by_what_is_in_their_folder(experiment, tmp_path):
    pairs = experiment.pairs("held_out")
    before = identities.identity(pairs)
    pairs.read(torch.arange(3))
    assert identities.identity(pairs) == before
    copied = tmp_path / "copied"
    shutil.copytree(pairs.folder, copied)
    assert identities.identity(PairDataset(copied)) == before
    (copied / "manifest.json").unlink()  # when and where they were made
    assert identities.identity(PairDataset(copied)) == before
    other = next(copied.glob("shard-*"))
    other.write_bytes(other.read_bytes()[:-1] + b"?")
    assert identities.identity(PairDataset(copied)) != before


def test_an_experiment_is_told_apart_by_the_weights_of_its_teacher(tmp_path):
    """A file may be replaced while the process that read it goes on; what it then makes has another key, and is new."""
    file = tmp_path / "teacher.safetensors"
    shutil.copy(shipped.ASSETS / "digits-teacher.safetensors", file)
    settings, images = {"teacher": {"file": str(file)}}, data.load("digits")
    experiment = Experiment("smoke", settings, dataset=images)
    before, pairs = experiment.identity(), experiment.pairs("held_out")
    model = copy.deepcopy(shipped.load("digits-teacher"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    checkpoints.save(model, file)
    again = Experiment("smoke", settings, dataset=images)
    assert again.identity() != before and again.plan.teacher.identity() != [shipped.sha256("digits-teacher")]
    rows = torch.arange(4)
    assert not torch.equal(again.pairs("held_out").read(rows)["images"], pairs.read(rows)["images"])


def test_a_folder_of_weights_is_told_apart_by_its_files(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    before = networks.Published(str(folder)).identity()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "download.lock").touch()
    assert networks.Published(str(folder)).identity() == before
    (folder / "unet" / "config.json").write_text('{"a": 1}')
    assert networks.Published(str(folder)).identity() != before
    assert networks.Published("https://example.org/a.pkl").identity()[0] == "https://example.org/a.pkl"


def test_flows_and_experiments_are_told_apart_by_what_they_are(experiment, tiny_flow, tmp_path):
    def identity(argument):
        return measurements.Measurement(noted, (argument,)).key

    other = RectifiedFlow(type(tiny_flow.denoiser)(_changed(tiny_flow.denoiser.model)))
    assert identity(tiny_flow) == identity(tiny_flow) != identity(other)
    assert identity(experiment) == identity(Experiment("smoke"))
    assert identity(experiment) != identity(Experiment("smoke", {"training.steps": 4}))
    assert identity(experiment) != identity(Experiment("laptop"))


def _changed(network):
    same = type(network)(**network.config)
    same.load_state_dict({name: value + name.endswith("aux_conv.bias") for name, value in network.state_dict().items()})
    return same.eval()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], 3: (math.inf, [])},
        {0.25: {"deep": [(1,), ()]}},
        (),
    ],
    ids=str,
)
def test_a_result_comes_back_as_it_was(experiment, tmp_path, value):
    first, again = (experiment.kept(noted, str(tmp_path / "calls"), value) for _ in range(2))
    assert first == again == (value,) and count(tmp_path / "calls") == 1


def test_tensors_and_dataclasses_come_back_as_they_were(experiment, tmp_path):
    start = Start(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).T, torch.tensor([1, 2]))
    ((again, none),) = experiment.kept(noted, str(tmp_path / "calls"), (start, Start(torch.zeros(0), None)))
    assert isinstance(again, Start) and torch.equal(again.z, start.z) and torch.equal(again.labels, start.labels)
    assert again.labels.dtype == torch.int64 and none.labels is None and none.z.shape == (0,)


def test_what_cannot_be_kept_is_refused(experiment, tmp_path):
    with pytest.raises(TypeError, match="holds a Foreign, which cannot be stored; allowed: numbers, .* and lists"):
        experiment.kept(noted, str(tmp_path / "calls"), Foreign(1.0))
    with pytest.raises(Unidentified, match="a lambda"):
        experiment.kept(lambda: 1)
    assert not list(tmp_path.rglob("measurement/*/manifest.json"))


def test_a_damaged_one_is_computed_again(experiment, tmp_path):
    place = tmp_path / "calls"
    experiment.kept(noted, str(place), 1)
    (value,) = tmp_path.rglob("value.json")
    value.write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        assert Experiment("smoke").kept(noted, str(place), 1) == (1,)
    assert count(place) == 2


def whereabouts(experiment, number):
    """A number, whether this is a worker, and what came with the experiment."""
    return number, workers.is_one(), [name for name in ("data", "teacher") if name in vars(experiment)]


def test_several_are_measured_side_by_side(tmp_path):
    """In workers, to which no network travels; one alone is measured here."""
    experiment = Experiment("smoke", runs=tmp_path, jobs=2)
    assert experiment.teacher and experiment.data
    found = experiment.kept_each(whereabouts, {name: (experiment, k) for k, name in enumerate("ab")})
    assert found == {"a": (0, True, []), "b": (1, True, [])}
    assert experiment.kept(whereabouts, experiment, 2) == (2, False, ["data", "teacher"])


def test_side_by_side_the_bits_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "cores", lambda: 2 * torch.get_num_threads())  # each worker has as many as this process
    found = []
    for jobs in (1, 2):
        experiment = Experiment("smoke", runs=tmp_path / f"{jobs}", jobs=jobs)
        calls = {seed: (experiment, seed, 20) for seed in (0, 1)}
        found.append(experiment.kept_each(crossings.overlap, calls))
    for one, other in zip(*(each.values() for each in found), strict=True):
        assert torch.equal(one.ordinary, other.ordinary) and torch.equal(one.missed, other.missed)
        shares = [(each.share, each.fresh, each.of_any_class, each.control) for each in (one, other)]
        assert shares[0] == shares[1]


def test_likelihoods_are_kept_one_by_one(tmp_path):
    experiment = Experiment("smoke", runs=tmp_path)
    setting = likelihoods.setting(experiment, 2, 0.1)
    found = likelihoods.estimates(experiment, [TEACHER, "A"], [0, 1], setting, 2)
    for config, of_seeds in found.items():
        for seed, each in enumerate(of_seeds):
            computed = likelihoods.solved(experiment, config, seed, setting, 2)
            assert torch.equal(each.total, computed.total) and each.evaluations == computed.evaluations
    assert len(list(tmp_path.rglob("measurement/*/manifest.json"))) == 4


@pytest.mark.parametrize("name", ["subprocess:Popen", "tests.test_measurements:Foreign", "rfpp.data:load"])
def test_only_dataclasses_of_the_package_are_made_from_a_file(name):
    with pytest.raises(ValueError, match=r"not a dataclass of rfpp|cannot be imported"):
        measurements._put_together(json.loads(json.dumps({name: {"mapping": []}})), {})


def asked(experiment):
    """What chapters keep, in small."""
    teacher, flow = (experiment.flow(name) for name in (TEACHER, "C"))
    start, images = Start(*experiment.noise(8)), experiment.data.train
    trips = inversion.RoundTrips(experiment, [0], inversion.real_images(experiment, 20))
    coupled, (choosing, judging) = targets.couplings(experiment, 0, 8), few_steps.split(experiment, 4)
    setting, (_, patch) = likelihoods.setting(experiment, 2, 0.1), photographs.patches([4], 20).popitem()
    blended = {"blend": {2: few_steps.uniform(2, 0.999, 0.5)}}
    return [
        (solvers.errors, experiment, teacher, {"Euler": [experiment.sampler(1)]}, start),
        (solvers.straightness, experiment, flow, start),
        (inversion.reconstruction_errors, trips, [2]),
        (targets.spreads, experiment, coupled, [0.5]),
        (targets.in_the_middle, experiment, {0: coupled}),
        (targets.accords, experiment, {0: coupled}, 2),
        (losses.of_teacher, experiment, 4),
        (exact_flow.measure, images, 0, 4, 3, 2, 0.3),
        (exact_flow.terms, exact_flow.Independent(exact_flow.subset(images, 0, 4)), 0, 3, [0.5]),
        (crossings.overlap, experiment, 0, 20),
        (crossings.terms, experiment, 0, [0.5], 12),
        (photographs.arrivals, patch, 0, 3, [0.5]),
        (photographs.quantities, patch, [0], 20, [0.5]),
        (losses.squared_losses, experiment, "A", [0], 4),
        (arena.coverage, experiment, ["F", "meanflow", "ct"], [0], [1]),
        (few_steps.chosen, experiment, flow, choosing, [2], 1),
        (few_steps.judge, [flow], judging, blended),
        (likelihoods.solved, experiment, TEACHER, 0, setting, 2),
        (likelihoods.few_evaluations, experiment, TEACHER, 0, setting.first(1), [2], 0),
        (likelihoods.solved, experiment, TEACHER, 0, setting.first(1)),
    ]


def reached_from(value):
    """The definitions that an argument's key has."""
    if isinstance(value, Experiment):
        return set(digests.reached(Experiment))
    if isinstance(value, torch.nn.Module):
        return set(digests.reached(*(type(part) for part in value.modules() if digests.is_own(type(part)))))
    if isinstance(value, Mapping):
        return reached_from(list(value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(reached_from, value))
    if inspect.isfunction(value):
        return set(digests.reached(value))
    if is_dataclass(value):
        return set(digests.reached(type(value))).union(*(reached_from(getattr(value, f.name)) for f in fields(value)))
    if digests.is_own(type(value)):
        return set(digests.reached(type(value))) | reached_from(vars(value))
    return set()


def test_all_that_a_measurement_runs_is_in_its_key(experiment):
    """Whatever is executed is among the definitions of the function, of its arguments, or of the experiment."""
    for function, *arguments in asked(experiment):
        again = experiment.kept(function, *arguments)  # trains what it needs, which has keys of its own
        value = []
        seen = executed(lambda of=function, given=arguments, into=value: into.append(of(*given)))
        known = reached_from([function, *arguments]) | beyond()
        missing = {name for name in seen - known if not called(name) & NO_RESULT}
        assert not missing, f"{function.__name__}: {sorted(missing)}"
        assert repr(again) == repr(value[0]), function.__name__


def called(name):
    return {name, name.partition(":")[0]}


def test_another_network_makes_another_key(experiment, monkeypatch):
    """Weights and names may be the same: the code of all parts counts."""
    flow = experiment.flow(TEACHER)
    monkeypatch.setattr(identities, "code_digest", lambda *roots: sorted(root.__name__ for root in roots))
    parts = identities.identity(flow)["code"]
    assert {"EDMPrecond", "SongUNet", "RectifiedFlow"} <= set(parts)
