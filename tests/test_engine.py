"""The training loop: solutions that are known, averages done by hand, and runs that are cut in pieces in every way."""

import copy
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from truth import Function, fit, network, randn

from rfpp import premetrics, timesteps, training
from rfpp.base import processes
from rfpp.base.processes import Stopped
from rfpp.data import Images, to_uint8
from rfpp.denoisers import EDMPrecond
from rfpp.engine import CannotResume, Checkpoints, Diverged, History, Machinery, Optimisation
from rfpp.engine.run import Run
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset, generate


def linear(n_in=3):
    model = nn.Linear(n_in, 1).double()
    with torch.no_grad():
        model.weight.copy_(randn(1, n_in)), model.bias.zero_()
    return model


def sum_of_parameters(model):
    return sum(parameter.sum() for parameter in model.parameters())


pull = Function(lambda model, step: sum_of_parameters(model))
"""A loss whose gradient is one for every parameter, so that Adam moves each by the learning rate."""


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


# What is computed


def test_a_linear_regression_ends_at_the_least_squares_solution():
    """numpy's lstsq."""
    x, y = randn(50, 3, dtype=torch.float64), randn(50, 1, seed=1, dtype=torch.float64)
    truth, *_ = np.linalg.lstsq(np.hstack([x.numpy(), np.ones((50, 1))]), y.numpy(), rcond=None)
    on_device = [part.to(processes.device()) for part in (x, y)]
    objective = Function(lambda model, step: (model(on_device[0]) - on_device[1]).square().mean())
    model, history = fit(linear(), objective, 600, lr=0.05, decay=True, ema=0.9)
    found = torch.cat([model.weight.flatten(), model.bias]).numpy()
    np.testing.assert_allclose(found, truth.flatten(), atol=1e-3)
    least = np.square(np.hstack([x.numpy(), np.ones((50, 1))]) @ truth - y.numpy()).mean()
    assert history.losses[-1] == pytest.approx(least, rel=1e-3) and history.losses[0] > history.losses[-1]


@pytest.mark.parametrize("growing", [True, False])
@pytest.mark.parametrize("ema", [0.0, 0.15, 0.9, 0.9999])
def test_the_average_is_the_one_done_by_hand(ema, growing):
    """``avg_1 = p_1``, then ``avg_n = d avg_{n-1} + (1 - d) p_n``, ``d = min(ema, n / (n + 9))`` or ``ema``, in Python
    floats."""
    before, averages = [], []

    def loss(model, step):
        before.append(model.weight[0, 0].item())
        return (model.weight - 3).square().sum()

    fit(
        linear(1), Function(loss), 30, lr=0.1, ema=ema, growing=growing,
        on_step=lambda step, average: averages.append((step, average.weight[0, 0].item())),
    )  # fmt: skip
    assert [step for step, _ in averages] == list(range(1, 31))
    average = before[1]
    for n, parameter in enumerate(before[1:], start=1):
        if n > 1:
            decay = min(ema, n / (n + 9)) if growing else ema
            average = decay * average + (1 - decay) * parameter
        assert averages[n - 1][1] == pytest.approx(average, rel=1e-9)


def moves(steps, **options):
    """How far each step moves a parameter whose gradient is always one: Adam's learning rate at that step."""
    places = []

    def loss(model, step):
        places.append(model.weight[0, 0].item())
        return sum_of_parameters(model)

    model, _ = fit(linear(1), Function(loss), steps, ema=0.0, **options)
    return -np.diff([*places, model.weight[0, 0].item()])


