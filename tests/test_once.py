"""
`once` and the dry runs, as a process against a simulated cluster and a simulated GitHub.

What the operator does in the end `once` does at once; a dry run does all of it but the sending.
"""

import base64
import hashlib
import json
import os
import pty
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.program import Program, tracker_run
from tests.support.simulated import (
    DIGEST,
    IN_STEP,
    LATER,
    OTHER_DIGEST,
    World,
    assert_secret,
    made,
    name_of,
    of,
    pod,
)
from tracker.sandbox.script import answers, hangs

pytestmark = pytest.mark.timeout(180)  # several programs, one after the other

WOULD = re.compile(
    r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\] WOULD POST name=ghcr\.io/acme/app"
    r" deployment_name=(?P<name>\S+) digest=(?P<digest>sha256:[0-9a-f]{64})"
    r" status=(?P<status>deployed|decommissioned)"
)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


def once(world: World, *arguments: str, **environ: str) -> Program:
    """Return `once`, to be started; its flags come after the command's name."""
    return Program(
        command_of(world, *arguments), environ=environ_of(world, **environ), folder=world.folder
    )


def command_of(world: World, *arguments: str) -> list[str]:
    """Return the command line of `once`."""
    kubeconfig = world.cluster.write_kubeconfig(world.folder / "kubeconfig")
    return tracker_run("once", "-kubeconfig", str(kubeconfig), *arguments)


def environ_of(world: World, **environ: str) -> dict[str, str]:
    """Return the environment of `once`, with a ledger."""
    return world.environ(**{"LEDGER_PATH": str(world.folder / "ledger.db"), **environ})


async def converged(world: World, *arguments: str, **environ: str) -> Program:
    """Run `once` to its end, which is a good one."""
    async with once(world, *arguments, **environ) as program:
        assert await program.ended() == 0
    assert "everything is true" in program.said
    return program


def end(world: World, workload: str, number: int = 0) -> None:
    """Delete one of a workload's pods, at once."""
    world.cluster.delete("pods", "shop", f"{workload}-abc-{number}", grace_seconds=0)


def ledger_hash(world: World) -> str:
    """Return what tells one state of the ledger's file from another."""
    return hashlib.sha256((world.folder / "ledger.db").read_bytes()).hexdigest()


def would(program: Program) -> dict[str, tuple[str, str]]:
    """Return (status, digest) by name of what a dry run would post."""
    found = {}
    for text in program.stdout:
        match = WOULD.fullmatch(text)
        assert match is not None, text
        found[match["name"]] = (match["status"], match["digest"])
    return found


# Once.


async def test_once_posts_what_runs_and_ends(world: World) -> None:
    for workload in ("cart", "web"):
        world.cluster.create(pod(workload))
    program = await converged(world)
    assert world.github.deployed() == {name_of("cart"): DIGEST, name_of("web"): DIGEST}
    assert [line.state for line in program.lines] == [("deployed", DIGEST)] * 2
    assert world.cluster.watches == 0
    assert_secret(program)
    again = await converged(world)
    assert again.stdout == []
    assert len(world.github.posts()) == 1


async def test_once_takes_back_what_has_gone_since_the_last_time(world: World) -> None:
    world.cluster.create(pod("gone"))
    world.cluster.create(pod("stays"))
    await converged(world)
    end(world, "gone")
    program = await converged(world)
    assert [line.state for line in program.lines] == [("decommissioned", DIGEST)]
    assert world.github.deployed() == {name_of("stays"): DIGEST}


async def test_once_waits_for_what_fails_and_passes(world: World) -> None:
    world.cluster.create(pod("web"))
    world.github.script(answers(503), times=2)
    await converged(world)
    assert world.github.deployed() == {name_of("web"): DIGEST}


async def test_once_tells_what_github_does_not_know(world: World) -> None:
    world.cluster.create(pod("known"))
    world.cluster.create(pod("unknown", digest=OTHER_DIGEST))
    world.github.unknown.add(OTHER_DIGEST)
    async with once(world) as program:
        assert await program.ended() == 1
    assert world.github.deployed() == {name_of("known"): DIGEST}
    assert "not everything is true" in program.said
    (told,) = [line for line in program.stderr if line.startswith(name_of("unknown"))]
    assert "not_found" in told
    assert "Traceback" not in program.said


