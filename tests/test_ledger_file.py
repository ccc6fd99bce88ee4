"""The ledger's file under what happens to files: crashes, full and bad disks, other writers."""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from structlog.testing import capture_logs

from tests.support.ledgers import (
    IDENTITY,
    Gate,
    Wall,
    entry,
    hold_open,
    numbers,
    outgrow_the_limit,
    put_one,
    put_until_killed,
    record,
    run_process,
    spoil_and_put_until_killed,
    sums,
)
from tracker.entries import Entry
from tracker.errors import (
    LedgerLockedError,
    LedgerNewerError,
    LedgerUnusableError,
    LedgerWriteError,
)
from tracker.ledger import SqliteLedger
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import MIGRATIONS, VERSION, migrate
from tracker.records import Status

PAGE = 4096
LIST_AS_TAGS = "UPDATE entries SET acknowledged = json_set(acknowledged, '$.tags', json_array())"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def ledger_at(path: Path, on_step: Callable[[str], None] | None = None) -> SqliteLedger:
    return SqliteLedger(path=path, identity=IDENTITY, on_step=on_step, patience_seconds=0)


def filled(path: Path, count: int = 1) -> None:
    """Leave a closed ledger with so many entries."""

    async def main() -> None:
        async with ledger_at(path) as ledger:
            await asyncio.gather(*(ledger.put(entry(number)) for number in range(count)))

    asyncio.run(main())


def read(path: Path) -> list[Entry]:
    """Return the entries of a ledger, opened and closed."""

    async def main() -> list[Entry]:
        async with ledger_at(path) as ledger:
            return list(ledger.entries())

    return asyncio.run(main())


def copied(path: Path, folder: Path, wal_size: int | None = None) -> Path:
    """Copy a ledger and so much of its log into a new folder, as a crash would leave them."""
    folder.mkdir()
    copy = folder / path.name
    shutil.copyfile(path, copy)
    log = Path(f"{path}-wal").read_bytes()
    Path(f"{copy}-wal").write_bytes(log if wal_size is None else log[:wal_size])
    return copy


def copied_with_log(path: Path, folder: Path) -> Path:
    """Write to a ledger and return its log, as a kill would leave it, in a new folder."""

    async def main() -> Path:
        async with ledger_at(path) as ledger:
            await ledger.put(entry(1, attempts=5))
            return Path(f"{await asyncio.to_thread(copied, path, folder)}-wal")

    return asyncio.run(main())


# Crashes


@pytest.mark.parametrize(
    ("step", "count", "expected"),
    [
        pytest.param("migrating", 1, 0, id="while the tables are made"),
        pytest.param("begin", 4, 3, id="before the write"),
        pytest.param("before-commit", 4, 3, id="before the commit"),
        pytest.param("after-commit", 4, 4, id="between the commit and its answer"),
    ],
)
def test_what_was_kept_outlives_a_kill(path: Path, step: str, count: int, expected: int) -> None:
    process = run_process(put_until_killed, str(path), step, str(count))
    assert process.returncode == -signal.SIGKILL, process.stderr
    awaited = [int(line) for line in process.stdout.split()]
    assert awaited == list(range(min(expected, 3)))

    async def check() -> None:
        async with ledger_at(path) as ledger:
            assert numbers(ledger) == list(range(expected))

    asyncio.run(check())


@pytest.mark.fault("L2")
def test_a_log_that_is_cut_anywhere_leaves_whole_commits(path: Path, tmp_path: Path) -> None:
    states: list[dict[str, Entry]] = [{}]

    async def write() -> Path:
        async with ledger_at(path) as ledger:
            for number in range(18):
                name = entry(number % 5).deployment_name
                if number % 7 == 6:
                    await ledger.forget(name)
                else:
                    await ledger.put(entry(number % 5, attempts=number))
                states.append({kept.deployment_name: kept for kept in ledger.entries()})
            return copied(path, tmp_path / "crashed")

    crashed = asyncio.run(write())
    size = Path(f"{crashed}-wal").stat().st_size
    reached = []
    for cut in [*range(0, size, 1021), size]:
        torn = copied(crashed, tmp_path / f"cut-{cut}", cut)
        reached.append(states.index({kept.deployment_name: kept for kept in read(torn)}))
        with closing(sqlite3.connect(torn)) as reader:
            assert reader.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert sorted(file.name for file in torn.parent.iterdir()) == [
            torn.name,
            f"{torn.name}.lock",
        ]
    assert reached == sorted(reached), "a longer log never holds less"
    assert reached[-1] == len(states) - 1
    assert len(set(reached)) == len(states), "each commit was the last one of some cut"


# Corruption


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


