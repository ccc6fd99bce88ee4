"""
The watch: Kopf's handlers on pods, and how Kopf is run.

    deployment-tracker            `run` below: the tracker outlives Kopf, which is started again
                                  whenever it ends
    kopf run -A tracker/main.py   development: Kopf outlives nothing, the tracker is started and
                                  drained in its startup and cleanup handlers, settings come from
                                  the environment and `.env`

The handlers only take note of what a pod is now, since Kopf drops what goes wrong in them and
never retries it: they await nothing, and return nothing, for Kopf would write a returned value
into the pod. `on.event` brings everything, deletions included; `on.field` brings the change of
`status.phase` that makes a pod Running. Both say the same to the tracker, which hears the second
as no news. Nothing is ever written to a pod: what Kopf would store there is kept in memory.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import (
    AsyncIterator,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import click
import kopf
import structlog

from tracker import logs
from tracker.answers import clean_text
from tracker.app import Tracker, open_tracker
from tracker.backoff import delay_after
from tracker.inventory import Inventory
from tracker.settings import Settings, SettingsError, load

__all__ = ["run"]

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
CALM_SECONDS = 60.0
"""After this time without trouble, trouble is new."""
SPARE_PHASES = 1000
EXIT_CONFIGURATION = 2

_log = structlog.get_logger(__name__)

# The handlers. Kopf passes what it has by name and asks that the rest is taken, too.


@kopf.on.startup()
async def _start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: object) -> None:
    if "tracker" not in memo:
        context = _open_for_development()
        memo["tracker"] = await context.__aenter__()
        memo["context"] = context
    memo["phases"] = configure_kopf(settings, memo["tracker"])


@kopf.on.cleanup()
async def _stop(memo: kopf.Memo, **_: object) -> None:
    # Without a context of our own the tracker goes on, whatever becomes of this operator.
    context: AbstractAsyncContextManager[Tracker] | None = memo.get("context")
    if context is not None:
        await memo["tracker"].drain()
        await context.__aexit__(None, None, None)


@kopf.on.login(errors=kopf.ErrorsMode.TEMPORARY, backoff=1.0)
async def _login(memo: kopf.Memo, **_: object) -> kopf.AiohttpSession:
    # Kopf forgets credentials for good that failed once. A stray 401 does not make a token bad,
    # so each login counts as a better one than the last; what fails at once again waits.
    now = asyncio.get_running_loop().time()
    logins = memo.get("logins", 0)
    quick = (
        memo.get("quick_logins", 0) + 1 if now - memo.get("login_at", -inf) < CALM_SECONDS else 0
    )
    await asyncio.sleep(delay_after(quick, 1.0) if quick else 0)
    memo.update(logins=logins + 1, quick_logins=quick, login_at=now)
    connection = await memo["tracker"].cluster.connect()
    return kopf.AiohttpSession(
        server=connection.server, aiohttp_session=connection.session, priority=logins
    )


@kopf.on.event("", "v1", "pods")
async def _on_event(event: Mapping[str, Any], memo: kopf.Memo, **_: object) -> None:
    tracker: Tracker = memo["tracker"]
    pod = event["object"]
    if event["type"] == "DELETED":
        uid = pod["metadata"]["uid"]
        memo["phases"].forget(uid)
        tracker.lose(uid)
    else:
        tracker.see(pod)


@kopf.on.field("", "v1", "pods", field="status.phase", errors=kopf.ErrorsMode.IGNORED)
async def _on_phase(body: kopf.Body, memo: kopf.Memo, **_: object) -> None:
    tracker: Tracker = memo["tracker"]
    tracker.see(body)


def run(settings: Settings) -> int:
    """
    Run the tracker until it is told to stop; return the exit code.

    SIGTERM and SIGINT stop the watch and drain what is due; a second one ends that too. Raises
    `CredentialsError` before anything is connected to.
    """
    return asyncio.run(_serve(settings))


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
            yield MIN_RETRY_SECONDS + min(delay_after(attempts, chance()), MAX_RETRY_SECONDS)


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
        phase = body.get("status", {}).get("phase")
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
        if len(self._phases) > 2 * len(self._pods) + SPARE_PHASES:
            # Of a pod that went while the watch was away nobody tells that it is gone.
            self._phases = {uid: kept for uid, kept in self._phases.items() if uid in self._pods}
        self._phases[body["metadata"]["uid"]] = essence

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


# How `deployment-tracker` runs Kopf.


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_create_task)
    stop = asyncio.Event()
    signals = _Signals(loop=loop, stop=stop)
    signals.take()
    try:
        async with open_tracker(settings, environ=os.environ, stdout=sys.stdout) as tracker:
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


async def _watch(tracker: Tracker, stop: asyncio.Event, signals: "_Signals") -> None:
    """Run Kopf, again and again, until told to stop: it ends on much that will pass."""
    loop = asyncio.get_running_loop()
    chance = random.SystemRandom().random
    attempts = 0
    while not stop.is_set():
        began = loop.time()
        # In a task of its own, so that what marks Kopf's tasks as Kopf's stays in there.
        operator = asyncio.create_task(_operate(tracker, stop, signals), name="operator")
        try:
            await operator
            reason = "it ended by itself"
        except asyncio.CancelledError:
            operator.cancel()
            await asyncio.gather(operator, return_exceptions=True)
            raise
        except Exception as error:  # noqa: BLE001 - whatever ends Kopf, the tracker goes on
            reason = f"{type(error).__name__}: {clean_text(str(error))}"
        if stop.is_set():
            return
        attempts = 1 if loop.time() - began > CALM_SECONDS else attempts + 1
        delay = MIN_RETRY_SECONDS + min(delay_after(attempts, chance()), MAX_RETRY_SECONDS)
        _log.warning("the watch is started again", reason=reason, retry_seconds=round(delay, 1))
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await stop.wait()


async def _operate(tracker: Tracker, stop: asyncio.Event, signals: "_Signals") -> None:
    """Run one operator until it ends or `stop` is set."""
    _in_kopf.set(True)
    namespace = tracker.settings.namespace
    tasks = await kopf.spawn_tasks(
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
        settings=kopf.OperatorSettings(),
        memo=kopf.Memo(tracker=tracker),
        stop_flag=stop,
    )
    signals.take()  # Kopf took them
    await kopf.run_tasks(tasks, ignored=_NotKopfs())


class _Signals:
    """SIGTERM and SIGINT: the first sets `stop`, the second cancels the task that took them."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._loop = loop
        self._stop = stop
        self._task = asyncio.current_task(loop)
        self.hurried = False

    def take(self) -> None:
        """Become the one who is told of them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
        elif self._task is not None:
            self.hurried = True
            self._task.cancel()


# At its end an operator cancels every task of the loop that did not exist when it began, the
# HTTP client's in the middle of a post included. So tasks are marked at birth: Kopf's are those
# that were created in its context.

_in_kopf: ContextVar[bool] = ContextVar("in_kopf", default=False)
_kopfs_tasks: WeakSet[asyncio.Task[Any]] = WeakSet()


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


# How `kopf run` runs the tracker.


@asynccontextmanager
async def _open_for_development() -> AsyncIterator[Tracker]:
    """Yield a tracker with settings from the environment and `.env`."""
    try:
        settings = _settings_for_development()
    except SettingsError as error:
        click.echo(str(error), err=True)
        raise SystemExit(EXIT_CONFIGURATION) from None
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json", libraries=False)
    for warning in settings.warnings():
        _log.warning(warning)
    async with open_tracker(settings, environ=os.environ, stdout=sys.stdout) as tracker:
        yield tracker


def _settings_for_development() -> Settings:
    env_file = Path(".env")
    flags = {"namespace": _namespace_of_kopf_run()}
    return load(flags, os.environ, env_file if env_file.exists() else None)


def _namespace_of_kopf_run() -> str | None:
    """Return the namespace that `kopf run -n` was given, or None. Raises `SettingsError`."""
    context = click.get_current_context(silent=True)
    namespaces = context.params.get("namespaces", ()) if context is not None else ()
    if not namespaces:
        if os.environ.get("NAMESPACE") and context is not None:
            raise SettingsError(["NAMESPACE is set, but kopf run watches all: use -n NAMESPACE"])
        return None
    if len(namespaces) > 1 or not isinstance(namespaces[0], str):
        raise SettingsError(["kopf run -n: one namespace, or -A for all of them"])
    return namespaces[0]