async def test_once_gives_up_when_its_time_is_over(world: World) -> None:
    world.cluster.create(pod("web"))
    script = world.github.script(hangs())
    async with once(world, "--timeout", "3s", DRAIN_TIMEOUT="100ms") as program:
        await world.github.until(lambda: bool(script.used), within=40)
        assert await program.ended() == 1
    assert "out of time" in program.said
    assert "Traceback" not in program.said


async def test_once_does_not_wait_for_a_pause_that_outlasts_its_time(world: World) -> None:
    world.cluster.create(pod("web"))
    world.github.script(answers(429, headers={"Retry-After": "3600"}))
    async with once(world) as program:
        assert await program.ended() == 1
    assert "GitHub asks for a longer pause" in program.said


async def test_a_signal_ends_once_in_order(world: World) -> None:
    world.cluster.create(pod("web"))
    script = world.github.script(hangs(applied=True), times=1)
    async with once(world) as program:
        await world.github.until(lambda: bool(script.used), within=40)
        program.send(signal.SIGTERM)
        await program.until_said("told to stop")
        world.github.release()
        assert await program.ended() == 1
    assert [line.state for line in program.lines] == [("deployed", DIGEST)]
    assert "stopped with everything sent" in program.said
    assert "Traceback" not in program.said


async def test_a_second_signal_ends_once_at_once(world: World) -> None:
    world.cluster.create(pod("web"))
    script = world.github.script(hangs())
    async with once(world, DRAIN_TIMEOUT="1h") as program:
        await world.github.until(lambda: bool(script.used), within=40)
        program.send(signal.SIGINT)
        await program.until_said("told to stop")
        program.send(signal.SIGINT)
        assert await program.ended() == 1
    assert "stopped at once, as told twice" in program.said
    assert "Traceback" not in program.said


async def test_once_with_the_cluster_away_ends_with_its_time(world: World) -> None:
    program = once(world, "--timeout", "2s")
    await world.cluster.pause()
    async with program:
        assert await program.ended() == 1
    assert world.github.history == []
    assert "pods can't be listed" in program.said
    assert "Traceback" not in program.said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param(("--timeout", "soon"), "--timeout: not a duration", id="timeout"),
        pytest.param(("--yes",), "--yes:", id="yes-to-nothing"),
        pytest.param(("-workers", "none"), "-workers", id="setting"),
    ],
)
async def test_what_can_t_be_used_is_told_before_anything_is_connected_to(
    world: World, arguments: tuple[str, ...], told: str
) -> None:
    async with once(world, *arguments) as program:
        assert await program.ended() == 2
    assert told in program.said
    assert world.github.history == []
    assert world.cluster.requests == []


async def test_once_keeps_what_is_scaled_to_zero_where_it_may_read_workloads(
    world: World,
) -> None:
    for name in ("gone", "scaled"):
        world.cluster.create(pod(name))
        world.cluster.create(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {},
            }
        )
    await converged(world, WORKLOADS="true")
    for name in ("gone", "scaled"):
        end(world, name)
    world.cluster.delete("deployments", "shop", "gone")
    await converged(world, WORKLOADS="true")
    assert world.github.deployed() == {name_of("scaled"): DIGEST}


