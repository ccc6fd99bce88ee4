"""
Holding what was seen against what is there.

A watch tells what changes; only a list tells what is there, and what is not. Two questions need
one. At the start: has everything that the cluster held been seen? Nothing is sent before, since
half a picture makes a deployment in mid-rollout look like its older half. And before a
decommission: is what is not seen any more really gone, or has the watch not brought it yet?
GitHub can't be asked to delete a record, so the second answer is never a guess.

Both are answered the same way: a consistent list of the pods' uids, and then waiting until each
of them was seen, or a later list lacks it too. A list that can't be had changes nothing.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from tracker.backoff import delay_after
from tracker.errors import ListError
from tracker.workloads import Workload

__all__ = ["Absences", "Lists", "Sightings", "see_everything"]

PATIENCE_SECONDS = 1.0
"""How long the watch may bring nothing of what a list holds before the list is asked for again."""
MAX_LISTS_APART = 5
"""Names of more namespaces than this are confirmed by one list of all, not by one each."""
CRONJOB_LOOK_SECONDS = 60.0
"""How often a name of a CronJob that is held is looked at again."""

_log = structlog.get_logger(__name__)


class Lists(Protocol):
    """Lists pods."""

    async def pod_uids(self, namespace: str | None) -> frozenset[str]:
        """
        Return the uids of all pods of a namespace, or of all that are watched when it is None.

        The list is consistent (not older than the call) and complete. Raises `ListError`.
        """
        ...


class Sightings:
    """
    Which pods were seen, and who waits for one.

    `known(uid)` tells whether a pod was seen and has not gone.
    """

    def __init__(self, *, known: Callable[[str], bool]) -> None:
        self._known = known
        self._awaited: list[set[str]] = []
        self._changed = asyncio.Event()

    def note(self, uid: str) -> None:
        """Take note that a pod was seen, or seen to go."""
        for uids in self._awaited:
            if uid in uids:
                uids.discard(uid)
                self._changed.set()

    async def missing(self, uids: Collection[str]) -> frozenset[str]:
        """
        Wait until all of these pods were seen; return those for which nothing comes any more.

        That is none, or what is left when for a second none of them was seen.
        """
        left = {uid for uid in uids if not self._known(uid)}
        self._awaited.append(left)
        try:
            while left:
                self._changed.clear()
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            # By identity: two waits may be for sets that are equal just now.
            self._awaited = [uids for uids in self._awaited if uids is not left]
        return frozenset(left)


async def see_everything(
    *, lists: Lists, sightings: Sightings, chance: Callable[[], float]
) -> None:
    """
    Return when every pod that the cluster held at the first complete list was seen or has gone.

    Lists are asked for until one succeeds, with backoff.
    """
    waiting: frozenset[str] | None = None
    attempts = 0
    while waiting is None or waiting:
        try:
            listed = await lists.pod_uids(None)
        except ListError as error:
            attempts += 1
            delay = delay_after(attempts, chance())
            _log.warning("pods can't be listed", reason=str(error), retry_seconds=round(delay, 1))
            await asyncio.sleep(delay)
            continue
        attempts = 0
        if waiting is None:
            _log.info("pods listed", pods=len(listed))
        # What a later list lacks has gone, and the watch, which began after it, can't tell.
        waiting = listed if waiting is None else waiting & listed
        waiting = await sightings.missing(waiting)


@dataclass(slots=True, kw_only=True)
class _Wanted:
    workload: Workload
    since: float
    due: float
    absent: bool


class Absences:
    """
    Names whose decommission is due, and the lists that confirm that nothing runs behind them.

    `delay_seconds` is how long a name must have been without a pod before that; `cronjob_seconds`
    the same for a name of a CronJob that has no pod that may run (its next run may be a day
    away). With `spans_namespaces` pods of any namespace can declare a name. `living` returns the
    workloads that have pods that may run, `touch` has a name looked at.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        lists: Lists,
        sightings: Sightings,
        living: Callable[[], Collection[Workload]],
        touch: Callable[[str], None],
        chance: Callable[[], float],
        delay_seconds: float,
        cronjob_seconds: float,
        spans_namespaces: bool,
    ) -> None:
        self._lists = lists
        self._sightings = sightings
        self._living = living
        self._touch = touch
        self._chance = chance
        self._delay = delay_seconds
        self._cronjob = cronjob_seconds
        self._spans_namespaces = spans_namespaces
        self._wanted: dict[str, _Wanted] = {}
        self._confirmed: set[str] = set()
        self._changed = asyncio.Event()

    def confirmed(self, name: str) -> bool:
        """Tell whether the absence behind a name was confirmed since its last pod event."""
        return name in self._confirmed

    def want(self, name: str, workload: Workload, *, absent: bool) -> None:
        """Have it confirmed; the name is looked at again when it is."""
        now = asyncio.get_running_loop().time()
        wanted = self._wanted.get(name)
        if wanted is not None and wanted.absent == absent:
            return
        self._wanted[name] = _Wanted(
            workload=workload, since=now, due=now + self._delay, absent=absent
        )
        self._changed.set()

    def withdraw(self, name: str) -> None:
        """Drop what was wanted and found out about a name: a pod event makes it count no more."""
        self._wanted.pop(name, None)
        self._confirmed.discard(name)

    async def run(self) -> None:
        """Confirm what is wanted, for ever."""
        attempts = 0
        while True:
            due = await self._due()
            try:
                await self._confirm(due)
            except ListError as error:
                attempts += 1
                delay = delay_after(attempts, self._chance())
                _log.warning(
                    "decommissions wait for a list of pods",
                    reason=str(error),
                    names=len(due),
                    retry_seconds=round(delay, 1),
                )
                await asyncio.sleep(delay)
            else:
                attempts = 0

    async def _due(self) -> dict[str, _Wanted]:
        """Wait for names that are due and return them."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now = loop.time()
            due = {name: wanted for name, wanted in self._wanted.items() if wanted.due <= now}
            due = self._without_held(due, now)
            if due:
                return due
            soonest = min((wanted.due for wanted in self._wanted.values()), default=None)
            try:
                async with asyncio.timeout_at(soonest):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _without_held(self, due: dict[str, _Wanted], now: float) -> dict[str, _Wanted]:
        """Put off the names that a CronJob holds between its runs; return the others."""
        held = {
            name: wanted
            for name, wanted in due.items()
            if wanted.absent
            and wanted.workload.kind == "CronJob"
            and now < wanted.since + self._cronjob
        }
        if not held:
            return due
        # One that runs now without the container has dropped it: nothing to hold the name for.
        living = self._living()
        for name, wanted in held.items():
            if wanted.workload not in living:
                wanted.due = min(now + CRONJOB_LOOK_SECONDS, wanted.since + self._cronjob)
                del due[name]
        return due

    async def _confirm(self, due: dict[str, _Wanted]) -> None:
        for namespace, names in self._by_namespace(due):
            listed = await self._lists.pod_uids(namespace)
            if await self._sightings.missing(listed):
                # The watch has yet to bring a pod that is there, or one that is gone meanwhile:
                # the next list tells. The names stay due.
                continue
            for name in names:
                # Only what no event touched since: `withdraw` takes the very object away.
                if self._wanted.get(name) is due[name]:
                    del self._wanted[name]
                    self._confirmed.add(name)
                    self._touch(name)

    def _by_namespace(self, due: dict[str, _Wanted]) -> Iterable[tuple[str | None, list[str]]]:
        namespaces: dict[str | None, list[str]] = {}
        for name, wanted in due.items():
            namespaces.setdefault(wanted.workload.namespace, []).append(name)
        if self._spans_namespaces or len(namespaces) > MAX_LISTS_APART:
            return [(None, list(due))]
        return list(namespaces.items())
