"""How a training runs on a machine, and how its weights move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from rfpp.base import processes
from rfpp.base.checks import at_least

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precision of the operations that autocast selects. Weights, their average and Adam's moments are always
float32."""


class Machinery(BaseModel):
    """How a training runs on a machine. Its settings change no result beyond rounding, except for ``precision`` and
    for dropout masks, which depend on ``micro_batch``, memory layout and compiler.

    ``micro_batch``: rows that a process takes at once, all of its part if ``None``; the gradients of several pieces
    are summed, and processes communicate once per step. ``compile``, ``channels_last``: for GPUs. ``log_every``: steps
    over which a logged loss is averaged. ``workers``:
    processes that draw batches ahead; with none, batches are drawn between steps. ``save_every``: steps between two
    checkpoints; the last ``keep`` are kept, and those of every ``keep_every``-th step (none if 0). ``tensorboard``:
    write losses, learning rate and samples for TensorBoard. Presets include these settings.

    Raises pydantic's ``ValidationError``, which is a ``ValueError``, for invalid values.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    compile: bool = False
    channels_last: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 500
    keep: Annotated[int, Field(ge=1)] = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    tensorboard: bool = False


@dataclass(frozen=True)
class Optimisation:
    """Adam for ``steps`` steps.

    ``warmup``: steps over which the learning rate rises to ``lr`` (the first step already trains); ``decay``: whether
    the learning rate falls to zero along a cosine; ``ema``: decay of the weights' moving average; ``growing``: whether
    that decay grows from 0 to ``ema``, so that the average of a short training forgets the initial weights.
    Raises ``ValueError`` or ``TypeError`` for invalid values.
    """

    steps: int
    lr: float
    warmup: int = 0
    decay: bool = False
    ema: float = 0.9999
    growing: bool = True

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("warmup", self.warmup, 0)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr} is not a learning rate; a finite number above 0 is needed")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema} is not a decay; a number of at least 0 and below 1 is needed")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a zero-based ``step``."""
        return learning_rate(step, self.lr, self.warmup, self.steps, self.decay)


Tensors = tuple[Tensor, ...] | list[Tensor]


def ema_update(
    decay: float, averaged: Callable[[], int], growing: bool = True
) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return the update of a moving average with constant decay, or with growing decay ``min(decay, n / (n + 9))``.

    ``averaged()`` returns the number of steps averaged so far. Reading torch's own counter would synchronise the GPU.
    """

    def update(averages: Tensors, currents: Tensors, _: Tensor | int) -> None:
        n = averaged() + 1
        torch._foreach_lerp_(averages, currents, 1 - (min(decay, n / (n + 9)) if growing else decay))

    return update


def learning_rate(step: int, lr: float, warmup: int, total: int, decay: bool) -> float:
    """Return the learning rate at zero-based ``step``: a warm-up to step ``warmup``, times a cosine if ``decay``."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    return lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / total) if decay else 1.0)


def check(batch_size: int, machinery: Machinery) -> None:
    """Raise ``ValueError`` if the processes cannot share the batch evenly, or if TensorBoard is needed but missing."""
    if machinery.tensorboard and find_spec("tensorboard") is None:
        raise ValueError(
            "machinery.tensorboard=True, but tensorboard is not installed; run: pip install 'rfpp[tensorboard]'"
        )
    world = processes.count()
    if batch_size % world:
        raise ValueError(f"batch_size={batch_size} cannot be shared by {world} processes; use a multiple of {world}")


def pieces(batch_size: int, micro_batch: int | None) -> list[range]:
    """Return this process's rows of a step, split into micro-batches."""
    own, share = processes.index(), batch_size // processes.count()
    rows = range(own * share, (own + 1) * share)
    size = min(micro_batch or share, share)
    return [rows[start : start + size] for start in range(0, share, size)]
