"""Costs: the paper's own table, operations counted by hand, and paces that are positive."""

import pytest
import torch
from torch import nn

from rfpp import presets
from rfpp.experiment import Experiment
from rfpp.pipeline import costs
from rfpp.pipeline.plan import Plan
from rfpp.studies import accounts


def test_the_papers_table_6():
    """Section 5.2: 395M + 1433.6M for reflow; 3.1 and 1.5 times as many for the others."""
    size = costs.Training(5_000_000, 79, 700_000, 2048)
    reflow = costs.forward_passes(size, "reflow")
    assert reflow == {"making pairs": 395_000_000, "training": 1_433_600_000}
    others = {name: sum(costs.forward_passes(size, name).values()) for name in costs.METHODS if name != "reflow"}
    assert others == {"consistency distillation": 5_734_400_000, "consistency training": 2_867_200_000}
    with pytest.raises(ValueError, match="method='reflwo' is unknown; .*did you mean 'reflow'"):
        costs.forward_passes(size, "reflwo")


def test_operations_are_those_of_a_convolution():
    """Two operations a multiplication, by hand: 3x3 kernels, 4 to 5 channels, 8x8 places; three times that with the
    gradients of weights and input, of which a frozen layer needs one less."""
    convolution = nn.Conv2d(4, 5, 3, padding=1, bias=False)
    x = torch.zeros(1, 4, 8, 8, requires_grad=True)
    once = 2 * 9 * 4 * 5 * 64
    assert costs._count(lambda: convolution(x).sum()) == 3 * once
    convolution.requires_grad_(False)
    assert costs._count(lambda: convolution(x).sum()) == 2 * once


def test_vgg_has_the_operations_that_are_published():
    """VGG-16 at 224x224 has 15.5 billion multiplications (Simonyan and Zisserman; the classifier's 0.12 left out):
    forwards twice and backwards once make 92 billion operations. The networks have the paper's sizes."""
    parameters, network, lpips = costs.step_operations("cifar10")
    assert parameters == 56_397_827 and lpips == pytest.approx(3 * 2 * 15.35e9, rel=0.01)
    assert network > 6 * parameters  # each weight is used at more than one place


def test_a_pace_is_measured():
    pace = costs.measure(Plan(presets.load("smoke")), repeats=2)
    assert pace.forward > pace.step > 0 and pace.plain > 0 and "images a second" in str(pace)
    assert costs.Pace(100, 8, 10, "cpu").lpips == pytest.approx(0.25)  # 1/8 s instead of 1/10 s


def test_what_pairs_are_worth_in_passes_and_in_time():
    """395M of 1828.6M passes; 96 pairs of 7 evaluations at 100 a second beside 3 steps of 16 images at 10 a second."""
    paper = costs.Training(5_000_000, 79, 700_000, 2048)
    assert accounts.pairs_share({"reflow": costs.forward_passes(paper, "reflow")}) == pytest.approx(395 / 1828.6)
    found = accounts.pairs_over_training(Experiment("smoke"), costs.Pace(forward=100, step=10, plain=10, device="cpu"))
    assert found == pytest.approx(6.72 / 4.8)


def test_the_settings_of_a_preset_stand_below_the_papers():
    rows = accounts.settings(presets.load("laptop"))
    assert [row[0] for row in rows] == [*accounts.TABLE_7, "`laptop`"]
    assert {len(row) for row in rows} == {len(accounts.SETTINGS)}
    assert rows[-1][2:4] == ("12,000, 35 NFE", "128")


def test_the_bill_of_imagenet_by_hand():
    """Table 7: 5M pairs of 79 evaluations, 700,000 steps of 2048 for B to F and of 128 for A; a step is three passes.

    G inverts the 1,217,109 training images with 128 evaluations each, and is trained for 5,000 steps. 50,000 samples
    and 5,000 pairs grade each of the seven. E, F and G train with LPIPS.
    """
    preset = presets.load("paper-imagenet64")
    bill = costs.bill(Plan(preset, costs.expected(preset)))
    pairs, trained = 5_005_000 * 79, 700_000 * (5 * 2048 + 128) + 5_000 * 2048
    assert bill.passes == pairs + 3 * trained + 1_217_109 * 128 + 7 * 55_000
    assert bill.parameters == pytest.approx(296e6, rel=0.001) and bill.memory == 20 * bill.parameters
    _, step, lpips = costs.step_operations("imagenet64")
    with_lpips = (2 * 700_000 + 5_000) * 2048
    assert bill.operations == pytest.approx(bill.passes * step / 3 + with_lpips * lpips, rel=0.01)


def test_counting_places_nothing_on_a_device(monkeypatch):
    """A placed network takes its inputs along, and those that are counted have no content to take."""

    def refuse(model):
        raise AssertionError("placed")

    monkeypatch.setattr(costs.processes, "place", refuse)
    plan = Plan(presets.load("smoke"))
    teacher, trunk = costs._teacher(plan), costs._perceptual(plan)
    assert costs.bill(plan).operations > 0
    assert not any(parameter.is_meta for model in (teacher, trunk) for parameter in model.parameters())


def test_small_networks_are_counted_too():
    """Longer trainings take more passes and operations; what stays on the disk is the same."""
    small, large = (costs.bill(Plan(presets.load("smoke", {"training.steps": steps}))) for steps in (3, 6))
    assert small.parameters == large.parameters and small.stored == large.stored
    assert large.passes > small.passes and large.operations > small.operations


def test_time_that_was_spent_is_that_of_all_steps_or_none(runs):
    experiment = Experiment("smoke", {"seeds": [0]})
    assert costs.spent(experiment.plan, experiment.run) is None
    experiment.compute(experiment.plan.steps())
    assert costs.spent(experiment.plan, experiment.run) >= 0
