"""Models on disk: what comes back is what was saved, and a damaged file says so."""

import hashlib
import json
import os
import subprocess
import sys

import edm
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from truth import DATA, REFERENCES, agrees, arrays, network, rand, randn, reference

from rfpp import checkpoints
from rfpp.base import files, torchvision_shim
from rfpp.base.pickles import Refused
from rfpp.denoisers import EDMPrecond, LinearSchedule, VPPrecond
from rfpp.features import Classifier
from rfpp.flow import RectifiedFlow


def ask(model):
    """An output of any of the models."""
    if isinstance(model, RectifiedFlow | EDMPrecond | VPPrecond):
        return model(randn(3, 1, 8, 8), 0.3, torch.arange(3))
    return model(randn(3, 1, 8, 8), rand(3)) if not isinstance(model, Classifier) else model(randn(3, 1, 8, 8))


def models():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        digits = Classifier((4, 6), "silu")
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
    with pytest.raises(ValueError, match=f"{path} is not a complete safetensors file"):
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


# EDM's pickles


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", REFERENCES)
def test_an_edm_pickle_gives_the_reference_numbers(tmp_path, name, protocol):
    """The released weights in EDM's format, in every protocol: same make-up, same weights, same numbers out."""
    path = edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(reference(name))}, protocol)
    loaded, truth = checkpoints.load_edm_pickle(path), arrays(name)
    assert loaded.model.config == reference(name).model.config and not loaded.training
    assert agrees(loaded(truth["x_for_denoise"], truth["sigma"], truth.get("labels")), truth["denoised"])


def snapshot(model, **attributes):
    """What EDM's training writes: the model beside other objects, and plain settings."""
    return {
        "ema": edm.denoiser(model, **attributes),
        "loss_fn": edm.Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2}),
        "augment_pipe": edm.Persistent("AugmentPipe", {"p": 0.12}),
        "dataset_kwargs": edm.EasyDict(path="datasets/cifar10-32x32.zip", use_labels=True),
    }


def test_a_training_snapshot_is_read_like_a_published_file(tmp_path):
    """The other entries are records; another entry can be asked for by name."""
    model = EDMPrecond(network(), sigma_data=0.7)
    path = edm.write(tmp_path / "snapshot.pkl", {**snapshot(model), "last": edm.denoiser(model)})
    for key in ("ema", "last"):
        loaded = checkpoints.load_edm_pickle(path, key=key)
        assert loaded.sigma_data == 0.7 and torch.equal(ask(loaded), ask(model.eval()))


def test_a_vp_teacher_of_edm_keeps_its_schedule(tmp_path):
    model = VPPrecond(network(), LinearSchedule(0.2, 15.0, 500))
    path = edm.write(tmp_path / "vp.pkl", {"ema": edm.denoiser(model, beta_min=0.2, beta_d=15.0, M=500)})
    loaded = checkpoints.load_edm_pickle(path)
    assert isinstance(loaded, VPPrecond) and loaded.schedule.config == model.schedule.config
    assert torch.equal(ask(loaded), ask(model.eval()))


def test_arguments_by_position_and_those_of_the_preconditioning_serve_as_well(tmp_path):
    """A network that was made as ``SongUNet(8, 1, 1, ...)``, or that kept nothing of how it was made."""
    model = EDMPrecond(network())
    content = edm.denoiser(model)
    made = content.state["_modules"]["model"].state
    named = made["_init_kwargs"]
    made["_init_args"] = (named.pop("img_resolution"), named.pop("in_channels"))
    assert torch.equal(
        ask(checkpoints.load_edm_pickle(edm.write(tmp_path / "a.pkl", {"ema": content}))), ask(model.eval())
    )
    made.pop("_init_args"), made.pop("_init_kwargs")
    config = {key: value for key, value in model.model.config.items() if key not in ("in_channels", "out_channels")}
    content.state["_init_kwargs"] = edm.EasyDict(**config, img_channels=1, model_type="SongUNet", use_fp16=True)
    assert torch.equal(
        ask(checkpoints.load_edm_pickle(edm.write(tmp_path / "b.pkl", {"ema": content}))), ask(model.eval())
    )


