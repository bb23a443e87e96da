"""Models on disk: what comes back is what was saved, and a damaged file says so."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from truth import network, rand, randn, reference

from rfpp import checkpoints, files
from rfpp.denoisers import EDMPrecond
from rfpp.features import DigitNet
from rfpp.flow import RectifiedFlow


def ask(model):
    """An output of any of the models."""
    if isinstance(model, RectifiedFlow | EDMPrecond):
        return model(randn(3, 1, 8, 8), 0.3, torch.arange(3))
    return model(randn(3, 1, 8, 8), rand(3)) if not isinstance(model, DigitNet) else model(randn(3, 1, 8, 8))


def models():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        digits = DigitNet((4, 6), "silu")
    return {
        "flow": RectifiedFlow(EDMPrecond(network(), sigma_data=0.7)),
        "denoiser": EDMPrecond(network(embedding_type="fourier", encoder_type="residual"), sigma_data=0.7),
        "network": network(label_dim=0),
        "classifier": digits,
    }


@pytest.mark.parametrize("name", ["flow", "denoiser", "network", "classifier"])
def test_a_saved_model_comes_back_bit_by_bit(tmp_path, name):
    """The same outputs, from nothing but the file; in evaluation mode."""
    model = models()[name]
    loaded = checkpoints.load(checkpoints.save(model, tmp_path / "new" / "model.safetensors"))
    assert type(loaded) is type(model) and not loaded.training
    assert torch.equal(ask(loaded), ask(model.eval()))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_the_reference_networks_survive(tmp_path):
    """Both kinds of U-Net with the released names."""
    for name in ("ncsnpp", "adm"):
        loaded = checkpoints.load(checkpoints.save(reference(name), tmp_path / name))
        expected = reference(name).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())


def test_the_file_says_what_it_is_to_anyone(tmp_path):
    """The header is JSON, by the format's own layout: eight bytes of length, then the header."""
    path = checkpoints.save(models()["flow"], tmp_path / "flow", note="by hand")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert header["note"] == "by hand" and json.loads(header["rfpp"])["denoiser"]["sigma_data"] == 0.7


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = checkpoints.save(models()["network"], tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path} is not a whole safetensors file"):
        checkpoints.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {tmp_path / 'nowhere'}"):
        checkpoints.load(tmp_path / "nowhere")


def test_a_file_of_somebody_else_is_named(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is a safetensors file, but its header does not say"):
        checkpoints.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("model", [nn.Linear(2, 2), RectifiedFlow(lambda x, sigma, labels: x)])
def test_a_model_that_cannot_be_rebuilt_is_refused_and_nothing_is_written(tmp_path, model):
    with pytest.raises(TypeError, match="cannot be saved; allowed: RectifiedFlow, EDMPrecond"):
        checkpoints.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_unknown_description_is_refused():
    with pytest.raises(ValueError, match="type='SongUnet' is unknown; .*did you mean 'SongUNet'"):
        checkpoints.build({"type": "SongUnet", "config": {}})


def test_an_interrupted_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    first, second = network(0), network(1)
    path = checkpoints.save(first, tmp_path / "model")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(second, path)
    assert torch.equal(checkpoints.load(path).map_layer0.weight, first.map_layer0.weight)
