"""What a list of pods says of what was seen, in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Final

import pytest
from structlog.testing import capture_logs

from tests.support.builders import workload
from tracker.backoff import delay_after
from tracker.errors import ListError
from tracker.reconcile import (
    CONFIRMED_SECONDS,
    CRONJOB_LOOK_SECONDS,
    MAX_LISTS_APART,
    PATIENCE_SECONDS,
    UNREAD_SECONDS,
    Absences,
    Sightings,
    see_everything,
)
from tracker.workloads import Workload

pytestmark = pytest.mark.looptime

DELAY: Final = 5.0
LIST_TAKES: Final = 0.01
"""Virtual seconds from the request of a list to its answer."""
CRONJOB_HOLD: Final = 25 * 3600.0
NAME: Final = "shop/web/app"
WEB: Final = workload("web")
NIGHTLY: Final = workload("nightly", kind="CronJob")


class ScriptedLists:
    """An API server whose pods are a set, and which fails as often as it is told to."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        self.takes = LIST_TAKES
        self.failures = 0
        self.failing: set[str | None] = set()
        self.asked: list[tuple[float, str | None]] = []
        self.on_list: Callable[[], None] = lambda: None

    async def pod_uids(self, namespace: str | None) -> frozenset[str]:
        """Return the uids of now, after a moment."""
        self.asked.append((asyncio.get_running_loop().time(), namespace))
        found = frozenset(
            uid for uid, of in self.pods.items() if namespace is None or of == namespace
        )
        await asyncio.sleep(self.takes)
        if self.failures or namespace in self.failing:
            self.failures = max(self.failures - 1, 0)
            message = "the API server refused a list of pods: 403"
            raise ListError(message)
        self.on_list()
        return found


