"""The benchmarks page: tables and a figure from what `make bench` measured, for the prose in `book/benchmarks.md`."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfpp.base import paths
from rfpp.book import sizes
from rfpp.book.plots import WIDTH, style
from rfpp.book.tables import Table
from rfpp.pipeline import costs

RESULTS = Path("benchmarks") / "results.json"
Entry = Mapping[str, Any]
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def results() -> dict[str, Any]:
    """The latest measurements; raises ``FileNotFoundError`` if there are none."""
    path = paths.repository() / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: make bench")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def entries(found: Mapping[str, Any], kind: str) -> list[Entry]:
    """The benchmarks of a kind: ``"comparison"``, ``"price"`` or ``"growth"``."""
    return [each["extra_info"] for each in found["benchmarks"] if each["extra_info"].get("kind") == kind]


def reached(entry: Entry) -> str:
    """Whether a goal was reached: by three quarters of the rounds, or by fewer; for a slope, within its tolerance."""
    goal = entry["expected"] if entry["kind"] == "growth" else entry["goal"]
    if goal is None:
        return ""
    if entry["kind"] == "growth":
        return "yes" if abs(entry["slope"] - goal) <= entry["tolerance"] else "no"
    if entry["ratio"]["low"] >= goal:
        return "yes"
    return "no" if entry["ratio"]["high"] < goal else "within the spread"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits: ``"1.23 ms"``."""
    scale, unit = next(((scale, unit) for scale, unit in _UNITS if seconds >= 0.9995 * scale), _UNITS[-1])
    return f"{_digits(seconds / scale)} {unit}"


def _digits(value: float) -> str:
    """Three significant digits, including zeros, or all digits before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _ratio(entry: Entry) -> str:
    median, low, high = (_digits(entry["ratio"][name]) for name in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def comparisons(found: Mapping[str, Any]) -> Table:
    """A row for each comparison with a usual way, with its result."""
    columns = ("what", "the usual way", "takes", "ours", "times faster", "goal", "reached")
    rows = [
        (
            each["question"], each["baseline"], duration(each["seconds"]["usual"]), duration(each["seconds"]["ours"]),
            _ratio(each), "" if each["goal"] is None else f"{each['goal']:,g}", reached(each),
        )
        for each in entries(found, "comparison")
    ]  # fmt: skip
    return Table(columns, rows)


def prices(found: Mapping[str, Any]) -> Table:
    """A row for each thing that costs more than another."""
    rows = [(each["question"], each["baseline"], _ratio(each)) for each in entries(found, "price")]
    return Table(("what", "beside", "times the cost"), rows)


def growths(found: Mapping[str, Any]) -> Table:
    """A row for each growth, with its slope."""
    rows = []
    for each in entries(found, "growth"):
        shown = (duration(value) if each["unit"] == "s" else f"{_digits(value)} {each['unit']}"
                 for value in (each["values"][0], each["values"][-1]))  # fmt: skip
        first, last = (f"{size:,} {each['over']}: {value}" for size, value in zip(_ends(each), shown, strict=True))
        slope = f"{each['slope']:.3f} ± {each['error']:.3f}"
        goal = "" if each["expected"] is None else f"{each['expected']:g} ± {each['tolerance']:g}"
        rows.append((each["what"], first, last, slope, goal, reached(each)))
    return Table(("what", "from", "to", "slope", "goal", "reached"), rows)


def _ends(entry: Entry) -> Sequence[int]:
    return entry["sizes"][0], entry["sizes"][-1]


def machine(found: Mapping[str, Any]) -> str:
    """Where and when it was measured, in a sentence."""
    info, commit = found["machine_info"], found["commit_info"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    changed = " with changes" if commit["dirty"] else ""
    shares = (each["extra_info"]["others"] for each in found["benchmarks"])
    others = [share for share in shares if share is not None]
    return (
        f"Measured on {found['datetime']} on {info['cpu']}, {info['cores']} cores, {info['memory_gib']} GiB, "
        f"{info['system']}, Python {info['python_version']}, {packages}; commit `{commit['id']}`{changed}. It took "
        f"{info['minutes']:g} minutes. During the timings, other work took {statistics.median(others):.0%} of "
        f"the processor's time (the median over benchmarks), and {max(others):.0%} at most.\n"
    )


GPU_RESULTS = Path("benchmarks") / "gpu" / "results.json"


def _gpu_runs(script: str) -> list[dict[str, Any]]:
    """The runs of a script in ``benchmarks/gpu``."""
    found: dict[str, list[dict[str, Any]]] = json.loads((paths.repository() / GPU_RESULTS).read_text())
    return found[script]


def _gpu(script: str) -> list[Mapping[str, Any]]:
    """The rows of all runs of a script."""
    return [row for run in _gpu_runs(script) for row in run["rows"]]


def gpu_rates() -> Table:
    """A row for each network and precision: a training step as a share of a matrix product's rate."""
    columns = ("network", "precision", "compiled", "batch", "a step", "TFLOP/s", "of the matrix rate", "goal")
    rows = [
        (
            row["network"], row["precision"], _compiled(row), row["batch"],
            duration(row["seconds a step"]), f"{row['operations a second'] / 1e12:.0f}",
            f"{row['share of TF32']:.0%} (TF32)" if "share of TF32" in row else f"{row['share']:.0%}",
            f"{row['goal']:.0%}" if "goal" in row else "",
        )
        for row in _gpu("rates")
    ]  # fmt: skip
    return Table(columns, rows)


