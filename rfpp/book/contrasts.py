"""Figures that compare: contenders over evaluations, two updates in the plane, differences of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from torch import Tensor

from rfpp.book.plots import WIDTH, strip_height
from rfpp.studies.solvers import Walk

_MARKERS = "osD^vPX"


def over_evaluations(
    families: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], ylabel: str = "Fréchet distance"
) -> Figure:
    """A panel per family, a line per contender against the NFE, all axes logarithmic and shared; dots are seeds.

    A contender of several families looks the same in all of them.
    """
    names = list(dict.fromkeys(name for contenders in families.values() for name in contenders))
    colours = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
    shapes, handles = dict(zip(names, cycle(_MARKERS), strict=False)), {}
    figure, axes = plt.subplots(1, len(families), figsize=(WIDTH, 3.9), sharex=True, sharey=True, squeeze=False)
    for axis, (family, contenders) in zip(axes[0], families.items(), strict=True):
        for name, points in contenders.items():
            means = [np.mean(runs) for runs in points.values()]
            (handles[name],) = axis.plot(list(points), means, marker=shapes[name], markersize=5, color=colours[name])
            for nfe, runs in points.items():
                axis.plot([nfe] * len(runs), runs, ".", color=colours[name], alpha=0.4, markersize=4)
        ticks = sorted({nfe for points in contenders.values() for nfe in points})
        axis.set(title=family, xlabel="NFE", xscale="log", yscale="log")
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
    axes[0][0].set_ylabel(ylabel)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    return figure


def across_scales(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Fréchet distances: panels by title, rows by contender, colours by scale; open marks for means, dots for seeds.

    Contenders of the first scale are shown, those with the smallest mean there at the top of each panel.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.4), sharex=True, squeeze=False)
    scales = list(dict.fromkeys(scale for by_scale in panels.values() for scale in by_scale))
    looks = dict(zip(scales, zip(cycle(sns.color_palette()), cycle(_MARKERS), strict=False), strict=False))
    handles = {}
    for axis, (title, by_scale) in zip(axes[0], panels.items(), strict=True):
        first = next(iter(by_scale.values()))
        order = sorted(first, key=lambda name: -float(np.mean(first[name])))
        for scale, found in by_scale.items():
            colour, marker = looks[scale]
            rows = {row: found[name] for row, name in enumerate(order) if name in found}
            for row, runs in rows.items():
                axis.plot(runs, [row] * len(runs), ".", color=colour, alpha=0.4, markersize=4)
            means = [np.mean(runs) for runs in rows.values()]
            (handles[scale],) = axis.plot(means, [*rows], marker, color=colour, markersize=7, fillstyle="none")
        axis.set(title=title, xlabel="Fréchet distance", xscale="log")
        axis.set_yticks(range(len(order)), order)
        axis.grid(visible=True, axis="y", linewidth=0.5, alpha=0.5)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure


def updates(walks: Mapping[str, Walk]) -> Figure:
    """A panel per update of a sampler: the states of a path, the ends that it predicted, and the exact path.

    Dotted lines lead from each predicted end to where the next step starts: along the velocity, or towards the noise.
    """
    figure, axes = plt.subplots(1, len(walks), figsize=(WIDTH, 3.4), sharex=True, sharey=True, squeeze=False)
    blue, orange, green = sns.color_palette()[:3]
    for axis, (name, walk) in zip(axes[0], walks.items(), strict=True):
        axis.plot(*walk.exact.T, color="0.6", linewidth=3, label="exact path")
        origins = walk.states[:-1] if name == "standard" else walk.states[:1].expand(len(walk.predictions), -1)
        for end, origin in zip(walk.predictions, origins, strict=True):
            axis.plot(*zip(end.tolist(), origin.tolist(), strict=True), ":", color=orange, linewidth=1.2)
        axis.plot(*walk.predictions.T, "x", color=orange, markersize=7, label=r"predicted end $\hat x$")
        axis.plot(*walk.states.T, "o-", color=blue, markersize=4.5, linewidth=1.4, label="steps")
        axis.plot(*walk.states[0], "o", color=green, markersize=7, label="noise $z$")
        axis.set(title=f"{name} update", aspect="equal", xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def differences(rows: Mapping[str, Tensor], reference: Tensor) -> Figure:
    """A strip of differences ``images - reference`` ``(N, C, H, W)`` per named row, averaged over channels.

    Red stands for more than the reference (more ink in grey images), blue for less; 1 is the whole range of values.
    """
    figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, strip_height(rows) * len(rows) + 0.6), squeeze=False)
    shown: Any = None
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        gaps = (images - reference).mean(dim=1).cpu() / 2
        strip = np.concatenate(list(np.pad(gaps.numpy(), ((0, 0), (0, 0), (0, 1)))), axis=1)[:, :-1]
        shown = axis.imshow(strip, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.colorbar(
        shown, ax=axes, location="bottom", fraction=0.06, aspect=50, label="difference, as a share of the range"
    )
    return figure
