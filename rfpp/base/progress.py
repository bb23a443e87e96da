"""One progress bar for all long work: in a terminal, in a notebook, and for a notebook executed in batch mode.

A notebook that is executed for the book must not keep the bar in its outputs, and its kernel has no terminal. The
runner (:mod:`rfpp.book`) therefore names a file in the environment variable ``RFPP_PROGRESS``; bars are drawn into it,
and the runner shows them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm as notebook_tqdm
from tqdm.std import tqdm as plain_tqdm

VARIABLE = "RFPP_PROGRESS"


def bar(
    iterable: Iterable[Any] | None = None,
    *,
    desc: str,
    total: int | None = None,
    unit: str = "step",
    unit_scale: bool = False,
    initial: int = 0,
) -> Any:
    """Return a tqdm bar with the time left, for an iterable or, with ``total``, for calls of ``update``.

    Only the first of several processes draws it.
    """
    options: dict[str, Any] = {
        "desc": desc, "total": total, "unit": unit, "unit_scale": unit_scale, "initial": initial, "leave": False,
        "disable": os.environ.get("RANK", "0") != "0",
    }  # fmt: skip
    path = os.environ.get(VARIABLE)
    if not path:
        return notebook_tqdm(iterable, **options)
    # Without the bar itself, a terminal of 80 columns has room for the time left.
    form = "{desc}: {percentage:3.0f}% [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return plain_tqdm(iterable, **options, file=open(path, "a"), bar_format=form)
