"""The presets for GPUs, shrunk to a few steps on a CPU: every stage runs, with nothing but their own code paths.

The images are scikit-learn's digits, coloured and enlarged to 32x32, in the files of CIFAR-10's binary version; with
``RFPP_CIFAR10`` set to the real ones, those.
"""

import io
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import edm
import inprocess
import numpy as np
import pytest
import torch
from PIL import Image
from shrunk import LIGHT, LIGHTER, SHRUNK, coloured_digits
from sklearn.datasets import load_digits
from torch.nn import functional
from truth import network

from rfpp import book, metrics, presets
from rfpp import commands as cli
from rfpp.base import torchvision_shim
from rfpp.checkpoints import load
from rfpp.data import load as load_data
from rfpp.data import to_uint8
from rfpp.denoisers import EDMPrecond
from rfpp.experiment import Experiment
from rfpp.networks import DhariwalUNet, SongUNet
from rfpp.pipeline import costs
from rfpp.presets import PresetError
from rfpp.studies import grading


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder like CIFAR-10's, of few images."""
    if os.environ.get("RFPP_CIFAR10"):
        return os.environ["RFPP_CIFAR10"]
    return coloured_digits(tmp_path_factory.mktemp("cifar-10-batches-bin"))


def test_every_stage_of_cifar10(images, tmp_path):
    """Teacher, features, pairs, A, F, G, a third round, grades, forecasts: all are there, and finite."""
    experiment = Experiment("cifar10", {**SHRUNK, "data.path": images}, runs=tmp_path)
    assert experiment.preset.machinery.precision == "bf16"
    plan = experiment.plan.steps()
    titles = [step.title for step in plan]
    assert titles[0] == "train the teacher" and titles.index("train F, seed 0") < titles.index("train G, seed 0")
    before = costs.forecast(experiment.plan, experiment.run, plan)
    assert not any(entry.done for entry in before)
    pace = costs.measure(experiment.plan, repeats=1)
    assert "to do" in costs.report(before, pace) and pace.parameters > 1000 and pace.memory > 0
    assert not list(tmp_path.rglob("manifest.json"))  # a forecast makes nothing

    experiment.train(["A", "F", "G", "third"])
    for config in ("teacher", "A", "F", "G", "third"):
        result = experiment.evaluate(config, nfe=2)
        assert math.isfinite(result.frechet) and 0 <= result.agreement <= 1 and math.isfinite(result.pair_error)
    assert {name: value.agreement >= 0 for name, value in grading.references(experiment).items()} == {
        "real, held out": True, "teacher": True
    }  # fmt: skip
    assert experiment.data.train.shape == (3, 32, 32) and experiment.classes == 10
    x, z, labels = experiment.inverted().batch(torch.arange(4))
    assert torch.equal(to_uint8(x), experiment.data.train.pixels[:4])
    assert torch.equal(labels, experiment.data.train.labels[:4]) and z.isfinite().all()
    flow = load(experiment.flow_file("F"))
    assert flow.denoiser.model.config["dropout"] == presets.load("cifar10").training.dropout
    after = {entry.step.title: entry.done for entry in costs.forecast(experiment.plan, experiment.run, plan)}
    assert after["train G, seed 0"] == 1 and after["train B, seed 0"] == 0 and after["train the teacher"] == 1
    # nothing that only a stopped training needs stays, and no samples
    assert not list(tmp_path.rglob("step-*")) and not list(tmp_path.rglob("samples/shard*"))


