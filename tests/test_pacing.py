"""The rate of all workers together, and who goes when it is doubtful whether any may."""

import asyncio
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracker.answers import (
    Acknowledged,
    Answer,
    BatchRefused,
    Failed,
    Limited,
    Rejected,
    Unauthorized,
)
from tracker.pacing import FIRST_PAUSE_SECONDS, OUTAGE_FAILURES, Bucket, Pace

pytestmark = pytest.mark.fault("G14")

RATE: Final = 2.6
BURST: Final = 20
OK: Final = Acknowledged()
LOST: Final = Failed(reason="timeout", landed=True)


def pace(**more: float) -> Pace:
    made = Pace(rate=RATE, burst=BURST, chance=lambda: 0.5, **more)
    made.open()
    return made


def now() -> float:
    return asyncio.get_running_loop().time()


@given(gaps=st.lists(st.floats(0, 100), min_size=1, max_size=400))
def test_no_minute_holds_more_than_github_takes(gaps: list[float]) -> None:
    bucket = Bucket(rate=RATE, burst=BURST)
    time = 0.0
    taken: list[float] = []
    for gap in gaps:
        time += gap
        time += bucket.wait(time)
        bucket.take(time)
        taken.append(time)
    for index, first in enumerate(taken):
        assert sum(first <= each < first + 60 for each in taken[index:]) <= 180


def test_a_burst_goes_at_once_and_half_of_it_is_left_for_what_is_new() -> None:
    bucket = Bucket(rate=1.0, burst=20)
    behind = 0
    while not bucket.wait(0.0, spare=0.5):
        bucket.take(0.0)
        behind += 1
    assert behind == 10
    for _ in range(10):
        assert bucket.wait(0.0) == 0.0
        bucket.take(0.0)
    assert bucket.wait(0.0) == pytest.approx(1.0)


@pytest.mark.looptime
async def test_all_workers_together_keep_the_rate() -> None:
    shared, taken = pace(), list[float]()

    async def work() -> None:
        while True:
            async with shared.turn():
                taken.append(now())

    workers = [asyncio.create_task(work()) for _ in range(7)]
    await asyncio.sleep(60)
    for worker in workers:
        worker.cancel()
    assert 170 <= len(taken) <= 180


@pytest.mark.looptime
async def test_after_a_pause_one_goes_and_the_others_follow_when_it_came_back_well() -> None:
    shared = pace()
    shared.note(Unauthorized(reason="HTTP 401"))
    begun: list[float] = []

    async def work(seconds: float) -> None:
        async with shared.turn():
            begun.append(now())
            await asyncio.sleep(seconds)
            shared.note(OK)

    await asyncio.gather(*(work(5.0) for _ in range(4)))
    assert begun == pytest.approx([60, 65, 65, 65], abs=0.5)


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("answer", "probes"),
    [
        pytest.param(
            Limited(reason="HTTP 429", pause_seconds=None), [60, 180, 420, 900], id="limit"
        ),
        pytest.param(
            Unauthorized(reason="HTTP 403", valid=True), [60, 180, 420, 900], id="may-write-nothing"
        ),
        # Once these grew apart up to an hour as well: as long stood all after a token was renewed.
        pytest.param(
            Unauthorized(reason="HTTP 401"), [60 * minute for minute in range(1, 17)], id="token"
        ),
    ],
)
async def test_a_probe_that_meets_the_same_again_is_followed_by_another(
    answer: Answer, probes: list[float]
) -> None:
    shared, begun = pace(), list[float]()

    async def work() -> None:
        while True:
            async with shared.turn():
                begun.append(now())
                shared.note(answer)

    workers = [asyncio.create_task(work()) for _ in range(5)]
    await asyncio.sleep(1000)
    for worker in workers:
        worker.cancel()
    assert begun[-len(probes) :] == pytest.approx(probes, abs=0.5)
    assert len(begun) <= len(probes) + 5, "those that were under way when it began"


@pytest.mark.looptime
async def test_failures_in_a_row_pause_everyone_for_a_minute_at_most() -> None:
    shared = pace()
    pauses = [shared.note(LOST) for _ in range(OUTAGE_FAILURES + 9)]
    assert pauses[: OUTAGE_FAILURES - 1] == [0.0] * (OUTAGE_FAILURES - 1)
    assert pauses[OUTAGE_FAILURES - 1 :] == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30])
    assert shared.is_broken
    shared.note(OK)
    assert not shared.is_broken


@pytest.mark.looptime
async def test_a_pause_of_before_holds_and_is_followed_by_a_probe() -> None:
    shared = pace(not_before=now() + 30)
    assert not shared.permits
    began = now()
    async with shared.turn():
        assert now() - began == pytest.approx(30)
        waiting = asyncio.create_task(enter(shared))
        await asyncio.sleep(10)
        assert not waiting.done()
        shared.note(OK)
    await waiting


async def enter(shared: Pace) -> None:
    async with shared.turn():
        pass


@pytest.mark.looptime
async def test_a_refused_batch_decides_nothing() -> None:
    shared = pace()
    shared.note(Limited(reason="", pause_seconds=None))
    shared.note(BatchRefused(reason="HTTP 403", by_content=False))
    assert shared.not_before - now() == pytest.approx(FIRST_PAUSE_SECONDS)


@pytest.mark.looptime
async def test_a_token_is_refused_until_a_request_is_taken() -> None:
    on = pace()
    passing: list[Answer] = [LOST] * OUTAGE_FAILURES
    passing.append(Limited(reason="429", pause_seconds=1.0))
    for answer in passing:
        on.note(answer)
        assert on.refusal is None, "neither a limit nor an outage says anything of it"
    for reason, valid in (("HTTP 401 Bad credentials", False), ("HTTP 403 Forbidden", True)):
        on.note(Unauthorized(reason=reason, valid=valid))
        for answer in passing:
            on.note(answer)
            assert on.refusal == reason
        on.note(BatchRefused(reason="HTTP 403", by_content=False))
        assert on.refusal == reason
        on.note(Rejected(reason="HTTP 422") if valid else OK)
        assert on.refusal is None
