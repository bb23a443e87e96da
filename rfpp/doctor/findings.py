"""What an examination finds: a line for each check, with its number and the range that was expected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

ALPHA = 1e-4
"""How often sound material fails a check whose range comes from a distribution."""

OK, FOUND, SKIPPED = "ok", "found", "skipped"


@dataclass(frozen=True)
class Finding:
    """One check: its number ``value``, and the expected range from ``low`` to ``high``.

    ``what`` says what the number is, ``remedy`` what to do when it lies outside. ``rate``: how often a sound set
    fails the check; ``None`` where the range is a convention or certain. ``reason``: why a check was skipped.
    """

    check: str
    what: str
    remedy: str = ""
    value: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    rate: float | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """``"ok"``, ``"found"`` or ``"skipped"``; NaN counts as found."""
        if self.reason:
            return SKIPPED
        return OK if self.low <= self.value <= self.high else FOUND

    @property
    def expected(self) -> str:
        """The range in words."""
        if self.low == self.high:
            return f"{self.low:.3g}"
        if math.isinf(self.high):
            return f"above {self.low:.3g}"
        return f"below {self.high:.3g}" if math.isinf(self.low) else f"{self.low:.3g} to {self.high:.3g}"

    def __str__(self) -> str:
        head = f"{self.status:7} {self.check:17}"
        if self.status == SKIPPED:
            return f"{head} {'':9} {self.reason}"
        said = f"{head} {self.value:<9.3g} expected {self.expected}: {self.what}"
        return f"{said}. To do: {self.remedy}" if self.status == FOUND else said

    def record(self) -> dict[str, Any]:
        """The line as a JSON value; open ends of the range and NaN are ``None``."""
        fields = {key: _plain(value) for key, value in asdict(self).items()}
        return {"status": self.status, **fields}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_sound(findings: Iterable[Finding]) -> bool:
    """Whether nothing was found; what was skipped does not count."""
    return all(finding.status != FOUND for finding in findings)


def report(title: str, findings: Iterable[Finding]) -> Iterator[str]:
    """The lines that are printed: what was examined, the checks, and how many of them found something."""
    findings = list(findings)
    yield title
    yield from map(str, findings)
    made = [finding for finding in findings if finding.status != SKIPPED]
    bad = sum(finding.status == FOUND for finding in made)
    yield f"{len(made)} checks, {bad} of them found something" if bad else f"{len(made)} checks, all ok"
