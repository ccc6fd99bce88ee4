"""Looking into a ledger, whoever has it, without leaving a trace."""

import asyncio
import fcntl
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.ledgers import (
    IDENTITY,
    NOW,
    Wall,
    entry,
    put_until_killed,
    record,
    run_process,
    sums,
)
from tracker.entries import Entry, State
from tracker.errors import (
    LedgerError,
    LedgerLockedError,
    LedgerMissingError,
    LedgerNewerError,
    LedgerUnusableError,
)
from tracker.ledger import SqliteLedger
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import VERSION, LedgerReading

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.db"


def ledger_at(path: Path) -> SqliteLedger:
    return SqliteLedger(path=path, identity=IDENTITY, wall=Wall(), patience_seconds=0)


def filled(path: Path, count: int = 3) -> None:
    """Leave a closed ledger with so many entries."""

    async def main() -> None:
        async with ledger_at(path) as ledger:
            await asyncio.gather(*(ledger.put(entry(number)) for number in range(count)))

    asyncio.run(main())


def read(path: Path) -> LedgerReading:
    return read_ledger(path, IDENTITY, wall=Wall())


def timeless(one: Entry) -> Entry:
    return replace(one, acknowledged_at=None, not_before=None, settle_at=None)


def numbers(reading: LedgerReading) -> list[int]:
    return sorted(int(kept.workload.name.removeprefix("app-")) for kept in reading.entries)


async def test_what_an_owner_has_just_written_is_read_beside_it(path: Path) -> None:
    async with ledger_at(path) as ledger:
        assert read(path).entries == ()
        for number in range(5):
            await ledger.put(entry(number))
            assert numbers(read(path)) == list(range(number + 1))
        await ledger.forget(entry(0).deployment_name)
        reading = read(path)
        assert reading.owned
        assert set(reading.entries) == set(ledger.entries())
        await ledger.put(entry(9))  # whoever looked stood in nobody's way


async def test_times_are_those_of_the_wall_and_as_they_were_written(path: Path) -> None:
    """An owner that starts moves them, since a stop may have been long; who looks does not."""
    loop = asyncio.get_running_loop()
    refused = entry(
        1,
        acknowledged_at=loop.time() - 7,
        sent=record(2),
        state=State.PARKED,
        reason="422: no",
        not_before=loop.time() + 3600,
        settle_at=loop.time() + 30,
    )
    failing = entry(2, sent=record(3), not_before=loop.time() + 900)
    async with ledger_at(path) as ledger:
        await ledger.put(refused, failing)
        await ledger.set_pause_until(loop.time() + 60)
        await ledger.seen_cluster("a fingerprint")
        reading = read(path)
    found = {kept.deployment_name: kept for kept in reading.entries}
    kept = found[refused.deployment_name]
    assert kept.acknowledged_at == pytest.approx(NOW - 7, abs=1)
    assert kept.not_before == pytest.approx(NOW + 3600, abs=1)
    assert kept.settle_at == pytest.approx(NOW + 30, abs=1)
    assert timeless(kept) == timeless(refused)
    assert found[failing.deployment_name].not_before == pytest.approx(NOW + 900, abs=1)
    assert reading.written_at[refused.deployment_name] == NOW
    assert reading.pause_until == pytest.approx(NOW + 60, abs=1)
    assert reading.fingerprint == "a fingerprint"


def test_a_ledger_that_nobody_has_is_read_without_a_trace(path: Path) -> None:
    filled(path)
    before = sums(path.parent)
    reading = read(path)
    assert numbers(reading) == [0, 1, 2]
    assert not reading.owned
    assert sums(path.parent) == before


def test_nothing_may_be_written_where_it_lies(path: Path) -> None:
    filled(path)
    path.parent.chmod(0o500)
    try:
        assert numbers(read(path)) == [0, 1, 2]
    finally:
        path.parent.chmod(0o700)


def test_what_a_kill_left_in_the_log_is_read_without_a_trace(path: Path) -> None:
    process = run_process(put_until_killed, str(path), "before-commit", "6")
    assert process.returncode == -signal.SIGKILL, process.stderr
    before = sums(path.parent)
    assert Path(f"{path}-wal").stat().st_size
    reading = read(path)
    assert numbers(reading) == [0, 1, 2, 3, 4]
    assert not reading.owned
    assert sums(path.parent) == before


def test_a_log_that_can_t_be_copied_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_process(put_until_killed, str(path), "before-commit", "6")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(LedgerUnusableError, match=r"left with its log.*name one with TMPDIR"):
        read(path)


def test_a_copy_without_its_lock_is_read(path: Path, tmp_path: Path) -> None:
    filled(path)
    copy = tmp_path / "copied.db"
    shutil.copyfile(path, copy)
    assert numbers(read(copy)) == [0, 1, 2]
    assert not Path(f"{copy}.lock").exists()


