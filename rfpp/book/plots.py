"""Every figure of the book, in one style. Each function returns a matplotlib figure; the notebook shows it.

Backgrounds are white and widths near seven inches, so that pictures read on light and dark pages and fit the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter, StrMethodFormatter
from torch import Tensor
from torch.nn import functional

from rfpp.claims import interval
from rfpp.engine import History
from rfpp.studies import crossings

WIDTH = 7.0


def style() -> None:
    """The book's look, in double resolution; a notebook calls it once."""
    if (shell := get_ipython()) is not None:
        shell.run_line_magic("config", "InlineBackend.figure_formats = ['retina']")
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


def strip_height(rows: Mapping[str, Tensor]) -> float:
    """The height in inches at which strips of images beside their names have only a margin around them."""
    beside = 0.35 + 0.075 * max(map(len, rows))
    return max(0.3, max((WIDTH - beside) / len(each) * each.shape[2] / each.shape[3] for each in rows.values()) + 0.06)


def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """One strip of images ``(N, C, H, W)`` per named row."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(WIDTH, strip_height(rows) * len(rows) + 0.1), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        _strip(axis, images)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def sheets(images: Mapping[str, Tensor], across: int) -> Figure:
    """A sheet of images ``(N, C, H, W)`` for each name, ``across`` images wide; an unfinished row is left out."""
    columns = min(4, len(images))
    down = -(-len(images) // columns)
    height = WIDTH / columns * max(len(each) // across for each in images.values()) / across + 0.3
    figure, axes = plt.subplots(down, columns, figsize=(WIDTH, down * height), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, each) in zip(axes.flat, images.items(), strict=False):
        rows = each[: len(each) // across * across].unflatten(0, (-1, across))
        rows = functional.pad(rows, (0, 0, 0, 1), value=-1 if rows.shape[2] == 1 else 1)  # a white line between them
        _strip(axis, rows.movedim(0, 2).flatten(2, 3))
        axis.set_axis_on()
        axis.set_title(name)
    return figure


def over_training(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """A panel per number of steps: each rung's gain, with its 95 % interval over seeds, by the length of the training.

    ``panels[title][rung][length]``: one value for each seed. Rungs stand side by side at each length.
    """
    lowest = min(np.mean(gains) for rungs in panels.values() for each in rungs.values() for gains in each.values())
    figure, axes = plt.subplots(len(panels), 1, figsize=(WIDTH, 2.5 * len(panels) + 0.4), squeeze=False, sharey=True)
    for axis, (title, rungs) in zip(axes[:, 0], panels.items(), strict=True):
        lengths = list(dict.fromkeys(length for gains in rungs.values() for length in gains))
        for shift, (length, marker) in enumerate(zip(lengths, "osD^v" * len(lengths), strict=False)):
            spans = [interval(gains[length]) for gains in rungs.values()]
            means = np.array([np.mean(gains[length]) for gains in rungs.values()])
            errors = np.abs(np.array(spans).T - means)
            places = np.arange(len(rungs)) + 0.16 * (shift - (len(lengths) - 1) / 2)
            axis.errorbar(places, means, errors, fmt=marker, markersize=5, capsize=3, label=length)
        axis.axhline(0, color="0.25", linewidth=0.8)
        axis.set_xticks(range(len(rungs)), list(rungs))
        axis.set(title=title, ylabel="share of the distance\nthat is removed", ylim=(min(-0.2, lowest - 0.2), 1.05))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def forest(
    scales: Sequence[str], rows: Mapping[str, Mapping[str, tuple[float, float, float]]], controls: Mapping[str, float]
) -> Figure:
    """A line per claim, right of the middle where its rule is obeyed; ``scales`` have their colours in this order.

    ``rows[claim][scale]``: mean and interval, as the margin by which the rule is obeyed; ``controls[claim]``: the
    control's margin. Each row is scaled by its farthest interval; controls beyond it are drawn at the edge.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.42 * len(rows) + 0.8))
    for place, (title, intervals) in enumerate(rows.items()):
        unit = max(abs(end) for interval in intervals.values() for end in interval)
        for number, scale in enumerate(scales):
            if scale in intervals:
                mean, low, high = (margin / unit for margin in intervals[scale])
                axis.errorbar(
                    mean, place + 0.2 * number + 0.12, xerr=[[mean - low], [high - mean]], fmt="osD^v"[number % 5],
                    color=f"C{number}", markersize=4.5, capsize=2.5,
                )  # fmt: skip
        if title in controls:
            edge = min(max(controls[title] / unit, -1.08), 1.08)
            axis.plot(edge, place + 0.22, "D", markersize=5, markerfacecolor="none", color="0.45", zorder=1)
        axis.text(-1.12, place - 0.16, title, fontsize=7.5, va="center", bbox={"color": "white", "pad": 0.5})
    for number, scale in enumerate(scales):
        axis.plot([], [], "osD^v"[number % 5], markersize=4.5, color=f"C{number}", label=scale)
    axis.plot([], [], "D", markersize=5, markerfacecolor="none", color="0.45", label="control")
    axis.axvline(0, color="0.25", linewidth=0.8)
    axis.set(xlim=(-1.15, 1.15), ylim=(len(rows) - 0.3, -0.6), xticks=[], yticks=[])
    axis.set_xlabel("rule broken   ←      |      →   rule obeyed")
    sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(loc="outside lower center", ncols=len(scales) + 1)
    return figure


