"""
Defects to be planted in the tracker, to see that the checker finds them.

Each is a mistake that could be made in earnest, in a few lines, in the place where it would be
made. `tests.support.crashing` plants one in its process; nothing of this is ever in the program.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from enum import StrEnum
from typing import Any

from tracker import app
from tracker.answers import Acknowledged, Answer, BatchAnswer, Failed, Told
from tracker.drift import drift_of
from tracker.entries import Entry, State
from tracker.github import GitHub
from tracker.ledger import SqliteLedger
from tracker.reconcile import Absences, Reconciler
from tracker.records import Record

__all__ = ["COMPARED", "LISTED", "Defect", "plant"]

LISTED = "listed, and what was seen not noted yet"
COMPARED = "compared"


class Defect(StrEnum):
    """What is done wrong."""

    EARLY_ACKNOWLEDGEMENT = "acknowledges before GitHub answers"
    NO_INTENT = "sends without an intent in the ledger"
    LATE_SNAPSHOT = "lists before it notes what was seen"
    NEWEST_FIRST = "retries what failed after what came later"
    EARLY_START = "sends before the first list is complete"
    NO_CONFIRMATION = "decommissions without a list that confirms it"


def plant(defect: Defect) -> None:
    """Put the defect into the classes of this process."""
    match defect:
        case Defect.EARLY_ACKNOWLEDGEMENT:
            _replace(GitHub, "send", _acknowledging_early(GitHub.send))
            _replace(GitHub, "send_batch", _acknowledging_all_early(GitHub.send_batch))
        case Defect.NO_INTENT:
            _replace(SqliteLedger, "put", _forgetting_intents(SqliteLedger.put))
        case Defect.LATE_SNAPSHOT:
            _replace(Reconciler, "once", _snapshot_after_list)
        case Defect.NEWEST_FIRST:
            _retry_last()
        case Defect.EARLY_START:
            _replace(app, "see_everything", _see_nothing)
        case Defect.NO_CONFIRMATION:
            _replace(Absences, "__init__", _unconfirmed(Absences.__init__))


def _replace(owner: object, name: str, value: object) -> None:
    getattr(owner, name)  # a renamed one must not be missed
    setattr(owner, name, value)


_background: set[asyncio.Task[Any]] = set()


def _acknowledging_early(send: Callable[..., Any]) -> Callable[..., Any]:
    async def early(self: GitHub, record: Record) -> Answer:
        _start(send(self, record))
        await asyncio.sleep(0)
        return Acknowledged()

    return early


def _acknowledging_all_early(send_batch: Callable[..., Any]) -> Callable[..., Any]:
    async def early(self: GitHub, records: Sequence[Record]) -> Told:
        _start(send_batch(self, records))
        await asyncio.sleep(0)
        return Told(answers=(Acknowledged(),) * len(records))

    return early


def _start(work: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


def _forgetting_intents(put: Callable[..., Any]) -> Callable[..., Any]:
    async def forgetful(self: SqliteLedger, *entries: Entry) -> None:
        kept = [entry for entry in entries if entry.state is not State.SENDING]
        if kept:
            await put(self, *kept)

    return forgetful


def _retry_last() -> None:
    """Let what failed be sent once more behind what its name has sent since."""
    failed: dict[str, Record] = {}
    send, send_batch = GitHub.send, GitHub.send_batch

    async def send_backwards(self: GitHub, record: Record) -> Answer:
        answer = await send(self, record)
        await again(self, [record], answer)
        return answer

    async def send_batch_backwards(self: GitHub, records: Sequence[Record]) -> BatchAnswer:
        answer = await send_batch(self, records)
        await again(self, records, answer)
        return answer

    async def again(self: GitHub, records: Sequence[Record], answer: Answer | BatchAnswer) -> None:
        for record in records:
            name = record.deployment_name
            if isinstance(answer, Failed):
                failed[name] = record
            elif name in failed and failed[name] != record:
                await send(self, failed.pop(name))

    _replace(GitHub, "send", send_backwards)
    _replace(GitHub, "send_batch", send_batch_backwards)


async def _snapshot_after_list(self: Reconciler) -> None:
    before = self._view.versions()
    listed = await self._pods.list_pods()
    # Until an event comes: what is a matter of luck is made one of order.
    sys.stderr.write(f"{LISTED}\n")
    while self._view.versions() == before:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    for uid in drift_of(self._view.versions(), listed).gone:
        self._view.lose_surely(uid)
    self._view.look_at_all()
    self.passes += 1
    sys.stderr.write(f"{COMPARED}\n")


async def _see_nothing(**_: object) -> None:
    """Stand for `see_everything`."""


class _NoList:
    """Stand for the lists that confirm: whatever is asked, no pod is there."""

    async def pod_uids(self, _namespace: str | None) -> frozenset[str]:
        return frozenset()


def _unconfirmed(init: Callable[..., None]) -> Callable[..., None]:
    def without_lists(self: Absences, **parts: object) -> None:
        init(self, **parts | {"lists": _NoList()})

    return without_lists
