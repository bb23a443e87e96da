"""What is trained on: an objective draws each step's rows and gives a loss for each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

Batch = tuple[Tensor | None, ...]


class Objective(ABC):
    """What is minimised: a batch for each step, and a loss for each of its rows."""

    batch_size: int
    """Rows of a whole step, over all processes."""

    @abstractmethod
    def draw(self, step: int, rows: range) -> Batch:
        """These ``rows`` of a step's batch, on the CPU; each a function of seed, step and row."""

    @abstractmethod
    def losses(self, model: nn.Module, *batch: Any) -> Tensor:
        """The loss of each row, ``(B,)``; the tensors of ``draw`` come on the model's device and in its precision."""

    def times(self, *batch: Any) -> Tensor | None:
        """The time in [0, 1] of each row, ``(B,)``, where there are such: losses are then recorded over time, too."""
        return None

    def __call__(self, model: nn.Module, step: int) -> Tensor:
        """The losses of a whole step."""
        return self.losses(model, *self.draw(step, range(self.batch_size)))
