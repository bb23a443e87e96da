"""What more cores bring: the same trainings, and notebooks from nothing, on some of this machine's cores.

    python benchmarks/cores.py [--cores 1 2 4 8] [--trainings 16] [--steps 40] [--book [NAME ...]] [--out FILE]

Without ``--cores``: 1, 2, 4 and so on, as far as there are any, on a CPU also where there is a GPU. ``--book`` runs
notebooks at the ``laptop`` preset first, by default all of them, on each number of cores, the largest first. The file
is written after each row, by default ``runs/cores.json``; it also says how many digits a second one core evaluates, for
comparisons with other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cpuinfo
import torch

from rfpp.base import files, paths
from rfpp.claims.records import commit
from rfpp.experiment import Experiment
from rfpp.pipeline import shipped

REPOSITORY = Path(__file__).resolve().parents[1]


def powers(available: int) -> list[int]:
    """1, 2, 4 and so on, and the number that there is."""
    return sorted({2**k for k in range(available.bit_length()) if 2**k <= available} | {available})


def on_cores(count: int, command: Sequence[str], runs: Path) -> str:
    """What a command prints that may use ``count`` cores and no GPU, and stores its results in ``runs``."""
    own = os.sched_getaffinity(0)
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "RFPP_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RFPP_JOBS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.pop(name, None)
    os.sched_setaffinity(0, set(sorted(own)[:count]))  # children inherit it
    try:
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    finally:
        os.sched_setaffinity(0, own)


def trained(trainings: int, steps: int) -> float:
    """Seconds of as many trainings of digits, on all cores that this process may use; workers have been started."""
    count = len(os.sched_getaffinity(0))
    settings = {"pairs.train": 256, "pairs.num_steps": 2, "training.warmup": 1}
    Experiment("laptop", {**settings, "training.steps": 1}).train(["B"], range(min(count, trainings)))
    experiment = Experiment("laptop", {**settings, "training.steps": steps})
    start = time.perf_counter()
    experiment.train(["B"], range(trainings))
    return time.perf_counter() - start


def pace() -> int:
    """Evaluations a second of the digits' teacher, on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        teacher, x, labels = shipped.load("digits-teacher"), torch.randn(256, 1, 8, 8), torch.arange(256) % 10
        with torch.inference_mode():
            teacher(x, 1.0, labels)
            start = time.process_time()
            for _ in range(8):
                teacher(x, 1.0, labels)
        return round(8 * len(x) / (time.process_time() - start))
    finally:
        torch.set_num_threads(before)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, and write the rows."""
    available = len(os.sched_getaffinity(0))
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--cores", type=int, nargs="+", default=powers(available), help="numbers of cores")
    options.add_argument("--trainings", type=int, default=16, help="how many trainings there are to share")
    options.add_argument("--steps", type=int, default=40, help="steps of each")
    options.add_argument("--book", nargs="*", metavar="NAME", help="run these notebooks at laptop, too, or all")
    options.add_argument("--out", type=Path, default=paths.runs() / "cores.json", help="the JSON file to write")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args(argv)
    if given.inside:
        print(trained(given.trainings, given.steps))
        return {}
    if not 1 <= min(given.cores) <= max(given.cores) <= available:
        options.error(f"--cores {given.cores}: from 1 to {available} can be used here")
    made = {
        "processor": cpuinfo.get_cpu_info().get("brand_raw", platform.machine()), "cores": available,
        "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": os.environ.get("RFPP_COMMIT") or commit(),
        "digits a second": pace(),
    }  # fmt: skip
    found: dict[str, Any] = {"provenance": made, "rows": []}

    def add(what: str, cores: int, seconds: float) -> None:
        found["rows"].append({"what": what, "cores": cores, "seconds": round(seconds, 2)})
        print(f"{what}, {cores} core{'s' * (cores > 1)}: {seconds:.1f} s", flush=True)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(given.out, json.dumps(found, indent=1) + "\n")

    for cores in sorted(given.cores, reverse=True) if given.book is not None else []:
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "-m", "rfpp", "run", "--preset", "laptop", *given.book]
            start = time.perf_counter()
            on_cores(cores, command, Path(runs))
            which = f"the notebooks {', '.join(given.book)}" if given.book else "all notebooks"
            add(f"{which} at laptop, from nothing", cores, time.perf_counter() - start)
    for cores in given.cores:
        with tempfile.TemporaryDirectory() as runs:
            inside = [sys.executable, __file__, "--inside", f"--trainings={given.trainings}", f"--steps={given.steps}"]
            seconds = float(on_cores(cores, inside, Path(runs)).split()[-1])
            add(f"{given.trainings} trainings of {given.steps} steps", cores, seconds)
    return found


if __name__ == "__main__":
    main()
