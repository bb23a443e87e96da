"""Accounts of what reflow costs: passes (Table 6), operations, seconds and bytes; and the settings of Table 7.

The first line of each function that returns ``Rows`` lists their columns.
"""

from __future__ import annotations

from collections.abc import Mapping

from rfpp import presets
from rfpp.experiment import Experiment
from rfpp.pipeline import costs

Rows = list[tuple[object, ...]]

PRINTED = {"consistency distillation": 3.1, "consistency training": 1.5}
"""Forward passes relative to reflow's, as Table 6 prints them."""


def relative(passes: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Forward passes of each method of :data:`rfpp.pipeline.costs.METHODS`, by part, relative to reflow's."""
    reflow = sum(passes["reflow"].values())
    return {name: sum(parts.values()) / reflow for name, parts in passes.items()}


def difference(ratios: Mapping[str, float]) -> float:
    """The largest relative difference of the ratios from those that the paper prints."""
    return max(abs(ratios[name] / value - 1) for name, value in PRINTED.items())


def millions(passes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Forward passes in millions, by method and part."""
    return {name: {part: count / 1e6 for part, count in parts.items()} for name, parts in passes.items()}


def without_pairs(passes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The same passes if reflow's pairs cost nothing."""
    return {
        name: {part: count for part, count in parts.items() if part != "making pairs"} for name, parts in passes.items()
    }


def forward_passes(passes: Mapping[str, Mapping[str, int]]) -> Rows:
    """Method, passes per image and step, total, relative to reflow, and what the paper prints."""
    ratios = relative(passes)
    return [
        (name, costs.METHODS[name], f"{sum(parts.values()) / 1e6:.1f}M", f"{ratios[name]:.2f}", PRINTED.get(name, 1))
        for name, parts in passes.items()
    ]


def seconds(experiment: Experiment, pace: costs.Pace) -> Rows:
    """The work (making the preset's pairs, a training of F), images that go through the network, and seconds."""
    own = costs.Training.of(experiment.plan)
    made, trained = own.pairs * own.nfe_per_pair, own.steps * own.batch
    return [
        (f"{own.pairs:,} pairs of {own.nfe_per_pair} evaluations", f"{made:,}", f"{made / pace.forward:.0f} s"),
        (f"a training of {own.steps:,} steps of {own.batch} images", f"{trained:,}", f"{trained / pace.step:.0f} s"),
    ]


def pairs_over_training(experiment: Experiment, pace: costs.Pace) -> float:
    """The time for the preset's pairs, relative to that of a training of configuration F."""
    own = costs.Training.of(experiment.plan)
    return (own.pairs * own.nfe_per_pair / pace.forward) / (own.steps * own.batch / pace.step)


def pairs_share(passes: Mapping[str, Mapping[str, int]]) -> float:
    """The share of reflow's forward passes that make pairs."""
    return passes["reflow"]["making pairs"] / sum(passes["reflow"].values())


def operations(names: tuple[str, ...] = ("cifar10", "afhq", "imagenet64")) -> Rows:
    """The paper's networks: parameters, operations of a training step of the network and of LPIPS, and their ratio."""
    rows: Rows = []
    for name in names:
        parameters, network, lpips = costs.step_operations(name)
        rows.append(
            (name, f"{parameters / 1e6:.1f}M", f"{network / 1e9:.0f}G", f"{lpips / 1e9:.0f}G", f"{lpips / network:.0%}")
        )
    return rows


def storage(name: str, pairs: int, values: int) -> tuple[object, ...]:
    """For images of ``values`` numbers: name, pairs, disk for 8-bit images, 32-bit noise, and states of 32 bytes."""
    gigabytes = (f"{pairs * values / 1e9:.1f} GB", f"{pairs * values * 4 / 1e9:.1f} GB", f"{pairs * 32 / 1e9:.2f} GB")
    return (name, f"{pairs / 1e6:.0f}M", *gigabytes)


SETTINGS = ("", "network", "pairs", "batch", "dropout", "learning rate", "warm-up", "steps")
"""The columns of Table 7."""

TABLE_7 = {
    "CIFAR-10": ("NCSN++", "1M, 35 NFE", "512", "0.13", "2e-4", "5,000", "800,000"),
    "AFHQ, FFHQ 64": ("NCSN++", "5M, 79 NFE", "256", "0.25", "2e-4", "5,000", "1,000,000"),
    "ImageNet 64": ("ADM", "5M, 79 NFE", "2,048", "0.10", "1e-4", "2,500", "700,000"),
}


def settings(preset: presets.Preset) -> Rows:
    """Table 7 with the columns :data:`SETTINGS`, and below it a row for ``preset``."""
    made, trained = preset.pairs, preset.training
    own = (
        "DDPM++, small" if preset.data.name == "digits" else "",
        f"{made.train:,}, {2 * made.num_steps - 1} NFE",
        f"{trained.large_batch:,}",
        f"{trained.dropout:g}",
        f"{trained.lr:g}",
        f"{trained.warmup:,}",
        f"{trained.steps:,}",
    )
    return [(name, *row) for name, row in {**TABLE_7, f"`{preset.name}`": own}.items()]
