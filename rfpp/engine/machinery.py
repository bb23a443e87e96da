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
"""Of the operations that autocast chooses; weights, their average and Adam's moments are always full."""


class Machinery(BaseModel):
    """How a training runs on a machine. But for ``precision``, and for which activations dropout takes (another
    ``micro_batch``, memory layout or compiler draws others), it changes no result beyond rounding.

    ``micro_batch``: rows that a process takes at once, all of its part when ``None``; the gradients of several are
    added up, and processes talk to each other once a step. ``compile``, ``channels_last``: for GPUs. ``workers``:
    processes that draw batches ahead; with none they are drawn between steps. ``save_every``: steps between two
    checkpoints; the last ``keep`` stay, and every ``keep_every``-th step's (none when 0). ``tensorboard``: write
    losses, learning rate and samples for it. A preset has it among its settings.

    Raises pydantic's ``ValidationError``, which is a ``ValueError``, for values that cannot be.
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

    ``warmup``: steps over which the learning rate rises to ``lr`` (the first step already trains); ``decay``: let it
    fall to nought along a cosine; ``ema``: decay of the weights' moving average; ``growing``: let that decay grow from
    0 to ``ema``, so that a short training's average forgets where it started.
    Raises ``ValueError`` or ``TypeError`` for values that cannot be.
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
            raise ValueError(f"ema={self.ema} is not a decay; a number from 0 up to 1 is needed")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a zero-based ``step``."""
        return learning_rate(step, self.lr, self.warmup, self.steps, self.decay)


Tensors = tuple[Tensor, ...] | list[Tensor]


def ema_update(
    decay: float, averaged: Callable[[], int], growing: bool = True
) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average with a constant decay, or one that grows with the run, ``min(decay, n / (n + 9))``.

    ``averaged``: how many were averaged so far. Reading torch's own counter would synchronise the GPU.
    """

    def update(averages: Tensors, currents: Tensors, _: Tensor | int) -> None:
        n = averaged() + 1
        torch._foreach_lerp_(averages, currents, 1 - (min(decay, n / (n + 9)) if growing else decay))

    return update


def learning_rate(step: int, lr: float, warmup: int, total: int, decay: bool) -> float:
    """Learning rate at zero-based ``step``: a warm-up that ends at step ``warmup``, times a cosine if ``decay``."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    return lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / total) if decay else 1.0)


def check(batch_size: int, machinery: Machinery) -> None:
    """Raise ``ValueError`` for a batch that the processes cannot share, or machinery that is not installed."""
    if machinery.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("machinery.tensorboard=True, but it is not installed: pip install 'rfpp[tensorboard]'")
    world = processes.count()
    if batch_size % world:
        raise ValueError(f"batch_size={batch_size} cannot be shared by {world} processes; use a multiple of {world}")


def pieces(batch_size: int, micro_batch: int | None) -> list[range]:
    """The rows of a step that this process sees, cut into what it takes at once."""
    own, share = processes.index(), batch_size // processes.count()
    rows = range(own * share, (own + 1) * share)
    size = min(micro_batch or share, share)
    return [rows[start : start + size] for start in range(0, share, size)]
