"""What the tracker makes of what it is told, before anything is sent."""

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from tests.support.builders import raw_container, record, workload
from tests.support.builders import raw_pod as raw
from tests.support.trackers import tracker_with
from tracker.entries import Entry
from tracker.ledger import MemoryLedger
from tracker.reconcile import to_repost

DAY = 24 * 3600.0


@pytest.mark.fault("K13")
async def test_a_pod_that_a_list_showed_to_be_gone_is_not_revived_by_a_late_event() -> None:
    tracker = await tracker_with(MemoryLedger())
    pod = raw()
    uid = pod["metadata"]["uid"]
    tracker.see(pod)
    assert uid in tracker.inventory
    tracker.lose_surely(uid)
    tracker.see(pod)
    assert uid not in tracker.inventory


async def test_a_pod_that_was_fetched_is_there_whatever_a_list_showed() -> None:
    """One bad list must not make its events count for nothing for ten minutes."""
    tracker = await tracker_with(MemoryLedger())
    pod = raw()
    uid = pod["metadata"]["uid"]
    tracker.see(pod)
    tracker.lose_surely(uid)
    tracker.see_surely(tracker.read(pod))
    assert uid in tracker.inventory
    tracker.lose(uid)
    tracker.see(pod)
    assert uid in tracker.inventory


@pytest.mark.parametrize(
    ("watched", "standing"),
    [pytest.param("", {"a/x/c", "b/x/c"}, id="all"), pytest.param("a", {"a/x/c"}, id="one")],
)
async def test_a_list_speaks_only_about_names_of_namespaces_it_covers(
    watched: str, standing: set[str]
) -> None:
    ledger = MemoryLedger()
    for namespace in "ab":
        name = f"{namespace}/x/c"
        await ledger.put(
            Entry(
                deployment_name=name,
                workload=workload("x", namespace=namespace),
                container="c",
                acknowledged=record("a", name=name),
            )
        )
    tracker = await tracker_with(ledger, namespace=watched)
    assert set(tracker.standing()) == standing


async def test_what_is_left_as_it_stands_is_not_posted_again() -> None:
    """Another instance may look after it, or another cluster; and what is gone has its own way."""
    ledger = MemoryLedger()
    for namespace in "ab":
        name = f"{namespace}/web/app"
        old = Entry(
            deployment_name=name,
            workload=workload(namespace=namespace),
            container="app",
            acknowledged=record("a", name=name),
            acknowledged_at=-2 * DAY,
        )
        await ledger.put(old)
        gone = f"{namespace}/gone/app"
        await ledger.put(replace(old, deployment_name=gone, acknowledged=record("a", name=gone)))
    tracker = await tracker_with(ledger, namespace="a")
    for namespace in "ab":
        tracker.see(raw(uid=namespace, namespace=namespace))
    tracker.look_at_all()
    assert set(tracker._delivery.to_repost) == {"a/web/app"}  # noqa: SLF001 - nothing is sent here


def entry_of(name: str, acknowledged_at: float | None) -> Entry:
    """Return an entry that was acknowledged then."""
    return Entry(
        deployment_name=name,
        workload=workload("x"),
        container="c",
        acknowledged=record("a", name=name),
        acknowledged_at=acknowledged_at,
    )


def test_what_was_decommissioned_is_not_posted_again() -> None:
    """It would be written each day, and never be old enough to be forgotten."""
    over = replace(entry_of("over", 0.0), acknowledged=record("a", name="over").decommissioned())
    assert to_repost([over], now=2 * DAY, interval_seconds=DAY, pass_seconds=300.0) == []


@pytest.mark.parametrize("since", [-3.5 * DAY, 0.0, 40.25 * DAY])
def test_what_was_acknowledged_a_day_ago_is_posted_again_and_nothing_younger(since: float) -> None:
    entries = [
        entry_of("young", since + 10.0),
        entry_of("older", since),
        entry_of("old", since + 5.0),
        entry_of("never", None),
    ]
    due = to_repost(entries, now=since + DAY + 5.0, interval_seconds=DAY, pass_seconds=DAY)
    assert due == ["older", "old"]


@pytest.mark.parametrize(("names", "share"), [(10, 1), (144, 2), (288, 3), (1440, 11)])
def test_a_pass_posts_its_share_of_the_names_and_one_more(names: int, share: int) -> None:
    entries = [entry_of(f"name-{index:04}", 0.0) for index in range(names)]
    due = to_repost(entries, now=DAY, interval_seconds=DAY, pass_seconds=300.0)
    assert due == [f"name-{index:04}" for index in range(share)]


def test_what_was_refused_waits_and_takes_nobody_else_s_turn() -> None:
    """Once, a few of them were asked for at each pass, and no other name ever."""
    refused = replace(
        entry_of("refused", 0.0), sent=record("a", name="refused"), not_before=DAY + 3600.0
    )
    entries = [refused, entry_of("other", 1.0)]
    due = to_repost(entries, now=DAY + 5.0, interval_seconds=DAY, pass_seconds=300.0)
    assert due == ["other"]
    for now in (DAY + 3600.0, DAY + 7200.0):
        due = to_repost([refused], now=now, interval_seconds=DAY, pass_seconds=300.0)
        assert due == ["refused"]


@pytest.mark.fault("G13")
def test_posting_everything_again_is_spread_over_the_passes_of_half_an_interval() -> None:
    entries = {f"name-{index:04}": entry_of(f"name-{index:04}", 0.0) for index in range(2000)}
    posted = []
    for number in range(144):
        now = DAY + 300.0 * number
        due = to_repost(entries.values(), now=now, interval_seconds=DAY, pass_seconds=300.0)
        assert len(due) <= 15
        posted += due
        entries |= {name: replace(entries[name], acknowledged_at=now) for name in due}
    assert sorted(posted) == sorted(entries)


async def test_annotations_that_can_not_be_used_are_told_once_and_when_they_can() -> None:
    tracker = await tracker_with(MemoryLedger())
    tracker.see(raw(annotations={"metadata.github.com/runtime-risks": "everything"}))
    with capture_logs() as told:
        tracker.look_at_all()
        tracker.look_at_all()
        tracker.lose("uid-1")
        tracker.look_at_all()
    found = [line for line in told if "metadata.github.com/" in line["event"]]
    assert [(line["log_level"], line.get("unknown-risk")) for line in found] == [
        ("warning", 1),
        ("info", None),
    ]


async def test_what_is_not_recorded_is_told_by_reason_when_it_changes() -> None:
    tracker = await tracker_with(MemoryLedger(), dn_template="{{namespace}}/{{deploymentName}}")
    bare = raw(uid="bare")
    bare["metadata"]["ownerReferences"] = []
    tracker.see(bare)
    containers = [raw_container("one"), raw_container("two")]
    both = raw(uid="both")
    both["spec"]["containers"] = containers
    tracker.see(both)
    with capture_logs() as told:
        tracker.look_at_all()
        tracker.look_at_all()
    counts = [line for line in told if line["event"] == "not recorded"]
    assert [(line["bare-pod"], line["name-shared"]) for line in counts] == [(1, 1)]
    shared = [line for line in told if line["event"].startswith("a name is shared")]
    assert [line["deployment_name"] for line in shared] == ["shop/web"]
    tracker.lose("bare")
    with capture_logs() as told:
        tracker.look_at_all()
    assert [line for line in told if line["event"] == "not recorded"] == [
        {"event": "not recorded", "log_level": "info", "name-shared": 1}
    ]
