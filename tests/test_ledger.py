"""The ledgers: one suite for both, then what only the one in a file promises."""

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.ledgers import IDENTITY, NOW, Gate, Wall, entry, numbers, record, sums
from tracker.entries import State
from tracker.errors import LedgerTextError, LedgerWriteError
from tracker.ledger import MemoryLedger, SqliteLedger
from tracker.ledger_reader import read_ledger
from tracker.records import Status

AnyLedger = MemoryLedger | SqliteLedger


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["memory", "sqlite"])
async def ledger(
    request: pytest.FixtureRequest, path: Path, wall: Wall
) -> AsyncIterator[AnyLedger]:
    made: AnyLedger = (
        MemoryLedger(wall=wall)
        if request.param == "memory"
        else SqliteLedger(path=path, identity=IDENTITY, wall=wall)
    )
    async with made as opened:
        yield opened


@asynccontextmanager
async def opened_at(gate: Gate, path: Path) -> AsyncIterator[SqliteLedger]:
    """Yield a ledger with a gate, which is open at the end whatever happens."""
    async with SqliteLedger(path=path, identity=IDENTITY, on_step=gate) as ledger:
        try:
            yield ledger
        finally:
            gate.open()


# Both ledgers


async def test_an_entry_is_there_when_put_returns(ledger: AnyLedger) -> None:
    assert ledger.get(entry(1).deployment_name) is None
    await ledger.put(entry(1))
    await ledger.put(entry(2))
    assert ledger.get(entry(1).deployment_name) == entry(1)
    assert sorted(kept.deployment_name for kept in ledger.entries()) == [
        entry(1).deployment_name,
        entry(2).deployment_name,
    ]


async def test_a_later_entry_of_a_name_replaces_the_earlier_one(ledger: AnyLedger) -> None:
    await ledger.put(entry(1))
    changed = entry(1, state=State.OPEN, sent=record(2), reason="timeout", attempts=3)
    await ledger.put(changed)
    assert list(ledger.entries()) == [changed]


async def test_a_forgotten_entry_is_gone(ledger: AnyLedger) -> None:
    await ledger.put(entry(1))
    await ledger.forget(entry(1).deployment_name)
    await ledger.forget("never/heard/of")
    assert ledger.get(entry(1).deployment_name) is None
    assert not ledger.entries()


async def test_entries_stay_as_they_were_while_others_are_written(ledger: AnyLedger) -> None:
    await ledger.put(entry(1))
    before = ledger.entries()
    await ledger.put(entry(2))
    assert list(before) == [entry(1)]


async def test_another_cluster_is_told_until_it_is_adopted(ledger: AnyLedger) -> None:
    assert await ledger.seen_cluster("https://one|ca")
    await ledger.put(entry(1))
    assert await ledger.seen_cluster("https://one|ca")
    assert not await ledger.seen_cluster("https://two|ca")
    assert not await ledger.seen_cluster("https://two|ca")
    await ledger.adopt_cluster("https://two|ca")
    assert await ledger.seen_cluster("https://two|ca")
    assert not await ledger.seen_cluster("https://one|ca")


async def test_a_cluster_that_is_adopted_again_is_not_written_again(path: Path) -> None:
    steps: list[str] = []
    async with SqliteLedger(path=path, identity=IDENTITY, on_step=steps.append) as ledger:
        for _ in range(3):
            await ledger.adopt_cluster("https://one|ca")
            assert await ledger.seen_cluster("https://one|ca")
    assert steps.count("after-commit") == 1


async def test_a_ledger_without_entries_is_of_any_cluster(ledger: AnyLedger) -> None:
    assert await ledger.seen_cluster("https://one|ca")
    assert await ledger.seen_cluster("https://two|ca")
    await ledger.put(entry(1))
    assert not await ledger.seen_cluster("https://one|ca")


async def test_the_pause_is_what_was_set_last(ledger: AnyLedger) -> None:
    assert ledger.pause_until == 0
    await ledger.set_pause_until(NOW + 60)
    assert ledger.pause_until == NOW + 60
    await ledger.set_pause_until(0)
    assert ledger.pause_until == 0


async def test_a_new_ledger_knows_no_other_identity(ledger: AnyLedger) -> None:
    assert ledger.other_identities() == {}


async def test_closing_twice_is_closing_once(ledger: AnyLedger) -> None:
    await ledger.close()
    await ledger.close()


