"""The ledgers: one suite for both, then what only the one in a file promises."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.support.ledgers import IDENTITY, entry, record, sums
from tracker.entries import Entry, State
from tracker.errors import LedgerWriteError
from tracker.images import Digest
from tracker.ledger import MemoryLedger, SqliteLedger
from tracker.ledger_schema import MAX_AHEAD_SECONDS, Moment
from tracker.records import Record, Status
from tracker.workloads import Workload

AnyLedger = MemoryLedger | SqliteLedger
NOW = 1_700_000_000.0


class Wall:
    """A wall clock that a test moves."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate:
    """Stops the writer thread at a step until it is opened, and counts the steps."""

    def __init__(self, step: str) -> None:
        self.reached = asyncio.Event()
        self.counts: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._step = step
        self._open = threading.Event()

    def __call__(self, step: str) -> None:
        self.counts[step] = self.counts.get(step, 0) + 1
        if step == self._step and not self._open.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            self._open.wait(timeout=30)

    def open(self) -> None:
        """Let it go on, now and later."""
        self._open.set()


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


# The ledger in a file: what comes back

TEXTS = st.text(max_size=20)
TIMES = st.none() | st.floats(min_value=-1e6, max_value=MAX_AHEAD_SECONDS - 3600)
RECORDS = st.builds(
    Record,
    deployment_name=TEXTS,
    name=st.text(st.characters(), max_size=20),  # JSON has a way to write surrogates
    version=st.none() | TEXTS,
    digest=TEXTS.map(Digest),
    status=st.sampled_from(Status),
)
ENTRIES = st.builds(
    Entry,
    deployment_name=TEXTS,
    workload=st.builds(Workload, api_version=TEXTS, kind=TEXTS, namespace=TEXTS, name=TEXTS),
    container=TEXTS,
    acknowledged=st.none() | RECORDS,
    acknowledged_at=st.none() | st.floats(min_value=-1e6, max_value=0),
    sent=st.none() | RECORDS,
    state=st.sampled_from(State),
    reason=TEXTS,
    attempts=st.integers(min_value=0, max_value=2**31),
    not_before=TIMES,
    unsettled=st.none() | RECORDS,
    settle_at=TIMES,
    refused=st.none() | RECORDS,
)


@settings(max_examples=40)
@given(entries=st.lists(ENTRIES, max_size=8))
async def test_any_entry_comes_back_as_it_was_put(entries: list[Entry]) -> None:
    loop = asyncio.get_running_loop()

    def wall() -> float:
        return NOW + loop.time()  # both clocks go on together, as they do mostly

    expected = {given_entry.deployment_name: given_entry for given_entry in entries}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
            for given_entry in entries:
                await ledger.put(given_entry)
            assert {kept.deployment_name: kept for kept in ledger.entries()} == expected
        async with SqliteLedger(path=path, identity=IDENTITY, wall=wall) as ledger:
            found = {kept.deployment_name: kept for kept in ledger.entries()}
    assert found.keys() == expected.keys()
    for name, kept in found.items():
        for field in ("acknowledged_at", "not_before", "settle_at"):
            assert getattr(kept, field) == pytest.approx(getattr(expected[name], field), abs=0.001)
        assert timeless(kept) == timeless(expected[name])


def timeless(given_entry: Entry) -> Entry:
    """Return the entry without its times, which a file can't hold to the last bit."""
    return replace(given_entry, acknowledged_at=None, not_before=None, settle_at=None)


def test_the_round_trip_knows_every_field() -> None:
    """A field that is added to a value, but not to the file, would be lost at a restart."""
    assert {field.name for field in fields(Record)} == {
        "deployment_name",
        "name",
        "version",
        "digest",
        "status",
    }
    assert {field.name for field in fields(Entry)} == {
        "deployment_name",
        "workload",
        "container",
        "acknowledged",
        "acknowledged_at",
        "sent",
        "state",
        "reason",
        "attempts",
        "not_before",
        "unsettled",
        "settle_at",
        "refused",
    }


@pytest.mark.parametrize(
    ("due_in", "wall_moved", "expected"),
    [
        pytest.param(60.0, 10.0, 50.0, id="time went on"),
        pytest.param(60.0, 86_400.0, -86_340.0, id="due long ago"),
        pytest.param(60.0, -3600.0, 3660.0, id="the clock went back"),
        pytest.param(60.0, -400 * 86_400.0, MAX_AHEAD_SECONDS, id="the clock was a year ahead"),
    ],
)
def test_a_wait_outlives_the_clock_it_was_measured_with(
    due_in: float, wall_moved: float, expected: float
) -> None:
    before = Moment(loop=5_000.0, wall=NOW)
    after = Moment(loop=7.0, wall=NOW + wall_moved)  # the loop's clock begins anew at each boot
    again = after.to_loop(before.to_wall(before.loop + due_in))
    assert again == pytest.approx(after.loop + expected)


