"""The ledger: what the paper says, the rule for each claim, and the history of changes.

``book/claims.yml`` lists the claims, ``book/claims.lock`` the digest of each version of each entry. An entry may
change only by an amendment, which states the date, the previous terms and the reason.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rfpp.arena import Method, find
from rfpp.base import files, paths
from rfpp.base.files import digest
from rfpp.checkpoints.weights import read_json
from rfpp.configurations import TEACHER, Configuration, imported
from rfpp.pipeline.digests import code_digest
from rfpp.pipeline.flows import InvertImages, MakePairs, OwnPairs, TrainFlow
from rfpp.pipeline.generators import TrainGenerator
from rfpp.pipeline.grades import GradeFlow
from rfpp.pipeline.identities import identity
from rfpp.pipeline.steps import Step

LOCK = Path("book") / "claims.lock"


class Rule(BaseModel):
    """Reproduced if the measured quantity is ``above`` or ``below`` a bound, or ``between`` two."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    above: float | None = None
    below: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Rule:
        if sum(bound is not None for bound in (self.above, self.below, self.between)) != 1:
            raise ValueError("a rule needs exactly one of above, below, between")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise ValueError(f"between={self.between} must be a lower and a higher bound")
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


class Terms(BaseModel):
    """What a verdict depends on; it may change only by an amendment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    statement: str
    paper: str
    quantity: str
    rule: Rule
    control: str | None = None
    """A measurement of something else, which must fail the same rule; ``None`` if there is none."""
    only_at: list[str] | None = None
    """The presets to which the claim applies; all of them when ``None``."""

    def digest(self) -> str:
        """The digest of these terms in the lock and in records; a control or a scope that is ``None`` is left out.

        The fields that it covers are those that :attr:`Amendment.before` may name.
        """
        return digest(self.model_dump(mode="json", exclude_none=True, include=set(Terms.model_fields)))


class Amendment(BaseModel):
    """A change of an entry's terms."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    date: datetime.date
    before: dict[str, Any]
    """The previous values of the fields that changed; ``null`` for a field that was not set."""
    seen: bool
    """Whether a measurement of the claim had been seen when the terms were changed, as far as is known."""
    reason: Annotated[str, Field(pattern=r"\S")]
    wording: bool = False
    """Whether what is computed stayed the same."""
    old_verdict: str | None = None
    """The verdict under the old terms, where no run can give it."""

    @model_validator(mode="after")
    def _known(self) -> Amendment:
        if not self.before or not self.before.keys() <= Terms.model_fields.keys():
            raise ValueError(f"before holds {sorted(self.before)}; allowed: {', '.join(Terms.model_fields)}")
        if self.date > datetime.date.today():
            raise ValueError(f"date={self.date} lies in the future; an amendment has the day on which it is made")
        if self.wording and (decisive := self.before.keys() & {"rule", "only_at"}):
            raise ValueError(f"wording=true, but before holds {sorted(decisive)}, which is more than wording")
        return self


class Claim(Terms):
    """One entry of the ledger."""

    id: Annotated[str, Field(pattern=r"^c\d\d$")]
    where: str
    notebook: str
    group: Literal["why", "ladder", "sampling", "inversion", "cost", "arena", "exact", "likelihood"] = "why"
    percent: bool = False
    """Whether pages show values of the quantity in per cent."""
    is_random: bool = True
    """Whether two runs may differ; a single run then gives no verdict."""
    rests_on: list[str] = []
    """The configurations whose flows are measured, ``"teacher"`` for the pairs alone; empty if the store keeps
    nothing of what is computed."""
    code: list[str] = []
    """Import paths of the functions that compute the quantity; a record is stale once one of them has changed."""
    own: bool = False
    """Whether this book makes the statement, and not the paper."""
    repeats: str | None = None
    """The claim of which this is another form; that one is counted, and this one is not."""
    amendments: list[Amendment] = []

    @model_validator(mode="after")
    def _in_order(self) -> Claim:
        dates = [amendment.date for amendment in self.amendments]
        if dates != sorted(dates):
            raise ValueError(f"amendments of {self.id} are out of order: {', '.join(map(str, dates))}")
        if not self.rests_on and not self.code:
            raise ValueError("code is empty, and so is rests_on; name what the quantity is computed by, or of")
        self.versions()  # raises for invalid terms
        return self

    def versions(self) -> list[Terms]:
        """The terms before each amendment and, last, the current ones."""
        values = self.model_dump(include=set(Terms.model_fields))
        found = [values]
        for amendment in reversed(self.amendments):
            values = {**values, **amendment.before}
            found.append(values)
        return [Terms.model_validate(each) for each in reversed(found)]

    def judging(self) -> set[str]:
        """The digests of the terms that judge like the current ones, which differ from them in their wording alone."""
        versions = self.versions()
        since = max((place for place, each in enumerate(self.amendments, start=1) if not each.wording), default=0)
        return {terms.digest() for terms in versions[since:]}

    def configurations(self) -> list[Configuration | Method]:
        """The configurations and methods that the claim rests on."""
        return [find(name) for name in self.rests_on if name != TEACHER]

    def code_digest(self) -> str:
        """Hash of the code that its quantity depends on."""
        steps: list[type[Step]] = [MakePairs] if self.rests_on else []
        rows = self.configurations()
        if rows:
            steps += [TrainFlow, GradeFlow]
            pairs = {row.pairs for row in rows if isinstance(row, Configuration)}
            steps += [InvertImages] if "real" in pairs else []
            steps += [OwnPairs] if "own" in pairs else []
            steps += [TrainGenerator] if any(isinstance(row, Method) for row in rows) else []
        roots = [root for step in steps for root in (step, *step.code)]
        functions = [imported(path, f"code of {self.id}") for path in self.code]
        return digest([code_digest(*roots, *functions), [identity(row) for row in rows]])


