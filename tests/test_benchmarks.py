"""Baselines give the library's results, every benchmark runs, and the page of the book says what was measured."""

import ast
import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import baselines
import cores
import measure
import numpy as np
import psutil
import pytest
import torch
from truth import CHANCE, agrees, kolmogorov_bound, network, randn

from rfpp import engine, pairs, samplers, timesteps
from rfpp.book import benchmarks as page
from rfpp.denoisers import EDMPrecond
from rfpp.engine.run import Run
from rfpp.networks import SongUNet

ROOT = Path(__file__).resolve().parents[1]


def test_every_benchmark_runs():
    """Once each, at a size that says nothing about speed; in a process of its own, with the settings of its folder."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--tiny", "--benchmark-disable", "-q", "-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


# More cores

bound = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")


@pytest.mark.parametrize(("available", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_numbers_of_cores_double_up_to_all(available, counts):
    assert cores.powers(available) == counts


@bound
def test_a_command_sees_as_many_cores_as_it_is_given_and_results_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RFPP_JOBS", "7")
    own = os.sched_getaffinity(0)
    shown = "import os; print(len(os.sched_getaffinity(0)), os.environ['RFPP_RUNS'], 'RFPP_JOBS' in os.environ)"
    printed = cores.on_cores(1, [sys.executable, "-c", shown], tmp_path)
    assert printed.split() == ["1", str(tmp_path), "False"] and os.sched_getaffinity(0) == own


@bound
def test_a_core_has_a_pace_and_trainings_take_time():
    assert cores.pace() > 0 and cores.trained(trainings=1, steps=1) > 0


@bound
@pytest.mark.parametrize("asked", [["0"], ["1", "100000"]])
def test_cores_that_are_not_there_are_refused(asked, capsys):
    with pytest.raises(SystemExit):
        cores.main(["--cores", *asked])
    assert "can be used here" in capsys.readouterr().err


# The usual ways


def test_scipys_inverse_of_the_density_is_the_closed_form():
    p = np.linspace(0.001, 0.999, 31)
    np.testing.assert_allclose(baselines.NumericUShaped().ppf(p), timesteps.UShaped().icdf(torch.tensor(p)), atol=1e-7)


@pytest.mark.parametrize("draw", [baselines.NumericUShaped().sample, baselines.solved_times])
def test_numeric_times_follow_the_law(draw):
    times, n = draw(200, np.random.default_rng(0)).double().sort().values, 200
    distances = (timesteps.UShaped().cdf(times) - torch.arange(n) / n).abs()
    assert distances.max() < kolmogorov_bound(n, CHANCE) + 1 / n


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_archives_read_one_by_one_hold_what_is_imported_from_them(tmp_path, shape):
    pixels = torch.randint(256, (12, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    baselines.write_archives(tmp_path, pixels)
    imported = pairs.PairDataset(pairs.import_released(tmp_path / "samples.zip", tmp_path / "z.zip", tmp_path / "own"))
    indices = torch.tensor([7, 0, 11, 7])
    x, z, _ = baselines.one_by_one(baselines.ArchivedPairs(tmp_path), indices)
    own_x, own_z, _ = imported.batch(indices)
    assert torch.equal(z, own_z) and torch.equal(x, own_x) and z.std() == pytest.approx(1, abs=0.2)


def test_a_loop_over_parameters_updates_as_the_library_does():
    run = Run(network(), engine.Optimisation(10, 1e-2, ema=0.9, growing=False), engine.Machinery())
    model, average = copy.deepcopy(run.model), copy.deepcopy(run.model)
    optimiser = baselines.adam(model, 1e-2)
    baselines.average_weights(average, model, 0.0)
    run.average.update_parameters(run.model)  # the first only copies
    for step in range(4):
        for place, (one, other) in enumerate(zip(run.model.parameters(), model.parameters(), strict=True)):
            one.grad, other.grad = (randn(*one.shape, seed=100 * step + place).to(one) for _ in range(2))
        run.optimiser.step()
        run.average.update_parameters(run.model)
        optimiser.step()
        baselines.average_weights(average, model, 0.9)
    for one, other in zip(run.average.module.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_attention_spelt_out_is_the_librarys():
    made = SongUNet(8, 3, 3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8, 4])
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=place)
    plain = baselines.plain(made.eval())
    kinds = {type(module).__name__ for module in plain.modules()}
    x, noise = randn(4, 3, 8, 8), torch.linspace(-1, 1, 4)
    assert "PlainBlock" in kinds and "UNetBlock" not in kinds
    with torch.no_grad():
        assert agrees(plain(x, noise), made(x, noise))


def test_samples_in_double_precision_are_the_librarys(tiny):
    z, labels = randn(3, 1, 8, 8), torch.arange(3)
    found, states = baselines.edm_sample(tiny, z, 6, labels)
    assert len(states) == 7 and states[0].dtype == torch.float64
    assert agrees(found, samplers.edm_sample(tiny, z, 6, labels=labels))


def test_the_usual_training_learns(tiny, tmp_path):
    """Its average leaves the teacher's weights, and no weight of the teacher moves."""
    pixels = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    baselines.write_archives(tmp_path, pixels)
    teacher = EDMPrecond(network())
    average = baselines.train(teacher, baselines.ArchivedPairs(tmp_path, classes=3), 3, 4)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(average.denoiser.model.parameters(), teacher.model.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2
    assert all(torch.equal(*both) for both in zip(teacher.model.parameters(), network().parameters(), strict=True))


# What is measured


def test_a_power_is_found_with_its_exponent_and_without_error():
    found = measure.growth({size: [3 * size**1.5, 3 * size**1.5] for size in (1, 10, 100, 1000)})
    assert found["slope"] == pytest.approx(1.5) and found["error"] == pytest.approx(0, abs=1e-6)


def test_fixed_costs_show_in_slope_and_error():
    found = measure.growth({size: [100 + size] for size in (10, 100, 1000, 10_000)})
    assert 0.3 < found["slope"] < 0.9 and found["error"] > 0.05


def test_a_ratio_is_that_of_rounds():
    """A machine that becomes ten times slower in the middle changes both times of a round, and not their ratio."""
    found = measure.compared([2.0, 2.0, 20.0, 20.0], [1.0, 1.0, 10.0, 10.0])
    assert found["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_other_work_is_noticed_and_own_is_not():
    watch = measure.Watch(patience=0.0)
    watch.look()
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    share = watch.end()
    assert watch.taken < watch.lasted * psutil.cpu_count() - 0.4  # of this half second nothing counts
    assert 0 <= share <= 1


# The page


def comparison(low, median, high, goal):
    ratio = {"low": low, "median": median, "high": high}
    seconds = {"usual": median * 2e-3, "ours": 2e-3}
    return {"kind": "comparison", "question": "q", "baseline": "b", "goal": goal, "ratio": ratio, "seconds": seconds}


def grown(slope):
    return {
        "kind": "growth", "what": "w", "over": "pairs", "unit": "s", "expected": 1.0, "tolerance": 0.1,
        "sizes": [10, 1000], "values": [0.5, 50.0], "slope": slope, "error": 0.01,
    }  # fmt: skip


def results(*entries):
    info = {
        "cpu": "c", "cores": 2, "memory_gib": 8, "system": "s", "python_version": "3", "packages": {"torch": "2"},
        "minutes": 5.0,
    }  # fmt: skip
    return {
        "machine_info": info, "commit_info": {"id": "abc", "dirty": False}, "datetime": "2026-01-01",
        "benchmarks": [{"extra_info": {**entry, "others": 0.1}} for entry in entries],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        (comparison(2.1, 2.2, 2.3, 2), "yes"),
        (comparison(1.9, 2.2, 2.3, 2), "within the spread"),
        (comparison(1.7, 1.8, 1.9, 2), "no"),
        (comparison(1.7, 1.8, 1.9, None), ""),
        (grown(1.05), "yes"),
        (grown(0.8), "no"),
        (grown(1.2), "no"),
    ],
)
def test_a_goal_is_reached_or_not(entry, verdict):
    assert page.reached(entry) == verdict


def test_the_page_shows_what_was_missed():
    found = results(comparison(1.7, 1.8, 1.9, 20), comparison(6000, 7000, 8000, 5000), grown(1.3))
    missed, kept = page.comparisons(found).rows
    assert missed[2:] == ("3.60 ms", "2.00 ms", "1.80 [1.70, 1.90]", "20", "no")
    assert kept[4:] == ("7,000 [6,000, 8,000]", "5,000", "yes")
    assert page.growths(found).rows == [
        ("w", "10 pairs: 500 ms", "1,000 pairs: 50.0 s", "1.300 ± 0.010", "1 ± 0.1", "no")
    ]
    assert page.tally(found).startswith("Of 3 goals for a CPU, 1 are reached, 2 are missed, and 0 lie")


def test_what_was_measured_last_is_there_for_every_benchmark():
    """So that a benchmark that was added, or asks something else, is measured before it is committed."""
    named = set()
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        functions = (node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
        named |= {f"{path.name}::{name}" for name in functions if name.startswith("bench_")}
    found = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    measured = {each["fullname"].partition("[")[0] for each in found["benchmarks"]}
    needs_a_machine = {"bench_pairs.py::bench_noise_on_the_gpu", "bench_training.py::bench_network_in_bf16"}
    assert named - needs_a_machine <= measured <= named
    assert "node" not in found["machine_info"]


def test_the_page_is_written_for_the_book(tmp_path):
    (tmp_path / "figures").mkdir()
    page.write(tmp_path)
    included = [line.split()[-1] for line in (ROOT / "book" / "benchmarks.md").read_text().splitlines()
                if line.startswith("```{include}")]  # fmt: skip
    assert included and all((tmp_path / name).read_text().strip() for name in included)
    assert (tmp_path / "figures" / "benchmarks.svg").stat().st_size > 10_000
