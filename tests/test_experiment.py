"""The whole path at the scale of ``smoke``: everything is computed once, from what it depends on."""

import json
from dataclasses import asdict

import pytest
import torch
from truth import frechet

from rfpp import data, engine, presets, samplers, timesteps, training
from rfpp import pairs as pair_module
from rfpp.base import rng
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import grades, shipped
from rfpp.pipeline.plan import Plan
from rfpp.presets import PresetError
from rfpp.studies import grading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def experiment(folder):
    """With A and F of seed 0 trained, and F evaluated."""
    made = Experiment("smoke", runs=folder)
    made.train(["A", "F"], [0])
    made.evaluate("F")
    return made


@pytest.fixture
def no_work(monkeypatch):
    """Whoever computes anything fails."""

    def refuse(*arguments, **options):
        raise AssertionError("this was finished already")

    for module, name in ((engine, "fit"), (pair_module, "generate"), (samplers, "sample"), (samplers, "edm_sample")):
        monkeypatch.setattr(module, name, refuse)


def test_it_makes_the_pairs_of_the_preset(experiment):
    """The teacher's images of their noise, through the public sampler, to half a grey level."""
    for split, n in (("train", 96), ("held_out", 64)):
        made = experiment.pairs(split)
        x, z, labels = made.batch(torch.arange(len(made)))
        assert len(made) == n and labels.tolist() == [i % 10 for i in range(n)]
        truth = samplers.edm_sample(shipped.load("digits-teacher"), z, 4, labels=labels).clamp(-1, 1)
        assert ((x - truth).abs() <= 0.5 / 127.5 + 1e-4).float().mean() > 0.999  # batches may round a pixel differently


def test_training_and_held_out_pairs_have_no_noise_in_common(experiment):
    train, held_out = (experiment.pairs(split).batch(torch.arange(64))[1] for split in ("train", "held_out"))
    assert torch.cdist(train.flatten(1), held_out.flatten(1)).min() > 1


def test_flows_are_trained_and_differ(experiment):
    """Neither is the teacher; F, which starts from it, is closer."""
    x_t, labels = experiment.noise(10)
    teacher, a, f = (experiment.flow(config).velocity(x_t, 0.5, labels) for config in ("teacher", "A", "F"))
    assert 0 < (f - teacher).norm() < 0.5 * (a - teacher).norm()
    assert isinstance(experiment.flow("F"), RectifiedFlow)


@pytest.mark.parametrize(
    ("config", "times", "batch_size", "premetric"),
    [
        ("A", timesteps.Uniform(), 8, "squared_l2"),
        ("B", timesteps.Uniform(), 16, "squared_l2"),
        ("C", timesteps.UShaped(4.0), 16, "squared_l2"),
        ("D", timesteps.UShaped(4.0), 16, "pseudo_huber"),
        ("E", timesteps.UShaped(4.0), 16, "LPIPSHuber"),
        ("F", timesteps.UShaped(4.0), 16, "LPIPSHuberOverT"),
    ],
)
def test_a_training_is_the_row_of_table_1_at_the_presets_settings(
    tmp_path, monkeypatch, config, times, batch_size, premetric
):
    """What reaches the loop, with every setting different from its default."""
    seen, reflow, fit = {}, training.Reflow, engine.fit

    def see_reflow(pairs, times, premetric, batch_size, seed):
        seen.update(pairs=len(pairs), times=times, batch_size=batch_size, reflow_seed=seed)
        seen["premetric"] = getattr(premetric, "__name__", type(premetric).__name__)
        return reflow(pairs, times, premetric, batch_size, seed)

    def see_fit(model, objective, optimisation, **options):
        seen.update(options, **asdict(optimisation), dropout=model.denoiser.model.config["dropout"])
        return fit(model, objective, optimisation, **options)

    monkeypatch.setattr(training, "Reflow", see_reflow)
    monkeypatch.setattr(engine, "fit", see_fit)
    changes = {"steps": 2, "lr": 3e-3, "warmup": 5, "ema": 0.6, "dropout": 0.25}
    Experiment("smoke", {f"training.{name}": value for name, value in changes.items()}, tmp_path).train(config, [1])
    expected = {"pairs": 96, "times": times, "batch_size": batch_size, "premetric": premetric, "reflow_seed": 1}
    expected |= {"steps": 2, "lr": 3e-3, "warmup": 5, "ema": 0.6, "dropout": 0.25, "seed": 1}
    assert {name: seen[name] for name in expected} == expected


