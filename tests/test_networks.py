"""The U-Nets: the released implementation's numbers, the paper's sizes, and what every argument is for."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from truth import REFERENCES, agrees, arrays, network, rand, randn, reference

from rfpp import networks
from rfpp.networks import DhariwalUNet, SongUNet, layers

SIZES = {"cifar10": 56_397_827, "afhq": 62_761_091, "ffhq": 62_761_091, "imagenet64": 295_899_267}
SMALL = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8, "channel_mult": [1, 2]}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
          "resample_filter": [1, 3, 3, 1]}  # fmt: skip
BOTH = pytest.mark.parametrize("kind", [SongUNet, DhariwalUNet])


def build(kind, seed=0, **changes):
    """A small network with weights drawn from a seed, none of them nought."""
    made = kind(**{**SMALL, "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0, **changes})
    with torch.no_grad():
        for place, parameter in enumerate(made.parameters()):
            parameter.copy_(0.2 * randn(*parameter.shape, seed=1000 * seed + place))
    return made.eval()


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1), (1, 2, 3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("size", [(8, 12), (2, 6)])
def test_sums_of_shifted_images_are_the_convolutions(taps, size):
    """What networks use on a GPU, beside convolutions with one filter for each channel; lopsided taps show the order.
    Both padded as Conv2d pads, and not at all, as it does after a convolution."""
    line = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    kernel, pad = torch.outer(line, line).expand(3, 1, -1, -1), (len(taps) - 1) // 2
    x = randn(2, 3, *size).double().requires_grad_()
    pairs = [
        (layers.downsampled(x, line, pad), F.conv2d(x, kernel, groups=3, stride=2, padding=pad)),
        (layers.upsampled(x, line), F.conv_transpose2d(x, 4 * kernel, groups=3, stride=2, padding=pad)),
    ]
    if min(size) >= len(taps):
        pairs.append((layers.downsampled(x, line, 0), F.conv2d(x, kernel, groups=3, stride=2)))
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        weight = randn(*expected.shape, seed=1).double()
        gradients = (torch.autograd.grad((each * weight).sum(), x)[0] for each in (found, expected))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [4, 8, 96])  # in groups of four, of four, and of three
def test_statistics_by_channel_are_those_of_groups(channels, layout):
    """What compiled networks use on a GPU: the same output, gradients and derivative along a direction."""
    norm = networks.GroupNorm(channels).double()
    with torch.no_grad():
        norm.weight.copy_(randn(channels, seed=1)), norm.bias.copy_(randn(channels, seed=2))
    x = (randn(3, channels, 4, 6).double() + 5 * randn(channels, 1, 1, seed=3)).to(memory_format=layout)
    plain = x.contiguous()  # in forward mode torch's takes no other
    wanted, along = torch.func.jvp(norm, (plain,), (plain.square(),))
    by_channel = lambda x: layers.normalised_by_channel(x, norm.groups, norm.weight, norm.bias, norm.eps)  # noqa: E731
    torch.testing.assert_close(torch.func.jvp(by_channel, (x,), (x.square(),)), (wanted, along))
    inputs = x.requires_grad_(), norm.weight, norm.bias
    weights = wanted.detach().square()
    gradients = [torch.autograd.grad((f(x) * weights).sum(), inputs) for f in (norm, by_channel)]
    torch.testing.assert_close(*gradients)


def test_a_compiled_network_on_a_gpu_takes_statistics_by_channel(monkeypatch):
    """No GPU is needed to see which function is called, and with what."""
    norm, x, called = networks.GroupNorm(8), randn(2, 8, 4, 4), []
    monkeypatch.setattr(layers, "normalised_by_channel", lambda *given: called.append(given) or given[0])
    norm(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    norm(x)
    assert not called
    norm(SimpleNamespace(is_cuda=True))
    assert called[0][1:] == (norm.groups, norm.weight, norm.bias, norm.eps)


def test_statistics_by_channel_are_not_lost_far_from_zero():
    """In float32 as exact as torch's; bf16 is only what comes in and goes out."""
    norm, x = networks.GroupNorm(8), 1000 + randn(2, 8, 8, 8)
    exact = F.group_norm(x.double(), norm.groups, eps=norm.eps)
    found = layers.normalised_by_channel(x, norm.groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=0)  # x itself has 24 bits, of which 1000 takes 10
    halved = x.bfloat16()
    found = layers.normalised_by_channel(halved, norm.groups, norm.weight, norm.bias, norm.eps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.double(), F.group_norm(halved.double(), norm.groups, eps=norm.eps), atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("changes", [{}, NCSNPP])
def test_a_network_may_resample_either_way(changes, monkeypatch):
    """As on a GPU, where the sums are taken: the same outputs and gradients to rounding."""
    made, x, t = build(SongUNet, **changes), randn(2, 1, 8, 8), rand(2)
    expected = made(x, t, None)
    wanted = torch.autograd.grad(expected.square().sum(), list(made.parameters()), allow_unused=True)
    taps = lambda layer, x: layer.resample_filter[0, 0].sum(dim=0).to(x.dtype)  # noqa: E731
    monkeypatch.setattr(layers.Conv2d, "_taps", taps)
    found = made(x, t, None)
    got = torch.autograd.grad(found.square().sum(), list(made.parameters()), allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6


@pytest.mark.parametrize("name", REFERENCES)
def test_raw_output_is_the_released_implementations(name):
    """The released code's own numbers; augmentation labels were zeros."""
    truth, model = arrays(name), reference(name).model
    augmentation = torch.zeros(3, 9) if name == "ncsnpp" else None
    assert agrees(model(truth["x"], truth["noise_labels"], truth.get("labels"), augmentation), truth["raw"])


@pytest.mark.parametrize("name", networks.PAPER)
def test_size_is_the_papers(name):
    """Table 7 and the released README; on the meta device, where nothing is drawn and 300M weights cost nothing."""
    with torch.device("meta"):
        model = networks.paper(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]


def test_a_paper_network_can_be_changed():
    with torch.device("meta"):
        model = networks.paper("cifar10", label_dim=10)
    assert model.map_label.weight.shape == (256, 10) and model.config["dropout"] == 0.13
    with pytest.raises(ValueError, match="name='cifar' is unknown; .*did you mean 'cifar10'"):
        networks.paper("cifar")


@BOTH
def test_a_seed_fixes_the_weights(kind):
    """Equal seeds, equal bits; another seed, other weights in every layer that is drawn at all."""
    first, again, other = (
        kind(**SMALL, generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if name.endswith("weight") and "norm" not in name and first[name].any()]
    assert len(drawn) > 10 and not any(torch.equal(first[name], other[name]) for name in drawn)


def test_without_a_generator_no_two_networks_are_the_same():
    """Fresh entropy each time."""
    first, second = SongUNet(**SMALL), SongUNet(**SMALL)
    assert not torch.equal(first.map_layer0.weight, second.map_layer0.weight)


WIDE = {**SMALL, "model_channels": 64, "attn_resolutions": [8]}


@pytest.mark.parametrize(
    ("kind", "layer", "like"),
    [
        (SongUNet, "map_layer1", partial(nn.init.xavier_uniform_)),
        (SongUNet, "enc.8x8_block0.conv0", partial(nn.init.xavier_uniform_)),
        (SongUNet, "enc.8x8_block0.qkv", partial(nn.init.xavier_uniform_, gain=0.2**0.5)),
        (DhariwalUNet, "map_layer1", partial(nn.init.kaiming_uniform_, a=5**0.5)),
        (DhariwalUNet, "enc.8x8_block0.conv0", partial(nn.init.kaiming_uniform_, a=5**0.5)),
        (DhariwalUNet, "enc.8x8_block0.qkv", partial(nn.init.kaiming_uniform_, a=5**0.5)),
    ],
)
def test_initial_weights_have_the_spread_that_pytorchs_initialisers_give(kind, layer, like):
    """Uniform within torch.nn.init's own bounds, gains as in EDM: n draws come within 10 / n of the bound (4.5e-5 not
    to), and their deviation is the bound over sqrt 3."""
    weight = kind(**WIDE, generator=torch.Generator().manual_seed(0)).get_submodule(layer).weight
    truth, largest = (
        like(torch.empty_like(weight), generator=torch.Generator().manual_seed(0)),
        weight.abs().max().item(),
    )
    assert largest == pytest.approx(truth.abs().max().item(), rel=20 / weight.numel())
    assert weight.std().item() == pytest.approx(largest / math.sqrt(3), rel=0.02)


def test_adms_label_embedding_starts_with_unit_variance():
    """EDM's choice for one-hot inputs. 64,000 normal draws have this standard deviation to 5 / sqrt(2 n) = 1.4 %."""
    model = DhariwalUNet(**{**SMALL, "model_channels": 16}, label_dim=1000, generator=torch.Generator().manual_seed(0))
    assert model.map_label.weight.std().item() == pytest.approx(1.0, rel=0.014)


@pytest.mark.parametrize(("kind", "eps"), [(SongUNet, 1e-6), (DhariwalUNet, 1e-5)])
def test_normalisations_have_the_checkpoints_epsilon(kind, eps):
    """A fact of the published networks that shows on nearly constant feature maps only."""
    epsilons = [module.eps for module in kind(**SMALL).modules() if isinstance(module, networks.GroupNorm)]
    assert len(epsilons) > 10 and set(epsilons) == {eps}


@BOTH
def test_initial_output_is_nearly_nought(kind):
    """The last layer starts at (nearly) nought, so that a preconditioned denoiser starts at its skip connection."""
    model = kind(**SMALL, generator=torch.Generator().manual_seed(0)).eval()
    assert model(randn(2, 1, 8, 8), rand(2)).abs().max() < 1e-3


@BOTH
@pytest.mark.parametrize("changes", [{}, {"label_dim": 3}, {"augment_dim": 2}, {"label_dim": 3, "augment_dim": 2}])
def test_gradient_reaches_every_parameter(kind, changes):
    """Nothing is built that is not used."""
    model = build(kind, **changes)
    labels = torch.eye(3) if "label_dim" in changes else None
    augmentation = randn(3, 2) if "augment_dim" in changes else None
    model(randn(3, 1, 8, 8), rand(3), labels, augmentation).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_gradient_reaches_the_residual_encoder():
    """As above, for NCSN++."""
    model = build(SongUNet, **{**networks.PAPER["cifar10"][1], **SMALL})
    model(randn(3, 1, 8, 8), rand(3), None, randn(3, 9)).square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_gradient_reaches_adms_attention():
    """As above, where ADM is wide enough to have any."""
    model = build(DhariwalUNet, model_channels=64, channel_mult=[1], attn_resolutions=[8])
    model(randn(2, 1, 8, 8), rand(2)).square().sum().backward()
    attention = [name for name, _ in model.named_parameters() if "qkv" in name or "proj" in name]
    assert attention and not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_a_narrow_adm_has_edms_tensors():
    """Every name, written out from the format's description: below 64 channels no block attends, ``in0`` neither."""
    block = ["norm0", "conv0", "affine", "norm1", "conv1"]
    layers = ["map_layer0", "map_layer1", "enc.4x4_conv", "out_norm", "out_conv"]
    layers += [f"{name}.{part}" for name in ("enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1") for part in block]
    layers += [f"dec.4x4_block{index}.{part}" for index in (0, 1) for part in [*block, "skip"]]
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    model = DhariwalUNet(4, 1, 1, model_channels=32, channel_mult=[1], num_blocks=1, attn_resolutions=[4])
    assert set(model.state_dict()) == expected


def test_adm_has_a_head_for_every_64_channels():
    """Where a network narrows, only its wide levels attend; heads = channels // 64."""
    config = {**SMALL, "model_channels": 48, "channel_mult": [1, 3], "num_blocks": 1, "attn_resolutions": [8, 4]}
    model = DhariwalUNet(**config)
    heads = {name: part.heads for name, part in model.named_modules() if isinstance(part, networks.UNetBlock)}
    attending = {name for name in heads if any(key.startswith(f"{name}.qkv") for key in model.state_dict())}
    assert attending == {"enc.4x4_block0", "dec.4x4_in0", "dec.4x4_block0", "dec.4x4_block1"}
    assert {name: heads[name] for name in heads if heads[name]} == dict.fromkeys(attending, 2)


@BOTH
@pytest.mark.parametrize(("place", "dim"), [(2, "label_dim"), (3, "augment_dim")])
def test_labels_matter(kind, place, dim):
    """Another label, another image; each image has its own; none at all is not the first class."""
    model = build(kind, **{dim: 3})
    x, levels = randn(1, 1, 8, 8).expand(3, -1, -1, -1), rand(1).expand(3)

    def output(labels):
        arguments = [x, levels, None, None]
        arguments[place] = labels
        return model(*arguments)

    each = output(torch.eye(3))
    assert all((each[i] - each[j]).abs().max() > 1e-3 for i, j in [(0, 1), (0, 2), (1, 2)])
    assert (each[0] - output(None)[0]).abs().max() > 1e-3
    torch.testing.assert_close(output(torch.eye(3).flip(0)), each.flip(0))


@BOTH
def test_an_unconditional_network_takes_no_notice_of_labels(kind):
    """label_dim = 0 has nothing to read them with."""
    model, x, levels = build(kind), randn(2, 1, 8, 8), rand(2)
    assert torch.equal(model(x, levels), model(x, levels, torch.eye(2), torch.eye(2)))


@BOTH
def test_images_of_a_batch_do_not_see_each_other(kind):
    """The first of three is the same alone."""
    model, x, levels = build(kind), randn(3, 1, 8, 8), rand(3)
    torch.testing.assert_close(model(x, levels)[:1], model(x[:1], levels[:1]))


@BOTH
def test_label_dropout_forgets_labels_in_training_only(kind):
    """With probability one the labels are as good as zeros; in evaluation they stay."""
    model, x, levels = build(kind, label_dim=3, label_dropout=1.0), randn(3, 1, 8, 8), rand(3)
    labelled, unlabelled = model(x, levels, torch.eye(3)), model(x, levels, torch.zeros(3, 3))
    with torch.random.fork_rng([]):
        dropped = model.train()(x, levels, torch.eye(3))
    assert not torch.equal(labelled, unlabelled) and torch.equal(dropped, unlabelled)


def test_dropout_acts_in_training_only():
    """Two passes agree in evaluation and differ in training."""
    model, x, levels = network(dropout=0.5).eval(), randn(2, 1, 8, 8), rand(2)
    assert torch.equal(model(x, levels), model(x, levels))
    with torch.random.fork_rng([]):
        model.train()
        assert not torch.equal(model(x, levels), model(x, levels))


@BOTH
def test_the_config_makes_the_same_network_again(kind):
    """``config`` holds every argument: a network rebuilt from it takes the weights."""
    model = build(kind, label_dim=3, num_blocks=2)
    again = kind(**model.config).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x, levels = randn(2, 1, 8, 8), rand(2)
    assert torch.equal(again(x, levels), model(x, levels))


@BOTH
@pytest.mark.parametrize(("resolution", "mult"), [(8, [1] * 5), (12, [1, 1, 1, 1]), (9, [1, 2])])
def test_a_resolution_that_cannot_be_halved_so_often(kind, resolution, mult):
    with pytest.raises(ValueError, match=rf"img_resolution={resolution} cannot be halved {len(mult) - 1} times.*mult"):
        kind(**{**SMALL, "img_resolution": resolution, "channel_mult": mult})


@pytest.mark.parametrize(
    ("argument", "value", "complaint"),
    [
        ("embedding_type", "fourrier", "did you mean 'fourier'"),
        ("embedding_type", "sinus", "allowed: 'positional', 'fourier'"),
        ("encoder_type", "residuel", "did you mean 'residual'"),
        ("decoder_type", "skip", "decoder_type='skip' is unknown"),
    ],
)
def test_an_unknown_type_is_refused(argument, value, complaint):
    with pytest.raises(ValueError, match=complaint):
        SongUNet(**SMALL, **{argument: value})


# What users do to networks


VARIANTS = pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (SongUNet, {"label_dim": 3}),
        (SongUNet, {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}),
        (DhariwalUNet, {"label_dim": 3}),
    ],
)


def arguments(model, dtype=torch.float32):
    labels = torch.eye(3, dtype=dtype) if model.label_dim else None
    return randn(3, 1, 8, 8, dtype=dtype), rand(3, dtype=dtype), labels


@VARIANTS
def test_no_labels_are_labels_of_zeros(kind, changes):
    """The bias of a label embedding counts all the same."""
    model = build(kind, **changes)
    x, noise, labels = arguments(model)
    if labels is not None:
        assert torch.equal(model(x, noise), model(x, noise, torch.zeros(3, 3)))


@VARIANTS
def test_compilation_needs_no_break_and_changes_nothing(kind, changes):
    """One graph for the whole network, forwards and backwards, equal to the uncompiled one to float32."""
    model = build(kind, **changes)
    inputs = arguments(model)
    expected = model(*inputs)
    model.zero_grad()
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    again = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for mine, truth in zip(again, gradients, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-3, atol=1e-4 * float(truth.abs().max()) + 1e-6)


@VARIANTS
def test_the_layout_of_memory_does_not_matter(kind, changes):
    model = build(kind, **changes)
    x, noise, labels = arguments(model)
    expected = model(x, noise, labels)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), noise, labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@VARIANTS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_low_precision_is_close(kind, changes, dtype, tolerance):
    """Autocast, as in training: bfloat16 has 8 significant bits, float16 11; a dozen layers add to that. Gradients
    come back in float32."""
    model = build(kind, **changes)
    inputs = arguments(model)
    expected = model(*inputs)
    with torch.autocast("cpu", dtype):
        found = model(*inputs)
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()
    found.float().square().sum().backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )


