"""A flow with a second time input: the average velocity between two times, initialised to the teacher's flow.

``u(x_t, r, t)`` is the mean of the velocity along the flow's own path from ``t`` down to ``r``, so that
``x_r = x_t - (t - r) u(x_t, r, t)`` in one evaluation (MeanFlow, Geng et al., 2025;
shortcut models, Frans et al., 2025). At ``r = t`` it is the velocity itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rfpp.base import rng
from rfpp.denoisers import EDMPrecond, expand
from rfpp.flow import T_MAX, T_MIN, RectifiedFlow

FREQUENCIES = 4
FEATURES = 1 + 2 * FREQUENCIES
"""How many numbers encode the length of an interval."""


def interval_features(length: Tensor) -> Tensor:
    """The length ``t - r`` ``(B,)`` of an interval, its sines and its cosines less one: ``(B, FEATURES)``.

    All are 0 at length 0: where both times agree, the network computes what it did before it had a second time.
    """
    angles = length[:, None] * math.pi * torch.arange(1, FREQUENCIES + 1, dtype=length.dtype, device=length.device)
    return torch.cat([length[:, None], angles.sin(), angles.cos() - 1], dim=1)


def _channels_first(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


class IntervalPrecond(EDMPrecond):
    """EDM's preconditioning of a network that receives the length of an interval through its augmentation labels.

    The last :data:`FEATURES` labels encode the interval. Any before them were used to train the teacher, and are 0.
    """

    @property
    def _teachers(self) -> int:
        network: Any = self.model
        return int(network.augment_dim) - FEATURES

    def forward(
        self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None, length: Tensor | None = None
    ) -> Tensor:
        """The prediction for noisy images ``x`` ``(B, C, H, W)``; ``length``: that of the interval, ``(B,)``."""
        sigma = expand(sigma, x)
        told = interval_features(sigma.new_zeros(len(x)) if length is None else length)
        told = torch.cat([told.new_zeros(len(x), self._teachers), told], dim=1)
        return self._preconditioned(x, sigma, labels, told)


class AverageFlow(RectifiedFlow):
    """The average velocity ``u(x_t, r, t)`` of a flow; its denoiser also receives the length ``t - r``."""

    def average(self, x_t: Tensor, t: float | Tensor, labels: Tensor | None, r: float | Tensor) -> Tensor:
        """``u(x_t, r, t)`` for states ``x_t`` ``(B, ...)`` and times ``r <= t``, numbers or ``(B,)``."""
        t, r = expand(t, x_t).clamp(T_MIN, T_MAX), expand(r, x_t)
        prediction = self.denoiser(x_t / (1 - t), (t / (1 - t)).flatten(), labels, (t - r).flatten())
        return (x_t - prediction) / t

    def velocity(self, x_t: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``v(x_t, t) = u(x_t, t, t)``."""
        t = expand(t, x_t).clamp(T_MIN, T_MAX)
        return self.average(x_t, t, labels, t)

    def change(self, x_t: Tensor, t: Tensor, labels: Tensor | None, r: Tensor, v: Tensor) -> Tensor:
        """``du/dt`` where ``x_t`` moves with velocity ``v`` and ``r`` is fixed, by forward-mode differentiation."""
        # Group normalisation in forward mode does not accept channels_last. A tensor with one channel is contiguous in
        # both formats, and only a copy has the strides of the plain one.
        weights = {name: _channels_first(parameter.detach()) for name, parameter in self.named_parameters()}

        def at(x_t: Tensor, t: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(self, weights, (x_t, t, labels, r))
            return found

        tangents = (_channels_first(v), torch.ones_like(t))
        found: Tensor = torch.func.jvp(at, (_channels_first(x_t), t), tangents)[1]
        return found

    def forward(
        self,
        x_t: Tensor,
        t: float | Tensor,
        labels: Tensor | None = None,
        r: Tensor | None = None,
        along: Tensor | None = None,
    ) -> Any:
        """``u(x_t, r, t)``, or the velocity if ``r`` is ``None``; with a velocity ``along``, ``u`` and ``du/dt``.

        Both are ``(B, ...)``. The derivative is computed for rows with ``r < t`` and is 0 elsewhere. It is
        computed here because a wrapper for training in several processes does not see calls that bypass this method.
        """
        if r is None:
            return self.velocity(x_t, t, labels)
        u = self.average(x_t, t, labels, r)
        if along is None:
            return u
        t = torch.as_tensor(t)
        change, rows = torch.zeros_like(u), (r < t).nonzero().flatten()
        if len(rows):
            with torch.no_grad():
                some = None if labels is None else labels[rows]
                change[rows] = self.change(x_t[rows], t[rows], some, r[rows], along[rows]).to(change.dtype)
        return u, change


def around(denoiser: nn.Module) -> AverageFlow:
    """The flow of a denoiser whose network already has the second time.

    Raises ``ValueError`` for a network that lacks it.
    """
    network = getattr(denoiser, "model", None)
    if not isinstance(denoiser, EDMPrecond) or getattr(network, "augment_dim", 0) < FEATURES:
        raise ValueError(
            f"denoiser={type(denoiser).__name__} of a {type(network).__name__} lacks the second time input; an "
            f"EDMPrecond of a network with augment_dim of at least {FEATURES} is needed, which "
            "rfpp.arena.average.initial makes"
        )
    assert network is not None
    return AverageFlow(IntervalPrecond(network, denoiser.sigma_data))


def initial(teacher: nn.Module, dropout: float, seed: int) -> AverageFlow:
    """The teacher's flow with a second time that it still ignores: ``u(x_t, r, t) = v(x_t, t)`` for every ``r``.

    Raises ``ValueError`` for a teacher whose network takes no augmentation labels, which carry the second time.
    """
    trained: Any = getattr(teacher, "model", None)
    if not isinstance(teacher, EDMPrecond) or not hasattr(trained, "map_augment"):
        raise ValueError(
            f"teacher={type(teacher).__name__} of a {type(trained).__name__} has no place for a second time; an "
            "EDMPrecond of a SongUNet or DhariwalUNet is needed"
        )
    config = {**trained.config, "dropout": dropout, "augment_dim": trained.augment_dim + FEATURES}
    network = type(trained)(**config, generator=rng.generator(seed, "initialisation"))
    state = dict(trained.state_dict())
    weight = torch.zeros_like(network.map_augment.weight)
    if trained.augment_dim:
        weight[:, : trained.augment_dim] = state["map_augment.weight"]
    network.load_state_dict({**state, "map_augment.weight": weight})
    return around(EDMPrecond(network, teacher.sigma_data))


@torch.no_grad()
def leap(flow: AverageFlow, z: Tensor, times: Sequence[float] | Tensor, labels: Tensor | None = None) -> Tensor:
    """Generate images ``(B, ...)`` from noise ``z``: ``x_r = x_t - (t - r) u(x_t, r, t)`` from each time to the next.

    ``times`` fall from near 1 to 0, like those of :func:`rfpp.samplers.generation_times`.
    """
    grid = [float(t) for t in times]
    x = z * min(grid[0], T_MAX)
    for t, r in pairwise(grid):
        x = x - (t - r) * flow.average(x, t, labels, r)
    return x