def _compiled(row: Mapping[str, Any]) -> str:
    """Whether a network was compiled, and in whose memory layout."""
    if not row["compiled"]:
        return "no"
    return "yes, in channels-last" if row.get("layout kept") else "yes, as torch chooses"


OPERATION = "scaled_dot_product_"
"""The prefix of the names of all operations for attention."""


def gpu_attention() -> Table:
    """A row for each attention: which operation torch chose, by the end of its name."""
    rows = [
        (
            row["network"], row["precision"], f"{row['resolution']} x {row['resolution']}", row["heads"],
            f"`{row['forward'][0].strip('_').removeprefix(OPERATION)}`", "yes" if row["fused"] else "no",
        )
        for row in _gpu("attention")
    ]  # fmt: skip
    return Table(("network", "precision", "places", "heads", "operation", "fused"), rows)


def gpu_norms() -> Table:
    """A row for each group normalisation: a step with it, as a share of the matrix rate of the last run before."""
    rate = next(row for row in reversed(_gpu("rates")) if row["precision"] == "bf16")
    rows = [
        (
            row["way"], duration(row["seconds a step"]),
            f"{rate['operations an image'] * row['batch'] / row['seconds a step'] / rate['matrix rate']:.0%}",
            f"{row['copies a step']:.0f}", duration(row["seconds of copies"]),
        )
        for row in _gpu("norms")
    ]  # fmt: skip
    return Table(("normalisation", "a step", "of the matrix rate", "copies", "their time"), rows)


def gpu_compiled() -> Table:
    """A row for each training with a compiled network beside one without."""
    columns = ("training", "dropout", "a step", "not compiled", "times faster", "until the first step", "losses apart")
    rows = [
        (
            row["config"] + " with LPIPS" * row["LPIPS"], f"{row['dropout']:g}", duration(row["seconds a step"]),
            duration(row["plain seconds a step"]), _digits(row["speed-up"]),
            duration(row["seconds to the first step"]), f"{row['from plain']:.2%}",
        )
        for row in _gpu("compiled")
    ]  # fmt: skip
    return Table(columns, rows)


def gpu_loading() -> Table:
    """A row for each training: how long its steps wait for batches."""
    rows = [
        (
            row["training"], row["batch"], row["workers"], duration(row["seconds a step"]),
            duration(row["seconds waited"]), f"{row['share waited']:.1%}", f"{row['goal']:.0%}",
        )
        for row in _gpu("loading")
    ]  # fmt: skip
    return Table(("training", "batch", "workers", "a step", "waiting", "share", "at most"), rows)


def gpu_resume() -> Table:
    """A row for each way to train: how far a training that was stopped half-way ends from one that was not."""
    rows = [
        (
            run["provenance"]["device"], row["precision"], "yes" if row["compile"] else "no",
            "yes" if row["deterministic kernels"] else "no",
            *(_distance(max(row[name].values())) for name in ("two runs apart", "resumed apart")),
        )
        for run in _gpu_runs("resume") for row in run["rows"]
    ]  # fmt: skip
    columns = (
        "GPU",
        "precision",
        "compiled",
        "deterministic kernels",
        "two whole trainings",
        "a resumed and a whole one",
    )
    return Table(columns, rows)


def _distance(value: float) -> str:
    return f"{value:.1g}" if value else "equal bit for bit"


def _device(script: str) -> str:
    """When a script was last run, and on what."""
    made = _gpu_runs(script)[-1]["provenance"]
    return (
        f"on {made['date'][:10]} on one {made['device']}, driver {made['driver']}, torch {made['torch']}, "
        f"commit `{made['commit'][:12]}`"
    )


def gpu_findings() -> str:
    """Where and when the scripts for a GPU ran, and which notebooks did."""
    notebooks = sorted(row["notebook"] for row in _gpu("notebooks") if row["end"] == "finished")
    return (
        f"Rates were last measured {_device('rates')}; normalisations {_device('norms')}; "
        f"attention {_device('attention')}; compiled trainings and waiting {_device('compiled')}; "
        f"resumed trainings on the GPUs that their table names. These notebooks ran to completion "
        f"{_device('notebooks')}, at a reduced `cifar10`: {', '.join(notebooks)}.\n"
    )


