"""The command line: bad input ends in one line and status 2 before any work, good input leaves files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import edm
import psutil
import pytest
import torch
from truth import network, released_pairs

from rfpp import checkpoints, presets, samplers, training
from rfpp import commands as cli
from rfpp.base import downloads, paths
from rfpp.base.processes import Stopped
from rfpp.denoisers import EDMPrecond
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("evaluate --preset lapto", "did you mean 'laptop'"),
        ("evaluate --preset smoke --nfe 0", "nfe=0 is too small"),
        ("evaluate --preset smoke --nfe 4 --solver heun", "use nfe=3 or 5"),
        ("evaluate --preset smoke --nfe 2 --times 1.5", "inner=(1.5,): times must fall from first_time=0.999 to 0"),
        ("evaluate --preset smoke --nfe 3 --times 0.5 0.8", "inner=(0.5, 0.8): times must fall"),
        ("evaluate --preset smoke --nfe 2 --times 0.8 0.5", "needs 1 inner times"),
        ("sample --preset smoke --solver huen", "did you mean 'heun'"),
        ("sample --preset smoke --n 0", "n=0 is too small; an integer of at least 1 is needed"),
        ("sample --preset smoke --n -3", "n=-3 is too small; an integer of at least 1 is needed"),
        ("evaluate --preset smoke --config H", "config='H' is unknown"),
        ("train --preset smoke --set training.step=3", "did you mean 'training.steps'"),
        ("train --preset smoke --set training.steps=many", "training.steps='many'"),
        ("train --preset smoke --set training.steps", "--set 'training.steps' is not of the form NAME=VALUE"),
        (
            "train --preset smoke --set training.steps=[1",
            "--set training.steps: '[1' is not YAML (expected ','",
        ),
        ("train --preset smoke --set training.steps=2024-13-01", "'2024-13-01' is not YAML (month must be in 1..12)"),
        ("train --preset smoke --set data.held_out=0.5", "data.held_out=0.5, but data.name='digits' does not take it"),
        ("train --preset smoke --set data.crop=null", "data.crop=None, but data.name='digits' does not take it"),
        ("train --preset smoke --set seeds=[0,0]", "seeds=[0, 0] has an entry twice"),
        (
            "curves --preset smoke --config meanflow --set seeds=[0,1,2]",
            "config='meanflow' is a method of rfpp.arena, whose trainings",
        ),
        ("evaluate --preset smoke --n 5", "--n=5 works only with --standard"),
        ("evaluate --preset smoke --standard --weights no.pth", "weights='no.pth' does not exist"),
        ("evaluate --preset smoke --standard --n 0", "n=0 is too small; an integer of at least 4 is needed"),
        ("evaluate --preset smoke --standard --n 3", "n=3 is too small; an integer of at least 4 is needed"),
        ("evaluate --preset smoke --standard --set evaluation.samples=3", "evaluation.samples=3 is too small"),
        ("evaluate --preset smoke --standard --reference-count 9", "reference_count=9 works only with a reference"),
        ("evaluate --preset smoke --standard --reference no.npz", "path='no.npz' does not exist"),
        (
            "train --preset smoke --config teacher",
            "config='teacher' makes the pairs and is not trained",
        ),
        ("sample --preset smoke --out samples", "out='samples' must end in .png, .jpg, .jpeg, .svg, .pdf"),
        ("sample --preset smoke --out samples.xyz", "out='samples.xyz' must end in .png, .jpg, .jpeg, .svg, .pdf"),
        ("status --preset smoke --repeats 0", "repeats=0 is too small"),
        ("import digits-teacher out.safetensors", "'digits-teacher' ships with this package in its own format: copy"),
        ("run nosuch", "notebook 'nosuch' is unknown"),
        ("run training --set stepz=1", "no parameter 'stepz'"),
        ("run training --set shown=many", "shown='many' is a str"),
        ("book --preset smoke", "was not run at preset 'smoke'"),
        ("retrain digit-teacher", "did you mean 'digits-teacher'"),
        ("import a.pkl out.safetensors --network cifar10", "--network=cifar10 is for a local .pth file"),
        ("import a.pkl out.safetensors --set a=1", "--set=['a=1'] is for a local .pth file"),
        ("import nowhere.pkl out.safetensors", "no checkpoint at nowhere.pkl"),
        ("import nowhere.pth out.safetensors", "is read as a state dict, which needs --network"),
        ("import nowhere.pth out.safetensors --network cifar", "did you mean 'cifar10'"),
        ("import nowhere.pkl out.pkl", "out='out.pkl' must end in .safetensors"),
        ("import nowhere.pkl out.safetensors --sha256 abc", "--sha256 works only with a URL, but source='nowhere.pkl'"),
        ("import https://127.0.0.1/a.pkl out.safetensors --sha256 abc", "64 hexadecimal digits are needed"),
        ("import-pairs samples.zip z.zip out", "no archive at samples.zip"),
    ],
)
def test_bad_input_is_explained_before_any_work(arguments, complaint, own_runs, capsys):
    assert cli.main(arguments.split()) == 2
    written = capsys.readouterr()
    assert complaint in written.err and written.err.count("\n") == 1 and not written.out
    assert not list(own_runs.glob("**/manifest.json"))


@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_a_folder_of_results_that_is_a_file_is_refused(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path / place))
    for command in ("train", "sample", "status", "run", "book"):
        assert cli.main([command, "--preset", "smoke"]) == 2
        said = (
            f"error: results cannot be kept in {tmp_path / place}, because {tmp_path / 'file'} is a file; set RFPP_RUNS"
        )
        assert capsys.readouterr().err.startswith(said)


def test_a_file_called_runs_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RFPP_RUNS")
    monkeypatch.setattr(paths, "_search", lambda start: tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(
        NotADirectoryError, match=f"cannot be kept in {tmp_path}/runs.*; set RFPP_RUNS to another folder"
    ):
        paths.runs()


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    """The output is still read here."""

    def broken(arguments):
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setattr(cli, "_pairs", broken)
    assert cli.main(["pairs", "--preset", "smoke"]) == 2 and capsys.readouterr().err == "error: a worker has gone\n"


def test_nothing_is_said_where_the_reader_of_the_output_has_gone(monkeypatch):
    """As with ``status | head -1``; a shell shows the same status for other commands."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = [sys.executable, "-m", "rfpp", "status", "--preset", "smoke", "--no-measuring"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 128 + signal.SIGPIPE)


