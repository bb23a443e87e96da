"""Parts of a reader's own: a premetric, a law, a configuration, a sampler and a dataset, with all that ours have."""

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfpp import commands as cli
from rfpp import data, metrics, samplers
from rfpp.base import processes
from rfpp.configurations import Configuration
from rfpp.engine import Optimisation
from rfpp.experiment import Experiment
from rfpp.pairs import PairDataset
from rfpp.pipeline import sampling
from rfpp.pipeline.identities import Unidentified
from rfpp.premetrics import LPIPSHuber
from rfpp.presets import PresetError
from rfpp.timesteps import TimestepDistribution, Uniform, UShaped


def l1(a, b, x_t=None, t=None):
    """The mean absolute difference."""
    return (a - b).abs().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Power(TimestepDistribution):
    """``p(t) = k t^(k - 1)``."""

    k: float = 2.0

    def pdf(self, t):
        return self.k * t ** (self.k - 1)

    def cdf(self, t):
        return t**self.k

    def icdf(self, p):
        return torch.as_tensor(p) ** (1 / self.k)


class Late(Power):
    """Draws beyond 1."""

    def sample(self, n, generator=None, device=None):
        return 1.5 * torch.rand(n, generator=generator)


@dataclass(frozen=True)
class Jump:
    """One step to the prediction of the image, and ``extra`` ones from a little noise."""

    extra: int = 0

    @property
    def nfe(self):
        return 1 + self.extra

    def __call__(self, flow, z, labels=None):
        return samplers.sample(flow, z, self.nfe, labels=labels)


JUMP = Jump(1)
MINE = Configuration("L1 at late times", timesteps=Power(3.0), premetric=l1, batch=12)
NO_CONFIGURATION = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def experiment(folder):
    return Experiment("smoke", runs=folder)


def test_a_configuration_trains_is_kept_and_is_graded(experiment, folder):
    """It is another flow than C's, found again by a second experiment, and nothing of Table 1 is trained for it."""
    first = experiment.evaluate(MINE)
    again = Experiment("smoke", runs=folder)
    assert again.run.find(again.plan.flow(MINE, 0)) and again.evaluate(MINE) == first
    assert not again.run.find(again.plan.flow("C", 0))
    z, labels = again.noise(5)
    assert not torch.equal(again.flow(MINE).velocity(z, 0.5, labels), again.flow("C").velocity(z, 0.5, labels))
    assert again.history(MINE).steps == [3] and again.snapshots(MINE)


@pytest.mark.parametrize(
    "other",
    [
        Configuration("another power", timesteps=Power(2.0), premetric=l1, batch=12),
        Configuration("another batch", timesteps=Power(3.0), premetric=l1, batch=13),
        Configuration("its own length", timesteps=Power(3.0), premetric=l1, batch=12, schedule=Optimisation(2, 1e-3)),
        Configuration("a perceptual one", timesteps=Power(3.0), premetric=LPIPSHuber, batch=12),
    ],
    ids=str,
)
def test_each_part_tells_flows_apart(experiment, other):
    assert experiment.plan.flow(other, 0).key != experiment.plan.flow(MINE, 0).key
    words = Configuration("other words", timesteps=Power(3.0), premetric=l1, batch=12)
    assert experiment.plan.flow(words, 0).key == experiment.plan.flow(MINE, 0).key


def test_a_configuration_can_start_from_another(experiment):
    """Its training goes on from the other's weights, on that flow's own pairs."""
    further = Configuration("on its own pairs", MINE, premetric=l1, pairs="own", schedule=Optimisation(1, 1e-9))
    z, labels = experiment.noise(5)
    found, start = (experiment.flow(config).velocity(z, 0.5, labels) for config in (further, MINE))
    torch.testing.assert_close(found, start, atol=1e-4, rtol=1e-4)
    assert experiment.plan.flow(further, 0).pairs.name == "own_pairs"


def test_a_sampler_is_graded_and_told_apart(experiment):
    """One step is Euler's; two are others."""
    one, two = experiment.evaluate(MINE, sampler=Jump()), experiment.evaluate(MINE, sampler=Jump(1))
    assert one != two and experiment.evaluate(MINE, sampler=Jump()) == one
    keys = {experiment.plan.grade(MINE, 0, sampler).key for sampler in (Jump(), Jump(1), experiment.sampler())}
    assert len(keys) == 3


