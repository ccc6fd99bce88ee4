"""
The ledger's file: found, checked, locked and opened.

`open_file` is for `tracker.ledger` alone, and blocks: it runs in the ledger's writer thread. It
promises that there is one owner, held by a lock on `<path>.lock`; that a file of a newer version,
or of another program, is refused before a byte of it or beside it changes; and that a corrupt
file is moved aside and told of loudly, never deleted, and never used. `replace_file` puts a new one
in the place of one that broke or went while it was open. Who only looks uses
`tracker.ledger_reader`; who only asks whether an owner could write, `unwritable`.

File formats: https://www.sqlite.org/fileformat2.html
"""

import errno
import fcntl
import os
import sqlite3
import stat
import struct
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from tracker.errors import (
    LedgerError,
    LedgerGoneError,
    LedgerLockedError,
    LedgerNewerError,
    LedgerTakenError,
    LedgerUnusableError,
)
from tracker.ledger_schema import APPLICATION_ID, NONSENSE, VERSION, decoded

__all__ = [
    "OpenFile",
    "check_version",
    "explain",
    "is_corrupt",
    "open_file",
    "replace_file",
    "unwritable",
]

LEAST_SQLITE = (3, 37)
"""The first SQLite that has STRICT tables: https://www.sqlite.org/stricttables.html"""
LOCK_POLL_SECONDS = 0.05
SIDE_FILES = ("-wal", "-shm", "-journal")
"""What SQLite may keep beside a database."""
UNFINISHED = ".unfinished"
"""What follows the name of a ledger that is written anew, until it is whole."""
RENEWED = ".renewed"
"""What follows its name from then on, until it is in its place."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system without hard links says, and one that lets nobody make any."""
_MAGIC = b"SQLite format 3\0"
_USER_VERSION, _APPLICATION_ID = 60, 68
"""Where the header has these, each a big-endian integer of four bytes."""
_NO_SCHEMA = b"\x0d\0\0\0\0"
"""How the schema's table begins, behind the header, when it has no rows."""
_SCHEMA = 100
_HEADER_SIZE = _SCHEMA + len(_NO_SCHEMA)

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class _CorruptError(Exception):
    """The file is not, or no longer, a ledger that can be read; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile(Generic[_T]):
    """
    An open ledger: its connection, in autocommit mode, and what `prepare` returned.

    `identity` tells its file from others, `device` the volume that its folder was on.
    """

    path: Path
    connection: sqlite3.Connection
    contents: _T
    lock: "_Lock"
    identity: tuple[int, int]
    device: int

    def check(self) -> None:
        """
        Refuse to go on with a file that is not, or may not be, this process's own any more.

        SQLite would not notice: it would write to a file that no restart finds, or into that of
        another owner. Raises LedgerTakenError when another file stands at the path or the lock
        does not, LedgerGoneError when nothing stands there.
        """
        found = _found(self.path)
        if found is None:
            raise LedgerGoneError("the file was moved or deleted")
        if found != self.identity:
            raise _taken()
        if not self.lock.is_in_place():
            raise LedgerTakenError(
                "its .lock was deleted, so another process may own it: never delete that file;"
                " restart to ask for the ledger anew"
            )

    def close(self) -> None:
        """Close the file and let go of the lock."""
        try:
            self.connection.close()
        finally:
            self.lock.close()


def open_file(
    path: Path,
    *,
    prepare: Callable[[sqlite3.Connection], _T],
    patience_seconds: float,
) -> OpenFile[_T]:
    """
    Return the ledger at `path`, created when there is none.

    `prepare(connection)` migrates and reads it; its sqlite3.Error and NONSENSE are judged here.
    Another process is waited for `patience_seconds`.

    Raises LedgerLockedError, LedgerNewerError or LedgerUnusableError; nothing is left open then.
    """
    path = path.absolute()  # SQLite gives names like ":memory:" a meaning
    if sqlite3.sqlite_version_info < LEAST_SQLITE:
        # It would take a sound ledger for a corrupt one.
        raise LedgerUnusableError(
            f"the ledger {path} needs SQLite {'.'.join(map(str, LEAST_SQLITE))} or later, this "
            f"Python has {sqlite3.sqlite_version}: use another build of Python"
        )
    try:
        lock = _Lock(path, patience_seconds)
        try:
            return _open_or_renew(path, lock, prepare, patience_seconds)
        except BaseException:
            lock.close()
            raise
    except _CorruptError as error:
        raise LedgerUnusableError(
            f"the ledger {path} is corrupt again right after it was created ({error}): "
            "mend the volume, or set LEDGER_PATH to a file on another one"
        ) from error
    except OSError as error:
        raise LedgerUnusableError(
            f"the ledger {path} can't be used ({_because(error)}): LEDGER_PATH must be a file in "
            "a folder that this user may write to"
        ) from error


def _open_or_renew(
    path: Path, lock: "_Lock", prepare: Callable[[sqlite3.Connection], _T], patience_seconds: float
) -> OpenFile[_T]:
    """Open what stands there; where it is corrupt, what a kill left beside it, or a new one."""
    _remove(_beside(path, UNFINISHED))
    renewed = _beside(path, RENEWED)
    if (found := _found(path)) is None:
        _adopt(path)
    elif found == _found(renewed):  # it is in its place already
        _remove(renewed)
    try:
        file = _open(path, lock, prepare, patience_seconds)
    except _CorruptError as error:
        if not _adopt(path):
            _log.error(
                "the ledger was corrupt and is started anew: what runs is posted once more, and"
                " what was deleted while the tracker was down is not noticed; check the volume,"
                " compare with GitHub, and delete the old file when it is of no more use",
                path=str(path),
                moved_to=str(_move_aside(path)),
                reason=str(error),
            )
        file = _open(path, lock, prepare, patience_seconds)
    with suppress(OSError):
        _remove(renewed)
    return file


def replace_file(
    file: OpenFile[_T],
    *,
    fill: Callable[[sqlite3.Connection], None],
    step: Callable[[str], None],
    patience_seconds: float,
) -> tuple[OpenFile[_T], Path | None]:
    """
    Put a new ledger in the place of an open one that is corrupt or gone; the lock is kept.

    `fill(connection)` makes it, in a file beside that takes the place when it is whole: a kill
    before leaves what was there, and after it the next start puts it there. `step(name)` is called
    in between. Returns it, and where what was there was moved, None when there was nothing. A lock
    that went with the file is taken again if nobody else has it.

    Raises LedgerTakenError when the place is not this process's own any more; LedgerError,
    sqlite3.Error or OSError when no new one can be made. It may be tried again then: the old one
    stays open for `fill` to read.
    """
    path = file.path
    _check_replaceable(file)
    renewed = _build(path, fill)
    step("moving")
    _check_replaceable(file)  # who knows what was put there meanwhile
    moved = _move_aside(path)
    step("placing")
    identity = _place(renewed, path)
    try:
        step("placed")
        opened = _open(path, file.lock, lambda _: file.contents, patience_seconds, identity)
    except BaseException as error:
        if _found(path) == identity:
            # Here it would be taken for another's; beside, the next start finds it.
            if _found(renewed) is None:
                path.rename(renewed)
            _remove(path)
        if isinstance(error, _CorruptError):
            raise LedgerError(f"the new one is corrupt as well: {error}") from error
        raise
    with suppress(OSError):
        _remove(renewed)
    # Only now: it would bring its log into the file, and both are kept as they are.
    with suppress(sqlite3.Error):
        file.connection.close()
    return opened, moved


def _check_replaceable(file: OpenFile[_T]) -> None:
    """Refuse to replace what is not, or may not be, this process's own."""
    try:
        file.check()
    except LedgerGoneError:
        with suppress(FileNotFoundError):  # the folder went, too
            if file.path.parent.stat().st_dev != file.device:
                raise LedgerError("its volume is not mounted any more") from None
        if not file.lock.is_in_place():
            # Without a ledger there is none that another owner could have written to.
            file.lock.take_again()


