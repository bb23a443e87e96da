"""The page "Is my reflow sound?": the doctor's report on sound pairs and on damaged ones, and the expected curves."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfpp import doctor
from rfpp.base import files
from rfpp.book.plots import WIDTH, style
from rfpp.book.tables import Table, number
from rfpp.doctor import Pairs, curves
from rfpp.experiment import Experiment

_SHOWN = ("loss", "pictures", "pair_error", "frechet")
_TOO_WIDE = 1.1
_PAGE, _INDENT = 80, 26
"""Characters of a line that fit on the page, and the indentation of its continuation."""


def damaged(x: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs whose noise is ten per cent too wide, and which lost an image halfway, so that those after it moved up."""
    half = len(x) // 2
    return torch.cat([x[:half], x[half + 1 :], x[half : half + 1]]), _TOO_WIDE * z


def _said(command: str, title: str, material: Pairs) -> str:
    said = doctor.report(title, doctor.examine(material))
    lines = chain.from_iterable(textwrap.wrap(line, _PAGE, subsequent_indent=" " * _INDENT) for line in said)
    return "\n".join(["```text", f"$ {command}", *lines, "```", ""])


def said(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The doctor's report on the held-out pairs, and on the same pairs once damaged, as Markdown by name."""
    step = experiment.plan.pairs("held_out")
    folder = experiment.pairs("held_out").folder
    place = f"runs/{experiment.preset.origin}/{step.name}/{step.key}"
    sound = doctor.read(folder)
    assert isinstance(sound, Pairs)
    yield "sound", _said(f"python -m rfpp doctor {place}", f"{place}: {sound}", sound)
    with tempfile.TemporaryDirectory(prefix="rfpp-") as made:
        path = Path(made) / "damaged.safetensors"
        x, z = damaged(sound.x, sound.z)
        labels = {} if sound.labels is None else {"labels": sound.labels}
        files.write_tensors(path, {"x": x.contiguous(), "z": z.contiguous(), **labels})
        read = doctor.read(path)
        assert isinstance(read, Pairs)
        yield "damaged", _said(f"python -m rfpp doctor {path.name}", f"{path.name}: {read}", read)


def _trainings(known: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Preset, configuration and values, configurations first."""
    for config in sorted({name for entry in known.values() for name in entry["configurations"]}):
        for preset, entry in known.items():
            if config in entry["configurations"]:
                yield preset, config, entry["configurations"][config]["values"]


def table(known: Mapping[str, Any]) -> Table:
    """A row for each quantity of each training, with the range for another seed at each fraction."""
    rows = []
    for preset, config, values in _trainings(known):
        for quantity in _SHOWN:
            limits = [curves.expected(at) for at in values[quantity]]
            cells = ["not kept" if each is None else f"{number(each[0])} to {number(each[1])}" for each in limits]
            rows.append((f"{config}, `{preset}`", curves.QUANTITIES[quantity], *cells))
    return Table(("training", "what", *(f"{fraction:.0%}" for fraction in curves.FRACTIONS)), rows)


def seeds(known: Mapping[str, Any]) -> str:
    """How many seeds the ranges rest on, in words."""
    each = [f"{len(entry['seeds'])} seeds at `{preset}`" for preset, entry in known.items()]
    return f"The ranges are based on {' and '.join(each)}.\n"


def _curve(axis: Axes, values: list[list[float | None]], colour: str, marker: str, label: str | None) -> None:
    """Each seed's curve, and the range for another one."""
    places = [100 * fraction for fraction in curves.FRACTIONS]
    kept = [
        (place, at, limits)
        for place, at in zip(places, values, strict=True)
        if (limits := curves.expected(at)) is not None
    ]
    axis.plot([], [], color=colour, marker=marker, markersize=3, label=label)
    if not kept:
        return
    for seed in zip(*(at for _, at, _ in kept), strict=True):
        axis.plot([place for place, *_ in kept], seed, color=colour, marker=marker, markersize=3, linewidth=0.8)
    lows, highs = zip(*(limits for *_, limits in kept), strict=True)
    if len(kept) > 1:
        axis.fill_between([place for place, *_ in kept], lows, highs, color=colour, alpha=0.18, linewidth=0)
    else:
        axis.vlines(kept[0][0], lows, highs, color=colour, alpha=0.35, linewidth=5)


def figure(known: Mapping[str, Any]) -> Figure:
    """A row for each configuration, a panel for each quantity; presets by colour and mark."""
    style()
    configs = sorted({config for _, config, _ in _trainings(known)})
    drawn, axes = plt.subplots(
        len(configs), len(_SHOWN), figsize=(WIDTH, 2.1 * len(configs) + 0.5), squeeze=False, sharex=True
    )
    looks = {preset: (f"C{place}", "osD^v"[place % 5]) for place, preset in enumerate(known)}
    for preset, config, values in _trainings(known):
        for axis, quantity in zip(axes[configs.index(config)], _SHOWN, strict=True):
            _curve(axis, values[quantity], *looks[preset], preset if config == configs[0] else None)
    titles = ("loss", "error of\n16 pictures", "error of\nheld-out pairs", "Fréchet\ndistance")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    for row, config in zip(axes, configs, strict=True):
        row[0].set_ylabel(config, rotation=0, ha="right", va="center")
        for axis in row:
            axis.set(xscale="log", yscale="log", xlim=(8, 125))
            axis.set_xticks([100 * fraction for fraction in curves.FRACTIONS], ["10", "30", "100"])
            axis.minorticks_off()
            axis.tick_params(labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("% of the steps")
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(known))
    return drawn


def write(experiment: Experiment, folder: Path) -> None:
    """Write what `doctor.md` includes and shows into the folder beside it."""
    for name, text in said(experiment):
        (folder / f"doctor-{name}.txt").write_text(text)
    known = curves.read()
    (folder / "doctor-curves.txt").write_text(f"\n{table(known)._repr_markdown_()}\n")
    (folder / "doctor-seeds.txt").write_text(seeds(known))
    drawn = figure(known)
    drawn.savefig(folder / "figures" / "curves.svg")
    plt.close(drawn)
