"""
`deployment-tracker status`: what the ledger holds, and which of it GitHub has not acknowledged.

It looks into the file of a tracker that runs, without disturbing it. Which names stand only
because their pods wait to start is the cluster's to tell; it is asked when it can be.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.text import Text

from tracker.commands.output import (
    EXIT_CONFIGURATION,
    EXIT_FAILURE,
    EXIT_OK,
    Format,
    age,
    make_console,
    short,
    write_json,
    write_table,
)
from tracker.commands.view import View, say, see_cluster
from tracker.entries import Account, Entry, account_of
from tracker.errors import CredentialsError, LedgerError, LedgerLockedError, ListError
from tracker.inventory import Held
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import LedgerReading
from tracker.records import Record, Status
from tracker.settings import Settings

__all__ = ["entry_as_json", "status"]

_STYLES: Final = {
    Account.ACKNOWLEDGED: "green",
    Account.PENDING: "yellow",
    Account.NOT_FOUND: "magenta",
    Account.PARKED: "red",
}
_MEANING: Final = {
    Account.ACKNOWLEDGED: "GitHub took what stands",
    Account.PENDING: "on its way, or sent again after a failure",
    Account.NOT_FOUND: "GitHub knows no artifact of the digest, or not yet",
    Account.PARKED: "GitHub refused it; asked again when it changes, or later",
}
_ORDER: Final = (Account.PARKED, Account.NOT_FOUND, Account.PENDING, Account.ACKNOWLEDGED)
"""What needs a person comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldName:
    """A name that stands though none of its pods runs yet; `since` is the oldest one's creation."""

    name: str
    pods: tuple[str, ...]
    since: float


def status(
    settings: Settings,
    *,
    output: Format,
    states: Collection[Account],
    everything: bool,
    offline: bool,
) -> int:
    """Show the ledger; return the exit code. Unless asked for more, lists what is not well."""
    if settings.ledger_path is None:
        say(
            "LEDGER_PATH is not set: a ledger in memory can't be looked into; set it to the file"
            " that the tracker has"
        )
        return EXIT_CONFIGURATION
    try:
        reading = read_ledger(settings.ledger_path, settings.identity)
    except LedgerLockedError as error:
        say(str(error))
        return EXIT_FAILURE
    except LedgerError as error:
        say(str(error))
        return EXIT_CONFIGURATION
    view = View(settings=settings, reading=reading, now=time.time())
    held = None if offline else _held(view)
    wanted = set(states) or set(Account) - (set() if everything else {Account.ACKNOWLEDGED})
    shown = sorted(
        (entry for entry in reading.entries if account_of(entry) in wanted),
        key=lambda entry: (_ORDER.index(account_of(entry)), entry.deployment_name),
    )
    counts = Counter(account_of(entry) for entry in reading.entries)
    if output is Format.JSON:
        write_json(_as_json(settings, reading, counts, shown, held))
    else:
        _show(make_console(), settings, view, reading, counts, shown, held)
    well = counts[Account.ACKNOWLEDGED] == len(reading.entries)
    return EXIT_OK if well else EXIT_FAILURE


def _held(view: View) -> Sequence[_HeldName] | None:
    """Return the names that pods hold of which none runs; None, and said, if that is not known."""
    try:
        asyncio.run(see_cluster(view, environ=os.environ, namespace=view.settings.namespace))
    except (CredentialsError, ListError) as error:
        say(f"the cluster was not asked: {error}; --offline leaves it out")
        return None
    found = []
    for look in view.looks():
        pods = [pod for pod in view.inventory.pods_of(look.name) if pod.holds]
        stands = look.entry is not None and look.entry.may_stand
        if (
            stands
            and pods
            and isinstance(look.judgement, Held)
            and not view.inventory.told_by(look.name)
        ):
            found.append(
                _HeldName(
                    name=look.name,
                    pods=tuple(sorted(f"{pod.name} ({pod.phase})" for pod in pods)),
                    since=min(pod.created.timestamp() for pod in pods),
                )
            )
    return found