def truncate(path: Path) -> None:
    os.truncate(path, 3 * PAGE + 100)


def lose_the_database(path: Path) -> None:
    os.truncate(path, 0)
    Path(f"{path}-wal").write_bytes(b"what was written last")


@pytest.mark.fault("L3")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(overwrite(0, b"\xff" * 50), id="header"),
        pytest.param(overwrite(0, b"not a database, but a text of some length" * 9), id="text"),
        *(
            pytest.param(overwrite(page * PAGE, b"\xff" * PAGE), id=f"page {page}")
            for page in range(1, 7)
        ),
        pytest.param(truncate, id="cut"),
        pytest.param(lose_the_database, id="a log without its database"),
        pytest.param(execute("UPDATE entries SET state = 'merry'"), id="state"),
        pytest.param(execute("UPDATE entries SET acknowledged = '[1'"), id="record"),
        pytest.param(execute("UPDATE entries SET sent = '{}'"), id="fields"),
        pytest.param(execute("UPDATE entries SET sent = '[]'"), id="kind"),
        pytest.param(execute(LIST_AS_TAGS), id="kind of a field"),
        pytest.param(
            execute("UPDATE identities SET cluster = CAST(x'ff' AS TEXT)"),
            id="an identity that may be its own",
        ),
        pytest.param(
            execute("UPDATE entries SET reason = CAST(x'ff' AS TEXT)"), id="text that is no UTF-8"
        ),
        pytest.param(execute("DROP TABLE meta"), id="a table is missing"),
    ],
)
def test_a_corrupt_ledger_is_moved_aside_and_started_anew(
    path: Path, damage: Callable[[Path], None]
) -> None:
    filled(path, 60)
    damage(path)
    before = sums(path.parent)
    with capture_logs() as logs:
        assert read(path) == []
    (log,) = logs
    assert log["log_level"] == "error"
    assert log["reason"]
    moved = Path(log["moved_to"])
    assert moved.name.startswith("ledger.db.corrupt-2")
    assert sums(path.parent)[moved.name] == before[path.name], "it is kept as it was found"
    filled(path, 2)
    assert len(read(path)) == 2


@pytest.mark.fault("L3")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("UPDATE entries SET state = 'deferred'", id="state"),
        pytest.param("UPDATE entries SET acknowledged = '[1'", id="record"),
        pytest.param("UPDATE entries SET sent = '{}'", id="fields"),
        pytest.param(LIST_AS_TAGS, id="kind of a field"),
        pytest.param(
            "UPDATE entries SET sent = replace(hex(zeroblob(9999)), '00', '[')", id="depth"
        ),
        pytest.param("UPDATE entries SET reason = CAST(x'ff' AS TEXT)", id="text that is no UTF-8"),
    ],
)
async def test_a_row_that_makes_no_sense_costs_its_own_name_alone(path: Path, damage: str) -> None:
    # One of a hundred cost them all: they were posted again, and what was gone stood for good.
    async with ledger_at(path) as ledger:
        await ledger.put(*(entry(number) for number in range(100)))
    name = entry(7).deployment_name
    execute(f"{damage} WHERE workload_name = 'app-00007'")(path)
    for _ in range(2):  # it is left as it is, and told of again
        with capture_logs() as logs:
            async with ledger_at(path) as ledger:
                assert len(ledger.entries()) == 99
                assert ledger.get(name) is None
        (told,) = logs
        assert told["log_level"] == "warning"
        assert told["event"].startswith("the ledger has rows that can't be read")
        assert (told["rows"], told["names"]) == (1, name)
    assert len(read_ledger(path, IDENTITY).entries) == 99
    with capture_logs() as logs:
        async with ledger_at(path) as ledger:
            await ledger.put(entry(7))
        async with ledger_at(path) as ledger:
            assert len(ledger.entries()) == 100
    assert len(logs) == 1