async def test_who_looks_keeps_no_owner_out(path: Path) -> None:
    async with ledger_at(path):
        pass

    async def look(times: int) -> None:
        for _ in range(times):
            await asyncio.to_thread(read, path)

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look(20))
        while not looking.done():
            async with SqliteLedger(path=path, identity=IDENTITY, patience_seconds=50) as ledger:
                await ledger.put(entry(len(ledger.entries())))


async def test_entries_of_other_identities_are_counted(path: Path) -> None:
    other = replace(IDENTITY, cluster="staging")
    async with SqliteLedger(path=path, identity=other) as ledger:
        await ledger.put(entry(1), entry(2))
    reading = read(path)
    assert reading.entries == ()
    assert reading.others == {other: 2}
    assert reading.fingerprint is None


def test_an_empty_file_is_a_ledger_that_holds_nothing(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert read(path).entries == ()
    assert path.stat().st_size == 0


# What can't be read


def overwrite(offset: int, content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    return damage


def execute(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    return damage


def another_program(path: Path) -> None:
    path.unlink()
    execute("CREATE TABLE customers (name)")(path)


def symbolic_link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to(path.with_name("target"))


def link_as_log(path: Path) -> None:
    Path(f"{path}-wal").symlink_to(path)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def truncate(path: Path) -> None:
    os.truncate(path, 3 * PAGE + 100)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        pytest.param(Path.unlink, LedgerMissingError, "no ledger at", id="missing"),
        pytest.param(
            execute(f"PRAGMA user_version = {VERSION + 1}"),
            LedgerNewerError,
            "newer version",
            id="newer",
        ),
        pytest.param(another_program, LedgerUnusableError, "another program", id="not ours"),
        pytest.param(overwrite(0, b"\xff" * 50), LedgerUnusableError, "is corrupt", id="header"),
        pytest.param(
            overwrite(0, b"not a database, but a text of some length" * 9),
            LedgerUnusableError,
            "is corrupt",
            id="text",
        ),
        pytest.param(
            overwrite(PAGE, b"\xff" * 4 * PAGE), LedgerUnusableError, "is corrupt", id="pages"
        ),
        pytest.param(truncate, LedgerUnusableError, "is corrupt", id="cut"),
        pytest.param(
            execute("UPDATE entries SET state = 'merry'"),
            LedgerUnusableError,
            "is corrupt.*merry",
            id="state",
        ),
        pytest.param(
            execute("UPDATE entries SET acknowledged = '[1'"),
            LedgerUnusableError,
            "is corrupt",
            id="record",
        ),
        pytest.param(
            execute("UPDATE entries SET reason = CAST(x'ff' AS TEXT)"),
            LedgerUnusableError,
            "is corrupt",
            id="text that is no UTF-8",
        ),
        pytest.param(
            execute("UPDATE entries SET acknowledged = '\"x\"'"),
            LedgerUnusableError,
            "is corrupt",
            id="kind",
        ),
        pytest.param(
            execute(
                "UPDATE entries SET acknowledged = json_set(acknowledged, '$.tags', json('[]'))"
            ),
            LedgerUnusableError,
            "is corrupt",
            id="kind of a field",
        ),
        pytest.param(
            execute("DROP TABLE meta"), LedgerUnusableError, "is corrupt", id="a table is missing"
        ),
        pytest.param(symbolic_link, LedgerUnusableError, "not a plain file", id="a link"),
        pytest.param(link_as_log, LedgerUnusableError, "not a plain file", id="a link as the log"),
        pytest.param(replace_by_pipe, LedgerUnusableError, "not a plain file", id="a pipe"),
    ],
)
def test_what_can_t_be_read_is_told_in_a_line_and_left_alone(
    path: Path, damage: Callable[[Path], None], error: type[LedgerError], match: str
) -> None:
    filled(path, 60)
    damage(path)
    before = traces(path.parent)
    with pytest.raises(error, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert traces(path.parent) == before


def traces(folder: Path) -> dict[str, object]:
    """Return what tells each file of a folder from what it may become."""
    return {
        file.name: file.read_bytes() if stat.S_ISREG(file.lstat().st_mode) else file.lstat()
        for file in folder.iterdir()
    }


def test_what_may_not_be_read_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    # The tests may run as root, who may read anything.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LedgerUnusableError, match=r"Permission denied.*as the user"):
        read(path)


def test_one_that_is_held_exclusively_is_waited_for_and_then_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    monkeypatch.setattr("tracker.ledger_reader.PATIENCE_SECONDS", 0.0)
    with (
        path.with_name("ledger.db.lock").open() as lock,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerLockedError, match=r"SQLITE_BUSY.*try again"):
            read(path)
        other.execute("ROLLBACK")
        assert read(path).owned
