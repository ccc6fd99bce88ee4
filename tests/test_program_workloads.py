"""
The whole program where it may read workloads: what they keep, what they say, what it costs.

Workloads are objects of the simulated API server, played by hand like the pods.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import World, image_of, made, name_of, pod, states
from tracker.sandbox.outages import Match, Refuse
from tracker.sandbox.script import hangs
from tracker.sandbox.stage import digest_of
from tracker.sandbox.table import Row

pytestmark = pytest.mark.timeout(120)  # several starts each; they are slow on a busy machine

PREFIX = "metadata.github.com/"
QUICK = {"tracker.reconcile.CALM_SECONDS": 0.1}

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def put(world: World, name: str, kind: str = "Deployment", **metadata: Any) -> Json:  # noqa: ANN401 - raw JSON
    """Create a workload in the namespace of the pods."""
    group = "batch/v1" if kind in {"Job", "CronJob"} else "apps/v1"
    return world.cluster.create(
        {
            "apiVersion": group,
            "kind": kind,
            "metadata": {"name": name, "namespace": "shop", **metadata},
            "spec": {},
        }
    )


def said(**words: str) -> dict[str, str]:
    """Return annotations; an underscore stands for a hyphen."""
    return {PREFIX + word.replace("_", "-"): text for word, text in words.items()}


def controlled_by(owner: Json) -> list[Json]:
    """Return an owner reference."""
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
        }
    ]


def row(world: World, workload: str) -> Row:
    """Return what GitHub holds of a workload."""
    (found,) = world.github.table.named(name_of(workload))
    return found


def told(world: World, workload: str) -> list[str]:
    """Return the states that GitHub was told of a workload, in order."""
    return [
        each.status
        for post in world.github.posts()
        for each in post.deployments
        if each.deployment_name == name_of(workload)
    ]


def asked(world: World, *verbs: str) -> list[tuple[str, str, str]]:
    """Return the requests for anything but pods, as (verb, resource, name)."""
    return [
        (each.verb, each.resource, each.name)
        for each in world.cluster.requests
        if each.resource not in {"", "pods"} and each.verb in verbs
    ]


async def _came_and_went(world: World, name: str) -> None:
    """Let a workload come and go: when it is decommissioned, what was due before was looked at."""
    world.run(name)
    await world.told(name)
    world.end(name)
    await world.told(name, status="decommissioned")


# What keeps a name.


@pytest.mark.fault("W9")
async def test_scaled_to_zero_stays_deployed_until_the_workload_is_deleted(world: World) -> None:
    for name in ("web", "api"):
        put(world, name)
    world.run("web", "api")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        await world.told("api")
        world.end("web")
        world.cluster.delete("deployments", "shop", "api")
        world.end("api")
        # They are confirmed by the same lists: when one is gone, the other is known to be kept.
        await world.told("api", status="decommissioned")
        assert told(world, "web") == ["deployed"]
        assert await program.stopped() == 0
    async with world.program(WORKLOADS="true") as program:
        await program.until_said("in step with the cluster")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed"], "kept over a restart"
    world.cluster.delete("deployments", "shop", "web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]
    world.judge()


async def test_what_is_deleted_after_it_was_scaled_to_zero_is_found_by_reconcile(
    world: World,
) -> None:
    put(world, "web")
    world.run("web", "other")
    async with world.program(
        WORKLOADS="true", RECONCILE_INTERVAL="10s", constants=QUICK
    ) as program:
        await world.told("web")
        await world.told("other")
        world.end("web")
        world.end("other")
        await world.told("other", status="decommissioned")
        world.cluster.delete("deployments", "shop", "web")
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


async def test_a_name_is_kept_by_the_workload_that_took_it_over_with_the_same_image(
    world: World,
) -> None:
    """Once, the workload that it was posted for was asked for, which is gone."""
    put(world, "web")
    world.run("web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        took_over = put(world, "web", "StatefulSet")
        world.cluster.create(pod("web", number=1, ownerReferences=controlled_by(took_over)))
        world.cluster.delete("deployments", "shop", "web")
        world.end("web")
        await _came_and_went(world, "one")
        world.end("web", number=1)
        await _came_and_went(world, "two")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed"]
    assert row(world, "web").status == "deployed"
    world.judge(converged=False)  # the cluster's log knows of pods alone


@pytest.mark.fault("P3")
@pytest.mark.parametrize("applied", [True, False])
async def test_a_send_that_was_cut_off_is_repeated_for_what_was_scaled_to_zero_meanwhile(
    world: World,
    applied: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """Once, nothing was posted for as long as no pod came, and the name stayed open."""
    put(world, "web")
    world.run("web")
    held = world.github.script(hangs(applied=applied), times=1)
    async with world.program(WORKLOADS="true") as program:
        await world.met(held)
        await world.killed(program)
    held.release()
    world.end("web")
    async with world.program(WORKLOADS="true") as program:
        await world.github.until(lambda: len(told(world, "web")) > 1, why="the second post")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "deployed"]
    assert row(world, "web").status == "deployed"
    async with world.program(WORKLOADS="true") as program:
        await program.until_said("in step with the cluster")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "deployed"]
    world.judge(converged=False)  # the cluster's log knows of pods alone


async def test_an_end_that_was_cut_off_is_not_kept_by_a_workload_that_came_back_without_pods(
    world: World,
) -> None:
    put(world, "web")
    world.run("web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        held = world.github.script(hangs(), times=1)
        world.cluster.delete("deployments", "shop", "web")
        world.end("web")
        await world.met(held)
        await world.killed(program)
    held.release()
    put(world, "web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned", "decommissioned"]
    world.judge()


async def test_a_workload_on_its_way_out_keeps_nothing(world: World) -> None:
    """As when it is deleted in the foreground: it waits for its pods, and they are gone."""
    put(world, "web", finalizers=["foregroundDeletion"])
    world.run("web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        world.cluster.delete("deployments", "shop", "web")
        left = world.cluster.get("deployments", "shop", "web")
        assert left is not None
        assert left["metadata"]["deletionTimestamp"]
        world.end("web")
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


async def test_pods_that_are_left_behind_stay_deployed_until_they_go(world: World) -> None:
    put(world, "web")
    world.run("web", "api")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        await world.told("api")
        world.cluster.delete("deployments", "shop", "web", propagation="Orphan")
        world.end("api")
        await world.told("api", status="decommissioned")
        assert told(world, "web") == ["deployed"]
        world.end("web")
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


async def test_a_cronjob_stands_for_as_long_as_it_is_there(world: World) -> None:
    cronjob = put(world, "report", "CronJob")
    job = put(world, "by-hand", "Job", ownerReferences=controlled_by(cronjob))
    run = pod("report", ownerReferences=controlled_by(job))
    world.cluster.create(run)
    async with world.program(WORKLOADS="true") as program:
        await world.told("report")
        world.cluster.delete("jobs", "shop", "by-hand")
        world.end("report")
        world.run("other")
        await world.told("other")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert told(world, "report") == ["deployed"]
        assert await program.stopped() == 0
    world.cluster.delete("cronjobs", "shop", "report")
    async with world.program(WORKLOADS="true") as program:
        await world.told("report", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "report") == ["deployed", "decommissioned"]
    assert {each.deployment_name for each in world.github.table} == {
        name_of("report"),
        name_of("other"),
    }, "the Job has no name of its own"


async def test_what_was_kept_is_held_by_a_start_that_can_not_read_it(world: World) -> None:
    """The ledger knows no more than that it stands: unread is not gone."""
    put(world, "web")
    world.run("web")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        assert await program.stopped() == 0
    world.end("web")
    refused = world.cluster.inject(Refuse(code=503), match=Match(resource="deployments"))
    async with world.program(WORKLOADS="true") as program:
        await program.until_said("in step with the cluster")
        asked_for = refused.hits
        # Once by a reconcile, once for the absence.
        await program.until(lambda: refused.hits >= asked_for + 2)
        assert told(world, "web") == ["deployed"]
        world.cluster.heal()
        await program.until_said("workloads can be read again")
        world.run("other")
        await world.told("other")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed"]


def with_proxy(made: Json) -> Json:
    """Return a pod with a second container."""
    for key in ("spec", "status"):
        word = "containers" if key == "spec" else "containerStatuses"
        (app,) = made[key][word]
        made[key][word] = [app, app | {"name": "proxy"}]
    return made


async def test_a_container_that_is_dropped_while_no_pod_runs_goes_with_the_next_pods(
    world: World,
) -> None:
    """A Deployment that is recreated has no pods for a while, and keeps all names until it has."""
    proxy = "shop/web/proxy"
    put(world, "web")
    world.cluster.create(with_proxy(pod("web")))
    world.run("other")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        await world.told("other")
        await world.github.until(lambda: world.github.state(proxy) is not None, within=25, why="it")
        world.end("web")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert told(world, "web") == ["deployed"]
        world.run("web", version="2")
        await world.told("web", "2")
        await world.github.until(
            lambda: world.github.state(proxy) == ("decommissioned", digest_of(image_of("web"))),
            within=25,
            why="the dropped container, long before the next reconcile",
        )
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "deployed"]
    world.judge()


async def test_what_is_kept_is_not_under_another_template(world: World) -> None:
    put(world, "web")
    world.run("web", "other")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        await world.told("other")
        world.end("web")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert told(world, "web") == ["deployed"]
        assert await program.stopped() == 0
    async with world.program(WORKLOADS="true", DN_TEMPLATE="{{deploymentName}}.x") as program:
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param({"EXCLUDE_NAMESPACES": "sh*"}, id="namespace"),
        pytest.param({"IMAGES": "!ghcr.io/acme/*"}, id="image"),
        pytest.param({}, id="annotation"),
    ],
)
async def test_what_is_kept_is_not_when_it_is_newly_left_out(
    world: World, wish: dict[str, str]
) -> None:
    put(world, "web")
    world.run("web", "other")
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        await world.told("other")
        world.end("web")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed"]
    if not wish:
        world.cluster.patch(
            "deployments", "shop", "web", {"metadata": {"annotations": said(ignore="true")}}
        )
    more: dict[str, Any] = dict(wish)
    async with world.program(WORKLOADS="true", **more) as program:
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


@pytest.mark.fault("W10")
async def test_what_can_not_be_read_is_held_and_told_and_posted_all_the_same(
    world: World,
) -> None:
    put(world, "web")
    world.run("web")
    refused = world.cluster.inject(Refuse(code=403), match=Match(resource="deployments"))
    async with world.program(WORKLOADS="true") as program:
        await world.told("web")
        world.run("rollout-of-argo")
        await world.told("rollout-of-argo")
        world.cluster.delete("deployments", "shop", "web")
        world.end("web")
        await program.until_said("workloads can't be read")
        held = refused.hits
        await program.until(lambda: refused.hits > held)
        assert told(world, "web") == ["deployed"]
        world.cluster.heal()
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param({"EXCLUDE_NAMESPACES": "sh*"}, id="namespace"),
        pytest.param({"IMAGES": "!ghcr.io/acme/*"}, id="image"),
        pytest.param({"DN_TEMPLATE": "{{deploymentName}}.x"}, id="template"),
    ],
)
async def test_a_cronjob_between_its_runs_goes_when_it_is_newly_left_out(
    world: World, wish: dict[str, str]
) -> None:
    run = controlled_by(put(world, "report-28421910", "Job"))
    world.cluster.create(
        pod("report", ownerReferences=run, creationTimestamp="2024-01-15T10:30:00Z")
    )
    async with world.program() as program:
        await world.told("report")
        world.end("report")
        world.run("other")
        await world.told("other")
        world.end("other")
        await world.told("other", status="decommissioned")
        assert told(world, "report") == ["deployed"], "held for the next run"
        assert await program.stopped() == 0
    more: dict[str, Any] = dict(wish)
    async with world.program(**more) as program:
        await world.told("report", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "report") == ["deployed", "decommissioned"]


# What is said about a deployment.


@pytest.mark.fault("W11")
async def test_annotations_stand_in_the_record_and_changes_of_them_follow(world: World) -> None:
    put(
        world, "web", annotations=said(team="workload", tier="gold", runtime_risks="sensitive-data")
    )
    world.cluster.create(pod("web", annotations=said(team="pod", github_repository="shop")))
    async with world.program(
        WORKLOADS="true", RECONCILE_INTERVAL="10s", constants=QUICK
    ) as program:
        await world.told("web")
        found = row(world, "web")
        assert found.tags == (("team", "pod"), ("tier", "gold"))
        assert found.runtime_risks == ("sensitive-data",)
        assert found.github_repository == "shop"
        assert world.posted == 1

        patch: Json = {"metadata": {"annotations": said(team="renamed")}}
        world.cluster.patch("pods", "shop", "web-1-0", patch)
        await world.github.until(
            lambda: row(world, "web").tags == (("team", "renamed"), ("tier", "gold")),
            within=5,
            why="the pod's own, at once",
        )
        gone: Json = {
            "metadata": {"annotations": {PREFIX + "tier": None, PREFIX + "runtime-risks": None}}
        }
        world.cluster.patch("deployments", "shop", "web", gone)
        await world.github.until(
            lambda: (
                row(world, "web").tags == (("team", "renamed"),)
                and row(world, "web").runtime_risks == ()
            ),
            within=25,
            why="the workload's, with the next reconcile",
        )
        assert world.posted == 3
        payload = world.github.posts()[-1].payload
        (last,) = payload.get("deployments", [payload])
        assert last["runtime_risks"] == [], "said to be empty, not left out"
        assert await program.stopped() == 0


async def test_a_new_workload_is_asked_for_once_and_first_posted_with_what_it_says(
    world: World,
) -> None:
    async with world.program(WORKLOADS="true") as program:
        await program.until_said("in step with the cluster")
        world.cluster.requests.clear()
        put(world, "web", annotations=said(team="x"))
        for number in range(5):
            world.cluster.create(pod("web", number=number))
        await world.told("web")
        assert row(world, "web").tags == (("team", "x"),)
        assert world.posted == 1
        assert asked(world, "get", "list") == [("get", "deployments", "web")]
        assert await program.stopped() == 0


async def test_a_workload_that_asks_to_be_ignored_is_not_recorded_any_more(world: World) -> None:
    put(world, "web")
    world.run("web")
    async with world.program(
        WORKLOADS="true", RECONCILE_INTERVAL="10s", constants=QUICK
    ) as program:
        await world.told("web")
        world.cluster.patch(
            "deployments", "shop", "web", {"metadata": {"annotations": said(ignore="true")}}
        )
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0
    assert told(world, "web") == ["deployed", "decommissioned"]


async def test_annotations_of_pods_count_without_the_right_to_read_workloads(world: World) -> None:
    put(world, "web", annotations=said(tier="gold"))
    world.cluster.create(pod("web", annotations=said(team="x", tag="\x1b[31m")))
    async with world.program() as program:
        await world.told("web")
        assert row(world, "web").tags == (("team", "x"),)
        assert await program.stopped() == 0
        assert program.said.count("can't be used") == 1
        assert "tag-invalid=1" in program.said
    assert asked(world, "get", "list", "watch") == []


async def test_images_and_repositories_by_globs(world: World) -> None:
    world.run("web", "debug")
    async with world.program(
        IMAGES="ghcr.io/acme/*,!*/debug", REPOSITORIES="ghcr.io/*/web=shop"
    ) as program:
        await world.told("web")
        await program.until_said("excluded-image=1")
        assert await program.stopped() == 0
    assert row(world, "web").github_repository == "shop"
    assert [each.deployment_name for each in world.github.table] == [name_of("web")]
    # Newly left out is a wish: what stands is taken back.
    async with world.program(IMAGES="!*/web") as program:
        await world.told("debug")
        await world.told("web", status="decommissioned")
        assert await program.stopped() == 0


# What it costs.

WORKLOADS, PODS = 500, 2000


async def test_two_thousand_pods_of_five_hundred_workloads_take_a_list_of_each_kind(
    world: World,
) -> None:
    for number in range(WORKLOADS):
        name = f"web-{number:03}"
        put(world, name, annotations=said(team=f"team-{number % 7}"))
        put(world, f"{name}-1", "ReplicaSet")
        for copy in range(PODS // WORKLOADS):
            world.cluster.create(pod(name, number=copy))
    async with world.program(WORKLOADS="true", GITHUB_RATE="1000", GITHUB_BURST="1000") as program:
        await world.github.until(
            lambda: len(world.github.table) == WORKLOADS, within=60, why="all of them"
        )
        # The pass that follows each list of the watch is for the pods.
        await program.until_said("reconciled")
        assert await program.stopped() == 0
    assert len(asked(world, "list")) <= 8
    assert asked(world, "get") == []
    assert len(states(world.github.posts())) == WORKLOADS
    assert {each.tags for each in world.github.table} == {
        (("team", f"team-{number}"),) for number in range(7)
    }


async def test_a_thousand_replicas_that_are_rolled_post_once_per_container(world: World) -> None:
    replicas = 1000

    def both(version: str) -> bool:
        state = ("deployed", digest_of(image_of("web", version)))
        return all(world.github.state(f"shop/web/{each}") == state for each in ("app", "proxy"))

    for number in range(replicas):
        world.cluster.create(with_proxy(pod("web", number=number)))
    async with world.program() as program:
        await world.github.until(lambda: both("1"), within=25, why="both containers")
        for number in range(replicas):
            later = pod("web", "2", number=number, creationTimestamp="2100-01-01T00:00:00Z")
            world.cluster.create(with_proxy(later))
            world.end("web", number=number)
        await world.github.until(lambda: both("2"), within=25, why="both containers")
        assert await program.stopped() == 0
    assert states(world.github.posts()) == sorted(
        (f"shop/web/{name}", "deployed", digest_of(image_of("web", version)))
        for version in "12"
        for name in ("app", "proxy")
    )