def test_an_imported_model_remembers_where_it_came_from(tmp_path):
    """Through a save of ours and back."""
    path = edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(EDMPrecond(network()))})
    saved = checkpoints.save(checkpoints.load_edm_pickle(path), tmp_path / "ours.safetensors")
    provenance = checkpoints.load(saved).provenance
    assert provenance["file"] == "edm.pkl" and provenance["format"] == "EDM pickle"
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["torch"] == torch.__version__


def broken(change):
    """The object of a denoiser after ``change(its state, its network's state)``."""
    content = edm.denoiser(EDMPrecond(network()))
    change(content.state, content.state["_modules"]["model"].state)
    return {"ema": content}


def arguments(**changes):
    """A denoiser whose network says it was made with other arguments."""
    return broken(lambda own, net: net["_init_kwargs"].update(changes))


def bias(values):
    """A denoiser with another tensor in one place."""
    return broken(lambda own, net: net["_modules"]["map_layer0"].state["_parameters"].update(bias=values))


def set_class(content, name):
    content.class_name = name
    return content


def endless():
    """A module that contains itself."""
    content = edm.denoiser(EDMPrecond(network()))
    content.state["_modules"]["again"] = content
    return content


EDM_COMPLAINTS = {
    "no ema": ({"model": 1, "other": 2}, "no model under 'ema'; it holds: 'model', 'other'"),
    "a list": ([1, 2], "no model under 'ema'; it holds: list"),
    "ema is a number": ({"ema": 3}, "no model under 'ema'"),
    "another class": (
        {"ema": set_class(edm.denoiser(EDMPrecond(network())), "VEPrecond")},
        "class='VEPrecond' is unknown",
    ),
    "another network": (
        broken(lambda own, net: set_class(own["_modules"]["model"], "Generator")),
        "network class='Generator' is unknown",
    ),
    "no network": (broken(lambda own, net: own["_modules"].clear()), "no network called 'model'"),
    "no modules": (broken(lambda own, net: net.pop("_modules")), "module SongUNet has no _modules"),
    "a parameter that is a number": (
        broken(lambda own, net: net["_parameters"].update(a=3)),
        "model.a is a int, not a tensor",
    ),
    "no make-up": (broken(lambda own, net: net.update(_init_kwargs=3)), "does not say how it was made"),
    "an unknown argument": (arguments(depth=3), "SongUNet has an argument 'depth'"),
    "a nested argument": (arguments(channel_mult=[[1, 2]]), "channel_mult is a list; .*int.* is needed"),
    "very many blocks": (arguments(num_blocks=10**9), "num_blocks=1000000000 is too large .*-1..64"),
    "very many channels": (arguments(model_channels=10**9), "model_channels=1000000000 is too large .*65536"),
    "no channels": (arguments(model_channels=0), "cannot be made|does not fit"),
    "another resolution": (arguments(img_resolution=7), "img_resolution=7 cannot be halved"),
    "a negative sigma_data": (
        broken(lambda own, net: own.update(sigma_data=-1)),
        "sigma_data is not a number above 0 and below 1e9",
    ),
    "a tensor that is missing": (
        broken(lambda own, net: net["_modules"]["map_layer0"].state["_parameters"].pop("bias")),
        r"does not fit EDMPrecond: model.map_layer0.bias is missing, expected shape \(32,\)",
    ),
    "a tensor too many": (
        broken(lambda own, net: net["_parameters"].update(extra=torch.zeros(2, 3))),
        r"model.extra of shape \(2, 3\) is not expected",
    ),
    "a tensor of another shape": (
        bias(torch.zeros(31)),
        r"model.map_layer0.bias has shape \(31,\), expected \(32,\)",
    ),
    "weights that are not numbers": (
        bias(torch.full((32,), torch.nan)),
        "model.map_layer0.bias has 32 values that are NaN or infinite",
    ),
    "another number of classes": (
        arguments(label_dim=4),
        r"the file has 3 classes, the network label_dim=4; model.map_label.weight has shape \(8, 3\), expected \(8, 4",
    ),
    "a model within itself": ({"ema": endless()}, "module again is part of two others, or of itself"),
}


