"""The browser that the tests open pages in: the one that prints the book."""

import contextlib

from rfpp.book import BuildFailed, printing


def chromium():
    """The path of Chromium, also where the variable ``CHROMIUM`` names it, or ``None``."""
    with contextlib.suppress(BuildFailed):
        return printing.chromium()
