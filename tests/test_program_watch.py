"""
The whole program under everything that may become of its watch on the API server.

A watch that breaks must not end the process, nor lose a pod, nor make it tell anything twice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.support.program import Program
from tests.support.simulated import (
    World,
    made,
    name_of,
    pod,
)
from tracker.sandbox import outages
from tracker.sandbox.cluster import SimulatedCluster
from tracker.sandbox.outages import (
    EndStream,
    Injection,
    Match,
    RawAnswer,
    Refuse,
    StreamError,
    Truncate,
)

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),  # the first to wait waits for all that run side by side
]

Fault = Callable[[SimulatedCluster], Injection | int]
"""Brings a fault about; what it returns is of no interest."""


def refused(fault: outages.Fault) -> Fault:
    """Return what has the watch end in order and the request for the next one meet a fault."""

    def bring_about(cluster: SimulatedCluster) -> Injection:
        injection = cluster.inject(fault, match=Match(verb="watch"), times=1)
        cluster.end_watches()
        return injection

    return bring_about


MENDED: Final[Mapping[str, Fault]] = {
    "reset": SimulatedCluster.cut_watches,
    "reset-in-mid-line": partial(SimulatedCluster.cut_watches, in_mid_line=True),
    "ended": SimulatedCluster.end_watches,
    "gone": partial(SimulatedCluster.fail_watches, code=410),
    "http-401": refused(Refuse(code=401)),
    "http-403": refused(Refuse(code=403)),
    "http-429": refused(Refuse(code=429, retry_after=1)),
    "http-500": refused(Refuse(code=500)),
    "truncated": refused(Truncate()),
    "ended-at-once": refused(EndStream()),
}
"""What Kopf takes in its stride."""

ENDING: Final[Mapping[str, Fault]] = {
    "html": refused(RawAnswer()),
    "http-410": refused(Refuse(code=410)),
    "error-500": partial(SimulatedCluster.fail_watches, code=500),
    "error-without-code": partial(SimulatedCluster.fail_watches, code=None),
}
"""What Kopf ends on, to be started again."""

SIDE_BY_SIDE: Final = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def survivals(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mapping[str, asyncio.Task[Program]]]:
    """Play each case that was asked for, side by side: most of the time of each is waiting."""
    slots = asyncio.Semaphore(SIDE_BY_SIDE)

    async def play(case: str, fault: Fault) -> Program:
        async with slots, made(tmp_path_factory.mktemp(case)) as world:
            return await survive(world, case, fault)

    callspecs = [item.callspec for item in request.session.items if hasattr(item, "callspec")]
    cases = {callspec.params.get("survival") for callspec in callspecs}
    tasks = {
        case: asyncio.create_task(play(case, fault))
        for case, fault in {**ENDING, **MENDED}.items()
        if case in cases
    }
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def survive(world: World, case: str, fault: Fault) -> Program:
    """Bring a fault about under a program's watch; a pod that comes then is told all the same."""
    cluster = world.cluster
    cluster.create(pod("early"))
    async with world.program() as program:
        await world.told("early")
        await cluster.until(lambda: cluster.watches == 1, within=40)
        fault(cluster)
        cluster.create(pod(case))
        await world.told(case)
        # A second one can only come by the new watch, whatever brought the first one.
        await cluster.until(lambda: cluster.watches == 1, within=40)
        cluster.create(pod("late"))
        await world.told("late")
        assert await program.stopped() == 0
    return program


@pytest.mark.parametrize("survival", [*ENDING, *MENDED])
async def test_whatever_becomes_of_the_watch_it_goes_on_and_tells_nothing_twice(
    survivals: Mapping[str, asyncio.Task[Program]], survival: str
) -> None:
    program = await survivals[survival]
    names = [line.deployment_name for line in program.lines]
    assert names == [name_of("early"), name_of(survival), name_of("late")]
    assert {line.outcome for line in program.lines} == {"OK"}
    assert ("the watch is started again" in program.said) is (survival in ENDING)


@pytest.mark.fault("K17")
async def test_a_pod_that_went_in_a_gap_does_not_come_back_when_a_newer_one_goes(
    tmp_path: Path,
) -> None:
    """Until a reconcile finds that it has gone it may not speak: what it ran is older."""
    old, new, next_one = (f"sha256:{letter * 64}" for letter in "123")
    age = "2024-01-15T10:30:0{}Z"
    async with made(tmp_path) as world:
        world.cluster.create(pod("web", digest=old, number=1, creationTimestamp=age.format(1)))
        async with world.program() as program:
            await world.told("web", old)
            gone = world.cluster.inject(StreamError(code=410), match=Match(verb="watch"))
            away = world.cluster.inject(Refuse(code=503), match=Match(resource="pods"))
            world.cluster.cut_watches()
            await program.until_said("Request attempt")  # it is away
            world.cluster.delete("pods", "shop", "web-abc-1", grace_seconds=0)
            world.cluster.create(pod("web", digest=new, number=2, creationTimestamp=age.format(2)))
            world.cluster.remove(gone)
            world.cluster.remove(away)
            await world.told("web", new)
            world.cluster.delete("pods", "shop", "web-abc-2", grace_seconds=0)
            waiting = pod("web", digest=next_one, number=3, creationTimestamp=age.format(3))
            waiting["status"] = {"phase": "Pending"}
            world.cluster.create(waiting)
            await program.until_said("reconciled")
            waiting["status"] = pod("web", digest=next_one)["status"]
            world.cluster.patch("pods", "shop", "web-abc-3", {"status": waiting["status"]})
            await world.told("web", next_one)
            assert await program.stopped() == 0
        posted = [each.digest for sent in world.github.posts() for each in sent.deployments]
        assert posted == [old, new, next_one]