def loss_curves(curves: Mapping[str, Sequence[History]], labels: Mapping[str, str]) -> Figure:
    """Loss against step: a panel per configuration (their losses are different quantities), a line per seed."""
    figure, axes = plt.subplots(1, len(curves), figsize=(WIDTH, 2.6), squeeze=False)
    for axis, (name, runs), colour in zip(axes[0], curves.items(), cycle(sns.color_palette()), strict=False):
        for run in runs:
            axis.plot(run.steps, run.losses, color=colour, alpha=0.6, linewidth=1.2)
        axis.set(title=f"configuration {name}", xlabel="training step", ylabel=labels[name], yscale="log")
    return figure


def by_seed(
    measured: Mapping[str, Mapping[str, Sequence[float]]], references: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """A panel per quantity, a bar and a dot per seed for each configuration; broken lines mark ``references``."""
    figure, axes = plt.subplots(1, len(measured), figsize=(min(WIDTH, 3.2 * len(measured)), 2.9), squeeze=False)
    for axis, (quantity, values) in zip(axes[0], measured.items(), strict=True):
        for place, runs in enumerate(values.values()):
            colour = f"C{place}"
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
        for (name, points), marker in zip(samplers.items(), cycle("osD^v"), strict=False):
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
    styles: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
    for (name, density), dashes in zip(densities.items(), cycle(styles), strict=False):
        axis.plot(times, density, linestyle=dashes, label=name)
    axis.set(xlabel="timestep $t$ (data at 0, noise at 1)", ylabel="$p(t)$", ylim=(0, None))
    axis.legend()
    return figure


def _segments(axis: Axes, starts: Tensor, ends: Tensor, **style: Any) -> None:
    axis.add_collection(LineCollection(torch.stack([starts, ends], dim=1).tolist(), **style))


def reflow_plane(x: Tensor, z: Tensor, paths: Tensor, ends: Tensor) -> Figure:
    """Figure 1 in the plane: independent pairs and their lines, the 1-rectified flow's paths, the lines of its pairs.

    ``x``, ``z``, ``ends``: ``(N, 2)``, where ``ends`` is what the flow makes of ``z``; ``paths``: ``(T, N, 2)``.
    """
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.7), sharex=True, sharey=True)
    ink: dict[str, Any] = {"colors": "0.35", "linewidths": 0.5, "alpha": 0.45}
    _segments(axes[0], z, x, **ink)
    axes[1].add_collection(LineCollection(paths.transpose(0, 1).tolist(), **ink))
    _segments(axes[2], z, ends, **ink)
    noise_colour, data_colour = sns.color_palette()[0], sns.color_palette()[1]
    titles = ("a  independent pairs", "b  1-rectified flow", "c  its pairs")
    for axis, data, title in zip(axes, (x, ends, ends), titles, strict=True):
        axis.plot(*z.T, ".", color=noise_colour, markersize=3, label="noise, $t = 1$")
        axis.plot(*data.T, ".", color=data_colour, markersize=3, label="data, $t = 0$")
        axis.set(title=title, aspect="equal", xticks=[], yticks=[])
        sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=3)
    return figure


