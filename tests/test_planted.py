"""
Defects planted in the program: each must be found by the checker, and only then.

A checker that finds nothing is worth what it would find. Each scenario here is one in which one
mistake shows for certain; without the mistake the same scenario is clean.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.claims import claims
from tests.support.defects import COMPARED, LISTED, Defect
from tests.support.world import World, image_of, made, name_of, pod
from tracker.sandbox.exchanges import Exchange
from tracker.sandbox.outages import Hang, Match
from tracker.sandbox.script import drops, hangs
from tracker.sandbox.stage import digest_of

pytestmark = pytest.mark.timeout(300)  # several starts each; they are slow on a busy machine

IN_STEP = "in step with the cluster"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def of(workload: str, version: str) -> Callable[[Exchange], bool]:
    """Return what tells whether a request is about a version of a workload."""
    digest = digest_of(image_of(workload, version))
    return lambda exchange: any(
        (each.deployment_name, each.digest) == (name_of(workload), digest)
        for each in exchange.deployments
    )


async def calm(world: World, defect: Defect | None) -> None:
    """Wait until what happened so far was dealt with: what comes later is dealt with later."""
    world.run("marker")
    await world.told("marker")
    world.end("marker")
    await world.told("marker", status="decommissioned")
    if defect is None:
        await world.agreed()


async def lose_a_request(world: World, defect: Defect | None) -> str:
    """Nobody but the client can know whether GitHub has a record."""
    world.github.script(drops(applied=False), match=of("web", "1"), times=1)
    async with world.program(defect=defect) as program:
        await program.until_said(IN_STEP)
        world.run("web")
        await program.until(lambda: any(line.outcome == "OK" for line in program.lines))
        await calm(world, defect)
        assert await program.stopped() == 0
    claimed, _ = claims(world.ledger)
    return world.violations(claimed=claimed)


async def kill_in_flight_and_delete(world: World, defect: Defect | None) -> str:
    """GitHub holds a record of which only an intent could tell."""
    held = world.github.script(hangs(applied=True), times=1)
    world.run("web")
    async with world.program(defect=defect) as program:
        await world.met(held)
        await world.killed(program)
    world.end("web")
    async with world.program(defect=defect) as program:
        await program.until_said(IN_STEP)
        await calm(world, defect)
        assert await program.stopped() == 0
    return world.violations()


async def start_a_pod_behind_a_list(world: World, defect: Defect | None) -> str:
    """Start a pod after a list was made, which so can't hold it, and roll it out in place."""
    async with world.program(defect=defect) as program:
        await program.until_said("reconciled" if defect is None else LISTED)
        world.run("web")
        await world.told("web")
        if defect is not None:
            await program.until_said(COMPARED)
        renewed = pod("web", "2")
        change = {"spec": renewed["spec"], "status": renewed["status"]}
        world.cluster.patch("pods", "shop", "web-1-0", change)
        if defect is None:
            await calm(world, defect)
        else:
            # With a pod that it has lost nothing is decommissioned any more: a start must do.
            world.run("marker")
            await world.told("marker")
        assert await program.stopped() == 0
    return world.violations()


async def roll_out_over_a_failure(world: World, defect: Defect | None) -> str:
    """Let a newer state overtake one that failed."""
    failing = world.github.script(drops(applied=False), match=of("web", "1"))
    world.run("web")
    async with world.program(defect=defect) as program:
        await world.met(failing)
        world.roll_out("web", "1", "2")
        await world.told("web", "2")
        await calm(world, defect)
        assert await program.stopped() == 0
    return world.violations()


async def start_in_mid_rollout(world: World, defect: Defect | None) -> str:
    """Of two pods the API server tells the old one first, and of the other a while later."""
    world.run("web")
    await world.visit()
    world.cluster.create(pod("web", "2", creationTimestamp="2100-01-01T00:00:00Z"))
    posts = len(await world.visit()) + 1
    pages = Match(verb="list", resource="pods", paged=True)
    second_page = world.cluster.inject(Hang(), match=pages, times=1)
    one_by_one = {"tracker.watch.CHUNK": 1}
    async with world.program(defect=defect, constants=one_by_one) as program:
        await world.cluster.until(lambda: second_page.hits == 1, within=20)
        if defect is not None:
            await world.github.until(lambda: len(world.github.history) > posts, within=20)
        world.cluster.heal()
        await program.until_said(IN_STEP)
        await calm(world, defect)
        assert await program.stopped() == 0
    return world.violations()


async def replace_a_pod_behind_a_silent_watch(world: World, defect: Defect | None) -> str:
    """Let the watch bring the end of a pod, and its successor a while later."""
    world.run("web")
    async with world.program(defect=defect, DECOMMISSION_DELAY="4s") as program:
        await world.agreed()
        await program.until_said("reconciled")
        lists = pod_lists(world)
        world.end("web")
        world.run("marker")
        await world.told("marker")
        assert world.cluster.freeze_watches() == 1
        world.cluster.create(pod("web", number=1))
        if defect is None:
            await world.cluster.until(lambda: pod_lists(world) > lists, within=20)
        else:
            await world.told("web", status="decommissioned")
        world.cluster.freeze_watches(frozen=False)
        await world.told("web")
        assert await program.stopped() == 0
    return world.violations(network_seconds=0.5)


def pod_lists(world: World) -> int:
    """Return how many lists of pods were answered so far."""
    return sum(
        request.verb == "list" and request.resource == "pods" and request.status is not None
        for request in world.cluster.requests
    )


Scenario = Callable[[World, Defect | None], Awaitable[str]]

PLANTED: dict[Defect, tuple[Scenario, str]] = {
    Defect.EARLY_ACKNOWLEDGEMENT: (lose_a_request, "HONESTY"),
    Defect.NO_INTENT: (kill_in_flight_and_delete, "CONVERGENCE"),
    Defect.LATE_SNAPSHOT: (start_a_pod_behind_a_list, "CONVERGENCE"),
    Defect.NEWEST_FIRST: (roll_out_over_a_failure, "ORDER"),
    Defect.EARLY_START: (start_in_mid_rollout, "ORDER"),
    Defect.NO_CONFIRMATION: (replace_a_pod_behind_a_silent_watch, "NO_PHANTOM"),
}
"""The scenario that shows each defect, and the promise that is broken then."""


@pytest.mark.parametrize("defect", Defect, ids=lambda each: each.name.lower())
async def test_a_planted_defect_is_found(world: World, defect: Defect) -> None:
    scenario, promise = PLANTED[defect]
    found = await scenario(world, defect)
    assert f"{promise} {name_of('web')}" in found, found


@pytest.mark.parametrize("defect", Defect, ids=lambda each: each.name.lower())
async def test_without_the_defect_the_same_is_clean(world: World, defect: Defect) -> None:
    scenario, _ = PLANTED[defect]
    found = await scenario(world, None)
    assert not found, found