def test_the_papers_preset_with_files_in_place_of_downloads(images, tmp_path, monkeypatch):
    """EDM's pickle as teacher, LPIPS on VGG-16, grades on Inception, whose weights here are random ones."""
    vgg16 = torchvision_shim.load("torchvision.models").vgg16

    teacher = EDMPrecond(network(img_resolution=32, in_channels=3, out_channels=3, label_dim=0, attn_resolutions=[16]))
    edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(teacher)})
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        trunk = {name: tensor for name, tensor in vgg16(weights=None).state_dict().items() if name.startswith("feat")}
    torch.save(trunk, tmp_path / "vgg.pth")
    changes = {name: value for name, value in SHRUNK.items() if not name.startswith(("teacher", "features"))}
    changes |= {"training.large_batch": 2, "training.small_batch": 2, "training.steps": 2, "machinery.micro_batch": 1}
    experiment = Experiment(
        "paper-cifar10",
        {
            **changes, "data.path": images, "teacher.file": str(tmp_path / "edm.pkl"),
            "features.vgg": str(tmp_path / "vgg.pth"),
        },
        runs=tmp_path / "runs",
    )  # fmt: skip
    experiment.train(["F"])
    assert experiment.classes == 0 and experiment.noise(3)[1] is None and len(experiment.pairs("train")[0]) == 2
    with pytest.raises(ValueError, match="grades with Inception and has no classifier"):
        _ = experiment.classifier
    assert list(tmp_path.rglob("tensorboard/events*"))
    monkeypatch.setattr(metrics, "inception", lambda weights: Means())
    found = grading.scores(experiment, ["F"], [experiment.sampler(1)])
    assert set(found) == {("teacher", 5), ("teacher", 1), ("F", 1)}
    assert all(math.isnan(each.classifier_score) and math.isfinite(each.frechet) for each in found.values())


class Means(metrics.Extractor):
    """Mean colours as features, and as logits."""

    name, num_features = "means", 3

    def forward(self, images):
        found = images.double().mean(dim=(2, 3))
        return found, found


def test_standard_grades_from_the_command_line(images, tmp_path, monkeypatch, capsys):
    """Graded twice, the second time against the statistics that the first one wrote; numpy's moments of the images."""
    asked = []
    monkeypatch.setattr(metrics, "inception", lambda weights, device="cpu": asked.append(weights) or Means())
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path))
    changes = settings({**SHRUNK, "data.path": images, "features.inception": "https://127.0.0.1:9/mirror.pth"})
    command = ["evaluate", "--preset", "cifar10", "--config", "A", "--standard", "--n", "24", *changes]
    with pytest.warns(UserWarning, match="n=24 images, where published numbers take 50000"):
        assert cli.main(command) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path(shown.splitlines()[-1]).read_text())
    protocol = record["protocol"]
    assert f"FID (not as published) {record['fid']:.2f}" in shown and (protocol["n"], protocol["nfe"]) == (24, 1)
    (reference,) = tmp_path.rglob("reference/*/reference.npz")
    pixels = load_data("cifar10", images).train.pixels.double().mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(np.load(reference)["mu"], pixels.mean(axis=0))
    np.testing.assert_allclose(np.load(reference)["sigma"], np.cov(pixels.T))
    with pytest.warns(UserWarning, match="not comparable"):
        assert cli.main([*command, "--reference", str(reference), "--weights", "https://127.0.0.1:9/other.pth"]) == 0
    again = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert again == {**record, "protocol": {**protocol, "reference": reference.name}}
    assert asked == ["https://127.0.0.1:9/mirror.pth"] * 2 + ["https://127.0.0.1:9/other.pth"]  # two for the moments
    (made,) = tmp_path.rglob("samples/*/pairs.json")
    assert json.loads(made.read_text())["n"] == 24


def archive(path, labelled):
    """Digits in colour at 64x64 as EDM's dataset zip, of three classes or of none."""
    labels = []
    with zipfile.ZipFile(path, "w") as file:
        for number, image in enumerate(load_digits().images[:60]):
            place, buffer = f"00000/img{number:08d}.png", io.BytesIO()
            Image.fromarray(np.kron(image, np.ones((8, 8))).astype(np.uint8) * 15).convert("RGB").save(buffer, "PNG")
            file.writestr(place, buffer.getvalue())
            labels.append([place, number % 3])
        file.writestr("dataset.json", json.dumps({"labels": labels if labelled else None}))
    return str(path)


