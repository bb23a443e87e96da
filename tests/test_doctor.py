"""Each damage is found by its own check and by no other one; sound pairs and trainings are let be."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch.optim.swa_utils import AveragedModel
from truth import randn, released_pairs

from rfpp import commands as cli
from rfpp import doctor, presets
from rfpp.base import paths
from rfpp.book import doctor as page
from rfpp.doctor import Pairs, curves, of_pairs, of_trainings
from rfpp.doctor.findings import FOUND, SKIPPED, Finding
from rfpp.engine import Optimisation
from rfpp.engine.machinery import ema_update
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset
from rfpp.pairs.store import fill
from rfpp.pipeline.sampling import Sampler

ROOT = Path(__file__).resolve().parents[1]
CHANCE = 1e-6
"""Of a statistical test here to fail without a reason."""
SMALL = {
    "pairs.train": 128, "pairs.held_out": 64, "pairs.num_steps": 12, "pairs.per_seed": True, "training.steps": 10,
    "machinery.log_every": 1, "machinery.save_every": 1, "machinery.keep_every": 1,
}  # fmt: skip
"""Smoke with more steps of the teacher: with its own four, too large an error is found, as it is below."""


def found(findings):
    """The checks that found something."""
    return [finding.check for finding in findings if finding.status == FOUND]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def experiment(runs):
    """A tiny run of the shipped teacher: pairs and F of three seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFPP_JOBS", "1")
        made = Experiment("smoke", {**SMALL, "seeds": [0, 1, 2]}, runs)
        made.train("F")
        made.pairs("held_out")
    return made


@pytest.fixture(scope="module")
def pairs(experiment):
    return doctor.read(experiment.pairs("train", 0).folder)


@pytest.fixture(scope="module")
def training(experiment):
    return doctor.of_experiment(experiment, "F", 0)


@pytest.fixture
def quick(training):
    """The training without a teacher, who takes long and has nothing to say of its flow."""
    return replace(training, teacher=None, pairs=replace(training.pairs, teacher=None))


# Sound ones


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shipped_teachers_pairs_are_sound(experiment, seed):
    made = doctor.read(experiment.pairs("train", seed).folder)
    findings = doctor.examine(made)
    assert doctor.is_sound(findings) and not [each for each in findings if each.status == SKIPPED]
    assert len(made) == 128 and made.teacher is not None and made.num_steps == 12


def test_a_training_on_them_is_sound(training):
    findings = doctor.examine(training)
    assert doctor.is_sound(findings)
    made = {each.check for each in findings if each.status != SKIPPED}
    assert {"files", "alignment", "teacher error", "enough pairs", "direction", "average"} <= made


def test_alarms_are_as_rare_as_is_said(monkeypatch):
    """With a rate of 5 % in place of 1e-4, over 200 sets of sound noise: between the quantiles of the binomial law.

    The norms are compared after their scale was estimated, which makes alarms rarer, so only the upper one counts.
    """
    monkeypatch.setattr(of_pairs, "ALPHA", 0.05)
    sets, counts = 200, {}
    for seed in range(sets):
        labels = torch.randint(5, (60,), generator=torch.Generator().manual_seed(seed))
        findings = [*of_pairs._noise(randn(60, 1, 4, 4, seed=seed), False), *of_pairs._labels(labels, 5)]
        for finding in findings:
            counts[finding.check] = counts.get(finding.check, 0) + (finding.status == FOUND)
    low, high = stats.binom.ppf([CHANCE, 1 - CHANCE], sets, 0.05)
    for check in ("noise mean", "noise variance", "noise correlation", "class balance"):
        assert low <= counts[check] <= high, check
    assert counts["noise norms"] <= high and counts["noise repeated"] == counts["labels"] == 0


def test_unrelated_rows_correlate_like_standard_normal_numbers():
    """Images of any law, here a very skew one: Kolmogorov's distance over 400 sets stays below its quantile."""
    x = randn(400, 30, 1, 3, 3).exp()
    values = [of_pairs.alignment(images, randn(30, 1, 3, 3, seed=seed)) for seed, images in enumerate(x, start=1)]
    assert stats.kstest(values, "norm").pvalue > CHANCE


# Damaged pairs


def lost(x, z, labels):
    """One image is lost: those after it move up."""
    return torch.cat([x[:60], x[61:], x[60:61]]), z, labels


