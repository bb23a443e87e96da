"""Every figure of the book, in one style. Each function returns a matplotlib figure; the notebook shows it.

Backgrounds are white and widths near seven inches, so that pictures read on light and dark pages and fit the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

WIDTH = 7.0


def style() -> None:
    """The book's look; a notebook calls it once."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        },
    )


def _strip(axes: Axes, images: Tensor) -> None:
    """``(N, C, H, W)`` in [-1, 1] side by side, black ink on white, or in colour."""
    rows = ((images.clamp(-1, 1) + 1) / 2).cpu().permute(0, 2, 3, 1).numpy()
    rows = np.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=0 if rows.shape[-1] == 1 else 1)
    strip = np.concatenate(list(rows), axis=1)[:, :-1]
    axes.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    sns.despine(ax=axes, left=True, bottom=True)


def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """One strip of images ``(N, C, H, W)`` per named row."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, 0.72 * len(rows) + 0.1), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        _strip(axis, images)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def loss_curves(
    curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]], labels: Mapping[str, str]
) -> Figure:
    """Loss against step: a panel per configuration (their losses are different quantities), a line per seed."""
    figure, axes = plt.subplots(1, len(curves), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, (name, runs), colour in zip(axes[0], curves.items(), sns.color_palette(), strict=False):
        for steps, losses in runs:
            axis.plot(steps, losses, color=colour, alpha=0.6, linewidth=1.2)
        axis.set(title=f"configuration {name}", xlabel="training step", ylabel=labels[name], yscale="log")
    return figure


def by_seed(
    measured: Mapping[str, Mapping[str, Sequence[float]]], references: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """A panel per quantity, a bar and a dot per seed for each configuration; broken lines mark ``references``."""
    figure, axes = plt.subplots(1, len(measured), figsize=(min(WIDTH, 3.2 * len(measured)), 2.9), squeeze=False)
    for axis, (quantity, values) in zip(axes[0], measured.items(), strict=True):
        for place, runs in enumerate(values.values()):
            colour = sns.color_palette()[place]
            axis.bar(place, np.mean(runs), width=0.6, color=colour, alpha=0.35)
            axis.plot(place + np.linspace(-0.12, 0.12, len(runs)), runs, "o", color=colour, markersize=4.5)
        for (name, level), dashes in zip((references or {}).get(quantity, {}).items(), ("--", ":", "-."), strict=False):
            axis.axhline(level, color="0.25", linestyle=dashes, linewidth=1.2, label=name)
        axis.set_xticks(range(len(values)), list(values))
        axis.set(ylabel=quantity)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def by_nfe(
    curves: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], logarithmic: Sequence[str] = ()
) -> Figure:
    """A panel per quantity, a line per sampler: the mean over seeds against the NFE, seeds as dots."""
    figure, axes = plt.subplots(1, len(curves), figsize=(WIDTH, 3.0), squeeze=False)
    for axis, (quantity, samplers) in zip(axes[0], curves.items(), strict=True):
        for (name, points), marker in zip(samplers.items(), "osD^", strict=False):
            line = axis.plot(
                list(points), [np.mean(runs) for runs in points.values()], marker=marker, markersize=5, label=name
            )
            for nfe, runs in points.items():
                axis.plot([nfe] * len(runs), runs, ".", color=line[0].get_color(), alpha=0.4, markersize=4)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="NFE", ylabel=quantity, yscale="log" if quantity in logarithmic else "linear")
    axes[0][0].legend()
    return figure


def timestep_densities(times: Tensor, densities: Mapping[str, Tensor]) -> Figure:
    """Densities over the timestep, data at 0 and noise at 1."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 2.5))
    for name, density in densities.items():
        axis.plot(times, density, label=name)
    axis.set(xlabel="timestep $t$ (data at 0, noise at 1)", ylabel="$p(t)$", ylim=(0, None))
    axis.legend()
    return figure