async def test_once_leaves_to_a_cronjob_what_it_holds_between_its_runs(world: World) -> None:
    """Without the right to read it, only a day without a run tells that it is gone."""
    started = datetime.now(tz=UTC)
    run = pod("nightly", creationTimestamp=started.isoformat())
    run["metadata"]["labels"] = {}
    (owner,) = run["metadata"]["ownerReferences"]
    minutes = int(started.timestamp() // 60)
    owner |= {"apiVersion": "batch/v1", "kind": "Job", "name": f"nightly-{minutes}"}
    world.cluster.create(run)
    await converged(world)
    assert world.github.deployed() == {name_of("nightly"): DIGEST}
    end(world, "nightly")
    await converged(world)
    assert world.github.deployed() == {name_of("nightly"): DIGEST}


# Dry runs.


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_once_as_a_dry_run_says_what_it_would_post_and_sends_nothing(
    world: World, log_format: str
) -> None:
    world.cluster.create(pod("web"))
    async with once(world, "--dry-run", LOG_FORMAT=log_format) as program:
        assert await program.ended() == 0
    assert world.github.history == []
    assert not (world.folder / "ledger.db").exists()
    (text,) = program.stdout
    if log_format == "json":
        facts = json.loads(text)
        assert facts.pop("time")
        assert facts == {
            "outcome": "WOULD",
            "action": "POST",
            "name": "ghcr.io/acme/app",
            "deployment_name": name_of("web"),
            "digest": DIGEST,
            "status": "deployed",
        }
    else:
        assert would(program) == {name_of("web"): ("deployed", DIGEST)}


async def test_a_dry_run_begins_with_the_ledger_and_leaves_it_alone(world: World) -> None:
    world.cluster.create(pod("gone"))
    world.cluster.create(pod("stays"))
    await converged(world)
    end(world, "gone")
    world.cluster.create(pod("new"))
    before, sent = ledger_hash(world), len(world.github.history)
    async with once(world, "--dry-run") as program:
        assert await program.ended() == 0
    assert would(program) == {
        name_of("gone"): ("decommissioned", DIGEST),
        name_of("new"): ("deployed", DIGEST),
    }
    assert ledger_hash(world) == before
    assert len(world.github.history) == sent
    # Once, it told how many were acknowledged, with what it only thought to be.
    assert " delivery " not in program.said
    assert "everything would be true" in program.said


async def test_a_dry_run_may_look_while_the_tracker_runs(world: World) -> None:
    ledger = str(world.folder / "ledger.db")
    world.cluster.create(pod("web"))
    async with world.program(LEDGER_PATH=ledger) as tracker:
        await world.told("web")
        await tracker.until(lambda: len(tracker.lines) == 1)
        async with once(world, "--dry-run") as program:
            assert await program.ended() == 0
        assert program.stdout == []
        assert await tracker.stopped() == 0
    assert len(world.github.history) == 1


async def test_a_dry_run_asks_for_no_token(world: World) -> None:
    """A GitHub App's is minted by a request that writes nothing, but leaves all the same."""
    world.cluster.create(pod("web"))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    async with once(
        world,
        "--dry-run",
        API_TOKEN="",
        GH_APP_ID="12",
        GH_INSTALL_ID="34",
        GH_APP_PRIVATE_KEY=base64.b64encode(private).decode(),
    ) as program:
        assert await program.ended() == 0
    assert would(program) == {name_of("web"): ("deployed", DIGEST)}
    assert world.github.history == []


async def test_run_as_a_dry_run_follows_the_cluster_and_sends_nothing(world: World) -> None:
    world.cluster.create(pod("web"))
    async with world.program("--dry-run") as program:
        await program.until(lambda: len(program.stdout) == 1)
        # A rollout: one update, then the end of the workload.
        newer = pod("web", digest=OTHER_DIGEST, number=1, creationTimestamp=LATER)
        world.cluster.create(newer)
        await program.until(lambda: len(program.stdout) == 2)
        for number in range(2):
            end(world, "web", number)
        await program.until(lambda: len(program.stdout) == 3)
        assert await program.stopped() == 0
    told = [WOULD.fullmatch(text) for text in program.stdout]
    assert [(match["status"], match["digest"]) for match in told if match] == [
        ("deployed", DIGEST),
        ("deployed", OTHER_DIGEST),
        ("decommissioned", OTHER_DIGEST),
    ]
    assert IN_STEP in program.said
    assert world.github.history == []
    assert "Traceback" not in program.said


# Retiring.


async def deployed(world: World, *workloads: str) -> None:
    """Have workloads run and their records acknowledged."""
    for workload in workloads:
        world.cluster.create(pod(workload))
    await converged(world)


async def test_retire_takes_back_all_that_stands_and_a_later_run_posts_it_again(
    world: World,
) -> None:
    await deployed(world, "cart", "web")
    await world.cluster.pause()  # it may be gone by then
    async with once(world, "--retire", "--yes") as program:
        assert await program.ended() == 0
    assert [line.state for line in program.lines] == [("decommissioned", DIGEST)] * 2
    assert world.github.deployed() == {}
    async with once(world, "--retire", "--yes") as again:
        assert await again.ended() == 0
    assert "stands: there is nothing to retire" in again.said
    await world.cluster.resume()
    await converged(world)
    assert world.github.deployed() == {name_of("cart"): DIGEST, name_of("web"): DIGEST}


async def test_retire_as_a_dry_run_says_what_it_would_take_back(world: World) -> None:
    await deployed(world, "web")
    before, sent = ledger_hash(world), len(world.github.history)
    async with once(world, "--retire", "--dry-run") as program:
        assert await program.ended() == 0
    assert would(program) == {name_of("web"): ("decommissioned", DIGEST)}
    assert ledger_hash(world) == before
    assert len(world.github.history) == sent


async def test_retire_does_not_call_it_well_when_records_of_another_identity_stand(
    world: World,
) -> None:
    """It is the likely slip of a rename, and the volume with the ledger is deleted next."""
    await deployed(world, "cart", "web")
    async with once(world, "--retire", "--yes", CLUSTER="renamed") as program:
        assert await program.ended() == 1
    assert "nothing of acme/test/renamed at" in program.said
    assert "2 records of acme/test/simulated at" in program.said
    assert len(world.github.deployed()) == 2
    # Whatever is done about the records of its own.
    await converged(world, CLUSTER="renamed")
    async with once(world, "--retire", "--yes", CLUSTER="renamed") as program:
        assert await program.ended() == 1
    assert "2 records of acme/test/simulated at" in program.said
    assert {row.identity.cluster for row in world.github.table if row.status == "deployed"} == {
        "simulated"
    }
    async with once(world, "--retire", "--yes") as program:
        assert await program.ended() == 0
    async with once(world, "--retire", "--yes", CLUSTER="renamed") as program:
        assert await program.ended() == 0, "nothing stands any more, of anybody"
    assert "test/simulated" not in program.said


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"])
async def test_retire_without_anybody_to_ask_does_nothing(world: World, stdin: str) -> None:
    await deployed(world, "web")
    command = ["sh", "-c", f'exec "$@" {stdin}', "sh", *command_of(world, "--retire")]
    async with Program(command, environ=environ_of(world), folder=world.folder) as program:
        assert await program.ended() == 1
    assert "say --yes" in program.said
    assert "Traceback" not in program.said
    assert world.github.deployed() == {name_of("web"): DIGEST}


@pytest.mark.parametrize(
    ("reply", "code", "left"),
    [
        pytest.param(b"y\n", 0, {}, id="granted"),
        pytest.param(b"n\n", 1, {name_of("web"): DIGEST}, id="declined"),
        pytest.param(b"\n", 1, {name_of("web"): DIGEST}, id="not-answered"),
        pytest.param(b"\x04", 1, {name_of("web"): DIGEST}, id="closed"),
    ],
)
async def test_retire_asks_whoever_is_at_the_terminal(
    world: World, reply: bytes, code: int, left: dict[str, str]
) -> None:
    await deployed(world, "web")
    ours, theirs = pty.openpty()
    try:
        command, environ = command_of(world, "--retire"), environ_of(world)
        async with Program(command, environ=environ, folder=world.folder, stdin=theirs) as program:
            os.write(ours, reply)
            assert await program.ended() == code
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Decommission 1 record of acme/test/simulated at 127.0.0.1" in program.said
    assert "Traceback" not in program.said
    assert world.github.deployed() == left


async def test_retire_needs_a_ledger(world: World) -> None:
    async with once(world, "--retire", "--yes", LEDGER_PATH="") as program:
        assert await program.ended() == 2
    assert "LEDGER_PATH is empty" in program.said
    assert len(program.stderr) == 1
    async with once(world, "--retire", "--yes") as program:
        assert await program.ended() == 2
    assert "there is no ledger" in program.said


async def test_retire_refuses_while_the_tracker_has_the_ledger(world: World) -> None:
    world.cluster.create(pod("web"))
    async with world.program(LEDGER_PATH=str(world.folder / "ledger.db")) as tracker:
        await world.told("web")
        async with once(world, "--retire", "--yes") as program:
            assert await program.ended() == 1
        assert "in use by another process" in program.said
        assert await tracker.stopped() == 0
    assert world.github.deployed() == {name_of("web"): DIGEST}


async def test_retire_tells_what_github_refuses(world: World) -> None:
    await deployed(world, "cart", "web")
    world.github.script(answers(403), match=of(name_of("web")))
    async with once(world, "--retire", "--yes", BULK_CLUSTER_SYNC="false") as program:
        assert await program.ended() == 1
    assert world.github.deployed() == {name_of("web"): DIGEST}
    assert "not everything is true" in program.said