GONE = record(1, Status.DECOMMISSIONED)


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        pytest.param({"acknowledged": GONE}, True, id="decommissioned"),
        pytest.param(
            {"acknowledged": GONE, "sent": record(2), "state": State.PARKED},
            True,
            id="what came after it was refused, and not asked for since",
        ),
        pytest.param({"acknowledged": record(1)}, False, id="deployed"),
        pytest.param({"acknowledged": None}, False, id="never acknowledged"),
        pytest.param(
            {"acknowledged": GONE, "sent": record(2), "state": State.SENDING}, False, id="sending"
        ),
        pytest.param(
            {"acknowledged": GONE, "sent": record(2), "state": State.OPEN}, False, id="open"
        ),
        pytest.param({"acknowledged": GONE, "unsettled": record(2)}, False, id="unsettled"),
        pytest.param({"acknowledged": GONE, "settle_at": 5.0}, False, id="to be posted again"),
    ],
)
async def test_only_what_is_over_ages_out(
    ledger: AnyLedger,
    wall: Wall,
    changes: dict[str, object],
    dropped: bool,  # noqa: FBT001 - a table
) -> None:
    await ledger.put(entry(1, **changes))
    wall.now += 1
    assert await ledger.age_out(NOW) == 0, "written at that time, not before it"
    assert await ledger.age_out(NOW + 1) == int(dropped)
    assert (ledger.get(entry(1).deployment_name) is None) == dropped


async def test_an_entry_that_was_written_again_is_not_old(ledger: AnyLedger, wall: Wall) -> None:
    await ledger.put(entry(1, acknowledged=GONE))
    await ledger.put(entry(2, acknowledged=GONE))
    wall.now += 100
    await ledger.put(entry(1, acknowledged=GONE))
    assert await ledger.age_out(NOW + 50) == 1
    assert [kept.deployment_name for kept in ledger.entries()] == [entry(1).deployment_name]


# The ledger in a file: its writer (what comes back is in test_ledger_schema.py, and what can
# happen to the file in test_ledger_file.py)


async def test_what_waits_is_committed_together(path: Path) -> None:
    gate = Gate("begin")
    async with opened_at(gate, path) as ledger, asyncio.TaskGroup() as group:
        group.create_task(ledger.put(entry(0)))
        await gate.reached.wait()
        for number in range(1, 300):
            group.create_task(ledger.put(entry(number)))
        await asyncio.sleep(0)  # each of them has a turn, and waits
        gate.open()
    assert gate.counts["after-commit"] == 2
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert len(ledger.entries()) == 300


async def test_what_is_not_durable_is_not_told(path: Path) -> None:
    gate = Gate("before-commit")
    async with opened_at(gate, path) as ledger, asyncio.TaskGroup() as group:
        put = group.create_task(ledger.put(entry(1)))
        await gate.reached.wait()
        assert ledger.get(entry(1).deployment_name) is None
        assert not put.done()
        gate.open()
        await put
        assert ledger.get(entry(1).deployment_name) == entry(1)


async def test_a_waiter_that_is_cancelled_does_not_take_its_write_back(path: Path) -> None:
    gate = Gate("begin")
    async with opened_at(gate, path) as ledger:
        puts = [asyncio.create_task(ledger.put(entry(number))) for number in range(4)]
        await gate.reached.wait()
        for put in (puts[0], puts[2]):  # one is being written, one waits among others
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
        gate.open()
        await asyncio.gather(puts[1], puts[3])
        assert numbers(ledger) == [0, 1, 2, 3]
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert numbers(ledger) == [0, 1, 2, 3]


async def test_a_write_that_fails_leaves_nothing_of_itself(path: Path) -> None:
    fails = True

    def on_step(step: str) -> None:
        if fails and step == "before-commit":
            raise OSError(errno.EIO, "broken")

    async with SqliteLedger(path=path, identity=IDENTITY, on_step=on_step) as ledger:
        with pytest.raises(LedgerWriteError, match="broken"):
            await ledger.put(entry(1))
        assert not ledger.entries()
        fails = False
        await ledger.put(entry(2))
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert numbers(ledger) == [2]


async def test_closing_writes_what_waits_and_refuses_what_comes_later(path: Path) -> None:
    gate = Gate("begin")
    async with opened_at(gate, path) as ledger, asyncio.TaskGroup() as group:
        puts = [group.create_task(ledger.put(entry(number))) for number in range(5)]
        await gate.reached.wait()
        closing_ledger = group.create_task(ledger.close())
        await asyncio.sleep(0)
        with pytest.raises(LedgerWriteError, match="is closed"):
            await ledger.put(entry(9))
        gate.open()
        await closing_ledger
        assert all(put.done() for put in puts)
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert len(ledger.entries()) == 5


