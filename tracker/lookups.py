"""
Reading workloads for the catalog: whole lists now and then, single ones that are news.

A pass of reconcile lists each kind once. Between passes a pod may be of a workload that is younger
than the last list: it is asked for once, by itself, or with all others of its kind when there are
many. The name of such a pod waits for that one answer, so that its first record has what the
workload says. An answer that can't be had holds nothing up but decommissions: what is unknown
neither keeps a name nor lets it go.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from typing import Final, Protocol

import structlog

from tracker.catalog import KINDS, Catalog, Kind, Known
from tracker.errors import ListError
from tracker.workloads import Workload

__all__ = ["Lookups", "Reader"]

MAX_FETCHES: Final = 20
"""Of more news of one kind than this one list is made, not a request for each."""
MAX_LISTS_APART: Final = 5
"""Workloads of more namespaces than this are read by one list of all, not by one each."""
READING_SECONDS: Final = 1800.0
"""How long the reading of one heap of news may take before it counts as hung."""
LOOKUP_SECONDS: Final = 10.0
"""How long names wait for what their workloads, all those of a kind that are news, say."""

_log = structlog.get_logger(__name__)


class Reader(Protocol):
    """Reads workloads from the API server."""

    async def list_workloads(self, kind: Kind, namespace: str | None) -> Mapping[Workload, Known]:
        """Return all of a kind in a namespace, or all that are watched. Raises `ListError`."""
        ...

    async def fetch_workload(self, kind: Kind, workload: Workload) -> Known | None:
        """Return one workload, or None when there is none. Raises `ListError`."""
        ...


class Lookups:
    """
    Keeps a catalog up to date.

    `touch` has a name looked at; `learned` is called when workloads were read, before names are
    looked at; `alive(seconds)` at each turn, with the time by which the next call is due.
    `trouble` is why the last reading failed, "" when it did not.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        catalog: Catalog,
        touch: Callable[[str], None],
        learned: Callable[[], None],
        alive: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._alive = alive
        self._reader = reader
        self._catalog = catalog
        self._touch = touch
        self._learned = learned
        self._news: dict[Workload, set[str]] = {}
        self._is_news = asyncio.Event()
        self.trouble = ""

    def awaits(self, workload: Workload, name: str) -> bool:
        """
        Tell whether a name is to wait until its workload was read; it is looked at again then.

        What is news is asked for.
        """
        if workload not in self._news and not self._catalog.is_news(workload):
            return False
        self._news.setdefault(workload, set()).add(name)
        self._is_news.set()
        return True

    @property
    def unfinished(self) -> frozenset[str]:
        """Return the names that wait for what their workloads say."""
        return frozenset().union(*self._news.values())

    async def run(self) -> None:
        """Read what is news, for ever."""
        while True:
            self._alive(inf)
            await self._is_news.wait()
            self._is_news.clear()
            self._alive(READING_SECONDS)
            for kind, workloads in _by_kind(self._news).items():
                await self._read_news(KINDS[kind], workloads)

    async def read_all(self) -> None:
        """
        List every kind once.

        Raises `ListError` in the end when one could not be had; what was known of it stands.
        """
        failures = [
            error for kind in KINDS.values() if (error := await self._list(kind, None)) is not None
        ]
        self._learned()
        if failures:
            raise failures[0]
        self._note(None)

    async def read(self, workloads: Iterable[Workload]) -> frozenset[Workload]:
        """
        List the kinds of these workloads, in their namespaces; return those that were not read.

        Those of kinds that are never read are passed over.
        """
        unread: set[Workload] = set()
        covered = {each for each in workloads if self._catalog.covers(each)}
        for kind, of_kind in _by_kind(covered).items():
            namespaces = sorted({each.namespace for each in of_kind})
            apart = len(namespaces) <= MAX_LISTS_APART
            for namespace in namespaces if apart else [None]:
                if await self._list(KINDS[kind], namespace) is not None:
                    unread.update(each for each in of_kind if namespace in {None, each.namespace})
        if covered:
            self._learned()
        return frozenset(unread)

    async def _list(self, kind: Kind, namespace: str | None) -> ListError | None:
        """List one kind into the catalog; return why that failed, or None."""
        try:
            found = await self._reader.list_workloads(kind, namespace)
        except ListError as error:
            self._note(error)
            return error
        self._catalog.take_list(kind.kind, found, namespace=namespace)
        return None

    async def _read_news(self, kind: Kind, workloads: Collection[Workload]) -> None:
        if len(workloads) > MAX_FETCHES:
            await self._read_many(kind, workloads)
        else:
            await self._read_few(kind, workloads)
        self._learned()
        for workload in workloads:
            for name in self._news.pop(workload, ()):
                self._touch(name)

    async def _read_many(self, kind: Kind, workloads: Iterable[Workload]) -> None:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._reader.list_workloads(kind, None)
        except (ListError, TimeoutError) as error:
            for workload in workloads:
                self._miss(workload, error)
            return
        self._catalog.take_list(kind.kind, found, namespace=None)
        for workload in workloads:
            self._catalog.take(workload, found.get(workload))

    async def _read_few(self, kind: Kind, workloads: Iterable[Workload]) -> None:
        left = list(workloads)
        try:
            # For all of them: the last one's names wait no longer than the first one's.
            async with asyncio.timeout(LOOKUP_SECONDS):
                while left:
                    await self._read_one(kind, left[-1])
                    left.pop()
        except TimeoutError as error:
            for workload in left:
                self._miss(workload, error)

    async def _read_one(self, kind: Kind, workload: Workload) -> None:
        try:
            known = await self._reader.fetch_workload(kind, workload)
        except ListError as error:
            self._miss(workload, error)
        else:
            self._catalog.take(workload, known)

    def _miss(self, workload: Workload, error: Exception) -> None:
        self._catalog.miss(workload)
        self._note(error)

    def _note(self, error: Exception | None) -> None:
        """Tell once when workloads can't be read, and once when they can again."""
        trouble = "" if error is None else str(error) or "no answer in time"
        if trouble and not self.trouble:
            _log.error(
                "workloads can't be read: names without pods are held, and records lack what"
                " workloads say; does manifests/components/workloads stand?",
                reason=trouble,
            )
        elif self.trouble and not trouble:
            _log.info("workloads can be read again")
        self.trouble = trouble


def _by_kind(workloads: Iterable[Workload]) -> dict[str, list[Workload]]:
    kinds: dict[str, list[Workload]] = {}
    for workload in workloads:
        kinds.setdefault(workload.kind, []).append(workload)
    return kinds
