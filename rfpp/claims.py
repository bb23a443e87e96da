"""The claims ledger: what the paper says, what we measured, and the verdict that a rule written down before gives.

``book/claims.yml`` lists the claims. A notebook ends with ``claims.check("c13", measured=[...], seeds=[...],
experiment=...)``, which prints one line and leaves a JSON record under ``runs/<preset>/claims/``. The results page of
the book is made from these records, with those kept in ``book/records/<preset>/`` for scales that were run elsewhere.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from rfpp.base import files, paths
from rfpp.base.checks import one_of
from rfpp.base.files import digest
from rfpp.configurations import TEACHER, Configuration, find, imported
from rfpp.experiment import Experiment
from rfpp.pipeline.digests import code_digest
from rfpp.pipeline.flows import InvertImages, MakePairs, OwnPairs, TrainFlow
from rfpp.pipeline.grades import GradeFlow
from rfpp.pipeline.identities import identity
from rfpp.pipeline.steps import Step, in_order
from rfpp.pipeline.store import Artifact, provenance

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "not run"]
CONFIDENCE = 0.95


class Rule(BaseModel):
    """Reproduced if the measured quantity is ``above`` or ``below`` a bound, or ``between`` two."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    above: float | None = None
    below: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Rule:
        if sum(bound is not None for bound in (self.above, self.below, self.between)) != 1:
            raise ValueError("a rule has exactly one of above, below, between")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise ValueError(f"between={self.between} must rise")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The open interval that counts as reproduced."""
        if self.between is not None:
            return self.between
        return (self.above if self.above is not None else -math.inf, self.below if self.below is not None else math.inf)

    def __str__(self) -> str:
        if self.between is not None:
            return f"between {self.between[0]:g} and {self.between[1]:g}"
        return f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"


class Claim(BaseModel):
    """One entry of the ledger."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Annotated[str, Field(pattern=r"^c\d\d$")]
    where: str
    statement: str
    paper: str
    notebook: str
    quantity: str
    rule: Rule
    rests_on: list[str] = []
    """The configurations whose flows are measured, ``"teacher"`` for the pairs alone; empty where nothing is computed
    that would be kept."""
    code: list[str] = []
    """Import paths of what computes the quantity."""

    def configurations(self) -> list[Configuration]:
        """The configurations that it rests on."""
        return [find(name) for name in self.rests_on if name != TEACHER]

    def code_digest(self) -> str:
        """Hash of the code that its quantity depends on."""
        steps: list[type[Step]] = [MakePairs] if self.rests_on else []
        rows = self.configurations()
        if rows:
            steps += [TrainFlow, GradeFlow]
            steps += [InvertImages] if any(row.pairs == "real" for row in rows) else []
            steps += [OwnPairs] if any(row.pairs == "own" for row in rows) else []
        roots = [root for step in steps for root in (step, *step.code)]
        functions = [imported(path, f"code of {self.id}") for path in self.code]
        return digest([code_digest(*roots, *functions), [identity(row) for row in rows]])


@dataclass(frozen=True)
class Record:
    """What a run measured for a claim, and under which circumstances."""

    id: str
    preset: str
    measured: list[float]
    seeds: list[int]
    value: float
    interval: tuple[float, float]
    verdict: Verdict
    claim: str
    code: str
    commit: str
    seconds: float
    provenance: dict[str, str]
    artifacts: dict[str, str]

    @property
    def circumstances(self) -> tuple[str, str, str, str]:
        """Device, torch, rfpp and commit."""
        return self.provenance["device"], self.provenance["torch"], self.provenance["rfpp"], self.commit

    def stale(self, claim: Claim) -> bool:
        """Whether the claim or the code changed since this was measured."""
        return self.claim != digest(claim.model_dump(mode="json")) or self.code != claim.code_digest()


def ledger() -> dict[str, Claim]:
    """The claims of ``book/claims.yml`` by id; raises ``ValueError`` for an entry that is not one."""
    entries = yaml.safe_load((paths.repository() / paths.LEDGER).read_text())
    claims = [Claim.model_validate(entry) for entry in entries]
    repeated = {claim.id for claim in claims if sum(other.id == claim.id for other in claims) > 1}
    if repeated:
        raise ValueError(f"{paths.LEDGER} lists {', '.join(sorted(repeated))} more than once")
    return {claim.id: claim for claim in claims}