def test_the_learning_rate_rises_from_the_first_step():
    """A quarter, a half, three quarters of it, then all: the first step trains, and the target is reached."""
    np.testing.assert_allclose(moves(6, lr=0.1, warmup=3), [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


def test_without_warm_up_or_decay_the_learning_rate_is_constant():
    np.testing.assert_allclose(moves(4, lr=0.1), [0.1] * 4, rtol=1e-6)


def test_the_learning_rate_falls_along_a_cosine():
    expected = [0.1 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    np.testing.assert_allclose(moves(8, lr=0.1, decay=True), expected, rtol=1e-5)


def test_history_is_the_mean_loss_between_log_entries():
    """Losses 0, 1, 2, ...: means of 0..3, 4..7 and 8..9."""
    objective = Function(lambda model, step: 0 * sum_of_parameters(model) + step)
    _, history = fit(linear(), objective, 10, lr=0.1, machinery=Machinery(log_every=4))
    assert history.steps == [4, 8, 10] and history.losses == [1.5, 5.5, 8.5] and history.over_time == []


def test_losses_are_recorded_over_time():
    """A row at time t has loss t: the mean in each bin is its middle, but for where no row falls."""

    class AtTimes(Function):
        batch_size = 40

        def draw(self, step, rows):
            t = 0.5 * (torch.arange(40) + 0.5) / 40  # two rows for each of the first ten bins
            return (t[rows.start : rows.stop],)

        def losses(self, model, t):
            return t + 0 * sum_of_parameters(model)

        def times(self, t):
            return t

    _, history = fit(linear(), AtTimes(None), 20, lr=0.1, machinery=Machinery(micro_batch=7))
    assert len(history.over_time) == 10
    for row in history.over_time:
        assert row[10:] == [None] * 10
        np.testing.assert_allclose(row[:10], (np.arange(10) + 0.5) / 20, rtol=1e-6)


def test_the_model_passed_in_is_left_untouched():
    """Weights, mode and gradients; what comes back is frozen and in evaluation mode."""
    model = network().eval().requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flow = RectifiedFlow(EDMPrecond(model))
    x = randn(2, 1, 8, 8).to(processes.device())
    trained, _ = fit(flow, Function(lambda model, step: model(x, 0.5).square().mean()), 3, lr=0.01)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not trained.training and not any(parameter.requires_grad for parameter in trained.parameters())
    assert not torch.equal(trained.denoiser.model.map_layer0.weight, model.map_layer0.weight)


def test_a_frozen_model_trains_all_the_same():
    """Shipped networks are frozen; a flow that starts from one is not."""
    model, _ = fit(linear().requires_grad_(False), pull, 1, lr=0.1, ema=0.0)
    assert torch.allclose(model.weight, linear().weight - 0.1)


# However it is cut


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, tiny):
    return PairDataset(generate(tiny, 96, tmp_path_factory.mktemp("pairs"), num_steps=3, shard_size=40))


def trained(pairs, steps=12, dropout=0.3, batch_size=8, dtype=torch.float32, start=None, **options):
    """A small flow, trained from random weights."""
    teacher = EDMPrecond(network())
    flow = training.initial_flow(teacher, "teacher", dropout, seed=0).to(dtype)
    objective = training.Reflow(pairs, timesteps.UShaped(), premetrics.pseudo_huber, batch_size, 0)
    flow, history = fit(flow, objective, steps, lr=1e-3, warmup=3, ema=0.9, **options)
    return weights(flow), history


def test_a_step_in_pieces_is_the_same_step(pairs):
    """Gradients add up: float64, no dropout; also when the pieces are not equal, and when others draw ahead."""
    whole, history = trained(pairs, dropout=0.0, dtype=torch.float64)
    for changes in ({"micro_batch": 2}, {"micro_batch": 3}, {"workers": 2, "micro_batch": 4}):
        parts, same = trained(pairs, dropout=0.0, dtype=torch.float64, machinery=Machinery(**changes))
        assert (parts - whole).abs().max() <= 1e-8
        np.testing.assert_allclose(same.losses, history.losses, rtol=1e-5)


WORKER = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
from test_engine import trained
from rfpp import engine
from rfpp.base import processes
from rfpp.pairs import PairDataset, generate
from rfpp.denoisers import EDMPrecond
from truth import network

out = Path({out!r})
assert processes.count() == int({count})
generate(EDMPrecond(network()).eval().requires_grad_(False), 96, out / "pairs", num_steps=3, shard_size=40)
pairs = PairDataset(out / "pairs")
folder = out / "states"
found, history = trained(
    pairs, steps=20, dropout=0.0, batch_size=64, dtype=torch.float64, folder=folder,
    machinery=engine.Machinery(save_every=7, log_every=5),
)
if processes.is_main():
    torch.save({{"weights": found, "losses": torch.tensor(history.losses)}}, out / "result.pt")

def work():
    assert processes.is_main()
    raise OSError(28, "no space left")

found = []
try:
    processes.by_main(work)
except OSError as error:
    found.append(error.errno)
found.append(processes.by_main(lambda: processes.index() + 7))
(out / str(processes.index())).write_text(repr(found))
"""


def run_in(count, script):
    """Run a script in several processes that talk to each other through gloo, on CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RFPP_PROGRESS": os.devnull, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_two_processes_train_the_same_model_on_the_same_pairs(tmp_path, tiny):
    """64 rows in one process, 32 in each of two, 16 at a time in four pieces: the same parameters after 20 steps.

    Then an error of the first process reaches both, or the other would wait for it.
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path), count=2))
    run_in(2, script)
    two = torch.load(tmp_path / "result.pt")
    alone = PairDataset(generate(tiny, 96, tmp_path / "alone", num_steps=3, shard_size=40))
    together = PairDataset(tmp_path / "pairs")
    every = torch.arange(96)
    for one, other in zip(alone.batch(every), together.batch(every), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "[28, 7]"
    options = {"steps": 20, "dropout": 0.0, "batch_size": 64, "dtype": torch.float64}
    whole, history = trained(alone, **options, machinery=Machinery(log_every=5))
    pieces, _ = trained(alone, **options, machinery=Machinery(log_every=5, micro_batch=16))
    assert (whole - two["weights"]).abs().max() <= 1e-8 and (whole - pieces).abs().max() <= 1e-8
    np.testing.assert_allclose(two["losses"], history.losses, rtol=1e-5)
    assert Checkpoints(tmp_path / "states").steps() == [14, 20]


def test_a_batch_that_cannot_be_shared_is_refused(pairs, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=8 cannot be shared by 3 processes; use a multiple of 3"):
        trained(pairs)


@pytest.mark.parametrize("is_gpu", [False, True])
def test_on_gpus_a_process_that_fails_does_not_wait_for_the_others(monkeypatch, is_gpu):
    """They close their connections together, and the others may be waiting for this one."""
    here, left = SimpleNamespace(num_processes=2, destroy_process_group=lambda: None), []
    state = cache(lambda: here)
    monkeypatch.setattr(processes, "state", state)
    monkeypatch.setattr(processes, "through_gloo", lambda: not is_gpu)
    monkeypatch.setattr(processes.atexit, "unregister", left.append)
    with pytest.raises(ValueError), processes.alone_after_errors():  # nothing is connected yet
        raise ValueError
    assert state.cache_info().currsize == 0 and not left
    state()
    for error in (Stopped, ValueError):
        with pytest.raises(error), processes.alone_after_errors():
            raise error
    assert left == [here.destroy_process_group] * is_gpu


class Cut(Exception):
    pass


def cut_at(step):
    def on_step(now, average):
        if now == step:
            raise Cut

    return on_step


@pytest.fixture(scope="module")
def uncut(pairs):
    """Trains without a break, once with each machinery."""
    return cache(lambda machinery: trained(pairs, machinery=machinery))


@pytest.mark.parametrize("cut", [1, 5, 11])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_training_that_was_cut_ends_the_same_bit_by_bit(pairs, uncut, tmp_path, cut, channels_last, precision):
    """With dropout, whose noise belongs to the step; the losses too, though the cut lies between two entries."""
    machinery = Machinery(precision=precision, channels_last=channels_last, save_every=1, log_every=4)
    whole, history = uncut(machinery)
    with pytest.raises(Cut):
        trained(pairs, machinery=machinery, folder=tmp_path / "states", on_step=cut_at(cut))
    again, same = trained(pairs, machinery=machinery, folder=tmp_path / "states")
    assert torch.equal(whole, again) and same == history


def test_a_finished_training_is_not_done_again(pairs, tmp_path):
    whole, history = trained(pairs, folder=tmp_path / "states")
    again, same = trained(pairs, folder=tmp_path / "states", on_step=cut_at(12))
    assert torch.equal(whole, again) and same == history


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_nearly_the_same(pairs, precision):
    """Sixteen bits have 8 or 11 that count: 4e-3 a rounding, against a loss that is of order one."""
    _, history = trained(pairs, dropout=0.0, machinery=Machinery(log_every=1))
    whole, lower = trained(pairs, dropout=0.0, machinery=Machinery(log_every=1, precision=precision))
    assert whole.dtype == torch.float32 and lower.losses != history.losses
    np.testing.assert_allclose(lower.losses, history.losses, rtol=0.05)


def test_compiling_and_memory_layout_change_nothing_but_rounding(pairs, monkeypatch):
    """Traced as for compilation, run without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    whole, _ = trained(pairs, steps=4, dropout=0.0)
    other, _ = trained(pairs, steps=4, dropout=0.0, machinery=Machinery(compile=True, channels_last=True))
    assert (whole - other).abs().max() < 1e-4


# Checkpoints


def states(folder, n=5, **options):
    found = Checkpoints(folder, **options)
    for step in range(1, n + 1):
        found.save(step, {"w": torch.full((3,), float(step))}, {"settings": {}})
    return found


def test_the_last_ones_and_every_nth_are_kept(tmp_path):
    assert states(tmp_path / "a", 9, keep=2).steps() == [8, 9]
    kept = states(tmp_path / "b", 9, keep=1, keep_every=4)
    assert kept.steps() == [4, 8, 9]
    kept.clear()
    assert kept.steps() == [4, 8]
    plain = states(tmp_path / "c")
    plain.clear()
    assert not plain.folder.exists()


@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "note", "no note", "format", "gone"])
def test_a_damaged_state_is_named_and_the_one_before_is_taken(tmp_path, how):
    found = states(tmp_path, keep=3)
    path, note = tmp_path / "step-00000005.safetensors", tmp_path / "step-00000005.json"
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-2] ^= 1
        path.write_bytes(content)
    elif how in ("truncate", "empty"):
        path.write_bytes(content[: -3 if how == "truncate" else 0])
    elif how == "note":
        note.write_text(note.read_text()[:-5])
    elif how == "format":
        note.write_text(json.dumps({**json.loads(note.read_text()), "format": 99}))
    elif how == "gone":
        path.unlink()
    else:
        note.unlink()  # of a process that was killed between the two files: the state was never there
        tensors, told = found.newest()
        assert told["step"] == 4 and tensors["w"].tolist() == [4.0] * 3
        return
    with pytest.warns(UserWarning, match="step-00000005.safetensors cannot be used"):
        tensors, told = found.newest()
    assert told["step"] == 4 and tensors["w"].tolist() == [4.0] * 3


