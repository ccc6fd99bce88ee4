"""
The watch: Kopf, set up to only ever read, run again and again inside a process that outlives it.

Kopf ends on much that will pass: an API server that answers nonsense, an error in mid-stream, a
refused token. The tracker with its queue and its ledger lives outside of it, so that an end of
Kopf is a gap in the watch and nothing more.

Four habits of Kopf need care. It takes the signals, which are ours. It kills the process ten
minutes after an operator ended, which is for processes that should have ended too. At its end it
cancels every task of the loop that is younger than the operator, ours included. And it can go on
without a watch, with no more than a warning: when discovery showed no pods, or when it was told to
come back in a year. So its watch is expected to show signs of life (`Pulse`).
"""

import asyncio
import os
import random
import sys
from collections.abc import Collection, Coroutine, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from itertools import count
from typing import Any, cast
from weakref import WeakSet

import kopf
import structlog

from tracker.answers import clean_text
from tracker.app import DRY_RUN, Tracker, open_tracker
from tracker.backoff import delay_after
from tracker.inventory import Inventory
from tracker.settings import Settings
from tracker.stopping import Signals

__all__ = [
    "CALM_SECONDS",
    "MAX_RETRY_SECONDS",
    "EndlessBackoffs",
    "PhasesInMemory",
    "Pulse",
    "configure_kopf",
    "serve",
]

FINALIZER = "deployment-tracker.invalid/never-set"
"""Kopf removes its own finalizer from what it handles; this one stands on no pod."""
WATCH_SECONDS = 300
"""After this the API server ends a watch and it is resumed; the client waits a little longer."""
SILENCE_SECONDS = 75.0
"""The API server sends a bookmark a minute; a watch that is silent for longer is dead."""
REQUEST_SECONDS = 60.0
CONNECT_SECONDS = 10.0
CHUNK = 500
IDLE_SECONDS = 0.1
"""How long Kopf keeps a pod's queue and body after its last event."""
MIN_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 20.0
AGAIN_SECONDS = 3.0
"""More between an end of Kopf and its start when it is not the first: a start takes six requests,
and an API server in trouble is to be asked no more than two a second."""
CALM_SECONDS = 60.0
"""After this time without trouble, trouble is new."""
LISTLESS_SECONDS = 120.0
"""After this without an answer about pods, Kopf asks for something else, or for nothing."""
WATCHLESS_SECONDS = WATCH_SECONDS + 2 * SILENCE_SECONDS
"""After this a watch that was granted is over, however it ended."""
SPARE_PHASES = 1000

_log = structlog.get_logger(__name__)
_in_kopf: ContextVar[bool] = ContextVar("in_kopf", default=False)
_kopfs_tasks: WeakSet[asyncio.Task[Any]] = WeakSet()


def configure_kopf(settings: kopf.OperatorSettings, tracker: Tracker) -> "PhasesInMemory":
    """Set Kopf up to only ever read, to be frugal and not to give up; return its storage."""
    phases = PhasesInMemory(pods=tracker.inventory)
    settings.process.ultimate_exiting_timeout = None  # the end of an operator is not ours
    settings.persistence.finalizer = FINALIZER
    settings.persistence.diffbase_storage = phases
    settings.persistence.progress_storage = _NoProgress()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.watching.chunk_size = CHUNK
    settings.watching.initial_streaming = False
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + SILENCE_SECONDS
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = EndlessBackoffs()
    return phases


class EndlessBackoffs:
    """Seconds between a request's retries, without an end; each request iterates it anew."""

    def __iter__(self) -> Iterator[float]:
        chance = random.SystemRandom().random
        for attempts in count(1):
            yield _retry_after(attempts, chance())


def _retry_after(attempts: int, chance: float) -> float:
    return MIN_RETRY_SECONDS + min(delay_after(attempts, 1.0), MAX_RETRY_SECONDS) * chance


