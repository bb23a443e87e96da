"""Objectives of training: an objective draws the rows of each step and computes a loss for each row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

Batch = tuple[Tensor | None, ...]


class Objective(ABC):
    """An objective to minimise: a batch for each step, and a loss for each of its rows."""

    batch_size: int
    """The number of rows of a whole step, over all processes."""

    @abstractmethod
    def draw(self, step: int, rows: range) -> Batch:
        """Draw these ``rows`` of a step's batch, on the CPU.

        Each row depends only on the objective, with its seed and batch size, on the step and on the row.
        """

    @abstractmethod
    def losses(self, model: nn.Module, *batch: Any) -> Tensor:
        """Compute the loss of each row, ``(B,)``; ``draw``'s tensors come in the model's device and precision."""

    def times(self, *batch: Any) -> Tensor | None:
        """Return the time in [0, 1] of each row, ``(B,)``, if rows have times, over which losses are then recorded."""
        return None

    def __call__(self, model: nn.Module, step: int) -> Tensor:
        """Compute the losses of a whole step."""
        return self.losses(model, *self.draw(step, range(self.batch_size)))
