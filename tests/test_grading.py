"""Scores beside the Fréchet distance: precision and recall by definition, and a classifier in Inception's place."""

import math

import numpy as np
import pytest
import torch

from rfpp import samplers
from rfpp.data import to_float, to_uint8
from rfpp.experiment import Experiment
from rfpp.studies import grading


@pytest.fixture
def experiment():
    return Experiment("smoke", {"seeds": [1]})


def within(points, others):
    """The share of points that lie in a ball around one of the others that reaches to its third neighbour."""
    radii = np.sort(np.linalg.norm(others[:, None] - others[None], axis=2), axis=1)[:, 3]
    return float((np.linalg.norm(points[:, None] - others[None], axis=2) <= radii).any(axis=1).mean())


def test_scores_are_their_definitions(experiment):
    """One step of A, for the first seed: numpy's neighbours, the mean of ten splits, and the kept Fréchet distance."""
    found = grading.scores(experiment, ["A"], grading.few_steps(experiment))
    assert list(found) == [("teacher", 7), ("teacher", 1), ("teacher", 2), ("A", 1), ("A", 2)]
    rows = grading.score_rows(found)
    assert all(len(row) == len(grading.SCORES) for row in rows) and rows[3][0] == "A"

    z, labels = experiment.noise(64)
    images = samplers.sample(experiment.flow("A", 1), z, 1, times=[0.999], labels=labels)
    pixels = to_uint8(images)
    real = grading.real_features(experiment).double().numpy()
    with torch.no_grad():
        made = experiment.embedding(to_float(pixels)).double().numpy()
    one = found["A", 1]
    assert (one.precision, one.recall) == pytest.approx((within(made, real), within(real, made)), abs=2 / 64)
    assert one.frechet == experiment.evaluate("A", 1).frechet
    assert found["teacher", 7].recall > one.recall and found["teacher", 7].classifier_score > one.classifier_score
    assert 1 <= one.classifier_score == grading.classifier_score(experiment, pixels) <= 10


def test_the_classifier_score_of_certain_digits_is_the_number_of_classes(experiment, monkeypatch):
    """Ten classes alike and one at a time: ten; one class alone: one."""

    def certain(images):
        return 100 * torch.eye(10)[images[:, 0, 0, 0].add(1).mul(127.5).round().long()]

    monkeypatch.setattr(Experiment, "classifier", staticmethod(certain))
    digits = torch.arange(10).repeat(500).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    assert grading.classifier_score(experiment, digits) == pytest.approx(10, abs=0.2)
    assert grading.classifier_score(experiment, digits[::10]) == pytest.approx(1)
    assert math.isnan(grading.classifier_score(experiment, digits[:9]))


def test_without_a_classifier_its_score_is_left_out(experiment, monkeypatch):
    def none(self):
        raise ValueError("there is none")

    monkeypatch.setattr(grading, "_has_classifier", lambda experiment: False)
    monkeypatch.setattr(Experiment, "classifier", property(none))
    assert grading.protocol(experiment).endswith("no classifier score, as no classifier of these classes grades here")
    (row,) = grading.score_rows({("F", 1): grading.Scores(0.5, 1.0, 0.25, float("nan"))})
    assert row == ("F", 1, "0.50", "1.000", "0.250", "")
    assert math.isnan(grading.classifier_score(experiment, torch.zeros(20, 1, 8, 8, dtype=torch.uint8)))


def test_nothing_is_scored_without_configurations(experiment, runs):
    assert grading.scores(experiment, [], grading.few_steps(experiment)) == {} and not runs.exists()


@pytest.mark.parametrize(
    ("configs", "error", "complaint"),
    [
        ("A", TypeError, "graded='A' is a str"),
        (["teachr"], ValueError, "config='teachr' is unknown"),
        (["F", "F"], ValueError, "has an entry twice"),
    ],
)
def test_configurations_to_score_are_checked(experiment, configs, error, complaint):
    with pytest.raises(error, match=complaint):
        grading.check_scored(experiment, configs)


def test_there_must_be_enough_images_for_a_third_neighbour():
    few = Experiment("smoke", {"evaluation.samples": 3})
    with pytest.raises(ValueError, match="evaluation.samples, or .*=3 is too small; an integer of at least 4"):
        grading.check_scored(few, ["F"])
