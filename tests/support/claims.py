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
            record = json.loads(acknowledged)
            claimed[name] = (record["status"], record["digest"])
        if state in {"sending", "open"} or unsettled is not None:
            doubtful.add(name)
    return claimed, doubtful


def under_way(ledger: Path) -> frozenset[str]:
    """
    Return the names whose last send has no end in the file, after the process that sent was killed.

    A copy is read: whoever opens the file itself tidies up what the next start is to find.
    """
    if not ledger.exists():
        return frozenset()
    with TemporaryDirectory(prefix="ledger-") as folder:
        copy = Path(folder) / ledger.name
        shutil.copyfile(ledger, copy)
        if (log := Path(f"{ledger}-wal")).exists():
            shutil.copyfile(log, f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                return frozenset()  # killed before there was a table
            rows = connection.execute(
                "SELECT deployment_name FROM entries WHERE state = 'sending'"
            ).fetchall()
    return frozenset(name for (name,) in rows)