def test_a_damaged_state_is_made_again_and_does_not_crowd_out_whole_ones(pairs, tmp_path):
    machinery = Machinery(save_every=3)
    with pytest.raises(Cut):
        trained(pairs, machinery=machinery, folder=tmp_path, on_step=cut_at(8))
    newest = tmp_path / "step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (tmp_path / ".tmpAbc123").write_bytes(b"of a process that was killed")
    (tmp_path / "step-00000007.safetensors").write_bytes(b"likewise, before its note")
    with pytest.warns(UserWarning, match="step-00000006.safetensors cannot be used"), pytest.raises(Cut):
        trained(pairs, machinery=machinery, folder=tmp_path, on_step=cut_at(7))
    assert Checkpoints(tmp_path).steps() == [3, 6] and Checkpoints(tmp_path).newest()[1]["step"] == 6
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert len(list(tmp_path.iterdir())) == 4


def test_without_a_whole_state_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").newest() is None
    found = states(tmp_path, 1)
    (tmp_path / "step-00000001.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be used"):
        assert found.newest() is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps": 13}, "steps: 12 there, 13 now"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 now"),
        ({"machinery": Machinery(precision="bf16")}, "precision: fp32 there, bf16 now"),
        ({"identity": {"pairs": "b"}}, "pairs: a there, b now"),
        ({"identity": {}}, "pairs: a there, None now"),
        ({"seed": 3}, "seed: 0 there, 3 now"),
    ],
)
def test_another_training_does_not_go_on_from_there(pairs, tmp_path, changes, complaint):
    options = {"folder": tmp_path / "states", "identity": {"pairs": "a"}}
    trained(pairs, **options)
    with pytest.raises(CannotResume, match=complaint):
        trained(pairs, **{**options, **changes})
    changed = Machinery(micro_batch=3, save_every=5, keep=1)  # how it runs may change
    trained(pairs, **options, machinery=changed)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_stops_the_training(tmp_path, bad):
    """Within one log interval, naming step, value, what to lower, and the last checkpoint, which is good."""

    def loss(model, step):
        return 0 * sum_of_parameters(model) + (float(bad) if step >= 12 else 1.0)

    message = (
        f"fitting: the loss is {bad} at step 13; the last good checkpoint is that of step 10 in .*; "
        "lower the learning rate lr=0.1"
    )
    with pytest.raises(Diverged, match=message):
        fit(linear(), Function(loss), 100, lr=0.1, desc="fitting", folder=tmp_path, machinery=Machinery(save_every=5))
    tensors, note = Checkpoints(tmp_path).newest()
    assert note["step"] == 10 and all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("bad", [[3], [3, 4, 5, 6], [*range(2, 11)], [1, 2, 3]])