@pytest.mark.parametrize("kind", EDM_COMPLAINTS)
def test_an_edm_pickle_that_does_not_fit_says_so(tmp_path, kind):
    content, complaint = EDM_COMPLAINTS[kind]
    path = edm.write(tmp_path / "edm.pkl", content)
    with pytest.raises(ValueError, match=f"{path}.*{complaint}"):
        checkpoints.load_edm_pickle(path)


def test_an_edm_pickle_with_a_command_is_refused_by_name(tmp_path):
    """Deep in the model, in an attribute that nobody reads."""

    class Command:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    path = edm.write(
        tmp_path / "edm.pkl", broken(lambda own, net: net["_modules"]["map_layer0"].state.update(a=Command()))
    )
    with pytest.raises(Refused, match=f"{path} is refused: it names (posix|os).system"):
        checkpoints.load_edm_pickle(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("load", [checkpoints.load_edm_pickle, lambda path: checkpoints.load_released(path, "cifar10")])
def test_a_missing_import_is_named(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {tmp_path / 'nowhere'}"):
        load(tmp_path / "nowhere")


# The released state dicts


def released_config(name):
    """A configuration as it lies beside the released code."""
    config = dict(reference(name).model.config)
    return {
        **config,
        "unet_type": "adm" if name == "adm" else "songunet",
        "num_params": 55.7,
        "use_fp16": name == "adm",
    }


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_released_file_gives_the_reference_velocity(tmp_path, name, zipped):
    """State dicts of torch.save, new and old format; the configuration as a dictionary and as a file."""
    torch.save(reference(name).state_dict(), tmp_path / "flow.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "config.json").write_text(json.dumps(released_config(name)))
    truth = arrays(name)
    for config in (released_config(name), tmp_path / "config.json", str(tmp_path / "config.json")):
        flow = checkpoints.load_released(tmp_path / "flow.pth", config)
        assert agrees(flow.velocity(truth["x"], truth["t"], truth.get("labels")), truth["velocity"])


@pytest.mark.parametrize("name", REFERENCES)
def test_the_configuration_that_the_released_sampler_writes(tmp_path, name):
    """``config_unet.json``: the arguments, what NCSN++ may have besides, the size, and no type of network."""
    config = {**reference(name).model.config, "num_params": 55.7}
    if name != "adm":
        config |= {"aux_dim": 0, "aug": False}
    (tmp_path / "config_unet.json").write_text(json.dumps(config))
    torch.save(reference(name).state_dict(), tmp_path / "flow.pth")
    flow = checkpoints.load_released(tmp_path / "flow.pth", tmp_path / "config_unet.json")
    truth = arrays(name)
    assert agrees(flow.velocity(truth["x"], truth["t"], truth.get("labels")), truth["velocity"])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"aux_dim": 5}, "network: aux_dim=5 asks for a part that is not supported; allowed: 0"),
        ({"aug": True}, "network: aug=True asks for a part that is not supported; allowed: False"),
        ({"aug_dims": 32}, "network: SongUNet has no argument 'aug_dims'; did you mean 'augment_dim'"),
    ],
)
def test_a_released_network_with_other_parts_is_refused(tmp_path, changes, complaint):
    torch.save(EDMPrecond(network()).state_dict(), tmp_path / "flow.pth")
    for network_of, replaced in (({**CONFIG, **changes}, {}), (CONFIG, changes)):
        with pytest.raises(ValueError, match=complaint):
            checkpoints.load_released(tmp_path / "flow.pth", network_of, **replaced)


