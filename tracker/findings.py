"""
Cluster, ledger and GitHub side by side: what each says of a name, and whether they agree.

GitHub is asked for a digest and tells which names it holds for it, in which environment and
cluster. It never tells whether they are deployed, so that is the ledger's word: a record that is
there agrees with a ledger that says "decommissioned" as well as with one that says "deployed". A
digest of which nothing is known, since GitHub gave no answer or not all of it, makes no finding
but that. And where the pods that are watched don't speak of a name at all, what would agree is told
as not judged: that nothing runs it here says neither that it stands nor that it is gone.

Values in, values out: `tracker.commands.audit` asks and shows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from tracker.answers import Known, ReadBack
from tracker.entries import Account, Entry, account_of
from tracker.images import Digest
from tracker.inventory import Absent, Deployed, Judgement
from tracker.records import Record, Scope, Status

__all__ = ["Comparison", "Finding", "Held", "compare", "digests_of"]


class Finding(StrEnum):
    """What comes of holding the three against each other."""

    AGREES = "agrees"
    MISSING = "missing"
    """It was acknowledged, and GitHub does not hold it."""
    ELSEWHERE = "elsewhere"
    """GitHub holds the name for this digest in another environment or cluster only."""
    UNKNOWN = "unknown"
    """GitHub holds it, and neither the ledger nor the cluster knows of it."""
    NOT_POSTED = "not posted"
    """It runs, and GitHub has not acknowledged it."""
    STANDING = "standing"
    """The ledger says that it is deployed, and nothing runs it."""
    NOT_JUDGED = "not judged"
    """GitHub holds what the ledger says; whether it runs, the pods that are watched can't tell."""
    NOT_ASKED = "not asked"
    """GitHub gave no answer, or not the whole of it."""


class Held(StrEnum):
    """What GitHub holds of a name, as far as it says."""

    RECORD = "a record"
    NONE = "none"
    OTHER = "elsewhere"
    NOT_KNOWN = "?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """
    One name as the three tell of it; an empty text where one says nothing.

    `cluster` is "runs", "held" or "nothing"; `ledger` is the status that was acknowledged, or
    where the name is on its way there.
    """

    deployment_name: str
    digest: Digest | None
    cluster: str
    ledger: str
    github: Held
    finding: Finding
    reason: str = ""


def digests_of(
    judgements: Mapping[str, Judgement], entries: Mapping[str, Entry]
) -> frozenset[Digest]:
    """Return the digests that GitHub is to be asked for."""
    running = (each.record for each in judgements.values() if isinstance(each, Deployed))
    told = (entry.held for entry in entries.values())
    return frozenset(record.digest for record in (*running, *told) if record is not None)


def compare(
    judgements: Mapping[str, Judgement],
    entries: Mapping[str, Entry] | None,
    answers: Mapping[Digest, Known],
    *,
    scope: Scope,
    unjudged: Mapping[str, str] = MappingProxyType({}),
) -> list[Comparison]:
    """
    Return what is found for each name, by name.

    `judgements` are what the cluster says of all names, `entries` the ledger's, None when there is
    no ledger: then GitHub is held against the cluster alone. `answers` has a digest for which
    GitHub answered; one that it does not know has no records. `unjudged` says why the pods that
    are watched don't speak of a name, by name: its judgement is of no account then.
    """
    known = {} if entries is None else entries
    github = _GitHub(answers, scope)
    found = []
    for name, judgement in judgements.items():
        if entries is None:
            found += _compare_without_ledger(name, judgement, github)
        else:
            found += _compare(name, judgement, known.get(name), github, unjudged.get(name, ""))
    runs = {
        (name, judgement.record.digest)
        for name, judgement in judgements.items()
        if isinstance(judgement, Deployed)
    }
    for record in github.ours():
        name = record.deployment_name
        if name not in known and (name, record.digest) not in runs:
            found.append(
                Comparison(
                    deployment_name=name,
                    digest=Digest(record.digest),
                    cluster="" if name not in judgements else "runs another digest",
                    ledger="",
                    github=Held.RECORD,
                    finding=Finding.UNKNOWN,
                    reason="not by this ledger; it may be another tracker's",
                )
            )
    return sorted(found, key=lambda each: (each.deployment_name, each.digest or ""))


class _GitHub:
    """What GitHub answered, to be asked for one name at a time."""

    def __init__(self, answers: Mapping[Digest, Known], scope: Scope) -> None:
        self._answers = answers
        self._place = (scope.logical_environment, scope.physical_environment, scope.cluster)
        self._places: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        for digest, answer in answers.items():
            for record in answer.records:
                key = record.deployment_name, digest
                self._places.setdefault(key, []).append(_place_of(record))

    def holds(self, record: Record) -> Held:
        """Return what is held of a record's name and digest."""
        answer = self._answers.get(record.digest)
        if answer is None:
            return Held.NOT_KNOWN
        places = self._places.get((record.deployment_name, record.digest), [])
        if self._place in places:
            return Held.RECORD
        if not answer.complete:
            return Held.NOT_KNOWN
        return Held.OTHER if places else Held.NONE

    def where(self, record: Record) -> str:
        """Return in which other places a record's name is held."""
        places = self._places.get((record.deployment_name, record.digest), [])
        return "; ".join("/".join(filter(None, place)) for place in sorted(places))

    def ours(self) -> Iterable[ReadBack]:
        """Yield the records of this environment and cluster."""
        for answer in self._answers.values():
            yield from (each for each in answer.records if _place_of(each) == self._place)