def _show(  # noqa: PLR0913, PLR0917 - what is shown, part by part
    console: Console,
    settings: Settings,
    view: View,
    reading: LedgerReading,
    counts: Counter[Account],
    shown: Sequence[Entry],
    held: Sequence[_HeldName] | None,
) -> None:
    if shown:
        rows = [_row(view, reading, entry) for entry in shown]
        write_table(console, ["state", "deployment name", "reason", "age", "next"], rows)
        console.file.write("\n")
    if held:
        rows = [
            [
                Text("held", style="magenta"),
                each.name,
                Text("\n".join([*each.pods[:3], *(["…"] if len(each.pods) > 3 else [])])),  # noqa: PLR2004
                age(view.now - each.since),
            ]
            for each in held
        ]
        write_table(console, ["state", "deployment name", "pods that wait", "age"], rows)
        console.file.write("\n")
    for account in Account:
        if counts[account]:
            console.print(
                Text(f"{counts[account]:6} "),
                Text(f"{account.value:13}", style=_STYLES[account]),
                Text(_MEANING[account], style="dim"),
                sep="",
            )
    if held is not None:
        told = "stand, and none of their pods runs yet"
        console.print(
            Text(f"{len(held):6} "), Text(f"{'held':13}"), Text(told, style="dim"), sep=""
        )
    for line in _about(settings, view, reading):
        console.print(Text(line, style="dim"))


def _about(settings: Settings, view: View, reading: LedgerReading) -> list[str]:
    """Return what there is to say of the ledger as a whole."""
    standing = sum(_status_of(entry) is Status.DEPLOYED for entry in reading.entries)
    owner = "a tracker has it now" if reading.owned else "no tracker has it now"
    lines = [f"{standing:6} stand as deployed", f"Ledger {settings.ledger_path}: {owner}"]
    if reading.pause_until > view.now:
        lines.append(f"Sending is paused for {age(reading.pause_until - view.now)}: GitHub's limit")
    if view.foreign:
        lines.append("It was kept for another cluster: what is absent here is left as it stands")
    if reading.others:
        lines.append(
            "Nobody keeps true what also stands: "
            + ", ".join(f"{count} of {other}" for other, count in reading.others.items())
        )
    return lines


def _row(view: View, reading: LedgerReading, entry: Entry) -> list[object]:
    account = account_of(entry)
    return [
        Text(account.value, style=_STYLES[account]),
        entry.deployment_name,
        _reason(entry),
        age(view.now - _since(reading, entry)),
        _next(view, entry),
    ]


def _reason(entry: Entry) -> str:
    if entry.reason:
        return f"{entry.reason} (asked {entry.attempts}x)" if entry.attempts > 1 else entry.reason
    record = entry.sent or entry.acknowledged
    return "" if record is None else f"{record.status.value} @{short(record.digest)}"


def _since(reading: LedgerReading, entry: Entry) -> float:
    """Return since when an entry is as it is."""
    if account_of(entry) is Account.ACKNOWLEDGED and entry.acknowledged_at is not None:
        return entry.acknowledged_at
    return reading.written_at[entry.deployment_name]


def _next(view: View, entry: Entry) -> str:
    due = entry.settle_at if entry.not_before is None else entry.not_before
    if due is None:
        return "" if account_of(entry) is Account.ACKNOWLEDGED else "now"
    return f"in {age(due - view.now)}" if due > view.now else "now"


def _status_of(entry: Entry) -> Status | None:
    return None if entry.acknowledged is None else entry.acknowledged.status


def _as_json(
    settings: Settings,
    reading: LedgerReading,
    counts: Counter[Account],
    shown: Sequence[Entry],
    held: Sequence[_HeldName] | None,
) -> dict[str, object]:
    return {
        "ledger": str(settings.ledger_path),
        "owned": reading.owned,
        "summary": {account.value: counts[account] for account in Account},
        "standing": sum(_status_of(entry) is Status.DEPLOYED for entry in reading.entries),
        "pause_until": _time(reading.pause_until or None),
        "other_identities": [
            {
                "api_host": each.api_host,
                "org": each.org,
                "logical_environment": each.logical_environment,
                "physical_environment": each.physical_environment,
                "cluster": each.cluster,
                "names": count,
            }
            for each, count in reading.others.items()
        ],
        "names": [entry_as_json(entry, reading) for entry in shown],
        "held": None
        if held is None
        else [
            {"deployment_name": each.name, "pods": list(each.pods), "since": _time(each.since)}
            for each in held
        ],
    }


def entry_as_json(entry: Entry, reading: LedgerReading) -> dict[str, object]:
    """Return what the ledger holds of a name, for programs; times are RFC 3339 in UTC."""
    return {
        "deployment_name": entry.deployment_name,
        "state": account_of(entry).value,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "acknowledged": _record_as_json(entry.acknowledged),
        "acknowledged_at": _time(entry.acknowledged_at),
        "sent": _record_as_json(entry.sent),
        "written_at": _time(reading.written_at.get(entry.deployment_name)),
        "next_attempt": _time(entry.not_before),
    }


def _record_as_json(record: Record | None) -> dict[str, object] | None:
    return None if record is None else record.fields()


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
