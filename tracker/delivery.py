"""
Delivery: from "this name may have changed" to "GitHub acknowledged what stands".

The queue holds deployment names, each at most once, never states: what is to be posted is worked
out when it is sent, so the newest state always wins and memory is bounded by the names. N workers
take names from it; a name is with one worker at a time, so two requests for it are never under
way together and an older state never follows a newer one.

A worker that finds one name posts it. When a second has not passed since the last send it gathers
until then, and what it has goes in one call, up to a thousand names. What a batch leaves open is
asked for in halves until each culprit stands alone, so that one bad record costs the others
nothing. What GitHub refused before, and what is posted again only to be sure, goes *behind*: a
worker of its own takes it, and leaves the pace to the others.

Delivery is at least once. The intent is in the ledger before bytes leave and the acknowledgement
after GitHub gave it; a stop between the two means one more identical post.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, assert_never

import structlog

from tracker.answers import (
    Acknowledged,
    Answer,
    BatchAnswer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Forbidden,
    Limited,
    NotFound,
    Outcome,
    Unauthorized,
    outcome_of,
)
from tracker.batches import SINGLES_SECONDS, Batching, Part, Said, follow, said_of_each
from tracker.entries import (
    NOT_FOUND_SECONDS,
    Account,
    Adopt,
    Confirm,
    Defer,
    Drop,
    Entry,
    Forget,
    Nothing,
    Send,
    Step,
    Wait,
    account_of,
    amend,
    conclude,
    intend,
    is_asked_again,
    next_step,
)
from tracker.errors import LedgerWriteError, TrackerError
from tracker.images import Digest
from tracker.inventory import Judgement
from tracker.pacing import Pace
from tracker.records import Record, Status
from tracker.refusals import Refusals, known_digests
from tracker.workloads import Workload

__all__ = ["Absences", "Delivery", "Ledger", "Meter", "Reporter", "Sender"]

GATHER_SECONDS = 1.0
"""A send less than this after the last one waits for the time to end and gathers."""
MAX_BATCH_BYTES = 512 * 1024
RESERVED_BYTES = 16 * 1024
"""What is left of a batch's size for the record that is over it and for what surrounds them."""
DRAIN_LOOK_SECONDS = 0.1
"""How often a drain looks whether all is sent, or a pause has begun that it can't outlast."""
LEDGER_RETRY_SECONDS = 5.0
"""How long a name rests whose entry could not be written."""
BROKEN_NAME_SECONDS = 60.0
"""How long a name rests after an error of ours, so that a bug can't spin."""
BREATH = 100
"""Names that are looked at before the loop gets to do something else."""

_log = structlog.get_logger(__name__)


class Sender(Protocol):
    """Posts records. Never raises for what a network or GitHub can do: it answers `Failed`."""

    async def send(self, record: Record) -> Answer:
        """Post a record and return what GitHub said."""
        ...

    async def send_batch(self, records: Sequence[Record]) -> BatchAnswer:
        """Post records of different names in one call and return what GitHub said."""
        ...


class Ledger(Protocol):
    """What GitHub acknowledged, by deployment name."""

    def get(self, name: str) -> Entry | None:
        """Return the entry of a name, or None when there is none."""
        ...

    def entries(self) -> Collection[Entry]:
        """Return all entries, as they are now."""
        ...

    async def put(self, *entries: Entry) -> None:
        """Write entries, all or none; they are kept when this returns."""
        ...

    async def forget(self, *names: str) -> None:
        """Drop the entries of names."""
        ...

    async def set_pause_until(self, time: float) -> None:
        """Keep the time (of the loop's clock) before which nothing is sent."""
        ...


class Absences(Protocol):
    """Confirms that what is not seen any more is not there any more."""

    def confirmed(self, name: str) -> bool:
        """Tell whether the absence behind a name was confirmed since its last pod event."""
        ...

    def want(self, name: str, workload: Workload, *, absent: bool) -> None:
        """Have it confirmed; the name is looked at again when it is."""
        ...

    def withdraw(self, name: str) -> None:
        """Drop what was wanted and found out about a name."""
        ...