def test_history_has_the_presets_steps(experiment):
    assert experiment.history("A").steps == [3] and experiment.history("A").losses[0] > 0


def test_an_evaluation_is_what_its_parts_say(experiment):
    """Each number by another way: scipy's Fréchet distance, a count, a mean."""
    result, classifier = experiment.evaluate("F"), experiment.classifier
    z, labels = experiment.noise()
    images = samplers.sample(experiment.flow("F"), z, 1, times=[0.999], labels=labels)  # the preset's first time
    with torch.no_grad():
        assert result.agreement == pytest.approx(sum(map(int, classifier(images).argmax(1) == labels)) / 64, abs=1e-6)
        distance = frechet(experiment.embedding(experiment.data.train.floats()), experiment.embedding(images))
    assert result.frechet == pytest.approx(distance, rel=1e-2, abs=1e-3)
    held_out = experiment.pairs("held_out")
    x, z, labels = held_out.batch(torch.arange(64))
    error = samplers.sample(experiment.flow("F"), z, 1, times=[0.999], labels=labels) - x
    assert result.pair_error == pytest.approx(float(error.square().mean()), rel=1e-4)


def test_the_teacher_is_graded_like_any_flow(experiment):
    """At many evaluations it is the sampler that made the pairs; at one it is far off."""
    one, many = (experiment.evaluate("teacher", nfe=nfe, solver="heun").pair_error for nfe in (1, 15))
    assert many < 0.5 * one


def test_references_grade_the_real_and_the_teachers_digits(experiment):
    real = grading.references(experiment)["real, held out"]
    images, labels = experiment.data.held_out.floats(), experiment.data.held_out.labels
    with torch.no_grad():
        recognised = (experiment.classifier(images).argmax(1) == labels).double().mean()
    assert real.agreement == pytest.approx(float(recognised), abs=1e-6) and real.agreement > 0.9
    assert set(grading.references(experiment)) == {"real, held out", "teacher"}


def test_noise_is_the_same_for_every_flow_and_labels_take_turns(experiment, folder):
    z, labels = experiment.noise()
    again, _ = Experiment("smoke", runs=folder).noise(10)
    assert z.shape == (64, 1, 8, 8) and torch.equal(z[:10], again) and labels.tolist() == [i % 10 for i in range(64)]


# Reuse


def test_a_second_experiment_finds_everything(experiment, folder, no_work):
    """As after a restart: nothing is computed."""
    again = Experiment("smoke", runs=folder)
    again.train(["A", "F"], [0])
    assert again.evaluate("F") == experiment.evaluate("F")
    assert again.history("F") == experiment.history("F") and again.flow_file("A") == experiment.flow_file("A")
    assert len(again.pairs("train")) == 96
    assert all(
        again.run.find(step) for step in again.plan.steps(["A", "F"], [0]) if step.title != "grade A, seed 0, 1 NFE"
    )


@pytest.mark.parametrize("call", [lambda e: e.train("A"), lambda e: e.pairs(), lambda e: e.evaluate("teacher")])
def test_the_guard_notices_work(tmp_path, no_work, call):
    """What the test above rests on."""
    with pytest.raises(AssertionError, match="finished already"):
        call(Experiment("smoke", runs=tmp_path))


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_what_asks_without_gradients_may_need_a_training(experiment, tmp_path, without_gradients):
    """As a study does that grades with a network which is not trained yet."""
    with without_gradients():
        flow = Experiment("smoke", runs=tmp_path).flow("A", 0)
    states = (each.denoiser.state_dict() for each in (experiment.flow("A", 0), flow))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


