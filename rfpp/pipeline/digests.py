"""Digests of code: they make a step's key depend on the definitions that the step uses, and on no others.

Starting from a class or function, names are followed through the package's syntax trees, without running anything. They
reach a set of top-level definitions, whose hash is the digest. A name that cannot be resolved adds its whole module: a
result computed twice is better than a stale one.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rfpp.base.files import digest

PRESENTATION = (
    "rfpp.base.checks",  # only raises errors
    "rfpp.base.progress",  # draws bars
    "rfpp.pipeline.digests",  # this module and the two below find results but compute none
    "rfpp.pipeline.identities",
    "rfpp.pipeline.steps",
    "rfpp.pipeline.store",
)
"""Modules that compute no result. Their definitions are not followed, and arguments of calls to them are ignored."""

_MARK = "presentation"
_SHOWING = ("__repr__", "__str__")
_EXCEPTIONS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
_IMPLICIT = {"__file__", "__name__", "__doc__", "__class__", "__version__"}

Definition = TypeVar("Definition", bound=Callable[..., Any])


def presentation(definition: Definition) -> Definition:
    """Mark a function or method that displays or forecasts but computes no result, so that digests leave it out."""
    return definition


def _chain(node: ast.AST) -> list[str] | None:
    """Split ``a.b.c`` into its parts."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (front := _chain(node.value)) is not None:
        return [*front, node.attr]
    return None


def _is_marked(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    marks = [(_chain(decorator) or [""])[-1] for decorator in node.decorator_list]
    return _MARK in marks or node.name in _SHOWING


class Normal(ast.NodeTransformer):
    """Removes from a syntax tree whatever changes no result: docstrings, annotations, messages, progress bar texts.

    ``is_silent(parts)`` returns whether the arguments of a call to a dotted name only affect texts.
    """

    def __init__(self, is_silent: Callable[[list[str]], bool]) -> None:
        self.is_silent = is_silent

    def _body(self, body: list[Any]) -> list[Any]:
        kept = [
            node
            for node in body
            if not _is_marked(node) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ]
        visited = [self.visit(node) for node in kept]
        return visited or [ast.Pass()]

    def visit_FunctionDef(self, node: Any) -> Any:
        node.returns, node.body = None, self._body(node.body)
        node.args, node.decorator_list = self.visit(node.args), [self.visit(part) for part in node.decorator_list]
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.body = self._body(node.body)
        node.bases, node.keywords = [self.visit(b) for b in node.bases], [self.visit(k) for k in node.keywords]
        node.decorator_list = [self.visit(part) for part in node.decorator_list]
        return node

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        value = self.visit(node.value) if node.value is not None else ast.Constant("without a default")
        return ast.Assign(targets=[self.visit(node.target)], value=value)

    def visit_Call(self, node: ast.Call) -> Any:
        parts = _chain(node.func)
        if parts is not None and (parts == ["warnings", "warn"] or self.is_silent(parts)):
            return ast.Call(func=node.func, args=[], keywords=[])
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "desc"]
        return self.generic_visit(node)


