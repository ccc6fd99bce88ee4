"""
What GitHub acknowledged and what is on its way there, by deployment name.

The ledger is what makes a restart quiet and a stop harmless: delivery writes an intent before
bytes leave and an acknowledgement after GitHub gave it, and goes on only when that is kept.
`MemoryLedger` keeps it for as long as the process lives: after a restart everything that runs is
posted again, and what was deleted meanwhile is not noticed. `SqliteLedger` keeps it in a file.

Both answer `get` from memory, and the file's ledger holds nothing there that is not durable. All
file work is done by one thread that owns the connection, so nothing ever blocks the event loop;
everything that waits for that thread goes into one transaction, so a slow disk makes for larger
transactions, not for a longer queue.

    put ─┐                           ┌─▶ memory, then each waiter
    put ─┼─▶ queue ─▶ writer thread ─┤       (on the loop)
    put ─┘      one transaction      └─▶ LedgerWriteError for each, memory unchanged

Since memory holds what is durable and no more, a file that turns out to be corrupt in mid-run, or
that went, is written anew from it, and the write that met that is written there.
"""

import asyncio
import concurrent.futures
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self, TypeVar

import structlog

from tracker.entries import Entry, reopen
from tracker.errors import (
    LedgerError,
    LedgerGoneError,
    LedgerTakenError,
    LedgerTextError,
    LedgerWriteError,
)
from tracker.ledger_file import OpenFile, explain, is_corrupt, open_file, replace_file
from tracker.ledger_schema import (
    DELETE_ENTRY,
    DELETE_OLD_ENTRY,
    MAX_PAUSE_SECONDS,
    UPDATE_FINGERPRINT,
    UPSERT_ENTRY,
    UPSERT_PAUSE,
    Contents,
    Identity,
    LedgerReading,
    Moment,
    Value,
    copy_others,
    entry_row,
    migrate,
    read_contents,
    write_contents,
)
from tracker.records import Status

__all__ = ["Identity", "MemoryLedger", "Meter", "SqliteLedger"]

PATIENCE_SECONDS = 2.0
"""How long another process that has the file is waited for."""
RENEWAL_SECONDS = 3600.0
"""A ledger that breaks again is written anew no sooner: a copy of each broken one is kept."""

TOLD_NAMES = 5
"""So many names are told of rows that can't be read."""

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class Meter(Protocol):
    """Counts transactions."""

    def written(self, *, well: bool, seconds: float) -> None:
        """Count one, and how long it took."""
        ...


class _Mirror:
    """The ledger's state in memory, and everything that is only read from it."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._written_at: dict[str, float] = {}
        self._fingerprint: str | None = None
        self._others: Mapping[Identity, int] = MappingProxyType({})
        self._pause_until = 0.0

    def get(self, name: str) -> Entry | None:
        """Return the entry of a name, or None when there is none."""
        return self._entries.get(name)

    def entries(self) -> Collection[Entry]:
        """Return all entries, as they are now."""
        return tuple(self._entries.values())

    def other_identities(self) -> Mapping[Identity, int]:
        """Return how many records of other identities may stand; they are never touched."""
        return self._others

    @property
    def failure(self) -> str | None:
        """Return why the last write failed, or None when it was kept."""
        return None

    @property
    def taken(self) -> str | None:
        """Return why another file or owner has the place, as the last write met it, or None."""
        return None

    @property
    def pause_until(self) -> float:
        """Return the time of the loop's clock before which nothing is sent, or 0."""
        return self._pause_until

    def _keep(self, entry: Entry, written_at: float) -> None:
        self._entries[entry.deployment_name] = entry
        self._written_at[entry.deployment_name] = written_at

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        self._written_at.pop(name, None)

    def _aged(self, before_wall: float) -> list[str]:
        return [
            name
            for name, entry in self._entries.items()
            if self._written_at[name] < before_wall and _is_over(entry)
        ]

    def _is_of(self, fingerprint: str) -> bool:
        """Tell whether what is held can be of this cluster."""
        return self._fingerprint in {None, fingerprint} or not self._entries