class Reporter(Protocol):
    """Tells people what became of records."""

    def acknowledged(self, record: Record) -> None:
        """Tell that GitHub acknowledged a record."""
        ...

    def failed(self, record: Record, reason: str) -> None:
        """Tell that a record failed, once for each reason."""
        ...


class Meter(Protocol):
    """Counts what became of records."""

    def answered(self, outcome: Outcome) -> None:
        """Count what GitHub said of one record."""
        ...

    def delivered(self, seconds: float) -> None:
        """Note how long it took from a change to its acknowledgement."""
        ...


_UNANSWERED = BatchRefused | BatchUnclear | Failed | Limited | Unauthorized
"""What says nothing of a record by itself: what was to be posted again still is."""

_Work = Send | Defer | Drop | Adopt | Forget
"""What a worker has to wait for, if only for the ledger."""


class _Unmetered:
    """Counts nothing."""

    def answered(self, outcome: Outcome) -> None:
        """Pass over it."""

    def delivered(self, seconds: float) -> None:
        """Pass over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A record to be sent now, and the entry of its name as it is."""

    entry: Entry | None
    send: Send


class Delivery:
    """
    The queue of names and its workers.

    `judge(name, held)` says what should stand, `held` being what GitHub holds as far as is known;
    `batches` says whether records may be sent together; `chance()` gives a random number in [0, 1)
    for jitter; `not_found_seconds` is the first wait for a digest that GitHub does not know. `run`
    never returns; `touch` may be called before it runs. The ledger is open.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        judge: Callable[[str, Record | None], Judgement],
        ledger: Ledger,
        sender: Sender,
        absences: Absences,
        reporter: Reporter,
        pace: Pace,
        workers: int,
        batches: bool,
        chance: Callable[[], float],
        not_found_seconds: float = NOT_FOUND_SECONDS,
        meter: Meter | None = None,
    ) -> None:
        self._meter = _Unmetered() if meter is None else meter
        self._judge = judge
        self._ledger = ledger
        self._sender = sender
        self._absences = absences
        self._reporter = reporter
        self._pace = pace
        self._workers = workers
        self._batching = Batching(permitted=batches)
        self._refused_batches = 0
        # What was refused alone when it was to decide about a batch; it need not be parked since.
        self._forbidden: dict[str, Record] = {}
        self._chance = chance
        self._not_found_seconds = not_found_seconds
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._busy: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        # Since when each name waits that may have something to send, and when one was taken last.
        self._since: dict[str, float] = {}
        self._tried_at = float("-inf")
        self._gathering = asyncio.Lock()
        self._sent_at = float("-inf")
        # What goes behind, in its order, and what is posted again though it is acknowledged.
        self._behind: dict[str, None] = {}
        self._is_behind = asyncio.Event()
        self._draining = False
        self._reposts: set[str] = set()
        # What waits for something that may come about for many names at once.
        self._refusals = Refusals(ledger.entries())
        self._probe: asyncio.TimerHandle | None = None

    @property
    def backlog(self) -> int:
        """Return how many names wait for a worker or are with one."""
        return len(self._queued) + len(self._busy)

    @property
    def pending_since(self) -> float | None:
        """Return since when the name waits that waits longest for its record; None: none does."""
        return min(self._since.values(), default=None)

    @property
    def tried_at(self) -> float:
        """Return when a worker took a name last, or when there was one to take after none."""
        return self._tried_at

    @property
    def unfinished(self) -> frozenset[str]:
        """
        Return the names that are to be sent, now or when a failure's wait is over.

        Those that GitHub refused are not among them until they are to be asked for again.
        """
        waiting = {name for name in self._timers if not self._is_refused(name)}
        return frozenset(self._queued | self._busy | self._behind.keys() | waiting)

    def _is_refused(self, name: str) -> bool:
        entry = self._ledger.get(name)
        return entry is not None and entry.is_refused

    def touch(self, name: str) -> None:
        """Have a name looked at: something about it may have changed."""
        now = asyncio.get_running_loop().time()
        self._since.setdefault(name, now)
        if not self.backlog:
            self._tried_at = now
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
        if name in self._busy:
            self._again.add(name)
        elif name not in self._queued:
            self._queued.add(name)
            self._queue.put_nowait(name)

    @property
    def to_repost(self) -> Collection[str]:
        """Return the names that wait to be posted again."""
        return self._reposts

    def repost(self, name: str) -> None:
        """Have what is acknowledged of a name posted again, in case GitHub lost it."""
        self._reposts.add(name)
        self.touch(name)

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._workers):
                group.create_task(self._work(), name=f"delivery-{number}")
            group.create_task(self._work_behind(), name="delivery-behind")

    async def drain(self, timeout_seconds: float) -> int:
        """
        Wait until what is due was sent, for `timeout_seconds` at most; return what is left.

        That counts the names that were not acknowledged, those that wait to be asked again
        included. A pause that outlasts the time is not waited for.
        """
        self._draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._pace.is_open and await self._idle(deadline):
                    due = min((timer.when() for timer in self._timers.values()), default=deadline)
                    if due >= deadline:
                        break
                    await asyncio.sleep(due - loop.time())
                    # The timer that is due puts its name into the queue in this turn of the loop.
                    await asyncio.sleep(0)
        names = self._queued | self._busy | self._timers.keys() | self._behind.keys()
        return sum(1 for name in names if self._is_unsent(name))

    async def _idle(self, deadline: float) -> bool:
        """
        Wait until nothing is queued or with a worker.

        Return False as soon as a pause outlasts the deadline.
        """
        while self._pace.not_before < deadline:
            if not self.backlog:
                return True
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        return False

    def _is_unsent(self, name: str) -> bool:
        """Tell whether a name is to be sent, now or when a failure's wait is over."""
        entry = self._ledger.get(name)
        match self._next_step(name, entry):
            case Send():
                return True
            case Wait():
                return entry is not None and not entry.is_refused
            case _:
                return False

    # Which names go next, and with which others.

    async def _work(self) -> None:
        while True:
            async with self._gathering:
                names = await self._gather()
            try:
                await self._deliver(names, behind=False)
            finally:
                for name in names:
                    self._release(name)

    async def _work_behind(self) -> None:
        while True:
            await self._is_behind.wait()
            await self._pace.passed()
            if self._batching.permits(asyncio.get_running_loop().time()):
                # What was refused together is due together, and reposts come in a heap.
                await asyncio.sleep(GATHER_SECONDS)
            if self._draining:
                return  # what was refused, or is only sent to be sure, is for the next start
            names, others = self._take_behind()
            try:
                await self._deliver(names, behind=True)
            finally:
                for name in names:
                    self._release(name)
            self._touch_all(others)

    async def _gather(self) -> list[str]:
        """
        Return names to be sent together, at least one.

        The last send's second is waited for and gathered in; a batch that is full, and one after a
        quiet second, goes at once.
        """
        loop = asyncio.get_running_loop()
        names: list[str] = []
        size = looked_at = 0
        while True:
            await self._pace.passed()
            now = loop.time()
            ends = self._sent_at + GATHER_SECONDS if self._batching.permits(now) else now
            if len(names) >= self._batching.most(now) or size > MAX_BATCH_BYTES - RESERVED_BYTES:
                break
            name = await self._next_name(ends if names else None)
            if name is None:
                break
            looked_at += 1
            self._tried_at = loop.time()
            if looked_at % BREATH == 0:
                await asyncio.sleep(0)
            self._queued.discard(name)
            self._busy.add(name)
            step = self._look(name, behind=False)
            if step is None:
                self._release(name)
            else:
                names.append(name)
                size += _size(step)
        if names:
            self._sent_at = loop.time()
        return names

    async def _next_name(self, ends: float | None) -> str | None:
        """Return the next name of the queue, or None when there is none until `ends`."""
        with suppress(asyncio.QueueEmpty):
            return self._queue.get_nowait()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                return await self._queue.get()
        return None

    def _take_behind(self) -> tuple[list[str], list[str]]:
        """
        Return names of those that go behind, to be sent together.

        For a digest that is unknown only one of them asks; the others are the second list, and are
        to be looked at when it has.
        """
        most = self._batching.most(asyncio.get_running_loop().time())
        names: list[str] = []
        others: list[str] = []
        digests: set[Digest] = set()
        size = 0
        while self._behind and len(names) < most and size <= MAX_BATCH_BYTES - RESERVED_BYTES:
            name = next(iter(self._behind))
            del self._behind[name]
            if name in self._busy or name in self._queued:
                self.touch(name)  # it is looked at when its worker is done, and comes back
                continue
            step = self._look(name, behind=True)
            if step is None:
                continue
            if isinstance(step, Send) and self._refusals.is_unknown(step.record):
                if step.record.digest in digests:
                    others.append(name)
                    continue
                digests.add(step.record.digest)
            self._busy.add(name)
            names.append(name)
            size += _size(step)
        if not self._behind:
            self._is_behind.clear()
        return names, others

    def _release(self, name: str) -> None:
        """Let go of a name that a worker had."""
        self._busy.discard(name)
        if name in self._again:
            self._again.discard(name)
            self.touch(name)

    # What is to be done about a name.

    def _next_step(self, name: str, entry: Entry | None) -> Step:
        judgement = self._judge(name, None if entry is None else entry.held)
        now = asyncio.get_running_loop().time()
        confirmed = self._absences.confirmed(name)
        if entry is not None and self._refusals.is_due(name):
            entry = replace(entry, not_before=None)
        return next_step(
            judgement, entry, absence_confirmed=confirmed, now=now, unknown=self._refusals.unknown
        )

    def _next_step_or_repost(self, name: str, entry: Entry | None) -> Step:
        step = self._next_step(name, entry)
        if isinstance(step, Nothing) and name in self._reposts:
            return _repost(entry, asyncio.get_running_loop().time()) or step
        return step

    def _look(self, name: str, *, behind: bool) -> _Work | None:
        """
        Return what a worker is to do about a name; do it if it takes no time, and return None.

        Whatever one name can do to us, the others go on; it is looked at again later.
        """
        try:
            entry = self._ledger.get(name)
            step = self._next_step_or_repost(name, entry)
            match step:
                case Send(record=record) if not behind and self._goes_behind(name, entry, record):
                    self._since.pop(name, None)  # what was refused, or is only sent to be sure
                    self._behind[name] = None
                    self._is_behind.set()
                case Send() | Defer() | Drop() | Adopt() | Forget():
                    return step
                case Wait(until=until):
                    self._look_again(name, until)
                    if entry is not None and account_of(entry) is not Account.PENDING:
                        self._since.pop(name, None)
                    if entry is not None and entry.sent is not None:
                        self._refusals.unknown.wait(entry.sent.digest, name)
                case Confirm(workload=workload, absent=absent):
                    self._since.pop(name, None)
                    self._absences.want(name, workload, absent=absent)
                case Nothing():
                    self._since.pop(name, None)
                    self._absences.withdraw(name)
                    self._refusals.rest(name)
                    self._reposts.discard(name)
                case never:
                    assert_never(never)
        except Exception:  # noqa: BLE001 - told and looked at again
            _log.exception("name failed", deployment_name=name)
            self._look_again(name, asyncio.get_running_loop().time() + BROKEN_NAME_SECONDS)
        return None

    def _goes_behind(self, name: str, entry: Entry | None, record: Record) -> bool:
        """Tell whether a record is one that was refused, or only posted again to be sure."""
        if self._refusals.is_unknown(record):
            return True
        if entry is None or record == entry.acknowledged:
            return name in self._reposts
        return is_asked_again(entry, record)

    def _look_again(self, name: str, when: float) -> None:
        loop = asyncio.get_running_loop()
        if (timer := self._timers.get(name)) is not None:
            timer.cancel()
        self._timers[name] = loop.call_at(when, self.touch, name)

    def _look_later(self, name: str, seconds: float) -> None:
        """Look at a name that a worker has when that time is over, and not before."""
        # The intent had it looked at again, whatever came of it: that would be at once.
        self._again.discard(name)
        self._look_again(name, asyncio.get_running_loop().time() + seconds)

    # Sending.

    async def _deliver(self, names: Sequence[str], *, behind: bool) -> None:
        """Send what is to be sent of these names; halve what goes wrong together."""
        parts = [Part(names=tuple(sorted(names)))] if names else []
        while parts:
            part = parts.pop()
            try:
                parts += await self._post(part, behind=behind)
            except LedgerWriteError as error:
                # What was not written has not happened.
                self._put_off(part.names, str(error))
            except Exception as error:  # noqa: BLE001 - the top of a worker's loop
                if len(part.names) > 1:
                    parts += part.halves(part.names)
                elif isinstance(error, TrackerError):
                    self._put_off(part.names, str(error))
                else:
                    (name,) = part.names
                    _log.exception("name failed", deployment_name=name)
                    self._look_later(name, BROKEN_NAME_SECONDS)

    def _put_off(self, names: Sequence[str], reason: str) -> None:
        _log.error("put off", deployment_name=names[0], names=len(names), reason=reason)
        for name in names:
            self._look_later(name, LEDGER_RETRY_SECONDS)

    async def _post(self, part: Part, *, behind: bool) -> list[Part]:
        """Send what is to be sent of a part; return what is to follow, the last one first."""
        async with self._pace.turn(behind=behind):
            self._tried_at = asyncio.get_running_loop().time()  # what is halved is not taken anew
            planned = await self._plan(part.names, behind=behind)
            if not planned:
                return part.next_decider()
            intended = [self._intend(each) for each in planned]
            await self._ledger.put(*intended)
            # Nothing has left yet. A limit may have come while the intents were written, or a pod.
            stale = list(filter(self._is_stale, planned)) if self._pace.permits else planned
            if stale:
                await self._undo(stale)
                names = {each.send.record.deployment_name for each in stale}
                intended = [each for each in intended if each.deployment_name not in names]
            if not intended:
                return part.next_decider()
            records = [each.sent for each in intended if each.sent is not None]
            # An answer to all of a batch makes no difference of them any more.
            refused = frozenset(
                each.send.record.deployment_name
                for each in planned
                if is_asked_again(each.entry, each.send.record)
            )
            if len(records) == 1:
                again = records[0].deployment_name in part.refused | refused
                again |= self._forbidden.get(records[0].deployment_name) == records[0]
                return await self._post_single(intended[0], records[0], part, again=again)
            return await self._post_batch(intended, records, part, refused=refused)

    async def _plan(self, names: Sequence[str], *, behind: bool) -> list[_Planned]:
        """Look at names once more, now that they can be sent; do all else that is to be done."""
        planned: list[_Planned] = []
        amended: list[tuple[Defer | Drop | Adopt, Entry]] = []
        forgotten: list[str] = []
        for count, name in enumerate(names, start=1):
            if count % BREATH == 0:
                await asyncio.sleep(0)
            match self._look(name, behind=behind):
                case Send() as send:
                    planned.append(_Planned(entry=self._ledger.get(name), send=send))
                case (Defer() | Drop() | Adopt()) as step:
                    amended.append((step, amend(self._ledger.get(name), step)))
                case Forget():
                    forgotten.append(name)
                case None:
                    pass
        await self._amend(amended)
        await self._forget(forgotten)
        return planned

    async def _amend(self, amended: Sequence[tuple[Defer | Drop | Adopt, Entry]]) -> None:
        """Write down what changes without a send."""
        if not amended:
            return
        await self._ledger.put(*(entry for _, entry in amended))
        for step, entry in amended:
            self.touch(entry.deployment_name)
            if not isinstance(step, Defer):
                self._refusals.rest(entry.deployment_name)
            elif entry.sent is not None:  # it waits for what is answered for its digest
                self._reporter.failed(entry.sent, entry.reason)

    async def _forget(self, names: Sequence[str]) -> None:
        """Forget names that GitHub never heard of and no pod holds."""
        if not names:
            return
        await self._ledger.forget(*names)
        for name in names:
            self._since.pop(name, None)
            self._absences.withdraw(name)
            self._refusals.forget(name)
            self._reposts.discard(name)
            self._forbidden.pop(name, None)

    def _intend(self, planned: _Planned) -> Entry:
        name = planned.send.record.deployment_name
        self.touch(name)  # whatever comes of it is looked at
        return self._refusals.intend(intend(planned.entry, planned.send))

    def _is_stale(self, planned: _Planned) -> bool:
        """Tell whether a decommission that was planned is one no more: what it ends runs again."""
        record = planned.send.record
        if record.status is not Status.DECOMMISSIONED:
            return False  # it was true a moment ago, and what is true now follows it
        return self._next_step_or_repost(record.deployment_name, planned.entry) != planned.send

    async def _undo(self, planned: Iterable[_Planned]) -> None:
        """Have the ledger say what it said before the intents."""
        before = [each.entry for each in planned if each.entry is not None]
        fresh = [each.send.record.deployment_name for each in planned if each.entry is None]
        if before:
            await self._ledger.put(*before)
        if fresh:
            await self._ledger.forget(*fresh)

    async def _post_single(
        self, intended: Entry, record: Record, part: Part, *, again: bool
    ) -> list[Part]:
        """Post one record, `again` if it was refused before; return what is to follow."""
        answer = await self._sender.send(record)
        self._batching.note(answer, 1, now=asyncio.get_running_loop().time())
        following: list[Part] = []
        said: Answer | BatchRefused = answer
        self._forbidden.pop(record.deployment_name, None)
        if part.deciding and isinstance(answer, Forbidden):
            self._forbidden[record.deployment_name] = record
        if part.deciding:
            said, following = self._decide(part, answer, again=again)
        await self._conclude([intended], [said], said)
        return following

    def _decide(
        self, part: Part, answer: Answer, *, again: bool
    ) -> tuple[Answer | BatchRefused, list[Part]]:
        """
        Judge by the answers to single records why the batch with them was refused.

        Return what this one's comes to, and who is asked next.
        """
        match answer:
            case Forbidden():
                following = part.next_decider()
                if again:
                    # It is refused for its own sake, whatever is refused for another's.
                    if not following:
                        self._send_singly("GitHub refuses batches")
                    return answer, following
                if following:
                    # It may be the record alone, which hears that once batches are out of it.
                    return BatchRefused(reason=answer.reason, by_content=False), following
                # It is not the batch: nothing may be written, and to ask for each would not help.
                return Unauthorized(reason=answer.reason, valid=True), []
            case Limited() | Unauthorized() | Failed():
                pass
            case _:
                self._send_singly("GitHub refuses batches and takes single records")
        return answer, []

    def _send_singly(self, reason: str) -> None:
        self._batching.send_singly(asyncio.get_running_loop().time())
        _log.warning("records go one by one", reason=reason, seconds=SINGLES_SECONDS)

    async def _post_batch(
        self,
        intended: Sequence[Entry],
        records: Sequence[Record],
        part: Part,
        *,
        refused: frozenset[str],
    ) -> list[Part]:
        said = await self._sender.send_batch(records)
        self._batching.note(said, len(records), now=asyncio.get_running_loop().time())
        each = said_of_each(said, len(records))
        await self._conclude(intended, each, said)
        left = tuple(
            record.deployment_name
            for record, one in zip(records, each, strict=True)
            if isinstance(one, BatchUnclear | BatchRefused)
        )
        following = follow(part, said, left, refusals=self._refused_batches, refused=refused)
        if isinstance(said, BatchRefused) and not said.by_content:
            self._refused_batches += 1
        if following is None:
            self._send_singly("answers to batches can't be read")
        return following or []

    # What came of it.

    async def _conclude(
        self, intended: Sequence[Entry], each: Sequence[Said], said: Answer | BatchAnswer
    ) -> None:
        """Write down and tell what was said of each, and what follows for all."""
        now = asyncio.get_running_loop().time()
        chance = self._chance()  # the same for all of a batch: they stay together
        concluded = [
            conclude(
                entry, answer, now=now, chance=chance, not_found_seconds=self._not_found_seconds
            )
            for entry, answer in zip(intended, each, strict=True)
        ]
        was_broken = self._pace.is_broken
        pause = self._pace.note(said)
        if pause:
            reason = getattr(said, "reason", "")
            # A limit passes by itself; a token is for somebody to see to.
            tell = _log.error if isinstance(said, Unauthorized) else _log.warning
            tell("sending paused", seconds=round(pause, 1), reason=reason)
        unknown = any(isinstance(answer, NotFound) for answer in each)
        known = known_digests(self._ledger.entries()) if unknown else frozenset()
        for entry, after, answer in zip(intended, concluded, each, strict=True):
            if not isinstance(answer, _UNANSWERED):
                self._reposts.discard(entry.deployment_name)
            others = self._refusals.learn(
                entry, after, answer, now=now, paused_until=self._pace.not_before, known=known
            )
            self._touch_all(others)
        if was_broken and not self._pace.is_broken and not pause:
            self._touch_all(self._refusals.recover())
        self._plan_probe()
        # What GitHub said is kept and told even when a stop cancels us here.
        kept = asyncio.ensure_future(self._keep(intended, concluded, each, said))
        try:
            await asyncio.shield(kept)
        except asyncio.CancelledError:
            await asyncio.wait([kept])
            raise

    async def _keep(
        self,
        intended: Sequence[Entry],
        concluded: Sequence[Entry],
        each: Sequence[Said],
        said: Answer | BatchAnswer,
    ) -> None:
        await self._ledger.put(*concluded)
        if isinstance(said, Limited):
            await self._ledger.set_pause_until(self._pace.not_before)
        now = asyncio.get_running_loop().time()
        for entry, answer in zip(intended, each, strict=True):
            self._meter.answered(outcome_of(answer))
            record = entry.sent
            if record is None or isinstance(answer, BatchRefused | BatchUnclear):
                continue
            if isinstance(answer, Acknowledged):
                since = self._since.pop(record.deployment_name, None)
                if since is not None:
                    self._meter.delivered(now - since)
                self._reporter.acknowledged(record)
            elif answer.reason != entry.reason:
                self._reporter.failed(record, answer.reason)

    def _touch_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.touch(name)

    def _plan_probe(self) -> None:
        """Ask for one refused name now and then: when only that is left, nothing else would."""
        spell = self._refusals.spell
        if not spell.is_on:
            if self._probe is not None:
                self._probe.cancel()  # the next spell's first probe is not this one's last
                self._probe = None
        elif self._probe is None:
            loop = asyncio.get_running_loop()
            self._probe = loop.call_later(spell.probe_seconds(), self._send_probe)

    def _send_probe(self) -> None:
        self._probe = None
        self._touch_all(self._refusals.probe())
        self._plan_probe()  # whether or not there is anything to be sent of that name


def _repost(entry: Entry | None, now: float) -> Send | Wait | None:
    """Return the post of what is acknowledged, unless something newer may have landed."""
    if entry is None or entry.acknowledged is None or entry.in_doubt is not None:
        return None
    if not entry.is_refused and entry.not_before is not None and now < entry.not_before:
        return Wait(until=entry.not_before)  # an earlier one had no answer
    return Send(record=entry.acknowledged, workload=entry.workload, container=entry.container)


def _size(step: _Work) -> int:
    """Return the bytes, about, that a step adds to a batch."""
    return len(json.dumps(step.record.fields())) if isinstance(step, Send) else 0
