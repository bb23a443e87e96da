"""Table 1 as values: the configurations of 2-rectified flows, from the paper or from a reader.

A :class:`Configuration` holds a timestep law, a premetric, the start of training, the source of its pairs, and a batch.
Numbers that Table 1 leaves to the scale (batch size, number of steps) come from the preset.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rfpp.base import rng
from rfpp.base.checks import at_least, nearest, one_of
from rfpp.engine import Optimisation
from rfpp.premetrics import LPIPSHuber, LPIPSHuberOverT, bind, pseudo_huber, squared_l2
from rfpp.timesteps import TimestepDistribution, Uniform, UShaped

STARTS, BATCHES, PAIRS = ("random", "teacher"), ("small", "large"), ("teacher", "real", "own")
SCHEDULES = ("training", "as_many_images", "real_data", "third_round")

TEACHER = "teacher"
"""The name, in place of a configuration, of the 1-rectified flow, which is the teacher itself (Proposition 1)."""


@dataclass(frozen=True)
class Configuration:
    """The starting weights and the objective of a 2-rectified flow.

    ``start``: ``"random"`` weights, the ``"teacher"``'s, or those of a flow of another configuration. ``batch``:
    ``"small"`` or ``"large"``, as the preset defines them, or a number of rows. ``premetric``: a callable like those of
    :mod:`rfpp.premetrics`, or a class that makes one from a perceptual distance. ``pairs``: the ``"teacher"``'s, those
    of inverted ``"real"`` images, or the start's ``"own"``; ``real_share``: the probability that a row is a real pair
    instead (Section 4.4, whose p is the probability of the others). ``schedule``: the section of the preset that gives
    the length of training, or an :class:`rfpp.engine.Optimisation`. ``summary`` is a description: two configurations
    that differ only in it are equal.

    Raises ``ValueError`` or ``TypeError`` for parts that do not fit, naming the part.
    """

    summary: str = field(compare=False)
    start: str | Configuration = "teacher"
    batch: str | int = "large"
    timesteps: TimestepDistribution = UShaped(4.0)  # noqa: RUF009 (frozen)
    premetric: Any = squared_l2
    pairs: str = "teacher"
    schedule: str | Optimisation = "training"
    real_share: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.start, Configuration):
            one_of("start", self.start, STARTS)
        if isinstance(self.batch, str):
            one_of("batch", self.batch, BATCHES)
        else:
            at_least("batch", self.batch, 1)
        if not isinstance(self.timesteps, TimestepDistribution):
            raise TypeError(
                f"timesteps={self.timesteps!r} is a {type(self.timesteps).__name__}; a rfpp.timesteps."
                "TimestepDistribution is needed, such as UShaped(4.0)"
            )
        if not callable(self.premetric):
            raise TypeError(
                f"premetric={self.premetric!r} is a {type(self.premetric).__name__}; a callable m(a, b, x_t, t) is "
                "needed, or a class that makes one of a perceptual distance"
            )
        one_of("pairs", self.pairs, PAIRS)
        if self.pairs == "own" and not isinstance(self.start, Configuration):
            raise ValueError(f"pairs='own' needs a Configuration whose flow makes them, but start={self.start!r}")
        if not 0 <= self.real_share <= 1:
            raise ValueError(f"real_share={self.real_share} is not a probability; a number from 0 to 1 is needed")
        if not isinstance(self.schedule, Optimisation):
            one_of("schedule", self.schedule, SCHEDULES)

    @property
    def is_perceptual(self) -> bool:
        """Whether the premetric is made from a perceptual distance."""
        made = self.premetric.func if isinstance(self.premetric, partial) else self.premetric
        return isinstance(made, type)

    def __str__(self) -> str:
        return next((name for name, known in ALL.items() if known == self), self.summary)


_A = Configuration("vanilla 2-rectified flow", "random", "small", Uniform())
_B = Configuration("A + teacher's weights, larger batch", timesteps=Uniform())
_C = Configuration("B + U-shaped timesteps")
_D = Configuration("C + pseudo-Huber", premetric=pseudo_huber)
_E = Configuration("C + LPIPS-Huber", premetric=LPIPSHuber)
_F = Configuration("C + LPIPS-Huber-1/t", premetric=LPIPSHuberOverT)
_G = Configuration("F + real data", _F, premetric=LPIPSHuberOverT, pairs="real", schedule="real_data")

CONFIGURATIONS = {"A": _A, "B": _B, "C": _C, "D": _D, "E": _E, "F": _F, "G": _G}
"""Table 1; E and F each replace D's premetric in C."""

VARIANTS = {
    "A-longer": Configuration("A, as many images as B", "random", "small", Uniform(), schedule="as_many_images"),
    "A-start": Configuration("A + teacher's weights", "teacher", "small", Uniform()),
    "A-batch": Configuration("A + larger batch", "random", "large", Uniform()),
    "C-small": Configuration("C with the small batch", batch="small"),
    "D-small": Configuration("D with the small batch", batch="small", premetric=pseudo_huber),
    "G-half": Configuration("F + half real data", _F, premetric=LPIPSHuberOverT, schedule="real_data", real_share=0.5),
    "longer": Configuration("F, trained on", _F, premetric=LPIPSHuberOverT, schedule="third_round"),
    "third": Configuration(
        "F, trained on its own pairs", _F, premetric=LPIPSHuberOverT, pairs="own", schedule="third_round"
    ),
}
"""Configurations that the paper describes outside the table: pseudo-Huber at small batches (Section 4.2), another round
of reflow (Section 3), with a second round trained equally long for comparison, and real pairs among generated ones
(Section 4.4). Also B's two changes one at a time, and A trained until it has seen as many images as B."""

