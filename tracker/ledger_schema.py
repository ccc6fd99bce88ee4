"""
The ledger's tables, and how an entry becomes a row and comes back.

Only `tracker.ledger` and its kin (`ledger_file`, `ledger_reader`) use this. The schema's version
is SQLite's `user_version`; `MIGRATIONS` leads from any older version to this one, each step in a
transaction of its own, so that a crash leaves the version before or the one after, never a state
between.

An entry's times are seconds of the event loop's clock, which begins anew with each boot; a row's
are wall-clock seconds since the epoch. `Moment` converts them at this border and nowhere else.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from typing import Any

from tracker.entries import Entry, State
from tracker.images import Digest
from tracker.records import Record, Status
from tracker.workloads import Workload

__all__ = [
    "APPLICATION_ID",
    "DELETE_ENTRY",
    "DELETE_OLD_ENTRY",
    "MAX_AHEAD_SECONDS",
    "MAX_PAUSE_SECONDS",
    "MIGRATIONS",
    "NONSENSE",
    "UPDATE_FINGERPRINT",
    "UPSERT_ENTRY",
    "UPSERT_PAUSE",
    "VERSION",
    "Contents",
    "Identity",
    "LedgerReading",
    "Moment",
    "Value",
    "copy_others",
    "decoded",
    "entry_row",
    "migrate",
    "read_contents",
    "write_contents",
]

APPLICATION_ID = 0x67646570
"""Tells a ledger from other programs' SQLite files, which are never touched ("gdep" in ASCII)."""
MAX_AHEAD_SECONDS = 24 * 3600.0
"""A wait read from the file is at most this long: a clock that jumped must not park a name."""

MAX_PAUSE_SECONDS = 3600.0
"""And nothing waits longer for what a limit of an earlier run asked for."""

NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What is raised over a row that was never written by `entry_row`."""

Value = str | int | float | None

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        """
        CREATE TABLE identities (
            id INTEGER PRIMARY KEY,
            api_host TEXT NOT NULL,
            org TEXT NOT NULL,
            logical_environment TEXT NOT NULL,
            physical_environment TEXT NOT NULL,
            cluster TEXT NOT NULL,
            fingerprint TEXT,
            UNIQUE (api_host, org, logical_environment, physical_environment, cluster)
        ) STRICT
        """,
        # Records are JSON texts: they are written and read whole, never searched.
        """
        CREATE TABLE entries (
            identity INTEGER NOT NULL,
            deployment_name TEXT NOT NULL,
            workload_api_version TEXT NOT NULL,
            workload_kind TEXT NOT NULL,
            workload_namespace TEXT NOT NULL,
            workload_name TEXT NOT NULL,
            container TEXT NOT NULL,
            acknowledged TEXT,
            acknowledged_at REAL,
            sent TEXT,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            attempts INTEGER NOT NULL,
            not_before REAL,
            unsettled TEXT,
            settle_at REAL,
            refused TEXT,
            written_at REAL NOT NULL,
            PRIMARY KEY (identity, deployment_name)
        ) STRICT, WITHOUT ROWID
        """,
        # What holds for the file: `pause_until <API host>`.
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value REAL NOT NULL) STRICT, WITHOUT ROWID",
    ),
)
VERSION = len(MIGRATIONS)

_INSERT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
UPSERT_ENTRY = f"""
    {_INSERT_ENTRY}
    ON CONFLICT (identity, deployment_name) DO UPDATE SET
        workload_api_version = excluded.workload_api_version,
        workload_kind = excluded.workload_kind,
        workload_namespace = excluded.workload_namespace,
        workload_name = excluded.workload_name,
        container = excluded.container,
        acknowledged = excluded.acknowledged,
        acknowledged_at = excluded.acknowledged_at,
        sent = excluded.sent,
        state = excluded.state,
        reason = excluded.reason,
        attempts = excluded.attempts,
        not_before = excluded.not_before,
        unsettled = excluded.unsettled,
        settle_at = excluded.settle_at,
        refused = excluded.refused,
        written_at = excluded.written_at
    """
DELETE_ENTRY = "DELETE FROM entries WHERE identity = ? AND deployment_name = ?"
DELETE_OLD_ENTRY = f"{DELETE_ENTRY} AND written_at < ?"
UPDATE_FINGERPRINT = "UPDATE identities SET fingerprint = ? WHERE id = ?"
UPSERT_PAUSE = """
    INSERT INTO meta VALUES ('pause_until ' || ?, ?)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value
    """

_SELECT_IDENTITIES = """
    SELECT id, api_host, org, logical_environment, physical_environment, cluster, fingerprint
    FROM identities
    """
_INSERT_IDENTITY = """
    INSERT INTO identities
        (api_host, org, logical_environment, physical_environment, cluster)
    VALUES (?, ?, ?, ?, ?)
    """
_UPDATE_ORG = "UPDATE identities SET org = ? WHERE id = ?"
_INSERT_IDENTITY_AS_IT_WAS = "INSERT INTO identities VALUES (?, ?, ?, ?, ?, ?, ?)"
_SELECT_ROWS = "SELECT * FROM entries WHERE identity = ?"
_SELECT_META = "SELECT key, value FROM meta"
_INSERT_META = "INSERT OR IGNORE INTO meta VALUES (?, ?)"
_SELECT_ENTRIES = """
    SELECT deployment_name, workload_api_version, workload_kind, workload_namespace, workload_name,
        container, acknowledged, acknowledged_at, sent, state, reason, attempts, not_before,
        unsettled, settle_at, refused, written_at
    FROM entries WHERE identity = ?
    """
_SELECT_PAUSE = "SELECT value FROM meta WHERE key = 'pause_until ' || ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Whose records the entries are about: an acknowledgement counts under its identity only.

    Its fields are in the order of the columns.

    `api_host` is the host of GitHub's API; the rest is as in `Scope`, empty text where the
    operator named none.
    """

    api_host: str
    org: str
    logical_environment: str
    physical_environment: str
    cluster: str

    def __str__(self) -> str:
        """Return it as people are told of it: `acme/production/eu-1 at api.github.com`."""
        named = (self.org, self.logical_environment, self.physical_environment, self.cluster)
        return f"{'/'.join(filter(None, named))} at {self.api_host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One moment as two clocks tell it: the event loop's, and the wall's since the epoch."""

    loop: float
    wall: float

    def to_wall(self, time: float | None) -> float | None:
        """Return a time of the loop's clock as a wall time."""
        return None if time is None else self.wall + (time - self.loop)

    def to_loop(self, time: float | None, *, most: float = MAX_AHEAD_SECONDS) -> float | None:
        """Return a wall time as one of the loop's clock, at most `most` seconds ahead."""
        return None if time is None else self.loop + min(time - self.wall, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """
    What a ledger's file holds for one identity.

    `identity_id` is its key in the file, `entries` are (entry, wall time of writing), `others`
    counts the records of other identities that may stand, `fingerprint` is that of the cluster
    which the entries are of, None before one was seen, `pause_until` is a time of the loop's clock,
    0 for none. `unreadable` names the rows that make no sense; they are left as they are.
    """

    identity_id: int
    entries: Sequence[tuple[Entry, float]]
    others: dict[Identity, int]
    fingerprint: str | None
    pause_until: float
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReading:
    """
    What a ledger held for one identity when it was read.

    Times in the entries, and `pause_until` (0 for none), are wall-clock seconds since the epoch;
    so is `written_at`, by deployment name. `others` counts the records of other identities
    that may stand. `fingerprint` is that of the cluster the entries are of, None before one was
    seen. `owned` tells whether a process had the ledger.
    """

    entries: tuple[Entry, ...]
    written_at: Mapping[str, float]
    others: Mapping[Identity, int]
    fingerprint: str | None
    pause_until: float
    owned: bool


def migrate(
    connection: sqlite3.Connection,
    *,
    step: Callable[[str], None],
    migrations: Sequence[Sequence[str]] = MIGRATIONS,
) -> None:
    """
    Bring the schema to the newest version, one transaction for each version on the way.

    The connection must be in autocommit mode (`isolation_level=None`). `step("migrating")` is
    called in each transaction before its commit. Raises sqlite3.Error; what was begun is rolled
    back then.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, statements in enumerate(migrations[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            step("migrating")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def decoded(text: bytes) -> str:
    """
    Return text of the file; to be the `text_factory` of a connection whose rows are read here.

    What is no UTF-8 becomes lone surrogates, which `entry_row` writes none of: an error would come
    from between the rows and cost them all.
    """
    return text.decode(errors="surrogateescape")


def read_contents(connection: sqlite3.Connection, identity: Identity, now: Moment) -> Contents:
    """
    Return what the file holds for an identity, which is entered when it is new to the file.

    A row that was never written by `entry_row` costs its own name alone, which is then as if never
    known. Where no row makes sense, or the identity's own may be what can't be read, it is the file
    that does not: raises one of NONSENSE then, and sqlite3.Error.
    """
    # All at once: what follows asks the same connection.
    identities = connection.execute(_SELECT_IDENTITIES).fetchall()
    own = _own(identities, identity)
    others: dict[Identity, int] = {}
    for row in identities:
        if row is not own and (
            standing := sum(
                _may_stand(kept, now) for kept in connection.execute(_SELECT_ENTRIES, (row[0],))
            )
        ):
            others[_identity(row)] = standing
    if own is None:
        for row in identities:
            _check_text(row[1:6])
        cursor = connection.execute(_INSERT_IDENTITY, astuple(identity))
        if cursor.lastrowid is None:
            raise ValueError("the identity's row has no id")
        identity_id, fingerprint = cursor.lastrowid, None
    else:
        identity_id, fingerprint = own[0], own[6]
        if own[2] != identity.org:
            connection.execute(_UPDATE_ORG, (identity.org, identity_id))
    pause = connection.execute(_SELECT_PAUSE, (identity.api_host,)).fetchone()
    entries: list[tuple[Entry, float]] = []
    unreadable: list[str] = []
    nonsense: Exception | None = None
    for row in connection.execute(_SELECT_ENTRIES, (identity_id,)):
        try:
            entries.append(_entry(row, now))
        except NONSENSE as error:
            unreadable.append(_legible(row[0]))
            nonsense = error
    if nonsense is not None and not entries:
        raise nonsense
    return Contents(
        identity_id=identity_id,
        entries=entries,
        unreadable=unreadable,
        others=others,
        fingerprint=None if fingerprint is None else _legible(fingerprint),
        pause_until=(now.to_loop(float(pause[0]), most=MAX_PAUSE_SECONDS) or 0.0) if pause else 0.0,
    )


def write_contents(
    connection: sqlite3.Connection, identity: Identity, contents: Contents, now: Moment
) -> None:
    """
    Write all that is held for an identity into a ledger that has nothing yet.

    It has the key there that it had: writes that wait name it. The connection is in a transaction.
    Raises sqlite3.Error.
    """
    connection.execute(
        _INSERT_IDENTITY_AS_IT_WAS,
        (contents.identity_id, *astuple(identity), contents.fingerprint),
    )
    connection.executemany(
        UPSERT_ENTRY,
        (
            entry_row(contents.identity_id, entry, now, written_at=written_at)
            for entry, written_at in contents.entries
        ),
    )
    if contents.pause_until:
        connection.execute(UPSERT_PAUSE, (identity.api_host, now.to_wall(contents.pause_until)))


def copy_others(
    source: sqlite3.Connection, target: sqlite3.Connection, identity_id: int
) -> set[Identity]:
    """
    Copy what a ledger holds of all identities but one, as it stands; return those copied whole.

    `source` may be corrupt or closed: what can't be read is left out. `target` is in a transaction.
    Raises sqlite3.Error when it can't be written.
    """
    copied = set()
    for row in _rows(source, _SELECT_IDENTITIES) or ():
        entries = _rows(source, _SELECT_ROWS, row[0])
        if row[0] == identity_id or entries is None:
            continue
        target.execute("SAVEPOINT other")
        try:
            target.execute(_INSERT_IDENTITY_AS_IT_WAS, row)
            target.executemany(_INSERT_ENTRY, entries)
        except (sqlite3.IntegrityError, UnicodeEncodeError):  # these were no rows of such tables
            target.execute("ROLLBACK TO other")
        else:
            copied.add(_identity(row))
        target.execute("RELEASE other")
    with suppress(sqlite3.IntegrityError, UnicodeEncodeError):
        target.executemany(_INSERT_META, _rows(source, _SELECT_META) or ())
    return copied


def _rows(source: sqlite3.Connection, sql: str, *values: Value) -> list[tuple[Any, ...]] | None:
    """Return all rows of a query, None when they can't be read."""
    try:
        return source.execute(sql, values).fetchall()
    except sqlite3.Error:
        return None


def _own(rows: Iterable[Sequence[Any]], identity: Identity) -> Sequence[Any] | None:
    """
    Return the row of an identity, None when there is none.

    To GitHub an organisation is the same with capitals, which earlier versions kept. Where both are
    there, the one that is spelt alike is its own.
    """
    found = None
    for row in rows:
        of_row = _identity(row)
        if of_row == identity:
            return row
        if replace(of_row, org=of_row.org.lower()) == identity:
            found = row
    return found


def _identity(row: Sequence[object]) -> Identity:
    """Return the identity that a row is about, as it can be shown."""
    api_host, org, logical_environment, physical_environment, cluster = map(_legible, row[1:6])
    return Identity(
        api_host=api_host,
        org=org,
        logical_environment=logical_environment,
        physical_environment=physical_environment,
        cluster=cluster,
    )


def _legible(text: object) -> str:
    """Return text of the file as it can be shown, whatever it is."""
    return str(text).encode(errors="backslashreplace").decode()


def _check_text(row: Iterable[object]) -> None:
    """Raise UnicodeEncodeError for text that is no Unicode (a lone surrogate)."""
    for value in row:
        if isinstance(value, str):
            value.encode()


def entry_row(
    identity_id: int, entry: Entry, now: Moment, *, written_at: float | None = None
) -> tuple[Value, ...]:
    """
    Return the values of an entry for `UPSERT_ENTRY`, written now or at that wall time.

    Raises UnicodeEncodeError for text that is no Unicode (a lone surrogate): here, where it fails
    one entry, not in the transaction that it would share with others.
    """
    row: tuple[Value, ...] = (
        identity_id,
        entry.deployment_name,
        entry.workload.api_version,
        entry.workload.kind,
        entry.workload.namespace,
        entry.workload.name,
        entry.container,
        _text(entry.acknowledged),
        now.to_wall(entry.acknowledged_at),
        _text(entry.sent),
        entry.state.value,
        entry.reason,
        entry.attempts,
        now.to_wall(entry.not_before),
        _text(entry.unsettled),
        now.to_wall(entry.settle_at),
        _text(entry.refused),
        now.wall if written_at is None else written_at,
    )
    _check_text(row)
    return row


def _entry(row: Sequence[object], now: Moment) -> tuple[Entry, float]:
    """Return an entry as it was written, and when that was, from a row. Raises NONSENSE."""
    _check_text(row)
    texts = [str(value) for value in row[:6]]
    acknowledged, acknowledged_at, sent, state, reason, attempts = row[6:12]
    not_before, unsettled, settle_at, refused, written_at = row[12:]
    entry = Entry(
        deployment_name=texts[0],
        workload=Workload(api_version=texts[1], kind=texts[2], namespace=texts[3], name=texts[4]),
        container=texts[5],
        acknowledged=_record(acknowledged),
        acknowledged_at=now.to_loop(_number(acknowledged_at), most=0.0),  # it has happened
        sent=_record(sent),
        state=State(str(state)),
        reason=str(reason),
        attempts=int(_number(attempts) or 0),
        not_before=now.to_loop(_number(not_before)),
        unsettled=_record(unsettled),
        settle_at=now.to_loop(_number(settle_at)),
        refused=_record(refused),
    )
    return entry, _number(written_at) or 0.0


def _may_stand(row: Sequence[object], now: Moment) -> bool:
    """Tell whether the record of a row may stand; one that can't be read costs nothing of ours."""
    try:
        return _entry(row, now)[0].may_stand
    except NONSENSE:
        return True


def _number(value: object) -> float | None:
    if value is None or isinstance(value, int | float):
        return value
    raise TypeError(f"a number was expected, not {value!r:.80}")


def _text(record: Record | None) -> str | None:
    """
    Return a record as JSON: ASCII, sorted, so that equal records are equal texts.

    What is empty is left out, as it was before there was such a thing.
    """
    if record is None:
        return None
    fields: dict[str, object] = {
        "deployment_name": record.deployment_name,
        "digest": record.digest,
        "name": record.name,
        "status": record.status.value,
        "version": record.version,
    }
    if record.tags:
        fields["tags"] = dict(record.tags)
    if record.risks:
        fields["risks"] = record.risks
    if record.repository:
        fields["repository"] = record.repository
    if record.emptied:
        fields["emptied"] = sorted(record.emptied)
    return json.dumps(fields, separators=(",", ":"))


def _record(text: object) -> Record | None:
    if text is None:
        return None
    fields = json.loads(str(text))
    return Record(
        deployment_name=fields["deployment_name"],
        name=fields["name"],
        version=fields["version"],
        digest=Digest(fields["digest"]),
        status=Status(fields["status"]),
        tags=tuple(sorted(fields.get("tags", {}).items())),
        risks=tuple(fields.get("risks", ())),
        repository=fields.get("repository"),
        emptied=frozenset(fields.get("emptied", ())),
    )