def test_a_loss_scale_outlives_steps_without_a_number(bad):
    """Such a step changes no weight, and its loss is in no mean."""

    def loss(model, step):
        return sum_of_parameters(model) * (float("nan") if step in bad else 1.0)

    scaled = Machinery(precision="fp16", log_every=4)
    found, history = fit(linear(), Function(loss), 16, lr=0.1, ema=0, machinery=scaled)
    expected, _ = fit(linear(), pull, 16 - len(bad), lr=0.1, ema=0)
    torch.testing.assert_close(weights(found), weights(expected))
    assert np.isfinite(history.losses).all()


def test_skipped_steps_in_a_row_are_counted_across_an_interruption(tmp_path):
    """Six before the checkpoint and four after it are ten."""

    def loss(model, step):
        return sum_of_parameters(model) * (float("inf") if 2 <= step < 12 else 1.0)

    scaled = Machinery(precision="fp16", log_every=1, save_every=8)

    class Interrupted(Exception):
        pass

    def interrupt(step, model):
        if step == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(linear(), Function(loss), 16, lr=0.1, machinery=scaled, folder=tmp_path, on_step=interrupt)
    assert Checkpoints(tmp_path).newest()[1]["skipped"] == 6
    with pytest.raises(Diverged, match="at step 12, the 10th step in a row"):
        fit(linear(), Function(loss), 16, lr=0.1, machinery=scaled, folder=tmp_path)