def _place_of(record: ReadBack) -> tuple[str, str, str]:
    return record.logical_environment, record.physical_environment, record.cluster


def _compare(
    name: str, judgement: Judgement, entry: Entry | None, github: _GitHub, unjudged: str
) -> list[Comparison]:
    """
    Return what is found for a name; nothing for one that is of no concern to GitHub.

    `unjudged` says why the pods don't speak of it, empty where they do.
    """
    acknowledged = None if entry is None else entry.acknowledged
    runs = judgement.record if isinstance(judgement, Deployed) else None
    record = runs or (None if entry is None else entry.held)
    if record is None:
        return []
    held = github.holds(record)
    reason = "" if entry is None else entry.reason
    stands = acknowledged is not None and acknowledged.status is Status.DEPLOYED
    if runs is not None and (entry is None or acknowledged != runs):
        finding = Finding.NOT_POSTED
    elif isinstance(judgement, Absent) and entry is not None and entry.may_stand:
        finding = Finding.STANDING
    elif not stands:
        # Nothing is there that says it runs; whether GitHub remembers it is all the same.
        finding = Finding.AGREES
    else:
        finding = _FINDINGS[held]
        reason = github.where(record) if held is Held.OTHER else reason
    if unjudged and finding is Finding.AGREES and entry is not None and entry.may_stand:
        finding, reason = Finding.NOT_JUDGED, unjudged
    return [
        Comparison(
            deployment_name=name,
            digest=record.digest,
            cluster="" if unjudged else _cluster(judgement),
            ledger=_ledger(entry),
            github=held,
            finding=finding,
            reason=reason,
        )
    ]


def _compare_without_ledger(name: str, judgement: Judgement, github: _GitHub) -> list[Comparison]:
    if not isinstance(judgement, Deployed):
        return []
    held = github.holds(judgement.record)
    return [
        Comparison(
            deployment_name=name,
            digest=judgement.record.digest,
            cluster=_cluster(judgement),
            ledger="",
            github=held,
            finding=_FINDINGS[held],
            reason=github.where(judgement.record) if held is Held.OTHER else "",
        )
    ]


_FINDINGS = {
    Held.RECORD: Finding.AGREES,
    Held.NONE: Finding.MISSING,
    Held.OTHER: Finding.ELSEWHERE,
    Held.NOT_KNOWN: Finding.NOT_ASKED,
}


def _cluster(judgement: Judgement) -> str:
    if isinstance(judgement, Deployed):
        return "runs"
    return "nothing" if isinstance(judgement, Absent) else "held"


def _ledger(entry: Entry | None) -> str:
    if entry is None:
        return ""
    account = account_of(entry)
    if account is Account.ACKNOWLEDGED and entry.acknowledged is not None:
        return entry.acknowledged.status.value
    return account.value