def test_nothing_is_said_where_the_reader_has_gone_and_each_line_is_written_at_once(monkeypatch, capsys):
    """As with ``PYTHONUNBUFFERED``: the command itself is interrupted, not the writing after it."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(cli, "_pairs", lambda arguments: print("a line") or pytest.fail("it was written"))
        assert cli.main(["pairs", "--preset", "smoke"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_the_second_time_is_what_was_asked_for(own_runs, capsys):
    """The paper's 0.8 against the uniform grid's 0.5, which is what no time at all gives."""
    grades = []
    for times in ([], ["--times", "0.5"], ["--times", "0.8"]):
        assert (
            cli.main(["evaluate", "--preset", "smoke", "--config", "teacher", "--seed", "0", "--nfe", "2", *times]) == 0
        )
        grades.append(capsys.readouterr().out.splitlines()[-1])
    assert grades[0] == grades[1] != grades[2]


def test_the_ledger_is_locked_from_the_command_line(capsys):
    assert cli.main(["lock"]) == 0
    assert capsys.readouterr().out == "the ledger is locked as it stands\n"


def test_train_evaluate_sample_status(own_runs, tmp_path, capsys):
    assert cli.main(["train", "--preset", "smoke", "--config", "A", "F", "--seed", "0"]) == 0
    files = [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    assert len(files) == 2 and all(os.path.getsize(file) > 100_000 for file in files)
    assert cli.main(["evaluate", "--preset", "smoke", "--seed", "0", "--nfe", "3", "--solver", "heun"]) == 0
    assert "frechet=" in capsys.readouterr().out
    picture = tmp_path / "new folder" / "samples.png"
    assert cli.main(["sample", "--preset", "smoke", "--n", "20", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert cli.main(["status", "--preset", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert "6 finished steps" in shown  # two sets of pairs, two flows, the real images' features, one evaluation
    states = {line[:36].strip(): line[36:46].strip() for line in shown.splitlines()}
    assert states["train A, seed 0"] == states["train F, seed 0"] == states["96 pairs, train"] == "finished"
    assert states["train G, seed 0"] == states["train A, seed 1"] == "to do"


@pytest.mark.parametrize("preset", ["cifar10", "paper-cifar10", "paper-afhq", "paper-ffhq", "paper-imagenet64"])
def test_a_plan_is_made_before_anything_is_fetched(own_runs, tmp_path, monkeypatch, capsys, preset):
    """Passes and bytes come from the preset alone; nothing is asked of the network."""
    for name in ("RFPP_DATA", "RFPP_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr(downloads, "_receive", lambda *arguments: pytest.fail("asked for a download"))
    assert cli.main(["status", "--preset", preset, "--no-measuring"]) == 0
    shown = capsys.readouterr().out
    settings = presets.load(preset)
    images, side = {"cifar10": (50_000, 32), "paper-cifar10": (50_000, 32)}.get(preset, (None, 64))
    assert "the images are not on this machine yet" in shown and f"of 3 x {side} x {side}" in shown
    assert images is None or f"{images:,} training images" in shown
    pairs = next(line for line in shown.splitlines() if f"{settings.pairs.train:,} pairs, train" in line)
    assert f"{settings.pairs.train * (2 * settings.pairs.num_steps - 1):,}" in pairs


def test_a_plan_for_missing_images_of_unknown_number_says_what_is_needed(own_runs, tmp_path, capsys):
    arguments = ["status", "--preset", "paper-afhq", f"--set=data.path={tmp_path / 'no.zip'}", "--set=data.count=null"]
    assert cli.main(arguments) == 2
    assert "no.zip' does not exist" in (error := capsys.readouterr().err) and "data.resolution and data.count" in error


@pytest.mark.parametrize(("raised", "setting"), [("engine", "machinery.micro_batch"), ("else", "pairs.batch_size")])
def test_running_out_of_memory_names_the_setting_that_matters(own_runs, monkeypatch, capsys, raised, setting):
    def out_of_memory(*arguments, **options):
        raise torch.OutOfMemoryError("8 GiB were asked for")

    target = (training.Reflow, "losses") if raised == "engine" else (samplers, "sample")
    monkeypatch.setattr(*target, out_of_memory)
    command = "train" if raised == "engine" else "sample"
    options = ["--config", "A"] if raised == "engine" else ["--n", "2", "--config", "teacher"]
    assert cli.main([command, "--preset", "smoke", *options]) == 2
    assert f"a smaller {setting} takes less memory" in capsys.readouterr().err


def test_settings_of_the_preset_can_be_set_for_notebooks(monkeypatch):
    asked = []
    monkeypatch.setattr(cli.book, "run", lambda *given, **_: asked.append(given))
    command = ["run", "--preset", "smoke", "training", "--set", "shown=2", "--set", "training.steps=3"]
    assert cli.main([*command, "--set", "settings={pairs.seed: 1, training.steps: 5}"]) == 0
    assert asked == [("smoke", ["training"], {"shown": 2, "settings": {"pairs.seed": 1, "training.steps": 3}})]


HUNGRY = """
import torch
from rfpp.configurations import Configuration


