"""The ladder: gains by hand, with seeds paired."""

import dataclasses

import pytest
import torch
from scipy import stats

from rfpp.base import paths
from rfpp.book import tables
from rfpp.configurations import ALL
from rfpp.experiment import Experiment
from rfpp.pipeline.grades import Evaluation
from rfpp.pipeline.sampling import Sampler
from rfpp.studies import ladder, published, solvers


def graded():
    """Every configuration at 10 and 20 for two seeds, but B at 5 and 30; pair errors are a tenth of that."""
    runs = {name: (5, 30) if name == "B" else (10, 20) for name in ALL}
    by = {name: [Evaluation(value, 1.0, value / 10) for value in values] for name, values in runs.items()}
    return ladder.Ladder({"one step": by, "two steps": by}, (0, 1), 150)


def test_a_gain_is_the_share_that_a_change_removes_seed_by_seed():
    assert graded().gain("one step", "A", "B") == [0.5, -0.5]
    assert graded().gain("two steps", "B", "A") == pytest.approx([-1, 1 / 3])
    rungs = graded().rungs()
    assert [*rungs] == ["A → B", "B → C", "C → D", "D → E", "E → F", "F → G", "C-small → D-small"]
    assert rungs["A → B"] == ([0.5, -0.5], [0.5, -0.5], pytest.approx([0.5, -0.5]))


def test_a_configuration_against_itself_has_the_next_seeds_flow_in_place_of_the_changed_one():
    assert graded().against_itself("one step", "A") == [-1.0, 0.5]
    assert graded().against_itself("one step", "B", "pair_error") == pytest.approx([-5.0, 5 / 6])


def test_both_sides_of_a_comparison_have_the_same_seeds():
    runs = [Evaluation(1.0, 1.0, 0.1)]
    with pytest.raises(ValueError, match=r"B, one step: 2 evaluations for seeds=\[3\]; .* the same seeds"):
        ladder.Ladder({"one step": {"A": runs, "B": 2 * runs}}, [3], 150)


def test_ladders_of_several_scales_stand_side_by_side(tmp_path, monkeypatch):
    """This run's, and those that are kept with the book; the shortest training first."""
    monkeypatch.setattr(paths, "repository", lambda: tmp_path)
    experiment, ours = Experiment("smoke", runs=tmp_path / "runs"), graded()
    ladder.keep(ours, experiment)
    longer = dataclasses.replace(ours, steps=1500)
    ladder.keep(longer, Experiment("smoke", runs=tmp_path / "others"))
    (tmp_path / "book" / "records").mkdir(parents=True)
    (tmp_path / "others" / "smoke" / "claims").rename(tmp_path / "book" / "records" / "desk")
    found = ladder.at_scales(experiment)
    assert [*found] == ["smoke", "desk"] and found["desk"].distances("B") == ours.distances("B")
    gains = ladder.over_training(found)
    assert gains["one step"]["A → B"] == {"150 steps": [0.5, -0.5], "1,500 steps": [0.5, -0.5]}
    assert len(gains["two steps"]) == 6


def test_scales_of_equal_length_are_told_apart():
    gains = ladder.over_training({"laptop": graded(), "mine": graded()})
    assert [*gains["one step"]["A → B"]] == ["150 steps (laptop)", "150 steps (mine)"]


def comparison():
    """Euler at 1, 2, 4 NFE for two seeds: one falls always, the other rises at the end; Heun is better by 1 and 2."""
    samplers = {"Euler": [Sampler(nfe) for nfe in (1, 2, 4)], "Heun": [Sampler(1, "heun"), Sampler(3, "heun")]}
    distances = [(9, 9), (5, 4), (3, 6), (8, 7), (2, 1)]
    every = [sampler for family in samplers.values() for sampler in family]
    runs = {
        sampler: [Evaluation(value, 1.0, 0.0) for value in values]
        for sampler, values in zip(every, distances, strict=True)
    }
    return solvers.Comparison(samplers, runs)


def test_a_trend_is_kendalls():
    """By hand: of three pairs of NFE all fall for the first seed, two of three for the second: (1 - 2) / 3."""
    assert comparison().trends("Euler") == pytest.approx([-1.0, -1 / 3])


def test_a_gain_over_samplers_is_the_mean_difference_for_each_seed():
    found = comparison()
    euler, heun = found.samplers["Euler"], found.samplers["Heun"]
    assert found.gain([(euler[0], heun[0]), (euler[2], heun[1])]) == [1.0, 3.5]
    assert found.gain([]) == []


def test_the_least_of_a_curve_and_what_another_time_costs():
    curve = (torch.tensor([0.2, 0.5, 0.8]), torch.tensor([2.0, 1.0, 1.25]), None)
    assert solvers.least(curve, 0.8) == (0.5, 0.25) and solvers.least(curve, 0.5) == (0.5, 0)
    with pytest.raises(ValueError, match="time=0.3 was not tried; the curve has 0.2, 0.5, 0.8"):
        solvers.least(curve, 0.3)


def test_a_table_has_a_row_for_each_nfe_that_a_sampler_took():
    table = tables.by_nfe({"Euler": {1: [0.1, 0.3], 2: [0.012345]}, "Heun": {3: [12.0]}})
    assert table.columns == ("NFE", "Euler", "Heun")
    assert table.rows == [(1, "0.2", ""), (2, "0.0123", ""), (3, "", "12")]


def test_a_trend_by_chance_is_that_of_the_draws():
    draws = [[Evaluation(value, 1.0, 0.0)] for value in (2.0, 1.0, 3.0)]
    assert solvers.trends_by_chance(draws) == pytest.approx([1 / 3])


def test_the_configurations_of_a_preset_in_rows():
    rows = {row[0]: row[2:] for row in ladder.configurations(Experiment("smoke"))}
    assert rows["A"] == ("random", 8, "`Uniform()`", "`squared_l2`", "teacher")
    assert str(rows["third"][0]) == "F" and rows["third"][1:3] == (16, "`UShaped(a=4.0)`")


def test_what_the_paper_prints_by_steps():
    printed = published.ladder(("one", "two"))
    assert printed["one"]["CIFAR-10"]["A"] == 12.21 and "A" not in printed["two"]["CIFAR-10"]
    assert printed["two"]["FFHQ 64"]["F"] == 4.41
    with pytest.raises(ValueError, match="name='cifra10' is unknown; .*did you mean 'cifar10'"):
        published.table("cifra10")


@pytest.mark.parametrize(("name", "most"), [("cifar10", (10,)), ("imagenet64", (1, 1))])
def test_scores_that_the_paper_prints_beside_fid(name, most):
    """Of the methods that have them; a rank correlation that a slipped column would not have."""
    every = published.scores(name)
    assert all(len(row) == len(published.SCORES[name]) for row in every)
    assert sum(row[0].startswith("2-rectified flow++") for row in every) == 2
    rows = [row for row in every if "–" not in row]
    assert all(0 < float(value) <= bound for row in rows for value, bound in zip(row[3:], most, strict=True))
    assert {len(row) for family in published.table(name).values() for row in family} == {3 + len(most)}
    fid, score = ([float(row[column]) for row in rows] for column in (2, 3))
    assert len(rows) > 15 and stats.kendalltau(fid, score).statistic < -0.3
