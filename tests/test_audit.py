"""
`audit` as a process: cluster, ledger and GitHub held against each other over sockets.

What the three hold is made by the program itself (`once`), and then one of them is changed behind
its back.
"""

import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ledger_of
from tests.support.program import Program, tracker_run
from tests.support.simulated import (
    DIGEST,
    LATER,
    OTHER_DIGEST,
    World,
    assert_secret,
    made,
    name_of,
    pod,
)
from tracker.sandbox.script import RELEASED, Behaviour, answers, hangs

pytestmark = pytest.mark.timeout(180)  # several programs, one after the other

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def command(world: World, *arguments: str, **environ: str) -> Program:
    """Return a command, to be started, with a ledger and a rate that a test can wait for."""
    name, *rest = arguments
    kubeconfig = world.cluster.write_kubeconfig(world.folder / "kubeconfig")
    environ = {
        "LEDGER_PATH": str(world.folder / "ledger.db"),
        "GITHUB_RATE": "1000",
        "GITHUB_BURST": "1000",
        **environ,
    }
    return Program(
        tracker_run(name, "-kubeconfig", str(kubeconfig), *rest),
        environ=world.environ(**environ),
        folder=world.folder,
    )


async def audited(world: World, *arguments: str, code: int, **environ: str) -> Json:
    """Run an audit to its end and return what it found, names by deployment name."""
    async with command(world, "audit", "--output", "json", *arguments, **environ) as program:
        assert await program.ended() == code
    found: Json = json.loads("\n".join(program.stdout))
    found["names"] = {each["deployment_name"]: each for each in found["names"]}
    assert "Traceback" not in program.said
    assert_secret(program)
    return found


async def converged(world: World, *workloads: str) -> None:
    """Have workloads run and their records acknowledged."""
    for workload in workloads:
        world.cluster.create(pod(workload))
    async with command(world, "once") as program:
        assert await program.ended() == 0


def findings(found: Json) -> dict[str, str]:
    """Return what was found of each name."""
    return {name: each["finding"] for name, each in found["names"].items()}


def questions(world: World) -> list[str]:
    """Return the digests that GitHub was asked for."""
    gets = [each for each in world.github.history if each.method == "GET"]
    return [each.path.split("/")[4].replace("%3A", ":") for each in gets]


async def test_what_agrees_is_told_and_nothing_is_changed(world: World) -> None:
    await converged(world, "cart", "web")
    posts = len(world.github.posts())
    found = await audited(world, code=0)
    assert found["agree"] is True
    assert found["names"][name_of("web")] == {
        "deployment_name": name_of("web"),
        "digest": DIGEST,
        "cluster": "runs",
        "ledger_status": "deployed",
        "github": "a record",
        "finding": "agrees",
        "reason": "",
    }
    assert questions(world) == [DIGEST]
    assert len(world.github.posts()) == posts
    assert not (world.folder / "ledger.db.audit").exists()


async def test_each_difference_has_its_name(world: World) -> None:
    await converged(world, "agrees", "gone", "missing", "moves", "elsewhere")
    table = world.github.table
    rows = {row.deployment_name: row for row in table}
    table.forget(rows[name_of("missing")].identity)
    table.forget(rows[name_of("elsewhere")].identity)
    table.place(
        replace(rows[name_of("elsewhere")].identity, cluster="another"), like=name_of("agrees")
    )
    table.place(
        replace(rows[name_of("agrees")].identity, deployment_name="shop/other/app"),
        like=name_of("agrees"),
    )
    world.cluster.delete("pods", "shop", "gone-abc-0", grace_seconds=0)
    world.cluster.delete("pods", "shop", "moves-abc-0", grace_seconds=0)
    world.cluster.create(pod("moves", digest=OTHER_DIGEST, number=1))
    found = await audited(world, code=1)
    assert findings(found) == {
        name_of("agrees"): "agrees",
        name_of("gone"): "standing",
        name_of("missing"): "missing",
        name_of("moves"): "not posted",
        name_of("elsewhere"): "elsewhere",
        "shop/other/app": "unknown",
    }
    assert "another" in found["names"][name_of("elsewhere")]["reason"]
    async with command(world, "audit") as program:
        assert await program.ended() == 1
    printed = "\n".join(program.stdout)
    assert name_of("missing") in printed
    assert name_of("agrees") not in printed
    assert " delivery " not in program.said, "nothing is posted, so nothing is acknowledged"
    assert "the ledger's word" in printed