def published(path, labelled):
    """A small network for 64x64 in EDM's format, ADM with classes."""
    kind, shape = (DhariwalUNet, {"label_dim": 3}) if labelled else (SongUNet, {})
    made = kind(
        64, 3, 3, model_channels=8, channel_mult=[1, 2, 2], num_blocks=1, attn_resolutions=[16], **shape,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    edm.write(path, {"ema": edm.denoiser(EDMPrecond(made))})
    return str(path)


@pytest.mark.parametrize("name", ["paper-afhq", "paper-ffhq", "paper-imagenet64"])
def test_the_presets_of_64_pixels(name, tmp_path, monkeypatch):
    """From an archive in EDM's layout and a teacher in its format, ADM with classes for ImageNet, to a graded flow.
    Mean colours stand in for Inception."""
    labelled = name == "paper-imagenet64"
    monkeypatch.setattr(metrics, "inception", lambda *arguments: Means())
    changes = {key: value for key, value in (SHRUNK | LIGHTER).items() if not key.startswith(("teacher", "features"))}
    changes["data.path"] = archive(tmp_path / "images.zip", labelled)
    changes["teacher.file"] = published(tmp_path / "edm.pkl", labelled)
    monkeypatch.setenv("RFPP_CACHE", str(tmp_path / "cache"))
    experiment = Experiment(name, changes, runs=tmp_path / "runs")
    assert experiment.data.train.shape == (3, 64, 64) and experiment.classes == (3 if labelled else 0)
    assert len(experiment.data.train) == 57 and experiment.preset.machinery.precision in ("fp16", "fp32")
    experiment.train(["A", "D"])
    assert math.isfinite(experiment.evaluate("D").frechet) and math.isnan(experiment.evaluate("D").agreement)
    assert len(experiment.history("D").losses) == 1 and math.isfinite(experiment.history("D").losses[0])
    x, z, known = experiment.inverted().batch(torch.arange(3))
    assert torch.equal(to_uint8(x), experiment.data.train.pixels[:3]) and z.isfinite().all()
    assert labelled == (known is not None)


def test_a_teacher_of_other_images_is_refused(images, tmp_path):
    edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(EDMPrecond(network()))})
    changes = {"data.path": images, "teacher.file": str(tmp_path / "edm.pkl")}
    experiment = Experiment("paper-cifar10", changes, runs=tmp_path)
    with pytest.raises(PresetError, match=r"teacher.file makes images of shape \(1, 8, 8\), but data.name='cifar10'"):
        experiment.pairs("train")


def test_a_teacher_of_other_classes_is_refused(images, tmp_path):
    other = network(img_resolution=32, in_channels=3, out_channels=3, label_dim=7, attn_resolutions=[16])
    edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(EDMPrecond(other))})
    changes = {"data.path": images, "teacher.file": str(tmp_path / "edm.pkl")}
    with pytest.raises(PresetError, match="the teacher knows 7 classes, but data.name='cifar10' has 10; choose"):
        Experiment("paper-cifar10", changes, runs=tmp_path).pairs("train")


@pytest.mark.parametrize("call", ["train", "evaluate"])
def test_networks_that_cannot_be_had_are_missed_before_any_work(images, tmp_path, call):
    """VGG-16 before the pairs are made, Inception before the training."""
    edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(EDMPrecond(network()))})
    nowhere = str(tmp_path / "nowhere.pth")
    changes = {
        "data.path": images, "teacher.file": str(tmp_path / "edm.pkl"),
        "features.vgg": nowhere, "features.inception": nowhere,
    }  # fmt: skip
    experiment = Experiment("paper-cifar10", changes, runs=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere.pth' does not exist; put https://.*(vgg16|inception)"):
        experiment.train(["F"]) if call == "train" else experiment.evaluate("A")
    assert not list(tmp_path.rglob("pairs.json"))


def test_what_is_finished_needs_no_networks(images, tmp_path):
    """Neither LPIPS nor what grades, which may not be there any more; nor a batch that fits."""
    changes = {**SHRUNK, "data.path": images, "training.steps": 1}
    Experiment("cifar10", changes, runs=tmp_path).evaluate("A")
    experiment = Experiment("cifar10", changes, runs=tmp_path)
    experiment.evaluate("A")
    assert not {"perceptual", "embedding", "teacher"} & experiment.__dict__.keys()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"teacher.file": "x.pkl"}, "a teacher needs exactly one of name, file, train"),
        ({"features.kind": "standard"}, "features: kind='standard' does not take train"),
        ({"teacher": {"name": "digits-teacher"}}, "the shipped teacher and features are for digits"),
        ({"machinery.precision": "fp8"}, "machinery.precision='fp8' is unknown; allowed: 'fp32', 'bf16' or 'fp16'"),
        ({"machinery.micro_batch": 0}, "machinery.micro_batch=0"),
        ({"teacher.train.stepz": 1}, "did you mean 'teacher.train.steps'"),
        ({"teacher.train": None, "teacher.train.steps": 1}, "'teacher.train.steps' does not apply: teacher.train is"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, complaint):
    with pytest.raises(PresetError, match=complaint):
        presets.load("cifar10", changes)


