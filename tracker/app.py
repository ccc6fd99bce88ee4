"""
Wiring: from settings to a running tracker, without Kopf.

`Tracker` is what lives as long as the process: the inventory, the queue with its workers, the
lists, the client for GitHub. It is told of pods (`see`, `lose`) by whoever watches them, so that
the watch may fail and start again without any of it being lost.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TextIO

import structlog

from tracker import __version__
from tracker.cluster import Cluster
from tracker.delivery import Delivery, Pause
from tracker.github import GitHub
from tracker.inventory import Inventory
from tracker.ledger import MemoryLedger
from tracker.logs import Lines
from tracker.pods import read_pod
from tracker.reconcile import Absences, Sightings, see_everything
from tracker.records import Scope
from tracker.settings import Settings

__all__ = ["Tracker", "open_tracker"]

USER_AGENT = f"deployment-tracker/{__version__}"

_log = structlog.get_logger(__name__)


class Tracker:
    """
    The parts of a running tracker and the few ways into them.

    Build it with `open_tracker`, which also runs and stops its tasks.
    """

    def __init__(
        self, *, settings: Settings, cluster: Cluster, github: GitHub, stdout: TextIO
    ) -> None:
        chance = random.SystemRandom().random
        self.settings = settings
        self.cluster = cluster
        self.ledger = MemoryLedger()
        self.pause = Pause()
        self.inventory = Inventory(template=settings.dn_template)
        self._chance = chance
        self._sightings = Sightings(known=self.inventory.__contains__)
        self._absences = Absences(
            lists=cluster,
            sightings=self._sightings,
            living=self.inventory.living,
            touch=self._touch,
            chance=chance,
            delay_seconds=settings.decommission_delay.total_seconds(),
            cronjob_seconds=settings.cronjob_hold.total_seconds(),
            spans_namespaces="{{namespace}}" not in settings.dn_template,
        )
        self._delivery = Delivery(
            judge=self.inventory.judge,
            ledger=self.ledger,
            sender=github,
            absences=self._absences,
            reporter=Lines(
                stream=stdout,
                now=lambda: datetime.now(tz=UTC),
                as_json=settings.log_format == "json",
            ),
            pause=self.pause,
            workers=settings.workers,
            chance=chance,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._shared: set[str] = set()

    def see(self, raw: object) -> None:
        """Take note of a pod as the API server tells of it (decoded JSON). Never raises."""
        pod = read_pod(raw, excluded_namespaces=self.settings.exclude_namespaces)
        if pod.uid:
            self._change(pod.uid, self.inventory.observe(pod))

    def lose(self, uid: str) -> None:
        """Take note that the pod of this uid is gone."""
        self._change(uid, self.inventory.remove(uid))

    @property
    def ready(self) -> bool:
        """Tell whether everything the cluster held at the start was seen."""
        return self.pause.is_open

    def start(self) -> None:
        """Start the tasks. None of them ever ends by itself but the first list."""
        for name, work in (
            ("first-list", self._begin()),
            ("delivery", self._delivery.run()),
            ("absences", self._absences.run()),
        ):
            self._tasks.append(asyncio.create_task(work, name=name))

    async def failure(self) -> None:
        """Wait until a task ends that never should; raise what ended it."""
        done, _ = await asyncio.wait(self._tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        message = f"{', '.join(task.get_name() for task in done)} ended by itself"
        raise RuntimeError(message)

    async def drain(self) -> None:
        """Send what is due, for the drain timeout at most, and say what is left."""
        seconds = self.settings.drain_timeout.total_seconds()
        left = await self._delivery.drain(seconds)
        if left:
            _log.warning("stopped with names not sent", names=left, drain_seconds=seconds)
        else:
            _log.info("stopped with everything sent")
        skipped = self.inventory.skipped()
        if skipped:
            counts = {reason.value: count for reason, count in sorted(skipped.items())}
            _log.info("not recorded", **counts)

    async def stop(self) -> None:
        """Cancel the tasks and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self) -> None:
        await see_everything(lists=self.cluster, sightings=self._sightings, chance=self._chance)
        names = len(self.inventory.names())
        _log.info("in step with the cluster", pods=len(self.inventory), names=names)
        self.pause.open()

    def _change(self, uid: str, names: frozenset[str]) -> None:
        self._sightings.note(uid)
        for name in names:
            self._absences.withdraw(name)
            self._delivery.touch(name)

    def _touch(self, name: str) -> None:
        self._delivery.touch(name)


@asynccontextmanager
async def open_tracker(
    settings: Settings, *, environ: Mapping[str, str], stdout: TextIO
) -> AsyncIterator[Tracker]:
    """
    Yield a tracker whose tasks run; stop them and close what it opened at the end.

    Raises `CredentialsError` before anything is connected to.
    """
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            Cluster(
                kubeconfig=settings.kubeconfig,
                environ=environ,
                namespace=settings.namespace,
                user_agent=USER_AGENT,
            )
        )
        server = await cluster.check_credentials()
        github = await stack.enter_async_context(
            GitHub(
                base_url=settings.base_url,
                scope=Scope(
                    org=settings.org,
                    logical_environment=settings.logical_environment,
                    physical_environment=settings.physical_environment,
                    cluster=settings.cluster,
                ),
                token=settings.api_token.get_secret_value(),
                user_agent=USER_AGENT,
            )
        )
        tracker = Tracker(settings=settings, cluster=cluster, github=github, stdout=stdout)
        _introduce(settings, server)
        tracker.start()
        try:
            yield tracker
        finally:
            await tracker.stop()


def _introduce(settings: Settings, server: str) -> None:
    """Say at the start who watches what, and what an operator should know of the settings."""
    for warning in settings.warnings():
        _log.warning(warning)
    _log.info(
        "starting",
        version=__version__,
        api_server=server,
        namespace=settings.namespace or "(all)",
        github=settings.base_url,
        org=settings.org,
        logical_environment=settings.logical_environment,
        cluster=settings.cluster,
    )
    _log.info(
        "the ledger is in memory: a restart posts what runs once more, and what is deleted while"
        " the tracker is down is not noticed"
    )
