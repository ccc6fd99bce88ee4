"""Reading workloads: each kind once a pass, what is news once, and nothing that can't be had."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs

from tests.support.builders import workload
from tracker.annotations import NO_MARKS, Marks
from tracker.catalog import KINDS, Catalog, Kind, Known, Presence
from tracker.errors import ListError
from tracker.lookups import LOOKUP_SECONDS, MAX_FETCHES, MAX_LISTS_APART, Lookups
from tracker.workloads import Workload

pytestmark = [pytest.mark.fault("W10"), pytest.mark.looptime]

WEB = workload("web")
API = workload("api", namespace="other")
NIGHTLY = workload("nightly", kind="CronJob")
THERE = Known(controller=None, terminating=False, marks=NO_MARKS)


class ScriptedReader:
    """An API server whose workloads are a mapping; `fails` names kinds it refuses."""

    def __init__(self) -> None:
        self.workloads: dict[Workload, Known] = {}
        self.fails: set[str] = set()
        self.hangs = False
        self.lists: list[tuple[str, str | None]] = []
        self.fetches: list[Workload] = []

    async def list_workloads(self, kind: Kind, namespace: str | None) -> Mapping[Workload, Known]:
        """Return what there is."""
        self.lists.append((kind.kind, namespace))
        await self._answer(kind)
        return {
            each: known
            for each, known in self.workloads.items()
            if each.kind == kind.kind and namespace in {None, each.namespace}
        }

    async def fetch_workload(self, kind: Kind, workload: Workload) -> Known | None:
        """Return one."""
        self.fetches.append(workload)
        await self._answer(kind)
        return self.workloads.get(workload)

    async def _answer(self, kind: Kind) -> None:
        await asyncio.sleep(3600 if self.hangs else 0.01)
        if kind.kind in self.fails:
            message = "the API server refused to tell of workloads: 403"
            raise ListError(message)


class Desk:
    """Lookups with what they are told by and tell."""

    def __init__(self) -> None:
        self.reader = ScriptedReader()
        self.catalog = Catalog(enabled=True)
        self.touched: list[str] = []
        self.learned = 0
        self.lookups = Lookups(
            reader=self.reader,
            catalog=self.catalog,
            touch=self.touched.append,
            learned=self._learn,
        )

    def _learn(self) -> None:
        self.learned += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let it run, after the lists of a start."""
        await self.lookups.read_all()
        self.reader.lists.clear()
        task = asyncio.create_task(self.lookups.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_pass_lists_each_kind_once() -> None:
    desk = Desk()
    desk.reader.workloads = {WEB: THERE}
    await desk.lookups.read_all()
    assert sorted(desk.reader.lists) == sorted((kind, None) for kind in KINDS)
    assert (desk.reader.fetches, desk.learned) == ([], 1)
    assert desk.catalog.presence(WEB) is Presence.THERE
    assert desk.catalog.presence(API) is Presence.GONE


async def test_a_kind_that_can_not_be_had_leaves_the_others_known_and_is_told_once() -> None:
    desk = Desk()
    desk.reader.fails = {"CronJob"}
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(ListError):
                await desk.lookups.read_all()
    assert desk.catalog.presence(NIGHTLY) is Presence.UNKNOWN
    assert desk.catalog.presence(WEB) is Presence.GONE
    assert "403" in desk.lookups.trouble
    assert [log["log_level"] for log in logs] == ["error"]
    desk.reader.fails.clear()
    with capture_logs() as logs:
        await desk.lookups.read_all()
    assert desk.lookups.trouble == ""
    assert [log["event"] for log in logs] == ["workloads can be read again"]


async def test_a_name_waits_for_one_request_about_its_workload() -> None:
    desk = Desk()
    async with desk.running():
        desk.reader.workloads = {
            WEB: Known(controller=None, terminating=False, marks=Marks(tags=(("team", "x"),)))
        }
        for _ in range(3):
            assert desk.lookups.awaits(WEB, "shop/web/app")
            assert desk.lookups.awaits(WEB, "shop/web/proxy")
        await asyncio.sleep(1)
        assert sorted(desk.touched) == ["shop/web/app", "shop/web/proxy"]
        assert not desk.lookups.awaits(WEB, "shop/web/app")
        assert desk.catalog.marks(WEB) == Marks(tags=(("team", "x"),))
    assert (desk.reader.fetches, desk.reader.lists) == ([WEB], [])


async def test_a_workload_that_is_not_there_is_asked_for_once() -> None:
    desk = Desk()
    async with desk.running():
        assert desk.lookups.awaits(WEB, "shop/web/app")
        await asyncio.sleep(1)
        assert not desk.lookups.awaits(WEB, "shop/web/app")
        assert desk.catalog.presence(WEB) is Presence.GONE
    assert desk.reader.fetches == [WEB]


@pytest.mark.parametrize("count", [MAX_FETCHES, MAX_FETCHES + 1])
async def test_much_news_of_a_kind_is_read_by_one_list(count: int) -> None:
    desk = Desk()
    many = [workload(f"web-{number}") for number in range(count)]
    async with desk.running():
        desk.reader.workloads = dict.fromkeys(many[1:], THERE)
        for each in many:
            assert desk.lookups.awaits(each, each.name)
        await asyncio.sleep(5)
        assert sorted(desk.touched) == sorted(each.name for each in many)
        assert not any(desk.lookups.awaits(each, each.name) for each in many)
    one_by_one = count <= MAX_FETCHES
    assert len(desk.reader.fetches) == (count if one_by_one else 0)
    assert desk.reader.lists == ([] if one_by_one else [("Deployment", None)])


@pytest.mark.parametrize("count", [1, MAX_FETCHES, MAX_FETCHES + 1])
@pytest.mark.parametrize("hangs", [False, True], ids=["refused", "no-answer"])
async def test_an_answer_that_can_not_be_had_holds_a_name_up_for_a_while_only(
    count: int,
    hangs: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    desk = Desk()
    many = [workload(f"web-{number}") for number in range(count)]
    async with desk.running():
        desk.reader.hangs, desk.reader.fails = hangs, {"Deployment"}
        for each in many:
            assert desk.lookups.awaits(each, each.name)
        await asyncio.sleep(LOOKUP_SECONDS + 1)
        assert sorted(desk.touched) == sorted(each.name for each in many)
        assert not any(desk.lookups.awaits(each, each.name) for each in many)
        assert {desk.catalog.presence(each) for each in many} == {Presence.UNKNOWN}
    assert desk.lookups.trouble


async def test_what_is_due_is_read_again_in_its_namespaces() -> None:
    desk = Desk()
    await desk.lookups.read_all()
    desk.reader.lists.clear()
    rollout = Workload(
        api_version="argoproj.io/v1alpha1", kind="Rollout", namespace="shop", name="x"
    )
    unread = await desk.lookups.read([WEB, workload("api"), API, NIGHTLY, rollout])
    assert unread == frozenset()
    assert sorted(desk.reader.lists) == [
        ("CronJob", "shop"),
        ("Deployment", "other"),
        ("Deployment", "shop"),
    ]


async def test_what_is_due_in_many_namespaces_is_read_by_one_list() -> None:
    desk = Desk()
    many = [workload("web", namespace=f"n{number}") for number in range(MAX_LISTS_APART + 1)]
    await desk.lookups.read(many)
    assert desk.reader.lists == [("Deployment", None)]


async def test_what_can_not_be_read_is_named_and_the_rest_is_read() -> None:
    desk = Desk()
    desk.reader.fails = {"CronJob"}
    assert await desk.lookups.read([WEB, NIGHTLY]) == {NIGHTLY}
    desk.reader.workloads = {WEB: THERE}
    assert await desk.lookups.read([WEB]) == frozenset()
    assert desk.catalog.presence(WEB) is Presence.THERE
    assert desk.lookups.trouble, "the CronJobs still can't be read"