def test_a_training_does_not_keep_its_memory():
    """On a GPU, what waits for the collector of cycles is missing to the next training."""
    run = Run(linear(), Optimisation(3, lr=0.1), Machinery())
    gone = weakref.ref(run), weakref.ref(run.model)
    gc.disable()
    try:
        del run
        assert [each() for each in gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_loss_scale_gives_up_after_ten_such_steps_in_a_row(log_every):
    def loss(model, step):
        return sum_of_parameters(model) * (float("inf") if 3 <= step < 13 else 1.0)

    scaled = Machinery(precision="fp16", log_every=log_every)
    with pytest.raises(Diverged, match="the loss is -?inf at step 13, the 10th step in a row"):
        fit(linear(), Function(loss), 16, lr=0.1, machinery=scaled)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    """The loss is finite, its gradient is not: what would be saved is worth nothing."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("nan")

    def broken(model, step):
        value = model.weight.sum() * 0 + 1
        return (Broken.apply(value) if step == 3 else value) + 0 * model.bias.sum()

    with pytest.raises(
        Diverged, match="weights are not finite after step 4; the last good checkpoint is that of step 3"
    ):
        fit(linear(), Function(broken), 9, lr=0.1, folder=tmp_path, machinery=Machinery(save_every=1, log_every=9))
    assert Checkpoints(tmp_path).newest()[1]["step"] == 3


@pytest.mark.parametrize("name", ["precision", "log_every", "save_every", "keep", "micro_batch"])
def test_machinery_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=f"\n{name}\n"):
        Machinery(**{name: "fp8" if name == "precision" else 0})


# Signals


@pytest.fixture(autouse=True)
def interruptible():
    """Python's own reaction to Ctrl-C, which is off where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_training(pairs, tmp_path, number):
    """Before the next step, with a checkpoint; handlers are put back; run again, it ends as if undisturbed."""
    before = signal.getsignal(number)

    def send(step, average):
        if step == 7:
            signal.raise_signal(number)

    whole, history = trained(pairs)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 7, and run again to go on from step 7"):
        trained(pairs, folder=tmp_path, on_step=send)
    assert signal.getsignal(number) == before and Checkpoints(tmp_path).steps() == [7]
    again, same = trained(pairs, folder=tmp_path)
    assert torch.equal(whole, again) and same == history


def test_a_second_signal_ends_it_at_once():
    with pytest.raises(KeyboardInterrupt), processes.stoppable() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop and stop.asked == "SIGINT"
        signal.raise_signal(signal.SIGINT)


GROUP = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from types import SimpleNamespace
from test_engine import trained
from rfpp import engine
from rfpp.base import processes
from rfpp.pairs import PairDataset

def send(step, average):
    if step == 5:
        os.killpg(0, signal.SIGTERM)  # to the loader's workers as well

try:
    trained(PairDataset({pairs!r}), folder=Path({out!r}), machinery=engine.Machinery(workers=2), on_step=send)
except processes.Stopped:
    sys.exit(processes.Stopped.EXIT)
"""


def test_a_signal_to_the_whole_group_leaves_the_workers_alone(pairs, tmp_path):
    """As schedulers and launchers send it."""
    script = tmp_path / "run.py"
    script.write_text(
        GROUP.format(tests=str(Path(__file__).parent), pairs=str(pairs.folder), out=str(tmp_path / "states"))
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RFPP_PROGRESS": os.devnull}
    ended = subprocess.run([sys.executable, script], env=environment, start_new_session=True, timeout=120)
    assert ended.returncode == Stopped.EXIT and Checkpoints(tmp_path / "states").steps() == [5]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from types import SimpleNamespace
from test_engine import trained
from truth import network
from rfpp import engine
from rfpp.base import processes
from rfpp.denoisers import EDMPrecond
from rfpp.pairs import PairDataset, generate
import torch

out = Path({out!r})
try:
    teacher = EDMPrecond(network()).eval().requires_grad_(False)
    generate(teacher, 48 * {kills}, out / "pairs", num_steps=6, shard_size=12)
    found, history = trained(
        PairDataset(out / "pairs"), steps=60 * {kills}, folder=out / "states", machinery=engine.Machinery(save_every=3)
    )
except processes.Stopped:
    sys.exit(processes.Stopped.EXIT)
torch.save({{"weights": found, "losses": history.losses}}, out / "result.pt")
"""
KILLS = int(os.environ.get("RFPP_KILLS", "4"))
"""How often the run below is killed; twenty take some minutes."""


def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path):
    """SIGKILL and SIGTERM at random moments of pair generation and training: pairs and weights are bit for bit those
    of an undisturbed run. How long the start takes differs, so the clock runs from the first file that is written, in
    the first half of the kills of pairs, in the second of checkpoints."""

    def start(folder):
        folder.mkdir(exist_ok=True)
        script = folder / "run.py"
        script.write_text(KILLED.format(tests=str(Path(__file__).parent), out=str(folder), kills=KILLS))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RFPP_PROGRESS": os.devnull}
        return subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE)

    def files(part):
        return sorted(path.name for path in (disturbed / part).glob("[!.]*"))

    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    assert start(calm).wait(300) == 0
    moments, codes = random.Random(0), []
    for number in range(KILLS):
        part = "pairs" if number < KILLS // 2 else "states"
        run, there = start(disturbed), files(part)
        while run.poll() is None and files(part) == there:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        run.send_signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
        codes.append(run.wait(60))
    assert codes == [-signal.SIGKILL if number % 2 else Stopped.EXIT for number in range(KILLS)]
    last = start(disturbed)
    assert last.wait(300) == 0, last.stderr.read()
    one, other = (torch.load(folder / "result.pt") for folder in (calm, disturbed))
    assert torch.equal(one["weights"], other["weights"]) and one["losses"] == other["losses"]
    for path in sorted((calm / "pairs").glob("[!.]*")):
        assert path.read_bytes() == (disturbed / "pairs" / path.name).read_bytes()


