"""Syntax trees of code: a normal form without what changes no result, and the names that a definition uses."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

_MARK = "presentation"
_SHOWING = ("__repr__", "__str__")


def chain(node: ast.AST) -> list[str] | None:
    """Split ``a.b.c`` into its parts."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (front := chain(node.value)) is not None:
        return [*front, node.attr]
    return None


def is_marked(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    marks = [(chain(decorator) or [""])[-1] for decorator in node.decorator_list]
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
            if not is_marked(node) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
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
        parts = chain(node.func)
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
    parts = chain(node)
    if parts is not None:
        is_read = isinstance(node, ast.Attribute) or isinstance(getattr(node, "ctx", None), ast.Load)
        if is_read and parts[0] not in bound:
            yield parts
        return
    if isinstance(node, (*_SCOPES, *_COMPREHENSIONS)):
        bound = bound | _bound(node)
    elif isinstance(node, ast.ClassDef):  # names bound in its body are visible there, not in its methods
        body = {name for part in node.body for name in targets(part)}
        for part in ast.iter_child_nodes(node):
            is_method = isinstance(part, _SCOPES)
            yield from (parts for parts in free_names(part, bound) if is_method or parts[0] not in body)
        return
    for child in ast.iter_child_nodes(node):
        yield from free_names(child, bound)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield top-level statements, including those within ``if`` and ``try``, without those for type checkers only."""
    for node in body:
        if isinstance(node, ast.If):
            if (chain(node.test) or [""])[-1] != "TYPE_CHECKING":
                yield from statements(node.body)
            yield from statements(node.orelse)
        elif isinstance(node, ast.Try):
            for part in (node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                yield from statements(part)
        elif isinstance(node, ast.With):
            yield from statements(node.body)
        else:
            yield node


def targets(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    if isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []
