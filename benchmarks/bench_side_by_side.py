"""Trainings side by side: two processes with a thread each, against one process with two threads."""

import shutil

import pytest
import torch

from rfpp.experiment import Experiment
from rfpp.pipeline import scheduling

CONFIGS = ("B", "C", "D", "C-small")


def bench_side_by_side(compare, size, tmp_path, monkeypatch):
    if scheduling._cores() < 2:
        pytest.skip("there is one core only")
    monkeypatch.setattr(scheduling, "_cores", lambda: 2)
    runs, pristine = tmp_path / "runs", tmp_path / "pristine"
    changes = {"training.steps": size(20, 1), "pairs.train": size(1000, 16), "pairs.num_steps": size(18, 2)}
    Experiment("laptop", changes, runs=pristine, jobs=1).pairs()

    def begin():
        """Pairs are there, trainings are not."""
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(pristine, runs)

    def train(jobs):
        torch.set_num_threads(2)
        Experiment("laptop", changes, runs=runs, jobs=jobs).train(CONFIGS[: size(4, 2)], [0])

    compare(
        lambda: train(2),
        lambda: train(1),
        question="four trainings of digits on two cores, side by side in two processes",
        baseline="one after the other in one process with two threads",
        goal=1.35,
        rounds=5,
        prepare=begin,
    )