class Pulse:
    """
    Signs of life of a watch: each says until when the next one is due.

    Times are those of the running loop.
    """

    def __init__(self) -> None:
        self._due = 0.0
        self._moved = asyncio.Event()

    def listing(self) -> None:
        """Take note that a page of a list of pods was granted."""
        self._expect(LISTLESS_SECONDS)

    def watching(self) -> None:
        """Take note that a watch was granted."""
        self._expect(WATCHLESS_SECONDS)

    async def lost(self) -> None:
        """Return when the next sign of life is overdue; the first is due as after a list."""
        self._expect(LISTLESS_SECONDS)
        while True:
            self._moved.clear()
            try:
                async with asyncio.timeout_at(self._due):
                    await self._moved.wait()
            except TimeoutError:
                return

    def _expect(self, seconds: float) -> None:
        self._due = asyncio.get_running_loop().time() + seconds
        self._moved.set()


class PhasesInMemory(kopf.DiffBaseStorage):
    """
    What the field handler saw last of each pod: its phase, by uid, and nothing on the pod.

    `pods` are those that live: what was stored of others is dropped in time.
    """

    def __init__(self, *, pods: Inventory) -> None:
        super().__init__()
        self._pods = pods
        self._phases: dict[str, kopf.BodyEssence] = {}

    def __len__(self) -> int:
        return len(self._phases)

    def build(
        self,
        *,
        body: kopf.Body,
        extra_fields: Iterable[object] | None = None,  # noqa: ARG002 - Kopf's signature
    ) -> kopf.BodyEssence:
        """Return the one field that is watched: what Kopf would keep is most of the pod."""
        return self._essence(body)

    @staticmethod
    def _essence(body: Mapping[str, Any]) -> kopf.BodyEssence:
        status = body.get("status")
        phase = status.get("phase") if isinstance(status, Mapping) else None
        return cast("kopf.BodyEssence", {"status": {"phase": phase}} if phase else {})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return what was stored last, or None."""
        return self._phases.get(body["metadata"]["uid"])

    def store(
        self,
        *,
        body: kopf.Body,
        patch: kopf.Patch,  # noqa: ARG002 - it stays empty: nothing is written to the pod
        essence: kopf.BodyEssence,
    ) -> None:
        """Keep it in memory."""
        self._keep(body["metadata"]["uid"], essence)

    def note(self, pod: Mapping[str, Any]) -> None:
        """Keep a pod's phase as if the field handler had seen it."""
        self._keep(pod["metadata"]["uid"], self._essence(pod))

    def is_news(self, pod: Mapping[str, Any]) -> bool:
        """Tell whether a pod has another phase than the one that is kept."""
        return self._phases.get(pod["metadata"]["uid"]) != self._essence(pod)

    def _keep(self, uid: str, essence: kopf.BodyEssence) -> None:
        if len(self._phases) > 2 * len(self._pods) + SPARE_PHASES:
            # Of a pod that went while the watch was away nobody tells that it is gone.
            self._phases = {uid: kept for uid, kept in self._phases.items() if uid in self._pods}
        self._phases[uid] = essence

    def forget(self, uid: str) -> None:
        """Drop what was stored of a pod that is gone."""
        self._phases.pop(uid, None)


class _NoProgress(kopf.ProgressStorage):
    """Handlers that succeed at once, and whose errors are ignored, have no progress to keep."""

    def fetch(self, **_: object) -> None:
        """Return nothing: each handler starts anew."""

    def store(self, **_: object) -> None:
        """Keep nothing."""

    def purge(self, **_: object) -> None:
        """Keep nothing."""

    def touch(self, **_: object) -> None:
        """Write nothing to the pod."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Return the essence as it is: it holds no progress."""
        return essence


async def serve(settings: Settings, *, dry_run: bool = False) -> int:
    """
    Run the tracker and the watch until told to stop; return the exit code.

    The first SIGTERM or SIGINT ends the watch and drains what is due; a second one ends that too.
    """
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_create_task)
    loop.set_exception_handler(_tell)
    signals = Signals()
    stop = signals.stop
    signals.take()
    if dry_run:
        _log.info(DRY_RUN)
    try:
        async with open_tracker(
            settings, environ=os.environ, stdout=sys.stdout, dry_run=dry_run
        ) as tracker:
            watch = asyncio.create_task(_watch(tracker, stop, signals), name="watch")
            failure = asyncio.create_task(tracker.failure(), name="failure")
            stopped = asyncio.create_task(stop.wait(), name="stopped")
            try:
                await asyncio.wait({watch, failure, stopped}, return_when=asyncio.FIRST_COMPLETED)
                stop.set()
                await watch
                if failure.done():
                    failure.result()
                await tracker.drain()
            finally:
                for task in (watch, failure, stopped):
                    task.cancel()
                await asyncio.gather(watch, failure, stopped, return_exceptions=True)
    except asyncio.CancelledError:
        if not signals.hurried:
            raise
        _log.warning("stopped at once, as told twice")
        return 1
    return 0