def test_the_same_training_elsewhere_has_the_same_weights(experiment, tmp_path):
    """Bit by bit: nothing but the settings goes in."""
    again = Experiment("smoke", runs=tmp_path)
    first, second = (made.flow("F").state_dict() for made in (experiment, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert again.evaluate("F") == experiment.evaluate("F")


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ({"training.lr": 5e-4}, {"A", "F", "evaluation"}),
        ({"training.steps": 2}, {"A", "F", "evaluation"}),
        ({"training.ema": 0.5}, {"A", "F", "evaluation"}),
        ({"training.small_batch": 4}, {"A"}),
        ({"training.large_batch": 4}, {"F", "evaluation"}),
        ({"pairs.num_steps": 3}, {"train", "held_out", "A", "F", "evaluation"}),
        ({"pairs.seed": 1}, {"train", "held_out", "A", "F", "evaluation"}),
        ({"pairs.train": 80}, {"train", "A", "F", "evaluation"}),
        ({"pairs.held_out": 16}, {"held_out", "evaluation"}),
        ({"evaluation.samples": 32}, {"evaluation"}),
        ({"evaluation.seed": 1}, {"evaluation"}),
        ({"evaluation.first_time": 0.99}, {"evaluation"}),
        ({"pairs.batch_size": 16}, set()),
        ({"seeds": [0]}, set()),
        ({"summary": "other words"}, set()),
    ],
)
def test_a_setting_changes_what_depends_on_it_and_nothing_else(experiment, folder, overrides, changed):
    """By the folders that results lie in; the rest is shared with the unchanged preset."""
    other = Experiment("smoke", overrides, runs=folder)

    def places(made):
        made.evaluate("F")
        return {
            "evaluation": made.plan.grade("F", 0, made.sampler()).key,
            "train": made.plan.pairs("train").key,
            "held_out": made.plan.pairs("held_out").key,
            "A": made.flow_file("A"),
            "F": made.flow_file("F"),
        }

    first, second = places(experiment), places(other)
    assert {name for name in first if first[name] != second[name]} == changed


def test_samplers_and_seeds_are_results_of_their_own(experiment):
    experiment.evaluate("F", nfe=2)
    experiment.evaluate("F", nfe=2, update="straight")
    experiment.evaluate("F", 1, nfe=2)
    inputs = [a.manifest["inputs"] for a in experiment.run.store.finished() if a.step == "evaluation"]
    assert len({json.dumps([i["flow"], i["sampler"]], sort_keys=True) for i in inputs}) >= 4
    assert experiment.flow_file("F", 0) != experiment.flow_file("F", 1)


def test_a_changed_preset_has_claims_of_its_own_and_shares_results(experiment, folder):
    other = Experiment("smoke", {"training.lr": 5e-4}, runs=folder)
    assert other.folder != experiment.folder and other.folder.name.startswith("smoke+")
    assert other.run.store.root == experiment.run.store.root == folder / "smoke"


def test_results_go_where_the_environment_says(runs):
    assert Experiment("smoke").folder == runs / "smoke"


# What is refused


