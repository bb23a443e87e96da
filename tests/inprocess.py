"""Notebooks in the process of the tests: a papermill engine without a kernel, whose start and imports take ten seconds.

``make book`` and ``pytest --nbval`` run the same notebooks in kernels.
"""

import ast
import contextlib
import io
import itertools
import linecache
import sys
import warnings
from functools import partial

import matplotlib.pyplot as plt
import nbformat
import papermill
from IPython.core.formatters import DisplayFormatter
from papermill.engines import Engine, papermill_engines

SEEN = (UserWarning, RuntimeWarning, FutureWarning)
"""What a kernel writes beside a cell; IPython keeps quiet about deprecations in other code."""


_NUMBERS = itertools.count()


def _draw():
    """What ``plt.show()`` does: every open figure is drawn, and closed."""
    for number in plt.get_fignums():
        plt.figure(number).savefig(io.BytesIO(), format="png")
    plt.close("all")


def _warn(message, category, filename, lineno, file=None, line=None):
    if issubclass(category, SEEN):
        print(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr)


def _show(*values):
    """What IPython's ``display`` does, but for keeping it."""
    for value in values:
        DisplayFormatter().format(value)


def _last_value(source, namespace):
    """Run a cell; the value of its last line, where that is an expression."""
    name = f"<cell {next(_NUMBERS)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # a class's source can be had
    *body, last = ast.parse(source).body or [ast.Pass()]
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def _run(source, namespace):
    """The outputs of a cell."""
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    with (
        contextlib.redirect_stdout(streams["stdout"]),
        contextlib.redirect_stderr(streams["stderr"]),
        warnings.catch_warnings(),
    ):
        warnings.showwarning = _warn
        value = _last_value(source, namespace)
        shown = DisplayFormatter().format(value) if value is not None else None
    made = [
        nbformat.v4.new_output("stream", name=name, text=stream.getvalue())
        for name, stream in streams.items()
        if stream.getvalue()
    ]
    if shown is not None:
        made.append(nbformat.v4.new_output("execute_result", data=shown[0], metadata=shown[1]))
    return made


class InProcess(Engine):
    """Cells one after the other in a namespace of their own."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **_):
        namespace = {"__name__": "notebook", "display": _show}
        for index, cell in enumerate(nb_man.nb.cells):
            nb_man.cell_start(cell, index)
            if cell.cell_type == "code":
                cell.execution_count, cell.outputs = index + 1, []
                try:
                    cell.outputs = _run(cell.source, namespace)
                except Exception as error:
                    told = {"ename": type(error).__name__, "evalue": str(error), "traceback": [repr(error)]}
                    cell.outputs = [nbformat.v4.new_output("error", **told)]
                    nb_man.cell_exception(cell, index)
                    return  # papermill raises what it finds in the outputs
            nb_man.cell_complete(cell, index)


def use(monkeypatch):
    """Let :func:`rfpp.book.run` run notebooks here."""
    papermill_engines.register("in this process", InProcess)
    here = partial(papermill.execute_notebook, engine_name="in this process")
    monkeypatch.setattr(papermill, "execute_notebook", here)
    monkeypatch.setattr(plt, "show", _draw)
    plt.switch_backend("agg")
