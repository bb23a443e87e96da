"""Figures that set one flow's values against another's."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from rfpp.book.plots import WIDTH


def against(groups: Mapping[str, tuple[Tensor, Tensor, Tensor | None]], xlabel: str, ylabel: str) -> Figure:
    """Points ``(x, y, error of y)``, ``(N,)`` each, on equal axes with the line where both are equal."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.62, WIDTH * 0.56))
    for (name, (x, y, error)), marker in zip(groups.items(), "osD^v" * len(groups), strict=False):
        axis.errorbar(
            x.numpy(), y.numpy(), None if error is None else error.numpy(), fmt=marker, markersize=4, alpha=0.75,
            elinewidth=0.8, label=name,
        )  # fmt: skip
    low = min(float(min(x.min(), y.min())) for x, y, _ in groups.values())
    high = max(float(max(x.max(), y.max())) for x, y, _ in groups.values())
    axis.plot([low, high], [low, high], "--", color="0.25", linewidth=1)
    axis.set(xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axis.legend()
    return figure
