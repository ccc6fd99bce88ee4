"""
Delivery: from "this name may have changed" to "GitHub acknowledged what stands".

The queue holds deployment names, each at most once, never states: what is to be posted is worked
out when it is sent, so the newest state always wins and memory is bounded by the names. N workers
take names from it; a name is with one worker at a time, so two requests for it are never under
way together and an older state never follows a newer one.

Delivery is at least once. The intent is in the ledger before bytes leave and the acknowledgement
after GitHub gave it; a stop between the two means one more identical post.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol, assert_never

import structlog

from tracker.answers import Acknowledged, Answer, Failed, Limited, Unauthorized
from tracker.entries import (
    Confirm,
    Entry,
    Forget,
    Nothing,
    Send,
    State,
    Step,
    Wait,
    conclude,
    intend,
    next_step,
)
from tracker.errors import TrackerError
from tracker.inventory import Judgement
from tracker.records import Record
from tracker.workloads import Workload

__all__ = ["Absences", "Delivery", "Ledger", "Pause", "Reporter", "Sender"]

FIRST_PAUSE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 3600.0
MAX_STREAK = 6
"""Limits in a row that are counted: the sixth doubling is over the longest pause."""
DRAIN_LOOK_SECONDS = 0.1
"""How often a drain looks whether a pause has begun that it can't outlast."""
LEDGER_RETRY_SECONDS = 5.0
"""How long a name rests whose entry could not be written."""
BROKEN_NAME_SECONDS = 60.0
"""How long a name rests after an error of ours, so that a bug can't spin."""

_log = structlog.get_logger(__name__)


class Sender(Protocol):
    """Posts one record. Never raises for what a network or GitHub can do: it answers `Failed`."""

    async def send(self, record: Record) -> Answer:
        """Post a record and return what GitHub said."""
        ...


class Ledger(Protocol):
    """What GitHub acknowledged, by deployment name."""

    def get(self, name: str) -> Entry | None:
        """Return the entry of a name, or None when there is none."""
        ...

    async def put(self, entry: Entry) -> None:
        """Write an entry; it is kept when this returns."""
        ...

    async def forget(self, name: str) -> None:
        """Drop the entry of a name."""
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


class Pause:
    """
    What all workers wait for before they send: a first permission, and a time that moves later.

    `not_before` is in seconds of the running loop's clock.
    """

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._streak = 0
        self.not_before = 0.0

    def open(self) -> None:
        """Permit sending: what the cluster held at the start is known."""
        self._opened.set()

    @property
    def is_open(self) -> bool:
        """Tell whether sending was ever permitted."""
        return self._opened.is_set()

    @property
    def permits(self) -> bool:
        """Tell whether sending is permitted now."""
        return self.is_open and self.not_before <= asyncio.get_running_loop().time()

    async def passed(self) -> None:
        """Wait until sending is permitted."""
        await self._opened.wait()
        loop = asyncio.get_running_loop()
        # The time may move later while this waits for it.
        while (left := self.not_before - loop.time()) > 0:  # noqa: ASYNC110 - a time, not an event
            await asyncio.sleep(left)

    def note(self, answer: Answer) -> float:
        """Take note of an answer; return the seconds by which it stops everyone, mostly 0."""
        now = asyncio.get_running_loop().time()
        left = max(self.not_before - now, 0.0)
        match answer:
            case Limited(pause_seconds=seconds) if seconds is not None:
                pause = seconds
            case Limited() | Unauthorized():
                # What was under way when the pause began is told of the same limit once more.
                pause = left or min(FIRST_PAUSE_SECONDS * 2.0**self._streak, MAX_PAUSE_SECONDS)
            case Failed():
                return 0.0  # nobody said that the limit is over
            case _:
                self._streak = 0
                return 0.0
        if not left:
            self._streak = min(self._streak + 1, MAX_STREAK)
        self.not_before = max(self.not_before, now + pause)
        return pause