def ledger() -> dict[str, Claim]:
    """The claims of ``book/claims.yml`` by id; raises ``ValueError`` for an invalid entry."""
    return dict(_parsed((paths.repository() / paths.LEDGER).read_text()))


@functools.lru_cache(maxsize=1)  # a build asks some hundred times, and parsing takes a quarter of a second
def _parsed(text: str) -> dict[str, Claim]:
    entries = yaml.safe_load(text)
    claims = [_claim(entry) for entry in entries]
    repeated = {claim.id for claim in claims if sum(other.id == claim.id for other in claims) > 1}
    if repeated:
        raise ValueError(f"{paths.LEDGER} lists {', '.join(sorted(repeated))} more than once")
    counted = {claim.id for claim in claims if claim.repeats is None}
    for claim in claims:
        if claim.repeats is not None and claim.repeats not in counted:
            raise ValueError(f"{paths.LEDGER}: {claim.id}: repeats={claim.repeats!r} is not a claim that is counted")
    return {claim.id: claim for claim in claims}


def _claim(entry: dict[str, Any]) -> Claim:
    try:
        return Claim.model_validate(entry)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'the entry'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        )
        raise ValueError(f"{paths.LEDGER}: {entry.get('id', entry)}: {wrong}") from None


# The lock


def locked() -> dict[str, list[str]]:
    """The digest of each version of each entry, by id, the first version first."""
    path = paths.repository() / LOCK
    found: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def check_lock(claims: Mapping[str, Claim]) -> None:
    """Raise ``ValueError`` where an entry and the lock disagree, naming the claim and the remedy."""
    kept = locked()
    _check_kept(claims, kept)
    for id, claim in claims.items():
        check_locked(claim, kept.get(id, []))


def check_locked(claim: Claim, known: Sequence[str] | None = None) -> None:
    """The same for one entry; ``known``: the digests of its versions in the lock, which is read by default."""
    known = locked().get(claim.id, []) if known is None else known
    _check_versions(claim, known)
    count = len(claim.versions())
    if count > len(known):
        raise ValueError(f"{claim.id} has {count} versions, but {LOCK} {len(known)}; run: python -m rfpp lock")


def _check_kept(claims: Mapping[str, Claim], kept: Mapping[str, Sequence[str]]) -> None:
    """Raise ``ValueError`` where locked versions are gone or changed, which no lock can mend."""
    for id, known in kept.items():
        if id not in claims:
            raise ValueError(
                f"{id} is missing from {paths.LEDGER}; a claim that is no longer tested stays there, with the reason"
            )
        _check_versions(claims[id], known)


def _check_versions(claim: Claim, known: Sequence[str]) -> None:
    """Raise ``ValueError`` unless the entry's first versions are those with these digests."""
    if [terms.digest() for terms in claim.versions()][: len(known)] != known:
        raise ValueError(
            f"{claim.id} was changed without an amendment, or an amendment of it was: {paths.LEDGER} does not give the "
            f"{len(known)} versions of {LOCK}; add an amendment with the former terms, or restore the old amendment"
        )


def _check_honesty(claim: Claim, known: int) -> None:
    """Raise ``ValueError`` for a new amendment that says that nothing was seen, where a record shows a measurement."""
    former = {terms.digest() for terms in claim.versions()[:-1]}
    for amendment in claim.amendments[max(0, known - 1) :]:
        for path in () if amendment.seen else _record_files(claim.id):
            if read_json(path).get("claim") in former:
                raise ValueError(
                    f"{claim.id}: the amendment of {amendment.date} has seen: false, but {path} is a measurement under "
                    "the former terms; write seen: true"
                )


def _record_files(id: str) -> Iterator[Path]:
    yield from paths.runs().glob(f"*/claims/{id}.json")
    yield from (paths.repository() / "book" / "records").glob(f"*/{id}.json")


def lock() -> list[str]:
    """Add new entries and amendments to the lock, and return the ids of these claims.

    Raises ``ValueError`` if a locked version was changed, as nothing is ever removed, and for a new amendment that says
    that no measurement was seen where there is a record of one.
    """
    claims, kept = ledger(), locked()
    _check_kept(claims, kept)
    for id, claim in claims.items():
        if id in kept:
            _check_honesty(claim, len(kept[id]))
    versions = {id: [terms.digest() for terms in claim.versions()] for id, claim in claims.items()}
    files.write_text(paths.repository() / LOCK, json.dumps(versions, indent=1) + "\n")
    return [id for id, each in versions.items() if each != kept.get(id)]