async def test_what_is_written_while_old_entries_go_stays(path: Path, wall: Wall) -> None:
    async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
        await ledger.put(entry(1, acknowledged=GONE))
        wall.now += 10
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.put(entry(1)))  # waits first
            dropped = group.create_task(ledger.age_out(NOW + 5))
        assert dropped.result() == 0
        assert ledger.get(entry(1).deployment_name) == entry(1)


async def test_an_entry_that_no_file_can_hold_fails_alone(path: Path) -> None:
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        good, bad = await asyncio.gather(
            ledger.put(entry(1)),
            ledger.put(entry(2, reason="\ud800")),
            return_exceptions=True,
        )
        assert good is None
        assert isinstance(bad, LedgerTextError)
        assert list(ledger.entries()) == [entry(1)]


async def test_a_start_that_is_cancelled_leaves_nothing_open(path: Path) -> None:
    gate = Gate("migrating")
    start = asyncio.create_task(
        SqliteLedger(path=path, identity=IDENTITY, on_step=gate).__aenter__()
    )
    await gate.reached.wait()
    start.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await start
    async with SqliteLedger(path=path, identity=IDENTITY, patience_seconds=0) as ledger:
        await ledger.put(entry(1))


async def test_a_failure_is_told_once_and_so_is_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(monkeypatch)
    with capture_logs() as logs:
        async with SqliteLedger(path=path, identity=IDENTITY, on_step=room) as ledger:
            await ledger.put(entry(0))
            room.max_pages = 1
            kept, error = await fill(ledger)
            assert "SQLITE_FULL" in str(error)
            assert "nothing is sent" in str(error)
            with pytest.raises(LedgerWriteError):
                await ledger.put(entry(kept))
            failed = ledger.failure
            assert failed is not None
            assert ledger.get(entry(kept).deployment_name) is None
            assert len(ledger.entries()) == kept
            room.max_pages = 10_000
            await ledger.put(entry(kept))
            assert ledger.failure is None
    assert [log["log_level"] for log in logs] == ["error", "info"]
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert len(ledger.entries()) == kept + 1


async def fill(ledger: SqliteLedger) -> tuple[int, LedgerWriteError]:
    """Put entries until one fails; return how many are kept, and why no more."""
    for number in range(1, 1000):
        try:
            await ledger.put(entry(number))
        except LedgerWriteError as error:
            return number, error
    pytest.fail("there was room for all")


class Room:
    """Limits how many pages the ledger's file may have, as a full disk does."""

    max_pages: int | None = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect
        self._connections: list[sqlite3.Connection] = []

        def remember(*args: object, **kwargs: object) -> sqlite3.Connection:
            self._connections.append(connect(*args, **kwargs))
            return self._connections[-1]

        monkeypatch.setattr(sqlite3, "connect", remember)

    def __call__(self, step: str) -> None:
        if step == "begin" and self.max_pages is not None:
            self._connections[0].execute(f"PRAGMA max_page_count = {self.max_pages}")


async def test_a_copy_begins_with_what_another_held_on_the_clock_of_its_own(
    path: Path, wall: Wall
) -> None:
    now = asyncio.get_running_loop().time()
    waiting = entry(1, state=State.NOT_FOUND, sent=record(1), not_before=now + 100)
    async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
        await ledger.adopt_cluster("this")
        await ledger.put(waiting, entry(2, acknowledged=record(2), acknowledged_at=now - 50))
        await ledger.set_pause_until(now + 600)
    reading = read_ledger(path, IDENTITY, wall=wall)
    copy = MemoryLedger.copied(reading, wall=wall)
    assert {each.deployment_name for each in copy.entries()} == {
        each.deployment_name for each in reading.entries
    }
    found = copy.get(waiting.deployment_name)
    assert found is not None
    assert found.not_before == pytest.approx(now + 100, abs=1)
    assert copy.pause_until == pytest.approx(now + 600, abs=1)
    assert not await copy.seen_cluster("another")
    assert await copy.seen_cluster("this")
    before = sums(path.parent)
    await copy.forget(waiting.deployment_name)
    assert sums(path.parent) == before
