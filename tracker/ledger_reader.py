"""
A ledger as it stands now, for whoever only looks: its owner may have it meanwhile.

`SqliteLedger` is the owner's way in and takes the one lock there is. `read_ledger` takes it from
nobody, and writes nothing to the file or beside it. The whole of it is copied into memory in one
read transaction, and there it is brought to this version and read as its owner would read it. How
the file is opened for that depends on who has it:

- An owner has it: it is opened read-only beside the owner, through the log that both see.
- Nobody has it, and it was closed well: it is opened as a file that does not change, since else
  SQLite would make a log beside it. A shared lock keeps owners away for these milliseconds; they
  wait longer than that.
- Nobody has it, and its log was left behind (a kill): only who may write can read such a log, so
  that is done to a copy in a temporary folder.
"""

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tracker.errors import LedgerLockedError, LedgerMissingError, LedgerUnusableError
from tracker.ledger_file import check_version, explain
from tracker.ledger_schema import (
    NONSENSE,
    Contents,
    Identity,
    LedgerReading,
    Moment,
    decoded,
    migrate,
    read_contents,
)

__all__ = ["read_ledger"]

PATIENCE_SECONDS: Final = 2.0
"""How long a file that somebody works at is waited for."""
ATTEMPTS: Final = 3
"""An owner may come or go while the file is opened; it is opened anew then."""
_LOGS: Final = ("-wal", "-journal")
_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""SQLITE_ERROR: our statements don't fit its tables."""
_MAY_PASS: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
}
"""What SQLite says when files beside the database come or go."""


class _ChangedError(Exception):
    """An owner came or went while the file was read; the text says what was met."""


def read_ledger(
    path: Path, identity: Identity, *, wall: Callable[[], float] = time.time
) -> LedgerReading:
    """
    Return what the ledger at `path` holds for an identity. Blocks, and changes nothing.

    Raises LedgerMissingError, LedgerNewerError, LedgerUnusableError (corrupt, another program's,
    may not be read), or LedgerLockedError when it could not be had in time.
    """
    path = path.absolute()  # SQLite gives names like ":memory:" a meaning
    try:
        memory, owned = _copied(path)
        with closing(memory):
            contents = _contents(path, memory, identity, wall())
    except _ChangedError as error:
        raise LedgerLockedError(
            f"the ledger {path} can't be read while others work at it ({error}): try again"
        ) from error
    except FileNotFoundError as error:
        raise LedgerMissingError(
            f"there is no ledger at {path}: the tracker makes one when it first starts; LEDGER_PATH"
            " must name the file that it has"
        ) from error
    except OSError as error:
        raise LedgerUnusableError(
            f"the ledger {path} can't be read ({explain(error)}): run this as the user that the"
            " tracker runs as"
        ) from error
    except (sqlite3.Error, *NONSENSE) as error:
        if isinstance(error, sqlite3.Error) and _kind(error) not in _CORRUPT:
            raise LedgerUnusableError(
                f"the ledger {path} can't be read ({explain(error)}): check its volume"
            ) from error
        raise LedgerUnusableError(
            f"the ledger {path} is corrupt ({explain(error):.200}): check its volume; the tracker"
            " moves it aside when it starts, and begins a new one"
        ) from error
    return LedgerReading(
        entries=tuple(entry for entry, _ in contents.entries),
        written_at=MappingProxyType(
            {entry.deployment_name: written_at for entry, written_at in contents.entries}
        ),
        others=MappingProxyType(contents.others),
        fingerprint=contents.fingerprint,
        pause_until=contents.pause_until,
        owned=owned,
    )


def _contents(path: Path, memory: sqlite3.Connection, identity: Identity, now: float) -> Contents:
    """Return what a copy in memory holds. Raises sqlite3.Error and what `read_contents` does."""
    memory.text_factory = decoded
    (finding,) = memory.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise ValueError(f"quick_check: {' '.join(finding.split())}")
    (version,) = memory.execute("PRAGMA user_version").fetchone()
    (application,) = memory.execute("PRAGMA application_id").fetchone()
    (tables,) = memory.execute("SELECT count(*) FROM sqlite_master").fetchone()
    check_version(path, version, application, is_blank=version == 0 and not tables)
    migrate(memory, step=lambda _: None)
    # One clock for both: the times come as wall times then.
    return read_contents(memory, identity, Moment(loop=now, wall=now))


def _copied(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Return the database in memory, and whether an owner has the file."""
    for attempt in range(1, ATTEMPTS + 1):
        memory = sqlite3.connect(":memory:", isolation_level=None)
        try:
            return memory, _copy(path, memory)
        except _ChangedError:
            memory.close()
            if attempt == ATTEMPTS:
                raise
        except BaseException:
            memory.close()
            raise
    raise AssertionError  # the last attempt returned or raised


def _copy(path: Path, memory: sqlite3.Connection) -> bool:
    """Copy the database into memory; return whether an owner has the file."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with _owners_kept_away(path) as free:
        if not free:
            _backup(f"{path.as_uri()}?mode=ro", memory)
        elif any(_size(f"{path}{suffix}") for suffix in _LOGS):
            _backup_with_log(path, memory)
        elif status.st_size:  # SQLite opens no empty file as one that does not change
            _backup(f"{path.as_uri()}?mode=ro&immutable=1", memory)
        return not free


@contextmanager
def _owners_kept_away(path: Path) -> Iterator[bool]:
    """
    Yield whether nobody owns the ledger; then nobody comes to own it in this context.

    Raises _ChangedError at its end when somebody may have, since there was no lock to hold.
    """
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        lock = os.open(lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        # A copy, or one that was never opened. To make the lock would be to write beside it.
        try:
            yield True
        finally:
            # Whatever came of it then.
            if lock_path.exists():
                raise _ChangedError("its owner has just started")
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(lock)


def _backup(uri: str, memory: sqlite3.Connection) -> None:
    """Copy the database at a URI in one read transaction. Raises _ChangedError, sqlite3.Error."""
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=PATIENCE_SECONDS, isolation_level=None)
        ) as source:
            # The first read takes the transaction; a backup would wait for one for ever.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(memory)
    except sqlite3.Error as error:
        if _kind(error) in _MAY_PASS:
            raise _ChangedError(explain(error)) from error
        raise


def _backup_with_log(path: Path, memory: sqlite3.Connection) -> None:
    """Copy a database that nobody owns with the log that was left beside it."""
    try:
        with tempfile.TemporaryDirectory(prefix="ledger-") as folder:
            copy = Path(folder) / "copy"
            for suffix in ("", *_LOGS):
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}", follow_symlinks=False)
            _backup(copy.as_uri(), memory)
    except OSError as error:
        raise LedgerUnusableError(
            f"the ledger {path} was left with its log, and to read that takes room in a temporary"
            f" folder ({explain(error)}): name one with TMPDIR, or start the tracker"
        ) from error


def _size(path: str) -> int:
    """Return the size of a plain file, 0 when there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ELOOP, f"{Path(path).name} is not a plain file")
    return status.st_size


def _kind(error: sqlite3.Error) -> int:
    """Return SQLite's code; its lower byte is the kind, the rest says more of it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