@dataclass(frozen=True)
class Wrong:
    """A sampler that does not do what it says."""

    how: str
    nfe: object = 1

    def __call__(self, flow, z, labels=None):
        x = z - flow.velocity(z, 1.0, labels)
        return {
            "two evaluations": lambda: x - 0.1 * flow.velocity(x, 0.5, labels), "too few": lambda: x[:1],
            "not finite": lambda: x * math.nan, "no tensor": lambda: x.tolist(),
            "another time": lambda: x + torch.rand(()),
        }.get(self.how, lambda: x)()  # fmt: skip


WRONG = Wrong("two evaluations")


@pytest.mark.parametrize(
    ("sampler", "complaint"),
    [
        (Wrong("two evaluations"), r"has nfe=1, but evaluates the flow 2 times"),
        (Wrong("too few"), r"makes shape \(1, 1, 8, 8\) of noise of shape \(3, 1, 8, 8\); an image of each"),
        (Wrong("not finite"), "makes images with NaN or infinity"),
        (Wrong("no tensor"), "makes a list of noise"),
        (Wrong("another time"), "makes other images of the same noise; draw random numbers from a seed"),
        (Wrong("", 0), r"sampler=Wrong\(how='', nfe=0\): nfe=0 is too small"),
        (Wrong("", None), "nfe=None is a NoneType; an integer of at least 1"),
    ],
    ids=str,
)
def test_a_sampler_that_does_not_do_what_it_says_is_not_graded(experiment, sampler, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        experiment.evaluate(MINE, sampler=sampler)


@pytest.fixture
def from_here(monkeypatch):
    """The command line finds the parts of this file."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def test_a_sampler_is_named_by_its_import_path(experiment, folder, from_here, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RFPP_RUNS", str(folder))
    here = ["--preset", "smoke", "--config", "teacher", "--seed", "0", "--sampler", "test_own_parts:JUMP"]
    assert cli.main(["evaluate", *here]) == 0
    assert capsys.readouterr().out == f"teacher, seed 0: {experiment.evaluate('teacher', 0, sampler=JUMP)}\n"
    picture = tmp_path / "drawn.png"
    assert cli.main(["sample", *here, "--n", "4", "--out", str(picture)]) == 0 and picture.stat().st_size > 1000


@pytest.mark.parametrize("command", ["evaluate", "sample"])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("JUMP --nfe 2 --times 0.5", "--sampler=test_own_parts:JUMP says how to sample; leave out --nfe, --times, or"),
        ("Jump", "sampler='test_own_parts:Jump' is the class Jump; a value with nfe is needed that makes images"),
        ("NO_CONFIGURATION", "sampler='test_own_parts:NO_CONFIGURATION' is a int; a value with nfe is needed"),
        ("nothing", "sampler='test_own_parts:nothing' cannot be imported: .*; 'my_module:NAME' is needed"),
        ("WRONG", "sampler=.* has nfe=1, but evaluates the flow 2 times"),
    ],
)
def test_no_sampler_is_refused(from_here, capsys, runs, command, options, complaint):
    path, *others = f"test_own_parts:{options}".split()
    here = ["--preset", "smoke", "--config", "teacher", "--seed", "0", "--sampler", path, *others]
    assert cli.main([command, *here]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert not list(runs.rglob("evaluation"))


def test_a_sampler_that_does_not_do_what_it_says_gets_no_published_grades(experiment, monkeypatch):
    """Nor any work, where something else is wrong."""
    monkeypatch.setattr(metrics, "inception", lambda *_: None)
    with pytest.raises(ValueError, match="makes images with NaN"):
        experiment.grades("teacher", [0], Wrong("not finite"))
    monkeypatch.setattr(sampling, "check", None)
    with pytest.raises(ValueError, match="n=2 is too small"):
        experiment.grades("teacher", [0], Wrong("not finite"), n=2)


def test_samples_lie_where_their_noise_does(experiment, monkeypatch):
    """The meta device in place of a GPU: what a sampler leaves on the CPU there would fail after the training."""

    def at_home(flow, z, labels=None):
        flow.velocity(torch.zeros(3, 1, 8, 8), 1.0, labels if labels is None else torch.zeros(3, dtype=torch.long))
        return torch.zeros(3, 1, 8, 8)

    at_home.nfe = 1
    z, labels = experiment.noise(3)
    flow = experiment.flow("teacher")
    monkeypatch.setattr(processes, "device", lambda: torch.device("cpu"))  # also where there is a GPU
    sampling.check(at_home, flow, z, labels)
    monkeypatch.setattr(processes, "device", lambda: torch.device("meta"))
    with pytest.raises(ValueError, match="images on cpu of noise on meta; return them on"):
        sampling.check(at_home, flow, z, labels)


def test_a_dataset_makes_pairs_flows_and_grades_of_its_own(folder):
    """The digits, mirrored: another key of what depends on the images, and none where it does not."""
    digits = data.digits()
    mirrored = [data.Images(part.pixels.flip(-1), part.labels) for part in (digits.train, digits.held_out)]
    own = Experiment("smoke", runs=folder, dataset=data.Dataset("mirrored digits", *mirrored, classes=10))
    ours = Experiment("smoke", runs=folder)
    assert own.evaluate("A").frechet != ours.evaluate("A").frechet
    assert own.plan.pairs().key == ours.plan.pairs().key and own.plan.inverted().key != ours.plan.inverted().key
    assert own.data.name == "mirrored digits" and own.folder != ours.folder


def test_the_digits_features_do_not_grade_colours(folder):
    digits = data.digits()
    parts = [data.Images(part.pixels.expand(-1, 3, -1, -1), part.labels) for part in (digits.train, digits.held_out)]
    with pytest.raises(PresetError, match=r"features.kind='shipped' are networks for grey images, but .*\(3, 8, 8\)"):
        Experiment("smoke", runs=folder, dataset=data.Dataset("coloured digits", *parts, classes=10))


# Several ways in


def test_the_command_line_takes_an_import_path(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    config = "test_own_parts:MINE"
    assert cli.main(["train", "--preset", "smoke", "--seed", "0", "--config", config]) == 0
    assert f"{config}, seed 0: " in capsys.readouterr().out
    assert cli.main(["train", "--preset", "smoke", "--config", "test_own_parts:NO_CONFIGURATION"]) == 2
    assert "is a int; a rfpp.configurations.Configuration is needed" in capsys.readouterr().err
    assert cli.main(["train", "--preset", "smoke", "--config", "nowhere:MINE"]) == 2
    assert "config='nowhere:MINE' cannot be imported" in capsys.readouterr().err


def test_two_processes_train_a_readers_configuration_and_another_method(tmp_path, monkeypatch):
    """As one process does, to rounding: the weights after three steps of the one, and two of MeanFlow."""
    file = tmp_path / "mine.py"
    source = Path(__file__).read_text().partition("MINE = ")[0]
    file.write_text(f'{source}\nMINE = Configuration("mine", timesteps=Power(3.0), premetric=l1, batch=12)\n')
    command = ["train", "--preset", "smoke", "--seed", "0", "--config", "mine:MINE", "meanflow-pairs"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rfpp"]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "", "RFPP_RUNS": str(tmp_path / "two"),
    }  # fmt: skip
    subprocess.run(
        [*torchrun, *command], check=True, env=environment, capture_output=True, cwd=Path(__file__).parents[1]
    )
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "one"))
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(command) == 0
    del sys.modules["mine"]  # a name as short as this belongs to nobody
    found = []
    for name in ("one", "two"):
        made = {path.parents[1].name: load_file(path) for path in tmp_path.glob(f"{name}/smoke/*/*/model.safetensors")}
        found.append({f"{kind}: {part}": value for kind, of in made.items() for part, value in of.items()})
    assert {name.partition(":")[0] for name in found[0]} == {"flow", "generator"} and found[0].keys() == found[1].keys()
    for name, weights in found[0].items():
        # Adam divides a gradient by its size: of one that is hardly above rounding it makes a part of a step of 1e-3.
        torch.testing.assert_close(found[1][name], weights, atol=1e-4, rtol=1e-4)


# What is refused


def negative(a, b, x_t=None, t=None):
    return -l1(a, b)


def scalar(a, b, x_t=None, t=None):
    return l1(a, b).mean()


def failing(a, b, x_t=None, t=None):
    return a @ 3


def blind(a, b, x_t=None, t=None):
    return l1(a, b.detach())


class Weighted(torch.nn.Module):
    """A premetric with a weight that nobody trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, a, b, x_t=None, t=None):
        return self.weight**2 * l1(a, b)