def test_a_history_is_shown_in_a_line():
    made = History(steps=[10, 20], losses=[0.98765, 0.5], over_time=[[0.1] * 20] * 10)
    assert repr(made) == "History(20 steps, loss 0.9877 to 0.5)" and repr(History()) == "History(0 steps)"


# TensorBoard


def test_losses_rates_and_samples_go_to_tensorboard(pairs, tmp_path):
    """Read back with TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    machinery = Machinery(log_every=4, save_every=6, tensorboard=True)
    _, history = trained(
        pairs, folder=tmp_path / "states", machinery=machinery, pictures=lambda model: torch.zeros(2, 1, 8, 8)
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in found] == history.steps
    np.testing.assert_allclose([value for _, value in found], history.losses, rtol=1e-6)
    assert [event.value for event in events.Scalars("images")] == [32, 64, 96]
    assert events.Scalars("learning rate")[-1].value == pytest.approx(1e-3)
    assert any(tag.startswith("loss over t/") for tag in events.Tags()["scalars"])
    assert [event.step for event in events.Images("samples")] == [6]
    assert (events.Images("samples")[0].width, events.Images("samples")[0].height) == (16, 8)  # side by side


def test_a_step_draws_its_rows_and_no_others():
    """Denoising and classification, too: rows of a part are those of the whole."""
    images = Images(to_uint8(randn(20, 1, 8, 8)), torch.arange(20) % 3)
    for objective in (
        training.Denoising(images, 10, 0, 0.5, flip=True), training.Classification(images, 10, 0, 1, 0.2, flip=True)
    ):  # fmt: skip
        whole, part = objective.draw(3, range(10)), objective.draw(3, range(4, 7))
        for one, other in zip(whole, part, strict=True):
            assert torch.equal(one[4:7], other)
        assert not torch.equal(whole[0], objective.draw(4, range(10))[0])


def test_flipping_mirrors_half_of_the_images():
    """Of 4000 images with a bright left edge, half have it on the right: within five standard deviations."""
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pixels[..., 0] = 255
    images = Images(pixels, torch.zeros(1, dtype=torch.int64))
    x, *_ = training.Denoising(images, 4000, 0, 0.5, flip=True).draw(0, range(4000))
    mirrored = (x[..., -1] > 0).all(dim=(1, 2))
    assert ((x[..., 0] > 0).all(dim=(1, 2)) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)
