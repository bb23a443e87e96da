"""Steps side by side: the same bits as one after the other, whatever dies meanwhile."""

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rfpp import commands as cli
from rfpp.base import processes
from rfpp.configurations import Configuration
from rfpp.experiment import Experiment
from rfpp.pipeline import places, scheduling, workers
from rfpp.pipeline.steps import Step, in_order
from rfpp.pipeline.store import StorageError

CONFIGS, SEEDS = ("A", "F", "third"), (0, 1)
"""Two flows from the same pairs, and one that goes on from another."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As each of two workers has on two cores; sums depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """As many as there are jobs, so that each has one thread."""
    monkeypatch.setattr(places, "cores", lambda: 2)
    monkeypatch.delenv("RFPP_JOBS", raising=False)


def everything(experiment):
    return [experiment.plan.grade(config, seed, experiment.sampler()) for seed in SEEDS for config in CONFIGS]


def results(experiment):
    """All weights, images and grades, by step and file."""
    found = {}
    for step in in_order(everything(experiment)):
        for path in sorted(experiment.run.find(step).folder.rglob("*.safetensors")):
            found[step.key, path.name] = load_file(path)
        if step.name == "evaluation":
            found[step.key] = step.load(experiment.run)
    return found


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Computed one after the other."""
    made = Experiment("smoke", runs=tmp_path_factory.mktemp("alone"), jobs=1)
    made.compute(everything(made))
    return results(made)


def test_side_by_side_is_the_same_bit_by_bit(alone, tmp_path):
    made = Experiment("smoke", runs=tmp_path, jobs=2)
    made.compute(everything(made))
    assert same(results(made), alone)


MANY = {"pairs.train": 4100, "pairs.num_steps": 2, "pairs.batch_size": 500, "training.steps": 1}
"""Pairs of two shards, and next to nothing else."""


def test_parts_of_a_step_are_computed_side_by_side(tmp_path):
    """The shards of pairs, with the same bits."""
    made = {jobs: Experiment("smoke", MANY, runs=tmp_path / f"{jobs}", jobs=jobs) for jobs in (1, 2)}
    for experiment in made.values():
        experiment.train("A", [0])
    step = made[1].plan.pairs()
    one, other = (experiment.run.find(step) for experiment in made.values())
    assert step.parts == 2 and one.manifest["files"] == other.manifest["files"]