class Crooked(Uniform):
    """A law whose draws are others than its distribution says."""

    def icdf(self, p):
        return p**3


@pytest.mark.parametrize(
    ("parts", "error", "complaint"),
    [
        ({"premetric": negative}, ValueError, "premetric=negative gives -.* numbers of at least 0 are needed"),
        ({"premetric": scalar}, ValueError, r"premetric=scalar gives shape \(\) for 4 images; .* shape \(B,\)"),
        ({"premetric": failing}, ValueError, "premetric=failing fails on images of shape"),
        ({"premetric": blind}, ValueError, "premetric=blind passes no gradient to its second argument"),
        ({"premetric": Weighted()}, ValueError, "has parameters, which no step would train"),
        ({"timesteps": Crooked()}, ValueError, r"timesteps=Crooked.*: cdf\(icdf\(p\)\) is up to 0.38 away from p"),
        ({"premetric": lambda a, b, x_t, t: l1(a, b)}, Unidentified, "a lambda .* cannot be identified"),
        ({"premetric": 3}, TypeError, "premetric=3 is a int; a callable"),
        ({"timesteps": Late()}, ValueError, r"timesteps=Late.* draws times from .* to 1\..*; all must lie in \[0, 1\]"),
        ({"timesteps": "uniform"}, TypeError, "timesteps='uniform' is a str"),
        ({"start": "techer"}, ValueError, "start='techer' is unknown; .*did you mean 'teacher'"),
        ({"pairs": "own"}, ValueError, "pairs='own' needs a Configuration whose flow makes them, but start='teacher'"),
        ({"batch": 0}, ValueError, "batch=0 is too small"),
        ({"schedule": "long"}, ValueError, "schedule='long' is unknown"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_work(tmp_path, parts, error, complaint):
    with pytest.raises(error, match=complaint):
        Experiment("smoke", runs=tmp_path).train(Configuration("mine", **parts), [0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.train, "data is a Images; a rfpp.data.Dataset is needed"),
        (lambda d: data.Dataset("x", data.Images(d.train.pixels.float(), d.train.labels), d.held_out, 10), "8-bit"),
        (
            lambda d: data.Dataset("x", d.train, d.held_out, 9),
            "labels lie between 0 and 9; data.classes=9 allows 0 to 8",
        ),
        (lambda d: data.Dataset("x", data.Images(d.train.pixels, d.train.labels[:5]), d.held_out, 10), "labels are"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(tmp_path, change, complaint):
    with pytest.raises((TypeError, ValueError), match=complaint):
        Experiment("smoke", runs=tmp_path, dataset=change(data.digits()))


def test_datasets_are_told_apart_by_every_image(tmp_path):
    """The keys of pairs that do not depend on images stay as they are."""
    pixels, labels = torch.zeros(3000, 1, 8, 8, dtype=torch.uint8), torch.arange(3000) % 10
    keys = set()
    for changed in (None, 1, 2999):
        other = pixels.clone()
        if changed is not None:
            other[changed] = 255
        images = data.Images(other, labels)
        plan = Experiment("smoke", runs=tmp_path, dataset=data.Dataset("x", images, images, 10)).plan
        keys.add((plan.inverted().key, plan.pairs().key))
    assert len(keys) == 3 and len({key for _, key in keys}) == 1


def test_real_images_without_the_last_class_mix_with_pairs_of_all_classes(tmp_path):
    digits = data.digits()
    rows = digits.train.labels < 9
    train = data.Images(digits.train.pixels[rows], digits.train.labels[rows])
    experiment = Experiment("smoke", runs=tmp_path, dataset=data.Dataset("x", train, digits.held_out, 10))
    experiment.train("G-half", [0])
    assert experiment.flow("G-half", 0).denoiser.label_dim == 10
    inverted = PairDataset(experiment.run.get(experiment.plan.inverted()).folder)
    assert inverted.classes == 9


def wrong():
    return {"train": []}


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("wrong", "returned what does not fit: data is a dict; a rfpp.data.Dataset is needed"),
        ("NO_CONFIGURATION", "is a int; a function is needed"),
    ],
)
def test_a_function_that_makes_no_dataset_is_refused(tmp_path, monkeypatch, capsys, function, complaint):
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(Path(__file__).parent)
    path = f"test_own_parts:{function}"
    settings = ["--set", "data.name=custom", "--set", f"data.function={path}"]
    assert cli.main(["train", "--preset", "smoke", *settings]) == 2
    assert capsys.readouterr().err == f"error: data.function={path!r} {complaint}\n"
    assert not list(tmp_path.iterdir())


def test_a_law_of_table_1_is_no_readers():
    assert Configuration("C again") == Configuration("words") and str(Configuration("C again")) == "C"
    assert str(MINE) == "L1 at late times" and Configuration("x").timesteps == UShaped(4.0)
