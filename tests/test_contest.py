"""The arena's bookkeeping, and what the chapter on pairs measures, against arithmetic by hand and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from truth import randn

from rfpp.arena import PLAIN, Method, average, find
from rfpp.base import paths, rng
from rfpp.book import contrasts, plots
from rfpp.configurations import ALL
from rfpp.data import to_float, to_uint8
from rfpp.denoisers import GaussianMixtureDenoiser
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline.flows import TrainFlow
from rfpp.pipeline.grades import Evaluation
from rfpp.pipeline.identities import identity
from rfpp.studies import arena, targets


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment("smoke", runs=tmp_path_factory.mktemp("runs"), jobs=1)


# The arena


def test_average_velocities_train_uncompiled_where_all_else_is_compiled(tmp_path, monkeypatch):
    """No compiler takes their forward-mode derivative. One that only counts what it is given stands in for it."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *_, **__: compiled.append(type(module).__name__))
    Experiment("smoke", {"machinery.compile": True}, runs=tmp_path, jobs=1).train(["meanflow", "A"], [0])
    assert compiled == ["RectifiedFlow"]


def test_grades_of_several_scales_stand_side_by_side(tmp_path, monkeypatch):
    """This run's, and those with the book; the shortest training first. A scale without the NFE is left out."""
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)
    here, there = Experiment("smoke", runs=tmp_path / "runs"), Experiment("smoke", {"training.steps": 9}, runs=tmp_path)
    one, two = (
        {n: [Evaluation(5.0 / n, 0.9, 0.1), Evaluation(6.0 / n, 0.8, 0.2)] for n in some} for some in ([1], [1, 2])
    )
    longer = arena.Arena(dict.fromkeys(arena.contenders(there), one), [2, 3])
    arena.keep(longer, there)
    (tmp_path / "book" / "records").mkdir(parents=True)
    (there.folder / "claims").rename(tmp_path / "book" / "records" / "desk")
    ours = arena.Arena({"F": two, "cd": two}, [0, 1])
    arena.keep(ours, here)
    assert not (here.folder / "claims").exists()  # of two contenders only
    found = arena.at_scales(ours, here)
    assert found == {"smoke": ours, "desk": longer} and [*found] == ["smoke", "desk"]
    assert arena.at(found, 2) == {"smoke": {"F": [2.5, 3.0], "cd": [2.5, 3.0]}} and [*arena.at(found, 1)] == [*found]


