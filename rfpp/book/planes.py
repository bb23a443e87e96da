"""Pictures of exact flows: paths in the plane, and measurements beside the theory that predicts them."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from rfpp.book.plots import WIDTH

THEORY = ": theory"
"""The ending of the names of theoretical curves."""


def paths(panels: Mapping[str, Tensor], data: Tensor) -> Figure:
    """A panel per flow with its paths ``(T, N, 2)`` from noise, the first state, to ``data`` ``(K, 2)``."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), sharex=True, sharey=True, squeeze=False)
    blue, orange = sns.color_palette()[:2]
    for axis, (title, states) in zip(axes[0], panels.items(), strict=True):
        lines = states.transpose(0, 1)
        axis.add_collection(LineCollection(lines.tolist(), colors="0.35", linewidths=0.6, alpha=0.6))
        axis.plot(*states[0].T, ".", color=blue, markersize=4, label="noise, $t = 1$")
        axis.plot(*data.T, "o", color=orange, markersize=5, label="data, $t = 0$")
        axis.set(title=title, aspect="equal", xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def with_theory(panels: Mapping[str, Mapping[str, tuple[Tensor, Tensor, Tensor | None]]], xlabel: str) -> Figure:
    """A panel per quantity: ``(x, values, error)`` by name, as dots in a band, or as broken lines for theory."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 3.0), squeeze=False)
    for axis, (quantity, curves) in zip(axes[0], panels.items(), strict=True):
        measured = [name for name in curves if not name.endswith(THEORY)]
        for name, colour in zip(measured, sns.color_palette(), strict=False):
            x, values, error = curves[name]
            axis.plot(x, values, "o", color=colour, markersize=4, label=name)
            if error is not None:
                axis.fill_between(x, values - error, values + error, color=colour, alpha=0.2, linewidth=0)
            if name + THEORY in curves:
                axis.plot(*curves[name + THEORY][:2], "--", color=colour, linewidth=1.2)
        axis.set(xlabel=xlabel, ylabel=quantity)
        axis.legend()
    return figure


def legend_below(figure: Figure) -> Figure:
    """The same figure with its first panel's legend, which names the curves of all, below the panels."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for axis in figure.axes:
        if (legend := axis.get_legend()) is not None:
            legend.remove()
    figure.set_figheight(figure.get_figheight() + 0.7)
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
