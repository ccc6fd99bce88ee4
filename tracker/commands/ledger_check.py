"""
What `doctor` needs to know of a ledger that a tracker may have: read from a copy, nothing changed.

The file and its log are copied into a folder of its own and read there, so that no byte of the
ledger and nothing beside it changes, whoever has it.
"""

import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from tracker.entries import Entry
from tracker.errors import LedgerNewerError, LedgerUnusableError
from tracker.ledger_file import explain
from tracker.ledger_schema import (
    APPLICATION_ID,
    VERSION,
    Identity,
    Moment,
    migrate,
    read_contents,
)

__all__ = ["LedgerReading", "read_ledger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReading:
    """
    What a ledger held for one identity.

    `others` counts the entries of other identities, `fingerprint` is the cluster's (None before one
    was seen), `owned` tells whether a process had the ledger.
    """

    entries: tuple[Entry, ...]
    others: Mapping[Identity, int]
    fingerprint: str | None
    owned: bool


def read_ledger(path: Path, identity: Identity) -> LedgerReading | None:
    """
    Return what the ledger at `path` holds, or None when there is none and one can be made.

    Blocks. Raises LedgerNewerError or LedgerUnusableError.
    """
    path = path.absolute()
    if not path.exists():
        folder = path.parent if path.parent.exists() else path.parent.parent
        if not os.access(folder, os.W_OK):
            raise LedgerUnusableError(
                f"the ledger {path} can't be used (its folder is missing or not to be written to):"
                " LEDGER_PATH must be a file in a folder that this user may write to"
            )
        return None
    try:
        owned = _is_owned(path)
        with tempfile.TemporaryDirectory(prefix="ledger-") as folder_name:
            copy = Path(folder_name) / "copy"
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                return _read(path, connection, identity, owned=owned)
    except OSError as error:
        raise LedgerUnusableError(
            f"the ledger {path} can't be read ({explain(error)}): run this as the user that the"
            " tracker runs as"
        ) from error
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise LedgerUnusableError(
            f"the ledger {path} is corrupt ({explain(error):.200}): check its volume; the tracker"
            " moves it aside when it starts, and begins a new one"
        ) from error


def _read(
    path: Path, connection: sqlite3.Connection, identity: Identity, *, owned: bool
) -> LedgerReading:
    connection.text_factory = bytes.decode
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise ValueError(f"quick_check: {' '.join(finding.split())}")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version > VERSION:
        raise LedgerNewerError(
            f"the ledger {path} was written by a newer version of deployment-tracker (its schema "
            f"is {version}, this program knows {VERSION}): run that version, or set LEDGER_PATH "
            "to another file; it was not touched"
        )
    if (version or tables) and application != APPLICATION_ID:
        raise LedgerUnusableError(
            f"the file {path} is another program's SQLite database: set LEDGER_PATH to a file of "
            "the ledger's own; it was not touched"
        )
    migrate(connection, step=lambda _: None)
    now = time.time()
    contents = read_contents(connection, identity, Moment(loop=now, wall=now))
    return LedgerReading(
        entries=tuple(entry for entry, _ in contents.entries),
        others=contents.others,
        fingerprint=contents.fingerprint,
        owned=owned,
    )


def _is_owned(path: Path) -> bool:
    """Tell whether a process has the ledger's lock; it is looked at and let go at once."""
    try:
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
