"""Pictures of flows in the plane whose paths are compared."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from rfpp.book.plots import WIDTH


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