def with_value(tensor, place, value):
    changed = tensor.clone()
    changed[place] = value
    return changed


DAMAGES = {
    "NaN": ("finite", lambda x, z, y: (with_value(x, (3, 0, 0, 0), math.nan), z, y)),
    "infinity": ("finite", lambda x, z, y: (x, with_value(z, (3, 0, 0, 0), math.inf), y)),
    "exchanged": ("swapped", lambda x, z, y: (z, x, y)),
    "offset": ("noise mean", lambda x, z, y: (x, z + 0.15, y)),
    "offset of one pixel": ("noise mean", lambda x, z, y: (x, with_value(z, (..., 0, 0), z[..., 0, 0] + 0.8), y)),
    "too wide": ("noise variance", lambda x, z, y: (x, 1.1 * z, y)),
    "too narrow": ("noise variance", lambda x, z, y: (x, 0.9 * z, y)),
    "on a sphere": ("noise norms", lambda x, z, y: (x, z / z.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 8, y)),
    "smeared": ("noise correlation", lambda x, z, y: (x, (z + 0.1 * z.roll(1, 3)) / math.sqrt(1.01), y)),
    "a seed twice": (
        "noise repeated",
        lambda x, z, y: (torch.cat([x, x[:10]]), torch.cat([z, z[:10]]), torch.cat([y, y[:10]])),
    ),
    "8-bit pixels": ("pixel range", lambda x, z, y: (127.5 * x + 127.5, z, y)),
    "pixels from 0 to 1": ("pixel range", lambda x, z, y: (0.5 * x + 0.5, z, y)),
    "not clamped": ("pixel range", lambda x, z, y: (1.2 * x, z, y)),
    "all blank": ("constant images", lambda x, z, y: (torch.zeros_like(x) - 1, z, y)),
    "blank": ("constant images", lambda x, z, y: (with_value(x, 50, 0.0), z, y)),
    "shifted by one": ("alignment", lambda x, z, y: (x.roll(1, 0), z, y)),
    "shuffled": (
        "alignment",
        lambda x, z, y: (x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))], z, y),
    ),
    "an image lost": ("alignment", lost),
    "labels from 1": ("labels", lambda x, z, y: (x, z, y + 1)),
    "uneven": ("class balance", lambda x, z, y: (x, z, y * (y < 6))),
    "another's labels": ("teacher error", lambda x, z, y: (x, z, (y + 1) % 10)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_found_by_its_own_check(pairs, name):
    check, damage = DAMAGES[name]
    x, z, labels = damage(pairs.x, pairs.z, pairs.labels)
    teacher = pairs.teacher if check == "teacher error" else None  # it takes long, and is tried above
    findings = doctor.examine(replace(pairs, x=x, z=z, labels=labels, teacher=teacher))
    assert found(findings) == [check]
    (line,) = (str(finding) for finding in findings if finding.status == FOUND)
    assert "expected" in line and ". To do: " in line and "\n" not in line


def test_a_wrong_sign_is_called_so(pairs):
    findings = doctor.examine(replace(pairs, x=-pairs.x, teacher=None))
    (line,) = (str(finding) for finding in findings if finding.status == FOUND)
    assert "alignment" in line and "change the sign of x or of z" in line


def test_too_few_steps_of_the_teacher_are_found(runs, monkeypatch):
    """Heun's four steps of smoke are far too few; nothing else is wrong with these pairs."""
    made = doctor.read(Experiment("smoke", runs=runs).pairs("train").folder)
    findings = doctor.examine(made)
    assert found(findings) == ["teacher error"]
    assert "make the pairs with more than 4 steps" in str(findings[-1])


def test_a_slip_shows_wherever_it_begins(pairs):
    """Up to the last block; in it, it may hide among sound rows."""
    for start in (0, 40, 70, 96):
        x = torch.cat([pairs.x[:start], pairs.x[start:].roll(1, 0)])
        assert found(doctor.examine(replace(pairs, x=x, teacher=None))) == ["alignment"], start


def test_pairs_without_classes_have_no_checks_of_them():
    z = randn(64, 3, 6, 6)
    smooth = (z + z.roll(1, 2) + z.roll(1, 3) + z.mean(dim=1, keepdim=True)).clamp(-1, 1)
    findings = doctor.examine(Pairs(smooth, z))
    assert doctor.is_sound(findings)
    assert not {"labels", "class balance"} & {each.check for each in findings}


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_neighbours_are_those_of_every_side(dim):
    """``(a + c b) / (1 + c^2)^(1/2)`` of white ``a`` and its neighbour ``b`` correlates by ``c / (1 + c^2)``."""
    white = randn(3000, 4, 5, 5)
    value, bound = of_pairs.neighbours(white + 0.3 * white.roll(1, dim))
    assert value == pytest.approx(0.3 / 1.09, abs=0.01) and abs(of_pairs.neighbours(white)[0]) < bound < 0.02


# Damaged trainings


class Read(RectifiedFlow):
    """A flow as somebody else would read it."""

    def __init__(self, flow, sign, is_reversed):
        super().__init__(flow.denoiser)
        self.sign, self.is_reversed = sign, is_reversed

    def velocity(self, x_t, t, labels=None):
        return self.sign * super().velocity(x_t, 1 - t if self.is_reversed else t, labels)


@pytest.mark.parametrize(
    ("sign", "is_reversed", "remedy"),
    [(1, True, "with time reversed:"), (-1, False, "with its sign changed:"),
     (-1, True, "with time reversed and its sign changed:")],
)  # fmt: skip
def test_a_flow_that_points_elsewhere_is_found(quick, sign, is_reversed, remedy):
    findings = doctor.examine(replace(quick, flow=Read(quick.flow, sign, is_reversed)))
    assert found(findings) == ["direction"]
    assert remedy in next(each.remedy for each in findings if each.check == "direction")


class ByHeart(RectifiedFlow):
    """A flow that is the teacher's but for one step from noise that it has seen, which leads to its image."""

    def __init__(self, flow, pairs):
        super().__init__(flow.denoiser)
        self.pairs = pairs

    def velocity(self, x_t, t, labels=None):
        usual = super().velocity(x_t, t, labels)
        x, z = self.pairs.x.to(x_t), self.pairs.z.to(x_t)
        near = torch.cdist(x_t.flatten(1), z.flatten(1)).min(dim=1)
        known = (near.values < 0.1).reshape(-1, 1, 1, 1)
        return torch.where(known, x_t - x[near.indices] + 0.1 * usual, usual)


def test_too_few_pairs_are_found(quick):
    findings = doctor.examine(replace(quick, flow=ByHeart(quick.flow, quick.pairs)))
    assert found(findings) == ["enough pairs"] and "make more pairs than 128" in str(findings)


@pytest.mark.parametrize(("ema", "remedy"), [(0.0, "larger"), (0.9999, "smaller")])
def test_an_average_that_does_not_suit_the_training_is_found(quick, ema, remedy):
    fields = {"steps": 1000, "lr": 1e-3, "ema": ema, "growing": False}
    findings = doctor.examine(replace(quick, inputs={**quick.inputs, "optimisation": {"fields": fields}}))
    assert found(findings) == ["average"]
    assert f"choose an ema {remedy}" in str(findings)


@pytest.mark.parametrize(("ema", "growing"), [(0.9, True), (0.5, False), (0.99, False), (0.0, False)])
def test_the_age_of_an_average_is_that_of_torchs(ema, growing):
    """What averages the numbers 1 to 40, each at its step, lies its mean age below 40."""
    model, steps = torch.nn.Linear(1, 1, bias=False), 40
    step = 0
    average = AveragedModel(model, multi_avg_fn=ema_update(ema, lambda: step, growing))
    for step in range(steps):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
        average.update_parameters(model)
    wanted = steps - average.module.weight.item()
    assert of_trainings.age(Optimisation(steps, 1e-3, ema=ema, growing=growing)) == pytest.approx(wanted, rel=1e-5)


def test_averages_of_the_presets_are_within_the_convention():
    shares = []
    for name in presets.names():
        settings = presets.load(name).training
        optimisation = Optimisation(settings.steps, settings.lr, ema=settings.ema, growing=settings.ema_growing)
        shares.append(of_trainings.age(optimisation) / settings.steps)
    assert min(shares) == pytest.approx(2 * of_trainings.SHORTEST, rel=0.02) and max(shares) < of_trainings.LONGEST


@pytest.fixture
def copied(experiment, tmp_path):
    """A copy of the store, to be damaged; the folder of F's first training in it."""
    shutil.copytree(experiment.run.store.root, tmp_path / "store")
    step = experiment.plan.flow("F", 0)
    return tmp_path / "store" / step.name / step.key


def test_a_damaged_file_of_a_training_is_found(copied):
    content = bytearray((copied / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "model.safetensors").write_bytes(content)
    findings = doctor.examine(doctor.read(copied))
    assert found(findings) == ["files"] and "model.safetensors" in str(findings[0])


def test_a_damaged_picture_of_a_training_is_found(copied, known):
    picture = copied / "samples-10.safetensors"
    picture.write_bytes(picture.read_bytes()[:-8])
    findings = of_trainings.examine(doctor.read(copied), known)
    assert found(findings) == ["files"] and "samples-10.safetensors" in str(findings[0])


def test_a_single_row_has_no_spread(experiment):
    findings = doctor.examine(doctor.of_experiment(experiment, "F", 0, rows=1))
    skipped = {each.check for each in findings if each.status == SKIPPED and "needs two pairs" in each.reason}
    assert skipped == {"enough pairs", "direction"} and not {"enough pairs", "direction"} & set(found(findings))


def test_a_damaged_shard_is_found(copied, capsys):
    folder = copied.parents[1] / "pairs" / doctor.read(copied).inputs["pairs"][1]
    shard = folder / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for place in (folder, copied):
        assert cli.main(["doctor", str(place), "--json"]) == 1
        (record,) = json.loads(capsys.readouterr().out)
        assert record["check"] == "files" and record["status"] == "found" and "checksums" in record["what"]


def test_a_damaged_manifest_is_found_where_it_matters(copied, capsys):
    """A training's own is; one of other pairs beside its pairs is not its fault."""
    pairs_folder = copied.parents[1] / "pairs"
    other = pairs_folder / "0123456789abcdef"
    other.mkdir()
    for text in ('{"step": "pa', "[]"):
        (other / "manifest.json").write_text(text)
        assert isinstance(doctor.read(copied), doctor.Training)
    (copied / "manifest.json").write_text('{"step": "fl')
    assert cli.main(["doctor", str(copied), "--json"]) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert record["check"] == "files" and str(copied / "manifest.json") in record["what"]


# On course


@pytest.fixture(scope="module")
def known(experiment, tmp_path_factory):
    """The curves of the tiny run, in a checkout of their own."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "book" / "data").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "repository", lambda: folder)
        curves.make(experiment, ["F"])
        return curves.read()


def test_curves_have_all_that_was_kept(experiment, known):
    (entry,) = known.values()
    values = entry["configurations"]["F"]["values"]
    assert entry["seeds"] == [0, 1, 2] and values.keys() == curves.QUANTITIES.keys()
    for at in values.values():  # each step has its checkpoint here
        assert [len(seeds) for seeds in at] == [3, 3, 3] and all(None not in seeds for seeds in at)
    history = experiment.history("F", 1)
    assert [at[1] for at in values["loss"]] == [history.losses[0], history.losses[2], history.losses[9]]


def test_curves_of_another_configuration_are_added(experiment, known, tmp_path, monkeypatch):
    (tmp_path / "book" / "data").mkdir(parents=True)
    ((name, entry),) = known.items()
    former = {name: {**entry, "configurations": {"A": entry["configurations"]["F"]}}}
    (tmp_path / curves.FILE).write_text(json.dumps(former))
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)
    curves.make(experiment, ["F"])
    assert curves.read()[name]["configurations"].keys() == {"A", "F"}


def test_curves_of_too_few_seeds_are_refused(capsys):
    assert cli.main(["curves", "--preset", "smoke"]) == 2
    assert "seeds=[0, 1] are too few for a range; list at least 3 in seeds" in capsys.readouterr().err


def test_a_checkpoint_is_graded_as_a_finished_flow(experiment):
    """The last one holds the flow that the store has the grades of."""
    folder, flow = experiment.flow_file("F", 0).parent, experiment.flow("F", 0)
    kept = curves.kept_flow(folder, 10, flow)
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in kept.state_dict().items())
    evaluation = experiment.evaluate("F", 0, nfe=1)
    assert curves.graded(experiment, kept, 0) == pytest.approx((evaluation.pair_error, evaluation.frechet), rel=1e-4)
    earlier = curves.kept_flow(folder, 3, flow)
    assert any(not torch.equal(value, flow.state_dict()[name]) for name, value in earlier.state_dict().items())
    assert curves.kept_flow(folder, 11, flow) is None


def test_pictures_are_of_the_noise_that_is_compared(experiment, training):
    z, labels = curves.noises(experiment.teacher)
    last = Sampler(1, first_time=0.999)(training.flow, z, labels)
    torch.testing.assert_close(last, experiment.snapshots("F", 0)[10])
    assert curves.picture_error(training.folder, 10, 1.0, last) == pytest.approx(0, abs=1e-10)


def test_a_training_is_on_course_until_its_loss_is_another(experiment, known):
    """Its own curve, and five seeds that lie within two per cent of it."""
    experiment.evaluate("F", 0, nfe=1)
    training, tight = doctor.of_experiment(experiment, "F", 0), json.loads(json.dumps(known))
    (entry,) = tight.values()
    values = entry["configurations"]["F"]["values"]
    for quantity, at in values.items():
        values[quantity] = [[factor * seeds[0] for factor in (0.98, 0.99, 1.0, 1.01, 1.02)] for seeds in at]
    findings = of_trainings.examine(training, tight)
    assert doctor.is_sound(findings) and sum(each.check == "on course" for each in findings) == 8
    slow = replace(training.history, losses=[1.5 * loss for loss in training.history.losses])
    findings = of_trainings.examine(replace(training, history=slow), tight)
    assert found(findings) == ["on course"] * 3
    assert all("loss" in each.what for each in findings if each.status == FOUND)


def test_other_settings_are_not_compared(training, known):
    own = ["own_pairs", training.inputs["pairs"][1]]
    for name, value in (("batch_size", 17), ("start", "random"), ("pairs", own)):
        other = replace(training, inputs={**training.inputs, name: value})
        assert next(of_trainings.course(other, known)).status == SKIPPED


def test_the_range_for_another_seed_is_missed_as_often_as_is_said():
    """Of 4,000 log-normal sixes, the last lies outside of the range from the others in about a twentieth."""
    values, sets = (0.3 * randn(4000, 6, dtype=torch.float64) - 2).exp().tolist(), 4000
    limits = [curves.expected(row[:5], 0.05) for row in values]
    missed = sum(not low <= row[5] <= high for row, (low, high) in zip(values, limits, strict=True))
    low, high = stats.binom.ppf([CHANCE, 1 - CHANCE], sets, 0.05)
    assert low <= missed <= high
    assert curves.expected([1.0, None, 2.0]) is None


def test_a_training_that_goes_on_is_examined(experiment, copied, known):
    """As it is before its end: no manifest, no model; what is kept of its losses is that of its last checkpoint."""
    partial = copied.with_name(f".{copied.name}.partial")
    copied.rename(partial)
    for name in ("manifest.json", "model.safetensors", "history.json", "samples-10.safetensors"):
        (partial / name).unlink()
    for step in range(4, 11):
        for path in (partial / "states").glob(f"step-{step:08d}.*"):
            path.unlink()
    going_on = doctor.read(partial)
    assert going_on.step == 3 and "step 3 of 10" in str(going_on)
    findings = of_trainings.examine(going_on, known)
    assert doctor.is_sound(findings)
    assert [each.what.partition(",")[0] for each in findings if each.check == "on course"] == [
        curves.QUANTITIES["loss"], curves.QUANTITIES["pictures"]
    ] * 2  # fmt: skip
    assert {each.check for each in findings if each.status == SKIPPED} == {"enough pairs", "direction"}


# The command


def test_a_file_of_pairs_is_read(pairs, tmp_path, capsys):
    tensors = {"x": pairs.x, "z": pairs.z, "labels": pairs.labels}
    save_file(tensors, tmp_path / "sound.safetensors")
    save_file({**tensors, "x": pairs.z, "z": pairs.x}, tmp_path / "swapped.safetensors")
    assert cli.main(["doctor", str(tmp_path / "sound.safetensors"), "--teacher", "digits-teacher"]) == 0
    *_, teacher, last = capsys.readouterr().out.splitlines()
    assert teacher.startswith("ok      teacher error") and last == "13 checks, all ok"
    assert cli.main(["doctor", str(tmp_path / "swapped.safetensors"), "--json"]) == 1
    records = {record["check"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["swapped"]["status"] == "found" and records["swapped"]["rate"] == doctor.ALPHA
    assert records["alignment"]["status"] == "skipped" and records["alignment"]["value"] is None


@pytest.mark.parametrize("teacher", [[], ["--teacher", "digits-teacher"]])
@pytest.mark.parametrize("wrong", [[-1] * 128, [-3, *[0] * 127], [10, *[0] * 127]])
def test_labels_outside_the_classes_are_found(pairs, tmp_path, capsys, wrong, teacher):
    """A file without a teacher does not say how many classes there are: its largest label does."""
    labels = torch.tensor(wrong, dtype=torch.int16)
    save_file({"x": pairs.x, "z": pairs.z, "labels": labels}, tmp_path / "file.safetensors")
    cli.main(["doctor", str(tmp_path / "file.safetensors"), "--json", *teacher])
    records = {record["check"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["labels"]["value"] == sum(not 0 <= label < 10 for label in wrong if teacher or label < 0)


def test_stored_noise_is_read(pairs, tmp_path):
    """A folder whose noise was kept, twice as wide."""
    index = {"n": 128, "shape": [1, 8, 8], "classes": 10, "shard_size": 100, "generator": 2, "noise": "stored"}

    def make(rows, advance):
        pixels = (pairs.x[rows] * 127.5 + 127.5).round().to(torch.uint8)
        return {"images": pixels, "noise": 2 * pairs.z[rows], "labels": pairs.labels[rows], "indices": rows}

    fill(tmp_path / "stored", index, make, "pairs", advance=lambda made: None)
    findings = doctor.examine(doctor.read(tmp_path / "stored"))
    assert found(findings) == ["noise variance"] and "invert with more evaluations" in str(findings)


def test_some_rows_of_many_are_read_in_order(experiment):
    """So that neighbours stay neighbours, and a slip fills blocks."""
    folder = experiment.pairs("train", 0).folder
    some = doctor.read(folder, rows=50)
    everything = PairDataset(folder).batch(torch.arange(128))[1]
    places = [int((everything == z).flatten(1).all(dim=1).nonzero()) for z in some.z]
    assert len(some) == 50 and some.total == 128 and places == sorted(places) and "50 are read" in str(some)


def test_released_archives_are_read(tmp_path, capsys):
    """Their images there are noise of their own, which the doctor does not overlook."""
    samples, z, labels, *_ = released_pairs(tmp_path / "in", 20, 2)
    places = [tmp_path / "in" / name for name in ("samples.zip", "z.zip", "images_labels.csv")]
    assert [samples, z, labels] == places
    assert cli.main(["doctor", str(tmp_path / "in")]) == 1
    shown = capsys.readouterr().out
    assert "20 pairs of 3 x 4 x 4" in shown and "found   alignment" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("nowhere", "nowhere does not exist; expected a folder of pairs"),
        ("{empty}", "holds neither pairs nor a training; expected a folder of pairs"),
        ("{empty}/file.txt", "is a .txt file; expected a folder of pairs"),
        ("{empty}/other.safetensors", "holds weights; expected"),
        ("{empty}/odd.safetensors", "x is (2, 1, 8, 8), z is (3, 1, 8, 8); both must be (n, C, H, W)"),
        (
            "{empty}/none.safetensors",
            "x is (0, 1, 8, 8), z is (0, 1, 8, 8); both must be (n, C, H, W) with at least one",
        ),
        (
            "{empty}/flat.safetensors",
            "x is (2, 1, 0, 8), z is (2, 1, 0, 8); both must be (n, C, H, W) with at least one",
        ),
        ("{empty}/float.safetensors", "has labels of type torch.float32; integers are needed"),
        ("{pairs} --teacher nobody.pkl", "no checkpoint at nobody.pkl"),
        ("{pairs} --teacher digits-classifier", "teacher='digits-classifier' is a Classifier; a denoiser is needed"),
        ("{colour} --teacher digits-teacher", "the teacher makes images of (1, 8, 8) with classes, but the pairs have"),
        ("{pairs} --rows 0", "rows=0 is too small"),
        ("{pairs} --config F", "--config, --seed or --set both say what to examine"),
        ("{evaluation}", "='evaluation' is unknown; allowed: 'pairs'"),
        ("--preset smoke --config H", "config='H' is unknown"),
        ("--preset smoke --config meanflow", "config='meanflow' is a method of rfpp.arena, whose trainings"),
        ("--preset smoke --config A --seed 7", "config='A', seed=7 was not trained"),
        ("--teacher digits-teacher", "--teacher=digits-teacher needs a place with pairs"),
    ],
)
def test_bad_input_is_refused(experiment, tmp_path, capsys, arguments, complaint):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "file.txt").write_text("nothing")
    save_file({"weights": randn(2)}, empty / "other.safetensors")
    save_file({"x": randn(2, 1, 8, 8), "z": randn(3, 1, 8, 8)}, empty / "odd.safetensors")
    none = randn(0, 1, 8, 8)
    save_file({"x": none, "z": none.clone(), "labels": torch.zeros(0).long()}, empty / "none.safetensors")
    save_file({"x": randn(2, 1, 0, 8), "z": randn(2, 1, 0, 8)}, empty / "flat.safetensors")
    save_file({"x": randn(2, 1, 8, 8), "z": randn(2, 1, 8, 8), "labels": torch.ones(2)}, empty / "float.safetensors")
    save_file({"x": randn(20, 3, 8, 8), "z": randn(20, 3, 8, 8)}, tmp_path / "colour.safetensors")
    experiment.evaluate("F", 0, nfe=1)
    graded = experiment.run.find(experiment.plan.grade("F", 0, experiment.sampler()))
    places = {
        "empty": empty, "pairs": experiment.pairs("train", 0).folder, "evaluation": graded.folder,
        "colour": tmp_path / "colour.safetensors",
    }  # fmt: skip
    assert cli.main(["doctor", *arguments.format(**places).split()]) == 2
    written = capsys.readouterr()
    assert complaint in written.err and written.err.count("\n") == 1 and not written.out


def test_a_training_is_named_by_its_preset(runs, experiment, monkeypatch, capsys):
    monkeypatch.setenv("RFPP_RUNS", str(runs))
    settings = [f"--set={name}={json.dumps(value)}" for name, value in {**SMALL, "seeds": [0, 1, 2]}.items()]
    assert cli.main(["doctor", "--preset", "smoke", "--seed", "1", *settings]) == 0
    shown = capsys.readouterr().out
    assert f"F, seed 1, of {experiment.preset.name}: training of 16 pairs a step, 10 steps" in shown


def test_what_is_printed_of_a_number_that_is_none():
    """It is no sound one, and JSON has no word for it."""
    finding = Finding("finite", "what", "remedy", math.nan, 0, math.inf)
    assert finding.status == FOUND and finding.record()["value"] is None and finding.record()["high"] is None
    assert finding.expected == "above 0"


# The page


def test_the_page_is_written_for_the_book(experiment, tmp_path):
    (tmp_path / "figures").mkdir()
    page.write(experiment, tmp_path)
    included = [line.split()[-1] for line in (ROOT / "book" / "doctor.md").read_text().splitlines()
                if line.startswith("```{include}")]  # fmt: skip
    assert included and all((tmp_path / name).read_text().strip() for name in included)
    assert "checks, all ok" in (tmp_path / "doctor-sound.txt").read_text()
    said = (tmp_path / "doctor-damaged.txt").read_text()
    assert "found   noise variance" in said and "found   alignment" in said and "2 of them found something" in said
    assert str(tmp_path.parent) not in said + (tmp_path / "doctor-sound.txt").read_text()
    assert (tmp_path / "figures" / "curves.svg").stat().st_size > 10_000


def test_the_books_curves_fall():
    """Loss and errors of every training are smaller at the end than at 10 %, for each seed, where both were kept."""
    known = curves.read()
    assert known.keys() == {"laptop", "desk"}
    for entry in known.values():
        assert entry["configurations"].keys() == {"A", "F"} and entry["fractions"] == list(curves.FRACTIONS)
        for each in entry["configurations"].values():
            for first, _, last in each["values"].values():
                assert len(last) == len(entry["seeds"]) == len(each["trainings"])
                assert all(a is None or a > b for a, b in zip(first, last, strict=True))