async def test_fix_posts_the_difference_again(world: World) -> None:
    await converged(world, "stays", "gone", "lost", "moves")
    world.github.table.wipe()
    world.cluster.delete("pods", "shop", "gone-abc-0", grace_seconds=0)
    world.cluster.delete("pods", "shop", "moves-abc-0", grace_seconds=0)
    world.cluster.create(pod("moves", digest=OTHER_DIGEST, number=1))
    found = await audited(world, "--fix", code=0)
    assert found["fixed"] is True
    assert findings(found) == {
        name_of("stays"): "missing",
        name_of("gone"): "standing",
        name_of("lost"): "missing",
        name_of("moves"): "not posted",
    }
    assert world.github.deployed() == {
        name_of("stays"): DIGEST,
        name_of("lost"): DIGEST,
        name_of("moves"): OTHER_DIGEST,
    }
    assert world.github.state(name_of("gone")) == ("decommissioned", DIGEST)
    found = await audited(world, code=0)
    assert found["agree"] is True


async def test_fix_leaves_alone_what_may_be_another_tracker_s(world: World) -> None:
    await converged(world, "web")
    (row,) = world.github.table
    other = replace(row.identity, deployment_name="shop/other/app")
    world.github.table.place(other, like=name_of("web"))
    posts = len(world.github.posts())
    found = await audited(world, "--fix", code=1)
    assert findings(found)["shop/other/app"] == "unknown"
    assert len(world.github.posts()) == posts


async def test_fix_posts_nothing_of_a_namespace_that_is_not_watched(world: World) -> None:
    await converged(world, "web")
    world.github.table.wipe()
    found = await audited(world, "-namespace", "another", "--fix", code=1)
    assert findings(found) == {name_of("web"): "missing"}
    assert found["fixed"] is False
    assert world.github.deployed() == {}


async def test_what_is_absent_by_another_cluster_s_ledger_is_not_judged(world: World) -> None:
    """Once, a name that nothing runs "agreed": what the tracker holds was taken for what stands."""
    await converged(world, "gone", "web")
    world.cluster.delete("pods", "shop", "gone-abc-0", grace_seconds=0)
    path = world.folder / "ledger.db"
    async with ledger_of(world.environ(), path, []) as ledger:
        await ledger.adopt_cluster("0" * 64)
    found = await audited(world, code=1)
    assert findings(found) == {name_of("gone"): "not judged", name_of("web"): "agrees"}
    assert found["agree"] is False
    gone = found["names"][name_of("gone")]
    assert (gone["cluster"], gone["github"]) == (None, "a record")
    assert "LEDGER_ADOPT" in gone["reason"]
    async with command(world, "audit") as program:
        assert await program.ended() == 1
    assert "2 names: 1 agrees, 1 not judged" in program.stdout
    assert "the ledger was kept for another cluster" in program.said
    found = await audited(world, "--fix", code=1)
    assert findings(found)[name_of("gone")] == "not judged"
    assert world.github.state(name_of("gone")) == ("deployed", DIGEST)


async def test_what_another_instance_may_watch_is_not_judged_and_no_difference(
    world: World,
) -> None:
    await converged(world, "web")
    found = await audited(world, "-namespace", "another", code=0)
    assert findings(found) == {name_of("web"): "not judged"}
    assert "NAMESPACE" in found["names"][name_of("web")]["reason"]
    async with command(world, "audit", "-namespace", "another") as program:
        assert await program.ended() == 0
    assert "1 names: 1 not judged" in program.stdout
    assert any("not judged: its namespace is not watched" in line for line in program.stdout)


async def test_an_answer_that_is_not_whole_makes_nothing_missing(world: World) -> None:
    await converged(world, "web")
    world.github.script(
        answers(200, body={"total_count": 1001, "deployment_records": []}),
        match=lambda exchange: exchange.method == "GET",
    )
    found = await audited(world, code=1)
    assert findings(found) == {name_of("web"): "not asked"}
    assert "not all" in found["names"][name_of("web")]["reason"]