class Delivery:
    """
    The queue of names and its workers.

    `judge(name, held)` says what should stand, `held` being what GitHub holds as far as is known;
    `chance()` gives a random number in [0, 1) for jitter. `run` never returns; `touch` may be
    called before it runs.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        judge: Callable[[str, Record | None], Judgement],
        ledger: Ledger,
        sender: Sender,
        absences: Absences,
        reporter: Reporter,
        pause: Pause,
        workers: int,
        chance: Callable[[], float],
    ) -> None:
        self._judge = judge
        self._ledger = ledger
        self._sender = sender
        self._absences = absences
        self._reporter = reporter
        self._pause = pause
        self._workers = workers
        self._chance = chance
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._busy: set[str] = set()
        self._again: set[str] = set()
        self._reposts: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def backlog(self) -> int:
        """Return how many names wait for a worker or are with one."""
        return len(self._queued) + len(self._busy)

    def touch(self, name: str) -> None:
        """Have a name looked at: something about it may have changed."""
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

    async def drain(self, timeout_seconds: float) -> int:
        """
        Wait until what is due was sent, for `timeout_seconds` at most; return what is left.

        That counts the names that were not acknowledged, those that wait to be asked again
        included. A pause that outlasts the time is not waited for.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._pause.is_open and await self._idle(deadline):
                    due = min((timer.when() for timer in self._timers.values()), default=deadline)
                    if due >= deadline:
                        break
                    await asyncio.sleep(due - loop.time())
                    # The timer that is due puts its name into the queue in this turn of the loop.
                    await asyncio.sleep(0)
        names = self._queued | self._busy | self._timers.keys()
        return sum(1 for name in names if self._is_unsent(name))

    async def _idle(self, deadline: float) -> bool:
        """Wait until nothing is queued; return False as soon as a pause outlasts the deadline."""
        idle = asyncio.create_task(self._queue.join(), name="drain")
        try:
            while not idle.done() and self._pause.not_before < deadline:
                await asyncio.wait({idle}, timeout=DRAIN_LOOK_SECONDS)
            return idle.done() and self._pause.not_before < deadline
        finally:
            idle.cancel()

    def _is_unsent(self, name: str) -> bool:
        """Tell whether a name is to be sent, now or when a failure's wait is over."""
        entry = self._ledger.get(name)
        match self._next_step(name, entry):
            case Send():
                return True
            case Wait():
                return entry is not None and entry.state not in {State.NOT_FOUND, State.PARKED}
            case _:
                return False

    def _next_step(self, name: str, entry: Entry | None) -> Step:
        judgement = self._judge(name, None if entry is None else entry.held)
        now = asyncio.get_running_loop().time()
        confirmed = self._absences.confirmed(name)
        return next_step(judgement, entry, absence_confirmed=confirmed, now=now)

    async def _work(self) -> None:
        while True:
            name = await self._queue.get()
            self._queued.discard(name)
            self._busy.add(name)
            try:
                await self._advance(name)
            except TrackerError as error:
                # The ledger could not be written: what was not written has not happened.
                _log.error("put off", deployment_name=name, reason=str(error))
                self._look_again(name, asyncio.get_running_loop().time() + LEDGER_RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - the top of a worker's loop, told and looked at again
                # Whatever one name can do to us, the others go on; it is looked at again later.
                _log.exception("name failed", deployment_name=name)
                self._look_again(name, asyncio.get_running_loop().time() + BROKEN_NAME_SECONDS)
            finally:
                self._busy.discard(name)
                if name in self._again:
                    self._again.discard(name)
                    self.touch(name)
                self._queue.task_done()

    async def _advance(self, name: str) -> None:
        """Do the next step for a name."""
        await self._pause.passed()
        entry = self._ledger.get(name)
        match self._next_step(name, entry):
            case Send() as step:
                await self._send(entry, step)
                self.touch(name)
            case Wait(until=until):
                self._look_again(name, until)
            case Confirm(workload=workload, absent=absent):
                self._absences.want(name, workload, absent=absent)
            case Forget():
                self._absences.withdraw(name)
                await self._ledger.forget(name)
            case Nothing():
                self._absences.withdraw(name)
                if name in self._reposts and entry is not None:
                    await self._repost(entry)
            case never:
                assert_never(never)

    async def _repost(self, entry: Entry) -> None:
        """Post what is acknowledged again, unless something newer may have landed."""
        if entry.acknowledged is None or entry.in_doubt is not None:
            return
        send = Send(record=entry.acknowledged, workload=entry.workload, container=entry.container)
        await self._send(entry, send)
        self.touch(entry.deployment_name)

    async def _send(self, entry: Entry | None, send: Send) -> None:
        self._reposts.discard(send.record.deployment_name)
        intended = intend(entry, send)
        await self._ledger.put(intended)
        if not self._pause.permits:
            # A limit came while the intent was written. Nothing has left: nothing is open.
            await self._undo(entry, intended)
            return
        answer = await self._sender.send(send.record)
        concluded = conclude(
            intended, answer, now=asyncio.get_running_loop().time(), chance=self._chance()
        )
        if pause := self._pause.note(answer):
            _log.warning("sending paused", seconds=round(pause, 1), reason=concluded.reason)
        # What GitHub said is kept and told even when a stop cancels us here.
        kept = asyncio.ensure_future(self._keep(intended, concluded, answer))
        try:
            await asyncio.shield(kept)
        except asyncio.CancelledError:
            await asyncio.wait([kept])
            raise

    async def _undo(self, entry: Entry | None, intended: Entry) -> None:
        """Have the ledger say what it said before an intent."""
        if entry is None:
            await self._ledger.forget(intended.deployment_name)
        else:
            await self._ledger.put(entry)

    async def _keep(self, intended: Entry, concluded: Entry, answer: Answer) -> None:
        """Write down what came of a send, then tell it."""
        await self._ledger.put(concluded)
        record = intended.sent
        if record is None:
            return
        if isinstance(answer, Acknowledged):
            self._reporter.acknowledged(record)
        elif answer.reason != intended.reason:
            self._reporter.failed(record, answer.reason)

    def _look_again(self, name: str, when: float) -> None:
        loop = asyncio.get_running_loop()
        if (timer := self._timers.get(name)) is not None:
            timer.cancel()
        self._timers[name] = loop.call_at(when, self.touch, name)