ALL = {**CONFIGURATIONS, **VARIANTS}


def imported(path: str, what: str) -> Any:
    """Import the object of a path such as ``"my_module:MINE"``; ``what`` names the setting in errors.

    Raises ``ValueError`` when there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for a path with ./ in it
        raise ValueError(f"{what}={path!r} cannot be imported: {error}; 'my_module:NAME' is needed") from error


def find(config: str | Configuration, others: Sequence[str] = ()) -> Configuration:
    """Return the configuration for a letter of Table 1, a name of :data:`VARIANTS` or an import path.

    ``others``: further names that the caller knows, for the message. Raises ``ValueError`` for a name that is none of
    these, for the teacher, or for a name that leads to something other than a configuration.
    """
    if isinstance(config, Configuration):
        return config
    if isinstance(config, str) and ":" in config:
        found = imported(config, "config")
        if not isinstance(found, Configuration):
            raise ValueError(
                f"config={config!r} is a {type(found).__name__}; a rfpp.configurations.Configuration is needed"
            )
        return found
    if config == TEACHER:
        options = ", ".join(map(repr, (*ALL, *others)))
        raise ValueError(f"config={config!r} makes the pairs and is not trained on them; allowed: {options}")
    if config not in ALL:
        known = (*ALL, *others, TEACHER)
        options = ", ".join(map(repr, known))
        raise ValueError(
            f"config={str(config)[:100]!r} is unknown; allowed: {options} (which is not trained), a Configuration, or "
            f"its import path 'module:NAME'{nearest(config, known)}"
        )
    return ALL[config]


_DRAWS, _PROBES = 256, 4


def check_timesteps(law: TimestepDistribution) -> None:
    """Raise ``ValueError`` for a law whose draws have the wrong shape or lie outside [0, 1], or whose ``icdf`` is not
    the inverse of its ``cdf``."""
    t = law.sample(_DRAWS, generator=rng.generator(0, "probe", "timesteps"))
    name = f"timesteps={law!r}"
    if not isinstance(t, Tensor) or t.shape != (_DRAWS,):
        shape = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"{name}: sample({_DRAWS}) gives {shape}; a tensor of shape ({_DRAWS},) is needed")
    if not ((t >= 0) & (t <= 1)).all():  # this also refuses NaN
        raise ValueError(f"{name} draws times from {t.min():g} to {t.max():g}; all must lie in [0, 1]")
    p = torch.linspace(0.05, 0.95, 19)
    if (gap := (torch.as_tensor(law.cdf(law.icdf(p))) - p).abs().max()) > 1e-2:
        raise ValueError(f"{name}: cdf(icdf(p)) is up to {gap:.2g} away from p; one is not the inverse of the other")


def check_premetric(premetric: Any, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` for a premetric with an output shape other than ``(B,)``, with negative or non-finite
    values, without a gradient, or with parameters of its own.

    It is tried on noise of image ``shape`` ``(C, H, W)``; a squared distance replaces a perceptual one.
    """
    name = f"premetric={getattr(premetric, '__name__', premetric)}"

    def stand_in(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(dim=(1, 2, 3))

    generator = rng.generator(0, "probe", "premetric")
    try:
        with torch.inference_mode(False), torch.enable_grad():  # whoever asks may want no gradients of their own
            a, b, x_t = torch.randn((3, _PROBES, *shape), generator=generator)
            b.requires_grad_()  # as the velocity has in training
            t = torch.rand(_PROBES, generator=generator).clamp(0.1, 0.9)
            values = bind(premetric, lambda: stand_in)(a, b, x_t, t)
    except Exception as error:
        raise ValueError(f"{name} fails on images of shape {shape}: {type(error).__name__}: {error}") from error
    if not isinstance(values, Tensor) or values.shape != (_PROBES,):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"{name} gives {found} for {_PROBES} images; one value for each, shape (B,), is needed")
    if not (values >= 0).all() or not values.isfinite().all():
        raise ValueError(
            f"{name} gives {values.min():g} to {values.max():g} for different images; finite numbers of at least 0 are "
            "needed"
        )
    if not values.requires_grad:
        raise ValueError(
            f"{name} passes no gradient to its second argument, the velocity; leave out detach and no_grad"
        )
    if isinstance(premetric, nn.Module) and any(parameter.requires_grad for parameter in premetric.parameters()):
        raise ValueError(f"{name} has parameters, which no step would train; call its requires_grad_(False)")


def check(configuration: Configuration, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` for parts that cannot train on images of ``shape`` ``(C, H, W)``, before any work."""
    check_timesteps(configuration.timesteps)
    check_premetric(configuration.premetric, shape)
    if isinstance(configuration.start, Configuration):
        check(configuration.start, shape)
