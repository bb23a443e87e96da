"""What a study measures is computed once, for these arguments and this code, and comes back as it was."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import measurements
from rfpp.pipeline.identities import Unidentified
from rfpp.studies.solvers import Start


@pytest.fixture
def experiment():
    return Experiment("smoke")


@dataclass(frozen=True)
class Foreign:
    value: float


def noted(place, *values):
    """Its arguments, after a line in a file."""
    with open(place, "a") as file:
        file.write("computed\n")
    return values


def noted_otherwise(place, *values):
    """The same with other code."""
    with open(place, "a") as file:
        file.write("computed\n")
    return list(values)


def count(place):
    return len(place.read_text().splitlines()) if place.exists() else 0


def test_it_is_computed_once_for_its_arguments_and_its_code(experiment, tiny_flow, tmp_path):
    place, z = tmp_path / "calls", torch.arange(3.0)
    for number in (1, 1):
        assert experiment.kept(noted, str(place), number, "a") == (1, "a")
    assert count(place) == 1
    assert Experiment("smoke").kept(noted, str(place), 1, "a") == (1, "a") and count(place) == 1
    experiment.kept(noted, str(place), 2, "a")
    experiment.kept(noted_otherwise, str(place), 1, "a")
    assert count(place) == 3
    for value in (z, z.clone(), z + 1):
        experiment.kept(noted, str(place), value)
    assert count(place) == 5


def test_flows_and_experiments_are_told_apart_by_what_they_are(experiment, tiny_flow, tmp_path):
    def identity(argument):
        return measurements.Measurement(noted, (argument,)).key

    other = RectifiedFlow(type(tiny_flow.denoiser)(_changed(tiny_flow.denoiser.model)))
    assert identity(tiny_flow) == identity(tiny_flow) != identity(other)
    assert identity(experiment) == identity(Experiment("smoke"))
    assert identity(experiment) != identity(Experiment("smoke", {"training.steps": 4}))
    assert identity(experiment) != identity(Experiment("laptop"))


def _changed(network):
    same = type(network)(**network.config)
    same.load_state_dict({name: value + name.endswith("aux_conv.bias") for name, value in network.state_dict().items()})
    return same.eval()


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], 3: (math.inf, [])},
        {0.25: {"deep": [(1,), ()]}},
        (),
    ],
    ids=str,
)
def test_a_result_comes_back_as_it_was(experiment, tmp_path, value):
    first, again = (experiment.kept(noted, str(tmp_path / "calls"), value) for _ in range(2))
    assert first == again == (value,) and count(tmp_path / "calls") == 1


def test_tensors_and_dataclasses_come_back_as_they_were(experiment, tmp_path):
    start = Start(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).T, torch.tensor([1, 2]))
    ((again, none),) = experiment.kept(noted, str(tmp_path / "calls"), (start, Start(torch.zeros(0), None)))
    assert isinstance(again, Start) and torch.equal(again.z, start.z) and torch.equal(again.labels, start.labels)
    assert again.labels.dtype == torch.int64 and none.labels is None and none.z.shape == (0,)


def test_what_cannot_be_kept_is_refused(experiment, tmp_path):
    with pytest.raises(TypeError, match="a Foreign cannot be kept; numbers, strings, tensors and dataclasses of rfpp"):
        experiment.kept(noted, str(tmp_path / "calls"), Foreign(1.0))
    with pytest.raises(Unidentified, match="a lambda"):
        experiment.kept(lambda: 1)
    assert not list(tmp_path.rglob("measurement/*/manifest.json"))


def test_a_damaged_one_is_computed_again(experiment, tmp_path):
    place = tmp_path / "calls"
    experiment.kept(noted, str(place), 1)
    (value,) = tmp_path.rglob("value.json")
    value.write_text("{")
    with pytest.warns(UserWarning, match="damaged"):
        assert Experiment("smoke").kept(noted, str(place), 1) == (1,)
    assert count(place) == 2


@pytest.mark.parametrize("name", ["subprocess:Popen", "tests.test_measurements:Foreign", "rfpp.data:load"])
def test_only_dataclasses_of_the_package_are_made_from_a_file(name):
    with pytest.raises(ValueError, match=r"no dataclass of rfpp|cannot be imported"):
        measurements._put_together(json.loads(json.dumps({name: {"mapping": []}})), {})
