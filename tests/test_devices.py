"""Models elsewhere than their inputs, and what runs on a GPU, tried on the meta device.

The meta device computes shapes and nothing else. It does not mix with the CPU, but for single numbers, and no value can
be read from it: what passes there creates its tensors where the others are, and never makes a GPU wait.
"""

import copy
import gc
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from truth import network, randn

from rfpp import features, intersections, metrics, premetrics, samplers, timesteps, training
from rfpp.base import processes
from rfpp.denoisers import EDMPrecond, LinearSchedule, VPPrecond
from rfpp.doctor import material
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pipeline import shipped
from rfpp.pipeline.grades import agreement

META = torch.device("meta")


def away(*shape):
    return torch.empty(*shape, device=META)


@pytest.fixture(scope="module")
def perceptual():
    return features.FeatureLPIPS(copy.deepcopy(shipped.load("digits-perceptual"))).to(META)


@pytest.fixture(scope="module", params=["EDM", "VP"])
def flow(request):
    made = EDMPrecond(network()) if request.param == "EDM" else VPPrecond(network(), LinearSchedule())
    return RectifiedFlow(made.eval().to(META))


LABELS = torch.empty(4, dtype=torch.int64, device=META)


KINDS = [premetrics.squared_l2, premetrics.pseudo_huber, premetrics.LPIPSHuber, premetrics.LPIPSHuberOverT]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_never_leaves_the_device(flow, perceptual, kind):
    objective = training.Reflow(None, timesteps.UShaped(), premetrics.bind(kind, lambda: perceptual), 4, 0)
    losses = objective.losses(flow, away(4, 1, 8, 8), away(4, 1, 8, 8), LABELS, away(4))
    assert losses.shape == (4,) and losses.device == META


def test_a_teachers_training_step_never_leaves_the_device(flow):
    losses = training.Denoising(None, 4, 0, 0.5).losses(
        flow.denoiser, away(4, 1, 8, 8), LABELS, away(4), away(4, 1, 8, 8)
    )
    assert losses.shape == (4,) and losses.device == META


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "none"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("update", ["standard", "straight"])
def test_samplers_never_leave_the_device(flow, solver, update, labels):
    x = samplers.sample(flow, away(4, 1, 8, 8), 3, solver, update, labels=labels)
    assert x.device == META and x.shape == (4, 1, 8, 8)


def test_the_teachers_sampler_and_inversion_never_leave_the_device(flow):
    assert samplers.edm_sample(flow.denoiser, away(4, 1, 8, 8), 4, labels=LABELS).device == META
    path = samplers.integrate(flow, away(4, 1, 8, 8), samplers.inversion_times(4), labels=LABELS)
    assert path[-1].device == META
    assert metrics.straightness(path, samplers.inversion_times(4)).device == META


def test_autocorrelations_never_leave_the_device():
    assert intersections.autocorrelation(away(4, 1, 8, 8), 5).device == META


class Elsewhere(nn.Module):
    """Notes where its inputs lie, in another precision in place of another device."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x, sigma, labels=None):
        self.seen.append((x.device, sigma if isinstance(sigma, float) else sigma.device, labels and labels.device))
        return x + self.weight


def test_a_placed_model_fetches_its_inputs(monkeypatch):
    """Tensors go to its device by position and by name, numbers and ``None`` stay what they are."""
    monkeypatch.setattr(processes, "device", lambda: META)
    model = processes.place(Elsewhere())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # on its way back to the CPU
        model(randn(2, 3), torch.ones(2), labels=None)
    assert model.seen == [(META, META, None)] and model.weight.device == META
    assert model(away(2, 3), 0.5).device == META and model.seen[-1] == (META, 0.5, None)
    assert model(x=away(2, 3), sigma=0.5).device == META


def test_features_are_placed_where_they_are_asked_for(monkeypatch, tmp_path):
    """``Embedding`` calls a method of its classifier, which a hook on that would miss."""
    experiment = Experiment("smoke", runs=tmp_path)
    monkeypatch.setattr(processes, "device", lambda: META)
    for model in (experiment.embedding, experiment.classifier, experiment.perceptual, experiment.teacher):
        assert model._forward_pre_hooks and all(parameter.device == META for parameter in model.parameters())
    assert experiment.embedding(away(2, 1, 8, 8)).device == META
    assert shipped.load("digits-classifier").head.weight.device.type == "cpu"  # a copy went


def test_on_the_cpu_nothing_is_put_in_between(monkeypatch):
    monkeypatch.setattr(processes, "device", lambda: torch.device("cpu"))
    model = processes.place(Elsewhere())
    assert not model._forward_pre_hooks and not model._forward_hooks
    x = randn(2, 3)
    assert torch.equal(model(x, 0.5), x + 1)


@pytest.fixture
def a_box_of_two(monkeypatch):
    """The environment that ``torchrun`` gives a process of one of two machines."""
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    return monkeypatch


class Way:
    """A datagram socket that leaves the machine by one address."""

    def __init__(self, leaving):
        self.leaving = leaving

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def connect(self, address):
        assert address[0] == "10.0.0.1"

    def getsockname(self):
        return self.leaving, 40000


NETWORKS = {
    "lo": [SimpleNamespace(address="127.0.0.1")],
    "ib0": [SimpleNamespace(address="fe80::1"), SimpleNamespace(address="10.0.0.7")],
}


@pytest.mark.parametrize(
    ("own", "leaving", "interface"),
    [("127.0.1.1", "10.0.0.7", "ib0"), ("10.0.0.7", "10.0.0.7", "")],
    ids=["the host's name is a loopback address", "it is not"],
)
def test_several_boxes_listen_where_the_others_are(a_box_of_two, own, leaving, interface):
    a_box_of_two.setattr("socket.gethostbyname", lambda _: own)
    a_box_of_two.setattr("socket.socket", Way(leaving))
    a_box_of_two.setattr("psutil.net_if_addrs", lambda: NETWORKS)
    processes.listen_to_other_machines()
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface


def test_a_box_that_no_other_reaches_says_what_to_set(a_box_of_two):
    a_box_of_two.setattr("socket.gethostbyname", lambda _: "127.0.1.1")
    a_box_of_two.setattr("socket.socket", Way("127.0.0.1"))
    a_box_of_two.setattr("psutil.net_if_addrs", lambda: NETWORKS)
    with pytest.raises(RuntimeError, match=r"'box', has the address 127\.0\.1\.1, .* GLOO_SOCKET_IFNAME=eth0"):
        processes.listen_to_other_machines()


@pytest.mark.parametrize(("here", "gpus", "fits"), [(2, 2, True), (4, 0, True), (1, 4, True), (2, 1, False)])
def test_each_process_of_a_machine_needs_a_gpu_of_its_own(monkeypatch, here, gpus, fits):
    """Without GPUs they share the cores."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with nullcontext() if fits else pytest.raises(ValueError, match="2 processes .* 1 GPU, .* --nproc-per-node=1"):
        Experiment("smoke")


