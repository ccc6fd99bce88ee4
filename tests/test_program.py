"""
The whole program against a simulated cluster and a simulated GitHub: how it starts and ends.

Nothing of it is replaced: a process is started as anybody would start it, and what is looked at is
what it says, what it sends and how it ends.
"""

import json
import signal
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.program import LINE, Program, kopf_run, tracker_run
from tests.support.simulated import (
    DIGEST,
    TOKEN,
    World,
    assert_secret,
    made,
    name_of,
    of,
    pod,
)
from tracker.sandbox.github import SimulatedGitHub
from tracker.sandbox.script import answers, hangs

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Give a test a world of its own."""
    async with made(tmp_path) as world:
        yield world


# How it starts and ends.


@pytest.mark.fault("P15")
async def test_every_mistake_in_the_settings_is_told_before_anything_is_connected_to(
    world: World,
) -> None:
    wrong = {
        "ORG": "no such org",
        "BASE_URL": "ftp://github.example",
        "CLUSTER": "a/b",
        "DN_TEMPLATE": "{{pod}}",
        "API_TOKEN": f"{TOKEN} and more",
        "DECOMMISSION_DELAY": "soon",
        "LOG_LEVEL": "loud",
    }
    async with world.program("-workers", "none", **wrong) as program:
        assert await program.ended() == 2
    assert program.stdout == []
    assert len(program.stderr) == len(wrong) + 1
    for setting in (*wrong, "-workers"):
        assert sum(setting in line for line in program.stderr) == 1
    assert TOKEN not in program.said
    assert world.github.history == []
    assert world.cluster.requests == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param("{", "kubeconfig", id="no-yaml"),
        pytest.param("clusters: words\nusers: 7\ncontexts: {a: b}\n", "", id="no-lists"),
        pytest.param(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts:\n"
            "- {name: a, context: {cluster: b, user: c}}\n",
            "kubeconfig",
            id="no-such-cluster",
        ),
    ],
)
async def test_without_credentials_for_the_cluster_it_says_so_and_ends(
    world: World, content: str | None, told: str
) -> None:
    path = world.folder / "broken-kubeconfig"
    if content is not None:
        path.write_text(content)
    command = tracker_run("-kubeconfig", str(path))
    async with Program(command, environ=world.environ(), folder=world.folder) as program:
        assert await program.ended() == 2
    assert program.stdout == []
    last = program.stderr[-1]
    assert last.startswith("deployment-tracker: ")
    assert str(path) in last
    assert told in last
    assert "Traceback" not in program.said
    assert world.github.history == []


@pytest.mark.fault("G12")
async def test_with_github_down_at_the_start_it_stays_up_and_delivers_later(world: World) -> None:
    names = [f"early-{number}" for number in range(3)]
    for each in names:
        world.cluster.create(pod(each))
    await world.github.down()
    async with world.program(BULK_CLUSTER_SYNC="false") as program:
        await program.until(lambda: len(program.lines) == len(names))
        assert {line.error for line in program.lines} == {"connection refused"}
        # What is told next is not the next failure of the same kind, but what is new about it.
        world.github.script(answers(503), match=of(name_of("early-0")), times=2)
        await world.github.up()
        for each in names:
            await world.told(each)
        assert await program.stopped() == 0
    for each in names:
        told = [(line.outcome, line.error) for line in program.about(name_of(each))]
        reasons = ["connection refused"]
        if each == "early-0":
            reasons.append("HTTP 503 Scripted by the sandbox")
        assert told == [*(("FAILED", reason) for reason in reasons), ("OK", None)]
    assert "Traceback" not in program.said


@pytest.mark.fault("K16")
async def test_with_the_cluster_down_at_the_start_it_stays_up_and_delivers_later(
    world: World,
) -> None:
    world.cluster.create(pod("early"))
    program = world.program()
    await world.cluster.pause()
    async with program:
        await program.until_said("pods can't be listed")
        assert world.github.history == []
        await world.cluster.resume()
        await world.told("early")
        assert await program.stopped() == 0
    assert "Traceback" not in program.said


async def test_of_pods_in_a_list_one_handler_tells_and_of_changes_both(world: World) -> None:
    """The list of a large cluster takes Kopf twice as long when it calls two for each pod."""
    world.cluster.create(pod("listed"))
    async with world.program(LOG_LEVEL="debug") as program:
        await world.told("listed")
        assert "'_on_event' is invoked" in program.said
        assert "'_on_phase/status.phase' is invoked" not in program.said
        world.cluster.create(pod("started"))
        await world.told("started")
        await program.until_said("'_on_phase/status.phase' is invoked")
        assert await program.stopped() == 0
    assert "Traceback" not in program.said


@pytest.mark.fault("W12")
@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param(
            {"IMAGES": "ghcr.io/acme/*"},
            {
                "image": "registry.local/stage/app:1",
                "imageID": f"registry.local/stage/app@{DIGEST}",
            },
            id="another-registry-s-name",
        ),
        pytest.param({}, {"image": "ghcr.io/acme/app:latest"}, id="another-tag"),
        pytest.param({}, {"imageID": f"sha256:{'c' * 64}"}, id="no-manifest-s-digest"),
    ],
)
async def test_an_image_that_its_node_has_by_another_name_stays_what_it_is(
    world: World, settings: dict[str, str], status: dict[str, str]
) -> None:
    """A runtime tells one of the names that it has for a content, whichever was asked for."""
    world.cluster.create(pod("web"))
    async with world.program(**settings) as program:
        await world.told("web")
        moved = pod("web", number=1)
        moved["status"]["containerStatuses"][0].update(status)
        world.cluster.create(moved)
        world.cluster.delete("pods", "shop", "web-abc-0", grace_seconds=0)
        # When the last of them is told all that was before it was looked at.
        world.cluster.create(pod("api"))
        await world.told("api")
        world.cluster.delete("pods", "shop", "api-abc-0", grace_seconds=0)
        await world.told("api", status="decommissioned")
        assert await program.stopped() == 0
    posts = world.github.posts(name_of("web"))
    assert len(posts) == 1
    assert world.github.state(name_of("web")) == ("deployed", DIGEST)


async def test_a_stop_waits_for_the_answer_that_is_under_way(world: World) -> None:
    script = world.github.script(hangs(applied=True), times=1)
    world.cluster.create(pod("late"))
    async with world.program() as program:
        await world.github.until(lambda: bool(script.used))
        program.terminate()
        # The watch is ended first: a pod that comes now is for the next start.
        await world.cluster.until(lambda: world.cluster.watches == 0)
        world.cluster.create(pod("too-late"))
        assert program.running
        world.github.release()
        assert await program.ended() == 0
    assert [line.state for line in program.lines] == [("deployed", DIGEST)]
    assert world.github.posts(name_of("too-late")) == []
    assert "stopped with everything sent" in program.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
async def test_a_second_signal_ends_a_drain_at_once_and_in_order(
    world: World, number: signal.Signals
) -> None:
    script = world.github.script(hangs())
    world.cluster.create(pod("stuck"))
    world.cluster.create(pod("stuck-too"))
    async with world.program(DRAIN_TIMEOUT="1h", BULK_CLUSTER_SYNC="false") as program:
        await world.github.until(lambda: len(script.used) == 2)
        program.send(number)
        await world.cluster.until(lambda: world.cluster.watches == 0)
        assert program.running
        program.send(number)
        assert await program.ended() == 1
    assert program.stdout == []
    assert "stopped at once, as told twice" in program.said
    assert "Traceback" not in program.said
    assert "Task was destroyed" not in program.said


async def test_a_drain_ends_with_its_time_and_says_what_is_left(world: World) -> None:
    script = world.github.script(hangs())
    world.cluster.create(pod("stuck"))
    async with world.program(DRAIN_TIMEOUT="100ms") as program:
        await world.github.until(lambda: len(script.used) == 1)
        assert await program.stopped() == 0
    assert "stopped with names not sent" in program.said
    assert "Traceback" not in program.said


@pytest.mark.fault("G5")
async def test_a_token_that_is_not_taken_stops_all_sending(world: World) -> None:
    for number in range(5):
        world.cluster.create(pod(f"waiting-{number}"))
    world.github.tokens = {"another"}
    async with world.program("-workers", "1", LOG_LEVEL="debug") as program:
        await program.until_said("sending paused")
        world.cluster.create(pod("later"))
        assert await program.stopped() == 0
    # All of them in one batch, which is refused as a whole.
    assert {line.error for line in program.lines} == {"HTTP 401 Bad credentials"}
    assert len(program.lines) == 5
    assert len(world.github.history) == 1
    assert "stopped with names not sent" in program.said
    assert_secret(program)


async def test_under_kopf_run_the_same_is_told_with_settings_from_a_file(world: World) -> None:
    environ = world.environ(KUBECONFIG=str(world.cluster.write_kubeconfig(world.folder / "config")))
    (world.folder / ".env").write_text(f"ORG={environ.pop('ORG')}\nCLUSTER=of-the-file\n")
    world.cluster.create(pod("web"))
    script = world.github.script(hangs(applied=True), times=1)
    async with Program(kopf_run("-A"), environ=environ, folder=world.folder) as program:
        await world.github.until(lambda: bool(script.used), within=40)
        program.terminate()
        await world.cluster.until(lambda: world.cluster.watches == 0)
        assert program.running
        world.github.release()
        assert await program.ended() == 0
    assert [line.state for line in program.lines] == [("deployed", DIGEST)]
    (row,) = world.github.table
    assert row.identity.cluster == "simulated"
    assert "Traceback" not in program.said
    assert_secret(program)


async def test_a_proxy_that_is_none_ends_it_in_one_line_without_its_password(world: World) -> None:
    environ = {"PROXY_FROM_ENV": "true", "HTTP_PROXY": "http://user:canary@[proxy"}
    async with world.program(**environ) as program:
        assert await program.ended() == 2
    (line,) = [line for line in program.stderr if "HTTP_PROXY" in line]
    assert "not the URL of an HTTP proxy" in line
    assert "Traceback" not in program.said
    assert "canary" not in program.said
    assert world.github.history == []


async def test_under_kopf_run_mistakes_in_the_settings_end_it_too(world: World) -> None:
    environ = world.environ(ORG="no such org", CLUSTER="a/b")
    async with Program(kopf_run("-A"), environ=environ, folder=world.folder) as program:
        assert await program.ended() == 2
    for setting in ("ORG", "CLUSTER"):
        assert sum(line.startswith(setting) for line in program.stderr) == 1
    assert "Traceback" not in program.said
    assert world.github.history == []
    assert world.cluster.requests == []


async def test_under_kopf_run_it_ends_without_credentials_too(world: World) -> None:
    """Kopf would try its startup handler again in a minute, and for ever."""
    environ = world.environ(KUBECONFIG=str(world.folder / "no-such-file"))
    async with Program(kopf_run("-A"), environ=environ, folder=world.folder) as program:
        assert await program.ended() == 2
    assert len(program.stderr) == 1
    assert "no-such-file does not exist" in program.stderr[0]
    assert "Traceback" not in program.said
    assert world.github.history == []


# What pods may hold.

HOSTILE: Final = (
    "\x1b[31mred\n[2024-01-15T10:30:00Z] OK CREATED name=\u202eevil\u2066\u2028\x00\x07\ud800"
)
WHOLE: Final = HOSTILE.removesuffix("\ud800")
"""Without the half of a character, which no name may have: no ledger could write it down."""

NO_DIGEST: Final = {
    "config-id": "sha256:" + "c" * 64,
    "docker-config-id": "docker://sha256:" + "c" * 64,
    "bare-hex": "c" * 64,
    "upper-case": "ghcr.io/acme/app@sha256:" + "C" * 64,
    "too-long": "ghcr.io/acme/app@sha256:" + "c" * 65,
    "sha512": "ghcr.io/acme/app@sha512:" + "c" * 128,
    "trailing-junk": "ghcr.io/acme/app@sha256:" + "c" * 64 + "\n",
    "no-repository": "@sha256:" + "c" * 64,
    "hostile-repository": f"{HOSTILE}@sha256:" + "c" * 64,
}


def hostile_pods() -> list[Json]:
    """Return pods that nobody should write, and somebody will."""
    bare = pod("bare")
    del bare["metadata"]["ownerReferences"]
    junk = [pod(f"junk-{case}") for case in NO_DIGEST]
    for body, image_id in zip(junk, NO_DIGEST.values(), strict=True):
        body["status"]["containerStatuses"][0]["imageID"] = image_id
    shapeless = pod("shapeless")
    shapeless["spec"] = {"nodeName": "node-1", "containers": ["app", None, {"name": 7}]}
    shapeless["status"] = {"phase": ["Running"], "containerStatuses": {"name": "app"}}
    timeless = pod("timeless", creationTimestamp="yesterday")
    large = pod("large", annotations={"note": "x" * 2**18, HOSTILE: HOSTILE})
    large["metadata"]["labels"] |= {f"label-{number}": HOSTILE for number in range(2000)}
    return [
        bare,
        *junk,
        shapeless,
        timeless,
        large,
        pod("hostile-image", image=f"ghcr.io/acme/app:{HOSTILE}"),
        pod("hostile-name", container=WHOLE),
        pod("half-name", container=HOSTILE),
        pod("quoted", container='a"b\\c d=e'),
        pod("long", container="x" * 300),
    ]


@pytest.mark.fault("W8")
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_hostile_pods_forge_no_line_and_harm_nobody(world: World, log_format: str) -> None:
    for body in hostile_pods():
        world.cluster.create(body)
    world.cluster.create(pod("refused"))
    world.github.script(answers(422, body={"message": HOSTILE}), match=of(name_of("refused")))
    recorded = ["large", "hostile-image"]
    containers = {"hostile-name": WHOLE, "quoted": 'a"b\\c d=e'}
    async with world.program(LOG_FORMAT=log_format, LOG_LEVEL="debug") as program:
        for workload in recorded:
            await world.told(workload)
        for workload, container in containers.items():
            name = f"shop/{workload}/{container}"
            await world.github.until(partial(is_recorded, world.github, name))
        # It comes last, so all the others were seen before.
        world.cluster.create(pod("honest"))
        await world.told("honest")
        assert await program.stopped() == 0
    names = [*map(name_of, [*recorded, "honest"])]
    names += [f"shop/{workload}/{container}" for workload, container in containers.items()]
    told = [parsed(text, log_format) for text in program.stdout]
    acknowledged = [each for each in told if each["outcome"] == "OK"]
    assert sorted(each["deployment_name"] for each in acknowledged) == sorted(names)
    (failed,) = [each for each in told if each["outcome"] == "FAILED"]
    assert failed["deployment_name"] == name_of("refused")
    assert failed["error"].startswith("HTTP 422 [31mred [2024-01-15T10:30:00Z] OK CREATED")
    heard = {name for exchange in world.github.history for name in exchange.names}
    assert heard == {*names, name_of("refused")}
    assert all(text.isprintable() for text in [*program.stdout, *program.stderr])
    assert "Traceback" not in program.said
    assert_secret(program)
    if log_format == "json":
        diagnostics = [json.loads(text) for text in program.stderr]
        (counts,) = [each for each in diagnostics if each["event"] == "not recorded"]
        assert counts["bare-pod"] == 1
        assert counts["malformed"] == 1
        assert counts["no-manifest-digest"] == len(NO_DIGEST)
        assert counts["deployment-name-too-long"] == 1


def is_recorded(github: SimulatedGitHub, name: str) -> bool:
    """Tell whether GitHub holds anything under a name."""
    return github.state(name) is not None


def parsed(text: str, log_format: str) -> Mapping[str, str]:
    """Return the facts of a line on stdout; a quoted word is a JSON string in either format."""
    if log_format == "json":
        facts: dict[str, str] = json.loads(text)
        return facts
    match = LINE.fullmatch(text)
    assert match is not None, text
    words = {key: value for key, value in match.groupdict().items() if value is not None}
    quoted = {key: json.loads(value) for key, value in words.items() if value[0] == '"'}
    return words | quoted