class MemoryLedger(_Mirror):
    """
    Entries for as long as the process lives.

    `wall()` returns the time in seconds since the epoch.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._wall = wall

    @classmethod
    def copied(cls, reading: LedgerReading, *, wall: Callable[[], float] = time.time) -> Self:
        """
        Return a ledger that begins with what another one held when it was read.

        What it is of, it forgets like the rest: nothing of it is written anywhere.
        """
        ledger = cls(wall=wall)
        now = Moment(loop=asyncio.get_running_loop().time(), wall=wall())
        for entry in reading.entries:
            moved = replace(
                entry,
                acknowledged_at=now.to_loop(entry.acknowledged_at),
                not_before=now.to_loop(entry.not_before),
                settle_at=now.to_loop(entry.settle_at),
            )
            ledger._keep(reopen(moved, now=now.loop), reading.written_at[entry.deployment_name])
        ledger._others = reading.others
        ledger._fingerprint = reading.fingerprint
        if reading.pause_until:
            ledger._pause_until = now.to_loop(reading.pause_until, most=MAX_PAUSE_SECONDS) or 0.0
        return ledger

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    async def put(self, *entries: Entry) -> None:
        """Write entries."""
        now = self._wall()
        for entry in entries:
            self._keep(entry, now)

    async def forget(self, *names: str) -> None:
        """Drop the entries of names."""
        for name in names:
            self._drop(name)

    async def seen_cluster(self, fingerprint: str) -> bool:
        """Note the cluster; return False when the entries are of another one."""
        if not self._is_of(fingerprint):
            return False
        await self.adopt_cluster(fingerprint)
        return True

    async def adopt_cluster(self, fingerprint: str) -> None:
        """Take the entries for those of this cluster."""
        self._fingerprint = fingerprint

    async def set_pause_until(self, time: float) -> None:
        """Keep the time of the loop's clock before which nothing is sent."""
        self._pause_until = time

    async def age_out(self, before_wall: float) -> int:
        """Drop what is over and was last written before that wall time; return how many."""
        names = self._aged(before_wall)
        for name in names:
            self._drop(name)
        return len(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """
    Statements that are committed together, and what follows.

    `apply` is called on the loop after the commit, with the number of rows that each statement
    changed; what it returns is the waiter's.
    """

    statements: Sequence[tuple[str, Sequence[Value]]]
    apply: Callable[[Sequence[int]], int]
    done: asyncio.Future[int]


class SqliteLedger(_Mirror):
    """
    Entries in a SQLite file at `path`; an async context manager that opens and closes it.

    Entries are those of `identity`; those of others are counted. `wall()` returns the time in
    seconds since the epoch. The file is readable to its owner alone, and so is its folder if it
    is created here. It must be on a local disk: on NFS and its like neither the lock nor
    the write-ahead log can be trusted.

    `on_step(name)` is called in the writer thread, for tests that stop it there: `migrating`
    before a migration's commit; `begin` before a transaction, `before-commit` and `after-commit`;
    `renewing` before the commit of a ledger that is written anew, `moving` when it is whole,
    `placing` when the old one is moved aside, `placed` before it is opened.
    `meter` counts transactions; it is called on the loop.

    Opening raises LedgerLockedError when another process has the file for longer than
    `patience_seconds`, LedgerNewerError, or LedgerUnusableError. Each write raises
    LedgerWriteError when it could not be kept; the ledger then holds what it held before, and
    goes on. A file that is corrupt or gone is written anew first, and told of.
    """

    def __init__(  # noqa: PLR0913 - each part is named
        self,
        *,
        path: Path,
        identity: Identity,
        wall: Callable[[], float] = time.time,
        on_step: Callable[[str], None] | None = None,
        meter: Meter | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        super().__init__()
        self._path = path
        self._identity = identity
        self._wall = wall
        self._step = on_step if on_step is not None else _no_step
        self._meter = meter
        self._patience_seconds = patience_seconds
        self._identity_id = 0
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._accepts = False
        self._failure: str | None = None
        self._taken: str | None = None
        self._renewed_at = float("-inf")

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Contents] = loop.create_future()
        self._ended = loop.create_future()
        # A daemon: a program that ends without closing the ledger must end, and the file is made
        # for being left at any moment.
        self._thread = threading.Thread(
            target=self._run, args=(loop, self._now(), opened), name="ledger", daemon=True
        )
        self._thread.start()
        try:
            contents = await opened
        except BaseException:
            await self.close()
            raise
        self._identity_id = contents.identity_id
        self._others = MappingProxyType(contents.others)
        self._fingerprint = contents.fingerprint
        self._pause_until = contents.pause_until
        for entry, written_at in contents.entries:
            self._keep(entry, written_at)
        if contents.unreadable:
            _log.warning(
                "the ledger has rows that can't be read and are left as they are: what of their"
                " names runs is posted once more, what does not stands at GitHub as it was left",
                path=str(self._path),
                rows=len(contents.unreadable),
                names=", ".join(sorted(contents.unreadable)[:TOLD_NAMES]),
            )
        self._accepts = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what waits, close the file and let go of the lock. Later writes are refused."""
        if self._thread is None or self._ended is None:
            return
        self._accepts = False
        self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()  # it did its last act before

    @property
    def failure(self) -> str | None:
        """Return why the last write failed, or None when it was kept."""
        return self._failure

    @property
    def taken(self) -> str | None:
        """Return why another file or owner has the place, as the last write met it, or None."""
        return self._taken

    async def put(self, *entries: Entry) -> None:
        """
        Write entries, all or none; they are durable when this returns.

        A caller that is cancelled meanwhile does not take the write back.
        """
        now = self._now()
        statements = [(UPSERT_ENTRY, self._row(entry, now)) for entry in entries]

        def apply(_: Sequence[int]) -> int:
            for entry in entries:
                self._keep(entry, now.wall)
            return len(entries)

        await self._write(statements, apply)

    async def forget(self, *names: str) -> None:
        """Drop the entries of names, all or none, durably."""

        def apply(counts: Sequence[int]) -> int:
            for name in names:
                self._drop(name)
            return sum(counts)

        await self._write([(DELETE_ENTRY, (self._identity_id, name)) for name in names], apply)

    async def seen_cluster(self, fingerprint: str) -> bool:
        """
        Note the cluster; return False when the entries are of another one.

        That a name is absent here says nothing then. Nothing is noted in that case, so that it
        is told again at each start until `adopt_cluster` is called.
        """
        if not self._is_of(fingerprint):
            return False
        await self.adopt_cluster(fingerprint)
        return True

    async def adopt_cluster(self, fingerprint: str) -> None:
        """Take the entries for those of this cluster from now on; nothing is written twice."""
        if self._fingerprint == fingerprint:
            return

        def apply(counts: Sequence[int]) -> int:
            self._fingerprint = fingerprint
            return sum(counts)

        await self._write([(UPDATE_FINGERPRINT, (fingerprint, self._identity_id))], apply)

    async def set_pause_until(self, time: float) -> None:
        """Keep the time of the loop's clock before which nothing is sent to this API host."""

        def apply(counts: Sequence[int]) -> int:
            self._pause_until = time
            return sum(counts)

        until = self._now().to_wall(time)
        await self._write([(UPSERT_PAUSE, (self._identity.api_host, until))], apply)

    async def age_out(self, before_wall: float) -> int:
        """
        Drop what is over and was last written before that wall time; return how many.

        Over is an entry whose acknowledged record is decommissioned, with nothing in doubt and no
        second post due.
        """
        names = self._aged(before_wall)
        if not names:
            return 0

        def apply(counts: Sequence[int]) -> int:
            # One that was written while this waited is not old any more, and stays.
            for name, count in zip(names, counts, strict=True):
                if count:
                    self._drop(name)
            return sum(counts)

        return await self._write(
            [(DELETE_OLD_ENTRY, (self._identity_id, name, before_wall)) for name in names], apply
        )

    async def _write(
        self,
        statements: Sequence[tuple[str, Sequence[Value]]],
        apply: Callable[[Sequence[int]], int],
    ) -> int:
        if not self._accepts:
            raise LedgerWriteError(f"the ledger {self._path} is closed: nothing is written")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write(statements=statements, apply=apply, done=done))
        return await done

    def _row(self, entry: Entry, now: Moment) -> Sequence[Value]:
        try:
            return entry_row(self._identity_id, entry, now)
        except UnicodeEncodeError as error:
            raise LedgerTextError(
                f"the ledger can't hold {entry.deployment_name!a}: it has text that is no Unicode"
            ) from error

    def _now(self) -> Moment:
        return Moment(loop=asyncio.get_running_loop().time(), wall=self._wall())

    def _committed(self, batch: Iterable[tuple[_Write, Sequence[int]]], seconds: float) -> None:
        """Take over what is durable now. Called on the loop, in the order of the commits."""
        if self._meter is not None:
            self._meter.written(well=True, seconds=seconds)
        self._taken = None
        if self._failure is not None:
            self._failure = None
            _log.info("the ledger is written again", path=str(self._path))
        for write, counts in batch:
            result = write.apply(counts)
            if not write.done.done():  # else its waiter was cancelled
                write.done.set_result(result)

    def _failed(self, batch: Iterable[_Write], error: Exception, seconds: float) -> None:
        """Tell the waiters. Called on the loop."""
        reason = explain(error)
        self._taken = reason if isinstance(error, LedgerTakenError) else None
        if self._meter is not None:
            self._meter.written(well=False, seconds=seconds)
        message = (
            f"the ledger {self._path} could not be written ({reason}): nothing is sent without it"
        )
        if self._failure is None:  # once, not at each attempt
            _log.error(message)
        self._failure = reason
        for write in batch:
            if not write.done.done():
                write.done.set_exception(LedgerWriteError(message))

    def _held(self) -> tuple[Contents, Moment]:
        """Return what memory holds, and now. Called on the loop, after what was committed."""
        contents = Contents(
            identity_id=self._identity_id,
            entries=[(entry, self._written_at[name]) for name, entry in self._entries.items()],
            others=dict(self._others),
            fingerprint=self._fingerprint,
            pause_until=self._pause_until,
        )
        return contents, self._now()

    # What follows runs in the writer thread.

    def _run(
        self, loop: asyncio.AbstractEventLoop, now: Moment, opened: asyncio.Future[Contents]
    ) -> None:
        def prepare(connection: sqlite3.Connection) -> Contents:
            migrate(connection, step=self._step)
            contents = read_contents(connection, self._identity, now)
            reopened = [(reopen(entry, now=now.loop), at) for entry, at in contents.entries]
            return replace(contents, entries=reopened)

        try:
            file = open_file(self._path, prepare=prepare, patience_seconds=self._patience_seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the opener's
            _call(loop, _set_exception, opened, error)
        else:
            _call(loop, _set_result, opened, file.contents)
            self._serve(loop, file)
        finally:
            if self._ended is not None:
                _call(loop, _set_result, self._ended, None)

    def _serve(self, loop: asyncio.AbstractEventLoop, file: OpenFile[Contents]) -> None:
        """Commit what comes, everything that waits at once, until None comes."""
        ends = False
        while not ends:
            waiting = [self._queue.get()]
            with suppress(queue.Empty):
                while True:
                    waiting.append(self._queue.get_nowait())
            batch = [write for write in waiting if write is not None]
            ends = len(batch) < len(waiting)
            if not batch:
                continue
            began = time.monotonic()
            try:
                try:
                    counts = self._commit(file, batch)
                except (LedgerGoneError, sqlite3.DatabaseError) as error:
                    if not isinstance(error, LedgerGoneError) and not is_corrupt(error):
                        raise
                    file = self._renew(loop, file, error)
                    counts = self._commit(file, batch)
            except Exception as error:  # noqa: BLE001 - the top of the thread's loop; waiters get it
                _call(loop, self._failed, batch, error, time.monotonic() - began)
            else:
                done = list(zip(batch, counts, strict=True))
                _call(loop, self._committed, done, time.monotonic() - began)
        try:
            file.close()
        except sqlite3.Error as error:
            # What was acknowledged is in the write-ahead log; the next start finds it there.
            _log.warning("the ledger was not closed well", reason=explain(error))

    def _renew(
        self,
        loop: asyncio.AbstractEventLoop,
        file: OpenFile[Contents],
        error: LedgerGoneError | sqlite3.DatabaseError,
    ) -> OpenFile[Contents]:
        """Write all that memory holds to a new file in the place of one that is corrupt or gone."""
        contents, now = _asked(loop, self._held)
        # Of one that is gone no copy is kept that could fill the volume.
        if is_corrupt(error) and abs(now.wall - self._renewed_at) < RENEWAL_SECONDS:
            raise LedgerError(
                f"{explain(error)}, again within an hour of being written anew: mend its volume"
            )
        lacking = dict(contents.others)

        def fill(connection: sqlite3.Connection) -> None:
            migrate(connection, step=self._step)
            connection.execute("BEGIN IMMEDIATE")
            write_contents(connection, self._identity, contents, now)
            for copied in copy_others(file.connection, connection, contents.identity_id):
                lacking.pop(copied, None)
            self._step("renewing")
            connection.execute("COMMIT")

        renewed, moved = replace_file(
            file, fill=fill, step=self._step, patience_seconds=self._patience_seconds
        )
        self._renewed_at = now.wall
        _log.error(
            "the ledger broke or went under way and was written anew from memory: nothing that it"
            " held of this identity is lost; check the volume, and who else works in its folder",
            path=str(self._path),
            reason=explain(error),
            entries=len(contents.entries),
            **({} if moved is None else {"moved_to": str(moved)}),
        )
        if lacking:
            _log.warning(
                "the new ledger lacks records of another organisation, environment, cluster or"
                " host, which can't be read any more; they stand at GitHub as they were left",
                records=sum(lacking.values()),
                identities=", ".join(sorted(map(str, lacking))),
            )
        return renewed

    def _commit(self, file: OpenFile[Contents], batch: Iterable[_Write]) -> list[list[int]]:
        """Return, for each write and statement, how many rows it changed."""
        self._step("begin")
        file.check()
        connection = file.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            counts = [
                [connection.execute(sql, values).rowcount for sql, values in write.statements]
                for write in batch
            ]
            self._step("before-commit")
            connection.execute("COMMIT")
        except BaseException:
            # Some errors roll back by themselves, and a rollback may fail on the same broken disk.
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        self._step("after-commit")
        return counts


def _is_over(entry: Entry) -> bool:
    """Tell whether nothing of an entry is of use but as a memory of what was."""
    return (
        entry.acknowledged is not None
        and entry.acknowledged.status is Status.DECOMMISSIONED
        and entry.in_doubt is None
        and entry.settle_at is None
    )


def _no_step(_: str) -> None:
    """Stand for `on_step` when there is none."""


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """Have it called on the loop, if there still is one."""
    with suppress(RuntimeError):  # the loop was closed and nobody waits any more
        loop.call_soon_threadsafe(callback, *args)


def _asked(loop: asyncio.AbstractEventLoop, function: Callable[[], _T]) -> _T:
    """Return what a function returns on the loop, when all that was called there before is done."""
    answer: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except Exception as error:  # noqa: BLE001 - it is the asker's
            answer.set_exception(error)

    loop.call_soon_threadsafe(call)
    return answer.result()


def _set_result(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[_T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
