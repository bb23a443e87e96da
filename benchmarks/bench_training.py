"""The parts of a training step, and a short training as a whole."""

import copy

import baselines
import pytest
import torch

from rfpp import engine, features, pairs, premetrics, timesteps, training
from rfpp.denoisers import EDMPrecond
from rfpp.engine.run import Run
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.networks import SongUNet
from rfpp.pipeline import shipped


def large(width, blocks=2):
    """A network of CIFAR-10's images, with the levels of the preset `cifar10`."""
    return SongUNet(
        32, 3, 3, model_channels=width, channel_mult=[1, 2, 2], num_blocks=blocks, attn_resolutions=[16], dropout=0.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


# Adam and the moving average


def compare_updates(compare, network, **words):
    run = Run(network, engine.Optimisation(100, 1e-3), engine.Machinery())
    model, average = copy.deepcopy(run.model), copy.deepcopy(run.model)
    optimiser, generator = baselines.adam(model, 1e-3), torch.Generator().manual_seed(0)
    for parameter, other in zip(run.model.parameters(), model.parameters(), strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        other.grad = parameter.grad.clone()

    def ours():
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.average.update_parameters(run.model)
        run.step += 1

    def usual():
        optimiser.step()
        baselines.average_weights(average, model, 0.9999)

    compare(ours, usual, baseline="both in a loop over parameters", goal=3, rounds=31, **words)


def bench_update_of_a_small_network(compare, teacher):
    compare_updates(compare, teacher.model, question="Adam and the moving average, network of digits", calls=3)


def bench_update_of_a_large_network(compare, size):
    network = large(size(96, 8))
    compare_updates(compare, network, question="Adam and the moving average, network of the preset cifar10")


# Forward and backward


def compare_networks(compare, size, machinery, **words):
    """A plain network in float32, and ours as ``machinery`` has it, forward and backward through a reflow loss."""
    network, autocast = large(size(96, 8), size(2, 1)), torch.bfloat16 if machinery.precision == "bf16" else None
    flow, other = (RectifiedFlow(EDMPrecond(each)).train() for each in (network, baselines.plain(network)))
    if machinery.channels_last:
        flow = flow.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn((2, size(4, 1), 3, 32, 32), generator=generator)
    t = torch.rand(len(x), generator=generator)

    def pass_through(model):
        x_t = interpolate(x, z, t)
        premetrics.squared_l2(z - x, model(x_t, t), x_t, t).mean().backward()
        model.zero_grad()

    def ours():
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            pass_through(flow)

    compare(ours, lambda: pass_through(other), baseline="eager float32, attention spelt out", rounds=5, **words)


def bench_network_in_float32(compare, size):
    compare_networks(compare, size, engine.Machinery(), question="forward and backward in float32", goal=1)


def bench_network_in_channels_last(compare, size):
    machinery = engine.Machinery(channels_last=True)
    compare_networks(compare, size, machinery, question="forward and backward in float32, channels last")


def bench_network_in_bf16(compare, size, has_bf16):
    if not has_bf16:
        pytest.skip("this processor does not multiply bfloat16 numbers itself")
    machinery = engine.Machinery(precision="bf16", channels_last=True)
    compare_networks(compare, size, machinery, question="forward and backward in bfloat16, channels last", goal=1)


# Premetrics, and all of it


@pytest.fixture(scope="module")
def dataset(teacher, tmp_path_factory, size):
    return pairs.PairDataset(pairs.generate(teacher, size(512, 16), tmp_path_factory.mktemp("pairs"), num_steps=4))


def objective(dataset, configuration, batch):
    perceptual = features.FeatureLPIPS(shipped.load("digits-perceptual"))
    premetric = premetrics.bind(configuration.premetric, lambda: perceptual)
    return training.Reflow(dataset, timesteps.UShaped(), premetric, batch, seed=0)


@pytest.mark.parametrize("letter", "DEF")
def bench_premetric(compare, teacher, dataset, size, letter):
    """What a step of a configuration costs beside one of C, which has the squared distance."""
    flow = training.initial_flow(teacher, "teacher", dropout=0.0, seed=0)
    flow.requires_grad_(True)

    def step_of(name):
        made = objective(dataset, training.CONFIGURATIONS[name], size(128, 4))
        return lambda: made(flow, 0).mean().backward()

    name = {"D": "pseudo-Huber", "E": "LPIPS-Huber", "F": "LPIPS-Huber-1/t"}[letter]
    question = f"a step with {name} (configuration {letter}), digits"
    compare(step_of(letter), step_of("C"), question=question, baseline="squared distance (C)", price=True)


def bench_training(compare, teacher, dataset, tmp_path, size):
    """Configuration D from the beginning to the end, with all that a training sets up."""
    archived = baselines.stored(tmp_path, dataset, len(dataset))
    steps, batch = size(10, 2), size(128, 4)
    flow = training.initial_flow(teacher, "teacher", dropout=0.0, seed=0)
    made = objective(dataset, training.CONFIGURATIONS["D"], batch)
    compare(
        lambda: engine.fit(flow, made, engine.Optimisation(steps, 1e-3, ema=0.99)),
        lambda: baselines.train(teacher, archived, steps, batch),
        question="a short training of digits as a whole (configuration D)",
        baseline="all of the usual ways together",
        rounds=5,
    )