def test_autocast_keeps_no_weights(tmp_path):
    """Otherwise a weight that a target needed first, without gradients, may stay without them."""
    before = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(True)
        Experiment("smoke", runs=tmp_path).pairs("held_out")
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.is_autocast_cache_enabled()
    finally:
        torch.set_autocast_cache_enabled(before)


def test_what_finished_work_leaves_behind_is_returned(monkeypatch):
    """Also what refers to itself, as a training does."""
    returned, training = [], Elsewhere()
    training.seen.append(training)
    seen = weakref.ref(training)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: returned.append(seen()))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    gc.disable()
    try:
        del training
        processes.free_memory()
    finally:
        gc.enable()
    assert returned == [None]


def test_the_doctor_examines_copies_of_the_shipped_networks(monkeypatch):
    """Others share them, and what is placed twice gives its output on the device, where the noise is not."""
    monkeypatch.setattr(processes, "device", lambda: META)
    placed = [material.load_teacher("digits-teacher") for _ in range(2)]
    placed.append(material.teacher_of(Path("elsewhere"), {"teacher": [shipped.sha256("digits-teacher")]}))
    assert all(len(model._forward_pre_hooks) == 1 and next(model.parameters()).device == META for model in placed)
    shared = shipped.load("digits-teacher")
    assert not shared._forward_pre_hooks and next(shared.parameters()).device.type == "cpu"


def test_grading_twice_leaves_the_shared_grader_alone(monkeypatch):
    """A model that is placed twice gives its output on the device, where the labels are not."""
    seen = []
    monkeypatch.setattr(processes, "device", lambda: META)
    monkeypatch.setattr(metrics, "label_agreement", lambda images, labels, network: seen.append(network) or 1.0)
    grader = shipped.load("digits-classifier")
    for _ in range(2):
        assert agreement(grader, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)) == 1.0
    assert not grader._forward_pre_hooks and grader.head.weight.device.type == "cpu"
    assert all(len(network._forward_pre_hooks) == 1 and network.head.weight.device == META for network in seen)


FAULTS = """
import resource, torch
from rfpp.base import processes
kept = processes.keep_memory()
for number in range(10):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(1 << 22) for _ in range(8)]
    del held
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again():
    """Eight tensors of 16 MiB take their 32,768 pages anew in each of eight rounds, or hardly any.

    Without being asked, glibc keeps them in some processes and not in others.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_TRIM_THRESHOLD_"}  # dask sets it
    found = subprocess.run([sys.executable, "-c", FAULTS], env=inherited, capture_output=True, text=True, check=True)
    (asked, faults), pages = map(int, found.stdout.split()), 8 * 8 * (1 << 12)
    if not asked:
        pytest.skip("only glibc can be told to keep memory")
    assert faults < pages / 10


def test_memory_is_freed_as_the_user_wants(monkeypatch):
    """glibc reads the variable by itself, and is told nothing else."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda _: pytest.fail("asked glibc"))
    assert processes.keep_memory.__wrapped__() is False