@VARIANTS
def test_double_precision_throughout(kind, changes):
    model = build(kind, **changes)
    expected = model(*arguments(model))
    found = model.double()(*(None if a is None else a.double() for a in arguments(model)))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


@VARIANTS
def test_fused_kernels_can_take_queries_keys_and_values(kind, changes, monkeypatch):
    """They ask for a last stride of one."""
    strides, attend = [], F.scaled_dot_product_attention

    def watched(*parts):
        strides.extend(part.stride()[-1] for part in parts)
        return attend(*parts)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model = build(kind, **changes, channel_mult=[1, 1], model_channels=64)
    model.to(memory_format=torch.channels_last)(*arguments(model))
    assert strides and set(strides) == {1}


@VARIANTS
def test_forward_derivatives_are_finite_differences(kind, changes):
    """``torch.func.jvp`` along image and noise level together, in double precision, against a central difference."""
    model = build(kind, **changes).double()
    x, noise, labels = arguments(model, torch.float64)
    dx, dnoise = randn(3, 1, 8, 8, seed=1, dtype=torch.float64), rand(3, seed=1, dtype=torch.float64)
    _, found = torch.func.jvp(lambda x, noise: model(x, noise, labels), (x, noise), (dx, dnoise))
    h = 1e-6
    with torch.no_grad():
        ahead, behind = (model(x + s * h * dx, noise + s * h * dnoise, labels) for s in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * h), rtol=1e-4, atol=1e-5 * float(found.abs().max()))