def test_a_narrow_adm_of_the_released_code_is_read(tmp_path):
    """Below 64 channels it has no attention, and its file no tensors for that."""
    config = {"img_resolution": 4, "in_channels": 1, "out_channels": 1, "model_channels": 32, "channel_mult": [1],
              "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip
    block = {"norm0": [32], "conv0": [32, 32, 3, 3], "affine": [64, 128], "norm1": [32], "conv1": [32, 32, 3, 3]}
    wide = {**block, "norm0": [64], "conv0": [32, 64, 3, 3], "skip": [32, 64, 1, 1]}
    layers = {"map_layer0": [128, 32], "map_layer1": [128, 128], "enc.4x4_conv": [32, 1, 3, 3],
              "out_norm": [32], "out_conv": [1, 32, 3, 3]}  # fmt: skip
    for name in ("enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1"):
        layers |= {f"{name}.{part}": shape for part, shape in block.items()}
    for name in ("dec.4x4_block0", "dec.4x4_block1"):
        layers |= {f"{name}.{part}": shape for part, shape in wide.items()}
    state = {f"model.{name}.weight": randn(*shape) for name, shape in layers.items()}
    state |= {f"model.{name}.bias": randn(shape[0]) for name, shape in layers.items()}
    torch.save(state, tmp_path / "flow.pth")
    flow = checkpoints.load_released(tmp_path / "flow.pth", {"unet_type": "adm", **config})
    assert flow.velocity(randn(2, 1, 4, 4), 0.5).isfinite().all()


def training_state(model, average):
    """The released code's training state: an optimizer of torch whose state has the averages beside Adam's own."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters)
    model(randn(3, 1, 8, 8), 0.3, torch.arange(3)).square().sum().backward()
    optimizer.step()
    if average is not None:
        for parameter, value in zip(parameters, average.parameters(), strict=True):
            if parameter in optimizer.state:
                optimizer.state[parameter]["ema"] = value.detach().clone()
    return {"optimizer_state_dict": optimizer.state_dict(), "model_state_dict": model.state_dict(), "iter": 50_000}


CONFIG = {"unet_type": "songunet", **network().config}


def test_of_a_training_state_the_averaged_weights_are_taken(tmp_path):
    """Also through the names that compilation puts in front; buffers have no average."""
    changes = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
    model, average = (EDMPrecond(network(seed, **changes)) for seed in (0, 50))
    average.model.map_noise.freqs = model.model.map_noise.freqs
    state = training_state(model, average)
    torch.save(state, tmp_path / "state.pth")
    state["model_state_dict"] = {f"_orig_mod.{name}": value for name, value in state["model_state_dict"].items()}
    torch.save(state, tmp_path / "compiled.pth")
    for name in ("state.pth", "compiled.pth"):
        for weights, expected in ((None, average), ("ema", average), ("model", model)):
            flow = checkpoints.load_released(tmp_path / name, {**CONFIG, **changes}, weights=weights)
            assert torch.equal(ask(flow.denoiser), ask(expected.eval()))
            assert flow.provenance["weights"] == (weights or "ema")


def test_a_training_state_without_averages(tmp_path):
    """Its last weights serve, unless averaged ones were asked for."""
    model = EDMPrecond(network())
    torch.save(training_state(model, None), tmp_path / "state.pth")
    flow = checkpoints.load_released(tmp_path / "state.pth", CONFIG)
    assert flow.provenance["weights"] == "model" and torch.equal(ask(flow.denoiser), ask(model.eval()))
    with pytest.raises(ValueError, match="weights='ema', but .*state.pth has no averaged weights; allowed: 'model'"):
        checkpoints.load_released(tmp_path / "state.pth", CONFIG, weights="ema")


def test_parameters_that_were_never_trained_have_no_average(tmp_path):
    """The augmentation's embedding gets no gradient without augmentation; its weights are the model's."""
    model, average = EDMPrecond(network(augment_dim=9)), EDMPrecond(network(50, augment_dim=9))
    state = training_state(model, average)
    del state["optimizer_state_dict"]["state"][2]
    torch.save(state, tmp_path / "state.pth")
    flow = checkpoints.load_released(tmp_path / "state.pth", CONFIG, augment_dim=9)
    assert torch.equal(flow.denoiser.model.map_augment.weight, model.model.map_augment.weight)
    assert torch.equal(flow.denoiser.model.map_layer0.weight, average.model.map_layer0.weight)


def test_a_released_file_that_does_not_fit_says_so(tmp_path):
    path = tmp_path / "flow.pth"
    state = EDMPrecond(network()).state_dict()

    def complains(content, complaint, config=CONFIG, **options):
        torch.save(content, path)
        with pytest.raises(ValueError, match=complaint):
            checkpoints.load_released(path, config, **options)

    complains(state, "the file has 3 classes, the network label_dim=0; .*map_label.bias", {**CONFIG, "label_dim": 0})
    complains(state, r"the file has 3 classes, the network label_dim=10; .*\(8, 3\), expected \(8, 10\)", label_dim=10)
    complains(state, "network='cifar-10' is unknown; .*did you mean 'cifar10'", "cifar-10")
    complains(state, "unet_type='unet' is unknown", {**CONFIG, "unet_type": "unet"})
    complains(state, "SongUNet has no argument 'channels_mult'; did you mean 'channel_mult'", channels_mult=[1])
    complains(state, "weights='averaged' is unknown; allowed: 'ema', 'model'", weights="averaged")
    complains(state, "and [0-9]+ more", "cifar10")
    complains([1, 2], "holds a list, not a state dict")
    complains({**state, "a": 3}, "is not a state dict: 'a' is a int")
    complains(
        {**state, "model.map_layer0.bias": torch.full((32,), torch.inf)}, "map_layer0.bias has 32 values that are NaN"
    )
    training = training_state(EDMPrecond(network()), EDMPrecond(network(50)))
    training["optimizer_state_dict"]["state"][0]["ema"] = torch.zeros(7)
    complains(training, r"the average of model.map_label.weight has shape \(7,\), expected \(8, 3\)")
    del training["optimizer_state_dict"]["state"][0]
    training["optimizer_state_dict"]["state"][999] = {"ema": torch.zeros(7)}
    complains(training, "a parameter number 999, but the model")


# diffusers


def diffusers_folder(folder, unet=None, layout="pipeline", safe=True, **scheduler):
    """A small DDPM as the diffusers library itself writes it."""
    torchvision_shim.ensure()  # diffusers imports torchvision
    diffusers = pytest.importorskip("diffusers")
    config = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4, "attention_head_dim": 8, **(unet or {}),
    }  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = diffusers.UNet2DModel(**config).eval()
    schedule = diffusers.DDPMScheduler(**{"clip_sample": False, **scheduler})
    model.save_pretrained(folder / ("unet" if layout == "pipeline" else ""), safe_serialization=safe)
    schedule.save_pretrained(folder / ("scheduler" if layout == "pipeline" else ""))
    return model, schedule


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@torch.no_grad()
def test_a_diffusers_model_denoises_as_diffusers_does(tmp_path, prediction_type, beta_schedule):
    """Its scheduler's own estimate of the clean image, at whole steps."""
    options = {"prediction_type": prediction_type, "beta_schedule": beta_schedule}
    model, schedule = diffusers_folder(tmp_path, **options)
    denoiser, y = checkpoints.load_diffusers(tmp_path), randn(2, 1, 8, 8)
    for step in (0, 10, 400, 900):
        alpha = schedule.alphas_cumprod[step].double().sqrt()
        sigma = ((1 - alpha**2).sqrt() / alpha).item()
        expected = schedule.step(model(y, step).sample, step, y).pred_original_sample
        found = denoiser((y / alpha).float(), sigma)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("layout", ["pipeline", "flat"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_diffusers_folder_in_all_its_forms(tmp_path, layout, safe):
    """Safetensors and torch's own format, sub-folders and none; and from there to a file of ours and back."""
    model, _ = diffusers_folder(tmp_path, layout=layout, safe=safe)
    denoiser = checkpoints.load_diffusers(tmp_path)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in denoiser.model.unet.state_dict().items())
    ours = checkpoints.load(checkpoints.save(RectifiedFlow(denoiser), tmp_path / "ours.safetensors"))
    x = randn(2, 1, 8, 8)
    assert torch.equal(ours.denoiser(x, 0.7), denoiser(x, 0.7))


def test_an_early_diffusers_model_has_other_names_for_attention(tmp_path):
    model, _ = diffusers_folder(tmp_path)
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    early = {}
    for name, tensor in model.state_dict().items():
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f".{new}.", f".{old}.")
        early[name] = tensor.contiguous()
    assert early.keys() != model.state_dict().keys()
    save_file(early, path)
    found, expected = checkpoints.load_diffusers(tmp_path).model.unet.state_dict(), model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_classes_of_a_diffusers_model(tmp_path):
    """Given as numbers, they reach its embedding; without them it cannot say anything."""
    model, schedule = diffusers_folder(tmp_path, {"num_class_embeds": 4})
    denoiser, y, labels = checkpoints.load_diffusers(tmp_path), randn(3, 1, 8, 8), torch.tensor([3, 0, 2])
    alpha = schedule.alphas_cumprod[400].double().sqrt()
    with torch.no_grad():
        expected = schedule.step(model(y, 400, labels).sample, 400, y).pred_original_sample
        found = denoiser((y / alpha).float(), ((1 - alpha**2).sqrt() / alpha).item(), labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert denoiser.label_dim == 4
    with pytest.raises(ValueError, match="labels=None or a row of zeros: this model has no unconditional mode"):
        denoiser(y, 1.0)


@pytest.mark.parametrize(
    ("unet", "scheduler", "complaint"),
    [
        (
            {"time_embedding_type": "fourier"},
            {},
            "time_embedding_type='fourier' is not supported; allowed: 'positional'",
        ),
        ({"out_channels": 2}, {}, "in_channels=1, out_channels=2: they must agree"),
        ({"sample_size": (8, 16)}, {}, "sample_size=.*; a whole number"),
        ({}, {"rescale_betas_zero_snr": True}, "alphas_cumprod must be a list of at least two numbers that fall"),
    ],
)
def test_a_diffusers_model_of_another_kind_is_refused(tmp_path, unet, scheduler, complaint):
    diffusers_folder(tmp_path, unet, **scheduler)
    with pytest.raises(ValueError, match=complaint):
        checkpoints.load_diffusers(tmp_path)


def test_a_diffusers_folder_that_is_not_whole_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        checkpoints.load_diffusers(tmp_path)
    diffusers_folder(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        checkpoints.load_diffusers(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has neither diffusion_pytorch_model.safetensors nor"):
        checkpoints.load_diffusers(tmp_path)
    save_file({"conv_in.weight": torch.zeros(8, 1, 3, 3)}, weights)
    with pytest.raises(ValueError, match=r"model.unet.conv_in.bias is missing, expected shape \(8,\)"):
        checkpoints.load_diffusers(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing"):
        checkpoints.load_diffusers(tmp_path)
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ValueError, match="describes a UNet2DConditionModel; allowed: UNet2DModel"):
        checkpoints.load_diffusers(tmp_path)


def test_without_diffusers_the_error_says_what_to_install(tmp_path, monkeypatch):
    diffusers_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'rfpp\[diffusers\]'"):
        checkpoints.load_diffusers(tmp_path)


# Export


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", REFERENCES)
def test_exported_names_are_edms(tmp_path, name, ending):
    """The names in the reference file, which the released implementation wrote; read by torch and safetensors."""
    path = checkpoints.export_edm(RectifiedFlow(reference(name)), tmp_path / "new" / f"weights.{ending}")
    found = torch.load(path, weights_only=True) if ending == "pth" else load_file(path)
    with np.load(DATA / f"{name}.npz") as file:
        expected = {key[3:]: file[key] for key in file if key.startswith("sd/")}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key].numpy(), expected[key].astype(np.float32)) for key in expected)


def test_what_is_exported_comes_back_as_a_released_file(tmp_path):
    flow = RectifiedFlow(EDMPrecond(network()))
    path = checkpoints.export_edm(flow, tmp_path / "flow.pth")
    assert torch.equal(ask(checkpoints.load_released(path, CONFIG)), ask(flow.eval()))


@pytest.mark.parametrize(
    ("obj", "path", "error", "complaint"),
    [
        (network(), "a.pth", TypeError, "a SongUNet has no network of EDM; allowed: a flow or denoiser"),
        (RectifiedFlow(EDMPrecond(network())), "a.pkl", ValueError, "path's ending='.pkl' is unknown; allowed: '.pth'"),
    ],
)
def test_an_export_that_makes_no_sense_is_refused(tmp_path, obj, path, error, complaint):
    with pytest.raises(error, match=complaint):
        checkpoints.export_edm(obj, tmp_path / path)
    assert not list(tmp_path.iterdir())


# Ours, damaged by hand


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("map_layer0.bias"), r"map_layer0.bias is missing, expected shape \(32,\)"),
        (lambda tensors: tensors.update(more=torch.ones(2)), r"more of shape \(2,\) is not expected"),
        (lambda tensors: tensors.update({"map_layer0.bias": torch.ones(3)}), r"has shape \(3,\), expected \(32,\)"),
        (lambda tensors: tensors["map_layer0.bias"].fill_(torch.nan), "has 32 values that are NaN or infinite"),
    ],
)
def test_our_own_file_with_the_wrong_tensors_is_refused(tmp_path, change, complaint):
    path = checkpoints.save(network(), tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"{path} does not fit SongUNet: .*{complaint}"):
        checkpoints.load(path)


