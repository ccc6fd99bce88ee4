"""
Holding what was seen against what is there.

A watch tells what changes; only a list tells what is there, and what is not. Three questions need
one. At the start: has everything that the cluster held been seen? Nothing is sent before, since
half a picture makes a deployment in mid-rollout look like its older half. Before a decommission:
is what is not seen any more really gone, or has the watch not brought it yet? GitHub can't be
asked to delete a record, so the answer is never a guess. And now and then, and whenever the watch
began anew: what did the watch not tell? A pod that was deleted in a gap gives no event, ever.

The first two are answered the same way: a consistent list of the pods' uids, and then waiting
until each of them was seen, or a later list lacks it too. For the third (`Reconciler`) what was
seen is noted, then listed, and the difference believed. A list that can't be had, or does not come
to its end, changes nothing.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import inf
from typing import Protocol

import structlog

from tracker.backoff import delay_after
from tracker.drift import Listed, drift_of, is_mass
from tracker.entries import Entry
from tracker.errors import ListError
from tracker.pods import Pod, Skipped
from tracker.records import Status
from tracker.workloads import Workload

__all__ = [
    "Absences",
    "Lists",
    "Pods",
    "Reconciler",
    "Sightings",
    "View",
    "see_everything",
    "to_repost",
]

PATIENCE_SECONDS = 1.0
"""How long the watch may bring nothing of what a list holds before the list is asked for again."""
MAX_PATIENCE_SECONDS = 20.0
"""The same after many lists in a row of which the watch brought nothing: it is away."""
MAX_LISTS_APART = 5
"""Names of more namespaces than this are confirmed by one list of all, not by one each."""
CONFIRMED_SECONDS = 60.0
"""How long a list's word about an absence counts."""
SECOND_LIST_SECONDS = 30.0
"""How much later a second list must agree before a mass of absences is believed."""
LAG_SECONDS = 5.0
"""How long the watch may take to bring what a list showed before it is fetched."""
MAX_FETCHES = 50
"""Of more pods than this one list of all is fetched, not each by itself."""
CALM_SECONDS = 5.0
"""Before each pass: a watch that begins anew has much to bring, and may do so again and again."""
PASS_SECONDS = 1800.0
"""How long one pass, or the lists for one heap of absences, may take before they count as hung."""
UNREAD_SECONDS = 15.0
"""How long a name waits before its workload, which could not be read, is asked for again."""
TICK_SECONDS = 0.001
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
        self._gone: list[set[str]] = []
        self._changed = asyncio.Event()

    def note_gone(self, uid: str) -> None:
        """Take note that a pod was seen to go."""
        for uids in self._gone:
            uids.add(uid)
        self.note(uid)

    @contextmanager
    def gone_meanwhile(self) -> Iterator[set[str]]:
        """Yield a set that takes up the pods that are seen to go while the context lasts."""
        gone: set[str] = set()
        self._gone.append(gone)
        try:
            yield gone
        finally:
            # By identity: two may hold the same just now.
            self._gone = [uids for uids in self._gone if uids is not gone]

    def note(self, uid: str) -> None:
        """Take note that a pod was seen, or seen to go."""
        for uids in self._awaited:
            if uid in uids:
                uids.discard(uid)
                self._changed.set()

    async def missing(
        self, uids: Collection[str], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> frozenset[str]:
        """
        Wait until all of these pods were seen; return those for which nothing comes any more.

        That is none, or what is left when for that long none of them was seen.
        """
        left = {uid for uid in uids if not self._known(uid)}
        self._awaited.append(left)
        try:
            while left:
                self._changed.clear()
                async with asyncio.timeout(patience_seconds):
                    await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            # By identity: two waits may be for sets that are equal just now.
            self._awaited = [uids for uids in self._awaited if uids is not left]
        return frozenset(left)


def _unnoticed(_seconds: float) -> None:
    """Stand for `alive` where nobody looks for signs of life."""


async def see_everything(
    *,
    lists: Lists,
    sightings: Sightings,
    chance: Callable[[], float],
    alive: Callable[[float], None] = _unnoticed,
) -> None:
    """
    Return when every pod that the cluster held at the first complete list was seen or has gone.

    Lists are asked for until one succeeds, with backoff. `alive(seconds)` is called before each,
    with the time by which the next call is due.
    """
    waiting: frozenset[str] | None = None
    attempts = 0
    patience = PATIENCE_SECONDS
    while waiting is None or waiting:
        alive(PASS_SECONDS)
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
        waiting = await sightings.missing(waiting, patience_seconds=patience)
        patience = min(2 * patience, MAX_PATIENCE_SECONDS)


async def _read_none(_workloads: Iterable[Workload]) -> frozenset[Workload]:
    return frozenset()


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
    workloads that have pods that may run, `touch` has a name looked at, `astray` is called when a
    list holds a pod that the watch does not bring. Before absent names are confirmed, their
    workloads are read again (`read_workloads` returns those that could not be), and `keep` returns
    the names that theirs keep though they have no pods. `unwanted` tells whether a name is one that
    the operator wants no more: no CronJob holds it. `alive(seconds)` is called at each turn, with
    the time by which the next call is due.
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
        astray: Callable[[], None] = lambda: None,
        read_workloads: Callable[[Iterable[Workload]], Awaitable[frozenset[Workload]]] = _read_none,
        keep: Callable[[Collection[str]], Collection[str]] = lambda _names: (),
        alive: Callable[[float], None] = _unnoticed,
        unwanted: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self._alive = alive
        self._lists = lists
        self._astray = astray
        self._read_workloads = read_workloads
        self._keep = keep
        self._unwanted = unwanted
        self._sightings = sightings
        self._living = living
        self._touch = touch
        self._chance = chance
        self._delay = delay_seconds
        self._cronjob = cronjob_seconds
        self._spans_namespaces = spans_namespaces
        self._wanted: dict[str, _Wanted] = {}
        self._confirmed: dict[str, float] = {}
        self._doubted: set[str] = set()
        self._since: dict[str, float] = {}
        self._distrusts = 0
        self._changed = asyncio.Event()

    def confirmed(self, name: str) -> bool:
        """
        Tell whether the absence behind a name was confirmed since its last pod event.

        And of late: a send may have waited for hours since, and the watch may have been away.
        """
        now = asyncio.get_running_loop().time()
        return now - self._confirmed.get(name, -inf) < CONFIRMED_SECONDS

    def want(self, name: str, workload: Workload, *, absent: bool) -> None:
        """Have it confirmed; the name is looked at again when it is."""
        now = asyncio.get_running_loop().time()
        wanted = self._wanted.get(name)
        if wanted is not None and wanted.absent == absent:
            return
        delay = max(self._delay, SECOND_LIST_SECONDS) if name in self._doubted else self._delay
        # What was confirmed and not used for too long is wanted again, absent as long as before.
        since = self._since.setdefault(name, now) if absent else now
        self._wanted[name] = _Wanted(workload=workload, since=since, due=now + delay, absent=absent)
        self._changed.set()

    @property
    def unfinished(self) -> frozenset[str]:
        """Return the names that wait to be confirmed, but for those that a CronJob holds."""
        now = asyncio.get_running_loop().time()
        return frozenset(self._wanted.keys() - self._held(self._wanted, now).keys())

    def doubt(self, names: Iterable[str]) -> None:
        """Take a list's word for the absence of these names only when a later one agrees."""
        self._doubted.update(names)

    def distrust(self) -> None:
        """Drop what was found out: the watch is asked for anew; what came before is unseen."""
        self._confirmed.clear()
        self._distrusts += 1

    def withdraw(self, name: str) -> None:
        """Drop what was wanted and found out about a name: a pod event makes it count no more."""
        self._wanted.pop(name, None)
        self._confirmed.pop(name, None)
        self._doubted.discard(name)
        self._since.pop(name, None)

    async def run(self) -> None:
        """Confirm what is wanted, for ever."""
        attempts = 0
        patience = PATIENCE_SECONDS
        while True:
            self._alive(inf)
            due = await self._due()
            self._alive(PASS_SECONDS)
            try:
                whole = await self._confirm(due, patience)
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
                patience = PATIENCE_SECONDS if whole else min(2 * patience, MAX_PATIENCE_SECONDS)

    async def _due(self) -> dict[str, _Wanted]:
        """Wait for names that are due and return them."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            # A timer may ring a clock's tick early: what is due then is not waited for again.
            now = loop.time() + TICK_SECONDS
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
        held = self._held(due, now)
        for wanted in held.values():
            wanted.due = min(now + CRONJOB_LOOK_SECONDS, wanted.since + self._cronjob)
        return {name: wanted for name, wanted in due.items() if name not in held}

    def _held(self, names: Mapping[str, _Wanted], now: float) -> dict[str, _Wanted]:
        """Return those of these names that a CronJob holds between its runs."""
        held = {
            name: wanted
            for name, wanted in names.items()
            if wanted.absent
            and wanted.workload.kind == "CronJob"
            and now < wanted.since + self._cronjob
            and not self._unwanted(name)
        }
        if not held:
            return held
        # One that runs now without the container has dropped it: nothing to hold the name for.
        living = self._living()
        return {name: wanted for name, wanted in held.items() if wanted.workload not in living}

    async def _confirm(self, due: dict[str, _Wanted], patience: float) -> bool:
        """
        Confirm what lists can; return whether each list held nothing but what was seen.

        Raises `ListError` in the end when one of them could not be had.
        """
        whole = True
        failure: ListError | None = None
        for namespace, names in self._by_namespace(due):
            distrusts, asked_at = self._distrusts, asyncio.get_running_loop().time()
            # Of a pod that goes while the list is under way no further event will come.
            with self._sightings.gone_meanwhile() as gone:
                try:
                    listed = await self._lists.pod_uids(namespace)
                except ListError as error:
                    failure = error
                    continue
            listed -= gone
            if await self._sightings.missing(listed, patience_seconds=patience):
                # The watch has yet to bring a pod that is there, or one that is gone meanwhile:
                # the next list tells. The names stay due.
                whole = False
                self._astray()
                continue
            absent = [name for name in names if due[name].absent]
            unread = await self._read_workloads({due[name].workload for name in absent})
            if distrusts != self._distrusts:
                # The watch was asked for anew meanwhile: what came between the list and the new
                # watch is unseen. The names stay due.
                continue
            kept = self._keep(absent)
            for name in names:
                # Only what no event touched since: `withdraw` takes the very object away.
                if self._wanted.get(name) is not due[name]:
                    continue
                if due[name].absent and due[name].workload in unread:
                    # That it is not known is told by who reads it; other names don't wait for it.
                    due[name].due = asyncio.get_running_loop().time() + UNREAD_SECONDS
                    continue
                del self._wanted[name]
                if name not in kept:
                    # When it took its time, there is some left to tell it in: what was seen since
                    # would have withdrawn it.
                    latest = asyncio.get_running_loop().time() - CONFIRMED_SECONDS / 2
                    self._confirmed[name] = max(asked_at, latest)
                self._touch(name)
        if failure is not None:
            raise failure
        return whole

    def _by_namespace(self, due: dict[str, _Wanted]) -> Iterable[tuple[str | None, list[str]]]:
        namespaces: dict[str | None, list[str]] = {}
        for name, wanted in due.items():
            namespaces.setdefault(wanted.workload.namespace, []).append(name)
        if self._spans_namespaces or len(namespaces) > MAX_LISTS_APART:
            return [(None, list(due))]
        return list(namespaces.items())


class Pods(Protocol):
    """Reads pods from the API server."""

    async def list_pods(self) -> Mapping[str, Listed]:
        """Return all pods that are watched, by uid: consistent, complete. Raises `ListError`."""
        ...

    def each_pod(self) -> AsyncIterator[object]:
        """
        Yield all pods that are watched as they are (decoded JSON), complete at the end.

        Raises `ListError`.
        """
        ...

    async def fetch_pod(self, namespace: str, name: str) -> object | None:
        """Return one pod as it is, or None when there is none. Raises `ListError`."""
        ...


class View(Protocol):
    """What was seen of the cluster, and what stands at GitHub."""

    def versions(self) -> Mapping[str, int]:
        """Return the version of each pod that was seen, by uid, as of now."""
        ...

    def standing(self) -> Collection[str]:
        """Return the names that stand as deployed and that a list of pods can speak about."""
        ...

    def held(self, *, without: Collection[str] = ()) -> Collection[str]:
        """Return the names that are held, or would be if the pods of these uids were gone."""
        ...

    def read(self, raw: object) -> Pod | Skipped:
        """Return what is kept of a pod as the API server tells of it (decoded JSON)."""
        ...

    def see_surely(self, pod: Pod | Skipped) -> None:
        """Take note of a pod that was fetched."""
        ...

    def lose_surely(self, uid: str) -> None:
        """Take note that a pod is gone, whatever a late event says of it."""
        ...

    async def read_workloads(self) -> None:
        """Read all workloads anew, where they may be read. Raises `ListError`."""
        ...

    def look_at_all(self) -> None:
        """Have every name looked at, those of the ledger included."""
        ...

    @property
    def gaps(self) -> int:
        """Return how often the watch began anew so far."""
        ...

    def trust(self, gaps: int) -> None:
        """Take the pods that are known for those that are there, as of after so many gaps."""
        ...


class Reconciler:
    """
    The loop that finds what the watch did not tell.

    It runs every `interval_seconds` (with a tenth of jitter) and soon after each `request`.
    `alive(seconds)` is called at each turn, with the time by which the next call is due, and
    `passed(well)` after each pass.
    """

    def __init__(  # noqa: PLR0913 - each part is named, so that a test builds it without the rest
        self,
        *,
        pods: Pods,
        view: View,
        gone_meanwhile: Callable[[], AbstractContextManager[set[str]]],
        chance: Callable[[], float],
        interval_seconds: float,
        alive: Callable[[float], None] = _unnoticed,
        passed: Callable[[bool], None] = lambda _well: None,
    ) -> None:
        self._alive = alive
        self._passed = passed
        self._pods = pods
        self._view = view
        self._gone_meanwhile = gone_meanwhile
        self._chance = chance
        self._interval = interval_seconds
        self._requested = asyncio.Event()
        self.passes = 0

    def request(self) -> None:
        """Have a pass soon: the watch began anew, and what went meanwhile it does not tell."""
        self._requested.set()

    async def run(self) -> None:
        """Reconcile for ever."""
        attempts = 0
        while True:
            pause = self._interval * (0.9 + 0.2 * self._chance())
            if attempts:
                pause = min(pause, delay_after(attempts, self._chance()))
            self._alive(pause + PASS_SECONDS)
            try:
                async with asyncio.timeout(pause):
                    await self._requested.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(CALM_SECONDS)
            self._requested.clear()
            try:
                await self.once()
            except ListError as error:
                attempts += 1
                _log.warning("reconcile put off", reason=str(error), attempts=attempts)
            else:
                attempts = 0
            self._passed(not attempts)

    async def once(self) -> None:
        """
        Compare what was seen with what is there, once, and mend what differs.

        Raises `ListError`; when pods could not be had, nothing was changed but what was fetched
        already.
        """
        seen = self._view.versions()
        gaps = self._view.gaps
        listed = await self._pods.list_pods()
        drift = drift_of(seen, listed)
        gone = await self._believed(drift.gone)
        # What came is looked at before what went: without the newest pod of a name an older one
        # would speak for it.
        fetched = await self._fetch(listed, drift.lacking)
        for uid in gone:
            self._view.lose_surely(uid)
        self._view.trust(gaps)
        try:
            await self._view.read_workloads()
        finally:
            self._view.look_at_all()
        self.passes += 1
        level = _log.info if gone or fetched else _log.debug
        level("reconciled", pods=len(listed), gone=len(gone), fetched=fetched)

    async def _believed(self, gone: frozenset[str]) -> frozenset[str]:
        """Return which of the pods that a list lacks have gone; a mass takes a second list."""
        standing = frozenset(self._view.standing())
        absent = standing - frozenset(self._view.held(without=gone))
        if not gone or not is_mass(absent, standing):
            return gone
        _log.warning(
            "more than half of the names are absent from a list of pods; asking again",
            absent=len(absent),
            standing=len(standing),
            retry_seconds=SECOND_LIST_SECONDS,
        )
        await asyncio.sleep(SECOND_LIST_SECONDS)
        return gone - (await self._pods.list_pods()).keys()

    async def _fetch(self, listed: Mapping[str, Listed], lacking: frozenset[str]) -> int:
        """Fetch what the watch does not bring by itself; return how many pods that were."""
        late = lacking
        first = self._view.versions()
        deadline = asyncio.get_running_loop().time() + LAG_SECONDS
        while late and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(PATIENCE_SECONDS)
            late = self._behind(listed, late, first)
        many = len(late) > MAX_FETCHES
        for uids in [late] if many else [frozenset({uid}) for uid in late]:
            before = self._view.versions()
            with self._gone_meanwhile() as gone:
                if many:
                    # All are seen at once, when the last is here: half of a list would let the
                    # older half of a rollout speak.
                    pods = [self._view.read(raw) async for raw in self._pods.each_pod()]
                else:
                    (pod,) = (listed[uid] for uid in uids)
                    raw = await self._pods.fetch_pod(pod.namespace, pod.name)
                    pods = [self._view.read(raw)]
            self._see(pods, before, gone)
        return len(late)

    def _see(
        self, pods: Iterable[Pod | Skipped], before: Mapping[str, int], gone: Collection[str]
    ) -> None:
        """Take note of pods that were fetched, but for those that the watch told of meanwhile."""
        seen = self._view.versions()
        for pod in pods:
            uid = pod.uid
            if uid and uid not in gone and seen.get(uid) == before.get(uid):
                self._view.see_surely(pod)

    def _behind(
        self, listed: Mapping[str, Listed], uids: Iterable[str], first: Mapping[str, int]
    ) -> frozenset[str]:
        """Return the pods that are still seen otherwise than they were listed, and not newer."""
        seen = self._view.versions()
        return frozenset(
            uid
            for uid in uids
            if seen.get(uid, -1) < listed[uid].version
            or (seen[uid] != listed[uid].version and seen[uid] == first.get(uid))
        )


def to_repost(
    entries: Collection[Entry], *, now: float, interval_seconds: float, pass_seconds: float
) -> list[str]:
    """
    Return the names that were acknowledged as deployed a resync interval ago or longer, by age.

    Not those that wait because GitHub refused them: they would take the turns of all others.

    What GitHub lost or changed can only be found by posting it again. After a first start all are
    due at once, so each pass takes a share that has all of them posted in half of the interval.
    """
    due = [
        (entry.acknowledged_at, entry.deployment_name)
        for entry in entries
        if entry.acknowledged_at is not None
        and entry.acknowledged_at <= now - interval_seconds
        and (entry.not_before is None or entry.not_before <= now)
        and entry.acknowledged is not None
        and entry.acknowledged.status is Status.DEPLOYED
    ]
    share = 1 + round(2 * len(entries) * pass_seconds / interval_seconds)
    return [name for _, name in sorted(due)[:share]]
