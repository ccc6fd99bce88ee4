"""
`deployment-tracker plan`: what would be posted or skipped now, and why.

Nothing is posted, and no token is needed. With the ledger each name is compared with what GitHub
acknowledged last; without it all that runs is told as to be deployed.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

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
from tracker.commands.view import (
    NOT_WATCHED,
    Look,
    View,
    ledger_for,
    open_pod_file,
    say,
    see_cluster,
)
from tracker.drift import is_mass
from tracker.entries import Adopt, Confirm, Defer, Drop, Entry, Forget, Nothing, Send, Wait
from tracker.errors import CredentialsError, ListError, PodFileError
from tracker.images import SkipReason
from tracker.inventory import Deployed, Held
from tracker.pods import Pod, Skipped
from tracker.records import Record, Status, render
from tracker.settings import Settings, duration_text

__all__ = ["Action", "Row", "change", "plan", "row_of"]

WIDE: Final = 110
"""Columns of a terminal from which on each value has a column of its own."""


class Action(StrEnum):
    """What would become of a name, in the order in which it is shown."""

    CREATE = "create"
    DEPLOY = "deploy"
    UPDATE = "update"
    DECOMMISSION = "decommission"
    WAIT = "wait"
    HOLD = "hold"
    SKIP = "skip"
    FORGET = "forget"
    UNCHANGED = "unchanged"


MEANING: Final[Mapping[Action, str]] = {
    Action.CREATE: "posted as deployed, GitHub has no record of it",
    Action.DEPLOY: "posted as deployed, no ledger says whether it is news",
    Action.UPDATE: "posted anew",
    Action.DECOMMISSION: "posted as decommissioned",
    Action.WAIT: "asked for again later",
    Action.HOLD: "left as it stands",
    Action.SKIP: "not recorded",
    Action.FORGET: "gone, and GitHub never knew it",
    Action.UNCHANGED: "GitHub has it",
}
_STYLES: Final[Mapping[Action, str]] = {
    Action.CREATE: "green",
    Action.DEPLOY: "green",
    Action.UPDATE: "cyan",
    Action.DECOMMISSION: "red",
    Action.WAIT: "yellow",
    Action.HOLD: "magenta",
    Action.SKIP: "dim",
    Action.FORGET: "dim",
    Action.UNCHANGED: "dim",
}
_QUIET: Final = frozenset({Action.UNCHANGED})
"""Not listed, but counted, without `--all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """
    What would become of a name, or of a pod that has none; then `name` is None.

    `pod` is namespace/name of a pod that is skipped. `record` is what would be posted, or what
    stands where nothing is.
    """

    action: Action
    name: str | None
    record: Record | None
    reason: str
    pod: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return it for programs: keys that say nothing are null."""
        record = self.record
        return {
            "action": self.action.value,
            "deployment_name": self.name,
            "pod": self.pod,
            "name": None if record is None else record.name,
            "version": None if record is None else record.version,
            "digest": None if record is None else record.digest,
            "status": None if record is None else record.status.value,
            "reason": self.reason,
        }


def plan(settings: Settings, *, file: str | None, output: Format, everything: bool) -> int:
    """Show the plan; return the exit code. `file` is a path, "-" for stdin, None: the cluster."""
    view = View(settings=settings, reading=ledger_for(settings), now=time.time())
    try:
        if file is None:
            asyncio.run(see_cluster(view, environ=os.environ, namespace=settings.namespace))
        else:
            with open_pod_file(file) as pods:
                view.see_file(pods)
            _say_of_file(view, pods.others)
    except CredentialsError as error:
        say(f"{error}, or give pods with -f")
        return EXIT_CONFIGURATION
    except (ListError, PodFileError) as error:
        say(str(error))
        return EXIT_FAILURE
    rows = sorted(_rows(view), key=lambda row: (_ORDER[row.action], row.name or "", row.pod or ""))
    counts = Counter(row.action for row in rows)
    shown = [row for row in rows if everything or row.action not in _QUIET]
    if output is Format.JSON:
        write_json(
            {
                "summary": {action.value: counts[action] for action in Action},
                "pods": view.seen,
                "ledger": None if view.reading is None else str(settings.ledger_path),
                "rows": [row.as_json() for row in shown],
            }
        )
    else:
        _show(make_console(), shown, counts, view)
    _say_of_mass(view, rows)
    return EXIT_OK


_ORDER: Final = {action: number for number, action in enumerate(Action)}


def _rows(view: View) -> Iterator[Row]:
    shared = view.inventory.shared()
    for look in view.looks():
        yield row_of(view, look, shared=look.name in shared)
    for skipped in view.skipped:
        yield _skip(skipped, skipped.reason.value)
    for unwatched in view.unwatched:
        yield _skip(unwatched, f"{NOT_WATCHED}: NAMESPACE is {view.settings.namespace}")
    if view.inventory.skipped().get(SkipReason.DEPLOYMENT_NAME):
        yield from _too_long(view)


def _skip(pod: Pod | Skipped, reason: str) -> Row:
    where = f"{pod.namespace}/{pod.name}".strip("/") or "(a pod without a name)"
    return Row(action=Action.SKIP, name=None, record=None, reason=reason, pod=where)


def row_of(view: View, look: Look, *, shared: bool = False) -> Row:
    """Return what would become of a name."""
    action, record, reason = _outcome(view, look)
    if shared:
        told = "name-shared: the newest pod's record stands, the others have none"
        reason = f"{reason}; {told}" if reason else told
    return Row(action=action, name=look.name, record=record, reason=reason)


def _outcome(view: View, look: Look) -> tuple[Action, Record | None, str]:
    entry, step = look.entry, look.step
    stands = None if entry is None else entry.acknowledged
    match step:
        case Send(record=record):
            return _sent(view, look, record)
        case Defer(send=send, unknown=unknown):
            return Action.WAIT, send.record, f"{unknown.reason}; again {_until(view, unknown.due)}"
        case Wait(until=until):
            waiting = stands if entry is None or entry.sent is None else entry.sent
            why = "" if entry is None else entry.reason
            return Action.WAIT, waiting, f"{why or 'posted once more'}; again {_until(view, until)}"
        case Forget():
            return Action.FORGET, None, "no pod holds it, and GitHub never acknowledged it"
        case Nothing() | Drop() | Adopt():
            return _at_rest(view, look, stands)
        case Confirm():
            return Action.HOLD, stands, "its absence is to be confirmed"
    assert_never(step)


def _sent(view: View, look: Look, record: Record) -> tuple[Action, Record, str]:
    """Return what a post is to GitHub."""
    entry = look.entry
    stands = None if entry is None else entry.acknowledged
    if record.status is Status.DECOMMISSIONED:
        return Action.DECOMMISSION, record, _why_gone(view, look)
    if entry is None or stands is None:
        action = Action.DEPLOY if view.reading is None else Action.CREATE
        return action, record, "" if entry is None else _why_again(entry, record)
    return Action.UPDATE, record, change(stands, record) or "its last send is open"


def _at_rest(view: View, look: Look, stands: Record | None) -> tuple[Action, Record | None, str]:
    """Return what a name is of which nothing is to be posted."""
    if isinstance(look.judgement, Deployed):
        return Action.UNCHANGED, stands, ""
    if look.kept is not None:
        return Action.HOLD, stands, look.kept.value
    if isinstance(look.judgement, Held):
        reason = _why_held(view, look.name)
        return (Action.SKIP if stands is None else Action.HOLD), stands, reason
    if look.entry is not None:
        return Action.UNCHANGED, stands, "decommissioned"
    pods = view.inventory.pods_of(look.name)
    finished = all(not pod.unfinished for pod in pods)
    return Action.SKIP, None, "its pods have finished" if finished else SkipReason.IGNORED.value


def _why_held(view: View, name: str) -> str:
    told = view.inventory.told_by(name)
    if told is not None and isinstance(told[1].image, SkipReason):
        return told[1].image.value
    phases = sorted({pod.phase for pod in view.inventory.pods_of(name) if pod.holds})
    return f"no pod says yet what runs ({', '.join(phases)})"


def _why_gone(view: View, look: Look) -> str:
    if isinstance(look.judgement, Deployed):
        return "its new image is not taken, and the old one runs no more"
    if isinstance(look.judgement, Held):
        return f"{_why_held(view, look.name)}: the old image runs no more"
    entry = look.entry
    if entry is not None and entry.workload.kind == "CronJob" and not view.settings.workloads:
        hold = duration_text(view.settings.cronjob_hold)
        return f"no pod holds it; a CronJob's name stands {hold} after its last pod"
    return "no pod holds it"


def _why_again(entry: Entry, record: Record) -> str:
    if entry.sent is None or entry.sent != record:
        return ""
    return entry.reason or "its last send is open"


def change(before: Record | None, after: Record) -> str:
    """Return in a few words what differs between two records of a name."""
    if before is None:
        return ""
    found = []
    if before.status is not after.status:
        found.append(f"was {before.status.value}")
    if before.name != after.name:
        found.append(f"name was {before.name}")
    if before.version != after.version:
        found.append(f"version was {before.version or 'not known'}")
    if before.digest != after.digest:
        found.append(f"digest was {short(before.digest)}")
    for word, one, other in (
        ("tags", before.tags, after.tags),
        ("risks", before.risks, after.risks),
        ("repository", before.repository, after.repository),
    ):
        if one != other:
            found.append(f"other {word}")
    return ", ".join(found)


def _too_long(view: View) -> Iterator[Row]:
    """Yield a row for each container whose deployment name would be too long."""
    for pod in view.inventory.pods():
        if not isinstance(pod, Pod):
            continue
        for container in pod.containers:
            name = render(
                view.settings.dn_template,
                namespace=pod.namespace,
                workload=pod.workload.name,
                container=container.name,
            )
            if name is None:
                yield Row(
                    action=Action.SKIP,
                    name=None,
                    record=None,
                    reason=SkipReason.DEPLOYMENT_NAME.value,
                    pod=f"{pod.namespace}/{pod.name}/{container.name}",
                )


def _until(view: View, due: float) -> str:
    """Return when something is due, from now."""
    return f"in {age(due - view.now)}" if due > view.now else "now"


def _show(console: Console, rows: Sequence[Row], counts: Counter[Action], view: View) -> None:
    if rows:
        if console.is_terminal and console.width < WIDE:
            columns = ["action", "deployment name", "image and reason"]
            write_table(console, columns, [_narrow(row) for row in rows])
        else:
            columns = ["action", "deployment name", "name", "version", "digest", "reason"]
            write_table(console, columns, [_wide(row) for row in rows])
        console.file.write("\n")
    for action in Action:
        if counts[action]:
            console.print(
                Text(f"{counts[action]:6} "),
                Text(f"{action.value:13}", style=_STYLES[action]),
                Text(MEANING[action], style="dim"),
                sep="",
            )
    ledger = "" if view.reading is None else f", ledger {view.settings.ledger_path}"
    console.print(Text(f"{view.seen:6} pods{ledger}", style="dim"))


def _called(row: Row) -> str:
    return row.name if row.name is not None else f"pod {row.pod}"


def _wide(row: Row) -> list[object]:
    record = row.record
    return [
        Text(row.action.value, style=_STYLES[row.action]),
        _called(row),
        "" if record is None else record.name,
        "" if record is None else record.version or "",
        "" if record is None else short(record.digest),
        row.reason,
    ]


def _narrow(row: Row) -> list[object]:
    record = row.record
    lines = []
    if record is not None:
        lines.append(f"{record.name}:{record.version}" if record.version else record.name)
        lines.append(f"@{short(record.digest)}")
    if row.reason:
        lines.append(row.reason)
    return [
        Text(row.action.value, style=_STYLES[row.action]),
        _called(row),
        Text("\n".join(lines)),
    ]


def _say_of_file(view: View, others: int) -> None:
    if others:
        say(f"{others} objects in the file are no pods: passed over")
    if view.settings.workloads:
        say("WORKLOADS is set, and a file tells nothing of workloads: what hangs on them is held")


def _say_of_mass(view: View, rows: Sequence[Row]) -> None:
    gone = [row.name for row in rows if row.action is Action.DECOMMISSION and row.name]
    standing = [
        name
        for name, entry in view.entries.items()
        if entry.acknowledged is not None and entry.acknowledged.status is Status.DEPLOYED
    ]
    if is_mass(gone, standing):
        say(
            "more than half of the names are absent: the tracker believes that when a second list"
            " agrees"
        )