def test_a_header_that_describes_nothing_is_refused(tmp_path):
    for header in ('{"type": "SongUNet", "config": {"a": 1}}', '{"type": "EDMPrecond"}', "{}"):
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", {"rfpp": header})
        with pytest.raises(ValueError, match="model.safetensors describes a model that cannot be made"):
            checkpoints.load(tmp_path / "model.safetensors")


# What a first reading of the code had overlooked


def test_weights_that_share_memory_come_apart(tmp_path):
    """A file may store one tensor under two names; the model's are its own, and can be saved."""
    state = EDMPrecond(network()).state_dict()
    state["model.map_layer0.bias"] = state["model.map_layer1.bias"]
    torch.save(state, tmp_path / "flow.pth")
    flow = checkpoints.load_released(tmp_path / "flow.pth", CONFIG)
    first, second = flow.denoiser.model.map_layer0.bias, flow.denoiser.model.map_layer1.bias
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
    checkpoints.save(flow, tmp_path / "ours.safetensors")


@pytest.mark.parametrize("change", [torch.Tensor.long, torch.Tensor.bool, lambda tensor: tensor.to(torch.complex64)])
def test_weights_of_another_kind_are_refused(tmp_path, change):
    state = {name: change(tensor) for name, tensor in EDMPrecond(network()).state_dict().items()}
    save_file(state, tmp_path / "a.safetensors", {"rfpp": json.dumps(checkpoints.describe(EDMPrecond(network())))})
    with pytest.raises(ValueError, match="has dtype torch.*, expected a floating-point one"):
        checkpoints.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["_orig_mod.module.{}", "module._orig_mod.{}", "model._orig_mod.{}", "{}"])