def premetric(a, b, x_t=None, t=None):
    if len(a) > 8:  # more than a check takes
        raise torch.OutOfMemoryError("8 GiB were asked for")
    return (a - b).square().flatten(1).mean(dim=1)


own = Configuration("hungry", premetric=premetric)
"""


def test_it_is_named_too_where_a_worker_runs_out_of_memory(own_runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    command = ["train", "--preset", "smoke", "--config", "hungry:own", "A", "--seed", "0", "--jobs", "2"]
    assert cli.main(command) == 2
    assert "a smaller machinery.micro_batch takes less memory" in capsys.readouterr().err


def test_an_interrupt_keeps_finished_steps_and_says_so(own_runs):
    """Ctrl-C in the middle of the training, then the same command again: the pairs are not made twice."""
    command = [sys.executable, "-m", "rfpp", "train", "--preset", "smoke", "--config", "A", "--seed", "0"]
    long = subprocess.Popen(
        [*command, "--set", "training.steps=100000"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        not list(own_runs.glob("*/flow/.*.partial/samples-*")) and long.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    made = list(own_runs.glob("*/pairs/*/manifest.json"))
    long.send_signal(signal.SIGINT)
    _, message = long.communicate(timeout=60)
    assert long.returncode == 75 and "stopped by SIGINT after step" in message and "run again to go on" in message
    assert len(made) == 1 and list(own_runs.glob("*/pairs/*/manifest.json")) == made
    assert not list(own_runs.glob("*/flow/*/manifest.json"))


def test_a_signal_in_the_middle_of_a_training_leaves_a_checkpoint_from_which_it_goes_on(own_runs, monkeypatch, capsys):
    """SIGTERM: status 75, and ``status`` shows how far it is. Again, it ends with the pairs that were there."""
    training_of_it, losses = ["--preset", "smoke", "--config", "A", "--seed", "0"], training.Reflow.losses

    def signalled(*arguments, **options):
        if list(own_runs.glob("*/flow/.*.partial/samples-*")) and not sent:
            sent.append(signal.raise_signal(signal.SIGTERM))
        return losses(*arguments, **options)

    sent = []
    monkeypatch.setattr(training.Reflow, "losses", signalled)
    assert cli.main(["train", *training_of_it]) == Stopped.EXIT == 75
    assert "stopped by SIGTERM after step" in capsys.readouterr().err
    assert list(own_runs.glob("*/flow/.*.partial/states/step-*"))
    pairs = {path: path.stat().st_mtime for path in own_runs.glob("*/pairs/*/manifest.json")}
    assert cli.main(["status", *training_of_it, "--repeats", "1"]) == 0
    shown = capsys.readouterr().out
    assert "train A, seed 0" in shown and "started" in shown and "forward passes" in shown and "memory:" in shown
    assert cli.main(["train", *training_of_it]) == 0 and len(sent) == len(pairs) == 1
    assert {path: path.stat().st_mtime for path in own_runs.glob("*/pairs/*/manifest.json")} == pairs


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="this system does not tell what is loaded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_while_it_imports(number):
    """The first import takes seconds; torch is among the first to be loaded."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rfpp", "status", "--preset", "smoke"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any("libtorch" in Path(part.path).name for part in psutil.Process(process.pid).memory_maps()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and said == f"interrupted by {number.name}; run the same command to go on\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_outside_of_training_ends_the_command_with_the_same_status(monkeypatch, capsys, number):
    """While it grades, for example; whoever called has their own handlers again."""
    monkeypatch.setattr(cli, "_pairs", lambda arguments: signal.raise_signal(number))
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert cli.main(["pairs", "--preset", "smoke"]) == 75
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    assert "finished steps are kept. Run the same command to go on" in capsys.readouterr().err


def test_published_files_become_ours(tmp_path, capsys):
    """EDM's pickle, the released state dict, a folder of pairs: each by one command, into a file that loads."""
    denoiser = EDMPrecond(network())
    edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(denoiser)})
    checkpoints.export_edm(denoiser, tmp_path / "flow.pth")
    written = {**denoiser.model.config, "aux_dim": 0, "aug": False, "num_params": 0.01}  # as the released sampler does
    (tmp_path / "config.json").write_text(json.dumps(written))
    samples, z, labels, *_ = released_pairs(tmp_path / "in", 5, 3)
    for command in (
        f"import {tmp_path}/edm.pkl {tmp_path}/edm.safetensors",
        f"import {tmp_path}/flow.pth {tmp_path}/flow.safetensors --network {tmp_path}/config.json --set dropout=0.1",
        f"import-pairs {samples} {z} {tmp_path}/pairs --labels {labels}",
    ):
        assert cli.main(command.split()) == 0
    (tmp_path / "new").touch()
    for name in ("edm", "flow", "pairs/shard-00000"):
        assert (tmp_path / f"{name}.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert "a EDMPrecond with 0.0 million parameters" in (text := capsys.readouterr().out) and "5 pairs" in text
    flow = checkpoints.load(tmp_path / "flow.safetensors")
    assert isinstance(flow, RectifiedFlow) and flow.denoiser.model.config["dropout"] == 0.1
    weights = checkpoints.load(tmp_path / "edm.safetensors").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in denoiser.state_dict().items())
    assert len(PairDataset(tmp_path / "pairs")) == 5