def interval(measured: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval for the mean over seeds; a single value is its own interval."""
    if len(measured) == 1:
        return measured[0], measured[0]
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(measured) - 1) * statistics.stdev(measured) / math.sqrt(len(measured))
    mean = statistics.fmean(measured)
    return mean - half, mean + half


def judge(rule: Rule, span: tuple[float, float]) -> Verdict:
    """``reproduced`` if all of the interval obeys the rule, ``not reproduced`` if none does, else ``inconclusive``."""
    low, high = rule.bounds
    if low < span[0] and span[1] < high:
        return "reproduced"
    return "not reproduced" if span[1] <= low or span[0] >= high else "inconclusive"


def check(
    id: str,
    measured: float | Sequence[float],
    seeds: Sequence[int] | None = None,
    *,
    experiment: Experiment | None = None,
) -> None:
    """Judge a claim by what was measured, print the verdict, and record it when an ``experiment`` is given.

    ``measured``: one value, or one for each of ``seeds``. The printed line names the rule and the verdict but not the
    number, which depends on the machine in its last digits; the record and the results page have it.
    Raises ``ValueError`` for an unknown claim, values that are not finite, or as many seeds as there are not values.
    """
    claims = ledger()
    one_of("id", id, claims)
    values = [float(value) for value in (measured if isinstance(measured, Sequence) else [measured])]
    seeds = list(range(len(values))) if seeds is None else list(seeds)
    if not values or len(values) != len(seeds) or not all(math.isfinite(value) for value in values):
        raise ValueError(f"measured={values}, seeds={seeds}: one finite value for each seed is needed")
    claim, span = claims[id], interval(values)
    verdict = judge(claim.rule, span)
    count = f"{len(values)} seeds" if len(values) > 1 else "one run"
    print(f"{id} {verdict} ({count}): {claim.quantity}; rule: {claim.rule}")
    if experiment is not None:
        artifacts = _evidence(claims[id], seeds, experiment)
        record = Record(
            id=id,
            preset=experiment.preset.name,
            measured=values,
            seeds=seeds,
            value=statistics.fmean(values),
            interval=span,
            verdict=verdict,
            claim=digest(claim.model_dump(mode="json")),
            code=claim.code_digest(),
            commit=_commit(),
            seconds=round(sum(artifact.manifest["seconds"] for artifact in artifacts.values()), 1),
            provenance=provenance(),
            artifacts={name: digest(artifact.manifest["files"]) for name, artifact in artifacts.items()},
        )
        _write(record, experiment.folder / "claims")


def _evidence(claim: Claim, seeds: Sequence[int], experiment: Experiment) -> dict[str, Artifact]:
    """The finished steps that a claim rests on, whatever else a notebook has asked for."""
    plan = experiment.plan
    steps: list[Step] = []
    if claim.rests_on:
        steps += [plan.pairs("train"), plan.pairs("held_out")]
    steps += [plan.flow(row, seed) for row in claim.configurations() for seed in seeds]
    found = {f"{step.name}/{step.key}": experiment.run.find(step) for step in in_order(steps)}
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def skip(id: str, reason: str) -> None:
    """Say why a claim is not judged by this run; its record, if there is one, stays.

    Raises ``ValueError`` for an unknown claim.
    """
    one_of("id", id, ledger())
    print(f"{id} not judged: {reason}")


def _write(record: Record, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{record.id}.json", json.dumps(asdict(record), indent=1, sort_keys=True) + "\n")


def _commit() -> str:
    command = ["git", "-C", str(paths.repository()), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def records(folder: Path) -> dict[str, Record]:
    """The records in a folder by claim id."""
    found = {}
    for path in sorted(folder.glob("c*.json")):
        entry: dict[str, Any] = json.loads(path.read_text())
        found[path.stem] = Record(**{**entry, "interval": tuple(entry["interval"])})
    return found


def scales(run: Path) -> dict[str, dict[str, Record]]:
    """All records there are, by preset: those of ``run`` (``runs/<preset>``) first, then those kept with the book."""
    kept = sorted(path for path in (paths.repository() / "book" / "records").glob("*") if path.is_dir())
    found = {run.name: records(run / "claims")}
    for folder in kept:
        found.setdefault(folder.name, records(folder))
    return found


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _cell(record: Record | None, claim: Claim) -> str:
    if record is None:
        return "not run"
    stale = " (stale: the claim or the code has changed since)" if record.stale(claim) else ""
    span = f" [{_number(record.interval[0])}, {_number(record.interval[1])}]" if len(record.measured) > 1 else ""
    return f"**{record.verdict}**{stale}: {_number(record.value)}{span}"


def _escape(text: str) -> str:
    return re.sub(r"([|<>*_])", r"\\\1", " ".join(text.split()))


def _linked(claim: Claim) -> str:
    """The claim's id, which leads to the page of its notebook if there is one."""
    found = sorted((paths.repository() / "notebooks").glob(f"[0-9][0-9]_{claim.notebook}.ipynb"))
    return f"{{doc}}`{claim.id} <../notebooks/{found[0].stem}>`" if found else claim.id


def results_page(run: Path) -> str:
    """The results page of the book, as MyST Markdown, from the records of ``run`` and of other scales."""
    claims, by_scale = ledger(), scales(run)
    presets = list(by_scale)
    lines = [
        "# Results",
        "",
        "Each row is a claim of the paper, each column after it a scale at which it was put to the test; a claim's id",
        "leads to the page where that was done. The rule was written down before the measurement. A value is a mean",
        "over seeds, in brackets its 95 % interval; a claim counts as *reproduced* when all of the interval obeys the",
        "rule, as *not reproduced* when none of it does, and as *inconclusive* otherwise.",
        "",
        "| | claim | " + " | ".join(f"`{preset}`" for preset in presets) + " | paper | rule |",
        "|---|---|" + "---|" * len(presets) + "---|---|",
    ]
    for claim in claims.values():
        cells = [_cell(by_scale[preset].get(claim.id), claim) for preset in presets]
        lines.append(
            f"| {_linked(claim)} | {_escape(claim.statement)} ({_escape(claim.where)}) | "
            + " | ".join(cells)
            + f" | {_escape(claim.paper)} | {_escape(claim.quantity)}: {claim.rule} |"
        )
    lines += [
        "",
        "## Where the numbers come from",
        "",
        "| scale | device | software | commit | claims | compute |",
        "|---|---|---|---|---|---|",
    ]
    for preset in presets:
        found = list(by_scale[preset].values())
        for circumstances in sorted({record.circumstances for record in found}):
            device, torch_version, version, commit = circumstances
            same = [record for record in found if record.circumstances == circumstances]
            lines.append(
                f"| `{preset}` | {device} | rfpp {version}, torch {torch_version} | `{commit}` "
                f"| {', '.join(r.id for r in same)} | {max(r.seconds for r in same):.0f} s |"
            )
    lines += [
        "",
        "*Compute* is the time that the steps behind a claim took when they were first computed, the longest of its",
        "row; steps that several claims share are counted for each.",
    ]
    return "\n".join(lines) + "\n"
