"""Curves of many contenders, a panel for each family of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    A contender of several families has one colour in all of them.
    """
    names = list(dict.fromkeys(name for contenders in families.values() for name in contenders))
    colours = dict(zip(names, sns.color_palette("husl", len(names)), strict=True))
    figure, axes = plt.subplots(1, len(families), figsize=(WIDTH, 3.9), sharex=True, sharey=True, squeeze=False)
    for axis, (family, contenders) in zip(axes[0], families.items(), strict=True):
        for (name, points), marker in zip(contenders.items(), _MARKERS, strict=False):
            means = [np.mean(runs) for runs in points.values()]
            axis.plot(list(points), means, marker=marker, markersize=5, color=colours[name], label=name)
            for nfe, runs in points.items():
                axis.plot([nfe] * len(runs), runs, ".", color=colours[name], alpha=0.4, markersize=4)
        ticks = sorted({nfe for points in contenders.values() for nfe in points})
        axis.set(title=family, xlabel="NFE", xscale="log", yscale="log")
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="small")
    axes[0][0].set_ylabel(ylabel)
    return figure
