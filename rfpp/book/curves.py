"""Curves of many contenders, a panel for each family of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from rfpp.book.plots import WIDTH

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