async def test_fix_tells_when_github_does_not_take_it(world: World) -> None:
    await converged(world, "web")
    world.github.table.wipe()
    world.github.unknown.add(DIGEST)
    found = await audited(world, "--fix", code=1)
    assert found["fixed"] is False
    assert world.github.deployed() == {}


async def test_an_audit_may_look_while_the_tracker_runs_and_fix_may_not(world: World) -> None:
    world.cluster.create(pod("web"))
    ledger = str(world.folder / "ledger.db")
    async with world.program(LEDGER_PATH=ledger) as tracker:
        await world.told("web")
        await tracker.until(lambda: len(tracker.lines) == 1)
        assert findings(await audited(world, code=0)) == {name_of("web"): "agrees"}
        async with command(world, "audit", "--fix") as program:
            assert await program.ended() == 1
        assert "in use by another process" in program.said
        assert await tracker.stopped() == 0


async def test_without_a_ledger_cluster_and_github_are_held_against_each_other(
    world: World,
) -> None:
    await converged(world, "web")
    found = await audited(world, code=0, LEDGER_PATH="")
    assert found["names"][name_of("web")]["ledger_status"] is None
    world.cluster.create(pod("new"))
    found = await audited(world, code=1, LEDGER_PATH="")
    assert findings(found) == {name_of("web"): "agrees", name_of("new"): "missing"}


async def test_what_github_does_not_answer_is_not_asked_and_not_missing(world: World) -> None:
    await converged(world, "web")
    world.github.script(answers(500), match=lambda exchange: exchange.method == "GET")
    found = await audited(world, code=1)
    assert findings(found) == {name_of("web"): "not asked"}
    assert found["names"][name_of("web")]["github"] is None
    assert found["names"][name_of("web")]["reason"].startswith("HTTP 500")
    assert (world.folder / "ledger.db.audit").exists()


async def test_a_refused_token_ends_the_questions(world: World) -> None:
    for number in range(5):
        world.cluster.create(pod(f"app-{number}", digest=f"sha256:{number:064x}"))
    async with command(world, "once") as program:
        assert await program.ended() == 0
    world.github.tokens = {"another"}
    found = await audited(world, "--concurrency", "1", code=1)
    assert set(findings(found).values()) == {"not asked"}
    assert len(questions(world)) == 1


async def test_a_limit_pauses_the_audit(world: World) -> None:
    await converged(world, "web")
    script = world.github.script(
        answers(429, headers={"Retry-After": "1"}),
        match=lambda exchange: exchange.method == "GET",
        times=1,
    )
    assert findings(await audited(world, code=0)) == {name_of("web"): "agrees"}
    first, second = [each for each in world.github.history if each.method == "GET"]
    assert script.used == [first]
    assert second.arrived - first.arrived >= 1.0


MANY = 5000


@pytest.mark.timeout(300)
async def test_an_audit_of_five_thousand_goes_on_where_it_was_interrupted(world: World) -> None:
    for number in range(MANY):
        world.cluster.create(pod(f"app-{number}", digest=f"sha256:{number:064x}"))
    async with command(world, "once") as program:
        assert await program.ended(within=120) == 0
    assert len(world.github.table) == MANY
    arguments = ("audit", "--concurrency", "4")
    # The last of half of them hangs, so that the interruption comes in mid-audit.
    script = world.github.script(
        hangs(), match=lambda exchange: exchange.method == "GET" and len(questions(world)) > 2000
    )
    async with command(world, *arguments) as program:
        await world.github.until(lambda: len(script.used) == 4, within=120)
        program.send(signal.SIGINT)
        await program.until_said("told to stop")
        assert await program.ended() == 1
    assert "run it again to go on" in program.said
    assert "Traceback" not in program.said
    assert program.stdout == []
    before = len(questions(world))
    kept = before - len(script.used)
    world.github.heal()
    async with command(world, *arguments) as program:
        assert await program.ended(within=120) == 0
    assert f"going on with an audit answers={kept}" in program.said
    assert len(questions(world)) - before == MANY - kept
    assert set(questions(world)) == {f"sha256:{number:064x}" for number in range(MANY)}
    assert program.stdout[0] == f"{MANY} names: {MANY} agrees"
    assert not (world.folder / "ledger.db.audit").exists()


