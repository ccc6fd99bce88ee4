"""What a ledger in a file gives back after a restart, and what it never does."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ledgers import IDENTITY, NOW, Wall, entry, record, sums
from tracker.entries import Entry, State, reopen
from tracker.images import Digest
from tracker.ledger import SqliteLedger
from tracker.ledger_reader import read_ledger
from tracker.ledger_schema import MAX_AHEAD_SECONDS, MAX_PAUSE_SECONDS, Moment
from tracker.records import Record, Status
from tracker.workloads import Workload


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


TEXTS = st.text(max_size=20)
TIMES = st.none() | st.floats(min_value=-1e6, max_value=MAX_AHEAD_SECONDS - 3600)
RECORDS = st.builds(
    Record,
    deployment_name=TEXTS,
    name=st.text(st.characters(), max_size=20),  # JSON has a way to write surrogates
    version=st.none() | TEXTS,
    digest=TEXTS.map(Digest),
    status=st.sampled_from(Status),
    tags=st.dictionaries(TEXTS, TEXTS, max_size=2).map(lambda tags: tuple(sorted(tags.items()))),
    risks=st.lists(TEXTS, max_size=2).map(tuple),
    repository=st.none() | st.text(min_size=1, max_size=9),
    emptied=st.frozensets(st.sampled_from(["tags", "runtime_risks"])),
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
    # After a stop of unknown length its times count as `reopen` says, which depend on now.
    expected = {name: reopen(one, now=loop.time()) for name, one in expected.items()}
    for name, kept in found.items():
        for field in ("acknowledged_at", "not_before", "settle_at"):
            assert getattr(kept, field) == pytest.approx(getattr(expected[name], field), abs=1.0)
        assert timeless(kept) == timeless(expected[name])
        # It is no part of what a record is, and stands in the file all the same.
        assert emptied_in(kept) == emptied_in(expected[name])


def emptied_in(given_entry: Entry) -> list[frozenset[str]]:
    records = (
        given_entry.acknowledged,
        given_entry.sent,
        given_entry.unsettled,
        given_entry.refused,
    )
    return [record.emptied for record in records if record is not None]


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
        "tags",
        "risks",
        "repository",
        "emptied",
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
    until = asyncio.get_running_loop().time() + 60
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.set_pause_until(until)
        assert await ledger.seen_cluster("one")
        await ledger.put(entry(1))
    for _ in range(2):
        async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
            assert ledger.pause_until == pytest.approx(until, abs=1)
            assert not await ledger.seen_cluster("two")
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        await ledger.adopt_cluster("two")
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert await ledger.seen_cluster("two")
    other_host = replace(IDENTITY, api_host="api.acme.ghe.com")
    async with SqliteLedger(path=path, identity=other_host) as ledger:
        assert ledger.pause_until == 0, "another host's limit is not this one's"
        assert await ledger.seen_cluster("three")


async def test_a_pause_is_never_long_for_a_clock_that_jumped(path: Path) -> None:
    now = asyncio.get_running_loop().time()
    async with SqliteLedger(path=path, identity=IDENTITY, wall=lambda: 2e9) as ledger:
        await ledger.set_pause_until(now + 60)
    async with SqliteLedger(path=path, identity=IDENTITY, wall=lambda: 1e9) as ledger:
        assert ledger.pause_until == pytest.approx(now + MAX_PAUSE_SECONDS, abs=1)


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
    gone = record(1, Status.DECOMMISSIONED)
    async with SqliteLedger(path=path, identity=IDENTITY, wall=Wall(NOW)) as ledger:
        await ledger.put(entry(1, acknowledged=gone))
        await ledger.put(entry(2))
    async with SqliteLedger(path=path, identity=renamed, wall=Wall(NOW)) as ledger:
        assert not ledger.entries()
        assert ledger.other_identities() == {IDENTITY: 1}, "what is gone does not stand"
        await ledger.put(entry(1, reason="mine"))
        await ledger.forget(entry(2).deployment_name)
        assert await ledger.age_out(NOW + 1e6) == 0
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert ledger.other_identities() == {renamed: 1}
        assert list(ledger.entries()) == [entry(1, acknowledged=gone), entry(2)]


async def test_an_organisation_that_was_written_with_a_capital_is_the_same(path: Path) -> None:
    # What was kept for `Acme` was another's once the setting was brought to lower case.
    capital = replace(IDENTITY, org="Acme")
    async with SqliteLedger(path=path, identity=capital) as ledger:
        await ledger.put(entry(1))
        await ledger.seen_cluster("one")
    reading = read_ledger(path, IDENTITY)
    assert [kept.deployment_name for kept in reading.entries] == [entry(1).deployment_name]
    assert (reading.fingerprint, reading.others) == ("one", {})
    async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
        assert list(ledger.entries()) == [entry(1)]
        assert ledger.other_identities() == {}
        assert not await ledger.seen_cluster("another")
        await ledger.put(entry(2))
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT org FROM identities").fetchall() == [("acme",)]


async def test_of_two_spellings_of_an_organisation_the_same_one_counts(path: Path) -> None:
    capital = replace(IDENTITY, org="Acme")
    async with SqliteLedger(path=path, identity=capital) as ledger:
        await ledger.put(entry(1))
    with closing(sqlite3.connect(path)) as writer:  # as the version before would have left it
        writer.execute(
            "INSERT INTO identities SELECT 7, api_host, 'acme', logical_environment,"
            " physical_environment, cluster, fingerprint FROM identities"
        )
        writer.commit()
    for number in (2, 3):
        async with SqliteLedger(path=path, identity=IDENTITY) as ledger:
            assert ledger.other_identities() == {capital: 1}
            assert entry(1) not in ledger.entries()
            await ledger.put(entry(number))
    reading = read_ledger(path, IDENTITY)
    assert len(reading.entries) == 2
    assert reading.others == {capital: 1}


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