class Watch:
    """What was seen of the cluster."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.sightings = Sightings(known=self.seen.__contains__)

    def see(self, *uids: str) -> None:
        """Bring pods."""
        for uid in uids:
            self.seen.add(uid)
            self.sightings.note(uid)

    def lose(self, uid: str) -> None:
        """Bring the end of a pod."""
        self.seen.discard(uid)
        self.sightings.note(uid)


def waited() -> float:
    return asyncio.get_running_loop().time()


async def beginning(lists: ScriptedLists, watch: Watch) -> asyncio.Task[None]:
    task = asyncio.create_task(
        see_everything(lists=lists, sightings=watch.sightings, chance=lambda: 0.5)
    )
    await asyncio.sleep(0.02)
    return task


async def test_an_empty_cluster_is_seen_at_once() -> None:
    lists = ScriptedLists()
    await see_everything(lists=lists, sightings=Watch().sightings, chance=lambda: 0.5)
    assert len(lists.asked) == 1


async def test_everything_is_seen_when_each_listed_pod_was() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = dict.fromkeys(["1", "2", "3"], "shop")
    watch.see("1")
    task = await beginning(lists, watch)
    watch.see("2")
    await asyncio.sleep(PATIENCE_SECONDS / 2)
    assert not task.done()
    watch.see("3")
    await task
    assert len(lists.asked) == 1


async def test_a_pod_that_went_before_it_was_seen_is_not_waited_for() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = dict.fromkeys(["1", "2"], "shop")
    watch.see("1")
    task = await beginning(lists, watch)
    del lists.pods["2"]
    lists.pods["3"] = "shop"  # younger than the start: not waited for
    await task
    assert len(lists.asked) == 2


def gaps(lists: ScriptedLists) -> list[float]:
    """Return the seconds between the answer to one list and the request of the next."""
    times = [when for when, _ in lists.asked]
    return [round(later - earlier - LIST_TAKES, 2) for earlier, later in pairwise(times)]


PATIENT: Final = [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]


async def test_a_watch_that_brings_nothing_is_asked_about_ever_less_often() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = {"late": "shop"}
    task = await beginning(lists, watch)
    await asyncio.sleep(sum(PATIENT) + 1)
    assert gaps(lists)[: len(PATIENT)] == PATIENT
    watch.see("late")
    await task


async def test_a_failure_after_a_success_is_the_first_one_again() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = {"late": "shop"}
    lists.failures = 3

    def fail_again() -> None:
        lists.failures, lists.on_list = 1, lambda: None

    lists.on_list = fail_again
    task = await beginning(lists, watch)
    await asyncio.sleep(60)
    first = round(delay_after(1, 0.5), 2)
    assert gaps(lists)[:3] == [round(delay_after(attempt, 0.5), 2) for attempt in (1, 2, 3)]
    assert gaps(lists)[3:5] == [PATIENCE_SECONDS, first]
    watch.see("late")
    await task


def test_who_notes_what_goes_stops_with_its_own_note_alone() -> None:
    """Two that hold the same, here nothing, are two all the same."""
    sightings = Watch().sightings
    with sightings.gone_meanwhile() as outer:
        with sightings.gone_meanwhile() as inner:
            pass
        sightings.note_gone("1")
        assert (outer, inner) == ({"1"}, set())
    sightings.note_gone("2")
    assert outer == {"1"}


async def test_who_gives_up_waiting_for_a_pod_takes_nobody_with_them() -> None:
    watch = Watch()
    long = asyncio.create_task(watch.sightings.missing({"1"}, patience_seconds=10.0))
    other = asyncio.create_task(watch.sightings.missing({"2"}, patience_seconds=10.0))
    assert await watch.sightings.missing({"1"}, patience_seconds=1.0) == {"1"}
    watch.see("1", "2")
    assert await long == await other == frozenset()
    assert waited() < 2.0


async def test_who_has_seen_all_its_pods_takes_nobody_with_them() -> None:
    watch = Watch()
    long = asyncio.create_task(watch.sightings.missing({"1", "2"}, patience_seconds=10.0))
    other = asyncio.create_task(watch.sightings.missing({"3"}, patience_seconds=10.0))
    await asyncio.sleep(0.1)
    watch.see("3")
    assert await other == frozenset()
    await asyncio.sleep(0.1)
    watch.see("1", "2")
    assert await long == frozenset()
    assert waited() < 1.0


async def test_a_pod_that_is_seen_to_go_counts_as_seen() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = {"1": "shop"}
    task = await beginning(lists, watch)
    watch.lose("1")
    await task
    assert len(lists.asked) == 1


async def test_a_watch_that_is_slow_is_waited_for() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = {str(number): "shop" for number in range(50)}
    task = await beginning(lists, watch)
    for number in range(50):
        await asyncio.sleep(PATIENCE_SECONDS * 0.9)
        assert not task.done()
        watch.see(str(number))
    await task
    assert len(lists.asked) == 1


async def test_a_watch_that_brings_nothing_keeps_the_start_waiting() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = {"1": "shop"}
    task = await beginning(lists, watch)
    await asyncio.sleep(3600)
    assert not task.done()
    watch.see("1")
    await task


async def test_lists_that_can_not_be_had_are_asked_for_again_with_backoff() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.failures = 6
    with capture_logs() as logs:
        await see_everything(lists=lists, sightings=watch.sightings, chance=lambda: 0.5)
    assert waited() == pytest.approx(0.5 + 1 + 2 + 4 + 8 + 16, abs=0.2)
    assert [line["event"] for line in logs][:6] == ["pods can't be listed"] * 6


async def test_a_failed_list_in_between_forgets_nothing() -> None:
    lists, watch = ScriptedLists(), Watch()
    lists.pods = dict.fromkeys(["1", "2"], "shop")
    with capture_logs() as logs:
        task = await beginning(lists, watch)
        watch.see("1")
        lists.failures = 2
        await asyncio.sleep(10)
        assert not task.done()
        watch.see("2")
        await task
    # What the start waits for is told once, by the first list.
    assert [line["pods"] for line in logs if line["event"] == "pods listed"] == [2]


async def test_two_waits_at_once_do_not_disturb_each_other() -> None:
    watch = Watch()
    first = asyncio.create_task(watch.sightings.missing({"1", "2"}))
    second = asyncio.create_task(watch.sightings.missing({"2", "1"}))
    third = asyncio.create_task(watch.sightings.missing({"3"}))
    await asyncio.sleep(0.1)
    watch.see("1")
    watch.see("2")
    assert await first == await second == frozenset()
    assert await third == {"3"}


# Absences.


class Scene:
    """Absences with everything around them."""

    def __init__(self, *, spans_namespaces: bool, cronjob_seconds: float) -> None:
        self.lists = ScriptedLists()
        self.watch = Watch()
        self.living: set[Workload] = set()
        self.touched: list[tuple[float, str]] = []
        self.kept: set[str] = set()
        self.unwanted: set[str] = set()
        self.unreadable: frozenset[Workload] = frozenset()
        self.read: list[frozenset[Workload]] = []
        self.on_read: Callable[[], None] = lambda: None
        self.absences = Absences(
            lists=self.lists,
            sightings=self.watch.sightings,
            living=lambda: self.living,
            touch=lambda name: self.touched.append((waited(), name)),
            chance=lambda: 0.5,
            delay_seconds=DELAY,
            cronjob_seconds=cronjob_seconds,
            spans_namespaces=spans_namespaces,
            read_workloads=self._read_workloads,
            keep=self._keep,
            unwanted=self.unwanted.__contains__,
        )

    def _keep(self, names: Iterable[str]) -> set[str]:
        return self.kept.intersection(names)

    async def _read_workloads(self, workloads: Iterable[Workload]) -> frozenset[Workload]:
        self.read.append(frozenset(workloads))
        await asyncio.sleep(0.01)
        self.on_read()
        return self.unreadable.intersection(workloads)

    def want(self, name: str = NAME, owner: Workload = WEB, *, absent: bool = True) -> None:
        self.absences.want(name, owner, absent=absent)

    def confirmed(self, names: Iterable[str] = (NAME,)) -> bool:
        return all(self.absences.confirmed(name) for name in names)


@asynccontextmanager
async def scene(
    *, spans_namespaces: bool = False, cronjob_seconds: float = CRONJOB_HOLD
) -> AsyncIterator[Scene]:
    made = Scene(spans_namespaces=spans_namespaces, cronjob_seconds=cronjob_seconds)
    task = asyncio.create_task(made.absences.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_an_absence_is_confirmed_by_a_list_after_the_delay() -> None:
    async with scene() as on:
        on.want()
        await asyncio.sleep(DELAY - 0.1)
        assert on.lists.asked == []
        await asyncio.sleep(0.2)
        assert on.confirmed()
        ((when, namespace),) = on.lists.asked
        assert when == pytest.approx(DELAY)
        assert namespace == "shop"
        assert [name for _, name in on.touched] == [NAME]
        await asyncio.sleep(3600)
        assert len(on.lists.asked) == 1


async def test_wanting_it_again_does_not_put_it_off() -> None:
    async with scene() as on:
        for _ in range(5):
            on.want()
            await asyncio.sleep(DELAY / 5 + 0.01)
        assert on.confirmed()


async def test_an_event_in_between_begins_the_wait_anew() -> None:
    async with scene() as on:
        on.want()
        await asyncio.sleep(DELAY - 0.1)
        on.absences.withdraw(NAME)
        on.want()
        await asyncio.sleep(DELAY - 0.1)
        assert not on.confirmed()
        await asyncio.sleep(0.2)
        assert on.confirmed()


@pytest.mark.parametrize("again", [False, True])
async def test_an_event_during_the_list_withdraws_what_it_would_confirm(*, again: bool) -> None:
    async with scene() as on:

        def event() -> None:
            on.absences.withdraw(NAME)
            if again:
                on.want()

        on.lists.on_list = event
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        on.lists.on_list = lambda: None
        assert not on.confirmed()
        assert on.touched == []
        await asyncio.sleep(2 * DELAY)
        assert on.confirmed() == again


@pytest.mark.parametrize("when", ["listing", "waiting", "reading"])
async def test_a_list_of_before_the_watch_was_asked_anew_confirms_nothing(when: str) -> None:
    """Once, what was asked for before and not yet found out about was confirmed all the same."""
    async with scene() as on:

        def begin_anew() -> None:
            on.absences.distrust()
            on.lists.on_list = on.on_read = lambda: None

        if when == "listing":
            on.lists.on_list = begin_anew
        elif when == "reading":
            on.on_read = begin_anew
        else:
            on.lists.pods = {"late": "shop"}
        on.want()
        await asyncio.sleep(DELAY + 0.005)
        if when == "waiting":
            await asyncio.sleep(PATIENCE_SECONDS / 2)
            begin_anew()
            on.watch.see("late")
        await asyncio.sleep(0.1)
        assert len(on.lists.asked) == 2, "it is asked for anew"
        assert on.confirmed()
        assert [name for _, name in on.touched] == [NAME], "and confirmed by that list alone"


async def test_what_took_long_to_confirm_counts_for_long_enough_to_be_told() -> None:
    """Once, it was over when it was found out, and asked for again, for ever."""
    async with scene() as on:
        on.lists.takes = 2 * CONFIRMED_SECONDS
        on.want()
        await asyncio.sleep(DELAY + on.lists.takes + CONFIRMED_SECONDS / 2 - 1)
        assert on.confirmed()
        await asyncio.sleep(2)
        assert not on.confirmed()


async def test_confirmations_wait_ever_longer_for_a_watch_that_brings_nothing() -> None:
    async with scene() as on:
        on.lists.pods = {"late": "shop"}
        on.want()
        await asyncio.sleep(DELAY + sum(PATIENT) + 1)
        assert gaps(on.lists)[: len(PATIENT)] == PATIENT
        on.watch.see("late")
        await asyncio.sleep(1)
        assert on.confirmed()
        # The watch is back, and so is the patience of the beginning.
        on.lists.asked.clear()
        on.lists.pods["later"] = "shop"
        on.want("shop/other/app")
        await asyncio.sleep(DELAY + 2)
        assert gaps(on.lists)[:1] == PATIENT[:1]


async def test_a_list_that_fails_after_others_that_did_not_is_asked_for_soon() -> None:
    async with scene() as on:
        first = [round(delay_after(attempt, 0.5), 2) for attempt in (1, 2)]
        for name in ("shop/one/app", "shop/two/app"):
            on.lists.asked.clear()
            on.lists.failures = 2
            on.want(name)
            await asyncio.sleep(DELAY + 30)
            assert gaps(on.lists) == first
            assert on.confirmed([name])


async def test_an_absence_counts_from_when_its_list_was_asked_for() -> None:
    async with scene() as on:
        on.lists.pods = {"late": "shop"}
        on.want()
        await asyncio.sleep(DELAY + PATIENCE_SECONDS / 2)
        on.watch.see("late")
        await asyncio.sleep(CONFIRMED_SECONDS - PATIENCE_SECONDS / 2 - 0.01)
        assert on.confirmed()
        await asyncio.sleep(0.02)
        assert not on.confirmed()


async def test_what_was_confirmed_counts_no_more_after_an_event() -> None:
    async with scene() as on:
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()
        on.absences.withdraw(NAME)
        assert not on.confirmed()


async def test_what_was_confirmed_is_asked_for_again_when_it_was_not_used_for_long() -> None:
    """A pause or a refusal may keep a decommission for hours, and the watch may be away then."""
    async with scene() as on:
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()
        await asyncio.sleep(CONFIRMED_SECONDS)
        assert not on.confirmed()
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()
        assert len(on.lists.asked) == 2


async def test_pods_that_go_while_a_list_is_under_way_hold_nothing_up() -> None:
    """Where many come and go there is one in each list, and no event of it will follow."""
    async with scene() as on:
        on.lists.pods = {"leaving": "shop"}
        on.lists.on_list = lambda: on.watch.sightings.note_gone("leaving")
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()
        assert len(on.lists.asked) == 1


async def test_a_cronjob_whose_end_was_confirmed_is_not_held_once_more() -> None:
    """A pause may keep the decommission until its confirmation counts no more."""
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(CRONJOB_HOLD + CONFIRMED_SECONDS + 1)
        assert not on.confirmed(["shop/nightly/app"])
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/nightly/app"])


async def test_a_namespace_that_can_not_be_listed_holds_up_no_other() -> None:
    async with scene() as on:
        on.lists.failing.add("ns-0")
        names = ["ns-0/app/c", "ns-1/app/c"]
        for number, name in enumerate(names):
            on.want(name, workload(namespace=f"ns-{number}"))
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(names[1:])
        assert not on.confirmed(names[:1])
        on.lists.failing.clear()
        await asyncio.sleep(61)
        assert names[0] in [name for _, name in on.touched]


async def test_a_pod_that_is_listed_and_was_not_seen_holds_the_absence_up() -> None:
    async with scene() as on:
        on.lists.pods = {"new": "shop"}
        on.want()
        await asyncio.sleep(600)
        assert not on.confirmed()
        on.watch.see("new")
        await asyncio.sleep(5)
        assert on.confirmed()


async def test_a_pod_that_is_not_brought_holds_up_no_other_namespace() -> None:
    async with scene() as on:
        on.lists.pods = {"new": "ns-0"}
        names = ["ns-0/app/c", "ns-1/app/c"]
        for number, name in enumerate(names):
            on.want(name, workload(namespace=f"ns-{number}"))
        await asyncio.sleep(DELAY + 5)
        assert on.confirmed(names[1:])
        assert not on.confirmed(names[:1])


async def test_a_pod_that_is_seen_while_it_is_waited_for_needs_no_second_list() -> None:
    async with scene() as on:
        on.lists.pods = {"new": "shop"}
        on.want()
        await asyncio.sleep(DELAY + 0.5)
        on.watch.see("new")
        await asyncio.sleep(0.1)
        assert on.confirmed()
        assert len(on.lists.asked) == 1


async def test_pods_of_other_namespaces_hold_nothing_up() -> None:
    async with scene() as on:
        on.lists.pods = {"new": "elsewhere"}
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()


async def test_a_list_that_can_not_be_had_confirms_nothing() -> None:
    async with scene() as on:
        on.lists.failures = 5
        with capture_logs() as logs:
            on.want()
            await asyncio.sleep(DELAY + 15)
            assert not on.confirmed()
            await asyncio.sleep(30)
        assert on.confirmed()
        times = [when for when, _ in on.lists.asked]
        assert times == pytest.approx([5, 5.5, 6.5, 8.5, 12.5, 20.5], abs=0.2)
        assert {line["log_level"] for line in logs} == {"warning"}


async def test_all_names_of_a_namespace_that_are_due_share_a_list() -> None:
    async with scene() as on:
        names = [f"shop/web/app-{number}" for number in range(100)]
        for name in names:
            on.want(name)
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(names)
        assert len(on.lists.asked) == 1


@pytest.mark.parametrize(
    ("count", "spans", "lists"),
    [
        (MAX_LISTS_APART, False, [f"ns-{number}" for number in range(MAX_LISTS_APART)]),
        (MAX_LISTS_APART + 1, False, [None]),
        (2, True, [None]),
        (1, True, [None]),
    ],
)
async def test_names_of_many_namespaces_share_one_list_of_all(
    count: int, *, spans: bool, lists: list[str | None]
) -> None:
    async with scene(spans_namespaces=spans) as on:
        names = [f"ns-{number}/web/app" for number in range(count)]
        for number, name in enumerate(names):
            on.want(name, workload(namespace=f"ns-{number}"))
        await asyncio.sleep(DELAY + 0.5)
        assert on.confirmed(names)
        assert [namespace for _, namespace in on.lists.asked] == lists


async def test_a_cronjob_holds_its_name_between_its_runs() -> None:
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(CRONJOB_HOLD - 1)
        assert on.lists.asked == []
        await asyncio.sleep(2)
        assert on.confirmed(["shop/nightly/app"])


async def test_no_other_kind_of_workload_holds_a_name_without_pods() -> None:
    names = []
    async with scene() as on:
        for kind in ("CloneSet", "CronTab", "Deployment", "Job", "StatefulSet"):
            names.append(f"shop/{kind.lower()}/app")
            on.want(names[-1], workload(kind.lower(), kind=kind))
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(names)


async def test_a_cronjob_that_runs_without_the_container_holds_it_no_more() -> None:
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(7 * CRONJOB_LOOK_SECONDS)
        assert not on.confirmed(["shop/nightly/app"])
        on.living.add(NIGHTLY)
        await asyncio.sleep(CRONJOB_LOOK_SECONDS + 1)
        assert on.confirmed(["shop/nightly/app"])


async def test_a_cronjob_holds_no_name_that_is_wanted_no_more() -> None:
    async with scene() as on:
        on.unwanted.add("shop/nightly/app")
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/nightly/app"])


async def test_a_cronjob_that_runs_what_can_not_be_recorded_holds_nothing() -> None:
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY, absent=False)
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/nightly/app"])


async def test_a_cronjob_that_is_held_holds_up_no_other_name() -> None:
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY)
        await asyncio.sleep(30)
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed()


async def test_a_displacement_that_becomes_an_absence_waits_anew() -> None:
    async with scene() as on:
        on.want(absent=False)
        await asyncio.sleep(DELAY - 0.1)
        on.want(absent=True)
        await asyncio.sleep(DELAY - 0.1)
        assert not on.confirmed()
        await asyncio.sleep(0.2)
        assert on.confirmed()


async def test_an_absence_that_becomes_a_displacement_is_no_absence_any_more() -> None:
    """Nothing holds a name of which another image runs."""
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY, absent=True)
        await asyncio.sleep(60)
        on.want("shop/nightly/app", NIGHTLY, absent=False)
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/nightly/app"])


def is_empty(absences: Absences) -> bool:
    state: Mapping[str, object] = vars(absences)
    return not state["_wanted"] and not state["_confirmed"]


async def test_nothing_is_kept_of_names_that_were_withdrawn() -> None:
    async with scene() as on:
        names = [f"shop/web/app-{number}" for number in range(10)]
        for name in names:
            on.want(name)
        await asyncio.sleep(DELAY + 0.1)
        for name in names:
            on.want(f"{name}-more")
            on.absences.withdraw(name)
            on.absences.withdraw(f"{name}-more")
        await asyncio.sleep(60)
        assert is_empty(on.absences)
        assert len(on.lists.asked) == 1


# Where workloads are read.


async def test_workloads_are_read_after_the_pods_and_once_for_all_that_is_due() -> None:
    async with scene() as on:
        for container in ("app", "proxy"):
            on.want(f"shop/web/{container}")
        on.want("shop/api/app", workload("api"))
        await asyncio.sleep(DELAY + 0.1)
        assert on.read == [{WEB, workload("api")}]
        assert on.confirmed(["shop/web/app", "shop/web/proxy", "shop/api/app"])


async def test_a_name_that_its_workload_keeps_is_looked_at_and_not_confirmed() -> None:
    async with scene() as on:
        on.kept = {NAME}
        on.want()
        on.want("shop/api/app", workload("api"))
        await asyncio.sleep(DELAY + 0.1)
        assert sorted(name for _, name in on.touched) == ["shop/api/app", NAME]
        assert not on.confirmed()
        assert on.confirmed(["shop/api/app"])
        await asyncio.sleep(3600)
        assert len(on.lists.asked) == 1


async def test_a_name_whose_workload_can_not_be_read_waits_alone() -> None:
    async with scene() as on:
        on.unreadable = frozenset({WEB})
        on.want()
        on.want("shop/api/app", workload("api"))
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/api/app"])
        assert not on.confirmed()
        on.want("shop/db/app", workload("db"))
        await asyncio.sleep(DELAY + 0.1)
        assert on.confirmed(["shop/db/app"])
        await asyncio.sleep(600)
        assert not on.confirmed()
        assert 600 / UNREAD_SECONDS - 3 < len(on.read) < 600 / UNREAD_SECONDS + 3
        on.unreadable = frozenset()
        await asyncio.sleep(UNREAD_SECONDS)
        assert on.confirmed()


async def test_an_event_while_workloads_are_read_withdraws_what_they_would_confirm() -> None:
    async with scene() as on:
        on.on_read = lambda: on.absences.withdraw(NAME)
        on.want()
        await asyncio.sleep(DELAY + 0.1)
        assert not on.confirmed()
        assert on.touched == []


async def test_workloads_are_not_asked_about_what_is_displaced() -> None:
    async with scene() as on:
        on.kept = {NAME}
        on.unreadable = frozenset({WEB})
        on.want(absent=False)
        await asyncio.sleep(DELAY + 0.1)
        assert on.read == [frozenset()]
        assert on.confirmed()


async def test_a_name_is_unfinished_until_its_absence_is_confirmed_or_withdrawn() -> None:
    async with scene() as on:
        assert on.absences.unfinished == frozenset()
        on.want()
        on.want("shop/other/app", WEB)
        assert on.absences.unfinished == {NAME, "shop/other/app"}
        on.absences.withdraw("shop/other/app")
        assert on.absences.unfinished == {NAME}
        await asyncio.sleep(DELAY + 0.1)
        assert on.absences.unfinished == frozenset()


async def test_a_name_that_a_cronjob_holds_is_not_waited_for() -> None:
    async with scene() as on:
        on.want("shop/nightly/app", NIGHTLY)
        assert on.absences.unfinished == frozenset()
        on.living.add(NIGHTLY)
        assert on.absences.unfinished == {"shop/nightly/app"}
