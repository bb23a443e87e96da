"""The folders show the architecture: what a part may import lies below it, and no part is too long to be read."""

import ast
from pathlib import Path

import mutants
import pytest

import rfpp

ROOT = Path(rfpp.__file__).parent
LAYERS = (
    {"base"},
    {"data", "denoisers", "engine", "networks"},
    {"features", "flow"},
    {"intersections", "likelihood", "premetrics", "samplers", "timesteps"},
    {"configurations", "pairs", "checkpoints", "metrics"},
    {"presets", "training", "arena"},
    {"pipeline"},
    {"experiment"},
    {"doctor", "studies"},
    {"claims"},
    {"book"},
    {"commands"},
    {"__main__"},
)
"""From the ground to the roof. A part may import its own layer and those below; in one layer there are no circles."""

FILES = sorted(ROOT.rglob("*.py"))


def part(module: str) -> str:
    """``rfpp.pairs.store`` belongs to ``pairs``."""
    return module.split(".")[1] if "." in module else "__init__"


def name(path: Path) -> str:
    inside = path.relative_to(ROOT.parent).with_suffix("")
    return ".".join(inside.parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in found if module.startswith("rfpp.")}


def layer(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_every_part_has_a_layer():
    parts = {part(name(path)) for path in FILES} - {"__init__"}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_lead_downwards(path):
    own = part(name(path))
    if own == "__init__":
        return
    upwards = {module for module in imports(path) if layer(part(module)) > layer(own)}
    assert not upwards


def test_there_are_no_circles_between_parts():
    below = {}
    for path in FILES:
        below.setdefault(part(name(path)), set()).update(part(module) for module in imports(path))
    below = {own: {other for other in others if other != own} for own, others in below.items()}
    while below:
        free = [own for own, others in below.items() if not others & below.keys()]
        assert free, f"these import each other: {sorted(below)}"
        for own in free:
            del below[own]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_room_is_too_long(path):
    """450 lines a module, 250 a class, 60 a function."""
    text = path.read_text()
    size = len(text.splitlines())
    long = [f"{size} lines"] if size > 450 else []
    for node in ast.walk(ast.parse(text)):
        most = {ast.ClassDef: 250, ast.FunctionDef: 60}.get(type(node))
        if most and node.end_lineno - node.lineno + 1 > most:
            long.append(f"{node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long


@pytest.mark.parametrize("fault", mutants.FAULTS, ids=lambda fault: fault.name)
def test_each_known_fault_still_has_its_place(fault):
    """Whether tests notice it takes minutes: ``make mutants``."""
    assert mutants.place(fault, ROOT).is_file()