def crossing_plane(data: Tensor, x1: Tensor, z1: Tensor, x2: Tensor, z2: Tensor, t: float) -> Figure:
    """Figure 2a: a pair, another image, and the noise whose line to it would cross the pair's line at ``t``."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.62, 3.3))
    blue, orange, green, red = sns.color_palette()[:4]
    axis.plot(*data.T, ".", color=orange, markersize=2, alpha=0.5, label="data")
    for level, label in ((0.99, "99 % of Gaussian noise"), (0.5, "half of it")):
        radius = (-2 * np.log(1 - level)) ** 0.5
        axis.add_patch(Circle((0, 0), radius, fill=False, color=blue, linestyle="--" if level < 0.9 else "-"))
        axis.plot([], [], color=blue, linestyle="--" if level < 0.9 else "-", label=label)
    for x, z, colour, name in ((x1, z1, green, "'"), (x2, z2, red, "''")):
        axis.plot(*torch.stack([x, z]).T, "o-", color=colour, markersize=5, linewidth=1.2)
        below = (-4, -16) if name == "'" else (6, 4)  # clear of the line that ends there
        axis.annotate(f"$x{name}$", (float(x[0]), float(x[1])), xytext=below, textcoords="offset points", color=colour)
        axis.annotate(f"$z{name}$", (float(z[0]), float(z[1])), xytext=(6, 4), textcoords="offset points", color=colour)
    axis.plot(*((1 - t) * x1 + t * z1), "kx", markersize=8, label=f"crossing, $t = {t:g}$")
    axis.set(aspect="equal", xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def histograms(
    panels: Mapping[str, Mapping[str, Tensor]],
    bands: Mapping[str, tuple[float, float]] | None = None,
    band_label: str = "",
) -> Figure:
    """A panel per quantity with a histogram per named sample; ``bands`` shade where a share of Gaussian noise lies."""
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.8), squeeze=False)
    for axis, (quantity, samples) in zip(axes[0], panels.items(), strict=True):
        if bands and quantity in bands:
            axis.axvspan(*bands[quantity], color="0.9", zorder=0, label=band_label)
        edges = np.histogram_bin_edges(np.concatenate([values.numpy() for values in samples.values()]), bins=60)
        for (name, values), colour in zip(samples.items(), cycle(sns.color_palette()), strict=False):
            axis.hist(values.numpy(), bins=edges, density=True, histtype="stepfilled", color=colour, alpha=0.3)
            axis.hist(values.numpy(), bins=edges, density=True, histtype="step", color=colour, label=name)
        axis.set(xlabel=quantity, yticks=[])
        sns.despine(ax=axis, left=True)
    axes[0][0].set_ylabel("density")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def over_time(
    panels: Mapping[str, Mapping[str, tuple[Tensor, Tensor, Tensor | None]]],
    logarithmic: Sequence[str] = (),
    xlabel: str = "timestep $t$ (data at 0, noise at 1)",
    mark: float | None = None,
) -> Figure:
    """A panel per quantity, a line per name over time: ``(times, values, spread)``, the spread as a band.

    Panels with the lines of the first have no legend of their own. ``mark``: a time at which to draw a broken line.
    """
    width = WIDTH if len(panels) > 1 else WIDTH * 0.7
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 2.9), squeeze=False)
    for axis, (quantity, lines) in zip(axes[0], panels.items(), strict=True):
        for (name, (times, values, spread)), marker in zip(lines.items(), cycle("osD^v"), strict=False):
            line = axis.plot(times, values, marker=marker, markersize=3, label=name)
            if spread is not None:
                floor = float(values.min()) / 10 if quantity in logarithmic else -torch.inf
                low = (values - spread).clamp(min=floor)
                axis.fill_between(times, low, values + spread, color=line[0].get_color(), alpha=0.2, linewidth=0)
        if mark is not None:
            axis.axvline(mark, color="0.25", linestyle="--", linewidth=1.2)
        axis.set(xlabel=xlabel, ylabel=quantity, yscale="log" if quantity in logarithmic else "linear")
        if axis is axes[0, 0] or lines.keys() != next(iter(panels.values())).keys():
            axis.legend()
    return figure


def lines(
    curves: Mapping[str, tuple[Tensor, Tensor]],
    ylabel: str,
    *,
    xlabel: str = "timestep $t$ (data at 0, noise at 1)",
    logarithmic: bool = False,
) -> Figure:
    """One panel with a line per name: ``(x, y)``, ``(N,)`` each."""
    panel = {name: (x, y, None) for name, (x, y) in curves.items()}
    return over_time({ylabel: panel}, logarithmic=[ylabel] if logarithmic else [], xlabel=xlabel)


def crossing_statistics(noises: Mapping[str, Tensor]) -> Figure:
    """Norms and lag-1 autocorrelations of noises ``(N, C, H, W)``, and the ranges of 99 % of Gaussian noise."""
    d = next(iter(noises.values()))[0].numel()
    norm, correlation = r"norm $\Vert z\Vert$", "autocorrelation at lag 1"
    panels = {
        norm: {name: crossings.norms(z) for name, z in noises.items()},
        correlation: {name: crossings.lag_one(z) for name, z in noises.items()},
    }
    return histograms(panels, {norm: crossings.annulus(d), correlation: crossings.band(d)}, "99 % of Gaussian noise")


def scatter(groups: Mapping[str, Tensor], xlabel: str, ylabel: str) -> Figure:
    """Points ``(N, 2)`` of several groups."""
    figure, axis = plt.subplots(figsize=(WIDTH * 0.7, 3.2))
    for (name, points), marker in zip(groups.items(), "o^sD", strict=False):
        axis.plot(*points.T, marker, markersize=3, alpha=0.5, linestyle="none", label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[])
    figure.legend(loc="outside lower center", ncols=len(groups), markerscale=2)
    return figure


def ladder(
    panels: Mapping[str, Mapping[str, Sequence[float]]], paper: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Figure:
    """Table 1 as a picture: for each number of steps our values by configuration (dots: seeds), the paper's below.

    ``panels[title][configuration]``: one value per seed; ``paper[title][data set][configuration]``: the paper's FID.
    """
    figure, axes = plt.subplots(2, len(panels), figsize=(WIDTH, 4.6), squeeze=False, sharex="col")
    for column, (title, values) in enumerate(panels.items()):
        ours, theirs = axes[:, column]
        places = range(len(values))
        means = [float(np.mean(runs)) for runs in values.values()]
        ours.plot(places, means, "-", color="0.6", linewidth=1, zorder=0)
        for place, runs in zip(places, values.values(), strict=True):
            ours.plot(
                place + np.linspace(-0.12, 0.12, len(runs)), runs, "o", markersize=4, color=sns.color_palette()[0]
            )
        ours.set(title=title, ylabel="Fréchet distance" if not column else "", yscale="log")
        for (name, numbers), marker in zip(paper[title].items(), "os^", strict=False):
            known = [place for place, config in enumerate(values) if config in numbers]
            colour = sns.color_palette()[1 + "os^".index(marker)]
            theirs.plot(
                known, [numbers[list(values)[place]] for place in known], marker + "-", color=colour, markersize=4,
                linewidth=1, label=name,
            )  # fmt: skip
        theirs.set(ylabel="paper's FID" if not column else "", yscale="log", xlabel="configuration")
        theirs.set_xticks(list(places), list(values))
        for axis in (ours, theirs):
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
    axes[1][0].legend()
    return figure


def bars(values: Mapping[str, Mapping[str, float]], ylabel: str) -> Figure:
    """Stacked horizontal bars: a bar per name, a part per component."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.55 * len(values) + 1.0))
    parts = list(dict.fromkeys(part for components in values.values() for part in components))
    left = np.zeros(len(values))
    for part, colour in zip(parts, sns.color_palette(), strict=False):
        widths = np.array([components.get(part, 0.0) for components in values.values()])
        axis.barh(range(len(values)), widths, left=left, color=colour, label=part)
        left += widths
    axis.set_yticks(range(len(values)), list(values))
    axis.invert_yaxis()
    axis.set(xlabel=ylabel)
    axis.legend()
    return figure