def shape(node: Any) -> Any:
    """Convert a syntax tree to JSON, without layout or differences between versions of Python."""
    if isinstance(node, list):
        return [shape(item) for item in node]
    if isinstance(node, ast.AST):
        ignored = ("ctx", "kind", "type_ignores", "type_comment", "type_params")
        values = {name: shape(value) for name, value in ast.iter_fields(node) if name not in ignored}
        return [type(node).__name__, {name: value for name, value in values.items() if value not in (None, [])}]
    return node if isinstance(node, int | float | str | type(None)) else repr(node)


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _bound(node: ast.AST) -> set[str]:
    """Return the names that a function or a comprehension binds in its own scope."""
    found: set[str] = set()
    everywhere: set[str] = set()
    if isinstance(node, _SCOPES):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        found |= {argument.arg for argument in every if argument is not None}
        waiting: list[ast.AST] = list(node.body) if isinstance(node.body, list) else [node.body]
    else:
        waiting = [generator.target for generator in node.generators]  # type: ignore[attr-defined]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            found.add(part.id)
        elif isinstance(part, ast.Global):
            everywhere |= set(part.names)
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(part.name)
            continue
        elif isinstance(part, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and part.name:
            found.add(part.name)
        elif isinstance(part, (ast.Lambda, *_COMPREHENSIONS)):
            continue
        waiting += ast.iter_child_nodes(part)
    return found - everywhere


def free_names(node: ast.AST, bound: frozenset[str] = frozenset()) -> Iterator[list[str]]:
    """Yield every name that is read but not bound by an enclosing function, with the attributes that follow it."""
    parts = _chain(node)
    if parts is not None:
        is_read = isinstance(node, ast.Attribute) or isinstance(getattr(node, "ctx", None), ast.Load)
        if is_read and parts[0] not in bound:
            yield parts
        return
    if isinstance(node, (*_SCOPES, *_COMPREHENSIONS)):
        bound = bound | _bound(node)
    elif isinstance(node, ast.ClassDef):  # names bound in its body are visible there, not in its methods
        body = {name for part in node.body for name in _targets(part)}
        for part in ast.iter_child_nodes(node):
            is_method = isinstance(part, _SCOPES)
            yield from (parts for parts in free_names(part, bound) if is_method or parts[0] not in body)
        return
    for child in ast.iter_child_nodes(node):
        yield from free_names(child, bound)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield top-level statements, including those within ``if`` and ``try``, without those for type checkers only."""
    for node in body:
        if isinstance(node, ast.If):
            if (_chain(node.test) or [""])[-1] != "TYPE_CHECKING":
                yield from _statements(node.body)
            yield from _statements(node.orelse)
        elif isinstance(node, ast.Try):
            for part in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                yield from _statements(part)
        elif isinstance(node, ast.With):
            yield from _statements(node.body)
        else:
            yield node


_LOOSE = "<module>"


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
        for node in _statements(tree.body):
            for target in _targets(node):
                module.definitions.setdefault(target, []).append(node)
        for part in ast.walk(tree):
            module._note_import(part)
        for node in _statements(tree.body):  # such as a call that registers something
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


def _targets(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    if isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


class Package:
    """The definitions of a package below the folder ``root``, and the definitions that each of them names."""

    def __init__(self, name: str, root: Path, silent: tuple[str, ...] = PRESENTATION) -> None:
        self.name, self.root, self.silent = name, root, silent
        self._modules: dict[str, _Module | None] = {}
        self._named: dict[tuple[str, str], tuple[str, set[tuple[str, str]]]] = {}

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
                bases = [_chain(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
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

    def reached(self, roots: set[tuple[str, str]]) -> dict[str, str]:
        """Return the hash of every definition reached from ``roots``, by its name ``module:name``."""
        found: dict[str, str] = {}
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
                waiting |= {(source, each) for each in module.definitions if f"{source}:{each}" not in found}
                continue
            if f"{source}:{name}" in found or all(map(_is_marked, module.definitions[name])):
                continue
            found[f"{source}:{name}"], names = self.definition(source, name)
            waiting |= names
        return dict(sorted(found.items()))


@cache
def package() -> Package:
    """Return this package."""
    found = importlib.util.find_spec("rfpp")
    assert found is not None and found.origin is not None
    return Package("rfpp", Path(found.origin).parent)


def is_own(thing: Any) -> bool:
    """Whether a class or function belongs to this package."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] == "rfpp"


@cache
def _own(module: str, qualname: str) -> dict[str, str]:
    name = qualname.partition(".")[0]
    home = package().module(module)
    return package().reached({(module, name if home is not None and name in home.definitions else "*")})


def reached(*roots: Any) -> dict[str, str]:
    """Return the hash of every definition reached from classes and functions, by its name ``module:name``.

    Roots belong to this package or to a reader's code; raises :class:`rfpp.pipeline.identities.Unidentified` if the
    source of a reader's code is not available.
    """
    from rfpp.pipeline.identities import reader_code  # it imports this module in turn

    found: dict[str, str] = {}
    for root in roots:
        found |= _own(root.__module__, root.__qualname__) if is_own(root) else reader_code(root)
    return found


def code_digest(*roots: Any) -> str:
    """Return the hash of all definitions reached from classes and functions."""
    return digest(sorted(reached(*roots).items()))