def test_a_scale_looks_the_same_in_all_panels():
    """Also where one of them lacks a scale."""
    one, many = {"laptop": {"F": [2.0, 3.0]}, "desk": {"F": [1.0, 1.5]}}, {"desk": {"F": [0.5, 0.6]}}
    figure = contrasts.across_scales({"1 NFE": one, "8 NFE": many})
    means = [[line for line in axis.lines if line.get_marker() != "."] for axis in figure.axes]
    assert [len(lines) for lines in means] == [2, 1] and [*means[0][1].get_xdata()] == [1.25]
    looks = [(line.get_color(), line.get_marker()) for lines in means for line in lines]
    assert looks[0] != looks[1] == looks[2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["laptop", "desk"]
    plots.plt.close(figure)


def test_all_spend_the_same_passes_but_for_a_step(experiment):
    plan = experiment.plan
    for name, contender in arena.contenders(experiment).items():
        flow, found = plan.flow(contender.config, 0), find(contender.config)
        trainings = [flow, flow.start] if isinstance(getattr(flow, "start", None), TrainFlow) else [flow]
        price = found.price if isinstance(found, Method) else PLAIN
        spent = sum(price * each.optimisation.steps * each.batch_size for each in trainings)
        if name == "F in time":  # its LPIPS is paid for in seconds
            spent *= (PLAIN + arena.LPIPS) / PLAIN
        steps = 1.5 * price * flow.batch_size
        assert abs(spent - plan.budget()) <= steps, name


def test_who_trains_on_images_has_no_pairs_to_pay_for(experiment):
    """F has the teacher's; G has real images as well, each inverted with as many evaluations as the preset says."""
    rows = {row[0]: int(row[-1].replace(",", "")) for row in arena.spending(experiment, ["F", "G", "ct"], [0])}
    preset = experiment.preset
    assert rows["F"] == preset.pairs.train * (2 * preset.pairs.num_steps - 1) and rows["ct"] == 0
    assert rows["G"] == rows["F"] + len(experiment.data.train) * preset.real_data.nfe


def test_contenders_are_different_trainings(experiment):
    flows = [experiment.plan.flow(each.config, 0).key for each in arena.contenders(experiment).values()]
    assert len(set(flows)) == len(flows)


def graded(*frechet):
    return [Evaluation(value, 1.0, 0.0) for value in frechet]


def test_shares_are_paired_by_seed():
    found = arena.Arena({"a": {1: graded(2.0, 4.0, 8.0)}, "b": {1: graded(1.0, 3.0, 10.0)}}, [0, 1, 2])
    assert found.removed("a", "b") == [0.5, 0.25, -0.25]
    assert found.against_itself("a") == [-1.0, -1.0, 0.75]
    assert found.values(1)["a"] == [2.0, 4.0, 8.0] and found.families() == {}
    shown = arena.Arena({"F": {1: graded(1.0), 2: graded(0.5)}, "cd": {1: graded(3.0), 2: graded(4.0)}}, [0]).families()
    assert shown == {"the paper's": {"F": {1: [1.0], 2: [0.5]}},
                     "others": {"F": {1: [1.0], 2: [0.5]}, "cd": {1: [3.0], 2: [4.0]}}}  # fmt: skip


def inside(balls, points):
    """The share of points that lie in a ball around another one, which reaches to that one's third neighbour."""
    radii = np.sort(np.linalg.norm(balls[:, None] - balls[None], axis=-1), axis=1)[:, 3]
    return float((np.linalg.norm(points[:, None] - balls[None], axis=-1) <= radii).any(axis=1).mean())


def test_only_what_a_claim_is_about_is_compared(experiment, tmp_path):
    names, about = ["B", "F", "simple-reflow", "F in time"], "it is about one step; evaluations=[2, 4]"
    assert arena.incomparable(experiment, "B", "F", names, [1, 2]) is None
    assert arena.incomparable(experiment, "B", "F", names, [2, 4]) == about
    assert "it compares B and cd" in arena.incomparable(experiment, "B", "cd", names, [1])
    assert arena.incomparable(experiment, "simple-reflow", "F in time", names, [1]) is None
    elsewhere = Experiment("cifar10", runs=tmp_path)
    assert "LPIPS takes on digits" in arena.incomparable(elsewhere, "simple-reflow", "F in time", names, [1])


def test_evaluations_that_a_contender_cannot_take_are_refused_before_any_work(tmp_path):
    """Consistency models start at 80/81, where 128 equal steps have no room."""
    experiment = Experiment("smoke", runs=tmp_path)
    arena.check_evaluations(experiment, ["B", "ct"], [1, 8])
    with pytest.raises(ValueError, match=r"evaluations=\[1, 128\]: ct cannot take 128: first_time="):
        arena.check_evaluations(experiment, ["B", "ct"], [1, 128])


def test_fewer_pairs_than_samples_are_covered(tmp_path):
    found = arena.coverage(Experiment("smoke", {"pairs.train": 20}, runs=tmp_path), [], [0])
    assert 0 <= found["teacher"]["precision, 1 NFE"][0] <= 1


def test_precision_and_recall_are_shares_in_balls(experiment):
    """By brute force, of the samples that are graded, against as many real images."""
    names, count = ["F", "meanflow-pairs", "ct"], experiment.preset.evaluation.samples
    found = arena.coverage(experiment, names, [0, 1], [1, 2])
    assert list(found) == [*names, "teacher"] and all(len(each) == 4 for each in found.values())
    assert found["teacher"]["recall, 1 NFE"] == found["teacher"]["recall, 2 NFE"]
    known, plan, network = arena.contenders(experiment), experiment.plan, experiment.embedding
    pixels = experiment.data.train.pixels
    chosen = torch.randperm(len(pixels), generator=rng.generator(0, "manifold"))[:count]
    real = network(to_float(pixels[chosen])).detach().numpy()
    for seed in (0, 1):
        for name in names:
            step = plan.samples(known[name].config, seed, plan.own_sampler(known[name].config, 2), count)
            drawn = step.load(experiment.run).read(torch.arange(count))["images"]
            made = network(to_float(drawn)).detach().numpy()
            assert found[name]["precision, 2 NFE"][seed] == pytest.approx(inside(real, made), abs=1.5 / count), name
            assert found[name]["recall, 2 NFE"][seed] == pytest.approx(inside(made, real), abs=1.5 / len(real)), name


def test_those_who_are_entered_are_known(experiment):
    assert arena.check(["cd", "A"], experiment) == ["A", "cd"]
    assert len(arena.check([], experiment)) == len(arena.contenders(experiment))
    with pytest.raises(ValueError, match="'gan' is no contender; allowed: A, B, C"):
        arena.check(["gan"], experiment)
    with pytest.raises(TypeError, match="entered='cd' is a str"):
        arena.check("cd", experiment)


def test_fewer_steps_take_as_long():
    assert arena.in_time(150) == int(150 * 3 / 3.45) and arena.in_time(1) == 1


# Targets


class Linear(average.AverageFlow):
    """``u(x, r, t) = factor x``: its Jacobian is the factor."""

    def __init__(self, factor):
        super().__init__(nn.Identity())
        self.factor = factor

    def average(self, x_t, t, labels, r):
        return self.factor * x_t


def test_the_targets_spread_is_the_velocitys_seen_through_the_jacobian():
    x, z = randn(40, 1, 2, 2), randn(40, 1, 2, 2)
    couples = targets.Coupling(x, z, None, RectifiedFlow(GaussianMixtureDenoiser(x)))
    velocity, target = targets.spread(Linear(0.4), couples, 0.5, r=0.2)
    assert velocity > 0.01 and target == pytest.approx((1 - 0.3 * 0.4) ** 2 * velocity, rel=1e-5)


def test_around_the_exact_mean_the_spread_is_that_of_the_posterior():
    """For a Gaussian ``E||e||^2 / d = Var[x | x_t] / t^2``; the standard error of 4,000 couples is 1 %."""
    std, t = 0.5, 0.6
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn((2, 4000, 1, 2, 2), generator=generator)
    couples = targets.Coupling(std * x, z, None, RectifiedFlow(GaussianMixtureDenoiser(torch.zeros(1, 1, 2, 2), std)))
    sigma = t / (1 - t)
    expected = sigma**2 * std**2 / (sigma**2 + std**2) / t**2
    found, _ = targets.spread(Linear(0.0), couples, t)
    assert found == pytest.approx(expected, rel=0.05)


def test_accord_of_gradients():
    one = randn(1, 50)
    assert targets.accord(one * torch.tensor([[1.0], [2.0], [5.0]])) == pytest.approx(1, abs=1e-6)
    assert targets.accord(torch.eye(4)) == pytest.approx(0, abs=1e-12)
    cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in randn(3, 5)] for a in randn(3, 5)]
    others = [cosines[i][j] for i in range(3) for j in range(3) if i != j]
    assert targets.accord(randn(3, 5)) == pytest.approx(sum(others) / 6, abs=1e-6)