def test_a_first_time_that_leaves_no_room_for_the_steps_is_refused_before_any_work(tmp_path, no_work):
    """From 0.9, twenty uniform steps would begin by going up to 0.95."""
    with pytest.raises(ValueError, match="first_time=0.9"):
        Experiment("smoke", {"evaluation.first_time": 0.9}, runs=tmp_path).evaluate("F", nfe=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda e: e.flow("H"), "config='H' is unknown; allowed: 'A', 'B', 'C', 'D', 'E', 'F'"),
        (lambda e: e.train(["A", "H"], [0]), "config='H' is unknown"),
        (lambda e: e.evaluate("a"), "config='a' is unknown; allowed: .*'teacher'"),
        (lambda e: e.evaluate("techer"), "did you mean 'teacher'"),
        (lambda e: e.flow("techer"), "did you mean 'teacher'"),
        (lambda e: e.evaluate("F", nfe=2, solver="heun"), "nfe=2 is even"),
        (lambda e: e.evaluate("F", nfe=0), "nfe=0 is too small"),
        (lambda e: e.evaluate("F", update="strait"), "did you mean 'straight'"),
        (lambda e: e.pairs("test"), "split='test' is unknown; allowed: 'train', 'held_out'"),
        (lambda e: e.flow("F", -1), "seed=-1 is too small"),
    ],
)
def test_what_does_not_exist_is_refused_before_any_work(tmp_path, no_work, call, complaint):
    """In an empty folder, where the work would have to be done."""
    with pytest.raises(ValueError, match=complaint):
        call(Experiment("smoke", runs=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_seed_that_is_no_number_is_refused(experiment):
    with pytest.raises(TypeError, match="seed='0' is a str"):
        experiment.flow("F", "0")


@pytest.mark.parametrize(("preset", "overrides"), [("smok", None), ("smoke", {"training.stpes": 1})])
def test_a_preset_that_does_not_fit_is_refused(preset, overrides):
    with pytest.raises(PresetError, match="did you mean"):
        Experiment(preset, overrides)


# What else the paper trains


@pytest.fixture(scope="module")
def others(folder, experiment):
    """The same experiment with G and a third round, which rest on F."""
    made = Experiment("smoke", runs=folder)
    made.train(["G", "third", "D-small"], [0])
    return made


def test_g_is_f_fine_tuned_on_inverted_real_images(others):
    """Its pairs are the real training images with noise that F's teacher carries them to; few steps, small steps."""
    inverted, real = others.inverted(), others.data.train
    stored = inverted.read(torch.arange(len(inverted)))
    assert torch.equal(stored["images"], real.pixels) and torch.equal(stored["labels"], real.labels)
    x_t, labels = others.noise(10)
    f, g, teacher = (others.flow(config).velocity(x_t, 0.5, labels) for config in ("F", "G", "teacher"))
    assert 0 < (g - f).norm() < (f - teacher).norm()
    assert others.history("G").steps[-1] == others.preset.real_data.steps
    assert others.history("third").steps[-1] == others.preset.third_round.steps


def test_a_third_round_trains_on_pairs_that_f_makes(others):
    """Their images are F's own, of noise that no other pairs have."""
    made = pair_module.PairDataset(others.run.get(others.plan.own_pairs(others.plan.flow("F", 0))).folder)
    x, z, labels = made.batch(torch.arange(20))
    truth = others.sampler(others.preset.third_round.nfe)(others.flow("F"), z, labels)
    assert (x - truth.clamp(-1, 1)).abs().max() < 1.1 / 127.5
    assert torch.cdist(z.flatten(1), others.pairs("train").batch(torch.arange(96))[1].flatten(1)).min() > 1
    x_t, labels = others.noise(10)
    assert not torch.equal(others.flow("third").velocity(x_t, 0.5, labels), others.flow("F").velocity(x_t, 0.5, labels))


def test_what_rests_on_a_flow_changes_with_it(folder, others):
    """Another F is another G and another third round, though their own settings are the same."""
    changed = Experiment("smoke", {"training.steps": 4}, runs=folder)
    for config in ("F", "third"):
        assert changed.plan.flow(config, 0).key != others.plan.flow(config, 0).key
    assert changed.plan.flow("G", 0).inputs["start"] == ["flow", changed.plan.flow("F", 0).key]


def test_snapshots_show_the_training(others):
    """One-step samples of the same noise at a few steps; the last are the finished flow's."""
    found = others.snapshots("D-small")
    assert list(found)[-1] == others.preset.training.steps and len(found) > 1
    z = pair_module.noise(rng.derive(0, "snapshots"), range(16), (1, 8, 8))
    truth = samplers.sample(others.flow("D-small"), z, 1, times=[0.999], labels=torch.arange(16) % 10)
    torch.testing.assert_close(found[others.preset.training.steps], truth)


def test_snapshots_do_not_depend_on_the_evaluation(folder, others):
    """They are part of a flow, whose key has nothing of the evaluation's settings."""
    other = Experiment("smoke", {"evaluation.seed": 5, "evaluation.first_time": 0.95}, runs=folder)
    for step, images in others.snapshots("D-small").items():
        assert torch.equal(other.snapshots("D-small")[step], images)


@pytest.mark.parametrize(("nfe", "solver", "inner"), [(2, "euler", ()), (2, "euler", (0.8, 0.5)), (1, "euler", (0.8,))])
def test_inner_times_that_do_not_fit_are_refused(others, nfe, solver, inner):
    with pytest.raises(ValueError, match="inner=.* needs . inner times"):
        others.sampler(nfe, solver, inner=inner)


def test_two_steps_with_the_papers_second_time(others):
    flow = others.flow("F")
    z, labels = others.noise(5)
    found = others.sampler(2, inner=(0.8,))(flow, z, labels)
    torch.testing.assert_close(found, samplers.sample(flow, z, 2, times=(0.999, 0.8), labels=labels))


# What differs between seeds


def test_each_seed_has_noise_of_its_own_to_be_graded_on(experiment):
    """The same for all configurations, so that differences are paired; a draw of another number is another noise."""
    plan = experiment.plan
    seeds = {(config, seed): plan.grade(config, seed, plan.sampler()).seed for config in "AF" for seed in (0, 1)}
    assert seeds["A", 0] == seeds["F", 0] != seeds["A", 1] == seeds["F", 1]
    assert plan.grade("A", 0, plan.sampler(), draw=1).seed not in seeds.values()


@pytest.mark.parametrize("per_seed", [False, True])
def test_pairs_are_drawn_anew_for_each_seed_where_the_preset_says_so(folder, per_seed):
    made = Experiment("smoke", {"pairs.per_seed": per_seed}, runs=folder)
    first, second = (made.plan.flow("A", seed).pairs for seed in (0, 1))
    assert (first != second) == per_seed
    assert made.plan.pairs() == first and made.plan.pairs("held_out", 0) == made.plan.pairs("held_out", 1)
    assert made.plan.flow("G", 0).pairs == made.plan.flow("G", 1).pairs
    one, other = (made.pairs("train", seed).batch(torch.arange(8))[1] for seed in (0, 1))
    assert torch.equal(one, other) != per_seed


def test_the_desk_is_the_laptop_with_ten_times_the_steps():
    """And pairs and seeds of its own: the seeds of the trial that chose its steps are not among them."""
    laptop, desk = presets.load("laptop").model_dump(), presets.load("desk").model_dump()
    for section in ("training", "real_data", "third_round"):
        assert desk[section].pop("steps") == 10 * laptop[section].pop("steps")
    assert desk["pairs"].pop("per_seed") and not laptop["pairs"].pop("per_seed")
    assert len(desk["seeds"]) >= 5 and not {0, 1} & set(desk["seeds"])
    for name in ("name", "summary", "seeds"):
        del laptop[name], desk[name]
    assert laptop == desk


def test_a_is_trained_longer_until_it_has_seen_as_many_images():
    plan = Plan(presets.load("laptop"))
    longer, b = plan.flow("A-longer", 0), plan.flow("B", 0)
    assert longer.optimisation.steps * longer.batch_size == b.optimisation.steps * b.batch_size


@pytest.mark.parametrize(("name", "expected"), [("images", 7), ("cifar10", 5)])
def test_samples_are_compared_with_the_images_that_published_numbers_are_of(name, expected):
    """All of an archive; where there is an official split, its training images."""
    train, rest = (data.Images(torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.zeros(n).long()) for n in (5, 2))
    parts = grades.compared(data.Dataset(name, train, rest, classes=1))
    assert sum(len(part) for part in parts) == expected
