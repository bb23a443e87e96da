"""Trainings side by side: processes with a thread each, against one process with two threads, and against one core."""

import shutil

import pytest
import torch

from rfpp.experiment import Experiment
from rfpp.pipeline import places

CONFIGS = ("B", "C", "D", "C-small")


@pytest.fixture
def trainings(size, tmp_path, monkeypatch):
    """A function that trains the configurations for some seeds in ``jobs`` processes, and one to call before that."""
    runs, pristine = tmp_path / "runs", tmp_path / "pristine"
    changes = {"training.steps": size(20, 1), "pairs.train": size(1000, 16), "pairs.num_steps": size(18, 2)}
    Experiment("laptop", changes, runs=pristine, jobs=1).pairs()

    def begin():
        """Pairs are there, trainings are not."""
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(pristine, runs)

    def train(jobs, cores, seeds):
        monkeypatch.setattr(places, "cores", lambda: cores)
        torch.set_num_threads(cores // jobs)
        Experiment("laptop", changes, runs=runs, jobs=jobs).train(CONFIGS[: size(4, 2)], seeds)

    return train, begin


def bench_side_by_side(compare, trainings):
    if places.cores() < 2:
        pytest.skip("there is one core only")
    train, begin = trainings
    compare(
        lambda: train(2, 2, [0]),
        lambda: train(1, 2, [0]),
        question="four trainings of digits on two cores, side by side in two processes",
        baseline="one after the other in one process with two threads",
        goal=1.35,
        rounds=5,
        prepare=begin,
    )


@pytest.mark.parametrize("cores", [2, 4, 8])
def bench_cores(compare, trainings, cores):
    if places.cores() < cores:
        pytest.skip(f"there are fewer than {cores} cores")
    train, begin = trainings
    compare(
        lambda: train(cores, cores, [0, 1]),
        lambda: train(1, 1, [0, 1]),
        question=f"eight trainings of digits, on {cores} cores",
        baseline="on one core",
        goal=None,
        rounds=3,
        prepare=begin,
    )
