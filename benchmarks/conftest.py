"""The two forms that every benchmark has, a comparison or a growth, and what the JSON says of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import cpuinfo
import measure
import psutil
import pytest
import torch

from rfpp.pipeline import places, shipped

T = TypeVar("T")
BEGAN = pytest.StashKey[float]()
PACKAGES = ("rfpp", "torch", "numpy", "scipy", "pillow", "pytest-benchmark")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="sizes that only show that every benchmark runs")
    parser.addoption(
        "--patience", type=float, default=10.0, help="seconds that a benchmark waits in all for other work to pause"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BEGAN] = time.monotonic()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, as each of several workers has; no progress bars; nothing that the caller's environment asks for."""
    monkeypatch.setenv("RFPP_PROGRESS", os.devnull)
    monkeypatch.delenv("RFPP_JOBS", raising=False)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Callable[[T, T], T]:
    """``size(full, tiny)``: the one that is asked for."""
    tiny = request.config.getoption("--tiny")
    return lambda full, small: small if tiny else full


@pytest.fixture(scope="session")
def teacher() -> Any:
    """The denoiser of digits that ships with the library."""
    return shipped.load("digits-teacher")


@pytest.fixture
def watch(request: pytest.FixtureRequest, benchmark: Any) -> measure.Watch:
    """What looks after other work on the machine."""
    return measure.Watch(0.0 if benchmark.disabled else request.config.getoption("--patience"))


@pytest.fixture
def compare(benchmark: Any, watch: measure.Watch) -> Callable[..., None]:
    """``compare(ours, usual, ...)``: time both in turns, and keep by how much ours is faster.

    ``question``: what the row is about; ``baseline``: what the usual manner is, in words; ``goal``: the ratio that was
    promised, if any; ``calls``: of ours within a turn, for what is too short for a clock; ``prepare``: what a turn of
    either needs first, untimed. With ``price`` what is measured is something that costs more, and the ratio is by how
    much.
    """

    def run(
        ours: Callable[[], object],
        usual: Callable[[], object],
        *,
        question: str,
        baseline: str,
        goal: float | None = None,
        rounds: int = 15,
        calls: int = 1,
        prepare: Callable[[], object] | None = None,
        price: bool = False,
    ) -> None:
        others: list[float] = []
        begun = 0

        def turn_of_the_other() -> None:
            if prepare:
                prepare()
            others.append(measure.seconds(usual))

        def before() -> None:
            nonlocal begun
            begun += 1
            watch.look()
            if begun % 2:
                turn_of_the_other()
            if prepare:
                prepare()

        def after() -> None:
            if len(others) < begun:
                turn_of_the_other()

        def own_turn() -> None:
            for _ in range(1 if benchmark.disabled else calls):
                ours()

        # Who is first in a round alternates: what one leaves in the caches then helps or hinders both.
        benchmark.pedantic(own_turn, setup=before, teardown=after, rounds=rounds, warmup_rounds=1)
        if benchmark.disabled:
            return
        own = [turn / calls for turn in benchmark.stats.stats.data]
        found = measure.compared(others[-rounds:], own)  # without the round that warms up
        if price:
            found["ratio"] = measure.ratio(own, others[-rounds:])
        benchmark.extra_info.update(
            kind="price" if price else "comparison", question=question, baseline=baseline, goal=goal,
            others=watch.end(), **found,
        )  # fmt: skip

    return run


@pytest.fixture
def grow(benchmark: Any, watch: measure.Watch) -> Callable[..., None]:
    """``grow(value, sizes, ...)``: measure ``value(size)`` for each size in turns, and keep the slope of the growth.

    ``what`` costs something, over what ``over``; ``unit``: that of a value; ``expected``: the promised slope, if any.
    """

    def run(
        value: Callable[[int], float],
        sizes: Sequence[int],
        *,
        what: str,
        over: str,
        unit: str = "s",
        expected: float | None = 1.0,
        rounds: int = 5,
        warm: bool = True,
    ) -> None:
        found: dict[int, list[float]] = {each: [] for each in sizes}

        def turn() -> None:
            for each in sizes:
                watch.look()
                found[each].append(value(each))

        benchmark.pedantic(turn, rounds=rounds, warmup_rounds=int(warm))
        if not benchmark.disabled:
            grown = measure.growth({each: values[-rounds:] for each, values in found.items()})
            benchmark.extra_info.update(
                kind="growth", what=what, over=over, unit=unit, expected=expected, tolerance=measure.TOLERANCE,
                others=watch.end(), **grown,
            )  # fmt: skip

    return run


@cache
def _cpu() -> dict[str, Any]:
    return dict(cpuinfo.get_cpu_info())


@pytest.fixture(scope="session")
def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself, instead of by way of float32."""
    return bool({"avx512_bf16", "avx512bf16", "amx_bf16", "bf16"} & set(_cpu().get("flags", ())))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """The machine, without its name and whatever else would say whose it is."""
    return {
        "minutes": round((time.monotonic() - config.stash[BEGAN]) / 60, 1),
        "cpu": _cpu().get("brand_raw", platform.machine()),
        "cores": places.cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python_version": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """Which code was measured; ``dirty``: with changes to the library that are not committed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return {"id": git("rev-parse", "--short", "HEAD"), "dirty": bool(git("status", "--porcelain", "rfpp"))}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Leave out what nobody reads, such as each single time; `pytest-benchmark compare` finds what it needs."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: rounded(part) for key, part in value.items()}
        return [rounded(part) for part in value] if isinstance(value, list) else value

    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)
        for name in ("options", "params", "param", "group"):
            each.pop(name, None)
    output_json["benchmarks"] = rounded(output_json["benchmarks"])
    output_json["datetime"] = output_json["datetime"][:10]