def published(groups: Mapping[str, Sequence[Sequence[Any]]], xlabel: str, ylabel: str) -> Figure:
    """Published results as points: ``(method, NFE, FID, ...)`` by family, both axes logarithmic; ours are not among
    them."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2))
    for (family, entries), marker in zip(groups.items(), "os^DvPX", strict=False):
        highlighted = family == "this paper"
        axis.plot(
            [nfe for _, nfe, *_ in entries],
            [fid for _, _, fid, *_ in entries],
            "*" if highlighted else marker,
            markersize=13 if highlighted else 5,
            color="black" if highlighted else None,
            linestyle="none",
            label=family,
        )
    axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axis.set_yticks([2, 3, 5, 10, 15])
    for formatted in (axis.xaxis, axis.yaxis):
        formatted.set_major_formatter(StrMethodFormatter("{x:g}"))
        formatted.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def over_evaluations(
    curves: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str, *, logarithmic: bool = False, band: float = 0
) -> Figure:
    """A line per sampler against the NFE, which doubles from tick to tick; grey below ``band``.

    ``curves[sampler][nfe]``: one value per seed.
    """
    figure = by_nfe({ylabel: curves}, logarithmic=[ylabel] if logarithmic else [])
    if band:
        figure.axes[0].axhspan(0, band, color="0.9", zorder=0)
    figure.axes[0].set_xscale("log", base=2)
    return figure


def norm_histogram(norms: Mapping[str, Tensor], shell: tuple[float, float]) -> Figure:
    """Norms ``(N,)`` of several noises, and where 95 % of Gaussian noise lies."""
    quantity = r"norm $\Vert z\Vert$"
    return histograms({quantity: norms}, {quantity: shell}, "95 % of Gaussian noise")


def rounds(distances: Mapping[str, Mapping[str, Sequence[float]]], names: Mapping[str, str]) -> Figure:
    """Fréchet distances of rounds of reflow: ``distances[title][configuration]``, one value per seed.

    A panel for each title; ``names``: further names of the configurations on its axis.
    """
    return by_seed(
        {
            f"Fréchet distance, {title}": {names.get(config, config): runs for config, runs in values.items()}
            for title, values in distances.items()
        }
    )