def test_names_of_compiled_and_distributed_models(tmp_path, name):
    """The wrappers' names stand before the model, within it, or, where only the network was saved, nothing stands."""
    model = EDMPrecond(network())
    torch.save({name.format(key): value for key, value in model.model.state_dict().items()}, tmp_path / "a.pth")
    assert torch.equal(ask(checkpoints.load_released(tmp_path / "a.pth", CONFIG).denoiser), ask(model.eval()))


def test_a_tensor_that_is_there_twice_is_refused(tmp_path):
    state = EDMPrecond(network()).state_dict()
    torch.save({**state, **{f"module.{name}": 0 * tensor for name, tensor in state.items()}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth has model.map_label.weight twice, the second time as module.model"):
        checkpoints.load_released(tmp_path / "a.pth", CONFIG)


def test_a_flow_on_an_imported_teacher_remembers_too(tmp_path):
    path = edm.write(tmp_path / "edm.pkl", {"ema": edm.denoiser(EDMPrecond(network()))})
    saved = checkpoints.save(RectifiedFlow(checkpoints.load_edm_pickle(path)), tmp_path / "flow.safetensors")
    assert checkpoints.load(saved).provenance["file"] == "edm.pkl"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model_state_dict": [1, 2]}, "holds a list, not a state dict"),
        ({"model_state_dict": None}, "holds a NoneType, not a state dict"),
        ({1: torch.zeros(2)}, "is not a state dict: '1' is a Tensor"),
    ],
)
def test_other_files_of_torch_are_no_state_dicts(tmp_path, content, complaint):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth.*{complaint}"):
        checkpoints.load_released(tmp_path / "a.pth", CONFIG)


