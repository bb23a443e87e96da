"""The records of a training besides weights: its losses over steps and over time, in memory and for TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import TensorBoardTracker
from torch import Tensor, nn

from rfpp.base import processes
from rfpp.engine.machinery import Machinery

BINS, WINDOWS = 20, 10


@dataclass
class History:
    """``losses``: the mean loss of the steps since the entry before, up to each of ``steps``. ``over_time``: if rows
    have a time, the mean loss in each of 20 bins of [0, 1], for each tenth of the training."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    over_time: list[list[float | None]] = field(default_factory=list)

    def __repr__(self) -> str:
        ends = f", loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}" if self.losses else ""
        return f"History({self.steps[-1] if self.steps else 0} steps{ends})"


class LossesOverTime:
    """Sums and counts of losses in each of :data:`BINS` bins of [0, 1], for each tenth of a training."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(WINDOWS, 2, BINS, device=device)

    def add(self, times: Tensor | None, losses: Tensor, window: int) -> None:
        """Add the losses ``(B,)`` of rows at ``times`` ``(B,)``, if the rows have times; losses that are not finite do
        not count."""
        if times is not None:
            bins = (times.float() * BINS).long().clamp(0, BINS - 1)
            losses = losses.detach().float()
            both = torch.stack([losses.nan_to_num(0, 0, 0), losses.isfinite().float()])
            self.sums[window].index_add_(1, bins, both)


def means_over_time(over_time: Tensor) -> list[list[float | None]]:
    """Convert sums and counts ``(WINDOWS, 2, BINS)`` to means; ``None`` for a bin without rows, empty if all are."""
    sums, counts = over_time.cpu().unbind(dim=1)
    if not counts.any():
        return []
    means = (sums / counts).tolist()
    return [[value if n else None for value, n in zip(*both, strict=True)] for both in zip(means, counts, strict=True)]


class Board:
    """Writes losses, learning rate and samples for TensorBoard, or nothing without a tracker."""

    def __init__(self, tracker: TensorBoardTracker | None) -> None:
        self.tracker = tracker

    def values(self, step: int, images: int, loss: float, rate: float, over_time: LossesOverTime) -> None:
        """Write the numbers of a logged step; ``images``: the number of images that the training has seen."""
        if self.tracker:
            values: dict[str, Any] = {"loss": loss, "learning rate": rate, "images": images}
            means = means_over_time(over_time.sums)
            window = next((row for row in reversed(means) if any(value is not None for value in row)), [])
            for place, value in enumerate(window):
                if value is not None:
                    values[f"loss over t/{(place + 0.5) / BINS:.3f}"] = value
            self.tracker.log(values, step=step)

    def pictures(self, step: int, make: Callable[[nn.Module], Tensor], average: nn.Module) -> None:
        """Write images in [-1, 1] of the averaged model."""
        if self.tracker:
            images = make(average).float().cpu().clamp(-1, 1).numpy() / 2 + 0.5
            self.tracker.log_images({"samples": images.astype(np.float32)}, step=step)


@contextlib.contextmanager
def board(machinery: Machinery, folder: Path | None, step: int) -> Iterator[Board]:
    """Yield a board beside ``folder`` that continues after ``step``; one that writes nothing if none is requested."""
    if not (machinery.tensorboard and folder and processes.is_main()):
        yield Board(None)
        return
    tracker = TensorBoardTracker("tensorboard", folder.parent, purge_step=step + 1)
    tracker.start()
    try:
        yield Board(tracker)
    finally:
        tracker.finish()