def test_what_a_chapter_measures_at_smoke(experiment):
    coupled = targets.couplings(experiment, 0, 12)
    few = targets.couplings(experiment, 0, 12, most=20)
    known = experiment.data.train.pixels[:20]
    assert all(bool((to_uint8(x) == known).flatten(1).all(dim=1).any()) for x in few[targets.IMAGES].x[:, None])
    first = experiment.pairs("train").batch(torch.arange(20))[0]
    assert all(bool((x == first).flatten(1).all(dim=1).any()) for x in few[targets.PAIRS].x[:, None])
    unseen = targets.couplings(experiment, 0, 1000)[targets.HELD_OUT]
    x, z, labels = experiment.pairs("held_out").batch(torch.arange(64))
    assert torch.equal(unseen.x, x) and torch.equal(unseen.z, z) and torch.equal(unseen.labels, labels)
    assert torch.equal(coupled[targets.EXCHANGED].z[1:], coupled[targets.PAIRS].z[:-1])
    assert torch.equal(coupled[targets.EXCHANGED].x, coupled[targets.PAIRS].x)
    found = targets.accords(experiment, {0: coupled}, 3)
    assert all(-1 <= value <= 1 for (value,) in found.values()) and len(found) == 3
    whole, parts = (
        torch.stack(list(targets.gradients(targets.start(experiment), coupled[targets.PAIRS], 3, 0, rows)))
        for rows in (None, 3)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-6)
    assert targets.accord(whole) == pytest.approx(found[targets.PAIRS][0], abs=1e-6)
    assert targets.excess(found, targets.PAIRS) == [found[targets.PAIRS][0] - found[targets.IMAGES][0]]
    middle = targets.in_the_middle(experiment, {0: coupled})
    assert targets.multiples(middle, targets.PAIRS) == [middle[targets.IMAGES][0] / middle[targets.PAIRS][0]]
    assert middle[targets.PAIRS] == [targets.spread(targets.start(experiment), coupled[targets.PAIRS], 0.5)[1]]
    curves = targets.spreads(experiment, coupled, [0.5, 0.9])
    assert all(math.isfinite(float(part.sum())) and (part > 0).all() for each in curves.values() for part in each)


def test_powers_are_numbers_from_nought_to_one():
    rows = targets.powers([0, 0.5])
    assert rows[0] == ALL["C"] and identity(rows[0.5]) != identity(rows[0])
    for wrong in ([], [2], [True], "1"):
        with pytest.raises(ValueError, match="powers="):
            targets.powers(wrong)
    with pytest.raises(ValueError, match="twice"):
        targets.powers([0.5, 0.5])