async def test_a_difference_that_an_earlier_answer_told_is_asked_for_again(world: World) -> None:
    await converged(world, "web")
    world.cluster.create(pod("new", digest=OTHER_DIGEST))
    async with command(world, "once") as program:
        assert await program.ended() == 0
    world.github.table.wipe()
    script = world.github.script(hangs(), match=lambda exchange: OTHER_DIGEST in exchange.path)
    async with command(world, "audit", "--concurrency", "1") as program:
        await world.github.until(lambda: bool(script.used), within=40)
        program.send(signal.SIGINT)
        assert await program.ended() == 1
    world.github.heal()
    # What the first answer told to be missing is mended meanwhile.
    await audited(world, "--fix", "--resume", str(world.folder / "another"), code=0)
    before = len(questions(world))
    found = await audited(world, code=0)
    assert set(findings(found).values()) == {"agrees"}
    assert sorted(questions(world)[before:]) == [DIGEST, OTHER_DIGEST]


async def test_a_pause_that_github_asked_of_the_tracker_is_kept_to(world: World) -> None:
    """Once, an audit beside it asked on, into the limit of both."""
    await converged(world, "web")
    world.cluster.create(pod("new", digest=OTHER_DIGEST))
    world.github.script(answers(429, headers={"Retry-After": "600"}))
    async with command(world, "run") as program:
        await program.until_said("sending paused")
        assert await program.stopped() == 0
    before = len(world.github.history)
    async with command(world, "audit") as program:
        await program.until_said("asking paused reason='GitHub asked the tracker to wait'")
        program.send(signal.SIGINT)
        assert await program.ended() == 1
    assert len(world.github.history) == before


async def test_a_file_that_is_no_audit_s_is_not_written_to(world: World) -> None:
    file = world.folder / "notes.txt"
    file.write_text("mine\n")
    async with command(world, "audit", "--resume", str(file)) as program:
        assert await program.ended() == 2
    assert "is not the file of an audit" in program.said
    assert file.read_text() == "mine\n"
    assert world.github.history == []


async def test_answers_of_another_identity_are_not_taken(world: World) -> None:
    await converged(world, "web")
    file = world.folder / "answers"
    script = world.github.script(
        answers(500), match=lambda exchange: exchange.method == "GET", times=3
    )
    await audited(world, "--resume", str(file), code=1)
    assert len(script.used) == 3
    found = await audited(world, "--resume", str(file), code=1, LOGICAL_ENVIRONMENT="other")
    assert findings(found) == {name_of("web"): "not posted"}
    assert not file.exists()


async def test_what_a_tracker_posts_meanwhile_is_no_difference(world: World) -> None:
    """An audit takes half an hour, and reads cluster and ledger at its beginning."""
    ledger = str(world.folder / "ledger.db")
    for workload in ("moves", "stays"):
        world.cluster.create(pod(workload))
    async with world.program(LEDGER_PATH=ledger) as tracker:
        await world.told("moves")
        await tracker.until(lambda: len(tracker.lines) == 2)
        # It answers with what it holds when it does.
        script = world.github.script(
            Behaviour(title="late", apply_wait=RELEASED),
            match=lambda exchange: exchange.method == "GET",
            times=1,
        )
        async with command(world, "audit", "--output", "json") as program:
            await world.github.until(lambda: bool(script.used), within=40)
            world.cluster.create(
                pod("moves", digest=OTHER_DIGEST, number=1, creationTimestamp=LATER)
            )
            world.cluster.delete("pods", "shop", "moves-abc-0", grace_seconds=0)
            await tracker.until(lambda: len(tracker.lines) == 3)
            script.release()
            assert await program.ended() == 0
        assert await tracker.stopped() == 0
    found = json.loads("\n".join(program.stdout))
    assert {each["finding"] for each in found["names"]} == {"agrees"}
    assert {each["digest"] for each in found["names"]} == {DIGEST, OTHER_DIGEST}