async def _watch(tracker: Tracker, stop: asyncio.Event, signals: Signals) -> None:
    """Run Kopf, again and again, until told to stop: it ends on much that will pass."""
    loop = asyncio.get_running_loop()
    chance = random.SystemRandom().random
    attempts = 0
    while not stop.is_set():
        began = loop.time()
        # In a task of its own, so that what marks Kopf's tasks as Kopf's stays in there.
        operator = asyncio.create_task(_operate(tracker, stop, signals), name="operator")
        try:
            await asyncio.wait({operator})
        except asyncio.CancelledError:
            operator.cancel()
            await asyncio.gather(operator, return_exceptions=True)
            raise
        reason = _reason(operator)
        if stop.is_set():
            return
        tracker.condition.ended()
        attempts = 1 if loop.time() - began > CALM_SECONDS else attempts + 1
        delay = _retry_after(attempts, chance()) + (AGAIN_SECONDS if attempts > 1 else 0.0)
        _log.warning("the watch is started again", reason=reason, retry_seconds=round(delay, 1))
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await stop.wait()


def _reason(operator: asyncio.Task[str]) -> str:
    """Return why an operator that is done has ended: whatever it is, the tracker goes on."""
    if operator.cancelled():
        return "it was cancelled"
    if (error := operator.exception()) is not None:
        return f"{type(error).__name__}: {clean_text(str(error))}"
    return operator.result()


async def _operate(tracker: Tracker, stop: asyncio.Event, signals: Signals) -> str:
    """Run one operator until it ends, `stop` is set or its pulse is lost; return which it was."""
    pulse = Pulse()
    end = asyncio.Event()
    waits = {
        asyncio.create_task(stop.wait(), name="stopped"): "it was told to stop",
        asyncio.create_task(pulse.lost(), name="pulse"): "nothing was heard from it for too long",
    }
    for wait in waits:
        wait.add_done_callback(lambda _: end.set())
    try:
        _in_kopf.set(True)
        namespace = tracker.settings.namespace
        tasks = await kopf.spawn_tasks(
            clusterwide=not namespace,
            namespaces=[namespace] if namespace else [],
            settings=kopf.OperatorSettings(),
            # What it would find out by itself asks for the user's name, which may have none.
            identity=cast("Any", "deployment-tracker"),
            memo=kopf.Memo(tracker=tracker, pulse=pulse),
            stop_flag=end,
        )
        signals.take()  # Kopf took them
        for task in tasks:
            # Once one has ended all will; what waits for the flag would hold that up by 5 seconds.
            task.add_done_callback(lambda _: end.set())
        await kopf.run_tasks(tasks, ignored=_NotKopfs())
        return next((reason for wait, reason in waits.items() if wait.done()), "it ended by itself")
    finally:
        for wait in waits:
            wait.cancel()


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """
    Tell of an error that nobody looks at, such as that of the second half of a failed discovery.

    asyncio would show the exception's repr, which for those of the HTTP client holds the headers
    of the request, and the token in them.
    """
    error = context.get("exception")
    reason = f"{type(error).__name__}: {clean_text(str(error))}" if error is not None else ""
    _log.error("unhandled in the background", message=context.get("message", ""), reason=reason)


# At its end an operator cancels every task of the loop that did not exist when it began, the
# HTTP client's in the middle of a post included. So tasks are marked at birth: Kopf's are those
# that were created in its context.


def _create_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **kwargs: Any,  # noqa: ANN401 - what the running version of asyncio hands through
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **kwargs)
    if _in_kopf.get():
        _kopfs_tasks.add(task)
    return task


class _NotKopfs(Collection[asyncio.Task[Any]]):
    """All tasks but Kopf's, those that are yet to come included."""

    def __contains__(self, task: object) -> bool:
        return task not in _kopfs_tasks

    def __iter__(self) -> Iterator[asyncio.Task[Any]]:
        return (task for task in asyncio.all_tasks() if task in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