def _build(path: Path, fill: Callable[[sqlite3.Connection], None]) -> Path:
    """Make a ledger that is one plain file beside `path`; return it when it is durable."""
    built, renewed = _beside(path, UNFINISHED), _beside(path, RENEWED)
    _remove(built)
    try:
        os.close(os.open(built, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with closing(sqlite3.connect(built, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            fill(connection)
        built.rename(renewed)
    except BaseException:
        with suppress(OSError):
            _remove(built)
        raise
    _sync_folder(path)
    return renewed


def _place(renewed: Path, path: Path) -> tuple[int, int]:
    """Put a ledger in its place, never over what was put there a moment ago."""
    identity = _identity(renewed.lstat())
    try:
        os.link(renewed, path)
    except FileExistsError:
        raise _taken() from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: the lock is what keeps others from here.
        if _found(path) is not None:
            raise _taken() from None
        renewed.rename(path)
    _sync_folder(path)
    return identity


def _adopt(path: Path) -> bool:
    """Put a ledger in its place that a kill kept from it; return whether there was one."""
    renewed = _beside(path, RENEWED)
    if _found(renewed) is None:
        return False
    moved = _move_aside(path)  # it may have been cut short: the log is there still
    _place(renewed, path)
    _remove(renewed)
    _log.error(
        "the ledger broke or went under way and was written anew from memory before the tracker was"
        " killed: nothing that it held of this identity is lost; check the volume, and who else"
        " works in its folder",
        path=str(path),
        **({} if moved is None else {"moved_to": str(moved)}),
    )
    return True


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def _remove(path: Path) -> None:
    """Delete a database of which nothing is lost, and what SQLite keeps beside it."""
    for suffix in (*SIDE_FILES, ""):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def is_corrupt(error: Exception) -> bool:
    """Tell whether an error of SQLite says that its file is broken, whatever is asked of it."""
    return _kind(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def unwritable(path: Path) -> Path | None:
    """
    Return which of what an owner of the ledger writes to this user may not, None for none.

    Its folder (the one that it would be made in, when there is none), the file, its lock and what
    SQLite keeps beside it. Changes nothing: only who tries knows of a full volume.
    """
    path = path.absolute()
    folder = path.parent if path.parent.exists() else path.parent.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return folder
    files = (path, *(Path(f"{path}{suffix}") for suffix in (".lock", *SIDE_FILES)))
    return next((each for each in files if each.exists() and not os.access(each, os.W_OK)), None)


def explain(error: Exception) -> str:
    """Return an error of SQLite or of the system in a few words."""
    if isinstance(error, OSError):
        return _because(error)
    name = getattr(error, "sqlite_errorname", None)
    return f"{error}, {name}" if name else str(error)


class _Lock:
    """The lock on `<path>.lock`, which makes its holder the ledger's owner; held until closed."""

    def __init__(self, path: Path, patience_seconds: float) -> None:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700)
        self._ledger = path
        self._path = path.with_name(f"{path.name}.lock")
        deadline = time.monotonic() + patience_seconds
        while True:
            descriptor = self._wait(path, deadline)
            # One that was deleted meanwhile keeps nobody away.
            if _found(self._path) == _identity(os.fstat(descriptor)):
                self._descriptor = descriptor
                return
            os.close(descriptor)

    def is_in_place(self) -> bool:
        """Tell whether whoever asks for the ledger still meets this lock."""
        return _found(self._path) == _identity(os.fstat(self._descriptor))

    def take_again(self) -> None:
        """Take it where its file was deleted. Raises LedgerTakenError when another has it."""
        try:
            another = _Lock(self._ledger, 0)
        except LedgerLockedError:
            raise LedgerTakenError(
                "its .lock was deleted, and another process has the ledger by now: never delete"
                " that file; restart to wait for that process"
            ) from None
        os.close(self._descriptor)
        self._descriptor = another._descriptor

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)

    def _wait(self, path: Path, deadline: float) -> int:
        """Return a descriptor that holds the lock; its file may be deleted by then."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise _locked(path) from None
                    time.sleep(LOCK_POLL_SECONDS)
                else:
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _taken() -> LedgerError:
    return LedgerTakenError("another file was put in its place; restart to go on with that")


def _locked(path: Path) -> LedgerError:
    return LedgerLockedError(
        f"the ledger {path} is in use by another process: stop that one, or give this one a "
        "LEDGER_PATH of its own; never delete its .lock, that would make two owners"
    )


def _open(
    path: Path,
    lock: _Lock,
    prepare: Callable[[sqlite3.Connection], _T],
    patience_seconds: float,
    expected: tuple[int, int] | None = None,
) -> OpenFile[_T]:
    """Check, open, check again and prepare. Raises _CorruptError for what is to be moved aside."""
    identity = _claim(path)
    if expected not in {None, identity}:
        raise _taken()
    connection = sqlite3.connect(path, timeout=patience_seconds, isolation_level=None)
    try:
        _check_in_place(path, identity)
        device = path.parent.stat().st_dev
        contents = _prepare(path, connection, prepare)
    except BaseException:
        connection.close()
        raise
    return OpenFile(
        path=path,
        connection=connection,
        contents=contents,
        lock=lock,
        identity=identity,
        device=device,
    )


def _check_in_place(path: Path, identity: tuple[int, int]) -> None:
    """Refuse a file that was put there since it was checked: SQLite opens by name."""
    if _identity(path.lstat()) != identity:
        raise LedgerUnusableError(
            f"the ledger {path} was replaced while it was opened: nothing else may write there"
        )


def _prepare(
    path: Path, connection: sqlite3.Connection, prepare: Callable[[sqlite3.Connection], _T]
) -> _T:
    connection.text_factory = decoded
    try:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise _CorruptError(f"quick_check: {finding}")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise LedgerUnusableError(
                f"the ledger {path} can't have a write-ahead log there (journal_mode={mode}): "
                "LEDGER_PATH must be on a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        return prepare(connection)
    except NONSENSE as error:
        raise _CorruptError(f"a row makes no sense: {error!r:.200}") from error
    except sqlite3.Error as error:
        kind = _kind(error)
        # SQLITE_ERROR: our statements don't fit its tables.
        if is_corrupt(error) or kind == sqlite3.SQLITE_ERROR:
            raise _CorruptError(explain(error)) from error
        if kind in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise _locked(path) from error
        raise LedgerUnusableError(
            f"the ledger {path} can't be opened ({explain(error)}): make room on its volume, or "
            "set LEDGER_PATH to a file that this user may write to"
        ) from error


def _claim(path: Path) -> tuple[int, int]:
    """
    Create the file or check the one that is there; return what tells it from other files.

    Nothing is written before it is known to be a ledger of this version or an older one.
    """
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(f"{path}{suffix}").st_mode):
                raise OSError(errno.ELOOP, f"{path.name}{suffix} is not a plain file")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        _sync_folder(path)
    # This descriptor is closed before SQLite opens the file: closing it later would drop SQLite's
    # own locks, which belong to the process (https://www.sqlite.org/howtocorrupt.html).
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file")
        wal = Path(f"{path}-wal")
        _check_header(path, file.read(_HEADER_SIZE), wal.read_bytes() if wal.exists() else b"")
        if stat.S_IMODE(status.st_mode) != 0o600:  # noqa: PLR2004 - for its owner alone
            _restrict(path, file.fileno())
    return _identity(status)


def _check_header(path: Path, header: bytes, wal: bytes) -> None:
    """
    Refuse a file that isn't ours to open.

    `header` is its first `_HEADER_SIZE` bytes, `wal` the whole of its write-ahead log.
    """
    if not header and not wal:
        return
    if len(header) < _HEADER_SIZE or not header.startswith(_MAGIC):
        raise _CorruptError("it does not begin like an SQLite database")
    header = _committed_header(wal) or header
    version = _integer(header, _USER_VERSION)
    is_blank = version == 0 and header[_SCHEMA:] == _NO_SCHEMA
    check_version(path, version, _integer(header, _APPLICATION_ID), is_blank=is_blank)


def check_version(path: Path, version: int, application: int, *, is_blank: bool) -> None:
    """
    Refuse a newer version's ledger and another program's database.

    `is_blank` says that it is nobody's yet. Raises LedgerNewerError or LedgerUnusableError.
    """
    if version > VERSION:
        raise LedgerNewerError(
            f"the ledger {path} was written by a newer version of deployment-tracker (its schema "
            f"is {version}, this program knows {VERSION}): run that version, or set LEDGER_PATH "
            "to another file; it was not touched"
        )
    if not is_blank and application != APPLICATION_ID:
        raise LedgerUnusableError(
            f"the file {path} is another program's SQLite database: set LEDGER_PATH to a file of "
            "the ledger's own; it was not touched"
        )


def _committed_header(wal: bytes) -> bytes | None:
    """
    Return the first `_HEADER_SIZE` bytes as the last commit in a write-ahead log left them.

    None when it has no commit, or none of them changed the first page.

    SQLite can't be asked for it: to read a database with such a log it writes beside it.
    """
    if len(wal) < 32 or wal[:3] != b"\x37\x7f\x06":  # noqa: PLR2004 - the log's header
        return None
    order = ">" if wal[3] & 1 else "<"  # of the checksums only
    page_size = _integer(wal, 8)
    salt = wal[16:24]
    checksum = _checksum(order, wal[:24], (0, 0))
    if checksum != struct.unpack_from(">II", wal, 24):
        return None
    found = committed = None
    for start in range(32, len(wal) - page_size - 23, page_size + 24):
        page = start + 24
        checksum = _checksum(order, wal[start : start + 8], checksum)
        checksum = _checksum(order, wal[page : page + page_size], checksum)
        if wal[start + 8 : start + 16] != salt:
            break
        if checksum != struct.unpack_from(">II", wal, start + 16):
            break
        if _integer(wal, start) == 1:
            found = wal[page : page + _HEADER_SIZE]
        if _integer(wal, start + 4):  # the size of the database: this frame ends a transaction
            committed = found
    return committed


def _checksum(order: str, content: bytes, start: tuple[int, int]) -> tuple[int, int]:
    """Return the WAL format's running checksum over `content`, a multiple of eight bytes."""
    first, second = start
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for left, right in zip(words, words, strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


def _integer(content: bytes, offset: int) -> int:
    return int.from_bytes(content[offset : offset + 4])


def _restrict(path: Path, descriptor: int) -> None:
    """Leave the file to its owner; kubelet's `fsGroup`, for one, opens it to a group."""
    try:
        os.fchmod(descriptor, 0o600)
    except PermissionError:
        _log.warning("others may read the ledger: it belongs to another user", path=str(path))


def _move_aside(path: Path) -> Path | None:
    """
    Rename a corrupt ledger, and what SQLite keeps beside it, so that it can be looked at.

    Returns its new name, None when there was nothing to rename.
    """
    stamp = datetime.now(tz=UTC).strftime("%Y%m%dT%H%M%SZ")
    moved = path.with_name(f"{path.name}.corrupt-{stamp}")
    count = 1
    while moved.exists():
        count += 1
        moved = path.with_name(f"{path.name}.corrupt-{stamp}.{count}")
    # The log goes last: if this is cut short, a database without it could pass for sound and be
    # older, while a log without its database is seen, and moved, too.
    renamed = 0
    for suffix in ("-journal", "", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{moved}{suffix}")
            renamed += 1
    _sync_folder(path)
    return moved if renamed else None


def _sync_folder(path: Path) -> None:
    """Make what was created or renamed beside `path` outlast a power failure."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _found(path: Path) -> tuple[int, int] | None:
    """Return what stands at a path, None for nothing. Raises OSError when that can't be told."""
    try:
        return _identity(path.lstat())
    except FileNotFoundError:
        return None


def _kind(error: Exception) -> int:
    """Return SQLite's code, 0 for other errors; its lower byte is the kind, the rest says more."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _because(error: OSError) -> str:
    """Return the reason of a system's error without the path, which the message has already."""
    if error.errno == errno.ELOOP and error.filename is not None:
        return "it is a symbolic link"
    return error.strerror or str(error)
