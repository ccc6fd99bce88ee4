"""
`once`: one full convergence without a watch, for a CronJob, a pipeline or a person.

A tracker is opened as for `run`, but a full list of the pods takes the place of Kopf: it is listed
until everything was seen, then what is due is posted and what is absent confirmed by the very tasks
of the tracker, compared with the cluster once more, and posted again. What comes after that is for
the next time. It ends when nothing is due any more: what GitHub refused is not waited for, but
told, and makes for another exit code.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from math import inf
from typing import Final

import structlog

from tracker.app import DRY_RUN, Ledger, Tracker, open_tracker
from tracker.backoff import delay_after
from tracker.commands.output import EXIT_FAILURE, EXIT_OK, make_console, make_table
from tracker.commands.progress import Progress
from tracker.entries import Account, Entry, account_of
from tracker.errors import ListError
from tracker.pacing import Pace
from tracker.settings import Settings
from tracker.stopping import Signals

__all__ = [
    "converge",
    "once",
    "retried",
    "run_until_stopped",
    "see_everything",
    "stopped_at_once",
    "tell",
    "wait_until_idle",
]

LOOK_SECONDS: Final = 0.1
"""How often it is looked whether anything is due still."""
RELIST_SECONDS: Final = 3.0
"""How long the tracker may wait for a pod that no list brought before all are listed again."""
MAX_TOLD: Final = 20
"""Names that are told of at the end; `status` has all of them."""

_log = structlog.get_logger(__name__)


def once(settings: Settings, *, seconds: float, dry_run: bool) -> int:
    """
    Converge once, in so many seconds at most; return the exit code.

    Raises `CredentialsError`, `ConnectionSettingError` or `LedgerError` before anything is
    connected to.
    """
    return asyncio.run(_once(settings, seconds=seconds, dry_run=dry_run))


async def _once(settings: Settings, *, seconds: float, dry_run: bool) -> int:
    signals = Signals()
    signals.take()
    if dry_run:
        _log.info(DRY_RUN)
    try:
        with Progress("converging", unit="names", settings=settings) as progress:
            async with open_tracker(
                settings,
                environ=os.environ,
                stdout=progress.stdout,
                dry_run=dry_run,
                serves=False,
            ) as tracker:
                deadline = asyncio.get_running_loop().time() + seconds
                done = await run_until_stopped(
                    lambda: converge(tracker, progress, deadline=deadline),
                    failure=tracker.failure,
                    drain=tracker.drain,
                    signals=signals,
                    deadline=deadline,
                )
                left = tracker.unfinished
                refused = tracker.unacknowledged()
                names = len(tracker.names)
                foreign = tracker.is_foreign
    except asyncio.CancelledError:
        if not signals.hurried:
            raise
        return stopped_at_once()
    good = done and not foreign
    return tell(names=names, left=left, refused=refused, true=good, dry_run=dry_run)


async def run_until_stopped(
    work: Callable[[], Coroutine[None, None, bool]],
    *,
    failure: Callable[[], Coroutine[None, None, None]],
    drain: Callable[[], Awaitable[object]],
    signals: Signals,
    deadline: float | None = None,
) -> bool:
    """
    Do some work and return what comes of it, or drain and return False when it is cut short.

    That is by a signal or by the deadline. `failure` runs beside it and never ends by itself; what
    it raises ends the work.
    """
    tasks = worker, beside, stopped = (
        asyncio.create_task(work(), name="work"),
        asyncio.create_task(failure(), name="failure"),
        asyncio.create_task(signals.stop.wait(), name="stopped"),
    )
    now = asyncio.get_running_loop().time()
    seconds = None if deadline is None else max(deadline - now, 0.0)
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if beside in done:
            beside.result()
        if worker in done:
            return worker.result()
        _log.warning("told to stop" if stopped in done else "out of time")
        worker.cancel()
        await drain()
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def stopped_at_once() -> int:
    """Tell of the end by a second signal; return the exit code."""
    _log.warning("stopped at once, as told twice")
    return EXIT_FAILURE


async def converge(tracker: Tracker, progress: Progress, *, deadline: float) -> bool:
    """
    Bring GitHub in step with the cluster; return whether nothing is due any more.

    A pause that outlasts the deadline is not waited for.
    """

    async def idle() -> bool:
        return await wait_until_idle(
            lambda: tracker.unfinished,
            lambda: tracker.names,
            ledger=tracker.ledger,
            since=since,
            pace=tracker.pace,
            progress=progress,
            deadline=deadline,
        )

    since = asyncio.get_running_loop().time()
    await see_everything(tracker)
    if not await idle():
        return False
    await retried(tracker.reconcile)
    return await idle()


async def see_everything(tracker: Tracker) -> None:
    """Show the tracker all pods, until it has seen what its own list of them holds."""
    while not tracker.pace.is_open:
        await retried(tracker.see_all)
        with suppress(TimeoutError):
            async with asyncio.timeout(RELIST_SECONDS):
                await tracker.pace.opened()


async def retried(ask: Callable[[], Awaitable[None]]) -> None:
    """Ask the API server until it answers, with backoff."""
    attempts = 0
    while True:
        try:
            await ask()
        except ListError as error:
            attempts += 1
            delay = delay_after(attempts, 1.0)
            _log.warning("pods can't be listed", reason=str(error), retry_seconds=delay)
            await asyncio.sleep(delay)
        else:
            return


async def wait_until_idle(  # noqa: PLR0913 - what is looked at, and what is shown of it
    unfinished: Callable[[], Collection[str]],
    names: Callable[[], Collection[str]],
    *,
    ledger: Ledger,
    since: float,
    pace: Pace,
    progress: Progress,
    deadline: float = inf,
) -> bool:
    """
    Wait until no name is unfinished; return False when a pause outlasts the deadline.

    Of `names` those count as done, for who looks on, that were answered `since`.
    """
    while left := unfinished():
        total = len({*names(), *left})
        undone = sum(not _is_answered(ledger.get(name), since) for name in left)
        progress.show(total - undone, total)
        if pace.not_before > deadline:
            seconds = pace.not_before - asyncio.get_running_loop().time()
            _log.error("GitHub asks for a longer pause than there is time", seconds=round(seconds))
            return False
        await asyncio.sleep(LOOK_SECONDS)
    total = len(names())
    progress.show(total, total)
    return True


def _is_answered(entry: Entry | None, since: float) -> bool:
    """Tell whether GitHub answered to an entry's record since then, and all but a look is done."""
    if entry is None:
        return False
    account = account_of(entry)
    if account is Account.ACKNOWLEDGED:
        return entry.acknowledged_at is not None and entry.acknowledged_at >= since
    return account is not Account.PENDING


def tell(
    *,
    names: int,
    left: Collection[str],
    refused: Sequence[Entry],
    true: bool,
    dry_run: bool = False,
) -> int:
    """
    Tell on stderr what came of it, or would have in a dry run; return the exit code.

    `left` are the names of which something is due still, `refused` the entries that GitHub did not
    acknowledge, `true` says that it came to its end.
    """
    waiting = len(set(left) - {entry.deployment_name for entry in refused})
    true = true and not refused and not left
    if refused:
        shown = sorted(refused, key=lambda entry: entry.deployment_name)[:MAX_TOLD]
        rows = [
            # What follows the colon is advice, the same for many names.
            (entry.deployment_name, account_of(entry).value, entry.reason.partition(":")[0])
            for entry in shown
        ]
        make_console(sys.stderr).print(make_table(("deployment name", "state", "reason"), rows))
    level = _log.info if true else _log.error
    level(
        f"{'' if true else 'not '}everything {'would be' if dry_run else 'is'} true",
        names=names,
        not_acknowledged=len(refused),
        waiting=waiting,
    )
    return EXIT_OK if true else EXIT_FAILURE
