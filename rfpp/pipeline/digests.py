"""Digests of code: they make a step's key depend on the definitions that the step uses, and on no others.

Starting from a class or function, names are followed through the package's syntax trees, without running anything. They
reach a set of top-level definitions, whose hash is the digest. A name that cannot be resolved adds its whole module: a
result computed twice is better than a stale one.

A definition that was rewritten without changing a bit of results on a CPU counts as what it was before, so that kept
results remain: ``rewritten.json`` lists such definitions; ``tests/same_results.py`` adds those that it compared.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rfpp.base.files import digest
from rfpp.pipeline.syntax import Normal, chain, free_names, is_marked, shape, statements, targets

PRESENTATION = (
    "rfpp.base.checks",  # only raises errors
    "rfpp.base.progress",  # draws bars
    "rfpp.pipeline.digests",  # this module and those below find results but compute none
    "rfpp.pipeline.identities",
    "rfpp.pipeline.places",
    "rfpp.pipeline.scheduling",
    "rfpp.pipeline.steps",
    "rfpp.pipeline.store",
    "rfpp.pipeline.syntax",
    "rfpp.pipeline.workers",
)
"""Modules that compute no result. Their definitions are not followed, and arguments of calls to them are ignored."""

_EXCEPTIONS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
_IMPLICIT = {"__file__", "__name__", "__doc__", "__class__", "__version__"}
_LOOSE = "<module>"

Definition = TypeVar("Definition", bound=Callable[..., Any])


def presentation(definition: Definition) -> Definition:
    """Mark a function or method that displays or forecasts but computes no result, so that digests leave it out."""
    return definition


@dataclass
class _Module:
    """A module's top-level definitions, each a list of statements, and the origins of its imported names."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Each local name with its module and its name there, ``None`` for the module itself."""

    @classmethod
    def parse(cls, name: str, path: Path) -> _Module:
        module, tree = cls(name), ast.parse(path.read_text())
        for node in statements(tree.body):
            for target in targets(node):
                module.definitions.setdefault(target, []).append(node)
        for part in ast.walk(tree):
            module._note_import(part)
        for node in statements(tree.body):  # such as a call that registers something
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
                mentioned = {parts[0] for parts in free_names(node)} & module.definitions.keys()
                for target in mentioned or {_LOOSE}:
                    module.definitions.setdefault(target, []).append(node)
        return module

    def _note_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports[alias.asname or alias.name.partition(".")[0]] = (
                    (alias.name, None) if alias.asname else (alias.name.partition(".")[0], None)
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                self.imports[alias.asname or alias.name] = (node.module, alias.name)


REWRITTEN = Path(__file__).with_name("rewritten.json")
"""The list of rewritten definitions."""


@dataclass(frozen=True)
class Rewriting:
    """A definition's version that gives the same results as an earlier one, bit for bit.

    ``now``: its hash; ``counts_as``: the hashes of the definitions that stand for it in digests, by name; ``beyond``:
    definitions that only this version names, with the digest that they had when the results were compared. They are
    left out of digests as long as they have it; after that, the rewriting no longer holds.
    """

    now: str
    counts_as: Mapping[str, str]
    beyond: Mapping[str, str]


def rewritings(file: Path) -> dict[str, Rewriting]:
    """Return the rewritten definitions listed in a file by their names ``module:name``, none if there is no file."""
    entries = json.loads(file.read_text()) if file.is_file() else []
    return {name: Rewriting(**fields) for entry in entries for name, fields in entry["definitions"].items()}


class Package:
    """The definitions of a package below the folder ``root``, and the definitions that each of them names.

    ``rewritten``: the definitions that count as an earlier version, by name.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        silent: tuple[str, ...] = PRESENTATION,
        rewritten: Mapping[str, Rewriting] | None = None,
    ) -> None:
        self.name, self.root, self.silent, self.rewritten = name, root, silent, rewritten or {}
        self._modules: dict[str, _Module | None] = {}
        self._named: dict[tuple[str, str], tuple[str, set[tuple[str, str]]]] = {}
        self._holding: set[str] | None = None

    def module(self, name: str) -> _Module | None:
        """Return a module of the package by its full name; ``None`` if there is none."""
        if name not in self._modules:
            path = self.root.joinpath(*name.split(".")[1:])
            files = (path / "__init__.py", path.with_suffix(".py"))
            file = next((file for file in files if file.is_file()), None)
            inside = name.partition(".")[0] == self.name
            self._modules[name] = _Module.parse(name, file) if inside and file is not None else None
        return self._modules[name]

    def resolve(self, module: _Module, parts: list[str]) -> set[tuple[str, str]]:
        """Return the definitions that a dotted name of a module refers to; ``"*"`` is a whole module."""
        first, *rest = parts
        if first in module.definitions:
            return {(module.name, first)}
        if first in module.imports:
            source, name = module.imports[first]
            return self._import(source, [*([name] if name else []), *rest])
        return {(module.name, "*")}

    def _import(self, source: str, rest: list[str]) -> set[tuple[str, str]]:
        """Return the definitions that a dotted name in the module ``source`` refers to."""
        if source.partition(".")[0] != self.name:
            return set()
        while rest and self.module(f"{source}.{rest[0]}") is not None:
            module = self.module(source)
            if module is not None and rest[0] in module.definitions:
                break  # a function may have the name of its module
            source, rest = f"{source}.{rest[0]}", rest[1:]
        module = self.module(source)
        if module is None or not rest:
            return {(source, "*")}
        return self.resolve(module, rest) if rest[0] not in _IMPLICIT else set()

    def is_exception(self, module: _Module, parts: list[str]) -> bool:
        """Whether a dotted name is an exception: a builtin one, or a class derived from one."""
        if len(parts) == 1 and parts[0] in _EXCEPTIONS and parts[0] not in module.definitions:
            return True
        for source, name in self.resolve(module, parts) if parts[0] in {*module.definitions, *module.imports} else ():
            home = self.module(source)
            nodes = home.definitions.get(name, []) if home is not None else []
            for node in nodes:
                bases = [chain(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
                if home is not None and any(base and self.is_exception(home, base) for base in bases):
                    return True
        return False

    def _is_silent(self, module: _Module) -> Callable[[list[str]], bool]:
        def is_silent(parts: list[str]) -> bool:
            if self.is_exception(module, parts):
                return True
            known = parts[0] in module.imports
            return known and any(source in self.silent for source, _ in self.resolve(module, parts))

        return is_silent

    def definition(self, source: str, name: str) -> tuple[str, set[tuple[str, str]]]:
        """Return the hash of a definition, and the definitions that it names."""
        if (source, name) in self._named:
            return self._named[source, name]
        module = self.module(source)
        assert module is not None
        names: set[tuple[str, str]] = set()
        foreign: dict[str, list[str | None]] = {}
        shapes = []
        normal = Normal(self._is_silent(module))
        for node in module.definitions[name]:
            plain = normal.visit(ast.parse(ast.unparse(node)).body[0])
            shapes.append(shape(plain))
            for parts in free_names(plain):
                known = parts[0] in module.definitions or parts[0] in module.imports
                if not known and (hasattr(builtins, parts[0]) or parts[0] in _IMPLICIT):
                    continue
                names |= self.resolve(module, parts)
                if parts[0] in module.imports:
                    foreign[parts[0]] = list(module.imports[parts[0]])
        if _LOOSE in module.definitions and name != _LOOSE:
            names.add((source, _LOOSE))
        self._named[source, name] = digest([shapes, foreign]), names
        return self._named[source, name]

    def rewriting(self, name: str, now: str) -> Rewriting | None:
        """Return how a definition ``module:name`` whose hash is ``now`` counts, if it was rewritten and that holds."""
        if self._holding is None:
            self._settle()
        known = self.rewritten.get(name)
        return known if known is not None and known.now == now and name in (self._holding or ()) else None

    def _settle(self) -> None:
        """Find out which rewritings hold: all of them at first, as what they name beyond may lead to each other."""
        self._holding = set(self.rewritten)
        while broken := {name for name in self._holding if not self._is_as_it_was(self.rewritten[name])}:
            self._holding -= broken

    def _is_as_it_was(self, rewriting: Rewriting) -> bool:
        return all(self.digest([beyond]) == there for beyond, there in rewriting.beyond.items())

    def digest(self, names: Iterable[str]) -> str:
        """Return the hash of all definitions reached from those with these names ``module:name``."""
        return digest(sorted(self.reached({_split(name) for name in names}).items()))

    def reached(self, roots: set[tuple[str, str]]) -> dict[str, str]:
        """Return the hash of every definition reached from ``roots``, by its name ``module:name``.

        Rewritten definitions have the hashes of what they count as.
        """
        found: dict[str, str] = {}
        earlier: dict[str, Rewriting] = {}
        seen: set[tuple[str, str]] = set()
        waiting = set(roots)
        while waiting:
            source, name = waiting.pop()
            module = self.module(source)
            if source in self.silent or module is None:
                continue
            if name not in ("*", *module.definitions):
                waiting |= self.resolve(module, [name])
                continue
            if name == "*":
                waiting |= {(source, each) for each in module.definitions} - seen
                continue
            if (source, name) in seen or all(map(is_marked, module.definitions[name])):
                continue
            seen.add((source, name))
            now, names = self.definition(source, name)
            if (rewriting := self.rewriting(f"{source}:{name}", now)) is not None:
                earlier[f"{source}:{name}"] = rewriting
                names = names - {_split(beyond) for beyond in rewriting.beyond}
            else:
                found[f"{source}:{name}"] = now
            waiting |= names - seen
        stand_ins: dict[str, str] = {}
        for _, rewriting in sorted(earlier.items()):
            stand_ins |= rewriting.counts_as
        own = {name: rewriting.counts_as[name] for name, rewriting in earlier.items() if name in rewriting.counts_as}
        return dict(sorted({**stand_ins, **own, **found}.items()))


def _split(name: str) -> tuple[str, str]:
    source, _, definition = name.partition(":")
    return source, definition


@cache
def package() -> Package:
    """Return this package."""
    found = importlib.util.find_spec("rfpp")
    assert found is not None and found.origin is not None
    return Package("rfpp", Path(found.origin).parent, rewritten=rewritings(REWRITTEN))


def is_own(thing: Any) -> bool:
    """Whether a class or function belongs to this package."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "rfpp"


def definition_of(thing: Any) -> tuple[str, str]:
    """Return the module and the name of the top-level definition of a class or function of this package."""
    name = thing.__qualname__.partition(".")[0]
    home = package().module(thing.__module__)
    return thing.__module__, name if home is not None and name in home.definitions else "*"


@cache
def _reached(roots: frozenset[tuple[str, str]]) -> dict[str, str]:
    return package().reached(set(roots))


def reached(*roots: Any) -> dict[str, str]:
    """Return the hash of every definition reached from classes and functions, by its name ``module:name``.

    Roots belong to this package or to a reader's code; raises :class:`rfpp.pipeline.identities.Unidentified` if the
    source of a reader's code is not available.
    """
    from rfpp.pipeline.identities import reader_code  # it imports this module in turn

    own: set[tuple[str, str]] = set()
    readers: dict[str, str] = {}
    for root in roots:
        if is_own(root):
            own.add(definition_of(root))
        else:
            readers |= reader_code(root, own)
    # All at once: what stands in for a definition in the digest of one root, another root may reach as it is now.
    return {**_reached(frozenset(own)), **readers}


def code_digest(*roots: Any) -> str:
    """Return the hash of all definitions reached from classes and functions."""
    return digest(sorted(reached(*roots).items()))
