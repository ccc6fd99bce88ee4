"""
What a ledger's file claims, read as the file it is and not by the program that wrote it.

After a kill the file alone knows which sends have an end that was written down: how far an answer
had come when the process died depends on the machine, and no clock outside can tell.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["claims", "under_way"]


def claims(ledger: Path) -> tuple[dict[str, tuple[str, str]], set[str]]:
    """Return (status, digest) that is acknowledged, by name, and the names in doubt."""
    with closing(sqlite3.connect(ledger)) as connection:
        rows: Iterable[tuple[str, str | None, str, str | None]] = connection.execute(
            "SELECT deployment_name, acknowledged, state, unsettled FROM entries"
        ).fetchall()
    claimed: dict[str, tuple[str, str]] = {}
    doubtful: set[str] = set()
    for name, acknowledged, state, unsettled in rows:
        if acknowledged is not None:
            claimed[name] = _told(acknowledged)
        if state in {"sending", "open"} or unsettled is not None:
            doubtful.add(name)
    return claimed, doubtful


def under_way(ledger: Path) -> dict[str, tuple[str, str]]:
    """
    Return (status, digest) of the last send by name, of those that have no end in the file.

    The process that sent was killed, and there is nobody else who knows.
    A copy is read: whoever opens the file itself tidies up what the next start is to find.
    """
    if not ledger.exists():
        return {}
    with TemporaryDirectory(prefix="ledger-") as folder:
        copy = Path(folder) / ledger.name
        shutil.copyfile(ledger, copy)
        if (log := Path(f"{ledger}-wal")).exists():
            shutil.copyfile(log, f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                return {}  # killed before there was a table
            rows: Iterable[tuple[str, str]] = connection.execute(
                "SELECT deployment_name, sent FROM entries WHERE state = 'sending'"
            ).fetchall()
    return {name: _told(sent) for name, sent in rows}


def _told(record: str) -> tuple[str, str]:
    found = json.loads(record)
    return found["status"], found["digest"]
