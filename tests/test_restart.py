"""
The whole program, stopped and started again on the same ledger, whatever changed meanwhile.

A restart without a change posts nothing; one with a change posts exactly that, deletions too. Each
test ends with the checker over all that GitHub ever heard.
"""

import asyncio
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.support.churn import RecordedCluster
from tests.support.crashing import Point
from tests.support.program import Program
from tests.support.world import World, image_of, made, name_of, pod, states
from tracker.sandbox.script import delays, hangs, lands_late
from tracker.sandbox.stage import digest_of
from tracker.sandbox.truth import Scope

pytestmark = pytest.mark.timeout(300)  # several starts each; they are slow on a busy machine


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def deployed(workload: str, version: str = "1", namespace: str = "shop") -> tuple[str, str, str]:
    """Return what a post says of a workload that runs."""
    return name_of(workload, namespace), "deployed", digest_of(image_of(workload, version))


def gone(workload: str, version: str = "1", namespace: str = "shop") -> tuple[str, str, str]:
    """Return what a post says of a workload that went."""
    return name_of(workload, namespace), "decommissioned", digest_of(image_of(workload, version))


def told_twice(program: Program, name: str) -> bool:
    """Tell whether a program has told of two acknowledgements of a name."""
    return len(program.about(name)) == 2


# Changes while it is down.


@pytest.mark.fault("P11")
async def test_a_restart_without_a_change_posts_nothing(world: World) -> None:
    world.run("web", "api", "db")
    assert len(states(await world.visit())) == 3
    assert await world.visit() == []
    async with world.program() as program:
        await program.until_said("reconciled")
        await world.killed(program)
    assert await world.visit() == []
    world.judge()


@pytest.mark.fault("P12")
async def test_what_changed_while_it_was_down_is_posted_and_nothing_else(world: World) -> None:
    world.run("same", "rolled", "back", "deleted", "scaled", "replaced", "zero")
    await world.visit()
    world.roll_out("rolled", "1", "2")
    world.roll_out("back", "1", "2")
    world.end("back", "2")
    world.run("back")
    world.end("deleted")
    world.run("new")
    for number in (1, 2, 3):
        world.cluster.create(pod("scaled", number=number))
    world.end("replaced")
    world.cluster.create(pod("replaced", number=7))
    world.end("zero")
    posts = await world.visit()
    expected = [gone("deleted"), deployed("new"), deployed("rolled", "2"), gone("zero")]
    assert states(posts) == sorted(expected)
    assert await world.visit() == []
    world.judge()


async def test_what_came_and_went_while_it_was_down_was_never_there(world: World) -> None:
    world.run("web")
    await world.visit()
    world.run("brief")
    world.end("brief")
    world.roll_out("web", "1", "2")
    world.roll_out("web", "2", "3")
    assert states(await world.visit()) == [deployed("web", "3")]
    world.judge()


# Stops.


@pytest.mark.fault("P9")
async def test_a_stop_leaves_the_rest_for_the_next_start_which_posts_each_once(
    world: World,
) -> None:
    """GitHub takes 200 ms for each of 1,000 names alone: a drain of two seconds can't end it."""
    names = 1000
    for number in range(names):
        world.run(f"w{number}")
    slow = world.github.script(delays(0.2))
    async with world.program(
        BULK_CLUSTER_SYNC="false",
        GITHUB_RATE="1000",
        GITHUB_BURST="1000",
        DRAIN_TIMEOUT="2s",
        LOG_LEVEL="info",
    ) as program:
        await world.github.until(lambda: len(world.github.history) >= 10, within=20)
        program.terminate()
        assert await program.ended(within=7) == 0
        assert "stopped with names not sent" in program.said
        assert "Traceback" not in program.said
    before = len(world.github.history)
    assert 10 <= before < names / 2
    cut = [post for post in world.github.history if post.gone is not None]
    slow.stop()
    posts = await world.visit(least=names - before + len(cut))
    assert len(states(posts)) - (names - before) == len(cut) <= 2
    assert len(posts) <= 3, "the rest goes in batches"
    world.judge()