@pytest.mark.parametrize("header", ["{", "[" * 200_000])
def test_a_damaged_header_is_named(tmp_path, header):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"rfpp": header})
    with pytest.raises(ValueError, match="a.safetensors has a damaged header"):
        checkpoints.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_blocks": 10_000}, "num_blocks=10000 is too large or too small; allowed: -1..64"),
        ({"model_channels": 1 << 40}, "model_channels=1099511627776 is too large"),
        ({"dropout": "abc"}, "dropout is a str; .*float.* is needed"),
        ({"channel_mult": "123"}, "channel_mult is a str; .* is needed"),
        ({"channel_mult": [1] * 100}, "channel_mult has 100 entries"),
        ({"model_channels": True}, "model_channels is a bool; .*int.* is needed"),
    ],
)
def test_a_network_that_nobody_has_is_not_built(tmp_path, changes, complaint):
    """In our own files and in released configurations alike."""
    description = checkpoints.describe(network())
    description["config"].update(changes)
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"rfpp": json.dumps(description)})
    torch.save(EDMPrecond(network()).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=complaint):
        checkpoints.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=complaint):
        checkpoints.load_released(tmp_path / "a.pth", {**CONFIG, **changes})


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("scheduler/scheduler_config.json", "[]", "scheduler_config.json holds a list; a JSON object"),
        (
            "scheduler/scheduler_config.json",
            '{"_class_name": "FlowMatchEulerDiscreteScheduler"}',
            "is unknown; allowed",
        ),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "x"}', "scheduler_config.json: "),
        ("unet/config.json", "[]", "config.json holds a list"),
        ("unet/config.json", '{"block_out_channels": [3]}', "config.json: "),
    ],
)
def test_a_diffusers_configuration_that_makes_no_sense_is_named(tmp_path, file, content, complaint):
    diffusers_folder(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        checkpoints.load_diffusers(tmp_path)


def test_diffusers_loads_in_a_fresh_process(tmp_path):
    """It imports torchvision, which needs our help where its build does not match torch's."""
    diffusers_folder(tmp_path)
    command = f"from rfpp import checkpoints; checkpoints.load_diffusers({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_a_state_dict_is_told_what_reads_it(tmp_path, suffix):
    torch.save(network().state_dict(), path := tmp_path / f"own{suffix}")
    with pytest.raises(ValueError, match=r"may be a state dict, .* python -m rfpp import .* --network NAME"):
        checkpoints.load_any(path)
