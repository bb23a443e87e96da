"""Measurements for claims: checked against the rule, printed in one line, and recorded with all circumstances."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rfpp.base import files, paths
from rfpp.base.checks import counts, one_of
from rfpp.base.files import digest
from rfpp.checkpoints.weights import read_json
from rfpp.claims.entries import Claim, check_locked, ledger
from rfpp.claims.statistics import Verdict, holm, interval, p_value, survives, verdict
from rfpp.experiment import Experiment
from rfpp.pipeline.steps import Step, in_order
from rfpp.pipeline.store import Artifact, provenance

Values = float | Sequence[float]


@dataclass(frozen=True)
class Record:
    """What a run measured for a claim, and under which circumstances.

    ``control``: values of the control, which must fail the rule; ``former``: values of quantities that an amendment
    replaced, by its place in the entry, from 0. ``claim``: the digest of the terms that gave the verdict.
    """

    id: str
    preset: str
    measured: list[float]
    seeds: list[int]
    control: list[float] | None
    former: dict[str, list[float]]
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
        """Whether the claim, beyond its wording, or the code changed since this was measured."""
        return self.claim not in claim.judging() or self.code != claim.code_digest()


def _values(name: str, id: str, given: Values, seeds: Sequence[int] | None) -> list[float]:
    """A list of finite values, one for each seed where there are seeds."""
    values = [float(value) for value in (given if isinstance(given, Sequence) else [given])]
    count = len(values) if seeds is None else len(seeds)
    if not values or len(values) != count or not all(math.isfinite(value) for value in values):
        shown = "" if seeds is None else f", seeds={list(seeds)}"
        raise ValueError(f"{id}: {name}={values}{shown}: one finite value for each seed is needed")
    return values


def _control(claim: Claim, control: Values | None, seeds: Sequence[int] | None, count: int) -> list[float] | None:
    if (control is None) != (claim.control is None):
        asked = f"its control ({claim.control})" if claim.control else "no control"
        raise ValueError(f"{claim.id}: control={control}: the ledger names {asked}; measure what it names")
    if control is None:
        return None
    found = _values("control", claim.id, control, None)
    if len(found) < count:
        raise ValueError(
            f"{claim.id}: control={found} has {len(found)} values for {count} measured ones; "
            "measure it with as many seeds"
        )
    return _values("control", claim.id, control, seeds)


def _former(claim: Claim, former: Mapping[int, Values] | None, seeds: Sequence[int] | None) -> dict[str, list[float]]:
    for place in former or {}:
        if place not in range(len(claim.amendments)):
            raise ValueError(
                f"{claim.id}: former={place} is not the number of one of its {len(claim.amendments)} amendments, from 0"
            )
    return {str(place): _values(f"former[{place}]", claim.id, given, seeds) for place, given in (former or {}).items()}


def check(
    id: str,
    measured: Values,
    seeds: Sequence[int] | None = None,
    *,
    control: Values | None = None,
    former: Mapping[int, Values] | None = None,
    experiment: Experiment | None = None,
) -> None:
    """Judge a claim by what was measured, print the verdict, and record it when an ``experiment`` is given.

    ``measured``: one value, or one for each of ``seeds``. ``control``: values of the ledger's control, which must
    fail the rule; ``former``: values of a quantity that an amendment replaced, by its place, from 0. The printed
    line has the rule and the verdict but not the number, whose last digits depend on the machine.
    Raises ``ValueError`` for an unknown claim, values that are not finite, a different number of seeds than values, a
    control that is missing or has fewer values, seeds that are given twice or whose flows were not trained, terms that
    are not those of the lock, and a claim that does not apply to this preset.
    """
    claims = ledger()
    one_of("id", id, claims)
    claim = claims[id]
    if experiment is not None and (reason := out_of_scope(id, experiment)):
        raise ValueError(f"{id}: {reason}; use claims.skip there")
    check_locked(claim)
    if seeds is not None:
        counts(f"{id}: seeds", list(seeds), minimum=0)
    values = _values("measured", id, measured, seeds)
    seeds = list(range(len(values))) if seeds is None else list(seeds)
    against = _control(claim, control, seeds, len(values))
    found = verdict(claim.rule, values, against, claim.is_random)
    count = f"{len(values)} seeds" if len(values) > 1 else "one run"
    print(f"{id} {found} ({count}): {claim.quantity}; rule: {claim.rule}")
    if experiment is not None:
        artifacts = _evidence(claim, seeds, experiment)
        record = Record(
            id=id,
            preset=experiment.preset.name,
            measured=values,
            seeds=seeds,
            control=against,
            former=_former(claim, former, seeds),
            value=statistics.fmean(values),
            interval=interval(values),
            verdict=found,
            claim=claim.digest(),
            code=claim.code_digest(),
            commit=commit(),
            seconds=round(sum(artifact.manifest["seconds"] for artifact in artifacts.values()), 1),
            provenance=_where(artifacts.values()),
            artifacts={name: digest(artifact.manifest["files"]) for name, artifact in artifacts.items()},
        )
        _write(record, experiment.folder / "claims")


def _where(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """The software and the devices that computed the steps behind a claim; those of this process, if there are none."""
    here, found = provenance(), [artifact.manifest for artifact in artifacts]
    return {name: "; ".join(sorted({manifest[name] for manifest in found}) or [here[name]]) for name in here}


def out_of_scope(id: str, experiment: Experiment) -> str | None:
    """Why a claim does not apply to a preset; ``None`` where it does."""
    scope = ledger()[id].only_at
    if scope is None or experiment.preset.origin in scope:
        return None
    return f"it is about the data of {', '.join(scope)} only"


def _evidence(claim: Claim, seeds: Sequence[int], experiment: Experiment) -> dict[str, Artifact]:
    """The finished steps that a claim rests on, whatever else a notebook computed."""
    plan = experiment.plan
    steps: list[Step] = []
    if claim.rests_on:
        steps += [plan.pairs("held_out"), *(plan.pairs("train", seed) for seed in seeds)]
    flows = [plan.flow(row, seed) for row in claim.configurations() for seed in seeds]
    if missing := next((step.title for step in flows if experiment.run.find(step) is None), None):
        raise ValueError(
            f"{claim.id}: seeds={list(seeds)}: there is no finished {missing!r} at preset {experiment.preset.name!r}; "
            "name the seeds that were measured"
        )
    found = {f"{step.name}/{step.key}": experiment.run.find(step) for step in in_order([*steps, *flows])}
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def skip(id: str, reason: str) -> None:
    """Print why this run does not judge a claim; an existing record of it stays.

    Raises ``ValueError`` for an unknown claim.
    """
    one_of("id", id, ledger())
    print(f"{id} not judged: {reason}")


def _write(record: Record, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / f"{record.id}.json", json.dumps(asdict(record), indent=1, sort_keys=True) + "\n")


def commit() -> str:
    """The commit of the checkout, with a mark if files differ from it; ``"unknown"`` outside of git or without it."""
    command = ["git", "-C", str(paths.repository()), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def records(folder: Path) -> dict[str, Record]:
    """The records in a folder by claim id; raises ``ValueError`` for a file that is not a record of its claim."""
    found = {}
    for path in sorted(folder.glob("c*.json")):
        entry = read_json(path)
        fields = Record.__dataclass_fields__
        if entry.keys() != fields.keys() or entry["id"] != path.stem:
            what = f"of {entry['id']}" if entry.get("id") not in (None, path.stem) else "of another version"
            raise ValueError(f"{path} holds a record {what}; {path.stem}'s is needed: run its notebook again")
        found[path.stem] = Record(**{**entry, "interval": tuple(entry["interval"])})
    return found


def scales(run: Path) -> dict[str, dict[str, Record]]:
    """All records, by preset: those of ``run`` (``runs/<preset>``) first, then those kept with the book."""
    kept = sorted(path for path in (paths.repository() / "book" / "records").glob("*") if path.is_dir())
    found = {run.name: records(run / "claims")}
    for folder in kept:
        found.setdefault(folder.name, records(folder))
    return found


DECIDED = ("reproduced", "not reproduced")


def corrected(found: Mapping[str, Record], claims: Mapping[str, Claim]) -> dict[str, float]:
    """Holm's corrected p-value of each random claim of a scale, by id."""
    return holm(
        {
            id: p_value(claims[id].rule, record.measured)
            for id, record in found.items()
            if id in claims and claims[id].is_random
        }
    )


def lost(found: Mapping[str, Record], claims: Mapping[str, Claim]) -> set[str]:
    """The decided claims of a scale that are no longer decided when they are corrected for their number."""
    values = corrected(found, claims)
    return {id for id, p in values.items() if found[id].verdict in DECIDED and not survives(p)}
