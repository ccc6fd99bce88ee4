"""
`once --retire`: take back what this identity's records say, for an uninstall or a rename.

Whatever may stand as deployed is posted as decommissioned, whether it runs or not: the cluster is
not asked, so that it may be gone already. The ledger says what stands, so there must be one, and
nobody else may have it. It is the delivery of the operator that posts, at its pace and with its
care for what is refused; only its judge is another one, to whom nothing runs any more. A tracker
that is started afterwards posts again what it finds running.
"""

import asyncio
import os
import random
import sys
from contextlib import AsyncExitStack
from typing import TextIO

import click

from tracker.app import (
    Ledger,
    copy_ledger,
    make_lines,
    make_pace,
    open_github,
    open_ledger,
)
from tracker.commands.once import run_until_stopped, stopped_at_once, tell, wait_until_idle
from tracker.commands.output import EXIT_FAILURE, EXIT_OK
from tracker.commands.progress import Progress
from tracker.delivery import Delivery, Sender
from tracker.entries import Account, account_of
from tracker.errors import LedgerLockedError, LedgerUnusableError
from tracker.github import DryRun
from tracker.inventory import Absent
from tracker.ledger_reader import read_ledger
from tracker.settings import Settings
from tracker.stopping import Signals
from tracker.workloads import Workload

__all__ = ["retire"]


class _Gone:
    """Confirms every absence: that nothing is to stand any more is what was asked for."""

    def confirmed(self, name: str) -> bool:  # noqa: ARG002 - whichever it is
        """Say that it is."""
        return True

    def want(self, name: str, workload: Workload, *, absent: bool) -> None:
        """Do nothing: it is confirmed."""

    def withdraw(self, name: str) -> None:
        """Do nothing: it stays confirmed."""


def retire(settings: Settings, *, seconds: float, yes: bool, dry_run: bool) -> int:
    """
    Decommission all that may stand as deployed, in so many seconds at most; return the exit code.

    Without `yes` (and but for a dry run) somebody is asked. Raises `ConnectionSettingError` or
    `LedgerError` before anything is connected to.
    """
    path = settings.ledger_path
    if path is None:
        raise LedgerUnusableError(
            "LEDGER_PATH is empty: only a ledger knows what stands, so there is nothing to retire"
            " by; set it to the file that the tracker had"
        )
    reading = read_ledger(path, settings.identity)
    if reading.owned and not dry_run:
        raise LedgerLockedError(
            f"the ledger {path} is in use by another process: stop that one first, it would post"
            " again what runs"
        )
    standing = sum(1 for entry in reading.entries if entry.may_stand)
    for other, count in reading.others.items():
        click.echo(
            f"{_records(count)} of {other} may stand too and nothing is done"
            " about that: to retire it takes the settings that it was posted with",
            err=True,
        )
    if not standing:
        click.echo(f"nothing of {settings.identity} stands: there is nothing to retire", err=True)
        return EXIT_FAILURE if reading.others else EXIT_OK
    if not yes and not dry_run and not _is_wanted(settings, standing):
        return EXIT_FAILURE
    code = asyncio.run(_retire(settings, seconds=seconds, dry_run=dry_run))
    # The volume with the ledger may be deleted next, and nothing else knows of these.
    return EXIT_FAILURE if reading.others else code


def _is_wanted(settings: Settings, standing: int) -> bool:
    what = f"{_records(standing)} of {settings.identity}"
    question = f"Decommission {what}? What still runs is no exception."
    stdin: TextIO | None = sys.stdin  # None where it was closed (`<&-`)
    if stdin is None or not stdin.isatty():
        click.echo(f"{question} Nobody is there to ask: say --yes.", err=True)
        return False
    return click.confirm(question, err=True)


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"


async def _retire(settings: Settings, *, seconds: float, dry_run: bool) -> int:
    signals = Signals()
    signals.take()
    began = asyncio.get_running_loop().time()
    deadline = began + seconds
    try:
        with Progress("retiring", unit="names", settings=settings) as progress:
            async with AsyncExitStack() as stack:
                ledger: Ledger
                sender: Sender
                if dry_run:
                    ledger, sender = copy_ledger(settings), DryRun()
                else:
                    ledger = await stack.enter_async_context(open_ledger(settings))
                    sender = await stack.enter_async_context(
                        open_github(settings, environ=os.environ)
                    )
                pace = make_pace(settings, ledger, dry_run=dry_run)
                delivery = Delivery(
                    judge=lambda _name, _held: Absent(),
                    ledger=ledger,
                    sender=sender,
                    absences=_Gone(),
                    reporter=make_lines(settings, progress.stdout, dry_run=dry_run),
                    pace=pace,
                    workers=settings.workers,
                    batches=bool(settings.cluster) and settings.bulk_cluster_sync,
                    chance=random.SystemRandom().random,
                )
                names = [entry.deployment_name for entry in ledger.entries()]
                for name in names:
                    delivery.touch(name)
                pace.open()
                done = await run_until_stopped(
                    lambda: wait_until_idle(
                        lambda: delivery.unfinished,
                        lambda: names,
                        ledger=ledger,
                        since=began,
                        pace=pace,
                        progress=progress,
                        deadline=deadline,
                    ),
                    failure=delivery.run,
                    drain=lambda: delivery.drain(settings.drain_timeout.total_seconds()),
                    signals=signals,
                    deadline=deadline,
                )
                left = delivery.unfinished
                refused = [
                    entry
                    for entry in ledger.entries()
                    if account_of(entry) is not Account.ACKNOWLEDGED
                ]
    except asyncio.CancelledError:
        if not signals.hurried:
            raise
        return stopped_at_once()
    return tell(names=len(names), left=left, refused=refused, true=done, dry_run=dry_run)
