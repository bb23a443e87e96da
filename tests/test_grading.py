"""What stands beside Tables 4 and 5: images that are known to be good or bad, in the features of the digits."""

import pytest
from truth import randn

from rfpp.data import to_float
from rfpp.experiment import Experiment
from rfpp.studies import grading


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return Experiment("smoke", runs=tmp_path_factory.mktemp("runs"))


def row(experiment, images):
    (found,) = grading.standing(experiment, {"these": images})
    assert len(found) == len(grading.STANDING) and found[:2] == ("these", len(images))
    return dict(zip(grading.STANDING[2:], map(float, found[2:]), strict=True))


def test_the_training_images_are_as_good_as_can_be(experiment):
    """No distance, and all within each other's manifold. Ten classes are equally frequent; a classifier that is trained
    with labels smoothed by 0.05 should leave an entropy of 0.28 nats: a score of 10 exp(-0.28) = 7.5. It is surer."""
    found = row(experiment, to_float(experiment.data.train.pixels))
    assert found["Fréchet distance"] == pytest.approx(0, abs=1e-3) and found["precision"] == found["recall"] == 1
    assert 7 < found["score by classes"] <= 10


def test_noise_is_outside_and_one_class_alone_has_no_score(experiment):
    """Within a class nothing varies but what the classifier is unsure of: the least score is one."""
    assert row(experiment, randn(200, 1, 8, 8))["precision"] < 0.2
    train = experiment.data.train
    alone = row(experiment, to_float(train.pixels[train.labels == 3]))
    assert alone["precision"] > 0.8 and alone["recall"] < 0.6 and alone["score by classes"] < 1.3
