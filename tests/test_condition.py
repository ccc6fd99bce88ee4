"""What counts as alive and as ready."""

import asyncio

import pytest

from tests.support.builders import raw_pod
from tests.support.trackers import tracker_with
from tracker.answers import Acknowledged, Failed, Limited, Unauthorized
from tracker.app import Tracker

pytestmark = pytest.mark.looptime


def unwell(tracker: Tracker) -> dict[str, str]:
    return {task: why for task, why in tracker.condition.liveness().items() if why is not None}


def unready(tracker: Tracker) -> dict[str, str]:
    return {what: why for what, why in tracker.condition.readiness().items() if why is not None}


async def test_at_the_start_it_is_alive_and_not_ready() -> None:
    tracker = await tracker_with()
    assert unwell(tracker) == {}
    assert unready(tracker).keys() == {"start"}
    tracker.pace.open()
    assert unready(tracker) == {}


async def test_a_watch_that_is_asked_for_again_and_again_is_alive_and_not_ready() -> None:
    tracker = await tracker_with()
    tracker.pace.open()
    tracker.condition.granted()
    for _ in range(100):
        tracker.condition.asked()
        await asyncio.sleep(60)
        assert unwell(tracker) == {}
    assert "granted no watch of pods for 6000 s" in unready(tracker)["watch"]
    tracker.condition.granted()
    assert unready(tracker) == {}


async def test_a_token_that_is_refused_makes_it_unready_and_not_unwell() -> None:
    """It is set-up, not an outage: once, a rollout with a wrong token passed for a good one."""
    tracker = await tracker_with()
    tracker.pace.open()
    tracker.pace.note(Unauthorized(reason="HTTP 401 Bad credentials"))
    assert unready(tracker) == {}, "nothing waits: nothing would ever show that it is mended"
    tracker.see(raw_pod())
    for reason, valid in (("HTTP 401 Bad credentials", False), ("HTTP 403 Forbidden", True)):
        tracker.pace.note(Unauthorized(reason=reason, valid=valid))
        assert unready(tracker) == {"token": f"nothing can be sent with it: {reason}"}
        assert unwell(tracker) == {}
        tracker.pace.note(Acknowledged())
        assert unready(tracker) == {}
    tracker.pace.note(Limited(reason="HTTP 429", pause_seconds=3600.0))
    for _ in range(20):
        tracker.pace.note(Failed(reason="timeout", landed=True))
    assert unready(tracker) == {}


async def test_a_watch_that_nobody_asks_for_any_more_is_not_alive() -> None:
    tracker = await tracker_with()
    tracker.condition.asked()
    tracker.condition.granted()
    await asyncio.sleep(901)
    assert unwell(tracker) == {"watch": "its sign of life is 1 s overdue"}
    tracker.condition.ended()
    assert unwell(tracker) == {}


async def test_names_that_nobody_takes_are_not_alive_but_while_something_is_waited_for() -> None:
    tracker = await tracker_with()
    tracker.see(raw_pod())
    await asyncio.sleep(1000)
    assert unwell(tracker) == {}  # nothing may be sent before the first list is complete
    tracker.pace.open()
    await asyncio.sleep(299)
    assert unwell(tracker) == {}
    await asyncio.sleep(2)
    assert unwell(tracker) == {"delivery": "names wait, and none was taken for 301 s"}
    tracker.pace.not_before = asyncio.get_running_loop().time() + 3600  # GitHub's limit
    assert unwell(tracker) == {}
    await asyncio.sleep(3600 + 200)
    assert unwell(tracker) == {}


async def test_a_reconcile_that_hangs_is_not_alive() -> None:
    tracker = await tracker_with()
    task = asyncio.create_task(tracker.condition.laps.run())
    tracker.start()
    await asyncio.sleep(1)
    assert unwell(tracker) == {}
    await tracker.stop()  # as if each hung where it is
    await asyncio.sleep(4000)
    assert "reconcile" in unwell(tracker)
    assert unwell(tracker).keys() <= {"reconcile", "absences", "lookups"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_scrape_finds_what_is() -> None:
    tracker = await tracker_with()
    for number in range(3):
        tracker.see(raw_pod(name=f"web-abc-{number}", uid=f"uid-{number}"))
    await asyncio.sleep(5)
    now = tracker.condition.snapshot()
    assert now.pods == 3
    assert now.queue_depth == 1
    assert now.oldest_pending_seconds == pytest.approx(5)
    assert now.workloads_readable is None
    reading = await tracker_with(workloads=True)
    assert reading.condition.snapshot().workloads_readable is True