def test_two_runs_at_once_make_no_part_twice(tmp_path):
    """Both ask for the same pairs at the same time, each with workers of its own."""
    code = "from rfpp.experiment import Experiment; import sys; from pathlib import Path\n" + (
        f"Experiment('smoke', {MANY!r}, runs=Path({str(tmp_path)!r}), jobs=2).pairs()\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    seen = {}  # each shard by the file that it is, as long as the runs go on
    while any(process.poll() is None for process in begun):
        for path in tmp_path.rglob("shard-*.safetensors"):
            with contextlib.suppress(OSError):
                seen.setdefault(path.name, set()).add(path.stat().st_ino)
        time.sleep(0.02)
    assert [process.returncode for process in begun] == [0, 0]
    assert {name: len(files) for name, files in seen.items()} == {f"shard-0000{k}.safetensors": 1 for k in range(2)}


@dataclass(frozen=True)
class InParts(Step):
    """Three parts, and one that needs it; nothing is computed."""

    need: Any = None
    name = "in_parts"

    @property
    def parts(self):
        return 1 if self.need else 3

    def compute(self, folder, run):
        raise AssertionError


class Answers:
    """Two workers that say at once how a step ended; ``deaths``: parts, by number, in which a worker dies once."""

    def __init__(self, deaths=()):
        self.deaths, self.asked = list(deaths), []

    def has_room(self, begun):
        return begun < 2

    def return_idle(self):
        pass

    def submit(self, function, step, run, note):
        self.asked.append((step.parts, run.part))
        future = Future()
        if run.part in self.deaths:
            self.deaths.remove(run.part)
            future.set_exception(BrokenExecutor("died"))
        else:
            future.set_result(None)
        return future


ALL, WHOLE, LAST = [(3, 0), (3, 1), (3, 2)], (3, None), (1, None)


@pytest.mark.parametrize(
    ("deaths", "asked"),
    [
        ((), [*ALL, WHOLE, LAST]),
        ((1,), [(3, 0), (3, 1), *ALL, WHOLE, LAST]),  # two at a time; what is whole is found again
        ((0, 1), [(3, 0), (3, 1), *ALL, WHOLE, LAST]),  # both count as one attempt
        ((2,), [*ALL, *ALL, WHOLE, LAST]),
        ((2, None), [*ALL, *ALL, WHOLE, WHOLE, LAST]),  # the last attempt is the step's as a whole
    ],
)
@pytest.mark.filterwarnings("ignore:a worker died")
def test_a_step_is_finished_after_its_parts(tmp_path, deaths, asked):
    steps, answers = [InParts(), InParts(InParts())], Answers(deaths)
    run = Experiment("smoke", runs=tmp_path / "runs", jobs=1).run
    scheduling._Work(run, steps, answers, tmp_path).do()
    assert answers.asked == asked


def test_a_step_whose_workers_die_in_every_part_is_given_up(tmp_path):
    answers = Answers([0, 1, 0, 1, None])
    run = Experiment("smoke", runs=tmp_path / "runs", jobs=1).run
    with (
        pytest.warns(UserWarning, match="a worker died"),
        pytest.raises(processes.WorkerLost, match="3 times in a row"),
    ):
        scheduling._Work(run, [InParts()], answers, tmp_path).do()
    assert answers.asked == [*2 * [(3, 0), (3, 1)], WHOLE]


def test_a_finished_step_tells_how_long_its_parts_took(tmp_path):
    """The worker that finishes it finds them made, and would count a moment. Parts that took none are added to."""
    experiment = Experiment("smoke", MANY, runs=tmp_path, jobs=1)
    step, run = experiment.plan.pairs(), experiment.run
    for part in range(step.parts):
        run.get_part(step, part)
    notes = sorted(run.store.partial(step.name, step.key).glob(".took-*"))
    took = [float(note.read_text()) for note in notes]
    assert len(took) == 2 and took[0] > took[1] > 0  # 4,096 pairs and 4
    run.get_part(step, 0)
    assert float(notes[0].read_text()) >= took[0]
    notes[0].write_text("100")
    manifest = run.get(step).manifest
    assert manifest["seconds"] >= 100 and set(manifest["files"]) == {
        "pairs.json", "shard-00000.safetensors", "shard-00001.safetensors"
    }  # fmt: skip


def test_a_full_disk_is_named_for_a_part_as_for_a_step(tmp_path, monkeypatch):
    experiment = Experiment("smoke", MANY, runs=tmp_path, jobs=1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rfpp.pairs.store.files.write_tensors", full)
    with pytest.raises(StorageError, match="there is no space left. Earlier results are intact"):
        experiment.run.get_part(experiment.plan.pairs(), 1)


def children(process=None):
    """The workers of a process, by default this one."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            if "popen_loky" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_worker_that_dies_is_named_and_its_step_made_again(alone, tmp_path):
    """One kill or two while it goes on, fewer than a step is begun."""
    made, stop = Experiment("smoke", {"machinery.save_every": 1}, runs=tmp_path, jobs=2), threading.Event()
    killed = []

    def kill():
        while not stop.wait(0.5) and len(killed) < scheduling.ATTEMPTS - 1:
            for child in children()[:1]:
                child.kill()
                killed.append(child.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.compute(everything(made))
    stop.set()
    killer.join()
    assert killed
    named = [str(warning.message) for warning in caught if "a worker died" in str(warning.message)]
    assert all("started again" in message for message in named)
    assert same(results(made), alone)


def test_what_a_worker_died_of_again_and_again_is_an_error(tmp_path, monkeypatch):
    """A premetric that ends its process, as running out of memory does."""
    experiment = Experiment("smoke", runs=tmp_path, jobs=2)
    deadly = Configuration("deadly", premetric=deadly_premetric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(processes.WorkerLost, match=r"train deadly, seed [01]: its worker died 3 times in a row"):
            experiment.compute([experiment.plan.flow(deadly, seed) for seed in (0, 1)])
    experiment.train(["A"], SEEDS)  # there are new workers


def deadly_premetric(a, b, x_t=None, t=None):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_step_that_gets_further_may_lose_its_worker_more_often(tmp_path):
    """One training loses its worker at every step. The other, which gets no further meanwhile, keeps its own."""
    experiment = Experiment("smoke", {"training.steps": 6, "machinery.save_every": 1}, runs=tmp_path, jobs=2)
    tiring, waiting = (
        Configuration("tiring", premetric=tiring_premetric),
        Configuration("waiting", premetric=WaitingPremetric(str(tmp_path))),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        experiment.compute([experiment.plan.flow(tiring, 0), experiment.plan.flow(waiting, 0)])
    deaths = [str(warning.message) for warning in caught if "a worker died" in str(warning.message)]
    assert sum("train tiring" in death for death in deaths) > scheduling.ATTEMPTS
    assert not any("train waiting" in death for death in deaths)


_calls = []


def tiring_premetric(a, b, x_t=None, t=None):
    """Ends its process at the second step."""
    _calls.append(1)
    if len(_calls) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return (a - b).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class WaitingPremetric:
    """Waits until a training under ``runs`` is finished."""

    runs: str

    def __call__(self, a, b, x_t=None, t=None):
        deadline = time.monotonic() + 120
        while not list(Path(self.runs).rglob("flow/[!.]*/manifest.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return (a - b).square().flatten(1).mean(dim=1)


def test_a_grade_gets_further_with_each_shard_of_its_samples(tmp_path):
    experiment = Experiment("smoke", runs=tmp_path, jobs=1)
    step = experiment.plan.grade("A", 0, experiment.sampler())
    work = scheduling._Work(experiment.run, [step], None, tmp_path)
    samples = experiment.run.store.partial(step.name, step.key) / "samples"
    samples.mkdir(parents=True)
    found = [work._got_further(step.key)]
    for number in range(2):
        path = samples / f"shard-{number}.safetensors"
        path.touch()
        os.utime(path, (number + 1, number + 1))
        found += [work._got_further(step.key), work._got_further(step.key)]
    assert found == [False, True, False, True, False]


def test_an_error_of_a_step_ends_the_others_and_is_raised(tmp_path):
    """The error comes once the other training has begun."""
    experiment = Experiment("smoke", {"training.steps": 100_000}, runs=tmp_path, jobs=2)
    with pytest.raises(ZeroDivisionError):
        experiment.compute(
            [
                experiment.plan.flow("A", 0),
                experiment.plan.flow(Configuration("b", premetric=BrokenPremetric(str(tmp_path))), 0),
            ]
        )
    assert list(tmp_path.rglob("flow/.*.partial/states/step-*"))  # A was stopped, its checkpoint written


@dataclass(frozen=True)
class BrokenPremetric:
    """Fails once a training under ``runs`` has drawn its first picture.

    The folder is a field: workers of an earlier test, which are used again, do not see this test's environment.
    """

    runs: str

    def __call__(self, a, b, x_t=None, t=None):
        deadline = time.monotonic() + 120
        while not list(Path(self.runs).rglob("flow/.*.partial/samples-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise ZeroDivisionError


# Signals, and how many there are


@contextlib.contextmanager
def started(runs, until):
    """A long training of two configurations, side by side in a process group of its own, once ``until(process)``."""
    command = [sys.executable, "-m", "rfpp", "train", "--preset", "smoke", "--config", "A", "B", "--seed", "0"]
    long = subprocess.Popen(
        [*command, "--jobs", "2", "--set", "training.steps=100000"], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RFPP_RUNS": str(runs)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    try:
        while not until(long):
            assert long.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield long
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(long.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_workers_with_their_checkpoints(runs, number):
    """The same command goes on from there; SIGINT as a terminal sends it, to all processes."""
    with started(runs, lambda process: len(list(runs.rglob("flow/.*.partial/samples-*"))) >= 2) as long:
        (os.killpg if number == signal.SIGINT else os.kill)(long.pid, number)
        _, message = long.communicate(timeout=60)
    assert long.returncode == 75 and f"stopped by {number.name}" in message, message
    assert len(list(runs.rglob("flow/.*.partial/states/step-*"))) >= 2


def test_a_signal_reaches_workers_that_have_not_begun(runs):
    """They still import what they need when it comes, for trainings whose pairs are there."""
    Experiment("smoke", runs=runs).pairs("train")
    with started(runs, lambda process: len(children(process.pid)) == 2) as long:
        assert not list(runs.rglob("flow/.*.partial"))
        long.send_signal(signal.SIGTERM)
        _, message = long.communicate(timeout=60)
    assert long.returncode == 75 and "stopped by SIGTERM" in message, message
    assert not list(runs.rglob("flow/.*.partial/samples-*"))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("0", "jobs=0 is too small; an integer of at least 1"),
        ("-2", "jobs=-2 is too small; an integer of at least 1"),
        ("100000", r"jobs=100000 need 100000 GiB of memory; \d+ fit into the free memory"),
    ],
)
def test_an_impossible_number_of_jobs_is_refused_before_any_work(runs, capsys, given, complaint):
    assert cli.main(["train", "--preset", "smoke", "--jobs", given]) == 2
    assert re.search(complaint, capsys.readouterr().err) and not runs.exists()


def test_the_number_of_jobs_comes_from_the_environment_or_the_machine(monkeypatch):
    assert scheduling.jobs() == (torch.cuda.device_count() or 2) and scheduling.jobs(1) == 1
    monkeypatch.setenv("RFPP_JOBS", "3")
    assert scheduling.jobs() == 3
    for given, complaint in {
        "all": "RFPP_JOBS='all' is not a number of jobs", "0": "RFPP_JOBS=0 is too small",
        "100000": "RFPP_JOBS=100000 need 100000 GiB",
    }.items():  # fmt: skip
        monkeypatch.setenv("RFPP_JOBS", given)
        with pytest.raises(ValueError, match=complaint):
            scheduling.jobs()


# Parts of a reader's own


OWN = """
import torch
from rfpp.configurations import Configuration
from rfpp.experiment import Experiment

def own(a, b, x_t=None, t=None):
    return (a - b).abs().flatten(1).mean(dim=1)

if __name__ == "__main__":
    experiment = Experiment("smoke", jobs=2)
    experiment.train(Configuration("own", premetric=own), [0, 1])
    print(*sorted(str(experiment.flow_file(Configuration("own", premetric=own), seed)) for seed in (0, 1)))
"""


def test_a_premetric_of_a_script_trains_in_workers(runs, tmp_path):
    """Its code is known where it was written; the workers have no file to read it from."""
    (tmp_path / "own.py").write_text(OWN)
    result = subprocess.run([sys.executable, str(tmp_path / "own.py")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(Path(file).is_file() for file in result.stdout.split())


def own_gpu(folder, name, together):
    """The GPU of the worker that runs this and its process, once as many tasks have begun."""
    (folder / name).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < together and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def test_workers_of_a_cluster_that_see_several_gpus_take_one_each(monkeypatch, tmp_path):
    """Whatever order they see them in; who was given one keeps it."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    taken, locks = [], []
    for seen in ("1,0", "0,1", "3"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        locks.append([])
        monkeypatch.setattr(places, "_own_place", locks[-1])
        workers._take_free_gpu("cluster")
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["0", "1", "3"] and list(map(len, locks)) == [1, 1, 0]


def test_each_worker_keeps_a_gpu_of_its_own(tmp_path, monkeypatch):
    """More workers than GPUs share them. As many again are the same processes; with other threads they are not."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    seen = []
    for again, count in (("first", 4), ("then", 4), ("last", 2)):
        (tmp_path / again).mkdir()
        monkeypatch.setattr(places, "cores", lambda count=count: 12 // count)  # other threads for two
        with workers.here(count) as found:
            futures = [found.submit(own_gpu, tmp_path / again, name, count) for name in "abcd"[:count]]
            seen.append(dict(future.result()[::-1] for future in futures))
            assert sorted(seen[-1].values()) == sorted("4545"[:count])
    first, then, last = seen
    assert first == then and not first.keys() & last.keys()


# Places that processes share


def hold(folder, number, told):
    """Hold a place until somebody kills this process."""
    with places.held(folder, number):
        told.send("held")
        time.sleep(600)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_free_places_are_borrowed_and_given_back(monkeypatch):
    """A process that is killed leaves its place, too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert not places.are_shared() and places.borrow() is None
    with places.shared(3) as folder, places.held(folder, 0) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "4" and environment["OMP_NUM_THREADS"] == "1"
        monkeypatch.setenv(places.VARIABLE, environment[places.VARIABLE])
        fork = multiprocessing.get_context("fork")  # which need not import anything
        heard, told = fork.Pipe(duplex=False)
        other = fork.Process(target=hold, args=[folder, 1, told])
        other.start()
        try:
            assert heard.poll(60) and heard.recv() == "held"
            free = places.borrow()
            assert free.gpus == ["6"] and places.borrow() is None
        finally:
            other.kill(), other.join()
        left = places.borrow()
        assert left.gpus == ["5"] and places.borrow() is None
        free.give_back()
        assert places.borrow().gpus == ["6"]


@pytest.fixture
def used(monkeypatch):
    """How many workers each call of :func:`rfpp.pipeline.scheduling.compute` had at most."""
    found, do = [], scheduling._side_by_side

    def watched(run, steps, given):
        found.append(1)
        submit = given.submit

        def submitted(*arguments):
            future = submit(*arguments)
            found[-1] = max(found[-1], len(given.workers))
            return future

        given.submit = submitted
        do(run, steps, given)

    monkeypatch.setattr(scheduling, "_side_by_side", watched)
    return found


def test_long_work_borrows_free_places(alone, tmp_path, monkeypatch, used):
    """Short work does not; the bits are the same. A place is borrowed also after the work has begun."""
    with places.shared(3) as folder, places.held(folder, 0), contextlib.ExitStack() as third:
        third.enter_context(places.held(folder, 2))
        monkeypatch.setenv(places.VARIABLE, str(folder))
        made = Experiment("smoke", runs=tmp_path, jobs=1)
        monkeypatch.setattr(scheduling, "_START", float("inf"))  # no step takes as long as a worker's start
        made.train("A", [0, 1])
        assert used == []
        monkeypatch.setattr(scheduling, "_START", 0.0)
        news = scheduling._Work._news
        monkeypatch.setattr(scheduling._Work, "_news", lambda work: third.close() or news(work))
        made.compute(everything(made))
        assert used == [3]
        assert [places.borrow(), places.borrow()].count(None) == 0  # they were given back
        made.compute(everything(made))
        assert len(used) == 1
    assert same(results(made), alone)


def test_a_step_of_several_parts_borrows_at_once(tmp_path, monkeypatch, used):
    with places.shared(4) as folder, places.held(folder, 0):
        monkeypatch.setenv(places.VARIABLE, str(folder))
        Experiment("smoke", MANY, runs=tmp_path, jobs=1).pairs()
    assert used == [2]  # there are two parts, and three free places


def test_workers_in_borrowed_places_see_their_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with places.shared(2) as folder, places.held(folder, 0) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with workers.here(1, borrows=True) as found:
            assert found.has_room(1) and not found.has_room(2)
            both = [found.submit(own_gpu, tmp_path, name, 2) for name in "ab"]
            assert [future.result()[0] for future in both] == ["4", "7"]
            found.return_idle()
            assert found.has_room(1)


def test_workers_without_work_end(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setattr(workers, "_IDLE", 0.5)
    monkeypatch.setattr(places, "cores", lambda: 17)  # as no other test has
    with workers.here(1) as found:
        _, process = found.submit(own_gpu, tmp_path, "a", 1).result()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(process)


# A cluster


@pytest.fixture
def cluster():
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as made:
        yield made


def test_a_cluster_computes_the_same_though_a_worker_dies(alone, tmp_path, cluster):
    made = Experiment("smoke", runs=tmp_path, scheduler=cluster.scheduler_address)
    theirs = cluster.workers

    def kill():
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("flow/.*.partial")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(next(iter(theirs.values())).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    made.compute(everything(made))
    killer.join()
    assert same(results(made), alone)


@pytest.mark.parametrize(
    ("versions", "threads", "complaint"),
    [
        (
            {"one": "theirs", "two": None},
            {"one": 1, "two": 1},
            "'tcp://here': one have another version of this package",
        ),
        (
            {"one": None, "two": None},
            {"one": 1, "two": 2},  # steps in threads of one process would draw from one random stream
            "'tcp://here': two compute several steps at once; start workers with dask worker --nthreads 1",
        ),
        ({}, {}, "scheduler='tcp://here' has no workers"),
    ],
)
def test_workers_that_would_compute_something_else_are_refused(tmp_path, monkeypatch, versions, threads, complaint):
    """A client that says what dask's says of such workers stands in for it."""

    class Client(contextlib.nullcontext):
        def __init__(self, scheduler, timeout):
            super().__init__(self)

        def run(self, function):
            return {worker: version or function() for worker, version in versions.items()}

        def nthreads(self):
            return threads

        def get_executor(self, **_):
            pytest.fail("they were given work")

        register_worker_callbacks = get_executor

    monkeypatch.setattr("distributed.Client", Client)
    with pytest.raises(ValueError, match=complaint):
        Experiment("smoke", runs=tmp_path, scheduler="tcp://here").train("A", [0])


def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_CALL", 0.5)
    with pytest.raises(ValueError, match="scheduler='tcp://127.0.0.1:9' cannot be reached"):
        Experiment("smoke", runs=tmp_path, scheduler="tcp://127.0.0.1:9").train("A", [0])