@pytest.mark.fault("P10")
async def test_a_second_signal_ends_it_at_once_and_the_ledger_is_whole(world: World) -> None:
    held = world.github.script(hangs())
    world.run("first", "second", "third")
    async with world.program(DRAIN_TIMEOUT="1h") as program:
        await world.met(held)
        program.terminate()
        await world.cluster.until(lambda: world.cluster.watches == 0, within=20)
        program.send(signal.SIGINT)
        assert await program.ended() == 1
        assert "Traceback" not in program.said
        assert "Task was destroyed" not in program.said
    world.github.heal()
    with closing(sqlite3.connect(world.ledger)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    # They were under way, which is one extra post for each of them at most.
    assert states(await world.visit()) == sorted(map(deployed, ("first", "second", "third")))
    world.judge()


# A state that may have landed, or may land yet.


@pytest.mark.fault("P4")
async def test_what_lands_late_after_a_restart_is_overwritten(world: World) -> None:
    world.run("web")
    late = world.github.script(lands_late(), times=1)
    async with world.program() as program:
        await world.met(late)
        await world.killed(program)
    world.roll_out("web", "1", "2")
    async with world.program() as program:
        await world.told("web", "2")
        late.release()
        await world.told("web", "1")
        await world.told("web", "2")
        assert await program.stopped() == 0
    assert states(world.github.history) == [
        *sorted([deployed("web", "1"), deployed("web", "2"), deployed("web", "2")])
    ]
    assert await world.visit() == []
    world.judge()


async def test_what_lands_after_its_workload_went_is_overwritten(world: World) -> None:
    world.run("web")
    late = world.github.script(lands_late(), times=1)
    async with world.program() as program:
        await world.met(late)
        await world.killed(program)
    world.end("web")
    async with world.program() as program:
        # Whether it ever landed can't be known: it is taken back, and once more after a while.
        await world.told("web", status="decommissioned")
        late.release()
        await world.told("web")
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert await world.visit() == []
    world.judge()


async def test_a_wait_to_settle_outlasts_a_restart(world: World) -> None:
    world.run("web")
    late = world.github.script(lands_late(), times=1)
    async with world.program() as program:
        await world.met(late)
        await world.killed(program)
    world.roll_out("web", "1", "2")
    async with world.program() as program:
        await program.until(lambda: bool(program.about(name_of("web"))))
        await world.killed(program)
    late.release()
    await world.told("web", "1")
    assert states(await world.visit()) == [deployed("web", "2")]
    world.judge()


async def test_open_outcomes_of_before_are_settled_first(world: World) -> None:
    world.run("zz")
    held = world.github.script(hangs(), times=1)
    async with world.program() as program:
        await world.met(held)
        await world.killed(program)
    held.release()
    world.run("aa", "bb", "cc", "dd", "ee")
    posts = await world.visit()
    assert name_of("zz") in posts[0].names
    assert len(states(posts)) == 6
    world.judge()


@pytest.mark.fault("P2", "P3", "P5")
@pytest.mark.parametrize(
    ("kill", "repeated"),
    [
        pytest.param((Point.EVENT, 1), 0, id="after-event"),
        pytest.param((Point.UNWRITTEN, 1), 0, id="before-intent"),
        pytest.param((Point.INTENT, 1), 0, id="after-intent"),
        pytest.param((Point.ANSWER, 1), 1, id="after-answer"),
    ],
)
async def test_a_kill_at_a_point_costs_one_extra_post_at_most(
    world: World, kill: tuple[Point, int], repeated: int
) -> None:
    world.run("web")
    async with world.program(kill=kill) as program:
        await world.died(program)
    assert states(await world.visit()) == [deployed("web")]
    assert len(world.github.posts()) == 1 + repeated
    world.judge()


@pytest.mark.fault("P6")
async def test_a_kill_between_a_list_and_its_consequences_changes_nothing(world: World) -> None:
    world.run("stays", "goes")
    await world.visit()
    world.end("goes")
    posts = world.posted
    async with world.program(kill=(Point.LIST, 1), DECOMMISSION_DELAY="1h") as program:
        await world.died(program)
    async with world.program(kill=(Point.ABSENCE, 2)) as program:
        await world.died(program)
    assert world.posted == posts
    assert states(await world.visit()) == [gone("goes")]
    world.judge()


@pytest.mark.fault("P7")
async def test_a_kill_in_a_migration_loses_no_row(world: World) -> None:
    world.run("web", "api")
    await world.visit()
    async with world.program(next_schema=True, kill=(Point.MIGRATING, 1)) as program:
        await world.died(program)
    # The version before it opens it still, and the later one goes through with it.
    assert await world.visit() == []
    async with world.program(next_schema=True) as program:
        await program.until_said("reconciled")
        assert await program.stopped() == 0
    world.judge()
    assert world.posted == 2
    with closing(sqlite3.connect(world.ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (2,)
    # And now this version refuses it.
    async with world.program(LOG_LEVEL="info") as program:
        assert await program.ended() == 2
        (line,) = program.stderr
        assert "newer version" in line
    assert program.stdout == []


# The ledger.


@pytest.mark.fault("L6")
async def test_without_its_ledger_it_posts_all_that_runs_and_decommissions_nothing(
    world: World,
) -> None:
    world.run("web", "api", "down")
    await world.visit()
    for file in world.folder.glob("ledger.db*"):
        file.unlink()
    world.reposts = 1
    # What went meanwhile is a gap that is stated: nobody can tell it any more.
    world.end("down")
    posts = len(world.github.history)
    async with world.program() as program:
        await world.github.until(lambda: len(states(world.github.history[posts:])) == 2, within=20)
        await program.until_said("reconciled")
        assert await program.stopped() == 0
    assert states(world.github.history[posts:]) == sorted([deployed("web"), deployed("api")])
    assert world.github.state(name_of("down")) == deployed("down")[1:]
    world.judge(converged=False)


@pytest.mark.fault("P14")
async def test_a_second_process_on_the_same_ledger_ends_with_one_line(world: World) -> None:
    world.run("web")
    async with world.program() as program:
        await world.agreed()
        async with world.program(LOG_LEVEL="info") as second:
            assert await second.ended() == 1
        (line,) = second.stderr
        assert line.startswith("deployment-tracker: ")
        assert "in use by another process" in line
        assert second.stdout == []
        world.run("api")
        await world.agreed()
        assert await program.stopped() == 0
    assert world.posted == 2
    world.judge()


@pytest.mark.fault("P16")
async def test_two_copies_by_mistake_end_in_what_runs_and_tell_each_state_twice_at_most(
    world: World,
) -> None:
    """With a ledger each nothing keeps them apart, and each is as right as the other."""
    world.run("web", "api", "down")
    async with (
        world.program(LEDGER_PATH=str(world.folder / "one.db")) as one,
        world.program(LEDGER_PATH=str(world.folder / "two.db")) as two,
    ):
        for program in (one, two):
            await program.until_said("reconciled")
        await world.agreed()
        world.roll_out("web", "1", "2")
        world.end("down")
        for program in (one, two):
            for name in (name_of("web"), name_of("down")):
                await program.until(partial(told_twice, program, name))
        await world.agreed()
        for program in (one, two):
            assert await program.stopped() == 0
    told = states(world.github.history)
    assert set(told) == {
        *map(deployed, ("web", "api", "down")),
        deployed("web", "2"),
        gone("down"),
    }
    assert all(told.count(state) <= 2 for state in told)


@pytest.mark.fault("L5")
async def test_a_ledger_at_a_place_that_can_not_be_written_ends_it_with_one_line(
    world: World,
) -> None:
    (world.folder / "plain").write_text("no folder")
    path = str(world.folder / "plain" / "ledger.db")
    async with world.program(LEDGER_PATH=path, LOG_LEVEL="info") as program:
        assert await program.ended() == 2
    (line,) = program.stderr
    assert line.startswith("deployment-tracker: the ledger ")
    assert "can't be used" in line
    assert world.github.history == []
    assert world.cluster.requests == []


@pytest.mark.fault("L1")
async def test_on_a_full_disk_nothing_is_sent_that_was_not_written(world: World) -> None:
    world.run("before")
    async with world.program() as program:
        await world.agreed()
        await program.until_said("reconciled")
        limit = (world.log_size(), resource.RLIM_INFINITY)
        _, hard = resource.prlimit(program.pid, resource.RLIMIT_FSIZE, limit)
        world.run("new", "newer")
        world.end("before")
        await program.until_said("could not be written")
        await program.until_said("put off", times=4)
        assert world.posted == 1
        assert program.running
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (hard, hard))
        await world.agreed()
        assert await program.stopped() == 0
        assert "Traceback" not in program.said
    assert world.posted == 4
    assert await world.visit() == []
    world.judge()


@pytest.mark.fault("L13")
async def test_a_ledger_that_is_deleted_under_way_is_written_anew_and_nothing_is_lost(
    world: World,
) -> None:
    # Nothing was sent any more, and the restart that was asked for forgot what stood: what had been
    # deleted since then stood as deployed for good.
    world.run("web", "api", "same")
    async with world.program() as program:
        await world.agreed()
        await program.until_said("reconciled")
        for file in world.folder.glob("ledger.db*"):
            file.unlink()
        world.end("web")
        await world.agreed()
        assert await program.stopped() == 0
        assert program.said.count("written anew from memory") == 1
        assert "put off" not in program.said
    world.end("api")
    assert states(await world.visit()) == [gone("api")]
    assert world.posted == 5
    world.judge()


@pytest.mark.fault("G13")
async def test_what_github_lost_is_posted_again_when_it_was_acknowledged_a_day_ago(
    world: World,
) -> None:
    """Nobody can ask GitHub what stands: what it lost by its own fault is found by posting."""
    world.run("web", "api", "young")
    await world.visit()
    world.github.table.wipe()
    with closing(sqlite3.connect(world.ledger)) as connection, connection:
        connection.execute(
            "UPDATE entries SET acknowledged_at = acknowledged_at - 90000"
            " WHERE deployment_name <> ?",
            (name_of("young"),),
        )
    world.reposts = 1
    posts = len(world.github.history)
    # Each pass posts its share; with passes this rare all of them are that.
    async with world.program(RECONCILE_INTERVAL="12h") as program:
        await world.told("web")
        await world.told("api")
        assert await program.stopped() == 0
    assert states(world.github.history[posts:]) == sorted([deployed("web"), deployed("api")])
    world.judge(converged=False)


# Other settings.


@pytest.mark.fault("L9")
async def test_with_another_template_old_names_go_and_new_ones_come(world: World) -> None:
    world.run("web", "api")
    await world.visit()
    template = "{{deploymentName}}.{{containerName}}"
    scope = Scope(template=template)
    world.cluster.log.rescope(asyncio.get_running_loop().time(), scope)
    posts = await world.visit(DN_TEMPLATE=template)
    renamed = [
        (f"{workload}.app", "deployed", digest_of(image_of(workload)))
        for workload in ("web", "api")
    ]
    assert states(posts) == sorted([*renamed, gone("web"), gone("api")])
    assert await world.visit(DN_TEMPLATE=template) == []
    world.judge()


@pytest.mark.fault("L8")
async def test_under_another_identity_it_starts_clean_and_leaves_old_records(world: World) -> None:
    world.run("web", "down")
    await world.visit()
    world.end("down")
    held = {row.identity: (row.status, row.digest) for row in world.github.table}
    posts = len(world.github.history)
    async with world.program(CLUSTER="renamed") as program:
        await world.github.until(lambda: len(world.github.history) == posts + 1, within=20)
        await program.until_said("reconciled")
        assert await program.stopped() == 0
        told = [line for line in program.stderr if "another organisation, environment" in line]
        assert len(told) == 1
        assert "records=2" in told[0]
        assert "simulated" in told[0]
    (post,) = world.github.history[posts:]
    assert {posted.identity.cluster for posted in post.deployments} == {"renamed"}
    now = {row.identity: (row.status, row.digest) for row in world.github.table}
    assert {identity: now[identity] for identity in held} == held
    # Back again, what was acknowledged before is known still.
    assert states(await world.visit()) == [gone("down")]


@pytest.mark.fault("L10")
async def test_in_one_namespace_only_the_names_of_others_are_left_alone(world: World) -> None:
    world.run("web", "down")
    world.run("web", "down", namespace="other")
    await world.visit()
    world.end("down")
    world.end("down", namespace="other")
    posts = len(world.github.history)
    async with world.program("-namespace", "shop") as program:
        await world.told("down", status="decommissioned")
        await program.until_said("reconciled")
        assert await program.stopped() == 0
        assert program.said.count("namespaces that are not watched") == 1
    assert states(world.github.history[posts:]) == [gone("down")]
    # All of them again: now the other one is gone, too.
    assert states(await world.visit()) == [gone("down", namespace="other")]
    world.judge()


async def test_namespaces_that_are_newly_left_out_are_decommissioned(world: World) -> None:
    world.run("web")
    world.run("web", "api", namespace="preview-1")
    await world.visit()
    scope = Scope(exclude_namespaces=("preview-*",))
    world.cluster.log.rescope(asyncio.get_running_loop().time(), scope)
    posts = await world.visit(EXCLUDE_NAMESPACES="preview-*")
    expected = [gone("web", namespace="preview-1"), gone("api", namespace="preview-1")]
    assert states(posts) == sorted(expected)
    assert await world.visit(EXCLUDE_NAMESPACES="preview-*") == []
    world.judge()


@pytest.mark.fault("L7")
@pytest.mark.parametrize(
    "others",
    [
        pytest.param(1, id="smaller"),
        pytest.param(4, id="larger"),  # what is posted from there stands in the ledger, too
    ],
)
async def test_behind_the_ledger_of_another_cluster_nothing_is_taken_for_gone(
    world: World, others: int
) -> None:
    """However often it starts there, and however much runs there by then."""
    world.run("web", "api", "db")
    await world.visit()
    held = world.github.deployed()
    async with RecordedCluster(token="other") as other:  # noqa: S106 - opens only this one
        for number in range(others):
            other.create(pod(f"other-{number}"))
        for _ in range(3):
            async with world.program(cluster=other) as program:
                await program.until_said("reconciled")
                assert await program.stopped() == 0
                told = [line for line in program.stderr if "kept for another cluster" in line]
                assert len(told) == 1
            assert held.items() <= world.github.deployed().items()
            assert world.posted == 3 + others
        # Its owner says that it is the same one: then what is absent is gone.
        async with world.program(cluster=other, LEDGER_ADOPT="true") as program:
            await world.told("db", status="decommissioned")
            await world.told("web", status="decommissioned")
            await world.told("api", status="decommissioned")
            assert await program.stopped() == 0
        posts = world.posted
        async with world.program(cluster=other) as program:
            await program.until_said("reconciled")
            assert "kept for another cluster" not in program.said
            assert await program.stopped() == 0
        assert world.posted == posts


async def test_one_namespace_of_another_cluster_does_not_clear_the_whole_ledger(
    world: World,
) -> None:
    """Nothing of the ledger is absent from a namespace that it has nothing of."""
    world.run("web", "api")
    await world.visit()
    held = world.github.deployed()
    async with RecordedCluster(token="other") as other:  # noqa: S106 - opens only this one
        for arguments in (("-namespace", "elsewhere"), ()):
            async with world.program(*arguments, cluster=other) as program:
                await program.until_said("reconciled")
                assert await program.stopped() == 0
                assert "kept for another cluster" in program.said
    assert world.github.deployed() == held


async def test_two_instances_for_two_namespaces_keep_out_of_each_others_way(world: World) -> None:
    for namespace in ("one", "two"):
        world.run("web", "down", namespace=namespace)

    async def start_both(expected: int) -> None:
        async with (
            world.program("-namespace", "one", LEDGER_PATH=str(world.folder / "one.db")) as one,
            world.program("-namespace", "two", LEDGER_PATH=str(world.folder / "two.db")) as two,
        ):
            await world.agreed()
            for program in (one, two):
                await program.until_said("reconciled")
                assert await program.stopped() == 0
                assert "namespaces that are not watched" not in program.said
        assert world.posted == expected

    await start_both(4)
    world.end("down", namespace="one")
    world.end("down", namespace="two")
    await start_both(6)
    await start_both(6)
    world.judge()
