"""Shows progress while pytest compares notebooks; a first run takes minutes."""

import contextlib
import sys

from rfpp import book

_shown = contextlib.ExitStack()


def pytest_sessionstart():
    _shown.enter_context(book.shown_progress("notebooks", sys.stderr))


def pytest_sessionfinish():
    _shown.close()