def test_a_network_that_cannot_be_made_is_named(images, tmp_path):
    changes = {**SHRUNK, "data.path": images, "teacher.train.network": {"model_chanels": 8}}
    with pytest.raises(PresetError, match="teacher.train.network does not describe a network: .*model_chanels"):
        Experiment("cifar10", changes, runs=tmp_path).train(["A"])


def settings(changes):
    return [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def test_two_processes_from_the_command_line(images, tmp_path):
    """``torchrun -m rfpp evaluate``: what two processes made, one process finds finished."""
    changes = {**SHRUNK, "data.path": images, "machinery.workers": 0}
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "RFPP_RUNS": str(tmp_path), "RFPP_PROGRESS": os.devnull,
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = ["-m", "rfpp", "evaluate", "--preset", "cifar10", "--config", "A", *settings(changes)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    together = subprocess.run(
        [sys.executable, *launcher, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("A, seed 0: ") == 1  # one of them speaks
    files = {path: path.stat().st_mtime for path in tmp_path.rglob("manifest.json")}
    made = {path.parent.parent.name for path in files}
    assert made == {"teacher", "features", "pairs", "flow", "reference", "evaluation"}
    Experiment("cifar10", changes, runs=tmp_path).evaluate("A")
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("manifest.json")} == files


# The notebooks


KINDS = ("cifar10", "paper-cifar10", "paper-afhq", "paper-imagenet64")
"""Each kind of preset: with classes and without, trained and published teachers, small and standard networks."""
EVERY = [
    pytest.param(name, slug, marks=[pytest.mark.xdist_group(name), pytest.mark.every_scale])
    for name in KINDS
    for slug in LIGHT
]
"""What ``make scales`` runs. ``make test`` runs every notebook at the default preset, and compares its outputs."""


class Colours(metrics.Extractor):
    """Mean colours of the quarters of an image, and of the image in place of logits."""

    name, num_features = "colours", 12

    def forward(self, images):
        pooled = functional.adaptive_avg_pool2d(images.double(), 2)
        return pooled.flatten(1), pooled.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def shrunk(images, tmp_path_factory):
    """Settings for each preset: its own data, teacher and features, of the same kind as at full size but small."""
    vgg16 = torchvision_shim.load("torchvision.models").vgg16

    folder = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        torch.save(vgg16(weights=None).features.state_dict(prefix="features."), folder / "vgg.pth")
    standard = {"features.vgg": str(folder / "vgg.pth")}
    plain = EDMPrecond(network(img_resolution=32, in_channels=3, out_channels=3, label_dim=0, attn_resolutions=[16]))
    edm.write(folder / "plain.pkl", {"ema": edm.denoiser(plain)})
    small = {name: value for name, value in SHRUNK.items() if not name.startswith(("teacher", "features"))}
    small |= LIGHTER
    found = {
        "cifar10": {**SHRUNK, **small, "data.path": images},
        "paper-cifar10": {**small, **standard, "data.path": images, "teacher.file": str(folder / "plain.pkl")},
    }
    for name, labelled in (("paper-afhq", False), ("paper-imagenet64", True)):
        found[name] = {
            **small, **standard, "data.path": archive(folder / f"{name}.zip", labelled), "data.held_out": 0.4,
            "teacher.file": published(folder / f"{name}.pkl", labelled),
        }  # fmt: skip
    return found


@pytest.mark.parametrize(("name", "slug"), EVERY)
def test_every_notebook_runs_at_every_kind_of_preset(shrunk, name, slug, monkeypatch, tmp_path_factory):
    """With and without classes, a teacher that is trained or published, small networks or the standard ones.

    Colours stand in for Inception: a Fréchet distance in its 2,048 features takes seconds, and a notebook asks for
    dozens. That Inception's weights can be read and grade images, others show.
    """
    runs = tmp_path_factory.getbasetemp() / "notebooks"
    inprocess.use(monkeypatch)
    monkeypatch.setattr(metrics, "inception", lambda *_: Colours())
    monkeypatch.setenv("RFPP_RUNS", str(runs))
    monkeypatch.setenv("RFPP_CACHE", str(runs / "cache"))
    (executed,) = book.run(name, [slug], {**LIGHT[slug], "settings": shrunk[name]}, terminal=io.StringIO())
    assert executed.is_file()
