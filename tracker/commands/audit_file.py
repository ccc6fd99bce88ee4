"""
What GitHub answered to an audit so far, in a file, so that an interrupted audit goes on.

One line of JSON for each answer, the first one says whose they are. A line is written when its
answer came; one that a kill cut off is passed over, with all that follows it. Answers that are of
another identity, or older than a day, are no answers: the audit begins anew. When all was asked the
file is removed.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import structlog

from tracker.answers import Known, ReadBack
from tracker.errors import AuditFileError
from tracker.images import Digest

__all__ = ["AuditFile"]

VERSION: Final = 1
HEAD: Final = '{"audit": '
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
        self._file: TextIO | None = None
        self.answers: dict[Digest, Known] = {}
        """What an earlier audit was answered."""

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            self._file = os.fdopen(descriptor, "r+", encoding="utf-8")
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

    def _load(self, file: TextIO) -> None:
        """Take up what the file holds. Raises `AuditFileError` when it is not an audit's."""
        head = file.readline()
        if head and not head.startswith(HEAD):
            raise AuditFileError(
                f"{self._path}: this is not the file of an audit, and stays as it is; name another"
                " one with --resume"
            )
        end = file.tell() if self._is_ours(head) else 0
        for line in iter(file.readline, ""):
            try:
                digest, answer = _answer(json.loads(line) if line.endswith("\n") else None)
            except (ValueError, TypeError, KeyError):
                break  # a line that was cut off
            if not end:
                break
            self.answers[digest] = answer
            end = file.tell()
        file.seek(end)
        file.truncate()
        if not end:
            self._write({"audit": VERSION, "identity": self._identity, "began": time.time()})
        elif self.answers:
            _log.info("going on with an audit", answers=len(self.answers), file=str(self._path))

    def _is_ours(self, head: str) -> bool:
        """Tell whether what follows the first line is of this identity, and not too old."""
        try:
            told = json.loads(head)
            age = time.time() - told["began"]
        except (ValueError, TypeError, KeyError):
            return False
        if told.get("audit") != VERSION or told.get("identity") != self._identity:
            return False
        return bool(0 <= age < MAX_AGE_SECONDS)

    def _write(self, told: Mapping[str, object]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(told) + "\n")
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


def _answer(told: Any) -> tuple[Digest, Known]:  # noqa: ANN401 - decoded JSON
    """Return a digest and its answer. Raises ValueError, TypeError or KeyError for no such line."""
    digest, complete, records = told["digest"], told["complete"], told["records"]
    if not isinstance(digest, str) or not isinstance(complete, bool):
        message = "no answer"
        raise TypeError(message)
    if not isinstance(records, list):
        message = "no records"
        raise TypeError(message)
    found = []
    for name, logical, physical, cluster in records:
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