def gpu_preset() -> str:
    """How long the trainings and samples of ``cifar10`` take at the pace of the measured steps, in a sentence."""
    plan, run = sizes.plan("cifar10"), _gpu_runs("loading")[-1]
    row, device = run["rows"][-1], run["provenance"]["device"]
    passes = costs.bill(plan).passes
    seconds = passes * row["seconds a step"] / (3 * row["batch"])
    return (
        f"At the pace of training {row['training']} on one {device}, {duration(row['seconds a step'])} for "
        f"{row['batch']} images, the {sizes.large(passes)} forward passes of A to G at the `cifar10` preset take "
        f"{costs.duration(seconds)}.\n"
    )


def tally(found: Mapping[str, Any]) -> str:
    """How many goals were reached, in a sentence."""
    kinds = ("comparison", "growth")
    verdicts = [verdict for kind in kinds for each in entries(found, kind) if (verdict := reached(each))]
    missed, open_ = verdicts.count("no"), verdicts.count("within the spread")
    return (
        f"Of {len(verdicts)} goals for a CPU, {verdicts.count('yes')} are reached, "
        f"{missed} {'is' if missed == 1 else 'are'} missed, "
        f"and {open_} {'lies' if open_ == 1 else 'lie'} within the spread of the rounds.\n"
    )


def _bars(axis: Axes, shown: Sequence[Entry]) -> None:
    """A bar for each ratio, its quartiles, and a mark where its goal lies."""
    for place, each in enumerate(shown):
        ratio, goal = each["ratio"], each["goal"]
        colour = {"no": "C3", "": "0.6"}.get(reached(each), "C0")
        errors = [[ratio["median"] - ratio["low"]], [ratio["high"] - ratio["median"]]]
        axis.barh(place, ratio["median"] - 1, left=1, xerr=errors, color=colour, height=0.6, error_kw={"linewidth": 1})
        if goal is not None:
            axis.plot([goal, goal], [place - 0.42, place + 0.42], color="black", linewidth=2)
        right = max(ratio["high"], goal or 1, 1)
        axis.annotate(_digits(ratio["median"]), (right, place), (5, 0), textcoords="offset points", va="center", size=8)
    axis.axvline(1, color="0.25", linewidth=0.8)
    axis.set_yticks(range(len(shown)), ["\n".join(textwrap.wrap(each["question"], 40)) for each in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times faster than the usual way")
    axis.margins(x=0.12, y=0.02)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _lines(axis: Axes, shown: Sequence[Entry]) -> None:
    """A line for each growth, as multiples of its smallest size and of what that took."""
    longest = max((each["sizes"][-1] / each["sizes"][0] for each in shown), default=2)
    axis.plot([1, longest], [1, longest], color="0.6", linestyle="--", linewidth=1, label="in proportion")
    for each, marker in zip(shown, "osD^vP" * len(shown), strict=False):
        multiples = np.array(each["sizes"]) / each["sizes"][0], np.array(each["values"]) / each["values"][0]
        name = "\n".join(textwrap.wrap(f"{each['what']}, over {each['over']}", 40))
        axis.plot(*multiples, marker=marker, markersize=4, linewidth=1.2, label=name)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="size, over the smallest",
        ylabel="time or memory,\nover that of the smallest",
    )
    for each_axis in (axis.xaxis, axis.yaxis):
        each_axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)


def figure(found: Mapping[str, Any]) -> Figure:
    """Ratios as bars on a logarithmic axis, and how costs grow with size."""
    style()
    shown, heights = entries(found, "comparison"), (0.4 * len(entries(found, "comparison")) + 0.7, 2.9)
    drawn = plt.figure(figsize=(WIDTH, sum(heights)))
    panels: Any = drawn.subfigures(2, 1, height_ratios=heights)
    _bars(panels[0].subplots(), shown)
    _lines(panels[1].subplots(), entries(found, "growth"))
    return drawn


def write(folder: Path) -> None:
    """Write what `benchmarks.md` includes and shows into the folder beside it."""
    found = results()
    tables = {"comparisons": comparisons(found), "prices": prices(found), "growths": growths(found)}
    tables |= {"gpu-rates": gpu_rates(), "gpu-norms": gpu_norms()}
    tables |= {"gpu-attention": gpu_attention(), "gpu-compiled": gpu_compiled()}
    tables |= {"gpu-loading": gpu_loading(), "gpu-resume": gpu_resume()}
    for name, table in tables.items():
        (folder / f"benchmarks-{name}.txt").write_text(f"\n{table._repr_markdown_()}\n")
    (folder / "benchmarks-gpu.txt").write_text(gpu_findings())
    (folder / "benchmarks-gpu-preset.txt").write_text(gpu_preset())
    (folder / "benchmarks-machine.txt").write_text(machine(found))
    (folder / "benchmarks-tally.txt").write_text(tally(found))
    drawn = figure(found)
    drawn.savefig(folder / "figures" / "benchmarks.svg")
    plt.close(drawn)
