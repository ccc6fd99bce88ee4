"""How a batch that did not tell of each record is cut down, and how large the next one is."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import record
from tracker.answers import (
    Acknowledged,
    BatchAnswer,
    BatchRefused,
    BatchUnclear,
    Failed,
    Limited,
    Rejected,
    Told,
    Unauthorized,
    Unconfirmed,
)
from tracker.batches import MAX_BATCH, SINGLES_SECONDS, Batching, Part, follow, said_of_each

pytestmark = pytest.mark.fault("G15")

SPOILED: Final = BatchRefused(reason="HTTP 422", by_content=True)
UNREADABLE: Final = BatchUnclear(reason="HTTP 200 unreadable")
OK: Final = Acknowledged()
LOST: Final = Failed(reason="timeout", landed=True)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"shop/web/app-{number:04}" for number in range(count))


@given(count=st.integers(2, 1000), bad=st.sets(st.integers(0, 999), min_size=1, max_size=5))
def test_the_culprits_stand_alone_and_all_others_are_through(count: int, bad: set[int]) -> None:
    everyone = names(count)
    culprits = {everyone[number % count] for number in bad}
    parts, taken, alone, requests = [Part(names=everyone)], set[str](), set[str](), 0
    while parts:
        part = parts.pop()
        requests += 1
        if len(part.names) == 1:
            (alone if culprits.intersection(part.names) else taken).update(part.names)
            continue
        if culprits.isdisjoint(part.names):
            taken.update(part.names)
            continue
        following = follow(part, SPOILED, part.names)
        assert following is not None
        assert sorted(name for each in following for name in each.names) == sorted(part.names)
        parts += following
    assert (taken, alone) == (set(everyone) - culprits, culprits)
    assert requests <= 1 + 2 * 10 * len(culprits)


def test_what_can_not_be_read_is_sent_once_more_then_halved_then_singly() -> None:
    (again,) = follow(Part(names=names(8)), UNREADABLE, names(8)) or []
    assert again == Part(names=names(8), repeated=True)
    second, first = follow(again, UNREADABLE, names(8)) or []
    assert (first.names, second.names) == (names(4), names(8)[4:])
    assert follow(first, UNREADABLE, first.names) is None


def test_only_what_is_missing_is_asked_for_again() -> None:
    said: BatchAnswer = Told(answers=(OK, Unconfirmed(reason="missing"), OK, Rejected(reason="no")))
    each = said_of_each(said, 4)
    assert each == (OK, BatchUnclear(reason="missing"), OK, Rejected(reason="no"))
    assert follow(Part(names=names(4)), said, (names(4)[1],)) == [
        Part(names=(names(4)[1],), repeated=True)
    ]
    assert follow(Part(names=names(4)), said, ()) == []


def test_where_the_call_itself_is_refused_one_record_decides() -> None:
    said = BatchRefused(reason="HTTP 404", by_content=False)
    (part,) = follow(Part(names=names(9)), said, names(9)) or []
    assert part == Part(names=names(9)[:1], deciding=True, others=(names(9)[3], names(9)[6]))
    (part,) = part.next_decider()
    assert (part.names, part.others, part.deciding) == (names(9)[3:4], names(9)[6:7], True)
    (part,) = part.next_decider()
    assert (part.names, part.others) == (names(9)[6:7], ())
    assert part.next_decider() == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10])
def test_each_name_has_its_turn_to_decide(count: int) -> None:
    said = BatchRefused(reason="HTTP 403", by_content=False)
    deciders: set[str] = set()
    for refusals in range(count):
        (part,) = follow(Part(names=names(count)), said, names(count), refusals=refusals) or []
        assert len({*part.names, *part.others}) == min(count, 3), "all of them others"
        deciders |= {*part.names}
    assert deciders == {*names(count)}


def test_what_is_said_of_a_whole_batch_is_said_of_each() -> None:
    for said in (SPOILED, UNREADABLE, LOST, Unauthorized(reason=""), UNREADABLE):
        assert said_of_each(said, 3) == (said,) * 3


def test_batches_shrink_while_they_fail_and_grow_again() -> None:
    batching = Batching(permitted=True)
    sizes = []
    for _ in range(12):
        size = batching.most(0.0)
        sizes.append(size)
        batching.note(LOST, size, now=0.0)
    assert sizes == [1000, 500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1]
    for said in (Limited(reason="", pause_seconds=None), Unauthorized(reason="")):
        batching.note(said, 1, now=0.0)
    assert batching.most(0.0) == 1
    for _ in range(10):
        batching.note(OK, batching.most(0.0), now=0.0)
    assert batching.most(0.0) == MAX_BATCH


def test_where_only_singles_get_through_batches_rest_for_an_hour() -> None:
    batching = Batching(permitted=True)
    batching.note(LOST, 2, now=0.0)
    for _ in range(3):
        assert batching.permits(0.0)
        batching.note(OK, 1, now=0.0)
        batching.note(LOST, 2, now=0.0)
    assert not batching.permits(SINGLES_SECONDS - 1)
    assert batching.most(SINGLES_SECONDS - 1) == 1
    assert batching.permits(SINGLES_SECONDS)


def test_without_the_operators_leave_everything_goes_alone() -> None:
    batching = Batching(permitted=False)
    batching.note(OK, 1, now=0.0)
    assert batching.most(1e9) == 1
    assert not batching.permits(1e9)


def test_a_name_that_is_alone_is_one_of_a_batch_of_one() -> None:
    assert Part(names=(record().deployment_name,)).halves() == [
        Part(names=(record().deployment_name,), halved=True)
    ]
