"""Results that the paper prints, its Tables 1, 4 and 5, from ``book/data/published.yml``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from rfpp.base import paths
from rfpp.base.checks import one_of


def table(name: str) -> dict[str, Any]:
    """A table by name: ``"table_1"``, ``"cifar10"`` (Table 4) or ``"imagenet64"`` (Table 5).

    Raises ``ValueError`` for another name.
    """
    tables: dict[str, dict[str, Any]] = yaml.safe_load((paths.repository() / "book/data/published.yml").read_text())
    one_of("name", name, tables)
    return tables[name]


SCORES = {
    "cifar10": ("", "NFE", "FID", "inception score"),
    "imagenet64": ("", "NFE", "FID", "precision", "recall"),
}
"""The numbers that Tables 4 and 5 print for a method."""


def scores(name: str) -> list[tuple[object, ...]]:
    """A table's methods, in columns :data:`SCORES`; a dash stands for what the paper does not print."""
    return [
        (method, nfe, f"{fid:.2f}" if fid < 10 else str(fid), *("–" if v is None else f"{v:.2f}" for v in more))
        for family in table(name).values()
        for method, nfe, fid, *more in family
    ]


def ladder(titles: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Table 1's FID by number of steps, data set and configuration; ``titles`` of one and of two steps."""
    return {
        title: {
            data: {config: values[place] for config, values in rows.items() if values[place]}
            for data, rows in table("table_1").items()
        }
        for place, title in enumerate(titles)
    }