async def test_a_wait_of_a_clock_that_jumped_is_cut_when_it_is_read(path: Path) -> None:
    loop = asyncio.get_running_loop()
    waiting = entry(1, state=State.PARKED, sent=record(2), not_before=loop.time() + 3600)
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW + 1e9)) as ledger:
        await ledger.put(waiting)
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW)) as ledger:
        kept = ledger.get(waiting.deployment_name)
        assert kept is not None
        assert kept.not_before is not None
        assert kept.not_before <= loop.time() + MAX_AHEAD_SECONDS


async def test_a_send_that_was_under_way_comes_back_as_such(path: Path) -> None:
    sending = entry(1, acknowledged=None, sent=record(1), state=State.SENDING, attempts=1)
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.put(sending)
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert list(ledger.entries()) == [sending]


async def test_pause_and_clusters_outlive_a_restart(path: Path) -> None:
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.set_pause_until(NOW + 60)
        assert await ledger.seen_cluster("one")
        await ledger.put(entry(1))
    for _ in range(2):
        async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
            assert ledger.pause_until == NOW + 60
            assert not await ledger.seen_cluster("two")
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.adopt_cluster("two")
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert await ledger.seen_cluster("two")
    other_host = replace(IDENTITY, api_host="api.acme.ghe.com")
    async with SqliteLedger(path=path, identity=other_host) as ledger:
        assert ledger.pause_until == 0, "another host's limit is not this one's"
        assert await ledger.seen_cluster("three")


async def test_a_restart_without_change_writes_nothing(path: Path) -> None:
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.put(entry(1))
        assert await ledger.seen_cluster("one")
    before = sums(path.parent)
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert await ledger.seen_cluster("one")
    assert sums(path.parent) == before


async def test_acknowledgements_never_cross_identities(path: Path) -> None:
    renamed = replace(IDENTITY, cluster="prod-eu-2")
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW)) as ledger:
        await ledger.put(entry(1, acknowledged=GONE))
        await ledger.put(entry(2))
    async with SqliteLedger(path=path, identity=renamed, wall=Wall(NOW)) as ledger:
        assert not ledger.entries()
        assert ledger.other_identities() == {IDENTITY: 2}
        await ledger.put(entry(1, reason="mine"))
        await ledger.forget(entry(2).deployment_name)
        assert await ledger.age_out(NOW + 1e6) == 0
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert ledger.other_identities() == {renamed: 1}
        assert list(ledger.entries()) == [entry(1, acknowledged=GONE), entry(2)]


async def test_what_was_acknowledged_by_a_clock_ahead_was_acknowledged_by_now(path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW + 1e9)) as ledger:
        await ledger.put(entry(1, acknowledged_at=loop.time()))
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW)) as ledger:
        kept = ledger.get(entry(1).deployment_name)
        assert kept is not None
        assert kept.acknowledged_at is not None
        assert kept.acknowledged_at <= loop.time()


def test_the_file_has_no_place_for_a_credential(path: Path) -> None:
    async def main() -> None:
        async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
            await ledger.put(entry(1))

    asyncio.run(main())
    with closing(sqlite3.connect(path)) as reader:
        columns = reader.execute(
            "SELECT m.name, group_concat(c.name, ' ')"
            " FROM sqlite_schema AS m, pragma_table_info(m.name) AS c"
            " WHERE m.type = 'table' GROUP BY m.name"
        ).fetchall()
    assert dict(columns) == {
        "identities": "id api_host org logical_environment physical_environment cluster"
        " fingerprint",
        "entries": "identity deployment_name workload_api_version workload_kind workload_namespace"
        " workload_name container acknowledged acknowledged_at sent state reason attempts"
        " not_before unsettled settle_at refused written_at",
        "meta": "key value",
    }


# The ledger in a file: the writer


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
        put = asyncio.create_task(ledger.put(entry(1)))
        await gate.reached.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        gate.open()
        await ledger.put(entry(2))
        assert ledger.get(entry(1).deployment_name) == entry(1)
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert len(ledger.entries()) == 2


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
    gate = Gate("nowhere")
    async with SqliteLedger(path=path, identity=IDENTITY, wall=wall, on_step=gate) as ledger:
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
        assert isinstance(bad, LedgerWriteError)
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
