"""Signs of life that are due, grants that are wanting, and turns of the loop that come late."""

import asyncio
import time
from math import inf

import pytest

from tracker.vitals import Grants, Laps, Vitals

virtual_time = pytest.mark.looptime


@virtual_time
async def test_a_sign_of_life_is_overdue_when_it_did_not_come_in_its_time() -> None:
    vitals = Vitals()
    vitals.expect("list", 10)
    vitals.expecting("idle")(inf)
    await asyncio.sleep(10)
    assert vitals.overdue() == {}
    await asyncio.sleep(5)
    assert vitals.overdue() == {"list": pytest.approx(5)}
    vitals.expect("list", 10)
    assert vitals.overdue() == {}


@virtual_time
async def test_a_grant_is_wanting_from_the_first_asking_after_one() -> None:
    grants = Grants()
    await asyncio.sleep(3)
    assert grants.wanting() == pytest.approx(3)  # from the start, whether or not it was asked for
    grants.grant()
    await asyncio.sleep(100)
    assert not grants.wanting()
    grants.ask()
    await asyncio.sleep(2)
    grants.ask()  # the same want, asked for again
    await asyncio.sleep(2)
    assert grants.wanting() == pytest.approx(4)
    grants.grant()
    assert not grants.wanting()


async def test_a_loop_that_was_blocked_came_late_to_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laps = Laps()
    assert laps.longest() == 0.0
    measuring = asyncio.create_task(laps.run())
    await asyncio.sleep(0)  # it is at its first turn now
    time.sleep(1.0)  # noqa: ASYNC251 - that is what blocks
    await asyncio.sleep(0.01)
    assert laps.last >= 0.4
    assert laps.longest() == laps.last
    monkeypatch.setattr("tracker.vitals.WINDOW_SECONDS", -1.0)  # as if that was long ago
    assert laps.longest() == 0.0
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
