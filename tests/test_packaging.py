"""The files that say what to install, and what this is called, agree with each other."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import rfpp

ROOT = Path(__file__).resolve().parents[1]
UNPINNED = ("pip", "setuptools", "wheel", "triton", "nvidia-*", "cuda-*")
"""What constraints.txt leaves out: the installer and its helpers, and what torch brings for its own build."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def exact(lines: Iterable[str]) -> dict[str, str]:
    """``["Name==1.0"]`` as ``{"name": "1.0"}``; anything but one plain ``==`` for each name fails."""
    pins: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line)
        name, specifiers = canonicalize_name(requirement.name), list(requirement.specifier)
        assert [specifier.operator for specifier in specifiers] == ["=="], f"{line} is not pinned with a single =="
        assert not (requirement.marker or requirement.extras or requirement.url), (
            f"{line} is more than a name and a version"
        )
        assert "*" not in specifiers[0].version, f"{line} leaves the version open"
        assert Version(specifiers[0].version).local is None, f"{line} names one build of the version"
        assert name not in pins, f"{line} is there twice"
        pins[name] = specifiers[0].version
    return pins


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return table


@pytest.fixture(scope="module")
def direct(project: dict[str, Any]) -> dict[str, Requirement]:
    """Every direct dependency, of the library and of all extras."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for group in groups for text in group]
    named = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(named) == len(requirements), "a dependency is declared twice"
    return named


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    return exact(line for line in read("constraints.txt").splitlines() if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("environment.yml"))
    return loaded


def test_direct_dependencies_are_pinned_within_their_bounds(
    direct: dict[str, Requirement], pins: dict[str, str]
) -> None:
    assert sorted(direct.keys() - pins.keys()) == []
    assert [
        f"{need} but =={pins[name]}" for name, need in direct.items() if not need.specifier.contains(pins[name])
    ] == []


def test_everything_they_need_is_pinned_too(direct: dict[str, Requirement], pins: dict[str, str]) -> None:
    """Walk through what the installed packages ask for on Linux, where the constraints were made."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
    unpinned: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [(name, "") for name in direct]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or any(fnmatch.fnmatch(name, pattern) for pattern in UNPINNED):
            continue
        seen.add((name, extra))
        unpinned |= {name} - pins.keys()
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:  # asked for on Linux only, and this is not Linux
            continue
        for need in needs:
            if need.marker is None or need.marker.evaluate({**linux, "extra": extra}):
                todo += [(canonicalize_name(need.name), wanted) for wanted in ("", *need.extras)]
    assert len(seen) > len(direct), "the walk did not get anywhere"
    assert sorted(unpinned) == []


def test_the_pins_suit_the_oldest_python(project: dict[str, Any], pins: dict[str, str]) -> None:
    """Some packages leave early releases of a Python behind; pip then finds no version at all."""
    (bound,) = SpecifierSet(project["requires-python"])
    oldest = f"{bound.version}.0"
    installed = {dist.name: dist for dist in metadata.distributions()}
    asked = {
        name: dist.metadata["Requires-Python"] or ""
        for name, dist in installed.items()
        if Version(dist.version).public == pins.get(canonicalize_name(name))
    }
    assert asked, "nothing that is pinned is installed"
    assert [f"{name} needs Python {need}" for name, need in asked.items() if oldest not in SpecifierSet(need)] == []


def test_the_environment_for_conda_is_the_same(
    environment: dict[str, Any], direct: dict[str, Requirement], pins: dict[str, str]
) -> None:
    through_pip = environment["dependencies"][-1]["pip"]
    options = [entry for entry in through_pip if entry.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    assert exact(entry for entry in through_pip if not entry.startswith("-")) == {name: pins[name] for name in direct}


def test_conda_itself_brings_no_package_of_ours(environment: dict[str, Any], project: dict[str, Any]) -> None:
    assert environment.keys() == {"name", "channels", "dependencies"}
    assert environment["channels"] == ["conda-forge"]
    python, *others = environment["dependencies"][:-1]
    assert others == ["make", "pip"]
    name, _, versions = python.partition(" ")
    assert name == "python"
    assert set(SpecifierSet(versions)) >= set(SpecifierSet(project["requires-python"]))


def test_jupyter_book_stays_below_two(direct: dict[str, Requirement], pins: dict[str, str]) -> None:
    """Version 2 does not read ``_config.yml``."""
    assert not direct["jupyter-book"].specifier.contains("2.0.0", prereleases=True)
    assert Version(pins["jupyter-book"]) < Version("2.0a0")


def test_the_version_is_the_same_everywhere(project: dict[str, Any]) -> None:
    assert "version" in project["dynamic"], "the version has one place, rfpp.__version__"
    assert str(yaml.safe_load(read("CITATION.cff"))["version"]) == rfpp.__version__
    assert re.search(rf"^## \[{re.escape(rfpp.__version__)}\]", read("CHANGELOG.md"), re.MULTILINE)


def test_the_licence_is_the_same_everywhere(project: dict[str, Any]) -> None:
    assert project["license"] == yaml.safe_load(read("CITATION.cff"))["license"] == "MIT"
    assert read("LICENSE").startswith("MIT License\n")


@pytest.mark.parametrize("folder", [".venv/", "runs/", "_build/"])
def test_what_make_makes_is_ignored(folder: str) -> None:
    assert folder in read(".gitignore").splitlines()
