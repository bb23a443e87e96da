"""The ladder: gains by hand, with seeds paired."""

import pytest

from rfpp.configurations import ALL
from rfpp.experiment import Experiment
from rfpp.pipeline.grades import Evaluation
from rfpp.studies import ladder, published


def graded():
    """Every configuration at 10 and 20 for two seeds, but B at 5 and 30; pair errors are a tenth of that."""
    runs = {name: (5, 30) if name == "B" else (10, 20) for name in ALL}
    by = {name: [Evaluation(value, 1.0, value / 10) for value in values] for name, values in runs.items()}
    return ladder.Ladder({"one step": by, "two steps": by})


def test_a_gain_is_the_share_that_a_change_removes_seed_by_seed():
    assert graded().gain("one step", "A", "B") == [0.5, -0.5]
    assert graded().gain("two steps", "B", "A") == pytest.approx([-1, 1 / 3])
    rungs = graded().rungs()
    assert [*rungs] == ["A → B", "B → C", "C → D", "D → E", "E → F", "F → G", "C-small → D-small"]
    assert rungs["A → B"] == ([0.5, -0.5], [0.5, -0.5], pytest.approx([0.5, -0.5]))


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
