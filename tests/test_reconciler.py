"""The loop that finds what the watch did not tell, in virtual time, on the inventory itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from tests.support.builders import HASH, TEMPLATE, raw_owner, raw_pod
from tracker.drift import Listed
from tracker.errors import ListError
from tracker.inventory import Inventory
from tracker.pods import Pod, Skipped, read_pod, read_version
from tracker.reconcile import (
    CALM_SECONDS,
    LAG_SECONDS,
    MAX_FETCHES,
    PASS_SECONDS,
    SECOND_LIST_SECONDS,
    Reconciler,
    Sightings,
)

pytestmark = pytest.mark.looptime

INTERVAL: Final = 300.0
LIST_TAKES: Final = 0.5
"""Virtual seconds from the request of a list to its answer."""

Json = dict[str, Any]


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def nothing() -> None:
    """Happen not."""


class ScriptedPods:
    """An API server: `pods` is what it holds; what happens while it is asked is set by a test."""

    def __init__(self) -> None:
        self.pods: dict[str, Json] = {}
        self.lists: list[float] = []
        self.whole_lists = 0
        self.fetched: list[str] = []
        self.failures = 0
        self.fails_fetches = False
        self.while_listing: Callable[[], None] = nothing
        self.while_fetching: Callable[[], None] = nothing
        self.before_the_last_page: Callable[[], None] = nothing
        self.hidden: list[frozenset[str]] = []
        """For each list to come, uids that it lacks by mistake."""

    def put(self, uid: str, version: int, **more: Any) -> Json:  # noqa: ANN401 - raw JSON
        """Hold a pod of a workload of its own, and return it."""
        body = raw_pod(
            uid,
            name=f"{uid}-{HASH}-x",
            owners=[raw_owner(name=f"{uid}-{HASH}")],
            resourceVersion=str(version),
            **more,
        )
        self.pods[uid] = body
        return body

    async def list_pods(self) -> Mapping[str, Listed]:
        """Return what it held when it was asked."""
        self.lists.append(now())
        hidden = self.hidden.pop(0) if self.hidden else frozenset()
        found = {
            uid: Listed(
                namespace=body["metadata"]["namespace"],
                name=body["metadata"]["name"],
                version=read_version(body["metadata"]["resourceVersion"]),
            )
            for uid, body in self.pods.items()
            if uid not in hidden
        }
        self.while_listing()
        await asyncio.sleep(LIST_TAKES)
        if self.failures:
            self.failures -= 1
            message = "a list that came to no end"
            raise ListError(message)
        return found

    async def each_pod(self) -> AsyncIterator[object]:
        """Yield all pods, the last of them some time after the others."""
        self.whole_lists += 1
        found = list(self.pods.values())
        self.while_fetching()
        for pod in found[:-1]:
            yield pod
        await asyncio.sleep(LIST_TAKES)
        self.before_the_last_page()
        for pod in found[-1:]:
            yield pod

    async def fetch_pod(self, namespace: str, name: str) -> object | None:
        """Return one pod."""
        self.fetched.append(f"{namespace}/{name}")
        if self.fails_fetches:
            message = "no such luck"
            raise ListError(message)
        metadata = [(body["metadata"]["name"], body) for body in self.pods.values()]
        found = next((body for each, body in metadata if each == name), None)
        self.while_fetching()
        await asyncio.sleep(LIST_TAKES)
        return found


class ScriptedView:
    """What was seen, in a real inventory, and what stands: a name for each pod seen once."""

    def __init__(self) -> None:
        self.inventory = Inventory(template=TEMPLATE)
        self.names: set[str] = set()
        self.lost: list[str] = []
        self.seen_surely: list[str] = []
        self.looks = 0
        self.unreadable = 0
        self.readings = 0

    async def read_workloads(self) -> None:
        """Count, and fail as often as told."""
        self.readings += 1
        if self.unreadable:
            self.unreadable -= 1
            message = "workloads are forbidden"
            raise ListError(message)

    def see(self, raw: object) -> None:
        """Take what the watch brings."""
        self.names |= self.inventory.observe(read_pod(raw))

    def versions(self) -> Mapping[str, int]:
        """Return what the inventory holds."""
        return self.inventory.versions()

    def standing(self) -> Collection[str]:
        """Return every name there ever was."""
        return self.names

    def held(self, *, without: Collection[str] = ()) -> Collection[str]:
        """Ask the inventory."""
        return self.inventory.held_names(without=without)

    def read(self, raw: object) -> Pod | Skipped:
        """Read it as the tracker does."""
        return read_pod(raw)

    def see_surely(self, pod: Pod | Skipped) -> None:
        """Take what was fetched."""
        self.seen_surely.append(pod.uid)
        self.names |= self.inventory.observe(pod, surely=True)

    def lose_surely(self, uid: str) -> None:
        """Take what is gone."""
        self.lost.append(uid)
        self.inventory.remove(uid)

    def look_at_all(self) -> None:
        """Count."""
        self.looks += 1

    @property
    def gaps(self) -> int:
        """Ask the inventory."""
        return self.inventory.gaps

    def trust(self, gaps: int) -> None:
        """Tell the inventory."""
        self.inventory.trust(gaps)


class World:
    """A reconciler between an API server and what was seen of it."""

    def __init__(self) -> None:
        self.pods = ScriptedPods()
        self.view = ScriptedView()
        self.sightings = Sightings(known=self.view.inventory.__contains__)
        self.chance = 0.5
        self.due: list[float] = []
        """By when it said that it would give a sign of life, in seconds from now."""
        self.went_well: list[bool] = []
        self.reconciler = Reconciler(
            pods=self.pods,
            view=self.view,
            gone_meanwhile=self.sightings.gone_meanwhile,
            chance=lambda: self.chance,
            interval_seconds=INTERVAL,
            alive=self.due.append,
            passed=self.went_well.append,
        )

    def seen(self, uid: str, version: int = 1) -> None:
        """Let a pod be there, and seen."""
        self.view.see(self.pods.put(uid, version))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let the loop run."""
        task = asyncio.create_task(self.reconciler.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def world() -> World:
    """Give a test a world of its own."""
    return World()


# What is gone.


async def test_what_went_unseen_is_lost_and_every_name_looked_at(world: World) -> None:
    for uid in ("kept", "gone"):
        world.seen(uid)
    del world.pods.pods["gone"]
    await world.reconciler.once()
    assert world.view.lost == ["gone"]
    assert world.view.looks == 1
    assert set(world.view.versions()) == {"kept"}


async def test_what_came_is_looked_at_before_what_went(world: World) -> None:
    """Else, for as long as the fetch takes, an older pod speaks for the name of both."""
    world.seen("gone")
    del world.pods.pods["gone"]
    world.pods.put("came", 2)
    order: list[str] = []
    world.pods.while_fetching = lambda: order.append(f"fetching, lost {world.view.lost}")
    await world.reconciler.once()
    assert order == ["fetching, lost []"]
    assert world.view.lost == ["gone"]
    assert world.view.seen_surely == ["came"]


async def test_nothing_is_taken_for_gone_when_what_came_can_not_be_fetched(world: World) -> None:
    world.seen("gone")
    del world.pods.pods["gone"]
    world.pods.put("came", 2)
    world.pods.fails_fetches = True
    with pytest.raises(ListError):
        await world.reconciler.once()
    assert world.view.lost == []
    world.pods.fails_fetches = False
    await world.reconciler.once()
    assert world.view.lost == ["gone"]


@pytest.mark.fault("K11")
async def test_a_pod_that_is_seen_while_the_list_is_under_way_is_not_taken_for_gone(
    world: World,
) -> None:
    world.seen("kept")
    world.pods.put("listed", 6)

    def bring() -> None:
        # One is on the list that is made just now, one is created after it.
        world.seen("listed", 6)
        world.seen("young", 7)

    world.pods.while_listing = bring
    await world.reconciler.once()
    assert world.view.lost == []
    assert set(world.view.versions()) == {"kept", "listed", "young"}
    assert world.pods.fetched == [], "the watch brought them"


@pytest.mark.fault("K9")
async def test_a_list_that_came_to_no_end_changes_nothing(world: World) -> None:
    world.seen("kept")
    world.pods.put("unseen", 5)
    world.pods.failures = 1
    with pytest.raises(ListError):
        await world.reconciler.once()
    assert (world.view.lost, world.view.seen_surely, world.view.looks) == ([], [], 0)
    assert world.reconciler.passes == 0


async def test_a_pass_over_what_is_in_step_changes_nothing_however_often(world: World) -> None:
    for number in range(5):
        world.seen(f"pod-{number}")
    world.pods.put("unseen", 1)
    del world.pods.pods["pod-0"]
    await world.reconciler.once()
    settled = (dict(world.view.versions()), list(world.view.lost), list(world.view.seen_surely))
    for _ in range(3):
        await world.reconciler.once()
    assert (dict(world.view.versions()), world.view.lost, world.view.seen_surely) == settled
    assert world.reconciler.passes == 4


# A mass.


@pytest.mark.fault("K10")
@pytest.mark.parametrize(
    ("names", "gone", "lists"),
    [
        pytest.param(30, 21, 2, id="more-than-half-and-over-20"),
        pytest.param(40, 20, 1, id="half-and-20"),
        pytest.param(42, 21, 1, id="over-20-and-half"),
        pytest.param(20, 20, 1, id="all-of-20"),
        pytest.param(21, 21, 2, id="all-of-21"),
    ],
)
async def test_a_mass_is_believed_when_a_second_list_agrees(
    world: World, names: int, gone: int, lists: int
) -> None:
    for number in range(names):
        world.seen(f"pod-{number}")
    for number in range(gone):
        del world.pods.pods[f"pod-{number}"]
    await world.reconciler.once()
    assert len(world.view.lost) == gone
    assert len(world.pods.lists) == lists
    if lists == 2:
        first, second = world.pods.lists
        assert second - first >= SECOND_LIST_SECONDS


async def test_names_that_do_not_stand_yet_are_no_part_of_a_mass(world: World) -> None:
    """A first start of a large cluster: nothing stands, and one pod goes."""
    for number in range(40):
        world.seen(f"pod-{number}")
    world.view.names.clear()
    del world.pods.pods["pod-0"]
    await world.reconciler.once()
    assert world.view.lost == ["pod-0"]
    assert len(world.pods.lists) == 1


async def test_of_a_mass_only_what_both_lists_lack_is_lost(world: World) -> None:
    for number in range(30):
        world.seen(f"pod-{number}")
    del world.pods.pods["pod-7"]
    world.pods.hidden = [frozenset(world.pods.pods)]
    await world.reconciler.once()
    assert world.view.lost == ["pod-7"]


async def test_a_mass_is_not_believed_when_the_second_list_fails(world: World) -> None:
    for number in range(30):
        world.seen(f"pod-{number}")
    world.pods.hidden = [frozenset(world.pods.pods)]

    def fail_next() -> None:
        world.pods.failures = len(world.pods.lists) - 1

    world.pods.while_listing = fail_next
    with pytest.raises(ListError):
        await world.reconciler.once()
    assert world.view.lost == []


async def test_pods_of_names_that_others_hold_are_no_mass(world: World) -> None:
    """Replicas come and go by hundreds; what is guarded is names."""
    for number in range(100):
        body = raw_pod(f"pod-{number}", name=f"web-{HASH}-{number}", resourceVersion="1")
        world.pods.pods[f"pod-{number}"] = body
        world.view.see(body)
    for number in range(99):
        del world.pods.pods[f"pod-{number}"]
    await world.reconciler.once()
    assert len(world.view.lost) == 99
    assert len(world.pods.lists) == 1


# What the watch does not bring.


@pytest.mark.parametrize("brought", [5, 7], ids=["as-listed", "newer"])
@pytest.mark.parametrize("seen", [None, 3], ids=["never-seen", "seen-older"])
async def test_what_the_watch_brings_in_time_is_not_fetched(
    world: World, seen: int | None, brought: int
) -> None:
    if seen is not None:
        world.seen("slow", seen)
    world.pods.put("slow", 5)
    asyncio.get_running_loop().call_later(LAG_SECONDS - 1, lambda: world.seen("slow", brought))
    await world.reconciler.once()
    assert world.pods.fetched == []
    assert world.view.seen_surely == []
    assert "slow" in world.view.versions()


@pytest.mark.parametrize("seen", [None, 3], ids=["never-seen", "seen-older"])
async def test_what_the_watch_does_not_bring_is_fetched(world: World, seen: int | None) -> None:
    if seen is not None:
        world.seen("late", seen)
    world.pods.put("late", 5)
    began = now()
    await world.reconciler.once()
    assert now() - began >= LAG_SECONDS
    assert len(world.pods.fetched) == 1
    assert world.view.versions() == {"late": 5}


@pytest.mark.parametrize(
    ("late", "fetched", "whole_lists"), [(MAX_FETCHES, MAX_FETCHES, 0), (MAX_FETCHES + 1, 0, 1)]
)
async def test_many_are_fetched_by_one_list(
    world: World, late: int, fetched: int, whole_lists: int
) -> None:
    for number in range(late):
        world.pods.put(f"pod-{number}", 5)
    await world.reconciler.once()
    assert (len(world.pods.fetched), world.pods.whole_lists) == (fetched, whole_lists)
    assert len(world.view.versions()) == late


async def test_nothing_of_a_list_is_seen_before_its_last_page(world: World) -> None:
    """The newest pod of a name may be on it, and an older one would speak for the name."""
    for number in range(MAX_FETCHES + 1):
        world.pods.put(f"pod-{number}", 5)
    seen: list[int] = []
    world.pods.before_the_last_page = lambda: seen.append(len(world.view.versions()))
    await world.reconciler.once()
    assert seen == [0]
    assert len(world.view.versions()) == MAX_FETCHES + 1


async def test_a_pod_that_went_before_it_was_fetched_is_not_seen(world: World) -> None:
    world.pods.put("brief", 5)
    asyncio.get_running_loop().call_later(2, world.pods.pods.pop, "brief")
    await world.reconciler.once()
    assert len(world.pods.fetched) == 1
    assert world.view.versions() == {}


@pytest.mark.parametrize("others", [0, MAX_FETCHES], ids=["alone", "in-a-list"])
async def test_what_was_fetched_does_not_undo_what_the_watch_tells_meanwhile(
    world: World, others: int
) -> None:
    """The answer to a fetch may be older than an event that arrives before it."""
    world.seen("changed", 3)
    world.seen("deleted", 3)
    for number in range(others):
        world.pods.put(f"other-{number}", 4)
    world.pods.put("changed", 5)
    world.pods.put("deleted", 5)

    def tell() -> None:
        world.view.see(world.pods.put("changed", 6))
        world.view.inventory.remove("deleted")
        world.pods.pods.pop("deleted", None)

    world.pods.while_fetching = tell
    await world.reconciler.once()
    assert world.view.versions().get("changed") == 6
    assert "deleted" not in world.view.versions()
    assert len(world.view.versions()) == 1 + others


@pytest.mark.parametrize("others", [0, MAX_FETCHES])
async def test_a_pod_that_comes_and_goes_while_it_is_fetched_is_not_revived(
    world: World, others: int
) -> None:
    """Before and after it is not known: only that it was seen to go tells it from a late one."""
    world.pods.put("brief", 5)
    for number in range(others):
        world.pods.put(f"other-{number}", 4)

    def tell() -> None:
        world.view.inventory.remove("brief")
        world.sightings.note_gone("brief")

    world.pods.while_fetching = tell
    await world.reconciler.once()
    assert "brief" not in world.view.versions()
    assert len(world.view.versions()) == others


async def test_a_pod_of_a_restored_cluster_is_taken_as_it_is_now(world: World) -> None:
    """Its version went back, so that what the watch tells of it would count as old."""
    world.seen("restored", 1000)
    world.pods.put("restored", 600)
    await world.reconciler.once()
    assert world.view.versions() == {"restored": 600}
    world.view.see(world.pods.put("restored", 601))
    assert world.view.versions() == {"restored": 601}


async def test_a_fetch_that_fails_is_made_up_for(world: World) -> None:
    world.pods.put("late", 5)
    world.pods.fails_fetches = True
    with pytest.raises(ListError):
        await world.reconciler.once()
    world.pods.fails_fetches = False
    await world.reconciler.once()
    assert world.view.versions() == {"late": 5}


# When it runs.


async def test_it_runs_at_its_interval(world: World) -> None:
    async with world.running():
        await asyncio.sleep(3.5 * (INTERVAL + CALM_SECONDS))
    assert len(world.pods.lists) == 3


@pytest.mark.parametrize(("chance", "part"), [(0.0, 0.9), (0.25, 0.95), (1.0, 1.1)])
async def test_it_keeps_from_the_pace_of_others_by_a_tenth(
    world: World, chance: float, part: float
) -> None:
    world.chance = chance
    async with world.running():
        await asyncio.sleep(1.2 * INTERVAL + CALM_SECONDS)
    assert world.pods.lists == [pytest.approx(part * INTERVAL + CALM_SECONDS)]
    assert world.due[0] == pytest.approx(part * INTERVAL + PASS_SECONDS)


async def test_each_pass_tells_how_it_went_and_what_it_mended(world: World) -> None:
    world.seen("gone")
    del world.pods.pods["gone"]
    with capture_logs() as logs:
        async with world.running():
            world.pods.failures = 2
            world.reconciler.request()
            await asyncio.sleep(60)
            world.pods.put("unseen", 1)
            world.reconciler.request()
            await asyncio.sleep(60)
            world.reconciler.request()
            await asyncio.sleep(60)
    assert world.went_well == [False, False, True, True, True]
    told = [
        (line["log_level"], line.get("gone"), line.get("fetched"), line.get("attempts"))
        for line in logs
        if line["event"] in {"reconciled", "reconcile put off"}
    ]
    assert told == [
        ("warning", None, None, 1),
        ("warning", None, None, 2),
        ("info", 1, 0, None),
        ("info", 0, 1, None),
        ("debug", 0, 0, None),
    ]


async def test_workloads_are_read_once_a_pass_before_names_are_looked_at(world: World) -> None:
    world.seen("1")
    await world.reconciler.once()
    assert (world.view.readings, world.view.looks) == (1, 1)


async def test_workloads_that_can_not_be_read_hold_up_no_pods_and_are_asked_for_again(
    world: World,
) -> None:
    world.seen("1")
    del world.pods.pods["1"]
    world.view.unreadable = 1
    async with world.running():
        world.reconciler.request()
        await asyncio.sleep(CALM_SECONDS + 2 * LIST_TAKES)
        assert (world.view.lost, world.view.looks) == (["1"], 1)
        await asyncio.sleep(INTERVAL / 2)
    assert (world.view.readings, world.view.looks) == (2, 2)


async def test_requests_are_coalesced_into_one_pass_soon_after(world: World) -> None:
    async with world.running():
        for _ in range(20):
            world.reconciler.request()
            await asyncio.sleep(CALM_SECONDS / 40)
        await asyncio.sleep(2 * CALM_SECONDS)
        assert len(world.pods.lists) == 1
        assert world.pods.lists[0] <= CALM_SECONDS + 1


async def test_a_request_in_the_midst_of_a_pass_has_another_pass(world: World) -> None:
    async with world.running():
        world.reconciler.request()
        await asyncio.sleep(CALM_SECONDS + LIST_TAKES / 2)
        assert len(world.pods.lists) == 1
        world.reconciler.request()
        await asyncio.sleep(2 * CALM_SECONDS)
    assert len(world.pods.lists) == 2


async def test_while_lists_fail_it_asks_seldom_and_then_goes_on(world: World) -> None:
    world.seen("kept")
    world.seen("gone")
    del world.pods.pods["gone"]
    world.pods.failures = 10**6
    async with world.running():
        world.reconciler.request()
        await asyncio.sleep(600)
        assert len(world.pods.lists) <= 600 / CALM_SECONDS
        assert world.view.lost == []
        world.pods.failures = 0
        await asyncio.sleep(60)
    assert world.view.lost == ["gone"]