async def test_a_cluster_s_fingerprint_that_is_no_utf_8_is_that_of_another(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.put(entry(1))
    execute("UPDATE identities SET fingerprint = CAST(x'ff' AS TEXT)")(path)
    async with ledger_at(path) as ledger:
        assert not await ledger.seen_cluster("this")
        await asyncio.to_thread(delete_all, path)
        await ledger.put(entry(2))
        assert numbers(ledger) == [1, 2]


async def test_a_name_that_is_no_utf_8_is_told_as_far_as_it_can_be(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.put(entry(1), entry(2))
    execute(
        "UPDATE entries SET deployment_name = CAST(x'61ff' AS TEXT)"
        " WHERE workload_name = 'app-00001'"
    )(path)
    with capture_logs() as logs:
        async with ledger_at(path) as ledger:
            assert numbers(ledger) == [2]
    assert [log["names"] for log in logs] == ["a\\udcff"]


@pytest.mark.fault("L3")
@pytest.mark.parametrize(
    ("damage", "shown"),
    [
        pytest.param("UPDATE entries SET reason = CAST(x'ff' AS TEXT)", "prod-eu-2", id="entry"),
        pytest.param(LIST_AS_TAGS, "prod-eu-2", id="record"),
        pytest.param(
            "UPDATE identities SET cluster = CAST(x'61ff' AS TEXT)", "a\\udcff", id="identity"
        ),
    ],
)
async def test_what_makes_no_sense_of_another_identity_costs_nothing_of_ours(
    path: Path, damage: str, shown: str
) -> None:
    # One byte of another's row had the whole file moved aside.
    other = replace(IDENTITY, cluster="prod-eu-2")
    async with ledger_at(path) as ledger:
        await ledger.put(*(entry(number) for number in range(3)))
    async with SqliteLedger(path=path, identity=other) as ledger:
        await ledger.put(entry(1))
    key = "id" if "identities" in damage else "identity"
    execute(f"{damage} WHERE {key} = 2")(path)
    with capture_logs() as logs:
        async with ledger_at(path) as ledger:
            assert len(ledger.entries()) == 3
            assert ledger.other_identities() == {replace(other, cluster=shown): 1}
            # What can't be copied does not keep it from being written anew.
            await asyncio.to_thread(delete_all, path)
            await ledger.put(entry(3))
            assert numbers(ledger) == [0, 1, 2, 3]
    assert "corrupt" not in str(logs)
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == [0, 1, 2, 3]


def test_each_corrupt_ledger_is_kept(path: Path) -> None:
    for _ in range(3):
        filled(path)
        overwrite(0, b"\xff" * 50)(path)
        assert read(path) == []
    assert len(list(path.parent.glob("*.corrupt-*"))) == 3


# A ledger that breaks or goes under way


def break_open(path: Path) -> None:
    """Break a ledger of many entries that is open: its next write meets it."""
    # Another connection's commit makes the ledger's one read its pages again.
    execute("INSERT INTO meta VALUES ('x', 1)", "PRAGMA wal_checkpoint(TRUNCATE)")(path)
    overwrite(PAGE, b"\xff" * 20 * PAGE)(path)


def cut_open(path: Path) -> None:
    execute("PRAGMA wal_checkpoint(TRUNCATE)")(path)
    overwrite(0, b"\xff" * PAGE)(path)


def delete_all(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        if not file.name.endswith(".lock"):
            file.unlink()


def delete_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def delete_all_in_the_folder(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def move_the_file_alone(path: Path) -> None:
    path.rename(path.parent.with_name("elsewhere"))


@pytest.mark.fault("L13")
@pytest.mark.parametrize(
    ("damage", "is_kept"),
    [
        pytest.param(break_open, True, id="pages"),
        pytest.param(cut_open, True, id="header"),
        pytest.param(delete_all, False, id="deleted"),
        pytest.param(delete_all_in_the_folder, False, id="deleted with its lock"),
        pytest.param(delete_the_folder, False, id="deleted with its folder"),
        pytest.param(move_the_file_alone, True, id="moved without its log"),
    ],
)
async def test_a_ledger_that_breaks_under_way_is_written_anew_from_memory(
    tmp_path: Path, damage: Callable[[Path], None], *, is_kept: bool
) -> None:
    # It failed every write for ever; a restart began an empty one, and what had been deleted
    # meanwhile stood as deployed at GitHub for good.
    path = tmp_path / "data" / "ledger.db"
    wall = Wall()
    until = asyncio.get_running_loop().time() + 60
    gone = record(3, Status.DECOMMISSIONED)
    with capture_logs() as logs:
        async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
            await ledger.seen_cluster("this")
            await ledger.set_pause_until(until)
            await ledger.put(*(entry(number) for number in range(60)))
            await ledger.put(entry(3, acknowledged=gone))
            await ledger.forget(entry(4).deployment_name)
            wall.now += 100
            await asyncio.to_thread(damage, path)
            await ledger.put(entry(1, attempts=9))
            assert ledger.failure is None
            held = ledger.entries()
            second = await asyncio.to_thread(run_process, hold_open, str(path))
            assert second.stdout.startswith("LedgerLockedError")
    (told,) = logs
    assert told["log_level"] == "error"
    assert "written anew from memory" in told["event"]
    assert told["entries"] == 59
    kept = {file.name for file in path.parent.iterdir() if ".corrupt-" in file.name}
    assert bool(kept) is ("moved_to" in told) is is_kept
    assert {file.name for file in path.parent.iterdir()} - kept == {path.name, lock_of(path).name}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
        assert sorted(ledger.entries(), key=str) == sorted(held, key=str)
        assert ledger.get(entry(1).deployment_name) == entry(1, attempts=9)
        assert ledger.pause_until == pytest.approx(until, abs=5)
        assert not await ledger.seen_cluster("another")
        assert await ledger.age_out(wall.now - 1) == 1, "it is as old as it was"


async def test_what_broke_is_kept_as_it_was(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
        await asyncio.to_thread(break_open, path)
        before = sums(path.parent)
        await ledger.put(entry(1))
        after = sums(path.parent)
    (kept,) = [name for name in after if name.endswith("Z")]
    assert after[kept] == before[path.name]
    assert after[f"{kept}-wal"] == before[f"{path.name}-wal"]


async def test_what_it_held_of_other_identities_is_carried_over(path: Path) -> None:
    other, third = (replace(IDENTITY, cluster=f"prod-eu-{number}") for number in (2, 3))
    for identity, number in ((other, 1), (third, 2)):
        async with SqliteLedger(path=path, identity=identity) as ledger:
            await ledger.seen_cluster(str(identity))
            await ledger.put(entry(number))
    with capture_logs() as logs:
        async with ledger_at(path) as ledger:
            await ledger.put(entry(3))
            await asyncio.to_thread(delete_all, path)
            await ledger.put(entry(4))
    assert len(logs) == 1
    async with SqliteLedger(path=path, identity=other) as ledger:
        assert ledger.other_identities() == {third: 1, IDENTITY: 2}
        assert list(ledger.entries()) == [entry(1)]
        assert await ledger.seen_cluster(str(other))
        assert not await ledger.seen_cluster("another")


async def test_what_of_other_identities_can_not_be_read_any_more_is_told(path: Path) -> None:
    other = replace(IDENTITY, cluster="prod-eu-2")
    async with SqliteLedger(path=path, identity=other) as ledger:
        await ledger.put(entry(1), entry(2))
    with capture_logs() as logs:
        async with ledger_at(path) as ledger:
            await ledger.put(*(entry(number) for number in range(60)))
            await asyncio.to_thread(break_open, path)
            await ledger.put(entry(4))
    told = logs[1]
    assert told["log_level"] == "warning"
    assert told["event"].startswith("the new ledger lacks records of another")
    assert told["records"] == 2
    assert told["identities"] == str(other)
    async with ledger_at(path) as ledger:
        assert len(ledger.entries()) == 60
        assert ledger.other_identities() == {}


async def test_one_that_breaks_again_and_again_does_not_fill_the_volume(path: Path) -> None:
    wall = Wall()
    async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
        await asyncio.to_thread(break_open, path)
        await ledger.put(entry(1))
        await asyncio.to_thread(break_open, path)
        for _ in range(3):
            with pytest.raises(LedgerWriteError, match=r"within an hour.*mend its volume"):
                await ledger.put(entry(1, attempts=1))
        assert ledger.taken is None, "a restart would only forget what memory knows"
        wall.now += 3600
        await ledger.put(entry(1, attempts=2))
    assert len(list(path.parent.glob("*Z"))) + len(list(path.parent.glob("*Z.2"))) == 2
    async with ledger_at(path) as ledger:
        assert ledger.get(entry(1).deployment_name) == entry(1, attempts=2)
        assert len(ledger.entries()) == 60


async def test_where_there_is_no_room_for_a_new_one_it_is_tried_again(path: Path) -> None:
    full = True

    def on_step(step: str) -> None:
        if full and step == "renewing":
            raise OSError(errno.ENOSPC, "No space left on device")

    async with ledger_at(path, on_step) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
        await asyncio.to_thread(break_open, path)
        before = sums(path.parent)
        for _ in range(2):
            with pytest.raises(LedgerWriteError, match="No space left"):
                await ledger.put(entry(1, attempts=1))
        assert sums(path.parent) == before, "the broken one stays until there is another"
        assert ledger.taken is None
        full = False
        await ledger.put(entry(1, attempts=1))
    async with ledger_at(path) as ledger:
        assert len(ledger.entries()) == 60


@pytest.fixture
def _no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system without hard links, as vfat is and some network volumes are."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.usefixtures("_no_links")
async def test_without_hard_links_it_is_written_anew_all_the_same(path: Path) -> None:
    fails = True

    def on_step(step: str) -> None:
        if fails and step == "placed":
            raise OSError(errno.ENOSPC, "No space left on device")

    async with ledger_at(path, on_step) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
        await asyncio.to_thread(break_open, path)
        with pytest.raises(LedgerWriteError, match="No space left"):
            await ledger.put(entry(1, attempts=1))
        left = sums(path.parent)
        assert f"{path.name}.renewed" in left, "a kill now loses nothing"
        assert path.name not in left
        fails = False
        await ledger.put(entry(1, attempts=1))
    async with ledger_at(path) as ledger:
        assert len(ledger.entries()) == 60


@pytest.mark.usefixtures("_no_links")
def test_without_hard_links_a_start_takes_what_a_kill_kept_from_its_place(path: Path) -> None:
    filled(path, 60)
    run_process(spoil_and_put_until_killed, str(path), "deleted", "placing")
    assert len(read(path)) == 60
    assert len(read(path)) == 60


async def test_commits_that_memory_is_yet_to_be_told_of_are_in_the_new_one(path: Path) -> None:
    """The writer is ahead of the loop: what it committed last may be on its way there."""
    gate = Gate("begin")

    def on_step(step: str) -> None:
        gate(step)
        if step == "after-commit" and gate.counts[step] == 1:
            break_open(path)

    async with ledger_at(path) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
    async with ledger_at(path, on_step) as ledger, asyncio.TaskGroup() as group:
        group.create_task(ledger.put(entry(60)))
        await gate.reached.wait()
        for number in range(61, 64):
            group.create_task(ledger.put(entry(number)))
        await asyncio.sleep(0)  # each of them has a turn, and waits
        gate.open()
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == list(range(64))


@pytest.mark.parametrize("step", ["migrating", "renewing"])
def test_a_kill_while_one_is_written_anew_leaves_what_was_there(path: Path, step: str) -> None:
    filled(path, 60)
    process = run_process(spoil_and_put_until_killed, str(path), "deleted", step)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not path.exists()
    filled(path, 2)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, lock_of(path).name]


@pytest.mark.parametrize("how", ["deleted", "broken"])
@pytest.mark.parametrize("step", ["moving", "placing", "placed"])
def test_a_kill_before_the_new_one_is_in_its_place_loses_nothing(
    path: Path, how: str, step: str
) -> None:
    # The old one was moved aside by then, and the next start deleted the new one.
    filled(path, 60)
    process = run_process(spoil_and_put_until_killed, str(path), how, step)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with capture_logs() as logs:
        assert len(read(path)) == 60
    if step == "placed":
        assert logs == []
    else:
        (told,) = logs
        assert told["log_level"] == "error"
        assert "written anew from memory" in told["event"]
    assert len(list(path.parent.glob("*Z"))) == (how == "broken")
    kept = {file.name for file in path.parent.iterdir() if ".corrupt-" not in file.name}
    assert kept == {path.name, lock_of(path).name}
    filled(path, 61)
    assert len(read(path)) == 61


def test_a_kill_amid_moving_the_old_one_aside_leaves_no_log_to_the_new_one(path: Path) -> None:
    filled(path, 60)
    run_process(spoil_and_put_until_killed, str(path), "broken", "moving")
    path.rename(path.with_name("aside"))
    filled(path.with_name("other"), 2)
    # A log that would be taken for the new one's.
    log = copied_with_log(path.with_name("other"), path.parent / "copy")
    log.rename(f"{path}-wal")
    with capture_logs() as logs:
        assert len(read(path)) == 60
    (told,) = logs
    assert Path(f"{told['moved_to']}-wal").stat().st_size > PAGE


def test_what_a_kill_kept_from_its_place_does_not_replace_a_sound_ledger(path: Path) -> None:
    filled(path, 60)
    run_process(spoil_and_put_until_killed, str(path), "deleted", "placing")
    backup = path.with_name("backup")
    filled(backup, 2)
    backup.rename(path)
    assert len(read(path)) == 2
    path.unlink()
    assert read(path) == [], "one that is deleted later is begun anew"


@pytest.mark.fault("L12")
@pytest.mark.parametrize("step", ["renewing", "moving", "placing", "placed"])
async def test_a_file_that_arrives_while_one_is_written_anew_is_not_replaced(
    path: Path, step: str
) -> None:
    # It was moved aside as if it were the broken one, or deleted.
    backup = path.with_name("backup")
    arrived = False

    def on_step(name: str) -> None:
        nonlocal arrived
        if name == step and not arrived:
            arrived = True
            backup.rename(path)

    async with ledger_at(path) as ledger:
        await ledger.put(*(entry(number) for number in range(60)))
    await asyncio.to_thread(filled, backup, 2)
    content = sums(path.parent)[backup.name]
    async with ledger_at(path, on_step) as ledger:
        await asyncio.to_thread(delete_all, path)
        for _ in range(2):
            with pytest.raises(LedgerWriteError):
                await ledger.put(entry(1, attempts=1))
        assert ledger.taken is not None
        assert sums(path.parent)[path.name] == content
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == [0, 1]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "backup.lock",
        path.name,
        lock_of(path).name,
    ]


async def test_a_new_one_that_can_t_be_opened_is_tried_again_with_all_there_was(path: Path) -> None:
    # Nothing could be copied any more from the old one, which was closed by then.
    other = replace(IDENTITY, cluster="prod-eu-2")
    async with SqliteLedger(path=path, identity=other) as ledger:
        await ledger.put(entry(1), entry(2))
    full = True

    def on_step(step: str) -> None:
        if full and step == "placed":
            raise OSError(errno.ENOSPC, "No space left on device")

    with capture_logs() as logs:
        async with ledger_at(path, on_step) as ledger:
            await ledger.put(entry(3))
            await asyncio.to_thread(delete_all, path)
            for _ in range(2):
                with pytest.raises(LedgerWriteError, match="No space left"):
                    await ledger.put(entry(4))
            assert ledger.taken is None
            assert path.name not in sums(path.parent)
            full = False
            await ledger.put(entry(4))
    assert not [log for log in logs if "lacks records" in log["event"]]
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == [3, 4]
        assert ledger.other_identities() == {other: 2}


async def test_one_whose_volume_went_is_not_written_beside_it(tmp_path: Path) -> None:
    """It would be hidden by the volume, and its ledger, as soon as that is mounted again."""
    with TemporaryDirectory(dir="/dev/shm") as other:
        folder = tmp_path / "data"
        link_to(folder, tmp_path)
        if volume_of(Path(other)) == volume_of(folder):
            pytest.skip("there is one volume only")
        async with ledger_at(folder / "ledger.db") as ledger:
            await ledger.put(entry(1))
            link_to(folder, Path(other))
            with pytest.raises(LedgerWriteError, match="not mounted any more"):
                await ledger.put(entry(2))
            assert ledger.taken is None
            assert sums(Path(other)) == {}
            link_to(folder, tmp_path)
            await ledger.put(entry(2))
            assert numbers(ledger) == [1, 2]


def volume_of(path: Path) -> int:
    return path.stat().st_dev


def link_to(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


async def test_one_whose_lock_another_has_by_now_is_not_written_anew(path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.put(entry(1))
        await asyncio.to_thread(delete_all_in_the_folder, path)
        with lock_of(path).open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(LedgerWriteError, match="another process has"):
                await ledger.put(entry(2))
            assert ledger.taken is not None
            assert path.name not in sums(path.parent)
        await ledger.put(entry(2))
        assert ledger.failure is None
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == [1, 2]


# Versions and other programs


async def test_a_new_ledger_is_of_this_version(path: Path) -> None:
    async with ledger_at(path):
        pass
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA user_version").fetchone() == (VERSION,)


@pytest.mark.fault("L4")
@pytest.mark.parametrize(
    "mode", [pytest.param("WAL", id="with a log"), pytest.param("DELETE", id="without a log")]
)
def test_a_ledger_of_a_newer_version_is_not_touched(path: Path, mode: str) -> None:
    filled(path)
    execute(f"PRAGMA journal_mode = {mode}", f"PRAGMA user_version = {VERSION + 1}")(path)
    assert_refused_untouched(path, LedgerNewerError, "newer version.*run that version")


def test_a_newer_version_that_only_the_log_tells_is_seen(path: Path, tmp_path: Path) -> None:
    """Each damaged log is judged as SQLite would, without SQLite's writing beside it."""
    filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute("PRAGMA wal_autocheckpoint = 0")
        newer.execute("UPDATE entries SET attempts = 7")
        newer.execute("BEGIN")
        newer.execute("CREATE TABLE more (column_of_more)")
        newer.execute(f"PRAGMA user_version = {VERSION + 1}")
        newer.execute("COMMIT")
        newer.execute("UPDATE entries SET attempts = 8")
        crashed = copied(path, tmp_path / "crashed")
    size = Path(f"{crashed}-wal").stat().st_size
    seen = []
    for number, offset in enumerate(range(0, size + 1, 509)):
        torn = copied(crashed, tmp_path / f"torn-{number}", offset if number % 2 else None)
        if number % 2 == 0 and offset < size:
            overwrite(offset, b"\xa5")(Path(f"{torn}-wal"))
        copy = copied(torn, tmp_path / f"sqlite-{number}")
        with closing(sqlite3.connect(copy)) as reader:
            (version,) = reader.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            assert_refused_untouched(torn, LedgerNewerError, "newer version")
        else:
            assert len(read(torn)) == 1
        seen.append(version)
    assert set(seen) == {VERSION, VERSION + 1}
    assert seen == sorted(seen)


def test_another_programs_database_is_not_touched(path: Path) -> None:
    execute("CREATE TABLE customers (name)")(path)
    assert_refused_untouched(path, LedgerUnusableError, "another program's")


def assert_refused_untouched(path: Path, error: type[Exception], match: str) -> None:
    """Hold an opening to failing without a change of any file; the lock is the only new one."""
    before = sums(path.parent)
    with pytest.raises(error, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    after = sums(path.parent)
    after.pop(f"{path.name}.lock")
    before.pop(f"{path.name}.lock", None)
    assert after == before


def test_a_file_of_version_0_becomes_one_of_this_version(path: Path) -> None:
    execute("PRAGMA page_size = 1024", "VACUUM")(path)  # a database, and nothing in it
    assert path.stat().st_size == 1024
    assert read(path) == []
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)


LATER_VERSIONS: Sequence[Sequence[str]] = (
    *MIGRATIONS,
    ("ALTER TABLE entries ADD COLUMN colour TEXT", "UPDATE entries SET colour = 'red'"),
    ("CREATE TABLE shapes (name TEXT)", "INSERT INTO shapes VALUES ('round')"),
)


def test_each_version_is_reached_from_each_older_one(path: Path) -> None:
    filled(path, 3)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for _ in range(2):  # the second time there is nothing left to do
            migrate(connection, step=lambda _: None, migrations=LATER_VERSIONS)
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION + 2,)
            assert connection.execute("SELECT colour FROM entries").fetchall() == [("red",)] * 3
            assert connection.execute("SELECT name FROM shapes").fetchall() == [("round",)]


@pytest.mark.parametrize(
    ("fails_at", "version"),
    [
        pytest.param(1, VERSION, id="in the first step"),
        pytest.param(2, VERSION + 1, id="in the second step"),
    ],
)
def test_a_migration_that_fails_leaves_a_whole_version(
    path: Path, fails_at: int, version: int
) -> None:
    filled(path, 3)
    steps = 0

    def fail(_: str) -> None:
        nonlocal steps
        steps += 1
        if steps == fails_at:
            raise InterruptedError

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(InterruptedError):
            migrate(connection, step=fail, migrations=LATER_VERSIONS)
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(entries)")]
        assert ("colour" in columns) == (version == VERSION + 1)
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (3,)
        migrate(connection, step=lambda _: None, migrations=LATER_VERSIONS)
        assert connection.execute("PRAGMA user_version").fetchone() == (VERSION + 2,)


# Disks


def test_a_ledger_that_may_not_grow_goes_on_when_it_may(path: Path) -> None:
    process = run_process(outgrow_the_limit, str(path))
    assert process.returncode == 0, process.stderr
    error, held, kept = process.stdout.splitlines()
    assert "SQLITE_IOERR" in error or "SQLITE_FULL" in error
    assert held == "None"
    count, failure = kept.split()
    assert failure == "None"
    assert [kept.workload.name for kept in read(path)] == [
        entry(number).workload.name for number in range(int(count))
    ]


def move(path: Path, target: Path) -> None:
    path.rename(target)


def put_a_backup(path: Path) -> None:
    path.write_bytes(b"a backup")


@pytest.mark.fault("L12")
async def test_a_file_that_was_put_in_its_place_is_not_touched(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path) as ledger:
        await ledger.put(entry(1))
        move(path, tmp_path / "elsewhere")
        put_a_backup(path)
        before = sums(path.parent)
        with pytest.raises(LedgerWriteError, match="another file was put in its place; restart"):
            await ledger.put(entry(2))
        assert ledger.taken is not None
        assert sums(path.parent) == before
        move(tmp_path / "elsewhere", path)
        await ledger.put(entry(2))
        assert ledger.failure is None
        assert ledger.taken is None


# One owner


async def test_a_second_process_is_told_who_is_in_the_way(path: Path) -> None:
    async with ledger_at(path) as ledger:
        process = await asyncio.to_thread(run_process, hold_open, str(path))
        assert process.stdout.startswith("LedgerLockedError"), process.stderr
        assert process.stdout.count("\n") == 1
        assert str(path) in process.stdout
        assert "stop that one" in process.stdout
        assert "never delete its .lock" in process.stdout
        await ledger.put(entry(1))
    process = await asyncio.to_thread(run_process, hold_open, str(path))
    assert process.stdout == "open\n"


async def test_a_second_ledger_of_one_process_is_refused_too(path: Path) -> None:
    async with ledger_at(path):
        with pytest.raises(LedgerLockedError):
            async with ledger_at(path):
                pass


@pytest.mark.fault("L12")
async def test_an_owner_whose_lock_was_deleted_stops_writing(path: Path) -> None:
    # Both wrote, and each took the mirror of its own for what is in the file.
    async with ledger_at(path) as first:
        await first.put(entry(1))
        lock_of(path).unlink()
        process = await asyncio.to_thread(run_process, put_one, str(path), "2")
        assert process.returncode == 0, process.stderr
        for _ in range(2):
            with pytest.raises(LedgerWriteError, match="another process may own it: never delete"):
                await first.put(entry(3))
        assert numbers(first) == [1]
        assert first.taken is not None
    async with ledger_at(path) as ledger:
        assert numbers(ledger) == [1, 2]


async def test_a_lock_that_comes_back_is_the_owner_s_again(path: Path, tmp_path: Path) -> None:
    async with ledger_at(path) as ledger:
        move(lock_of(path), tmp_path / "elsewhere")
        with pytest.raises(LedgerWriteError, match=r"its \.lock was deleted"):
            await ledger.put(entry(1))
        move(tmp_path / "elsewhere", lock_of(path))
        await ledger.put(entry(1))
        assert ledger.failure is None
        assert ledger.taken is None


async def test_who_waits_for_a_lock_that_is_deleted_waits_for_the_next_one(path: Path) -> None:
    """The deleted one is free as soon as its owner ends, whoever has the ledger by then."""
    first = await ledger_at(path).__aenter__()
    inode = lock_of(path).stat().st_ino
    waiting = asyncio.create_task(
        SqliteLedger(path=path, identity=IDENTITY, patience_seconds=50).__aenter__()
    )
    await asyncio.to_thread(until_held, inode, 2)
    lock_of(path).unlink()
    async with ledger_at(path):
        await first.close()
        await asyncio.to_thread(until_held, inode, 0)
        assert not waiting.done()
    await (await waiting).close()


def lock_of(path: Path) -> Path:
    return Path(f"{path}.lock")


def until_held(inode: int, count: int) -> None:
    """Return when so many descriptors of this process are of a file, or fail."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        held = 0
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                held += descriptor.stat().st_ino == inode
        if held == count:
            return
    pytest.fail(f"there are no {count} of it")


async def test_one_that_is_waited_for_may_end_in_time(path: Path) -> None:
    first = ledger_at(path)
    await first.__aenter__()
    async with asyncio.TaskGroup() as group:
        second = group.create_task(
            SqliteLedger(path=path, identity=IDENTITY, patience_seconds=50).__aenter__()
        )
        await asyncio.sleep(0)  # its thread runs
        await first.close()
    await second.result().close()


def test_a_database_that_somebody_else_writes_to_is_locked(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerLockedError):
            read(path)
    assert read(path) == []


async def test_a_write_while_somebody_else_writes_fails_and_the_next_one_works(path: Path) -> None:
    async with ledger_at(path) as ledger:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerWriteError, match="SQLITE_BUSY"):
                await ledger.put(entry(1))
            other.execute("ROLLBACK")
        await ledger.put(entry(1))
        assert numbers(ledger) == [1]


# Places


def symbolic_link(path: Path) -> None:
    target = path.with_name("target")
    target.touch()
    path.symlink_to(target)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def link_as_log(path: Path) -> None:
    filled(path)
    symbolic_link(Path(f"{path}-wal"))


def link_as_lock(path: Path) -> None:
    symbolic_link(Path(f"{path}.lock"))


@pytest.mark.parametrize(
    ("arrange", "match"),
    [
        pytest.param(symbolic_link, "symbolic link", id="a link"),
        pytest.param(dangling_link, "symbolic link", id="a link to nothing"),
        pytest.param(link_as_lock, "symbolic link", id="a link as the lock"),
        pytest.param(link_as_log, "not a plain file", id="a link as the log"),
        pytest.param(Path.mkdir, "directory", id="a folder"),
        pytest.param(os.mkfifo, "not a plain file", id="a pipe"),
    ],
)
def test_a_place_that_is_no_plain_file_is_refused(
    path: Path, arrange: Callable[[Path], None], match: str
) -> None:
    arrange(path)
    before = sorted(path.parent.iterdir())
    with pytest.raises(LedgerUnusableError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    lock = path.with_name("ledger.db.lock")
    assert sorted(path.parent.iterdir()) == sorted({*before, lock})


def test_a_missing_folder_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ledger.db"
    filled(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(LedgerUnusableError, match="No such file or directory"):
        read(tmp_path / "not" / "there" / "ledger.db")


def open_to_a_group(path: Path) -> None:
    path.touch()
    path.chmod(0o664)  # as kubelet does for an fsGroup


async def test_nobody_else_may_read_the_ledger(path: Path) -> None:
    open_to_a_group(path)
    async with ledger_at(path) as ledger:
        await ledger.put(entry(1))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"), 0o600
    )
