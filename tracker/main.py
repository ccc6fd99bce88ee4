"""
The handlers on pods, and `kopf run -A tracker/main.py`.

The handlers only take note of what a pod is now, since Kopf drops what goes wrong in them and
never retries it: they await nothing, and return nothing, for Kopf would write a returned value
into the pod. `on.event` brings everything, deletions included; `on.field` brings the change of
`status.phase` that makes a pod Running. Both say the same to the tracker, which hears the second
as no news. Of a pod in a list only `on.event` tells: nothing has changed, and Kopf's way to a
second handler is a third of what a large start costs. Nothing is ever written to a pod: what Kopf
would store there is kept in memory.

Under `deployment-tracker` the tracker outlives Kopf, which is started again whenever it ends
(`tracker.watch`). Under `kopf run`, for development, it is the other way round: the tracker is
started and drained in Kopf's startup and cleanup handlers, with settings from the environment and
`.env`, and the process may end when Kopf does.
"""

import asyncio
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from pathlib import Path
from typing import Any

import click
import kopf

from tracker import logs
from tracker.advice import located
from tracker.app import Tracker, open_tracker
from tracker.backoff import delay_after
from tracker.errors import CredentialsError, TrackerError
from tracker.settings import Settings, SettingsError, load
from tracker.watch import (
    CALM_SECONDS,
    MAX_RETRY_SECONDS,
    PhasesInMemory,
    Pulse,
    configure_kopf,
    serve,
)

__all__ = ["run"]

EXIT_CONFIGURATION = 2
LOGIN_RETRY_SECONDS = 1.0
"""Until credentials that could not be read are read again."""

# The handlers. Kopf passes what it has by name and asks that the rest is taken, too.


@kopf.on.startup()
async def _start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: object) -> None:
    if "tracker" not in memo:
        context = _open_for_development()
        try:
            memo["tracker"] = await context.__aenter__()
        except TrackerError as error:
            # Kopf would try again in a minute, behind a traceback: nothing will have changed.
            raise _end_of_kopf_run(error) from None
        memo["context"] = context
    memo.setdefault("pulse", Pulse())
    memo["phases"] = configure_kopf(settings, memo["tracker"])


@kopf.on.cleanup()
async def _stop(memo: kopf.Memo, **_: object) -> None:
    # Without a context of our own the tracker goes on, whatever becomes of this operator.
    context: AbstractAsyncContextManager[Tracker] | None = memo.get("context")
    if context is not None:
        await memo["tracker"].drain()
        await context.__aexit__(None, None, None)


@kopf.on.login(errors=kopf.ErrorsMode.TEMPORARY, backoff=LOGIN_RETRY_SECONDS)
async def _login(memo: kopf.Memo, **_: object) -> kopf.AiohttpSession:
    # Kopf forgets credentials for good that failed once. A stray 401 does not make a token bad,
    # so each login counts as a better one than the last; what fails at once again waits.
    now = asyncio.get_running_loop().time()
    logins = memo.get("logins", 0)
    quick = (
        memo.get("quick_logins", 0) + 1 if now - memo.get("login_at", -inf) < CALM_SECONDS else 0
    )
    await asyncio.sleep(min(delay_after(quick, 1.0), MAX_RETRY_SECONDS) if quick else 0)
    memo.update(logins=logins + 1, quick_logins=quick, login_at=now)
    tracker: Tracker = memo["tracker"]
    pulse: Pulse = memo["pulse"]
    tracker.condition.asked()  # whoever looks for credentials tries, too
    try:
        connection = await tracker.cluster.connect(
            on_ask=tracker.watch_asked,
            on_list=tracker.watch_began_anew,
            on_page=_each(pulse.listing, tracker.condition.granted),
            on_watch=_each(pulse.watching, tracker.condition.granted),
        )
    except CredentialsError as error:
        raise kopf.TemporaryError(str(error), delay=LOGIN_RETRY_SECONDS) from None
    return kopf.AiohttpSession(
        server=connection.server, aiohttp_session=connection.session, priority=logins
    )


def _each(*callbacks: Callable[[], None]) -> Callable[[], None]:
    """Return what calls all of these."""

    def call() -> None:
        for callback in callbacks:
            callback()

    return call


@kopf.on.event("", "v1", "pods")
async def _on_event(event: Mapping[str, Any], memo: kopf.Memo, **_: object) -> None:
    tracker: Tracker = memo["tracker"]
    pod = event["object"]
    tracker.metrics.watched(event["type"])
    if event["type"] == "DELETED":
        uid = pod["metadata"]["uid"]
        memo["phases"].forget(uid)
        tracker.lose(uid)
    else:
        if event["type"] is None:
            memo["phases"].note(pod)
        tracker.see(pod)


def _has_changed(body: kopf.Body, memo: kopf.Memo, **_: object) -> bool:
    """
    Tell whether the field handler has not seen the phase that a pod has now.

    Kopf takes a pod in a list for a new one, and a handler's call costs it as much as all the rest.
    """
    phases: PhasesInMemory = memo["phases"]
    return phases.is_news(body)


@kopf.on.field(
    "", "v1", "pods", field="status.phase", when=_has_changed, errors=kopf.ErrorsMode.IGNORED
)
async def _on_phase(body: kopf.Body, memo: kopf.Memo, **_: object) -> None:
    tracker: Tracker = memo["tracker"]
    tracker.see(body)


def run(settings: Settings, *, dry_run: bool = False) -> int:
    """
    Run the tracker until it is told to stop; return the exit code.

    SIGTERM and SIGINT stop the watch and drain what is due; a second one ends that too. Raises
    `CredentialsError` before anything is connected to. In a `dry_run` nothing is sent to GitHub.
    """
    return asyncio.run(serve(settings, dry_run=dry_run))


# How `kopf run` runs the tracker.


@asynccontextmanager
async def _open_for_development() -> AsyncIterator[Tracker]:
    """Yield a tracker with settings from the environment and `.env`."""
    try:
        settings = _settings_for_development()
    except SettingsError as error:
        raise _end_of_kopf_run(error) from None
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json", libraries=False)
    async with open_tracker(settings, environ=os.environ, stdout=sys.stdout) as tracker:
        yield tracker


def _end_of_kopf_run(error: Exception) -> SystemExit:
    """Tell what can't be used, and return what ends the process."""
    for mistake in str(error).splitlines():
        click.echo(located(mistake), err=True)
    # What Kopf had not begun to await by then is no news to anybody.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    return SystemExit(EXIT_CONFIGURATION)


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
