"""
What GitHub answered to an audit so far, in a file, so that an interrupted audit goes on.

One line of JSON for each answer, the first one says whose they are. A line is written when its
answer came; one that a kill cut off is passed over. From one that is damaged on, all is asked for
again, and that is told: no byte of it can end an audit. Answers that are of another identity, or
older than a day, are no answers: the audit begins anew. When all was asked the file is removed.
"""

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import structlog

from tracker.answers import Known, ReadBack
from tracker.errors import AuditFileError
from tracker.images import Digest

__all__ = ["AuditFile"]

VERSION: Final = 1
HEAD: Final = b'{"audit": '
"""How the first line begins: a file of another kind is not written to."""
MAX_AGE_SECONDS: Final = 24 * 3600.0
"""Answers that are older say too little of what is there now."""

_log = structlog.get_logger(__name__)


class AuditFile:
    """
    The answers of one audit: a context manager that holds the file against other audits.

    `identity` says whose records they are about. Opening raises `AuditFileError`.
    """

    def __init__(self, path: Path, *, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._file: BinaryIO | None = None
        self.answers: dict[Digest, Known] = {}
        """What an earlier audit was answered."""

    def __enter__(self) -> Self:
        try:
            self._file = os.fdopen(_open_plain(self._path), "r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise AuditFileError(
                f"{self._path}: another audit is at work with it; wait for its end, or name another"
                " file with --resume"
            ) from None
        except OSError as error:
            self._close()
            raise AuditFileError(
                f"{self._path}: answers can't be kept there ({error.strerror}); name a file that"
                " this user may write to with --resume"
            ) from error
        try:
            self._load(self._file)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def keep(self, digest: Digest, answer: Known) -> None:
        """Write an answer down. A file that can't be written only costs that it is asked again."""
        records = [
            [
                each.deployment_name,
                each.logical_environment,
                each.physical_environment,
                each.cluster,
            ]
            for each in answer.records
        ]
        self._write({"digest": digest, "complete": answer.complete, "records": records})

    def remove(self) -> None:
        """Remove the file: everything was asked."""
        with suppress(OSError):
            self._path.unlink()

    def _load(self, file: BinaryIO) -> None:
        """Take up what the file holds. Raises `AuditFileError` when it is not an audit's."""
        head = file.readline()
        if head and not head.startswith(HEAD):
            raise AuditFileError(
                f"{self._path}: this is not the file of an audit, and stays as it is; name another"
                " one with --resume"
            )
        end = 0
        line, number = head, 1
        try:
            if self._is_ours(_decoded(head)):
                end = file.tell()
                while line := file.readline():
                    number += 1
                    digest, answer = _answer(_decoded(line))
                    self.answers[digest] = answer
                    end = file.tell()
        except _DAMAGE:
            if line.endswith(b"\n"):  # else it was cut off, and is the last one
                _log.warning(
                    "the audit's file is damaged: what follows is asked for again",
                    file=str(self._path),
                    line=number,
                )
        file.seek(end)
        file.truncate()
        if not end:
            self._write({"audit": VERSION, "identity": self._identity, "began": time.time()})
        elif self.answers:
            _log.info("going on with an audit", answers=len(self.answers), file=str(self._path))

    def _is_ours(self, told: Any) -> bool:  # noqa: ANN401 - decoded JSON
        """
        Tell whether what follows the first line is of this identity, and not too old.

        Raises one of `_DAMAGE` for what is no first line.
        """
        age = time.time() - told["began"]
        if told["audit"] != VERSION or told["identity"] != self._identity:
            return False
        return bool(0 <= age < MAX_AGE_SECONDS)

    def _write(self, told: Mapping[str, object]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(told).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            _log.warning(
                "answers are not kept any more: an interruption begins this audit anew",
                file=str(self._path),
                reason=error.strerror,
            )
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()


def _open_plain(path: Path) -> int:
    """Return a descriptor of the plain file at `path`, made when there is none. Raises OSError."""
    # O_NONBLOCK: not to wait for whoever writes to a pipe.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        # It could not be read again, and a device must not be removed at the end.
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file")
    return descriptor


_DAMAGE: Final = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What decoding raises, and looking for what should be there: any byte may have been changed."""


def _decoded(line: bytes) -> Any:  # noqa: ANN401 - decoded JSON
    """Return what a whole line says. Raises one of `_DAMAGE` for none."""
    if not line.endswith(b"\n"):
        message = "cut off"
        raise ValueError(message)
    return json.loads(line.decode())


def _answer(told: Any) -> tuple[Digest, Known]:  # noqa: ANN401 - decoded JSON
    """Return a digest and its answer. Raises one of `_DAMAGE` for what is none."""
    digest, complete, records = told["digest"], told["complete"], told["records"]
    if not isinstance(digest, str) or not isinstance(complete, bool):
        message = "no answer"
        raise TypeError(message)
    if not isinstance(records, list):
        message = "no records"
        raise TypeError(message)
    found = []
    for name, logical, physical, cluster in records:
        if not all(isinstance(each, str) for each in (name, logical, physical, cluster)):
            message = "no record"
            raise TypeError(message)
        found.append(
            ReadBack(
                deployment_name=name,
                digest=digest,
                logical_environment=logical,
                physical_environment=physical,
                cluster=cluster,
            )
        )
    return Digest(digest), Known(records=tuple(found), complete=complete)
