"""Few rows at a time: the same values, a bounded batch, and models that are otherwise what they were."""

import copy
import gc
import io
import pickle
import weakref

import inprocess
import pytest
import torch
from shrunk import LIGHT
from torch import nn
from truth import network, randn

from rfpp import book
from rfpp.base.batches import at_most, in_batches
from rfpp.configurations import TEACHER
from rfpp.denoisers import EDMPrecond
from rfpp.experiment import Experiment
from rfpp.networks import SongUNet
from rfpp.pipeline.identities import identity


@pytest.mark.parametrize("rows", [1, 3, 7, 8])
def test_parts_join_to_the_whole(rows):
    """Tensors with as many rows are divided; numbers, one time for all rows, and ``None`` are not."""
    seen = []

    def line(x, slope, shift, *, more=None, scale):
        seen.append(len(x))
        return scale * (slope * x + shift) + (0 if more is None else more)

    x, slope, shift, scale = randn(7, 2), randn(7, 1, seed=1), randn(1, seed=2), 2.0
    whole = scale * (slope * x + shift)
    assert torch.equal(in_batches(line, rows, x, slope, shift, scale=scale), whole)
    assert torch.equal(in_batches(line, rows, x, slope, shift, more=x, scale=scale), whole + x)
    assert max(seen) == min(rows, 7) and sum(seen) == 2 * 7
    with pytest.raises(ValueError, match="rows=0 is too small"):
        in_batches(line, 0, x, slope, shift, scale=scale)


def test_a_model_sees_few_rows_and_keeps_its_identity():
    whole = EDMPrecond(network()).eval().requires_grad_(False)
    limited, seen = at_most(2, copy.deepcopy(whole)), []
    limited.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    x, sigma, labels = randn(5, 1, 8, 8), torch.linspace(0.1, 3, 5), torch.arange(5) % 3
    for level in (sigma, 0.7):
        torch.testing.assert_close(limited(x, level, labels), whole(x, level, labels))
    assert seen == [2, 2, 1, 2, 2, 1]
    assert identity(limited) == identity(whole) and list(limited.state_dict()) == list(whole.state_dict())
    other = copy.deepcopy(limited)  # computes with its own weights
    nn.init.zeros_(next(iter(limited.model.parameters())))
    torch.testing.assert_close(other(x, sigma, labels), whole(x, sigma, labels))
    assert not torch.equal(limited(x, sigma, labels), whole(x, sigma, labels))


def test_a_dropped_model_is_gone():
    """Without a look for cycles, because it may hold most of a GPU's memory."""
    model = at_most(2, EDMPrecond(network()))
    seen, was = weakref.ref(model), gc.isenabled()
    gc.disable()
    try:
        del model
        assert seen() is None
    finally:
        if was:
            gc.enable()


def test_a_limited_model_can_be_pickled():
    model = at_most(2, EDMPrecond(network()).eval())
    again, x, labels = pickle.loads(pickle.dumps(model)), randn(3, 1, 8, 8), torch.arange(3)
    torch.testing.assert_close(again(x, 0.5, labels), model(x, 0.5, labels))
    nn.init.zeros_(next(iter(again.parameters())))
    assert not torch.equal(again(x, 0.5, labels), model(x, 0.5, labels))


def test_derivatives_pass_through():
    whole = EDMPrecond(network()).eval().requires_grad_(False)
    limited = at_most(2, copy.deepcopy(whole))
    x, v = randn(5, 1, 8, 8), randn(5, 1, 8, 8, seed=1)
    for derivative in (
        lambda model: torch.func.jvp(lambda x: model(x, 0.7), (x,), (v,))[1],
        lambda model: torch.func.vjp(lambda x: model(x, 0.7), x)[1](v)[0],
    ):
        torch.testing.assert_close(derivative(limited), derivative(whole))


MORE = {
    "pairs_help": {"couples": 40},
    "likelihood": {"images": 20},
    "few_steps": {"pairs_used": 20},
    "ablation": {"uncurated": 24},
    "timesteps": {"pairs_used": 24},
}
"""Values that ask for more rows than are allowed at once, in notebooks that are otherwise light."""
ROWS, DIFFERENTIATED = 16, 4


@pytest.mark.every_scale
@pytest.mark.parametrize("slug", [pytest.param(slug, marks=pytest.mark.xdist_group("batches")) for slug in LIGHT])
def test_no_notebook_gives_a_network_more_rows_than_the_preset_says(slug, monkeypatch, tmp_path_factory):
    """At most ``pairs.batch_size`` rows, and ``machinery.micro_batch`` where gradients are kept: at the size of
    ImageNet's network, memory depends on nothing else."""
    inprocess.use(monkeypatch)
    monkeypatch.setenv("RFPP_RUNS", str(tmp_path_factory.getbasetemp() / "batches"))
    seen = {True: 0, False: 0}

    def look(module, given):
        if isinstance(module, SongUNet):
            seen[torch.is_grad_enabled()] = max(seen[torch.is_grad_enabled()], len(given[0]))

    settings = {"pairs.batch_size": ROWS, "machinery.micro_batch": DIFFERENTIATED}
    hook = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        given = {**LIGHT[slug], **MORE.get(slug, {}), "settings": settings}
        book.run("smoke", [slug], given, terminal=io.StringIO())
    finally:
        hook.remove()
    assert seen[False] <= ROWS and seen[True] <= DIFFERENTIATED


def test_models_of_an_experiment_see_few_rows(tmp_path):
    """Also those that a reader calls: teacher, flow, classifier and features."""
    few, many = (Experiment("smoke", {"pairs.batch_size": n}, runs=tmp_path) for n in (16, 64))
    x, t = randn(20, 1, 8, 8), torch.linspace(0.1, 0.9, 20)
    with torch.no_grad():
        for model in ("classifier", "embedding"):
            torch.testing.assert_close(getattr(few, model)(x), getattr(many, model)(x))
        torch.testing.assert_close(few.perceptual(x, -x), many.perceptual(x, -x))
        for name in (TEACHER, "A"):
            seen = []
            flow = few.flow(name)
            flow.denoiser.model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
            labels = torch.arange(20) % 10
            torch.testing.assert_close(flow.velocity(x, t, labels), many.flow(name).velocity(x, t, labels))
            assert seen == [16, 4]
